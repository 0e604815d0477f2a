//! From lines to rooms: nothing is given that doesn't stand where it should.

use std::fmt;
use std::io::{self, BufRead, Read as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use roomful_protocol::frame::Entry;
use roomful_protocol::id::{Epoch, Offset, RoomId, RoomName, TenantId, UserId};
use roomful_protocol::payload::{Payload, PayloadFormat};
use serde::Deserialize;

use super::{EntryLine, Header, Line, PayloadLine, RoomEnd, RoomLine, Sums, VERSION};
use crate::journal::Snapshot;
use crate::journal::local::loading::Beginning;
use crate::room::cursors::Cursor;
use crate::room::snapshot;
use crate::session::generation::ELSEWHERE_EPOCH_MAX;
use crate::session::revocations::Subject;

/// Reads a file line by line, and checks it on the way. What it has given is right only once it has given everything.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    header: Header,
    sums: Sums,
    line: Vec<u8>,
    /// The number of that line, from 1 on.
    number: u64,
    rooms: u64,
    /// The one that has begun.
    room: Option<Room>,
    /// The one before.
    last: Option<RoomId>,
    has_ended: bool,
}

/// A room as far as it was read.
#[derive(Debug)]
struct Room {
    id: RoomId,
    /// The line that began it.
    number: u64,
    head: Offset,
    next: Offset,
    has_snapshot: bool,
    /// The one before.
    cursor: Option<UserId>,
    cursors: u64,
    entries: u64,
}

/// What a line says.
#[derive(Debug)]
pub enum Item {
    /// Somebody is not let in.
    Revocation {
        /// Who.
        whom: (TenantId, Subject),
        /// Until when, in milliseconds since 1970.
        until_ms: u64,
    },
    /// A room begins.
    Room(Beginning),
    /// What it was at an offset.
    Snapshot(Snapshot),
    /// How far a user has read.
    Cursor(UserId, Cursor),
    /// An entry; the next one follows it.
    Entry(Entry),
    /// The room is whole, or why it is not.
    RoomEnd {
        /// What was damaged when the file was written.
        damage: Option<String>,
    },
}

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The bytes don't come.
    #[error("it can't be read")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("line 1: this is no export and no backup of Roomful")]
    Foreign,
    /// It is of a later version of the server.
    #[error(
        "it was written by a later version of the server: it has format {found}, and this server knows formats up to {VERSION}"
    )]
    Newer {
        /// What it says.
        found: u64,
    },
    /// A line is not what was written.
    #[error("line {line}: {what}")]
    Wrong {
        /// Which, from 1 on.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// Its end is missing.
    #[error(
        "it was cut off: line {line} is the last one of it, and not the last one that was written"
    )]
    CutOff {
        /// The last line that is there, whole or not.
        line: u64,
    },
}

impl<R: BufRead> Reader<R> {
    /// Reads the first line.
    ///
    /// # Errors
    /// It is no such file, or of a later version.
    pub fn open(input: R) -> Result<Self, ArchiveError> {
        /// All that a later version's first line is sure to have.
        #[derive(Deserialize)]
        struct Version {
            roomful_export: u64,
        }

        let header = Header {
            roomful_export: VERSION,
            content: super::Content::Rooms,
            made_ms: 0,
            server: String::new(),
            epoch_max: Epoch(0),
        };
        let mut reader = Self {
            input,
            header,
            sums: Sums::default(),
            line: Vec::new(),
            number: 0,
            rooms: 0,
            room: None,
            last: None,
            has_ended: false,
        };
        match reader.read_line() {
            Ok(true) => {}
            Err(error @ ArchiveError::Io(_)) => return Err(error),
            // A file of something else may have no lines at all.
            _ => return Err(ArchiveError::Foreign),
        }
        let version: Version =
            serde_json::from_slice(&reader.line).map_err(|_| ArchiveError::Foreign)?;
        if version.roomful_export > VERSION {
            let found = version.roomful_export;
            return Err(ArchiveError::Newer { found });
        }
        reader.header =
            serde_json::from_slice(&reader.line).map_err(|error| reader.wrong(error))?;
        if reader.header.epoch_max > ELSEWHERE_EPOCH_MAX {
            return Err(reader.wrong("its epoch_max can't be: no server gets so far"));
        }
        reader.sums.add(&reader.line);
        Ok(reader)
    }

    /// The first line.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// What comes next; none behind the end.
    ///
    /// # Errors
    /// Something is wrong with it, and nothing more is read.
    pub fn next_item(&mut self) -> Result<Option<Item>, ArchiveError> {
        if self.has_ended {
            return Ok(None);
        }
        if !self.read_line()? {
            return Err(ArchiveError::CutOff { line: self.number });
        }
        let bytes = std::mem::take(&mut self.line);
        let item = self.understand(&bytes);
        self.line = bytes;
        item
    }

    fn understand(&mut self, bytes: &[u8]) -> Result<Option<Item>, ArchiveError> {
        let line = serde_json::from_slice(bytes).map_err(|error| self.wrong(error))?;
        let line: Line<'_> = line;
        match &line {
            Line::End { .. } => {}
            Line::RoomEnd(end) => self.check_room_sum(end)?,
            Line::Room(_) if self.room.is_none() => self.sums.begin_room(),
            _ => {}
        }
        if !matches!(line, Line::End { .. }) {
            self.sums.add(bytes);
        }
        match line {
            Line::Revocation(line) if self.rooms == 0 && self.room.is_none() => {
                let named = line.read().ok_or_else(|| self.wrong("it names nobody"))?;
                let (whom, until_ms) = named;
                Ok(Some(Item::Revocation { whom, until_ms }))
            }
            Line::Room(room) => self.begin_room(room).map(Some),
            Line::Snapshot { at, base64 } => self.snapshot(at, &base64).map(Some),
            Line::Cursor {
                user,
                read,
                delivered,
            } => self.cursor(user, Cursor { read, delivered }).map(Some),
            Line::Entry(entry) => self.entry(entry).map(Some),
            Line::RoomEnd(end) => self.end_room(end).map(Some),
            Line::End { rooms, sha256 } => self.end(rooms, &sha256).map(|()| None),
            Line::Revocation(_) => Err(self.wrong("it stands behind a room")),
        }
    }

    fn begin_room(&mut self, line: RoomLine) -> Result<Item, ArchiveError> {
        let RoomLine {
            tenant,
            room: name,
            epoch,
            first,
            head,
            wake_ms,
            age_max_ms,
        } = line;
        let name = RoomName::parse(name.as_bytes()).map_err(|error| self.wrong(error))?;
        let id = RoomId { tenant, name };
        if let Some(room) = &self.room {
            return Err(self.wrong(format!("the end of {} is missing before it", room.id)));
        }
        if self
            .last
            .as_ref()
            .is_some_and(|last| by_name(last) >= by_name(&id))
        {
            return Err(self.wrong("the rooms are not sorted"));
        }
        if first == Offset(0) || first.0 > head.0.saturating_add(1) || epoch > self.header.epoch_max
        {
            return Err(self.wrong("its position can't be"));
        }
        self.room = Some(Room {
            id: id.clone(),
            number: self.number,
            head,
            next: first,
            has_snapshot: false,
            cursor: None,
            cursors: 0,
            entries: 0,
        });
        Ok(Item::Room(Beginning {
            room: id,
            first,
            head,
            wake_ms,
            age_max_ms,
        }))
    }

    fn snapshot(&mut self, at: Offset, base64: &str) -> Result<Item, ArchiveError> {
        let content = BASE64.decode(base64).map_err(|error| self.wrong(error))?;
        snapshot::read(&content).map_err(|error| self.wrong(error))?;
        let room = self.room.as_mut();
        let fits = room.filter(|room| {
            let is_first = !room.has_snapshot && room.cursors + room.entries == 0;
            is_first && at != Offset(0) && at <= room.head
        });
        let Some(room) = fits else {
            return Err(self.misplaced());
        };
        room.has_snapshot = true;
        let content = Bytes::from(content);
        Ok(Item::Snapshot(Snapshot { at, content }))
    }

    fn cursor(&mut self, user: UserId, cursor: Cursor) -> Result<Item, ArchiveError> {
        let room = self.room.as_mut().filter(|room| {
            let is_sorted = room
                .cursor
                .as_ref()
                .is_none_or(|last| last.as_str() < user.as_str());
            is_sorted && room.entries == 0
        });
        let Some(room) = room else {
            return Err(self.misplaced());
        };
        room.cursor = Some(user.clone());
        room.cursors += 1;
        Ok(Item::Cursor(user, cursor))
    }

    fn entry(&mut self, line: EntryLine<'_>) -> Result<Item, ArchiveError> {
        let EntryLine {
            offset,
            time_ms,
            kind,
            user,
            op,
            payload,
        } = line;
        let payload = payload_of(payload).map_err(|what| self.wrong(what))?;
        payload.check().map_err(|error| self.wrong(error))?;
        let room = self.room.as_mut();
        let Some(room) = room.filter(|room| offset == room.next && offset <= room.head) else {
            return Err(self.misplaced());
        };
        room.next = offset.next();
        room.entries += 1;
        Ok(Item::Entry(Entry {
            offset,
            time_ms,
            kind,
            user,
            op,
            payload,
        }))
    }

    fn check_room_sum(&mut self, end: &RoomEnd) -> Result<(), ArchiveError> {
        let Some(room) = &self.room else {
            return Err(self.misplaced());
        };
        let from = room.number;
        if self.sums.end_room() == end.sha256 {
            return Ok(());
        }
        let what = format!(
            "one of the lines from {from} on was changed: the checksum of the room is another one"
        );
        Err(self.wrong(what))
    }

    fn end_room(&mut self, end: RoomEnd) -> Result<Item, ArchiveError> {
        let Some(room) = self.room.take() else {
            return Err(self.misplaced());
        };
        let is_whole = end.damaged.is_some() || room.next == room.head.next();
        if !is_whole || (end.cursors, end.entries) != (room.cursors, room.entries) {
            return Err(self.wrong(format!("lines of {} are missing before it", room.id)));
        }
        self.rooms += 1;
        self.last = Some(room.id);
        let damage = end.damaged;
        Ok(Item::RoomEnd { damage })
    }

    fn end(&mut self, rooms: u64, sha256: &str) -> Result<(), ArchiveError> {
        if let Some(room) = &self.room {
            return Err(self.wrong(format!("the end of {} is missing before it", room.id)));
        }
        if rooms != self.rooms {
            let what = format!("there were {rooms} rooms, and now there are {}", self.rooms);
            return Err(self.wrong(what));
        }
        if self.sums.end() != sha256 {
            return Err(self.wrong(
                "a line outside of the rooms was changed: the checksum of the file is another one",
            ));
        }
        if self.read_line()? {
            return Err(self.wrong("something stands behind the end"));
        }
        self.has_ended = true;
        Ok(())
    }

    /// False: there is no line any more.
    fn read_line(&mut self) -> Result<bool, ArchiveError> {
        self.line.clear();
        let mut bounded = (&mut self.input).take(LINE_BYTES_MAX);
        if bounded.read_until(b'\n', &mut self.line)? == 0 {
            return Ok(false);
        }
        self.number += 1;
        if self.line.last() == Some(&b'\n') {
            return Ok(true);
        }
        match self.line.len() as u64 == LINE_BYTES_MAX {
            true => Err(self.wrong("it is longer than any line that is written")),
            false => Err(ArchiveError::CutOff { line: self.number }),
        }
    }

    fn wrong(&self, what: impl fmt::Display) -> ArchiveError {
        ArchiveError::Wrong {
            line: self.number,
            what: format!("{what}"),
        }
    }

    fn misplaced(&self) -> ArchiveError {
        self.wrong("it doesn't follow what is before it")
    }
}

fn by_name(room: &RoomId) -> (&str, &str) {
    (room.tenant.as_str(), room.name.as_str())
}

fn payload_of(line: PayloadLine<'_>) -> Result<Payload, String> {
    let formats = [
        PayloadFormat::Binary,
        PayloadFormat::Json,
        PayloadFormat::Text,
        PayloadFormat::MessagePack,
    ];
    let mut formats = formats.into_iter();
    let format = formats.find(|format| format.name() == line.format);
    let format = format.ok_or_else(|| format!("{:?} is no format of a payload", line.format))?;
    let bytes = match (line.text, line.base64) {
        (Some(text), None) => text.into_owned().into(),
        (None, Some(base64)) => {
            let bytes = BASE64.decode(&*base64);
            bytes.map_err(|error| error.to_string())?.into()
        }
        _ => return Err("a payload is either a text or base64".to_owned()),
    };
    Ok(Payload { format, bytes })
}

/// The longest line is that of a large room's snapshot.
const LINE_BYTES_MAX: u64 = 1 << 30;
