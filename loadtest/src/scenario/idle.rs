//! `idle`: joined connections that do nothing, and the memory they take.

use std::env;
use std::io::{self, BufRead as _, BufReader};
use std::num::NonZeroUsize;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::traffic::{Layout, Traffic};
use super::{Deadline, Subject, TargetArgs, check_files};
use crate::console::{self, Bar};
use crate::process::{MachineMemory, resident_bytes};
use crate::report::{Figure, Measurement};
use crate::swarm::{Plan, Swarm};
use crate::verify::Pattern;

/// The command.
#[derive(Debug, clap::Args)]
#[command(args_override_self = true)]
pub(crate) struct Args {
    #[command(flatten)]
    shape: Shape,
    /// Servers, each with a tester process of its own, that share the connections: one process may open only so many files
    #[arg(long, default_value = "1")]
    processes: NonZeroUsize,
    /// One of several: says what it holds, and waits for a line
    #[arg(long, hide = true)]
    is_pair: bool,
    #[command(flatten)]
    target: TargetArgs,
}

/// What is measured.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Shape {
    /// Connections; a server and its tester need an open file for each
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

/// What a server held.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Resident {
    before: u64,
    after: u64,
}

/// Another pair of a server and its tester.
#[derive(Debug)]
struct Pair {
    child: Child,
    output: BufReader<ChildStdout>,
}

/// Runs the command.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn run(args: &Args) -> Result<()> {
    args.shape.check()?;
    let target = args.target.target()?;
    if args.is_pair {
        return target.measure(|subject| {
            hold(subject, args.shape, &mut |held| {
                console::result(&serde_json::to_string(&held)?);
                // Until the others are there, too; or nobody is there any more.
                io::stdin().read_line(&mut String::new())?;
                Ok(())
            })?;
            Ok(())
        });
    }
    let measurement = if args.processes.get() == 1 {
        target.measure(|subject| measure(subject, args.shape))?
    } else {
        args.measure_pairs()?
    };
    args.target.report(&target, &measurement)
}

/// Measures a server: its resident memory before the first connection and after the last has joined and come to rest. One
/// publish in each room then proves that all of them were in.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn measure(subject: Subject, shape: Shape) -> Result<Measurement> {
    shape.check()?;
    let mut measurement = Measurement::new("idle", subject.peer.name(), shape.settings());
    let before = MachineMemory::now()?;
    let mut after = before;
    let held = hold(subject, shape, &mut |_| {
        after = MachineMemory::now()?;
        Ok(())
    })?;
    add_figures(&mut measurement, shape, held, (before, after));
    Ok(measurement)
}

fn add_figures(
    measurement: &mut Measurement,
    shape: Shape,
    held: Resident,
    (before, after): (MachineMemory, MachineMemory),
) {
    let connections = shape.connections as f64;
    let resident = (held.after as f64 - held.before as f64) / connections;
    measurement.add(Figure::new(PER_CONNECTION, "B", resident));
    if let Some(bytes) = before.sockets_until(after) {
        // Both ends are on this machine, and alike.
        let each = bytes / connections / 2.0;
        measurement.add(Figure::new(
            "kernel objects per connection",
            "B, one end",
            each,
        ));
    }
    let taken = before.taken_until(after) / connections;
    measurement.add(Figure::new(TAKEN, "B, roughly", taken));
    let kibibytes = |bytes: u64| bytes as f64 / 1024.0;
    for (name, bytes) in [
        ("server resident before", held.before),
        ("server resident after", held.after),
    ] {
        measurement.add(Figure::new(name, "KiB", kibibytes(bytes)));
    }
}

/// Of a server, this program, and the kernel for both; and of whatever else came or went on this machine.
const TAKEN: &str = "memory of the machine per connection";

/// Connects everybody, and looks at the server's memory; `held` has its turn while they are there.
fn hold(
    subject: Subject,
    shape: Shape,
    held: &mut dyn FnMut(Resident) -> Result<()>,
) -> Result<Resident> {
    check_files(shape.connections)?;
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
    let resident = Resident { before, after };
    held(resident)?;
    traffic.call_the_roll()?;
    Ok(resident)
}

impl Shape {
    fn check(&self) -> Result<()> {
        ensure!(
            self.connections > 0 && self.room_members > 0,
            "neither --connections nor --room-members may be 0"
        );
        Ok(())
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("connections", self.connections.to_string()),
            ("members of a room", self.room_members.to_string()),
        ]
    }
}

impl Args {
    /// Several servers, each with a tester of its own, hold their connections at the same time.
    fn measure_pairs(&self) -> Result<Measurement> {
        let processes = self.processes.get();
        let each = self.shape.connections / processes;
        check_files(each)?;
        let shape = Shape {
            connections: each * processes,
            ..self.shape
        };
        let mut settings = shape.settings();
        settings.push(("servers", processes.to_string()));
        let name = self.target.peer().adapter().name();
        let mut measurement = Measurement::new("idle", name, settings);
        let before = MachineMemory::now()?;
        let mut pairs = (0..processes)
            .map(|_| Pair::start(each))
            .collect::<Result<Vec<_>>>()?;
        let mut sum = Resident {
            before: 0,
            after: 0,
        };
        for pair in &mut pairs {
            let held = pair.held()?;
            sum.before += held.before;
            sum.after += held.after;
        }
        let after = MachineMemory::now()?;
        pairs.into_iter().try_for_each(Pair::finish)?;
        add_figures(&mut measurement, shape, sum, (before, after));
        Ok(measurement)
    }
}

impl Pair {
    /// With the arguments of this process, but for what is different.
    fn start(connections: usize) -> Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .args(env::args_os().skip(1))
            .args(["--is-pair", "--processes=1", "--connections"])
            .arg(connections.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("can't start another tester")?;
        let output = child.stdout.take().context("a tester without output")?;
        Ok(Self {
            child,
            output: BufReader::new(output),
        })
    }

    /// Waits until its connections are there.
    fn held(&mut self) -> Result<Resident> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(!line.is_empty(), "one of the testers failed");
        serde_json::from_str(&line).context("what a tester said")
    }

    /// Lets it go on; its connections must all prove to be there.
    fn finish(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait().context("waiting for a tester")?;
        ensure!(status.success(), "one of the testers failed ({status})");
        Ok(())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // Without its input it ends its server, and itself; if it has ended already there is nothing to do.
        drop(self.child.stdin.take());
        self.child.wait().ok();
    }
}
