//! Attacks, each beside a healthy room that must not notice. `docs/security.md` lists them all.
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

mod admin;
mod admission;
mod attack;
mod frames;
mod handshake;
mod messages;
mod pressure;
mod tls;
mod tokens;
