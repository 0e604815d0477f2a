//! What a request waits for, and the answer where its room has none.

use roomful_protocol::error::ErrorCode;
use roomful_protocol::id::RoomAlias;

use super::Context;
use crate::shard::message::{Message, Origin, Refusal, Request};

/// A request that waits for its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Where the reply goes.
    pub to: Origin,
    /// What would have to come.
    pub awaited: Awaited,
}

/// Which reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// That of a join.
    Joined,
    /// That of a publish, whose outcome nobody else can tell.
    Published,
    /// Another.
    Other,
}

impl Asked {
    /// The reply that a request waits for.
    #[must_use]
    pub fn of(request: &Request) -> Option<Self> {
        let awaited = match request {
            Request::Join(_) => Awaited::Joined,
            Request::Publish { .. } => Awaited::Published,
            Request::Leave { .. }
            | Request::Detach { .. }
            | Request::Signal { .. }
            | Request::SetPresence { .. }
            | Request::Describe { .. }
            | Request::Members { .. }
            | Request::History { .. }
            | Request::Pull { .. }
            | Request::PullPresence { .. } => Awaited::Other,
        };
        let to = request.reply_to()?;
        Some(Self { to, awaited })
    }
}

/// Answers a request of a room that could not be opened.
pub(super) fn refuse(request: &Request, room: RoomAlias, context: &mut Context<'_>) {
    let text = "the room's storage can't be opened; try again";
    let refusal = || Refusal {
        code: ErrorCode::Overloaded,
        text: text.to_owned(),
        after_ms: Some(1000),
    };
    match (&request, request.reply_to()) {
        (Request::Join(join), _) => {
            let joined = Message::Joined {
                to: join.to,
                room,
                outcome: Err(refusal()),
            };
            context.send(join.to.shard, joined);
        }
        (_, Some(to)) => context.reply(to, Err(refusal())),
        (_, None) => {}
    }
}
