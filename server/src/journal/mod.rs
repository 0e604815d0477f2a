//! The log of rooms: where entries are kept, behind one seam.
//!
//! A shard owns one journal and is its only caller. Every call either gives its result at once or a
//! [`Ticket`], whose [`Completion`] comes back later as an input of the shard; a journal never blocks and
//! never calls anybody. Positions are assigned by the room, not here: the journal refuses what does not
//! follow its own head. What is kept, and for how long, is bounded by [`HistoryBounds`].

pub mod memory;

use std::fmt;
use std::sync::Arc;

use roomful_protocol::frame::{Direction, Durability, Entry};
use roomful_protocol::id::{Epoch, Offset, RoomId};

/// A log that rooms append to and recover from.
///
/// Duties of an implementation: appends of one room take effect in the order of the calls, whatever the order
/// of their completions; an entry is readable once its append was reported done, and one whose append failed
/// may or may not be there after the next [`Journal::open`]; a read never shows a gap; [`Journal::open`]
/// after a failure waits for what is still in flight and shows every entry that was ever reported done.
pub trait Journal: fmt::Debug {
    /// What a reported append survives.
    fn durability(&self) -> Durability;

    /// Finds a room's log, or begins one with a new epoch.
    fn open(&mut self, room: &RoomId, bounds: HistoryBounds) -> Outcome<Opened>;

    /// Keeps other bounds from the next append or [`Journal::trim`] on.
    fn set_bounds(&mut self, room: &RoomId, bounds: HistoryBounds);

    /// Appends one entry behind `expected`, the offset of the last one.
    fn append(&mut self, room: &RoomId, expected: Offset, entry: &Entry) -> Outcome<()>;

    /// Reads entries. An answer holds at least one entry unless there is none in that direction.
    fn read(&mut self, room: &RoomId, query: ReadQuery) -> Outcome<ReadPage>;

    /// The oldest offset that is kept; one more than the head when none is. Known without I/O for every open room.
    fn first(&self, room: &RoomId) -> Offset;

    /// Drops what is older than the bounds allow; gives the time at which to call again, in milliseconds since 1970.
    fn trim(&mut self, room: &RoomId, now_ms: u64) -> Option<u64>;

    /// The room has no members and is not needed any more. A journal in memory forgets it; a durable one drops caches.
    fn close(&mut self, room: &RoomId);

    /// What all logs take in memory, in bytes. A journal that keeps nothing there has nothing to say.
    fn held_bytes(&self) -> usize {
        0
    }

    /// What one room's log takes of it.
    fn held_by(&self, _room: &RoomId) -> Held {
        Held::default()
    }
}

/// What a log takes in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes.
    pub bytes: usize,
    /// Whether it stays about as it is, because a new entry takes the place of old ones.
    pub is_full: bool,
}

/// A result now, or a ticket for it.
#[derive(Debug)]
pub enum Outcome<T> {
    /// Done.
    Done(T),
    /// It will come as a [`Completion`] with this ticket.
    Later(Ticket),
    /// It failed; for an append: whether the entry is stored is unknown.
    Failed(JournalError),
}

/// Names a call whose completion is still to come. Unique per journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// The end of a call that was answered with a ticket.
#[derive(Debug)]
pub struct Completion {
    /// Which call.
    pub ticket: Ticket,
    /// What came of it.
    pub result: CompletionResult,
}

/// What came of a call.
#[derive(Debug)]
pub enum CompletionResult {
    /// Of [`Journal::open`].
    Opened(Result<Opened, JournalError>),
    /// Of [`Journal::append`].
    Appended(Result<(), JournalError>),
    /// Of [`Journal::read`].
    Read(Result<ReadPage, JournalError>),
}

/// How much history is kept; whichever bound is met first.
#[derive(Debug, Clone, Copy)]
pub struct HistoryBounds {
    /// Entries.
    pub entries_max: usize,
    /// Bytes of payloads, with [`ENTRY_OVERHEAD_BYTES`] for each entry.
    pub bytes_max: usize,
    /// Age, in milliseconds.
    pub age_max_ms: u64,
}

/// What an entry is charged beside its payload: its fields and its place in the log.
pub const ENTRY_OVERHEAD_BYTES: usize = 96;

/// A room's log as found.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Its epoch.
    pub epoch: Epoch,
    /// The last entry's offset; 0 in an empty log.
    pub head: Offset,
    /// The newest entries, ascending, at most [`RECENT_MAX`]: the room fills its op-id window and its tail from them.
    pub recent: Vec<Arc<Entry>>,
}

/// Most entries in [`Opened::recent`].
pub const RECENT_MAX: usize = 1024;

/// Which entries to read.
#[derive(Debug, Clone, Copy)]
pub struct ReadQuery {
    /// Start beside this offset, which is not included.
    pub from: Offset,
    /// Not beyond this offset, included (forwards).
    pub until: Offset,
    /// Which way.
    pub direction: Direction,
    /// At most this many entries.
    pub entries_max: usize,
    /// Stop at the entry that goes beyond this many bytes.
    pub bytes_max: usize,
}

/// Entries read.
#[derive(Debug, Clone, Default)]
pub struct ReadPage {
    /// Ascending, without a gap.
    pub entries: Vec<Arc<Entry>>,
    /// The oldest offset that is kept; one more than the head when none is.
    pub first: Offset,
}

/// The storage failed. The cause is in the log of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// The head is not what the caller expects: somebody else wrote, or an append before this one failed.
    #[error("the log's head is not the expected one")]
    Conflict,
    /// The storage did not take it or could not tell.
    #[error("the storage failed")]
    Storage,
}
