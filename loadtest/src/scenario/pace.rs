//! Publishing at a fixed rate, whatever comes back, and the times from the moments at which publishes were due.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use super::traffic::{Arrival, Traffic};
use crate::console::Bar;
use crate::latency::Latency;

/// When which one is due: evenly, from a start on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    start: Instant,
    per_second: f64,
    taken: u64,
}

/// Which deliveries are timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timed {
    /// The publisher's own.
    Own,
    /// Every member's.
    All,
}

/// A fixed rate over all rooms and publishers, which take turns.
#[derive(Debug)]
pub(super) struct Pace {
    schedule: Schedule,
    timed: Timed,
    rooms: usize,
    /// Publishers of a room.
    publishers: usize,
    /// Those that haven't arrived everywhere, by room and publisher.
    open: Vec<Open>,
}

/// What a publisher has under way. Its publishes arrive everywhere in the order in which they left.
#[derive(Debug, Clone)]
struct Open {
    /// Sequence of the first.
    first: u32,
    /// When they were due.
    due: VecDeque<Instant>,
}

impl Schedule {
    /// From now on.
    pub(super) fn new(per_second: f64) -> Self {
        Self {
            start: Instant::now(),
            per_second,
            taken: 0,
        }
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Instant {
        self.start + Duration::from_secs_f64(self.taken as f64 / self.per_second)
    }

    /// How long until then, if it isn't due yet.
    pub(super) fn left(&self) -> Option<Duration> {
        let left = self.next_due().checked_duration_since(Instant::now());
        left.filter(|left| !left.is_zero())
    }

    /// Takes the next one: which it is, and when it was due.
    pub(super) fn take(&mut self) -> (u64, Instant) {
        let taken = (self.taken, self.next_due());
        self.taken += 1;
        taken
    }
}

/// The kernel rounds waits up to a millisecond, so the last ones before something is due are spent looking.
pub(super) fn wait_for(left: Duration) -> Duration {
    left.saturating_sub(Duration::from_millis(2))
}

impl Pace {
    /// From now on, for rooms in which nothing is under way.
    pub(super) fn new(traffic: &Traffic, per_second: f64, timed: Timed) -> Self {
        let (rooms, publishers) = (traffic.rooms(), traffic.publishers());
        let first = |index| traffic.published_by(index / publishers, index % publishers) + 1;
        let open = |index| Open {
            first: first(index),
            due: VecDeque::new(),
        };
        Self {
            schedule: Schedule::new(per_second),
            timed,
            rooms,
            publishers,
            open: (0..rooms * publishers).map(open).collect(),
        }
    }

    /// Publishes for so long, then waits until all has arrived.
    ///
    /// # Errors
    /// Those of [`Traffic::turn`].
    pub(super) fn run(
        &mut self,
        traffic: &mut Traffic,
        duration: Duration,
        latency: &mut Latency,
    ) -> Result<()> {
        self.run_beside(traffic, duration, latency, &mut |_| Ok(()))
    }

    /// The same, with something else that has its turn whenever the traffic has.
    ///
    /// # Errors
    /// Those of [`Traffic::turn`], and of the other.
    pub(super) fn run_beside(
        &mut self,
        traffic: &mut Traffic,
        duration: Duration,
        latency: &mut Latency,
        other: &mut dyn FnMut(&mut Latency) -> Result<()>,
    ) -> Result<()> {
        let _bar = Bar::timing("traffic", duration);
        let end = self.schedule.start + duration;
        self.run_while(traffic, latency, &mut |schedule, latency| {
            other(latency)?;
            Ok(schedule.next_due() < end)
        })
    }

    /// Publishes for as long as it is told to, then waits until all has arrived.
    ///
    /// # Errors
    /// Those of [`Traffic::turn`], and of the one that tells.
    pub(super) fn run_while(
        &mut self,
        traffic: &mut Traffic,
        latency: &mut Latency,
        goes_on: &mut dyn FnMut(&Schedule, &mut Latency) -> Result<bool>,
    ) -> Result<()> {
        while goes_on(&self.schedule, latency)? {
            let left = self.schedule.left();
            // Also while behind, so that what has arrived is taken.
            let wait = left.map_or(Duration::ZERO, wait_for);
            traffic.turn(wait, &mut |arrival| self.arrived(arrival, latency))?;
            if left.is_none() {
                let (room, publisher) = self.take();
                traffic.publish(room, publisher)?;
            }
        }
        traffic.drain(&mut |arrival| self.arrived(arrival, latency))
    }

    /// Whose turn it is, with the publish that is due next.
    fn take(&mut self) -> (usize, u32) {
        let (count, due) = self.schedule.take();
        let count = usize::try_from(count).expect("a run is too short for more");
        let (room, publisher) = (count % self.rooms, count / self.rooms % self.publishers);
        self.open[room * self.publishers + publisher]
            .due
            .push_back(due);
        let publisher = u32::try_from(publisher).expect("there are fewer members than files");
        (room, publisher)
    }

    fn arrived(&mut self, arrival: Arrival, latency: &mut Latency) {
        let Arrival { room, key, .. } = arrival;
        let open = &mut self.open[room * self.publishers + key.publisher as usize];
        let index = key.sequence - open.first;
        let timed = match self.timed {
            Timed::Own => arrival.own,
            Timed::All => arrival.delivered,
        };
        if let (true, Some(due)) = (timed, open.due.get(index as usize)) {
            latency.record(due.elapsed());
        }
        if arrival.complete {
            open.due.pop_front();
            open.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::Key;

    fn pace(rooms: usize, publishers: usize, timed: Timed) -> Pace {
        let open = Open {
            first: 1,
            due: VecDeque::new(),
        };
        Pace {
            schedule: Schedule::new(100.0),
            timed,
            rooms,
            publishers,
            open: vec![open; rooms * publishers],
        }
    }

    const fn arrival(sequence: u32, own: bool, complete: bool) -> Arrival {
        let key = Key {
            publisher: 0,
            sequence,
        };
        Arrival {
            room: 0,
            key,
            delivered: true,
            own,
            complete,
        }
    }

    #[test]
    fn rooms_and_their_publishers_take_turns_at_an_even_rate() {
        let mut pace = pace(2, 2, Timed::Own);
        let turns: Vec<_> = (0..5).map(|_| pace.take()).collect();
        assert_eq!(turns, [(0, 0), (1, 0), (0, 1), (1, 1), (0, 0)]);
        let after = pace.schedule.next_due() - pace.schedule.start;
        assert_eq!(after.as_millis(), 50);
    }

    /// The time counts from the moment a publish was due, even if it left late.
    #[test]
    fn times_count_from_when_a_publish_was_due() {
        let mut pace = pace(1, 1, Timed::Own);
        pace.take();
        pace.take();
        pace.open[0].due[0] -= Duration::from_secs(5);
        pace.open[0].due[1] -= Duration::from_secs(1);
        let mut latency = Latency::new();
        pace.arrived(arrival(1, false, false), &mut latency);
        assert_eq!(latency.count(), 0);
        pace.arrived(arrival(1, true, true), &mut latency);
        assert!(latency.us_at(1.0).unwrap() >= 4.99e6);
        pace.arrived(arrival(2, true, true), &mut latency);
        assert!(latency.us_at(0.0).unwrap() < 2e6);
        assert!(pace.open[0].due.is_empty());
    }

    #[test]
    fn all_deliveries_are_timed_where_asked_for() {
        let mut pace = pace(1, 1, Timed::All);
        pace.take();
        let mut latency = Latency::new();
        pace.arrived(arrival(1, false, false), &mut latency);
        pace.arrived(arrival(1, true, true), &mut latency);
        assert_eq!(latency.count(), 2);
    }
}
