//! The harness of the behaviour tests: the real server as a process, and clients to talk to it.
//!
//! The cases are in `tests/tests/`, one file a behaviour; they drive the server's public faces alone. Everything here fails by panicking with what was expected and what was there, since
//! its caller is a test. Every wait is for a condition with a deadline; nothing sleeps and hopes. Randomness comes from a printed seed.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    clippy::print_stderr,
    reason = "a harness reports by panicking, and its caller is a test"
)]

pub mod back_end;
pub mod echo;
pub mod follower;
pub mod healthy;
pub mod http;
pub mod issuer;
pub mod keyed;
pub mod link;
pub mod metrics;
pub mod peer;
pub mod process;
pub mod publisher;
pub mod raw;
pub mod seed;
pub mod server;
pub mod storage;
pub mod tls;
pub mod tokens;
pub mod wait;

pub use back_end::BackEnd;
pub use echo::Echo;
pub use follower::Follower;
pub use healthy::Healthy;
pub use metrics::Metrics;
pub use peer::Peer;
pub use raw::{Connect, RawClient};
pub use server::Server;
pub use wait::until;
