//! What a member asks of a room: each request is checked against the grants and limits, then goes to the owner.
//!
//! `edge` calls it with one frame at a time; a refusal is an `Err` and has changed nothing. What the edge
//! alone can answer, which is how much of presence a member is sent, is answered here. Order, op ids and
//! everything else that concerns several members are left to the room.

use std::num::NonZeroU64;

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{
    self, History, Presence, PresenceRequest, Publish, Reply, Signal, Watch,
};
use roomful_protocol::id::RoomAlias;
use roomful_protocol::limits::PAGE_MAX;
use roomful_protocol::payload::Payload;

use super::edge::Outcome;
use super::keyed::check_op;
use super::message::{Author, ConnectionId, Refusal, Request};
use super::{Host, Shard};
use crate::auth::Verb;
use crate::clock::Now;
use crate::metrics::LimitedBy;

impl Shard {
    pub(super) fn ask_publish(
        &mut self,
        id: ConnectionId,
        publish: Publish,
        host: &mut dyn Host,
    ) -> Outcome {
        let membership = self.member(id, publish.room, Some(Verb::Publish))?;
        check_payload(&publish.payload, self.terms(id).payload_bytes_max)?;
        check_op(publish.op, membership)?;
        let to = self.origin(id, Some(publish.request));
        let request = Request::Publish {
            author: Author::Member(membership.member),
            to,
            op: publish.op,
            payload: publish.payload,
        };
        self.ask(id, publish.room, request, host);
        Ok(())
    }

    pub(super) fn ask_signal(
        &mut self,
        id: ConnectionId,
        signal: Signal,
        host: &mut dyn Host,
    ) -> Outcome {
        let membership = self.member(id, signal.room, Some(Verb::Signal))?;
        check_payload(&signal.payload, self.terms(id).payload_bytes_max)?;
        let reply = self.origin(id, signal.request);
        let request = Request::Signal {
            member: membership.member,
            reply,
            to: signal.to,
            key: signal.key,
            payload: signal.payload,
        };
        self.ask(id, signal.room, request, host);
        Ok(())
    }

    pub(super) fn ask_presence(
        &mut self,
        id: ConnectionId,
        presence: Presence,
        now: Now,
        host: &mut dyn Host,
    ) -> Outcome {
        let verb = match presence.what {
            // The count alone is for every member; names and values need the grant.
            PresenceRequest::Watch(Watch::None | Watch::Occupancy) => None,
            PresenceRequest::Watch(Watch::Members)
            | PresenceRequest::Get { .. }
            | PresenceRequest::Set(_) => Some(Verb::Presence),
        };
        let membership = self.member(id, presence.room, verb)?;
        if !matches!(presence.what, PresenceRequest::Set(_)) {
            self.take_page(id, now)?;
        }
        let to = self.origin(id, Some(presence.request));
        let request = match presence.what {
            PresenceRequest::Get { after, limit } => Request::Members {
                to,
                after,
                limit: page_limit(limit)?,
            },
            PresenceRequest::Set(value) => {
                value.as_ref().map_or(Ok(()), |value| {
                    check_payload(value, self.terms(id).payload_bytes_max)
                })?;
                Request::SetPresence {
                    member: membership.member,
                    to,
                    value,
                }
            }
            PresenceRequest::Watch(level) => {
                self.watch(id, presence.room, membership.index, level, host);
                self.stage(
                    id,
                    &frame::Ok {
                        request: presence.request,
                        reply: Reply::Done,
                    }
                    .into(),
                );
                return Ok(());
            }
        };
        let is_page = matches!(request, Request::Members { .. });
        self.ask(id, presence.room, request, host);
        if is_page {
            self.await_page(id);
        }
        Ok(())
    }

    /// Asks for a page.
    pub(super) fn ask_page(
        &mut self,
        id: ConnectionId,
        room: RoomAlias,
        request: Request,
        now: Now,
        host: &mut dyn Host,
    ) -> Outcome {
        self.take_page(id, now)?;
        self.ask(id, room, request, host);
        self.await_page(id);
        Ok(())
    }

    /// Takes a page from what the connection may ask for; to begin to watch costs the owner one too.
    pub(super) fn take_page(&mut self, id: ConnectionId, now: Now) -> Outcome {
        self.afford_page()?;
        let rates = self.settings.rates;
        let taken = self.connection_mut(id).map_or(Ok(()), |connection| {
            let seldom = connection.seldom(&rates, now.monotonic_ms);
            seldom.pages.take(rates.pages, now.monotonic_ms)
        });
        taken.map_err(|after_ms| self.limited(LimitedBy::Pages, after_ms))
    }

    /// A page is many times as long as its request, so a connection has one on its way at a time and is read again
    /// when that has come.
    fn await_page(&mut self, id: ConnectionId) {
        let waits = self
            .connection_mut(id)
            .is_some_and(|connection| !std::mem::replace(&mut connection.pauses.page, true));
        if waits {
            self.counters.pages_awaited.add(1);
        }
    }

    /// Changes what a member is sent. Whoever begins to watch is told the count first; names it reads page by page.
    pub(super) fn watch(
        &mut self,
        id: ConnectionId,
        room: RoomAlias,
        index: u32,
        level: Watch,
        host: &mut dyn Host,
    ) {
        let Some(hub) = self.hubs.get_mut(&room) else {
            return;
        };
        let revision = hub.presence_revision;
        let Some(subscriber) = hub.get_mut(index) else {
            return;
        };
        let begins = level > subscriber.watch;
        subscriber.watch = level;
        subscriber.missed_presence = NonZeroU64::new(revision + 1).filter(|_| begins);
        if begins {
            self.catch_up_member(room, index, id, host);
        }
    }

    pub(super) fn ask_history(
        &mut self,
        id: ConnectionId,
        history: &History,
        now: Now,
        host: &mut dyn Host,
    ) -> Outcome {
        self.member(id, history.room, Some(Verb::History))?;
        let to = self.origin(id, Some(history.request));
        let limit = page_limit(history.limit)?;
        let request = Request::History {
            to,
            from: history.from,
            direction: history.direction,
            limit,
        };
        self.ask_page(id, history.room, request, now, host)
    }
}

/// Whether a payload may go to a room.
///
/// # Errors
/// It is too long, or is not what its tag says.
pub fn check_payload(payload: &Payload, bytes_max: usize) -> Result<(), Refusal> {
    let bytes = payload.bytes.len();
    if bytes > bytes_max {
        let text = format!("the payload has {bytes} bytes; at most {bytes_max} are allowed");
        return Err(Refusal::new(ErrorCode::PayloadTooLarge, text));
    }
    payload
        .check()
        .map_err(|error| Refusal::new(ErrorCode::BadPayload, error.to_string()))
}

/// How many a page may have.
///
/// # Errors
/// None at all.
pub fn page_limit(limit: u64) -> Result<usize, Refusal> {
    match usize::try_from(limit) {
        Ok(0) | Err(_) => Err(Refusal::new(
            ErrorCode::BadValue,
            "a page has at least one entry",
        )),
        Ok(limit) => Ok(limit.min(PAGE_MAX)),
    }
}
