//! How the process learns that it should end, how long it takes for it, and how its parts learn it.
//!
//! Whoever runs the process triggers; every task may wait, from any thread. Once triggered it stays so, and a
//! late waiter returns at once. What a part does about it, and for how long, is the part's own affair.

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::ShutdownConfig;

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

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// How long new connections are still accepted.
    pub accept: Duration,
    /// Over how long the connections are told to come back.
    pub spread: Duration,
    /// When it is over at the latest, from the signal on.
    pub limit: Duration,
}

impl Plan {
    /// What the configuration says, but at once where nobody is there to be waited for, or somebody waits at a
    /// terminal.
    #[must_use]
    pub fn new(config: &ShutdownConfig, connections: usize, on_terminal: bool) -> Self {
        let at_once = on_terminal || connections == 0;
        let unless_at_once = |ms| Duration::from_millis(if at_once { 0 } else { ms });
        Self {
            accept: unless_at_once(config.drain_accept_ms),
            spread: unless_at_once(config.spread_ms),
            limit: Duration::from_millis(config.limit_ms),
        }
    }
}

/// Whether somebody runs the process by hand.
#[must_use]
pub fn is_on_terminal() -> bool {
    io::stdin().is_terminal()
}

/// The Ctrl-C's and SIGTERM's that come.
///
/// From its making on, neither ends the process by itself, and none is lost, however late it is asked for.
#[cfg(unix)]
#[derive(Debug)]
pub struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    /// Takes the signals over.
    ///
    /// # Errors
    /// The system refuses a handler.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one. Cancel safe.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }
}

/// The Ctrl-C's that come.
#[cfg(not(unix))]
#[derive(Debug)]
pub struct Signals(());

#[cfg(not(unix))]
impl Signals {
    /// Takes the signals over.
    ///
    /// # Errors
    /// The system refuses a handler.
    pub fn new() -> io::Result<Self> {
        Ok(Self(()))
    }

    /// Waits for the next one. Cancel safe.
    pub async fn next(&mut self) -> Signal {
        if tokio::signal::ctrl_c().await.is_err() {
            // Without a handler Ctrl-C ends the process by itself.
            std::future::pending::<()>().await;
        }
        Signal::Interrupt
    }
}

#[cfg(test)]
mod tests {
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

    /// Nobody is waited for where nobody is there, or where a developer waits.
    #[test]
    fn only_a_process_with_connections_takes_its_time() {
        let config = ShutdownConfig::default();
        let plan = Plan::new(&config, 1, false);
        assert_eq!(plan.accept, Duration::from_secs(5));
        assert_eq!(plan.spread, Duration::from_secs(12));
        for (connections, on_terminal) in [(0, false), (0, true), (5_000, true)] {
            let plan = Plan::new(&config, connections, on_terminal);
            let at_once = (Duration::ZERO, Duration::ZERO);
            assert_eq!((plan.accept, plan.spread), at_once);
            assert_eq!(plan.limit, Duration::from_secs(25));
        }
    }

    /// A SIGTERM between the making and the await is reported, and does not end the process; nor does a second one.
    #[cfg(unix)]
    #[tokio::test]
    async fn each_signal_is_reported_even_if_it_comes_before_the_await() {
        let mut signals = Signals::new().unwrap();
        for _ in 0..2 {
            let sent = std::process::Command::new("kill")
                .args(["-TERM", &std::process::id().to_string()])
                .status();
            assert!(sent.unwrap().success());
            let received = tokio::time::timeout(Duration::from_secs(5), signals.next())
                .await
                .unwrap();
            assert_eq!(received, Signal::Terminate);
        }
    }
}
