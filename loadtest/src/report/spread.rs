//! The middle of several runs, and how sure one can be of it.
//!
//! Runs on a shared machine have outliers to one side, so nothing here takes a mean or supposes a bell curve: the median, the ends, and the
//! interval that holds the true median with at least 95 % probability whatever the distribution is. Ratios are taken pair by pair
//! before they come here; see [`ratios`].

use serde::Serialize;

/// The middle of several values and how far they spread.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// How many values.
    pub(crate) count: usize,
    /// The middle value, or the mean of the middle two.
    pub(crate) median: f64,
    /// The smallest.
    pub(crate) min: f64,
    /// The largest.
    pub(crate) max: f64,
    /// Where the true median is with at least 95 % probability. Fewer than six values can't tell.
    pub(crate) interval: Option<Interval>,
}

/// Two ends, both included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Interval {
    /// The lower end.
    pub(crate) low: f64,
    /// The upper end.
    pub(crate) high: f64,
}

/// How improbable it may be that the interval misses the median.
const MISSED_MAX: f64 = 0.05;

impl Spread {
    /// Of at least one value; of none it is not a number.
    pub(crate) fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let last = sorted.len().saturating_sub(1);
        Self {
            count: sorted.len(),
            median: f64::midpoint(at(last / 2), at(last.div_ceil(2))),
            min: at(0),
            max: at(last),
            interval: values_left_out(sorted.len()).map(|outside| Interval {
                low: at(outside),
                high: at(last - outside),
            }),
        }
    }
}

/// The first over the second, pair by pair: what disturbed a moment disturbed both of its runs.
pub(crate) fn ratios(of: &[f64], to: &[f64]) -> Vec<f64> {
    of.iter().zip(to).map(|(of, to)| of / to).collect()
}

/// How many values to leave out at either end of `count` sorted ones, so that those left still enclose the median with 95 %.
///
/// Each value is below the median with probability ½, so the number below it is binomial. The interval from the k-th smallest to the k-th
/// largest misses when fewer than k are below, or fewer than k above: 2·P(B(n, ½) ≤ k − 1). The largest k that keeps this at or
/// under 5 % is taken. W. R. Thompson, "On confidence ranges for the median", Annals of Mathematical Statistics 7 (1936),
/// 122–128; also W. J. Conover, Practical Nonparametric Statistics, on intervals for quantiles.
fn values_left_out(count: usize) -> Option<usize> {
    // As logarithms, since 2⁻ⁿ leaves what a float can hold before a thousand values.
    let mut ln_chance = -(count as f64) * std::f64::consts::LN_2;
    let (mut missed, mut left_out) = (0.0, None);
    for below in 0..count {
        missed += 2.0 * ln_chance.exp();
        if missed > MISSED_MAX {
            break;
        }
        left_out = Some(below);
        ln_chance += ((count - below) as f64 / (below + 1) as f64).ln();
    }
    left_out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_the_ends_are_the_spread() {
        for (values, median, min, max) in [
            (&[3.0, 1.0, 2.0][..], 2.0, 1.0, 3.0),
            (&[4.0, 1.0, 2.0, 3.0], 2.5, 1.0, 4.0),
            (&[7.0], 7.0, 7.0, 7.0),
        ] {
            let spread = Spread::of(values);
            assert_eq!(
                (spread.median, spread.min, spread.max, spread.interval),
                (median, min, max, None)
            );
        }
        assert!(Spread::of(&[]).median.is_nan());
    }

    /// Against the published table of order statistics for the median at 95 %.
    #[test]
    fn the_interval_leaves_out_what_the_table_says() {
        for (count, left_out) in [
            (0, None),
            (5, None),
            (6, Some(0)),
            (8, Some(0)),
            (9, Some(1)),
            (11, Some(1)),
            (12, Some(2)),
            (15, Some(3)),
            (17, Some(4)),
            (20, Some(5)),
            (25, Some(7)),
            (50, Some(17)),
            (100, Some(39)),
        ] {
            assert_eq!(values_left_out(count), left_out, "{count} values");
        }
        let ratios: Vec<f64> = (1..=9).rev().map(f64::from).collect();
        assert_eq!(
            Spread::of(&ratios).interval,
            Some(Interval {
                low: 2.0,
                high: 8.0
            })
        );
    }

    #[test]
    fn many_values_do_not_vanish_in_the_arithmetic() {
        let left_out = values_left_out(5_000).unwrap();
        // The normal approximation: n/2 − 1.96·√n/2.
        assert!((2_430..=2_432).contains(&left_out), "{left_out}");
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        assert_eq!(ratios(&[2.0, 9.0], &[1.0, 3.0]), [2.0, 3.0]);
    }
}
