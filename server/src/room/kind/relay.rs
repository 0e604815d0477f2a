//! The kind that appends whatever it is sent.

use roomful_protocol::frame::EntryKind;

use super::{Decision, Proposal, Rejection, RoomKind};

/// Accepts every proposal unchanged.
#[derive(Debug)]
pub struct Relay;

impl RoomKind for Relay {
    fn reduce(&mut self, proposal: Proposal<'_>) -> Result<Decision, Rejection> {
        Ok(Decision {
            kind: EntryKind::Publish,
            payload: proposal.payload,
        })
    }
}
