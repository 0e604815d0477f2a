//! `idle`: joined connections that do nothing, and the memory they take.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::traffic::{Layout, Traffic};
use super::{Deadline, Subject, TargetArgs, check_files};
use crate::console::Bar;
use crate::process::resident_bytes;
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
    /// Connections; this program and the server need an open file for each
    #[arg(long, default_value_t = 19_000)]
    pub(crate) connections: usize,
    /// Members of a room
    #[arg(long, default_value_t = 1000)]
    pub(crate) room_members: usize,
    /// Seconds of rest between the last join and the second look at the memory
    #[arg(long, default_value_t = 2.0)]
    pub(crate) settle_s: f64,
    /// Seconds after which the scenario fails, connecting included
    #[arg(long, default_value_t = 180.0)]
    pub(crate) timeout_s: f64,
}

/// Name of the figure.
pub(crate) const PER_CONNECTION: &str = "server resident bytes per connection";

/// Runs the command.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn run(args: &Args) -> Result<()> {
    let target = args.target.target()?;
    let measurement = target.measure(|subject| measure(subject, args.shape))?;
    args.target.report(&target, &measurement)
}

/// Measures a server: its resident memory before the first connection and after the last has joined and come to rest. One
/// publish in each room then proves that all of them were in.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn measure(subject: Subject, shape: Shape) -> Result<Measurement> {
    ensure!(
        shape.connections > 0 && shape.room_members > 0,
        "neither --connections nor --room-members may be 0"
    );
    check_files(shape.connections)?;
    let settings = [
        ("connections", shape.connections.to_string()),
        ("members of a room", shape.room_members.to_string()),
    ];
    let mut measurement = Measurement::new("idle", subject.peer.name(), settings.to_vec());
    let pid = subject.pid;
    let deadline = Deadline::after(Duration::try_from_secs_f64(shape.timeout_s)?);
    let swarm = Swarm::new(subject.peer, subject.address, subject.waiting)?;
    let plan = Plan {
        connections: shape.connections,
        room_members: shape.room_members,
        joining_max: 64,
    };
    let layout = Layout {
        publishers: 1,
        payload_bytes: Pattern::BYTES_MIN,
    };

    let before = resident_bytes(pid)?;
    let mut traffic = Traffic::open(swarm, plan, layout, deadline)?;
    let settle = Duration::try_from_secs_f64(shape.settle_s)?;
    let bar = Bar::timing("resting", settle);
    traffic.wait(settle)?;
    drop(bar);
    let after = resident_bytes(pid)?;
    traffic.call_the_roll()?;

    let connections = shape.connections as f64;
    measurement.add(Figure::new(
        PER_CONNECTION,
        "B",
        (after as f64 - before as f64) / connections,
    ));
    measurement.add(Figure::new(
        "server resident before",
        "KiB",
        before as f64 / 1024.0,
    ));
    measurement.add(Figure::new(
        "server resident after",
        "KiB",
        after as f64 / 1024.0,
    ));
    Ok(measurement)
}
