//! Whether the process lives, and whether it wants traffic.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;

/// Whether the server wants traffic; a cheap handle.
///
/// It starts as "starting", may wait for keys, becomes "ready" once, and "draining" once; it never goes back.
#[derive(Debug, Clone)]
pub struct Readiness {
    state: Arc<AtomicU8>,
}

impl Readiness {
    /// Starting: not ready yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: Arc::new(AtomicU8::new(STARTING)),
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

    /// Whether traffic is welcome now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state.load(Ordering::Relaxed) == READY
    }

    fn answer(&self) -> (StatusCode, &'static str) {
        match self.state.load(Ordering::Relaxed) {
            READY => (StatusCode::OK, "ready\n"),
            STARTING => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
            WAITS_FOR_KEYS => (StatusCode::SERVICE_UNAVAILABLE, KEYS_ARE_MISSING),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        }
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
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
