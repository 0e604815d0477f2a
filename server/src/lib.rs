//! The Roomful server.
//!
//! What the process itself needs comes first ([`tasks`], [`shutdown`], [`metrics`]), then the doors ([`http`]).

pub mod metrics;
pub mod shutdown;
pub mod tasks;

pub mod http;
