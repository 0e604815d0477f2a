//! Somebody who comes, joins a room and goes again, at a fixed rate, watched by a process of its own: what a new client waits for.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::time::Instant;

use super::Deadline;
use super::companion::{Companion, questions};
use super::pace::Schedule;
use crate::console;
use crate::latency::Latency;
use crate::peer::PeerName;
use crate::pool::Waiting;
use crate::swarm::{Plan, Swarm};

/// The command of the second process.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the server listens
    address: SocketAddr,
    /// Which protocol to speak
    #[arg(long, value_parser = PeerName::parser(), default_value_t = PeerName::ROOMFUL)]
    peer: PeerName,
    /// Visits per second
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
}

/// The second process, from the first one's side. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Visitor(Companion);

const ALONE: Plan = Plan {
    connections: 1,
    room_members: 1,
    joining_max: 1,
};

const VISIT_MAX: Duration = Duration::from_secs(30);

/// Runs the second process: visits once and says so by an empty line, then visits at its rate, and answers each line with the times since the one
/// before.
///
/// # Errors
/// A visit fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    args.visit()?;
    let questions = questions();
    console::result("");
    let mut schedule = Schedule::new(args.rate);
    let mut latency = Latency::new();
    while answer(&questions, &mut latency, schedule.next_due())? {
        let (_, due) = schedule.take();
        args.visit()?;
        latency.record(due.elapsed());
    }
    Ok(())
}

/// Answers questions until the next visit is due; whether there may be more.
fn answer(questions: &Receiver<()>, latency: &mut Latency, due: Instant) -> Result<bool> {
    loop {
        match questions.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(()) => {
                console::result(&serde_json::to_string(&latency.counts())?);
                *latency = Latency::new();
            }
            Err(RecvTimeoutError::Timeout) => return Ok(true),
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
        }
    }
}

impl Args {
    /// Connects and joins a room of its own.
    fn visit(&self) -> Result<()> {
        let deadline = Deadline::after(VISIT_MAX);
        let mut swarm = Swarm::new(self.peer.adapter(), self.address, Waiting::Sleep)?;
        swarm.open(ALONE, &deadline).context("a visit")
    }
}

impl Visitor {
    /// Starts one, and waits until it has been there once.
    ///
    /// # Errors
    /// It can't be started, or can't join.
    pub(super) fn start(address: SocketAddr, peer: PeerName) -> Result<Self> {
        let arguments = [address.to_string(), format!("--peer={peer}")];
        Ok(Self(Companion::start("visitor", &arguments)?))
    }

    /// What it has timed since it was last asked: from the moment a visit was due until it was in its room.
    ///
    /// # Errors
    /// A visit failed, or there was none.
    pub(super) fn ask(&mut self) -> Result<Latency> {
        let counts: Vec<(u64, u64)> =
            serde_json::from_str(&self.0.ask()?).context("the visitor's answer")?;
        let latency = Latency::of_counts(&counts);
        ensure!(latency.count() > 0, "nobody has visited");
        Ok(latency)
    }
}
