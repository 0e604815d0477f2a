//! `durable`: what an acknowledgement costs that survives a power cut.
//!
//! Three parts. `acks`: publishers with one publish in flight each, in rooms on disk and in rooms in memory, beside a bare store and a
//! bare file that are given batches like the server's. `rooms`: ten thousand rooms that are written in turns, beside one. `shelf`: what
//! rooms that nobody is in leave in memory after a start, and how long the first join to a long one takes. Servers and floors take turns, and
//! all ratios are of the same repeat.

mod acks;
mod counts;
mod floor;
mod rooms;
mod shelf;

use std::time::Duration;

use anyhow::{Result, ensure};
use roomful_protocol::frame::Durability;

use self::counts::Counts;
use super::class::Class;
use super::medians::Medians;
use super::usage::{Meter, Usage};
use super::{Deadline, Subject, TargetArgs};
use crate::console;
use crate::report::Measurement;
use crate::verify::Pattern;
use crate::writers::{Spot, Writers, Written};

/// The command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// More repeats, and a million rooms on the shelf: some minutes
    #[arg(long)]
    full: bool,
    /// Only this part; may be given again
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Repeats of `acks` and `rooms` [default: 3, or 9 in full]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeats: Option<u32>,
    /// Publishers of `acks` at a time, each with one publish in flight
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 512])]
    publishers: Vec<usize>,
    /// Rooms on the shelf [default: 50,000, or 1,000,000 in full]
    #[arg(long)]
    shelf_rooms: Option<usize>,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    target: TargetArgs,
}

/// A part of the scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Acknowledgements a second beside what the disk gives
    Acks,
    /// Many rooms beside one
    Rooms,
    /// Rooms that nobody is in
    Shelf,
}

/// What is measured.
#[derive(Debug, Clone, Copy, clap::Args)]
struct Shape {
    /// Rooms that the publishers of `acks` are spread over
    #[arg(long, default_value_t = 64)]
    rooms: usize,
    /// Rooms that are written in turns in `rooms`
    #[arg(long, default_value_t = 10_000)]
    many_rooms: usize,
    /// Publishes in flight in `rooms`
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    /// Events of the long rooms on the shelf
    #[arg(long, default_value_t = 100_000)]
    long_events: u64,
    /// Length of a payload, in bytes; at least 8
    #[arg(long, default_value_t = 64)]
    payload_bytes: usize,
    /// Seconds of traffic before each measurement
    #[arg(long, default_value_t = 0.3)]
    warmup_s: f64,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 1.0)]
    duration_s: f64,
    /// Seconds after which a run against one server fails
    #[arg(long, default_value_t = 120.0)]
    timeout_s: f64,
}

/// Keeps long histories.
const ARCHIVE: Class = Class {
    namespace: "archive",
    durability: Durability::Local,
};

/// Runs the command.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn run(args: &Args) -> Result<()> {
    args.target.need_roomful("durable")?;
    args.shape.check()?;
    floor::check_disk()?;
    let target = args.target.target()?;
    let mut medians = Medians::default();
    let repeats = args.repeats.unwrap_or(if args.full { 9 } else { 3 });
    for repeat in 0..repeats {
        let turn = Turn {
            shape: args.shape,
            is_reversed: repeat % 2 == 1,
        };
        console::progress(&format!("repeat {} of {repeats}", repeat + 1));
        if args.includes(Part::Acks) {
            acks::measure(&target, &args.publishers, turn, &mut medians)?;
        }
        if args.includes(Part::Rooms) {
            target.measure(|subject| rooms::measure(&subject, turn, &mut medians))?;
        }
    }
    if args.includes(Part::Shelf) {
        shelf::measure(&target, args.shape, args.shelf_rooms(), &mut medians)?;
    }
    let name = args.target.peer().adapter().name();
    let mut measurement = Measurement::new("durable", name, args.settings(repeats));
    medians.report(&mut measurement);
    args.target.report(&target, &measurement)
}

/// One repeat.
#[derive(Debug, Clone, Copy)]
struct Turn {
    shape: Shape,
    /// What comes first otherwise comes last.
    is_reversed: bool,
}

impl Args {
    fn includes(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn shelf_rooms(&self) -> usize {
        let default = if self.full { 1_000_000 } else { 50_000 };
        self.shelf_rooms.unwrap_or(default)
    }

    fn settings(&self, repeats: u32) -> Vec<(&'static str, String)> {
        let Shape {
            rooms,
            many_rooms,
            in_flight,
            payload_bytes,
            duration_s,
            ..
        } = self.shape;
        vec![
            ("repeats", repeats.to_string()),
            ("rooms", rooms.to_string()),
            ("many rooms", many_rooms.to_string()),
            ("in flight over them", in_flight.to_string()),
            ("rooms on the shelf", self.shelf_rooms().to_string()),
            ("payload bytes", payload_bytes.to_string()),
            ("seconds each", duration_s.to_string()),
        ]
    }
}

impl Shape {
    fn check(&self) -> Result<()> {
        ensure!(
            self.rooms > 0 && self.many_rooms > 0 && self.in_flight > 0,
            "none of --rooms, --many-rooms and --in-flight may be 0"
        );
        Pattern::check(self.payload_bytes)
    }

    fn duration(&self) -> Result<Duration> {
        Ok(Duration::try_from_secs_f64(self.duration_s)?)
    }

    fn deadline(&self) -> Result<Deadline> {
        let timeout = Duration::try_from_secs_f64(self.timeout_s)?;
        Ok(Deadline::after(timeout))
    }
}

/// What a server did for a while.
#[derive(Debug)]
struct Stretch {
    written: Written,
    usage: Usage,
    /// What its journal did.
    journal: Counts,
}

impl Stretch {
    fn per_second(&self) -> f64 {
        self.written.acknowledged as f64 / self.written.took.as_secs_f64()
    }

    /// The server's microseconds for an acknowledged publish.
    fn cpu_us(&self) -> f64 {
        self.usage.server_us_per(self.written.acknowledged)
    }
}

/// Keeps publishes in flight, for a while that isn't measured and one that is, and checks what came of them.
fn stretch(
    subject: &Subject,
    shape: Shape,
    writers: &mut Writers,
    first: &[Spot],
    next: &mut dyn FnMut(Spot) -> Spot,
) -> Result<Stretch> {
    let deadline = shape.deadline()?;
    let warmup = Duration::try_from_secs_f64(shape.warmup_s)?;
    writers.closed_loop(first, warmup, &deadline, next)?;
    let before = Counts::of(subject.address)?;
    let meter = Meter::start(subject.pid, writers.spun())?;
    let written = writers.closed_loop(first, shape.duration()?, &deadline, next)?;
    let usage = meter.stop(writers.spun())?;
    let journal = Counts::of(subject.address)?.since(before);
    writers.finish(&deadline)?;
    ensure!(written.acknowledged > 0, "nothing was acknowledged");
    Ok(Stretch {
        written,
        usage,
        journal,
    })
}
