//! One request for a JWK Set.
//!
//! `remote` asks; the address is the configuration's. The answer is taken if it is a 200 of bounded length within
//! a bounded time: a redirect is an answer like any other that is no 200, so no peer can send the server elsewhere.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Body as _;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;

use crate::config::{AuthConfig, KeysUrl};

/// Asks one address, again and again.
#[derive(Debug)]
pub(super) struct Fetcher {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    uri: Uri,
    timeout: Duration,
    bytes_max: usize,
}

/// Why there is no answer. Whoever has keys keeps them; the next attempt may go well.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// It took too long.
    #[error("no whole answer within {0:?}")]
    Timeout(Duration),
    /// There is no connection, or it broke.
    #[error("no connection")]
    Connection(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answer is no 200. Redirects are not followed.
    #[error("the answer is {0}")]
    Status(StatusCode),
    /// The answer is too long.
    #[error("the answer is longer than {0} bytes")]
    TooLarge(usize),
}

impl Fetcher {
    /// # Errors
    /// The root certificates can't be used; in words that follow the key's name.
    pub(super) fn new(config: &AuthConfig, url: &KeysUrl) -> Result<Self, String> {
        let roots = match &config.jwks_ca_file {
            Some(path) => roots_of(path)?,
            None if url.is_https() => system_roots()?,
            None => RootCertStore::empty(),
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("auth.jwks_url: {error}"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(Duration::from_millis(config.jwks_connect_timeout_ms)));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        // Nobody keeps a connection open for minutes.
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .http1_max_buf_size(HEAD_BYTES_MAX)
            .build(connector);
        Ok(Self {
            client,
            uri: url.uri().clone(),
            timeout: Duration::from_millis(config.jwks_timeout_ms),
            bytes_max: config.jwks_bytes_max,
        })
    }

    /// Asks once. Cancel safe.
    pub(super) async fn fetch(&self) -> Result<Bytes, FetchError> {
        timeout(self.timeout, self.ask())
            .await
            .unwrap_or(Err(FetchError::Timeout(self.timeout)))
    }

    async fn ask(&self) -> Result<Bytes, FetchError> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, header::HeaderValue::from_static(ACCEPT));
        headers.insert(
            header::USER_AGENT,
            header::HeaderValue::from_static(USER_AGENT),
        );
        let answer = self.client.request(request).await;
        let answer = answer.map_err(|error| FetchError::Connection(error.into()))?;
        if answer.status() != StatusCode::OK {
            return Err(FetchError::Status(answer.status()));
        }
        let too_large = FetchError::TooLarge(self.bytes_max);
        // Told in advance, it need not be read at all.
        if answer.body().size_hint().lower() > self.bytes_max as u64 {
            return Err(too_large);
        }
        match Limited::new(answer.into_body(), self.bytes_max)
            .collect()
            .await
        {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(too_large),
            Err(error) => Err(FetchError::Connection(error)),
        }
    }
}

fn roots_of(path: &Path) -> Result<RootCertStore, String> {
    let unusable = |what: String| format!("auth.jwks_ca_file: {} {what}", path.display());
    let text = std::fs::read(path).map_err(|error| unusable(format!("can't be read: {error}")))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        certificate
            .map_err(|error| error.to_string())
            .and_then(|certificate| roots.add(certificate).map_err(|error| error.to_string()))
            .map_err(|error| unusable(format!("has an unusable certificate: {error}")))?;
    }
    if roots.is_empty() {
        return Err(unusable(
            "has no certificate (BEGIN CERTIFICATE)".to_owned(),
        ));
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    // Some system stores have certificates that no TLS library can use; the rest will do.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(
            "auth.jwks_url: this system has no root certificates to check it with; install them, or name some in \
             auth.jwks_ca_file"
                .to_owned(),
        );
    }
    Ok(roots)
}

/// More header than any server needs around a few keys.
const HEAD_BYTES_MAX: usize = 32 * 1024;

const ACCEPT: &str = "application/jwk-set+json, application/json";

const USER_AGENT: &str = concat!("roomful/", env!("CARGO_PKG_VERSION"));
