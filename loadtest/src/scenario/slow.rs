//! `slow`: some members of a room stop reading, and the others must not notice.
//!
//! Runs in pairs, one with stalled readers and one without, each against a fresh server and in alternating order, since the tail of two
//! identical runs differs as well. The figure is the ratio of the others' p99, pair by pair. The stalled sit on connections that this
//! program doesn't read, so that the kernel's buffers fill up and the server is stuck with the rest.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::time::Instant;

use super::load::{Done, Load};
use super::pace::{Pace, Timed};
use super::traffic::{Layout, Traffic};
use super::{Deadline, Subject, TargetArgs, check_files};
use crate::console;
use crate::latency::{Latency, Names, quantiles};
use crate::peer::{Ability, Heard, PeerName};
use crate::report::{Figure, Measurement, Spread};
use crate::swarm::{Plan, Swarm};
use crate::verify::Pattern;

/// The command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    shape: Shape,
    /// Pairs of runs, one of each pair with stalled readers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    #[command(flatten)]
    target: TargetArgs,
}

/// What is measured.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Shape {
    /// Members of the room that read, in both runs of a pair
    #[arg(long, default_value_t = 1000)]
    pub(crate) members: usize,
    /// Members that don't, besides those, in percent of them; at least one
    #[arg(long, default_value_t = 1.0, value_name = "PERCENT")]
    pub(crate) stalled: f64,
    /// Seconds of stalling, from their join, after which the stalled read again and must catch up with everything, in order; shorter than the
    /// server's `write_stall_ms` and its history [default: they never read again]
    #[arg(long)]
    pub(crate) stall_s: Option<f64>,
    /// Publishes per second
    #[arg(long, default_value_t = 100)]
    pub(crate) rate: u32,
    /// Length of a payload, in bytes; at least 8
    #[arg(long, default_value_t = 1024)]
    pub(crate) payload_bytes: usize,
    /// Seconds of traffic before measuring begins; the buffers of the stalled fill up meanwhile
    #[arg(long, default_value_t = 2.0)]
    pub(crate) warmup_s: f64,
    /// Seconds of traffic that are measured, in each run
    #[arg(long, default_value_t = 5.0)]
    pub(crate) duration_s: f64,
    /// Seconds after which a run fails, connecting included
    #[arg(long, default_value_t = 60.0)]
    pub(crate) timeout_s: f64,
}

/// Name of the figure.
pub(crate) const RATIO: &str = "p99 with stalled readers / without";

const WITHOUT: Names = quantiles!("without stalled readers");
const WITH: Names = quantiles!("with stalled readers");

/// What one run found.
#[derive(Debug)]
struct Run {
    latency: Latency,
    done: Done,
}

/// Members that don't read what they are sent.
#[derive(Debug)]
struct Stalled {
    swarm: Swarm,
    /// Where the room stood when they joined, before anything was published.
    base: u64,
    /// What each has got, once they read: its highest offset.
    offsets: Vec<u64>,
    /// When they read again; `None`: never.
    until: Option<Instant>,
}

/// Runs the command.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn run(args: &Args) -> Result<()> {
    let shape = args.shape;
    shape.check(args.target.peer())?;
    let target = args.target.target()?;
    let mut runs = [Vec::new(), Vec::new()];
    for pair in 0..args.pairs {
        // The first of a pair may find a warmer or a quieter machine.
        let order = if pair % 2 == 0 { [0, 1] } else { [1, 0] };
        for with in order {
            let name = ["without", "with"][with];
            console::progress(&format!("pair {} of {}: {name}", pair + 1, args.pairs));
            let stalled = with * shape.stalled_members();
            let run = target.measure(|subject| measure(subject, shape, stalled))?;
            runs[with].push(run);
        }
    }
    let mut measurement =
        Measurement::new("slow", args.target.peer().adapter().name(), args.settings());
    let [without, with] = runs;
    add_figures(&mut measurement, &without, &with)?;
    args.target.report(&target, &measurement)
}

impl Args {
    fn settings(&self) -> Vec<(&'static str, String)> {
        let shape = self.shape;
        let stall = shape
            .stall_s
            .map_or_else(|| "for good".to_owned(), |seconds| format!("{seconds} s"));
        vec![
            ("members that read", shape.members.to_string()),
            ("stalled", shape.stalled_members().to_string()),
            ("stalled for", stall),
            ("publishes per second", shape.rate.to_string()),
            ("payload bytes", shape.payload_bytes.to_string()),
            ("seconds", shape.duration_s.to_string()),
            ("pairs", self.pairs.to_string()),
        ]
    }
}

fn add_figures(measurement: &mut Measurement, without: &[Run], with: &[Run]) -> Result<()> {
    let pairs = without.iter().zip(with);
    let ratios = pairs
        .map(|(without, with)| Ok(with.latency.us_at(P99)? / without.latency.us_at(P99)?))
        .collect::<Result<Vec<_>>>()?;
    let ratio = Spread::of(&ratios);
    measurement.add(Figure::new(RATIO, "×, median", ratio.median));
    measurement.add(Figure::new("smallest of a pair", "×", ratio.min));
    measurement.add(Figure::new("largest of a pair", "×", ratio.max));
    for (runs, of, names, cost) in [
        (without, "without stalled readers", WITHOUT, COST_WITHOUT),
        (with, "with stalled readers", WITH, COST_WITH),
    ] {
        let mut all = Latency::new();
        runs.iter().for_each(|run| all.add(&run.latency));
        measurement.add_latency(&all, of, names)?;
        let each: Vec<f64> = runs
            .iter()
            .map(|run| run.done.per_delivery().value)
            .collect();
        measurement.add(Figure::new(cost, "µs, median", Spread::of(&each).median));
    }
    Ok(())
}

const P99: f64 = 0.99;
const COST_WITHOUT: &str = "server CPU per delivery, without";
const COST_WITH: &str = "server CPU per delivery, with";

/// Measures a server with so many members that don't read.
fn measure(subject: Subject, shape: Shape, stalled: usize) -> Result<Run> {
    let pid = subject.pid;
    let deadline = Deadline::after(Duration::try_from_secs_f64(shape.timeout_s)?);
    let swarm = Swarm::new(subject.peer, subject.address, subject.waiting.eager())?;
    let beside = swarm.beside(subject.name.adapter())?;
    let plan = Plan {
        connections: shape.members,
        room_members: shape.members,
        joining_max: 64,
    };
    let layout = Layout {
        publishers: shape.members.min(PUBLISHERS),
        payload_bytes: shape.payload_bytes,
    };
    let mut traffic = Traffic::open(swarm, plan, layout, deadline)?;
    let mut stalled = Stalled::open(beside, stalled, shape, &deadline)?;
    shape.stretch(
        &mut traffic,
        &mut stalled,
        shape.warmup_s,
        &mut Latency::new(),
    )?;
    let mut latency = Latency::new();
    let load = Load::start(pid, subject.counting, &traffic)?;
    shape.stretch(&mut traffic, &mut stalled, shape.duration_s, &mut latency)?;
    let done = load.stop(&traffic)?;
    stalled.finish(traffic.published(), &deadline)?;
    Ok(Run { latency, done })
}

/// Members that publish, in turn.
const PUBLISHERS: usize = 50;

impl Shape {
    fn check(&self, peer: PeerName) -> Result<()> {
        ensure!(self.members > 0, "a room needs a member");
        ensure!(self.rate > 0, "the rate must be at least 1");
        ensure!(self.stalled > 0.0, "--stalled must be more than 0");
        Pattern::check(self.payload_bytes)?;
        check_files(self.members + self.stalled_members())?;
        let numbered = peer.adapter().has(Ability::Offsets);
        ensure!(
            self.stall_s.is_none() || numbered,
            "--stall-s needs a server that numbers its deliveries, to prove that the stalled caught up; {} doesn't",
            peer.adapter().name()
        );
        Ok(())
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of what is far below 2^53, checked to be positive"
    )]
    fn stalled_members(&self) -> usize {
        ((self.members as f64 * self.stalled / 100.0).round() as usize).max(1)
    }

    /// Publishes for so long, and has the stalled read when their time has come.
    fn stretch(
        &self,
        traffic: &mut Traffic,
        stalled: &mut Stalled,
        seconds: f64,
        latency: &mut Latency,
    ) -> Result<()> {
        let duration = Duration::try_from_secs_f64(seconds)?;
        let mut pace = Pace::new(traffic, self.rate.into(), Timed::All);
        pace.run_beside(traffic, duration, latency, &mut |_| stalled.turn())?;
        traffic.rest()
    }
}

impl Stalled {
    fn open(mut swarm: Swarm, count: usize, shape: Shape, deadline: &Deadline) -> Result<Self> {
        let plan = Plan {
            connections: count,
            room_members: count.max(1),
            joining_max: 64,
        };
        swarm.open(plan, deadline)?;
        let head = swarm.head(0..count)?.unwrap_or(0);
        let stall = shape.stall_s.map(Duration::try_from_secs_f64).transpose()?;
        Ok(Self {
            swarm,
            base: head,
            offsets: vec![head; count],
            until: stall.map(|stall| Instant::now() + stall),
        })
    }

    /// Reads, if its time has come. Its deliveries must be those of the log, one after the other.
    fn turn(&mut self) -> Result<()> {
        if self.until.is_some_and(|until| Instant::now() >= until) {
            let Self { swarm, offsets, .. } = self;
            swarm
                .turn(Duration::ZERO, &mut |member, heard| {
                    if let Heard::Delivery {
                        offset: Some(offset),
                        ..
                    } = heard
                    {
                        let expected = offsets[member] + 1;
                        ensure!(
                            offset == expected,
                            "a stalled reader got offset {offset} where {expected} is due"
                        );
                        offsets[member] = offset;
                    }
                    Ok(())
                })
                .context("a stalled reader that reads again")?;
        }
        Ok(())
    }

    /// Waits until those that read again have everything.
    fn finish(&mut self, published: u64, deadline: &Deadline) -> Result<()> {
        let last = self.base + published;
        while self.until.is_some() && self.offsets.iter().any(|offset| *offset < last) {
            self.turn()?;
            deadline.check(|| "the stalled readers haven't caught up".to_owned())?;
        }
        Ok(())
    }
}
