//! The log of rooms: where entries are kept, behind one seam.
//!
//! A shard owns one journal and is its only caller. Every call either gives its result at once or a
//! [`Ticket`], whose [`Completion`] comes back later as an input of the shard; a journal never blocks and
//! never calls anybody. Positions are assigned by the room, not here: the journal refuses what does not
//! follow its own head. What is kept, and for how long, is bounded by [`HistoryBounds`].

#[cfg(test)]
mod conformance;
pub mod local;
pub mod memory;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
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

    /// Whether an append would be taken now.
    fn health(&self) -> Health {
        Health::Good
    }

    /// Appends one entry behind `expected`, the offset of the last one.
    fn append(&mut self, room: &RoomId, expected: Offset, entry: &Arc<Entry>) -> Outcome<()>;

    /// Keeps what the room is at an offset, in the place of an earlier snapshot. Nobody waits for it: until it is stored, the
    /// earlier one and what stands behind that are.
    fn snapshot(&mut self, room: &RoomId, snapshot: Snapshot);

    /// Keeps the last value of a register, which has no place in the log; an empty one takes it away. It is ordered with the
    /// appends.
    fn register(&mut self, room: &RoomId, key: Bytes, value: Bytes) -> Outcome<()>;

    /// When the room has to be opened though nobody is in it, in milliseconds since 1970; none: it has not. It is ordered with
    /// the appends. [`crate::shard::Input::Wake`] comes at that time, or as soon as there is a process again.
    fn wake_at(&mut self, room: &RoomId, at_ms: Option<u64>);

    /// Reads entries. An answer holds at least one entry unless there is none in that direction.
    fn read(&mut self, room: &RoomId, query: ReadQuery) -> Outcome<ReadPage>;

    /// The oldest offset that is kept; one more than the head when none is. Known without I/O for every open room.
    fn first(&self, room: &RoomId) -> Offset;

    /// Drops what is older than the bounds allow; gives the time at which to call again, in milliseconds since 1970.
    fn trim(&mut self, room: &RoomId, now_ms: u64) -> Option<u64>;

    /// The room has no members and is not needed any more. A journal in memory forgets it; a durable one drops caches.
    fn close(&mut self, room: &RoomId);

    /// The turn is over: what was asked for in it goes on its way. Nothing that was answered with a ticket completes before.
    fn flush(&mut self) {}

    /// Whether a flush would find something.
    fn has_unsent(&self) -> bool {
        false
    }

    /// What all logs take in memory, in bytes. A journal that keeps nothing there has nothing to say.
    fn held_bytes(&self) -> usize {
        0
    }

    /// What one room's log takes of it.
    fn held_by(&self, _room: &RoomId) -> Held {
        Held::default()
    }
}

/// The journals of a shard, by what they survive. Their tickets are all different.
#[derive(Debug)]
pub struct Journals {
    memory: Box<dyn Journal>,
    /// None where no namespace asks for it.
    local: Option<Box<dyn Journal>>,
}

impl Journals {
    /// What every shard has, and what it has where there are rooms on disk.
    #[must_use]
    pub fn new(memory: Box<dyn Journal>, local: Option<Box<dyn Journal>>) -> Self {
        Self { memory, local }
    }

    /// The one whose rooms survive this.
    ///
    /// # Panics
    /// There is none: somebody has let a namespace in that asks for more than this server was started with.
    pub fn of(&mut self, durability: Durability) -> &mut dyn Journal {
        match durability {
            Durability::Memory => &mut *self.memory,
            Durability::Local | Durability::Replicated => {
                let local = self.local.as_deref_mut();
                local.expect("a server with rooms on disk has a journal there")
            }
        }
    }

    /// The turn is over: see [`Journal::flush`].
    pub fn flush(&mut self) {
        self.memory.flush();
        if let Some(local) = &mut self.local {
            local.flush();
        }
    }

    /// Whether a flush would find something.
    #[must_use]
    pub fn has_unsent(&self) -> bool {
        let local = self.local.as_ref();
        self.memory.has_unsent() || local.is_some_and(|local| local.has_unsent())
    }

    /// What all logs take in memory, in bytes.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        let local = self.local.as_ref().map_or(0, |local| local.held_bytes());
        self.memory.held_bytes() + local
    }

    /// What one room's log takes of it.
    #[must_use]
    pub fn held_by(&self, room: &RoomId) -> Held {
        let memory = self.memory.held_by(room);
        match &self.local {
            Some(local) if memory == Held::default() => local.held_by(room),
            _ => memory,
        }
    }
}

/// Whether a journal takes entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Good,
    /// There is too little space on the disk. It looks again by itself.
    Full,
    /// The disk has failed: nothing is taken until the process starts anew.
    Failed,
}

/// What a room was, as the room writes and reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// What stood at this offset and before it is in it.
    pub at: Offset,
    /// The room's own form.
    pub content: Bytes,
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
    /// Of [`Journal::append`] and [`Journal::register`].
    Appended(Result<(), JournalError>),
    /// Of [`Journal::read`].
    Read(Result<ReadPage, JournalError>),
}

/// How much history is kept; whichever bound is met first. Entries that only a replay makes sense of, all but those of publishes,
/// are kept until there is a snapshot of them, with all that follows them.
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
    /// The newest snapshot.
    pub snapshot: Option<Snapshot>,
    /// The newest entries, ascending: all behind the snapshot, and of others at most [`RECENT_MAX`]. The room replays the first, and
    /// fills its op-id window and its tail from all of them.
    pub recent: Vec<Arc<Entry>>,
    /// The registers, by ascending key.
    pub registers: Vec<(Bytes, Bytes)>,
}

/// Most entries in [`Opened::recent`] that no snapshot asks for.
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
    /// There is too little space; nothing was written.
    #[error("the disk has too little space")]
    Full,
    /// What was stored can't be read any more, and nothing is made of the rest before somebody has looked at it.
    #[error("what was stored is damaged")]
    Damaged,
}
