//! A healthy room beside a scenario, watched by a process of its own: what happens to those who have nothing to do with it.
//!
//! The scenario's own process is busy with what it does, and would count its own business as the server's. So this program starts
//! itself a second time; that process publishes into a small room of its own at a fixed rate, times every delivery, and tells what it has timed
//! whenever it is asked, by a line. The process that asks lowers its own priority, so that the bystander gets the processor
//! whenever it needs it. A bystander ends when nobody can ask any more.

use std::env;
use std::io::{BufRead as _, BufReader, Write as _, stdin};
use std::net::SocketAddr;
use std::process::{self, Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::Deadline;
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
pub(super) struct Bystander {
    child: Child,
    asking: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

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

/// One for each line of the standard input; none any more when it has ended.
fn questions() -> Receiver<()> {
    let (ask, questions) = channel();
    thread::spawn(move || {
        for line in stdin().lines() {
            if line.is_err() || ask.send(()).is_err() {
                return;
            }
        }
    });
    questions
}

impl Bystander {
    /// Starts one, waits until it has joined, and steps back behind it.
    ///
    /// # Errors
    /// It can't be started, or can't join.
    pub(super) fn start(address: SocketAddr) -> Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .args(["bystander", &address.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("can't start the bystander")?;
        let asking = child.stdin.take();
        let answers = child.stdout.take().context("the bystander has no output")?;
        let mut bystander = Self {
            child,
            asking,
            answers: BufReader::new(answers),
        };
        bystander.answer()?;
        step_back()?;
        Ok(bystander)
    }

    /// What it has timed since it was last asked.
    ///
    /// # Errors
    /// Its room is not healthy, or nothing was delivered there.
    pub(super) fn ask(&mut self) -> Result<Latency> {
        let asking = self.asking.as_mut().context("the bystander has ended")?;
        // If it has ended, its answer is missing, and the reason is on standard error.
        asking.write_all(b"\n").ok();
        let counts: Vec<(u64, u64)> =
            serde_json::from_str(&self.answer()?).context("the bystander's answer")?;
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
    pub(super) fn finish(mut self) -> Result<()> {
        drop(self.asking.take());
        let status = self.child.wait().context("waiting for the bystander")?;
        ensure!(status.success(), "the healthy room failed ({status})");
        Ok(())
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the healthy room failed");
        Ok(line)
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        // Either fails only if it has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Gives this process the lowest priority. It never gets the old one back, so it is the last thing it does to itself.
fn step_back() -> Result<()> {
    let pid = process::id().to_string();
    let renice = Command::new("renice")
        .args(["-n", "19", "-p", &pid])
        .stdout(Stdio::null())
        .status()
        .context("renice can't be run")?;
    ensure!(renice.success(), "renice failed with {renice}");
    Ok(())
}
