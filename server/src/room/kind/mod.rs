//! What rooms do with what they are sent: one file a kind, one line in the registry.
//!
//! A kind decides on proposals and nothing else; order, storage, delivery, presence and recovery are the same for
//! all. It has no clock, no I/O and no randomness: what it needs of them is in the [`Proposal`].

mod relay;

use std::fmt;

use roomful_protocol::frame::EntryKind;
use roomful_protocol::id::{Offset, UserId};
use roomful_protocol::payload::Payload;

pub use relay::Relay;

/// A deterministic reducer: the same proposals in the same order give the same decisions on every node.
///
/// It is asked on pending state, before storage has answered: what it accepted is stored in the order of
/// acceptance, or the room is opened anew and with it a new reducer.
pub trait RoomKind: fmt::Debug {
    /// Decides on a proposal: what to append, or why not.
    ///
    /// # Errors
    /// The proposal breaks a rule of the kind; the sender is told, the room is unchanged.
    fn reduce(&mut self, proposal: Proposal<'_>) -> Result<Decision, Rejection>;
}

/// What a member would like to append.
#[derive(Debug)]
pub struct Proposal<'a> {
    /// Whose it is.
    pub user: &'a UserId,
    /// Where it will stand.
    pub offset: Offset,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// The content, already checked to be what its tag says.
    pub payload: Payload,
}

/// What to append.
#[derive(Debug)]
pub struct Decision {
    /// The entry's kind.
    pub kind: EntryKind,
    /// The entry's content.
    pub payload: Payload,
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Rejection {
    /// One sentence for the sender.
    pub text: String,
}

/// The names of all kinds, and how each begins.
pub const REGISTRY: &[(&str, Create)] = &[("relay", || Box::new(Relay))];

/// Begins a room of a kind.
pub type Create = fn() -> Box<dyn RoomKind>;

/// What begins a room of the named kind.
#[must_use]
pub fn named(name: &str) -> Option<Create> {
    let (_, create) = REGISTRY.iter().find(|(known, _)| *known == name)?;
    Some(*create)
}
