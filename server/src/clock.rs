//! What time it is.
//!
//! Everything that needs a time asks a [`Clock`] that it was given; nothing else reads the system's. The
//! system clock promises that the monotonic time never goes back; the wall clock may step, since people set
//! it. Waiting is left to the timer wheel and to tokio.

#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "this is the one place that reads the system's clocks"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// A source of time: the system's, or one that a test sets. Clones share it.
#[derive(Debug, Clone)]
pub struct Clock(Source);

/// One moment on both sides of a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since the clock was made; for what has to happen after a while.
    pub monotonic_ms: u64,
    /// Milliseconds since 1970 (UTC); for what people read.
    pub unix_ms: u64,
}

#[derive(Debug, Clone)]
enum Source {
    System { start: Instant },
    Manual(Arc<Manual>),
}

#[derive(Debug)]
struct Manual {
    unix_ms: AtomicU64,
    monotonic_ms: AtomicU64,
}

impl Clock {
    /// The system's clocks; the monotonic one starts at 0 here.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System {
            start: Instant::now(),
        })
    }

    /// A clock that stands still at `unix_ms` (and 0 on the monotonic side) until it is told otherwise.
    #[must_use]
    pub fn manual(unix_ms: u64) -> Self {
        Self(Source::Manual(Arc::new(Manual {
            unix_ms: AtomicU64::new(unix_ms),
            monotonic_ms: AtomicU64::new(0),
        })))
    }

    /// Both sides at once.
    #[must_use]
    pub fn now(&self) -> Now {
        Now {
            monotonic_ms: self.monotonic_ms(),
            unix_ms: self.unix_ms(),
        }
    }

    /// Milliseconds since 1970 (UTC). May step in both directions.
    #[must_use]
    pub fn unix_ms(&self) -> u64 {
        match &self.0 {
            // A system clock before 1970 is unset; 0 then refuses tokens as "not valid yet" instead of panicking.
            Source::System { .. } => SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, millis),
            Source::Manual(manual) => manual.unix_ms.load(Ordering::Relaxed),
        }
    }

    /// Milliseconds since this clock was made. Never goes back.
    #[must_use]
    pub fn monotonic_ms(&self) -> u64 {
        match &self.0 {
            Source::System { start } => millis(start.elapsed()),
            Source::Manual(manual) => manual.monotonic_ms.load(Ordering::Relaxed),
        }
    }

    /// Microseconds since this clock was made, for what takes less than a millisecond. Never goes back.
    #[must_use]
    pub fn monotonic_us(&self) -> u64 {
        match &self.0 {
            Source::System { start } => {
                u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
            }
            Source::Manual(manual) => manual.monotonic_ms.load(Ordering::Relaxed) * 1_000,
        }
    }

    /// Lets `ms` pass on a manual clock, on both sides. A system clock takes no orders and ignores it.
    pub fn advance(&self, ms: u64) {
        if let Source::Manual(manual) = &self.0 {
            manual.unix_ms.fetch_add(ms, Ordering::Relaxed);
            manual.monotonic_ms.fetch_add(ms, Ordering::Relaxed);
        }
    }

    /// Steps the wall clock of a manual clock, as an operator would; the monotonic side stays. A system clock
    /// ignores it.
    pub fn set_unix_ms(&self, unix_ms: u64) {
        if let Source::Manual(manual) = &self.0 {
            manual.unix_ms.store(unix_ms, Ordering::Relaxed);
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manual clock moves only when told; a step of the wall clock leaves the monotonic side alone.
    #[test]
    fn a_manual_clock_moves_when_told() {
        let clock = Clock::manual(1_000);
        let shared = clock.clone();
        clock.advance(50);
        shared.set_unix_ms(10);
        assert_eq!((shared.unix_ms(), shared.monotonic_ms()), (10, 50));
    }

    /// The system clock is past 2020, and its monotonic side never goes back.
    #[test]
    fn the_system_clock_tells_a_plausible_time() {
        let clock = Clock::system();
        let earlier = clock.monotonic_ms();
        assert!(clock.unix_ms() > 1_577_836_800_000);
        assert!(clock.monotonic_ms() >= earlier);
    }
}
