//! `presence`: read the members, set the own value, change what is watched.

use std::fmt;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Serialize, Serializer};

use super::join::Watch;
use super::macros::frame;
use super::wire::Integer;
use super::{next, skip_rest, wire_enum};
use crate::id::{MemberId, RequestId, RoomAlias};
use crate::payload::Payload;

frame! {
    /// One of three requests about presence. Reply: `ok`, with a page of members for `get`.
    Presence = 6 "presence" {
        /// The request's number.
        request: RequestId,
        /// The room.
        room: RoomAlias,
        /// Which.
        what: PresenceRequest,
    }
}

/// What a `presence` frame asks for; on the wire `[action, argument, …]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PresenceRequest {
    /// A page of members, by ascending member number.
    Get {
        /// Start after this member; none: from the first.
        after: Option<MemberId>,
        /// At most this many, at least 1; the server may give fewer.
        limit: u64,
    },
    /// Set the own value; none takes it away.
    Set(Option<Payload>),
    /// Change what is sent unasked.
    Watch(Watch),
}

wire_enum! {
    /// The first element of a presence request.
    Action {
        /// Page.
        Get = 0 "get",
        /// Own value.
        Set = 1 "set",
        /// Level.
        Watch = 2 "watch",
    }
}

/// The requests, as the specification lists them.
#[cfg(test)]
pub(crate) const ACTIONS: &str = Action::LIST;

impl Serialize for PresenceRequest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let elements = if matches!(self, Self::Get { .. }) {
            3
        } else {
            2
        };
        let mut tuple = serializer.serialize_tuple(elements)?;
        match self {
            Self::Get { after, limit } => {
                tuple.serialize_element(&Action::Get)?;
                tuple.serialize_element(after)?;
                tuple.serialize_element(limit)?;
            }
            Self::Set(value) => {
                tuple.serialize_element(&Action::Set)?;
                tuple.serialize_element(value)?;
            }
            Self::Watch(level) => {
                tuple.serialize_element(&Action::Watch)?;
                tuple.serialize_element(level)?;
            }
        }
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for PresenceRequest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Parts;
        impl<'de> Visitor<'de> for Parts {
            type Value = PresenceRequest;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("[get, after, limit], [set, value] or [watch, level]")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<PresenceRequest, A::Error> {
                let action = next(&mut seq, "action")?
                    .ok_or_else(|| de::Error::custom("missing field action"))?;
                let request = match action {
                    Action::Get => PresenceRequest::Get {
                        after: next(&mut seq, "after")?.unwrap_or(None),
                        limit: next::<_, Integer>(&mut seq, "limit")?.map_or(100, u64::from),
                    },
                    Action::Set => PresenceRequest::Set(next(&mut seq, "value")?.unwrap_or(None)),
                    Action::Watch => PresenceRequest::Watch(
                        next(&mut seq, "level")?
                            .ok_or_else(|| de::Error::custom("missing field level"))?,
                    ),
                };
                skip_rest(&mut seq)?;
                Ok(request)
            }
        }
        deserializer.deserialize_any(Parts)
    }
}
