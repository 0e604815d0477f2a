//! What a room keeps for its members: state, locks, timers and cursors, each by a handle of its own.

use std::time::Duration;

use roomful_protocol::frame::{
    Change, CursorRequest, Cursors, LockInfo, LockRequest, LocksPage, Published, StateItem,
    StatePage, StateRequest, TimerRequest, TimersPage,
};
use roomful_protocol::id::{Key, KeyPrefix};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;

use crate::error::Error;
use crate::machine::{Answer, RoomRequest};
use crate::room::Room;

/// A room's keyed state.
///
/// What is watched ([`crate::JoinOptions::state`], [`State::watch`]) is copied here and kept up to date; [`State::get`] reads that copy.
#[derive(Debug, Clone)]
pub struct State {
    pub(crate) room: Room,
}

impl State {
    /// Makes changes, all of them or none, and waits until they are stored at the room's durability class. Like [`Room::publish`] it takes effect once, in
    /// the order of the calls.
    ///
    /// # Errors
    /// [`Error::Conflict`] where a condition doesn't hold, with what is there; the others as for [`Room::publish`].
    pub async fn write(
        &self,
        changes: impl IntoIterator<Item = Change>,
    ) -> Result<Published, Error> {
        let changes: Vec<_> = changes.into_iter().collect();
        check(&changes)?;
        let request = StateRequest::Write { op: None, changes };
        match self.room.ask(RoomRequest::State(request)).await? {
            Answer::Published(published) => Ok(published),
            _ => Err(Error::UnexpectedAnswer),
        }
    }

    /// Gives a key a value, whatever it had.
    ///
    /// # Errors
    /// As for [`State::write`].
    pub async fn put(&self, key: Key, value: Payload) -> Result<Published, Error> {
        self.write([Change::put(key, value)]).await
    }

    /// Takes a key's value away, whatever it was.
    ///
    /// # Errors
    /// As for [`State::write`].
    pub async fn delete(&self, key: Key) -> Result<Published, Error> {
        self.write([Change::delete(key)]).await
    }

    /// Leaves a write with the server, for when this member is gone; in the place of the one before. None: takes it away. It is left again in
    /// every new membership.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Payload`], [`Error::Timeout`], [`Error::NotJoined`], [`Error::Closed`].
    pub async fn on_disconnect(
        &self,
        changes: impl IntoIterator<Item = Change>,
    ) -> Result<(), Error> {
        let changes: Vec<_> = changes.into_iter().collect();
        check(&changes)?;
        let request = StateRequest::OnDisconnect { changes };
        self.room.done(RoomRequest::State(request)).await
    }

    /// Changes what is watched: keys that begin with one of these, of which the empty one is every key's. None: nothing. The copy is made anew.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Timeout`], [`Error::NotJoined`], [`Error::Closed`].
    pub async fn watch(&self, prefixes: Option<Vec<KeyPrefix>>) -> Result<(), Error> {
        let request = StateRequest::Watch { prefixes };
        self.room.done(RoomRequest::State(request)).await
    }

    /// A watched key with its version and value, as far as this client knows.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<StateItem> {
        self.room.look(|view| view.replicas.value(key))
    }

    /// All watched keys that are known, ascending.
    #[must_use]
    pub fn items(&self) -> Vec<StateItem> {
        self.room.look(|view| view.replicas.values())
    }

    /// Whether every watched key is known: false until the last page of the copy has come.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.room.look(|view| view.replicas.has_all_values())
    }

    /// A page of values from the server, watched or not: at most `limit` keys that begin with the prefix, those after `after`.
    ///
    /// # Errors
    /// As for [`Room::members`].
    pub async fn page(
        &self,
        prefix: KeyPrefix,
        after: Option<Key>,
        limit: u64,
    ) -> Result<StatePage, Error> {
        let request = StateRequest::Get {
            prefix,
            after,
            limit,
        };
        match self.room.ask(RoomRequest::State(request)).await? {
            Answer::State(page) => Ok(page),
            _ => Err(Error::UnexpectedAnswer),
        }
    }
}

/// A room's locks.
///
/// A lock that is held is renewed until it is released or lost; [`crate::RoomEvent::LockLost`] tells of a loss. Holding it is this client's belief: what
/// it guards is written with [`Change::if_fence`] and the fence that [`Locks::acquire`] gave.
#[derive(Debug, Clone)]
pub struct Locks {
    pub(crate) room: Room,
}

impl Locks {
    /// Takes a lock, or waits in its queue, and gives its fence. `ttl` is how long it outlives this client. While it waits, locks are watched.
    /// Dropping the future goes on waiting; [`Locks::release`] ends that.
    ///
    /// # Errors
    /// [`Error::Refused`]; [`Error::LockReleased`]; [`Error::Timeout`], [`Error::NotJoined`], [`Error::Closed`].
    pub async fn acquire(&self, lock: Key, ttl: Duration) -> Result<Position, Error> {
        self.claim(lock, ttl, true).await
    }

    /// Takes a lock if nobody has it, and gives its fence.
    ///
    /// # Errors
    /// [`Error::Refused`] with `lock_taken` where somebody has it; the others as for [`Locks::acquire`].
    pub async fn try_acquire(&self, lock: Key, ttl: Duration) -> Result<Position, Error> {
        self.claim(lock, ttl, false).await
    }

    async fn claim(&self, lock: Key, ttl: Duration, queue: bool) -> Result<Position, Error> {
        match self
            .room
            .ask(RoomRequest::Acquire { lock, ttl, queue })
            .await?
        {
            Answer::Locked(fence) => Ok(fence),
            _ => Err(Error::UnexpectedAnswer),
        }
    }

    /// Gives a lock back, or stops waiting for it. Offline it is given back by the next membership.
    ///
    /// # Errors
    /// [`Error::Refused`] with `lock_not_held` where the server has ended it before; [`Error::Timeout`], [`Error::NotJoined`], [`Error::Closed`].
    pub async fn release(&self, lock: Key) -> Result<(), Error> {
        let request = LockRequest::Release { lock };
        self.room.done(RoomRequest::Lock(request)).await
    }

    /// Changes whether all locks are watched. As long as this client waits for one, they are: it has to hear of its grant.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Timeout`], [`Error::NotJoined`], [`Error::Closed`].
    pub async fn watch(&self, locks: bool) -> Result<(), Error> {
        let request = LockRequest::Watch { locks };
        self.room.done(RoomRequest::Lock(request)).await
    }

    /// Who holds a lock and who waits for it, as far as this client knows; none where nobody does. For those who watch locks.
    #[must_use]
    pub fn get(&self, lock: &Key) -> Option<LockInfo> {
        self.room.look(|view| view.replicas.lock(lock))
    }

    /// All locks that are known to be held, by ascending name.
    #[must_use]
    pub fn all(&self) -> Vec<LockInfo> {
        self.room.look(|view| view.replicas.locks())
    }

    /// A page of locks from the server, watched or not.
    ///
    /// # Errors
    /// As for [`Room::members`].
    pub async fn page(&self, after: Option<Key>, limit: u64) -> Result<LocksPage, Error> {
        let request = LockRequest::Get { after, limit };
        match self.room.ask(RoomRequest::Lock(request)).await? {
            Answer::Locks(page) => Ok(page),
            _ => Err(Error::UnexpectedAnswer),
        }
    }
}

/// A room's timers.
#[derive(Debug, Clone)]
pub struct Timers {
    pub(crate) room: Room,
}

impl Timers {
    /// Sets a timer in the place of one of that name: at `due_ms`, in milliseconds since 1970 by the server's clock, every member gets a
    /// [`crate::RoomEvent::Timer`].
    ///
    /// # Errors
    /// [`Error::Payload`], and as for [`Room::members`].
    pub async fn set(&self, name: Key, due_ms: u64, payload: Payload) -> Result<Published, Error> {
        payload.check().map_err(Error::Payload)?;
        self.stored(TimerRequest::Set {
            name,
            due_ms,
            payload,
        })
        .await
    }

    /// Takes a timer away.
    ///
    /// # Errors
    /// As for [`Room::members`].
    pub async fn cancel(&self, name: Key) -> Result<Published, Error> {
        self.stored(TimerRequest::Cancel { name }).await
    }

    async fn stored(&self, request: TimerRequest) -> Result<Published, Error> {
        match self.room.ask(RoomRequest::Timer(request)).await? {
            Answer::Published(published) => Ok(published),
            _ => Err(Error::UnexpectedAnswer),
        }
    }

    /// A page of timers that are set.
    ///
    /// # Errors
    /// As for [`Room::members`].
    pub async fn page(&self, after: Option<Key>, limit: u64) -> Result<TimersPage, Error> {
        let request = TimerRequest::Get { after, limit };
        match self.room.ask(RoomRequest::Timer(request)).await? {
            Answer::Timers(page) => Ok(page),
            _ => Err(Error::UnexpectedAnswer),
        }
    }
}

impl Room {
    /// The keyed state.
    #[must_use]
    pub fn state(&self) -> State {
        State { room: self.clone() }
    }

    /// The locks.
    #[must_use]
    pub fn locks(&self) -> Locks {
        Locks { room: self.clone() }
    }

    /// The timers.
    #[must_use]
    pub fn timers(&self) -> Timers {
        Timers { room: self.clone() }
    }

    /// How far this user has read, and been delivered to, and how much of others is unread.
    ///
    /// # Errors
    /// As for [`Room::members`].
    pub async fn cursors(&self) -> Result<Cursors, Error> {
        self.cursor(CursorRequest::Get).await
    }

    /// Moves this user's cursors forward, and gives where they stand then.
    ///
    /// # Errors
    /// As for [`Room::members`].
    pub async fn set_cursors(
        &self,
        read: Option<Position>,
        delivered: Option<Position>,
    ) -> Result<Cursors, Error> {
        self.cursor(CursorRequest::Set { read, delivered }).await
    }

    async fn cursor(&self, request: CursorRequest) -> Result<Cursors, Error> {
        match self.ask(RoomRequest::Cursor(request)).await? {
            Answer::Cursors(cursors) => Ok(cursors),
            _ => Err(Error::UnexpectedAnswer),
        }
    }
}

fn check(changes: &[Change]) -> Result<(), Error> {
    let mut values = changes.iter().filter_map(|change| change.value.as_ref());
    values.try_for_each(|value| value.check().map_err(Error::Payload))
}
