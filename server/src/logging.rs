//! Logs: lines on standard error, for people on a terminal and as JSON elsewhere.
//!
//! `main` starts it once, before anything else runs. What must not be logged has a `Debug` that doesn't show
//! it, so that no caller has to remember.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::util::TryInitError;

use crate::config::{LogConfig, LogFormat};

/// Why there are no logs. The process has a subscriber already, or its filter isn't one.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter isn't one.
    #[error("log.filter can't be read")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Another subscriber was set before.
    #[error("logging was started before")]
    Started(#[from] TryInitError),
}

/// Starts the logs of this process.
///
/// # Errors
/// The filter isn't one, or logs were started before.
pub fn init(config: &LogConfig) -> Result<(), LoggingError> {
    use tracing_subscriber::util::SubscriberInitExt as _;

    let builder = fmt()
        .with_env_filter(EnvFilter::try_new(config.filter.as_str())?)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    match effective_format(config.format) {
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init()?,
        LogFormat::Pretty | LogFormat::Auto => builder.compact().finish().try_init()?,
    }
    Ok(())
}

fn effective_format(format: LogFormat) -> LogFormat {
    match format {
        LogFormat::Auto if io::stderr().is_terminal() => LogFormat::Pretty,
        LogFormat::Auto => LogFormat::Json,
        chosen => chosen,
    }
}
