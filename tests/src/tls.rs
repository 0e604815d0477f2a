//! TLS for the tests: certificates made on the spot, clients that trust them, and sockets with and without TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::TLS12;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};

/// Somebody who issues certificates, and whom clients of the tests trust.
#[derive(Debug)]
pub struct Authority {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// The certificate as it is shown in a handshake.
    pub der: CertificateDer<'static>,
}

impl Authority {
    /// A new one.
    ///
    /// # Panics
    /// There are no random numbers.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "a default that makes keys surprises"
    )]
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        Self {
            root,
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate for this machine's own names.
    #[must_use]
    pub fn issue(&self) -> Issued {
        self.issue_with(|_| {})
    }

    /// One for somebody else's name.
    #[must_use]
    pub fn issue_for(&self, name: &str) -> Issued {
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        self.sign(&params)
    }

    /// Its own certificate, in PEM.
    #[must_use]
    pub fn root(&self) -> String {
        pem("CERTIFICATE", &self.root)
    }

    /// One that has expired.
    #[must_use]
    pub fn issue_expired(&self) -> Issued {
        self.issue_with(|params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2020, 2, 1);
        })
    }

    fn issue_with(&self, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Issued {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Issued {
            certificate: pem("CERTIFICATE", certificate.der()),
            key: pem("PRIVATE KEY", &key.serialize_der()),
            der: certificate.der().clone(),
        }
    }

    /// What a client that trusts it goes by.
    #[must_use]
    pub fn client(&self) -> ClientConfig {
        self.client_with(tokio_rustls::rustls::ALL_VERSIONS)
    }

    /// The same with TLS 1.2 alone.
    #[must_use]
    pub fn client_of_tls12(&self) -> ClientConfig {
        self.client_with(&[&TLS12])
    }

    fn client_with(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }
}

impl Issued {
    /// Writes both files into a directory, as a tool that renews certificates does: each is replaced as a whole.
    ///
    /// # Panics
    /// They can't be written.
    pub fn write(&self, dir: &Path) {
        for (name, text) in [(CERTIFICATE, &self.certificate), (KEY, &self.key)] {
            let new = dir.join("new.pem");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, dir.join(name)).unwrap();
        }
    }
}

impl Issued {
    /// What a server that shows it goes by.
    ///
    /// # Panics
    /// It is no pair.
    #[must_use]
    pub fn server(&self) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.der.clone()], key)
            .unwrap();
        Arc::new(config)
    }
}

/// Bytes in PEM (RFC 7468).
fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len())
        .step_by(64)
        .map(|start| &text[start..text.len().min(start + 64)])
        .collect();
    let text = lines.join("\n");
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

/// The configuration of a server that shows the certificate in a directory, to be put before any other section; `more` are
/// more keys of `[listen]`.
#[must_use]
pub fn config(dir: &Path, more: &str) -> String {
    let dir = dir.display();
    format!(
        "[listen]\ntls_certificate_file = \"{dir}/{CERTIFICATE}\"\ntls_key_file = \"{dir}/{KEY}\"\n{more}\n"
    )
}

/// Connects and does the TLS handshake.
///
/// # Errors
/// What either failed with.
pub async fn connect(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::IpAddress(IpAddr::to_owned(&address.ip()).into());
    connect_as(address, config, name).await
}

/// Connects to a server by a name.
///
/// # Errors
/// What either failed with.
pub async fn connect_as(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    name: ServerName<'static>,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    TlsConnector::from(Arc::clone(config))
        .connect(name, stream)
        .await
}

/// A client's socket.
#[derive(Debug)]
pub enum Stream {
    /// Without TLS.
    Plain(TcpStream),
    /// With it.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// The socket below.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, target),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, target),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// The certificate's file.
pub const CERTIFICATE: &str = "certificate.pem";

/// The key's file.
pub const KEY: &str = "key.pem";
