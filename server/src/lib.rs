//! The Roomful server as a library; `main.rs` is its command line.
//!
//! Read in this order: [`config`] (what can be set), [`auth`] (who may do what), [`session`] (who comes
//! back), [`connection`] (one socket's state), [`room`] (what is ordered) over [`journal`] (where it is
//! kept), [`shard`] (where all of these meet, without I/O), [`admission`] (who may come in), [`transport`] and [`http`]
//! (the sockets, over [`tls`] where there is a certificate), [`admin`] (what a back end asks), [`app`]
//! (the wiring), [`archive`] (rooms in a file), [`tools`] (what an operator does with rooms on disk). [`clock`], [`current`], [`directory`], [`wire`], [`metrics`], [`memory`], [`tasks`], [`shutdown`], [`logging`] and
//! [`console`] serve them.

pub mod config;

pub mod auth;
pub mod session;

pub mod connection;

pub mod archive;
pub mod journal;
pub mod room;

pub mod directory;
pub mod shard;
pub mod wire;

pub mod admission;
pub mod http;
pub mod tls;
pub mod transport;

pub mod admin;

pub mod app;
pub mod tools;

pub mod clock;
pub mod console;
pub mod current;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod shutdown;
mod survive;
pub mod tasks;
