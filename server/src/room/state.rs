//! The keyed state of a room: values whose version is the offset of their last change.
//!
//! The room calls it, on one copy for what is committed and on another for what is on its way. A write is judged whole, on the
//! state before it, and judging changes nothing; what it results in goes into the log, and [`State::apply`] is the same for an
//! entry that was just made and for one that is replayed. How much is kept is bounded: keys, bytes of one value and of all, and
//! how many deleted keys are remembered and for how long. Who may write, and when a write counts, is left to the room.
//!
//! A patch is a JSON merge patch (RFC 7396) where both it and the value are JSON. Numbers and texts inside are taken over as
//! they were written. What is no JSON is replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use roomful_protocol::frame::{
    Action, Change, HeldFence, StateChange, StateChanges, StateItem, StatePage,
};
use roomful_protocol::id::{Epoch, Key, KeyPrefix, Offset};
use roomful_protocol::payload::{Payload, PayloadFormat};
use roomful_protocol::position::Position;
use serde_json::value::RawValue;

use super::locks::Locks;
use crate::metrics::Quota;

/// The values of a room.
#[derive(Debug, Clone, Default)]
pub struct State {
    cells: BTreeMap<Key, Cell>,
    /// Bytes of keys and values.
    bytes: usize,
    /// Deleted keys that are remembered.
    tombstones: BTreeMap<Key, Tombstone>,
    /// The same in the order of their deletion.
    deleted: BTreeSet<(Offset, Key)>,
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// The value.
    pub value: Payload,
    /// Where it was changed last.
    pub version: Offset,
}

/// What is remembered of a deleted key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tombstone {
    /// Where it was deleted.
    pub version: Offset,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
}

/// How much state a room keeps, and which keys are written under a lock alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateBounds {
    /// Keys with a value.
    pub keys_max: usize,
    /// Bytes of one value.
    pub value_bytes_max: usize,
    /// Bytes of all keys and values.
    pub bytes_max: usize,
    /// Deleted keys that are remembered.
    pub tombstones_max: usize,
    /// For how long, in milliseconds.
    pub tombstone_age_max_ms: u64,
    /// Keys that begin with one of these are written with `if_fence` alone.
    pub fence_prefixes: Vec<KeyPrefix>,
}

/// Why a write is not made. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateRefusal {
    /// Conditions on versions do not hold; the keys as they are.
    Conflict(Vec<StateItem>),
    /// The lock was granted again since, or is not known.
    StaleFence(Key),
    /// The key begins with a prefix that demands a fence.
    FenceRequired(Key),
    /// The room would keep more than it may.
    Quota(Quota),
    /// The same key stands in the write twice.
    Twice(Key),
    /// A put or a patch has no value.
    NoValue(Key),
    /// A name in the JSON that is patched, or in the patch, is no text: it stands for half a character.
    NoName(Key),
}

impl State {
    /// Judges a write on the state as it is: what it would make of its keys.
    ///
    /// # Errors
    /// A condition does not hold, or a bound would be exceeded.
    pub fn check(
        &self,
        changes: &[Change],
        epoch: Epoch,
        locks: &Locks,
        bounds: &StateBounds,
    ) -> Result<StateChanges, StateRefusal> {
        let mut keys = BTreeSet::new();
        if let Some(twice) = changes.iter().find(|change| !keys.insert(&change.key)) {
            return Err(StateRefusal::Twice(twice.key.clone()));
        }
        for change in changes {
            check_fence(change, epoch, locks, bounds)?;
        }
        let differs = |change: &&Change| !self.holds(change, epoch);
        let current: Vec<_> = changes
            .iter()
            .filter(differs)
            .map(|change| self.item(&change.key, epoch))
            .collect();
        if !current.is_empty() {
            return Err(StateRefusal::Conflict(current));
        }
        let results = changes.iter().map(|change| self.result(change));
        let changes = StateChanges {
            changes: results.collect::<Result<_, _>>()?,
        };
        self.check_bounds(&changes, bounds)?;
        Ok(changes)
    }

    /// Makes the changes of an entry.
    pub fn apply(
        &mut self,
        changes: &StateChanges,
        version: Offset,
        time_ms: u64,
        bounds: &StateBounds,
    ) {
        for StateChange { key, value } in &changes.changes {
            self.forget(key);
            match value {
                Some(value) => self.put(key.clone(), value.clone(), version),
                None => self.bury(key.clone(), Tombstone { version, time_ms }),
            }
        }
        self.expire(time_ms, bounds);
    }

    /// Puts a value where its key has none.
    pub(super) fn put(&mut self, key: Key, value: Payload, version: Offset) {
        self.bytes += size(&key, &value);
        self.cells.insert(key, Cell { value, version });
    }

    /// Remembers the deletion of a key of which nothing is kept.
    pub(super) fn bury(&mut self, key: Key, tombstone: Tombstone) {
        self.deleted.insert((tombstone.version, key.clone()));
        self.tombstones.insert(key, tombstone);
    }

    /// Takes away what is kept of a key.
    fn forget(&mut self, key: &Key) {
        if let Some(cell) = self.cells.remove(key) {
            self.bytes -= size(key, &cell.value);
        }
        if let Some(tombstone) = self.tombstones.remove(key) {
            self.deleted.remove(&(tombstone.version, key.clone()));
        }
    }

    /// Forgets the oldest deletions, as far as the bounds ask for it.
    fn expire(&mut self, now_ms: u64, bounds: &StateBounds) {
        while let Some((_, key)) = self.deleted.first() {
            let deleted_ms = self.tombstones.get(key).map_or(0, |found| found.time_ms);
            let is_old = deleted_ms.saturating_add(bounds.tombstone_age_max_ms) <= now_ms;
            if !is_old && self.tombstones.len() <= bounds.tombstones_max {
                return;
            }
            if let Some((_, key)) = self.deleted.pop_first() {
                self.tombstones.remove(&key);
            }
        }
    }

    /// Where a key was changed last; 0 where nothing is known of it.
    #[must_use]
    pub fn version(&self, key: &Key) -> Offset {
        let value = self.cells.get(key).map(|cell| cell.version);
        let deleted = || self.tombstones.get(key).map(|found| found.version);
        value.or_else(deleted).unwrap_or_default()
    }

    /// Whether what an entry at this offset made of a key is how it stands. The deletion of a key that is not remembered may
    /// be: it is told once more then.
    #[must_use]
    pub fn is_current(&self, change: &StateChange, offset: Offset) -> bool {
        match self.version(&change.key) {
            Offset(0) => change.value.is_none(),
            version => version == offset,
        }
    }

    /// A page of values by ascending key: those that begin with one of the prefixes. It ends with the value that goes beyond
    /// the bytes, and shows at least one where there is one.
    #[must_use]
    pub fn page(
        &self,
        at: Position,
        prefixes: &[KeyPrefix],
        after: Option<&Key>,
        limit: usize,
        bytes_max: usize,
    ) -> StatePage {
        let mut page = StatePage {
            position: at,
            items: Vec::new(),
            next: None,
        };
        let (Some(first), Some(last)) = (prefixes.iter().min(), prefixes.iter().max()) else {
            return page;
        };
        let from = match after.map(Key::as_str) {
            Some(after) if after >= first.as_str() => Bound::Excluded(after),
            _ => Bound::Included(first.as_str()),
        };
        let ahead = self.cells.range::<str, _>((from, Bound::Unbounded));
        let wanted = ahead
            .take_while(|(key, _)| key.as_str() < last.as_str() || last.is_of(key))
            .filter(|(key, _)| prefixes.iter().any(|prefix| prefix.is_of(key)));
        let mut bytes = 0;
        for (key, cell) in wanted {
            if page.items.len() == limit || bytes > bytes_max {
                page.next = page.items.last().map(|item| item.key.clone());
                break;
            }
            bytes += size(key, &cell.value);
            page.items.push(StateItem {
                key: key.clone(),
                version: Position::new(at.epoch, cell.version),
                value: Some(cell.value.clone()),
            });
        }
        page
    }

    /// Every value, by ascending key.
    pub fn cells(&self) -> impl Iterator<Item = (&Key, &Cell)> {
        self.cells.iter()
    }

    /// Every deletion that is remembered, by ascending key.
    pub fn tombstones(&self) -> impl Iterator<Item = (&Key, &Tombstone)> {
        self.tombstones.iter()
    }

    /// Whether there is neither a value nor a deletion.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty() && self.tombstones.is_empty()
    }

    /// About what it takes in memory, in bytes.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.bytes + self.cells.len() * CELL_BYTES + self.tombstones.len() * TOMBSTONE_BYTES
    }

    /// Whether the key is as the change demands.
    fn holds(&self, change: &Change, epoch: Epoch) -> bool {
        let version = Position::new(epoch, self.version(&change.key));
        change.if_version.is_none_or(|wanted| wanted == version)
            && !(change.if_absent && self.cells.contains_key(&change.key))
    }

    fn item(&self, key: &Key, epoch: Epoch) -> StateItem {
        StateItem {
            key: key.clone(),
            version: Position::new(epoch, self.version(key)),
            value: self.cells.get(key).map(|cell| cell.value.clone()),
        }
    }

    /// What a change makes of its key.
    fn result(&self, change: &Change) -> Result<StateChange, StateRefusal> {
        let given = || {
            let value = change.value.as_ref();
            value.ok_or_else(|| StateRefusal::NoValue(change.key.clone()))
        };
        let value = match change.action {
            Action::Put => Some(given()?.clone()),
            Action::Delete => None,
            Action::Patch => {
                let before = self.cells.get(&change.key).map(|cell| &cell.value);
                let patched = patched(before, given()?);
                Some(patched.map_err(|Nameless| StateRefusal::NoName(change.key.clone()))?)
            }
        };
        Ok(StateChange {
            key: change.key.clone(),
            value,
        })
    }

    /// Whether there is room for the results. What makes the state no larger passes, also where a bound has been lowered.
    fn check_bounds(
        &self,
        changes: &StateChanges,
        bounds: &StateBounds,
    ) -> Result<(), StateRefusal> {
        let (mut keys, mut bytes) = (self.cells.len(), self.bytes);
        for StateChange { key, value } in &changes.changes {
            if let Some(cell) = self.cells.get(key) {
                keys -= 1;
                bytes -= size(key, &cell.value);
            }
            if let Some(value) = value {
                keys += 1;
                bytes += size(key, value);
                if value.bytes.len() > bounds.value_bytes_max {
                    return Err(StateRefusal::Quota(Quota::StateValueBytes));
                }
            }
        }
        if keys > bounds.keys_max && keys > self.cells.len() {
            return Err(StateRefusal::Quota(Quota::StateKeys));
        }
        if bytes > bounds.bytes_max && bytes > self.bytes {
            return Err(StateRefusal::Quota(Quota::StateBytes));
        }
        Ok(())
    }
}

/// A fence counts while it is that of its lock's newest grant, whether or not the lock is still held.
fn check_fence(
    change: &Change,
    epoch: Epoch,
    locks: &Locks,
    bounds: &StateBounds,
) -> Result<(), StateRefusal> {
    match &change.if_fence {
        Some(HeldFence { lock, fence }) => {
            let newest = locks.fence(lock);
            let newest = newest.map(|newest| Position::new(epoch, newest));
            if newest != Some(*fence) {
                return Err(StateRefusal::StaleFence(lock.clone()));
            }
        }
        None => {
            let mut prefixes = bounds.fence_prefixes.iter();
            if prefixes.any(|prefix| prefix.is_of(&change.key)) {
                return Err(StateRefusal::FenceRequired(change.key.clone()));
            }
        }
    }
    Ok(())
}

/// An object has a name that is no text.
#[derive(Debug, PartialEq, Eq)]
struct Nameless;

fn patched(before: Option<&Payload>, patch: &Payload) -> Result<Payload, Nameless> {
    let Some(json_patch) = json(patch) else {
        return Ok(patch.clone());
    };
    let merged = merge(before.and_then(json), json_patch)?;
    Ok(Payload::json(merged.get()))
}

fn json(payload: &Payload) -> Option<&RawValue> {
    let is_json = payload.format == PayloadFormat::Json;
    is_json
        .then(|| serde_json::from_slice(&payload.bytes).ok())
        .flatten()
}

/// RFC 7396 §2. Both sides nest no deeper than a payload may, which bounds the recursion.
fn merge(before: Option<&RawValue>, patch: &RawValue) -> Result<Box<RawValue>, Nameless> {
    let Some(patches) = members(patch)? else {
        return Ok(patch.to_owned());
    };
    let before = before.map(members).transpose()?;
    let mut merged = before.flatten().unwrap_or_default();
    for (name, patch) in patches {
        if patch.get() == "null" {
            merged.remove(&name);
        } else {
            let before = merged.get(&name).map(|before| &**before);
            let value = merge(before, &patch)?;
            merged.insert(name, value);
        }
    }
    Ok(serde_json::value::to_raw_value(&merged).expect("texts and JSON are JSON"))
}

/// What an object has; none where it is another value. JSON lets a name have half a character (`"\ud800"`), which no text
/// does: such an object must not pass for none.
fn members(value: &RawValue) -> Result<Option<BTreeMap<String, Box<RawValue>>>, Nameless> {
    if !value.get().starts_with('{') {
        return Ok(None);
    }
    serde_json::from_str(value.get()).map_err(|_| Nameless)
}

fn size(key: &Key, value: &Payload) -> usize {
    key.as_str().len() + value.bytes.len()
}

/// A value in its tree beside its bytes: two handles, the nodes' empty places, and the allocator's part.
const CELL_BYTES: usize = 192;

/// A deletion in its two trees, with its key.
const TOMBSTONE_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use roomful_protocol::frame::{LockChange, LockWhy, LoggedHolder};
    use roomful_protocol::id::{MemberId, SessionId, UserId};

    use super::*;

    const EPOCH: Epoch = Epoch(3);

    fn bounds() -> StateBounds {
        StateBounds {
            keys_max: 5,
            value_bytes_max: 64,
            bytes_max: 200,
            tombstones_max: 3,
            tombstone_age_max_ms: 40,
            fence_prefixes: vec![KeyPrefix::parse("guarded/").unwrap()],
        }
    }

    fn key(name: &str) -> Key {
        Key::parse(name).unwrap()
    }

    fn at(offset: u64) -> Position {
        Position::new(EPOCH, Offset(offset))
    }

    fn change(name: &str, action: Action, value: Option<Payload>) -> Change {
        Change {
            key: key(name),
            action,
            value,
            if_version: None,
            if_absent: false,
            if_fence: None,
        }
    }

    fn put(name: &str, value: &str) -> Change {
        change(name, Action::Put, Some(Payload::text(value)))
    }

    fn write(
        state: &mut State,
        changes: &[Change],
        offset: u64,
    ) -> Result<StateChanges, StateRefusal> {
        let results = state.check(changes, EPOCH, &Locks::default(), &bounds())?;
        state.apply(&results, Offset(offset), offset, &bounds());
        Ok(results)
    }

    fn patch_of(before: &str, patch: &str) -> String {
        let before = Payload::json(before);
        let result = patched(Some(&before), &Payload::json(patch)).unwrap();
        String::from_utf8(result.bytes.to_vec()).unwrap()
    }

    /// A name that no text holds is refused where the patch comes by, and nothing is lost; elsewhere it is taken over.
    #[test]
    fn a_patch_takes_nothing_for_empty_that_it_cannot_read() {
        let patch_of = |before: &str, patch: &str| {
            let before = Payload::json(before.to_owned());
            patched(Some(&before), &Payload::json(patch.to_owned()))
        };
        let odd = r#"{"\ud800":1,"a":2}"#;
        let inside = format!(r#"{{"o":{odd},"b":1}}"#);
        for (before, patch) in [
            (odd, r#"{"b":1}"#),
            (r#"{"a":2}"#, odd),
            (&inside, r#"{"o":{"b":1}}"#),
            ("{}", &inside),
        ] {
            assert_eq!(patch_of(before, patch), Err(Nameless), "{before} {patch}");
        }
        let beside = patch_of(&inside, r#"{"b":2}"#).unwrap();
        assert_eq!(beside, Payload::json(format!(r#"{{"b":2,"o":{odd}}}"#)));
        assert_eq!(patch_of(odd, "1").unwrap(), Payload::json("1"));

        let mut state = State::default();
        let value = |json: &str| Some(Payload::json(json.to_owned()));
        write(&mut state, &[change("a", Action::Put, value(odd))], 1).unwrap();
        let patch = [change("a", Action::Patch, value(r#"{"b":1}"#))];
        let refused = write(&mut state, &patch, 2);
        assert_eq!(refused, Err(StateRefusal::NoName(key("a"))));
        assert_eq!(state.cells[&key("a")].value, Payload::json(odd));
    }

    /// The examples of RFC 7396, appendix A, and numbers that no machine type holds.
    #[test]
    fn a_patch_is_a_json_merge_patch() {
        for (before, patch, expected) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, "{}"),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (
                r#"{"a":{"b":"c"}}"#,
                r#"{"a":{"b":"d","c":null}}"#,
                r#"{"a":{"b":"d"}}"#,
            ),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"["a","b"]"#, r#"["c","d"]"#, r#"["c","d"]"#),
            (r#"{"a":"b"}"#, r#"["c"]"#, r#"["c"]"#),
            (r#"{"a":"foo"}"#, "null", "null"),
            (r#"{"a":"foo"}"#, r#""bar""#, r#""bar""#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"a":1,"e":null}"#),
            (r#"[1,2]"#, r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
            ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
            (
                r#"{"n":12345678901234567890123.5}"#,
                r#"{"m":1e400}"#,
                r#"{"m":1e400,"n":12345678901234567890123.5}"#,
            ),
        ] {
            assert_eq!(patch_of(before, patch), expected, "{before} with {patch}");
        }
    }

    #[test]
    fn what_is_no_json_is_replaced_by_a_patch() {
        let text = Payload::text("a");
        let binary = Payload::binary(&b"b"[..]);
        assert_eq!(patched(Some(&text), &binary), Ok(binary));
        let object = Payload::json(r#"{"a":null,"b":1}"#);
        assert_eq!(
            patched(Some(&text), &object),
            Ok(Payload::json(r#"{"b":1}"#)),
            "the value was no object"
        );
    }

    /// A write of several keys is made whole or not at all, and a refusal tells what stands in its way.
    #[test]
    fn conditions_hold_for_all_keys_or_nothing_is_written() {
        let mut state = State::default();
        write(&mut state, &[put("a", "1"), put("b", "1")], 1).unwrap();
        let mut stale = put("a", "2");
        stale.if_version = Some(at(7));
        let mut absent = put("b", "2");
        absent.if_absent = true;
        let refused = write(&mut state, &[stale, put("c", "2"), absent], 2).unwrap_err();
        let item = |name: &str| StateItem {
            key: key(name),
            version: at(1),
            value: Some(Payload::text("1")),
        };
        assert_eq!(refused, StateRefusal::Conflict(vec![item("a"), item("b")]));
        assert_eq!(state.version(&key("c")), Offset(0));
        let mut right = put("a", "2");
        right.if_version = Some(at(1));
        write(&mut state, &[right], 2).unwrap();
        assert_eq!(state.version(&key("a")), Offset(2));
        let mut other_epoch = put("a", "3");
        other_epoch.if_version = Some(Position::new(Epoch(2), Offset(2)));
        assert!(matches!(
            write(&mut state, &[other_epoch], 3),
            Err(StateRefusal::Conflict(_))
        ));
        assert_eq!(
            write(&mut state, &[put("x", "1"), put("x", "2")], 3),
            Err(StateRefusal::Twice(key("x")))
        );
    }

    #[test]
    fn every_bound_refuses_one_more_and_lets_go_of_what_shrinks() {
        let mut state = State::default();
        let quota = |quota| Err(StateRefusal::Quota(quota));
        for (offset, name) in (1..).zip(["a", "b", "c", "d", "e"]) {
            write(&mut state, &[put(name, "1")], offset).unwrap();
        }
        assert_eq!(
            write(&mut state, &[put("f", "1")], 6),
            quota(Quota::StateKeys)
        );
        let longest = "x".repeat(64);
        write(&mut state, &[put("a", &longest), put("b", &longest)], 6).unwrap();
        assert_eq!(
            write(&mut state, &[put("c", &"x".repeat(65))], 7),
            quota(Quota::StateValueBytes)
        );
        // 5 keys, 2 values of 64, 2 of 1: 65 bytes are left, and the one that is replaced.
        assert_eq!(
            write(&mut state, &[put("c", &longest), put("d", "123")], 7),
            quota(Quota::StateBytes)
        );
        write(&mut state, &[put("c", &longest), put("d", "12")], 7).unwrap();
        let tight = StateBounds {
            keys_max: 1,
            bytes_max: 10,
            ..bounds()
        };
        let smaller = [put("a", "short")];
        assert!(
            state
                .check(&smaller, EPOCH, &Locks::default(), &tight)
                .is_ok()
        );
    }

    #[test]
    fn deletions_are_remembered_by_count_and_by_age() {
        let mut state = State::default();
        for (offset, name) in (1..).zip(["a", "b", "c", "d"]) {
            let delete = change(name, Action::Delete, None);
            write(&mut state, &[delete], offset).unwrap();
        }
        assert_eq!(state.tombstones().count(), 3);
        assert_eq!(state.version(&key("a")), Offset(0));
        assert_eq!(state.version(&key("b")), Offset(2));
        write(&mut state, &[put("z", "1")], 43).unwrap();
        let left: Vec<_> = state.tombstones().map(|(key, _)| key.as_str()).collect();
        assert_eq!(left, ["d"]);
    }

    #[test]
    fn a_guarded_key_is_written_with_the_newest_fence_alone() {
        let holder = |fence: u64| LoggedHolder {
            fence: Offset(fence),
            member: MemberId(1),
            user: UserId::parse("ann").unwrap(),
            until_ms: 1_000,
            session: SessionId(1),
            ttl_ms: 1_000,
        };
        let granted = |fence: u64| LockChange {
            lock: key("l"),
            why: LockWhy::Granted,
            held: Some(holder(fence)),
            queue: Vec::new(),
        };
        let mut locks = Locks::default();
        let state = State::default();
        let judge = |locks: &Locks, fence: Option<Position>| {
            let mut guarded = put("guarded/a", "1");
            guarded.if_fence = fence.map(|fence| HeldFence {
                lock: key("l"),
                fence,
            });
            state.check(&[guarded], EPOCH, locks, &bounds())
        };
        let required = StateRefusal::FenceRequired(key("guarded/a"));
        assert_eq!(judge(&locks, None), Err(required));
        let stale = || Err(StateRefusal::StaleFence(key("l")));
        assert_eq!(judge(&locks, Some(at(1))), stale());
        locks.apply(&granted(1), 0, 8);
        assert!(judge(&locks, Some(at(1))).is_ok());
        locks.apply(&granted(5), 0, 8);
        assert_eq!(judge(&locks, Some(at(1))), stale());
        assert_eq!(
            judge(&locks, Some(Position::new(Epoch(2), Offset(5)))),
            stale()
        );
        assert!(judge(&locks, Some(at(5))).is_ok());
    }

    #[test]
    fn pages_show_every_wanted_key_once_and_in_order() {
        let mut state = State::default();
        let mut offset = 0;
        let all = ["a", "a/1", "a/2", "b/1", "c/1", "c/2", "d"];
        for name in all {
            offset += 1;
            state.put(key(name), Payload::text("1234567"), Offset(offset));
        }
        let prefix = |text: &str| KeyPrefix::parse(text).unwrap();
        let read = |prefixes: &[KeyPrefix], limit, bytes_max| {
            let (mut after, mut read, mut pages) = (None, Vec::new(), 0);
            loop {
                let page = state.page(at(9), prefixes, after.as_ref(), limit, bytes_max);
                pages += 1;
                read.extend(page.items.iter().map(|item| item.key.as_str().to_owned()));
                after = page.next;
                if after.is_none() {
                    return (read, pages);
                }
            }
        };
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        assert_eq!(read(&[prefix("")], 3, 1_000), (names(&all), 3));
        assert_eq!(
            read(&[prefix("c/"), prefix("a")], 2, 1_000),
            (names(&["a", "a/1", "a/2", "c/1", "c/2"]), 3)
        );
        assert_eq!(read(&[prefix("")], 99, 1), (names(&all), 7));
        assert_eq!(read(&[], 99, 1_000), (Vec::new(), 1));
    }

    /// Random writes against a list of all writes so far: values, versions, refusals and counts are the same.
    #[test]
    fn it_is_what_a_naive_model_says() {
        for seed in 0..200 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut state = State::default();
            let mut model: Vec<(Key, Option<Payload>, u64)> = Vec::new();
            for offset in 1..60_u64 {
                let count = random.random_range(1..4);
                let changes: Vec<_> = (0..count)
                    .map(|_| random_change(&mut random, offset))
                    .collect();
                let newest = |model: &[(Key, Option<Payload>, u64)], key: &Key| {
                    let found = model.iter().rev().find(|(of, ..)| of == key);
                    found.cloned().map(|(_, value, version)| (value, version))
                };
                let before = model.clone();
                match write(&mut state, &changes, offset) {
                    Ok(results) => {
                        for (change, result) in changes.iter().zip(results.changes) {
                            let known = newest(&before, &change.key);
                            assert!(
                                !change.if_absent || known.is_none_or(|(value, _)| value.is_none())
                            );
                            model.push((result.key, result.value, offset));
                        }
                    }
                    Err(StateRefusal::Conflict(current)) => {
                        for item in current {
                            let value = newest(&model, &item.key).and_then(|(value, _)| value);
                            assert_eq!(value, item.value, "seed {seed}");
                        }
                    }
                    Err(_) => {}
                }
                let keys: BTreeSet<_> = model.iter().map(|(key, ..)| key.clone()).collect();
                let mut bytes = 0;
                let mut expected = Vec::new();
                for key in keys {
                    let (value, version) = newest(&model, &key).unwrap();
                    if let Some(value) = value {
                        assert_eq!(state.version(&key), Offset(version), "seed {seed}");
                        bytes += size(&key, &value);
                        expected.push((key, value));
                    }
                }
                let found: Vec<_> = state
                    .cells()
                    .map(|(key, cell)| (key.clone(), cell.value.clone()))
                    .collect();
                assert_eq!(found, expected, "seed {seed} at {offset}");
                assert_eq!(state.bytes, bytes, "seed {seed} at {offset}");
                assert!(bytes <= bounds().bytes_max && found.len() <= bounds().keys_max);
                assert!(state.tombstones.len() <= bounds().tombstones_max);
                assert_eq!(state.tombstones.len(), state.deleted.len());
            }
        }
    }

    fn random_change(random: &mut StdRng, offset: u64) -> Change {
        let name = ["a", "b", "c", "d", "e", "f", "g"][random.random_range(0..7)];
        let text = "x".repeat(random.random_range(0..70));
        let mut change = match random.random_range(0..4) {
            0 => change(name, Action::Delete, None),
            1 => change(
                name,
                Action::Patch,
                Some(Payload::json(format!(
                    "{{\"{}\":1}}",
                    &text[..text.len().min(9)]
                ))),
            ),
            _ => put(name, &text),
        };
        if random.random_range(0..4) == 0 {
            change.if_version = Some(at(random.random_range(0..offset)));
        }
        change.if_absent = random.random_range(0..4) == 0;
        change
    }
}
