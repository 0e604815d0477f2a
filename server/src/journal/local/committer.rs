//! What makes appends durable: commands of all shards become one batch, one write and one sync.
//!
//! A [`Committer`] has no thread and no clock: whoever drives it hands over what has gathered and gets what came of it. The order
//! of commands is the order of records. Nothing is reported, and nothing is in the index, before a sync said that it is
//! stored. After a write or a sync that failed nothing is known of the file, so nothing is taken any more, and nothing is tried
//! again: the process has to start anew and read what is really there.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use roomful_protocol::frame::Entry;
use roomful_protocol::id::{Epoch, Offset, RoomId};

use super::counters::Counters;
use super::disk::Disk;
use super::freezing::Freeze;
use super::health::{Headroom, SharedHealth};
use super::holding::{Hold, Holders};
use super::index::{Index, Segment, Spot};
use super::ingest;
use super::marks::Marks;
use super::record::{Head, Kind, LogId, Record, Term, put_entry, put_register, put_room};
use super::segment::{self, Batch, SEGMENT_HEAD_BYTES, SegmentHead};
use super::store::Store;
use crate::journal::{
    Completion, CompletionResult, Health, JournalError, Opened, Snapshot, Ticket,
};
use crate::shard::message::ShardId;

/// A log as its shard and the committer know it. One that is opened again gets a new one.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) id: LogId,
    pub(super) epoch: Epoch,
    pub(super) shard: ShardId,
    /// The last entry that the committer has taken.
    pub(super) head: AtomicU64,
    /// The newest snapshot that is stored; 0 for none.
    pub(super) snapshot: AtomicU64,
    /// An append has failed: no further one is taken, since there would be a gap.
    is_broken: AtomicBool,
    /// A sweep leaves it alone.
    _hold: Hold,
}

impl Log {
    pub(super) fn new(
        (id, hold): (LogId, Hold),
        epoch: Epoch,
        shard: ShardId,
        head: Offset,
        snapshot: Offset,
    ) -> Self {
        Self {
            id,
            epoch,
            shard,
            head: AtomicU64::new(head.0),
            snapshot: AtomicU64::new(snapshot.0),
            is_broken: AtomicBool::new(false),
            _hold: hold,
        }
    }

    /// The newest snapshot that is stored.
    pub(super) fn held(&self) -> Offset {
        Offset(self.snapshot.load(Ordering::Relaxed))
    }

    fn head(&self, kind: Kind, term: Term, offset: Offset) -> Head {
        Head {
            kind,
            is_pinned: false,
            log: self.id,
            epoch: self.epoch,
            term,
            offset,
            time_ms: 0,
        }
    }
}

/// A log that a shard has opened.
#[derive(Debug)]
pub(super) struct OpenLog {
    pub(super) log: Arc<Log>,
    pub(super) head: Offset,
    pub(super) first: Offset,
    pub(super) marks: Marks,
    /// How long entries are kept while nobody has it open, as far as that is stored, in milliseconds.
    pub(super) age_max_ms: Option<u64>,
}

/// Where a log is put for its shard, before the completion is sent.
pub(super) type Slot = Arc<Mutex<Option<OpenLog>>>;

/// Puts a log where its shard finds it.
pub(super) fn put(slot: &Slot, log: OpenLog) {
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(log);
}

/// Somebody asks for a room.
#[derive(Debug)]
pub(super) struct OpenRequest {
    pub(super) room: RoomId,
    pub(super) shard: ShardId,
    pub(super) ticket: Ticket,
    pub(super) slot: Slot,
}

/// What a shard asks for, in the order in which it takes effect.
#[derive(Debug)]
pub(super) enum Command {
    Append {
        log: Arc<Log>,
        entry: Arc<Entry>,
        ticket: Ticket,
    },
    Snapshot {
        log: Arc<Log>,
        snapshot: Snapshot,
    },
    Register {
        log: Arc<Log>,
        key: Bytes,
        value: Bytes,
        ticket: Ticket,
    },
    Wake {
        log: Arc<Log>,
        room: RoomId,
        at_ms: Option<u64>,
    },
    Trim {
        log: Arc<Log>,
        first: Offset,
    },
    Age {
        log: Arc<Log>,
        max_ms: u64,
    },
    /// Everything before it goes into the store, which is then shown as it is.
    Freeze(Freeze),
    /// To be looked up once everything before it is stored.
    Open(OpenRequest),
    /// There was no such room when that many segments were in the store.
    Begin {
        request: OpenRequest,
        taken: u64,
    },
}

/// What came of commands.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// By shard.
    pub(super) letters: Vec<(ShardId, Vec<Completion>)>,
    /// Rooms to look up.
    pub(super) opens: Vec<OpenRequest>,
    /// Whether a segment was sealed.
    pub(super) has_sealed: bool,
}

impl Done {
    pub(super) fn complete(&mut self, shard: ShardId, ticket: Ticket, result: CompletionResult) {
        let completion = Completion { ticket, result };
        match self.letters.iter_mut().find(|(known, _)| *known == shard) {
            Some((_, letter)) => letter.push(completion),
            None => self.letters.push((shard, vec![completion])),
        }
    }
}

/// How the committer works.
#[derive(Debug, Clone, Copy)]
pub(super) struct CommitterSettings {
    pub(super) term: Term,
    pub(super) first_epoch: Epoch,
    pub(super) segment_bytes: u64,
    pub(super) headroom: Headroom,
    /// A random number.
    pub(super) salt: u64,
    /// Higher than every log's number.
    pub(super) next_log: u64,
}

/// Writes batches. See the module.
#[derive(Debug)]
pub(super) struct Committer {
    settings: CommitterSettings,
    disk: Arc<dyn Disk>,
    store: Arc<dyn Store>,
    index: Arc<Mutex<Index>>,
    health: SharedHealth,
    counters: Arc<Counters>,
    holders: Arc<Holders>,
    segment: Written,
    /// What has to be free for the next segment, after one that had no place.
    missing_bytes: u64,
    next_log: u64,
    batch: Batch,
    /// The records of the batch.
    added: Vec<(Head, Spot)>,
    /// Who waits for it.
    waiting: Vec<Waiting>,
}

/// The segment that is written.
#[derive(Debug, Clone, Copy)]
struct Written {
    number: u64,
    salt: u64,
    /// Where the next batch goes.
    at: u64,
    bytes: u64,
    next_batch: u64,
    /// Nothing in it says yet that its last batch was synced.
    is_unconfirmed: bool,
}

#[derive(Debug)]
enum Waiting {
    Entry(Arc<Log>, Ticket),
    Snapshot(Arc<Log>, Offset),
    /// Nobody is told.
    Note(Arc<Log>),
    Beginning(OpenRequest, (LogId, Hold), Epoch),
}

impl Committer {
    /// Goes on behind what the index knows.
    ///
    /// # Errors
    /// The first segment can't be made.
    pub(super) fn begin(
        settings: CommitterSettings,
        disk: Arc<dyn Disk>,
        store: Arc<dyn Store>,
        index: Arc<Mutex<Index>>,
        health: SharedHealth,
        counters: Arc<Counters>,
        holders: Arc<Holders>,
    ) -> io::Result<Self> {
        let (number, next_batch) = {
            let mut index = index.lock().unwrap_or_else(PoisonError::into_inner);
            let active = index.active();
            (active.number, active.next_batch)
        };
        let mut committer = Self {
            settings,
            disk,
            store,
            index,
            health,
            counters,
            holders,
            segment: Written {
                number,
                salt: 0,
                at: 0,
                bytes: 0,
                next_batch,
                is_unconfirmed: false,
            },
            missing_bytes: 0,
            next_log: settings.next_log,
            batch: Batch::new(),
            added: Vec::new(),
            waiting: Vec::new(),
        };
        committer.begin_segment(number, 0)?;
        Ok(committer)
    }

    /// Takes commands; says what came of them once that survives a power cut.
    pub(super) fn commit(&mut self, commands: &mut Vec<Command>, done: &mut Done) {
        for command in commands.drain(..) {
            self.take(command, done);
            if self.batch.len() >= BATCH_BYTES_MAX {
                self.store(done);
            }
        }
        self.store(done);
    }

    /// Looks whether there is space enough.
    pub(super) fn look_at_space(&self) {
        let Ok(space) = self.disk.space() else {
            return;
        };
        let headroom = self
            .settings
            .headroom
            .of(space.total, self.settings.segment_bytes);
        self.health
            .set(match space.free < headroom.max(self.missing_bytes) {
                true => Health::Full,
                false => Health::Good,
            });
    }

    fn take(&mut self, command: Command, done: &mut Done) {
        let term = self.settings.term;
        match command {
            Command::Append { log, entry, ticket } => self.append(log, &entry, ticket, done),
            Command::Snapshot { log, snapshot } => {
                let head = log.head(Kind::Snapshot, term, snapshot.at);
                self.put(head, |out| out.extend_from_slice(&snapshot.content));
                self.waiting.push(Waiting::Snapshot(log, snapshot.at));
            }
            Command::Register {
                log,
                key,
                value,
                ticket,
            } => {
                let head = log.head(Kind::Register, term, Offset(0));
                self.put(head, |out| put_register(&key, &value, out));
                self.waiting.push(Waiting::Entry(log, ticket));
            }
            Command::Wake { log, room, at_ms } => {
                let head = Head {
                    time_ms: at_ms.unwrap_or_default(),
                    ..log.head(Kind::Wake, term, Offset(u64::from(at_ms.is_some())))
                };
                self.put(head, |out| put_room(&room, out));
                self.waiting.push(Waiting::Note(log));
            }
            Command::Trim { log, first } => {
                self.put(log.head(Kind::Trimmed, term, first), |_| {});
                self.waiting.push(Waiting::Note(log));
            }
            Command::Age { log, max_ms } => {
                let head = Head {
                    time_ms: max_ms,
                    ..log.head(Kind::Age, term, Offset(0))
                };
                self.put(head, |_| {});
                self.waiting.push(Waiting::Note(log));
            }
            Command::Freeze(freeze) => self.freeze(freeze, done),
            Command::Open(request) => done.opens.push(request),
            Command::Begin { request, taken } => self.begin_log(request, taken, done),
        }
    }

    fn append(&mut self, log: Arc<Log>, entry: &Entry, ticket: Ticket, done: &mut Done) {
        let follows = entry.offset.0 == log.head.load(Ordering::Relaxed) + 1;
        if !follows || log.is_broken.load(Ordering::Relaxed) {
            log.is_broken.store(true, Ordering::Relaxed);
            let refused = CompletionResult::Appended(Err(JournalError::Conflict));
            done.complete(log.shard, ticket, refused);
            return;
        }
        log.head.store(entry.offset.0, Ordering::Relaxed);
        let head = Head::of_entry(log.id, log.epoch, self.settings.term, entry);
        self.put(head, |out| put_entry(entry, out));
        self.waiting.push(Waiting::Entry(log, ticket));
    }

    fn begin_log(&mut self, request: OpenRequest, taken: u64, done: &mut Done) {
        let begins_here = |waiting: &Waiting| matches!(waiting, Waiting::Beginning(other, ..) if other.room == request.room);
        let is_known = {
            let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
            index.taken() != taken || index.log_of(&request.room).is_some()
        };
        if is_known || self.waiting.iter().any(begins_here) {
            done.opens.push(request);
            return;
        }
        let (log, epoch) = (LogId(self.next_log), self.settings.first_epoch);
        self.next_log += 1;
        let head = Head {
            kind: Kind::Began,
            is_pinned: false,
            log,
            epoch,
            term: self.settings.term,
            offset: Offset(0),
            time_ms: 0,
        };
        self.put(head, |out| put_room(&request.room, out));
        let held = (log, self.holders.hold(log));
        self.waiting.push(Waiting::Beginning(request, held, epoch));
    }

    /// Seals the segment, so that the store can be shown as soon as it has taken that: whoever asks hears of it then.
    fn freeze(&mut self, freeze: Freeze, done: &mut Done) {
        self.store(done);
        if self.health.get() == Health::Failed {
            return;
        }
        match self.begin_next_segment(0) {
            Ok(()) => {
                self.seal(Some(freeze));
                done.has_sealed = true;
            }
            Err(error) => self.has_no_segment(&error),
        }
    }

    /// Seals the segment where logs say in it that they keep less, so that the store hears of it though nothing fills it; whether
    /// it did.
    pub(super) fn seal_trimmed(&mut self) -> bool {
        let is_worth = {
            let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
            index.waiting() == 0 && index.active().has_trims()
        };
        if !is_worth {
            return false;
        }
        match self.begin_next_segment(0) {
            Ok(()) => self.seal(None),
            Err(error) => {
                self.has_no_segment(&error);
                return false;
            }
        }
        true
    }

    /// Tells why there is no next segment. Nothing that was stored is concerned, but where a sync failed.
    fn has_no_segment(&self, error: &io::Error) {
        if self.health.get() == Health::Failed {
            return self.fail(error);
        }
        let segment = self.segment.number + 1;
        tracing::error!(%error, segment, "the journal has no place for another segment");
    }

    /// The segment that was begun takes the place of the one that was written.
    fn seal(&self, freeze: Option<Freeze>) {
        let next = Segment::new(self.segment.number, self.segment.next_batch);
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        index.active().freezes.extend(freeze);
        index.seal(next);
    }

    fn put(&mut self, head: Head, content: impl FnOnce(&mut Vec<u8>)) {
        let at = self.batch.add(|out| head.write(out, content));
        let bytes = self.batch.len() - at;
        let spot = Spot {
            at: u32::try_from(at).expect("smaller than a segment"),
            bytes: u32::try_from(bytes).expect("smaller than a segment"),
        };
        self.added.push((head, spot));
    }

    /// Stores the batch, and tells those who wait for it.
    fn store(&mut self, done: &mut Done) {
        if self.added.is_empty() {
            return;
        }
        let stored = self.try_store(done);
        for waiting in self.waiting.drain(..) {
            waiting.tell(stored, done);
        }
        self.batch.clear();
        self.added.clear();
    }

    fn try_store(&mut self, done: &mut Done) -> Result<(), JournalError> {
        if self.health.get() == Health::Failed {
            return Err(JournalError::Storage);
        }
        let bytes = (self.batch.len() as u64).next_multiple_of(8);
        if self.segment.at + bytes > self.segment.bytes {
            if let Err(error) = self.begin_next_segment(bytes) {
                return Err(self.refuse(bytes, &error));
            }
            self.seal(None);
            done.has_sealed = true;
        }
        match self.write() {
            Ok(at) => {
                self.note(at);
                Ok(())
            }
            Err(error) => {
                self.fail(&error);
                Err(JournalError::Storage)
            }
        }
    }

    /// There is no next segment. Where that is for want of space, nothing is in doubt: it is tried again when there is some.
    fn refuse(&mut self, bytes: u64, error: &io::Error) -> JournalError {
        if !is_full(error) || self.health.get() == Health::Failed {
            self.fail(error);
            return JournalError::Storage;
        }
        self.has_no_segment(error);
        self.missing_bytes = self.settings.segment_bytes.max(bytes);
        self.health.set(Health::Full);
        JournalError::Full
    }

    /// Writes and syncs the batch; gives its place in the segment.
    fn write(&mut self) -> io::Result<u64> {
        let Written {
            number,
            salt,
            at,
            next_batch,
            ..
        } = self.segment;
        let bytes = self.batch.finish(next_batch, salt);
        self.disk.write(number, at, bytes)?;
        self.disk.sync(number)?;
        self.segment.at += bytes.len() as u64;
        self.segment.next_batch += 1;
        self.segment.is_unconfirmed = true;
        let counters = &self.counters;
        counters.commits.add(1);
        counters.syncs.add(1);
        counters.bytes.add(bytes.len() as u64);
        counters.records.add(self.added.len() as u64);
        counters.batch_records.see(self.added.len() as u64);
        Ok(at)
    }

    /// Notes in the index what was stored at a place.
    fn note(&self, at: u64) {
        let base = u32::try_from(at).expect("a segment is smaller than 4 GiB");
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let active = index.active();
        for (head, spot) in &self.added {
            let place = Spot {
                at: base + spot.at,
                ..*spot
            };
            if head.kind == Kind::Entry {
                active.add_entry(head, place);
            } else {
                let bytes = &self.batch.bytes()[spot.at as usize..];
                let (record, _) = Record::read(bytes).expect("it was written a moment ago");
                active.add(&record, place.at);
            }
        }
        active.end = self.segment.at;
        active.next_batch = self.segment.next_batch;
        let bytes = index.bytes();
        self.counters.segment_bytes.set(bytes);
    }

    /// Makes the one that follows.
    fn begin_next_segment(&mut self, bytes_min: u64) -> io::Result<()> {
        // The end of one that another follows is never taken for a write that never finished.
        let synced = self.disk.sync(self.segment.number);
        synced.inspect_err(|_| self.health.set(Health::Failed))?;
        self.begin_segment(self.segment.number + 1, bytes_min)
    }

    /// Makes a segment that has room for so many bytes.
    fn begin_segment(&mut self, number: u64, bytes_min: u64) -> io::Result<()> {
        let head_bytes = SEGMENT_HEAD_BYTES as u64;
        let bytes = self.settings.segment_bytes.max(head_bytes + bytes_min);
        let next_batch = self.segment.next_batch;
        let head = SegmentHead {
            salt: self.settings.salt.wrapping_add(number),
            first: next_batch,
            bytes: u32::try_from(bytes).expect("a segment is smaller than 4 GiB"),
        };
        if let Err(error) = self.reserve(number, bytes, &head) {
            if error.kind() != io::ErrorKind::AlreadyExists {
                // What is left of it would be in the way of the next one.
                drop(self.disk.remove(number));
            }
            return Err(error);
        }
        // From now on it may not be missing.
        // With an error it may be expected at the next start, so it stays.
        let begun = ingest::write_begun(&*self.store, number);
        begun.inspect_err(|_| self.health.set(Health::Failed))?;
        self.counters.syncs.add(1);
        self.missing_bytes = 0;
        self.segment = Written {
            number,
            salt: head.salt,
            at: head_bytes,
            bytes,
            next_batch,
            is_unconfirmed: false,
        };
        Ok(())
    }

    fn reserve(&self, number: u64, bytes: u64, head: &SegmentHead) -> io::Result<()> {
        self.disk.create(number, bytes)?;
        self.disk.write(number, 0, &head.to_bytes())?;
        self.disk.sync(number)
    }

    /// There is nothing to do: says behind the last batch that it was synced, so that damage to it is not taken for a write that
    /// never finished. That is not synced itself: without it no more is known than before.
    pub(super) fn confirm(&mut self) {
        let Written {
            number,
            salt,
            at,
            next_batch,
            ..
        } = self.segment;
        let bytes = segment::confirmation(next_batch, salt);
        let fits = at + bytes.len() as u64 <= self.segment.bytes;
        if !fits || !self.segment.is_unconfirmed || self.health.get() == Health::Failed {
            return;
        }
        self.segment.is_unconfirmed = false;
        if let Err(error) = self.disk.write(number, at, &bytes) {
            self.fail(&error);
        }
    }

    fn fail(&self, error: &io::Error) {
        let segment = self.segment.number;
        tracing::error!(%error, segment, "the journal can't be written: nothing durable is taken until the next start");
        self.health.set(Health::Failed);
    }

    /// Seals the segment that is written, so that all of it can go into the store.
    pub(super) fn close(&self) {
        let next = Segment::new(self.segment.number + 1, self.segment.next_batch);
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        index.seal(next);
    }

    /// Sealed segments that wait for the store.
    pub(super) fn segments_waiting(&self) -> usize {
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        index.waiting()
    }
}

impl Waiting {
    fn tell(self, stored: Result<(), JournalError>, done: &mut Done) {
        match self {
            Self::Entry(log, ticket) => {
                if stored.is_err() {
                    log.is_broken.store(true, Ordering::Relaxed);
                }
                done.complete(log.shard, ticket, CompletionResult::Appended(stored));
            }
            Self::Snapshot(log, at) if stored.is_ok() => {
                log.snapshot.fetch_max(at.0, Ordering::Relaxed);
            }
            Self::Snapshot(..) => {}
            // Its room has to be opened again before more of it is stored than this.
            Self::Note(log) if stored.is_err() => log.is_broken.store(true, Ordering::Relaxed),
            Self::Note(_) => {}
            Self::Beginning(request, held, epoch) => {
                let opened = stored.map(|()| {
                    let log = Log::new(held, epoch, request.shard, Offset(0), Offset(0));
                    let open = OpenLog {
                        log: Arc::new(log),
                        head: Offset(0),
                        first: Offset(1),
                        marks: Marks::default(),
                        age_max_ms: None,
                    };
                    put(&request.slot, open);
                    Opened {
                        epoch,
                        head: Offset(0),
                        snapshot: None,
                        recent: Vec::new(),
                        registers: Vec::new(),
                    }
                });
                let result = CompletionResult::Opened(opened);
                done.complete(request.shard, request.ticket, result);
            }
        }
    }
}

/// Whether the disk has too little space.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// What gathered beyond this is a batch of its own: nobody waits for the sum of a burst.
const BATCH_BYTES_MAX: usize = 4 << 20;
