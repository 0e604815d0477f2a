//! The rows: which scenarios with which parameters, and what is compared in each.

use anyhow::Result;

use super::comparison::Goal;
use crate::peer::PeerName;
use crate::report::Measurement;
use crate::scenario::{PER_DELIVERY, Subject, connect, fanout, idle, rooms};

/// One row, before it is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spec {
    /// The name by which it is chosen.
    pub(super) name: &'static str,
    /// The same for people.
    pub(super) title: &'static str,
    /// Which figure is compared.
    pub(super) figure: &'static str,
    /// Which of the floors it is measured against.
    pub(super) floor: PeerName,
    /// What is to be reached.
    pub(super) goal: Goal,
    /// Whether `compare --quick` has it.
    pub(super) is_quick: bool,
    scenario: Scenario,
}

/// A scenario with its parameters.
#[derive(Debug, Clone, Copy)]
enum Scenario {
    Fanout(fanout::Shape),
    Rooms(rooms::Shape),
    Connect(connect::Shape),
    Idle(idle::Shape),
}

/// How much of it is run: how long, and with how many connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    /// Seconds of traffic that are measured in a run.
    pub(super) duration_s: f64,
    /// Connections of `connect`.
    pub(super) connect: usize,
    /// Connections of `idle`.
    pub(super) idle: usize,
    /// Seconds of rest in `idle` before the memory is looked at.
    pub(super) settle_s: f64,
    /// Of all numbers of connections and all times, so much.
    pub(super) scale: f64,
}

impl Extent {
    /// For figures that are to be quoted.
    pub(super) const FULL: Self = Self {
        duration_s: 3.0,
        connect: 10_000,
        idle: 19_000,
        settle_s: 2.0,
        scale: 1.0,
    };

    /// For an impression within a minute.
    pub(super) const QUICK: Self = Self {
        duration_s: 0.4,
        connect: 3_000,
        idle: 6_000,
        settle_s: 0.3,
        scale: 1.0,
    };

    /// Every time is bounded, so that a server that hangs ends the run and not the patience.
    const TIMEOUT_S: f64 = 120.0;

    fn seconds(self, seconds: f64) -> f64 {
        seconds * self.scale
    }

    fn count(self, count: usize, min: usize) -> usize {
        let scaled = (count as f64 * self.scale).round();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count of connections, scaled by a positive factor"
        )]
        let scaled = scaled as usize;
        scaled.max(min)
    }

    fn fanout(self, members: usize, in_flight: usize, payload_bytes: usize) -> Scenario {
        Scenario::Fanout(fanout::Shape {
            members: self.count(members, in_flight),
            payload_bytes,
            in_flight,
            rate: None,
            warmup_s: self.seconds(self.duration_s / 5.0),
            duration_s: self.seconds(self.duration_s),
            timeout_s: Self::TIMEOUT_S,
        })
    }

    fn paced(self, members: usize) -> Scenario {
        Scenario::Fanout(fanout::Shape {
            members: self.count(members, 1),
            payload_bytes: 64,
            in_flight: 1,
            rate: Some(100),
            warmup_s: self.seconds(self.duration_s / 5.0),
            // A publish every 10 ms: it takes longer to have enough of them.
            duration_s: self.seconds(self.duration_s * 2.0),
            timeout_s: Self::TIMEOUT_S,
        })
    }

    fn rooms(self) -> Scenario {
        let in_flight = 32;
        Scenario::Rooms(rooms::Shape {
            rooms: self.count(1000, in_flight),
            members: 10,
            payload_bytes: 64,
            in_flight,
            warmup_s: self.seconds(self.duration_s / 5.0),
            duration_s: self.seconds(self.duration_s),
            timeout_s: Self::TIMEOUT_S,
        })
    }

    fn connect(self) -> Scenario {
        Scenario::Connect(connect::Shape {
            connections: self.count(self.connect, 1),
            room_members: 1000,
            joining_max: 64,
            before: 0,
            timeout_s: Self::TIMEOUT_S,
        })
    }

    fn idle(self, connections: usize) -> Scenario {
        Scenario::Idle(idle::Shape {
            connections: self.count(connections, 1),
            room_members: 1000,
            settle_s: self.seconds(self.settle_s),
            timeout_s: Self::TIMEOUT_S,
        })
    }
}

/// Every row.
pub(super) fn all(extent: Extent) -> Vec<Spec> {
    let one_send = |name, title, members, is_quick| Spec {
        name,
        title,
        figure: PER_DELIVERY,
        floor: PeerName::FLOOR,
        goal: Goal::TimesFloor(1.15),
        is_quick,
        scenario: extent.fanout(members, 1, 64),
    };
    let coalescing = |name, title, members, payload_bytes, is_quick| Spec {
        name,
        title,
        figure: PER_DELIVERY,
        floor: PeerName::FLOOR_COALESCING,
        goal: Goal::TimesFloor(1.2),
        is_quick,
        scenario: extent.fanout(members, 32, payload_bytes),
    };
    let latency = |name, title, members| Spec {
        name,
        title,
        figure: fanout::OWN[0],
        floor: PeerName::FLOOR,
        goal: Goal::TimesFloor(1.15),
        is_quick: false,
        scenario: extent.paced(members),
    };
    let memory = |name, title, connections: Option<usize>| Spec {
        name,
        title,
        figure: idle::PER_CONNECTION,
        floor: PeerName::FLOOR,
        goal: Goal::Value(3072.0),
        is_quick: connections.is_none(),
        scenario: extent.idle(connections.unwrap_or(extent.idle)),
    };
    let quick = true;
    vec![
        one_send(
            "fanout-100-w1",
            "room of 100, 64 B, 1 in flight: CPU per delivery",
            100,
            false,
        ),
        one_send(
            "fanout-1000-w1",
            "room of 1,000, 64 B, 1 in flight: CPU per delivery",
            1000,
            quick,
        ),
        one_send(
            "fanout-5000-w1",
            "room of 5,000, 64 B, 1 in flight: CPU per delivery",
            5000,
            false,
        ),
        coalescing(
            "fanout-100-w32",
            "room of 100, 64 B, 32 in flight: CPU per delivery",
            100,
            64,
            false,
        ),
        coalescing(
            "fanout-1000-w32",
            "room of 1,000, 64 B, 32 in flight: CPU per delivery",
            1000,
            64,
            quick,
        ),
        coalescing(
            "fanout-5000-w32",
            "room of 5,000, 64 B, 32 in flight: CPU per delivery",
            5000,
            64,
            false,
        ),
        coalescing(
            "fanout-1000-w32-1k",
            "room of 1,000, 1 KiB, 32 in flight: CPU per delivery",
            1000,
            1024,
            false,
        ),
        Spec {
            name: "rooms-1000x10",
            title: "1,000 rooms of 10, saturated: CPU per delivery",
            figure: PER_DELIVERY,
            floor: PeerName::FLOOR,
            goal: Goal::TimesFloor(1.2),
            is_quick: quick,
            scenario: extent.rooms(),
        },
        Spec {
            name: "connect",
            title: "CPU per connect and join",
            figure: connect::PER_CONNECTION,
            floor: PeerName::FLOOR,
            goal: Goal::TimesFloor(1.5),
            is_quick: quick,
            scenario: extent.connect(),
        },
        memory(
            "idle-5000",
            "resident bytes per idle joined connection, 5,000 of them",
            Some(5_000),
        ),
        memory(
            "idle-10000",
            "resident bytes per idle joined connection, 10,000 of them",
            Some(10_000),
        ),
        memory("idle", "resident bytes per idle joined connection", None),
        latency(
            "latency-100",
            "room of 100, 100 publishes/s: own message back, p50",
            100,
        ),
        latency(
            "latency-1000",
            "room of 1,000, 100 publishes/s: own message back, p50",
            1000,
        ),
    ]
}

impl Spec {
    /// Whether a peer has a cell here: of the floors the row's own, a token is only checked in `connect`, and TLS is a
    /// scenario of its own.
    pub(super) fn takes(&self, peer: PeerName) -> bool {
        if [PeerName::FLOOR, PeerName::FLOOR_COALESCING].contains(&peer) {
            return peer == self.floor;
        }
        if PeerName::ENCRYPTED.contains(&peer) {
            return false;
        }
        peer != PeerName::ROOMFUL_TOKEN || self.figure == connect::PER_CONNECTION
    }

    /// Measures a server.
    pub(super) fn measure(&self, subject: Subject) -> Result<Measurement> {
        match self.scenario {
            Scenario::Fanout(shape) => fanout::measure(subject, shape),
            Scenario::Rooms(shape) => rooms::measure(subject, shape),
            Scenario::Connect(shape) => connect::measure(subject, shape),
            Scenario::Idle(shape) => idle::measure(subject, shape),
        }
    }

    /// Whether runs of the same length differ so little that one is enough for an impression: memory does.
    pub(super) const fn is_steady(&self) -> bool {
        matches!(self.scenario, Scenario::Idle(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_has_the_rows_that_it_promises() {
        let rows = all(Extent::QUICK);
        let names: Vec<&str> = rows
            .iter()
            .filter(|row| row.is_quick)
            .map(|row| row.name)
            .collect();
        let expected = [
            "fanout-1000-w1",
            "fanout-1000-w32",
            "rooms-1000x10",
            "connect",
            "idle",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_scaled_room_still_has_its_publishers() {
        let extent = Extent {
            scale: 0.001,
            ..Extent::FULL
        };
        let Scenario::Fanout(shape) = extent.fanout(1000, 32, 64) else {
            panic!("a fan-out");
        };
        assert_eq!((shape.members, shape.in_flight), (32, 32));
    }

    #[test]
    fn a_token_is_measured_where_it_is_checked() {
        for row in all(Extent::FULL) {
            assert_eq!(row.takes(PeerName::ROOMFUL_TOKEN), row.name == "connect");
            assert!(
                row.takes(row.floor) && row.takes(PeerName::ROOMFUL),
                "{}",
                row.name
            );
        }
    }
}
