//! What one run of a scenario against one server found.

use std::borrow::Cow;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::text::number;
use crate::latency::{Curve, Latency, Names};

/// One number with its unit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Figure {
    /// What it is of.
    pub(crate) name: Cow<'static, str>,
    /// Its unit; empty for a count.
    pub(crate) unit: &'static str,
    /// The number.
    pub(crate) value: f64,
}

/// The figures of one run, with the parameters they hold for.
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

impl Figure {
    /// A number.
    pub(crate) fn new(name: impl Into<Cow<'static, str>>, unit: &'static str, value: f64) -> Self {
        let name = name.into();
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

    /// What was done.
    pub(crate) const fn scenario(&self) -> &'static str {
        self.scenario
    }

    /// Against whom.
    pub(crate) const fn peer(&self) -> &'static str {
        self.peer
    }

    /// A parameter of the scenario.
    pub(crate) fn setting(&self, name: &str) -> Option<&str> {
        let found = self.settings.iter().find(|(of, _)| *of == name);
        found.map(|(_, value)| value.as_str())
    }

    /// All parameters in one line.
    pub(crate) fn settings(&self) -> String {
        let settings = self
            .settings
            .iter()
            .map(|(name, value)| format!("{name} {value}"));
        settings.collect::<Vec<_>>().join(", ")
    }

    /// All figures, in the order they were added.
    pub(crate) fn figures(&self) -> &[Figure] {
        &self.figures
    }

    /// The distributions behind the times.
    pub(crate) fn curves(&self) -> &[Curve] {
        &self.curves
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
        let head = format!("{}, {}: {}", self.scenario, self.peer, self.settings());
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

#[cfg(test)]
mod tests {
    use super::*;

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
