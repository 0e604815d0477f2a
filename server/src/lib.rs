//! The Roomful server as a library; `main.rs` is its command line.
//!
//! Read in this order: [`config`] (what can be set), [`auth`] (who may do what), [`session`] (who comes back), then [`clock`],
//! [`logging`] and [`console`], which everything may use.

pub mod config;

pub mod auth;
pub mod session;

pub mod app;
pub mod clock;
pub mod console;
pub mod logging;
