//! Whether memory is flat: what a connection leaves behind, in bytes.
//!
//! The slope is the median of the slopes between all pairs of points (Theil 1950, Sen 1968), so that a few samples at
//! which the allocator held more or less than usual don't move it. It goes by connections and not by time: then it
//! means the same on a machine of any speed, and what leaks leaks for each of them.

/// What may be left behind in resident memory by so many connections, in bytes: what the gaps of the allocator still take, about
/// an eighth of what the server holds then, and next to nothing for each. So in eight minutes a leak of 100 bytes for each short life is
/// found, and in twenty one of a quarter of that.
pub(crate) fn allowed(connections: f64) -> f64 {
    GAPS_BYTES + connections * BYTES_PER_CONNECTION
}

const GAPS_BYTES: f64 = 2_097_152.0;
const BYTES_PER_CONNECTION: f64 = 4.0;

/// By how much memory has grown along the slope, and over how many connections.
pub(crate) fn growth(points: &[(f64, f64)]) -> (f64, f64) {
    let connections = match (points.first(), points.last()) {
        (Some(first), Some(last)) => last.0 - first.0,
        _ => 0.0,
    };
    (slope(points) * connections, connections)
}

/// The median of the slopes between all pairs of points `(x, y)`; 0 where there are none.
fn slope(points: &[(f64, f64)]) -> f64 {
    let mut slopes = Vec::new();
    for (index, (x, y)) in points.iter().enumerate() {
        let later = points[index + 1..].iter().filter(|later| later.0 > *x);
        slopes.extend(later.map(|later| (later.1 - y) / (later.0 - x)));
    }
    slopes.sort_unstable_by(f64::total_cmp);
    let middle = slopes.len() / 2;
    if slopes.is_empty() {
        0.0
    } else if slopes.len() % 2 == 1 {
        slopes[middle]
    } else {
        f64::midpoint(slopes[middle - 1], slopes[middle])
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    /// What is judged of eight minutes, with memory that goes up and down by half a MiB and now and then jumps by one.
    fn series(leak: f64, seed: u64) -> Vec<(f64, f64)> {
        let mut random = StdRng::seed_from_u64(seed);
        let rounds = (0..14).map(|round| {
            let opened = f64::from(round) * 6_270.0;
            let jump = f64::from(u8::from(random.random_range(0..6) == 0)) * 1_048_576.0;
            let noise = random.random_range(-262_144.0..262_144.0);
            (opened, 2e7 + leak * opened + noise + jump)
        });
        rounds.collect()
    }

    /// 100 bytes (112 with the allocator's part) for each life, which are three of seven connections, are found whatever the noise, and nothing is where
    /// nothing is.
    #[test]
    fn a_leak_is_told_from_noise() {
        let found = |leak: f64| {
            let runs = (0..200).map(|seed| growth(&series(leak, seed)));
            runs.filter(|(bytes, connections)| *bytes > allowed(*connections))
                .count()
        };
        assert_eq!((found(0.0), found(112.0 * 3.0 / 7.0)), (0, 200));
    }

    #[test]
    fn the_slope_is_the_middle_one() {
        assert_eq!(slope(&[]), 0.0);
        assert_eq!(slope(&[(0.0, 5.0), (1.0, 7.0)]), 2.0);
        assert_eq!(
            slope(&[(0.0, 0.0), (1.0, 1.0), (2.0, 90.0), (3.0, 3.0)]),
            1.0
        );
    }
}
