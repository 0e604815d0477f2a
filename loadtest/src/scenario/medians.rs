//! Figures of several repeats, by name.

use crate::report::{Figure, Measurement, Spread};

/// Values by name, in the order in which the names came.
#[derive(Debug, Default)]
pub(super) struct Medians(Vec<Row>);

#[derive(Debug)]
struct Row {
    name: String,
    unit: &'static str,
    values: Vec<f64>,
}

impl Medians {
    /// A value of one repeat.
    pub(super) fn add(&mut self, name: String, unit: &'static str, value: f64) {
        match self.0.iter_mut().find(|row| row.name == name) {
            Some(row) => row.values.push(value),
            None => self.0.push(Row {
                name,
                unit,
                values: vec![value],
            }),
        }
    }

    /// The median of each, and both ends of ratios that there are several of.
    pub(super) fn report(self, measurement: &mut Measurement) {
        for Row { name, unit, values } in self.0 {
            let Spread {
                median, min, max, ..
            } = Spread::of(&values);
            let ends = [("min", min), ("max", max)];
            measurement.add(Figure::new(name.clone(), unit, median));
            let is_spread = values.len() > 1 && unit.starts_with('×');
            for (end, value) in ends.into_iter().filter(|_| is_spread) {
                measurement.add(Figure::new(format!("{name}, {end}"), unit, value));
            }
        }
    }
}
