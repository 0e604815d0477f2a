//! `roomful-loadtest`: what a server costs, counted where the kernel counts it.
//!
//! Each scenario drives one server process over loopback and divides the processor time or memory of that process by what
//! it delivered. A figure is printed only when every expected delivery has arrived once and in order; anything else ends the run
//! with one line that names what went wrong, and exit code 1. Correctness beyond that is left to the `tests` crate.
//!
//! Read in this order: [`scenario`] (what is done), [`pool`], [`connection`] and [`tls`] (how it is done fast enough), [`swarm`], [`crowd`] and [`writers`] (what
//! any peer's and what Roomful's own clients do), [`verify`] (what must arrive), [`latency`] (how long it took), [`peer`] (who is
//! measured), [`process`] (where the numbers come from), [`compare`] (peers side by side).

mod scenario;

mod connection;
mod pool;
mod tls;

mod crowd;
mod swarm;
mod writers;

mod latency;
mod verify;

mod floor_server;
mod peer;
mod plain_server;

mod process;

mod compare;
mod report;

mod console;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures what a Roomful server costs: processor time per delivery and per connection, memory per idle connection.
#[derive(Debug, Parser)]
#[command(name = "roomful-loadtest", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One room, every publish goes to all its members: processor time per delivery, or latency at a fixed rate.
    Fanout(scenario::fanout::Args),
    /// Many small rooms, some of them busy at any moment: processor time per delivery.
    Rooms(scenario::rooms::Args),
    /// Members alone in their rooms: the time from a publish to its own delivery.
    Echo(scenario::echo::Args),
    /// Some members of a room stop reading: what the others' latency is with them and without.
    Slow(scenario::slow::Args),
    /// Slow, flooding and silent attackers beside a room: what its latency is with them and without, and how long a new client waits.
    Siege(scenario::siege::Args),
    /// Members that watch who is in their room while others come and go: frames per member, processor time per frame.
    Presence(scenario::presence::Args),
    /// All clients lose their connections and resume at once: time and processor time until they have caught up, and what a healthy
    /// room notices.
    Storm(scenario::storm::Args),
    /// Clients resume from far behind: events per second, processor time per recovered event.
    Recover(scenario::recover::Args),
    /// Chat, editor, game and auction at the same time: latency of each, processor time per delivery.
    Mixed(scenario::mixed::Args),
    /// Joined connections that do nothing: resident bytes per connection.
    Idle(scenario::idle::Args),
    /// Connections come and join: processor time per connection.
    Connect(scenario::connect::Args),
    /// With TLS and without: processor time per handshake and per delivery, resident bytes per idle connection.
    Tls(scenario::tls::Args),
    /// Durable rooms: acknowledged publishes a second beside a bare store and a bare file, what many rooms cost, what a million of them leave
    /// in memory.
    Durable(scenario::durable::Args),
    /// Keyed state: a counter that everybody raises, and keys that everybody watches: writes and conflicts a second, processor time per write
    /// and per change that was delivered.
    State(scenario::state::Args),
    /// A lock that everybody waits for: grants a second, and how long it takes from hand to hand.
    Lock(scenario::lock::Args),
    /// Roomful, the floors and other servers side by side: medians, ratios and how sure they are.
    Compare(compare::Args),
    /// The healthy room beside a storm.
    #[command(hide = true)]
    Bystander(scenario::bystander::Args),
    /// The new clients of a siege.
    #[command(hide = true)]
    Visitor(scenario::visitor::Args),
    /// The attackers of a siege.
    #[command(hide = true)]
    Besiegers(scenario::besiegers::Args),
    /// The plain broadcast server that the figures are compared with.
    #[command(hide = true)]
    PlainServer(plain_server::Args),
    /// The floor that the figures are compared with.
    #[command(hide = true)]
    FloorServer(floor_server::Args),
}

impl Command {
    /// Servers have nothing to tidy up, and end by the signal itself.
    const fn is_server(&self) -> bool {
        matches!(self, Self::PlainServer(_) | Self::FloorServer(_))
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if console::interrupted() => {
            console::error("interrupted; a part of a run is no result");
            ExitCode::from(130)
        }
        Err(error) => {
            console::error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    if !command.is_server() {
        console::catch_interrupts()?;
    }
    match command {
        Command::Fanout(args) => scenario::fanout::run(&args),
        Command::Rooms(args) => scenario::rooms::run(&args),
        Command::Echo(args) => scenario::echo::run(&args),
        Command::Slow(args) => scenario::slow::run(&args),
        Command::Siege(args) => scenario::siege::run(&args),
        Command::Visitor(args) => scenario::visitor::run(&args),
        Command::Besiegers(args) => scenario::besiegers::run(&args),
        Command::Presence(args) => scenario::presence::run(&args),
        Command::Storm(args) => scenario::storm::run(&args),
        Command::Bystander(args) => scenario::bystander::run(&args),
        Command::Recover(args) => scenario::recover::run(&args),
        Command::Mixed(args) => scenario::mixed::run(&args),
        Command::Idle(args) => scenario::idle::run(&args),
        Command::Connect(args) => scenario::connect::run(&args),
        Command::Tls(args) => scenario::tls::run(&args),
        Command::Durable(args) => scenario::durable::run(&args),
        Command::State(args) => scenario::state::run(&args),
        Command::Lock(args) => scenario::lock::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::PlainServer(args) => plain_server::run(&args),
        Command::FloorServer(args) => floor_server::run(&args),
    }
}
