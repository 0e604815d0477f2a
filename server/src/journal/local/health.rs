//! Whether the journal takes entries, and how much of the disk it leaves free for that.
//!
//! The committer says so, and everybody asks. What has failed stays so until the process starts anew; a disk that is full is looked
//! at again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::journal::Health;

/// The journal's health, shared by all who ask.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedHealth(Arc<AtomicU8>);

impl SharedHealth {
    pub(super) fn get(&self) -> Health {
        match self.0.load(Ordering::Relaxed) {
            0 => Health::Good,
            1 => Health::Full,
            _ => Health::Failed,
        }
    }

    /// What has failed stays so.
    pub(super) fn set(&self, health: Health) {
        self.0
            .fetch_max(2 * u8::from(health == Health::Failed), Ordering::Relaxed);
        let (from, to) = match health {
            Health::Good => (1, 0),
            Health::Full => (0, 1),
            Health::Failed => return,
        };
        let changed = self
            .0
            .compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
        if changed.is_ok() {
            match health {
                Health::Good => {
                    tracing::info!("there is space on the disk again: durable rooms take entries");
                }
                _ => tracing::warn!("the disk has too little space: durable rooms take no entries"),
            }
        }
    }
}

/// Space that is left to others, and to what is in flight. Unless it is nothing at all it is room for two segments at least: that
/// which comes next, and what the store makes of one.
#[derive(Debug, Clone, Copy)]
pub struct Headroom {
    /// Percent of the disk.
    pub percent: u64,
    /// Bytes at least.
    pub bytes_min: u64,
}

impl Headroom {
    /// Of a disk, in bytes.
    pub(super) fn of(self, disk_bytes: u64, segment_bytes: u64) -> u64 {
        if self.percent == 0 && self.bytes_min == 0 {
            return 0;
        }
        let asked = (disk_bytes / 100 * self.percent).max(self.bytes_min);
        asked.max(2 * segment_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A headroom that has no place for segments would not keep them from a full disk; none at all is somebody's choice.
    #[test]
    fn a_headroom_has_place_for_two_segments() {
        let of = |percent, bytes_min| Headroom { percent, bytes_min }.of(1_000, 70);
        assert_eq!(of(0, 0), 0);
        assert_eq!(of(0, 1), 140);
        assert_eq!(of(1, 0), 140);
        assert_eq!(of(20, 0), 200);
        assert_eq!(of(0, 300), 300);
    }
}
