//! The frames: one file each, and the two closed lists of them, one for each direction.
//!
//! A frame is an array `[type, field, …]` in fixed order. This module knows the fields' order and ranges;
//! [`crate::codec`] turns frames into messages and back, and is the only caller of what is here. A frame that was read is well-formed in every field;
//! whether it is allowed is the server's business.

pub(crate) mod macros;

mod advance;
mod batch;
mod caught_up;
mod content;
mod cursor;
mod error;
mod event;
mod goaway;
mod hello;
mod history;
mod join;
mod joined;
mod leave;
mod left;
mod lock;
mod lock_changed;
mod ok;
mod ping;
mod pong;
mod presence;
mod presence_delta;
mod publish;
mod refresh;
mod signal;
mod signalled;
mod state;
mod state_changed;
mod timer;
mod timer_changed;
mod token_expiring;
mod welcome;
pub(crate) mod wire;

use std::borrow::Cow;

use serde::de::{self, Deserialize, IgnoredAny, SeqAccess};
use serde::ser::{SerializeTuple, Serializer};

pub use advance::Advance;
pub use batch::{ClientBatch, Frames, ServerBatch};
pub use caught_up::CaughtUp;
pub use cursor::{Cursor, CursorRequest, Cursors};
pub use error::Error;
pub use event::{Entry, EntryKind, Event};
pub use goaway::Goaway;
pub use hello::Hello;
pub use history::{Direction, History};
pub use join::{Join, JoinProducer, RoomText, Watch};
pub use joined::{Durability, Joined, Recovery};
pub use leave::Leave;
pub use left::Left;
pub use lock::{Lock, LockInfo, LockReply, LockRequest, LocksPage};
pub use lock_changed::{
    Holder, LockChange, LockChanged, LockWhy, LoggedHolder, LoggedWaiter, Waiter,
};
pub(crate) use macros::record;
pub use ok::{HistoryPage, MemberInfo, MembersPage, Ok, Published, Reply};
pub use ping::Ping;
pub use pong::Pong;
pub use presence::{Presence, PresenceRequest};
pub use presence_delta::{ChangeKind, PresenceChange, PresenceDelta};
pub use publish::{OpId, Publish};
pub use refresh::Refresh;
pub use signal::Signal;
pub use signalled::Signalled;
pub use state::{Action, Change, HeldFence, State, StateItem, StatePage, StateRequest};
pub use state_changed::{StateChange, StateChanged, StateChanges};
pub use timer::{Timer, TimerInfo, TimerRequest, TimersPage};
pub use timer_changed::{TimerChange, TimerChanged, TimerWhat};
pub use token_expiring::TokenExpiring;
pub use welcome::Welcome;

#[cfg(test)]
pub(crate) use {ok::REPLIES, presence::ACTIONS};

use crate::id::RequestId;
use macros::frames;

frames! {
    /// A frame from a client.
    ClientFrame {
        /// Says who connects; the first frame.
        Hello,
        /// Enters a room.
        Join in Box,
        /// Leaves a room.
        Leave,
        /// Appends to a room's log.
        Publish,
        /// Sends something ephemeral.
        Signal,
        /// Reads members, sets the own value, or changes what is watched.
        Presence,
        /// Reads a page of the log.
        History,
        /// Brings a fresh token.
        Refresh,
        /// Asks for a `pong`.
        Ping,
        /// Several frames in one message.
        ClientBatch,
        /// Writes, reads or watches the keyed state.
        State,
        /// Takes, keeps, gives back, reads or watches locks.
        Lock,
        /// Sets, cancels or reads timers.
        Timer,
        /// Moves or reads the own cursors.
        Cursor,
    }
}

frames! {
    /// A frame from the server.
    ServerFrame {
        /// The reply to `hello`.
        Welcome in Box,
        /// The reply to `join`.
        Joined in Box,
        /// An entry of a room's log.
        Event,
        /// A position moved without an event.
        Advance,
        /// Something ephemeral from another member.
        Signalled,
        /// Who came, changed and went.
        PresenceDelta,
        /// The reply to a request that succeeded.
        Ok,
        /// The reply to a request that failed, or a complaint about a frame that carried no request id.
        Error,
        /// Recovery is complete; what follows is live.
        CaughtUp,
        /// A membership ended, and not by `leave`.
        Left,
        /// The token will expire soon.
        TokenExpiring,
        /// The server will close this connection.
        Goaway,
        /// The reply to `ping`.
        Pong,
        /// Several frames in one message.
        ServerBatch,
        /// What became of keys.
        StateChanged,
        /// What became of a lock.
        LockChanged,
        /// What became of a timer.
        TimerChanged,
    }
}

impl ClientFrame {
    /// The frame's request id, where it has one.
    #[must_use]
    pub fn request(&self) -> Option<RequestId> {
        match self {
            Self::Join(join) => Some(join.request),
            Self::Hello(Hello { request, .. })
            | Self::Leave(Leave { request, .. })
            | Self::Publish(Publish { request, .. })
            | Self::Presence(Presence { request, .. })
            | Self::History(History { request, .. })
            | Self::Refresh(Refresh { request, .. })
            | Self::Ping(Ping { request, .. })
            | Self::State(State { request, .. })
            | Self::Lock(Lock { request, .. })
            | Self::Timer(Timer { request, .. })
            | Self::Cursor(Cursor { request, .. }) => Some(*request),
            Self::Signal(Signal { request, .. }) => *request,
            Self::ClientBatch(_) => None,
        }
    }
}

/// A frame's place on the wire; written by the `frame!` macro alone.
pub(crate) trait Fields: Sized {
    /// The type's number, the first element in MessagePack.
    const CODE: u8;
    /// The type's name, the first element in JSON.
    const NAME: &'static str;
    /// The fields that follow it, in order: their names and, where they may be left out, their defaults.
    const FIELDS: &'static [(&'static str, &'static str)];

    /// Writes the fields in order.
    fn write<S: SerializeTuple>(&self, tuple: &mut S) -> Result<(), S::Error>;

    /// Reads the fields in order, and leaves what follows them.
    fn read<'de, A: SeqAccess<'de>>(seq: &mut A) -> Result<Self, A::Error>;
}

pub(crate) fn write_frame<F: Fields, S: Serializer>(
    frame: &F,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let human = serializer.is_human_readable();
    let mut tuple = serializer.serialize_tuple(F::FIELDS.len() + 1)?;
    if human {
        tuple.serialize_element(F::NAME)?;
    } else {
        tuple.serialize_element(&F::CODE)?;
    }
    frame.write(&mut tuple)?;
    tuple.end()
}

/// The frame's number; none where its number or name is not in `types`.
fn read_type<'de, A: SeqAccess<'de>>(
    seq: &mut A,
    human: bool,
    types: &[(u8, &str)],
) -> Result<Option<u8>, A::Error> {
    let empty = || de::Error::custom("an empty array");
    let found = if human {
        let name: Cow<'de, str> = next(seq, "type")?.ok_or_else(empty)?;
        types.iter().find(|(_, known)| *known == name)
    } else {
        let code: u64 = next(seq, "type")?.ok_or_else(empty)?;
        types.iter().find(|(known, _)| u64::from(*known) == code)
    };
    Ok(found.map(|(code, _)| *code))
}

/// The next element, with its name in the error.
pub(crate) fn next<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(
    seq: &mut A,
    name: &str,
) -> Result<Option<T>, A::Error> {
    seq.next_element()
        .map_err(|error| de::Error::custom(format_args!("field {name}: {error}")))
}

/// Fields that a later version appended are read over.
pub(crate) fn skip_rest<'de, A: SeqAccess<'de>>(seq: &mut A) -> Result<(), A::Error> {
    while seq.next_element::<IgnoredAny>()?.is_some() {}
    Ok(())
}

/// The text by which the codec tells an unknown type from a malformed frame.
pub(crate) const UNKNOWN_TYPE: &str = "unknown frame type";

/// Declares an enum that is a small number in MessagePack and a name in JSON.
macro_rules! wire_enum {
    (
        $(#[$meta:meta])*
        $vis:vis $name:ident { $( $(#[$vmeta:meta])* $variant:ident = $code:literal $text:literal, )* }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        $vis enum $name { $( $(#[$vmeta])* $variant = $code, )* }

        impl $name {
            /// Numbers and names, as the specification lists them.
            #[cfg(test)]
            pub(crate) const LIST: &str = concat!($( $code, " `", $text, "` · ", )*);

            /// The name, as in JSON.
            #[must_use]
            $vis const fn name(self) -> &'static str {
                match self { $( Self::$variant => $text, )* }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.serialize_str(self.name())
                } else {
                    serializer.serialize_u8(*self as u8)
                }
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let found = if deserializer.is_human_readable() {
                    match std::borrow::Cow::<'de, str>::deserialize(deserializer)?.as_ref() {
                        $( $text => Some(Self::$variant), )*
                        _ => None,
                    }
                } else {
                    match u64::deserialize(deserializer)? {
                        $( $code => Some(Self::$variant), )*
                        _ => None,
                    }
                };
                found.ok_or_else(|| serde::de::Error::custom(concat!("is none of:", $( " ", $text, )*)))
            }
        }
    };
}
pub(crate) use wire_enum;
