//! From rooms to lines.

use std::borrow::Cow;
use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use roomful_protocol::frame::Entry;
use roomful_protocol::id::RoomId;
use roomful_protocol::payload::PayloadFormat;
use serde::Serialize;

use super::{EntryLine, Header, Line, PayloadLine, RoomEnd, RoomLine, Sums};
use crate::journal::local::freezing::{Frozen, Part, ReadError, StoredRoom};
use crate::room::cursors::Cursor;
use crate::session::revocation_file;

/// Writes a file line by line.
#[derive(Debug)]
pub(super) struct Writer<W> {
    out: W,
    sums: Sums,
    /// The line that is written.
    line: Vec<u8>,
    summary: Summary,
}

/// What was written.
#[derive(Debug, Default)]
pub struct Summary {
    /// Rooms, damaged ones too.
    pub rooms: u64,
    /// Entries of those that are whole.
    pub entries: u64,
    /// Rooms of which not everything can be read. Nobody takes them from the file.
    pub damaged: Vec<DamagedRoom>,
}

/// A room of which not everything can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedRoom {
    /// Which.
    pub room: RoomId,
    /// What is wrong.
    pub damage: String,
}

impl<W: Write> Writer<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// It can't be written.
    pub(super) fn begin(out: W, header: &Header) -> io::Result<Self> {
        let mut writer = Self {
            out,
            sums: Sums::default(),
            line: Vec::new(),
            summary: Summary::default(),
        };
        writer.put(header)?;
        Ok(writer)
    }

    /// Puts who is revoked behind the header.
    ///
    /// # Errors
    /// It can't be written.
    pub(super) fn revocation(&mut self, line: revocation_file::Line) -> io::Result<()> {
        self.put(&Line::Revocation(line))
    }

    /// Puts a room behind those before it.
    ///
    /// # Errors
    /// It can't be written, or the store can't be read. A room that is damaged is none.
    pub(super) fn room(&mut self, frozen: &Frozen, room: &StoredRoom) -> io::Result<()> {
        self.sums.begin_room();
        self.put(&Line::Room(RoomLine {
            tenant: room.room.tenant.clone(),
            room: room.room.name.as_str().to_owned(),
            epoch: room.epoch,
            first: room.first,
            head: room.head,
            wake_ms: room.wake_ms,
            age_max_ms: room.age_max_ms,
        }))?;
        let (mut cursors, mut entries) = (0, 0);
        let read = frozen.read(room, &mut |part| match part {
            Part::Snapshot(snapshot) => Ok(self.put(&Line::Snapshot {
                at: snapshot.at,
                base64: BASE64.encode(&snapshot.content).into(),
            })?),
            Part::Register { key, value } => {
                let cursor = Cursor::from_register(&key, &value);
                let (user, epoch, Cursor { read, delivered }) =
                    cursor.map_err(|_| ReadError::Damaged("a cursor"))?;
                // One of another epoch is void.
                if epoch != room.epoch {
                    return Ok(());
                }
                cursors += 1;
                Ok(self.put(&Line::Cursor {
                    user,
                    read,
                    delivered,
                })?)
            }
            Part::Entry(entry) => {
                entries += 1;
                Ok(self.entry(&entry)?)
            }
        });
        let damaged = match read {
            Ok(()) => None,
            Err(ReadError::Damaged(damage)) => Some(damage.to_owned()),
            Err(ReadError::Io(error)) => return Err(error),
        };
        self.summary.rooms += 1;
        match &damaged {
            None => self.summary.entries += entries,
            Some(damage) => self.summary.damaged.push(DamagedRoom {
                room: room.room.clone(),
                damage: damage.clone(),
            }),
        }
        let sha256 = self.sums.end_room();
        self.put(&Line::RoomEnd(RoomEnd {
            cursors,
            entries,
            damaged,
            sha256,
        }))
    }

    /// Ends the file.
    ///
    /// # Errors
    /// It can't be written.
    pub(super) fn end(mut self) -> io::Result<Summary> {
        let sha256 = self.sums.end();
        let rooms = self.summary.rooms;
        self.put(&Line::End { rooms, sha256 })?;
        self.out.flush()?;
        Ok(self.summary)
    }

    fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        let bytes = &entry.payload.bytes;
        let text = match entry.payload.format {
            PayloadFormat::Text | PayloadFormat::Json => std::str::from_utf8(bytes).ok(),
            PayloadFormat::Binary | PayloadFormat::MessagePack => None,
        };
        let base64 = match text {
            Some(_) => None,
            None => Some(BASE64.encode(bytes)),
        };
        self.put(&Line::Entry(EntryLine {
            offset: entry.offset,
            time_ms: entry.time_ms,
            kind: entry.kind,
            user: entry.user.clone(),
            op: entry.op,
            payload: PayloadLine {
                format: entry.payload.format.name().into(),
                text: text.map(Cow::Borrowed),
                base64: base64.map(Cow::Owned),
            },
        }))
    }

    fn put(&mut self, line: &impl Serialize) -> io::Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, line)?;
        self.line.push(b'\n');
        self.sums.add(&self.line);
        self.out.write_all(&self.line)
    }
}
