//! From values to places on an axis, and where its ticks are.

/// How an axis counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// From zero, evenly.
    Linear,
    /// Equal ratios take equal lengths.
    Log,
    /// Shares of all, where each further nine takes the same length: 90 %, 99 %, 99.9 %.
    Nines,
}

/// A scale with its ends, laid on pixels.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Placed {
    scale: Scale,
    /// In units of the scale: values, their logarithms, or nines.
    low: f64,
    high: f64,
    /// Pixels of the ends.
    from: f64,
    to: f64,
    /// Values that get a tick, ascending.
    pub(super) ticks: Vec<f64>,
}

/// Ticks on an axis, at most about.
const TICKS_MAX: usize = 7;

/// A share of 1 has endless nines; nobody measures more than these.
const NINES_MAX: f64 = 5.0;

impl Scale {
    fn unit(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Log => value.max(f64::MIN_POSITIVE).log10(),
            Self::Nines => -(1.0 - value).max(10_f64.powf(-NINES_MAX)).log10(),
        }
    }
}

impl Placed {
    /// Long enough for all values, from one tick to another, between two pixels.
    pub(super) fn new(scale: Scale, values: &[f64], from: f64, to: f64) -> Self {
        let all = values.iter().copied().filter(|value| value.is_finite());
        let min = all.clone().fold(f64::INFINITY, f64::min);
        let max = all.fold(f64::NEG_INFINITY, f64::max);
        let ticks = match scale {
            Scale::Linear => linear_ticks(max),
            Scale::Log => log_ticks(min, max),
            Scale::Nines => nines(max),
        };
        let end = |tick: Option<&f64>| scale.unit(tick.copied().unwrap_or(0.0));
        let high = match scale {
            Scale::Nines => scale.unit(max),
            Scale::Linear | Scale::Log => end(ticks.last()),
        };
        Self {
            scale,
            low: end(ticks.first()),
            high,
            from,
            to,
            ticks,
        }
    }

    /// An axis with ticks at just these values and a margin beside them, for few and unevenly spread ones.
    pub(super) fn at(scale: Scale, ticks: Vec<f64>, from: f64, to: f64) -> Self {
        let mut placed = Self::new(scale, &ticks, from, to);
        let end = |tick: Option<&f64>| scale.unit(tick.copied().unwrap_or(0.0));
        let (low, high) = (end(ticks.first()), end(ticks.last()));
        let margin = 0.04 * (high - low).max(0.1);
        (placed.low, placed.high) = (low - margin, high + margin);
        if scale == Scale::Linear {
            placed.low = 0.0;
        }
        placed.ticks = ticks;
        placed
    }

    /// Where a value is.
    pub(super) fn place(&self, value: f64) -> f64 {
        let share = (self.scale.unit(value) - self.low) / (self.high - self.low).max(1e-12);
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }
}

/// From zero in steps of 1, 2 or 5.
fn linear_ticks(max: f64) -> Vec<f64> {
    let rough = max.max(1e-9) / (TICKS_MAX - 1) as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(rough);
    let mut ticks = vec![0.0];
    while ticks.last().is_some_and(|last| *last < max) {
        ticks.push(step * ticks.len() as f64);
    }
    ticks
}

/// From the last tick below to the first above, as finely as there is room for.
fn log_ticks(min: f64, max: f64) -> Vec<f64> {
    const STEPS: [&[f64]; 4] = [
        &[1.0, 1.1, 1.2, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0],
        &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
        &[1.0, 2.0, 5.0],
        &[1.0],
    ];
    let between = |steps: &&[f64]| enclosing(min, max, steps);
    let mut choices = STEPS.iter().map(between);
    let fits = |ticks: &Vec<f64>| ticks.len() <= TICKS_MAX + 2;
    choices
        .find(fits)
        .unwrap_or_else(|| enclosing(min, max, STEPS[3]))
}

fn enclosing(min: f64, max: f64, steps: &[f64]) -> Vec<f64> {
    const DECADES: std::ops::RangeInclusive<i32> = -6..=9;
    let all: Vec<f64> = DECADES
        .flat_map(|decade| steps.iter().map(move |step| step * 10_f64.powi(decade)))
        .collect();
    // A hair of tolerance: 0.1 is not exactly 1 · 10⁻¹.
    let first = all.iter().rposition(|tick| *tick <= min * 1.000_001);
    let last = all.iter().position(|tick| *tick >= max * 0.999_999);
    match (first, last) {
        (Some(first), Some(last)) => all[first..=last].to_vec(),
        _ => vec![min, max],
    }
}

fn nines(max: f64) -> Vec<f64> {
    let all = [0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999];
    let reach = Scale::Nines.unit(max);
    all.into_iter()
        .filter(|tick| Scale::Nines.unit(*tick) <= reach + 1e-9)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_ratios_take_equal_lengths_on_a_log_axis() {
        let axis = Placed::new(Scale::Log, &[1.0, 100.0], 0.0, 200.0);
        assert_eq!(axis.ticks, [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        let places = [1.0, 10.0, 100.0].map(|value| axis.place(value).round());
        assert_eq!(places, [0.0, 100.0, 200.0]);
    }

    #[test]
    fn a_linear_axis_begins_at_zero() {
        let axis = Placed::new(Scale::Linear, &[3.0, 9.5], 100.0, 0.0);
        assert_eq!(axis.ticks, [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!([axis.place(0.0), axis.place(10.0)], [100.0, 0.0]);
    }

    #[test]
    fn each_nine_takes_the_same_length() {
        let axis = Placed::new(Scale::Nines, &[0.5, 0.999], 0.0, 100.0);
        assert_eq!(axis.ticks, [0.5, 0.9, 0.99, 0.999]);
        let length = |from, to| axis.place(to) - axis.place(from);
        assert!((length(0.9, 0.99) - length(0.99, 0.999)).abs() < 1e-6);
    }

    #[test]
    fn ratios_near_one_get_fine_ticks() {
        let axis = Placed::new(Scale::Log, &[1.04, 1.4], 0.0, 1.0);
        assert_eq!(axis.ticks, [1.0, 1.1, 1.2, 1.3, 1.5]);
    }
}
