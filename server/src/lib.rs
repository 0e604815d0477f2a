//! The Roomful server as a library; `main.rs` is its command line.
//!
//! Read in this order: [`config`] (what can be set), [`auth`] (who may do what), [`session`] (who comes back), then [`clock`], which
//! everything may use.

pub mod config;

pub mod auth;
pub mod session;

pub mod clock;
