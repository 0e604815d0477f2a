//! What is read back: a room's log as it is opened, and pages of it.
//!
//! A reader looks into the index first and into the store second, because that is how records move. Where a segment has gone
//! into the store in between, it looks again. Nothing is given that doesn't follow what is before it and whose checksums
//! don't hold: then the room is refused as damaged, and nobody else is.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use roomful_protocol::frame::{Direction, Entry};
use roomful_protocol::id::{Epoch, Offset, RoomId};

use super::committer::{self, Log, OpenLog, OpenRequest};
use super::disk::Disk;
use super::holding::Holders;
use super::index::{Budget, Index, Spot};
use super::marks::Marks;
use super::meta::{self, EntryKey, LogMeta};
use super::record::{Kind, LogId, Record};
use super::store::{self, Space, Store};
use crate::journal::{JournalError, Opened, RECENT_MAX, ReadPage, ReadQuery, Snapshot};

/// Reads what is stored. Any thread may have one.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) store: Arc<dyn Store>,
    pub(super) index: Arc<Mutex<Index>>,
    pub(super) holders: Arc<Holders>,
}

/// What came of a look-up.
#[derive(Debug)]
pub(super) enum Looked {
    /// The room is there.
    Found(Opened),
    /// It is not, and so many segments were in the store.
    Absent(u64),
}

/// What a page is read from.
#[derive(Debug, Clone)]
pub(super) struct PageRequest {
    pub(super) log: LogId,
    /// The first offset that is kept.
    pub(super) first: Offset,
    pub(super) query: ReadQuery,
}

/// Why something could not be read.
#[derive(Debug)]
pub(super) enum Trouble {
    /// A segment went into the store a moment ago.
    Moved,
    Damaged(&'static str),
    Io(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound {
            return Self::Moved;
        }
        match store::damage_of(&error) {
            Some(what) => Self::Damaged(what),
            None => Self::Io(error),
        }
    }
}

/// A log as the store and the index know it together.
pub(super) struct Known {
    pub(super) epoch: Epoch,
    pub(super) head: Offset,
    pub(super) first: Offset,
    marks: Marks,
    pub(super) age_max_ms: Option<u64>,
    pub(super) wake_ms: Option<u64>,
    /// The newest last; where they stand, if not in the store.
    pub(super) snapshots: Vec<(Offset, Option<(u64, Spot)>)>,
    /// Those in segments, the newest of each key last.
    registers: Vec<(Bytes, (u64, Spot))>,
    /// Why it is refused.
    pub(super) damage: Option<&'static str>,
    /// The last segment with an entry of it.
    pub(super) segment: u64,
}

/// Registers by their keys.
pub(super) type Registers = BTreeMap<Bytes, Bytes>;

impl Reader {
    pub(super) fn new(disk: Arc<dyn Disk>, store: Arc<dyn Store>, index: Index) -> Self {
        let index = Arc::new(Mutex::new(index));
        let holders = Arc::default();
        Self {
            disk,
            store,
            index,
            holders,
        }
    }

    /// Looks a room up, and puts its log where the request says.
    pub(super) fn open(&self, request: &OpenRequest) -> Result<Looked, JournalError> {
        self.settle(&request.room, || self.try_open(request))
    }

    /// Reads a page.
    pub(super) fn read(
        &self,
        room: &RoomId,
        request: &PageRequest,
    ) -> Result<ReadPage, JournalError> {
        let PageRequest { log, first, query } = *request;
        let entries = self.settle(room, || {
            let mut budget = Budget {
                entries: query.entries_max,
                bytes: query.bytes_max,
            };
            match query.direction {
                Direction::Forward => {
                    let from = first.max(query.from.next());
                    self.forward(log, from, query.until, &mut budget)
                }
                Direction::Backward => {
                    let until = Offset(query.from.0.saturating_sub(1));
                    self.backward(log, first, until, &mut budget)
                }
            }
        })?;
        Ok(ReadPage { entries, first })
    }

    /// Tries until no segment moves in between.
    fn settle<T>(
        &self,
        room: &RoomId,
        attempt: impl Fn() -> Result<T, Trouble>,
    ) -> Result<T, JournalError> {
        for _ in 0..ATTEMPTS {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Trouble::Moved) => {}
                Err(Trouble::Damaged(what)) => {
                    tracing::error!(%room, what, "a room on disk is damaged");
                    return Err(JournalError::Damaged);
                }
                Err(Trouble::Io(error)) => {
                    tracing::error!(%room, %error, "a room can't be read from disk");
                    return Err(JournalError::Storage);
                }
            }
        }
        tracing::error!(%room, "a segment is missing from the journal");
        Err(JournalError::Storage)
    }

    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_open(&self, request: &OpenRequest) -> Result<Looked, Trouble> {
        let room = &request.room;
        let (taken, log) = {
            let index = self.index();
            (index.taken(), index.log_of(room))
        };
        let log = match log {
            Some(log) => log,
            None => match self.store.get(Space::Rooms, &meta::room_key(room))? {
                None => return Ok(Looked::Absent(taken)),
                Some(value) => meta::read_log(&value)
                    .ok_or(Trouble::Damaged("the room's entry in the store"))?,
            },
        };
        let hold = self.holders.hold(log);
        let known = self.known(log, taken)?;
        if let Some(damage) = known.damage {
            return Err(Trouble::Damaged(damage));
        }
        let newest = known.snapshots.last();
        let snapshot = match newest {
            None => None,
            Some((at, place)) => Some(self.snapshot(log, *at, *place)?),
        };
        let (registers, is_whole) = self.registers(log, &known)?;
        if !is_whole {
            return Err(Trouble::Damaged("a register"));
        }
        let held = newest.map_or(Offset(0), |(at, _)| *at);
        let recent = self.recent(log, &known, held)?;
        let open = Log::new((log, hold), known.epoch, request.shard, known.head, held);
        let open = OpenLog {
            log: Arc::new(open),
            head: known.head,
            first: known.first,
            marks: known.marks,
            age_max_ms: known.age_max_ms,
        };
        committer::put(&request.slot, open);
        Ok(Looked::Found(Opened {
            epoch: known.epoch,
            head: known.head,
            snapshot,
            recent,
            registers: registers.into_iter().collect(),
        }))
    }

    /// What store and index know of a log. `taken` is from before the first look at either.
    pub(super) fn known(&self, log: LogId, taken: u64) -> Result<Known, Trouble> {
        let meta = match self.store.get(Space::Logs, &meta::log_key(log))? {
            None => None,
            Some(value) => {
                let meta = LogMeta::read(&value);
                Some(meta.ok_or(Trouble::Damaged("the log's entry in the store"))?)
            }
        };
        let index = self.index();
        if index.taken() != taken {
            return Err(Trouble::Moved);
        }
        let epoch = index.runs(log).map(|(_, run)| run.epoch).next();
        let epoch = meta
            .as_ref()
            .map(|meta| Epoch(meta.epoch))
            .or(epoch)
            .ok_or(Trouble::Damaged("the log is missing from the store"))?;
        let meta = meta.unwrap_or_else(|| LogMeta::new(epoch));
        let mut known = Known {
            epoch,
            head: Offset(meta.head.max(meta.damaged_to.unwrap_or_default())),
            first: Offset(meta.first),
            marks: meta.marks,
            age_max_ms: meta.age_max_ms,
            wake_ms: meta.wake_ms,
            snapshots: Vec::new(),
            registers: Vec::new(),
            damage: meta.damaged_to.map(|_| "records of it could not be read"),
            segment: meta.segment,
        };
        if meta.snapshot > 0 {
            known.snapshots.push((Offset(meta.snapshot), None));
        }
        for (segment, run) in index.runs(log) {
            if let Some(head) = run.head() {
                if run.first > known.head.next() {
                    known.damage = Some("entries are missing");
                }
                segment.count(run, known.head, &mut known.marks);
                known.head = known.head.max(head);
                known.segment = segment.number;
            }
            if let Some(wake) = segment.wake(log) {
                known.wake_ms = wake.at_ms;
            }
            let Some(rest) = &run.rest else {
                continue;
            };
            if rest.is_damaged {
                known.damage = Some("records of it can't be read");
                known.head = known.head.max(rest.seen);
            }
            known.first = known.first.max(rest.trimmed);
            known.age_max_ms = rest.age_max_ms.or(known.age_max_ms);
            if let Some((at, spot)) = rest.snapshot {
                known.snapshots.push((at, Some((segment.number, spot))));
            }
            for (key, spot) in &rest.registers {
                let key = Bytes::copy_from_slice(key);
                known.registers.push((key, (segment.number, *spot)));
            }
        }
        drop(index);
        known.marks.drop_before(known.first);
        Ok(known)
    }

    /// The snapshot of an offset, which stands in a segment or in the store.
    pub(super) fn snapshot(
        &self,
        log: LogId,
        at: Offset,
        place: Option<(u64, Spot)>,
    ) -> Result<Snapshot, Trouble> {
        let bytes = match place {
            Some((segment, spot)) => self.segment_bytes(segment, spot)?,
            None => {
                let value = self.store.get(Space::Snapshots, &meta::log_key(log))?;
                value.ok_or(Trouble::Damaged("its snapshot is missing"))?
            }
        };
        let content = read_record(&bytes, |record| {
            let head = &record.head;
            let is_it = head.kind == Kind::Snapshot && head.log == log;
            // The store may have a newer one by now.
            (is_it && head.offset >= at).then_some((head.offset, record.len()))
        });
        let (found, length) = content.ok_or(Trouble::Damaged("its snapshot"))?;
        if found > at {
            return Err(Trouble::Moved);
        }
        let content = bytes.slice(super::record::HEAD_BYTES..length);
        Ok(Snapshot { at, content })
    }

    /// The registers that can be read, and whether those are all.
    pub(super) fn registers(
        &self,
        log: LogId,
        known: &Known,
    ) -> Result<(Registers, bool), Trouble> {
        let mut registers = Registers::new();
        let mut is_whole = true;
        let (from, until) = meta::registers_of(log);
        self.store.range(
            Space::Registers,
            &from,
            &until,
            Direction::Forward,
            &mut |_, value| {
                match register_of(log, &value) {
                    Some((key, value)) => drop(registers.insert(key, value)),
                    None => is_whole = false,
                }
                true
            },
        )?;
        for (_, (segment, spot)) in &known.registers {
            match register_of(log, &self.segment_bytes(*segment, *spot)?) {
                Some((key, value)) => drop(registers.insert(key, value)),
                None => is_whole = false,
            }
        }
        // Those were taken away.
        registers.retain(|_, value| !value.is_empty());
        Ok((registers, is_whole))
    }

    /// The newest entries, and all that a replay behind the snapshot needs.
    fn recent(&self, log: LogId, known: &Known, held: Offset) -> Result<Vec<Arc<Entry>>, Trouble> {
        let newest = Offset((known.head.0 + 1).saturating_sub(RECENT_MAX as u64));
        let replayed = match known.snapshots.last() {
            Some(_) => Some(held.next()),
            None => known.marks.pinned_from(Offset(0)),
        };
        let from = replayed.map_or(newest, |replayed| replayed.min(newest));
        let mut budget = Budget {
            entries: usize::MAX,
            bytes: usize::MAX,
        };
        let from = from.max(known.first);
        let entries = self.forward(log, from, known.head, &mut budget)?;
        let is_whole = entries
            .last()
            .map_or(Offset(from.0 - 1), |entry| entry.offset)
            >= known.head;
        match is_whole {
            true => Ok(entries),
            false => Err(Trouble::Damaged("its newest entries are missing")),
        }
    }

    /// Entries from an offset on.
    fn forward(
        &self,
        log: LogId,
        from: Offset,
        until: Offset,
        budget: &mut Budget,
    ) -> Result<Vec<Arc<Entry>>, Trouble> {
        let mut page = Page::new(log, from);
        loop {
            let next = page.next;
            if next > until || budget.entries == 0 || budget.bytes == 0 {
                return Ok(page.entries);
            }
            let (taken, found) = {
                let index = self.index();
                let found = index.find(log, next, until, Direction::Forward, budget);
                (index.taken(), found)
            };
            if !found.places.is_empty() {
                self.read_places(&found.places, &mut page)?;
                return Ok(page.entries);
            }
            let end = match found.lowest {
                Some(lowest) if lowest <= next => return Ok(page.entries),
                Some(lowest) => until.min(Offset(lowest.0 - 1)),
                None => until,
            };
            let mut problem = None;
            let (first, last) = (EntryKey::new(log, next), EntryKey::new(log, end));
            self.store.range(
                Space::Entries,
                &first.0,
                &last.0,
                Direction::Forward,
                &mut |_, value| {
                    if !budget.take(value.len()) {
                        return false;
                    }
                    problem = page.push(&value).err();
                    problem.is_none()
                },
            )?;
            if let Some(problem) = problem {
                return Err(problem);
            }
            if found.lowest.is_none() && self.index().taken() == taken {
                return Ok(page.entries);
            }
            let is_spent = budget.entries == 0 || budget.bytes == 0;
            if found.lowest.is_some() && page.next <= end && !is_spent {
                return Err(Trouble::Damaged("entries are missing"));
            }
        }
    }

    /// The last entries up to an offset.
    fn backward(
        &self,
        log: LogId,
        first: Offset,
        until: Offset,
        budget: &mut Budget,
    ) -> Result<Vec<Arc<Entry>>, Trouble> {
        if until < first {
            return Ok(Vec::new());
        }
        let found = self
            .index()
            .find(log, first, until, Direction::Backward, budget);
        let end = match found.places.first() {
            Some((_, offset, _)) => Offset(offset.0 - 1),
            None => found
                .lowest
                .map_or(until, |lowest| until.min(Offset(lowest.0 - 1))),
        };
        let mut older = Vec::new();
        let mut oldest = end.next();
        if found.lowest.is_none_or(|lowest| end < lowest) && end >= first {
            let (from, last) = (EntryKey::new(log, first), EntryKey::new(log, end));
            self.store.range(
                Space::Entries,
                &from.0,
                &last.0,
                Direction::Backward,
                &mut |key, value| {
                    let fits = budget.take(value.len());
                    if fits {
                        oldest = EntryKey::read(key).map_or(oldest, |(_, offset)| offset);
                        older.push(value);
                    }
                    fits
                },
            )?;
        }
        let mut page = Page::new(log, oldest);
        for value in older.iter().rev() {
            page.push(value)?;
        }
        if !found.places.is_empty() {
            self.read_places(&found.places, &mut page)?;
        }
        Ok(page.entries)
    }

    /// Reads entries from segments. Neighbours are read with one call.
    fn read_places(&self, places: &[(u64, Offset, Spot)], page: &mut Page) -> Result<(), Trouble> {
        let mut rest = places;
        while let Some((segment, _, start)) = rest.first() {
            let reach = rest
                .windows(2)
                .take_while(|pair| {
                    let ((before, _, left), (after, _, right)) = (pair[0], pair[1]);
                    let end = right.at + right.bytes;
                    let gap = right.at.checked_sub(left.at + left.bytes);
                    before == after
                        && gap.is_some_and(|gap| gap <= GAP_BYTES_MAX)
                        && end - start.at <= READ_BYTES_MAX
                })
                .count();
            let (near, far) = rest.split_at(reach + 1);
            let (_, _, last) = near[reach];
            let span = Spot {
                at: start.at,
                bytes: last.at + last.bytes - start.at,
            };
            let bytes = self.segment_bytes(*segment, span)?;
            for (_, _, spot) in near {
                page.push(&bytes[(spot.at - start.at) as usize..])?;
            }
            rest = far;
        }
        Ok(())
    }

    pub(super) fn segment_bytes(&self, segment: u64, spot: Spot) -> Result<Bytes, Trouble> {
        let (at, wanted) = (u64::from(spot.at), spot.bytes as usize);
        let bytes = self.disk.read(segment, at, wanted)?;
        match bytes.len() == wanted {
            true => Ok(Bytes::from(bytes)),
            false => Err(Trouble::Damaged("its segment is too short")),
        }
    }
}

/// Entries that follow each other.
struct Page {
    log: LogId,
    next: Offset,
    entries: Vec<Arc<Entry>>,
}

impl Page {
    fn new(log: LogId, from: Offset) -> Self {
        Self {
            log,
            next: from,
            entries: Vec::new(),
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        let entry = read_record(bytes, |record| {
            let head = &record.head;
            let is_it = head.kind == Kind::Entry && head.log == self.log;
            let entry = record.entry().ok()?;
            (is_it && head.offset == self.next && entry.offset == self.next).then_some(entry)
        });
        let entry = entry.ok_or(Trouble::Damaged("an entry"))?;
        self.next = self.next.next();
        self.entries.push(Arc::new(entry));
        Ok(())
    }
}

pub(super) fn read_record<T>(
    bytes: &[u8],
    read: impl FnOnce(Record<'_>) -> Option<T>,
) -> Option<T> {
    read(Record::read(bytes).ok()?.0)
}

/// The key and the value of a register's record.
pub(super) fn register_of(log: LogId, bytes: &[u8]) -> Option<(Bytes, Bytes)> {
    read_record(bytes, |record| {
        let is_it = record.head.kind == Kind::Register && record.head.log == log;
        let (key, value) = record.register().ok()?;
        is_it.then(|| (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)))
    })
}

/// A segment moves seldom; one that is not found so often is missing.
const ATTEMPTS: usize = 10;

/// Two entries that are so close are read together: a call costs as much as some thousand bytes.
const GAP_BYTES_MAX: u32 = 4 << 10;

/// Most bytes of one call.
const READ_BYTES_MAX: u32 = 256 << 10;
