//! What every journal does, whatever it keeps its logs in: one suite, run over each of them.

use std::sync::Arc;

use bytes::Bytes;
use roomful_protocol::frame::{Direction, Durability, Entry, EntryKind};
use roomful_protocol::id::{Offset, RoomId, RoomName, TenantId, UserId};
use roomful_protocol::payload::Payload;

use super::{
    CompletionResult, Health, HistoryBounds, Journal, JournalError, Opened, Outcome, RECENT_MAX,
    ReadPage, ReadQuery, Snapshot, Ticket,
};

/// A journal under test.
pub(super) trait Subject {
    fn journal(&mut self) -> &mut dyn Journal;

    /// Waits for the end of a call.
    fn wait(&mut self, ticket: Ticket) -> CompletionResult;
}

/// Makes a test of each rule, for a journal that an expression makes.
macro_rules! suite {
    ($make:expr) => {
        $crate::journal::conformance::suite! { @each $make,
            pages_go_both_ways
            a_page_ends_with_its_budget
            history_is_bounded_by_count
            history_is_bounded_by_bytes
            history_is_bounded_by_age
            an_append_that_does_not_follow_the_head_is_refused
            what_was_reported_is_there_after_a_failure
            rooms_have_nothing_to_do_with_each_other
            a_room_that_was_closed_is_what_its_durability_says
            what_no_snapshot_holds_is_not_trimmed
            an_open_shows_the_snapshot_and_all_behind_it
            an_open_shows_the_newest_entries_only
            registers_keep_their_last_value
        }
    };
    (@each $make:expr, $($rule:ident)*) => {
        $(#[test]
        fn $rule() {
            $crate::journal::conformance::$rule(&mut $make);
        })*
    };
}
pub(super) use suite;

pub(super) const LOOSE: HistoryBounds = HistoryBounds {
    entries_max: 10_000,
    bytes_max: 1 << 24,
    age_max_ms: 60_000,
};

pub(super) fn room(name: &str) -> RoomId {
    RoomId {
        tenant: TenantId::default_tenant(),
        name: RoomName::parse(format!("chat:{name}").as_bytes()).unwrap(),
    }
}

pub(super) fn entry(offset: u64, kind: EntryKind) -> Arc<Entry> {
    Arc::new(Entry {
        offset: Offset(offset),
        time_ms: offset * 1000,
        kind,
        user: UserId::parse("u").unwrap(),
        op: None,
        payload: Payload::binary(vec![7; 4]),
    })
}

/// Calls that end before they return.
pub(super) struct Calls<'a>(pub(super) &'a mut dyn Subject);

impl Calls<'_> {
    pub(super) fn journal(&mut self) -> &mut dyn Journal {
        self.0.journal()
    }

    fn end<T>(
        &mut self,
        outcome: Outcome<T>,
        of: impl FnOnce(CompletionResult) -> Option<Result<T, JournalError>>,
    ) -> Result<T, JournalError> {
        match outcome {
            Outcome::Done(value) => Ok(value),
            Outcome::Failed(error) => Err(error),
            Outcome::Later(ticket) => of(self.0.wait(ticket)).expect("the end of this call"),
        }
    }

    pub(super) fn open(&mut self, room: &RoomId, bounds: HistoryBounds) -> Opened {
        let outcome = self.journal().open(room, bounds);
        let opened = self.end(outcome, |result| match result {
            CompletionResult::Opened(opened) => Some(opened),
            _ => None,
        });
        opened.unwrap()
    }

    pub(super) fn append(&mut self, room: &RoomId, entry: &Arc<Entry>) -> Result<(), JournalError> {
        let expected = Offset(entry.offset.0 - 1);
        let outcome = self.journal().append(room, expected, entry);
        self.stored(outcome)
    }

    pub(super) fn stored(&mut self, outcome: Outcome<()>) -> Result<(), JournalError> {
        self.end(outcome, |result| match result {
            CompletionResult::Appended(stored) => Some(stored),
            _ => None,
        })
    }

    /// Appends many without waiting for each.
    pub(super) fn fill(&mut self, room: &RoomId, offsets: std::ops::RangeInclusive<u64>) {
        let mut outcomes = Vec::new();
        for offset in offsets {
            let entry = entry(offset, EntryKind::Publish);
            let expected = Offset(offset - 1);
            outcomes.push(self.journal().append(room, expected, &entry));
        }
        for outcome in outcomes {
            self.stored(outcome).unwrap();
        }
    }

    pub(super) fn read(&mut self, room: &RoomId, query: ReadQuery) -> ReadPage {
        let outcome = self.journal().read(room, query);
        let page = self.end(outcome, |result| match result {
            CompletionResult::Read(page) => Some(page),
            _ => None,
        });
        page.unwrap()
    }

    pub(super) fn offsets(
        &mut self,
        room: &RoomId,
        from: u64,
        direction: Direction,
        max: usize,
    ) -> Vec<u64> {
        let page = self.read(room, query(from, direction, max));
        assert_eq!(page.first, self.journal().first(room));
        offsets(&page.entries)
    }

    pub(super) fn all(&mut self, room: &RoomId) -> Vec<u64> {
        self.offsets(room, 0, Direction::Forward, 100_000)
    }
}

fn query(from: u64, direction: Direction, entries_max: usize) -> ReadQuery {
    ReadQuery {
        from: Offset(from),
        until: Offset(u64::MAX),
        direction,
        entries_max,
        bytes_max: 1 << 24,
    }
}

pub(super) fn offsets(entries: &[Arc<Entry>]) -> Vec<u64> {
    entries.iter().map(|entry| entry.offset.0).collect()
}

fn filled<'a>(subject: &'a mut dyn Subject, bounds: HistoryBounds, entries: u64) -> Calls<'a> {
    let mut calls = Calls(subject);
    let opened = calls.open(&room("a"), bounds);
    assert_eq!((opened.head, opened.recent.len()), (Offset(0), 0));
    assert_eq!(calls.journal().health(), Health::Good);
    calls.fill(&room("a"), 1..=entries);
    calls
}

pub(super) fn pages_go_both_ways(subject: &mut dyn Subject) {
    let mut calls = filled(subject, LOOSE, 9);
    let id = room("a");
    for (from, direction, max, expected) in [
        (0, Direction::Forward, 3, vec![1, 2, 3]),
        (3, Direction::Forward, 99, vec![4, 5, 6, 7, 8, 9]),
        (9, Direction::Forward, 3, vec![]),
        (10, Direction::Backward, 3, vec![7, 8, 9]),
        (3, Direction::Backward, 99, vec![1, 2]),
        (1, Direction::Backward, 99, vec![]),
        (99, Direction::Backward, 2, vec![8, 9]),
    ] {
        let found = calls.offsets(&id, from, direction, max);
        assert_eq!(found, expected, "{direction:?} from {from}");
    }
    let until = ReadQuery {
        until: Offset(6),
        ..query(2, Direction::Forward, 99)
    };
    let page = calls.read(&id, until);
    assert_eq!(offsets(&page.entries), [3, 4, 5, 6]);
    let read = &page.entries[0];
    assert_eq!(**read, *entry(3, EntryKind::Publish));
}

pub(super) fn a_page_ends_with_its_budget(subject: &mut dyn Subject) {
    let mut calls = filled(subject, LOOSE, 9);
    for (direction, from) in [(Direction::Forward, 0), (Direction::Backward, 10)] {
        let one = ReadQuery {
            bytes_max: 1,
            ..query(from, direction, 99)
        };
        assert_eq!(calls.read(&room("a"), one).entries.len(), 1);
    }
}

pub(super) fn history_is_bounded_by_count(subject: &mut dyn Subject) {
    let bounds = HistoryBounds {
        entries_max: 4,
        ..LOOSE
    };
    let mut calls = filled(subject, bounds, 9);
    assert_eq!(calls.all(&room("a")), [6, 7, 8, 9]);
    assert_eq!(
        calls.offsets(&room("a"), 7, Direction::Backward, 9),
        [6],
        "what was trimmed is not read backwards either"
    );
    calls.journal().set_bounds(&room("a"), LOOSE);
    calls.fill(&room("a"), 10..=12);
    assert_eq!(calls.all(&room("a")), [6, 7, 8, 9, 10, 11, 12]);
}

pub(super) fn history_is_bounded_by_bytes(subject: &mut dyn Subject) {
    let bounds = HistoryBounds {
        bytes_max: 250,
        ..LOOSE
    };
    let mut calls = filled(subject, bounds, 9);
    assert_eq!(calls.all(&room("a")), [8, 9]);
}

pub(super) fn history_is_bounded_by_age(subject: &mut dyn Subject) {
    let bounds = HistoryBounds {
        age_max_ms: 3000,
        ..LOOSE
    };
    let mut calls = filled(subject, bounds, 9);
    assert_eq!(calls.journal().trim(&room("a"), 10_000), Some(11_000));
    assert_eq!(calls.all(&room("a")), [8, 9]);
    assert_eq!(calls.journal().trim(&room("a"), 99_000), None);
    assert_eq!(calls.all(&room("a")), [0; 0]);
    assert_eq!(calls.journal().first(&room("a")), Offset(10));
    calls.fill(&room("a"), 10..=10);
    assert_eq!(calls.all(&room("a")), [10]);
}

pub(super) fn an_append_that_does_not_follow_the_head_is_refused(subject: &mut dyn Subject) {
    let mut calls = filled(subject, LOOSE, 2);
    let id = room("a");
    for offset in [1, 2, 4] {
        let refused = calls.append(&id, &entry(offset, EntryKind::Publish));
        assert_eq!(refused, Err(JournalError::Conflict), "{offset}");
    }
    let outcome = calls
        .journal()
        .append(&id, Offset(2), &entry(4, EntryKind::Publish));
    assert_eq!(calls.stored(outcome), Err(JournalError::Conflict));
    calls.append(&id, &entry(3, EntryKind::Publish)).unwrap();
    assert_eq!(calls.all(&id), [1, 2, 3]);
}

pub(super) fn what_was_reported_is_there_after_a_failure(subject: &mut dyn Subject) {
    let mut calls = filled(subject, LOOSE, 3);
    let id = room("a");
    let refused = calls.append(&id, &entry(9, EntryKind::Publish));
    assert_eq!(refused, Err(JournalError::Conflict));
    let opened = calls.open(&id, LOOSE);
    assert_eq!(opened.head, Offset(3));
    assert_eq!(offsets(&opened.recent), [1, 2, 3]);
    // What is still on its way when the room is opened again is there too.
    let late = calls
        .journal()
        .append(&id, Offset(3), &entry(4, EntryKind::Publish));
    let opened = calls.open(&id, LOOSE);
    assert_eq!(opened.head, Offset(4));
    calls.stored(late).unwrap();
    calls.append(&id, &entry(5, EntryKind::Publish)).unwrap();
    assert_eq!(calls.all(&id), [1, 2, 3, 4, 5]);
}

pub(super) fn rooms_have_nothing_to_do_with_each_other(subject: &mut dyn Subject) {
    let mut calls = Calls(subject);
    let ids: Vec<_> = (0..5).map(|number| room(&number.to_string())).collect();
    for id in &ids {
        calls.open(id, LOOSE);
    }
    for offset in 1..=20 {
        for id in &ids {
            calls
                .append(id, &entry(offset, EntryKind::Publish))
                .unwrap();
        }
    }
    for id in &ids {
        assert_eq!(calls.all(id), (1..=20).collect::<Vec<_>>());
    }
}

pub(super) fn a_room_that_was_closed_is_what_its_durability_says(subject: &mut dyn Subject) {
    let mut calls = filled(subject, LOOSE, 2);
    let id = room("a");
    let before = calls.open(&id, LOOSE);
    calls.journal().close(&id);
    let after = calls.open(&id, LOOSE);
    match calls.journal().durability() {
        Durability::Memory => {
            assert!(after.epoch > before.epoch);
            assert_eq!((after.head, after.recent.len()), (Offset(0), 0));
        }
        Durability::Local | Durability::Replicated => {
            assert_eq!((after.epoch, after.head), (before.epoch, before.head));
            assert_eq!(offsets(&after.recent), [1, 2]);
        }
    }
    let next = after.head.0 + 1;
    calls.append(&id, &entry(next, EntryKind::Publish)).unwrap();
}

pub(super) fn what_no_snapshot_holds_is_not_trimmed(subject: &mut dyn Subject) {
    let bounds = HistoryBounds {
        entries_max: 4,
        ..LOOSE
    };
    let mut calls = filled(subject, bounds, 2);
    let id = room("a");
    calls.append(&id, &entry(3, EntryKind::State)).unwrap();
    calls.fill(&id, 4..=12);
    assert_eq!(calls.all(&id), (3..=12).collect::<Vec<_>>());
    calls.journal().trim(&id, 99_000_000);
    assert_eq!(calls.all(&id), (3..=12).collect::<Vec<_>>());
    let content = Bytes::from_static(b"three");
    let snapshot = Snapshot {
        at: Offset(3),
        content,
    };
    calls.journal().snapshot(&id, snapshot);
    // The second finds the snapshot stored.
    calls.append(&id, &entry(13, EntryKind::Publish)).unwrap();
    calls.append(&id, &entry(14, EntryKind::Publish)).unwrap();
    assert_eq!(calls.all(&id), [11, 12, 13, 14]);
}

pub(super) fn an_open_shows_the_snapshot_and_all_behind_it(subject: &mut dyn Subject) {
    let behind = RECENT_MAX as u64 + 100;
    let mut calls = filled(subject, LOOSE, 5);
    let id = room("a");
    for (at, text) in [(3, "older"), (5, "newer")] {
        let content = Bytes::from_static(text.as_bytes());
        let at = Offset(at);
        calls.journal().snapshot(&id, Snapshot { at, content });
    }
    calls.append(&id, &entry(6, EntryKind::State)).unwrap();
    calls.fill(&id, 7..=behind);
    let opened = calls.open(&id, LOOSE);
    assert_eq!(
        opened.snapshot,
        Some(Snapshot {
            at: Offset(5),
            content: Bytes::from_static(b"newer")
        })
    );
    assert_eq!(offsets(&opened.recent), (6..=behind).collect::<Vec<_>>());
    assert_eq!(opened.recent[0].kind, EntryKind::State);
}

pub(super) fn an_open_shows_the_newest_entries_only(subject: &mut dyn Subject) {
    let head = RECENT_MAX as u64 + 50;
    let mut calls = filled(subject, LOOSE, head);
    let opened = calls.open(&room("a"), LOOSE);
    assert_eq!(offsets(&opened.recent), (51..=head).collect::<Vec<_>>());
    assert_eq!(opened.snapshot, None);
}

pub(super) fn registers_keep_their_last_value(subject: &mut dyn Subject) {
    let mut calls = filled(subject, LOOSE, 1);
    let id = room("a");
    for (key, value) in [
        ("b", "1"),
        ("a", "2"),
        ("c", "1"),
        ("b", "3"),
        ("c", ""),
        ("d", ""),
    ] {
        let (key, value) = (Bytes::from(key), Bytes::from(value));
        let outcome = calls.journal().register(&id, key, value);
        calls.stored(outcome).unwrap();
    }
    let opened = calls.open(&id, LOOSE);
    let expected = [("a", "2"), ("b", "3")];
    let expected = expected.map(|(key, value)| (Bytes::from(key), Bytes::from(value)));
    assert_eq!(opened.registers, expected);
}
