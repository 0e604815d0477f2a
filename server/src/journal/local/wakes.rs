//! When somebody has to look at a room that nobody is in.
//!
//! Times are kept with the log: first in its segments, then in the store, by time. Nothing of them is in memory beside what
//! segments hold, and each is told once in a process: those that came due since the last look. Where the clock was set back,
//! what it passes a second time is told again.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use roomful_protocol::frame::Direction;
use roomful_protocol::id::RoomId;

use super::index::Index;
use super::meta;
use super::record::LogId;
use super::store::{Space, Store};

/// Looks for rooms whose time has come.
#[derive(Debug)]
pub(super) struct Wakes {
    store: Arc<dyn Store>,
    index: Arc<Mutex<Index>>,
    /// What was due at this time or before it has been told; none: nothing was told yet.
    told_ms: Option<u64>,
    /// The first batch behind those that were looked at then.
    next_batch: u64,
}

impl Wakes {
    pub(super) fn new(store: Arc<dyn Store>, index: Arc<Mutex<Index>>) -> Self {
        Self {
            store,
            index,
            told_ms: None,
            next_batch: 0,
        }
    }

    /// The rooms that came due since the last look, those of time 0 at the first.
    pub(super) fn due(&mut self, now_ms: u64) -> io::Result<Vec<RoomId>> {
        self.told_ms = self.told_ms.map(|told_ms| told_ms.min(now_ms));
        let from_ms = self.told_ms.map_or(0, |told_ms| told_ms + 1);
        let (mut due, mut newer) = (BTreeSet::new(), BTreeSet::new());
        {
            let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
            for segment in index.segments().rev() {
                for (log, wake) in segment.wakes() {
                    if !newer.insert(log) {
                        continue;
                    }
                    // A time that was past when it was set has not been told either. 0 is for the next process.
                    let is_new = self.told_ms.is_some() && wake.batch >= self.next_batch;
                    let from_ms = if is_new { 1 } else { from_ms };
                    if wake
                        .at_ms
                        .is_some_and(|at_ms| from_ms <= at_ms && at_ms <= now_ms)
                    {
                        due.insert(wake.room.clone());
                    }
                }
            }
            self.next_batch = index.next_batch();
        }
        let from = meta::wake_key(from_ms, LogId(0));
        let until = meta::wake_key(now_ms, LogId(u64::MAX));
        self.store.range(
            Space::Wakes,
            &from,
            &until,
            Direction::Forward,
            &mut |key, value| {
                let room = meta::read_room(&value);
                if let (Some(log), Some(room)) = (meta::read_wake(key), room)
                    && !newer.contains(&log)
                {
                    due.insert(room);
                }
                true
            },
        )?;
        self.told_ms = Some(now_ms);
        Ok(due.into_iter().collect())
    }
}
