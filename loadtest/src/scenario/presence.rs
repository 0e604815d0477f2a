//! `presence`: many members watch who is in their room while others come and go.
//!
//! Some watch the members, some only their number. Those who come and go stay a second and leave, on connections that stay open, each time as
//! a new member. The figures are how many frames a watching member is sent, and the server's processor time for each of them,
//! joining and leaving included. At the end everybody must know who is there.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Result, ensure};
use roomful_protocol::frame::{ChangeKind, PresenceDelta, Watch};
use roomful_protocol::id::MemberId;

use super::pace::{Schedule, wait_for};
use super::usage::Meter;
use super::{Deadline, Subject, TargetArgs, check_files};
use crate::console::Bar;
use crate::crowd::{Crowd, Told};
use crate::report::{Figure, Measurement};

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
    /// Members of the room that watch
    #[arg(long, default_value_t = 2000)]
    pub(crate) members: usize,
    /// Those of them that watch only how many there are, in percent
    #[arg(long, default_value_t = 10, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(..=100))]
    pub(crate) occupancy_only: u8,
    /// Joins a second, and as many leaves
    #[arg(long, default_value_t = 50)]
    pub(crate) rate: u32,
    /// Seconds of joining and leaving
    #[arg(long, default_value_t = 10.0)]
    pub(crate) duration_s: f64,
    /// Seconds after which the scenario fails, connecting included
    #[arg(long, default_value_t = 120.0)]
    pub(crate) timeout_s: f64,
}

/// Names of the figures.
pub(crate) const FRAMES: &str = "delta frames per member and second";
pub(crate) const PER_FRAME: &str = "server CPU per delta frame";

/// Longer than the server gathers changes, so that all are told.
const SETTLE: Duration = Duration::from_millis(500);

/// What a watching member knows.
#[derive(Debug, Clone, Default)]
struct View {
    revision: u64,
    occupancy: u64,
    /// Frames since the counting began.
    frames: u64,
    /// Who came minus who went: a sum that is the same for two views only if they know the same members.
    digest: u64,
}

/// The members that watch.
#[derive(Debug)]
struct Watchers {
    /// Those that watch members come first; then those that watch their number.
    views: Vec<View>,
    of_members: usize,
    changes: u64,
}

/// The members that come and go.
#[derive(Debug)]
struct Churn {
    inside: VecDeque<usize>,
    outside: VecDeque<usize>,
    /// What each is in the room, by its place in the range of clients.
    members: Vec<MemberId>,
    first: usize,
    joins: u64,
    /// What the watchers' digests should be.
    digest: u64,
}

/// Runs the command.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn run(args: &Args) -> Result<()> {
    args.target.need_roomful("presence")?;
    args.target.run(|subject| measure(&subject, args.shape))
}

/// Measures a server.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn measure(subject: &Subject, shape: Shape) -> Result<Measurement> {
    shape.check()?;
    let deadline = Deadline::after(Duration::try_from_secs_f64(shape.timeout_s)?);
    let mut crowd = Crowd::new(subject, subject.waiting)?;
    let mut watchers = shape.watchers();
    let of_members = crowd.add(watchers.of_members, "chat", 0, Watch::Members)?;
    let rest = shape.members - watchers.of_members;
    let of_number = crowd.add(rest, "chat", 0, Watch::Occupancy)?;
    let coming = crowd.add(shape.churning(), "chat", 0, Watch::None)?;
    let mut churn = Churn::new(&coming);
    let everybody = of_members.start..coming.end;
    debug_assert_eq!(of_number.end, coming.start);
    crowd.enter(everybody, 64, &deadline, &mut |index, told| {
        hear(&mut watchers, &mut churn, index, &told)
    })?;
    for _ in 0..shape.rate {
        churn.leave(&mut crowd)?;
    }
    crowd.wait(SETTLE, &deadline, &mut |index, told| {
        hear(&mut watchers, &mut churn, index, &told)
    })?;
    watchers.begin();
    churn.begin();

    let meter = Meter::start(subject.pid, crowd.spun())?;
    churn.run(&mut crowd, &mut watchers, shape, &deadline)?;
    let frames = watchers.frames();
    crowd.wait(SETTLE, &deadline, &mut |index, told| {
        hear(&mut watchers, &mut churn, index, &told)
    })?;
    let usage = meter.stop(crowd.spun())?;
    watchers.finish(&churn, shape)?;

    let mut measurement = Measurement::new("presence", subject.peer.name(), shape.settings());
    let per_second = |frames: f64| frames / shape.duration_s;
    let mean = |frames: &[u64]| frames.iter().sum::<u64>() as f64 / frames.len().max(1) as f64;
    let (watching, counting) = frames.split_at(watchers.of_members);
    let most = frames.iter().copied().max().unwrap_or(0);
    measurement.add(Figure::new(FRAMES, "mean", per_second(mean(watching))));
    measurement.add(Figure::new(
        "the most of a member",
        "per second",
        per_second(most as f64),
    ));
    if !counting.is_empty() {
        let name = "the same, of those that watch occupancy";
        measurement.add(Figure::new(name, "mean", per_second(mean(counting))));
    }
    let all: u64 = watchers.frames().iter().sum();
    let by_members: u64 = watchers.frames()[..watchers.of_members].iter().sum();
    measurement.add(Figure::new(PER_FRAME, "µs", usage.server_us_per(all)));
    let each = watchers.changes as f64 / by_members.max(1) as f64;
    measurement.add(Figure::new("changes per delta frame", "mean", each));
    measurement.add(Figure::new("joins", "", churn.joins as f64));
    usage
        .shares()
        .into_iter()
        .for_each(|share| measurement.add(share));
    Ok(measurement)
}

fn hear(watchers: &mut Watchers, churn: &mut Churn, index: usize, told: &Told<'_>) -> Result<()> {
    match told {
        Told::Joined(joined) => churn.joined(index, joined.member),
        Told::Presence(delta) => watchers.hear(index, delta)?,
        Told::Left | Told::Event { .. } | Told::CaughtUp | Told::Published | Told::Signal(_) => {}
    }
    Ok(())
}

impl Shape {
    fn check(&self) -> Result<()> {
        ensure!(
            self.members > 0 && self.rate > 0,
            "neither --members nor --rate may be 0"
        );
        ensure!(self.duration_s > 0.0, "--duration-s must be more than 0");
        check_files(self.members + self.churning())
    }

    /// Half of them are in at any moment, and each stays a second.
    const fn churning(&self) -> usize {
        2 * self.rate as usize
    }

    fn watchers(&self) -> Watchers {
        Watchers {
            views: vec![View::default(); self.members],
            of_members: self.members - self.members * usize::from(self.occupancy_only) / 100,
            changes: 0,
        }
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("members that watch", self.members.to_string()),
            ("occupancy only", format!("{} %", self.occupancy_only)),
            ("joins a second", self.rate.to_string()),
            ("leaves a second", self.rate.to_string()),
            ("seconds", self.duration_s.to_string()),
        ]
    }
}

impl Watchers {
    fn hear(&mut self, index: usize, delta: &PresenceDelta) -> Result<()> {
        let Some(view) = self.views.get_mut(index) else {
            anyhow::bail!("a member that watches nothing was sent presence");
        };
        ensure!(
            delta.revision > view.revision || view.frames == 0,
            "doubled or out of order: revision {} of presence came after {}",
            delta.revision,
            view.revision
        );
        ensure!(
            index < self.of_members || delta.changes.is_empty(),
            "member {index} asked for occupancy and was sent {} changes",
            delta.changes.len()
        );
        view.revision = delta.revision;
        view.occupancy = delta.occupancy;
        view.frames += 1;
        self.changes += delta.changes.len() as u64;
        for change in &delta.changes {
            let number = scattered(change.member);
            view.digest = match change.kind {
                ChangeKind::Present => view.digest.wrapping_add(number),
                ChangeKind::Gone => view.digest.wrapping_sub(number),
            };
        }
        Ok(())
    }

    /// Counts from now on.
    fn begin(&mut self) {
        self.changes = 0;
        for view in &mut self.views {
            (view.frames, view.digest) = (0, 0);
        }
    }

    fn frames(&self) -> Vec<u64> {
        self.views.iter().map(|view| view.frames).collect()
    }

    /// Everybody knows what is so.
    fn finish(&self, churn: &Churn, shape: Shape) -> Result<()> {
        let present = (shape.members + churn.inside.len()) as u64;
        for (index, view) in self.views.iter().enumerate() {
            ensure!(
                view.occupancy == present,
                "member {index} was told of {} members, and there are {present}",
                view.occupancy
            );
            ensure!(
                index >= self.of_members || view.digest == churn.digest,
                "lost or doubled: member {index} was told of other members than those who came and went"
            );
        }
        Ok(())
    }
}

impl Churn {
    fn new(clients: &Range<usize>) -> Self {
        Self {
            inside: clients.clone().collect(),
            outside: VecDeque::new(),
            members: vec![MemberId(0); clients.len()],
            first: clients.start,
            joins: 0,
            digest: 0,
        }
    }

    fn begin(&mut self) {
        (self.joins, self.digest) = (0, 0);
    }

    /// The one that has been in for the longest leaves, the one that has been out for the longest joins.
    fn run(
        &mut self,
        crowd: &mut Crowd,
        watchers: &mut Watchers,
        shape: Shape,
        deadline: &Deadline,
    ) -> Result<()> {
        let duration = Duration::try_from_secs_f64(shape.duration_s)?;
        let _bar = Bar::timing("churn", duration);
        let end = Deadline::after(duration);
        // In turn, so that the number of members changes with each.
        let mut schedule = Schedule::new(2.0 * f64::from(shape.rate));
        while let Some(rest) = end.left() {
            let wait = schedule.left().map(|left| left.min(rest));
            crowd.turn(wait.map_or(Duration::ZERO, wait_for), &mut |index, told| {
                hear(watchers, self, index, &told)
            })?;
            if wait.is_none() {
                let (count, _) = schedule.take();
                if count % 2 == 0 {
                    self.join(crowd)?;
                } else {
                    self.leave(crowd)?;
                }
            }
            deadline.check(|| format!("{} joins", self.joins))?;
        }
        Ok(())
    }

    fn join(&mut self, crowd: &mut Crowd) -> Result<()> {
        if let Some(client) = self.outside.pop_front() {
            crowd.join(client)?;
            self.inside.push_back(client);
            self.joins += 1;
        }
        Ok(())
    }

    fn leave(&mut self, crowd: &mut Crowd) -> Result<()> {
        if let Some(client) = self.inside.pop_front() {
            crowd.leave(client)?;
            self.outside.push_back(client);
            let member = self.members[client - self.first];
            self.digest = self.digest.wrapping_sub(scattered(member));
        }
        Ok(())
    }

    fn joined(&mut self, client: usize, member: MemberId) {
        if let Some(place) = client.checked_sub(self.first) {
            self.members[place] = member;
            self.digest = self.digest.wrapping_add(scattered(member));
        }
    }
}

/// Far apart for neighbours, so that a sum of some of them is hardly ever that of others.
const fn scattered(member: MemberId) -> u64 {
    (member.0 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (member.0 << 17)
}

#[cfg(test)]
mod tests {
    use roomful_protocol::frame::PresenceChange;
    use roomful_protocol::id::{RoomAlias, UserId};

    use super::*;

    fn watchers() -> Watchers {
        Watchers {
            views: vec![View::default(); 2],
            of_members: 1,
            changes: 0,
        }
    }

    fn delta(revision: u64, occupancy: u64, members: &[(u64, ChangeKind)]) -> PresenceDelta {
        let change = |(member, kind): &(u64, ChangeKind)| PresenceChange {
            member: MemberId(*member),
            kind: *kind,
            user: UserId::parse("anon-1").unwrap(),
            value: None,
        };
        PresenceDelta {
            room: RoomAlias(1),
            revision,
            occupancy,
            changes: members.iter().map(change).collect(),
        }
    }

    #[test]
    fn a_view_that_was_told_everything_agrees() {
        let mut watchers = watchers();
        let mut churn = Churn::new(&(2..3));
        churn.joined(2, MemberId(9));
        let shape = Shape {
            members: 2,
            occupancy_only: 50,
            rate: 1,
            duration_s: 1.0,
            timeout_s: 1.0,
        };
        let came = delta(5, 3, &[(9, ChangeKind::Present)]);
        watchers.hear(1, &delta(5, 3, &[])).unwrap();
        assert!(watchers.finish(&churn, shape).is_err());
        watchers.hear(0, &came).unwrap();
        watchers.finish(&churn, shape).unwrap();
        assert!(
            watchers
                .hear(0, &came)
                .unwrap_err()
                .to_string()
                .contains("doubled")
        );
    }

    #[test]
    fn who_asked_for_the_number_gets_no_names() {
        let came = delta(5, 3, &[(9, ChangeKind::Present)]);
        let text = watchers().hear(1, &came).unwrap_err().to_string();
        assert!(text.contains("asked for occupancy"), "{text}");
        assert!(watchers().hear(2, &came).is_err());
    }
}
