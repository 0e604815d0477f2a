//! What is found at a start: segments that the store has not taken, with the end of a write that never finished.
//!
//! Nothing is deleted on doubt. What was cut off was reported to nobody. What was stored and can't be read makes its room
//! refused, or all rooms where nobody knows whose it was; its segment stays.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::disk::Disk;
use super::index::{Index, Segment};
use super::ingest::read_state;
use super::meta::State;
use super::record::Kind;
use super::segment::{Lost, SEGMENT_HEAD_BYTES, ScanError, SegmentHead, scan};
use super::store::Store;

/// A journal as it was found.
#[derive(Debug)]
pub(super) struct Recovered {
    /// All segments, sealed, and one that is yet to be made.
    pub(super) index: Index,
    /// No log has this number or a higher one.
    pub(super) next_log: u64,
    /// Something is damaged, and nobody knows whose it was.
    pub(super) is_damaged: bool,
    /// Of the store.
    pub(super) state: State,
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

/// Reads what is there. Everything that is in the index then survives a power cut.
pub(super) fn recover(disk: &dyn Disk, store: &dyn Store) -> Result<Recovered, RecoveryError> {
    // What a process that was killed has written is there, but nobody has synced it yet: not here, and not in segments.
    store.sync()?;
    let known = read_state(store)?;
    let state = known.unwrap_or(State::NEW);
    let mut recovery = Recovery {
        disk,
        sealed: VecDeque::new(),
        next_segment: state.taken + 1,
        next_batch: state.next_batch,
        next_log: state.next_log,
        is_damaged: false,
    };
    let (old, numbers): (Vec<_>, Vec<_>) = disk
        .segments()?
        .into_iter()
        .partition(|number| *number <= state.taken);
    if state.is_written && numbers.is_empty() {
        tracing::error!("segments of the journal are missing");
        recovery.is_damaged = true;
    }
    for (index, number) in numbers.iter().enumerate() {
        recovery.read(*number, index + 1 == numbers.len())?;
    }
    for number in old {
        // The store has all of it; the server ended before the segment was gone.
        disk.remove(number)?;
    }
    let active = Segment::new(recovery.next_segment, recovery.next_batch);
    Ok(Recovered {
        index: Index::new(recovery.sealed, active),
        next_log: recovery.next_log,
        is_damaged: recovery.is_damaged,
        state,
    })
}

struct Recovery<'a> {
    disk: &'a dyn Disk,
    sealed: VecDeque<Arc<Segment>>,
    next_segment: u64,
    next_batch: u64,
    next_log: u64,
    is_damaged: bool,
}

impl Recovery<'_> {
    fn read(&mut self, number: u64, is_last: bool) -> Result<(), RecoveryError> {
        if number != self.next_segment {
            let missing = self.next_segment;
            tracing::error!(segment = missing, "a segment of the journal is missing");
            self.is_damaged = true;
        }
        self.next_segment = number + 1;
        let bytes = self.disk.read(number, 0, usize::MAX)?;
        let mut segment = Segment::new(number, self.next_batch);
        let mut next_log = self.next_log;
        let scanned = scan(&bytes, is_last, |at, record| {
            next_log = next_log.max(record.head.log.0 + 1);
            let at = u32::try_from(at).expect("a segment is smaller than 4 GiB");
            segment.add(&record, at);
        });
        self.next_log = next_log;
        let scanned = match scanned {
            Ok(scanned) => scanned,
            Err(error @ ScanError::Version(_)) => {
                return Err(RecoveryError::Version(number, error));
            }
            Err(ScanError::Head) if is_last && is_unused(&bytes) => {
                // It was made a moment before the end, and nothing was ever stored in it. It stays, as an empty one: where there
                // was a segment, none may look like a loss.
                self.begin_again(number)?;
                self.sealed.push_back(Arc::new(segment));
                return Ok(());
            }
            Err(error @ ScanError::Head) => {
                tracing::error!(segment = number, %error, "a segment of the journal is damaged");
                self.is_damaged = true;
                return Ok(());
            }
        };
        if scanned.first != self.next_batch {
            tracing::error!(
                segment = number,
                "batches of the journal are missing before a segment"
            );
            self.is_damaged = true;
        }
        for lost in &scanned.lost {
            match lost {
                Lost::Record(head) if head.kind != Kind::Began => {
                    tracing::error!(
                        segment = number,
                        log = head.log.0,
                        "a record of the journal is damaged"
                    );
                    segment.damage(head);
                }
                _ => {
                    tracing::error!(segment = number, ?lost, "the journal is damaged");
                    self.is_damaged = true;
                }
            }
        }
        let end = scanned.end as u64;
        if scanned.is_torn {
            tracing::warn!(
                segment = number,
                at = end,
                "a write that never finished is cut off"
            );
            self.disk.cut(number, end)?;
        }
        self.disk.sync(number)?;
        segment.end = end;
        segment.next_batch = scanned.next;
        self.next_batch = scanned.next;
        self.sealed.push_back(Arc::new(segment));
        Ok(())
    }

    fn begin_again(&self, number: u64) -> io::Result<()> {
        let head = SegmentHead {
            salt: number,
            first: self.next_batch,
        };
        self.disk.write(number, 0, &head.to_bytes())?;
        self.disk.sync(number)
    }
}

/// Whether nothing can have been stored in a segment without a head: no batch is written before that is synced.
fn is_unused(bytes: &[u8]) -> bool {
    let behind = bytes.get(SEGMENT_HEAD_BYTES..);
    behind.unwrap_or_default().iter().all(|byte| *byte == 0)
}
