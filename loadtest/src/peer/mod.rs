//! Who is measured: how each server is started and how it is talked to, behind one face.
//!
//! A peer turns "join", "publish" and "what did I get" into the bytes of its protocol, and nothing else: sockets, order and
//! counting are the same for all. To add one, write a file with a type that is a [`Peer`], and a line in [`PEERS`].

mod launch;
mod name;
mod simple;

mod bun;
mod centrifugo;
mod cursor;
mod floor;
pub(crate) mod frames;
mod nats;
mod plain;
mod roomful;
mod socket_io;
mod token;
mod ws;

#[cfg(test)]
mod testing;

use std::fmt::Debug;

use anyhow::Result;
use roomful_protocol::websocket::OpCode;

use crate::process::Launch;
use crate::tls::{Manner, Secure};

use bun::Bun;
use centrifugo::Centrifugo;
use floor::Floor;
use nats::Nats;
use plain::Plain;
use roomful::Roomful;
use socket_io::SocketIo;
use ws::Ws;

pub(crate) use launch::LaunchArgs;
pub(crate) use name::PeerName;

/// Every peer, by the name that `--peer` takes. Each run has an adapter of its own.
const PEERS: &[(&str, Make)] = &[
    ("roomful", || Box::new(Roomful::new())),
    ("roomful-token", || Box::new(Roomful::with_tokens())),
    ("roomful-tls", || Box::new(Roomful::over(Manner::Full))),
    ("roomful-tls-resumed", || {
        Box::new(Roomful::over(Manner::Resumed))
    }),
    ("roomful-tls12", || Box::new(Roomful::over(Manner::Tls12))),
    ("floor", || Box::new(Floor::OneSend)),
    ("floor-coalescing", || Box::new(Floor::Coalescing)),
    ("bun", || Box::new(Bun)),
    ("plain", || Box::new(Plain)),
    ("ws", || Box::new(Ws)),
    ("socket-io", || Box::new(SocketIo)),
    ("nats", || Box::new(Nats)),
    ("centrifugo", || Box::new(Centrifugo)),
];

/// Makes an adapter.
type Make = fn() -> Box<dyn Peer>;

/// A kind of server: how it is started, and its protocol from the client's side. What a peer doesn't say about its protocol is as
/// [`simple`] has it.
pub(crate) trait Peer: Debug {
    /// The name in reports.
    fn name(&self) -> &'static str;

    /// What it can do besides rooms and delivering to all members, the sender included, which everybody can.
    fn abilities(&self) -> &'static [Ability] {
        &[]
    }

    /// How it is started. `workers` is how many shards or threads it should have; `None` leaves it its own default.
    ///
    /// # Errors
    /// What is missing, and how it is had.
    fn launch(&self, args: &LaunchArgs, workers: Option<usize>) -> Result<Launch>;

    /// What connections are encrypted with, if they are.
    fn secure(&self) -> Option<&Secure> {
        None
    }

    /// What a connection asks for in its upgrade request.
    ///
    /// # Errors
    /// The room can't have that name.
    fn upgrade(&self, seat: &Seat) -> Result<Upgrade> {
        Ok(simple::upgrade(seat))
    }

    /// The messages that put a connection into its room and need no answer in between.
    ///
    /// # Errors
    /// They can't be made.
    fn greeting(&self, _seat: &Seat) -> Result<Vec<Vec<u8>>> {
        Ok(Vec::new())
    }

    /// Appends the message of a publish; `sequence` counts the connection's publishes, from 1.
    fn publish(&self, _seat: &Seat, _sequence: u32, payload: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(payload);
    }

    /// Reads a message. This is on the path of every delivery, so it must look at no more than verification needs, and allocate
    /// nothing for a delivery.
    ///
    /// # Errors
    /// It is malformed, or says that something went wrong; or what the listener returned.
    fn read(
        &self,
        _seat: &mut Seat,
        message: &[u8],
        listener: Listener<'_>,
        _answer: Answer<'_>,
    ) -> Result<()> {
        simple::read(message, listener)
    }
}

/// What not every server does. A scenario that needs it asks before it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ability {
    /// It numbers the deliveries of a room without a gap, says where they stand when a member joins, and acknowledges publishes.
    Offsets,
    /// A connection that comes back gets what it missed.
    Resume,
    /// It tells members who is in the room.
    Presence,
}

impl dyn Peer + '_ {
    /// Whether it can do something.
    pub(crate) fn has(&self, ability: Ability) -> bool {
        self.abilities().contains(&ability)
    }
}

/// One connection's place, and what its protocol has to remember about it.
#[derive(Debug)]
pub(crate) struct Seat {
    /// Index of the connection in this run.
    pub(crate) connection: usize,
    /// Name of its room.
    pub(crate) room: String,
    /// What the server calls the room, where it gives it a number.
    pub(crate) alias: u64,
    /// The beginning of something whose end hasn't arrived, where a message may hold a part.
    pub(crate) held: Vec<u8>,
}

/// What is asked for in an upgrade request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Upgrade {
    /// Path and query.
    pub(crate) path: String,
    /// Subprotocol that the server must choose.
    pub(crate) subprotocol: Option<&'static str>,
    /// What messages are sent as afterwards: text or binary.
    pub(crate) code: OpCode,
}

/// What a message says, reduced to what a scenario has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard<'a> {
    /// The connection is in its room.
    Joined {
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

/// Takes a message that the protocol wants sent at once, such as the answer to a ping of its own.
pub(crate) type Answer<'a> = &'a mut dyn FnMut(&[u8]);

impl Seat {
    /// Before it has joined.
    pub(crate) const fn new(connection: usize, room: String) -> Self {
        Self {
            connection,
            room,
            alias: 0,
            held: Vec::new(),
        }
    }
}
