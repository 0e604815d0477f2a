//! A line for each server, with its name at the end of it.

use super::scale::{Placed, Scale};
use super::svg::{Anchor, At, Drawing, at, text_width};
use super::{Mark, Size};
use crate::report::number;

/// Values against a quantity.
#[derive(Debug, Clone)]
pub(crate) struct Lines {
    /// What it shows, for those who don't see it.
    pub(crate) about: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Vec<Series>,
}

/// What is counted along an axis.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    /// With its unit.
    pub(crate) title: String,
    pub(crate) scale: Scale,
    pub(crate) ticks: Ticks,
}

/// Where an axis has ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ticks {
    /// At round values.
    Round,
    /// Where values are.
    AtValues,
}

/// One server.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) mark: Mark,
    /// Along the axis.
    pub(crate) dots: Vec<Dot>,
    /// Whether each dot is drawn; a curve of many has none.
    pub(crate) has_marks: bool,
}

/// A value, and what it is likely to be at other times.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dot {
    pub(crate) x: f64,
    pub(crate) y: f64,
    /// Lower and upper end of its spread.
    pub(crate) ends: Option<(f64, f64)>,
}

const FONT_PX: f64 = 13.0;
/// Lines of text next to each other need so much.
const LABEL_GAP: f64 = 16.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 48.0;

impl Lines {
    pub(super) fn svg(&self, size: Size) -> String {
        let height: f64 = match size {
            Size::Wide => 380.0,
            Size::Narrow => 340.0,
        };
        let height = height.max(TOP + BOTTOM + LABEL_GAP * self.series.len() as f64);
        let names = self.series.iter().map(|series| series.name.as_str());
        let label = names
            .map(|name| text_width(name, FONT_PX))
            .fold(0.0, f64::max);
        let right = size.width() - label - 22.0;
        let y = self.placed(&self.y, |dot| vec![dot.y], height - BOTTOM, TOP);
        let left = y
            .ticks
            .iter()
            .map(|tick| text_width(&tick_text(self.y.scale, *tick), FONT_PX))
            .fold(0.0, f64::max)
            + 12.0;
        let x = self.placed(&self.x, |dot| vec![dot.x], left, right);
        let mut drawing = Drawing::new();
        self.axes(&mut drawing, &x, &y, [left, right, height]);
        // The first one is what the page is about: it is drawn last, above the others.
        for series in self.series.iter().rev() {
            series.draw(&mut drawing, &x, &y, &self.y);
        }
        self.labels(&mut drawing, &x, &y, [right, height]);
        drawing.finish(size, height, &self.about)
    }

    fn placed(&self, axis: &Axis, of: impl Fn(&Dot) -> Vec<f64>, from: f64, to: f64) -> Placed {
        let dots = self.series.iter().flat_map(|series| &series.dots);
        let mut values: Vec<f64> = dots.flat_map(of).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        match axis.ticks {
            Ticks::Round => Placed::new(axis.scale, &values, from, to),
            Ticks::AtValues => Placed::at(axis.scale, values, from, to),
        }
    }

    fn axes(&self, drawing: &mut Drawing, x: &Placed, y: &Placed, [left, right, height]: [f64; 3]) {
        for tick in &y.ticks {
            let place = y.place(*tick);
            drawing.line("grid", at(left, place), at(right, place));
            let text = tick_text(self.y.scale, *tick);
            drawing.text("tick", at(left - 8.0, place + 4.0), Anchor::End, &text);
        }
        let bottom = height - BOTTOM;
        drawing.line("axis", at(left, bottom), at(right, bottom));
        for tick in &x.ticks {
            let place = x.place(*tick);
            drawing.line("axis", at(place, bottom), at(place, bottom + 5.0));
            let text = tick_text(self.x.scale, *tick);
            drawing.text("tick", at(place, bottom + 20.0), Anchor::Middle, &text);
        }
        drawing.text("title", at(0.0, 14.0), Anchor::Start, &self.y.title);
        drawing.text("title", at(right, height - 8.0), Anchor::End, &self.x.title);
    }

    /// At the ends of the lines, pushed apart where they would overlap.
    fn labels(&self, drawing: &mut Drawing, x: &Placed, y: &Placed, [right, height]: [f64; 2]) {
        let mut ends: Vec<(&Series, At)> = self
            .series
            .iter()
            .filter_map(|series| {
                let last = series.dots.last()?;
                Some((series, at(x.place(last.x), y.place(last.y))))
            })
            .collect();
        ends.sort_by(|(_, one), (_, other)| one.y.total_cmp(&other.y));
        let wanted: Vec<f64> = ends.iter().map(|(_, end)| end.y).collect();
        let places = apart(&wanted, LABEL_GAP, TOP, height - BOTTOM);
        for ((series, end), place) in ends.iter().zip(places) {
            let class = format!("leader {}", series.mark.class());
            drawing.line(&class, *end, at(right + 10.0, place));
            let class = format!("label {}", series.mark.class());
            drawing.text(
                &class,
                at(right + 14.0, place + 4.5),
                Anchor::Start,
                &series.name,
            );
        }
    }
}

impl Series {
    fn draw(&self, drawing: &mut Drawing, x: &Placed, y: &Placed, axis: &Axis) {
        let class = self.mark.class();
        let points: Vec<At> = self
            .dots
            .iter()
            .map(|dot| at(x.place(dot.x), y.place(dot.y)))
            .collect();
        drawing.polyline(&format!("line {class}"), &points);
        if !self.has_marks {
            return;
        }
        for (dot, point) in self.dots.iter().zip(points) {
            if let Some((low, high)) = dot.ends {
                let whisker = format!("whisker {class}");
                drawing.line(
                    &whisker,
                    at(point.x, y.place(low)),
                    at(point.x, y.place(high)),
                );
            }
            let told = format!("{}: {} ({})", self.name, number(dot.y), axis.title);
            drawing.mark(self.mark, point, 4.0, &told);
        }
    }
}

/// Ascending places as near to the wanted ones as the gap allows, between two bounds.
fn apart(wanted: &[f64], gap: f64, low: f64, high: f64) -> Vec<f64> {
    let mut places = wanted.to_vec();
    let mut least = low;
    for place in &mut places {
        *place = place.max(least);
        least = *place + gap;
    }
    let mut most = high;
    for place in places.iter_mut().rev() {
        *place = place.min(most);
        most = *place - gap;
    }
    places
}

/// A tick's number, without digits that say nothing.
pub(super) fn tick_text(scale: Scale, tick: f64) -> String {
    let value = if scale == Scale::Nines {
        tick * 100.0
    } else {
        tick
    };
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let percent = if scale == Scale::Nines { " %" } else { "" };
    format!("{}{rest}{percent}", thousands(whole))
}

/// With a comma between groups of three.
fn thousands(digits: &str) -> String {
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_keep_their_distance_and_their_order() {
        let places = apart(&[10.0, 11.0, 12.0, 95.0], 16.0, 0.0, 100.0);
        assert_eq!(places, [10.0, 26.0, 42.0, 95.0]);
        let places = apart(&[90.0, 95.0, 99.0], 16.0, 0.0, 100.0);
        assert_eq!(places, [68.0, 84.0, 100.0]);
    }

    #[test]
    fn ticks_have_the_digits_that_say_something() {
        for (scale, tick, text) in [
            (Scale::Log, 5000.0, "5,000"),
            (Scale::Log, 0.2, "0.2"),
            (Scale::Linear, 0.0, "0"),
            (Scale::Linear, 1_250_000.0, "1,250,000"),
            (Scale::Nines, 0.999, "99.9 %"),
        ] {
            assert_eq!(tick_text(scale, tick), text);
        }
    }

    #[test]
    fn each_line_ends_in_its_name() {
        let dot = |x, y| Dot {
            x,
            y,
            ends: Some((y * 0.9, y * 1.1)),
        };
        let axis = |title: &str, ticks| Axis {
            title: title.to_owned(),
            scale: Scale::Log,
            ticks,
        };
        let lines = Lines {
            about: "cost".to_owned(),
            x: axis("members", Ticks::AtValues),
            y: axis("µs", Ticks::Round),
            series: vec![Series {
                name: "one".to_owned(),
                mark: Mark::SUBJECT,
                dots: vec![dot(100.0, 2.0), dot(5000.0, 3.0)],
                has_marks: true,
            }],
        };
        for size in [Size::Wide, Size::Narrow] {
            let svg = lines.svg(size);
            assert!(
                svg.contains(">5,000</text>") && svg.contains(">one</text>"),
                "{svg}"
            );
            assert_eq!(svg.matches("class=\"mark c0\"").count(), 2);
            assert!(!svg.contains("NaN"), "{svg}");
        }
    }
}
