//! `lock`: a lock that goes from hand to hand.
//!
//! All members wait for one lock; whoever is told that it holds it gives it back at once and waits again. A grant counts if its fence is higher than
//! all before, and must come only after the one before was given back. With rooms on disk and in memory.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use roomful_protocol::id::{Key, Offset};
use tokio::time::Instant;

use super::class::{Class, LOCAL, MEMORY};
use super::medians::Medians;
use super::usage::{Meter, Usage};
use super::{Deadline, Subject, TargetArgs, check_files};
use crate::console;
use crate::latency::Latency;
use crate::report::Measurement;
use crate::verify::Pattern;
use crate::writers::{Done, Run, Spot, Told, Watching, Writers};

/// The command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    shape: Shape,
    /// Repeats
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeats: u32,
    #[command(flatten)]
    target: TargetArgs,
}

/// What is measured.
#[derive(Debug, Clone, Copy, clap::Args)]
struct Shape {
    /// Members that wait for the lock; all are told of every change
    #[arg(long, default_value_t = 8)]
    members: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2.0)]
    duration_s: f64,
    /// Seconds after which a run against one server fails
    #[arg(long, default_value_t = 60.0)]
    timeout_s: f64,
}

/// The lock, as its members see it.
#[derive(Debug)]
struct Chain {
    lock: Key,
    /// Grants so far.
    grants: u64,
    /// The newest.
    fence: Offset,
    /// When its holder gave it back; none: it hasn't.
    released: Option<Instant>,
    /// From giving it back to its next holder's hearing of it.
    handover: Latency,
    /// Members that hold the lock or wait for it.
    active: usize,
}

/// Much longer than a member holds the lock.
const TTL_MS: u64 = 60_000;

const TURN_MAX: Duration = Duration::from_millis(100);

/// Runs the command.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn run(args: &Args) -> Result<()> {
    args.target.need_roomful("lock")?;
    ensure!(args.shape.members > 1, "a lock goes between at least two");
    check_files(args.shape.members)?;
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
    let settings = vec![
        ("repeats", args.repeats.to_string()),
        ("members", args.shape.members.to_string()),
        ("seconds each", args.shape.duration_s.to_string()),
    ];
    let mut measurement = Measurement::new("lock", name, settings);
    medians.report(&mut measurement);
    args.target.report(&target, &measurement)
}

fn measure(
    subject: &Subject,
    shape: Shape,
    (class, kind): (Class, &'static str),
    medians: &mut Medians,
) -> Result<()> {
    let (chain, usage) = hand_over(subject, shape, class)?;
    let per_second = chain.grants as f64 / usage.wall.as_secs_f64();
    for (name, unit, value) in [
        ("grants per second", "/s", per_second),
        ("hand-over, p50", "µs", chain.handover.us_at(0.5)?),
        ("hand-over, p99", "µs", chain.handover.us_at(0.99)?),
        (
            "server CPU per grant",
            "µs",
            usage.server_us_per(chain.grants),
        ),
    ] {
        medians.add(format!("{kind}: {name}"), unit, value);
    }
    Ok(())
}

fn hand_over(subject: &Subject, shape: Shape, class: Class) -> Result<(Chain, Usage)> {
    let timeout = Duration::try_from_secs_f64(shape.timeout_s)?;
    let deadline = Deadline::after(timeout);
    let mut writers = Writers::new(subject, Run::new(), Pattern::BYTES_MIN)?;
    let room = *class.rooms(&mut writers, 1)?.first().context("one room")?;
    let who = (0..shape.members).map(|_| Ok((writers.connect(room)?, room)));
    let who = who.collect::<Result<Vec<_>>>()?;
    writers.await_welcomes(&deadline)?;
    let spots = writers.enter(&who, Watching::Locks, &deadline)?;

    let mut chain = Chain {
        lock: Key::parse("baton")?,
        grants: 0,
        fence: Offset(0),
        released: Some(Instant::now()),
        handover: Latency::new(),
        active: spots.len(),
    };
    let meter = Meter::start(subject.pid, writers.spun())?;
    let end = Deadline::after(Duration::try_from_secs_f64(shape.duration_s)?);
    for spot in &spots {
        writers.acquire(*spot, &chain.lock, TTL_MS)?;
    }
    let mut heard = Vec::new();
    while chain.active > 0 {
        writers.turn(TURN_MAX, &mut |told| {
            heard.push((told, Instant::now()));
            Ok(())
        })?;
        for (told, at) in heard.drain(..) {
            chain.hear(&mut writers, told, at, end.left().is_some())?;
        }
        deadline.check(|| format!("{} members wait for the lock", chain.active))?;
    }
    let usage = meter.stop(writers.spun())?;
    ensure!(chain.grants > 1, "the lock was not handed over");
    Ok((chain, usage))
}

impl Chain {
    fn hear(
        &mut self,
        writers: &mut Writers,
        told: Told,
        at: Instant,
        goes_on: bool,
    ) -> Result<()> {
        match told.what {
            Done::LockChanged(held) => {
                let Some((member, fence)) = held else {
                    return Ok(());
                };
                // Everybody hears of it; it counts where it matters, and once. A change before it may still name the grant before.
                if writers.member(told.spot) == Some(member) && fence > self.fence {
                    self.granted(writers, told.spot, fence, at)?;
                }
                Ok(())
            }
            Done::Granted(_) | Done::Queued => Ok(()),
            Done::Released if goes_on => writers.acquire(told.spot, &self.lock, TTL_MS),
            Done::Released => {
                self.active -= 1;
                Ok(())
            }
            other => bail!("{other:?} where a lock is handed over"),
        }
    }

    fn granted(
        &mut self,
        writers: &mut Writers,
        spot: Spot,
        fence: Offset,
        at: Instant,
    ) -> Result<()> {
        let released = self.released.take();
        let released = released.context("two members hold the lock at once")?;
        self.handover.record(at.saturating_duration_since(released));
        self.fence = fence;
        self.grants += 1;
        self.released = Some(Instant::now());
        writers.release(spot, &self.lock)
    }
}
