//! How long something may take.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tokio::time::Instant;

use crate::console;

/// A moment after which a scenario gives up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    allowed: Duration,
    ends: Instant,
}

impl Deadline {
    /// From now on.
    pub(crate) fn after(allowed: Duration) -> Self {
        Self {
            allowed,
            ends: Instant::now() + allowed,
        }
    }

    /// How much time is left, if any.
    pub(crate) fn left(&self) -> Option<Duration> {
        let left = self.ends.checked_duration_since(Instant::now());
        left.filter(|left| !left.is_zero())
    }

    /// # Errors
    /// The time is over, and `standing` says how far it got; or somebody wants the run to end.
    pub(crate) fn check(&self, standing: impl FnOnce() -> String) -> Result<()> {
        ensure!(!console::interrupted(), "interrupted");
        if Instant::now() > self.ends {
            bail!(
                "not done within {} s: {}",
                self.allowed.as_secs_f64(),
                standing()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_speaks_only_after_its_time() {
        assert!(
            Deadline::after(Duration::from_secs(60))
                .check(String::new)
                .is_ok()
        );
        let passed = Deadline {
            allowed: Duration::from_secs(3),
            ends: Instant::now() - Duration::from_millis(1),
        };
        let text = passed
            .check(|| "2 of 5".to_owned())
            .unwrap_err()
            .to_string();
        assert_eq!(text, "not done within 3 s: 2 of 5");
    }
}
