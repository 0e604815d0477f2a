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
        self.bytes += key.len() + value.len() + REGISTER_BYTES;
        let key_bytes = key.len();
        if let Some(before) = self.registers.insert(key, value) {
            self.bytes -= key_bytes + before.len() + REGISTER_BYTES;
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
const ENTRY_BYTES: usize = 288;

fn cost(entry: &Entry) -> usize {
    entry.payload.bytes.len() + ENTRY_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use roomful_protocol::frame::EntryKind;
    use roomful_protocol::id::{RoomName, TenantId, UserId};
    use roomful_protocol::payload::Payload;

    use super::*;

    fn room() -> RoomId {
        RoomId {
            tenant: TenantId::default_tenant(),
            name: RoomName::parse(b"chat:a").unwrap(),
        }
    }

    fn entry(offset: u64) -> Entry {
        Entry {
            offset: Offset(offset),
            time_ms: offset * 1000,
            kind: EntryKind::Publish,
            user: UserId::parse("u").unwrap(),
            op: None,
            payload: Payload::binary(vec![0; 4]),
        }
    }

    fn filled(bounds: HistoryBounds, entries: u64) -> MemoryJournal {
        let mut journal = MemoryJournal::new(Epoch(5));
        assert!(matches!(
            journal.open(&room(), bounds),
            Outcome::Done(Opened {
                epoch: Epoch(5),
                ..
            })
        ));
        for offset in 1..=entries {
            assert!(matches!(
                journal.append(&room(), Offset(offset - 1), &Arc::new(entry(offset))),
                Outcome::Done(())
            ));
        }
        journal
    }

    fn read(
        journal: &mut MemoryJournal,
        from: u64,
        direction: Direction,
        entries_max: usize,
    ) -> (Vec<u64>, u64) {
        let query = ReadQuery {
            from: Offset(from),
            until: Offset(99),
            direction,
            entries_max,
            bytes_max: 1 << 20,
        };
        let Outcome::Done(page) = journal.read(&room(), query) else {
            panic!("memory answers at once")
        };
        (
            page.entries.iter().map(|entry| entry.offset.0).collect(),
            page.first.0,
        )
    }

    const LOOSE: HistoryBounds = HistoryBounds {
        entries_max: 100,
        bytes_max: 1 << 20,
        age_max_ms: 60_000,
    };

    #[test]
    fn pages_go_both_ways() {
        let mut journal = filled(LOOSE, 9);
        assert_eq!(
            read(&mut journal, 0, Direction::Forward, 3),
            (vec![1, 2, 3], 1)
        );
        assert_eq!(
            read(&mut journal, 3, Direction::Forward, 99),
            (vec![4, 5, 6, 7, 8, 9], 1)
        );
        assert_eq!(read(&mut journal, 9, Direction::Forward, 3), (vec![], 1));
        assert_eq!(
            read(&mut journal, 10, Direction::Backward, 3),
            (vec![7, 8, 9], 1)
        );
        assert_eq!(
            read(&mut journal, 3, Direction::Backward, 99),
            (vec![1, 2], 1)
        );
    }

    #[test]
    fn history_is_bounded_by_count_bytes_and_age() {
        let mut journal = filled(
            HistoryBounds {
                entries_max: 4,
                ..LOOSE
            },
            9,
        );
        assert_eq!(
            read(&mut journal, 0, Direction::Forward, 99),
            (vec![6, 7, 8, 9], 6)
        );
        let mut journal = filled(
            HistoryBounds {
                bytes_max: 250,
                ..LOOSE
            },
            9,
        );
        assert_eq!(
            read(&mut journal, 0, Direction::Forward, 99),
            (vec![8, 9], 8)
        );
        let mut journal = filled(
            HistoryBounds {
                age_max_ms: 3000,
                ..LOOSE
            },
            9,
        );
        assert_eq!(journal.trim(&room(), 10_000), Some(11_000));
        assert_eq!(
            read(&mut journal, 0, Direction::Forward, 99),
            (vec![8, 9], 8)
        );
        assert_eq!(journal.trim(&room(), 99_000), None);
        assert_eq!(read(&mut journal, 0, Direction::Forward, 99), (vec![], 10));
    }

    #[test]
    fn an_append_that_does_not_follow_the_head_is_refused() {
        let mut journal = filled(LOOSE, 2);
        let refused = journal.append(&room(), Offset(1), &Arc::new(entry(2)));
        assert!(matches!(refused, Outcome::Failed(JournalError::Conflict)));
    }

    #[test]
    fn a_room_that_was_closed_begins_a_later_epoch() {
        let mut journal = filled(LOOSE, 2);
        journal.close(&room());
        let Outcome::Done(opened) = journal.open(&room(), LOOSE) else {
            panic!("memory answers at once")
        };
        assert_eq!((opened.epoch, opened.head), (Epoch(6), Offset(0)));
    }

    /// What only a replay makes sense of stays, with what follows it, until there is a snapshot behind it.
    #[test]
    fn nothing_is_dropped_that_a_replay_needs() {
        let tight = HistoryBounds {
            entries_max: 2,
            bytes_max: 1 << 20,
            age_max_ms: 60_000,
        };
        let mut journal = filled(tight, 3);
        let state = Entry {
            kind: EntryKind::State,
            ..entry(4)
        };
        assert!(matches!(
            journal.append(&room(), Offset(3), &Arc::new(state)),
            Outcome::Done(())
        ));
        for offset in 5..=8 {
            let entry = Arc::new(entry(offset));
            journal.append(&room(), Offset(offset - 1), &entry);
        }
        assert_eq!(journal.first(&room()), Offset(4));
        journal.trim(&room(), 1_000_000);
        assert_eq!(journal.first(&room()), Offset(4));

        let held = journal.held_bytes();
        let snapshot = Snapshot {
            at: Offset(6),
            content: Bytes::from_static(b"as it was"),
        };
        journal.snapshot(&room(), snapshot.clone());
        assert_eq!(journal.first(&room()), Offset(7));
        assert!(journal.held_bytes() < held);
        journal.register(&room(), "b".into(), "1".into());
        journal.register(&room(), "a".into(), "2".into());
        journal.register(&room(), "b".into(), "3".into());
        let Outcome::Done(opened) = journal.open(&room(), tight) else {
            panic!("memory answers at once")
        };
        assert_eq!(opened.snapshot, Some(snapshot));
        assert_eq!(opened.recent.len(), 2);
        let registers = [("a".into(), "2".into()), ("b".into(), "3".into())];
        assert_eq!(opened.registers, registers);
        journal.close(&room());
        assert_eq!(journal.held_bytes(), 0);
    }
}
