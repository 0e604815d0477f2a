//! Rooms on disk: the real journal on a simulated machine that is slow, full, fails and loses its power, and books of what it was
//! given and what it has reported stored.
//!
//! A room on disk keeps its epoch, so what was reported of it stands for all lives of the process. The books are compared with
//! what the journal shows at each opening of a room.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use roomful_protocol::frame::{
    Durability, Entry, EntryKind, LockChange, LockWhy, StateChange, StateChanges,
};
use roomful_protocol::id::{Epoch, Key, Offset, RoomId};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;
use roomful_server::clock::Clock;
use roomful_server::journal::local::simulated::{End, Machine};
use roomful_server::journal::local::stepped::{Stepped, Told};
use roomful_server::journal::local::{Headroom, LocalJournal, Settings};
use roomful_server::journal::{
    Completion, CompletionResult, Health, Held, HistoryBounds, Journal, Opened, Outcome, ReadPage,
    ReadQuery, Snapshot, Ticket,
};
use roomful_server::shard::message::ShardId;

use crate::options::START_UNIX_MS;

/// The machine, the journal of the process on it, and the books.
#[derive(Debug)]
pub struct Disk {
    machine: Machine,
    journal: Option<Stepped>,
    told: VecDeque<Told>,
    pub books: Books,
    clock: Clock,
    random: StdRng,
    /// How many steps it still takes its time.
    slow: u32,
    /// How often something was wrong with it.
    pub faults: u64,
    pub power_cuts: u64,
}

impl Disk {
    pub fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        Self {
            machine: Machine::new(random.random()),
            journal: None,
            told: VecDeque::new(),
            books: Books::default(),
            clock: Clock::manual(START_UNIX_MS),
            random,
            slow: 0,
            faults: 0,
            power_cuts: 0,
        }
    }

    /// A process begins. The power may go while it reads what is there.
    pub fn start(&mut self, first_epoch: Epoch) {
        loop {
            let settings = Settings {
                segment_bytes: SEGMENT_BYTES,
                headroom: Headroom {
                    percent: 0,
                    bytes_min: HEADROOM,
                },
                ..Settings::new(first_epoch, self.clock.clone())
            };
            match Stepped::open(&self.machine, settings) {
                Ok(journal) => {
                    self.journal = Some(journal);
                    return;
                }
                Err(error) => assert!(self.machine.is_off(), "it can't be opened: {error}"),
            }
            self.come_back();
        }
    }

    /// The process ends, as it was asked to or not, or with the machine.
    pub fn end(&mut self, is_orderly: bool) {
        if let Some(journal) = self.journal.take()
            && is_orderly
        {
            journal.close();
        }
        self.told.clear();
        self.books.0.lock().unwrap().waiting.clear();
        self.come_back();
    }

    fn come_back(&mut self) {
        let end = match self.random.random_range(0..3) {
            0 => End::Kill,
            _ => End::PowerCut,
        };
        self.power_cuts += u64::from(end == End::PowerCut);
        self.machine.come_back(end);
    }

    /// Whether nothing is taken before the process begins anew.
    pub fn has_failed(&self) -> bool {
        let journal = self.journal.as_ref();
        self.machine.is_off() || journal.is_some_and(|journal| journal.health() == Health::Failed)
    }

    pub fn pass(&self, ms: u64) {
        self.clock.advance(ms);
    }

    pub fn of_shard(&self, shard: ShardId) -> Recorded {
        let journal = self.journal.as_ref().expect("a process runs");
        Recorded {
            shard,
            journal: journal.of_shard(shard),
            books: self.books.clone(),
        }
    }

    /// Something goes wrong.
    pub fn fail(&mut self) {
        self.faults += 1;
        match self.random.random_range(0..7) {
            0 => self.machine.end_after(self.random.random_range(0..40)),
            1 => self.machine.fail_sync(),
            2 => self.machine.fail_write(),
            3 => self.machine.fail_store(),
            4 => self.machine.set_free(HEADROOM - 1),
            5 => self.machine.set_free(1 << 30),
            _ => self.slow = self.random.random_range(20..300),
        }
    }

    /// From now on nothing does. What has failed stays so until the process begins anew.
    pub fn heal(&mut self) {
        self.slow = 0;
        self.machine.set_free(1 << 30);
        if !self.has_failed() {
            self.machine.come_back(End::Kill);
        }
    }

    /// One of the journal's threads goes on; then the first thing that it has told.
    pub fn step(&mut self) -> Option<Told> {
        let journal = self.journal.as_mut().expect("a process runs");
        let had_failed = journal.health() == Health::Failed;
        if self.slow > 0 {
            self.slow -= 1;
        } else {
            match self.random.random_range(0..4) {
                0 | 1 => journal.commit(),
                2 => journal.read(),
                _ => journal.ingest(),
            }
        }
        while let Some(told) = journal.told() {
            if let Told::Completed(_, completion) = &told {
                let is_ack = matches!(completion.result, CompletionResult::Appended(Ok(())));
                assert!(!had_failed || !is_ack, "an ack from a disk that has failed");
            }
            self.told.push_back(told);
        }
        let told = self.told.pop_front()?;
        if let Told::Completed(shard, completion) = &told {
            let is_sure = !self.has_failed();
            self.books.note(*shard, completion, is_sure);
        }
        Some(told)
    }
}

/// What was given to the journals of all shards, and what was reported of it.
#[derive(Debug, Clone, Default)]
pub struct Books(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    rooms: BTreeMap<RoomId, Book>,
    waiting: HashMap<(ShardId, Ticket), Call>,
}

#[derive(Debug)]
enum Call {
    Open(RoomId),
    Append(RoomId, Offset),
}

/// Of one room.
#[derive(Debug, Default)]
struct Book {
    epoch: Option<Epoch>,
    /// What was handed over last at each offset.
    sent: BTreeMap<Offset, Arc<Entry>>,
    /// Up to here everything was reported stored.
    reported: Offset,
}

impl Books {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// The entry that was reported stored at a position.
    pub fn reported(&self, room: &RoomId, position: Position) -> Option<Arc<Entry>> {
        let inner = self.inner();
        let book = inner.rooms.get(room)?;
        let is_reported = book.epoch == Some(position.epoch) && position.offset <= book.reported;
        is_reported.then(|| book.sent.get(&position.offset).cloned())?
    }

    /// The last entry that was reported stored.
    pub fn head(&self, room: &RoomId) -> Offset {
        let inner = self.inner();
        inner
            .rooms
            .get(room)
            .map_or(Offset(0), |book| book.reported)
    }

    /// `is_sure`: what an opening doesn't show is not there. A disk that has failed may show it to the next process.
    fn note(&self, shard: ShardId, completion: &Completion, is_sure: bool) {
        let mut inner = self.inner();
        let Some(call) = inner.waiting.remove(&(shard, completion.ticket)) else {
            return;
        };
        match (call, &completion.result) {
            (Call::Open(room), CompletionResult::Opened(Ok(opened))) => {
                let book = inner.rooms.entry(room).or_default();
                book.compare(opened);
                if is_sure {
                    book.sent.split_off(&opened.head.next());
                }
            }
            (Call::Append(room, offset), CompletionResult::Appended(Ok(()))) => {
                let book = inner.rooms.entry(room).or_default();
                assert_eq!(offset, book.reported.next(), "reported out of turn");
                book.reported = offset;
            }
            _ => {}
        }
    }

    /// What entries make of a room's state; at the same time locks have had one holder, and fences have grown.
    pub fn fold(&self, room: &RoomId) -> BTreeMap<Key, (Offset, Payload)> {
        let inner = self.inner();
        let (mut state, mut held) = (BTreeMap::new(), BTreeMap::new());
        let book = inner.rooms.get(room);
        for (offset, entry) in book.iter().flat_map(|book| &book.sent) {
            if book.is_some_and(|book| *offset > book.reported) {
                break;
            }
            match entry.kind {
                EntryKind::State => {
                    let content = StateChanges::from_payload(&entry.payload).unwrap();
                    for StateChange { key, value } in content.changes {
                        match value {
                            Some(value) => drop(state.insert(key, (*offset, value))),
                            None => drop(state.remove(&key)),
                        }
                    }
                }
                EntryKind::Lock => {
                    let change = LockChange::from_payload(&entry.payload).unwrap();
                    let fence = change.held.as_ref().map(|holder| holder.fence);
                    let before = held.insert(change.lock, fence).flatten();
                    if change.why == LockWhy::Granted {
                        assert_eq!((before, fence), (None, Some(*offset)), "two holders");
                    } else {
                        assert!(fence.is_none() || fence == before, "a holder from nowhere");
                    }
                }
                _ => {}
            }
        }
        state
    }
}

impl Book {
    /// Compares with what the journal shows. What is there now stays, whether it was reported or not.
    fn compare(&mut self, opened: &Opened) {
        let epoch = *self.epoch.get_or_insert(opened.epoch);
        assert_eq!(epoch, opened.epoch, "a room on disk has another epoch");
        assert!(
            opened.head >= self.reported,
            "{} is the head, and {} was reported stored",
            opened.head,
            self.reported
        );
        for entry in &opened.recent {
            assert_eq!(
                self.sent.get(&entry.offset),
                Some(entry),
                "not what was handed over"
            );
        }
        let last = opened.recent.last().map_or(opened.head, |last| last.offset);
        assert_eq!(last, opened.head, "the head is not the last entry");
        self.reported = opened.head;
    }
}

/// The journal of one shard, with a look at what goes in.
#[derive(Debug)]
pub struct Recorded {
    shard: ShardId,
    journal: LocalJournal,
    books: Books,
}

impl Recorded {
    fn wait<T>(&self, outcome: &Outcome<T>, call: impl FnOnce() -> Call) {
        if let Outcome::Later(ticket) = outcome {
            let waits = (self.shard, *ticket);
            self.books.inner().waiting.insert(waits, call());
        }
    }
}

impl Journal for Recorded {
    fn durability(&self) -> Durability {
        self.journal.durability()
    }

    fn open(&mut self, room: &RoomId, bounds: HistoryBounds) -> Outcome<Opened> {
        let outcome = self.journal.open(room, bounds);
        self.wait(&outcome, || Call::Open(room.clone()));
        outcome
    }

    fn set_bounds(&mut self, room: &RoomId, bounds: HistoryBounds) {
        self.journal.set_bounds(room, bounds);
    }

    fn health(&self) -> Health {
        self.journal.health()
    }

    fn append(&mut self, room: &RoomId, expected: Offset, entry: &Arc<Entry>) -> Outcome<()> {
        let outcome = self.journal.append(room, expected, entry);
        self.wait(&outcome, || Call::Append(room.clone(), entry.offset));
        if let Outcome::Later(_) = outcome {
            let mut inner = self.books.inner();
            let book = inner.rooms.entry(room.clone()).or_default();
            assert!(entry.offset > book.reported, "an offset is given again");
            book.sent.insert(entry.offset, Arc::clone(entry));
        }
        outcome
    }

    fn snapshot(&mut self, room: &RoomId, snapshot: Snapshot) {
        self.journal.snapshot(room, snapshot);
    }

    fn register(&mut self, room: &RoomId, key: Bytes, value: Bytes) -> Outcome<()> {
        self.journal.register(room, key, value)
    }

    fn wake_at(&mut self, room: &RoomId, at_ms: Option<u64>) {
        self.journal.wake_at(room, at_ms);
    }

    fn read(&mut self, room: &RoomId, query: ReadQuery) -> Outcome<ReadPage> {
        self.journal.read(room, query)
    }

    fn first(&self, room: &RoomId) -> Offset {
        self.journal.first(room)
    }

    fn trim(&mut self, room: &RoomId, now_ms: u64) -> Option<u64> {
        self.journal.trim(room, now_ms)
    }

    fn close(&mut self, room: &RoomId) {
        self.journal.close(room);
    }

    fn flush(&mut self) {
        self.journal.flush();
    }

    fn has_unsent(&self) -> bool {
        self.journal.has_unsent()
    }

    fn held_bytes(&self) -> usize {
        self.journal.held_bytes()
    }

    fn held_by(&self, room: &RoomId) -> Held {
        self.journal.held_by(room)
    }
}

/// Small, so that many are sealed and go into the store.
const SEGMENT_BYTES: u64 = 3_000;

const HEADROOM: u64 = 100_000;
