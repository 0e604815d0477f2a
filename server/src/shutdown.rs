//! How the process learns that it should end, and how its parts learn it.
//!
//! Whoever runs the process triggers; every task may wait, from any thread. Once triggered it stays so, and a
//! late waiter returns at once. What a part does about it, and for how long, is the part's own affair.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;

use tokio::sync::watch;

/// The flag that ends the process's parts; a cheap handle.
#[derive(Debug, Clone)]
pub struct Shutdown {
    triggered: Arc<watch::Sender<bool>>,
}

/// What asked the process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C, or SIGINT.
    Interrupt,
    /// SIGTERM: what a supervisor sends.
    Terminate,
}

impl Shutdown {
    /// A flag that is not set.
    #[must_use]
    pub fn new() -> Self {
        Self {
            triggered: Arc::new(watch::Sender::new(false)),
        }
    }

    /// Sets the flag, for ever. Again is the same as once.
    pub fn trigger(&self) {
        self.triggered.send_replace(true);
    }

    /// Whether the flag is set.
    #[must_use]
    pub fn is_triggered(&self) -> bool {
        *self.triggered.borrow()
    }

    /// Waits for the flag. Cancel safe.
    pub async fn wait(&self) {
        let mut changes = self.triggered.subscribe();
        let set = changes.wait_for(|triggered| *triggered).await;
        debug_assert!(set.is_ok(), "this handle keeps the sender alive");
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "interrupt",
            Self::Terminate => "terminate",
        })
    }
}

/// Waits for the next Ctrl-C or SIGTERM.
///
/// The handlers are in place when this returns, so a signal that arrives before the future is awaited is not
/// lost. From then on neither signal ends the process by itself; call it again for a second one.
///
/// # Errors
/// The system refuses a handler.
///
/// # Panics
/// Outside of a runtime.
#[cfg(unix)]
pub fn signals() -> io::Result<impl Future<Output = Signal>> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => Signal::Interrupt,
            _ = terminate.recv() => Signal::Terminate,
        }
    })
}

/// Waits for the next Ctrl-C.
///
/// # Errors
/// The system refuses a handler.
#[cfg(not(unix))]
pub fn signals() -> io::Result<impl Future<Output = Signal>> {
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            // Without a handler Ctrl-C ends the process by itself.
            std::future::pending::<()>().await;
        }
        Signal::Interrupt
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Waiters before and after the trigger both return, and not earlier.
    #[tokio::test]
    async fn everybody_learns_of_a_shutdown_once_it_is_triggered() {
        let shutdown = Shutdown::new();
        let early = shutdown.clone();
        let waiting = tokio::time::timeout(Duration::from_millis(10), early.wait()).await;
        assert!(waiting.is_err() && !shutdown.is_triggered());

        tokio::join!(early.wait(), async { shutdown.trigger() });
        shutdown.wait().await;
        assert!(early.is_triggered());
    }

    /// A SIGTERM between the call and the await is reported, and does not end the process.
    #[cfg(unix)]
    #[tokio::test]
    async fn a_signal_is_reported_even_if_it_comes_before_the_await() {
        let signal = signals().unwrap();
        let sent = std::process::Command::new("kill")
            .args(["-TERM", &std::process::id().to_string()])
            .status();
        assert!(sent.unwrap().success());
        let received = tokio::time::timeout(Duration::from_secs(5), signal)
            .await
            .unwrap();
        assert_eq!(received, Signal::Terminate);
    }
}
