//! `echo`: one member in each of many rooms, and its own message back.
//!
//! Publishes leave at a fixed rate, each from another room. The figure is the time from the moment a publish was due to its
//! own delivery: what somebody who types alone waits for.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::load::{CountingArgs, Load};
use super::pace::{Pace, Timed};
use super::traffic::{Layout, Traffic};
use super::{Deadline, Subject, TargetArgs, check_files};
use crate::latency::{Latency, Names, quantiles};
use crate::report::Measurement;
use crate::swarm::{Plan, Swarm};
use crate::verify::Pattern;

/// The command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    counting: CountingArgs,
    #[command(flatten)]
    target: TargetArgs,
}

/// What is measured.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Shape {
    /// Rooms, with one member each
    #[arg(long, default_value_t = 100)]
    pub(crate) rooms: usize,
    /// Publishes per second, over all rooms
    #[arg(long, default_value_t = 100)]
    pub(crate) rate: u32,
    /// Length of a payload, in bytes; at least 8
    #[arg(long, default_value_t = 64)]
    pub(crate) payload_bytes: usize,
    /// Seconds of traffic before measuring begins
    #[arg(long, default_value_t = 1.0)]
    pub(crate) warmup_s: f64,
    /// Seconds of traffic that are measured
    #[arg(long, default_value_t = 10.0)]
    pub(crate) duration_s: f64,
    /// Seconds after which the scenario fails, connecting included
    #[arg(long, default_value_t = 120.0)]
    pub(crate) timeout_s: f64,
}

/// Names of the figures.
pub(crate) const ROUND_TRIP: Names = quantiles!("round trip");

/// Runs the command.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn run(args: &Args) -> Result<()> {
    args.target.run(|mut subject| {
        subject.counting = args.counting.counting();
        measure(subject, args.shape)
    })
}

/// Measures a server.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn measure(subject: Subject, shape: Shape) -> Result<Measurement> {
    ensure!(
        shape.rooms > 0 && shape.rate > 0,
        "neither --rooms nor --rate may be 0"
    );
    Pattern::check(shape.payload_bytes)?;
    check_files(shape.rooms)?;
    let mut measurement = Measurement::new("echo", subject.peer.name(), shape.settings());
    let (pid, counting) = (subject.pid, subject.counting);
    let deadline = Deadline::after(Duration::try_from_secs_f64(shape.timeout_s)?);
    let swarm = Swarm::new(subject.peer, subject.address, subject.waiting.eager())?;
    let plan = Plan {
        connections: shape.rooms,
        room_members: 1,
        joining_max: 64,
    };
    let layout = Layout {
        publishers: 1,
        payload_bytes: shape.payload_bytes,
    };
    let mut traffic = Traffic::open(swarm, plan, layout, deadline)?;
    shape.stretch(&mut traffic, shape.warmup_s, &mut Latency::new())?;
    let mut latency = Latency::new();
    let load = Load::start(pid, counting, &traffic)?;
    shape.stretch(&mut traffic, shape.duration_s, &mut latency)?;
    let done = load.stop(&traffic)?;
    measurement.add_latency(&latency, "round trip", ROUND_TRIP)?;
    measurement.add(done.per_delivery());
    done.figures()
        .into_iter()
        .for_each(|figure| measurement.add(figure));
    Ok(measurement)
}

impl Shape {
    fn stretch(self, traffic: &mut Traffic, seconds: f64, latency: &mut Latency) -> Result<()> {
        let duration = Duration::try_from_secs_f64(seconds)?;
        Pace::new(traffic, self.rate.into(), Timed::Own).run(traffic, duration, latency)?;
        traffic.rest()
    }

    fn settings(self) -> Vec<(&'static str, String)> {
        vec![
            ("rooms of one", self.rooms.to_string()),
            ("publishes per second", self.rate.to_string()),
            ("payload bytes", self.payload_bytes.to_string()),
            ("seconds", self.duration_s.to_string()),
        ]
    }
}
