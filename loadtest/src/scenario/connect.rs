//! `connect`: connections come, say hello and join, and the processor time that this takes.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::traffic::{Layout, Traffic};
use super::usage::Meter;
use super::{Deadline, Subject, TargetArgs, check_files};
use crate::report::{Figure, Measurement};
use crate::swarm::{Plan, Swarm};
use crate::tls::Secure;
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
    #[arg(long, default_value_t = 10_000)]
    pub(crate) connections: usize,
    /// Members of a room
    #[arg(long, default_value_t = 1000)]
    pub(crate) room_members: usize,
    /// Connections on their way at a time
    #[arg(long, default_value_t = 64)]
    pub(crate) joining_max: usize,
    /// Connections that come before measuring begins, and stay
    #[arg(long, default_value_t = 0)]
    pub(crate) before: usize,
    /// Seconds after which the scenario fails
    #[arg(long, default_value_t = 120.0)]
    pub(crate) timeout_s: f64,
}

/// Name of the figure.
pub(crate) const PER_CONNECTION: &str = "server CPU per connect and join";
pub(crate) const RESUMED: &str = "resumed TLS sessions";

/// Runs the command.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn run(args: &Args) -> Result<()> {
    args.target.run(|subject| measure(subject, args.shape))
}

/// Measures a server from the first connect to the last join: TCP, upgrade, hello and join. One publish in each room then proves that
/// all of them were in.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn measure(subject: Subject, shape: Shape) -> Result<Measurement> {
    let Shape {
        connections,
        room_members,
        joining_max,
        before,
        timeout_s,
    } = shape;
    ensure!(
        connections > 0 && room_members > 0 && joining_max > 0,
        "none of --connections, --room-members and --joining-max may be 0"
    );
    check_files(before + connections)?;
    let settings = [
        ("connections", connections.to_string()),
        ("members of a room", room_members.to_string()),
        ("joining at a time", joining_max.to_string()),
    ];
    let mut measurement = Measurement::new("connect", subject.peer.name(), settings.to_vec());
    let (pid, secure) = (subject.pid, subject.peer.secure().cloned());
    let mut swarm = Swarm::new(subject.peer, subject.address, subject.waiting)?;
    let deadline = Deadline::after(Duration::try_from_secs_f64(timeout_s)?);
    let layout = Layout {
        publishers: 1,
        payload_bytes: Pattern::BYTES_MIN,
    };

    let plan = |connections| Plan {
        connections,
        room_members,
        joining_max,
    };
    swarm.open(plan(before), &deadline)?;
    let resumed_before = secure.as_ref().map_or(0, Secure::resumed);
    let meter = Meter::start(pid, swarm.spun())?;
    let mut traffic = Traffic::open(swarm, plan(before + connections), layout, deadline)?;
    traffic.rest()?;
    let usage = meter.stop(traffic.spun())?;
    traffic.call_the_roll()?;

    measurement.add(Figure::new(
        PER_CONNECTION,
        "µs",
        usage.server_us_per(connections as u64),
    ));
    if let Some(secure) = secure {
        let resumed = (secure.resumed() - resumed_before) as f64;
        measurement.add(Figure::new(RESUMED, "", resumed));
    }
    let per_second = connections as f64 / usage.wall.as_secs_f64();
    measurement.add(Figure::new("connections per second", "", per_second));
    usage
        .shares()
        .into_iter()
        .for_each(|share| measurement.add(share));
    Ok(measurement)
}
