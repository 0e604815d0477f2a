//! The Roomful server as a library; `main.rs` is its command line.

pub mod clock;
