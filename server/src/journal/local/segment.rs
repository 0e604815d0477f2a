//! A segment: a file of batches, each of which was written with one call and synced with one.
//!
//! A batch is numbered, and a file is reserved whole before it is used, so behind the last batch there are zeros. What is
//! no whole batch may be the beginning of a write that never finished: nobody was told that it is stored, and it is
//! cut off. But where a whole batch of a higher number stands behind it, something that was stored is damaged: [`scan`] says so
//! and mends nothing. The checksum of a batch's header takes in the segment's own random number, so that nothing a
//! client has published looks like a batch.
//!
//! A segment begins with this, all integers little-endian:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `roomful1` |
//! | 8 | 8 | a random number |
//! | 16 | 8 | the number of its first batch |
//! | 24 | 4 | bytes of the file, which was reserved whole |
//! | 28 | 4 | CRC-32 (IEEE 802.3) of the above |
//!
//! and each batch with this:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | its number, one more than that of the batch before it, also across segments |
//! | 8 | 4 | length of its records in bytes |
//! | 12 | 4 | CRC-32 of the segment's random number and the above |
//! | 16 | | records, and zeros up to a multiple of 8 |
//!
//! A batch of no records only says that what stands before it was synced. The next batch takes its number and its place.

use bytes::{Buf as _, BufMut as _};

use super::record::{Damage, Head, Record};

const MAGIC: &[u8; 8] = b"roomful1";

/// Bytes before the first batch.
pub(super) const SEGMENT_HEAD_BYTES: usize = 32;

/// Bytes before a batch's first record.
const BATCH_HEAD_BYTES: usize = 16;

/// Where batches begin: a lost one is looked for in steps of this.
const ALIGNMENT: usize = 8;

/// What tells a segment from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHead {
    /// Goes into the checksums of its batches.
    pub(super) salt: u64,
    /// The number of its first batch.
    pub(super) first: u64,
    /// Bytes of the file. One that is shorter has lost its end.
    pub(super) bytes: u32,
}

impl SegmentHead {
    pub(super) fn to_bytes(self) -> [u8; SEGMENT_HEAD_BYTES] {
        let mut bytes = [0; SEGMENT_HEAD_BYTES];
        let mut out = &mut bytes[..];
        out.put_slice(MAGIC);
        out.put_u64_le(self.salt);
        out.put_u64_le(self.first);
        out.put_u32_le(self.bytes);
        let sum = crc32fast::hash(&bytes[..28]);
        bytes[28..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let mut head = bytes.get(..SEGMENT_HEAD_BYTES)?;
        let sum = crc32fast::hash(&head[..28]);
        let magic = head.copy_to_bytes(8);
        let read = Self {
            salt: head.get_u64_le(),
            first: head.get_u64_le(),
            bytes: head.get_u32_le(),
        };
        (magic == MAGIC[..] && head.get_u32_le() == sum).then_some(read)
    }
}

/// A batch that is being made.
#[derive(Debug)]
pub(super) struct Batch(Vec<u8>);

impl Batch {
    pub(super) fn new() -> Self {
        Self(vec![0; BATCH_HEAD_BYTES])
    }

    /// Adds a record; gives its place in the batch.
    pub(super) fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        let at = self.0.len();
        write(&mut self.0);
        at
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Gives it its number in its segment: then these bytes are what is written.
    ///
    /// # Panics
    /// With 4 GiB of records, which is far more than a segment.
    pub(super) fn finish(&mut self, number: u64, salt: u64) -> &[u8] {
        let length = self.0.len() - BATCH_HEAD_BYTES;
        let length = u32::try_from(length).expect("smaller than a segment");
        let mut head = &mut self.0[..BATCH_HEAD_BYTES];
        head.put_u64_le(number);
        head.put_u32_le(length);
        head.put_u32_le(batch_sum(salt, number, length));
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        &self.0
    }

    /// All of it, its header included.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Empties it for the next one.
    pub(super) fn clear(&mut self) {
        self.0.truncate(BATCH_HEAD_BYTES);
        self.0.shrink_to(KEPT_BYTES_MAX);
    }
}

/// What an empty batch may hold for the next one.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// What says that everything before it was synced, in the place of the batch of that number.
pub(super) fn confirmation(number: u64, salt: u64) -> Vec<u8> {
    Batch::new().finish(number, salt).to_vec()
}

fn batch_sum(salt: u64, number: u64, length: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.update(&length.to_le_bytes());
    hasher.finalize()
}

/// What a segment holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scanned {
    /// The number of its first batch.
    pub(super) first: u64,
    /// Bytes of the file, as it was made.
    pub(super) bytes: u32,
    /// Behind the last whole batch.
    pub(super) end: usize,
    /// The number of the batch that comes next.
    pub(super) next: u64,
    /// Whether something stands behind the end: a write that never finished.
    pub(super) is_torn: bool,
    /// What was stored and can't be read, in order.
    pub(super) lost: Vec<Lost>,
}

/// Something that was stored and can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// The record of which this is the head.
    Record(Head),
    /// Records, and nobody knows whose, from this place on.
    Unknown(usize),
}

/// Why a segment can't be used at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ScanError {
    /// Its beginning is not that of a segment.
    #[error("its first bytes are not those of a segment")]
    Head,
    /// It holds what this server can't know.
    #[error("it was written by a later version of the server (records of version {0})")]
    Version(u8),
}

/// Reads a segment. `is_last` says whether its end may be a write that never finished. Every whole record goes to
/// `found`, with its place.
///
/// # Errors
/// Nothing of it can be read, or not by this version.
pub(super) fn scan(
    bytes: &[u8],
    is_last: bool,
    mut found: impl FnMut(usize, Record<'_>),
) -> Result<Scanned, ScanError> {
    let head = SegmentHead::read(bytes).ok_or(ScanError::Head)?;
    let SegmentHead { salt, first, .. } = head;
    let mut scanned = Scanned {
        first,
        bytes: head.bytes,
        end: SEGMENT_HEAD_BYTES,
        next: first,
        is_torn: false,
        lost: Vec::new(),
    };
    loop {
        let at = scanned.end;
        let after = |number| later_batch(bytes, at + ALIGNMENT, salt, number);
        let found_here =
            BatchHead::read(bytes, at, salt).filter(|batch| batch.number == scanned.next);
        let is_confirmed = found_here.as_ref().is_some_and(BatchHead::is_empty);
        let Some(batch) = found_here.filter(|batch| !batch.is_empty()) else {
            let behind = if is_confirmed {
                at + BATCH_HEAD_BYTES
            } else {
                at
            };
            // Behind a batch that the file ends in there is nothing at all.
            let rest = bytes.get(behind..).unwrap_or_default();
            match after(scanned.next) {
                _ if rest.iter().all(|byte| *byte == 0) => return Ok(scanned),
                Some((place, number)) => {
                    scanned.lost.push(Lost::Unknown(at));
                    (scanned.end, scanned.next) = (place, number);
                    continue;
                }
                None if is_last => scanned.is_torn = true,
                None => scanned.lost.push(Lost::Unknown(at)),
            }
            return Ok(scanned);
        };
        let lost = batch.read_records(bytes, |_, _| {})?;
        if !lost.is_empty() && is_last && after(batch.number).is_none() {
            scanned.is_torn = true;
            return Ok(scanned);
        }
        batch.read_records(bytes, &mut found)?;
        scanned.lost.extend(lost);
        scanned.end = batch.end.next_multiple_of(ALIGNMENT).min(bytes.len());
        scanned.next = batch.number + 1;
    }
}

/// The next batch from a place on whose number is above one.
fn later_batch(bytes: &[u8], from: usize, salt: u64, above: u64) -> Option<(usize, u64)> {
    (from..bytes.len()).step_by(ALIGNMENT).find_map(|at| {
        let batch = BatchHead::read(bytes, at, salt)?;
        (batch.number > above).then_some((at, batch.number))
    })
}

/// A batch as its header says.
struct BatchHead {
    number: u64,
    /// Where its records begin.
    start: usize,
    /// Where they end.
    end: usize,
}

impl BatchHead {
    fn read(bytes: &[u8], at: usize, salt: u64) -> Option<Self> {
        let mut head = bytes.get(at..at + BATCH_HEAD_BYTES)?;
        let (number, length) = (head.get_u64_le(), head.get_u32_le());
        let start = at + BATCH_HEAD_BYTES;
        let end = start + length as usize;
        let is_whole = head.get_u32_le() == batch_sum(salt, number, length) && end <= bytes.len();
        is_whole.then_some(Self { number, start, end })
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Gives each whole record to `found`, and what is damaged back.
    fn read_records(
        &self,
        bytes: &[u8],
        mut found: impl FnMut(usize, Record<'_>),
    ) -> Result<Vec<Lost>, ScanError> {
        let mut lost = Vec::new();
        let mut at = self.start;
        while at < self.end {
            match Record::read(&bytes[at..self.end]) {
                Ok((record, length)) => {
                    found(at, record);
                    at += length;
                }
                Err(Damage::Content(head, length)) => {
                    lost.push(Lost::Record(head));
                    at += length;
                }
                Err(Damage::Head) => {
                    lost.push(Lost::Unknown(at));
                    break;
                }
                Err(Damage::Version(version)) => return Err(ScanError::Version(version)),
            }
        }
        Ok(lost)
    }
}

#[cfg(test)]
mod tests {
    use roomful_protocol::frame::{Entry, EntryKind};
    use roomful_protocol::id::{Epoch, Offset, UserId};
    use roomful_protocol::payload::Payload;

    use super::super::record::{LogId, Term, put_entry};
    use super::*;

    const SALT: u64 = 0x1234_5678_9abc_def0;

    fn entry(offset: u64) -> Entry {
        Entry {
            offset: Offset(offset),
            time_ms: 1_000 + offset,
            kind: EntryKind::Publish,
            user: UserId::parse("ada").unwrap(),
            op: None,
            payload: Payload::text(format!("message {offset}")),
        }
    }

    fn add(batch: &mut Batch, entry: &Entry) {
        let head = Head::of_entry(LogId(7), Epoch(3), Term(1), entry);
        batch.add(|out| head.write(out, |out| put_entry(entry, out)));
    }

    /// A segment of three batches with two entries each, and where each batch ends.
    fn segment() -> (Vec<u8>, Vec<usize>) {
        let head = SegmentHead {
            salt: SALT,
            first: 5,
            bytes: 1_000,
        };
        let mut bytes = head.to_bytes().to_vec();
        let mut ends = vec![bytes.len()];
        let mut batch = Batch::new();
        for number in 0..3 {
            for offset in [2 * number + 1, 2 * number + 2] {
                add(&mut batch, &entry(offset));
            }
            bytes.extend_from_slice(batch.finish(5 + number, SALT));
            batch.clear();
            ends.push(bytes.len());
        }
        bytes.resize(bytes.len() + 100, 0);
        (bytes, ends)
    }

    fn read(bytes: &[u8], is_last: bool) -> (Vec<u64>, Result<Scanned, ScanError>) {
        let mut offsets = Vec::new();
        let scanned = scan(bytes, is_last, |_, record| {
            assert_eq!(record.entry().unwrap(), entry(record.head.offset.0));
            offsets.push(record.head.offset.0);
        });
        (offsets, scanned)
    }

    #[test]
    fn what_was_written_is_read() {
        let (bytes, ends) = segment();
        let (offsets, scanned) = read(&bytes, true);
        assert_eq!(offsets, [1, 2, 3, 4, 5, 6]);
        let expected = Scanned {
            first: 5,
            bytes: 1_000,
            end: ends[3],
            next: 8,
            is_torn: false,
            lost: Vec::new(),
        };
        assert_eq!(scanned, Ok(expected));
    }

    #[test]
    fn a_write_that_never_finished_is_cut_off_wherever_it_ends() {
        let (bytes, ends) = segment();
        for cut in ends[0]..ends[3] {
            let mut torn = bytes.clone();
            torn[cut..].fill(0);
            let (offsets, scanned) = read(&torn, true);
            let scanned = scanned.unwrap();
            // A cut among the zeros at a batch's end takes nothing away.
            let whole = ends[1..]
                .iter()
                .filter(|end| **end <= cut || torn[..**end] == bytes[..**end])
                .count();
            assert_eq!(offsets.len(), 2 * whole, "cut at {cut}");
            assert_eq!((scanned.end, scanned.next), (ends[whole], 5 + whole as u64));
            assert_eq!(scanned.lost, []);
            assert_eq!(
                scanned.is_torn,
                torn[ends[whole]..] != vec![0; torn.len() - ends[whole]]
            );
        }
    }

    #[test]
    fn a_flipped_bit_is_never_served_and_never_hides_what_is_behind_it() {
        let (bytes, ends) = segment();
        for bit in ends[0] * 8..ends[2] * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let (offsets, scanned) = read(&flipped, true);
            let scanned = scanned.unwrap();
            assert_eq!(offsets.last(), Some(&6), "bit {bit}");
            assert!(!scanned.is_torn);
            let missing = 6 - offsets.len();
            assert_eq!(
                scanned.lost.is_empty(),
                missing == 0,
                "bit {bit}: {offsets:?}"
            );
            for lost in scanned.lost {
                if let Lost::Record(head) = lost {
                    assert_eq!((head.log, missing), (LogId(7), 1));
                    assert!(!offsets.contains(&head.offset.0));
                }
            }
        }
    }

    #[test]
    fn what_is_confirmed_is_not_cut_off() {
        let (bytes, ends) = segment();
        let mut confirmed = bytes.clone();
        confirmed[ends[3]..][..BATCH_HEAD_BYTES].copy_from_slice(&confirmation(8, SALT));
        let (offsets, scanned) = read(&confirmed, true);
        let scanned = scanned.unwrap();
        assert_eq!(offsets.len(), 6);
        assert_eq!((scanned.end, scanned.next), (ends[3], 8));
        assert!(!scanned.is_torn && scanned.lost.is_empty());
        for bit in ends[2] * 8..ends[3] * 8 {
            let mut flipped = confirmed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let (offsets, scanned) = read(&flipped, true);
            let scanned = scanned.unwrap();
            assert!(!scanned.is_torn, "bit {bit}");
            assert_eq!(scanned.lost.is_empty(), offsets.len() == 6, "bit {bit}");
        }
        // A batch in its place that never finished leaves the confirmation, or nothing.
        for torn in [confirmed.clone(), bytes] {
            let mut torn = torn;
            torn[ends[3] + BATCH_HEAD_BYTES..].fill(7);
            let (offsets, scanned) = read(&torn, true);
            let scanned = scanned.unwrap();
            assert_eq!((offsets.len(), scanned.end), (6, ends[3]));
            assert!(scanned.is_torn && scanned.lost.is_empty());
        }
    }

    #[test]
    fn in_a_segment_that_was_followed_by_another_nothing_is_cut_off() {
        let (mut bytes, ends) = segment();
        bytes[ends[3] - 20] ^= 1;
        let (offsets, scanned) = read(&bytes, false);
        assert_eq!(offsets.len(), 5);
        assert_eq!(scanned.unwrap().lost.len(), 1);
        let (offsets, scanned) = read(&bytes, true);
        assert_eq!(offsets.len(), 4);
        assert!(scanned.unwrap().is_torn);
    }

    #[test]
    fn bytes_of_a_client_are_no_batch() {
        let (inner, ends) = segment();
        let payload = inner[ends[1]..ends[3]].to_vec();
        let mut batch = Batch::new();
        let entry = Entry {
            payload: Payload::binary(payload),
            ..entry(1)
        };
        add(&mut batch, &entry);
        let mut bytes = SegmentHead {
            salt: SALT + 1,
            first: 1,
            bytes: 1_000,
        }
        .to_bytes()
        .to_vec();
        bytes.extend_from_slice(batch.finish(1, SALT + 1));
        bytes.truncate(bytes.len() - 8);
        let scanned = scan(&bytes, true, |_, _| panic!("it never finished")).unwrap();
        assert!(scanned.is_torn);
        assert_eq!(scanned.lost, []);
    }

    #[test]
    fn a_foreign_file_is_refused() {
        let (bytes, _) = segment();
        for bit in 0..SEGMENT_HEAD_BYTES * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&flipped, true).1, Err(ScanError::Head));
        }
        assert_eq!(read(b"", true).1, Err(ScanError::Head));
    }

    /// A file may end anywhere, in what fills a batch up too.
    #[test]
    fn a_file_that_ends_early_is_read_as_far_as_it_goes() {
        let (bytes, _) = segment();
        for end in SEGMENT_HEAD_BYTES..bytes.len() {
            let mut found = 0;
            let scanned = scan(&bytes[..end], true, |_, _| found += 1).unwrap();
            assert!(scanned.end <= end, "{end}: {}", scanned.end);
        }
    }
}
