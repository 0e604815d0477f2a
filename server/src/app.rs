//! A stand-in until the server's wiring is there.

use crate::config::Config;

/// Why the server didn't run.
#[derive(Debug, thiserror::Error)]
#[error("this build only has the command line")]
pub struct RunError;

/// Runs the server until it is told to stop.
///
/// # Errors
/// Always.
pub fn run(_: Config) -> Result<(), RunError> {
    Err(RunError)
}
