//! What a running server is asked, by its admin listener.

use std::fs;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::admin::key;
use crate::config::Config;

/// Why a running server doesn't give what is asked for.
#[derive(Debug, thiserror::Error)]
pub enum RunningError {
    /// The key of the admin listener is not to be had.
    #[error("the admin key in {} can't be read (admin.key and admin.key_file name another one)", path.display())]
    Key {
        /// Where it should be.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nobody is there.
    #[error(
        "no server answers at {address}: --admin-listen, or listen.admin, names its admin listener"
    )]
    NoAnswer {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: hyper_util::client::legacy::Error,
    },
    /// It says no.
    #[error("the server at {address} refuses it: {text}")]
    Refused {
        /// Where.
        address: SocketAddr,
        /// In its words.
        text: String,
    },
    /// The answer has no end.
    #[error("the server's answer broke off")]
    Broken(#[source] io::Error),
}

/// A running server.
pub(super) struct Running {
    address: SocketAddr,
    key: String,
    runtime: Runtime,
    client: Client<HttpConnector, Body>,
}

impl Running {
    /// The one that the configuration starts.
    pub(super) fn new(config: &Config) -> Result<Self, RunningError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(RunningError::Broken)?;
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        Ok(Self {
            address: reachable(config.listen.admin),
            key: key_of(config)?,
            runtime,
            client: Client::builder(TokioExecutor::new()).build(connector),
        })
    }

    /// Asks for something that may be long: without a body it is a GET.
    pub(super) fn ask(self, path: &str, body: Option<&Value>) -> Result<Answer, RunningError> {
        let Self {
            address,
            key,
            runtime,
            client,
        } = self;
        let method = if body.is_some() {
            Method::POST
        } else {
            Method::GET
        };
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{address}{path}"))
            .header(header::AUTHORIZATION, format!("Bearer {key}"))
            .body(body)
            .map_err(|error| RunningError::Broken(io::Error::other(error)))?;
        let answer = runtime.block_on(client.request(request));
        let answer = answer.map_err(|source| RunningError::NoAnswer { address, source })?;
        let status = answer.status();
        if status != StatusCode::OK {
            let body = Limited::new(answer.into_body(), REFUSAL_BYTES_MAX).collect();
            let body = runtime.block_on(body).map(|body| body.to_bytes());
            let text = refusal(&body.unwrap_or_default()).unwrap_or_else(|| status.to_string());
            return Err(RunningError::Refused { address, text });
        }
        Ok(Answer {
            runtime,
            body: answer.into_body(),
            rest: Bytes::new(),
        })
    }
}

/// What a server answers, as it comes.
pub(super) struct Answer {
    runtime: Runtime,
    body: Incoming,
    /// What has come and was not read yet.
    rest: Bytes,
}

impl Read for Answer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.runtime.block_on(self.body.frame()) {
                None => return Ok(0),
                Some(frame) => {
                    let data = frame.map_err(io::Error::other)?.into_data();
                    self.rest = data.unwrap_or_default();
                }
            }
        }
        let length = buffer.len().min(self.rest.len());
        buffer[..length].copy_from_slice(&self.rest.split_to(length));
        Ok(length)
    }
}

/// Where somebody on this machine finds a listener.
fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}

fn key_of(config: &Config) -> Result<String, RunningError> {
    if let Some(key) = &config.admin.key {
        return Ok(key.expose().to_owned());
    }
    let kept = || Path::new(&config.node.data_dir).join(key::FILE);
    let path = config.admin.key_file.clone().unwrap_or_else(kept);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(source) => Err(RunningError::Key { path, source }),
    }
}

/// What the error in an answer says.
fn refusal(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    Some(body.get("error")?.get("text")?.as_str()?.to_owned())
}

/// On one machine a connection is there at once, or never.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

const REFUSAL_BYTES_MAX: usize = 64 << 10;
