//! Copies of a room's state and locks, made of pages and of changes that arrive beside them in any order.
//!
//! The driver writes them and handles read them. What is newer counts: the version decides, never the order of arrival. A deletion keeps its
//! version until the last page is there, since an older page may still show the key.

use std::collections::BTreeMap;

use roomful_protocol::frame::{LockInfo, StateChange, StateItem};
use roomful_protocol::id::{Key, KeyPrefix};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;

use crate::machine::RoomEvent;

/// What is known by key, with the position of its last change.
#[derive(Debug)]
struct Replica<T> {
    cells: BTreeMap<Key, (Position, Option<T>)>,
    complete: bool,
}

impl<T> Default for Replica<T> {
    fn default() -> Self {
        Self {
            cells: BTreeMap::new(),
            complete: false,
        }
    }
}

impl<T> Replica<T> {
    fn take(&mut self, key: Key, version: Position, value: Option<T>) {
        let known = self.cells.get(&key).map(|(known, _)| *known);
        if known.is_some_and(|known| known >= version) {
            return;
        }
        if value.is_none() && self.complete {
            self.cells.remove(&key);
        } else {
            self.cells.insert(key, (version, value));
        }
    }

    fn complete(&mut self) {
        self.complete = true;
        self.cells.retain(|_, (_, value)| value.is_some());
    }

    fn iter(&self) -> impl Iterator<Item = (&Key, Position, &T)> {
        let known = self.cells.iter();
        known.filter_map(|(key, (version, value))| Some((key, *version, value.as_ref()?)))
    }

    fn get(&self, key: &Key) -> Option<(Position, &T)> {
        let (version, value) = self.cells.get(key)?;
        Some((*version, value.as_ref()?))
    }
}

/// The copies of one room.
#[derive(Debug, Default)]
pub(crate) struct Replicas {
    prefixes: Vec<KeyPrefix>,
    state: Replica<Payload>,
    locks: Replica<LockInfo>,
}

impl Replicas {
    /// Takes in what the event tells.
    pub(crate) fn note(&mut self, event: &RoomEvent) {
        match event {
            RoomEvent::StateBegins(prefixes) => {
                self.prefixes.clone_from(prefixes);
                self.state = Replica::default();
            }
            RoomEvent::StatePage { page, complete } => {
                for item in page.items.iter().cloned() {
                    self.take(item.key, item.version, item.value);
                }
                if *complete {
                    self.state.complete();
                }
            }
            RoomEvent::State {
                position, changes, ..
            } => {
                for StateChange { key, value } in changes.iter().cloned() {
                    self.take(key, *position, value);
                }
            }
            RoomEvent::LocksBegin => self.locks = Replica::default(),
            RoomEvent::LocksPage { page, complete } => {
                for lock in page.locks.iter().cloned() {
                    let name = lock.lock.clone();
                    self.locks.take(name, page.position, Some(lock));
                }
                if *complete {
                    self.locks.complete();
                }
            }
            RoomEvent::Lock { position, lock, .. } => {
                let taken = lock.held.is_some() || !lock.queue.is_empty();
                let value = taken.then(|| lock.clone());
                self.locks.take(lock.lock.clone(), *position, value);
            }
            _ => {}
        }
    }

    /// A change that was on its way when the prefixes changed is not for this copy.
    fn take(&mut self, key: Key, version: Position, value: Option<Payload>) {
        if self.prefixes.iter().any(|prefix| prefix.is_of(&key)) {
            self.state.take(key, version, value);
        }
    }

    pub(crate) fn value(&self, key: &Key) -> Option<StateItem> {
        let (version, value) = self.state.get(key)?;
        Some(item(key, version, value))
    }

    pub(crate) fn values(&self) -> Vec<StateItem> {
        let known = self.state.iter();
        known
            .map(|(key, version, value)| item(key, version, value))
            .collect()
    }

    pub(crate) const fn has_all_values(&self) -> bool {
        self.state.complete
    }

    pub(crate) fn lock(&self, lock: &Key) -> Option<LockInfo> {
        self.locks.get(lock).map(|(_, lock)| lock.clone())
    }

    pub(crate) fn locks(&self) -> Vec<LockInfo> {
        self.locks.iter().map(|(_, _, lock)| lock.clone()).collect()
    }
}

fn item(key: &Key, version: Position, value: &Payload) -> StateItem {
    StateItem {
        key: key.clone(),
        version,
        value: Some(value.clone()),
    }
}

#[cfg(test)]
mod tests {
    use roomful_protocol::frame::StatePage;
    use roomful_protocol::id::{Epoch, Offset, UserId};

    use super::*;

    fn key(name: &str) -> Key {
        Key::parse(name).unwrap()
    }

    fn at(offset: u64) -> Position {
        Position::new(Epoch(1), Offset(offset))
    }

    fn begins(prefix: &str) -> RoomEvent {
        RoomEvent::StateBegins(vec![KeyPrefix::parse(prefix).unwrap()])
    }

    fn page(of: u64, items: &[(&str, u64, &str)], complete: bool) -> RoomEvent {
        let items = items.iter().map(|(name, version, text)| StateItem {
            key: key(name),
            version: at(*version),
            value: Some(Payload::text(*text)),
        });
        let page = StatePage {
            position: at(of),
            items: items.collect(),
            next: None,
        };
        RoomEvent::StatePage { page, complete }
    }

    fn change(offset: u64, name: &str, text: Option<&str>) -> RoomEvent {
        RoomEvent::State {
            position: at(offset),
            time_ms: 0,
            user: UserId::parse("bob").unwrap(),
            op: None,
            changes: vec![StateChange {
                key: key(name),
                value: text.map(Payload::text),
            }],
        }
    }

    fn shown(events: &[RoomEvent]) -> Vec<(String, u64, String)> {
        let mut replicas = Replicas::default();
        events.iter().for_each(|event| replicas.note(event));
        let text = |item: StateItem| {
            let value = item.value.unwrap();
            let text = String::from_utf8(value.bytes.to_vec()).unwrap();
            (item.key.to_string(), item.version.offset.0, text)
        };
        replicas.values().into_iter().map(text).collect()
    }

    /// Goal: pages and changes give the same copy in whatever order they arrive. Method: every order of one page, a change before it, one after
    /// it, and a deletion that the page doesn't know yet.
    #[test]
    fn what_is_newer_counts_in_any_order() {
        let parts = [
            page(
                5,
                &[("a", 1, "old"), ("b", 5, "page"), ("c", 2, "gone")],
                false,
            ),
            change(4, "b", Some("before")),
            change(6, "a", Some("new")),
            change(7, "c", None),
        ];
        let expected = [("a", 6, "new"), ("b", 5, "page")];
        let expected =
            expected.map(|(key, version, text)| (key.to_owned(), version, text.to_owned()));
        for first in 0..4 {
            for second in (0..4).filter(|second| *second != first) {
                for third in (0..4).filter(|third| ![first, second].contains(third)) {
                    let order = [first, second, third, 6 - first - second - third];
                    let mut events = vec![begins("")];
                    events.extend(order.map(|part| parts[part].clone()));
                    events.push(page(8, &[], true));
                    assert_eq!(shown(&events), expected, "{order:?}");
                }
            }
        }
    }

    #[test]
    fn a_new_beginning_forgets_and_other_prefixes_are_not_taken() {
        let events = [
            begins("a"),
            page(5, &[("a", 1, "old")], true),
            begins("b"),
            change(6, "a", Some("late")),
            page(7, &[("b", 2, "new")], true),
        ];
        assert_eq!(shown(&events), [("b".to_owned(), 2, "new".to_owned())]);
    }
}
