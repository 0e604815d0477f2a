//! The Roomful server.
//!
//! What the process itself needs comes first ([`tasks`], [`shutdown`]).

pub mod shutdown;
pub mod tasks;
