//! The certificate in use, and how it is replaced.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::NoServerSessionStorage;
use rustls::version::{TLS12, TLS13};
use tokio::time::sleep;

use super::expiry::expires_at_s;
use crate::clock::Clock;
use crate::metrics::{Metrics, TlsReload};

/// The certificate in use; clones share it.
#[derive(Debug, Clone)]
pub struct Certificates {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    files: Files,
    clock: Clock,
    metrics: Metrics,
    /// Read at each handshake, written when the files have changed; the lock is held for a clone.
    current: RwLock<Arc<ServerConfig>>,
    /// What the files looked like when they were last read, good or not. Held while they are read, so that two
    /// reloads don't overtake each other.
    read: Mutex<Option<Stamps>>,
}

/// Where the certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The chain in PEM, the server's own certificate first.
    pub certificate: PathBuf,
    /// Its private key in PEM.
    pub key: PathBuf,
}

/// The files hold no certificate that could be shown. What was in use before stays in use.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file is missing, or may not be read.
    #[error("{key}: {} can't be read", path.display())]
    Unreadable {
        /// The configuration's key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is no PEM, or has not what it should have.
    #[error("{key}: {} has no {wanted} in PEM", path.display())]
    Malformed {
        /// The configuration's key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What should be in it.
        wanted: &'static str,
        /// What is wrong.
        #[source]
        source: pem::Error,
    },
    /// The key is not the certificate's, or of a kind that TLS doesn't know.
    #[error("{} and {} are no pair of certificate and key", files.certificate.display(), files.key.display())]
    NoPair {
        /// The files.
        files: Files,
        /// What is wrong.
        #[source]
        source: rustls::Error,
    },
}

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    /// [`CertificateError`]; one that has expired is a warning.
    pub fn open(files: Files, clock: Clock, metrics: Metrics) -> Result<Self, CertificateError> {
        let stamps = Stamps::of(&files);
        let loaded = Loaded::read(&files)?;
        loaded.announce(&files, &clock, &metrics);
        let inner = Inner {
            files,
            clock,
            metrics,
            current: RwLock::new(loaded.config),
            read: Mutex::new(stamps),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// What a handshake that begins now goes by.
    #[must_use]
    pub fn current(&self) -> Arc<ServerConfig> {
        let current = self.inner.current.read();
        Arc::clone(&current.unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the files again, whether they have changed or not. Open connections stay as they are.
    ///
    /// # Errors
    /// [`CertificateError`], which has been counted; the certificate in use stays.
    pub fn reload(&self) -> Result<(), CertificateError> {
        let inner = &*self.inner;
        let mut read = inner.read.lock().unwrap_or_else(PoisonError::into_inner);
        *read = Stamps::of(&inner.files);
        match Loaded::read(&inner.files) {
            Ok(loaded) => {
                loaded.announce(&inner.files, &inner.clock, &inner.metrics);
                let mut current = inner
                    .current
                    .write()
                    .unwrap_or_else(PoisonError::into_inner);
                *current = loaded.config;
                inner.metrics.tls_reloaded(TlsReload::Loaded);
                Ok(())
            }
            Err(error) => {
                inner.metrics.tls_reloaded(TlsReload::Failed);
                Err(error)
            }
        }
    }

    /// Reloads when the files have changed and changed no more: whoever writes two files writes one of them first. Never
    /// ends by itself.
    pub async fn watch(self) {
        let mut before = None;
        loop {
            sleep(LOOK_INTERVAL).await;
            let stamps = Stamps::of(&self.inner.files);
            let settled = stamps.is_some() && stamps == before;
            before = stamps;
            if settled && before != self.last_read() {
                match self.reload() {
                    Ok(()) => tracing::info!("a new certificate is in use"),
                    Err(error) => {
                        tracing::error!(
                            error = chain(&error),
                            "the certificate's files have changed and are no good; the old certificate stays in use"
                        );
                    }
                }
            }
        }
    }

    fn last_read(&self) -> Option<Stamps> {
        *self
            .inner
            .read
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the files hold.
struct Loaded {
    config: Arc<ServerConfig>,
    /// When the server's own certificate expires, in seconds since 1970.
    expires_at_s: Option<i64>,
}

impl Loaded {
    fn read(files: &Files) -> Result<Self, CertificateError> {
        let chain = read_certificates(&files.certificate)?;
        let key = read_key(&files.key)?;
        let expires_at_s = chain.first().and_then(expires_at_s);
        let config = server_config(chain, key).map_err(|source| CertificateError::NoPair {
            files: files.clone(),
            source,
        })?;
        Ok(Self {
            config: Arc::new(config),
            expires_at_s,
        })
    }

    fn announce(&self, files: &Files, clock: &Clock, metrics: &Metrics) {
        let Some(expires_at_s) = self.expires_at_s else {
            return;
        };
        metrics.certificate_expires(expires_at_s);
        let now_s = i64::try_from(clock.unix_ms() / 1_000).unwrap_or(i64::MAX);
        if expires_at_s < now_s {
            let file = files.certificate.display();
            tracing::warn!(%file, expires_at_s, "the certificate has expired; clients will refuse it");
        }
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let bytes = read_file(CERTIFICATE_KEY, path)?;
    let chain = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let whole = chain.and_then(|chain| {
        if chain.is_empty() {
            return Err(pem::Error::NoItemsFound);
        }
        Ok(chain)
    });
    whole.map_err(|source| CertificateError::Malformed {
        key: CERTIFICATE_KEY,
        path: path.to_owned(),
        wanted: "certificate",
        source,
    })
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    let bytes = read_file(KEY_KEY, path)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|source| CertificateError::Malformed {
        key: KEY_KEY,
        path: path.to_owned(),
        wanted: "private key",
        source,
    })
}

fn read_file(key: &'static str, path: &Path) -> Result<Vec<u8>, CertificateError> {
    fs::read(path).map_err(|source| CertificateError::Unreadable {
        key,
        path: path.to_owned(),
        source,
    })
}

fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    // A WebSocket begins with HTTP/1.1, and so nothing else is offered.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    // One is enough for a client that comes back once.
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// What two files look like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamps([Stamp; 2]);

/// What changes when a file is written, or replaced by another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

impl Stamps {
    /// `None` where a file is not there.
    fn of(files: &Files) -> Option<Self> {
        Some(Self([
            Stamp::of(&files.certificate)?,
            Stamp::of(&files.key)?,
        ]))
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(&metadata);
        #[cfg(not(unix))]
        let inode = 0;
        Some(Self {
            modified: metadata.modified().ok(),
            bytes: metadata.len(),
            inode,
        })
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

const CERTIFICATE_KEY: &str = "listen.tls_certificate_file";

const KEY_KEY: &str = "listen.tls_key_file";

/// A new certificate is in use after two looks at the latest, and a look costs two system calls.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
