//! What clients have asked for and were told, with the order in time of both.

use std::sync::atomic::{AtomicU64, Ordering};

use roomful_protocol::frame::{Error, LockRequest, Reply, StateRequest};
use roomful_protocol::id::UserId;

/// One operation of one client in one room.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    /// Whose it is: everybody is anonymous, so each session is a user of its own.
    pub(crate) user: UserId,
    /// Before it was sent first.
    pub(crate) invoked: u64,
    /// How often it was sent.
    pub(crate) attempts: u32,
    pub(crate) asked: Asked,
    /// None: the outcome is unknown. It may have taken effect at any time since, or may do so later, or never.
    pub(crate) answer: Option<Answer>,
}

/// What an operation asks for.
#[derive(Debug, Clone)]
pub(crate) enum Asked {
    /// Of the keyed state.
    State(StateRequest),
    /// Of a lock.
    Lock(LockRequest),
}

/// What an operation was answered with.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// After it had come.
    pub(crate) at: u64,
    pub(crate) reply: Result<Reply, Error>,
}

/// The one order in time of everything that clients send and get: where one thing had ended before another began, its stamp is
/// the lower one.
#[derive(Debug, Default)]
pub(crate) struct Stamps(AtomicU64);

impl Stamps {
    /// The next one.
    pub(crate) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}
