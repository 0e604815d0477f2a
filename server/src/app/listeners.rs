//! The listeners' beginning, and what becomes of the process when one ends by itself: it ends too, since nobody would
//! notice that it is deaf.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::RunError;
use crate::http;

/// Listens, once nobody else does any more.
pub(super) async fn listen(
    listener: &'static str,
    address: SocketAddr,
    unsent_bytes_max: u32,
    patience: Instant,
) -> Result<TcpListener, RunError> {
    let outcome = loop {
        match http::listen(address, unsent_bytes_max) {
            Err(error) if is_taken(&error) && Instant::now() < patience => {
                sleep(LISTEN_INTERVAL).await;
            }
            outcome => break outcome,
        }
    };
    outcome.map_err(|source| {
        let flag = if listener == "public" {
            "--listen"
        } else {
            "--admin-listen"
        };
        let advice = match source.kind() {
            io::ErrorKind::AddrInUse => {
                format!(
                    "another process has it; end that one, or choose another address with {flag}"
                )
            }
            io::ErrorKind::PermissionDenied => {
                format!("it needs privileges; choose a port above 1023 with {flag}")
            }
            _ => format!("choose another address with {flag}"),
        };
        RunError::Listen {
            listener,
            address,
            advice,
            source,
        }
    })
}

fn is_taken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

/// A listener, by its name.
pub(super) type Listener = (&'static str, JoinHandle<io::Result<()>>);

/// Comes back when a listener has ended although nobody asked it to.
pub(super) async fn deaf([one, other]: [Listener; 2]) -> RunError {
    tokio::select! {
        error = failed(one) => error,
        error = failed(other) => error,
    }
}

async fn failed((listener, task): Listener) -> RunError {
    let source = match task.await {
        // It was asked to.
        Ok(Ok(())) => return pending().await,
        Ok(Err(error)) => error,
        Err(error) => io::Error::other(error),
    };
    tracing::error!(listener, error = %source, "a listener has ended, so the server can't go on");
    RunError::Deaf { listener, source }
}

const LISTEN_INTERVAL: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use tokio::time::timeout;
    use tracing::Span;

    use super::*;
    use crate::tasks::Tasks;

    /// An error and a panic each end it, with the listener's name and the cause; an end that was asked for does not.
    #[tokio::test]
    async fn a_listener_that_ends_by_itself_is_noticed() {
        let tasks = Tasks::new();
        let asked = || tasks.spawn("listener", Span::none(), async { Ok(()) });
        let fails = async { Err(io::Error::other("no more events")) };
        let fails = tasks.spawn("listener", Span::none(), fails);
        let panics = async { panic!("on purpose") };
        let panics = tasks.spawn("listener", Span::none(), panics);

        let error = deaf([("public", asked()), ("admin", fails)]).await;
        assert_eq!(error.to_string(), "the admin listener has ended");
        assert_eq!(error.source().unwrap().to_string(), "no more events");
        let error = deaf([("public", panics), ("admin", asked())]).await;
        assert_eq!(error.to_string(), "the public listener has ended");

        let both = deaf([("public", asked()), ("admin", asked())]);
        let early = timeout(Duration::from_millis(20), both).await;
        assert!(early.is_err(), "both were asked to");
    }
}
