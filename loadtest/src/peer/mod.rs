//! Who is measured: how each server is talked to, behind one face.
//!
//! A peer turns "join", "publish" and "what did I get" into the bytes of its protocol, and nothing else: sockets, order and
//! counting are the same for all. To add one, write a file with the same functions, a variant here, and how it is started in
//! [`crate::scenario`]. Reading is on the path of every delivery, so it must look at no more than verification needs, and
//! allocate nothing for a delivery.

mod cursor;
mod floor;
mod roomful;
mod tungstenite;

use anyhow::Result;
use clap::ValueEnum;

pub(crate) use floor::Floor;
pub(crate) use roomful::Roomful;
pub(crate) use tungstenite::Tungstenite;

/// The peers, by the name that `--peer` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PeerName {
    /// A Roomful server.
    Roomful,
    /// A broadcast server on tokio-tungstenite with a task and a channel per connection.
    Plain,
    /// The floor: raw readiness, and one send for each delivery.
    Floor,
    /// The floor, with the frames of one turn in one send a member.
    FloorCoalescing,
}

/// A server's protocol, from the client's side.
#[derive(Debug)]
pub(crate) enum Peer {
    /// Roomful's.
    Roomful(Roomful),
    /// The plain server's.
    Plain(Tungstenite),
    /// The floor servers'.
    Floor(Floor),
}

/// A publisher's place, as its protocol needs it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seat {
    /// Index of the connection in this run.
    pub(crate) connection: usize,
    /// What the server called the room when the connection joined.
    pub(crate) alias: u64,
}

/// What a message says, reduced to what a scenario has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard<'a> {
    /// The connection is in its room.
    Joined {
        /// What the server calls the room.
        alias: u64,
        /// The offset that deliveries follow; `None` where the server doesn't number them.
        head: Option<u64>,
    },
    /// A publish, delivered.
    Delivery {
        /// Its number in the room; `None` where the server doesn't number them.
        offset: Option<u64>,
        /// What was published.
        payload: &'a [u8],
    },
    /// The server took the publish with this sequence.
    Acknowledged {
        /// Counts the publishes of this connection, from 1.
        sequence: u32,
    },
}

/// Takes what was heard; an error ends the run.
pub(crate) type Listener<'a> = &'a mut dyn FnMut(Heard<'_>) -> Result<()>;

impl Peer {
    /// The name in reports.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Roomful(_) => "roomful",
            Self::Plain(_) => "plain tokio-tungstenite",
            Self::Floor(floor) => floor.name(),
        }
    }

    /// Path, query and subprotocol of the upgrade request.
    pub(crate) fn upgrade(&self, room: &str) -> Result<(String, Option<&'static str>)> {
        match self {
            Self::Roomful(_) => roomful::upgrade(room),
            Self::Plain(_) => Ok(("/".to_owned(), None)),
            Self::Floor(_) => Ok((format!("/{room}"), None)),
        }
    }

    /// The messages that put a connection into a room.
    pub(crate) fn greeting(&self, connection: usize, room: &str) -> Vec<Vec<u8>> {
        match self {
            Self::Roomful(roomful) => roomful.greeting(connection, room),
            Self::Plain(_) | Self::Floor(_) => Vec::new(),
        }
    }

    /// Writes the message of a publish over what is in `out`.
    pub(crate) fn publish(&self, seat: Seat, sequence: u32, payload: &[u8], out: &mut Vec<u8>) {
        out.clear();
        match self {
            Self::Roomful(roomful) => roomful.publish(seat, sequence, payload, out),
            Self::Plain(_) | Self::Floor(_) => out.extend_from_slice(payload),
        }
    }

    /// Reads a message.
    ///
    /// # Errors
    /// It is malformed, or says that something went wrong; or what the listener returned.
    pub(crate) fn read(&self, message: &[u8], listener: Listener<'_>) -> Result<()> {
        match self {
            Self::Roomful(_) => roomful::read(message, listener),
            Self::Plain(_) | Self::Floor(_) => tungstenite::read(message, listener),
        }
    }

    /// Whether everybody is in one room, whatever the scenario would like.
    pub(crate) const fn has_one_room(&self) -> bool {
        matches!(self, Self::Plain(_))
    }
}
