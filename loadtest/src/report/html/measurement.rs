//! The page of a single scenario: its figures, and the curve of each thing that was timed.

use super::{Body, Page, Section, Tile};
use crate::latency::Curve;
use crate::report::plot::{Axis, Dot, Lines, Mark, Plot, Scale, Series, Ticks};
use crate::report::{Measurement, number};

/// Made of one measurement and how its server was run.
pub(crate) fn page(measurement: &Measurement, server: Vec<String>) -> Page {
    let tiles = measurement.figures().iter().map(|figure| Tile {
        label: figure.name.to_string(),
        value: if figure.unit.is_empty() {
            format!("{:.0}", figure.value)
        } else {
            number(figure.value)
        },
        unit: figure.unit.to_owned(),
        told: String::new(),
    });
    let mut sections: Vec<Section> = measurement
        .curves()
        .iter()
        .map(|of| curve(measurement.peer(), of))
        .collect();
    sections.push(Section {
        title: "How the server was run".to_owned(),
        note: String::new(),
        body: Body::Lines(server),
    });
    Page {
        title: format!("{}: {}", measurement.peer(), measurement.scenario()),
        lead: measurement.settings(),
        notes: Vec::new(),
        alarms: Vec::new(),
        tiles: tiles.collect(),
        sections,
    }
}

fn curve(peer: &str, curve: &Curve) -> Section {
    Section {
        title: curve.name.to_owned(),
        note: format!(
            "Of {} times, the share on the axis took at most so long. Each further nine takes the same length.",
            curve.count
        ),
        body: Body::Plot(Box::new(latency_plot(
            curve.name,
            vec![latency_series(peer.to_owned(), Mark::SUBJECT, curve)],
        ))),
    }
}

/// Curves of the same kind of time, over the share of all.
pub(crate) fn latency_plot(about: &str, series: Vec<Series>) -> Plot {
    Plot::Lines(Lines {
        about: format!("{about}: how long which share took at most"),
        x: Axis {
            title: "share of all".to_owned(),
            scale: Scale::Nines,
            ticks: Ticks::Round,
        },
        y: Axis {
            title: "µs, logarithmic".to_owned(),
            scale: Scale::Log,
            ticks: Ticks::Round,
        },
        series,
    })
}

/// From the half on; beyond the last share that has a value of its own there is nothing to draw.
pub(crate) fn latency_series(name: String, mark: Mark, curve: &Curve) -> Series {
    let known_until = 1.0 - 1.0 / curve.count.max(2) as f64;
    let dots = curve
        .points
        .iter()
        .filter(|point| (0.5..=known_until).contains(&point.quantile))
        .map(|point| Dot {
            x: point.quantile,
            y: point.us,
            ends: None,
        });
    Series {
        name,
        mark,
        dots: dots.collect(),
        has_marks: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::Point;

    #[test]
    fn a_curve_ends_where_the_values_end() {
        let point = |quantile, us| Point { quantile, us };
        let curve = Curve {
            name: "round trip",
            count: 1000,
            points: vec![
                point(0.25, 1.0),
                point(0.5, 2.0),
                point(0.99, 3.0),
                point(0.9999, 4.0),
                point(1.0, 4.0),
            ],
        };
        let series = latency_series("x".to_owned(), Mark::SUBJECT, &curve);
        let drawn: Vec<f64> = series.dots.iter().map(|dot| dot.y).collect();
        assert_eq!(drawn, [2.0, 3.0]);
    }
}
