//! The Rust client of Roomful: rooms that stay in step, also after the network fails.
//!
//! ```no_run
//! use roomful_client::{Client, JoinOptions, Options, Payload, RoomEvent};
//!
//! # async fn run() -> Result<(), roomful_client::Error> {
//! let client = Client::connect("ws://127.0.0.1:7400", Options::default()).await?;
//! let (room, mut events) = client.join("chat:lobby", JoinOptions::default()).await?;
//! let stored = room.publish(Payload::text("hello")).await?;
//! println!("stored at {}", stored.position);
//! while let Some(event) = events.next().await {
//!     if let RoomEvent::Event { position, entry } = event {
//!         println!("{position} {}: {:?}", entry.user, entry.payload.bytes);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A [`Client`] keeps one connection up: it comes back by itself, resumes its session, joins its rooms again where it was, and sends again what was not
//! acknowledged. A [`Room`]'s stream gives every position once and in order, or says [`RoomEvent::Reset`]. Everything that waits is bounded; [`Options`] names the bounds.
//! [`machine`] is the protocol's client side without I/O, for simulations. TLS is left to [`Connector`].

mod client;
mod driver;
mod error;
mod keyed;
pub mod machine;
mod options;
mod replica;
mod room;

pub use client::Client;
pub use error::{CloseReason, Error, Refusal};
pub use keyed::{Locks, State, Timers};
pub use machine::{ConnectionState, Identity, JoinInfo, JoinOptions, RoomEvent, Signal};
pub use options::{Connector, Options, TokenSource};
pub use room::{Receipt, Room, RoomEvents};

pub use roomful_protocol::codec::Encoding;
pub use roomful_protocol::error::{ErrorCode, Retry, WireErrorCode};
pub use roomful_protocol::frame::{
    Action, Change, ChangeKind, Cursors, Direction, Durability, Entry, EntryKind, HeldFence,
    HistoryPage, Holder, LockInfo, LockWhy, LocksPage, MemberInfo, MembersPage, OpId,
    PresenceChange, Published, Recovery, StateChange, StateItem, StatePage, TimerInfo, TimerWhat,
    TimersPage, Waiter, Watch,
};
pub use roomful_protocol::id::{
    Epoch, Key, KeyPrefix, MemberId, Offset, ProducerId, RoomAlias, RoomName, Sequence, SessionId,
    SignalKey, UserId,
};
pub use roomful_protocol::payload::{Payload, PayloadFormat};
pub use roomful_protocol::position::Position;

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
