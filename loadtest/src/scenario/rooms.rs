//! `rooms`: many small rooms, with some of them busy at any moment.
//!
//! A closed loop over all rooms: when a publish has arrived everywhere in its room, the next one goes to another room, by another of its members.
//! The rooms take turns in an order that is far from that of their making, so that a room's memory is cold when its turn comes, as it is
//! in a server with many rooms. The figure is the server's processor time per delivery.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::load::{CountingArgs, Load, closed_loop};
use super::traffic::{Layout, Traffic};
use super::{Deadline, Subject, TargetArgs, check_files};
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
    /// Rooms
    #[arg(long, default_value_t = 1000)]
    pub(crate) rooms: usize,
    /// Members of each room; all of them publish in turn
    #[arg(long, default_value_t = 10)]
    pub(crate) members: usize,
    /// Length of a payload, in bytes; at least 8
    #[arg(long, default_value_t = 64)]
    pub(crate) payload_bytes: usize,
    /// Publishes in flight, each in another room; enough of them keep the server busy
    #[arg(long, default_value_t = 32)]
    pub(crate) in_flight: usize,
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
    let mut measurement = Measurement::new("rooms", subject.peer.name(), shape.settings());
    let (pid, counting) = (subject.pid, subject.counting);
    let deadline = Deadline::after(Duration::try_from_secs_f64(shape.timeout_s)?);
    let swarm = Swarm::new(subject.peer, subject.address, subject.waiting)?;
    let plan = Plan {
        connections: shape.rooms * shape.members,
        room_members: shape.members,
        joining_max: 64,
    };
    let layout = Layout {
        publishers: shape.members,
        payload_bytes: shape.payload_bytes,
    };
    let mut traffic = Traffic::open(swarm, plan, layout, deadline)?;
    let mut turns = Turns::new(shape);
    turns.stretch(&mut traffic, shape.warmup_s)?;
    let load = Load::start(pid, counting, &traffic)?;
    turns.stretch(&mut traffic, shape.duration_s)?;
    let done = load.stop(&traffic)?;
    measurement.add(done.per_delivery());
    done.figures()
        .into_iter()
        .for_each(|figure| measurement.add(figure));
    Ok(measurement)
}

impl Shape {
    fn check(&self) -> Result<()> {
        ensure!(
            self.rooms > 0 && self.members > 0,
            "neither --rooms nor --members may be 0"
        );
        ensure!(
            (1..=self.rooms).contains(&self.in_flight),
            "in flight may be 1 to {}, the number of rooms",
            self.rooms
        );
        Pattern::check(self.payload_bytes)?;
        check_files(self.rooms.saturating_mul(self.members))
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("rooms", self.rooms.to_string()),
            ("members of each", self.members.to_string()),
            ("payload bytes", self.payload_bytes.to_string()),
            ("in flight", self.in_flight.to_string()),
            ("seconds", self.duration_s.to_string()),
        ]
    }
}

/// Whose turn it is: a walk that visits every room once a round, in long steps.
#[derive(Debug)]
struct Turns {
    shape: Shape,
    /// Has no divisor in common with the number of rooms, so that a round leaves none out.
    step: usize,
    room: usize,
    /// Turns so far; the round that it makes says which member publishes.
    count: usize,
}

impl Turns {
    fn new(shape: Shape) -> Self {
        // The golden ratio keeps neighbours in time far from each other in place.
        let golden = shape.rooms * 618 / 1000;
        let mut steps = golden.max(1)..;
        let step = steps
            .find(|step| greatest_common_divisor(*step, shape.rooms) == 1)
            .expect("a step that is one more than a multiple of the rooms has no divisor in common with them");
        Self {
            shape,
            step,
            room: 0,
            count: 0,
        }
    }

    fn stretch(&mut self, traffic: &mut Traffic, seconds: f64) -> Result<()> {
        let duration = Duration::try_from_secs_f64(seconds)?;
        let first = (0..self.shape.in_flight).map(|_| self.take()).collect();
        closed_loop(traffic, duration, first, |_| self.take())?;
        traffic.rest()
    }

    /// The next room, and which of its members publishes.
    fn take(&mut self) -> (usize, u32) {
        let round = self.count / self.shape.rooms;
        let publisher = u32::try_from(round % self.shape.members)
            .expect("a room has as many members as there are files at most");
        self.count += 1;
        self.room = (self.room + self.step) % self.shape.rooms;
        (self.room, publisher)
    }
}

const fn greatest_common_divisor(mut one: usize, mut other: usize) -> usize {
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(rooms: usize, members: usize) -> Turns {
        Turns::new(Shape {
            rooms,
            members,
            payload_bytes: 64,
            in_flight: 1,
            warmup_s: 0.0,
            duration_s: 1.0,
            timeout_s: 1.0,
        })
    }

    #[test]
    fn every_room_has_one_turn_a_round_and_its_members_take_turns_too() {
        for rooms in [1, 2, 3, 10, 999, 1000] {
            let mut turns = turns(rooms, 2);
            for round in [0, 1, 0] {
                let mut seen: Vec<usize> = (0..rooms)
                    .map(|_| {
                        let (room, publisher) = turns.take();
                        assert_eq!(publisher, round);
                        room
                    })
                    .collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..rooms).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn rooms_that_follow_each_other_in_time_are_far_apart() {
        let mut turns = turns(1000, 10);
        let visited: Vec<usize> = (0..100).map(|_| turns.take().0).collect();
        let nearest = visited.windows(2).map(|pair| pair[0].abs_diff(pair[1]));
        assert!(nearest.min() > Some(300), "{visited:?}");
    }
}
