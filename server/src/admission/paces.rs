//! The rate of handshakes of each address.
//!
//! What one address may bring is far less than what there is for all, so that nobody alone spends the budget of the
//! others. Whoever brings more is told its turn as by the budget of all. A budget that is whole again is
//! forgotten: there are as many as addresses that have come within the last moments, which is bounded by how many
//! sockets can be accepted meanwhile.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::address::Address;
use super::budget::{Budget, Rate};

/// The budgets of addresses.
#[derive(Debug)]
pub struct Paces {
    /// Held for one handshake, or for one look at all of them.
    budgets: Mutex<Budgets>,
}

#[derive(Debug)]
struct Budgets {
    by_address: HashMap<Address, Budget>,
    /// When those that were whole were last forgotten.
    swept: Instant,
}

impl Paces {
    /// Nobody has come yet.
    #[must_use]
    pub fn new() -> Self {
        let budgets = Budgets {
            by_address: HashMap::new(),
            swept: Instant::now(),
        };
        Self {
            budgets: Mutex::new(budgets),
        }
    }

    /// Takes a token of an address.
    ///
    /// # Errors
    /// It has none; after which time it has one.
    pub fn take(&self, address: Address, rate: Rate, now: Instant) -> Result<(), Duration> {
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        budgets.sweep(now);
        let budget = budgets.by_address.entry(address);
        let budget = budget.or_insert_with(|| Budget::new(rate));
        budget.set_rate(rate);
        budget.take(now)
    }
}

impl Default for Paces {
    fn default() -> Self {
        Self::new()
    }
}

impl Budgets {
    fn sweep(&mut self, now: Instant) {
        if now.saturating_duration_since(self.swept) < SWEEP_INTERVAL {
            return;
        }
        self.swept = now;
        self.by_address.retain(|_, budget| !budget.is_whole(now));
        // What an attack has made grow becomes small again.
        self.by_address.shrink_to(2 * self.by_address.len());
    }
}

/// Seldom enough that a look at all costs each handshake next to nothing, often enough that few are there.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        per_s: 10,
        burst: 20,
    };

    fn address(host: u8) -> Address {
        Address::V4([192, 0, 2, host])
    }

    /// An address has its burst and its rate, whatever another one does, and is told when its turn is.
    #[test]
    fn each_address_has_its_own_rate() {
        let paces = Paces::new();
        let now = Instant::now();
        let pass = |host, at| {
            (0..100)
                .filter(|_| paces.take(address(host), RATE, at).is_ok())
                .count()
        };
        assert_eq!(pass(1, now), 20);
        assert_eq!(pass(2, now), 20);
        assert_eq!(pass(1, now + Duration::from_millis(550)), 5);
        let other = Rate { per_s: 1, burst: 1 };
        assert_eq!(paces.take(address(3), other, now), Ok(()));
        let wait = paces.take(address(3), other, now).unwrap_err();
        assert_eq!(wait.as_millis().div_ceil(1_000), 1);
    }

    /// A budget is kept for as long as it says something, and no longer.
    #[test]
    fn budgets_that_are_whole_are_forgotten() {
        let paces = Paces::new();
        let now = Instant::now();
        let held = || paces.budgets.lock().unwrap().by_address.len();
        for host in 0..200 {
            paces.take(address(host), RATE, now).unwrap();
        }
        while paces.take(address(7), RATE, now).is_ok() {}
        assert_eq!(held(), 200);
        let later = now + SWEEP_INTERVAL;
        paces.take(address(201), RATE, later).unwrap();
        assert_eq!(held(), 2, "the one that is not whole, and the new one");
        let last = later + Duration::from_secs(2);
        paces.take(address(202), RATE, last).unwrap();
        assert_eq!(held(), 1);
    }
}
