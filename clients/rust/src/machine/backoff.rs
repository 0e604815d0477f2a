//! How long to wait before trying again: full jitter, so that clients which lost one server don't come back together.

use std::time::Duration;

/// Attempts that failed in a row, and the delay that follows from them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backoff {
    /// The ceiling after the first failure.
    base: Duration,
    /// The ceiling's ceiling.
    max: Duration,
    /// Failures in a row.
    failures: u32,
}

impl Backoff {
    pub(super) const fn new(base: Duration, max: Duration) -> Self {
        Self {
            base,
            max,
            failures: 0,
        }
    }

    /// Counts a failure: anything from nothing to the ceiling, which doubles with each.
    pub(super) fn next(&mut self, random: u64) -> Duration {
        let ceiling = self
            .base
            .saturating_mul(1 << self.failures.min(20))
            .min(self.max);
        self.failures = self.failures.saturating_add(1);
        fraction(ceiling, random)
    }

    /// Counts a failure after which the server allows to come back at once: it is believed one time.
    pub(super) fn next_after_now(&mut self, random: u64) -> Duration {
        if self.failures == 0 {
            self.failures = 1;
            return Duration::ZERO;
        }
        self.next(random)
    }

    /// Counts a failure after which the server said how long to wait; a little jitter goes on top.
    pub(super) fn next_after(&mut self, wait: Duration, random: u64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        wait + fraction(self.base, random)
    }

    /// Counts a failure to connect: what the server has asked for goes first, and what [`Backoff::next`] gives on top.
    /// Others were asked the same, and a server that asks again and again has too many of them.
    pub(super) fn next_more(&mut self, asked: Option<Duration>, random: u64) -> Duration {
        asked.unwrap_or_default() + self.next(random)
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

fn fraction(ceiling: Duration, random: u64) -> Duration {
    let micros = u64::try_from(ceiling.as_micros()).unwrap_or(u64::MAX - 1);
    Duration::from_micros(random % (micros + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_its_own_and_the_floor_stays_zero() {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        let ceilings =
            [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000].map(Duration::from_millis);
        for ceiling in ceilings {
            let micros = u64::try_from(ceiling.as_micros()).unwrap();
            assert_eq!(backoff.clone().next(micros), ceiling);
            assert_eq!(backoff.clone().next(micros + 1), Duration::ZERO);
            backoff.next(7);
        }
        for _ in 0..100 {
            assert!(backoff.next(u64::MAX) <= Duration::from_secs(30));
        }
        backoff.reset();
        assert!(backoff.next(u64::MAX) <= Duration::from_millis(500));
    }

    #[test]
    fn what_the_server_asks_for_goes_first_and_the_jitter_grows() {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        let asked = Duration::from_secs(5);
        for ceiling in [500, 1_000, 2_000].map(Duration::from_millis) {
            let micros = u64::try_from(ceiling.as_micros()).unwrap();
            assert_eq!(
                backoff.clone().next_more(Some(asked), micros),
                asked + ceiling
            );
            assert_eq!(backoff.next_more(Some(asked), 0), asked);
        }
        assert_eq!(backoff.next_more(None, 4_000_000), Duration::from_secs(4));
    }

    #[test]
    fn now_is_believed_once() {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        assert_eq!(backoff.next_after_now(400_000), Duration::ZERO);
        assert_eq!(backoff.next_after_now(400_000), Duration::from_millis(400));
    }
}
