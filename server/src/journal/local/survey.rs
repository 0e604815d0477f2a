//! How much of each room can be read: what a look at everything and a repair go by.
//!
//! It reads as a reader does, but goes on behind what it can't read. Nothing is changed, and beside a running journal nothing waits
//! for it: a segment that goes into the store meanwhile is looked for there.

use std::collections::BTreeMap;
use std::io;

use roomful_protocol::frame::Direction;
use roomful_protocol::id::{Epoch, Offset, RoomId};

use super::index::Budget;
use super::meta::{self, EntryKey};
use super::reading::{Reader, Registers, Trouble, read_record};
use super::record::{Kind, LogId, Record};
use super::store::Space;
use crate::journal::Snapshot;

/// Whether a snapshot is one, or why not.
pub type ReadSnapshot = fn(&[u8]) -> Result<(), String>;

/// A room as far as it can be read.
#[derive(Debug)]
pub(super) struct Surveyed {
    pub(super) room: RoomId,
    pub(super) log: LogId,
    pub(super) epoch: Epoch,
    pub(super) first: Offset,
    pub(super) head: Offset,
    /// The newest one that can be read.
    pub(super) snapshot: Option<Snapshot>,
    pub(super) registers: Registers,
    pub(super) age_max_ms: Option<u64>,
    pub(super) wake_ms: Option<u64>,
    /// Entries that can't be read, ascending.
    pub(super) lost: Vec<Lost>,
    /// What else is wrong.
    pub(super) wrong: Vec<String>,
    /// There was a newer snapshot, or one at all.
    pub(super) has_lost_snapshot: bool,
    /// The last entry that stays until a snapshot holds it.
    pub(super) pinned: Offset,
    /// The last segment with an entry of it.
    pub(super) segment: u64,
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

/// Entries that can't be read, the last one included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) from: Offset,
    pub(super) to: Offset,
    pub(super) what: String,
}

/// What a walk over entries comes by.
pub(super) enum Step<'a> {
    Entry(Record<'a>, &'a [u8]),
    Lost(Lost),
}

impl Reader {
    /// All rooms with their logs; a log that can't be told is an error's text.
    pub(super) fn rooms(
        &self,
        visit: &mut dyn FnMut(&RoomId, Result<LogId, String>),
    ) -> io::Result<()> {
        let mut newer = BTreeMap::new();
        for segment in self.index().segments() {
            let rooms = segment.rooms().map(|(room, log)| (room.clone(), log));
            newer.extend(rooms);
        }
        let mut from = Vec::new();
        let until = [u8::MAX; 2];
        loop {
            let mut page = Vec::new();
            let look = &mut |key: &[u8], value| {
                page.push((key.to_vec(), value));
                page.len() < ROOMS_AT_ONCE
            };
            self.store
                .range(Space::Rooms, &from, &until, Direction::Forward, look)?;
            let Some((last, _)) = page.last() else {
                break;
            };
            from = [last, &[0][..]].concat();
            for (key, value) in page {
                let Some(room) = meta::read_room(&key) else {
                    continue;
                };
                if !newer.contains_key(&room) {
                    let log = meta::read_log(&value);
                    visit(
                        &room,
                        log.ok_or_else(|| "its entry in the store is damaged".to_owned()),
                    );
                }
            }
        }
        newer.iter().for_each(|(room, log)| visit(room, Ok(*log)));
        Ok(())
    }

    /// A room as far as it can be read, or why nothing of it can. Every entry is shown to `see`.
    pub(super) fn survey(
        &self,
        room: &RoomId,
        log: LogId,
        read_snapshot: ReadSnapshot,
        see: &mut dyn FnMut(&Record<'_>, &[u8]),
    ) -> Result<Surveyed, String> {
        let known = self.settled(|taken| self.known(log, taken))?;
        let mut surveyed = Surveyed {
            room: room.clone(),
            log,
            epoch: known.epoch,
            first: known.first,
            head: known.head,
            snapshot: None,
            registers: Registers::new(),
            age_max_ms: known.age_max_ms,
            wake_ms: known.wake_ms,
            lost: Vec::new(),
            wrong: Vec::new(),
            has_lost_snapshot: false,
            pinned: Offset(0),
            segment: known.segment,
            entries: 0,
            bytes: 0,
        };
        self.survey_snapshots(known.snapshots.len(), read_snapshot, &mut surveyed);
        let registers = self.settled(|taken| {
            let known = self.known(log, taken)?;
            self.registers(log, &known)
        });
        match registers {
            Ok((registers, is_whole)) => {
                surveyed.registers = registers;
                if !is_whole {
                    surveyed.wrong.push("a register can't be read".to_owned());
                }
            }
            Err(what) => surveyed.wrong.push(format!("its registers: {what}")),
        }
        self.walk(log, known.first, known.head, &mut |step| match step {
            Step::Entry(record, bytes) => {
                surveyed.entries += 1;
                surveyed.bytes += bytes.len() as u64;
                if record.head.is_pinned {
                    surveyed.pinned = record.head.offset;
                }
                see(&record, bytes);
            }
            Step::Lost(lost) => surveyed.lost.push(lost),
        });
        // What was let go meanwhile is not lost.
        let now = self.settled(|taken| self.known(log, taken))?;
        surveyed.lost.retain(|lost| lost.to >= now.first);
        if let Some(damage) = known.damage
            && surveyed.lost.is_empty()
            && surveyed.wrong.is_empty()
        {
            surveyed.wrong.push(damage.to_owned());
        }
        Ok(surveyed)
    }

    /// Finds the newest of so many snapshots that can be read.
    fn survey_snapshots(&self, count: usize, read: ReadSnapshot, surveyed: &mut Surveyed) {
        let log = surveyed.log;
        for place in 0..count {
            let found = self.settled(|taken| {
                let known = self.known(log, taken)?;
                let newest = known.snapshots.iter().rev().nth(place);
                let found = newest.map(|(at, place)| self.snapshot(log, *at, *place));
                found.transpose()
            });
            let wrong = match found {
                Ok(None) => return,
                Ok(Some(snapshot)) => match read(&snapshot.content) {
                    Ok(()) => {
                        surveyed.snapshot = Some(snapshot);
                        return;
                    }
                    Err(what) => format!("its snapshot at {}: {what}", snapshot.at),
                },
                Err(what) => what,
            };
            surveyed.has_lost_snapshot = true;
            surveyed.wrong.push(wrong);
        }
    }

    /// Tries until no segment moves in between; `attempt` is given how many have gone into the store.
    fn settled<T>(&self, attempt: impl Fn(u64) -> Result<T, Trouble>) -> Result<T, String> {
        for _ in 0..ATTEMPTS {
            let taken = self.index().taken();
            match attempt(taken) {
                Ok(value) => return Ok(value),
                Err(Trouble::Moved) => {}
                Err(Trouble::Damaged(what)) => return Err(format!("{what} can't be read")),
                Err(Trouble::Io(error)) => return Err(error.to_string()),
            }
        }
        Err("a segment is missing".to_owned())
    }

    /// Goes over a log's entries, and on behind those that can't be read.
    pub(super) fn walk(
        &self,
        log: LogId,
        first: Offset,
        head: Offset,
        visit: &mut dyn FnMut(Step<'_>),
    ) {
        let mut walk = Walk {
            log,
            next: first,
            lost: None,
            visit,
        };
        while walk.next <= head {
            let mut budget = Budget {
                entries: ENTRIES_AT_ONCE,
                bytes: usize::MAX,
            };
            let found = self
                .index()
                .find(log, walk.next, head, Direction::Forward, &mut budget);
            for (segment, offset, spot) in &found.places {
                match self.segment_bytes(*segment, *spot) {
                    Ok(bytes) => walk.entry(*offset, &bytes),
                    // It is in the store by now.
                    Err(Trouble::Moved) => break,
                    Err(Trouble::Damaged(what)) => walk.lose(*offset, what),
                    Err(Trouble::Io(error)) => walk.lose(*offset, &error.to_string()),
                }
            }
            if !found.places.is_empty() {
                continue;
            }
            let end = match found.lowest {
                Some(lowest) if lowest > walk.next => head.min(Offset(lowest.0 - 1)),
                _ => head,
            };
            let (from, until) = (EntryKey::new(log, walk.next), EntryKey::new(log, end));
            let look = &mut |key: &[u8], value: bytes::Bytes| {
                if let Some((_, offset)) = EntryKey::read(key) {
                    walk.entry(offset, &value);
                }
                true
            };
            let read =
                self.store
                    .range(Space::Entries, &from.0, &until.0, Direction::Forward, look);
            match read {
                Ok(()) => walk.lose(end, MISSING),
                Err(error) => {
                    let next = walk.next;
                    walk.lose(next, &error.to_string());
                }
            }
        }
        walk.tell();
    }
}

struct Walk<'a> {
    log: LogId,
    next: Offset,
    /// What was lost up to here, and not told yet.
    lost: Option<Lost>,
    visit: &'a mut dyn FnMut(Step<'_>),
}

impl Walk<'_> {
    /// The entry of an offset. What was to be before it is missing.
    fn entry(&mut self, offset: Offset, bytes: &[u8]) {
        if offset > self.next {
            self.lose(Offset(offset.0 - 1), MISSING);
        }
        let log = self.log;
        let is_it = read_record(bytes, |record| {
            let head = &record.head;
            let place = (head.kind, head.log, head.offset);
            let entry = record.entry().ok()?;
            (place == (Kind::Entry, log, offset) && entry.offset == offset).then_some(())
        });
        match Record::read(bytes) {
            Ok((record, _)) if is_it.is_some() => {
                self.tell();
                (self.visit)(Step::Entry(record, bytes));
                self.next = offset.next();
            }
            _ => self.lose(offset, "its record can't be read"),
        }
    }

    /// Nothing up to an offset can be read.
    fn lose(&mut self, to: Offset, what: &str) {
        if to < self.next {
            return;
        }
        match &mut self.lost {
            Some(lost) if lost.what == what => lost.to = to,
            _ => {
                self.tell();
                self.lost = Some(Lost {
                    from: self.next,
                    to,
                    what: what.to_owned(),
                });
            }
        }
        self.next = to.next();
    }

    fn tell(&mut self) {
        if let Some(lost) = self.lost.take() {
            (self.visit)(Step::Lost(lost));
        }
    }
}

const MISSING: &str = "it is missing";

/// Rooms that are held in memory at once.
const ROOMS_AT_ONCE: usize = 1024;

/// Entries that are looked up in the index at once.
const ENTRIES_AT_ONCE: usize = 1024;

/// A segment moves seldom; one that is not found so often is missing.
const ATTEMPTS: usize = 10;
