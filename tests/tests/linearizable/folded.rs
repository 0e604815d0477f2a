//! What a room's log makes of its state and locks, at each of its positions.

use std::collections::{BTreeMap, HashMap};

use roomful_protocol::frame::{
    Entry, EntryKind, LockChange, LockWhy, LoggedHolder, OpId, StateChange, StateChanges,
};
use roomful_protocol::id::{Epoch, Key, Offset, UserId};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;

/// A whole log, folded: a rule of locks that it breaks is an error.
#[derive(Debug)]
pub(crate) struct Folded {
    pub(crate) epoch: Epoch,
    pub(crate) head: Offset,
    /// What each write made of its keys.
    pub(crate) writes: BTreeMap<Offset, Written>,
    /// Where each write stands.
    pub(crate) places: HashMap<OpId, Offset>,
    values: BTreeMap<Key, Vec<(Offset, Option<Payload>)>>,
    locks: BTreeMap<Key, Vec<(Offset, LockChange)>>,
    /// The grants of each lock.
    grants: BTreeMap<Key, Vec<Offset>>,
    /// Leases that ended by themselves, with the time by the server's clock.
    pub(crate) expired: Vec<(Key, Offset, u64)>,
}

/// One write as the log has it.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) op: OpId,
    pub(crate) changes: Vec<StateChange>,
}

impl Folded {
    /// Folds a log that begins with its first entry.
    pub(crate) fn of(epoch: Epoch, log: &[Entry]) -> Result<Self, String> {
        let mut folded = Self {
            epoch,
            head: Offset(log.len() as u64),
            writes: BTreeMap::new(),
            places: HashMap::new(),
            values: BTreeMap::new(),
            locks: BTreeMap::new(),
            grants: BTreeMap::new(),
            expired: Vec::new(),
        };
        for (before, entry) in log.iter().enumerate() {
            if entry.offset != Offset(1 + before as u64) {
                return Err(format!("a gap before {}", entry.offset));
            }
            match entry.kind {
                EntryKind::State => folded.write(entry)?,
                EntryKind::Lock => folded.lock(entry)?,
                kind => return Err(format!("{}: nobody asked for {kind:?}", entry.offset)),
            }
        }
        Ok(folded)
    }

    fn write(&mut self, entry: &Entry) -> Result<(), String> {
        let at = entry.offset;
        let content = StateChanges::from_payload(&entry.payload);
        let changes = content.map_err(|error| error.to_string())?.changes;
        let op = entry.op.ok_or_else(|| format!("{at}: nobody's write"))?;
        if let Some(first) = self.places.insert(op, at) {
            return Err(format!(
                "{op:?} has taken effect twice, at {first} and {at}"
            ));
        }
        for StateChange { key, value } in &changes {
            let values = self.values.entry(key.clone()).or_default();
            values.push((at, value.clone()));
        }
        self.writes.insert(at, Written { op, changes });
        Ok(())
    }

    fn lock(&mut self, entry: &Entry) -> Result<(), String> {
        let at = entry.offset;
        let content = LockChange::from_payload(&entry.payload);
        let change = content.map_err(|error| error.to_string())?;
        let before = self.lock_at(&change.lock, Offset(at.0 - 1));
        let held = before.and_then(|before| before.held.as_ref());
        if !is_legal(at, before, &change) {
            return Err(format!("{at}: {change:?} can't follow {before:?}"));
        }
        match (change.why, held) {
            (LockWhy::Granted, _) => {
                let grants = self.grants.entry(change.lock.clone()).or_default();
                grants.push(at);
            }
            (LockWhy::Expired, Some(held)) => {
                let expired = (change.lock.clone(), held.fence, entry.time_ms);
                self.expired.push(expired);
            }
            _ => {}
        }
        let changes = self.locks.entry(change.lock.clone()).or_default();
        changes.push((at, change));
        Ok(())
    }

    /// A key's version and value.
    pub(crate) fn value_at(&self, key: &Key, at: Offset) -> (Offset, Option<&Payload>) {
        let found = self.values.get(key).and_then(|values| last(values, at));
        found.map_or((Offset(0), None), |(version, value)| {
            (*version, value.as_ref())
        })
    }

    /// Keys that have a value, ascending.
    pub(crate) fn values_at(&self, at: Offset) -> Vec<(&Key, Offset, &Payload)> {
        let values = self.values.keys().filter_map(|key| {
            let (version, value) = self.value_at(key, at);
            Some((key, version, value?))
        });
        values.collect()
    }

    /// A lock, if it was ever asked for.
    pub(crate) fn lock_at(&self, lock: &Key, at: Offset) -> Option<&LockChange> {
        let (_, change) = self.locks.get(lock).and_then(|locks| last(locks, at))?;
        Some(change)
    }

    /// Locks that are held or waited for, ascending.
    pub(crate) fn locks_at(&self, at: Offset) -> Vec<&LockChange> {
        let locks = self.locks.keys().filter_map(|lock| self.lock_at(lock, at));
        locks
            .filter(|lock| lock.held.is_some() || !lock.queue.is_empty())
            .collect()
    }

    /// The newest grant of a lock.
    pub(crate) fn fence_at(&self, lock: &Key, at: Offset) -> Option<Position> {
        let grants = self.grants.get(lock)?;
        let newer = grants.partition_point(|grant| *grant <= at);
        let newest = grants[..newer].last()?;
        Some(Position::new(self.epoch, *newest))
    }
}

/// The last of a list that is not behind an offset.
fn last<T>(changes: &[(Offset, T)], at: Offset) -> Option<&(Offset, T)> {
    changes[..changes.partition_point(|(offset, _)| *offset <= at)].last()
}

/// Whether an entry may follow: a lock goes only from nobody to the first who waits, or to whoever asks where nobody does.
fn is_legal(at: Offset, before: Option<&LockChange>, change: &LockChange) -> bool {
    let held = before.and_then(|before| before.held.as_ref());
    let queue = before.map_or(&[][..], |before| &before.queue);
    let is_same = |now: &Option<LoggedHolder>| {
        now.as_ref().map(|now| (now.fence, &now.user)) == held.map(|held| (held.fence, &held.user))
    };
    match change.why {
        LockWhy::Granted => {
            let granted = change.held.as_ref().filter(|now| now.fence == at);
            let is_next = |user: &UserId| match queue.split_first() {
                Some((first, rest)) => first.user == *user && rest == change.queue,
                None => change.queue.is_empty(),
            };
            held.is_none() && granted.is_some_and(|now| is_next(&now.user))
        }
        LockWhy::Queued => {
            let (now, rest) = (&change.held, change.queue.split_last());
            is_same(now) && rest.is_some_and(|(_, rest)| rest == queue)
        }
        LockWhy::Expired => held.is_some() && change.held.is_none() && change.queue == queue,
        LockWhy::Released | LockWhy::Left => {
            let mut kept = queue.iter();
            let in_order = change.queue.iter().all(|now| kept.any(|was| was == now));
            let is_gone = held.is_some() && change.held.is_none();
            in_order && (is_gone || is_same(&change.held) && change.queue.len() < queue.len())
        }
    }
}
