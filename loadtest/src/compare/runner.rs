//! Runs the rows: every peer in turn, repeat by repeat, each with a fresh process.
//!
//! Whatever else the machine does falls on all of a repeat's peers, and the order changes with each repeat. A run that fails
//! costs its peer the cell, and the row its wholeness; without the floor, there is nothing to compare with, and the row ends.

use anyhow::Result;

use super::comparison::{Cell, Failure, Row, Run, pairs};
use super::rows::Spec;
use crate::console::{self, Runs};
use crate::peer::PeerName;
use crate::report::{Spread, ratios};
use crate::scenario::Target;

/// A peer that can be started.
#[derive(Debug)]
pub(super) struct Contestant {
    /// Who.
    pub(super) name: PeerName,
    /// How it is started.
    pub(super) target: Target,
    /// Runs of each row.
    pub(super) runs: u32,
}

/// A row under way.
#[derive(Debug)]
pub(super) struct Runner<'a> {
    spec: Spec,
    lanes: Vec<Lane<'a>>,
    failures: Vec<Failure>,
}

/// The runs of one peer.
#[derive(Debug)]
struct Lane<'a> {
    contestant: &'a Contestant,
    runs: Vec<Run>,
}

impl<'a> Runner<'a> {
    /// Nothing has been run yet.
    pub(super) fn new(spec: Spec, contestants: &'a [Contestant]) -> Self {
        let taken = contestants
            .iter()
            .filter(|contestant| spec.takes(contestant.name));
        let lane = |contestant| Lane {
            contestant,
            runs: Vec::new(),
        };
        Self {
            spec,
            lanes: taken.map(lane).collect(),
            failures: Vec::new(),
        }
    }

    /// What is measured.
    pub(super) const fn spec(&self) -> &Spec {
        &self.spec
    }

    /// How many runs it will have.
    pub(super) fn runs(&self) -> usize {
        let runs = self.lanes.iter().map(|lane| lane.contestant.runs as usize);
        runs.sum()
    }

    /// How many peers it has.
    pub(super) const fn peers(&self) -> usize {
        self.lanes.len()
    }

    /// One run of everybody who has one in this repeat, of `repeats`.
    pub(super) fn repeat(&mut self, repeat: u32, repeats: u32, bar: &mut Runs) {
        let turns: Vec<PeerName> = self
            .lanes
            .iter()
            .filter(|lane| has_turn(repeat, repeats, lane.contestant.runs))
            .map(|lane| lane.contestant.name)
            .collect();
        for peer in rotated(turns, repeat) {
            if !self.is_over() && !console::interrupted() {
                self.run(peer, repeat, bar);
            }
        }
    }

    /// The row, of what has been run.
    pub(super) fn finish(self) -> Row {
        let floor = self
            .lanes
            .iter()
            .find(|lane| lane.contestant.name == self.spec.floor);
        let floor = floor.map_or(&[][..], |lane| &lane.runs);
        let times_floor: Vec<Option<Spread>> = self
            .lanes
            .iter()
            .map(|lane| times(&lane.runs, floor))
            .collect();
        let first = self.lanes.iter().flat_map(|lane| &lane.runs).next();
        let unit = first
            .and_then(|run| run.measurement.figure(self.spec.figure).ok())
            .map_or("", |figure| figure.unit);
        let cells = self.lanes.into_iter().zip(times_floor);
        let cell = |(lane, times_floor): (Lane<'_>, _)| Cell {
            peer: lane.contestant.name,
            value: Spread::of(&lane.runs.iter().map(|run| run.value).collect::<Vec<_>>()),
            times_floor,
            runs: lane.runs,
        };
        Row {
            name: self.spec.name,
            title: self.spec.title,
            figure: self.spec.figure,
            unit,
            floor: self.spec.floor,
            goal: Some(self.spec.goal),
            cells: cells
                .map(cell)
                .filter(|cell| !cell.runs.is_empty())
                .collect(),
            failures: self.failures,
        }
    }

    fn is_over(&self) -> bool {
        self.failures
            .iter()
            .any(|failure| failure.peer == self.spec.floor)
    }

    fn run(&mut self, peer: PeerName, repeat: u32, bar: &mut Runs) {
        let index = self
            .lanes
            .iter()
            .position(|lane| lane.contestant.name == peer);
        let Some(index) = index else { return };
        let lane = &mut self.lanes[index];
        bar.begin(&format!("{}: {peer}", self.spec.name));
        match measure(&self.spec, lane.contestant, repeat) {
            Ok(run) => lane.runs.push(run),
            Err(error) => {
                self.lanes.remove(index);
                self.failures.push(Failure {
                    peer,
                    reason: format!("{error:#}"),
                });
            }
        }
    }
}

fn measure(spec: &Spec, contestant: &Contestant, repeat: u32) -> Result<Run> {
    let measured = contestant.target.measure(|subject| spec.measure(subject));
    let measurement = measured?;
    Ok(Run {
        repeat,
        value: measurement.figure(spec.figure)?.value,
        measurement,
    })
}

/// One over the other, of the repeats that both have. Memory that the floor doesn't take can't be divided by.
fn times(runs: &[Run], floor: &[Run]) -> Option<Spread> {
    let (values, floors) = pairs(runs, floor);
    let divisible = !floors.is_empty() && floors.iter().all(|floor| *floor > 0.0);
    divisible.then(|| Spread::of(&ratios(&values, &floors)))
}

/// Fewer runs than repeats are spread evenly over them, so that a drift of the machine falls on all.
const fn has_turn(repeat: u32, repeats: u32, runs: u32) -> bool {
    repeat * runs / repeats < (repeat + 1) * runs / repeats
}

fn rotated(mut turns: Vec<PeerName>, repeat: u32) -> Vec<PeerName> {
    if !turns.is_empty() {
        let middle = repeat as usize % turns.len();
        turns.rotate_left(middle);
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Measurement;

    fn runs(values: &[f64]) -> Vec<Run> {
        let run = |(repeat, value): (u32, &f64)| Run {
            repeat,
            value: *value,
            measurement: Measurement::new("fanout", "x", Vec::new()),
        };
        (0..).zip(values).map(run).collect()
    }

    #[test]
    fn fewer_runs_are_spread_over_the_repeats() {
        let turns = |repeats, runs| -> Vec<u32> {
            (0..repeats)
                .filter(|repeat| has_turn(*repeat, repeats, runs))
                .collect()
        };
        assert_eq!(turns(9, 9).len(), 9);
        assert_eq!(turns(9, 3), [2, 5, 8]);
        assert_eq!(turns(9, 0), [0; 0]);
        assert_eq!(turns(1, 1), [0]);
    }

    #[test]
    fn everybody_begins_once() {
        let peers: Vec<PeerName> = PeerName::all().take(3).collect();
        let firsts: Vec<PeerName> = (0..3)
            .map(|repeat| rotated(peers.clone(), repeat)[0])
            .collect();
        assert_eq!(firsts, peers);
        assert!(rotated(Vec::new(), 7).is_empty());
    }

    #[test]
    fn ratios_are_taken_run_by_run() {
        let times_floor = times(&runs(&[2.0, 6.0, 9.0]), &runs(&[1.0, 2.0, 9.0])).unwrap();
        assert_eq!(
            (times_floor.min, times_floor.median, times_floor.max),
            (1.0, 2.0, 3.0)
        );
        assert!(times(&runs(&[1.0]), &runs(&[0.0])).is_none());
        assert!(times(&runs(&[1.0]), &[]).is_none());
    }
}
