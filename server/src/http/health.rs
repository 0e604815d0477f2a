//! Whether the process lives, and whether it wants traffic.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;

use crate::journal::Health;
use crate::journal::local::Local;

/// Whether the server wants traffic; a cheap handle.
///
/// It starts as "starting", may wait for keys, becomes "ready" once, and "draining" once; it never goes back. While rooms on disk
/// can't take anything, a server that is ready says that it is not: what it refuses, another one may be able to take.
#[derive(Debug, Clone)]
pub struct Readiness {
    state: Arc<AtomicU8>,
    local: Option<Arc<Local>>,
}

impl Readiness {
    /// Starting: not ready yet. With the rooms on disk, where there are any.
    #[must_use]
    pub fn new(local: Option<Arc<Local>>) -> Self {
        Self {
            state: Arc::new(AtomicU8::new(STARTING)),
            local,
        }
    }

    /// Everything is there but the keys that tokens are checked with.
    pub fn waits_for_keys(&self) {
        self.state.fetch_max(WAITS_FOR_KEYS, Ordering::Relaxed);
    }

    /// Traffic is welcome.
    pub fn ready(&self) {
        self.state.fetch_max(READY, Ordering::Relaxed);
    }

    /// Traffic should go elsewhere from now on; a load balancer that asks is told so.
    pub fn draining(&self) {
        self.state.fetch_max(DRAINING, Ordering::Relaxed);
    }

    fn answer(&self) -> (StatusCode, &'static str) {
        match self.state.load(Ordering::Relaxed) {
            READY => match self.storage() {
                None => (StatusCode::OK, "ready\n"),
                Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, trouble),
            },
            STARTING => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
            WAITS_FOR_KEYS => (StatusCode::SERVICE_UNAVAILABLE, KEYS_ARE_MISSING),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        }
    }

    /// Why rooms on disk take nothing.
    fn storage(&self) -> Option<&'static str> {
        let local = self.local.as_ref()?;
        if local.is_damaged() {
            return Some("the journal is damaged: no room on disk opens before it is repaired\n");
        }
        match local.health() {
            Health::Good => None,
            Health::Full => {
                Some("the disk has too little space: rooms on disk take nothing until it has\n")
            }
            Health::Failed => {
                Some("the disk has failed: rooms on disk take nothing until a restart\n")
            }
        }
    }
}

/// `/healthz` answers while the process runs; `/readyz` answers 200 only while traffic is welcome.
pub(super) fn routes(readiness: Readiness) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(async move || readiness.answer()))
}

const STARTING: u8 = 0;
const WAITS_FOR_KEYS: u8 = 1;
const READY: u8 = 2;
const DRAINING: u8 = 3;

const KEYS_ARE_MISSING: &str = "starting: auth.jwks_url has given no keys yet\n";
