//! `state`: write, read and watch the keyed state.

use super::macros::{frame, record, variants};
use super::publish::OpId;
use super::wire::{Integer, List, NonEmpty, OptionalList, Page};
use super::wire_enum;
use crate::id::{Key, KeyPrefix, RequestId, RoomAlias};
use crate::limits::{CHANGES_MAX, PREFIXES_MAX};
use crate::payload::Payload;
use crate::position::Position;

frame! {
    /// One of four requests about the keyed state. Reply: `ok`, with a position for `write` and a page for `get`.
    State = 11 "state" {
        /// The request's number.
        request: RequestId,
        /// The room.
        room: RoomAlias,
        /// Which.
        what: StateRequest,
    }
}

variants! {
    /// What a `state` frame asks for; on the wire `[kind, field, …]`.
    StateRequest by StateRequestKind {
        /// Changes values, all of them or none.
        Write = 0 "write" {
            /// The operation's id: with one, sending again takes effect once.
            op: Option<OpId>,
            /// At least one, no two of one key.
            changes: Vec<Change> as NonEmpty<Change, CHANGES_MAX>,
        },
        /// Leaves a write with the server, for when the member is gone; replaces what it left before.
        OnDisconnect = 1 "on_disconnect" {
            /// None of them: nothing is left.
            changes: Vec<Change> as List<Change, CHANGES_MAX>,
        },
        /// A page of values, by ascending key.
        Get = 2 "get" {
            /// How the keys begin.
            prefix: KeyPrefix,
            /// Start after this key; none: from the first.
            after: Option<Key> = None,
            /// At most this many, at least 1; the server may give fewer.
            limit: u64 as Integer = 100,
        },
        /// Changes what of the state is sent unasked.
        Watch = 3 "watch" {
            /// How the keys begin; none: nothing is sent.
            prefixes: Option<Vec<KeyPrefix>> as OptionalList<KeyPrefix, PREFIXES_MAX> = None,
        },
    }
}

record! {
    /// What to do with one key, and on which conditions.
    Change {
        /// Which.
        key: Key,
        /// What to do.
        action: Action,
        /// The value or the patch; none for a deletion.
        value: Option<Payload> = None,
        /// The version that the key must have.
        if_version: Option<Position> = None,
        /// Whether the key must have no value.
        if_absent: bool = false,
        /// The grant that must be its lock's newest.
        if_fence: Option<HeldFence> = None,
    }
}

impl Change {
    /// Gives the key a value.
    #[must_use]
    pub const fn put(key: Key, value: Payload) -> Self {
        Self::unconditional(key, Action::Put, Some(value))
    }

    /// Merges a JSON patch into the key's value.
    #[must_use]
    pub const fn patch(key: Key, patch: Payload) -> Self {
        Self::unconditional(key, Action::Patch, Some(patch))
    }

    /// Takes the key's value away.
    #[must_use]
    pub const fn delete(key: Key) -> Self {
        Self::unconditional(key, Action::Delete, None)
    }

    const fn unconditional(key: Key, action: Action, value: Option<Payload>) -> Self {
        Self {
            key,
            action,
            value,
            if_version: None,
            if_absent: false,
            if_fence: None,
        }
    }

    /// Only if this is the key's version.
    #[must_use]
    pub fn if_version(self, version: Position) -> Self {
        Self {
            if_version: Some(version),
            ..self
        }
    }

    /// Only if the key has no value.
    #[must_use]
    pub fn if_absent(self) -> Self {
        Self {
            if_absent: true,
            ..self
        }
    }

    /// Only if this is the lock's newest grant.
    #[must_use]
    pub fn if_fence(self, lock: Key, fence: Position) -> Self {
        Self {
            if_fence: Some(HeldFence { lock, fence }),
            ..self
        }
    }
}

record! {
    /// A lock, and the fence of the grant under which the writer believes to hold it.
    HeldFence {
        /// Which lock.
        lock: Key,
        /// The grant.
        fence: Position,
    }
}

wire_enum! {
    /// What a change does to its key.
    pub Action {
        /// Gives it this value.
        Put = 0 "put",
        /// Merges JSON into JSON (RFC 7396); replaces where one of the two is something else.
        Patch = 1 "patch",
        /// Takes its value away.
        Delete = 2 "delete",
    }
}

record! {
    /// A page of the keyed state.
    StatePage {
        /// The position that it is the state of.
        position: Position,
        /// By ascending key.
        items: Vec<StateItem> as Page<StateItem>,
        /// Where the next page starts; nil after the last.
        next: Option<Key>,
    }
}

record! {
    /// A key, its version and its value.
    StateItem {
        /// Which.
        key: Key,
        /// Where it was changed last; offset 0 for a key of which nothing is known.
        version: Position,
        /// Its value; nil when it has none, which a page never says.
        value: Option<Payload>,
    }
}
