//! What is found at a start: segments that the store has not taken, with the end of a write that never finished.
//!
//! Nothing is deleted on doubt. What was cut off was reported to nobody. What was stored and can't be read makes its room
//! refused, or all rooms where nobody knows whose it was; its segment stays. What must be there is known: the store says which
//! segments it has taken and which one was begun last, batches are numbered over all segments, and a segment says how long it is.
//! What the disk doesn't give back was stored, as far as anybody knows: it is never taken for the end of a write.
//! What can't be told is the damage to the last batch before a kill, as long as nothing behind it says that it was synced: it
//! looks like a write that never finished, and is cut off like one.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;

use roomful_protocol::id::Offset;

use super::disk::{Disk, Legible};
use super::index::{Index, Segment};
use super::ingest::{read_begun, read_state};
use super::meta::State;
use super::record::{Head, Kind, LogId};
use super::segment::{Lost, SEGMENT_HEAD_BYTES, ScanError, Scanned, SegmentHead, scan};
use super::store::Store;

/// A journal as it was found.
#[derive(Debug)]
pub(super) struct Recovered {
    /// All segments, sealed, and one that is yet to be made.
    pub(super) index: Index,
    /// No log has this number or a higher one.
    pub(super) next_log: u64,
    /// What is damaged or missing.
    pub(super) flaws: Vec<Flaw>,
    /// No segment has this number or a higher one.
    pub(super) next_segment: u64,
}

impl Recovered {
    /// Whether something is damaged of which nobody knows whose it was.
    pub(super) fn is_damaged(&self) -> bool {
        self.flaws.iter().any(|flaw| flaw.of.is_none())
    }
}

/// Something that was stored and is missing, or can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flaw {
    pub(super) segment: u64,
    /// Whose it was, and at which offset if it was an entry; none: nobody knows.
    pub(super) of: Option<(LogId, Option<Offset>)>,
    pub(super) what: &'static str,
}

impl Flaw {
    fn unknown(segment: u64, what: &'static str) -> Self {
        Self {
            segment,
            of: None,
            what,
        }
    }

    /// The disk doesn't give all of a segment.
    pub(super) fn unreadable(segment: u64) -> Self {
        Self::unknown(segment, "a part of it can't be read from the disk")
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

/// Why a journal can't be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecoveryError {
    /// A later version of the server wrote it.
    #[error("segment {0}: {1}")]
    Version(u64, ScanError),
    /// It can't be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads what is there. Everything that is in the index then survives a power cut. `is_new` says that nothing was ever stored.
pub(super) fn recover(
    disk: &dyn Disk,
    store: &dyn Store,
    is_new: bool,
) -> Result<Recovered, RecoveryError> {
    // What a process that was killed has written is there, but nobody has synced it yet: not here, and not in segments.
    store.sync()?;
    let state = read_state(store)?.unwrap_or(State::NEW);
    let begun = read_begun(store)?;
    let mut recovery = Recovery {
        disk,
        sealed: VecDeque::new(),
        next_segment: state.taken + 1,
        next_batch: state.next_batch,
        next_log: state.next_log,
        begun: begun.unwrap_or_default(),
        flaws: Vec::new(),
    };
    if begun.is_none() && !is_new {
        let lost = "the store doesn't know any more what it has taken";
        recovery.flaws.push(Flaw::unknown(0, lost));
    }
    let (old, numbers): (Vec<_>, Vec<_>) = disk
        .segments()?
        .into_iter()
        .partition(|number| *number <= state.taken);
    for (index, number) in numbers.iter().enumerate() {
        recovery.read(*number, index + 1 == numbers.len())?;
    }
    recovery.miss_until(recovery.begun + 1);
    for flaw in &recovery.flaws {
        let (segment, log) = (flaw.segment, flaw.of.map(|(log, _)| log.0));
        tracing::error!(segment, log, "the journal is damaged: {flaw}");
    }
    for number in old {
        // The store has all of it; the server ended before the segment was gone.
        disk.remove(number)?;
    }
    let active = Segment::new(recovery.next_segment, recovery.next_batch);
    Ok(Recovered {
        index: Index::new(recovery.sealed, active),
        next_log: recovery.next_log,
        flaws: recovery.flaws,
        next_segment: recovery.next_segment,
    })
}

/// A segment as it was read.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) segment: Segment,
    pub(super) scanned: Scanned,
    pub(super) flaws: Vec<Flaw>,
    /// No log in it has this number or a higher one.
    pub(super) next_log: u64,
}

impl Read {
    /// Reads a segment. `is_last` says whether its end may be a write that never finished.
    pub(super) fn of(
        number: u64,
        next_batch: u64,
        bytes: &[u8],
        is_last: bool,
    ) -> Result<Self, ScanError> {
        let mut segment = Segment::new(number, next_batch);
        let mut next_log = 0;
        let scanned = scan(bytes, is_last, |at, record| {
            next_log = next_log.max(record.head.log.0 + 1);
            let at = u32::try_from(at).expect("a segment is smaller than 4 GiB");
            segment.add(&record, at);
        })?;
        let mut flaws = Vec::new();
        for lost in &scanned.lost {
            match lost {
                Lost::Record(head) if head.kind != Kind::Began => {
                    segment.damage(head);
                    next_log = next_log.max(head.log.0 + 1);
                    flaws.push(Flaw {
                        segment: number,
                        of: Some((head.log, offset_of(head))),
                        what: "a record can't be read",
                    });
                }
                Lost::Record(_) => {
                    let what = "the record with which a room begins can't be read";
                    flaws.push(Flaw::unknown(number, what));
                }
                Lost::Unknown(_) => {
                    let what = "records can't be read, and nobody knows whose they were";
                    flaws.push(Flaw::unknown(number, what));
                }
            }
        }
        segment.end = scanned.end as u64;
        segment.next_batch = scanned.next;
        Ok(Self {
            segment,
            scanned,
            flaws,
            next_log,
        })
    }
}

fn offset_of(head: &Head) -> Option<Offset> {
    (head.kind == Kind::Entry).then_some(head.offset)
}

struct Recovery<'a> {
    disk: &'a dyn Disk,
    sealed: VecDeque<Arc<Segment>>,
    next_segment: u64,
    next_batch: u64,
    next_log: u64,
    /// The newest segment that may have been written to.
    begun: u64,
    flaws: Vec<Flaw>,
}

impl Recovery<'_> {
    /// Segments that should be before one and are not there.
    fn miss_until(&mut self, number: u64) {
        for missing in self.next_segment..number {
            let flaw = Flaw::unknown(missing, "the segment is missing");
            self.flaws.push(flaw);
        }
        self.next_segment = self.next_segment.max(number);
    }

    fn read(&mut self, number: u64, is_last: bool) -> Result<(), RecoveryError> {
        self.miss_until(number);
        self.next_segment = number + 1;
        let Legible { bytes, is_whole } = Legible::read(self.disk, number, usize::MAX)?;
        if !is_whole {
            self.flaws.push(Flaw::unreadable(number));
        }
        // Zeros that nobody wrote are not the end of a write.
        let is_last = is_last && is_whole;
        let read = match Read::of(number, self.next_batch, &bytes, is_last) {
            Ok(read) => read,
            Err(error @ ScanError::Version(_)) => {
                return Err(RecoveryError::Version(number, error));
            }
            Err(ScanError::Head) if is_last && number > self.begun => {
                // It was made a moment before the end, and nothing was ever stored in it. It stays, as an empty one: where there
                // was a segment, none may look like a loss.
                self.begin_again(number, bytes.len())?;
                let segment = Segment::new(number, self.next_batch);
                self.sealed.push_back(Arc::new(segment));
                return Ok(());
            }
            Err(ScanError::Head) => {
                let what = "its first bytes are not those of a segment";
                self.flaws.push(Flaw::unknown(number, what));
                return Ok(());
            }
        };
        let Read {
            segment,
            scanned,
            flaws,
            next_log,
        } = read;
        if scanned.first != self.next_batch {
            let flaw = Flaw::unknown(number, "batches are missing before it");
            self.flaws.push(flaw);
        }
        if bytes.len() < scanned.bytes as usize {
            let flaw = Flaw::unknown(number, "its end is missing");
            self.flaws.push(flaw);
        } else if scanned.is_torn {
            let at = segment.end;
            tracing::warn!(
                segment = number,
                at,
                "a write that never finished is cut off"
            );
            self.disk.cut(number, at)?;
        }
        self.disk.sync(number)?;
        self.flaws.extend(flaws);
        self.next_log = self.next_log.max(next_log);
        self.next_batch = scanned.next;
        self.sealed.push_back(Arc::new(segment));
        Ok(())
    }

    fn begin_again(&self, number: u64, bytes: usize) -> io::Result<()> {
        let bytes = bytes.max(SEGMENT_HEAD_BYTES);
        let head = SegmentHead {
            salt: number,
            first: self.next_batch,
            bytes: u32::try_from(bytes).expect("a segment is smaller than 4 GiB"),
        };
        self.disk.write(number, 0, &head.to_bytes())?;
        self.disk.sync(number)
    }
}
