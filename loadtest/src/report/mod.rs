//! What was found, as lines for people, as JSON for programs and as a page to look at.
//!
//! Scenarios and the comparison fill the types of [`measurement`] and [`spread`]; nothing here measures or judges. A report is made
//! only of whole results, since a run that failed has none.

mod measurement;
mod spread;

pub(crate) mod html;
mod json;
pub(crate) mod plot;
mod text;

pub(crate) use json::write as write_json;
pub(crate) use measurement::{Figure, Measurement};
pub(crate) use plot::write as write_plot;
pub(crate) use spread::{Spread, ratios};
pub(crate) use text::number;
