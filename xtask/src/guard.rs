//! The `guard` stage: what a publish, a delivery and an idle connection may cost at most.
//!
//! Times waver on a shared machine, so none is judged. Judged are counts: instructions by valgrind's callgrind and allocations of the shard
//! core without I/O (`server/examples/cost.rs`), the calls that write to a socket, and the resident memory of the real server under
//! `roomful-loadtest idle`. The bounds stand in [`BOUNDS`], and nowhere else.

use std::fmt;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::console;
use crate::context::Context;
use crate::run;
use crate::summary::Counts;

/// One figure and how high it may be.
#[derive(Debug)]
struct Bound {
    figure: Figure,
    /// What it was when the bound was set.
    was: f64,
    /// More than this fails the stage.
    max: f64,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Figure {
    /// Of the part of a publish that grows with the room.
    PerDelivery(Count, InFlight),
    /// Of the part that doesn't.
    PerPublish(Count, InFlight),
    /// Resident bytes of the server for a joined connection that does nothing.
    IdleBytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Count {
    Instructions,
    Allocations,
    Writes,
}

/// Publishes that are handled in one turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct InFlight(usize);

const ONE: InFlight = InFlight(1);
const MANY: InFlight = InFlight(32);

/// Bounds are 5 to 10 % above what was measured: that is more than another CPU's `memcpy` or a seed of a hash map changes, and less than one
/// more hash or copy for each member. A change that needs more raises its bound here, in its own commit, which says what the cost
/// buys; one that needs less lowers it. The run prints the values to write.
const BOUNDS: &[Bound] = &[
    bound(Figure::PerDelivery(Count::Instructions, ONE), 367.0, 390.0),
    bound(
        Figure::PerPublish(Count::Instructions, ONE),
        14_220.0,
        14_700.0,
    ),
    bound(Figure::PerDelivery(Count::Instructions, MANY), 11.6, 12.6),
    bound(
        Figure::PerPublish(Count::Instructions, MANY),
        9_770.0,
        9_900.0,
    ),
    // A delivery allocates nothing and is one write; with 32 in flight a write carries them all.
    bound(Figure::PerDelivery(Count::Allocations, ONE), 0.0, 0.0),
    bound(Figure::PerPublish(Count::Allocations, ONE), 14.2, 14.5),
    bound(Figure::PerDelivery(Count::Allocations, MANY), 0.0, 0.0),
    bound(Figure::PerPublish(Count::Allocations, MANY), 6.0, 6.3),
    bound(Figure::PerDelivery(Count::Writes, ONE), 1.0, 1.0),
    bound(
        Figure::PerDelivery(Count::Writes, MANY),
        1.0 / 32.0,
        1.0 / 32.0,
    ),
    // From run to run it is 1,240 to 1,420.
    bound(Figure::IdleBytes, 1_300.0, 1_520.0),
];

/// Two rooms, so that what grows with the members can be told from what doesn't.
const ROOMS: [usize; 2] = [100, 1000];

/// A release build, since that is what runs; the tester too, which is beside it.
const BUILD: &str = "cargo build --release -p roomful-server -p loadtest --bins --example cost";

const IDLE: &str = "{target}/release/roomful-loadtest idle --json {target}/guard-idle.json";

/// Two crowds, so that what grows with the connections can be told from what a first one brings about.
const CROWDS: [u32; 2] = [2_000, 10_000];

/// Measures everything and holds it to its bound.
///
/// # Errors
/// Something is above its bound, or can't be measured.
pub(crate) fn check(context: &Context) -> (Counts, Result<()>) {
    let mut counts = Counts::default();
    let outcome = judge(context, &mut counts);
    (counts, outcome)
}

fn judge(context: &Context, counts: &mut Counts) -> Result<()> {
    run::line(context, BUILD)?;
    let measured = Measured::take(context)?;
    let mut exceeded = Vec::new();
    for Bound { figure, was, max } in BOUNDS {
        let value = measured.value(*figure)?;
        let fits = value <= *max;
        counts.add(if fits { Counts::PASSED } else { Counts::FAILED });
        let verdict = if fits { "" } else { "  TOO MUCH" };
        let line = format!("{figure:<58} {value:>9.2}, was {was:.2}, at most {max:.2}{verdict}");
        console::say(&line);
        if !fits {
            exceeded.push(figure.to_string());
        }
    }
    ensure!(
        exceeded.is_empty(),
        "more than its bound in xtask/src/guard.rs: {}",
        exceeded.join("; ")
    );
    Ok(())
}

const fn bound(figure: Figure, was: f64, max: f64) -> Bound {
    Bound { figure, was, max }
}

/// All counts.
#[derive(Debug)]
struct Measured {
    stretches: Vec<Stretch>,
    idle_bytes: f64,
}

/// What one run of the core counted.
#[derive(Debug)]
struct Stretch {
    members: usize,
    in_flight: InFlight,
    publishes: f64,
    instructions: f64,
    allocations: f64,
    writes: f64,
}

impl Measured {
    fn take(context: &Context) -> Result<Self> {
        let mut stretches = Vec::new();
        for members in ROOMS {
            for in_flight in [ONE, MANY] {
                stretches.push(Stretch::take(context, members, in_flight)?);
            }
        }
        let [few, many] = CROWDS;
        let few = (f64::from(few), resident_bytes(context, few)?);
        let many = (f64::from(many), resident_bytes(context, many)?);
        Ok(Self {
            stretches,
            idle_bytes: Line::through(few, many).slope,
        })
    }

    fn value(&self, figure: Figure) -> Result<f64> {
        match figure {
            Figure::PerDelivery(count, in_flight) => Ok(self.line_of(count, in_flight)?.slope),
            Figure::PerPublish(count, in_flight) => Ok(self.line_of(count, in_flight)?.at_zero),
            Figure::IdleBytes => Ok(self.idle_bytes),
        }
    }

    /// What a publish costs against the members of its room, through the two rooms.
    fn line_of(&self, count: Count, in_flight: InFlight) -> Result<Line> {
        let points = ROOMS.map(|members| {
            let found = self
                .stretches
                .iter()
                .find(|stretch| stretch.members == members && stretch.in_flight == in_flight)?;
            Some((members as f64, found.count(count) / found.publishes))
        });
        let [Some(small), Some(large)] = points else {
            bail!("{in_flight:?} was not run in both rooms")
        };
        Ok(Line::through(small, large))
    }
}

/// A straight line.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Line {
    slope: f64,
    at_zero: f64,
}

impl Line {
    fn through((x, y): (f64, f64), (other_x, other_y): (f64, f64)) -> Self {
        let slope = (other_y - y) / (other_x - x);
        Self {
            slope,
            at_zero: y - slope * x,
        }
    }
}

impl Stretch {
    fn take(context: &Context, members: usize, in_flight: InFlight) -> Result<Self> {
        let program = context.target.join("release/examples/cost");
        let arguments = [members.to_string(), in_flight.0.to_string()];
        // Counted without valgrind: under it the allocator is another one.
        let plain = Command::new(&program)
            .args(&arguments)
            .output()
            .context("cannot start the example cost")?;
        let told = String::from_utf8_lossy(&plain.stdout).into_owned();
        ensure!(
            plain.status.success(),
            "cost {arguments:?} failed: {told}{}",
            String::from_utf8_lossy(&plain.stderr)
        );
        let traced = Command::new("valgrind")
            .args([
                "--tool=callgrind",
                "--callgrind-out-file=/dev/null",
                "--toggle-collect=cost::stretch",
            ])
            .arg(&program)
            .args(&arguments)
            .output()
            .context("cannot start valgrind")?;
        let trace = String::from_utf8_lossy(&traced.stderr).into_owned();
        ensure!(traced.status.success(), "valgrind failed: {trace}");
        Ok(Self {
            members,
            in_flight,
            publishes: number_after(&told, "publishes")?,
            allocations: number_after(&told, "allocations")?,
            writes: number_after(&told, "writes")?,
            instructions: number_after(&trace, "Collected :")?,
        })
    }

    const fn count(&self, count: Count) -> f64 {
        match count {
            Count::Instructions => self.instructions,
            Count::Allocations => self.allocations,
            Count::Writes => self.writes,
        }
    }
}

/// The number that follows these words; 0 would mean that nothing was counted.
fn number_after(text: &str, words: &str) -> Result<f64> {
    let found = text
        .lines()
        .find_map(|line| line.split_once(words))
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<f64>().ok());
    match found {
        Some(number) if number > 0.0 => Ok(number),
        _ => bail!("no number after {words:?} in:\n{text}"),
    }
}

/// What the server's resident memory grows by when so many connections come.
fn resident_bytes(context: &Context, connections: u32) -> Result<f64> {
    run::line(context, &format!("{IDLE} --connections {connections}"))?;
    let text = std::fs::read_to_string(context.target.join("guard-idle.json"))
        .context("the tester wrote no result")?;
    Ok(idle_bytes(&text)? * f64::from(connections))
}

/// From the tester's JSON: bytes per connection.
fn idle_bytes(json: &str) -> Result<f64> {
    const NAME: &str = "\"name\": \"server resident bytes per connection\"";
    let (_, rest) = json
        .split_once(NAME)
        .context("the tester's result has no resident bytes per connection")?;
    let (_, rest) = rest
        .split_once("\"value\":")
        .context("a figure without a value")?;
    let number = rest
        .trim_start()
        .split([',', '\n', '}'])
        .next()
        .unwrap_or_default();
    number
        .trim()
        .parse()
        .with_context(|| format!("{number:?} is no number"))
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::PerDelivery(count, in_flight) => format!("{count} per delivery, {in_flight}"),
            Self::PerPublish(count, in_flight) => {
                format!("{count} per publish besides, {in_flight}")
            }
            Self::IdleBytes => "resident bytes per idle joined connection".to_owned(),
        };
        f.pad(&text)
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Instructions => "instructions",
            Self::Allocations => "allocations",
            Self::Writes => "writes to a socket",
        })
    }
}

impl fmt::Display for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in flight", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_with_the_room_is_told_from_what_does_not() {
        let line = Line::through((100.0, 52_500.0), (1000.0, 390_000.0));
        assert_eq!(
            line,
            Line {
                slope: 375.0,
                at_zero: 15_000.0
            }
        );
    }

    /// Valgrind's and the example's own lines are read, and their absence is an error: a count of nothing must not pass a bound.
    #[test]
    fn a_count_of_nothing_is_an_error() {
        let trace = "==7== Events    : Ir\n==7== Collected : 13443860\n";
        assert_eq!(number_after(trace, "Collected :").unwrap(), 13_443_860.0);
        assert!(number_after("==7== Collected : 0\n", "Collected :").is_err());
        assert!(number_after("", "Collected :").is_err());
    }

    #[test]
    fn the_testers_result_is_read() {
        let json = "{ \"name\": \"server resident bytes per connection\",\n \"unit\": \"B\",\n \"value\": 3679.5\n }";
        assert_eq!(idle_bytes(json).unwrap(), 3679.5);
        assert!(idle_bytes("{}").is_err());
    }

    #[test]
    fn every_bound_has_room_above_what_was_measured() {
        for Bound { figure, was, max } in BOUNDS {
            assert!(was <= max && *max <= was * 1.2, "{figure}");
        }
    }
}
