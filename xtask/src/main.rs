//! The project's own commands: `cargo xtask test` and its parts.
//!
//! Anything that a person or CI runs besides plain cargo is here, so that both run the same. It needs nothing but cargo to start with and
//! sets up the rest. It knows which programs there are and how they are called; what is tested is their business.

mod console;
mod context;
mod dist;
mod fuzz;
mod guard;
mod mutants;
mod pages;
mod run;
mod setup;
mod stages;
mod summary;
mod test;
mod tidy;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};

use crate::context::Context;
use crate::setup::Tool;

const USAGE: &str = "\
usage: cargo xtask <command>

  test [--without TOOLS] [STAGE…]  set up what the tests need, then run them all, or the named stages alone
                                   TOOLS: browsers,node,python,deny,valgrind,strace; what needs them is left out
  crash [--kills N [--seed S]]     kills the server N times (200) under load, and checks that nothing acknowledged is lost
  crash --power N [--seed S]       cuts the power N times in a record of the server's writes, and checks the same
  crash --linearizable N [--seed S]
                                   N operations on state and locks over restarts, checked to be linearizable
  soak [--minutes N]               connections that come, go and are cut, for N minutes (20, at least 8); prints and judges memory
  dist                             build target/dist/roomful, one static file
  fuzz [--seconds N] [--keep] [TARGET]
                                   libFuzzer on the targets of fuzz/, N seconds (600) in all; --keep adds to the corpus
  mutants [NAME]                   plant each bug of tests/mutants in a copy; the simulation has to find it
  peers                            set up the servers that the load test compares with, in the target directory
  pages                            build server/assets from clients/typescript
  fixtures                         write protocol/fixtures from the protocol crate
  tidy                             check what no compiler checks: module docs, leftovers, growth";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match command(&arguments) {
        Ok(code) => code,
        Err(error) => {
            console::complain(&format!("xtask: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn command(arguments: &[String]) -> Result<ExitCode> {
    let context = Context::find()?;
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["test", rest @ ..] => return test::run(&context, &test::Selection::parse(rest)?),
        ["crash"] => crash(&context, &KILLS, "200", None)?,
        ["crash", "--kills", kills] => crash(&context, &KILLS, kills, None)?,
        ["crash", "--kills", kills, "--seed", seed] => crash(&context, &KILLS, kills, Some(seed))?,
        ["crash", "--power", cuts] => crash(&context, &POWER, cuts, None)?,
        ["crash", "--power", cuts, "--seed", seed] => crash(&context, &POWER, cuts, Some(seed))?,
        ["crash", "--linearizable", operations] => {
            crash(&context, &LINEARIZABLE, operations, None)?;
        }
        ["crash", "--linearizable", operations, "--seed", seed] => {
            crash(&context, &LINEARIZABLE, operations, Some(seed))?;
        }
        ["soak"] => soak(&context, "20")?,
        ["soak", "--minutes", minutes] => soak(&context, minutes)?,
        ["dist"] => {
            let path = dist::build(&context)?;
            console::say(&format!("{} needs no library", path.display()));
        }
        ["fuzz", rest @ ..] => fuzz::fuzz(&context, rest)?,
        ["mutants"] => mutants::check(&context, mutants::Extent::All).1?,
        ["mutants", name] => mutants::check(&context, mutants::Extent::Named(name)).1?,
        ["peers"] => setup::set_up_peers(&context)?,
        ["pages"] => {
            setup::require(&context, &[Tool::Node])?;
            pages::build(&context)?;
        }
        ["fixtures"] => run::line(&context, "cargo run -p roomful-protocol --example fixtures")?,
        ["tidy"] => console::say(&tidy::check(&context)?),
        [] | ["help" | "--help" | "-h"] => console::say(USAGE),
        [other, ..] => bail!("{other:?} is no command\n{USAGE}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// A way to end a server when it expects it least.
struct Crash {
    test: &'static str,
    flag: &'static str,
    /// What the test takes the count from.
    variable: &'static str,
    needs: &'static [Tool],
}

const KILLS: Crash = Crash {
    test: "crash",
    flag: "--kills",
    variable: "ROOMFUL_CRASH_KILLS",
    needs: &[],
};

const POWER: Crash = Crash {
    test: "power",
    flag: "--power",
    variable: "ROOMFUL_POWER_CUTS",
    needs: &[Tool::Strace],
};

const LINEARIZABLE: Crash = Crash {
    test: "linearizable",
    flag: "--linearizable",
    variable: "ROOMFUL_LINEARIZABLE_OPERATIONS",
    needs: &[],
};

fn crash(context: &Context, how: &Crash, times: &str, seed: Option<&str>) -> Result<()> {
    let times: u32 = times
        .parse()
        .with_context(|| format!("{} takes a whole number", how.flag))?;
    setup::require(context, how.needs)?;
    run::line(
        context,
        "cargo build --release -p roomful-server --bin roomful",
    )?;
    let server = context.target.join("release/roomful");
    let mut env = vec![
        (how.variable, times.to_string()),
        ("ROOMFUL_BIN", server.display().to_string()),
    ];
    if let Some(seed) = seed {
        let seed: u64 = seed.parse().context("--seed takes a whole number")?;
        env.push(("ROOMFUL_SEED", seed.to_string()));
    }
    let env: Vec<_> = env
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let line = format!(
        "cargo test -p roomful-tests --test {} -- --nocapture",
        how.test
    );
    run::line_with(context, &line, &env)
}

fn soak(context: &Context, minutes: &str) -> Result<()> {
    let minutes: u32 = minutes.parse().context("--minutes takes a whole number")?;
    ensure!(
        minutes >= SOAK_MINUTES_MIN,
        "--minutes: {SOAK_MINUTES_MIN} at least, or there is no verdict"
    );
    // The server as it is handed out; its clients may be slower.
    run::line(
        context,
        "cargo build --release -p roomful-server --bin roomful",
    )?;
    let server = context.target.join("release/roomful");
    let env = [
        ("ROOMFUL_SOAK_MINUTES", minutes.to_string()),
        ("ROOMFUL_BIN", server.display().to_string()),
    ];
    let env = env.each_ref().map(|(name, value)| (*name, value.as_str()));
    let line = "cargo test -p roomful-tests --test soak -- --nocapture";
    run::line_with(context, line, &env)
}

/// Two are for warming up.
const SOAK_MINUTES_MIN: u32 = 8;
