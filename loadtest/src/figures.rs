//! `figures`: every scenario against Roomful and against the plain server, in turn and several times.
//!
//! The two take turns run by run, each with a fresh process, so that whatever else the machine does falls on both. What is printed are medians
//! with their spread, and the ratio of the two, which travels to other machines better than either. One failed run ends the
//! whole: there is no table with holes.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::console;
use crate::peer::{LaunchArgs, PeerName};
use crate::process::Cores;
use crate::report::{self, Measurement, Spread, number, ratios};
use crate::scenario::{
    OTHERS_BUSY, PER_DELIVERY, Subject, TESTER_BUSY, Target, connect, fanout, idle,
};

/// The command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    launch: LaunchArgs,
    /// Runs of each scenario against each server
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Shorter runs and fewer connections: to see that all works, not to be quoted
    #[arg(long)]
    quick: bool,
    /// Let the servers and this program run on any core, with the servers' own defaults for shards and threads
    #[arg(long)]
    unpinned: bool,
    /// Where to write the result as JSON, besides printing it
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The comparison's result.
#[derive(Debug, Serialize)]
struct Report {
    /// Where and how it was run, a line each.
    conditions: Vec<String>,
    rows: Vec<Row>,
    /// Every single run.
    measurements: Vec<Measurement>,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Row {
    title: &'static str,
    unit: &'static str,
    roomful: Spread,
    plain: Spread,
    /// The plain server's figure over Roomful's, run by run: above 1, Roomful is cheaper.
    ratio: Spread,
}

/// A scenario with its parameters, and what the table takes from it.
struct Entry {
    /// What it is called while it runs.
    name: &'static str,
    measure: Box<dyn Fn(Subject) -> Result<Measurement>>,
    /// Title in the table, and name of the figure.
    rows: &'static [(&'static str, &'static str)],
}

/// The measurements of one entry, run by run.
struct Pairs {
    roomful: Vec<Measurement>,
    plain: Vec<Measurement>,
}

/// Above this share of a core, the tester or others on the machine may have had a part in a figure.
const TESTER_BUSY_MAX: f64 = 90.0;
const OTHERS_BUSY_MAX: f64 = 10.0;

/// Runs the command.
///
/// # Errors
/// Any run failed.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (cores, pinned) = pin(args.unpinned);
    let roomful = Target::start(PeerName::ROOMFUL, &args.launch, cores)?;
    let plain = Target::start(PeerName::PLAIN, &args.launch, cores)?;
    let mut conditions = conditions(args, &pinned, [&roomful, &plain])?;
    let (mut rows, mut measurements) = (Vec::new(), Vec::new());
    for entry in entries(args.quick) {
        let pairs = Pairs::measure(&entry, args.repeats, &roomful, &plain)?;
        rows.extend(pairs.rows(&entry)?);
        measurements.extend(pairs.roomful.into_iter().chain(pairs.plain));
    }
    conditions.extend(disturbances(&measurements));
    let report = Report {
        conditions,
        rows,
        measurements,
    };
    report.lines().iter().for_each(|line| console::result(line));
    args.json
        .as_deref()
        .map_or(Ok(()), |file| report::write_json(file, &report))
}

/// Pins if it can; and what is to be said about it.
fn pin(unpinned: bool) -> (Option<Cores>, String) {
    if unpinned {
        return (None, "not pinned, as asked".to_owned());
    }
    match Cores::pin_tester() {
        Ok(cores) => (
            Some(cores),
            format!(
                "server on core {}, tester on core {}",
                cores.server, cores.tester
            ),
        ),
        Err(error) => (None, format!("not pinned: {error:#}")),
    }
}

fn conditions(args: &Args, pinned: &str, targets: [&Target; 2]) -> Result<Vec<String>> {
    let length = if args.quick {
        ", quick: not to be quoted"
    } else {
        ""
    };
    let mut lines = vec![format!(
        "{} interleaved repeats{length}; {pinned}",
        args.repeats
    )];
    for target in targets {
        lines.push(format!("server: {}", target.description()));
        lines.extend(
            target
                .settings()?
                .into_iter()
                .map(|setting| format!("  {setting}")),
        );
    }
    Ok(lines)
}

/// The list of what is measured.
fn entries(quick: bool) -> Vec<Entry> {
    let duration_s = if quick { 1.5 } else { 5.0 };
    let room = fanout::Shape {
        members: 1000,
        payload_bytes: 64,
        in_flight: 1,
        rate: None,
        warmup_s: duration_s / 5.0,
        duration_s,
        timeout_s: 120.0,
    };
    let paced = fanout::Shape {
        rate: Some(100),
        duration_s: duration_s * 2.0,
        ..room
    };
    let idle = idle::Shape {
        connections: if quick { 5_000 } else { 19_000 },
        room_members: 1000,
        settle_s: 2.0,
        timeout_s: 180.0,
    };
    let connections = if quick { 3_000 } else { 10_000 };
    let connect = connect::Shape {
        connections,
        room_members: 1000,
        joining_max: 64,
        timeout_s: 120.0,
    };
    let fanout =
        |shape: fanout::Shape| Box::new(move |subject| fanout::measure(subject, shape)) as _;
    vec![
        Entry {
            name: "fanout, 1 in flight",
            measure: fanout(room),
            rows: &[(
                "CPU per delivery, 1,000 members, 64 B, 1 in flight",
                PER_DELIVERY,
            )],
        },
        Entry {
            name: "fanout, 32 in flight",
            measure: fanout(fanout::Shape {
                in_flight: 32,
                ..room
            }),
            rows: &[(
                "CPU per delivery, 1,000 members, 64 B, 32 in flight",
                PER_DELIVERY,
            )],
        },
        Entry {
            name: "fanout, 100 members, 100 publishes per second",
            measure: fanout(fanout::Shape {
                members: 100,
                ..paced
            }),
            rows: &[
                (
                    "publish to own delivery at 100/s, 100 members, p50",
                    fanout::OWN_P50,
                ),
                (
                    "publish to own delivery at 100/s, 100 members, p99",
                    fanout::OWN_P99,
                ),
            ],
        },
        Entry {
            name: "fanout, 1,000 members, 100 publishes per second",
            measure: fanout(paced),
            rows: &[
                (
                    "publish to own delivery at 100/s, 1,000 members, p50",
                    fanout::OWN_P50,
                ),
                (
                    "publish to own delivery at 100/s, 1,000 members, p99",
                    fanout::OWN_P99,
                ),
            ],
        },
        Entry {
            name: "idle",
            measure: Box::new(move |subject| idle::measure(subject, idle)),
            rows: &[(
                "resident bytes per idle joined connection",
                idle::PER_CONNECTION,
            )],
        },
        Entry {
            name: "connect",
            measure: Box::new(move |subject| connect::measure(subject, connect)),
            rows: &[("CPU per connect and join", connect::PER_CONNECTION)],
        },
    ]
}

/// Says so where the tester was near its own limit, or the machine was not ours.
fn disturbances(measurements: &[Measurement]) -> Vec<String> {
    let largest = |name| {
        let shares = measurements
            .iter()
            .filter_map(|measurement| measurement.figure(name).ok());
        shares.map(|figure| figure.value).fold(0.0, f64::max)
    };
    let bounds = [
        (TESTER_BUSY, TESTER_BUSY_MAX),
        (OTHERS_BUSY, OTHERS_BUSY_MAX),
    ];
    let told = bounds.map(|(name, max)| {
        let share = largest(name);
        let warning = if share > max {
            "; figures may suffer from it"
        } else {
            ""
        };
        format!("{name}: at most {}% of a core{warning}", number(share))
    });
    told.to_vec()
}

impl Pairs {
    /// The servers take turns, and in every other repeat the other one begins.
    fn measure(entry: &Entry, repeats: u32, roomful: &Target, plain: &Target) -> Result<Self> {
        let mut pairs = Self {
            roomful: Vec::new(),
            plain: Vec::new(),
        };
        for repeat in 0..repeats {
            for first in [repeat % 2 == 0, repeat % 2 == 1] {
                let (name, target, runs) = if first {
                    ("roomful", roomful, &mut pairs.roomful)
                } else {
                    ("plain", plain, &mut pairs.plain)
                };
                console::progress(&format!(
                    "{}: {name}, {} of {repeats}",
                    entry.name,
                    repeat + 1
                ));
                let measured = target.measure(|subject| (entry.measure)(subject));
                runs.push(
                    measured.with_context(|| format!("{} against {name} failed", entry.name))?,
                );
            }
        }
        Ok(pairs)
    }

    fn rows(&self, entry: &Entry) -> Result<Vec<Row>> {
        entry
            .rows
            .iter()
            .map(|(title, figure)| self.row(title, figure))
            .collect()
    }

    fn row(&self, title: &'static str, figure: &'static str) -> Result<Row> {
        let values = |runs: &[Measurement]| {
            runs.iter()
                .map(|run| Ok(run.figure(figure)?.value))
                .collect::<Result<Vec<_>>>()
        };
        let (roomful, plain) = (values(&self.roomful)?, values(&self.plain)?);
        let unit = self
            .roomful
            .first()
            .map_or(Ok(""), |run| run.figure(figure).map(|figure| figure.unit))?;
        Ok(Row {
            title,
            unit,
            roomful: Spread::of(&roomful),
            plain: Spread::of(&plain),
            ratio: Spread::of(&ratios(&plain, &roomful)),
        })
    }
}

impl Report {
    /// The conditions, then a Markdown table.
    fn lines(&self) -> Vec<String> {
        let head = [
            "figure",
            "unit",
            "roomful",
            "plain tokio-tungstenite",
            "plain ÷ roomful",
        ]
        .map(str::to_owned);
        let cells: Vec<[String; 5]> = [head]
            .into_iter()
            .chain(self.rows.iter().map(Row::cells))
            .collect();
        let widths: [usize; 5] = std::array::from_fn(|column| {
            cells
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        });
        let mut table = cells
            .iter()
            .map(|row| line(row, widths))
            .collect::<Vec<_>>();
        table.insert(1, line(&widths.map(|width| "-".repeat(width)), widths));
        self.conditions
            .iter()
            .cloned()
            .chain([String::new()])
            .chain(table)
            .collect()
    }
}

impl Row {
    fn cells(&self) -> [String; 5] {
        [
            self.title.to_owned(),
            self.unit.to_owned(),
            cell(self.roomful),
            cell(self.plain),
            cell(self.ratio),
        ]
    }
}

/// The median, and the spread in parentheses.
fn cell(spread: Spread) -> String {
    format!(
        "{} ({}–{})",
        number(spread.median),
        number(spread.min),
        number(spread.max)
    )
}

fn line(cells: &[String; 5], widths: [usize; 5]) -> String {
    let padded: Vec<String> = cells
        .iter()
        .zip(widths)
        .map(|(cell, width)| format!("{cell:<width$}"))
        .collect();
    format!("| {} |", padded.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Figure;

    fn runs(values: [f64; 3]) -> Vec<Measurement> {
        let run = |value| {
            let mut measurement = Measurement::new("fanout", "x", Vec::new());
            measurement.add(Figure::new(PER_DELIVERY, "µs", value));
            measurement.add(Figure::new(TESTER_BUSY, "%", 95.0));
            measurement
        };
        values.map(run).to_vec()
    }

    #[test]
    fn a_row_has_medians_and_the_ratio_run_by_run() {
        let pairs = Pairs {
            roomful: runs([2.0, 4.0, 3.0]),
            plain: runs([4.0, 4.0, 9.0]),
        };
        let row = pairs.row("title", PER_DELIVERY).unwrap();
        assert_eq!(row.roomful, Spread::of(&[2.0, 3.0, 4.0]));
        assert_eq!(row.plain, Spread::of(&[4.0, 4.0, 9.0]));
        assert_eq!(row.ratio, Spread::of(&[1.0, 2.0, 3.0]));
        assert!(pairs.row("title", "no such figure").is_err());
    }

    #[test]
    fn a_busy_tester_is_told() {
        let told = disturbances(&runs([1.0, 1.0, 1.0]));
        assert!(
            told[0].contains("tester busy: at most 95.0%") && told[0].contains("suffer"),
            "{told:?}"
        );
        assert!(
            told[1].contains("0.000%") && !told[1].contains("suffer"),
            "{told:?}"
        );
    }

    #[test]
    fn the_table_is_markdown_with_even_columns() {
        let pairs = Pairs {
            roomful: runs([2.0, 4.0, 3.0]),
            plain: runs([4.0, 4.0, 9.0]),
        };
        let rows = vec![pairs.row("title", PER_DELIVERY).unwrap()];
        let report = Report {
            conditions: vec!["how".to_owned()],
            rows,
            measurements: Vec::new(),
        };
        let lines = report.lines();
        assert_eq!(lines[0], "how");
        let widths: Vec<usize> = lines[2..].iter().map(|line| line.chars().count()).collect();
        assert!(
            widths.windows(2).all(|pair| pair[0] == pair[1]),
            "{lines:#?}"
        );
        assert!(lines[4].contains("| 3.00 (2.00–4.00)"), "{lines:#?}");
    }
}
