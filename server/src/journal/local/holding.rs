//! Which logs shards have open: a sweep leaves them to those.
//!
//! A shard that has a log open knows its first entry by heart, and goes by its own clock and bounds. So nobody else moves that
//! entry: whoever opens a log holds it before it looks at what is stored, and a sweep keeps others from doing so between its look
//! at the holders and the end of its write.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::record::LogId;

/// Who holds what.
#[derive(Debug, Default)]
pub(super) struct Holders(Mutex<Held>);

/// A log is open for as long as somebody has one of these.
#[derive(Debug, Clone)]
pub(super) struct Hold {
    _open: Arc<()>,
}

/// The logs that are held. While somebody has this, nobody else begins to hold one.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Let go of without a word, so that no shard waits for a sweep.
    logs: HashMap<LogId, Weak<()>>,
    /// With so many it is time to forget those that nobody holds any more.
    full: usize,
}

impl Holders {
    /// Begins to hold a log.
    pub(super) fn hold(&self, log: LogId) -> Hold {
        let mut held = self.look();
        if held.logs.len() >= held.full {
            held.logs.retain(|_, open| open.strong_count() > 0);
            held.full = (held.logs.len() * 2).max(LOGS_MIN);
        }
        let open = held.logs.get(&log).and_then(Weak::upgrade);
        let open = open.unwrap_or_default();
        held.logs.insert(log, Arc::downgrade(&open));
        Hold { _open: open }
    }

    /// The logs that are held, for as long as the caller wants to know.
    pub(super) fn look(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Whether somebody holds it.
    pub(super) fn has(&self, log: LogId) -> bool {
        let open = self.logs.get(&log);
        open.is_some_and(|open| open.strong_count() > 0)
    }
}

/// So many are remembered in any case.
const LOGS_MIN: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_held_until_the_last_hold_is_gone() {
        let holders = Holders::default();
        let (first, second) = (holders.hold(LogId(1)), holders.hold(LogId(1)));
        drop(first);
        assert!(holders.look().has(LogId(1)) && !holders.look().has(LogId(2)));
        drop(second);
        assert!(!holders.look().has(LogId(1)));
    }

    /// What is remembered is bounded by what is held.
    #[test]
    fn logs_that_nobody_holds_are_forgotten() {
        let holders = Holders::default();
        let kept = holders.hold(LogId(0));
        for log in 1..10 * LOGS_MIN as u64 {
            drop(holders.hold(LogId(log)));
            assert!(holders.look().logs.len() <= LOGS_MIN);
        }
        assert!(holders.look().has(LogId(0)));
        drop(kept);
    }
}
