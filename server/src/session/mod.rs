//! Sessions: what a client keeps over a reconnect, and over a restart of the server.

pub mod generation;
pub mod index;
pub mod kept_key;
pub mod revocation_file;
pub mod revocations;
pub mod token;
pub mod users;

pub(crate) mod data_file;

pub use data_file::DataFileError;
