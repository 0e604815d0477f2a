//! The floor servers.

use std::env;

use anyhow::Result;

use super::{LaunchArgs, Peer};
use crate::process::Launch;

/// A floor server; see [`crate::floor_server`]. It has one thread, however many it is offered.
#[derive(Debug)]
pub(super) enum Floor {
    /// One send for each delivery.
    OneSend,
    /// One send for the frames of a turn.
    Coalescing,
}

impl Peer for Floor {
    fn name(&self) -> &'static str {
        match self {
            Self::OneSend => "floor, one send",
            Self::Coalescing => "floor, coalescing",
        }
    }

    fn launch(&self, _: &LaunchArgs, _: Option<usize>) -> Result<Launch> {
        let arguments: &[&str] = match self {
            Self::OneSend => &["floor-server"],
            Self::Coalescing => &["floor-server", "--coalesce"],
        };
        Ok(Launch::new(env::current_exe()?, arguments))
    }
}
