//! How much of a log is kept, without a look at its entries: a coarse account of their bytes and times.
//!
//! A mark stands for some entries that follow each other, so a log of any length has at most [`MARKS_MAX`]. Entries are
//! dropped by whole marks: what is kept is never more than the bounds allow, and little less.

use std::collections::VecDeque;

use roomful_protocol::id::Offset;
use serde::{Deserialize, Serialize};

use crate::journal::HistoryBounds;

/// The account of one log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marks {
    marks: VecDeque<Mark>,
    entries: u64,
    bytes: u64,
}

/// Entries that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    /// The last of them.
    last: u64,
    /// The last of them that stays until a snapshot holds it; 0 for none.
    pinned: u64,
    entries: u64,
    bytes: u64,
    /// The times of the first and of the last, in milliseconds since 1970.
    times_ms: (u64, u64),
}

/// An entry, as the account sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    pub(super) offset: Offset,
    pub(super) bytes: u64,
    pub(super) time_ms: u64,
    pub(super) is_pinned: bool,
}

/// Entries that are kept, of one log or of many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) entries: u64,
    /// Of their records.
    pub(super) bytes: u64,
}

impl Kept {
    /// With others.
    pub(super) fn add(&mut self, other: Self) {
        self.entries += other.entries;
        self.bytes += other.bytes;
    }

    /// Without some of them.
    pub(super) fn remove(&mut self, other: Self) {
        self.entries = self.entries.saturating_sub(other.entries);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }
}

/// A log that has so many puts its neighbours together.
const MARKS_MAX: usize = 128;

/// A new entry joins the last mark while that stands for at most this part of what is there.
const PARTS: u64 = 64;

impl Marks {
    /// Another entry.
    pub(super) fn push(&mut self, entry: Counted) {
        let Counted {
            offset,
            bytes,
            time_ms,
            is_pinned,
        } = entry;
        let mark = Mark {
            last: offset.0,
            pinned: if is_pinned { offset.0 } else { 0 },
            entries: 1,
            bytes,
            times_ms: (time_ms, time_ms),
        };
        let began_ms = self.marks.front().map_or(time_ms, |mark| mark.times_ms.0);
        let span_ms = time_ms.saturating_sub(began_ms);
        match self.marks.back_mut() {
            Some(last)
                if last.entries < self.entries / PARTS
                    && last.bytes + bytes <= self.bytes / PARTS
                    && time_ms.saturating_sub(last.times_ms.0) <= span_ms / PARTS =>
            {
                last.take(&mark);
            }
            _ => self.marks.push_back(mark),
        }
        self.entries += 1;
        self.bytes += bytes;
        if self.marks.len() > MARKS_MAX {
            self.halve();
        }
    }

    fn halve(&mut self) {
        let mut halved = VecDeque::with_capacity(MARKS_MAX / 2 + 1);
        let mut marks = self.marks.drain(..);
        while let Some(mut mark) = marks.next() {
            if let Some(next) = marks.next() {
                mark.take(&next);
            }
            halved.push_back(mark);
        }
        drop(marks);
        self.marks = halved;
    }

    /// Drops what is beyond the bounds, but nothing that a snapshot at `held` doesn't hold; gives what is the oldest then,
    /// where something was dropped. The newest entry stays even where it alone is over a bound: it was acknowledged.
    pub(super) fn trim(
        &mut self,
        bounds: HistoryBounds,
        now_ms: u64,
        held: Offset,
    ) -> Option<Offset> {
        let mut first = None;
        while let Some(mark) = self.marks.front().copied() {
            let is_over =
                self.entries > bounds.entries_max as u64 || self.bytes > bounds.bytes_max as u64;
            let is_old = mark.times_ms.1.saturating_add(bounds.age_max_ms) <= now_ms;
            let is_free = mark.pinned <= held.0;
            if !is_free || !(is_old || is_over && self.marks.len() > 1) {
                break;
            }
            self.pop();
            first = Some(Offset(mark.last + 1));
        }
        first
    }

    /// Drops what is before an offset.
    pub(super) fn drop_before(&mut self, first: Offset) {
        while self.marks.front().is_some_and(|mark| mark.last < first.0) {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(mark) = self.marks.pop_front() {
            self.entries -= mark.entries;
            self.bytes -= mark.bytes;
        }
    }

    /// When the oldest of them is too old, in milliseconds since 1970; none where there is none, or where a snapshot at `held`
    /// doesn't hold it.
    pub(super) fn due_ms(&self, bounds: HistoryBounds, held: Offset) -> Option<u64> {
        let oldest = self.marks.front().filter(|mark| mark.pinned <= held.0)?;
        Some(oldest.times_ms.1.saturating_add(bounds.age_max_ms))
    }

    /// An offset at or before the oldest entry that a snapshot at `held` doesn't hold; none where it holds all that have to
    /// stay.
    pub(super) fn pinned_from(&self, held: Offset) -> Option<Offset> {
        let index = self.marks.iter().position(|mark| mark.pinned > held.0)?;
        let before = index.checked_sub(1).and_then(|index| self.marks.get(index));
        Some(Offset(before.map_or(0, |mark| mark.last).max(held.0) + 1))
    }

    /// How many bytes it counts.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// All that it counts.
    pub(super) fn kept(&self) -> Kept {
        Kept {
            entries: self.entries,
            bytes: self.bytes,
        }
    }
}

impl Mark {
    fn take(&mut self, next: &Self) {
        *self = Self {
            last: next.last,
            pinned: self.pinned.max(next.pinned),
            entries: self.entries + next.entries,
            bytes: self.bytes + next.bytes,
            times_ms: (self.times_ms.0, next.times_ms.1),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: HistoryBounds = HistoryBounds {
        entries_max: 1_000,
        bytes_max: 100_000,
        age_max_ms: 6_400,
    };

    fn counted(offset: u64, bytes: u64, time_ms: u64) -> Counted {
        Counted {
            offset: Offset(offset),
            bytes,
            time_ms,
            is_pinned: false,
        }
    }

    /// However a log grows, what is kept is never more than the bounds and little less than them.
    #[test]
    fn what_is_kept_stays_close_to_the_bounds() {
        for (bytes, step_ms) in [(10, 1), (10, 50), (1_000, 1), (90_000, 3), (1, 0)] {
            let mut marks = Marks::default();
            let mut first = 1;
            for offset in 1..=5_000_u64 {
                let now_ms = 1_000_000 + offset * step_ms;
                marks.push(counted(offset, bytes, now_ms));
                let trimmed = marks.trim(BOUNDS, now_ms, Offset(0));
                first = trimmed.map_or(first, |first| first.0);
                let kept = offset + 1 - first;
                let counted = Kept {
                    entries: kept,
                    bytes: kept * bytes,
                };
                assert_eq!(marks.kept(), counted);
                assert!(kept == 1 || kept <= 1_000 && kept * bytes <= 100_000);
                assert!(kept == 0 || (kept - 1) * step_ms < 6_400 + 400);
                assert!(marks.marks.len() <= MARKS_MAX);
            }
            let by_age = 6_400_u64.checked_div(step_ms).unwrap_or(1_000);
            let full = 1_000.min(100_000 / bytes).min(by_age);
            let kept = 5_001 - first;
            assert!(kept >= full - full.div_ceil(12), "{kept} of {full}");
        }
    }

    #[test]
    fn old_entries_go_with_time_alone() {
        let mut marks = Marks::default();
        marks.push(counted(1, 10, 0));
        marks.push(counted(2, 10, 5_000));
        assert_eq!(marks.due_ms(BOUNDS, Offset(0)), Some(6_400));
        assert_eq!(marks.trim(BOUNDS, 6_399, Offset(0)), None);
        assert_eq!(marks.trim(BOUNDS, 6_400, Offset(0)), Some(Offset(2)));
        assert_eq!(marks.trim(BOUNDS, 99_000, Offset(0)), Some(Offset(3)));
        assert_eq!(marks.due_ms(BOUNDS, Offset(0)), None);
    }

    /// What no snapshot holds stays, with all behind it, whatever the bounds.
    #[test]
    fn what_no_snapshot_holds_stays() {
        let mut marks = Marks::default();
        for offset in 1..=10 {
            let is_pinned = offset == 4;
            marks.push(Counted {
                is_pinned,
                ..counted(offset, 10, offset)
            });
        }
        assert_eq!(marks.pinned_from(Offset(0)), Some(Offset(4)));
        assert_eq!(marks.trim(BOUNDS, 99_000, Offset(3)), Some(Offset(4)));
        assert_eq!(marks.trim(BOUNDS, 99_000, Offset(3)), None);
        assert_eq!(marks.due_ms(BOUNDS, Offset(3)), None);
        assert_eq!(marks.pinned_from(Offset(4)), None);
        assert_eq!(marks.trim(BOUNDS, 99_000, Offset(4)), Some(Offset(11)));
    }
}
