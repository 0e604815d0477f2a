//! npm ws, with the program in `loadtest/peers/ws.mjs`.

use anyhow::Result;

use super::{LaunchArgs, Peer};
use crate::process::Launch;

/// A server on npm ws. It has one thread, however many it is offered.
#[derive(Debug)]
pub(super) struct Ws;

impl Peer for Ws {
    fn name(&self) -> &'static str {
        "npm ws"
    }

    fn launch(&self, args: &LaunchArgs, _: Option<usize>) -> Result<Launch> {
        args.set_up("node_modules/ws/package.json")?;
        Ok(Launch::new(args.node()?, &[&args.set_up("ws.mjs")?]))
    }
}
