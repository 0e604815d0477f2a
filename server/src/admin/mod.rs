//! The operations of the admin listener: what a back end asks of rooms and connections, over HTTP.
//!
//! Each operation becomes the same request that a client's frame becomes, sent to the same owner, with an
//! origin that is no connection; what comes back is written as JSON. Nothing here touches a room, and no shard
//! waits for HTTP. Whoever calls shows the admin key (`access`); requests are bounded in number, bytes and time,
//! and each act leaves a line in the log that says who did what to what, and how it ended. What a request does
//! is left to the rooms, how a socket is served to `http`.
//!
//! Read on in `access` (who may), `rooms` (what there is), `revoking` (who has to go), `storage` (copies of rooms on disk), `failure` (how it ends when it doesn't work) and
//! [`key`].

mod access;
mod failure;
pub mod key;
mod revoking;
mod rooms;
mod storage;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Query, Request};
use axum::http::{StatusCode, Uri, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::Durability;
use roomful_protocol::id::{Epoch, TenantId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::clock::Clock;
use crate::connection::Rate;
use crate::journal::local::Local;
use crate::metrics::Metrics;
use crate::session::revocation_file::RevocationFile;
use crate::session::revocations::Revocations;
use crate::shard::message::{Answer, Refusal};
use crate::transport::{PendingCall, Shards};
use access::Guesses;
use failure::Failure;
use key::AdminKey;

/// The operations; a cheap handle.
#[derive(Debug, Clone)]
pub struct Admin {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    parts: Parts,
    guesses: Guesses,
    /// One permit for each request that is worked on.
    places: Semaphore,
    /// One permit for each copy that is made.
    copies: Arc<Semaphore>,
}

/// What the operations are made of.
#[derive(Debug)]
pub struct Parts {
    /// Who is asked.
    pub shards: Shards,
    /// Who is not let in any more.
    pub revocations: Revocations,
    /// Where that is kept.
    pub revocation_file: RevocationFile,
    /// The rooms on disk, where there are any.
    pub local: Option<Arc<Local>>,
    /// No room has a later epoch.
    pub last_epoch: Epoch,
    /// Who may ask.
    pub key: AdminKey,
    /// Denials are counted here.
    pub metrics: Metrics,
    /// The time.
    pub clock: Clock,
    /// The configuration.
    pub settings: AdminSettings,
}

/// What the configuration says.
#[derive(Debug, Clone)]
pub struct AdminSettings {
    /// Whether the listener is bound to loopback, where a request has to name it so.
    pub loopback: bool,
    /// Wrong keys from one address.
    pub wrong_keys: Rate,
    /// Requests that are worked on at a time.
    pub requests_max: usize,
    /// Time for a body to arrive, and for an owner to answer.
    pub request_timeout: Duration,
    /// Longest body, in bytes.
    pub body_bytes_max: usize,
    /// Users, sessions and token ids that are revoked at a time.
    pub revocations_max: usize,
    /// After so long no token is good any more that is now, in milliseconds.
    pub token_lifetime_ms: u64,
    /// Longest payload, in bytes.
    pub payload_bytes_max: usize,
    /// What each namespace's rooms are like.
    pub namespaces: BTreeMap<String, Namespace>,
    /// What the rooms of other namespaces are like, where there may be any.
    pub other_namespaces: Option<Namespace>,
}

/// What a back end is told of a namespace.
#[derive(Debug, Clone, Copy)]
pub struct Namespace {
    /// The kind's name.
    pub kind: &'static str,
    /// What an acknowledged publish survives.
    pub durability: Durability,
}

/// What an operation gives: JSON, or why not.
type Outcome = Result<String, Failure>;

/// What an act was about, for the log.
#[derive(Debug, Default)]
struct Target {
    tenant: String,
    on: String,
}

/// The line about an act. Where the caller leaves before the answer, nobody waits for the outcome, and the line says so.
struct Line {
    act: &'static str,
    client: IpAddr,
    target: Target,
    is_written: bool,
}

impl Line {
    const fn new(act: &'static str, client: IpAddr) -> Self {
        Self {
            act,
            client,
            target: Target {
                tenant: String::new(),
                on: String::new(),
            },
            is_written: false,
        }
    }

    fn done(mut self) {
        self.is_written = true;
        let (Self { act, client, .. }, Target { tenant, on }) = (&self, &self.target);
        tracing::info!(target: AUDIT, %client, act, tenant, ?on, outcome = "done");
    }

    fn failed(mut self, outcome: &str, text: &str) {
        self.is_written = true;
        let (Self { act, client, .. }, Target { tenant, on }) = (&self, &self.target);
        tracing::warn!(target: AUDIT, %client, act, tenant, ?on, outcome, text);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.is_written {
            let (Self { act, client, .. }, Target { tenant, on }) = (&self, &self.target);
            tracing::warn!(target: AUDIT, %client, act, tenant, ?on, outcome = "caller left");
        }
    }
}

impl Admin {
    /// Operations that nobody has called yet.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let places = parts.settings.requests_max.min(Semaphore::MAX_PERMITS);
        let inner = Inner {
            guesses: Guesses::new(parts.settings.wrong_keys),
            places: Semaphore::new(places),
            copies: Arc::new(Semaphore::new(COPIES_MAX)),
            parts,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The routes, behind the key.
    pub fn routes(&self) -> Router {
        Router::new()
            .route("/v1/rooms", get(rooms::list))
            .route("/v1/rooms/{room}", get(rooms::describe))
            .route("/v1/rooms/{room}/members", get(rooms::members))
            .route("/v1/rooms/{room}/publish", post(rooms::publish))
            .route("/v1/storage/inspect", post(storage::inspect))
            .route("/v1/storage/export", post(storage::export))
            .route("/v1/storage/backup", get(storage::backup))
            .route("/v1/disconnect", post(revoking::disconnect))
            .route(
                "/v1/revocations",
                get(revoking::list)
                    .post(revoking::revoke)
                    .delete(revoking::lift),
            )
            .route("/v1/{*other}", any(async || Failure::no_such_operation()))
            .method_not_allowed_fallback(async || Failure::wrong_method())
            .with_state(self.clone())
            .layer(from_fn_with_state(self.clone(), access::check))
    }

    /// Drops revocations that have ended, for ever.
    pub async fn watch(self) {
        loop {
            let parts = self.parts();
            parts
                .metrics
                .revoked(parts.revocations.expire(parts.clock.unix_ms()));
            sleep(WATCH_INTERVAL).await;
        }
    }

    fn parts(&self) -> &Parts {
        &self.inner.parts
    }

    /// Does something in one of the places, and logs it.
    async fn act(
        &self,
        act: &'static str,
        client: IpAddr,
        work: impl AsyncFnOnce(&mut Target) -> Outcome,
    ) -> Response {
        let mut line = Line::new(act, client);
        let outcome = match self.inner.places.try_acquire() {
            Ok(_place) => work(&mut line.target).await,
            Err(_) => Err(Failure::too_many(self.parts().settings.requests_max)),
        };
        match &outcome {
            Ok(_) => line.done(),
            Err(failure) => line.failed(failure.name(), failure.text()),
        }
        match outcome {
            Ok(json) => ([(header::CONTENT_TYPE, JSON)], json + "\n").into_response(),
            Err(failure) => failure.into_response(),
        }
    }

    /// Reads a body of JSON.
    async fn body<T: DeserializeOwned>(&self, request: Request<Body>) -> Result<T, Failure> {
        let AdminSettings {
            request_timeout,
            body_bytes_max,
            ..
        } = self.parts().settings;
        let bytes: Bytes = timeout(
            request_timeout,
            to_bytes(request.into_body(), body_bytes_max),
        )
        .await
        .map_err(|_| Failure::slow_body())?
        .map_err(|_| Failure::broken_body())?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Refusal::new(
                ErrorCode::BadFrame,
                format!("the body is not right: {error}"),
            )
            .into()
        })
    }

    /// Waits for the next answer of a call.
    async fn answer(&self, call: &mut PendingCall) -> Result<Answer, Failure> {
        match timeout(self.parts().settings.request_timeout, call.answer()).await {
            Ok(Some(answered)) => Ok(answered?),
            Ok(None) | Err(_) => Err(Failure::no_answer()),
        }
    }
}

/// Reads the parameters behind the path.
fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Failure> {
    let parameters = Query::try_from_uri(uri);
    let Query(parameters) =
        parameters.map_err(|rejection| Refusal::new(ErrorCode::BadValue, rejection.body_text()))?;
    Ok(parameters)
}

/// The tenant that is named, or the default one.
fn tenant(name: Option<&str>, target: &mut Target) -> Result<TenantId, Failure> {
    let tenant = name.map_or_else(|| Ok(TenantId::default_tenant()), TenantId::parse);
    let tenant =
        tenant.map_err(|error| Refusal::new(ErrorCode::BadValue, format!("the tenant {error}")))?;
    tenant.as_str().clone_into(&mut target.tenant);
    Ok(tenant)
}

fn json(value: &impl Serialize) -> Outcome {
    serde_json::to_string(value).map_err(|error| {
        tracing::error!(%error, "an answer can't be written as JSON");
        let text = "the answer can't be written; the log has the details";
        Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Refusal::new(ErrorCode::Internal, text),
        )
    })
}

/// Copies that are made at a time: each holds back space that the store would give back.
const COPIES_MAX: usize = 2;

/// How often the list of revocations is looked through.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

const JSON: &str = "application/json";

/// What the lines about acts are known by in the log.
const AUDIT: &str = "roomful_server::admin";
