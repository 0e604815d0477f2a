//! Token buckets: how often something may happen, without a timer.

/// A rate and the burst above it.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Per second, on average.
    pub per_s: f32,
    /// At once.
    pub burst: u32,
}

/// A token bucket (as in ITU-T I.371), in 8 bytes since every connection has several.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    /// What is left.
    tokens: f32,
    /// When that was, in milliseconds of the monotonic clock; wraps after 49 days, which at worst costs a minute of filling.
    at_ms: u32,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn full(rate: Rate, now_ms: u64) -> Self {
        Self {
            tokens: rate.burst_f32(),
            at_ms: wrap(now_ms),
        }
    }

    /// Takes one. Where there is none: the milliseconds until there is.
    ///
    /// # Errors
    /// The bucket is empty; the error is how long to wait, in milliseconds.
    pub fn take(&mut self, rate: Rate, now_ms: u64) -> Result<(), u64> {
        self.fill(rate, now_ms);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(self.wait_ms(rate))
    }

    /// Takes many, if there is one: what is not there is owed, so that one large thing passes a small burst, and what
    /// comes next waits for it.
    ///
    /// # Errors
    /// The bucket is empty; the error is how long to wait, in milliseconds.
    pub fn borrow(&mut self, count: usize, rate: Rate, now_ms: u64) -> Result<(), u64> {
        self.fill(rate, now_ms);
        if self.tokens < 1.0 {
            return Err(self.wait_ms(rate));
        }
        #[expect(
            clippy::cast_precision_loss,
            reason = "a rounding of a token in millions is no matter"
        )]
        let count = count as f32;
        self.tokens -= count;
        Ok(())
    }

    fn fill(&mut self, rate: Rate, now_ms: u64) {
        let now_ms = wrap(now_ms);
        if self.at_ms.wrapping_sub(now_ms) < AHEAD_MS {
            return;
        }
        #[expect(
            clippy::cast_precision_loss,
            reason = "a rounding of a token in millions is no matter"
        )]
        let passed_s = now_ms.wrapping_sub(self.at_ms) as f32 / 1000.0;
        self.tokens = (self.tokens + passed_s * rate.per_s).min(rate.burst_f32());
        self.at_ms = now_ms;
    }

    /// How long until there is one.
    fn wait_ms(&self, rate: Rate) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, and saturates"
        )]
        let wait_ms = ((1.0 - self.tokens) / rate.per_s * 1000.0).ceil() as u64;
        wait_ms.max(1)
    }

    /// Whether nothing is missing.
    #[must_use]
    pub fn is_full(&self, rate: Rate, now_ms: u64) -> bool {
        self.left(rate, now_ms) >= rate.burst_f32()
    }

    /// How much there is.
    #[must_use]
    pub fn left(mut self, rate: Rate, now_ms: u64) -> f32 {
        self.fill(rate, now_ms);
        self.tokens
    }
}

impl Rate {
    /// So many per minute, all of them at once if need be.
    #[must_use]
    pub fn per_minute(count: u64) -> Self {
        let burst = u32::try_from(count).unwrap_or(u32::MAX);
        Self {
            per_s: Self { per_s: 0.0, burst }.burst_f32() / 60.0,
            burst,
        }
    }

    /// So many per second, and so many at once.
    #[must_use]
    pub fn per_second(count: u64, burst: u64) -> Self {
        #[expect(
            clippy::cast_precision_loss,
            reason = "a limit of 16 million a second is exact, and more is none"
        )]
        let per_s = count as f32;
        Self {
            per_s,
            burst: u32::try_from(burst).unwrap_or(u32::MAX),
        }
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "a burst of 16 million is exact, and more is no limit"
    )]
    fn burst_f32(self) -> f32 {
        self.burst as f32
    }
}

#[expect(clippy::cast_possible_truncation, reason = "wrapping is the point")]
fn wrap(ms: u64) -> u32 {
    ms as u32
}

/// Threads that share a bucket take the time once a turn, so one may come with an older time than another has left
/// behind. By no more than this.
const AHEAD_MS: u32 = 60_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_that_owes_gives_nothing_until_it_has_paid() {
        let rate = Rate {
            per_s: 10.0,
            burst: 5,
        };
        let mut bucket = Bucket::full(rate, 0);
        assert_eq!(bucket.borrow(15, rate, 0), Ok(()));
        assert_eq!(bucket.borrow(1, rate, 1_000), Err(100));
        assert_eq!(bucket.borrow(1, rate, 1_100), Ok(()));
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let rate = Rate {
            per_s: 10.0,
            burst: 3,
        };
        let mut bucket = Bucket::full(rate, 5_000);
        assert!((0..3).all(|_| bucket.take(rate, 5_000).is_ok()));
        assert_eq!(bucket.take(rate, 5_000), Err(100));
        assert_eq!(bucket.take(rate, 5_050), Err(50));
        assert_eq!(bucket.take(rate, 5_100), Ok(()));
        assert!((0..3).all(|_| bucket.take(rate, 99_000).is_ok()));
        assert!(bucket.take(rate, 99_000).is_err());
    }

    #[test]
    fn an_older_time_fills_nothing() {
        let rate = Rate::per_second(10, 3);
        let mut bucket = Bucket::full(rate, 5_000);
        assert!((0..3).all(|_| bucket.take(rate, 5_001).is_ok()));
        for older_ms in [5_000, 4_000, 5_001] {
            assert_eq!(bucket.take(rate, older_ms), Err(100));
        }
        assert_eq!(bucket.take(rate, 5_101), Ok(()));
        // Silence for as long as the time takes to come round.
        assert!((0..3).all(|_| bucket.take(rate, 5_101 + (1 << 31)).is_ok()));
    }
}
