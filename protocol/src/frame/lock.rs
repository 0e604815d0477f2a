//! `lock`: take, keep, give back, read and watch locks.

use super::lock_changed::{Holder, Waiter};
use super::macros::{frame, record, variants};
use super::wire::{Integer, Many, Page};
use crate::id::{Key, RequestId, RoomAlias};
use crate::position::Position;

frame! {
    /// One of five requests about locks. Reply: `ok`, with what became of the lock for `acquire` and `renew`, and a page for `get`.
    Lock = 12 "lock" {
        /// The request's number.
        request: RequestId,
        /// The room.
        room: RoomAlias,
        /// Which.
        what: LockRequest,
    }
}

variants! {
    /// What a `lock` frame asks for; on the wire `[kind, field, …]`.
    LockRequest by LockRequestKind {
        /// Takes a lock for a time, or waits for it. Who holds it already gets the grant it has, with the time anew.
        Acquire = 0 "acquire" {
            /// Which.
            lock: Key,
            /// How long it is held without being renewed, in milliseconds.
            ttl_ms: u64 as Integer,
            /// Whether to wait where somebody else holds it; else it is refused.
            queue: bool = false,
        },
        /// Holds a lock for longer, from now.
        Renew = 1 "renew" {
            /// Which.
            lock: Key,
            /// The grant.
            fence: Position,
            /// How long, in milliseconds.
            ttl_ms: u64 as Integer,
        },
        /// Gives a lock back, or leaves its queue.
        Release = 2 "release" {
            /// Which.
            lock: Key,
        },
        /// A page of locks that are held, by ascending name.
        Get = 3 "get" {
            /// Start after this lock; none: from the first.
            after: Option<Key> = None,
            /// At most this many, at least 1; the server may give fewer.
            limit: u64 as Integer = 100,
        },
        /// Whether changes of locks are sent unasked.
        Watch = 4 "watch" {
            /// Whether they are.
            locks: bool,
        },
    }
}

variants! {
    /// What became of a lock for the member that asked; on the wire `[kind, field, …]`.
    LockReply by LockReplyKind {
        /// It holds the lock.
        Granted = 0 "granted" {
            /// The position of the grant; of all grants of this lock the greatest.
            fence: Position,
            /// Until when, in milliseconds since 1970.
            until_ms: u64 as Integer,
        },
        /// It waits.
        Queued = 1 "queued" {
            /// How many are before it, the holder not counted.
            place: u64 as Integer,
        },
    }
}

record! {
    /// A page of locks.
    LocksPage {
        /// The position that it is the state of.
        position: Position,
        /// By ascending name; those that are held.
        locks: Vec<LockInfo> as Page<LockInfo>,
        /// Where the next page starts; nil after the last.
        next: Option<Key>,
    }
}

record! {
    /// A lock as it stands.
    LockInfo {
        /// Its name.
        lock: Key,
        /// Who holds it.
        held: Option<Holder>,
        /// Who waits, the next one first.
        queue: Vec<Waiter> as Many<Waiter>,
    }
}
