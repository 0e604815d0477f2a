//! What of a room's log each member of a hub is sent.
//!
//! A member's subscriber has the number of its view; members with the same view share one, and with it the bytes
//! of each batch, made when the first of them needs them. A hub whose members watch neither state nor locks keeps
//! nothing here: theirs is the plain view, and its bytes stand in the batch for all shards. What a view shows of
//! an entry, `wire` knows.

use std::collections::BTreeMap;
use std::mem;

use bytes::Bytes;
use roomful_protocol::codec::Encoding;

use super::message::{Batch, View, Wire};
use crate::wire;

/// A view of a hub, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ViewIndex(u32);

impl ViewIndex {
    /// That of a member who watches neither state nor locks.
    pub const PLAIN: Self = Self(0);
}

/// The views that members of a hub have.
#[derive(Debug, Default)]
pub struct Views {
    /// By number, the plain one left out.
    kept: Vec<Kept>,
    vacant: Vec<ViewIndex>,
    /// The numbers of those in use.
    numbers: BTreeMap<View, ViewIndex>,
    /// The plain view, for who asks by its number.
    plain: View,
    /// How often a number was given again.
    reused: u64,
    /// The bytes of the turn that is being handed on.
    front: Viewed,
}

/// A view, and how many members have it; nobody's are vacant.
#[derive(Debug)]
struct Kept {
    view: View,
    members: u32,
}

/// The bytes of one batch, for each view that is shown something of its own.
#[derive(Debug, Default)]
pub struct Viewed {
    wires: BTreeMap<ViewIndex, Wire>,
    /// [`Views::reused`] when these were made: behind it a number may mean another view.
    reused: u64,
}

impl Views {
    /// The number of a view, for one more member.
    ///
    /// # Panics
    /// With 2^32 views, which is more than there are connections.
    pub fn take(&mut self, view: View) -> ViewIndex {
        if view == self.plain {
            return ViewIndex::PLAIN;
        }
        if let Some(index) = self.numbers.get(&view).copied() {
            self.kept_mut(index).members += 1;
            return index;
        }
        let kept = Kept {
            view: view.clone(),
            members: 1,
        };
        let index = if let Some(index) = self.vacant.pop() {
            self.reused += 1;
            *self.kept_mut(index) = kept;
            index
        } else {
            self.kept.push(kept);
            let number = u32::try_from(self.kept.len());
            ViewIndex(number.expect("connections are counted in 32 bits"))
        };
        self.numbers.insert(view, index);
        index
    }

    /// A member has it no more.
    pub fn give_back(&mut self, index: ViewIndex) {
        if index == ViewIndex::PLAIN {
            return;
        }
        let kept = self.kept_mut(index);
        kept.members -= 1;
        if kept.members == 0 {
            let view = mem::take(&mut kept.view);
            self.numbers.remove(&view);
            self.vacant.push(index);
        }
        if self.numbers.is_empty() {
            (self.kept, self.vacant) = (Vec::new(), Vec::new());
            self.reused += 1;
        }
    }

    /// What a number stands for.
    #[must_use]
    pub fn get(&self, index: ViewIndex) -> &View {
        match index {
            ViewIndex::PLAIN => &self.plain,
            ViewIndex(number) => &self.kept[number as usize - 1].view,
        }
    }

    /// The front turn's batch as a view shows it.
    pub fn front(&mut self, batch: &Batch, index: ViewIndex, encoding: Encoding) -> Bytes {
        let mut front = mem::take(&mut self.front);
        let bytes = self.show(&mut front, batch, index, encoding);
        self.front = front;
        bytes
    }

    /// The front turn has reached everybody.
    pub fn finish_front(&mut self) {
        self.front = Viewed::default();
    }

    /// A batch as a view shows it.
    pub fn show(
        &self,
        viewed: &mut Viewed,
        batch: &Batch,
        index: ViewIndex,
        encoding: Encoding,
    ) -> Bytes {
        if batch.alike || index == ViewIndex::PLAIN {
            return wire::batch(batch, encoding).clone();
        }
        if viewed.reused != self.reused {
            viewed.wires.clear();
            viewed.reused = self.reused;
        }
        let wire = viewed.wires.entry(index).or_default();
        let view = self.get(index);
        wire.get(encoding, || {
            wire::batch_of(batch, encoding, view, |_| false)
        })
        .clone()
    }

    fn kept_mut(&mut self, ViewIndex(number): ViewIndex) -> &mut Kept {
        &mut self.kept[number as usize - 1]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use roomful_protocol::frame::{Entry, EntryKind, StateChange, StateChanges};
    use roomful_protocol::id::{Epoch, Key, KeyPrefix, Offset, RoomAlias, UserId};
    use roomful_protocol::payload::Payload;

    use super::*;

    fn view(prefixes: &[&str], locks: bool) -> View {
        let parse = |prefix: &&str| KeyPrefix::parse(prefix).unwrap();
        View::new(Some(prefixes.iter().map(parse).collect()), locks)
    }

    /// Prefixes in another order, given twice or covered by others are the same view.
    #[test]
    fn a_view_has_one_form() {
        for (given, form) in [
            (&["b", "a"][..], &["a", "b"][..]),
            (&["a", "a"], &["a"]),
            (&["ab", "a", "aé", "b"], &["a", "b"]),
            (&["x", "", "y"], &[""]),
        ] {
            let prefixes = view(given, false).state.unwrap();
            let texts: Vec<_> = prefixes.iter().map(KeyPrefix::as_str).collect();
            assert_eq!(texts, form);
        }
        assert_eq!(view(&[], false), View::default());
        let shows = |view: View, key| view.shows(&Key::parse(key).unwrap());
        assert!(shows(view(&["a", "c/"], false), "c/1"));
        assert!(!shows(view(&["a", "c/"], false), "c"));
        assert!(!shows(View::new(None, true), "a"));
    }

    /// Members with the same view share its number; when the last of them is gone, so is the view.
    #[test]
    fn views_are_kept_for_as_long_as_somebody_has_them() {
        let mut views = Views::default();
        assert_eq!(views.take(View::default()), ViewIndex::PLAIN);
        let first = views.take(view(&["a"], false));
        let second = views.take(view(&["a"], true));
        assert_ne!(first, second);
        assert_eq!(views.take(view(&["a"], false)), first);
        views.give_back(first);
        assert_eq!(*views.get(first), view(&["a"], false));
        views.give_back(first);
        let third = views.take(view(&["b"], false));
        assert_eq!(*views.get(third), view(&["b"], false));
        assert_eq!(*views.get(second), view(&["a"], true));
        for index in [second, third, ViewIndex::PLAIN] {
            views.give_back(index);
        }
        assert!(views.kept.is_empty() && views.numbers.is_empty());
    }

    /// A number that was given again in the middle of a turn does not bring the bytes of the view that it stood for.
    #[test]
    fn bytes_are_those_of_the_view_that_a_number_stands_for() {
        let change = |key: &str| StateChange {
            key: Key::parse(key).unwrap(),
            value: Some(Payload::text("1")),
        };
        let entry = Entry {
            offset: Offset(1),
            time_ms: 1,
            kind: EntryKind::State,
            user: UserId::parse("ann").unwrap(),
            op: None,
            payload: StateChanges {
                changes: vec![change("a"), change("b")],
            }
            .to_payload(),
        };
        let batch = Batch::new(RoomAlias(1), Epoch(1), Offset(0), vec![Arc::new(entry)]);
        let mut views = Views::default();
        let first = views.take(view(&["a"], false));
        let kept = views.take(view(&["", "b"], false));
        let seen_by_first = views.front(&batch, first, Encoding::Json);
        assert_eq!(seen_by_first, views.front(&batch, first, Encoding::Json));
        views.give_back(first);
        let second = views.take(view(&["b"], false));
        assert_eq!(first, second);
        let seen_by_second = views.front(&batch, second, Encoding::Json);
        assert_ne!(seen_by_first, seen_by_second);
        assert_ne!(seen_by_second, views.front(&batch, kept, Encoding::Json));
    }
}
