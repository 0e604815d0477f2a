//! The timers of a room: named, set for a time of day, fired once.
//!
//! The room calls it, on one copy for what is committed and on another for what is on its way. A timer that fires is an entry
//! like one that is set, and is set no more with it, so that none fires twice, whatever the clock does; one that was due while
//! nobody looked fires when somebody does. How many there are and how long their payloads is bounded. When to look is left to
//! the room.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use roomful_protocol::frame::{TimerChange, TimerInfo, TimerWhat, TimersPage};
use roomful_protocol::id::{Key, UserId};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;

use crate::metrics::Quota;

/// The timers of a room.
#[derive(Debug, Clone, Default)]
pub struct Timers {
    by_name: BTreeMap<Key, Timer>,
    by_due: BTreeSet<(u64, Key)>,
    /// Bytes of payloads.
    bytes: usize,
}

/// A timer that is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timer {
    /// When it fires, in milliseconds since 1970.
    pub due_ms: u64,
    /// Who set it.
    pub user: UserId,
    /// What it brings.
    pub payload: Payload,
}

/// How many timers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimerBounds {
    /// Timers that are set.
    pub timers_max: usize,
    /// Bytes of one payload.
    pub payload_bytes_max: usize,
}

impl Timers {
    /// Judges a timer that is to be set.
    ///
    /// # Errors
    /// There are as many as there may be, or its payload is too long.
    pub fn set(
        &self,
        name: &Key,
        due_ms: u64,
        payload: Payload,
        bounds: TimerBounds,
    ) -> Result<TimerChange, Quota> {
        if payload.bytes.len() > bounds.payload_bytes_max {
            return Err(Quota::TimerBytes);
        }
        if self.by_name.len() >= bounds.timers_max && !self.by_name.contains_key(name) {
            return Err(Quota::Timers);
        }
        Ok(TimerChange {
            name: name.clone(),
            what: TimerWhat::Set,
            due_ms,
            payload: Some(payload),
        })
    }

    /// Judges a timer that is to be taken away; none where it is not set.
    #[must_use]
    pub fn cancel(&self, name: &Key) -> Option<TimerChange> {
        let timer = self.by_name.get(name)?;
        Some(TimerChange {
            name: name.clone(),
            what: TimerWhat::Cancelled,
            due_ms: timer.due_ms,
            payload: None,
        })
    }

    /// The timer that fires next, if its time has come, and whose it is. Ask again when it has been applied.
    #[must_use]
    pub fn due(&self, now_ms: u64) -> Option<(UserId, TimerChange)> {
        let (due_ms, name) = self
            .by_due
            .first()
            .filter(|(due_ms, _)| *due_ms <= now_ms)?;
        let timer = self.by_name.get(name)?;
        let change = TimerChange {
            name: name.clone(),
            what: TimerWhat::Fired,
            due_ms: *due_ms,
            payload: Some(timer.payload.clone()),
        };
        Some((timer.user.clone(), change))
    }

    /// Makes the change of an entry of this user.
    pub fn apply(&mut self, user: &UserId, change: &TimerChange) {
        let name = &change.name;
        if let Some(before) = self.by_name.remove(name) {
            self.by_due.remove(&(before.due_ms, name.clone()));
            self.bytes -= before.payload.bytes.len();
        }
        let payload = change.payload.clone();
        if let Some(payload) = payload.filter(|_| change.what == TimerWhat::Set) {
            self.bytes += payload.bytes.len();
            self.by_due.insert((change.due_ms, name.clone()));
            let timer = Timer {
                due_ms: change.due_ms,
                user: user.clone(),
                payload,
            };
            self.by_name.insert(name.clone(), timer);
        }
    }

    /// When the next one fires, in milliseconds since 1970.
    #[must_use]
    pub fn next_due_ms(&self) -> Option<u64> {
        self.by_due.first().map(|(due_ms, _)| *due_ms)
    }

    /// A page of timers by ascending name. It ends with the timer that goes beyond the bytes, and shows at least one where
    /// there is one.
    #[must_use]
    pub fn page(
        &self,
        at: Position,
        after: Option<&Key>,
        limit: usize,
        bytes_max: usize,
    ) -> TimersPage {
        let mut page = TimersPage {
            position: at,
            timers: Vec::new(),
            next: None,
        };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut bytes = 0;
        for (name, timer) in self.by_name.range::<Key, _>((from, Bound::Unbounded)) {
            if page.timers.len() == limit || bytes > bytes_max {
                page.next = page.timers.last().map(|timer| timer.name.clone());
                break;
            }
            bytes += timer.payload.bytes.len();
            page.timers.push(TimerInfo {
                name: name.clone(),
                due_ms: timer.due_ms,
                user: timer.user.clone(),
                payload: timer.payload.clone(),
            });
        }
        page
    }

    /// Every timer, by ascending name.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Timer)> {
        self.by_name.iter()
    }

    /// Whether none is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// About what they take in memory, in bytes.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.bytes + self.by_name.len() * TIMER_BYTES
    }
}

/// A timer in its two trees, with its name.
const TIMER_BYTES: usize = 384;

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use roomful_protocol::id::{Epoch, Offset};

    use super::*;

    const BOUNDS: TimerBounds = TimerBounds {
        timers_max: 4,
        payload_bytes_max: 10,
    };

    fn key(name: &str) -> Key {
        Key::parse(name).unwrap()
    }

    fn ann() -> UserId {
        UserId::parse("ann").unwrap()
    }

    #[test]
    fn every_bound_refuses_one_more() {
        let mut timers = Timers::default();
        for name in ["a", "b", "c", "d"] {
            let set = timers.set(&key(name), 1, Payload::text("1234567890"), BOUNDS);
            timers.apply(&ann(), &set.unwrap());
        }
        let one_more = timers.set(&key("e"), 1, Payload::text(""), BOUNDS);
        assert_eq!(one_more, Err(Quota::Timers));
        assert!(timers.set(&key("a"), 2, Payload::text(""), BOUNDS).is_ok());
        let long = timers.set(&key("a"), 2, Payload::text("12345678901"), BOUNDS);
        assert_eq!(long, Err(Quota::TimerBytes));
    }

    /// Random timers and a clock that steps both ways, against a list: each setting fires once, in order, or never where it was
    /// replaced or taken away.
    #[test]
    fn it_is_what_a_naive_model_says() {
        for seed in 0..200 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut timers = Timers::default();
            let mut model: BTreeMap<Key, u64> = BTreeMap::new();
            let mut now_ms = 1_000_u64;
            for _ in 0..80 {
                let name = key(["a", "b", "c", "d", "e", "f"][random.random_range(0..6)]);
                match random.random_range(0..4) {
                    0 => {
                        let change = timers.cancel(&name);
                        assert_eq!(change.is_some(), model.remove(&name).is_some());
                        change
                    }
                    1 => {
                        now_ms = now_ms.saturating_add_signed(random.random_range(-30..50));
                        None
                    }
                    _ => {
                        let due_ms = now_ms + random.random_range(0..60);
                        let set = timers.set(&name, due_ms, Payload::text("x"), BOUNDS).ok();
                        let fits = model.len() < BOUNDS.timers_max || model.contains_key(&name);
                        assert_eq!(set.is_some(), fits, "seed {seed}");
                        if fits {
                            model.insert(name, due_ms);
                        }
                        set
                    }
                }
                .into_iter()
                .for_each(|change| timers.apply(&ann(), &change));
                let mut fired = Vec::new();
                while let Some((_, change)) = timers.due(now_ms) {
                    timers.apply(&ann(), &change);
                    fired.push((change.due_ms, change.name));
                }
                let mut expected: Vec<_> = model
                    .extract_if(.., |_, due_ms| *due_ms <= now_ms)
                    .map(|(name, due_ms)| (due_ms, name))
                    .collect();
                expected.sort();
                assert_eq!(fired, expected, "seed {seed} at {now_ms}");
                assert_eq!(timers.next_due_ms(), model.values().min().copied());
                let page = timers.page(Position::new(Epoch(1), Offset(1)), None, 99, 99);
                let names: Vec<_> = page.timers.into_iter().map(|timer| timer.name).collect();
                assert!(names.iter().eq(model.keys()), "seed {seed}");
                assert_eq!(timers.bytes, model.len());
            }
        }
    }
}
