//! What a scenario found, as lines for people and as JSON for programs.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::latency::{Curve, Latency, Names};

/// One number with its unit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Figure {
    /// What it is of.
    pub(crate) name: &'static str,
    /// Its unit; empty for a count.
    pub(crate) unit: &'static str,
    /// The number.
    pub(crate) value: f64,
}

/// What one run of a scenario against one server found.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Measurement {
    scenario: &'static str,
    peer: &'static str,
    /// The scenario's parameters, by name.
    settings: Vec<(&'static str, String)>,
    figures: Vec<Figure>,
    /// The distributions behind the times among the figures.
    curves: Vec<Curve>,
}

/// The middle of several runs and how far they spread.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// The middle value, or the mean of the middle two.
    pub(crate) median: f64,
    /// The smallest.
    pub(crate) min: f64,
    /// The largest.
    pub(crate) max: f64,
}

impl Figure {
    /// A number.
    pub(crate) const fn new(name: &'static str, unit: &'static str, value: f64) -> Self {
        Self { name, unit, value }
    }
}

impl Measurement {
    /// A measurement without figures yet.
    pub(crate) const fn new(
        scenario: &'static str,
        peer: &'static str,
        settings: Vec<(&'static str, String)>,
    ) -> Self {
        Self {
            scenario,
            peer,
            settings,
            figures: Vec::new(),
            curves: Vec::new(),
        }
    }

    /// Adds a figure.
    pub(crate) fn add(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    /// Adds p50, p99 and p99.9 of something, and its curve.
    ///
    /// # Errors
    /// It has no times.
    pub(crate) fn add_latency(
        &mut self,
        latency: &Latency,
        of: &'static str,
        names: Names,
    ) -> Result<()> {
        let figures = latency.figures(names);
        self.figures.extend(figures.with_context(|| of.to_owned())?);
        self.curves.push(latency.curve(of));
        Ok(())
    }

    /// A figure by its name.
    ///
    /// # Errors
    /// It has none of that name.
    pub(crate) fn figure(&self, name: &str) -> Result<&Figure> {
        let found = self.figures.iter().find(|figure| figure.name == name);
        found.with_context(|| format!("{} has no figure {name:?}", self.scenario))
    }

    /// The scenario with its parameters, then a line a figure.
    pub(crate) fn lines(&self) -> Vec<String> {
        let settings: Vec<String> = self
            .settings
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        let head = format!("{}, {}: {}", self.scenario, self.peer, settings.join(", "));
        let figures = self.figures.iter().map(|figure| {
            // What has no unit was counted.
            let value = if figure.unit.is_empty() {
                format!("{:.0}", figure.value)
            } else {
                number(figure.value)
            };
            format!("  {:<38} {value:>12} {}", figure.name, figure.unit)
                .trim_end()
                .to_owned()
        });
        [head].into_iter().chain(figures).collect()
    }
}

impl Spread {
    /// Of at least one value; of none it is not a number.
    pub(crate) fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let last = sorted.len().saturating_sub(1);
        Self {
            median: f64::midpoint(at(last / 2), at(last.div_ceil(2))),
            min: at(0),
            max: at(last),
        }
    }
}

/// Three significant digits where a number is small, none after the point where it is large.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        small if small < 1.0 => format!("{value:.3}"),
        small if small < 10.0 => format!("{value:.2}"),
        medium if medium < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// Writes a result as JSON.
///
/// # Errors
/// The file can't be written.
pub(crate) fn write_json(file: &Path, result: &impl Serialize) -> Result<()> {
    let mut text =
        serde_json::to_string_pretty(result).context("the result can't be written as JSON")?;
    text.push('\n');
    fs::write(file, text).with_context(|| format!("can't write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_the_ends_are_the_spread() {
        assert_eq!(
            Spread::of(&[3.0, 1.0, 2.0]),
            Spread {
                median: 2.0,
                min: 1.0,
                max: 3.0
            }
        );
        assert_eq!(
            Spread::of(&[4.0, 1.0, 2.0, 3.0]),
            Spread {
                median: 2.5,
                min: 1.0,
                max: 4.0
            }
        );
        assert_eq!(
            Spread::of(&[7.0]),
            Spread {
                median: 7.0,
                min: 7.0,
                max: 7.0
            }
        );
        assert!(Spread::of(&[]).median.is_nan());
    }

    #[test]
    fn numbers_have_the_digits_that_mean_something() {
        for (value, text) in [
            (0.1704, "0.170"),
            (2.7, "2.70"),
            (26.14, "26.1"),
            (1_234.5, "1234"),
            (0.0, "0.000"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_figure_is_found_by_its_name_or_its_lack_is_an_error() {
        let mut measurement =
            Measurement::new("idle", "roomful", vec![("connections", "5".to_owned())]);
        measurement.add(Figure::new("bytes", "B", 2048.0));
        assert_eq!(measurement.figure("bytes").unwrap().value.round(), 2048.0);
        assert!(measurement.figure("seconds").is_err());
        measurement.add(Figure::new("publishes", "", 9.0));
        let lines = measurement.lines();
        assert_eq!(lines[0], "idle, roomful: connections 5");
        assert!(
            lines[1].contains("bytes") && lines[1].ends_with("2048 B"),
            "{}",
            lines[1]
        );
        assert!(lines[2].ends_with(" 9"), "{}", lines[2]);
    }
}
