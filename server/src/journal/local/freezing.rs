//! All rooms as they were at one moment, for those who copy or list them while writes go on.
//!
//! Whoever wants that sends a `Freeze` behind everything that was handed over so far. The committer seals the segment there, the
//! store takes it, and before it takes the next one it is shown as it is. So a [`Frozen`] has all that was reported stored before
//! it was asked for, each room without a gap, and reading it is in nobody's way: no index, no segment, no thread of the journal.
//! The store gives back no space of what it shows for as long as that is held.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use roomful_protocol::frame::{Direction, Entry};
use roomful_protocol::id::{Epoch, Offset, RoomId};

use super::meta::{self, EntryKey, LogMeta};
use super::record::{HEAD_BYTES, Kind, LogId, Record};
use super::store::{self, Space, Store, View};
use crate::journal::Snapshot;

/// Somebody waits for the store as it is at one moment.
#[derive(Debug)]
pub(super) struct Freeze(SyncSender<Frozen>);

impl Freeze {
    /// One, and where the answer comes. It ends without one where the journal can't give it.
    pub(super) fn new() -> (Self, Receiver<Frozen>) {
        let (tx, rx) = sync_channel(1);
        (Self(tx), rx)
    }

    /// The moment has come.
    pub(super) fn done(&self, store: &dyn Store) {
        let view = store.frozen();
        // Whoever asked may have gone.
        drop(self.0.try_send(Frozen { view }));
    }
}

/// Waits for the answer, as long as somebody may give one.
pub(super) fn wait(answer: &Receiver<Frozen>, may_come: impl Fn() -> bool) -> Option<Frozen> {
    loop {
        match answer.recv_timeout(LOOK_INTERVAL) {
            Ok(frozen) => return Some(frozen),
            Err(RecvTimeoutError::Timeout) if may_come() => {}
            Err(_) => return None,
        }
    }
}

/// All rooms as they were at one moment.
#[derive(Debug)]
pub struct Frozen {
    view: Box<dyn View>,
}

/// What is known of a room without a look at its entries.
#[derive(Debug, Clone)]
pub struct StoredRoom {
    /// Which.
    pub room: RoomId,
    /// The epoch of its log.
    pub epoch: Epoch,
    /// The oldest offset that is kept; one more than the head when none is.
    pub first: Offset,
    /// The last entry's offset; 0 in an empty log.
    pub head: Offset,
    /// What its entries take, in bytes.
    pub bytes: u64,
    /// The newest snapshot's offset; 0 for none.
    pub snapshot: Offset,
    /// When it has to be opened though nobody is in it, in milliseconds since 1970; 0: as soon as there is a process.
    pub wake_ms: Option<u64>,
    /// How long entries are kept while nobody has it open, in milliseconds; none: for ever.
    pub age_max_ms: Option<u64>,
    /// What is wrong with it, where something is.
    pub damage: Option<&'static str>,
    log: LogId,
}

/// What a room is made of, in the order in which it is read: the snapshot, registers by ascending key, entries by offset.
#[derive(Debug)]
pub enum Part {
    /// The newest one.
    Snapshot(Snapshot),
    /// The last value of a register.
    Register {
        /// Its key.
        key: Bytes,
        /// Its value.
        value: Bytes,
    },
    /// An entry.
    Entry(Entry),
}

/// Takes the parts of a room.
pub type Take<'a> = &'a mut dyn FnMut(Part) -> Result<(), ReadError>;

/// Why a room can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Something of this room was stored and can't be read. Others are none the worse.
    #[error("{0}")]
    Damaged(&'static str),
    /// The disk fails, or whoever takes the parts.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ReadError {
    /// What the store says. A block of it that is damaged is that of the rooms in it, and no reason to read no other.
    fn of_store(error: io::Error) -> Self {
        match store::damage_of(&error) {
            Some(what) => Self::Damaged(what),
            None => Self::Io(error),
        }
    }
}

/// Why rooms are not found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// One is not there.
    #[error("there is no room {0} on disk")]
    NoRoom(RoomId),
    /// The store can't be read.
    #[error("the rooms on disk can't be read")]
    Io(#[from] io::Error),
}

impl StoredRoom {
    /// How many entries are kept.
    #[must_use]
    pub const fn entries(&self) -> u64 {
        (self.head.0 + 1).saturating_sub(self.first.0)
    }

    /// What rooms are sorted by.
    #[must_use]
    pub fn name(&self) -> (&str, &str) {
        (self.room.tenant.as_str(), self.room.name.as_str())
    }

    fn new(room: RoomId, log: LogId, meta: &LogMeta) -> Self {
        Self {
            room,
            epoch: Epoch(meta.epoch),
            first: Offset(meta.first),
            head: Offset(meta.head),
            bytes: meta.marks.bytes(),
            snapshot: Offset(meta.snapshot),
            wake_ms: meta.wake_ms,
            age_max_ms: meta.age_max_ms,
            damage: meta.damaged_to.map(|_| "records of it could not be read"),
            log,
        }
    }

    fn damaged(room: RoomId, log: LogId, damage: &'static str) -> Self {
        let damage = Some(damage);
        Self {
            damage,
            ..Self::new(room, log, &LogMeta::new(Epoch(0)))
        }
    }
}

impl Frozen {
    /// Tells of all rooms, by tenant and name, until it is told to stop.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn rooms(&self, visit: &mut dyn FnMut(StoredRoom) -> io::Result<()>) -> io::Result<()> {
        let mut outcome = Ok(());
        let mut look = |key: &[u8], value: Bytes| {
            outcome = match meta::read_room(key) {
                Some(room) => self.describe(room, &value).and_then(&mut *visit),
                None => Err(io::Error::other(
                    "the name of a room in the store is damaged",
                )),
            };
            outcome.is_ok()
        };
        self.view
            .range(Space::Rooms, &[], &[0xff], Direction::Forward, &mut look)?;
        outcome
    }

    /// The last epoch that a room has.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn last_epoch(&self) -> io::Result<Epoch> {
        let mut last = Epoch(0);
        self.rooms(&mut |room| {
            last = last.max(room.epoch);
            Ok(())
        })?;
        Ok(last)
    }

    /// One room, if it is there.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn room(&self, room: &RoomId) -> io::Result<Option<StoredRoom>> {
        let found = self.view.get(Space::Rooms, &meta::room_key(room))?;
        found
            .map(|value| self.describe(room.clone(), &value))
            .transpose()
    }

    /// Some rooms, in that order.
    ///
    /// # Errors
    /// One is not there, or the store can't be read.
    pub fn find(&self, rooms: &[RoomId]) -> Result<Vec<StoredRoom>, FindError> {
        let find = |room: &RoomId| {
            let found = self.room(room)?;
            found.ok_or_else(|| FindError::NoRoom(room.clone()))
        };
        rooms.iter().map(find).collect()
    }

    /// Reads a room, part by part.
    ///
    /// # Errors
    /// It is damaged, or the store or whoever takes the parts fails.
    pub fn read(&self, room: &StoredRoom, take: Take<'_>) -> Result<(), ReadError> {
        if let Some(damage) = room.damage {
            return Err(ReadError::Damaged(damage));
        }
        self.read_snapshot(room, take)?;
        self.read_registers(room, take)?;
        self.read_entries(room, take)
    }

    fn describe(&self, room: RoomId, value: &[u8]) -> io::Result<StoredRoom> {
        let Some(log) = meta::read_log(value) else {
            return Ok(StoredRoom::damaged(
                room,
                LogId(0),
                "the room's entry in the store",
            ));
        };
        let known = self.view.get(Space::Logs, &meta::log_key(log));
        let damage = match known.map_err(ReadError::of_store) {
            Ok(Some(known)) => match LogMeta::read(&known) {
                Some(meta) => return Ok(StoredRoom::new(room, log, &meta)),
                None => "the log's entry in the store",
            },
            Ok(None) => "the log is missing from the store",
            Err(ReadError::Damaged(damage)) => damage,
            Err(ReadError::Io(error)) => return Err(error),
        };
        Ok(StoredRoom::damaged(room, log, damage))
    }

    fn read_snapshot(&self, room: &StoredRoom, take: Take<'_>) -> Result<(), ReadError> {
        let at = room.snapshot;
        if at == Offset(0) {
            return Ok(());
        }
        let value = self.view.get(Space::Snapshots, &meta::log_key(room.log));
        let value = value.map_err(ReadError::of_store)?;
        let value = value.ok_or(ReadError::Damaged("its snapshot is missing"))?;
        let length = match Record::read(&value) {
            Ok((record, length))
                if is_of(&record, Kind::Snapshot, room) && record.head.offset == at =>
            {
                length
            }
            _ => return Err(ReadError::Damaged("its snapshot")),
        };
        let content = value.slice(HEAD_BYTES..length);
        take(Part::Snapshot(Snapshot { at, content }))
    }

    fn read_registers(&self, room: &StoredRoom, take: Take<'_>) -> Result<(), ReadError> {
        let (from, until) = meta::registers_of(room.log);
        let mut outcome = Ok(());
        let mut look = |_: &[u8], value: Bytes| {
            outcome = (|| {
                let record = Record::read(&value).ok();
                let record = record.filter(|(record, _)| is_of(record, Kind::Register, room));
                let register = record.and_then(|(record, _)| record.register().ok());
                let (key, content) = register.ok_or(ReadError::Damaged("a register"))?;
                let (key, value) = (value.slice_ref(key), value.slice_ref(content));
                take(Part::Register { key, value })
            })();
            outcome.is_ok()
        };
        let read = self.view.range(
            Space::Registers,
            &from,
            &until,
            Direction::Forward,
            &mut look,
        );
        read.map_err(ReadError::of_store)?;
        outcome
    }

    fn read_entries(&self, room: &StoredRoom, take: Take<'_>) -> Result<(), ReadError> {
        let (from, until) = (
            EntryKey::new(room.log, room.first),
            EntryKey::new(room.log, room.head),
        );
        let mut next = room.first;
        let mut outcome = Ok(());
        let mut look = |_: &[u8], value: Bytes| {
            outcome = (|| {
                let record = Record::read(&value).ok();
                let record = record.filter(|(record, _)| is_of(record, Kind::Entry, room));
                let entry = record.and_then(|(record, _)| record.entry().ok());
                let entry = entry.ok_or(ReadError::Damaged("an entry"))?;
                if entry.offset != next {
                    return Err(ReadError::Damaged("entries are missing"));
                }
                next = next.next();
                take(Part::Entry(entry))
            })();
            outcome.is_ok()
        };
        let read = self.view.range(
            Space::Entries,
            &from.0,
            &until.0,
            Direction::Forward,
            &mut look,
        );
        read.map_err(ReadError::of_store)?;
        outcome?;
        match next > room.head {
            true => Ok(()),
            false => Err(ReadError::Damaged("its newest entries are missing")),
        }
    }
}

fn is_of(record: &Record<'_>, kind: Kind, room: &StoredRoom) -> bool {
    record.head.kind == kind && record.head.log == room.log
}

/// How often whoever waits looks whether there is still somebody to answer.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::super::damaged::filled;
    use super::super::store::DAMAGED_BLOCK;
    use super::super::tests::{Running, settings};
    use super::*;
    use crate::journal::conformance::room;

    /// A store in which what one space has of one log stands in a block that is damaged.
    #[derive(Debug)]
    struct Rotten {
        whole: Box<dyn View>,
        space: Space,
        log: Vec<u8>,
    }

    impl Rotten {
        fn look(&self, space: Space, key: &[u8]) -> io::Result<()> {
            match space == self.space && key.starts_with(&self.log) {
                true => Err(io::Error::new(io::ErrorKind::InvalidData, "a checksum")),
                false => Ok(()),
            }
        }
    }

    impl View for Rotten {
        fn get(&self, space: Space, key: &[u8]) -> io::Result<Option<Bytes>> {
            self.look(space, key)?;
            self.whole.get(space, key)
        }

        fn range(
            &self,
            space: Space,
            from: &[u8],
            until: &[u8],
            direction: Direction,
            visit: store::Visit<'_>,
        ) -> io::Result<()> {
            self.look(space, from)?;
            self.whole.range(space, from, until, direction, visit)
        }
    }

    /// What the store keeps in blocks with a checksum is lost with its block, to the rooms in it: others are read all the same. It
    /// ended the copy of all rooms.
    #[test]
    fn a_damaged_block_of_the_store_costs_its_room_and_no_other() {
        let running = Running::on(filled(true), settings());
        let local = running.local.as_ref().unwrap();
        let log = local
            .freeze()
            .unwrap()
            .room(&room("a"))
            .unwrap()
            .unwrap()
            .log;
        for space in [
            Space::Logs,
            Space::Snapshots,
            Space::Registers,
            Space::Entries,
        ] {
            let view = Box::new(Rotten {
                whole: local.freeze().unwrap().view,
                space,
                log: meta::log_key(log),
            });
            let frozen = Frozen { view };
            let mut read = Vec::new();
            let mut look = |room: StoredRoom| {
                let outcome = frozen.read(&room, &mut |_| Ok(()));
                let outcome = outcome.map_err(|error| error.to_string());
                read.push((room.room, outcome));
                Ok(())
            };
            frozen.rooms(&mut look).unwrap();
            let damaged = Err(DAMAGED_BLOCK.to_owned());
            let expected = [(room("a"), damaged), (room("b"), Ok(()))];
            assert_eq!(read, expected, "{space:?}");
        }
        running.close();
    }

    /// Whoever takes the parts may fail in the same words: that is nothing of the room's.
    #[test]
    fn what_a_taker_says_is_no_damage() {
        let running = Running::on(filled(true), settings());
        let frozen = running.local.as_ref().unwrap().freeze().unwrap();
        let stored = frozen.room(&room("b")).unwrap().unwrap();
        let read = frozen.read(&stored, &mut |_| {
            Err(io::Error::from(io::ErrorKind::InvalidData).into())
        });
        assert!(matches!(read, Err(ReadError::Io(_))), "{read:?}");
        drop(frozen);
        running.close();
    }
}
