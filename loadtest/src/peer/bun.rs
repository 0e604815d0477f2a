//! Bun's built-in WebSocket with publish and subscribe, with the program in `loadtest/peers/bun.mjs`.

use anyhow::{Context as _, Result};

use super::{LaunchArgs, Peer};
use crate::process::Launch;

/// A server on Bun, which has uWebSockets inside. It has one thread, however many it is offered.
#[derive(Debug)]
pub(super) struct Bun;

/// Where the packages of npm put the program; one of them fits this machine.
const PROGRAMS: [&str; 2] = [
    "node_modules/@oven/bun-linux-x64/bin/bun",
    "node_modules/@oven/bun-linux-aarch64/bin/bun",
];

impl Peer for Bun {
    fn name(&self) -> &'static str {
        "Bun"
    }

    fn launch(&self, args: &LaunchArgs, _: Option<usize>) -> Result<Launch> {
        let found = PROGRAMS.map(|program| args.set_up(program));
        let program = found
            .into_iter()
            .reduce(Result::or)
            .context("no program")??;
        Ok(Launch::new(program, &[&args.set_up("bun.mjs")?]))
    }
}
