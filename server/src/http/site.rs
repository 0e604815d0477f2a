//! What a listener serves.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};

use super::connection::{Limits, PeerContext};
use super::guard::{self, Bodies};
use super::health::{self, Readiness};
use super::origin::{OriginRule, Own};
use super::pages;
use super::secure::Tls;
use super::upgrade::{self, Door, Speech, Upgrades};
use crate::admission::Admission;
use crate::current::Current;
use crate::metrics::{HandshakeRejection, Metrics, TEXT_FORMAT};
use crate::tasks::Tasks;

/// What both listeners need; cheap handles.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Shown at `/metrics`; refusals are counted here.
    pub metrics: Metrics,
    /// Shown at `/readyz`.
    pub readiness: Readiness,
    /// Where connections run.
    pub tasks: Tasks,
    /// What a peer may do before it has a WebSocket.
    pub limits: Limits,
}

/// What one listener serves: see [`Site::public`], [`Site::admin`] and [`Site::plain`].
#[derive(Debug)]
pub struct Site {
    pub(super) shared: Shared,
    /// What makes it speak TLS.
    pub(super) tls: Option<Tls>,
    pub(super) admission: Admission,
    face: Face,
}

enum Face {
    Public(Doorway),
    Plain(Doorway),
    Admin(Operations),
}

/// What the handshake needs beyond [`Shared`].
struct Doorway {
    upgrades: Arc<dyn Upgrades>,
    origins: Current<OriginRule>,
}

/// What the admin listener serves beyond [`Shared`].
#[derive(Debug)]
pub struct Operations {
    /// Routes that ask for a key of their own.
    pub routes: Router,
    /// Longest body of a request to them, in bytes.
    pub body_bytes_max: usize,
}

impl Site {
    /// For everybody: pages, `/v1/ws`, `/healthz`, `/readyz`; `/metrics` only where the listener is bound to loopback.
    #[must_use]
    pub fn public(
        shared: Shared,
        admission: Admission,
        upgrades: Arc<dyn Upgrades>,
        origins: Current<OriginRule>,
    ) -> Self {
        Self {
            shared,
            tls: None,
            admission,
            face: Face::Public(Doorway { upgrades, origins }),
        }
    }

    /// Speaks TLS and nothing else.
    #[must_use]
    pub fn with_tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// For the operator and the back end: `/metrics`, `/healthz`, `/readyz`, and the operations.
    #[must_use]
    pub fn admin(shared: Shared, admission: Admission, operations: Operations) -> Self {
        Self {
            shared,
            tls: None,
            admission,
            face: Face::Admin(operations),
        }
    }

    /// Which bodies a request may have.
    pub(super) fn bodies(&self) -> Bodies {
        match &self.face {
            Face::Public(_) | Face::Plain(_) => Bodies::None,
            Face::Admin(operations) => Bodies::UpTo(operations.body_bytes_max),
        }
    }

    /// For a program that speaks something else over WebSockets: handshakes at every path, with any subprotocol or none,
    /// and nothing else.
    #[must_use]
    pub fn plain(
        shared: Shared,
        admission: Admission,
        upgrades: Arc<dyn Upgrades>,
        origins: Current<OriginRule>,
    ) -> Self {
        Self {
            shared,
            tls: None,
            admission,
            face: Face::Plain(Doorway { upgrades, origins }),
        }
    }

    /// The listener's name in logs.
    pub(super) fn name(&self) -> &'static str {
        match self.face {
            Face::Public(_) | Face::Plain(_) => "public",
            Face::Admin(_) => "admin",
        }
    }

    /// The routes, for a listener bound to this address, and the door that one of them leads to.
    pub(super) fn routes(self, address: SocketAddr) -> (Router, Option<Arc<Door>>) {
        let Self {
            shared,
            tls,
            admission,
            face,
        } = self;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let base = health::routes(shared.readiness);
        let metrics = metrics_routes(shared.metrics.clone(), address);
        let door = |doorway: Doorway, speech| {
            Arc::new(Door {
                upgrades: doorway.upgrades,
                admission,
                origins: doorway.origins,
                speech,
                metrics: shared.metrics,
                own: Own {
                    scheme,
                    port: address.port(),
                },
            })
        };
        let (routes, door) = match face {
            Face::Plain(doorway) => {
                let door = door(doorway, Speech::Plain);
                let everywhere = Router::new()
                    .fallback(handshake)
                    .with_state(Arc::clone(&door));
                return (everywhere, Some(door));
            }
            Face::Admin(operations) => (base.merge(metrics).merge(operations.routes), None),
            Face::Public(doorway) => {
                let door = door(doorway, Speech::Roomful);
                let handshakes = Router::new()
                    .route(upgrade::PATH, any(handshake))
                    .with_state(Arc::clone(&door));
                let public = base.merge(pages::routes()).merge(handshakes);
                let public = if address.ip().is_loopback() {
                    public.merge(metrics)
                } else {
                    public
                };
                (public, Some(door))
            }
        };
        let routes = routes
            .fallback(not_found)
            .method_not_allowed_fallback(method_not_allowed);
        (routes, door)
    }
}

impl fmt::Debug for Face {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Public(doorway) | Self::Plain(doorway) => f
                .debug_struct("Doorway")
                .field("origins", &doorway.origins.get())
                .finish_non_exhaustive(),
            Self::Admin(operations) => f.debug_tuple("Admin").field(operations).finish(),
        }
    }
}

async fn handshake(
    State(door): State<Arc<Door>>,
    Extension(peer): Extension<Arc<PeerContext>>,
    request: Request,
) -> Response {
    let checked = door.check(&request, peer.client);
    let outcome = checked.and_then(|checked| peer.admit(&door, checked));
    outcome.unwrap_or_else(|rejected| rejected.answer(&door.metrics))
}

fn metrics_routes(metrics: Metrics, address: SocketAddr) -> Router {
    let guarded = address.ip().is_loopback();
    let scrape = async move |request: Request| {
        // A page of a foreign site that made its own name point here must not read along.
        if guarded && !guard::names_loopback(&request) {
            return guard::Rejected::new(
                HandshakeRejection::Host,
                StatusCode::FORBIDDEN,
                LOOPBACK_ONLY,
            )
            .answer(&metrics);
        }
        ([(header::CONTENT_TYPE, TEXT_FORMAT)], metrics.render()).into_response()
    };
    Router::new().route("/metrics", get(scrape))
}

async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "not found\n").into_response()
}

async fn method_not_allowed() -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n").into_response()
}

const LOOPBACK_ONLY: &str = "ask for it as localhost, 127.0.0.1 or [::1]\n";
