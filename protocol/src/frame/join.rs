//! `join`: into a room, from now or from a position on.

use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::macros::{frame, record};
use super::wire::OptionalList;
use super::wire_enum;
use crate::id::{IdError, KeyPrefix, ProducerId, RequestId, RoomName, Sequence};
use crate::limits::PREFIXES_MAX;
use crate::payload::Payload;
use crate::position::Position;

frame! {
    /// Enters a room. Reply: `joined`.
    Join = 2 "join" {
        /// The request's number.
        request: RequestId,
        /// The room's name.
        room: RoomText,
        /// The last position the client has seen; everything after it follows. None: from now on.
        since: Option<Position> = None,
        /// The producer that this connection publishes with in this room.
        producer: Option<JoinProducer> = None,
        /// Whether the producer's own events come back as `event` (else as `advance`).
        echo: bool = true,
        /// How much of presence to send.
        watch: Watch = Watch::None,
        /// The member's presence value.
        presence: Option<Payload> = None,
        /// How the keys begin of which state to send; none: nothing of the state.
        state: Option<Vec<KeyPrefix>> as OptionalList<KeyPrefix, PREFIXES_MAX> = None,
        /// Whether to send changes of locks.
        locks: bool = false,
    }
}

record! {
    /// A producer, and where it stands.
    JoinProducer {
        /// The producer.
        producer: ProducerId,
        /// The lowest sequence that it has never sent to this room: below it, a server that no longer knows the results
        /// answers `op_id_expired` instead of taking effect twice.
        next: Sequence,
    }
}

wire_enum! {
    /// How much of presence a member is sent.
    pub Watch {
        /// Nothing.
        None = 0 "none",
        /// The count of members.
        Occupancy = 1 "occupancy",
        /// Who came, changed and went.
        Members = 2 "members",
    }
}

/// What stands where a room's name should: any bytes, which [`RoomText::parse`] judges, so that a bad name gets its own error.
#[derive(Clone, PartialEq, Eq)]
pub struct RoomText(Vec<u8>);

impl RoomText {
    /// The name, if the bytes are one.
    ///
    /// # Errors
    /// The rule of the grammar that is broken.
    pub fn parse(&self) -> Result<RoomName, IdError> {
        RoomName::parse(&self.0)
    }
}

impl From<&RoomName> for RoomText {
    fn from(name: &RoomName) -> Self {
        Self(name.as_str().as_bytes().to_vec())
    }
}

impl From<&str> for RoomText {
    fn from(name: &str) -> Self {
        Self(name.as_bytes().to_vec())
    }
}

impl fmt::Debug for RoomText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl Serialize for RoomText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => serializer.serialize_bytes(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for RoomText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = RoomText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a room's name")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<RoomText, E> {
                Ok(RoomText(text.as_bytes().to_vec()))
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<RoomText, E> {
                Ok(RoomText(bytes.to_vec()))
            }
        }
        deserializer.deserialize_any(Bytes)
    }
}
