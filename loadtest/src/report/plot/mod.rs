//! Plots as SVG, for the page and for the README.
//!
//! Drawn twice, for a screen and for a phone, since letters that shrink with the drawing can't be read. Colours come from `plot.css` and follow the
//! reader's light or dark; each server has a shape as well, so that nobody needs to tell colours apart. A linear axis begins at
//! zero, a logarithmic one says that it is one.

mod lines;
mod scale;
mod svg;
mod whiskers;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

pub(crate) use lines::{Axis, Dot, Lines, Series, Ticks};
pub(crate) use scale::Scale;
pub(super) use svg::escape;
pub(crate) use whiskers::{Lane, Whisker, Whiskers};

/// Colours, letters and strokes.
pub(super) const STYLE: &str = include_str!("plot.css");

/// For which screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// A screen, or a README.
    Wide,
    /// A phone.
    Narrow,
}

/// A server's colour and shape, the same in every plot of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark(usize);

/// Something that can be drawn.
#[derive(Debug, Clone)]
pub(crate) enum Plot {
    /// Against a quantity.
    Lines(Lines),
    /// Ratios with their intervals.
    Whiskers(Whiskers),
}

impl Size {
    const fn width(self) -> f64 {
        match self {
            Self::Wide => 760.0,
            Self::Narrow => 360.0,
        }
    }

    const fn class(self) -> &'static str {
        match self {
            Self::Wide => "wide",
            Self::Narrow => "narrow",
        }
    }
}

impl Mark {
    const COLOURS: usize = 9;
    const SHAPES: usize = 5;

    /// The one that a page is about.
    pub(crate) const SUBJECT: Self = Self(0);
    /// Floors are grey.
    pub(crate) const FLOOR: Self = Self(1);
    /// The other one.
    pub(crate) const OTHER_FLOOR: Self = Self(2);

    /// Everybody else, in their order.
    pub(crate) const fn other(index: usize) -> Self {
        Self(3 + index)
    }

    const fn shape(self) -> usize {
        self.0 % Self::SHAPES
    }

    fn class(self) -> String {
        let colour = if self.0 < Self::COLOURS {
            self.0
        } else {
            3 + (self.0 - 3) % (Self::COLOURS - 3)
        };
        format!("c{colour}")
    }
}

/// Writes a drawing as a file of its own.
///
/// # Errors
/// The file can't be written.
pub(crate) fn write(file: &Path, plot: &Plot) -> Result<()> {
    fs::write(file, plot.file()).with_context(|| format!("can't write {}", file.display()))
}

impl Plot {
    /// The element, for a page that has [`STYLE`].
    pub(super) fn svg(&self, size: Size) -> String {
        match self {
            Self::Lines(lines) => lines.svg(size),
            Self::Whiskers(whiskers) => whiskers.svg(size),
        }
    }

    fn file(&self) -> String {
        let svg = self.svg(Size::Wide);
        // Of its own too: around it may be a page in the other mode.
        let paper = "<rect class=\"paper\" width=\"100%\" height=\"100%\"/>";
        let style = format!(">\n<style>\n{STYLE}</style>\n{paper}\n");
        svg.replacen(">\n", &style, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_has_a_colour_and_floors_keep_their_own() {
        let classes: Vec<String> = (0..12).map(|index| Mark::other(index).class()).collect();
        assert_eq!(classes[0], "c3");
        assert_eq!(classes[6], "c3");
        assert!(
            classes
                .iter()
                .all(|class| !["c0", "c1", "c2"].contains(&class.as_str()))
        );
    }

    #[test]
    fn a_file_has_its_own_style() {
        let plot = Plot::Whiskers(Whiskers {
            about: "ratios".to_owned(),
            axis: "times".to_owned(),
            reference: "the floor".to_owned(),
            lanes: Vec::new(),
            legend: Vec::new(),
        });
        let file = plot.file();
        assert!(file.starts_with("<svg xmlns"), "{file}");
        assert!(file.contains("prefers-color-scheme: dark"), "{file}");
    }
}
