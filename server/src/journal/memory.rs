//! The journal that keeps its rooms in memory: gone with the process, and therefore with a new epoch in every process.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use roomful_protocol::frame::{Direction, Durability, Entry, EntryKind};
use roomful_protocol::id::{Epoch, Offset, RoomId};

use super::{
    ENTRY_OVERHEAD_BYTES, Held, HistoryBounds, Journal, JournalError, Opened, Outcome, RECENT_MAX,
    ReadPage, ReadQuery, Snapshot,
};

/// Logs in memory.
#[derive(Debug)]
pub struct MemoryJournal {
    logs: HashMap<RoomId, Log>,
    /// What all of them hold.
    bytes: usize,
    /// The epoch of the next log. Starts above every epoch of earlier processes, so that a room's epochs only grow.
    next_epoch: Epoch,
}

#[derive(Debug)]
struct Log {
    epoch: Epoch,
    head: Offset,
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    bounds: HistoryBounds,
    /// What only rooms with more than a log have.
    extras: Option<Box<Extras>>,
}

/// What a room keeps beside its entries.
#[derive(Debug, Default)]
struct Extras {
    snapshot: Option<Snapshot>,
    /// The first entry behind the snapshot that a replay needs: it stays, with all that follows it.
    pinned: Option<Offset>,
    registers: BTreeMap<Bytes, Bytes>,
    /// What the snapshot and the registers hold.
    bytes: usize,
}

impl MemoryJournal {
    /// An empty one. `first_epoch` is greater than any epoch that an earlier process gave to a room.
    #[must_use]
    pub fn new(first_epoch: Epoch) -> Self {
        Self {
            logs: HashMap::new(),
            bytes: 0,
            next_epoch: first_epoch,
        }
    }
}

impl Journal for MemoryJournal {
    fn durability(&self) -> Durability {
        Durability::Memory
    }

    fn open(&mut self, room: &RoomId, bounds: HistoryBounds) -> Outcome<Opened> {
        let next_epoch = &mut self.next_epoch;
        let log = self.logs.entry(room.clone()).or_insert_with(|| {
            let epoch = *next_epoch;
            next_epoch.0 += 1;
            Log {
                epoch,
                head: Offset(0),
                entries: VecDeque::new(),
                bytes: 0,
                bounds,
                extras: None,
            }
        });
        Outcome::Done(log.opened())
    }

    fn append(&mut self, room: &RoomId, expected: Offset, entry: &Arc<Entry>) -> Outcome<()> {
        match self.logs.get_mut(room) {
            Some(log) if log.head == expected && entry.offset == expected.next() => {
                let before = log.held_bytes();
                log.push(entry);
                self.bytes += log.held_bytes();
                self.bytes -= before;
                Outcome::Done(())
            }
            _ => Outcome::Failed(JournalError::Conflict),
        }
    }

    fn snapshot(&mut self, room: &RoomId, snapshot: Snapshot) {
        let Some(log) = self.logs.get_mut(room) else {
            return;
        };
        let before = log.held_bytes();
        let pinned = log.first_to_replay(snapshot.at);
        let extras = log.extras.get_or_insert_default();
        extras.keep(snapshot);
        extras.pinned = pinned;
        log.keep_bounds();
        self.bytes += log.held_bytes();
        self.bytes -= before;
    }

    fn register(&mut self, room: &RoomId, key: Bytes, value: Bytes) -> Outcome<()> {
        let Some(log) = self.logs.get_mut(room) else {
            return Outcome::Failed(JournalError::Storage);
        };
        let before = log.held_bytes();
        log.extras.get_or_insert_default().set(key, value);
        self.bytes += log.held_bytes();
        self.bytes -= before;
        Outcome::Done(())
    }

    /// A room in memory that has to be looked at stays open: there is nothing to open it from.
    fn wake_at(&mut self, _: &RoomId, _: Option<u64>) {}

    fn read(&mut self, room: &RoomId, query: ReadQuery) -> Outcome<ReadPage> {
        match self.logs.get(room) {
            Some(log) => Outcome::Done(log.read(query)),
            None => Outcome::Failed(JournalError::Storage),
        }
    }

    fn first(&self, room: &RoomId) -> Offset {
        self.logs.get(room).map_or(Offset(1), Log::first)
    }

    fn set_bounds(&mut self, room: &RoomId, bounds: HistoryBounds) {
        if let Some(log) = self.logs.get_mut(room) {
            log.bounds = bounds;
        }
    }

    fn trim(&mut self, room: &RoomId, now_ms: u64) -> Option<u64> {
        let log = self.logs.get_mut(room)?;
        let before = log.held_bytes();
        while log
            .droppable()
            .is_some_and(|entry| entry.time_ms + log.bounds.age_max_ms <= now_ms)
        {
            log.pop();
        }
        self.bytes -= before - log.held_bytes();
        log.droppable()
            .map(|entry| entry.time_ms + log.bounds.age_max_ms)
    }

    fn close(&mut self, room: &RoomId) {
        let log = self.logs.remove(room);
        self.bytes -= log.map_or(0, |log| log.held_bytes());
    }

    fn held_bytes(&self) -> usize {
        self.bytes
    }

    fn held_by(&self, room: &RoomId) -> Held {
        self.logs.get(room).map_or_else(Held::default, |log| Held {
            bytes: log.held_bytes(),
            is_full: log.is_full(),
        })
    }
}

impl Log {
    fn push(&mut self, entry: &Arc<Entry>) {
        self.head = entry.offset;
        self.bytes += cost(entry);
        self.entries.push_back(Arc::clone(entry));
        if entry.kind != EntryKind::Publish {
            let extras = self.extras.get_or_insert_default();
            extras.pinned = extras.pinned.or(Some(entry.offset));
        }
        self.keep_bounds();
    }

    /// Drops what is beyond the bounds.
    fn keep_bounds(&mut self) {
        // The newest entry stays even where it alone is over the bound: it was acknowledged.
        while self.entries.len() > 1
            && (self.entries.len() > self.bounds.entries_max || self.bytes > self.bounds.bytes_max)
            && self.droppable().is_some()
        {
            self.pop();
        }
    }

    /// The oldest entry, unless a replay needs it.
    fn droppable(&self) -> Option<&Arc<Entry>> {
        let pinned = self.extras.as_ref().and_then(|extras| extras.pinned);
        let oldest = self.entries.front()?;
        pinned
            .is_none_or(|pinned| oldest.offset < pinned)
            .then_some(oldest)
    }

    /// The first entry behind an offset that only a replay makes sense of.
    fn first_to_replay(&self, after: Offset) -> Option<Offset> {
        let behind = self.entries.iter().filter(|entry| entry.offset > after);
        behind
            .filter(|entry| entry.kind != EntryKind::Publish)
            .map(|entry| entry.offset)
            .next()
    }

    fn opened(&self) -> Opened {
        let extras = self.extras.as_deref();
        let snapshot = extras.and_then(|extras| extras.snapshot.clone());
        let replayed = snapshot
            .as_ref()
            .map_or(Offset(0), |snapshot| snapshot.at)
            .next();
        let newest = Offset((self.head.0 + 1).saturating_sub(RECENT_MAX as u64));
        let from = match extras {
            Some(_) => newest.min(replayed),
            None => newest,
        };
        Opened {
            epoch: self.epoch,
            head: self.head,
            recent: self
                .entries
                .iter()
                .filter(|entry| entry.offset >= from)
                .cloned()
                .collect(),
            registers: extras
                .map(|extras| {
                    let registers = extras.registers.iter();
                    registers
                        .map(|(key, value)| (key.clone(), value.clone()))
                        .collect()
                })
                .unwrap_or_default(),
            snapshot,
        }
    }

    fn pop(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= cost(&entry);
        }
    }

    /// What it takes in memory, which is more than what it is charged.
    fn held_bytes(&self) -> usize {
        let extras = self
            .extras
            .as_ref()
            .map_or(0, |extras| size_of::<Extras>() + extras.bytes);
        self.bytes + self.entries.len() * (ENTRY_BYTES - ENTRY_OVERHEAD_BYTES) + extras
    }

    /// Whether another entry takes the place of older ones.
    fn is_full(&self) -> bool {
        self.entries.len() >= self.bounds.entries_max || self.bytes >= self.bounds.bytes_max / 8 * 7
    }

    fn first(&self) -> Offset {
        self.entries
            .front()
            .map_or(self.head.next(), |entry| entry.offset)
    }

    fn read(&self, query: ReadQuery) -> ReadPage {
        let first = self.first();
        let index_of = |offset: Offset| {
            usize::try_from(offset.0.saturating_sub(first.0)).unwrap_or(usize::MAX)
        };
        let mut budget = Budget {
            entries: query.entries_max,
            bytes: query.bytes_max,
        };
        let entries = match query.direction {
            Direction::Forward => {
                let start = index_of(query.from.next()).min(self.entries.len());
                let wanted = self
                    .entries
                    .range(start..)
                    .take_while(|entry| entry.offset <= query.until);
                wanted
                    .take_while(|entry| budget.take(entry))
                    .cloned()
                    .collect()
            }
            Direction::Backward => {
                let end = index_of(query.from).min(self.entries.len());
                let wanted = self.entries.range(..end).rev();
                let mut entries: Vec<_> = wanted
                    .take_while(|entry| budget.take(entry))
                    .cloned()
                    .collect();
                entries.reverse();
                entries
            }
        };
        ReadPage { entries, first }
    }
}

impl Extras {
    fn keep(&mut self, snapshot: Snapshot) {
        self.bytes += snapshot.content.len();
        let before = self.snapshot.replace(snapshot);
        self.bytes -= before.map_or(0, |before| before.content.len());
    }

    fn set(&mut self, key: Bytes, value: Bytes) {
        if let Some(before) = self.registers.remove(&key) {
            self.bytes -= key.len() + before.len() + REGISTER_BYTES;
        }
        if !value.is_empty() {
            self.bytes += key.len() + value.len() + REGISTER_BYTES;
            self.registers.insert(key, value);
        }
    }
}

/// What a register takes beside its key and value.
const REGISTER_BYTES: usize = 96;

/// What is left of a page; the first entry always fits.
struct Budget {
    entries: usize,
    bytes: usize,
}

impl Budget {
    fn take(&mut self, entry: &Entry) -> bool {
        let fits = self.entries > 0 && self.bytes > 0;
        if fits {
            self.entries -= 1;
            self.bytes = self.bytes.saturating_sub(cost(entry));
        }
        fits
    }
}

/// What an entry takes in memory beside its payload, with the allocator's part.
pub(crate) const ENTRY_BYTES: usize = 288;

fn cost(entry: &Entry) -> usize {
    entry.payload.bytes.len() + ENTRY_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::conformance::{self, LOOSE, Subject, entry, room};
    use crate::journal::{CompletionResult, Ticket};

    impl Subject for MemoryJournal {
        fn journal(&mut self) -> &mut dyn Journal {
            self
        }

        fn wait(&mut self, _: Ticket) -> CompletionResult {
            panic!("memory answers at once")
        }
    }

    conformance::suite!(MemoryJournal::new(Epoch(5)));

    /// What rooms hold is what is left of them, and nothing once they are closed.
    #[test]
    fn what_is_held_is_counted() {
        let mut journal = MemoryJournal::new(Epoch(5));
        let id = room("a");
        journal.open(&id, LOOSE);
        for offset in 1..=3 {
            journal.append(&id, Offset(offset - 1), &entry(offset, EntryKind::State));
        }
        let bounds = HistoryBounds {
            entries_max: 1,
            ..LOOSE
        };
        journal.set_bounds(&id, bounds);
        let held = journal.held_bytes();
        journal.snapshot(
            &id,
            Snapshot {
                at: Offset(2),
                content: Bytes::from_static(b"as it was"),
            },
        );
        assert_eq!(journal.first(&id), Offset(3));
        assert!(journal.held_bytes() < held);
        journal.register(&id, "b".into(), "1".into());
        assert!(journal.held_by(&id).is_full);
        journal.close(&id);
        assert_eq!(journal.held_bytes(), 0);
    }
}
