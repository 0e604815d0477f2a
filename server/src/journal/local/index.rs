//! What is in segments and not yet in the store: where each record stands.
//!
//! One segment is written, the others are sealed and wait for their way into the store. An entry is here from the moment at which
//! it survives a power cut until the store has it: the store takes a segment before it goes from here, so whoever looks here
//! first and there second misses nothing. What is held is bounded by the segments: nothing of a log that is wholly in the store.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use roomful_protocol::frame::Direction;
use roomful_protocol::id::{Epoch, Offset, RoomId};

use super::freezing::Freeze;
use super::marks::{Counted, Marks};
use super::record::{Head, Kind, LogId, Record};

/// All segments that the store has not taken.
#[derive(Debug)]
pub(super) struct Index {
    sealed: VecDeque<Arc<Segment>>,
    active: Segment,
    /// How many segments have gone into the store. Whoever looks at both reads this before and after.
    taken: u64,
}

/// One segment's records.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    /// Behind its last whole batch.
    pub(super) end: u64,
    /// The number of the batch behind its last one.
    pub(super) next_batch: u64,
    /// Whether something in it could not be read: its file is kept.
    pub(super) is_damaged: bool,
    /// Who waits until the store has taken it and all before it, and nothing more.
    pub(super) freezes: Vec<Freeze>,
    /// The time from which its places count.
    base_ms: Option<u64>,
    runs: HashMap<LogId, Run>,
    rooms: HashMap<RoomId, LogId>,
    wakes: HashMap<LogId, Wake>,
}

/// What one log has in one segment.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) epoch: Epoch,
    /// The offset of the first entry.
    pub(super) first: Offset,
    /// Of the entries, which follow each other.
    pub(super) places: Vec<Place>,
    /// What most logs have none of.
    pub(super) rest: Option<Box<Rest>>,
}

/// What a log has in a segment beside entries.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// It begins here.
    pub(super) room: Option<RoomId>,
    /// What is before this offset is not kept any more.
    pub(super) trimmed: Offset,
    pub(super) snapshot: Option<(Offset, Spot)>,
    /// How long its entries are kept while nobody has it open, in milliseconds.
    pub(super) age_max_ms: Option<u64>,
    pub(super) registers: BTreeMap<Box<[u8]>, Spot>,
    /// Something of it can't be read.
    pub(super) is_damaged: bool,
    /// The last entry that is known to have been there, where some can't be read.
    pub(super) seen: Offset,
}

/// When somebody has to look at a room; none: not.
#[derive(Debug, Clone)]
pub(super) struct Wake {
    pub(super) room: RoomId,
    /// The batch that says so.
    pub(super) batch: u64,
    pub(super) at_ms: Option<u64>,
}

/// Where a record stands in its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) at: u32,
    pub(super) bytes: u32,
}

/// Where an entry stands, and what retention asks of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) spot: Spot,
    /// Whole seconds after the segment's first entry: enough for years, which a clock that was wrong first makes of them.
    after_s: u32,
    is_pinned: bool,
}

/// Entries that were found, in order.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The offset before which the index knows of no entry, if it knows of any.
    pub(super) lowest: Option<Offset>,
    /// Segment, offset and place.
    pub(super) places: Vec<(u64, Offset, Spot)>,
}

/// What is left of a page; the first entry always fits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    pub(super) entries: usize,
    pub(super) bytes: usize,
}

impl Budget {
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let fits = self.entries > 0 && self.bytes > 0;
        if fits {
            self.entries -= 1;
            self.bytes = self.bytes.saturating_sub(bytes);
        }
        fits
    }
}

impl Segment {
    pub(super) fn new(number: u64, next_batch: u64) -> Self {
        Self {
            number,
            end: 0,
            next_batch,
            is_damaged: false,
            freezes: Vec::new(),
            base_ms: None,
            runs: HashMap::new(),
            rooms: HashMap::new(),
            wakes: HashMap::new(),
        }
    }

    /// Notes a record.
    pub(super) fn add(&mut self, record: &Record<'_>, at: u32) {
        let head = &record.head;
        let bytes = u32::try_from(record.len()).expect("smaller than a segment");
        let spot = Spot { at, bytes };
        if head.kind == Kind::Entry {
            self.add_entry(head, spot);
            return;
        }
        if head.kind == Kind::Began
            && let Ok(room) = record.room()
        {
            self.rooms.insert(room, head.log);
        }
        if head.kind == Kind::Wake
            && let Ok(room) = record.room()
        {
            let batch = self.next_batch;
            let at_ms = (head.offset.0 != 0).then_some(head.time_ms);
            self.wakes.insert(head.log, Wake { room, batch, at_ms });
        }
        let rest = self.rest(head);
        match head.kind {
            Kind::Began => match record.room() {
                Ok(room) => rest.room = Some(room),
                Err(_) => rest.is_damaged = true,
            },
            Kind::Trimmed => rest.trimmed = rest.trimmed.max(head.offset),
            Kind::Snapshot => rest.snapshot = Some((head.offset, spot)),
            Kind::Register => match record.register() {
                Ok((key, _)) => drop(rest.registers.insert(key.into(), spot)),
                Err(_) => rest.is_damaged = true,
            },
            Kind::Wake => rest.is_damaged |= record.room().is_err(),
            Kind::Age => rest.age_max_ms = Some(head.time_ms),
            Kind::Entry => {}
        }
    }

    /// Notes an entry. One that doesn't follow the one before it shows that something is missing: that has a place of no bytes.
    pub(super) fn add_entry(&mut self, head: &Head, spot: Spot) {
        let base_ms = *self.base_ms.get_or_insert(head.time_ms);
        let run = self.runs.entry(head.log).or_insert_with(|| Run {
            epoch: head.epoch,
            first: head.offset,
            places: Vec::new(),
            rest: None,
        });
        if run.places.is_empty() {
            run.first = head.offset;
        } else if head.offset != run.next() {
            run.rest.get_or_insert_default().is_damaged = true;
        }
        if head.offset < run.next() {
            return;
        }
        let after_s = head.time_ms.saturating_sub(base_ms) / 1_000;
        let place = Place {
            spot,
            after_s: u32::try_from(after_s).unwrap_or(u32::MAX),
            is_pinned: head.is_pinned,
        };
        let missing = Place {
            spot: Spot { bytes: 0, ..spot },
            ..place
        };
        while run.next() < head.offset {
            run.places.push(missing);
        }
        run.places.push(place);
    }

    /// Notes that something of a log can't be read.
    pub(super) fn damage(&mut self, head: &Head) {
        self.is_damaged = true;
        let rest = self.rest(head);
        rest.is_damaged = true;
        if head.kind == Kind::Entry {
            rest.seen = rest.seen.max(head.offset);
        }
    }

    fn rest(&mut self, head: &Head) -> &mut Rest {
        let run = self.runs.entry(head.log).or_insert_with(|| Run {
            epoch: head.epoch,
            first: Offset(0),
            places: Vec::new(),
            rest: None,
        });
        run.rest.get_or_insert_default()
    }

    /// Whether a log says here that it keeps less.
    pub(super) fn has_trims(&self) -> bool {
        let mut rests = self.runs.values().filter_map(|run| run.rest.as_ref());
        rests.any(|rest| rest.trimmed > Offset(0))
    }

    /// The rooms whose logs begin here.
    pub(super) fn rooms(&self) -> impl Iterator<Item = (&RoomId, LogId)> {
        self.rooms.iter().map(|(room, log)| (room, *log))
    }

    pub(super) fn wakes(&self) -> impl Iterator<Item = (LogId, &Wake)> {
        self.wakes.iter().map(|(log, wake)| (*log, wake))
    }

    pub(super) fn wake(&self, log: LogId) -> Option<&Wake> {
        self.wakes.get(&log)
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = (LogId, &Run)> {
        self.runs.iter().map(|(log, run)| (*log, run))
    }

    /// Counts the entries of a run that are behind an offset.
    pub(super) fn count(&self, run: &Run, behind: Offset, marks: &mut Marks) {
        let base_ms = self.base_ms.unwrap_or_default();
        let skipped = run.index_of(behind.next());
        let places = run.places.get(skipped..).unwrap_or_default();
        for (offset, place) in (run.first.0 + skipped as u64..).zip(places) {
            marks.push(Counted {
                offset: Offset(offset),
                bytes: u64::from(place.spot.bytes),
                time_ms: base_ms + u64::from(place.after_s) * 1_000,
                is_pinned: place.is_pinned,
            });
        }
    }
}

impl Run {
    /// The offset behind its last entry.
    fn next(&self) -> Offset {
        Offset(self.first.0 + self.places.len() as u64)
    }

    /// The last entry's offset, if it has entries.
    pub(super) fn head(&self) -> Option<Offset> {
        (!self.places.is_empty()).then(|| Offset(self.next().0 - 1))
    }

    /// Whether everything of another run, which was read again, stands where this one says.
    pub(super) fn agrees_with(&self, other: &Self) -> bool {
        let spots = |run: &Self| {
            run.places
                .iter()
                .map(|place| place.spot)
                .collect::<Vec<_>>()
        };
        self.first == other.first && spots(self).starts_with(&spots(other))
    }

    /// The entries with their offsets.
    pub(super) fn entries(&self) -> impl Iterator<Item = (Offset, Spot)> {
        let offsets = (self.first.0..).map(Offset);
        offsets.zip(self.places.iter().map(|place| place.spot))
    }

    fn index_of(&self, offset: Offset) -> usize {
        usize::try_from(offset.0.saturating_sub(self.first.0)).unwrap_or(usize::MAX)
    }
}

impl Index {
    /// Segments as found, and the one that is written.
    pub(super) fn new(sealed: VecDeque<Arc<Segment>>, active: Segment) -> Self {
        Self {
            sealed,
            active,
            taken: 0,
        }
    }

    /// The segment that is written.
    pub(super) fn active(&mut self) -> &mut Segment {
        &mut self.active
    }

    /// The number of the batch that comes next.
    pub(super) fn next_batch(&self) -> u64 {
        self.active.next_batch
    }

    /// Seals the segment that is written and begins another.
    pub(super) fn seal(&mut self, next: Segment) {
        let sealed = std::mem::replace(&mut self.active, next);
        self.sealed.push_back(Arc::new(sealed));
    }

    /// The oldest sealed segment.
    pub(super) fn oldest(&self) -> Option<Arc<Segment>> {
        self.sealed.front().cloned()
    }

    /// Sealed segments that wait.
    pub(super) fn waiting(&self) -> usize {
        self.sealed.len()
    }

    /// Bytes that segments hold.
    pub(super) fn bytes(&self) -> u64 {
        self.segments().map(|segment| segment.end).sum()
    }

    /// The store has taken the oldest sealed segment.
    pub(super) fn take(&mut self) {
        self.sealed.pop_front();
        self.taken += 1;
    }

    /// How many segments have gone into the store.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// A segment that the store has not taken.
    pub(super) fn segment(&self, number: u64) -> Option<&Segment> {
        self.segments().find(|segment| segment.number == number)
    }

    /// Ascending.
    pub(super) fn segments(&self) -> impl DoubleEndedIterator<Item = &Segment> {
        let sealed = self.sealed.iter().map(|segment| &**segment);
        sealed.chain([&self.active])
    }

    /// A log's runs, ascending.
    pub(super) fn runs(&self, log: LogId) -> impl DoubleEndedIterator<Item = (&Segment, &Run)> {
        self.segments()
            .filter_map(move |segment| Some((segment, segment.runs.get(&log)?)))
    }

    /// The log of a room that began in one of the segments.
    pub(super) fn log_of(&self, room: &RoomId) -> Option<LogId> {
        let mut segments = self.segments().rev();
        segments.find_map(|segment| segment.rooms.get(room).copied())
    }

    /// The places of a log's entries from `from` to `until`, from one end of that on as far as the budget goes.
    pub(super) fn find(
        &self,
        log: LogId,
        from: Offset,
        until: Offset,
        direction: Direction,
        budget: &mut Budget,
    ) -> Found {
        let mut found = Found::default();
        let lowest = self.runs(log).find(|(_, run)| !run.places.is_empty());
        found.lowest = lowest.map(|(_, run)| run.first);
        let is_wanted = |offset: Offset| from <= offset && offset <= until;
        match direction {
            Direction::Forward => {
                if found.lowest.is_none_or(|lowest| lowest > from) {
                    // What is before it comes from the store, and takes its part of the budget first.
                    return found;
                }
                for (segment, run) in self.runs(log) {
                    let skipped = run.index_of(from);
                    for (offset, spot) in run.entries().skip(skipped) {
                        if !is_wanted(offset) || !budget.take(spot.bytes as usize) {
                            return found;
                        }
                        found.places.push((segment.number, offset, spot));
                    }
                }
            }
            Direction::Backward => {
                for (segment, run) in self.runs(log).rev() {
                    let end = run.index_of(until.next()).min(run.places.len());
                    for index in (0..end).rev() {
                        let offset = Offset(run.first.0 + index as u64);
                        let spot = run.places[index].spot;
                        if !is_wanted(offset) || !budget.take(spot.bytes as usize) {
                            found.places.reverse();
                            return found;
                        }
                        found.places.push((segment.number, offset, spot));
                    }
                }
                found.places.reverse();
            }
        }
        found
    }
}
