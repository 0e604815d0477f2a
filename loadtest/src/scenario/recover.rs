//! `recover`: clients come back from far behind.
//!
//! All are in one room and lose their connections; a host publishes while they are away; then they come back and page through everything they
//! missed. The figures are events per second, and the server's processor time for each event that one client recovered.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Result, ensure};
use roomful_protocol::frame::Watch;
use tokio::time::Instant;

use super::usage::Meter;
use super::{Deadline, Subject, TargetArgs, check_files};
use crate::console::Bar;
use crate::crowd::{Crowd, Told};
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
    /// Clients that come back
    #[arg(long, default_value_t = 100)]
    pub(crate) connections: usize,
    /// Clients on their way back at a time
    #[arg(long, default_value_t = 64)]
    pub(crate) joining_max: usize,
    /// Events that each client is behind. The room is in the namespace `replay`, whose history has to hold them
    #[arg(long, default_value_t = 10_000)]
    pub(crate) behind: u32,
    /// Length of a payload, in bytes; at least 8
    #[arg(long, default_value_t = 64)]
    pub(crate) payload_bytes: usize,
    /// Seconds after which the scenario fails, connecting included
    #[arg(long, default_value_t = 120.0)]
    pub(crate) timeout_s: f64,
}

/// Name of the figure.
pub(crate) const PER_EVENT: &str = "server CPU per recovered event";

/// Publishes of the host on their way at a time.
const PUBLISHING_MAX: u32 = 256;

const TURN_MAX: Duration = Duration::from_millis(100);

/// After the last event, for what shouldn't come any more.
const SETTLE: Duration = Duration::from_millis(300);

/// What the clients were told.
#[derive(Debug)]
struct Reports {
    pattern: Pattern,
    /// The clients; the host isn't one.
    clients: Range<usize>,
    events: u64,
    caught_up: usize,
    published: u32,
}

/// Runs the command.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn run(args: &Args) -> Result<()> {
    args.target.need_roomful("recover")?;
    args.target.run(|subject| measure(&subject, args.shape))
}

/// Measures a server.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn measure(subject: &Subject, shape: Shape) -> Result<Measurement> {
    shape.check()?;
    let mut measurement = Measurement::new("recover", subject.peer.name(), shape.settings());
    let deadline = Deadline::after(Duration::try_from_secs_f64(shape.timeout_s)?);
    let mut crowd = Crowd::new(subject, subject.waiting)?;
    let clients = crowd.add(shape.connections, "replay", 0, Watch::None)?;
    let host = crowd.add(1, "replay", 0, Watch::None)?;
    let mut reports = Reports {
        pattern: Pattern::new(shape.payload_bytes),
        clients: clients.clone(),
        events: 0,
        caught_up: 0,
        published: 0,
    };
    let everybody = clients.start..host.end;
    crowd.enter(everybody, 64, &deadline, &mut |index, told| {
        reports.hear(index, &told)
    })?;
    clients.clone().for_each(|client| crowd.cut(client));
    reports.publish(&mut crowd, host.start, shape.behind, &deadline)?;

    let messages = crowd.messages();
    let meter = Meter::start(subject.pid, crowd.spun())?;
    let start = Instant::now();
    crowd.enter(clients, shape.joining_max, &deadline, &mut |index, told| {
        reports.hear(index, &told)
    })?;
    let bar = Bar::counting("catching up", shape.connections);
    while reports.caught_up < shape.connections {
        bar.reach(reports.caught_up);
        crowd.turn(TURN_MAX, &mut |index, told| reports.hear(index, &told))?;
        deadline.check(|| format!("{} clients have caught up", reports.caught_up))?;
    }
    drop(bar);
    let took = start.elapsed().as_secs_f64();
    let usage = meter.stop(crowd.spun())?;
    let messages = crowd.messages() - messages;
    crowd.wait(SETTLE, &deadline, &mut |index, told| {
        reports.hear(index, &told)
    })?;
    reports.finish(&crowd, shape)?;

    let events = reports.events as f64;
    measurement.add(Figure::new(
        PER_EVENT,
        "µs",
        usage.server_us_per(reports.events),
    ));
    measurement.add(Figure::new("events per second", "", events / took));
    measurement.add(Figure::new("until all have caught up", "s", took));
    measurement.add(Figure::new("events", "", events));
    measurement.add(Figure::new("messages", "", messages as f64));
    usage
        .shares()
        .into_iter()
        .for_each(|share| measurement.add(share));
    Ok(measurement)
}

impl Shape {
    fn check(&self) -> Result<()> {
        ensure!(
            self.connections > 0 && self.behind > 0 && self.joining_max > 0,
            "none of --connections, --behind and --joining-max may be 0"
        );
        Pattern::check(self.payload_bytes)?;
        check_files(self.connections + 1)
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("connections", self.connections.to_string()),
            ("events behind", self.behind.to_string()),
            ("payload bytes", self.payload_bytes.to_string()),
            ("joining at a time", self.joining_max.to_string()),
        ]
    }
}

impl Reports {
    /// Has the host publish so many events, and waits until the server has taken them.
    fn publish(
        &mut self,
        crowd: &mut Crowd,
        host: usize,
        count: u32,
        deadline: &Deadline,
    ) -> Result<()> {
        let mut sequence = 0;
        while self.published < count {
            while sequence < count.min(self.published + PUBLISHING_MAX) {
                sequence += 1;
                let key = Key {
                    publisher: 0,
                    sequence,
                };
                crowd.publish(host, self.pattern.write(key))?;
            }
            crowd.turn(TURN_MAX, &mut |index, told| self.hear(index, &told))?;
            deadline.check(|| format!("{} of {count} events are published", self.published))?;
        }
        Ok(())
    }

    fn hear(&mut self, index: usize, told: &Told<'_>) -> Result<()> {
        match told {
            Told::Event { offset, payload } => {
                // The log begins with the host's first publish.
                let Key { sequence, .. } = self.pattern.read(payload)?;
                ensure!(
                    u64::from(sequence) == *offset,
                    "out of order: publish {sequence} stands at offset {offset}"
                );
                self.events += u64::from(self.clients.contains(&index));
            }
            Told::CaughtUp => self.caught_up += 1,
            Told::Published => self.published += 1,
            Told::Joined(_) | Told::Left | Told::Signal(_) | Told::Presence(_) => {}
        }
        Ok(())
    }

    /// Nobody lacks anything, or has anything twice.
    fn finish(&self, crowd: &Crowd, shape: Shape) -> Result<()> {
        let behind = u64::from(shape.behind);
        for client in self.clients.clone() {
            let offset = crowd.offset(client);
            ensure!(
                offset == behind,
                "lost: client {client} stands at offset {offset} of {behind}"
            );
        }
        let expected = behind * self.clients.len() as u64;
        ensure!(
            self.events == expected,
            "lost or doubled: {} events came where {expected} were missed",
            self.events
        );
        Ok(())
    }
}
