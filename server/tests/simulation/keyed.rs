//! What a client does with keyed state and locks, and its copy of what it watches.
//!
//! The copy is as any client would keep it: a page says what there is as of its position, and every change behind that comes by
//! entries. Values carry numbers by which the world can tell whether versions, conditions and fences held: a counter that is
//! raised under `if_version` alone, and a key that is written under a lock alone with the fence as its value.

use std::collections::BTreeMap;

use roomful_protocol::frame::{
    Action, Change, ClientFrame, HeldFence, Joined, Lock, LockChanged, LockReply, LockRequest,
    Recovery, Reply, State, StateChange, StateChanged, StatePage, StateRequest,
};
use roomful_protocol::id::{Epoch, Key, KeyPrefix, MemberId, Offset, RequestId, RoomAlias};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;

use crate::client::{Asked, Client, Noted, Stage};

/// The keys that are written to, with nothing asked.
pub const KEYS: [&str; 4] = ["a/1", "a/2", "b/1", "b/2"];
/// The key that is raised by one, where it is as its writer knows it.
pub const COUNTER: &str = "a/counter";
/// The key that is written under the lock.
pub const GUARDED: &str = "a/guarded";
/// The lock.
pub const LOCK: &str = "lock";

/// One client's wishes and copy.
#[derive(Debug, Default)]
pub struct Keyed {
    /// What it watches; none: nothing.
    pub watched: Option<&'static [&'static str]>,
    pub locks: bool,
    /// Whether the copy lacks what came before it began to watch, until a page brings that.
    pub lacks: bool,
    /// Values and versions of what is watched.
    pub copy: BTreeMap<Key, (Offset, Payload)>,
    /// Changes up to here are in the copy already.
    pub floor: Offset,
    /// The grant under which it holds the lock, as far as it knows.
    pub fence: Option<Position>,
    /// The newest grant of the lock that it was told of.
    pub newest_fence: Offset,
    /// How often it has changed what it watches; a page that was asked for before tells of less.
    pub changes: u64,
    /// Whether what it watches has changed and no page has come since. What was on its way then may still come.
    pub is_changing: bool,
    /// Whether that has not been granted yet.
    pub is_asking: bool,
    /// Behind this it is told of what it watches alone.
    pub sure_from: Offset,
    /// Whether the copy was found to be what the room has, since it was asked last.
    pub agreed: bool,
    pub writes: u64,
    /// How often it was told of changes, and refused for a condition, and for a fence.
    pub told: u64,
    pub conflicts: u64,
    pub stale: u64,
}

/// What a client asks for, and what its reply is for.
#[derive(Debug, Clone, Copy)]
pub enum AskedKeyed {
    Write,
    /// A page of everything, with the number of changes of what is watched before it.
    Page(u64),
    /// With the number of the change that it asks for: of two that are asked for, the later one may be refused.
    Watch(u64),
    Acquire,
    Release,
}

impl Keyed {
    /// What `join.state` says.
    pub fn prefixes(&self) -> Option<Vec<KeyPrefix>> {
        let watched = self.watched?;
        Some(
            watched
                .iter()
                .map(|prefix| KeyPrefix::parse(prefix).unwrap())
                .collect(),
        )
    }

    pub fn watches(&self, key: &Key) -> bool {
        let mut watched = self.watched.into_iter().flatten();
        watched.any(|prefix| key.as_str().starts_with(prefix))
    }

    /// The room was entered anew: what was known of another epoch, or was told to be void, is. With pages the copy is whole.
    pub fn entered(&mut self, joined: &Joined, since: Option<Position>) {
        let (state, locks) = (joined.state.as_ref(), joined.locks.as_ref());
        (self.fence, self.is_changing, self.is_asking) = (None, false, false);
        self.sure_from = Offset(0);
        if joined.recovery == Recovery::Recovering {
            assert!(
                state.is_none() && locks.is_none(),
                "pages for one who recovers"
            );
            return;
        }
        assert_eq!(
            state.is_some(),
            self.watched.is_some(),
            "the state that was asked for"
        );
        assert_eq!(locks.is_some(), self.locks, "the locks that were asked for");
        if let Some(page) = state {
            let was_there = joined.recovery == Recovery::Live && since.is_some();
            let whole = !was_there || self.agrees(page);
            assert!(whole, "live, and yet it had missed something");
        }
        (self.lacks, self.newest_fence, self.floor) = (false, Offset(0), Offset(0));
        self.copy.clear();
        if let Some(page) = state {
            self.take_page(page);
        }
    }

    /// A page that was asked for; `at` is where the client is.
    pub fn paged(&mut self, page: &StatePage, changes: u64, at: Position) {
        assert!(
            page.position >= at,
            "a page older than what was told before it"
        );
        if changes != self.changes || self.is_asking {
            return;
        }
        if self.is_changing {
            (self.is_changing, self.sure_from) = (false, page.position.offset);
        }
        if self.lacks {
            self.take_page(page);
        }
        if page.position == at {
            assert!(
                self.agrees(page),
                "the copy is not what the room has: {:?} at {at:?}, watched {:?}; the room: {:?}",
                self.copy,
                self.watched,
                page.items
            );
            self.agreed = true;
        }
    }

    /// Watches something else from now on.
    pub fn watch(&mut self, watched: Option<&'static [&'static str]>) -> StateRequest {
        self.watched = watched;
        self.lacks = watched.is_some();
        self.changes += 1;
        (self.is_changing, self.is_asking) = (true, true);
        self.copy.clear();
        StateRequest::Watch {
            prefixes: self.prefixes(),
        }
    }

    /// A request was refused.
    pub fn refused(&mut self, asked: AskedKeyed, code: u16) {
        match (asked, code) {
            (AskedKeyed::Write, 404) => self.conflicts += 1,
            (AskedKeyed::Write, 405) => {
                self.stale += 1;
                self.fence = None;
            }
            // Gone, unknown, too fast, short of memory, or of a disk; taken, or not held any more.
            (_, 302 | 402 | 500 | 501 | 503 | 504)
            | (AskedKeyed::Acquire, 406)
            | (AskedKeyed::Release, 407) => {}
            (asked, code) => panic!("{asked:?} failed with {code}"),
        }
    }

    /// All there is, as of the page's position.
    fn take_page(&mut self, page: &StatePage) {
        assert_eq!(page.next, None, "one page is enough for so few keys");
        let items = page.items.iter().filter(|item| self.watches(&item.key));
        self.copy = items
            .map(|item| {
                let value = item.value.clone().expect("a page has values");
                (item.key.clone(), (item.version.offset, value))
            })
            .collect();
        self.floor = page.position.offset;
        self.lacks = false;
    }

    /// Whether the copy is what a page says, for one who is where the page is.
    fn agrees(&self, page: &StatePage) -> bool {
        let mut of_page = Self {
            watched: self.watched,
            ..Self::default()
        };
        of_page.take_page(page);
        self.lacks || of_page.copy == self.copy
    }

    /// Versions of what it is told only grow, and all of it is watched.
    pub fn changed(&mut self, state: &StateChanged) {
        self.told += 1;
        assert!(!state.changes.is_empty(), "a frame that tells of nothing");
        for StateChange { key, value } in &state.changes {
            let watches = self.watches(key);
            let may_be_older = self.is_changing || state.offset <= self.sure_from;
            assert!(watches || may_be_older, "{key} is not watched");
            if !watches || state.offset <= self.floor {
                continue;
            }
            if let Some((version, _)) = self.copy.get(key) {
                assert!(*version < state.offset, "an older version of {key}");
            }
            match value {
                Some(value) => drop(self.copy.insert(key.clone(), (state.offset, value.clone()))),
                None => drop(self.copy.remove(key)),
            }
        }
    }

    /// Fences only grow. Whether the client still holds the lock is known by it.
    pub fn lock_changed(&mut self, changed: &LockChanged, member: MemberId, epoch: Epoch) {
        assert!(self.locks, "a lock for one who does not watch");
        let Some(held) = &changed.held else {
            self.fence = None;
            return;
        };
        assert!(
            held.fence >= self.newest_fence,
            "a grant older than one before"
        );
        self.newest_fence = held.fence;
        self.fence = (held.member == member).then(|| Position::new(epoch, held.fence));
    }

    pub fn lock_replied(&mut self, reply: &LockReply) {
        match reply {
            LockReply::Granted { fence, .. } => self.fence = Some(*fence),
            LockReply::Queued { .. } => {}
        }
    }

    /// One write, of a kind that the number tells.
    pub fn write(&mut self, kind: u32, position: Position) -> Vec<Change> {
        self.writes += 1;
        let writes = self.writes;
        match kind {
            0..3 => self.raise(position).into_iter().collect(),
            3..6 => self.guarded().into_iter().collect(),
            6 => vec![delete(KEYS[number(writes, KEYS.len())])],
            7 => KEYS.iter().map(|key| put(key, writes)).collect(),
            _ => vec![put(KEYS[number(writes, KEYS.len())], writes)],
        }
    }

    /// The counter, one more than it is known to be.
    fn raise(&self, position: Position) -> Option<Change> {
        let key = Key::parse(COUNTER).unwrap();
        if !self.watches(&key) || self.lacks {
            return None;
        }
        let known = self.copy.get(&key);
        let next = known.map_or(1, |(_, value)| number_in(value) + 1);
        let if_version = known.map(|(version, _)| Position::new(position.epoch, *version));
        Some(Change {
            if_version,
            if_absent: known.is_none(),
            ..put(COUNTER, next)
        })
    }

    fn guarded(&self) -> Option<Change> {
        let fence = self.fence?;
        let lock = Key::parse(LOCK).unwrap();
        Some(Change {
            if_fence: Some(HeldFence { lock, fence }),
            ..put(GUARDED, fence.offset.0)
        })
    }
}

impl Client {
    /// Writes some of the state, as a number says.
    pub fn write(&mut self, kind: u32) -> Option<ClientFrame> {
        let (position, room) = (self.position?, self.alias?);
        let changes = self.keyed.as_mut()?.write(kind, position);
        if changes.is_empty() {
            return None;
        }
        let request = self.ask(Asked::Keyed(AskedKeyed::Write));
        let what = StateRequest::Write { op: None, changes };
        Some(state(request, room, what))
    }

    pub fn watch_state(&mut self, watched: Option<&'static [&'static str]>) -> Option<ClientFrame> {
        let room = self.alias?;
        let keyed = self.keyed.as_mut()?;
        let what = keyed.watch(watched);
        let asked = AskedKeyed::Watch(keyed.changes);
        let request = self.ask(Asked::Keyed(asked));
        Some(state(request, room, what))
    }

    pub fn ask_page(&mut self) -> Option<ClientFrame> {
        let room = self.alias?;
        let keyed = self.keyed.as_mut()?;
        keyed.agreed = false;
        let page = AskedKeyed::Page(keyed.changes);
        let request = self.ask(Asked::Keyed(page));
        Some(state(request, room, everything()))
    }

    pub fn lock(&mut self, what: LockRequest) -> Option<ClientFrame> {
        let room = self.alias?;
        let asked = match what {
            LockRequest::Release { .. } => {
                self.keyed.as_mut()?.fence = None;
                AskedKeyed::Release
            }
            _ => AskedKeyed::Acquire,
        };
        let request = self.ask(Asked::Keyed(asked));
        Some(lock(request, room, what))
    }

    pub fn keyed_succeeded(
        &mut self,
        asked: AskedKeyed,
        reply: Reply,
        noted: &mut Vec<Noted>,
    ) -> Vec<ClientFrame> {
        let keyed = self.keyed.as_mut().expect("it has asked");
        match (asked, reply) {
            (AskedKeyed::Write, Reply::Published(published)) => {
                noted.push(Noted::Written(published.position));
            }
            (AskedKeyed::Page(changes), Reply::State(page)) => {
                let at = self.position.filter(|_| self.stage == Stage::In);
                if let Some(at) = at.filter(|at| at.epoch == page.position.epoch) {
                    keyed.paged(&page, changes, at);
                }
            }
            (AskedKeyed::Watch(changes), Reply::Done) => {
                keyed.is_asking &= changes != keyed.changes;
                return self.ask_page().into_iter().collect();
            }
            (AskedKeyed::Acquire, Reply::Lock(reply)) => keyed.lock_replied(&reply),
            (AskedKeyed::Release, Reply::Done) => {}
            (asked, reply) => panic!("{asked:?} was answered with {reply:?}"),
        }
        Vec::new()
    }
}

fn state(request: RequestId, room: RoomAlias, what: StateRequest) -> ClientFrame {
    State {
        request,
        room,
        what,
    }
    .into()
}

fn lock(request: RequestId, room: RoomAlias, what: LockRequest) -> ClientFrame {
    Lock {
        request,
        room,
        what,
    }
    .into()
}

/// What a request for all of the state says.
fn everything() -> StateRequest {
    StateRequest::Get {
        prefix: KeyPrefix::parse("").unwrap(),
        after: None,
        limit: 1_000,
    }
}

/// The number in a value.
pub fn number_in(value: &Payload) -> u64 {
    let text = std::str::from_utf8(&value.bytes).unwrap();
    text.parse().unwrap()
}

fn put(key: &str, number: u64) -> Change {
    Change {
        key: Key::parse(key).unwrap(),
        action: Action::Put,
        value: Some(Payload::text(number.to_string())),
        if_version: None,
        if_absent: false,
        if_fence: None,
    }
}

fn delete(key: &str) -> Change {
    Change {
        action: Action::Delete,
        value: None,
        ..put(key, 0)
    }
}

fn number(of: u64, count: usize) -> usize {
    usize::try_from(of).unwrap() % count
}
