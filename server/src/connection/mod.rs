//! A connection as its shard sees it: who it is, what it is in, and what it still owes and is owed.
//!
//! Plain data that the shard's code reads and changes; the socket is elsewhere. What fan-out touches stands apart
//! from the rest, in [`Outlet`]. An idle connection owns no buffer.

pub mod outbox;
mod rate;

use std::collections::VecDeque;
use std::sync::Arc;

use roomful_protocol::codec::Encoding;
use roomful_protocol::frame::{
    Change, ClientFrame, Hello, PresenceRequest, State, StateRequest, TimerRequest,
};
use roomful_protocol::id::{MemberId, ProducerId, RequestId, RoomAlias, RoomId, SessionId};

use crate::auth::Identity;
use crate::session::users::Held;
use crate::shard::message::{Attachment, ConnectionId};
use outbox::Outbox;
pub use rate::{Bucket, Rate};

/// The way out to a connection: what fan-out touches of it, in one cache line.
#[derive(Debug)]
#[repr(align(64))]
pub struct Outlet {
    /// Its slot and use.
    pub id: ConnectionId,
    /// How its frames are written.
    pub encoding: Encoding,
    /// Messages of this turn that leave with its first write, or at its end.
    pub staged: Vec<u8>,
    /// What could not be written. While there is one, nothing is written past it.
    pub outbox: Option<Box<Outbox>>,
    /// Everything else.
    pub connection: Box<Connection>,
}

const _: () = assert!(
    size_of::<Option<Outlet>>() == 64,
    "fan-out touches one cache line a connection"
);

/// One connection, without its way out.
#[derive(Debug)]
pub struct Connection {
    /// How far it has come.
    pub phase: Phase,
    /// When something was heard last, on the monotonic clock.
    pub heard_ms: u64,
    /// Whether the client has been pinged since.
    pub pinged: bool,
    /// When something could be written last while there was an outbox.
    pub progress_ms: u64,
    /// Bytes that were written since: fewer than a few thousand are no progress.
    pub drained_bytes: u32,
    /// Whether a timer looks after that.
    pub stall_armed: bool,
    /// Requests that are with an owner.
    pub in_flight: u32,
    /// Why it is read no more for now.
    pub pauses: Pauses,
    /// Frames of a message that was cut by a pause; they are handled before anything else.
    pub backlog: Option<Box<VecDeque<ClientFrame>>>,
    /// How many messages it may still send.
    pub messages: Bucket,
    /// How many joins it may still send.
    pub joins: Bucket,
    /// How many bytes of messages it may still send.
    pub bytes: Bucket,
    /// What few connections ever do.
    pub seldom: Option<Box<Seldom>>,
}

/// How often a connection may still do what few ever do.
#[derive(Debug)]
pub struct Seldom {
    /// Bad frames.
    pub errors: Bucket,
    /// Pages.
    pub pages: Bucket,
    /// Pings and pongs.
    pub control: Bucket,
    /// Refusals for going too fast.
    pub refusals: Bucket,
}

/// Why a connection is read no more for now.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pauses {
    /// Until some of its requests come back from owners.
    pub requests: bool,
    /// Until its replies have left.
    pub replies: bool,
    /// Until the page that it has asked for comes.
    pub page: bool,
}

impl Pauses {
    /// Whether there is a reason.
    #[must_use]
    pub fn any(self) -> bool {
        self.requests || self.replies || self.page
    }
}

/// How far a connection has come.
#[derive(Debug)]
pub enum Phase {
    /// It has not said who it is.
    Hello {
        /// Bytes received so far.
        bytes: usize,
    },
    /// Its token is being checked; what it sends meanwhile waits.
    Authenticating {
        /// What it said.
        said: Box<Said>,
    },
    /// It has a session.
    Open(Box<Open>),
}

/// What a frame takes while it waits to be handled, in bytes.
#[must_use]
pub fn held_bytes(frame: &ClientFrame) -> usize {
    let payload = match frame {
        ClientFrame::Publish(publish) => Some(&publish.payload),
        ClientFrame::Signal(signal) => Some(&signal.payload),
        ClientFrame::Join(join) => join.presence.as_ref(),
        ClientFrame::Presence(presence) => match &presence.what {
            PresenceRequest::Set(value) => value.as_ref(),
            PresenceRequest::Get { .. } | PresenceRequest::Watch(_) => None,
        },
        ClientFrame::Timer(timer) => match &timer.what {
            TimerRequest::Set { payload, .. } => Some(payload),
            TimerRequest::Cancel { .. } | TimerRequest::Get { .. } => None,
        },
        ClientFrame::State(state) => return size_of::<ClientFrame>() + changes_bytes(state),
        ClientFrame::Hello(_)
        | ClientFrame::Leave(_)
        | ClientFrame::History(_)
        | ClientFrame::Refresh(_)
        | ClientFrame::Ping(_)
        | ClientFrame::Lock(_)
        | ClientFrame::Cursor(_)
        | ClientFrame::ClientBatch(_) => None,
    };
    size_of::<ClientFrame>() + payload.map_or(0, |payload| payload.bytes.len())
}

/// What the changes of a write take, in bytes.
fn changes_bytes(state: &State) -> usize {
    let (StateRequest::Write { changes, .. } | StateRequest::OnDisconnect { changes }) =
        &state.what
    else {
        return 0;
    };
    let value = |change: &Change| change.value.as_ref().map_or(0, |value| value.bytes.len());
    let bytes = |change| size_of::<Change>() + value(change);
    changes.iter().map(bytes).sum()
}

/// What a connection said before its token was checked.
#[derive(Debug)]
pub struct Said {
    /// Bytes received so far.
    pub bytes: usize,
    /// Who it wants to be.
    pub hello: Hello,
    /// What it sent after.
    pub waiting: Vec<ClientFrame>,
}

/// What an open connection has.
#[derive(Debug)]
pub struct Open {
    /// Who it is and what it may do.
    pub identity: Identity,
    /// Whether the user is the server's invention.
    pub anonymous: bool,
    /// Its part in the share of its user; none for one whom the server has invented.
    pub held: Option<Box<Held>>,
    /// What `welcome` has told it.
    pub terms: Arc<Terms>,
    /// Its session.
    pub session: SessionId,
    /// Which attachment of it.
    pub attachment: Attachment,
    /// The rooms it is in.
    pub memberships: Vec<Membership>,
    /// Joins on their way.
    pub joining: Vec<(RequestId, RoomId)>,
    /// The request of a `refresh` whose token is being checked.
    pub refreshing: Option<RequestId>,
    /// When the timer that looks after the token is due, on the monotonic clock.
    pub token_due_ms: Option<u64>,
    /// Whether the client has been told that its token expires soon.
    pub token_warned: bool,
}

/// What a connection may rely on for as long as it lives, whatever a reload changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// How often it pings, in milliseconds.
    pub heartbeat_ms: u64,
    /// Longest message, in bytes.
    pub message_bytes_max: usize,
    /// Longest payload, in bytes.
    pub payload_bytes_max: usize,
    /// Rooms that it may be in.
    pub rooms_max: usize,
    /// Requests that it may have with owners.
    pub requests_max: u32,
}

/// A room that a connection is in.
#[derive(Debug, Clone, Copy)]
pub struct Membership {
    /// The room.
    pub room: RoomAlias,
    /// The member's number.
    pub member: MemberId,
    /// The member's index in the hub.
    pub index: u32,
    /// The attachment with which it was joined.
    pub attachment: Attachment,
    /// Its producer there.
    pub producer: Option<ProducerId>,
}

impl Connection {
    /// A connection that has said nothing.
    #[must_use]
    pub fn new(now_ms: u64, rates: &Rates) -> Self {
        Self {
            phase: Phase::Hello { bytes: 0 },
            heard_ms: now_ms,
            pinged: false,
            progress_ms: now_ms,
            drained_bytes: 0,
            stall_armed: false,
            in_flight: 0,
            pauses: Pauses::default(),
            backlog: None,
            messages: Bucket::full(rates.messages, now_ms),
            joins: Bucket::full(rates.joins, now_ms),
            bytes: Bucket::full(rates.bytes, now_ms),
            seldom: None,
        }
    }

    /// What the frames that wait to be handled take, in bytes.
    #[must_use]
    pub fn backlog_bytes(&self) -> usize {
        let backlog = self.backlog.as_deref().into_iter().flatten();
        let said = match &self.phase {
            Phase::Authenticating { said } => said.waiting.as_slice(),
            Phase::Hello { .. } | Phase::Open(_) => &[],
        };
        backlog.chain(said).map(held_bytes).sum()
    }

    /// How often it may still do what few ever do.
    pub fn seldom(&mut self, rates: &Rates, now_ms: u64) -> &mut Seldom {
        self.seldom.get_or_insert_with(|| {
            Box::new(Seldom {
                errors: Bucket::full(rates.errors, now_ms),
                pages: Bucket::full(rates.pages, now_ms),
                control: Bucket::full(rates.control, now_ms),
                refusals: Bucket::full(rates.refusals, now_ms),
            })
        })
    }

    /// Bytes received so far, until it is open.
    pub fn unauthenticated_bytes(&mut self) -> Option<&mut usize> {
        match &mut self.phase {
            Phase::Hello { bytes } => Some(bytes),
            Phase::Authenticating { said } => Some(&mut said.bytes),
            Phase::Open(_) => None,
        }
    }

    /// What it has once it is open.
    #[must_use]
    pub fn open(&self) -> Option<&Open> {
        match &self.phase {
            Phase::Open(open) => Some(open),
            Phase::Hello { .. } | Phase::Authenticating { .. } => None,
        }
    }

    /// What it has once it is open.
    pub fn open_mut(&mut self) -> Option<&mut Open> {
        match &mut self.phase {
            Phase::Open(open) => Some(open),
            Phase::Hello { .. } | Phase::Authenticating { .. } => None,
        }
    }
}

impl Open {
    /// The membership in a room.
    #[must_use]
    pub fn membership(&self, room: RoomAlias) -> Option<&Membership> {
        self.memberships
            .iter()
            .find(|membership| membership.room == room)
    }

    /// A membership, or the request for one, has ended.
    pub fn give_membership(&mut self) {
        if let Some(held) = &mut self.held {
            held.give_membership();
        }
    }

    /// Ends the membership in a room.
    pub fn remove(&mut self, room: RoomAlias) -> Option<Membership> {
        let index = self
            .memberships
            .iter()
            .position(|membership| membership.room == room)?;
        self.give_membership();
        Some(self.memberships.swap_remove(index))
    }
}

/// What a connection may do how often.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Bad frames.
    pub errors: Rate,
    /// Messages.
    pub messages: Rate,
    /// Joins.
    pub joins: Rate,
    /// Bytes of messages.
    pub bytes: Rate,
    /// Pages of history and of members, changes of what is watched, and requests about cursors.
    pub pages: Rate,
    /// Pings and pongs.
    pub control: Rate,
    /// Refusals for want of any of these; beyond it the connection is closed.
    pub refusals: Rate,
}
