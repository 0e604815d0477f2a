//! The Roomful wire protocol: bytes and their meaning, no runtime, no I/O.
//!
//! Everything that two implementations must agree on is here and in `SPEC.md` beside this crate. The server, the clients and the
//! load generator build on it; it builds on none of them. Decoding allocates for what a message brings and never for what it
//! announces, never recurses deeper than [`limits::DEPTH_MAX`], and never panics.
//!
//! Read in this order: [`id`] and [`position`] (what things are called), [`payload`] (what is carried), [`frame`] (what is said), [`codec`]
//! (how it is written), [`error`] (what can go wrong), [`limits`], and [`websocket`] (how messages travel).

// Lengths and numbers come from strangers, and a new frame has to ask for its decisions.
#![deny(clippy::indexing_slicing, clippy::wildcard_enum_match_arm)]

pub mod id;
pub mod position;

pub mod payload;
pub mod text;

pub mod frame;

pub mod codec;

pub mod error;

pub mod limits;

pub mod websocket;

#[cfg(test)]
mod specification;
