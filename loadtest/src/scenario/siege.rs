//! `siege`: attackers of every kind at once, and the healthy must not notice.
//!
//! Runs in pairs, one under attack and one in quiet, each against a fresh server and in alternating order. A room of a thousand is
//! published to at a fixed rate; a process of its own comes, joins and goes again, and times that; another one has the attackers: thousands of
//! sockets that send the head of a request byte by byte, flooders of pings and of fragments. Members that have stopped reading sit in the room itself. The
//! figures are the room's p99 under attack over its p99 in quiet, pair by pair, and how long a new client waits.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::besiegers::{Besiegers, Deeds, Forces};
use super::load::{Done, Load};
use super::pace::{Pace, Timed};
use super::traffic::{Layout, Traffic};
use super::visitor::Visitor;
use super::{Deadline, Subject, TargetArgs, check_files};
use crate::console;
use crate::latency::{Latency, Names, quantiles};
use crate::report::{Figure, Measurement, Spread};
use crate::swarm::{Plan, Swarm};
use crate::verify::Pattern;

/// The command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    shape: Shape,
    /// Pairs of runs, one of each pair under attack
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    #[command(flatten)]
    target: TargetArgs,
}

/// What is measured.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Shape {
    #[command(flatten)]
    forces: Forces,
    /// Members that stop reading as soon as they have joined
    #[arg(long, default_value_t = 100)]
    stopped: usize,
    /// Members of the room that read, in both runs of a pair
    #[arg(long, default_value_t = 1000)]
    members: usize,
    /// Publishes per second
    #[arg(long, default_value_t = 20)]
    rate: u32,
    /// Length of a payload, in bytes; at least 8
    #[arg(long, default_value_t = 64)]
    payload_bytes: usize,
    /// Seconds of traffic before measuring begins, with the attackers there already
    #[arg(long, default_value_t = 3.0)]
    warmup_s: f64,
    /// Seconds of traffic that are measured, in each run
    #[arg(long, default_value_t = 10.0)]
    duration_s: f64,
    /// Seconds after which a run fails, connecting included
    #[arg(long, default_value_t = 90.0)]
    timeout_s: f64,
}

const RATIO: &str = "room's p99, under attack / in quiet";
const QUIET: Names = quantiles!("room in quiet");
const ATTACKED: Names = quantiles!("room under attack");
const VISIT_QUIET: Names = quantiles!("connect and join in quiet");
const VISIT_ATTACKED: Names = quantiles!("connect and join under attack");
const COST_QUIET: &str = "server CPU per delivery, in quiet";
const COST_ATTACKED: &str = "server CPU per delivery, under attack";

/// What one run found.
#[derive(Debug)]
struct Run {
    room: Latency,
    visits: Latency,
    done: Done,
    deeds: Deeds,
}

/// Runs the command.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn run(args: &Args) -> Result<()> {
    let shape = args.shape;
    shape.check()?;
    let target = args.target.target()?;
    let mut runs = [Vec::new(), Vec::new()];
    for pair in 0..args.pairs {
        // The first of a pair may find a warmer or a quieter machine.
        let order = if pair % 2 == 0 { [0, 1] } else { [1, 0] };
        for attacked in order {
            let name = ["in quiet", "under attack"][attacked];
            console::progress(&format!("pair {} of {}: {name}", pair + 1, args.pairs));
            runs[attacked].push(target.measure(|subject| measure(subject, shape, attacked == 1))?);
        }
    }
    let mut measurement = Measurement::new(
        "siege",
        args.target.peer().adapter().name(),
        args.settings(),
    );
    let [quiet, attacked] = runs;
    add_figures(&mut measurement, &quiet, &attacked)?;
    args.target.report(&target, &measurement)
}

impl Args {
    fn settings(&self) -> Vec<(&'static str, String)> {
        let Shape { forces, .. } = self.shape;
        vec![
            ("slow sockets", forces.slow.to_string()),
            ("ping flooders", forces.pingers.to_string()),
            ("fragment flooders", forces.fragmenters.to_string()),
            ("stopped readers", self.shape.stopped.to_string()),
            ("members that read", self.shape.members.to_string()),
            ("publishes per second", self.shape.rate.to_string()),
            ("payload bytes", self.shape.payload_bytes.to_string()),
            ("seconds", self.shape.duration_s.to_string()),
            ("pairs", self.pairs.to_string()),
        ]
    }
}

fn add_figures(measurement: &mut Measurement, quiet: &[Run], attacked: &[Run]) -> Result<()> {
    let pairs = quiet.iter().zip(attacked);
    let ratios = pairs
        .map(|(quiet, attacked)| Ok(attacked.room.us_at(P99)? / quiet.room.us_at(P99)?))
        .collect::<Result<Vec<_>>>()?;
    let ratio = Spread::of(&ratios);
    measurement.add(Figure::new(RATIO, "×, median", ratio.median));
    measurement.add(Figure::new("smallest of a pair", "×", ratio.min));
    measurement.add(Figure::new("largest of a pair", "×", ratio.max));
    for (runs, room, names, visits, visit_names, cost) in [
        (
            quiet,
            "room in quiet",
            QUIET,
            "connect and join in quiet",
            VISIT_QUIET,
            COST_QUIET,
        ),
        (
            attacked,
            "room under attack",
            ATTACKED,
            "connect and join under attack",
            VISIT_ATTACKED,
            COST_ATTACKED,
        ),
    ] {
        let (mut in_room, mut of_visits) = (Latency::new(), Latency::new());
        for run in runs {
            in_room.add(&run.room);
            of_visits.add(&run.visits);
        }
        measurement.add_latency(&in_room, room, names)?;
        measurement.add_latency(&of_visits, visits, visit_names)?;
        let costs: Vec<f64> = runs
            .iter()
            .map(|run| run.done.per_delivery().value)
            .collect();
        measurement.add(Figure::new(cost, "µs, median", Spread::of(&costs).median));
    }
    let sum = |of: fn(&Deeds) -> u64| attacked.iter().map(|run| of(&run.deeds)).sum::<u64>() as f64;
    measurement.add(Figure::new(
        "slow sockets thrown out",
        "",
        sum(|deeds| deeds.slow_returns),
    ));
    measurement.add(Figure::new(
        "flooders thrown out",
        "",
        sum(|deeds| deeds.flooder_returns),
    ));
    measurement.add(Figure::new(
        "flooded",
        "bytes",
        sum(|deeds| deeds.flooded_bytes),
    ));
    Ok(())
}

const P99: f64 = 0.99;

/// Measures a server, under attack or not.
fn measure(subject: Subject, shape: Shape, attacked: bool) -> Result<Run> {
    let (pid, address) = (subject.pid, subject.address);
    let deadline = Deadline::after(Duration::try_from_secs_f64(shape.timeout_s)?);
    let swarm = Swarm::new(subject.peer, address, subject.waiting.eager())?;
    // They come to the room and never read again.
    let mut stopped = swarm.beside(subject.name.adapter())?;
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
    let mut besiegers = None;
    if attacked {
        let plan = Plan {
            connections: shape.stopped,
            room_members: shape.stopped.max(1),
            joining_max: 64,
        };
        stopped.open(plan, &deadline)?;
        besiegers = Some(Besiegers::start(address, subject.name, shape.forces)?);
    }
    let mut visitor = Visitor::start(address, subject.name)?;
    shape.stretch(&mut traffic, shape.warmup_s, &mut Latency::new())?;
    visitor.ask()?;
    let mut room = Latency::new();
    let load = Load::start(pid, subject.counting, &traffic)?;
    shape.stretch(&mut traffic, shape.duration_s, &mut room)?;
    let done = load.stop(&traffic)?;
    let visits = visitor.ask()?;
    let deeds = besiegers.as_mut().map(Besiegers::ask).transpose()?;
    Ok(Run {
        room,
        visits,
        done,
        deeds: deeds.unwrap_or_default(),
    })
}

/// Members that publish, in turn.
const PUBLISHERS: usize = 50;

impl Shape {
    fn check(&self) -> Result<()> {
        ensure!(self.members > 0, "a room needs a member");
        ensure!(self.rate > 0, "the rate must be at least 1");
        Pattern::check(self.payload_bytes)?;
        check_files(self.members + self.stopped + self.forces.slow)
    }

    fn stretch(&self, traffic: &mut Traffic, seconds: f64, latency: &mut Latency) -> Result<()> {
        let duration = Duration::try_from_secs_f64(seconds)?;
        Pace::new(traffic, self.rate.into(), Timed::All).run(traffic, duration, latency)?;
        traffic.rest()
    }
}
