//! The journal on disk: what it has reported stored survives the end of the process and a power cut.
//!
//! Entries of all rooms go into one log of segments, in batches that are written and synced together (`committer`, `segment`,
//! `record`). What is there and not yet anywhere else is known to the `index`. A segment that is full is sealed and goes, sorted,
//! into a store (`ingest`, `store`, `meta`), and then it is deleted. Reads look into both (`reading`). At a start the segments
//! that are left are read again (`recovery`). All of that runs on threads of its own (`threads`); a shard has a
//! [`LocalJournal`], which hands over commands and never waits.
//!
//! How much of a log is kept is decided where it is open, by a coarse account (`marks`): its first offset moves at once, and a
//! record says so. The space comes back when a segment goes without having gone into the store, when a compaction comes by,
//! and when half of the store is not kept any more, by a rewrite.

mod committer;
pub mod counters;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod damaged;
mod directory;
mod disk;
#[cfg(test)]
mod faults;
pub mod freezing;
mod health;
mod holding;
mod index;
mod ingest;
pub mod loading;
mod marks;
mod meta;
mod reading;
mod record;
mod recovery;
mod repair;
mod segment;
#[cfg(feature = "simulated")]
pub mod simulated;
#[cfg(feature = "simulated")]
pub mod stepped;
mod still;
mod store;
mod survey;
#[cfg(test)]
mod tests;
mod threads;
mod verify;
mod wakes;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::{fmt, io};

use bytes::Bytes;
use roomful_protocol::frame::{Durability, Entry, EntryKind};
use roomful_protocol::id::{Epoch, Offset, RoomId};

pub use self::directory::OpenError;
pub use self::health::Headroom;
pub use self::repair::{Repair, RepairError};
pub use self::still::verify;
pub use self::survey::ReadSnapshot;
pub use self::threads::Notify;
pub use self::verify::{Finding, Verified};

use self::committer::{Command, Committer, CommitterSettings, Log, OpenLog, OpenRequest, Slot};
use self::counters::Counters;
use self::directory::Directory;
use self::disk::{Disk, Folder};
use self::freezing::{Freeze, Frozen};
use self::health::SharedHealth;
use self::holding::Holders;
use self::ingest::{Garbage, Ingester};
use self::loading::Loader;
use self::marks::{Counted, Marks};
use self::reading::{PageRequest, Reader};
use self::record::Term;
use self::recovery::{Flaw, Recovered, RecoveryError, recover};
use self::store::{Fjall, Store};
use self::threads::{Job, Parts, Shared, Threads};
use self::wakes::Wakes;
use super::{
    ENTRY_OVERHEAD_BYTES, Health, HistoryBounds, Journal, JournalError, Opened, Outcome, ReadPage,
    ReadQuery, Snapshot, Ticket,
};
use crate::clock::Clock;
use crate::shard::message::ShardId;

/// How the journal works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The epoch of rooms that begin in this process: greater than any epoch that an earlier process gave to a room.
    pub first_epoch: Epoch,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Space that is left free: with less no entry is taken.
    pub headroom: Headroom,
    /// How long to wait for another process that has the directory, in milliseconds.
    pub lock_wait_ms: u64,
    /// What the store may hold in memory to read faster, in bytes.
    pub cache_bytes: u64,
    /// The store is not rewritten for less than so many bytes.
    pub clean_bytes_min: u64,
    /// What time it is.
    pub clock: Clock,
}

impl Settings {
    /// Those of the server.
    #[must_use]
    pub fn new(first_epoch: Epoch, clock: Clock) -> Self {
        Self {
            first_epoch,
            segment_bytes: 32 << 20,
            headroom: Headroom {
                percent: 5,
                bytes_min: 256 << 20,
            },
            lock_wait_ms: 10_000,
            cache_bytes: 16 << 20,
            clean_bytes_min: 64 << 20,
            clock,
        }
    }
}

/// What is done beside the shards.
#[derive(Debug)]
enum Work {
    /// Nobody has told yet whom to notify.
    Waiting(Box<Parts>),
    Running(Threads),
}

/// The journal of this process. Shards have a [`LocalJournal`] of it each.
#[derive(Debug)]
pub struct Local {
    shared: Arc<Shared>,
    /// None: it is damaged, and nothing works on it.
    work: Mutex<Option<Work>>,
    reader: Reader,
    /// What was found damaged at the start.
    flaws: Vec<Flaw>,
    directory: Directory,
}

impl Local {
    /// Whether a data directory has a journal.
    #[must_use]
    pub fn is_in(data_dir: &Path) -> bool {
        Directory::is_in(&data_dir.join(DIRECTORY))
    }

    /// Opens the journal in `journal/` of a data directory, or begins one. Nothing is done before [`Local::start`].
    ///
    /// # Errors
    /// The directory is somebody else's, or what is in it can't be used. What was there is as it was.
    pub fn open(data_dir: &Path, settings: Settings) -> Result<Self, OpenError> {
        let path = data_dir.join(DIRECTORY);
        let directory = Directory::take(path, settings.lock_wait_ms, &settings.clock)?;
        let failed = |source| OpenError::Io {
            path: directory.path().to_owned(),
            source,
        };
        let disk: Arc<dyn Disk> = Arc::new(Folder::new(directory.log()));
        let store = open_store(&directory, settings.cache_bytes)?;
        let recovered = recover(&*disk, &*store, directory.is_new())
            .map_err(|error| unrecovered(&directory, error))?;
        let flaws = recovered.flaws.clone();
        let health = SharedHealth::default();
        let counters = Arc::new(Counters::default());
        let is_damaged = recovered.is_damaged();
        let shared = Shared::new(health, counters, is_damaged);
        let (work, reader) = match is_damaged {
            true => (None, Reader::new(disk, store, recovered.index)),
            false => {
                let salt = getrandom::u64().map_err(|error| failed(error.into()))?;
                let parts = parts_of(settings, salt, &shared, disk, &store, recovered);
                let parts = parts.map_err(failed)?;
                directory.begun().map_err(failed)?;
                let reader = parts.reader.clone();
                (Some(Work::Waiting(Box::new(parts))), reader)
            }
        };
        Ok(Self {
            shared: Arc::new(shared),
            work: Mutex::new(work),
            reader,
            flaws,
            directory,
        })
    }

    /// Looks at everything that is stored, and tells what is wrong. It blocks for as long as it takes to read all of it, and holds up
    /// nobody else.
    #[must_use]
    pub fn verify(&self, read_snapshot: ReadSnapshot, found: &mut dyn FnMut(Finding)) -> Verified {
        verify::verify(&self.reader, &self.flaws, read_snapshot, found)
    }

    /// Starts the threads. `notify` is called by them.
    ///
    /// # Errors
    /// The system has no thread left, or the store can't be read.
    pub fn start(&self, notify: &Arc<dyn Notify>) -> io::Result<()> {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        *work = match work.take() {
            Some(Work::Waiting(parts)) => {
                let threads = Threads::start(*parts, &self.shared, notify)?;
                Some(Work::Running(threads))
            }
            as_it_is => as_it_is,
        };
        Ok(())
    }

    /// The journal of one shard.
    #[must_use]
    pub fn of_shard(&self, shard: ShardId) -> LocalJournal {
        LocalJournal::new(shard, &self.shared)
    }

    /// What is counted of it.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.shared.counters)
    }

    /// Whether it takes entries.
    #[must_use]
    pub fn health(&self) -> Health {
        self.shared.health.get()
    }

    /// Whether something is damaged of which nobody knows whose it was, so that no room is opened.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.shared.is_damaged
    }

    /// All rooms as they are now: all that was reported stored before is in it. It blocks until the store has taken that.
    ///
    /// # Errors
    /// The journal is damaged as a whole, has failed, or doesn't work any more.
    pub fn freeze(&self) -> Result<Frozen, JournalError> {
        if self.shared.is_damaged {
            return Err(JournalError::Damaged);
        }
        let (freeze, answer) = Freeze::new();
        self.shared.commands.push([Command::Freeze(freeze)]);
        let may_come = || self.health() != Health::Failed && self.is_running();
        freezing::wait(&answer, may_come).ok_or(JournalError::Storage)
    }

    fn is_running(&self) -> bool {
        let work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(*work, Some(Work::Running(_)))
    }

    /// Ends the work, and lets whole rooms be put beside those that there are. Their epochs begin with this one.
    ///
    /// # Errors
    /// The journal is damaged as a whole, or can't be written.
    pub fn into_loader(self, first_epoch: Epoch) -> Result<Loader, OpenError> {
        self.close()?;
        let path = self.directory.path().to_owned();
        if self.shared.is_damaged {
            return Err(OpenError::Damaged(path));
        }
        Loader::new(self.reader.store, self.directory, first_epoch)
            .map_err(|source| OpenError::Io { path, source })
    }

    /// Ends the threads and leaves everything as it is, as a kill does.
    #[cfg(test)]
    fn crash(self) {
        self.shared.health.set(Health::Failed);
        self.close().expect("nothing is written");
    }

    /// Stores what shards have handed over, and takes everything into the store. The directory is free when this is dropped.
    ///
    /// # Errors
    /// The store can't be written. What was reported stored is there all the same, and the next start finds it.
    pub fn close(&self) -> Result<(), OpenError> {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Work::Running(threads)) = work.take() else {
            return Ok(());
        };
        threads.close().map_err(|source| OpenError::Io {
            path: self.directory.path().to_owned(),
            source,
        })
    }
}

fn open_store(directory: &Directory, cache_bytes: u64) -> Result<Arc<dyn Store>, OpenError> {
    let path = directory.store();
    match Fjall::open(&path, cache_bytes) {
        Ok(store) => Ok(Arc::new(store)),
        Err(source) => Err(OpenError::Store { path, source }),
    }
}

fn unrecovered(directory: &Directory, error: RecoveryError) -> OpenError {
    let path = directory.path().to_owned();
    match error {
        RecoveryError::Io(source) => OpenError::Io { path, source },
        error @ RecoveryError::Version(..) => OpenError::NewerRecords {
            path,
            what: error.to_string(),
        },
    }
}

fn parts_of(
    settings: Settings,
    salt: u64,
    shared: &Shared,
    disk: Arc<dyn Disk>,
    store: &Arc<dyn Store>,
    recovered: Recovered,
) -> io::Result<Parts> {
    let index = Arc::new(Mutex::new(recovered.index));
    let holders = Arc::<Holders>::default();
    let garbage = Garbage::read(&**store, 2 * settings.segment_bytes)?;
    let committing = CommitterSettings {
        term: Term(settings.first_epoch.0),
        first_epoch: settings.first_epoch,
        segment_bytes: settings.segment_bytes,
        headroom: settings.headroom,
        salt,
        next_log: recovered.next_log,
    };
    let ingester = Ingester {
        disk: Arc::clone(&disk),
        store: Arc::clone(store),
        index: Arc::clone(&index),
        counters: Arc::clone(&shared.counters),
        holders: Arc::clone(&holders),
        garbage,
    };
    let begin = || {
        Committer::begin(
            committing,
            Arc::clone(&disk),
            Arc::clone(store),
            Arc::clone(&index),
            shared.health.clone(),
            Arc::clone(&shared.counters),
            Arc::clone(&holders),
        )
    };
    let committer = begin_with_space(begin, &ingester)?;
    committer.look_at_space();
    shared.counters.store_bytes.set(store.entry_bytes());
    Ok(Parts {
        committer,
        reader: Reader {
            disk,
            store: Arc::clone(store),
            index: Arc::clone(&index),
            holders,
        },
        ingester,
        wakes: Wakes::new(Arc::clone(store), index),
        clean_bytes_min: settings.clean_bytes_min,
        clock: settings.clock,
    })
}

/// Makes the segment that is written. Where the disk has no place for it, the store takes those first that were left.
fn begin_with_space(
    begin: impl Fn() -> io::Result<Committer>,
    ingester: &Ingester,
) -> io::Result<Committer> {
    loop {
        let begun = begin();
        let has_no_space = matches!(&begun, Err(error) if committer::is_full(error));
        let Some(segment) = ingester.oldest().filter(|_| has_no_space) else {
            return begun;
        };
        ingester.take(&segment)?;
    }
}

/// The rooms of one shard. What is asked for goes on its way with [`Journal::flush`].
pub struct LocalJournal {
    shard: ShardId,
    shared: Arc<Shared>,
    rooms: HashMap<RoomId, Room>,
    next_ticket: u64,
    /// What was asked for since the last flush.
    commands: Vec<Command>,
}

/// A room that is opened or open.
enum Room {
    Opening(Slot, HistoryBounds),
    Open(Box<OpenRoom>),
}

struct OpenRoom {
    log: Arc<Log>,
    /// The last entry that was handed over.
    head: Offset,
    first: Offset,
    marks: Marks,
    bounds: HistoryBounds,
    /// The age that is stored with the log.
    age_max_ms: Option<u64>,
}

impl LocalJournal {
    fn new(shard: ShardId, shared: &Arc<Shared>) -> Self {
        Self {
            shard,
            shared: Arc::clone(shared),
            rooms: HashMap::new(),
            next_ticket: 1,
            commands: Vec::new(),
        }
    }

    fn ticket(&mut self) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        ticket
    }

    /// A room that is open.
    fn open_room(&mut self, id: &RoomId) -> Option<&mut OpenRoom> {
        let room = self.rooms.get_mut(id)?;
        if let Room::Opening(slot, bounds) = room {
            let open = slot.lock().unwrap_or_else(PoisonError::into_inner).take()?;
            let mut open = OpenRoom::new(open, *bounds);
            self.commands.extend(open.correct_age());
            *room = Room::Open(Box::new(open));
        }
        match room {
            Room::Open(open) => Some(open),
            Room::Opening(..) => None,
        }
    }
}

impl OpenRoom {
    fn new(open: OpenLog, bounds: HistoryBounds) -> Self {
        let OpenLog {
            log,
            head,
            first,
            marks,
            age_max_ms,
        } = open;
        Self {
            log,
            head,
            first,
            marks,
            bounds,
            age_max_ms,
        }
    }

    /// What lets the log know how long entries are kept when it is not open, where it doesn't yet.
    fn tell_age(&mut self) -> Option<Command> {
        let max_ms = self.bounds.age_max_ms;
        let before = self.age_max_ms.replace(max_ms);
        (before != Some(max_ms)).then(|| Command::Age {
            log: Arc::clone(&self.log),
            max_ms,
        })
    }

    /// What tells the log another age than the one it knows. One that knows none tells it with its first entry.
    fn correct_age(&mut self) -> Option<Command> {
        self.age_max_ms.and_then(|_| self.tell_age())
    }

    /// Drops what is beyond the bounds; gives what tells the log so.
    fn keep_bounds(&mut self, now_ms: u64) -> Option<Command> {
        let first = self.marks.trim(self.bounds, now_ms, self.log.held())?;
        self.first = first;
        Some(Command::Trim {
            log: Arc::clone(&self.log),
            first,
        })
    }
}

impl Journal for LocalJournal {
    fn durability(&self) -> Durability {
        Durability::Local
    }

    fn open(&mut self, room: &RoomId, bounds: HistoryBounds) -> Outcome<Opened> {
        if self.shared.is_damaged {
            return Outcome::Failed(JournalError::Damaged);
        }
        let ticket = self.ticket();
        let slot = Slot::default();
        self.commands.push(Command::Open(OpenRequest {
            room: room.clone(),
            shard: self.shard,
            ticket,
            slot: Arc::clone(&slot),
        }));
        self.rooms.insert(room.clone(), Room::Opening(slot, bounds));
        Outcome::Later(ticket)
    }

    fn set_bounds(&mut self, room: &RoomId, new: HistoryBounds) {
        match self.rooms.get_mut(room) {
            Some(Room::Opening(_, bounds)) => *bounds = new,
            Some(Room::Open(room)) => {
                room.bounds = new;
                let age = room.correct_age();
                self.commands.extend(age);
            }
            None => {}
        }
    }

    fn health(&self) -> Health {
        self.shared.health.get()
    }

    fn append(&mut self, room: &RoomId, expected: Offset, entry: &Arc<Entry>) -> Outcome<()> {
        match self.shared.health.get() {
            Health::Good => {}
            Health::Full => return Outcome::Failed(JournalError::Full),
            Health::Failed => return Outcome::Failed(JournalError::Storage),
        }
        let ticket = self.ticket();
        let Some(room) = self.open_room(room) else {
            return Outcome::Failed(JournalError::Conflict);
        };
        if room.head != expected || entry.offset != expected.next() {
            return Outcome::Failed(JournalError::Conflict);
        }
        room.head = entry.offset;
        room.marks.push(Counted {
            offset: entry.offset,
            // About what its record takes.
            bytes: (entry.payload.bytes.len() + ENTRY_OVERHEAD_BYTES) as u64,
            time_ms: entry.time_ms,
            is_pinned: entry.kind != EntryKind::Publish,
        });
        let append = Command::Append {
            log: Arc::clone(&room.log),
            entry: Arc::clone(entry),
            ticket,
        };
        let (trimmed, age) = (room.keep_bounds(0), room.tell_age());
        self.commands.push(append);
        self.commands.extend(trimmed.into_iter().chain(age));
        Outcome::Later(ticket)
    }

    fn snapshot(&mut self, room: &RoomId, snapshot: Snapshot) {
        let Some(room) = self.open_room(room) else {
            return;
        };
        let log = Arc::clone(&room.log);
        self.commands.push(Command::Snapshot { log, snapshot });
    }

    fn register(&mut self, room: &RoomId, key: Bytes, value: Bytes) -> Outcome<()> {
        match self.shared.health.get() {
            Health::Good => {}
            Health::Full => return Outcome::Failed(JournalError::Full),
            Health::Failed => return Outcome::Failed(JournalError::Storage),
        }
        let ticket = self.ticket();
        let Some(room) = self.open_room(room) else {
            return Outcome::Failed(JournalError::Storage);
        };
        let log = Arc::clone(&room.log);
        self.commands.push(Command::Register {
            log,
            key,
            value,
            ticket,
        });
        Outcome::Later(ticket)
    }

    fn wake_at(&mut self, room: &RoomId, at_ms: Option<u64>) {
        let id = room.clone();
        let Some(room) = self.open_room(room) else {
            return;
        };
        let log = Arc::clone(&room.log);
        self.commands.push(Command::Wake {
            log,
            room: id,
            at_ms,
        });
    }

    fn read(&mut self, room: &RoomId, query: ReadQuery) -> Outcome<ReadPage> {
        let (ticket, shard, id) = (self.ticket(), self.shard, room.clone());
        let Some(room) = self.open_room(room) else {
            return Outcome::Failed(JournalError::Storage);
        };
        let request = PageRequest {
            log: room.log.id,
            first: room.first,
            query,
        };
        self.shared.jobs.push([Job::Read {
            room: id,
            shard,
            ticket,
            request,
        }]);
        Outcome::Later(ticket)
    }

    fn first(&self, room: &RoomId) -> Offset {
        match self.rooms.get(room) {
            Some(Room::Open(room)) => room.first,
            Some(Room::Opening(slot, _)) => {
                let open = slot.lock().unwrap_or_else(PoisonError::into_inner);
                open.as_ref().map_or(Offset(1), |open| open.first)
            }
            None => Offset(1),
        }
    }

    fn trim(&mut self, room: &RoomId, now_ms: u64) -> Option<u64> {
        let room = self.open_room(room)?;
        let trimmed = room.keep_bounds(now_ms);
        let due_ms = room.marks.due_ms(room.bounds, room.log.held());
        self.commands.extend(trimmed);
        due_ms
    }

    fn close(&mut self, room: &RoomId) {
        self.rooms.remove(room);
    }

    fn flush(&mut self) {
        if !self.commands.is_empty() {
            self.shared.commands.push(self.commands.drain(..));
        }
    }

    fn has_unsent(&self) -> bool {
        !self.commands.is_empty()
    }
}

impl fmt::Debug for LocalJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalJournal")
            .field("shard", &self.shard)
            .field("rooms", &self.rooms.len())
            .finish_non_exhaustive()
    }
}

/// Where the journal is in the data directory.
pub(crate) const DIRECTORY: &str = "journal";
