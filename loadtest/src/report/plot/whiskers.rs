//! Ratios with their intervals: a lane for each row, a dot for each server.

use super::lines::tick_text;
use super::scale::{Placed, Scale};
use super::svg::{Anchor, Drawing, at, text_width};
use super::{Mark, Size};

/// Rows of ratios over one axis.
#[derive(Debug, Clone)]
pub(crate) struct Whiskers {
    /// What it shows, for those who don't see it.
    pub(crate) about: String,
    /// What the axis counts.
    pub(crate) axis: String,
    /// What a ratio of 1 means.
    pub(crate) reference: String,
    pub(crate) lanes: Vec<Lane>,
    /// Whose mark is which.
    pub(crate) legend: Vec<(Mark, String)>,
}

/// One row.
#[derive(Debug, Clone)]
pub(crate) struct Lane {
    pub(crate) title: String,
    /// Below it, smaller.
    pub(crate) subtitle: String,
    /// What the subject is to reach at most.
    pub(crate) goal: Option<f64>,
    /// The subject stands above, the others share a line below.
    pub(crate) whiskers: Vec<Whisker>,
}

/// One server in a row.
#[derive(Debug, Clone)]
pub(crate) struct Whisker {
    pub(crate) name: String,
    pub(crate) mark: Mark,
    pub(crate) value: f64,
    /// Both ends.
    pub(crate) ends: (f64, f64),
}

const FONT_PX: f64 = 13.0;
const LEGEND_LINE: f64 = 20.0;
const BOTTOM: f64 = 46.0;

impl Whiskers {
    pub(super) fn svg(&self, size: Size) -> String {
        // On a phone a title stands above its lane.
        let (left, lane_height, lines_at) = match size {
            Size::Wide => (250.0, 46.0, 0.0),
            Size::Narrow => (8.0, 76.0, 40.0),
        };
        let right = size.width() - 14.0;
        let mut drawing = Drawing::new();
        let top = self.legend(&mut drawing, size) + 26.0;
        let bottom = top + lane_height * self.lanes.len() as f64;
        let x = self.placed(left + 6.0, right - 40.0);
        for index in 0..self.lanes.len() {
            let y = top + lane_height * index as f64;
            if index % 2 == 0 {
                drawing.band("band", at(0.0, y), at(size.width(), y + lane_height));
            }
        }
        for index in 0..self.lanes.len() {
            let y = top + lane_height * index as f64;
            grid(&mut drawing, &x, [y + lines_at, y + lane_height]);
        }
        self.axis(&mut drawing, &x, [top, bottom, right]);
        for (index, lane) in self.lanes.iter().enumerate() {
            let y = top + lane_height * index as f64;
            drawing.text("lane", at(8.0, y + 19.0), Anchor::Start, &lane.title);
            drawing.text("tick", at(8.0, y + 36.0), Anchor::Start, &lane.subtitle);
            lane.draw(&mut drawing, &x, y + lines_at + 16.0);
        }
        drawing.finish(size, bottom + BOTTOM, &self.about)
    }

    fn placed(&self, from: f64, to: f64) -> Placed {
        let lanes = self.lanes.iter();
        let mut values: Vec<f64> = lanes
            .flat_map(|lane| {
                let ends = lane
                    .whiskers
                    .iter()
                    .flat_map(|whisker| [whisker.ends.0, whisker.ends.1]);
                ends.chain(lane.goal)
            })
            .collect();
        values.push(1.0);
        Placed::new(Scale::Log, &values, from, to)
    }

    fn axis(&self, drawing: &mut Drawing, x: &Placed, [top, bottom, right]: [f64; 3]) {
        for tick in &x.ticks {
            let text = format!("{} ×", tick_text(Scale::Log, *tick));
            let place = at(x.place(*tick), bottom + 18.0);
            drawing.text("tick", place, Anchor::Middle, &text);
        }
        let one = at(x.place(1.0), top - 7.0);
        drawing.text("tick", one, Anchor::Middle, &self.reference);
        drawing.text("title", at(right, bottom + 38.0), Anchor::End, &self.axis);
    }

    /// In as many lines as it takes; gives its height.
    fn legend(&self, drawing: &mut Drawing, size: Size) -> f64 {
        let (mut x, mut y) = (8.0, 14.0);
        for (mark, name) in &self.legend {
            let width = 16.0 + text_width(name, FONT_PX) + 16.0;
            if x + width > size.width() {
                (x, y) = (8.0, y + LEGEND_LINE);
            }
            drawing.mark(*mark, at(x + 4.0, y - 4.0), 4.5, name);
            let class = format!("label {}", mark.class());
            drawing.text(&class, at(x + 14.0, y), Anchor::Start, name);
            x += width;
        }
        y
    }
}

/// Not behind titles, which stand above their dots on a phone.
fn grid(drawing: &mut Drawing, x: &Placed, [top, bottom]: [f64; 2]) {
    for tick in &x.ticks {
        let place = x.place(*tick);
        drawing.line("grid", at(place, top), at(place, bottom));
    }
    let one = x.place(1.0);
    drawing.line("reference", at(one, top), at(one, bottom));
}

impl Lane {
    fn draw(&self, drawing: &mut Drawing, x: &Placed, y: f64) {
        if let Some(goal) = self.goal {
            let place = x.place(goal);
            drawing.line("goal", at(place, y - 9.0), at(place, y + 9.0));
        }
        // The subject last, above everything.
        for whisker in self.whiskers.iter().rev() {
            let is_subject = whisker.mark == Mark::SUBJECT;
            let y = if is_subject { y } else { y + 14.0 };
            whisker.draw(drawing, x, y, if is_subject { 5.0 } else { 3.8 });
        }
        if let Some(subject) = self
            .whiskers
            .iter()
            .find(|whisker| whisker.mark == Mark::SUBJECT)
        {
            let place = x.place(subject.ends.1.max(self.goal.unwrap_or(0.0))) + 9.0;
            drawing.text(
                "value c0",
                at(place, y + 4.5),
                Anchor::Start,
                &format!("{:.2}", subject.value),
            );
        }
    }
}

impl Whisker {
    fn draw(&self, drawing: &mut Drawing, x: &Placed, y: f64, radius: f64) {
        let (low, high) = self.ends;
        let class = format!("whisker {}", self.mark.class());
        drawing.line(&class, at(x.place(low), y), at(x.place(high), y));
        let told = format!("{}: {:.2} ({low:.2}–{high:.2})", self.name, self.value);
        drawing.mark(self.mark, at(x.place(self.value), y), radius, &told);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subject_is_told_apart_and_has_its_number() {
        let whisker = |mark, value| Whisker {
            name: "server".to_owned(),
            mark,
            value,
            ends: (value * 0.9, value * 1.1),
        };
        let plot = Whiskers {
            about: "ratios".to_owned(),
            axis: "times the floor".to_owned(),
            reference: "the floor".to_owned(),
            lanes: vec![Lane {
                title: "a row".to_owned(),
                subtitle: "of something".to_owned(),
                goal: Some(1.15),
                whiskers: vec![whisker(Mark::SUBJECT, 1.1), whisker(Mark::other(0), 4.0)],
            }],
            legend: vec![(Mark::SUBJECT, "ours".to_owned())],
        };
        for size in [Size::Wide, Size::Narrow] {
            let svg = plot.svg(size);
            assert!(
                svg.contains(">1.10</text>") && svg.contains("class=\"goal\""),
                "{svg}"
            );
            assert!(
                svg.contains("server: 4.00 (3.60–4.40)") && !svg.contains("NaN"),
                "{svg}"
            );
        }
    }
}
