//! What is counted of the journal on disk; a scrape reads it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers that any thread may read.
#[derive(Debug, Default)]
pub struct Counters {
    /// Batches that were written and synced.
    pub commits: Count,
    /// Records in them.
    pub records: Count,
    /// Bytes of them.
    pub bytes: Count,
    /// Syncs of segments.
    pub syncs: Count,
    /// How many records a batch had.
    pub batch_records: Spread,
    /// How long a batch took to be stored, in microseconds.
    pub commit_us: Spread,
    /// Segments that went into the store.
    pub ingestions: Count,
    /// Rooms that were opened.
    pub opens: Count,
    /// Bytes in segments that the store has not taken yet.
    pub segment_bytes: Count,
    /// Bytes of entries in the store.
    pub store_bytes: Count,
    /// Rewrites of the store that gave space back.
    pub cleanings: Count,
}

/// One number.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// It, now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

/// How often which magnitude was seen: class `n` counts values up to 2 to the power of `n`, the last one all above.
#[derive(Debug, Default)]
pub struct Spread {
    classes: [AtomicU64; CLASSES],
    sum: AtomicU64,
}

/// Classes of a [`Spread`].
pub const CLASSES: usize = 25;

impl Spread {
    pub(super) fn see(&self, value: u64) {
        let class = value
            .saturating_sub(1)
            .checked_ilog2()
            .map_or(0, |log| log + 1);
        let class = (class as usize).min(CLASSES - 1);
        self.classes[class].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// How often each class was seen, from the lowest on.
    #[must_use]
    pub fn classes(&self) -> [u64; CLASSES] {
        std::array::from_fn(|class| self.classes[class].load(Ordering::Relaxed))
    }

    /// The sum of all values.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_in_the_class_that_reaches_to_it() {
        let spread = Spread::default();
        for value in [0, 1, 2, 3, 4, 5, u64::MAX / 2] {
            spread.see(value);
        }
        let classes = spread.classes();
        assert_eq!(classes[..5], [2, 1, 2, 1, 0]);
        assert_eq!(classes[CLASSES - 1], 1);
    }
}
