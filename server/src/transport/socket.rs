//! A connection's socket: what can be written without waiting, and how it ends.
//!
//! The shard's thread alone touches it. It writes as much as the kernel takes and never waits; reading is the
//! reading task's business.

use std::io::{self, IoSlice};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use roomful_protocol::websocket::{Reader, Role};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// What a thread keeps for a connection.
#[derive(Debug)]
pub(super) struct Socket {
    /// Tells this use of the slot from earlier ones.
    pub(super) generation: u32,
    /// Incomplete input.
    pub(super) reader: Reader,
    /// What was read and may not be handled while the connection is paused.
    pub(super) unread: Vec<u8>,
    /// The reading task, while it waits.
    pub(super) waker: Option<Waker>,
    /// The task that waits until the socket takes bytes again, while there is one.
    pub(super) unblocking: Option<AbortHandle>,
    wire: Wire,
    /// The connection's place among those that the server admits.
    _place: OwnedSemaphorePermit,
}

/// What bytes go through. TLS will be the second.
#[derive(Debug)]
enum Wire {
    Plain(OwnedWriteHalf),
}

impl Socket {
    pub(super) fn plain(
        generation: u32,
        write: OwnedWriteHalf,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            generation,
            reader: Reader::new(Role::Server),
            unread: Vec::new(),
            waker: None,
            unblocking: None,
            wire: Wire::Plain(write),
            _place: place,
        }
    }

    /// Writes what the kernel takes.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let Wire::Plain(stream) = &self.wire;
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        // Straight to the kernel: the runtime's own way also looks up what it knows of the socket, which a fan-out would pay for each member.
        let direct = socket2::SockRef::from(stream.as_ref());
        let mut written = taken(match slices {
            [only] => direct.send(only),
            several => direct.send_vectored(several),
        })?;
        if written == total {
            return Ok(written);
        }
        // The runtime must learn that the socket is full, or a later wait for it would not wait: only a refusal of its own tells it.
        let mut rest: Vec<u8> = slices
            .iter()
            .flat_map(|slice| slice.iter().copied())
            .skip(written)
            .collect();
        loop {
            let more = taken(stream.try_write(&rest))?;
            written += more;
            if more == 0 || more == rest.len() {
                return Ok(written);
            }
            rest.drain(..more);
        }
    }

    /// Whether the kernel takes bytes again.
    pub(super) fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Wire::Plain(stream) = &self.wire;
        stream.as_ref().poll_write_ready(context)
    }

    /// Says the last words, as far as the peer takes them, and closes the writing side. The reading task
    /// reads on until the peer has closed its own, since a socket with unread input would be reset, and the
    /// last words with it.
    pub(super) async fn finish(self, last_words: Vec<Bytes>) {
        let Wire::Plain(mut stream) = self.wire;
        let goodbye = async {
            for mut words in last_words {
                while words.has_remaining() {
                    stream.write_buf(&mut words).await?;
                }
            }
            stream.shutdown().await
        };
        // A peer that is gone, or doesn't listen, needs no goodbye.
        drop(timeout(GOODBYE, goodbye).await);
    }
}

fn taken(outcome: io::Result<usize>) -> io::Result<usize> {
    match outcome {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(0)
        }
        outcome => outcome,
    }
}

/// How long a goodbye may take, each way (RFC 6455 §7.1.1 leaves it open).
pub(super) const GOODBYE: Duration = Duration::from_secs(2);
