//! The way into a shard's thread: one mailbox each, filled by any thread, emptied by its own.
//!
//! Letters of one sender arrive in its order. What a peer waits for is always taken, and is bounded by what
//! connections may have in flight; what can be pulled later instead asks [`Mailbox::has_room`] first. The
//! thread is woken once per batch, not per letter.

use std::collections::VecDeque;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mio::Waker;

use super::{Opened, TransportSettings};
use crate::auth::{AuthError, Identity};
use crate::shard::ShardSettings;
use crate::shard::message::{ConnectionId, Message};

/// What a thread is told by others.
#[derive(Debug)]
pub(super) enum Letter {
    /// Another shard's message.
    Message(Message),
    /// A socket whose handshake is done.
    Opened(Box<Opened>),
    /// A token that the pool has checked.
    Verified(ConnectionId, Result<Identity, AuthError>),
    /// Close the heaviest connections.
    Shed {
        /// Until so many bytes are free again.
        bytes: u64,
    },
    /// Go on with other settings.
    Reload(Arc<ShardSettings>, Box<TransportSettings>),
    /// Say goodbye to everybody.
    Drain {
        /// How long that may take, in milliseconds.
        spread_ms: u64,
    },
}

/// A mailbox.
#[derive(Debug)]
pub(super) struct Mailbox {
    /// Held for a push or a swap alone.
    letters: Mutex<VecDeque<Letter>>,
    bytes: AtomicUsize,
    bytes_max: usize,
    /// Whether the thread has been woken since it last took letters.
    woken: AtomicBool,
    waker: Waker,
}

impl Mailbox {
    pub(super) fn new(bytes_max: usize, waker: Waker) -> Self {
        Self {
            letters: Mutex::new(VecDeque::new()),
            bytes: AtomicUsize::new(0),
            bytes_max,
            woken: AtomicBool::new(false),
            waker,
        }
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether there is room for what could be left out.
    pub(super) fn has_room(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) < self.bytes_max
    }

    /// Adds a letter; [`Mailbox::wake`] must follow.
    pub(super) fn push(&self, letter: Letter) {
        self.bytes.fetch_add(letter.cost(), Ordering::Relaxed);
        self.lock().push_back(letter);
    }

    /// Wakes the thread, which will find everything that was pushed before.
    pub(super) fn wake(&self) {
        if self.woken.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Err(error) = self.waker.wake() {
            // The next one tries again; without one, the thread finds the letters at its next timer.
            self.woken.store(false, Ordering::SeqCst);
            tracing::error!(%error, "a shard could not be woken");
        }
    }

    /// Takes all letters, to be freed one by one. What is pushed from now on wakes the thread anew.
    pub(super) fn take(&self) -> VecDeque<Letter> {
        self.woken.store(false, Ordering::SeqCst);
        mem::take(&mut *self.lock())
    }

    /// A letter that was taken is about to be read: its room is free again.
    pub(super) fn free(&self, letter: &Letter) {
        self.bytes.fetch_sub(letter.cost(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Letter>> {
        // A push or a swap leaves the queue whole even where a thread ends in the middle of it.
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Letter {
    /// What it is charged: its payload and something for itself.
    fn cost(&self) -> usize {
        let payload = match self {
            Self::Message(message) => message.payload_bytes(),
            Self::Opened(_)
            | Self::Verified(..)
            | Self::Shed { .. }
            | Self::Reload(..)
            | Self::Drain { .. } => 0,
        };
        payload + LETTER_BYTES
    }
}

/// About what a letter takes without its payload.
const LETTER_BYTES: usize = 128;

#[cfg(test)]
mod tests {
    use mio::{Events, Poll, Token};

    use super::*;

    #[test]
    fn letters_arrive_in_order_and_free_their_room() {
        let mut poll = Poll::new().unwrap();
        let waker = Waker::new(poll.registry(), Token(7)).unwrap();
        let mailbox = Mailbox::new(2 * LETTER_BYTES, waker);
        mailbox.push(Letter::Drain { spread_ms: 1 });
        assert!(mailbox.has_room());
        mailbox.push(Letter::Drain { spread_ms: 2 });
        assert!(!mailbox.has_room());
        mailbox.wake();
        let mut events = Events::with_capacity(8);
        poll.poll(&mut events, None).unwrap();
        assert_eq!(events.iter().next().unwrap().token(), Token(7));
        let taken = mailbox.take();
        assert!(!mailbox.has_room(), "they wait for the thread");
        taken.iter().for_each(|letter| mailbox.free(letter));
        let [first, second] = [&taken[0], &taken[1]];
        assert!(matches!(first, Letter::Drain { spread_ms: 1 }));
        assert!(matches!(second, Letter::Drain { spread_ms: 2 }));
        assert!(mailbox.has_room());
    }
}
