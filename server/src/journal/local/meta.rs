//! What the store knows beside entries, and under which keys.
//!
//! All integers in keys are big-endian, so that they sort. Values of logs begin with the first offset that is kept, so that a
//! compaction learns it without reading the rest.

use bytes::{BufMut as _, Bytes};
use roomful_protocol::id::{Epoch, Offset, RoomId, RoomName, TenantId};
use serde::{Deserialize, Serialize};

use super::marks::Marks;
use super::record::LogId;

/// The key of an entry: its log and its offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EntryKey(pub(super) [u8; 16]);

/// What the store knows of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LogMeta {
    pub(super) epoch: u64,
    /// The last entry's offset.
    pub(super) head: u64,
    /// The first offset that is kept.
    #[serde(skip)]
    pub(super) first: u64,
    /// The newest snapshot's offset; 0 for none.
    pub(super) snapshot: u64,
    /// When somebody has to look at its room, in milliseconds since 1970.
    pub(super) wake_ms: Option<u64>,
    /// How long its entries are kept while nobody has it open, in milliseconds; none: for ever.
    pub(super) age_max_ms: Option<u64>,
    /// Something of it could not be read; of its entries all up to this one were there.
    pub(super) damaged_to: Option<u64>,
    /// The last segment that it was taken from.
    pub(super) segment: u64,
    pub(super) marks: Marks,
}

/// What is known of the journal as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// The last segment that the store has taken.
    pub(super) taken: u64,
    /// The number of the first batch behind that.
    pub(super) next_batch: u64,
    /// No log has this number or a higher one.
    pub(super) next_log: u64,
}

impl EntryKey {
    pub(super) fn new(log: LogId, offset: Offset) -> Self {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&log.0.to_be_bytes());
        key[8..].copy_from_slice(&offset.0.to_be_bytes());
        Self(key)
    }

    pub(super) fn read(key: &[u8]) -> Option<(LogId, Offset)> {
        let (log, rest) = key.split_first_chunk()?;
        let offset = rest.try_into().ok()?;
        Some((
            LogId(u64::from_be_bytes(*log)),
            Offset(u64::from_be_bytes(offset)),
        ))
    }
}

impl LogMeta {
    /// Of a log that begins.
    pub(super) fn new(epoch: Epoch) -> Self {
        Self {
            epoch: epoch.0,
            head: 0,
            first: 1,
            snapshot: 0,
            wake_ms: None,
            age_max_ms: None,
            damaged_to: None,
            segment: 0,
            marks: Marks::default(),
        }
    }

    /// Something of it can't be read, and its entries went on to this one at least.
    pub(super) fn damage(&mut self, seen: Offset) {
        let seen = seen.0.max(self.head);
        self.damaged_to = self.damaged_to.max(Some(seen));
    }

    pub(super) fn to_value(&self) -> Bytes {
        let mut value = Vec::with_capacity(64);
        value.put_u64(self.first);
        rmp_serde::encode::write(&mut value, self)
            .expect("numbers have a form, and a buffer takes all");
        Bytes::from(value)
    }

    /// None: it is damaged.
    pub(super) fn read(value: &[u8]) -> Option<Self> {
        let first = first_of(value)?;
        let meta: Self = rmp_serde::from_slice(value.get(8..)?).ok()?;
        Some(Self { first, ..meta })
    }
}

/// The first offset that is kept, from a log's value.
pub(super) fn first_of(value: &[u8]) -> Option<u64> {
    value.first_chunk().map(|first| u64::from_be_bytes(*first))
}

impl State {
    /// Of a journal in which nothing has happened yet.
    pub(super) const NEW: Self = Self {
        taken: 0,
        next_batch: 1,
        next_log: 1,
    };

    pub(super) fn to_value(self) -> Bytes {
        let value = rmp_serde::to_vec(&self).expect("numbers have a form, and a buffer takes all");
        Bytes::from(value)
    }

    /// None: it is damaged.
    pub(super) fn read(value: &[u8]) -> Option<Self> {
        rmp_serde::from_slice(value).ok()
    }
}

/// The key of the journal's state.
pub(super) const STATE_KEY: &[u8] = b"state";

/// The key of the newest segment that may have been written to: none up to that may be missing that the store has not taken.
pub(super) const BEGUN_KEY: &[u8] = b"begun";

/// The key of what all logs keep; not there where nobody has counted it.
pub(super) const KEPT_KEY: &[u8] = b"kept";

/// The key of a log.
pub(super) fn log_key(log: LogId) -> Vec<u8> {
    log.0.to_be_bytes().to_vec()
}

/// The value of a room.
pub(super) fn log_value(log: LogId) -> Bytes {
    Bytes::copy_from_slice(&log.0.to_be_bytes())
}

/// The log of a room's value. None: it is damaged.
pub(super) fn read_log(value: &[u8]) -> Option<LogId> {
    value
        .try_into()
        .ok()
        .map(|log| LogId(u64::from_be_bytes(log)))
}

/// The key of a room. No tenant's name has a zero in it.
pub(super) fn room_key(room: &RoomId) -> Vec<u8> {
    let (tenant, name) = (room.tenant.as_str(), room.name.as_str());
    [tenant.as_bytes(), b"\0", name.as_bytes()].concat()
}

/// The room of a key.
pub(super) fn read_room(key: &[u8]) -> Option<RoomId> {
    let zero = key.iter().position(|byte| *byte == 0)?;
    let (tenant, name) = (&key[..zero], &key[zero + 1..]);
    let tenant = TenantId::parse(std::str::from_utf8(tenant).ok()?).ok()?;
    let name = RoomName::parse(name).ok()?;
    Some(RoomId { tenant, name })
}

/// The key of a register.
pub(super) fn register_key(log: LogId, key: &[u8]) -> Vec<u8> {
    [&log.0.to_be_bytes(), key].concat()
}

/// The first and the last key that a register of a log may have.
pub(super) fn registers_of(log: LogId) -> (Vec<u8>, Vec<u8>) {
    (register_key(log, &[]), log_key(LogId(log.0 + 1)))
}

/// The key of a time at which somebody has to look at a log's room.
pub(super) fn wake_key(at_ms: u64, log: LogId) -> Vec<u8> {
    [at_ms.to_be_bytes(), log.0.to_be_bytes()].concat()
}

/// The log of such a key.
pub(super) fn read_wake(key: &[u8]) -> Option<LogId> {
    EntryKey::read(key).map(|(_, log)| LogId(log.0))
}
