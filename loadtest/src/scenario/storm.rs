//! `storm`: all clients lose their connections and resume at once, each with events to catch up.
//!
//! Each room has a host, who stays, watches its members, and publishes while the others are away. Then all come back: each must
//! resume its session as the same member, get every event it missed once and in order, and the hosts must not see anybody go or come. Meanwhile
//! another process watches a healthy room. A client that is refused with a time (`--set admission.connects_per_s=2000`) comes again then. The figures are the time and processor time until all have caught up, and the p99 of
//! the healthy room over what it was in the calm before.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use roomful_protocol::frame::Watch;
use tokio::time::Instant;

use super::bystander::Bystander;
use super::usage::Meter;
use super::{Deadline, Subject, TargetArgs, check_files};
use crate::console::Bar;
use crate::crowd::{Crowd, Told};
use crate::latency::{Names, quantiles};
use crate::pool::Waiting;
use crate::process::resident_bytes;
use crate::report::{Figure, Measurement};
use crate::verify::{Key, Pattern};

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
    /// Clients; this program and the server need an open file for each
    #[arg(long, default_value_t = 15_000)]
    pub(crate) connections: usize,
    /// Clients of a room; each room has one more, the host
    #[arg(long, default_value_t = 100)]
    pub(crate) room_members: usize,
    /// Events that each client is behind when it comes back; at most what a room keeps as history
    #[arg(long, default_value_t = 100)]
    pub(crate) behind: u32,
    /// Length of a payload, in bytes; at least 8
    #[arg(long, default_value_t = 64)]
    pub(crate) payload_bytes: usize,
    /// Seconds of calm before, for the healthy room's latency without the storm
    #[arg(long, default_value_t = 5.0)]
    pub(crate) calm_s: f64,
    /// Seconds within which all must have caught up; below the server's presence grace, or members go
    #[arg(long, default_value_t = 12.0)]
    pub(crate) storm_max_s: f64,
    /// Seconds after which the scenario fails, connecting included
    #[arg(long, default_value_t = 120.0)]
    pub(crate) timeout_s: f64,
}

/// Names of the figures.
pub(crate) const SECONDS: &str = "until all have caught up";
pub(crate) const RATIO: &str = "healthy room's p99, in the storm / before";
const REFUSALS: &str = "told to come again later, times per client";
const LONGEST_AWAY: &str = "healthy room's longest, cut and away";
const LONGEST_BACK: &str = "healthy room's longest, coming back";
const CALM: Names = quantiles!("healthy room before");
const STORM: Names = quantiles!("healthy room in the storm");

/// Longer than the server gathers changes of presence.
const SETTLE: Duration = Duration::from_millis(500);

/// The clients and their hosts.
#[derive(Debug)]
struct Storm {
    crowd: Crowd,
    shape: Shape,
    /// Clients come first, then the hosts.
    rooms: usize,
    pattern: Pattern,
    deadline: Deadline,
    told: Reports,
}

/// What the clients and hosts were told.
#[derive(Debug, Default)]
struct Reports {
    clients: usize,
    /// Events of the clients.
    events: u64,
    /// Clients that have caught up.
    caught_up: usize,
    /// Replies to the hosts.
    published: u64,
    /// Whether a host that sees somebody come or go has met a fault.
    is_steady: bool,
}

/// Runs the command.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn run(args: &Args) -> Result<()> {
    args.target.need_roomful("storm")?;
    args.target.run(|subject| measure(&subject, args.shape))
}

/// Measures a server.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn measure(subject: &Subject, shape: Shape) -> Result<Measurement> {
    shape.check()?;
    let mut measurement = Measurement::new("storm", subject.peer.name(), shape.settings());
    let mut storm = Storm::open(subject, shape)?;
    let mut bystander = Bystander::start(subject.address)?;
    storm.wait(SETTLE)?;
    bystander.ask()?;
    let calm_for = Duration::try_from_secs_f64(shape.calm_s)?;
    let bar = Bar::timing("calm", calm_for);
    storm.wait(calm_for)?;
    drop(bar);
    let calm = bystander.ask()?;

    storm.told.is_steady = true;
    let (before, refused) = (resident_bytes(subject.pid)?, storm.crowd.refusals());
    let start = Instant::now();
    let meter = Meter::start(subject.pid, storm.crowd.spun())?;
    storm.cut();
    storm.publish()?;
    let away = start.elapsed();
    let mut stormy = bystander.ask()?;
    measurement.add(Figure::new(LONGEST_AWAY, "µs", stormy.us_at(1.0)?));
    storm.come_back()?;
    let all = start.elapsed();
    let usage = meter.stop(storm.crowd.spun())?;
    let back = bystander.ask()?;
    measurement.add(Figure::new(LONGEST_BACK, "µs", back.us_at(1.0)?));
    stormy.add(&back);
    storm.finish()?;
    bystander.finish()?;

    let back = all - away;
    measurement.add(Figure::new(
        SECONDS,
        "s, from the first reconnect",
        back.as_secs_f64(),
    ));
    measurement.add(Figure::new("away before that", "s", away.as_secs_f64()));
    let seconds = usage.server.as_secs_f64();
    measurement.add(Figure::new("server CPU", "s, from the cut on", seconds));
    let each = usage.server_us_per(shape.connections as u64);
    measurement.add(Figure::new("server CPU per client", "µs", each));
    let refused = (storm.crowd.refusals() - refused) as f64 / shape.connections as f64;
    measurement.add(Figure::new(REFUSALS, "", refused));
    let resident = resident_bytes(subject.pid)?;
    let growth = (resident as f64 - before as f64) / 1_048_576.0;
    measurement.add(Figure::new(
        "server resident, more than before the storm",
        "MiB",
        growth,
    ));
    let events = storm.told.events as f64;
    measurement.add(Figure::new("events caught up", "", events));
    let rate = events / back.as_secs_f64();
    measurement.add(Figure::new("events per second", "", rate));
    let ratio = stormy.us_at(0.99)? / calm.us_at(0.99)?;
    measurement.add(Figure::new(RATIO, "×", ratio));
    measurement.add_latency(&calm, "healthy room before", CALM)?;
    measurement.add_latency(&stormy, "healthy room in the storm", STORM)?;
    usage
        .shares()
        .into_iter()
        .for_each(|share| measurement.add(share));
    Ok(measurement)
}

impl Shape {
    fn check(&self) -> Result<()> {
        ensure!(
            self.connections > 0 && self.room_members > 0 && self.behind > 0,
            "none of --connections, --room-members and --behind may be 0"
        );
        Pattern::check(self.payload_bytes)?;
        check_files(self.connections + self.rooms())
    }

    const fn rooms(&self) -> usize {
        self.connections.div_ceil(self.room_members)
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("connections", self.connections.to_string()),
            ("rooms", self.rooms().to_string()),
            ("events behind", self.behind.to_string()),
            ("payload bytes", self.payload_bytes.to_string()),
        ]
    }
}

impl Storm {
    fn open(subject: &Subject, shape: Shape) -> Result<Self> {
        let deadline = Deadline::after(Duration::try_from_secs_f64(shape.timeout_s)?);
        // The healthy room needs the processor whenever it has something to do, so this one doesn't spin.
        let mut crowd = Crowd::new(subject, Waiting::Sleep)?;
        crowd.heed_refusals();
        let rooms = shape.rooms();
        for room in 0..rooms {
            let rest = shape.connections - room * shape.room_members;
            crowd.add(rest.min(shape.room_members), "chat", room, Watch::None)?;
        }
        for room in 0..rooms {
            crowd.add(1, "chat", room, Watch::Members)?;
        }
        let told = Reports {
            clients: shape.connections,
            ..Reports::default()
        };
        let mut storm = Self {
            crowd,
            shape,
            rooms,
            pattern: Pattern::new(shape.payload_bytes),
            deadline,
            told,
        };
        storm.enter(0..shape.connections + rooms, JOINING_MAX)?;
        Ok(storm)
    }

    fn cut(&mut self) {
        (0..self.shape.connections).for_each(|client| self.crowd.cut(client));
    }

    /// The hosts publish what the others miss; all of it must be taken before they come back.
    fn publish(&mut self) -> Result<()> {
        for sequence in 1..=self.shape.behind {
            for room in 0..self.rooms {
                let host = self.shape.connections + room;
                let key = Key {
                    publisher: 0,
                    sequence,
                };
                self.crowd.publish(host, self.pattern.write(key))?;
            }
            self.turn(Duration::ZERO)?;
        }
        let all = u64::from(self.shape.behind) * self.rooms as u64;
        while self.told.published < all {
            self.turn(TURN_MAX)?;
        }
        Ok(())
    }

    /// Everybody at once.
    fn come_back(&mut self) -> Result<()> {
        let storm_max = Duration::try_from_secs_f64(self.shape.storm_max_s)?;
        let whole = std::mem::replace(&mut self.deadline, Deadline::after(storm_max));
        self.enter(0..self.shape.connections, self.shape.connections)?;
        let bar = Bar::counting("catching up", self.shape.connections);
        while self.told.caught_up < self.shape.connections {
            bar.reach(self.told.caught_up);
            self.turn(TURN_MAX)?;
        }
        self.deadline = whole;
        Ok(())
    }

    /// Whatever still comes now is too much; and nobody lacks anything.
    fn finish(&mut self) -> Result<()> {
        self.wait(SETTLE)?;
        let expected = u64::from(self.shape.behind) * self.shape.connections as u64;
        ensure!(
            self.told.events == expected,
            "lost or doubled: {} events came where {expected} were missed",
            self.told.events
        );
        for client in 0..self.shape.connections {
            let offset = self.crowd.offset(client);
            ensure!(
                offset == u64::from(self.shape.behind),
                "lost: client {client} stands at offset {offset} of {}",
                self.shape.behind
            );
        }
        Ok(())
    }

    fn enter(&mut self, who: std::ops::Range<usize>, joining_max: usize) -> Result<()> {
        let Self {
            crowd,
            told,
            pattern,
            deadline,
            ..
        } = self;
        crowd.enter(who, joining_max, deadline, &mut |index, what| {
            told.hear(pattern, index, &what)
        })
    }

    fn wait(&mut self, duration: Duration) -> Result<()> {
        let Self {
            crowd,
            told,
            pattern,
            deadline,
            ..
        } = self;
        crowd.wait(duration, deadline, &mut |index, what| {
            told.hear(pattern, index, &what)
        })
    }

    fn turn(&mut self, wait: Duration) -> Result<()> {
        let Self {
            crowd,
            told,
            pattern,
            ..
        } = self;
        crowd.turn(wait, &mut |index, what| told.hear(pattern, index, &what))?;
        self.deadline.check(|| {
            format!(
                "{} of {} clients have caught up, with {} events",
                self.told.caught_up, self.told.clients, self.told.events
            )
        })
    }
}

/// On their way at a time when they come for the first time.
const JOINING_MAX: usize = 64;

const TURN_MAX: Duration = Duration::from_millis(100);

impl Reports {
    fn hear(&mut self, pattern: &Pattern, index: usize, told: &Told<'_>) -> Result<()> {
        match told {
            Told::Event { offset, payload } => {
                // A room's log begins with its host's first publish.
                let Key { sequence, .. } = pattern.read(payload)?;
                ensure!(
                    u64::from(sequence) == *offset,
                    "out of order: publish {sequence} stands at offset {offset}"
                );
                self.events += u64::from(index < self.clients);
            }
            Told::CaughtUp => self.caught_up += 1,
            Told::Published => self.published += 1,
            Told::Presence(delta) if self.is_steady && !delta.changes.is_empty() => bail!(
                "presence flickered: a host was told of {} changes while members only reconnected",
                delta.changes.len()
            ),
            Told::Joined(_) | Told::Left | Told::Signal(_) | Told::Presence(_) => {}
        }
        Ok(())
    }
}
