//! A record: what the log on disk and the store are made of, each checked by itself.
//!
//! Whatever is kept carries what it takes to be told from everything else: version, log, epoch, term, offset,
//! time, and two checksums. A bit that flips anywhere is found where the record is read, and as long as it is
//! in the content, the record still says whose it was. Where records stand is left to `segment` and `store`.
//!
//! All integers are little-endian.
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 4 | CRC-32 (IEEE 802.3) of the rest of this table |
//! | 4 | 4 | CRC-32 of the content |
//! | 8 | 4 | length of the content |
//! | 12 | 1 | version, 1 |
//! | 13 | 1 | kind |
//! | 14 | 1 | 1 for an entry that stays until a snapshot holds it, else 0 |
//! | 15 | 1 | zero |
//! | 16 | 8 | log |
//! | 24 | 8 | epoch |
//! | 32 | 8 | term |
//! | 40 | 8 | offset; 0 where the kind has none |
//! | 48 | 8 | time, in milliseconds since 1970; 0 where the kind has none |
//! | 56 | | content |

use bytes::{Buf as _, BufMut as _};
use roomful_protocol::frame::{Entry, EntryKind};
use roomful_protocol::id::{Epoch, Offset, RoomId, RoomName, TenantId};

/// Bytes before the content.
pub(super) const HEAD_BYTES: usize = 56;

const VERSION: u8 = 1;

/// One epoch of a room's log. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct LogId(pub(super) u64);

/// A generation of ownership: the start of the server that wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Term(pub(super) u64);

/// What every record says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    /// The entry stays until a snapshot holds it.
    pub(super) is_pinned: bool,
    pub(super) log: LogId,
    pub(super) epoch: Epoch,
    pub(super) term: Term,
    pub(super) offset: Offset,
    pub(super) time_ms: u64,
}

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A log begins. The content is the room, as MessagePack.
    Began = 1,
    /// An entry. The content is the entry, as MessagePack.
    Entry = 2,
    /// What is before the offset is not kept any more. No content.
    Trimmed = 3,
    /// What the room is at the offset. The content is the room's own form of it.
    Snapshot = 4,
    /// The last value of a register. The content is the key's length as 2 bytes, the key, and the value.
    Register = 5,
    /// When somebody has to look at the room: the time, or never where the offset is 0. The content is the room, as
    /// MessagePack.
    Wake = 6,
    /// How long entries are kept while nobody has the log open: as long as the time says. No content.
    Age = 7,
}

/// A record as it stands in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a> {
    pub(super) head: Head,
    content: &'a [u8],
}

/// Why bytes are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Damage {
    /// Nobody knows whose it was, or where the next one begins.
    #[error("the head of a record is damaged")]
    Head,
    /// The next record stands where the head says.
    #[error("the content of a record is damaged")]
    Content(Head, usize),
    /// It is of a later version of the server.
    #[error("a record has version {0}, which this server doesn't know")]
    Version(u8),
}

impl Kind {
    fn of(tag: u8) -> Option<Self> {
        [
            Self::Began,
            Self::Entry,
            Self::Trimmed,
            Self::Snapshot,
            Self::Register,
            Self::Wake,
            Self::Age,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == tag)
    }
}

impl Head {
    /// The head of an entry's record.
    pub(super) fn of_entry(log: LogId, epoch: Epoch, term: Term, entry: &Entry) -> Self {
        Self {
            kind: Kind::Entry,
            is_pinned: entry.kind != EntryKind::Publish,
            log,
            epoch,
            term,
            offset: entry.offset,
            time_ms: entry.time_ms,
        }
    }

    /// Puts a record behind what is in a buffer.
    ///
    /// # Panics
    /// With a content of 4 GiB, which no message can carry.
    pub(super) fn write(&self, out: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>)) {
        let start = out.len();
        out.put_bytes(0, 12);
        out.put_u8(VERSION);
        out.put_u8(self.kind as u8);
        out.put_u8(u8::from(self.is_pinned));
        out.put_u8(0);
        out.put_u64_le(self.log.0);
        out.put_u64_le(self.epoch.0);
        out.put_u64_le(self.term.0);
        out.put_u64_le(self.offset.0);
        out.put_u64_le(self.time_ms);
        content(out);
        let record = &mut out[start..];
        let length = u32::try_from(record.len() - HEAD_BYTES).expect("bounded by a message's size");
        let sum = crc32fast::hash(&record[HEAD_BYTES..]);
        record[4..8].copy_from_slice(&sum.to_le_bytes());
        record[8..12].copy_from_slice(&length.to_le_bytes());
        let sum = crc32fast::hash(&record[4..HEAD_BYTES]);
        record[..4].copy_from_slice(&sum.to_le_bytes());
    }
}

/// The content of an entry's record.
pub(super) fn put_entry(entry: &Entry, out: &mut Vec<u8>) {
    rmp_serde::encode::write(out, entry).expect("an entry has a form, and a buffer takes all");
}

/// The content of a record that names its room.
pub(super) fn put_room(room: &RoomId, out: &mut Vec<u8>) {
    let names = (room.tenant.as_str(), room.name.as_str());
    rmp_serde::encode::write(out, &names).expect("two texts have a form, and a buffer takes all");
}

/// The content of a register's record.
///
/// # Panics
/// With a key of 64 KiB, which no request can carry.
pub(super) fn put_register(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.put_u16_le(u16::try_from(key.len()).expect("bounded by a request's fields"));
    out.put_slice(key);
    out.put_slice(value);
}

impl<'a> Record<'a> {
    /// Reads the record at the beginning of some bytes; gives its length too.
    pub(super) fn read(bytes: &'a [u8]) -> Result<(Self, usize), Damage> {
        let mut head = bytes.get(..HEAD_BYTES).ok_or(Damage::Head)?;
        let checked = &head[4..];
        let head_sum = head.get_u32_le();
        let content_sum = head.get_u32_le();
        let length = head.get_u32_le() as usize;
        if crc32fast::hash(checked) != head_sum {
            return Err(Damage::Head);
        }
        let version = head.get_u8();
        if version != VERSION {
            return Err(Damage::Version(version));
        }
        let kind = Kind::of(head.get_u8()).ok_or(Damage::Version(version))?;
        let is_pinned = head.get_u8() != 0;
        head.advance(1);
        let head = Head {
            kind,
            is_pinned,
            log: LogId(head.get_u64_le()),
            epoch: Epoch(head.get_u64_le()),
            term: Term(head.get_u64_le()),
            offset: Offset(head.get_u64_le()),
            time_ms: head.get_u64_le(),
        };
        let end = HEAD_BYTES + length;
        match bytes.get(HEAD_BYTES..end) {
            Some(content) if crc32fast::hash(content) == content_sum => {
                Ok((Self { head, content }, end))
            }
            _ => Err(Damage::Content(head, end)),
        }
    }

    /// The entry of a record of that kind.
    pub(super) fn entry(&self) -> Result<Entry, Damage> {
        rmp_serde::from_slice(self.content).map_err(|_| self.unreadable())
    }

    /// What follows the head.
    pub(super) fn content(&self) -> &'a [u8] {
        self.content
    }

    /// Bytes of all of it.
    pub(super) fn len(&self) -> usize {
        HEAD_BYTES + self.content.len()
    }

    /// The key and the value of a register.
    pub(super) fn register(&self) -> Result<(&'a [u8], &'a [u8]), Damage> {
        let (length, rest) = self
            .content
            .split_first_chunk()
            .ok_or_else(|| self.unreadable())?;
        rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))
            .ok_or_else(|| self.unreadable())
    }

    /// The room of a record that names it.
    pub(super) fn room(&self) -> Result<RoomId, Damage> {
        let (tenant, name): (&str, &str) =
            rmp_serde::from_slice(self.content).map_err(|_| self.unreadable())?;
        match (TenantId::parse(tenant), RoomName::parse(name.as_bytes())) {
            (Ok(tenant), Ok(name)) => Ok(RoomId { tenant, name }),
            _ => Err(self.unreadable()),
        }
    }

    fn unreadable(&self) -> Damage {
        Damage::Content(self.head, self.len())
    }
}
