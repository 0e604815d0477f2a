//! The Roomful server.
//!
//! What the process itself needs comes first ([`tasks`], [`shutdown`], [`metrics`]).

pub mod metrics;
pub mod shutdown;
pub mod tasks;
