//! How long things took: a histogram, and the curve it makes.
//!
//! Times are counted from the moment a thing was due, never from the moment it was done, so that a server that falls behind can't
//! hide it by slowing its tester down. Values keep three digits, from a microsecond to ten minutes.

use std::time::Duration;

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::report::Figure;

/// The times of one kind of thing.
#[derive(Debug, Clone)]
pub(crate) struct Latency(Histogram<u64>);

/// Names of the three figures that stand for a curve: p50, p99 and p99.9. See [`quantiles`].
pub(crate) type Names = [&'static str; 3];

/// The names of a kind of thing, made at compile time.
macro_rules! quantiles {
    ($of:literal) => {
        [
            concat!($of, ", p50"),
            concat!($of, ", p99"),
            concat!($of, ", p99.9"),
        ]
    };
}
pub(crate) use quantiles;

/// A whole distribution, to be drawn.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Curve {
    /// What was timed.
    pub(crate) name: &'static str,
    /// How many of it.
    pub(crate) count: u64,
    /// Ascending; closer together the nearer they are to 1.
    pub(crate) points: Vec<Point>,
}

/// That share of all took at most so long.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Point {
    /// From 0 to 1.
    pub(crate) quantile: f64,
    /// In microseconds.
    pub(crate) us: f64,
}

const SHORTEST_NS: u64 = 1_000;
const LONGEST_NS: u64 = 600_000_000_000;
const DIGITS: u8 = 3;

/// Points of a curve each time the distance to 1 halves.
const POINTS_PER_HALVING: u32 = 4;

const NS_PER_US: f64 = 1e3;

impl Latency {
    /// No times yet.
    pub(crate) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(SHORTEST_NS, LONGEST_NS, DIGITS);
        Self(histogram.expect("the bounds are constants that a histogram takes"))
    }

    /// Adds a time; one outside the bounds counts as the nearer bound.
    pub(crate) fn record(&mut self, took: Duration) {
        self.0
            .saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds all times of another one.
    pub(crate) fn add(&mut self, other: &Self) {
        let added = self.0.add(&other.0);
        added.expect("all have the same bounds");
    }

    /// How many times there are.
    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// That share of all took at most so long, in microseconds.
    ///
    /// # Errors
    /// There are no times.
    pub(crate) fn us_at(&self, quantile: f64) -> Result<f64> {
        let some = (self.count() > 0).then_some(());
        some.context("nothing was timed")?;
        Ok(self.0.value_at_quantile(quantile) as f64 / NS_PER_US)
    }

    /// p50, p99 and p99.9, in microseconds.
    ///
    /// # Errors
    /// There are no times.
    pub(crate) fn figures(&self, names: Names) -> Result<Vec<Figure>> {
        let quantiles = names.into_iter().zip([0.5, 0.99, 0.999]);
        quantiles
            .map(|(name, quantile)| Ok(Figure::new(name, "µs", self.us_at(quantile)?)))
            .collect()
    }

    /// All of it.
    pub(crate) fn curve(&self, name: &'static str) -> Curve {
        let points = self.0.iter_quantiles(POINTS_PER_HALVING).map(|step| Point {
            quantile: step.quantile(),
            us: step.value_iterated_to() as f64 / NS_PER_US,
        });
        Curve {
            name,
            count: self.count(),
            points: points.collect(),
        }
    }

    /// The times as pairs of a value in nanoseconds and how often it occurred, for another process.
    pub(crate) fn counts(&self) -> Vec<(u64, u64)> {
        let values = self.0.iter_recorded();
        values
            .map(|step| (step.value_iterated_to(), step.count_at_value()))
            .collect()
    }

    /// What another process has counted.
    pub(crate) fn of_counts(counts: &[(u64, u64)]) -> Self {
        let mut latency = Self::new();
        for (value, count) in counts {
            latency.0.saturating_record_n(*value, *count);
        }
        latency
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up_to(us: u64) -> Latency {
        let mut latency = Latency::new();
        (1..=us).for_each(|us| latency.record(Duration::from_micros(us)));
        latency
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let latency = up_to(2000);
        let values = latency.figures(quantiles!("round trip")).unwrap();
        for (figure, expected) in values.iter().zip([1000.0, 1980.0, 1998.0]) {
            assert!((figure.value / expected - 1.0).abs() < 0.002, "{values:?}");
        }
        assert_eq!(values[2].name, "round trip, p99.9");
        assert!(Latency::new().figures(quantiles!("round trip")).is_err());
    }

    #[test]
    fn a_curve_ascends_to_the_longest() {
        let curve = up_to(2000).curve("round trip");
        assert_eq!(curve.count, 2000);
        let last = curve.points.last().unwrap();
        assert!((last.us / 2000.0 - 1.0).abs() < 0.002 && last.quantile >= 1.0);
        let ascends =
            |pair: &[Point]| pair[0].quantile <= pair[1].quantile && pair[0].us <= pair[1].us;
        assert!(curve.points.windows(2).all(ascends), "{curve:?}");
    }

    #[test]
    fn another_process_tells_the_same() {
        let latency = up_to(2000);
        let told = Latency::of_counts(&latency.counts());
        assert_eq!(told.count(), 2000);
        assert_eq!(
            told.us_at(0.99).unwrap().to_bits(),
            latency.us_at(0.99).unwrap().to_bits()
        );
    }

    #[test]
    fn what_is_out_of_bounds_counts_as_the_bound() {
        let mut latency = Latency::new();
        latency.record(Duration::from_secs(100_000));
        assert!(latency.us_at(1.0).unwrap() >= 599e6);
    }
}
