//! Attacks, each beside a healthy room that must not notice. `docs/security.md` lists them all.

mod admin;
mod attack;
mod frames;
mod tls;
