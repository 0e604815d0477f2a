//! The floor servers: they speak as the plain server does.

use std::env;

use anyhow::Result;

use super::{Answer, LaunchArgs, Listener, Peer, Seat, Upgrade, plain};
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

    fn upgrade(&self, seat: &Seat) -> Result<Upgrade> {
        Ok(plain::upgrade(seat))
    }

    fn greeting(&self, _: &Seat) -> Vec<Vec<u8>> {
        Vec::new()
    }

    fn publish(&self, _: &Seat, _: u32, payload: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(payload);
    }

    fn read(
        &self,
        _: &mut Seat,
        message: &[u8],
        listener: Listener<'_>,
        _: Answer<'_>,
    ) -> Result<()> {
        plain::read(message, listener)
    }
}
