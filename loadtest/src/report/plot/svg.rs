//! Writing SVG: the few shapes that plots are made of.

use std::fmt::Write as _;

use super::{Mark, Size};

/// A drawing that grows.
#[derive(Debug)]
pub(super) struct Drawing {
    body: String,
}

/// Which side of its place a text stands on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A place, in pixels from the upper left.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct At {
    pub(super) x: f64,
    pub(super) y: f64,
}

pub(super) const fn at(x: f64, y: f64) -> At {
    At { x, y }
}

impl Drawing {
    pub(super) const fn new() -> Self {
        Self {
            body: String::new(),
        }
    }

    /// The whole, as an element that says what it shows to those who don't see it.
    pub(super) fn finish(self, size: Size, height: f64, about: &str) -> String {
        let (width, class) = (size.width(), size.class());
        let about = escape(about);
        let body = self.body;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot {class}\" viewBox=\"0 0 {width} {height:.0}\" \
             role=\"img\" aria-label=\"{about}\">\n{body}</svg>\n"
        )
    }

    pub(super) fn line(&mut self, class: &str, from: At, to: At) {
        let (x1, y1, x2, y2) = (from.x, from.y, to.x, to.y);
        self.add(&format!(
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        ));
    }

    pub(super) fn band(&mut self, class: &str, from: At, to: At) {
        let (x, y, width, height) = (from.x, from.y, to.x - from.x, to.y - from.y);
        self.add(&format!(
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
        ));
    }

    pub(super) fn polyline(&mut self, class: &str, points: &[At]) {
        let mut path = String::new();
        for At { x, y } in points {
            write!(path, "{x:.1},{y:.1} ").expect("a string takes everything");
        }
        let path = path.trim_end();
        self.add(&format!("<polyline class=\"{class}\" points=\"{path}\"/>"));
    }

    pub(super) fn text(&mut self, class: &str, place: At, anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let At { x, y } = place;
        let text = escape(text);
        self.add(&format!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        ));
    }

    /// A mark has a colour and a shape, so that neither has to be seen.
    pub(super) fn mark(&mut self, mark: Mark, place: At, radius: f64, told: &str) {
        let At { x, y } = place;
        let path = match mark.shape() {
            0 => format!(
                "M{:.1} {y:.1}a{radius} {radius} 0 1 0 {d} 0a{radius} {radius} 0 1 0 -{d} 0z",
                x - radius,
                d = 2.0 * radius
            ),
            1 => polygon(
                place,
                radius,
                &[(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
            ),
            2 => polygon(
                place,
                radius,
                &[(0.0, -1.2), (1.2, 0.0), (0.0, 1.2), (-1.2, 0.0)],
            ),
            3 => polygon(place, radius, &[(0.0, -1.1), (1.1, 0.9), (-1.1, 0.9)]),
            _ => polygon(place, radius, &[(0.0, 1.1), (1.1, -0.9), (-1.1, -0.9)]),
        };
        let (class, told) = (mark.class(), escape(told));
        self.add(&format!(
            "<path class=\"mark {class}\" d=\"{path}\"><title>{told}</title></path>"
        ));
    }

    fn add(&mut self, element: &str) {
        self.body.push_str(element);
        self.body.push('\n');
    }
}

fn polygon(place: At, radius: f64, corners: &[(f64, f64)]) -> String {
    let corners = corners
        .iter()
        .map(|(x, y)| format!("{:.1} {:.1}", place.x + x * radius, place.y + y * radius));
    format!("M{}z", corners.collect::<Vec<_>>().join("L"))
}

/// What a text takes in pixels, about: letters differ, and no font is at hand.
pub(super) fn text_width(text: &str, font_px: f64) -> f64 {
    0.56 * font_px * text.chars().count() as f64
}

/// Text that stays text in SVG and HTML.
pub(in crate::report) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        let mut drawing = Drawing::new();
        drawing.text("a", at(1.0, 2.0), Anchor::Start, "<script> & \"x\"");
        let svg = drawing.finish(Size::Wide, 10.0, "a < b");
        assert!(
            svg.contains(">&lt;script&gt; &amp; &quot;x&quot;</text>"),
            "{svg}"
        );
        assert!(svg.contains("aria-label=\"a &lt; b\""), "{svg}");
    }
}
