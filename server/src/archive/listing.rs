//! What rooms are, without what is in them: one JSON object a line, sorted by tenant and name.

use std::fmt::Display;
use std::io::{self, Write};

use roomful_protocol::id::{Epoch, Offset, RoomId, RoomName, TenantId};
use serde::{Deserialize, Serialize};

use crate::journal::local::freezing::{Frozen, ReadError, StoredRoom};
use crate::journal::local::{Finding, Local, Verified};
use crate::room::snapshot;

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Told {
    /// Something that is wrong with what is stored, whosever it is.
    Found {
        /// Where, whose and what.
        finding: String,
    },
    /// What a room is.
    Room(Listed),
}

/// What is said of one room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Whose room it is.
    pub tenant: TenantId,
    /// Its name.
    pub room: String,
    /// Entries that are kept.
    pub entries: u64,
    /// What they take, in bytes.
    pub bytes: u64,
    /// The oldest offset that is kept; one more than the head when none is.
    pub first: Offset,
    /// The last entry's offset.
    pub head: Offset,
    /// The newest snapshot's offset; 0 for none.
    pub snapshot: Offset,
    /// The epoch of its log.
    pub epoch: Epoch,
    /// When it has to be opened though nobody is in it, in milliseconds since 1970; 0: at the next start.
    pub wake_ms: Option<u64>,
    /// What is wrong with it, where something is.
    pub damaged: Option<String>,
}

/// How closely rooms are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// What is known of them.
    Known,
    /// Everything that is stored of them is read, and each checksum compared.
    Read,
}

impl Told {
    /// What was found.
    pub fn of(finding: &impl Display) -> Self {
        let finding = finding.to_string();
        Self::Found { finding }
    }
}

impl Listed {
    /// Looks at a room.
    ///
    /// # Errors
    /// The store can't be read. A room that is damaged is none.
    pub fn of(frozen: &Frozen, room: StoredRoom, depth: Depth) -> io::Result<Self> {
        let read = match depth {
            Depth::Read => frozen.read(&room, &mut |_| Ok(())),
            Depth::Known => Ok(()),
        };
        let found = match read {
            Ok(()) => None,
            Err(ReadError::Damaged(damage)) => Some(damage),
            Err(ReadError::Io(error)) => return Err(error),
        };
        Ok(Self {
            entries: room.entries(),
            tenant: room.room.tenant,
            room: room.room.name.as_str().to_owned(),
            bytes: room.bytes,
            first: room.first,
            head: room.head,
            snapshot: room.snapshot,
            epoch: room.epoch,
            wake_ms: room.wake_ms,
            damaged: room.damage.or(found).map(str::to_owned),
        })
    }

    /// Which room it is, if that can be one.
    #[must_use]
    pub fn id(&self) -> Option<RoomId> {
        let name = RoomName::parse(self.room.as_bytes()).ok()?;
        let tenant = self.tenant.clone();
        Some(RoomId { tenant, name })
    }
}

/// Reads everything that is stored in all rooms, in the log and in the store, and tells what is wrong.
pub fn verify(local: &Local, tell: &mut dyn FnMut(&Finding)) -> Verified {
    local.verify(snapshot::check, &mut |finding| tell(&finding))
}

/// Lists what is wrong with all that is stored.
///
/// # Errors
/// The lines can't be written.
pub fn list_findings(local: &Local, mut out: impl Write) -> io::Result<()> {
    let mut written = Ok(());
    verify(local, &mut |finding| {
        if written.is_ok() {
            written = put(&Told::of(finding), &mut out);
        }
    });
    written
}

/// Lists all rooms.
///
/// # Errors
/// The store can't be read, or the lines can't be written.
pub fn list(frozen: &Frozen, depth: Depth, mut out: impl Write) -> io::Result<()> {
    frozen.rooms(&mut |room| {
        let listed = Listed::of(frozen, room, depth)?;
        put(&Told::Room(listed), &mut out)
    })?;
    out.flush()
}

/// Lists some rooms, as they come.
///
/// # Errors
/// The store can't be read, or the lines can't be written.
pub fn list_some(
    frozen: &Frozen,
    rooms: Vec<StoredRoom>,
    depth: Depth,
    mut out: impl Write,
) -> io::Result<()> {
    for room in rooms {
        let listed = Listed::of(frozen, room, depth)?;
        put(&Told::Room(listed), &mut out)?;
    }
    out.flush()
}

fn put(told: &Told, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, told)?;
    out.write_all(b"\n")
}
