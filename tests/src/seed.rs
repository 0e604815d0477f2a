//! Randomness that can be had again.

use rand::SeedableRng as _;
use rand::rngs::StdRng;

/// A generator whose seed is printed, and taken from `ROOMFUL_SEED` where that is set.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "tests have no config")]
pub fn seeded(test: &str) -> StdRng {
    let given = std::env::var("ROOMFUL_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    eprintln!("{test}: run again with ROOMFUL_SEED={seed}");
    StdRng::seed_from_u64(seed)
}
