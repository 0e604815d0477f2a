//! Whole rooms that come from elsewhere go into the store beside those that there are.
//!
//! Nobody else works on the journal meanwhile, and no segment is left. Rooms come one after the other, each in a log of its own
//! that begins a new epoch. A room is there with all that it is, or not at all: its entries go in first, and the names that make
//! them findable follow in one write. The numbers of logs are taken before that, so that what an interrupted load has left is never
//! found under another name. What a room was replaced by, a compaction drops.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use roomful_protocol::frame::{Direction, Entry, EntryKind};
use roomful_protocol::id::{Epoch, Offset, RoomId};

use super::directory::Directory;
use super::ingest::{self, read_state, write_state};
use super::marks::Counted;
use super::meta::{self, EntryKey, LogMeta, State};
use super::record::{Head, Kind, LogId, Term, put_entry, put_register};
use super::store::{Change, Space, Store};
use crate::journal::Snapshot;

/// Puts rooms into a journal on which nobody else works.
#[derive(Debug)]
pub struct Loader {
    store: Arc<dyn Store>,
    epoch: Epoch,
    state: State,
    /// Something that was there is not any more.
    has_replaced: bool,
    /// Nobody else may have it.
    _directory: Directory,
}

/// What a room is made of, in the order in which it comes.
#[derive(Debug)]
pub enum Piece {
    /// A room begins.
    Room(Beginning),
    /// What it was at an offset.
    Snapshot(Snapshot),
    /// The last value of a register.
    Register {
        /// Its key.
        key: Bytes,
        /// Its value.
        value: Bytes,
    },
    /// An entry; the next one follows it.
    Entry(Entry),
    /// The room is whole.
    Whole,
    /// The room can't be used: it is as if it had never come.
    Void,
}

/// What is known of a room beside its parts.
#[derive(Debug, Clone)]
pub struct Beginning {
    /// Which.
    pub room: RoomId,
    /// The oldest offset that is kept; one more than the head when none is.
    pub first: Offset,
    /// The last entry's offset.
    pub head: Offset,
    /// When it has to be opened though nobody is in it, in milliseconds since 1970.
    pub wake_ms: Option<u64>,
    /// How long entries are kept while nobody has it open, in milliseconds; none: for ever.
    pub age_max_ms: Option<u64>,
}

impl Loader {
    pub(super) fn new(
        store: Arc<dyn Store>,
        directory: Directory,
        epoch: Epoch,
    ) -> io::Result<Self> {
        let state = read_state(&*store)?.unwrap_or(State::NEW);
        Ok(Self {
            store,
            epoch,
            state,
            has_replaced: false,
            _directory: directory,
        })
    }

    /// Whether there is such a room.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn has(&self, room: &RoomId) -> io::Result<bool> {
        let found = self.store.get(Space::Rooms, &meta::room_key(room))?;
        Ok(found.is_some())
    }

    /// Puts rooms in, in the place of those that there are. All of them survive a power cut then.
    ///
    /// # Errors
    /// The pieces end with one, or the store can't be written. Rooms that were whole before may be there.
    pub fn load<E: From<io::Error>>(
        &mut self,
        pieces: &mut dyn Iterator<Item = Result<Piece, E>>,
    ) -> Result<(), E> {
        loop {
            let next_log = LogId(self.state.next_log);
            self.reserve()?;
            let mut chunk = Chunk {
                pieces,
                store: &*self.store,
                epoch: self.epoch,
                next_log,
                room: None,
                content: Vec::new(),
                names: Vec::new(),
                bytes: 0,
                rooms: 0,
                has_replaced: false,
                end: None,
            };
            self.store.ingest_entries(&mut chunk)?;
            let Chunk {
                content,
                names,
                has_replaced,
                end,
                ..
            } = chunk;
            if let Some(Err(error)) = end {
                return Err(error);
            }
            self.store.ingest(content)?;
            self.store.write(names)?;
            self.has_replaced |= has_replaced;
            if end.is_some() {
                return Ok(self.finish()?);
            }
        }
    }

    /// Takes numbers for the logs of one chunk.
    fn reserve(&mut self) -> io::Result<()> {
        self.state.next_log += ROOMS_AT_ONCE;
        self.store.write(vec![ingest::without_kept()])?;
        write_state(&*self.store, self.state)
    }

    fn finish(&self) -> io::Result<()> {
        self.store.sync()?;
        match self.has_replaced {
            true => self.store.clean(&Arc::default()),
            false => Ok(()),
        }
    }
}

/// Rooms that go in with one call: an iterator over their entries, which gathers the rest.
struct Chunk<'a, E> {
    pieces: &'a mut dyn Iterator<Item = Result<Piece, E>>,
    store: &'a dyn Store,
    epoch: Epoch,
    next_log: LogId,
    /// The one that is not whole yet.
    room: Option<Loading>,
    /// What nobody finds without a name.
    content: Vec<Change>,
    /// What makes rooms findable, and the end of those that were there.
    names: Vec<Change>,
    /// Of both.
    bytes: usize,
    rooms: u64,
    has_replaced: bool,
    /// The pieces have ended, well or not.
    end: Option<Result<(), E>>,
}

struct Loading {
    log: LogId,
    meta: LogMeta,
    room: RoomId,
}

impl<E: From<io::Error>> Iterator for Chunk<'_, E> {
    type Item = (EntryKey, Bytes);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let is_full = self.rooms >= ROOMS_AT_ONCE || self.bytes >= CHANGES_BYTES_MAX;
            if self.end.is_some() || self.room.is_none() && is_full {
                return None;
            }
            match self.pieces.next() {
                None => self.end = Some(Ok(())),
                Some(Err(error)) => self.end = Some(Err(error)),
                Some(Ok(piece)) => match self.take(piece) {
                    Ok(None) => {}
                    Ok(entry) => return entry,
                    Err(error) => self.end = Some(Err(error.into())),
                },
            }
        }
    }
}

impl<E> Chunk<'_, E> {
    /// Takes a piece; an entry comes out of it in the form of the store.
    fn take(&mut self, piece: Piece) -> io::Result<Option<(EntryKey, Bytes)>> {
        match piece {
            Piece::Room(beginning) => self.begin(beginning),
            Piece::Snapshot(Snapshot { at, content }) => {
                let loading = self.loading();
                loading.meta.snapshot = at.0;
                let log = loading.log;
                let record = self.record(Kind::Snapshot, log, at, |out| {
                    out.extend_from_slice(&content);
                });
                self.keep(Space::Snapshots, meta::log_key(log), record);
            }
            Piece::Register { key, value } => {
                let log = self.loading().log;
                let record = self.record(Kind::Register, log, Offset(0), |out| {
                    put_register(&key, &value, out);
                });
                self.put(
                    Space::Registers,
                    meta::register_key(log, &key),
                    Some(record),
                );
            }
            Piece::Entry(entry) => return Ok(Some(self.entry(&entry))),
            Piece::Whole => self.complete()?,
            Piece::Void => self.forget(),
        }
        Ok(None)
    }

    fn begin(&mut self, beginning: Beginning) {
        let log = self.next_log;
        self.next_log = LogId(log.0 + 1);
        self.rooms += 1;
        self.room = Some(Loading {
            log,
            meta: LogMeta {
                head: beginning.head.0,
                first: beginning.first.0,
                wake_ms: beginning.wake_ms,
                age_max_ms: beginning.age_max_ms,
                ..LogMeta::new(self.epoch)
            },
            room: beginning.room,
        });
    }

    fn entry(&mut self, entry: &Entry) -> (EntryKey, Bytes) {
        let term = Term(self.epoch.0);
        let epoch = self.epoch;
        let Loading { log, meta, .. } = self.loading();
        let head = Head::of_entry(*log, epoch, term, entry);
        let mut record = Vec::new();
        head.write(&mut record, |out| put_entry(entry, out));
        meta.marks.push(Counted {
            offset: entry.offset,
            bytes: record.len() as u64,
            time_ms: entry.time_ms,
            is_pinned: entry.kind != EntryKind::Publish,
        });
        (EntryKey::new(*log, entry.offset), record.into())
    }

    /// The room that was begun is whole: it gets its name.
    fn complete(&mut self) -> io::Result<()> {
        let Some(Loading {
            log, meta, room, ..
        }) = self.room.take()
        else {
            return Ok(());
        };
        let key = meta::room_key(&room);
        if let Some(before) = self.store.get(Space::Rooms, &key)? {
            self.replace(&before)?;
        }
        if let Some(at_ms) = meta.wake_ms {
            let value = Bytes::from(key.clone());
            self.put(Space::Wakes, meta::wake_key(at_ms, log), Some(value));
        }
        self.put(Space::Rooms, key, Some(meta::log_value(log)));
        self.keep(Space::Logs, meta::log_key(log), meta.to_value());
        Ok(())
    }

    /// Nothing of the room that was begun is kept.
    fn forget(&mut self) {
        if let Some(Loading { log, .. }) = self.room.take() {
            let of_room = |change: &Change| change.key.starts_with(&meta::log_key(log));
            self.content.retain(|change| !of_room(change));
            self.end_log(log);
        }
    }

    /// Lets go of what a room was before.
    fn replace(&mut self, before: &[u8]) -> io::Result<()> {
        let Some(log) = meta::read_log(before) else {
            return Ok(());
        };
        self.has_replaced = true;
        let key = meta::log_key(log);
        let known = self.store.get(Space::Logs, &key)?;
        let wake_ms = known.and_then(|known| LogMeta::read(&known)?.wake_ms);
        if let Some(at_ms) = wake_ms {
            self.put(Space::Wakes, meta::wake_key(at_ms, log), None);
        }
        self.put(Space::Snapshots, key, None);
        let (from, until) = meta::registers_of(log);
        let mut registers = Vec::new();
        self.store.range(
            Space::Registers,
            &from,
            &until,
            Direction::Forward,
            &mut |key, _| {
                registers.push(key.to_vec());
                true
            },
        )?;
        for key in registers {
            self.put(Space::Registers, key, None);
        }
        self.end_log(log);
        Ok(())
    }

    /// Nothing of a log is kept: a compaction drops its entries.
    fn end_log(&mut self, log: LogId) {
        let ended = LogMeta {
            first: u64::MAX,
            ..LogMeta::new(self.epoch)
        };
        self.put(Space::Logs, meta::log_key(log), Some(ended.to_value()));
    }

    fn loading(&mut self) -> &mut Loading {
        self.room.as_mut().expect("a room begins before its parts")
    }

    fn record(
        &self,
        kind: Kind,
        log: LogId,
        offset: Offset,
        content: impl FnOnce(&mut Vec<u8>),
    ) -> Bytes {
        let head = Head {
            kind,
            is_pinned: false,
            log,
            epoch: self.epoch,
            term: Term(self.epoch.0),
            offset,
            time_ms: 0,
        };
        let mut record = Vec::new();
        head.write(&mut record, content);
        record.into()
    }

    fn keep(&mut self, space: Space, key: Vec<u8>, value: Bytes) {
        self.bytes += key.len() + value.len();
        let value = Some(value);
        self.content.push(Change { space, key, value });
    }

    fn put(&mut self, space: Space, key: Vec<u8>, value: Option<Bytes>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
        self.names.push(Change { space, key, value });
    }
}

/// Rooms that go in with one call at most.
const ROOMS_AT_ONCE: u64 = 10_000;

/// What is gathered beside entries before it is written, where a single room doesn't have more.
const CHANGES_BYTES_MAX: usize = 8 << 20;
