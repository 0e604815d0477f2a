//! The end of a shard's connections: all of them are told when to come back, a slice at a time.
//!
//! The window is cut into slices of [`SLICE_MS`], and each slice has its share of the connections. Whoever is told
//! draws a time to come back inside the length of a slice, so that the next server meets one even stream of them and
//! nobody is away for longer than that. A slice of thousands is told in small parts, one a millisecond, so that the
//! others go on meanwhile. How long the window is, and what happens before and after it, is left to `app`.

use roomful_protocol::error::CloseCode;
use roomful_protocol::frame::Goaway;

use super::message::ConnectionId;
use super::{Host, Shard, Timer};
use crate::clock::Now;

/// Who has to be told, and by when.
#[derive(Debug)]
pub(super) struct Goodbyes {
    /// Who has not been told; the next one is the last.
    left: Vec<ConnectionId>,
    /// How many there were.
    count: u64,
    /// When the first slice began, on the monotonic clock.
    from_ms: u64,
    slices: u64,
}

impl Goodbyes {
    fn new(mut left: Vec<ConnectionId>, from_ms: u64, spread_ms: u64) -> Self {
        left.reverse();
        Self {
            count: left.len() as u64,
            left,
            from_ms,
            slices: (spread_ms / SLICE_MS).max(1),
        }
    }

    /// Those whose turn it is, as many as fit into a turn of the shard.
    fn due(&mut self, now_ms: u64) -> Vec<ConnectionId> {
        let slice = (now_ms - self.from_ms) / SLICE_MS;
        let after = self.count * (slice + 1).min(self.slices) / self.slices;
        let stay = usize::try_from(self.count - after).unwrap_or(usize::MAX);
        let stay = stay.max(self.left.len().saturating_sub(GOODBYES_PER_TURN));
        let mut due = self.left.split_off(stay.min(self.left.len()));
        due.reverse();
        due
    }

    /// When the next ones are told, if somebody is left: at once where the slice has more than one turn takes.
    fn next_ms(&self, now_ms: u64) -> Option<u64> {
        if self.left.is_empty() {
            return None;
        }
        let slice = (now_ms - self.from_ms) / SLICE_MS;
        let after = self.count * (slice + 1).min(self.slices) / self.slices;
        let behind = self.left.len() as u64 > self.count - after;
        Some(if behind {
            now_ms + 1
        } else {
            self.from_ms + (slice + 1) * SLICE_MS
        })
    }
}

impl Shard {
    /// Begins to say goodbye to everybody, and takes nobody in any more.
    pub(super) fn drain(&mut self, spread_ms: u64, now: Now, host: &mut dyn Host) {
        let ids = self.outlets.iter().flatten().map(|outlet| outlet.id);
        self.goodbyes = Some(Goodbyes::new(ids.collect(), now.monotonic_ms, spread_ms));
        self.go_on_draining(now, host);
    }

    /// Tells those whose turn it is when to come back, and closes them.
    pub(super) fn go_on_draining(&mut self, now: Now, host: &mut dyn Host) {
        let Some(goodbyes) = &mut self.goodbyes else {
            return;
        };
        let due = goodbyes.due(now.monotonic_ms);
        if let Some(next_ms) = goodbyes.next_ms(now.monotonic_ms) {
            self.wheel.set(next_ms, Timer::Drain);
        }
        for id in due {
            self.guard_connection(id, now, host, |shard, host| shard.send_away(id, now, host));
        }
    }

    fn send_away(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        let open = self.connection(id).and_then(|connection| connection.open());
        if let Some(resume) = open.map(|open| self.resume_token(open, now)) {
            let slice = u128::from(SLICE_MS);
            let goaway = Goaway {
                reconnect_after_ms: u64::try_from(host.random() % slice).unwrap_or(SLICE_MS),
                resume,
            };
            self.stage(id, &goaway.into());
        }
        self.close(id, CloseCode::Restart, now, host);
    }
}

/// Short, since it is how long a client stays away; long enough that those of one slice don't come back together.
const SLICE_MS: u64 = 500;

/// A goodbye is a signature, a write and the end of each membership: 32 of them are about a millisecond.
const GOODBYES_PER_TURN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps through the whole window, a millisecond at a time, and gives when each was told.
    fn told(count: u32, spread_ms: u64) -> Vec<(u64, u32)> {
        let ids = (0..count).map(|slot| ConnectionId {
            slot,
            generation: 0,
        });
        let mut goodbyes = Goodbyes::new(ids.collect(), 1_000, spread_ms);
        let mut told = Vec::new();
        let mut now_ms = 1_000;
        loop {
            let due = goodbyes.due(now_ms);
            assert!(due.len() <= GOODBYES_PER_TURN, "a turn stays short");
            told.extend(due.iter().map(|id| (now_ms - 1_000, id.slot)));
            match goodbyes.next_ms(now_ms) {
                Some(next_ms) => {
                    assert!(next_ms > now_ms, "time goes on");
                    now_ms = next_ms;
                }
                None => return told,
            }
        }
    }

    /// Everybody is told once, in order, and each slice has its share.
    #[test]
    fn the_slices_share_the_connections() {
        for (count, spread_ms) in [(1, 0), (7, 2_000), (1_000, 5_000), (50_000, 12_000)] {
            let told = told(count, spread_ms);
            let slots: Vec<u32> = told.iter().map(|(_, slot)| *slot).collect();
            assert_eq!(slots, (0..count).collect::<Vec<_>>());
            let slices = (spread_ms / SLICE_MS).max(1);
            for slice in 0..slices {
                let share = told.iter().filter(|(at_ms, _)| at_ms / SLICE_MS == slice);
                let (share, fair) = (share.count() as u64, u64::from(count) / slices);
                assert!(
                    share == fair || share == fair + 1 || slices == 1,
                    "slice {slice} of {slices} has {share} of {count}"
                );
            }
        }
    }

    /// Without a window everybody is told as fast as turns allow.
    #[test]
    fn without_a_window_all_are_told_at_once() {
        let told = told(100, 0);
        assert_eq!(told.len(), 100);
        assert_eq!(told.last().unwrap().0, 3, "four turns, a millisecond apart");
    }

    /// Nobody there is nothing to do.
    #[test]
    fn an_empty_shard_is_done_at_once() {
        assert_eq!(told(0, 10_000), []);
    }
}
