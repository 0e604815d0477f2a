//! TLS from the client's side, and the certificate of the servers that are started here.
//!
//! A [`Stream`] is a socket with or without TLS, read and written alike and never waited for. Each [`Secure`] trusts that one
//! certificate alone, and knows how its handshakes have to go: one that goes otherwise ends the run, since its figure would be of something else.

use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mio::net::TcpStream;
use rcgen::{CertificateParams, KeyPair};
use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, NamedGroup, RootCertStore};

use crate::process::GivenFile;

/// What the connections of a run are encrypted with; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Secure {
    manner: Manner,
    config: Arc<ClientConfig>,
    resumed: Arc<AtomicUsize>,
}

/// How handshakes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// TLS 1.3, each with the certificate.
    Full,
    /// TLS 1.3, each with a ticket, once there are as many as connections on their way.
    Resumed,
    /// TLS 1.2, each with the certificate.
    Tls12,
}

/// A client's socket.
#[derive(Debug)]
pub(crate) enum Stream {
    /// Without TLS.
    Plain(TcpStream),
    /// With it.
    Tls(Box<Encrypted>),
}

/// A socket with TLS.
#[derive(Debug)]
pub(crate) struct Encrypted {
    socket: TcpStream,
    tls: ClientConnection,
    secure: Secure,
    is_checked: bool,
}

/// The files that a server needs to be trusted, each by its setting.
pub(crate) fn server_files() -> Vec<GivenFile> {
    let given = |setting, text: &String| GivenFile {
        setting,
        text: text.clone(),
    };
    vec![
        given("listen.tls_certificate_file", &IDENTITY.certificate),
        given("listen.tls_key_file", &IDENTITY.key),
    ]
}

impl Secure {
    /// Without tickets yet.
    pub(crate) fn new(manner: Manner) -> Self {
        let versions = match manner {
            Manner::Full | Manner::Resumed => &[&TLS13],
            Manner::Tls12 => &[&TLS12],
        };
        let mut roots = RootCertStore::empty();
        roots
            .add(IDENTITY.der.clone())
            .expect("a certificate that was made here can be read");
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(versions)
                .expect("the provider has suites for both versions")
                .with_root_certificates(roots)
                .with_no_client_auth();
        config.resumption = match manner {
            Manner::Full | Manner::Tls12 => Resumption::disabled(),
            Manner::Resumed => Resumption::store(Arc::<Tickets>::default()),
        };
        Self {
            manner,
            config: Arc::new(config),
            resumed: Arc::default(),
        }
    }

    /// How its handshakes go.
    pub(crate) const fn manner(&self) -> Manner {
        self.manner
    }

    /// How many connections came with a ticket that the server took.
    pub(crate) fn resumed(&self) -> usize {
        self.resumed.load(Ordering::Relaxed)
    }
}

impl Manner {
    /// The server's name in reports.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Full => "roomful, TLS 1.3",
            Self::Resumed => "roomful, TLS 1.3 resumed",
            Self::Tls12 => "roomful, TLS 1.2",
        }
    }
}

impl Stream {
    /// Begins to speak over a socket; the handshake goes on by itself as it is read and written.
    ///
    /// # Errors
    /// TLS can't begin.
    pub(crate) fn over(socket: TcpStream, secure: Option<&Secure>) -> Result<Self> {
        let Some(secure) = secure else {
            return Ok(Self::Plain(socket));
        };
        let name = ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST));
        let tls = ClientConnection::new(Arc::clone(&secure.config), name);
        Ok(Self::Tls(Box::new(Encrypted {
            socket,
            tls: tls.context("TLS can't begin")?,
            secure: secure.clone(),
            is_checked: false,
        })))
    }

    /// The socket, to be registered.
    pub(crate) fn socket(&mut self) -> &mut TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(encrypted) => &mut encrypted.socket,
        }
    }

    /// Whether what is read is what came.
    pub(crate) const fn is_plain(&self) -> bool {
        matches!(self, Self::Plain(_))
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(encrypted) => encrypted.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(encrypted) => encrypted.write(bytes),
        }
    }

    /// Writes what TLS has of its own, as far as the kernel takes it.
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(encrypted) => encrypted.push(),
        }
    }
}

impl Encrypted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                outcome => return outcome,
            }
            if self.tls.read_tls(&mut self.socket)? == 0 {
                return Ok(0);
            }
            let processed = self.tls.process_new_packets();
            self.push()?;
            processed.map_err(|error| Error::new(ErrorKind::InvalidData, error))?;
            self.check()?;
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.tls.writer().write(bytes)?;
        self.push()?;
        if written == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(written)
    }

    fn push(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.socket) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                outcome => drop(outcome?),
            }
        }
        Ok(())
    }

    /// Whether a handshake went as it has to, once it is done.
    fn check(&mut self) -> io::Result<()> {
        if self.is_checked || self.tls.is_handshaking() {
            return Ok(());
        }
        self.is_checked = true;
        let was_resumed = self.tls.handshake_kind() == Some(HandshakeKind::Resumed);
        if was_resumed && self.secure.manner != Manner::Resumed {
            return Err(Error::other("a session was resumed without a ticket"));
        }
        let resumed = &self.secure.resumed;
        resumed.fetch_add(usize::from(was_resumed), Ordering::Relaxed);
        Ok(())
    }
}

/// Tickets that no connection has come with yet. Each connection brings one, and may take one.
#[derive(Debug, Default)]
struct Tickets(Mutex<Vec<Tls13ClientSessionValue>>);

impl ClientSessionStore for Tickets {
    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut tickets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tickets.push(ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut tickets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tickets.pop()
    }

    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}
}

/// A certificate with its key.
struct Identity {
    certificate: String,
    key: String,
    der: CertificateDer<'static>,
}

/// Made once, with a key on P-256 as most certificates have today; it ends with this process.
static IDENTITY: LazyLock<Identity> = LazyLock::new(|| {
    let key = KeyPair::generate().expect("there are random numbers");
    let names = vec![Ipv4Addr::LOCALHOST.to_string()];
    let certificate = CertificateParams::new(names)
        .and_then(|params| params.self_signed(&key))
        .expect("an address is a name that a certificate may have");
    Identity {
        certificate: pem("CERTIFICATE", certificate.der()),
        key: pem("PRIVATE KEY", &key.serialize_der()),
        der: certificate.der().clone(),
    }
});

/// Bytes in PEM (RFC 7468); whoever reads it here takes lines of any length.
fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}
