//! Keyed state, locks, timers and cursors for tests: what a [`RawClient`] asks, in few words.
//!
//! Functions make the parts of requests, methods send them and unpack the reply. A [`Replica`] follows the keyed state as any
//! client would: from pages and from `state` frames. What is right, the tests judge.

use std::collections::BTreeMap;

use roomful_protocol::frame::{
    Action, Change, Cursor, CursorRequest, Cursors, Error, HeldFence, Lock, LockReply, LockRequest,
    LocksPage, OpId, Published, Reply, ServerFrame, State, StateChanged, StatePage, StateRequest,
    Timer, TimerRequest,
};
use roomful_protocol::id::{Key, KeyPrefix, Offset, RoomAlias};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;

use crate::RawClient;

/// A key, or the name of a lock or a timer.
///
/// # Panics
/// It breaks the grammar.
#[must_use]
pub fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

/// How keys begin.
///
/// # Panics
/// One breaks the grammar.
#[must_use]
pub fn prefixes(texts: &[&str]) -> Option<Vec<KeyPrefix>> {
    let parse = |text: &&str| KeyPrefix::parse(text).unwrap();
    Some(texts.iter().map(parse).collect())
}

/// Gives a key a text.
#[must_use]
pub fn put(name: &str, text: &str) -> Change {
    Change {
        key: key(name),
        action: Action::Put,
        value: Some(Payload::text(text)),
        if_version: None,
        if_absent: false,
        if_fence: None,
    }
}

/// Merges a JSON object into a key's value.
#[must_use]
pub fn patch(name: &str, json: &str) -> Change {
    Change {
        action: Action::Patch,
        value: Some(Payload::json(json)),
        ..put(name, "")
    }
}

/// Takes a key's value away.
#[must_use]
pub fn delete(name: &str) -> Change {
    Change {
        action: Action::Delete,
        value: None,
        ..put(name, "")
    }
}

/// The change, on the condition that a lock is held.
#[must_use]
pub fn fenced(change: Change, lock: &str, fence: Position) -> Change {
    let lock = key(lock);
    Change {
        if_fence: Some(HeldFence { lock, fence }),
        ..change
    }
}

impl RawClient {
    /// Changes the keyed state.
    ///
    /// # Errors
    /// The server's.
    ///
    /// # Panics
    /// Something else than a reply comes.
    pub async fn write(
        &mut self,
        room: RoomAlias,
        op: Option<OpId>,
        changes: Vec<Change>,
    ) -> Result<Published, Error> {
        match self
            .state(room, StateRequest::Write { op, changes })
            .await?
        {
            Reply::Published(published) => Ok(published),
            other => panic!("not written: {other:?}"),
        }
    }

    /// Changes one key, and gives its version.
    ///
    /// # Panics
    /// It is refused.
    pub async fn change(&mut self, room: RoomAlias, change: Change) -> Position {
        self.write(room, None, vec![change]).await.unwrap().position
    }

    /// A page of the keyed state.
    ///
    /// # Panics
    /// It is refused.
    pub async fn page(
        &mut self,
        room: RoomAlias,
        prefix: &str,
        after: Option<Key>,
        limit: u64,
    ) -> StatePage {
        let prefix = KeyPrefix::parse(prefix).unwrap();
        let what = StateRequest::Get {
            prefix,
            after,
            limit,
        };
        match self.state(room, what).await.unwrap() {
            Reply::State(page) => page,
            other => panic!("no page: {other:?}"),
        }
    }

    /// Sends a request about the keyed state.
    ///
    /// # Errors
    /// The server's.
    pub async fn state(&mut self, room: RoomAlias, what: StateRequest) -> Result<Reply, Error> {
        self.ask(|request| State {
            request,
            room,
            what,
        })
        .await
    }

    /// Takes a lock for a minute, or waits for it.
    ///
    /// # Errors
    /// The server's.
    ///
    /// # Panics
    /// Something else than a reply comes.
    pub async fn acquire(
        &mut self,
        room: RoomAlias,
        lock: &str,
        queue: bool,
    ) -> Result<LockReply, Error> {
        self.acquire_for(room, lock, 60_000, queue).await
    }

    /// Takes a lock for some time, or waits for it.
    ///
    /// # Errors
    /// The server's.
    ///
    /// # Panics
    /// Something else than a reply comes.
    pub async fn acquire_for(
        &mut self,
        room: RoomAlias,
        lock: &str,
        ttl_ms: u64,
        queue: bool,
    ) -> Result<LockReply, Error> {
        let lock = key(lock);
        let what = LockRequest::Acquire {
            lock,
            ttl_ms,
            queue,
        };
        match self.lock(room, what).await? {
            Reply::Lock(reply) => Ok(reply),
            other => panic!("nothing of a lock: {other:?}"),
        }
    }

    /// Takes a free lock, and gives its fence.
    ///
    /// # Panics
    /// It is not free.
    pub async fn hold(&mut self, room: RoomAlias, lock: &str) -> Position {
        match self.acquire(room, lock, false).await.unwrap() {
            LockReply::Granted { fence, .. } => fence,
            queued @ LockReply::Queued { .. } => panic!("not granted: {queued:?}"),
        }
    }

    /// Gives a lock back.
    ///
    /// # Errors
    /// The server's.
    pub async fn release(&mut self, room: RoomAlias, lock: &str) -> Result<Reply, Error> {
        let lock = key(lock);
        self.lock(room, LockRequest::Release { lock }).await
    }

    /// The locks that are held.
    ///
    /// # Panics
    /// It is refused.
    pub async fn locks(&mut self, room: RoomAlias) -> LocksPage {
        let what = LockRequest::Get {
            after: None,
            limit: 100,
        };
        match self.lock(room, what).await.unwrap() {
            Reply::Locks(page) => page,
            other => panic!("no page: {other:?}"),
        }
    }

    /// Sends a request about locks.
    ///
    /// # Errors
    /// The server's.
    pub async fn lock(&mut self, room: RoomAlias, what: LockRequest) -> Result<Reply, Error> {
        self.ask(|request| Lock {
            request,
            room,
            what,
        })
        .await
    }

    /// Sends a request about timers.
    ///
    /// # Errors
    /// The server's.
    pub async fn timer(&mut self, room: RoomAlias, what: TimerRequest) -> Result<Reply, Error> {
        self.ask(|request| Timer {
            request,
            room,
            what,
        })
        .await
    }

    /// Sends a request about the own cursors.
    ///
    /// # Errors
    /// The server's.
    ///
    /// # Panics
    /// Something else than a reply comes.
    pub async fn cursor(&mut self, room: RoomAlias, what: CursorRequest) -> Result<Cursors, Error> {
        match self
            .ask(|request| Cursor {
                request,
                room,
                what,
            })
            .await?
        {
            Reply::Cursors(cursors) => Ok(cursors),
            other => panic!("no cursors: {other:?}"),
        }
    }
}

/// A client's copy of the keyed state, as far as it watches it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replica {
    /// Values and versions.
    pub values: BTreeMap<Key, (Offset, Payload)>,
    /// Up to where it is complete.
    pub at: Offset,
}

impl Replica {
    /// What a page says; it is the whole state of what is watched.
    ///
    /// # Panics
    /// It is not: another page follows.
    #[must_use]
    pub fn of(page: &StatePage) -> Self {
        assert_eq!(page.next, None, "there is more than one page");
        let items = page.items.iter().map(|item| {
            let value = item.value.clone().unwrap();
            (item.key.clone(), (item.version.offset, value))
        });
        Self {
            values: items.collect(),
            at: page.position.offset,
        }
    }

    /// Takes in what the server sends, and gives the frame if it told of the state.
    ///
    /// # Panics
    /// There is a gap, or an entry comes twice.
    pub fn take_in(&mut self, frame: ServerFrame) -> Option<StateChanged> {
        let (offset, state) = match frame {
            ServerFrame::StateChanged(state) => (state.offset, Some(state)),
            ServerFrame::Event(event) => (event.entry.offset, None),
            ServerFrame::LockChanged(lock) => (lock.offset, None),
            ServerFrame::TimerChanged(timer) => (timer.offset, None),
            ServerFrame::Advance(advance) => {
                assert!(advance.offset > self.at, "an advance to where it is");
                self.at = advance.offset;
                return None;
            }
            _ => return None,
        };
        assert_eq!(
            offset,
            self.at.next(),
            "a gap, or an entry that comes twice"
        );
        self.at = offset;
        for change in state.iter().flat_map(|state| &state.changes) {
            match &change.value {
                Some(value) => {
                    let value = (offset, value.clone());
                    self.values.insert(change.key.clone(), value);
                }
                None => drop(self.values.remove(&change.key)),
            }
        }
        state
    }

    /// Takes in what comes, up to an offset; gives what told of the state.
    pub async fn follow(&mut self, client: &mut RawClient, until: Offset) -> Vec<StateChanged> {
        let mut told = Vec::new();
        while self.at < until {
            told.extend(self.take_in(client.next().await));
        }
        told
    }

    /// A key's value as text.
    ///
    /// # Panics
    /// It is no text.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        let (_, value) = self.values.get(&key(name))?;
        Some(std::str::from_utf8(&value.bytes).unwrap())
    }
}
