//! Connections that one thread waits for and reads.
//!
//! Readiness comes from the kernel once per arrival, all sockets read into one buffer, and nothing is allocated or woken for a delivery, so
//! that the server is the limit and not this. What a message means is left to those who turn the pool: the [`crate::swarm`] and
//! the [`crate::crowd`]. An error of any connection is an error of the turn.

use std::hint;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mio::{Events, Interest, Poll, Token};
use tokio::time::Instant;

use crate::connection::{Connection, Opening, Postponed};
use crate::peer::{Answer, Upgrade};
use crate::tls::Secure;

/// The connections, by their numbers.
#[derive(Debug)]
pub(crate) struct Pool {
    target: SocketAddr,
    /// What connections are encrypted with, if they are.
    secure: Option<Secure>,
    waiting: Waiting,
    /// Time that was spent spinning: in pauses, and in looks that found nothing.
    spun: Duration,
    poll: Poll,
    events: Events,
    /// `None` where it was closed.
    connections: Vec<Option<Connection>>,
    /// Who was told to come again, and when, where that is no error.
    postponed: Option<Vec<(usize, Duration)>>,
    /// What sockets are read into. Larger than what a server writes at once, so that one read empties a socket.
    buffer: Vec<u8>,
}

/// How readiness is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// Sleep until the kernel wakes this thread. On loopback the waking is done by whoever sends, so the server pays for it with each
    /// delivery that finds this thread asleep, which no server on a network does.
    Sleep,
    /// Ask again and again, but not more often than this. Needs a core of its own.
    Spin {
        /// From one look to the next. A look costs as much as reading a delivery, so looking for each alone doubles the work.
        every: Duration,
    },
}

/// Takes a message of the connection with that number, and what is to be sent in answer to it.
pub(crate) type Reading<'a> = &'a mut dyn FnMut(usize, &[u8], Answer<'_>) -> Result<()>;

const BUFFER_BYTES: usize = 256 * 1024;

/// Readiness taken from the kernel at a time.
const EVENTS: usize = 1024;

impl Waiting {
    /// Spinning at a rate at which a look finds several deliveries; ten of them take a server some 30 µs.
    pub(crate) const SPIN: Self = Self::Spin {
        every: Duration::from_micros(20),
    };

    /// The same without pauses, where it matters when something arrives.
    pub(crate) const fn eager(self) -> Self {
        match self {
            Self::Sleep => Self::Sleep,
            Self::Spin { .. } => Self::Spin {
                every: Duration::ZERO,
            },
        }
    }
}

impl Pool {
    /// No connections yet.
    ///
    /// # Errors
    /// The kernel gives no poll.
    pub(crate) fn new(
        target: SocketAddr,
        secure: Option<Secure>,
        waiting: Waiting,
    ) -> Result<Self> {
        Ok(Self {
            target,
            secure,
            waiting,
            spun: Duration::ZERO,
            poll: Poll::new().context("no poll")?,
            events: Events::with_capacity(EVENTS),
            connections: Vec::new(),
            postponed: None,
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    /// Opens the connection with a number: the next new one, or one that was closed.
    ///
    /// # Errors
    /// No connection.
    pub(crate) fn open(
        &mut self,
        index: usize,
        upgrade: &Upgrade,
        greeting: Vec<Vec<u8>>,
    ) -> Result<()> {
        let opening = Opening {
            target: self.target,
            secure: self.secure.as_ref(),
            index,
            upgrade,
            greeting,
        };
        let mut connection =
            Connection::open(opening).with_context(|| format!("connection {index}"))?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(connection.socket(), Token(index), interest)
            .context("registering a socket")?;
        if index >= self.connections.len() {
            self.connections.resize_with(index + 1, || None);
        }
        self.connections[index] = Some(connection);
        Ok(())
    }

    /// Closes a connection as a lost one ends: without a word.
    pub(crate) fn drop_connection(&mut self, index: usize) {
        self.connections[index] = None;
    }

    /// From now on a connection that is told when to come again is closed, and no error.
    pub(crate) fn heed_refusals(&mut self) {
        self.postponed.get_or_insert_default();
    }

    /// Those who have been told so since the last call, and how long they have to wait.
    pub(crate) fn postponed(&mut self) -> Vec<(usize, Duration)> {
        self.postponed
            .as_mut()
            .map_or_else(Vec::new, std::mem::take)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The connection is broken, or closed.
    pub(crate) fn send(&mut self, index: usize, message: &[u8]) -> Result<()> {
        self.connections[index]
            .as_mut()
            .context("it is closed")
            .and_then(|connection| connection.send(message))
            .with_context(|| format!("connection {index}"))
    }

    /// Waits for readiness, at most so long, and gives what was read.
    ///
    /// # Errors
    /// Any connection failed, or what the reader returned.
    pub(crate) fn turn(&mut self, wait: Duration, reading: Reading<'_>) -> Result<()> {
        self.wait(wait)?;
        let Self {
            events,
            connections,
            buffer,
            postponed,
            ..
        } = self;
        for event in events.iter() {
            let Token(index) = event.token();
            // One that was closed since the kernel reported it has nothing more to say.
            let Some(connection) = &mut connections[index] else {
                continue;
            };
            let mut receive = || {
                connection.flush()?;
                connection.receive(buffer, event.is_read_closed(), &mut |message, answer| {
                    reading(index, message, answer)
                })
            };
            let Err(error) = receive() else {
                continue;
            };
            match (postponed.as_mut(), error.downcast_ref()) {
                (Some(postponed), Some(Postponed(wait))) => {
                    postponed.push((index, *wait));
                    connections[index] = None;
                }
                _ => return Err(error.context(format!("connection {index}"))),
            }
        }
        Ok(())
    }

    /// Processor time that went into looking for work that wasn't there.
    pub(crate) const fn spun(&self) -> Duration {
        self.spun
    }

    /// Where the connections go.
    pub(crate) const fn target(&self) -> SocketAddr {
        self.target
    }

    /// Leaves `events` empty if nothing became ready.
    fn wait(&mut self, wait: Duration) -> Result<()> {
        match self.waiting {
            Waiting::Sleep => self.poll(wait),
            Waiting::Spin { every } => {
                let start = Instant::now();
                while start.elapsed() < every {
                    hint::spin_loop();
                }
                let paused = start.elapsed();
                self.poll(Duration::ZERO)?;
                self.spun += if self.events.is_empty() {
                    start.elapsed()
                } else {
                    paused
                };
                Ok(())
            }
        }
    }

    fn poll(&mut self, timeout: Duration) -> Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                self.events.clear();
                Ok(())
            }
            outcome => outcome.context("waiting for readiness failed"),
        }
    }
}
