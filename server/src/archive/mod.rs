//! Rooms in a file: what an export and a backup are, and how one is read back.
//!
//! The file has one JSON object a line, so that other programs can read it, and every line is of one of the kinds of `Line`.
//! First comes the header, then what belongs to no room, then each room, sorted by tenant and name: its line, its snapshot, its
//! cursors, its entries, and a line that ends it. The last line ends the file. A room's end has the SHA-256 (FIPS 180-4) of its
//! lines, and the file's end has that of all lines outside of rooms, so that what was cut off, changed, taken out or put elsewhere
//! is noticed, and where. Neither writing nor reading holds more than a line.
//!
//! [`backup`] and [`export`] write what a [`Frozen`] shows; [`Reader`] gives back what it has checked. Where the bytes come from and go
//! to is left to others. [`list`](listing::list) says of rooms what they are, without what is in them.

pub mod listing;
mod reading;
mod writing;

use std::borrow::Cow;
use std::io::{self, Write};

use roomful_protocol::frame::{EntryKind, OpId};
use roomful_protocol::id::{Epoch, Offset, TenantId, UserId};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use self::reading::{ArchiveError, Item, Reader};
pub use self::writing::{DamagedRoom, Summary};

use self::writing::Writer;
use crate::journal::local::freezing::{Frozen, StoredRoom};
use crate::session::revocation_file;

/// Writes all rooms, and who is revoked.
///
/// # Errors
/// The store can't be read, or the file can't be written.
pub fn backup(
    frozen: &Frozen,
    revocations: Vec<revocation_file::Line>,
    header: &Header,
    out: impl Write,
) -> io::Result<Summary> {
    // The number of the last start may be lost, or be that of another directory: the rooms know better.
    let header = header.with_epoch(frozen.last_epoch()?);
    let mut writer = Writer::begin(out, &header)?;
    for line in revocations {
        writer.revocation(line)?;
    }
    frozen.rooms(&mut |room| writer.room(frozen, &room))?;
    writer.end()
}

/// Writes some rooms.
///
/// # Errors
/// The store can't be read, or the file can't be written.
pub fn export(
    frozen: &Frozen,
    mut rooms: Vec<StoredRoom>,
    header: &Header,
    out: impl Write,
) -> io::Result<Summary> {
    rooms.sort_by(|one, other| one.name().cmp(&other.name()));
    rooms.dedup_by(|one, other| one.room == other.room);
    let last = rooms.iter().map(|room| room.epoch).max();
    let header = header.with_epoch(last.unwrap_or(Epoch(0)));
    let mut writer = Writer::begin(out, &header)?;
    for room in &rooms {
        writer.room(frozen, room)?;
    }
    writer.end()
}

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The version of the format.
    pub roomful_export: u64,
    /// What is in it.
    pub content: Content,
    /// When it was begun, in milliseconds since 1970.
    pub made_ms: u64,
    /// The version of the server.
    pub server: String,
    /// No room in it has a later epoch, and no client a position of one.
    pub epoch_max: Epoch,
}

impl Header {
    /// Of a file that is begun now by this server.
    #[must_use]
    pub fn new(content: Content, made_ms: u64, epoch_max: Epoch) -> Self {
        Self {
            roomful_export: VERSION,
            content,
            made_ms,
            server: env!("CARGO_PKG_VERSION").to_owned(),
            epoch_max,
        }
    }

    /// The same, of a file that has a room with this epoch.
    fn with_epoch(&self, epoch: Epoch) -> Self {
        let epoch_max = self.epoch_max.max(epoch);
        let header = self.clone();
        Self {
            epoch_max,
            ..header
        }
    }
}

/// What is in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// All rooms, and what belongs to none.
    Backup,
    /// Some rooms.
    Rooms,
}

/// A line behind the first.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line<'a> {
    /// Who is not let in.
    Revocation(revocation_file::Line),
    Room(RoomLine),
    Snapshot {
        at: Offset,
        /// The room's own form.
        base64: Cow<'a, str>,
    },
    /// How far a user has read.
    Cursor {
        user: UserId,
        read: Option<Offset>,
        delivered: Option<Offset>,
    },
    Entry(EntryLine<'a>),
    RoomEnd(RoomEnd),
    End {
        rooms: u64,
        sha256: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RoomLine {
    tenant: TenantId,
    room: String,
    epoch: Epoch,
    /// The oldest offset that is kept.
    first: Offset,
    head: Offset,
    wake_ms: Option<u64>,
    age_max_ms: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryLine<'a> {
    offset: Offset,
    time_ms: u64,
    kind: EntryKind,
    user: UserId,
    op: Option<OpId>,
    payload: PayloadLine<'a>,
}

/// The bytes as they are, in one of two ways.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PayloadLine<'a> {
    format: Cow<'a, str>,
    /// Of a text and of JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<Cow<'a, str>>,
    /// Of everything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<Cow<'a, str>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RoomEnd {
    cursors: u64,
    entries: u64,
    /// Why what stands above is not the whole room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    damaged: Option<String>,
    sha256: String,
}

/// The checksums of a file, as far as it has come.
#[derive(Debug, Default)]
struct Sums {
    /// Of what stands outside of rooms.
    outside: Sha256,
    /// Of the room that has begun.
    room: Option<Sha256>,
}

impl Sums {
    fn begin_room(&mut self) {
        self.room = Some(Sha256::new());
    }

    fn add(&mut self, line: &[u8]) {
        self.room.as_mut().unwrap_or(&mut self.outside).update(line);
    }

    fn end_room(&mut self) -> String {
        hex(self.room.take().unwrap_or_default())
    }

    fn end(&mut self) -> String {
        hex(std::mem::take(&mut self.outside))
    }
}

fn hex(sum: Sha256) -> String {
    sum.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The version that is written, and the last one that is read.
pub const VERSION: u64 = 1;
