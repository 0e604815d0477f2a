//! `fanout`: one room, and every publish goes to all its members.
//!
//! Two modes. In the closed loop a number of members have one publish in flight each, and a publisher sends its next one when the last has
//! arrived everywhere; the figure is the server's processor time per delivery. In the paced mode publishes leave at a fixed
//! rate, whatever comes back; the figure is the time from the moment a publish was due to its own delivery, so that a server that falls
//! behind can't hide it.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::load::{CountingArgs, Load, closed_loop};
use super::pace::{Pace, Timed};
use super::traffic::{Arrival, Layout, Traffic};
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
    /// Members of the room
    #[arg(long, default_value_t = 1000)]
    pub(crate) members: usize,
    /// Length of a payload, in bytes; at least 8
    #[arg(long, default_value_t = 64)]
    pub(crate) payload_bytes: usize,
    /// Publishes in flight, each from another member
    #[arg(long, default_value_t = 1, conflicts_with = "rate")]
    pub(crate) in_flight: usize,
    /// Publish at this rate instead, in publishes per second, and measure the time to the own delivery
    #[arg(long)]
    pub(crate) rate: Option<u32>,
    /// Seconds of traffic before measuring begins
    #[arg(long, default_value_t = 1.0)]
    pub(crate) warmup_s: f64,
    /// Seconds of traffic that are measured
    #[arg(long, default_value_t = 5.0)]
    pub(crate) duration_s: f64,
    /// Seconds after which the scenario fails, connecting included
    #[arg(long, default_value_t = 120.0)]
    pub(crate) timeout_s: f64,
}

/// Names of the figures.
pub(crate) const OWN: Names = quantiles!("publish to own delivery");

/// Members that publish in the paced mode: enough that the figure is of no particular place in the server's list of members.
const PACED_PUBLISHERS: usize = 50;

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
    shape.check()?;
    let mut measurement = Measurement::new("fanout", subject.peer.name(), shape.settings());
    let (pid, counting) = (subject.pid, subject.counting);
    let deadline = Deadline::after(Duration::try_from_secs_f64(shape.timeout_s)?);
    let waiting = match shape.rate {
        Some(_) => subject.waiting.eager(),
        None => subject.waiting,
    };
    let swarm = Swarm::new(subject.peer, subject.address, waiting)?;
    let plan = Plan {
        connections: shape.members,
        room_members: shape.members,
        joining_max: 64,
    };
    let mut traffic = Traffic::open(swarm, plan, shape.layout(), deadline)?;
    shape.stretch(&mut traffic, shape.warmup_s, &mut Latency::new())?;
    let mut own = Latency::new();
    let load = Load::start(pid, counting, &traffic)?;
    shape.stretch(&mut traffic, shape.duration_s, &mut own)?;
    let done = load.stop(&traffic)?;
    measurement.add(done.per_delivery());
    if shape.rate.is_some() {
        measurement.add_latency(&own, "publish to own delivery", OWN)?;
    }
    done.figures()
        .into_iter()
        .for_each(|figure| measurement.add(figure));
    Ok(measurement)
}

impl Shape {
    fn check(&self) -> Result<()> {
        ensure!(self.members > 0, "a room needs a member");
        ensure!(
            (1..=self.members).contains(&self.in_flight),
            "in flight may be 1 to {}, the number of members",
            self.members
        );
        ensure!(self.rate != Some(0), "the rate must be at least 1");
        Pattern::check(self.payload_bytes)?;
        check_files(self.members)
    }

    fn layout(&self) -> Layout {
        let publishers = if self.rate.is_some() {
            self.members.min(PACED_PUBLISHERS)
        } else {
            self.in_flight
        };
        Layout {
            publishers,
            payload_bytes: self.payload_bytes,
        }
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        let load = match self.rate {
            Some(rate) => ("publishes per second", rate.to_string()),
            None => ("in flight", self.in_flight.to_string()),
        };
        let sizes = [
            ("members", self.members.to_string()),
            ("payload bytes", self.payload_bytes.to_string()),
        ];
        sizes
            .into_iter()
            .chain([load, ("seconds", self.duration_s.to_string())])
            .collect()
    }
}

impl Shape {
    /// Publishes for so long, waits for everything to arrive, and lets the server come to rest.
    fn stretch(self, traffic: &mut Traffic, seconds: f64, own: &mut Latency) -> Result<()> {
        let duration = Duration::try_from_secs_f64(seconds)?;
        match self.rate {
            Some(rate) => {
                Pace::new(traffic, rate.into(), Timed::Own).run(traffic, duration, own)?;
            }
            None => {
                let publishers = 0..u32::try_from(self.in_flight)?;
                let first = publishers.map(|publisher| (0, publisher)).collect();
                // The same member goes on.
                let next = |arrival: Arrival| (arrival.room, arrival.key.publisher);
                closed_loop(traffic, duration, first, next)?;
            }
        }
        traffic.rest()
    }
}
