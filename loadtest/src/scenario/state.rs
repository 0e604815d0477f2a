//! `state`: keyed state that many write at once, and that many watch.
//!
//! Two parts, each with rooms on disk and in memory. A counter: all writers raise one key, each on the condition that it still has the version that
//! it knows, and whoever is refused tries again with the value it was told; the counter must end at the number of writes that were taken.
//! Watched keys: each writer changes a key of its own, with one write in flight, while watchers are sent every change, without a gap.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use roomful_protocol::id::Key;
use roomful_protocol::position::Position;
use tokio::time::Instant;

use super::class::{Class, LOCAL, MEMORY};
use super::medians::Medians;
use super::usage::{Meter, Usage};
use super::{Deadline, Subject, TargetArgs, check_files};
use crate::console;
use crate::report::Measurement;
use crate::verify::Pattern;
use crate::writers::{Done, Run, Spot, Told, Watching, Writers};

/// The command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    shape: Shape,
    /// Repeats of both parts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeats: u32,
    #[command(flatten)]
    target: TargetArgs,
}

/// What is measured.
#[derive(Debug, Clone, Copy, clap::Args)]
struct Shape {
    /// Members that write, each with one write in flight
    #[arg(long, default_value_t = 16)]
    writers: usize,
    /// Members that only watch, where keys are watched
    #[arg(long, default_value_t = 100)]
    watchers: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2.0)]
    duration_s: f64,
    /// Seconds after which a run against one server fails
    #[arg(long, default_value_t = 60.0)]
    timeout_s: f64,
}

/// What came of a stretch of writing.
#[derive(Debug)]
struct Stretch {
    writes: u64,
    conflicts: u64,
    /// Changes that came to members.
    changes: u64,
    took: Duration,
    usage: Usage,
}

/// What a writer of the counter knows of it.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// None: it has no value.
    version: Option<Position>,
    value: u64,
}

const TURN_MAX: Duration = Duration::from_millis(100);

/// Runs the command.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn run(args: &Args) -> Result<()> {
    args.target.need_roomful("state")?;
    args.shape.check()?;
    let target = args.target.target()?;
    let mut medians = Medians::default();
    for repeat in 0..args.repeats {
        console::progress(&format!("repeat {} of {}", repeat + 1, args.repeats));
        let mut classes = [(MEMORY, "in memory"), (LOCAL, "on disk")];
        if repeat % 2 == 1 {
            classes.reverse();
        }
        for (class, kind) in classes {
            target.measure(|subject| measure(&subject, args.shape, (class, kind), &mut medians))?;
        }
    }
    let name = args.target.peer().adapter().name();
    let mut measurement = Measurement::new("state", name, args.settings());
    medians.report(&mut measurement);
    args.target.report(&target, &measurement)
}

fn measure(
    subject: &Subject,
    shape: Shape,
    (class, kind): (Class, &'static str),
    medians: &mut Medians,
) -> Result<()> {
    let counter = counter(subject, shape, class)?;
    let watched = watched(subject, shape, class)?;
    let attempts = counter.writes + counter.conflicts;
    let seconds = counter.took.as_secs_f64();
    for (name, unit, value) in [
        (
            "counter: writes per second",
            "/s",
            counter.writes as f64 / seconds,
        ),
        (
            "counter: conflicts per second",
            "/s",
            counter.conflicts as f64 / seconds,
        ),
        (
            "counter: server CPU per write or conflict",
            "µs",
            counter.usage.server_us_per(attempts),
        ),
        (
            "watched: writes per second",
            "/s",
            watched.writes as f64 / watched.took.as_secs_f64(),
        ),
        (
            "watched: server CPU per write",
            "µs",
            watched.usage.server_us_per(watched.writes),
        ),
        (
            "watched: server CPU per change delivered",
            "µs",
            watched.usage.server_us_per(watched.changes),
        ),
    ] {
        medians.add(format!("{kind}, {name}"), unit, value);
    }
    Ok(())
}

/// All writers raise one key.
fn counter(subject: &Subject, shape: Shape, class: Class) -> Result<Stretch> {
    let deadline = shape.deadline()?;
    let (mut writers, spots) = open(subject, class, shape.writers, &deadline)?;
    let key = Key::parse("counter")?;
    let mut known = vec![Known::default(); spots.len()];
    let mut raise = |writers: &mut Writers, told: Option<Told>, spot: Spot| {
        let known = &mut known[spot.writer()];
        match told.map(|told| told.what) {
            Some(Done::Wrote(version)) => {
                known.version = Some(version);
                known.value += 1;
            }
            Some(Done::Conflict { version, value }) => {
                known.version = value.is_some().then_some(version);
                known.value = value.unwrap_or(0);
            }
            _ => {}
        }
        writers.put_if(spot, &key, known.value + 1, known.version)
    };
    let stretch = stretch(subject, shape, &mut writers, &spots, &mut raise)?;
    writers.put_if(spots[0], &key, 0, None)?;
    let mut last = None;
    while last.is_none() {
        writers.turn(TURN_MAX, &mut |told| {
            if let Done::Conflict { value, .. } = told.what {
                last = value;
            }
            Ok(())
        })?;
        deadline.check(|| "the counter is read".to_owned())?;
    }
    ensure!(
        last == Some(stretch.writes),
        "lost or doubled: the counter stands at {last:?} after {} writes",
        stretch.writes
    );
    writers.finish(&deadline)?;
    Ok(stretch)
}

/// Each writer changes a key of its own, and all members watch.
fn watched(subject: &Subject, shape: Shape, class: Class) -> Result<Stretch> {
    let deadline = shape.deadline()?;
    let members = shape.writers + shape.watchers;
    let (mut writers, spots) = open(subject, class, members, &deadline)?;
    let key = |number: usize| Key::parse(&format!("card-{number}"));
    let keys = (0..shape.writers).map(key).collect::<Result<Vec<_>, _>>()?;
    let mut written = vec![0; shape.writers];
    let mut change = |writers: &mut Writers, _, spot: Spot| {
        let written = &mut written[spot.writer()];
        *written += 1;
        writers.put(spot, &keys[spot.writer()], *written)
    };
    let first = &spots[..shape.writers];
    let stretch = stretch(subject, shape, &mut writers, first, &mut change)?;
    writers.finish(&deadline)?;
    Ok(stretch)
}

/// Writers in one room, who all watch its state.
fn open(
    subject: &Subject,
    class: Class,
    members: usize,
    deadline: &Deadline,
) -> Result<(Writers, Vec<Spot>)> {
    check_files(members)?;
    let mut writers = Writers::new(subject, Run::new(), Pattern::BYTES_MIN)?;
    let rooms = class.rooms(&mut writers, 1)?;
    let room = *rooms.first().context("one room")?;
    let who = (0..members).map(|_| Ok((writers.connect(room)?, room)));
    let who = who.collect::<Result<Vec<_>>>()?;
    writers.await_welcomes(deadline)?;
    let spots = writers.enter(&who, Watching::State, deadline)?;
    Ok((writers, spots))
}

/// Writes, given what became of the writer's last write.
type Write<'a> = &'a mut dyn FnMut(&mut Writers, Option<Told>, Spot) -> Result<()>;

/// Keeps one write of each of `first` in flight, for a while. Then waits for the last ones.
fn stretch(
    subject: &Subject,
    shape: Shape,
    writers: &mut Writers,
    first: &[Spot],
    write: Write<'_>,
) -> Result<Stretch> {
    let deadline = shape.deadline()?;
    let duration = Duration::try_from_secs_f64(shape.duration_s)?;
    let meter = Meter::start(subject.pid, writers.spun())?;
    let start = Instant::now();
    for spot in first {
        write(writers, None, *spot)?;
    }
    let (mut in_flight, mut told) = (first.len(), Vec::new());
    let (mut writes, mut conflicts, mut changes) = (0, 0, 0);
    while in_flight > 0 {
        writers.turn(TURN_MAX, &mut |what| {
            match what.what {
                Done::StateChanged => changes += 1,
                Done::Wrote(_) => writes += 1,
                Done::Conflict { .. } => conflicts += 1,
                other => bail!("{other:?} where the state is written"),
            }
            if what.what != Done::StateChanged {
                told.push(what);
            }
            Ok(())
        })?;
        let goes_on = start.elapsed() < duration;
        for told in told.drain(..) {
            if goes_on {
                write(writers, Some(told), told.spot)?;
            } else {
                in_flight -= 1;
            }
        }
        deadline.check(|| format!("{in_flight} writes wait for their replies"))?;
    }
    let took = start.elapsed();
    let usage = meter.stop(writers.spun())?;
    ensure!(writes > 0, "nothing was written");
    Ok(Stretch {
        writes,
        conflicts,
        changes,
        took,
        usage,
    })
}

impl Args {
    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("repeats", self.repeats.to_string()),
            ("writers", self.shape.writers.to_string()),
            ("watchers besides", self.shape.watchers.to_string()),
            ("seconds each", self.shape.duration_s.to_string()),
        ]
    }
}

impl Shape {
    fn check(&self) -> Result<()> {
        ensure!(self.writers > 0, "--writers may not be 0");
        check_files(self.writers + self.watchers)
    }

    fn deadline(&self) -> Result<Deadline> {
        let timeout = Duration::try_from_secs_f64(self.timeout_s)?;
        Ok(Deadline::after(timeout))
    }
}
