//! A healthy room beside a scenario, watched by a process of its own: what happens to those who have nothing to do with it.
//!
//! It is a [`Companion`] that publishes into a small room of its own at a fixed rate, times every delivery, and tells what it has timed
//! whenever it is asked. The process that asks lowers its own priority, so that the bystander gets the processor whenever it needs it.

use std::net::SocketAddr;
use std::sync::mpsc::TryRecvError;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::Deadline;
use super::companion::{Companion, questions, step_back};
use super::pace::{Pace, Timed};
use super::traffic::{Layout, Traffic};
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
    /// Members of the room
    #[arg(long, default_value_t = 10)]
    members: usize,
    /// Publishes per second
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Seconds after which it gives up
    #[arg(long, default_value_t = 600.0)]
    timeout_s: f64,
}

/// The second process, from the first one's side. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Bystander(Companion);

const PAYLOAD_BYTES: usize = 64;

/// Runs the second process: joins, says so by an empty line, publishes, and answers each line with the times since the one before.
///
/// # Errors
/// The room is not healthy.
pub(crate) fn run(args: &Args) -> Result<()> {
    let deadline = Deadline::after(Duration::try_from_secs_f64(args.timeout_s)?);
    let swarm = Swarm::new(PeerName::ROOMFUL.adapter(), args.address, Waiting::Sleep)?;
    let plan = Plan {
        connections: args.members,
        room_members: args.members,
        joining_max: args.members,
    };
    let layout = Layout {
        publishers: args.members,
        payload_bytes: PAYLOAD_BYTES,
    };
    let mut traffic = Traffic::open(swarm, plan, layout, deadline)?;
    let questions = questions();
    console::result("");
    let mut pace = Pace::new(&traffic, args.rate.into(), Timed::All);
    pace.run_while(&mut traffic, &mut Latency::new(), &mut |_, latency| {
        match questions.try_recv() {
            Ok(()) => {
                console::result(&serde_json::to_string(&latency.counts())?);
                *latency = Latency::new();
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Ok(false),
        }
        Ok(true)
    })?;
    traffic.rest()
}

impl Bystander {
    /// Starts one, waits until it has joined, and steps back behind it.
    ///
    /// # Errors
    /// It can't be started, or can't join.
    pub(super) fn start(address: SocketAddr) -> Result<Self> {
        let companion = Companion::start("bystander", &[address.to_string()])?;
        step_back()?;
        Ok(Self(companion))
    }

    /// What it has timed since it was last asked.
    ///
    /// # Errors
    /// Its room is not healthy, or nothing was delivered there.
    pub(super) fn ask(&mut self) -> Result<Latency> {
        let counts: Vec<(u64, u64)> =
            serde_json::from_str(&self.0.ask()?).context("the bystander's answer")?;
        let latency = Latency::of_counts(&counts);
        ensure!(
            latency.count() > 0,
            "nothing was delivered in the healthy room"
        );
        Ok(latency)
    }

    /// Lets it finish: everything it has published must have arrived.
    ///
    /// # Errors
    /// Something hasn't.
    pub(super) fn finish(self) -> Result<()> {
        self.0.finish().context("the healthy room")
    }
}
