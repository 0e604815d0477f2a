//! `fanout`: one room, and every publish goes to all its members.
//!
//! Two modes. In the closed loop a number of members have one publish in flight each, and a publisher sends its next one when the last has
//! arrived everywhere; the figure is the server's processor time per delivery. In the paced mode publishes leave at a fixed
//! rate, whatever comes back; the figure is the time from the moment a publish was due to its own delivery, so that a server that falls
//! behind can't hide it.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::Instant;

use super::load::{Load, closed_loop};
use super::traffic::{Arrival, Layout, Traffic};
use super::{Deadline, Subject, TargetArgs, check_files};
use crate::console::Bar;
use crate::report::{Figure, Measurement};
use crate::swarm::{Plan, Swarm};
use crate::verify::Pattern;

/// The command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    shape: Shape,
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
pub(crate) const OWN_P50: &str = "publish to own delivery, p50";
pub(crate) const OWN_P99: &str = "publish to own delivery, p99";

/// Members that publish in the paced mode: enough that the figure is of no particular place in the server's list of members.
const PACED_PUBLISHERS: usize = 50;

/// Runs the command.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn run(args: &Args) -> Result<()> {
    let target = args.target.target()?;
    let measurement = target.measure(|subject| measure(subject, args.shape))?;
    args.target.report(&target, &measurement)
}

/// Measures a server.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn measure(subject: Subject, shape: Shape) -> Result<Measurement> {
    shape.check()?;
    let mut measurement = Measurement::new("fanout", subject.peer.name(), shape.settings());
    let pid = subject.pid;
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
    let mut run = Run {
        traffic: Traffic::open(swarm, plan, shape.layout(), deadline)?,
        shape,
    };
    run.stretch(shape.warmup_s, &mut Vec::new())?;
    let mut own = Vec::new();
    let load = Load::start(pid, &run.traffic)?;
    run.stretch(shape.duration_s, &mut own)?;
    let done = load.stop(&run.traffic)?;
    measurement.add(done.per_delivery());
    if shape.rate.is_some() {
        own.sort_unstable();
        measurement.add(Figure::new(OWN_P50, "µs", percentile_us(&own, 50)));
        measurement.add(Figure::new(OWN_P99, "µs", percentile_us(&own, 99)));
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

/// A room under load.
#[derive(Debug)]
struct Run {
    traffic: Traffic,
    shape: Shape,
}

impl Run {
    /// Publishes for so long, waits for everything to arrive, and lets the server come to rest.
    fn stretch(&mut self, seconds: f64, own: &mut Vec<Duration>) -> Result<()> {
        let duration = Duration::try_from_secs_f64(seconds)?;
        match self.shape.rate {
            Some(rate) => self.paced(rate, duration, own)?,
            None => {
                let publishers = 0..u32::try_from(self.shape.in_flight)?;
                let first = publishers.map(|publisher| (0, publisher)).collect();
                // The same member goes on.
                let next = |arrival: Arrival| (arrival.room, arrival.key.publisher);
                closed_loop(&mut self.traffic, duration, first, next)?;
            }
        }
        self.traffic.rest()
    }

    fn paced(&mut self, rate: u32, duration: Duration, own: &mut Vec<Duration>) -> Result<()> {
        let _bar = Bar::timing("traffic", duration);
        let mut schedule = Schedule::new(rate, self.shape.layout().publishers);
        while schedule.next_due() < schedule.start + duration {
            self.wait_until(&mut schedule, own)?;
            self.traffic.publish(0, schedule.take())?;
        }
        self.traffic
            .drain(&mut |arrival| schedule.arrived(arrival, own))
    }

    /// Reads until the next publish is due. The kernel rounds waits up to a millisecond, so the last ones are spent looking.
    fn wait_until(&mut self, schedule: &mut Schedule, own: &mut Vec<Duration>) -> Result<()> {
        while let Some(left) = schedule
            .next_due()
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
        {
            let wait = left.saturating_sub(Duration::from_millis(2));
            self.traffic
                .turn(wait, &mut |arrival| schedule.arrived(arrival, own))?;
        }
        Ok(())
    }
}

/// When which publish is due.
#[derive(Debug)]
struct Schedule {
    start: Instant,
    interval: Duration,
    /// Publishes so far.
    count: u32,
    /// When those that haven't come back to their publisher were due, by publisher. They come back in order.
    open: Vec<VecDeque<Instant>>,
}

impl Schedule {
    fn new(rate: u32, publishers: usize) -> Self {
        let interval = Duration::from_secs(1) / rate;
        Self {
            start: Instant::now(),
            interval,
            count: 0,
            open: vec![VecDeque::new(); publishers],
        }
    }

    fn next_due(&self) -> Instant {
        self.start + self.interval * self.count
    }

    /// Whose turn it is, with the publish that is due next.
    fn take(&mut self) -> u32 {
        let due = self.next_due();
        let publisher = self.count as usize % self.open.len();
        self.open[publisher].push_back(due);
        self.count += 1;
        u32::try_from(publisher).expect("there are at most PACED_PUBLISHERS publishers")
    }

    fn arrived(&mut self, arrival: Arrival, times: &mut Vec<Duration>) {
        if arrival.own {
            let due = self.open[arrival.key.publisher as usize].pop_front();
            times.extend(due.map(|due| due.elapsed()));
        }
    }
}

/// The smallest value that `percent` of all don't exceed; `sorted` is in ascending order.
fn percentile_us(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted
        .get(rank - 1)
        .map_or(f64::NAN, |duration| duration.as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::Key;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_micros).collect();
        assert_eq!(percentile_us(&times, 50).round(), 100.0);
        assert_eq!(percentile_us(&times, 99).round(), 198.0);
        assert_eq!(percentile_us(&times[..1], 99).round(), 1.0);
        assert!(percentile_us(&[], 50).is_nan());
    }

    /// The time counts from the moment a publish was due, even if it left late, and each publisher's come back in order.
    #[test]
    fn publishers_take_turns_and_their_own_deliveries_are_timed() {
        let mut schedule = Schedule::new(100, 2);
        assert_eq!(
            [schedule.take(), schedule.take(), schedule.take()],
            [0, 1, 0]
        );
        assert_eq!(
            schedule.next_due() - schedule.start,
            Duration::from_millis(30)
        );
        let mut times = Vec::new();
        let arrival = |own| Arrival {
            room: 0,
            key: Key {
                publisher: 0,
                sequence: 1,
            },
            own,
            complete: false,
        };
        schedule.arrived(arrival(false), &mut times);
        assert!(times.is_empty());
        schedule.start -= Duration::from_secs(1);
        schedule.open[0][0] -= Duration::from_secs(1);
        schedule.arrived(arrival(true), &mut times);
        assert!(times[0] >= Duration::from_secs(1), "{times:?}");
        assert_eq!(schedule.open[0].len(), 1);
    }
}
