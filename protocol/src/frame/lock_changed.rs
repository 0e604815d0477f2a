//! `lock` from the server: a lock changed hands, or somebody came to wait for it.

use super::macros::{frame, record};
use super::wire::{Integer, Many};
use super::wire_enum;
use crate::id::{Key, MemberId, Offset, RoomAlias, SessionId, UserId};

frame! {
    /// One entry of the log that changed a lock: the lock as it stands then.
    LockChanged = 47 "lock" {
        /// The room.
        room: RoomAlias,
        /// Its place.
        offset: Offset,
        /// When the owner took it, in milliseconds since 1970.
        time_ms: u64 as Integer,
        /// Which lock.
        lock: Key,
        /// What happened.
        why: LockWhy,
        /// Who holds it now; nil: nobody.
        held: Option<Holder>,
        /// Who waits, the next one first.
        queue: Vec<Waiter> as Many<Waiter>,
    }
}

record! {
    /// Who holds a lock.
    Holder {
        /// The offset of the grant, in the epoch of the membership.
        fence: Offset,
        /// The member.
        member: MemberId,
        /// Whose member it is.
        user: UserId,
        /// Until when as of this entry, in milliseconds since 1970; a renewal is not told.
        until_ms: u64 as Integer,
    }
}

record! {
    /// Who waits for a lock.
    Waiter {
        /// The member.
        member: MemberId,
        /// Whose member it is.
        user: UserId,
    }
}

wire_enum! {
    /// What happened to a lock.
    pub LockWhy {
        /// It was free: who asked for it, or waited longest, has it.
        Granted = 0 "granted",
        /// Somebody waits for it.
        Queued = 1 "queued",
        /// Its holder gave it back, or somebody stopped waiting.
        Released = 2 "released",
        /// Its time ran out.
        Expired = 3 "expired",
        /// Its holder, or somebody who waited, is gone from the room.
        Left = 4 "left",
    }
}

record! {
    /// The content of an entry that changed a lock, with what it takes to go on after a restart.
    LockChange {
        /// Which lock.
        lock: Key,
        /// What happened.
        why: LockWhy,
        /// Who holds it now.
        held: Option<LoggedHolder>,
        /// Who waits, the next one first.
        queue: Vec<LoggedWaiter> as Many<LoggedWaiter>,
    }
}

record! {
    /// Who holds a lock, as the log knows it.
    LoggedHolder {
        /// The offset of the grant: the entry's own, or an earlier one.
        fence: Offset,
        /// The member.
        member: MemberId,
        /// Whose member it is.
        user: UserId,
        /// Until when as of this entry, in milliseconds since 1970.
        until_ms: u64 as Integer,
        /// The member's session.
        session: SessionId,
        /// For how long it was taken, in milliseconds.
        ttl_ms: u64 as Integer,
    }
}

record! {
    /// Who waits for a lock, as the log knows it.
    LoggedWaiter {
        /// The member.
        member: MemberId,
        /// Whose member it is.
        user: UserId,
        /// The member's session.
        session: SessionId,
        /// For how long it will take it, in milliseconds.
        ttl_ms: u64 as Integer,
    }
}

impl From<&LoggedHolder> for Holder {
    fn from(logged: &LoggedHolder) -> Self {
        Self {
            fence: logged.fence,
            member: logged.member,
            user: logged.user.clone(),
            until_ms: logged.until_ms,
        }
    }
}

impl From<&LoggedWaiter> for Waiter {
    fn from(logged: &LoggedWaiter) -> Self {
        Self {
            member: logged.member,
            user: logged.user.clone(),
        }
    }
}
