//! The HTTP doors: pages, health, metrics, and the WebSocket handshake.
//!
//! Each listener has a thread that accepts. A handshake that has arrived whole and is good is answered there;
//! whatever else comes is served on the control runtime, one task per connection. No room is touched. A
//! connection that asks for a WebSocket is checked, answered, and handed over as a plain socket together with
//! whatever was read past the request; nothing of HTTP stays with it. Every refusal is an HTTP answer that reaches the peer, and is
//! counted; heads are bounded in bytes, lines and time, connections in number and lifetime, and no request
//! with a body is accepted. What is said over the WebSocket, and who may say it, is left to the taker of the
//! socket ([`Upgrades`]).
//!
//! References: RFC 9112 (HTTP/1.1), RFC 6455 §4.2 (the handshake), RFC 6454 (origins).

mod acceptor;
mod connection;
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod health;
mod link;
mod origin;
mod pages;
mod rewound;
mod secure;
mod site;
mod upgrade;
mod welcome;

#[cfg(test)]
mod tests;

pub use acceptor::{listen, serve};
pub(crate) use connection::LongAnswer;
pub use connection::{Limits, PeerContext};
pub(crate) use guard::names_loopback;
pub use health::Readiness;
pub use origin::{Origin, OriginError, OriginRule};
pub use secure::Tls;
pub use site::{Operations, Shared, Site};
pub use upgrade::{Upgraded, Upgrades};
