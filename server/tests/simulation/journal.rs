//! A journal that completes late, out of turn, or fails, as a seed decides; what it has reported done it never loses.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use roomful_protocol::frame::{Direction, Durability, Entry, EntryKind, OpId};
use roomful_protocol::id::{Epoch, Offset, RoomId};
use roomful_protocol::position::Position;
use roomful_server::journal::{
    Completion, CompletionResult, ENTRY_OVERHEAD_BYTES, Held, HistoryBounds, Journal, JournalError,
    Opened, Outcome, ReadPage, ReadQuery, Snapshot, Ticket,
};

/// The journal of one shard; the world keeps the other handle and completes what is in flight.
#[derive(Debug, Clone)]
pub struct FaultyJournal(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    random: StdRng,
    faults: Faults,
    logs: HashMap<RoomId, Log>,
    /// What a caller waits for, in the order of the calls.
    in_flight: Vec<(Ticket, Call)>,
    next_ticket: u64,
    next_epoch: Epoch,
    /// What was ever reported done: it stands for ever, whatever is trimmed or fails later.
    reported: BTreeMap<(RoomId, Epoch, Offset), Option<OpId>>,
}

/// How often what goes wrong, in percent.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// Calls that complete later.
    pub late: u32,
    /// Appends in flight that fail.
    pub fail: u32,
}

#[derive(Debug)]
struct Log {
    epoch: Epoch,
    bounds: HistoryBounds,
    snapshot: Option<Snapshot>,
    registers: BTreeMap<Bytes, Bytes>,
    entries: Vec<Stored>,
    /// The offset before the first entry.
    trimmed: Offset,
    /// An append has failed: nothing is taken until the next open.
    broken: bool,
}

#[derive(Debug, Clone)]
struct Stored {
    entry: Arc<Entry>,
    reported: bool,
}

#[derive(Debug)]
enum Call {
    Open(RoomId),
    Append(RoomId, Offset),
    Read(RoomId, ReadQuery),
}

impl FaultyJournal {
    pub fn new(seed: u64, faults: Faults) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let (logs, in_flight) = (HashMap::new(), Vec::new());
        Self(Arc::new(Mutex::new(Inner {
            random,
            faults,
            logs,
            in_flight,
            next_ticket: 1,
            next_epoch: Epoch(1),
            reported: BTreeMap::new(),
        })))
    }

    /// The process was killed and is there again: what was in memory is gone, and epochs go on above those of before.
    pub fn restart(&self, first_epoch: Epoch) {
        let mut inner = self.0.lock().unwrap();
        inner.logs.clear();
        inner.in_flight.clear();
        assert!(inner.next_epoch < first_epoch, "epochs only grow");
        inner.next_epoch = first_epoch;
    }

    /// The operation that was reported stored at a position.
    pub fn reported(&self, room: &RoomId, position: Position) -> Option<OpId> {
        let key = (room.clone(), position.epoch, position.offset);
        self.0.lock().unwrap().reported.get(&key).copied().flatten()
    }

    /// Whether an entry was reported stored at a position.
    pub fn has_reported(&self, room: &RoomId, position: Position) -> bool {
        let key = (room.clone(), position.epoch, position.offset);
        self.0.lock().unwrap().reported.contains_key(&key)
    }

    /// Whether nothing is left of any room.
    pub fn is_empty(&self) -> bool {
        self.0.lock().unwrap().logs.is_empty()
    }

    /// From now on nothing goes wrong.
    pub fn heal(&self) {
        self.0.lock().unwrap().faults = Faults { late: 0, fail: 0 };
    }

    /// Ends one call that is in flight, any of them.
    pub fn complete_one(&self) -> Option<Completion> {
        let mut inner = self.0.lock().unwrap();
        if inner.in_flight.is_empty() {
            return None;
        }
        let count = inner.in_flight.len();
        let any = inner.random.random_range(0..count);
        let (ticket, call) = inner.in_flight.remove(any);
        let result = match call {
            Call::Open(room) => CompletionResult::Opened(Ok(inner.opened(&room))),
            Call::Read(room, query) => CompletionResult::Read(inner.read(&room, query)),
            Call::Append(room, offset) => {
                CompletionResult::Appended(inner.end_append(&room, offset))
            }
        };
        Some(Completion { ticket, result })
    }

    /// What a room's log holds that was ever reported done.
    pub fn entries(&self, room: &RoomId) -> Vec<Arc<Entry>> {
        let inner = self.0.lock().unwrap();
        let log = inner.logs.get(room);
        log.map(|log| {
            log.entries
                .iter()
                .map(|stored| Arc::clone(&stored.entry))
                .collect()
        })
        .unwrap_or_default()
    }
}

impl Inner {
    fn percent(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn later(&mut self, call: Call) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.in_flight.push((ticket, call));
        ticket
    }

    fn end_append(&mut self, room: &RoomId, offset: Offset) -> Result<(), JournalError> {
        let fail = self.faults.fail;
        let fails = self.percent(fail);
        let log = self.logs.get_mut(room).ok_or(JournalError::Storage)?;
        let index = log.index(offset).ok_or(JournalError::Storage)?;
        let later_is_reported = log.entries[index..].iter().any(|stored| stored.reported);
        if log.broken || (fails && !later_is_reported) {
            log.broken = true;
            return Err(JournalError::Storage);
        }
        log.entries[index].reported = true;
        let (epoch, op) = (log.epoch, log.entries[index].entry.op);
        self.reported.insert((room.clone(), epoch, offset), op);
        Ok(())
    }

    /// Everything in flight is settled first: what was reported, and all before it, is there; of the rest a part.
    fn opened(&mut self, room: &RoomId) -> Opened {
        let Some(log) = self.logs.get_mut(room) else {
            return Opened {
                epoch: Epoch(0),
                head: Offset(0),
                snapshot: None,
                recent: Vec::new(),
                registers: Vec::new(),
            };
        };
        let certain = log
            .entries
            .iter()
            .rposition(|stored| stored.reported)
            .map_or(0, |index| index + 1);
        let kept = self.random.random_range(certain..=log.entries.len());
        log.entries.truncate(kept);
        log.entries
            .iter_mut()
            .for_each(|stored| stored.reported = true);
        log.broken = false;
        let epoch = log.epoch;
        let certain = log.entries.iter().map(|stored| {
            let entry = &stored.entry;
            ((room.clone(), epoch, entry.offset), entry.op)
        });
        self.reported.extend(certain);
        self.in_flight
            .retain(|(_, call)| !matches!(call, Call::Append(of, _) if of == room));
        let recent = log
            .entries
            .iter()
            .map(|stored| Arc::clone(&stored.entry))
            .collect();
        Opened {
            epoch: log.epoch,
            head: log.head(),
            snapshot: log.snapshot.clone(),
            recent,
            registers: log
                .registers
                .iter()
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        }
    }

    fn read(&self, room: &RoomId, query: ReadQuery) -> Result<ReadPage, JournalError> {
        let log = self.logs.get(room).ok_or(JournalError::Storage)?;
        let first = log.trimmed.next();
        let entries = log.entries.iter().map(|stored| &stored.entry);
        let entries = match query.direction {
            Direction::Forward => {
                let wanted = entries
                    .filter(|entry| entry.offset > query.from && entry.offset <= query.until);
                wanted.take(query.entries_max).cloned().collect()
            }
            Direction::Backward => {
                let wanted = entries.rev().filter(|entry| entry.offset < query.from);
                let mut page: Vec<_> = wanted.take(query.entries_max).cloned().collect();
                page.reverse();
                page
            }
        };
        Ok(ReadPage { entries, first })
    }
}

impl Log {
    fn held_bytes(&self) -> usize {
        let entries = self.entries.iter().map(|stored| &stored.entry);
        entries
            .map(|entry| entry.payload.bytes.len() + ENTRY_OVERHEAD_BYTES)
            .sum()
    }

    fn head(&self) -> Offset {
        Offset(self.trimmed.0 + self.entries.len() as u64)
    }

    fn index(&self, offset: Offset) -> Option<usize> {
        self.entries
            .iter()
            .position(|stored| stored.entry.offset == offset)
    }
}

impl Journal for FaultyJournal {
    fn durability(&self) -> Durability {
        Durability::Memory
    }

    fn held_bytes(&self) -> usize {
        let inner = self.0.lock().unwrap();
        inner.logs.values().map(Log::held_bytes).sum()
    }

    fn held_by(&self, room: &RoomId) -> Held {
        let inner = self.0.lock().unwrap();
        let bytes = inner.logs.get(room).map_or(0, Log::held_bytes);
        Held {
            bytes,
            is_full: false,
        }
    }

    fn open(&mut self, room: &RoomId, bounds: HistoryBounds) -> Outcome<Opened> {
        let mut inner = self.0.lock().unwrap();
        let epoch = inner.next_epoch;
        inner.next_epoch.0 += 1;
        inner.logs.entry(room.clone()).or_insert_with(|| Log {
            epoch,
            bounds,
            snapshot: None,
            registers: BTreeMap::new(),
            entries: Vec::new(),
            trimmed: Offset(0),
            broken: false,
        });
        let late = inner.faults.late;
        if inner.percent(late) {
            return Outcome::Later(inner.later(Call::Open(room.clone())));
        }
        Outcome::Done(inner.opened(room))
    }

    fn set_bounds(&mut self, room: &RoomId, bounds: HistoryBounds) {
        if let Some(log) = self.0.lock().unwrap().logs.get_mut(room) {
            log.bounds = bounds;
        }
    }

    fn append(&mut self, room: &RoomId, expected: Offset, entry: &Arc<Entry>) -> Outcome<()> {
        let mut inner = self.0.lock().unwrap();
        let late = inner.faults.late;
        let is_late = inner.percent(late);
        let Some(log) = inner.logs.get_mut(room) else {
            return Outcome::Failed(JournalError::Storage);
        };
        if log.broken || log.head() != expected || entry.offset != expected.next() {
            return Outcome::Failed(JournalError::Conflict);
        }
        // An entry that is done at once is durable only if those before it are: they are done too, and will be reported late.
        let reported = !is_late;
        log.entries.push(Stored {
            entry: Arc::clone(entry),
            reported,
        });
        if is_late {
            return Outcome::Later(inner.later(Call::Append(room.clone(), entry.offset)));
        }
        let key = (room.clone(), log.epoch, entry.offset);
        inner.reported.insert(key, entry.op);
        Outcome::Done(())
    }

    fn snapshot(&mut self, room: &RoomId, snapshot: Snapshot) {
        if let Some(log) = self.0.lock().unwrap().logs.get_mut(room) {
            log.snapshot = Some(snapshot);
        }
    }

    fn register(&mut self, room: &RoomId, key: Bytes, value: Bytes) -> Outcome<()> {
        match self.0.lock().unwrap().logs.get_mut(room) {
            Some(log) => {
                log.registers.insert(key, value);
                Outcome::Done(())
            }
            None => Outcome::Failed(JournalError::Storage),
        }
    }

    fn wake_at(&mut self, _: &RoomId, _: Option<u64>) {}

    fn read(&mut self, room: &RoomId, query: ReadQuery) -> Outcome<ReadPage> {
        let mut inner = self.0.lock().unwrap();
        let late = inner.faults.late;
        if inner.percent(late) {
            return Outcome::Later(inner.later(Call::Read(room.clone(), query)));
        }
        match inner.read(room, query) {
            Ok(page) => Outcome::Done(page),
            Err(error) => Outcome::Failed(error),
        }
    }

    fn first(&self, room: &RoomId) -> Offset {
        let inner = self.0.lock().unwrap();
        inner
            .logs
            .get(room)
            .map_or(Offset(1), |log| log.trimmed.next())
    }

    fn trim(&mut self, room: &RoomId, now_ms: u64) -> Option<u64> {
        let mut inner = self.0.lock().unwrap();
        let log = inner.logs.get_mut(room)?;
        let replayed = log.snapshot.as_ref().map_or(Offset(0), |kept| kept.at);
        let pinned = |stored: &Stored| {
            stored.entry.kind != EntryKind::Publish && stored.entry.offset > replayed
        };
        while log.entries.len() > log.bounds.entries_max
            && !log.entries.first().is_some_and(pinned)
            && log.entries.first().is_some_and(|stored| stored.reported)
        {
            log.entries.remove(0);
            log.trimmed = log.trimmed.next();
        }
        Some(now_ms + 1000)
    }

    fn close(&mut self, room: &RoomId) {
        self.0.lock().unwrap().logs.remove(room);
    }
}
