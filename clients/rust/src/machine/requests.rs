//! The requests of this connection that wait for their one reply.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use roomful_protocol::error::Retry;
use roomful_protocol::frame::Watch;
use roomful_protocol::id::{Key, RequestId, RoomAlias};
use roomful_protocol::payload::Payload;

use super::step::{CallId, RoomKey};
use crate::error::Error;

/// The open requests, and when they are given up.
#[derive(Debug)]
pub(super) struct Requests {
    /// The number of the last one; numbers are never used again.
    last: u64,
    open: BTreeMap<RequestId, Request>,
    /// In the order of sending, which is that of the deadlines too, since all have the same patience. The first one is open; those behind it
    /// may be closed.
    deadlines: VecDeque<(Duration, RequestId)>,
    /// Publishes among the open ones.
    publishes: usize,
}

/// What a request is about.
#[derive(Debug)]
pub(super) enum Request {
    Join(RoomKey),
    Leave(RoomKey),
    Publish(RoomKey),
    /// A call whose answer goes to the application as it is.
    Call {
        call: CallId,
        expects: Expects,
    },
    /// The value before, to go back to if the server refuses the new one.
    SetPresence {
        call: CallId,
        key: RoomKey,
        before: Option<Payload>,
    },
    Watch {
        call: CallId,
        key: RoomKey,
        before: Watch,
    },
    /// A change that every join repeats, so that it outlives the connection.
    Change {
        call: CallId,
        key: RoomKey,
    },
    /// Which keys are watched, and who asked, if the application did.
    WatchState {
        call: Option<CallId>,
        key: RoomKey,
    },
    /// Whether locks are, likewise.
    WatchLocks {
        call: Option<CallId>,
        key: RoomKey,
    },
    /// A lock that is given back: to be said again if the connection ends first.
    Release {
        call: CallId,
        key: RoomKey,
        lock: Key,
    },
    /// A page of a copy.
    Page(RoomKey),
    /// A lock that is to be taken or renewed.
    Lock(LockAsked),
    Refresh,
    /// The time of sending, and who wants to know.
    Ping {
        sent: Duration,
        call: Option<CallId>,
    },
    /// Nobody waits.
    Quiet,
}

/// For which claim a lock was asked, in which membership, and when.
#[derive(Debug)]
pub(super) struct LockAsked {
    pub(super) key: RoomKey,
    pub(super) alias: RoomAlias,
    pub(super) lock: Key,
    pub(super) claim: u64,
    pub(super) sent: Duration,
}

/// When to ask again, where that may help: the server had no time, or there was no answer.
pub(super) fn again_after(error: &Error) -> Option<Duration> {
    match error {
        Error::Refused(refusal) if refusal.retry != Retry::Never => {
            Some(refusal.after.unwrap_or(RETRY))
        }
        Error::Timeout => Some(RETRY),
        _ => None,
    }
}

/// When to ask again where the server doesn't say.
const RETRY: Duration = Duration::from_secs(1);

/// Which answer fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expects {
    Done,
    Published,
    Members,
    History,
    State,
    Locks,
    Timers,
    Cursors,
}

impl Requests {
    pub(super) const fn new() -> Self {
        Self {
            last: 0,
            open: BTreeMap::new(),
            deadlines: VecDeque::new(),
            publishes: 0,
        }
    }

    /// A number for a request that is tracked elsewhere.
    pub(super) fn number(&mut self) -> RequestId {
        self.last += 1;
        RequestId(self.last)
    }

    pub(super) fn open(&mut self, request: Request, deadline: Duration) -> RequestId {
        let id = self.number();
        // A publish has no deadline: it stays queued until its outcome is known, however slow the storage.
        if matches!(request, Request::Publish(_)) {
            self.publishes += 1;
        } else {
            self.deadlines.push_back((deadline, id));
        }
        self.open.insert(id, request);
        id
    }

    pub(super) fn close(&mut self, id: RequestId) -> Option<Request> {
        let request = self.open.remove(&id)?;
        self.publishes -= usize::from(matches!(request, Request::Publish(_)));
        while self
            .deadlines
            .front()
            .is_some_and(|(_, first)| !self.open.contains_key(first))
        {
            self.deadlines.pop_front();
        }
        Some(request)
    }

    /// Closes one whose deadline has passed.
    pub(super) fn close_expired(&mut self, now: Duration) -> Option<(RequestId, Request)> {
        let (deadline, id) = *self.deadlines.front()?;
        let request = (deadline <= now).then(|| self.close(id)).flatten()?;
        Some((id, request))
    }

    /// Closes the publishes of a room: what replies still come mean nothing any more.
    pub(super) fn close_publishes(&mut self, key: RoomKey) {
        self.open
            .retain(|_, request| !matches!(request, Request::Publish(of) if *of == key));
        self.publishes = self
            .open
            .values()
            .filter(|request| matches!(request, Request::Publish(_)))
            .count();
    }

    /// The connection is gone, and every reply with it.
    pub(super) fn close_all(&mut self) -> impl Iterator<Item = Request> {
        self.deadlines.clear();
        self.publishes = 0;
        std::mem::take(&mut self.open).into_values()
    }

    /// The earliest deadline.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.deadlines.front().map(|(deadline, _)| *deadline)
    }

    pub(super) const fn publishes(&self) -> usize {
        self.publishes
    }
}
