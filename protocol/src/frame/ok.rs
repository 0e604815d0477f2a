//! `ok`: the reply to a request that succeeded.

use std::fmt;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Serialize, Serializer};

use super::cursor::Cursors;
use super::event::Entry;
use super::lock::{LockReply, LocksPage};
use super::macros::{frame, record};
use super::state::StatePage;
use super::timer::TimersPage;
use super::wire::{Integer, Page};
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
    /// Nothing but success: `leave`, `signal`, `presence` set and watch, `state` on_disconnect and watch, `lock` release and watch.
    Done,
    /// `publish`, `state` write, `timer` set and cancel.
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
    /// `state` get.
    State(StatePage),
    /// `lock` acquire and renew.
    Lock(LockReply),
    /// `lock` get.
    Locks(LocksPage),
    /// `timer` get.
    Timers(TimersPage),
    /// `cursor`.
    Cursors(Cursors),
}

record! {
    /// Where a publish stands.
    #[derive(Copy)]
    Published {
        /// Its position.
        position: Position,
        /// Its time, in milliseconds since 1970.
        time_ms: u64 as Integer,
        /// Whether an earlier attempt with the same op id put it there.
        duplicate: bool,
    }
}

record! {
    /// A page of members.
    MembersPage {
        /// The revision that this page is of; a change with a lower one is older.
        revision: u64 as Integer,
        /// How many members there are in all.
        occupancy: u64 as Integer,
        /// By ascending member number.
        members: Vec<MemberInfo> as Page<MemberInfo>,
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
        entries: Vec<Entry> as Page<Entry>,
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
        /// Values.
        State = 5 "state",
        /// A grant, or a place in the queue.
        Lock = 6 "lock",
        /// Locks.
        Locks = 7 "locks",
        /// Timers.
        Timers = 8 "timers",
        /// Cursors.
        Cursors = 9 "cursors",
    }
}

/// The replies, as the specification lists them.
#[cfg(test)]
pub(crate) const REPLIES: &str = ReplyKind::LIST;

impl Serialize for Reply {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Done => one(serializer, ReplyKind::Done),
            Self::Published(published) => two(serializer, ReplyKind::Published, published),
            Self::Members(page) => two(serializer, ReplyKind::Members, page),
            Self::History(page) => two(serializer, ReplyKind::History, page),
            Self::Refreshed { expires_ms } => two(serializer, ReplyKind::Refreshed, expires_ms),
            Self::State(page) => two(serializer, ReplyKind::State, page),
            Self::Lock(lock) => two(serializer, ReplyKind::Lock, lock),
            Self::Locks(page) => two(serializer, ReplyKind::Locks, page),
            Self::Timers(page) => two(serializer, ReplyKind::Timers, page),
            Self::Cursors(cursors) => two(serializer, ReplyKind::Cursors, cursors),
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
                let kind = content(&mut seq, "kind")?;
                let reply = match kind {
                    ReplyKind::Done => Reply::Done,
                    ReplyKind::Published => Reply::Published(content(&mut seq, "published")?),
                    ReplyKind::Members => Reply::Members(content(&mut seq, "members")?),
                    ReplyKind::History => Reply::History(content(&mut seq, "history")?),
                    ReplyKind::Refreshed => {
                        let expires_ms: Integer = content(&mut seq, "expires_ms")?;
                        Reply::Refreshed {
                            expires_ms: expires_ms.into(),
                        }
                    }
                    ReplyKind::State => Reply::State(content(&mut seq, "state")?),
                    ReplyKind::Lock => Reply::Lock(content(&mut seq, "lock")?),
                    ReplyKind::Locks => Reply::Locks(content(&mut seq, "locks")?),
                    ReplyKind::Timers => Reply::Timers(content(&mut seq, "timers")?),
                    ReplyKind::Cursors => Reply::Cursors(content(&mut seq, "cursors")?),
                };
                skip_rest(&mut seq)?;
                Ok(reply)
            }
        }
        deserializer.deserialize_any(Parts)
    }
}

fn content<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(
    seq: &mut A,
    name: &str,
) -> Result<T, A::Error> {
    next(seq, name)?.ok_or_else(|| de::Error::custom(format_args!("a reply without its {name}")))
}
