//! The way into a shard's thread: one mailbox each, filled by any thread, emptied by its own.
//!
//! Letters of one sender arrive in its order. What a peer waits for is always taken, and is bounded by what
//! connections may have in flight; what can be pulled later instead asks [`Mailbox::has_room`] first. The
//! thread is woken once per batch, not per letter.

use std::collections::VecDeque;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mio::Waker;
use roomful_protocol::id::RoomId;

use super::{Opened, TransportSettings};
use crate::auth::{AuthError, Identity};
use crate::journal::Completion;
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
    /// The journal has done something, in its order.
    Journal(Vec<Completion>),
    /// A room has to be looked at.
    Wake(RoomId),
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
    /// How many bytes the thread should free; each sum replaces what the one before has asked for.
    to_shed: AtomicU64,
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
            to_shed: AtomicU64::new(0),
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

    /// Asks the thread to free so many bytes, or none any more. It replaces what was asked before, since that was of the
    /// same bytes: a thread that was busy for a while must not free them once for each time that it was asked.
    pub(super) fn ask_to_shed(&self, bytes: u64) {
        self.to_shed.store(bytes, Ordering::SeqCst);
        if bytes > 0 {
            self.wake();
        }
    }

    /// How many bytes the thread should free; it is asked once. To be looked at behind [`Mailbox::take`], so that a
    /// request that found the thread woken already is not missed.
    pub(super) fn take_to_shed(&self) -> u64 {
        match self.to_shed.load(Ordering::SeqCst) {
            0 => 0,
            _ => self.to_shed.swap(0, Ordering::SeqCst),
        }
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
            Self::Journal(completions) => completions.len() * size_of::<Completion>(),
            Self::Opened(_)
            | Self::Verified(..)
            | Self::Wake(_)
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

    /// A thread that was busy while it was asked several times frees what the last sum found, once; and nothing where
    /// the last one found that there is room again.
    #[test]
    fn the_last_request_to_shed_counts() {
        let poll = Poll::new().unwrap();
        let waker = Waker::new(poll.registry(), Token(7)).unwrap();
        let mailbox = Mailbox::new(LETTER_BYTES, waker);
        for bytes in [900, 1_000, 700] {
            mailbox.ask_to_shed(bytes);
        }
        assert_eq!((mailbox.take_to_shed(), mailbox.take_to_shed()), (700, 0));
        mailbox.ask_to_shed(900);
        mailbox.ask_to_shed(0);
        assert_eq!(mailbox.take_to_shed(), 0);
        assert!(mailbox.take().is_empty());
        assert_eq!(mailbox.bytes(), 0);
    }
}
