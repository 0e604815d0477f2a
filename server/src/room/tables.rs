//! What a room keeps beside its log, and the entries that change it.
//!
//! State, locks, timers and what departing members have left are one value, so that the room can hold it twice: as it is
//! committed, which is what everybody reads, and as it will be once the entries on their way are stored, which is what
//! is decided on. Both are made of entries alone, in their order.

use std::sync::Arc;

use roomful_protocol::frame::{
    Entry, EntryKind, LockChange, StateChange, StateChanges, TimerChange,
};
use roomful_protocol::id::{MemberId, Offset, SessionId, UserId};
use roomful_protocol::payload::Payload;

use super::departures::{Departure, Departures};
use super::locks::{LockBounds, Locks};
use super::snapshot::Undecodable;
use super::state::{State, StateBounds};
use super::timers::{TimerBounds, Timers};

/// Everything that entries other than publishes change.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// The keyed state.
    pub state: State,
    /// The locks.
    pub locks: Locks,
    /// The timers.
    pub timers: Timers,
    /// What is written when members are gone.
    pub departures: Departures,
}

/// How much of each there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableBounds {
    /// Of the keyed state.
    pub state: StateBounds,
    /// Of the locks.
    pub locks: LockBounds,
    /// Of the timers.
    pub timers: TimerBounds,
    /// Bytes of all that members have left for when they are gone.
    pub departure_bytes_max: usize,
    /// Users with cursors.
    pub cursors_max: usize,
}

/// What an entry changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Of the keyed state.
    State(StateChanges),
    /// Of a lock.
    Lock(LockChange),
    /// Of a timer.
    Timer(TimerChange),
    /// Of what a member has left.
    Departure(Departure),
}

impl Change {
    /// What an entry changes; none where it is a publish, or was left out of a chunk.
    ///
    /// # Errors
    /// Its content is not that of its kind.
    pub fn of(entry: &Entry) -> Result<Option<Self>, Undecodable> {
        let payload = &entry.payload;
        let undecodable = |error| Undecodable(format!("{error:?} at offset {}", entry.offset));
        Ok(Some(match entry.kind {
            EntryKind::Publish => return Ok(None),
            EntryKind::State => {
                Self::State(StateChanges::from_payload(payload).map_err(undecodable)?)
            }
            EntryKind::Lock => Self::Lock(LockChange::from_payload(payload).map_err(undecodable)?),
            EntryKind::Timer => {
                Self::Timer(TimerChange::from_payload(payload).map_err(undecodable)?)
            }
            EntryKind::System => Self::Departure(Departure::from_payload(payload)?),
        }))
    }

    /// The kind of the entry.
    #[must_use]
    pub fn kind(&self) -> EntryKind {
        match self {
            Self::State(_) => EntryKind::State,
            Self::Lock(_) => EntryKind::Lock,
            Self::Timer(_) => EntryKind::Timer,
            Self::Departure(_) => EntryKind::System,
        }
    }

    /// The content of the entry.
    #[must_use]
    pub fn to_payload(&self) -> Payload {
        match self {
            Self::State(changes) => changes.to_payload(),
            Self::Lock(change) => change.to_payload(),
            Self::Timer(change) => change.to_payload(),
            Self::Departure(departure) => departure.to_payload(),
        }
    }
}

impl Tables {
    /// Makes the change of an entry of this user, at this offset and time; `now_ms` is the monotonic clock.
    pub fn apply(
        &mut self,
        change: &Change,
        user: &UserId,
        (offset, time_ms): (Offset, u64),
        now_ms: u64,
        bounds: &TableBounds,
    ) {
        match change {
            Change::State(changes) => self.state.apply(changes, offset, time_ms, &bounds.state),
            Change::Lock(change) => self.locks.apply(change, now_ms, bounds.locks.locks_max),
            Change::Timer(change) => self.timers.apply(user, change),
            Change::Departure(departure) => self.departures.apply(departure.clone()),
        }
    }

    /// Who has something to lose when its presence ends: holders of locks, those who wait for one, and those who have left a
    /// write. One may come several times.
    pub fn tied(&self) -> impl Iterator<Item = (MemberId, &UserId, SessionId)> {
        let departures = self.departures.iter();
        let departing = departures.map(|left| (left.member, &left.user, left.session));
        self.locks.askers().chain(departing)
    }

    /// An entry as it is shown to somebody who is behind: without what a newer one has replaced. One of which nothing is left
    /// is the server's own, which nobody is sent.
    #[must_use]
    pub fn conflated(&self, entry: &Arc<Entry>) -> Arc<Entry> {
        let offset = entry.offset;
        let kept = match Change::of(entry) {
            Ok(Some(Change::State(StateChanges { changes }))) => {
                let count = changes.len();
                let is_current = |change: &StateChange| self.state.is_current(change, offset);
                let changes: Vec<_> = changes.into_iter().filter(is_current).collect();
                if changes.len() == count {
                    return Arc::clone(entry);
                }
                (!changes.is_empty()).then(|| Change::State(StateChanges { changes }))
            }
            Ok(Some(Change::Lock(change))) if !self.locks.is_current(&change) => None,
            _ => return Arc::clone(entry),
        };
        let (kind, payload) = match kept {
            Some(change) => (change.kind(), change.to_payload()),
            None => (EntryKind::System, Payload::binary(&b""[..])),
        };
        Arc::new(Entry {
            kind,
            payload,
            ..Entry::clone(entry)
        })
    }

    /// Whether nothing is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.state.is_empty()
            && self.locks.is_empty()
            && self.timers.is_empty()
            && self.departures.is_empty()
    }

    /// About what they take in memory, in bytes.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.state.held_bytes()
            + self.locks.held_bytes()
            + self.timers.held_bytes()
            + self.departures.held_bytes()
    }
}

impl Default for TableBounds {
    /// As in a configuration that says nothing else.
    fn default() -> Self {
        Self {
            state: StateBounds {
                keys_max: 4_096,
                value_bytes_max: 61_440,
                bytes_max: 1_048_576,
                tombstones_max: 1_024,
                tombstone_age_max_ms: 86_400_000,
                fence_prefixes: Vec::new(),
            },
            locks: LockBounds {
                locks_max: 1_024,
                queue_max: 256,
                ttl_max_ms: 300_000,
            },
            timers: TimerBounds {
                timers_max: 256,
                payload_bytes_max: 4_096,
            },
            departure_bytes_max: 262_144,
            cursors_max: 10_000,
        }
    }
}
