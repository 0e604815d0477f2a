//! `ok`: the reply to a request that succeeded.

use std::fmt;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Serialize, Serializer};

use super::event::Entry;
use super::macros::{frame, record};
use super::{next, skip_rest, wire_enum};
use crate::id::{MemberId, RequestId, UserId};
use crate::payload::Payload;
use crate::position::Position;

frame! {
    /// The request succeeded.
    Ok = 38 "ok" {
        /// The request it answers.
        request: RequestId,
        /// What came of it.
        reply: Reply,
    }
}

/// What a request gave; on the wire `[kind, field, …]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Nothing but success: `leave`, `signal`, `presence` set and watch.
    Done,
    /// `publish`.
    Published(Published),
    /// `presence` get.
    Members(MembersPage),
    /// `history`.
    History(HistoryPage),
    /// `refresh`.
    Refreshed {
        /// When the new token expires, in milliseconds since 1970.
        expires_ms: u64,
    },
}

record! {
    /// Where a publish stands.
    #[derive(Copy)]
    Published {
        /// Its position.
        position: Position,
        /// Its time, in milliseconds since 1970.
        time_ms: u64,
        /// Whether an earlier attempt with the same op id put it there.
        duplicate: bool,
    }
}

record! {
    /// A page of members.
    MembersPage {
        /// The revision that this page is of; a change with a lower one is older.
        revision: u64,
        /// How many members there are in all.
        occupancy: u64,
        /// By ascending member number.
        members: Vec<MemberInfo>,
        /// Where the next page starts; nil after the last.
        next: Option<MemberId>,
    }
}

record! {
    /// One member.
    MemberInfo {
        /// Its number.
        member: MemberId,
        /// Whose it is.
        user: UserId,
        /// Its value.
        value: Option<Payload>,
    }
}

record! {
    /// A page of the log.
    HistoryPage {
        /// Ascending.
        entries: Vec<Entry>,
        /// Where the next page in the same direction starts; nil when there is no more.
        next: Option<Position>,
    }
}

wire_enum! {
    /// The first element of a reply.
    ReplyKind {
        /// Nothing.
        Done = 0 "done",
        /// A position.
        Published = 1 "published",
        /// Members.
        Members = 2 "members",
        /// Entries.
        History = 3 "history",
        /// An expiry.
        Refreshed = 4 "refreshed",
    }
}

impl Serialize for Reply {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Done => one(serializer, ReplyKind::Done),
            Self::Published(published) => two(serializer, ReplyKind::Published, published),
            Self::Members(page) => two(serializer, ReplyKind::Members, page),
            Self::History(page) => two(serializer, ReplyKind::History, page),
            Self::Refreshed { expires_ms } => two(serializer, ReplyKind::Refreshed, expires_ms),
        }
    }
}

fn one<S: Serializer>(serializer: S, kind: ReplyKind) -> Result<S::Ok, S::Error> {
    let mut tuple = serializer.serialize_tuple(1)?;
    tuple.serialize_element(&kind)?;
    tuple.end()
}

fn two<S: Serializer, T: Serialize>(
    serializer: S,
    kind: ReplyKind,
    content: &T,
) -> Result<S::Ok, S::Error> {
    let mut tuple = serializer.serialize_tuple(2)?;
    tuple.serialize_element(&kind)?;
    tuple.serialize_element(content)?;
    tuple.end()
}

impl<'de> Deserialize<'de> for Reply {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Parts;
        impl<'de> Visitor<'de> for Parts {
            type Value = Reply;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a reply: [kind, content]")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Reply, A::Error> {
                let missing = || de::Error::custom("a reply without its content");
                let kind = next(&mut seq, "kind")?.ok_or_else(missing)?;
                let reply = match kind {
                    ReplyKind::Done => Reply::Done,
                    ReplyKind::Published => {
                        Reply::Published(next(&mut seq, "published")?.ok_or_else(missing)?)
                    }
                    ReplyKind::Members => {
                        Reply::Members(next(&mut seq, "members")?.ok_or_else(missing)?)
                    }
                    ReplyKind::History => {
                        Reply::History(next(&mut seq, "history")?.ok_or_else(missing)?)
                    }
                    ReplyKind::Refreshed => Reply::Refreshed {
                        expires_ms: next(&mut seq, "expires_ms")?.ok_or_else(missing)?,
                    },
                };
                skip_rest(&mut seq)?;
                Ok(reply)
            }
        }
        deserializer.deserialize_seq(Parts)
    }
}
