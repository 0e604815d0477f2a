//! How many WebSockets a second, and when to come back for those who are too many.
//!
//! A token bucket: so many at once, and so many a second. When everybody comes back in one moment, most of them are
//! refused, and what they are told decides what follows: the same wait for all would bring them all back together. So
//! each who is refused gets the next free slot of the tokens to come, behind everybody who was refused before. Then
//! those who obey find their tokens, and all are in when the budget has had time for them.

use std::time::Duration;

use tokio::time::Instant;

use super::random_up_to;

/// A rate, and how many may come in one moment. The burst is at least one second's worth, so that those who were
/// told the same second find their tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// On average; at least one.
    pub per_s: u32,
    /// At once.
    pub burst: u32,
}

/// The budget of a node, or of one address.
#[derive(Debug)]
pub struct Budget {
    rate: Rate,
    /// As of `at`; a part of one is on its way.
    tokens: f64,
    at: Instant,
    /// The last slot that was given away.
    promised: Instant,
}

impl Budget {
    /// Nobody has come yet.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        let now = Instant::now();
        Self {
            rate,
            tokens: f64::from(rate.burst),
            at: now,
            promised: now,
        }
    }

    /// Goes on at another rate.
    pub fn set_rate(&mut self, rate: Rate) {
        self.rate = rate;
    }

    /// Takes a token.
    ///
    /// # Errors
    /// There is none; after which time there is one.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        self.tokens = self.tokens_at(now);
        self.at = self.at.max(now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        let slot =
            self.promised.max(now) + Duration::from_secs_f64(f64::from(self.rate.per_s).recip());
        let wait = slot.saturating_duration_since(now);
        if wait > WAIT_MAX {
            // More than obey a budget: somebody knocks without end. Slots of a far future are not given away, since
            // those who come next would wait for nobody.
            return Err(WAIT_MAX / 2 + random_up_to(WAIT_MAX / 2));
        }
        self.promised = slot;
        Err(wait)
    }

    /// Whether nothing is missing and nobody was told to come: it is as good as a new one.
    #[must_use]
    pub fn is_whole(&self, now: Instant) -> bool {
        self.tokens_at(now) >= f64::from(self.rate.burst) && self.promised <= now
    }

    fn tokens_at(&self, now: Instant) -> f64 {
        let passed_s = now.saturating_duration_since(self.at).as_secs_f64();
        let fresh = passed_s * f64::from(self.rate.per_s);
        (self.tokens + fresh).min(f64::from(self.rate.burst))
    }
}

/// Longer than a client should wait for a server that lives.
const WAIT_MAX: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const RATE: Rate = Rate {
        per_s: 1_000,
        burst: 1_000,
    };

    /// The burst passes, one more does not; a token comes back in its time, and no more of them than the burst.
    #[test]
    fn so_many_at_once_and_so_many_a_second() {
        let mut budget = Budget::new(RATE);
        let mut now = Instant::now();
        let mut pass = |at| (0..2_000).filter(|_| budget.take(at).is_ok()).count();
        assert_eq!(pass(now), 1_000);
        now += Duration::from_millis(100);
        assert_eq!(pass(now), 100);
        now += Duration::from_mins(1);
        assert_eq!(pass(now), 1_000);
    }

    /// Fifteen thousand come in one moment, and each comes back in the whole second that it is told. All are in within
    /// the time that the budget has for them, nobody is refused more than twice, and no second gets more than a burst.
    #[test]
    fn everybody_of_a_storm_is_in_within_the_window() {
        let mut budget = Budget::new(RATE);
        let start = Instant::now();
        let mut due: BTreeMap<u64, Vec<u32>> = BTreeMap::from([(0, vec![0; 15_000])]);
        let mut last = 0;
        while let Some((second, refused)) = due.pop_first() {
            last = second;
            for times in refused {
                if let Err(wait) = budget.take(start + Duration::from_secs(second)) {
                    assert!(times < 2, "refused three times");
                    let wait = wait + random_up_to(Duration::from_secs(1));
                    let seconds = u64::try_from(wait.as_millis().div_ceil(1_000)).unwrap();
                    due.entry(second + seconds).or_default().push(times + 1);
                }
            }
        }
        assert!((14..=17).contains(&last), "all were back after {last} s");
    }

    /// Who knocks without end does not push the others' wait out of sight.
    #[test]
    fn waits_are_bounded() {
        let mut budget = Budget::new(Rate { per_s: 1, burst: 1 });
        let now = Instant::now();
        let waits: Vec<_> = (0..10_000).filter_map(|_| budget.take(now).err()).collect();
        assert_eq!(waits.len(), 9_999);
        assert!(waits.iter().all(|wait| *wait <= WAIT_MAX));
        // A minute later the slots that nobody came for are over.
        let next = budget.take(now + WAIT_MAX + Duration::from_millis(1));
        assert_eq!(next, Ok(()));
    }
}
