//! `tls`: what TLS costs, beside the same server without it.
//!
//! Each repeat starts a server for each row and takes the rows in turns, every second time from the last to the first. The certificate is this
//! program's own, on P-256; ECDHE is on X25519. A handshake's figure is what a connect and join took more than without TLS, in the same
//! repeat: besides the cryptography that is the longer way into the server, through its control runtime.

use anyhow::{Result, ensure};

use super::connect::{self, RESUMED};
use super::fanout;
use super::load::PER_DELIVERY;
use super::{Subject, TargetArgs, idle};
use crate::console;
use crate::peer::PeerName;
use crate::report::{Figure, Measurement, Spread, ratios};

/// The command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    shape: Shape,
    /// Repeats of all rows
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeats: u32,
    #[command(flatten)]
    target: TargetArgs,
}

/// What is measured.
#[derive(Debug, Clone, Copy, clap::Args)]
struct Shape {
    /// Connections that come and join
    #[arg(long, default_value_t = 3000)]
    connects: usize,
    /// Connections that do nothing
    #[arg(long, default_value_t = 3000)]
    idle: usize,
    /// Members of the room that is published to
    #[arg(long, default_value_t = 1000)]
    members: usize,
    /// Length of a payload, in bytes; at least 8
    #[arg(long, default_value_t = 64)]
    payload_bytes: usize,
    /// Seconds of traffic that are measured, in each run
    #[arg(long, default_value_t = 3.0)]
    duration_s: f64,
    /// Seconds after which a run fails, connecting included
    #[arg(long, default_value_t = 60.0)]
    timeout_s: f64,
}

/// A figure of one kind of server.
struct Row {
    names: Names,
    unit: &'static str,
    peer: PeerName,
    run: fn(Subject, Shape) -> Result<f64>,
}

/// What two rows say together, repeat by repeat.
struct Pair {
    names: Names,
    unit: &'static str,
    /// With TLS, and without.
    rows: [usize; 2],
    of: fn(&[f64], &[f64]) -> Vec<f64>,
}

/// Names of a median and of both ends.
type Names = [&'static str; 3];

macro_rules! names {
    ($of:literal) => {
        [$of, concat!($of, ", min"), concat!($of, ", max")]
    };
}

/// Runs the command.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn run(args: &Args) -> Result<()> {
    let targets = args.target.several(ROWS.each_ref().map(|row| row.peer))?;
    let mut values = ROWS.each_ref().map(|_| Vec::new());
    for repeat in 0..args.repeats {
        let mut order: Vec<usize> = (0..ROWS.len()).collect();
        if repeat % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let row = &ROWS[index];
            console::progress(&format!(
                "repeat {} of {}: {}",
                repeat + 1,
                args.repeats,
                row.names[0]
            ));
            let run = |subject| (row.run)(subject, args.shape);
            values[index].push(targets[index].measure(run)?);
        }
    }
    let mut measurement = Measurement::new("tls", "roomful", args.settings());
    for (row, values) in ROWS.iter().zip(&values) {
        add(&mut measurement, row.names, row.unit, values);
    }
    for pair in &PAIRS {
        let [with, without] = pair.rows.map(|row| &values[row][..]);
        let values = (pair.of)(with, without);
        add(&mut measurement, pair.names, pair.unit, &values);
    }
    args.target.report(&targets[0], &measurement)
}

fn add(measurement: &mut Measurement, names: Names, unit: &'static str, values: &[f64]) {
    let Spread {
        median, min, max, ..
    } = Spread::of(values);
    for (name, value) in names.into_iter().zip([median, min, max]) {
        measurement.add(Figure::new(name, unit, value));
    }
}

const ROWS: [Row; 10] = [
    row(
        names!("connect and join, plain"),
        "µs",
        PeerName::ROOMFUL,
        connect,
    ),
    row(
        names!("connect and join, TLS 1.3"),
        "µs",
        PeerName::ROOMFUL_TLS,
        connect,
    ),
    row(
        names!("connect and join, TLS 1.3 resumed"),
        "µs",
        PeerName::ROOMFUL_TLS_RESUMED,
        connect,
    ),
    row(
        names!("connect and join, TLS 1.2"),
        "µs",
        PeerName::ROOMFUL_TLS12,
        connect,
    ),
    row(
        names!("idle connection, plain"),
        "KiB",
        PeerName::ROOMFUL,
        idle,
    ),
    row(
        names!("idle connection, TLS 1.3"),
        "KiB",
        PeerName::ROOMFUL_TLS,
        idle,
    ),
    row(
        names!("delivery, 1 in flight, plain"),
        "µs",
        PeerName::ROOMFUL,
        one_in_flight,
    ),
    row(
        names!("delivery, 1 in flight, TLS 1.3"),
        "µs",
        PeerName::ROOMFUL_TLS,
        one_in_flight,
    ),
    row(
        names!("delivery, 32 in flight, plain"),
        "µs",
        PeerName::ROOMFUL,
        many_in_flight,
    ),
    row(
        names!("delivery, 32 in flight, TLS 1.3"),
        "µs",
        PeerName::ROOMFUL_TLS,
        many_in_flight,
    ),
];

const PAIRS: [Pair; 6] = [
    pair(names!("handshake, TLS 1.3"), "µs", [1, 0], differences),
    pair(
        names!("handshake, TLS 1.3 resumed"),
        "µs",
        [2, 0],
        differences,
    ),
    pair(names!("handshake, TLS 1.2"), "µs", [3, 0], differences),
    pair(
        names!("idle, TLS more than plain"),
        "KiB",
        [5, 4],
        differences,
    ),
    pair(
        names!("delivery, 1 in flight, TLS / plain"),
        "×",
        [7, 6],
        ratios,
    ),
    pair(
        names!("delivery, 32 in flight, TLS / plain"),
        "×",
        [9, 8],
        ratios,
    ),
];

const fn row(
    names: Names,
    unit: &'static str,
    peer: PeerName,
    run: fn(Subject, Shape) -> Result<f64>,
) -> Row {
    Row {
        names,
        unit,
        peer,
        run,
    }
}

const fn pair(
    names: Names,
    unit: &'static str,
    rows: [usize; 2],
    of: fn(&[f64], &[f64]) -> Vec<f64>,
) -> Pair {
    Pair {
        names,
        unit,
        rows,
        of,
    }
}

/// The first less the second, pair by pair.
fn differences(of: &[f64], to: &[f64]) -> Vec<f64> {
    of.iter().zip(to).map(|(of, to)| of - to).collect()
}

fn connect(subject: Subject, shape: Shape) -> Result<f64> {
    let resumes = subject.name == PeerName::ROOMFUL_TLS_RESUMED;
    let has_tls = subject.peer.secure().is_some();
    let shape = connect::Shape {
        connections: shape.connects,
        room_members: 1000,
        joining_max: JOINING_MAX,
        before: JOINING_MAX,
        timeout_s: shape.timeout_s,
    };
    let measurement = connect::measure(subject, shape)?;
    if has_tls {
        let resumed = measurement.figure(RESUMED)?.value;
        let expected = if resumes { shape.connections } else { 0 } as f64;
        ensure!(
            (resumed - expected).abs() < 0.5,
            "{resumed} TLS sessions were resumed, and not {expected}"
        );
    }
    Ok(measurement.figure(connect::PER_CONNECTION)?.value)
}

fn idle(subject: Subject, shape: Shape) -> Result<f64> {
    let shape = idle::Shape {
        connections: shape.idle,
        room_members: 1000,
        settle_s: 2.0,
        timeout_s: shape.timeout_s,
    };
    let measurement = idle::measure(subject, shape)?;
    Ok(measurement.figure(idle::PER_CONNECTION)?.value / 1024.0)
}

fn one_in_flight(subject: Subject, shape: Shape) -> Result<f64> {
    deliveries(subject, shape, 1)
}

fn many_in_flight(subject: Subject, shape: Shape) -> Result<f64> {
    deliveries(subject, shape, 32)
}

fn deliveries(subject: Subject, shape: Shape, in_flight: usize) -> Result<f64> {
    let shape = fanout::Shape {
        members: shape.members,
        payload_bytes: shape.payload_bytes,
        in_flight,
        rate: None,
        warmup_s: 0.5,
        duration_s: shape.duration_s,
        timeout_s: shape.timeout_s,
    };
    let measurement = fanout::measure(subject, shape)?;
    Ok(measurement.figure(PER_DELIVERY)?.value)
}

impl Args {
    fn settings(&self) -> Vec<(&'static str, String)> {
        let Shape {
            connects,
            idle,
            members,
            payload_bytes,
            duration_s,
            ..
        } = self.shape;
        vec![
            ("connects", connects.to_string()),
            ("idle connections", idle.to_string()),
            ("members", members.to_string()),
            ("payload bytes", payload_bytes.to_string()),
            ("seconds", duration_s.to_string()),
            ("repeats", self.repeats.to_string()),
        ]
    }
}

/// On their way at a time. As many come first, unmeasured, so that there is a ticket for each that resumes.
const JOINING_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// A pair compares two rows of one kind, with TLS and without.
    #[test]
    fn pairs_are_of_one_kind() {
        for pair in &PAIRS {
            let [with, without] = pair.rows.map(|row| &ROWS[row]);
            assert_eq!(with.unit, without.unit, "{}", pair.names[0]);
            let kind = |row: &Row| row.names[0].rsplit_once(", ").map(|(kind, _)| kind);
            assert_eq!(kind(with), kind(without), "{}", pair.names[0]);
            assert_eq!(without.peer, PeerName::ROOMFUL);
            assert!(PeerName::ENCRYPTED.contains(&with.peer));
        }
    }
}
