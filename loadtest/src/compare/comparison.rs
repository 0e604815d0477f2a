//! What a comparison found, whole or with its failures named: the one thing that all its reports are made of.

use serde::Serialize;

use crate::peer::PeerName;
use crate::report::{Measurement, Spread};

/// Peers side by side, in one run.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    /// Where and how it was run, a line each.
    pub(crate) conditions: Vec<String>,
    /// The columns, in their order; the first is the one that the others are there for.
    pub(crate) peers: Vec<Column>,
    /// Peers that could not be started here.
    pub(crate) left_out: Vec<LeftOut>,
    /// What was measured, a scenario with its parameters each.
    pub(crate) rows: Vec<Row>,
    /// What a token check adds to a connect, in µs, run by run; `None` if that wasn't measured.
    pub(crate) token_check: Option<Spread>,
}

/// A peer that was started.
#[derive(Debug, Serialize)]
pub(crate) struct Column {
    /// The name by which it is chosen.
    pub(crate) name: PeerName,
    /// Its name for people.
    pub(crate) title: &'static str,
    /// Its command line, and where it ran.
    pub(crate) server: String,
    /// What its configuration sets, a line each.
    pub(crate) settings: Vec<String>,
}

/// A peer that was not.
#[derive(Debug, Serialize)]
pub(crate) struct LeftOut {
    /// Who.
    pub(crate) peer: PeerName,
    /// What it lacks, and how that is had.
    pub(crate) reason: String,
}

/// A scenario with its parameters.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// The name by which it is chosen, such as `fanout-1000-w1`.
    pub(crate) name: &'static str,
    /// The same for people.
    pub(crate) title: &'static str,
    /// Name of the figure that is compared.
    pub(crate) figure: &'static str,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// Which of the floors it is measured against.
    pub(crate) floor: PeerName,
    /// What is to be reached; `None` where nothing is promised.
    pub(crate) goal: Option<Goal>,
    /// One for each peer of this row that was measured to the end, in the order of the columns.
    pub(crate) cells: Vec<Cell>,
    /// Runs that had no result. A row with any is no whole one.
    pub(crate) failures: Vec<Failure>,
}

/// The most that the first column may take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Goal {
    /// So many times what the floor takes.
    TimesFloor(f64),
    /// So much, in the unit of the row.
    Value(f64),
}

/// One peer in one row.
#[derive(Debug, Serialize)]
pub(crate) struct Cell {
    /// Who.
    pub(crate) peer: PeerName,
    /// The figure, over all runs.
    pub(crate) value: Spread,
    /// The figure over the floor's, run by run; `None` where the floor has nothing to divide by.
    pub(crate) times_floor: Option<Spread>,
    /// Every single run.
    pub(crate) runs: Vec<Run>,
}

/// One run.
#[derive(Debug, Serialize)]
pub(crate) struct Run {
    /// In which repeat; runs of the same repeat are pairs.
    pub(crate) repeat: u32,
    /// The figure of the row.
    pub(crate) value: f64,
    /// All that it found.
    pub(crate) measurement: Measurement,
}

/// A run without a result.
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    /// Against whom.
    pub(crate) peer: PeerName,
    /// What went wrong.
    pub(crate) reason: String,
}

impl Comparison {
    /// Every failure, as a line.
    pub(crate) fn failures(&self) -> Vec<String> {
        let of_row = |row: &Row| {
            let name = row.name;
            let line = move |failure: &Failure| {
                format!("{name} against {} failed: {}", failure.peer, failure.reason)
            };
            row.failures.iter().map(line).collect::<Vec<_>>()
        };
        self.rows.iter().flat_map(of_row).collect()
    }

    /// Every run of every row.
    pub(crate) fn measurements(&self) -> impl Iterator<Item = &Measurement> {
        let cells = self.rows.iter().flat_map(|row| &row.cells);
        cells.flat_map(|cell| cell.runs.iter().map(|run| &run.measurement))
    }
}

impl Row {
    /// A peer's cell.
    pub(crate) fn cell(&self, peer: PeerName) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.peer == peer)
    }
}

impl Goal {
    /// Whether it is reached: the lower end of the interval is at or below it. Without an interval, the median.
    pub(crate) fn is_reached(self, cell: &Cell) -> bool {
        let (of, most) = match self {
            Self::TimesFloor(most) => (cell.times_floor, most),
            Self::Value(most) => (Some(cell.value), most),
        };
        let lower = |of: Spread| of.interval.map_or(of.median, |interval| interval.low);
        of.is_some_and(|of| lower(of) <= most)
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TimesFloor(most) => write!(f, "≤ {most} ×"),
            Self::Value(most) => write!(f, "≤ {most}"),
        }
    }
}

/// The figures of two peers, of those repeats in which both ran.
pub(crate) fn pairs(one: &[Run], other: &[Run]) -> (Vec<f64>, Vec<f64>) {
    let pair = |run: &Run| {
        let partner = other.iter().find(|other| other.repeat == run.repeat)?;
        Some((run.value, partner.value))
    };
    one.iter().filter_map(pair).unzip()
}

/// Two peers and two rows, the second without a cell for the second peer, for the tests of the reports.
#[cfg(test)]
pub(super) fn example() -> Comparison {
    use crate::report::Figure;
    use crate::scenario::TESTER_BUSY;

    let cell = |peer, values: &[f64], ratios: &[f64]| {
        let run = |(repeat, value): (u32, &f64)| {
            let mut measurement = Measurement::new("fanout", "x", Vec::new());
            measurement.add(Figure::new(TESTER_BUSY, "% of a core", 95.0));
            Run {
                repeat,
                value: *value,
                measurement,
            }
        };
        Cell {
            peer,
            value: Spread::of(values),
            times_floor: (!ratios.is_empty()).then(|| Spread::of(ratios)),
            runs: (0..).zip(values).map(run).collect(),
        }
    };
    let row = |name, goal, cells, failures| Row {
        name,
        title: "title",
        figure: "figure",
        unit: "µs",
        floor: PeerName::FLOOR,
        goal: Some(goal),
        cells,
        failures,
    };
    let column = |name| Column {
        name,
        title: "title",
        server: "server".to_owned(),
        settings: vec!["setting = 1".to_owned()],
    };
    let ratios = [1.0, 1.1, 1.1, 1.2, 1.2, 1.2, 1.3, 1.3, 9.0];
    let whole = vec![
        cell(PeerName::ROOMFUL, &[3.0, 2.0, 4.0], &ratios),
        cell(PeerName::FLOOR, &[2.0, 2.0, 2.0], &[1.0, 1.0, 1.0]),
        cell(PeerName::PLAIN, &[6.0, 8.0, 4.0], &[3.0, 4.0, 2.0]),
    ];
    let part = vec![cell(PeerName::ROOMFUL, &[3.0], &[])];
    let failure = Failure {
        peer: PeerName::PLAIN,
        reason: "the server died".to_owned(),
    };
    Comparison {
        conditions: vec!["how".to_owned()],
        peers: [PeerName::ROOMFUL, PeerName::FLOOR, PeerName::PLAIN]
            .map(column)
            .into(),
        left_out: vec![LeftOut {
            peer: PeerName::BUN,
            reason: "not set up".to_owned(),
        }],
        rows: vec![
            row("whole", Goal::TimesFloor(1.15), whole, Vec::new()),
            row("part", Goal::Value(2.0), part, vec![failure]),
        ],
        token_check: Some(Spread::of(&[2.5])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(repeat: u32, value: f64) -> Run {
        Run {
            repeat,
            value,
            measurement: Measurement::new("fanout", "x", Vec::new()),
        }
    }

    #[test]
    fn runs_are_paired_by_their_repeat() {
        let one = [run(0, 1.0), run(4, 2.0), run(5, 9.0)];
        let other = [run(0, 10.0), run(1, 0.0), run(4, 20.0)];
        assert_eq!(pairs(&one, &other), (vec![1.0, 2.0], vec![10.0, 20.0]));
    }

    #[test]
    fn a_goal_is_reached_by_the_lower_end_of_the_interval() {
        let cell = |ratios: &[f64]| Cell {
            peer: PeerName::ROOMFUL,
            value: Spread::of(&[3000.0]),
            times_floor: Some(Spread::of(ratios)),
            runs: Vec::new(),
        };
        let nine = cell(&[1.1, 1.14, 1.2, 1.2, 1.2, 1.2, 1.3, 1.3, 1.4]);
        assert!(Goal::TimesFloor(1.15).is_reached(&nine));
        assert!(!Goal::TimesFloor(1.13).is_reached(&nine));
        assert!(!Goal::TimesFloor(1.15).is_reached(&cell(&[1.1, 1.2, 1.3])));
        assert!(Goal::Value(3072.0).is_reached(&nine));
        assert!(!Goal::Value(2999.0).is_reached(&nine));
    }
}
