//! The journal that keeps its rooms in memory: gone with the process, and therefore with a new epoch in every process.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use roomful_protocol::frame::{Direction, Durability, Entry};
use roomful_protocol::id::{Epoch, Offset, RoomId};

use super::{
    ENTRY_OVERHEAD_BYTES, Held, HistoryBounds, Journal, JournalError, Opened, Outcome, RECENT_MAX,
    ReadPage, ReadQuery,
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
            }
        });
        let skipped = log.entries.len().saturating_sub(RECENT_MAX);
        let recent = log.entries.iter().skip(skipped).cloned().collect();
        Outcome::Done(Opened {
            epoch: log.epoch,
            head: log.head,
            recent,
        })
    }

    fn append(&mut self, room: &RoomId, expected: Offset, entry: &Entry) -> Outcome<()> {
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
            .entries
            .front()
            .is_some_and(|entry| entry.time_ms + log.bounds.age_max_ms <= now_ms)
        {
            log.pop();
        }
        self.bytes -= before - log.held_bytes();
        log.entries
            .front()
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
    fn push(&mut self, entry: &Entry) {
        self.head = entry.offset;
        self.bytes += cost(entry);
        self.entries.push_back(Arc::new(entry.clone()));
        // The newest entry stays even where it alone is over the bound: it was acknowledged.
        while self.entries.len() > 1
            && (self.entries.len() > self.bounds.entries_max || self.bytes > self.bounds.bytes_max)
        {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= cost(&entry);
        }
    }

    /// What it takes in memory, which is more than what it is charged.
    fn held_bytes(&self) -> usize {
        self.bytes + self.entries.len() * (ENTRY_BYTES - ENTRY_OVERHEAD_BYTES)
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
                journal.append(&room(), Offset(offset - 1), &entry(offset)),
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
        let refused = journal.append(&room(), Offset(1), &entry(2));
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
}
