//! Into a room and out of it: joins, leaves, and memberships that somebody else ends.
//!
//! `edge` calls it with a client's frames, the shard with the owner's answers. A member is in the hub before
//! anything of the room can reach it, and whoever leaves is out of it at once, with what waited for it.
//! Whether there is room for a member, and how long it is missed, the room decides.

use std::sync::Arc;

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{self, Joined, Recovery, Watch};
use roomful_protocol::id::{RequestId, RoomAlias, RoomId, RoomName};

use super::ask::check_payload;
use super::edge::{Outcome, allowed, not_joined};
use super::hub::{Hub, Place, Subscriber};
use super::message::{
    Admitted, ConnectionId, Join, Message, Origin, Preferences, Refusal, Request, StateGrant, View,
};
use super::write::track;
use super::{Host, Shard};
use crate::auth::Verb;
use crate::clock::Now;
use crate::connection::{Connection, Membership};
use crate::metrics::LimitedBy;

impl Shard {
    /// Checks a join and sends it to the room's home.
    pub(super) fn ask_join(
        &mut self,
        id: ConnectionId,
        join: frame::Join,
        now: Now,
        host: &mut dyn Host,
    ) -> Outcome {
        let name = join.room.parse().map_err(|error| {
            Refusal::new(ErrorCode::BadRoomName, format!("the room's name {error}"))
        })?;
        let settings = Arc::clone(&self.settings);
        let to = self.origin(id, Some(join.request));
        let is_in = self.is_in(id, &name);
        let Some(connection) = self.connection_mut(id) else {
            return Ok(());
        };
        let taken = connection
            .joins
            .take(settings.rates.joins, now.monotonic_ms)
            .map_err(|after_ms| (LimitedBy::Joins, after_ms));
        let held = connection.open().and_then(|open| open.held.as_ref());
        let taken = taken.and_then(|()| {
            held.map_or(Ok(()), |held| {
                held.take_join(&settings.user, now.monotonic_ms)
            })
            .map_err(|after_ms| (LimitedBy::UserJoins, after_ms))
        });
        taken.map_err(|(limit, after_ms)| self.limited(limit, after_ms))?;
        let Some(open) = self.connection_mut(id).and_then(Connection::open_mut) else {
            return Ok(());
        };
        allowed(open, &name, Verb::Join)?;
        if join.watch == Watch::Members || join.presence.is_some() {
            allowed(open, &name, Verb::Presence)?;
        }
        if let Some(value) = &join.presence {
            check_payload(value, open.terms.payload_bytes_max)?;
        }
        if is_in {
            return Err(Refusal::new(
                ErrorCode::AlreadyJoined,
                "this connection is in the room",
            ));
        }
        let room = RoomId {
            tenant: open.identity.tenant.clone(),
            name,
        };
        if open.joining.iter().any(|(_, joining)| *joining == room) {
            return Err(Refusal::new(
                ErrorCode::AlreadyJoined,
                "a join of this room is on its way",
            ));
        }
        if open
            .joining
            .iter()
            .any(|(request, _)| *request == join.request)
        {
            return Err(Refusal::new(
                ErrorCode::BadValue,
                "the request id is in use by another join",
            ));
        }
        if open.memberships.len() + open.joining.len() >= open.terms.rooms_max {
            let text = format!(
                "this connection is in {} rooms, as many as it may be in",
                open.terms.rooms_max
            );
            return Err(Refusal::new(ErrorCode::TooManyRooms, text));
        }
        if let Some(held) = &mut open.held
            && !held.take_membership(&settings.user)
        {
            self.counters
                .rate_limited
                .of(LimitedBy::UserMemberships)
                .add(1);
            let text = "this user is in as many rooms, over all connections, as it may be in";
            return Err(Refusal::new(ErrorCode::TooManyRooms, text));
        }
        push_first_alone(&mut open.joining, (join.request, room.clone()));
        let producer = join.producer.as_ref().map(|producer| producer.producer);
        let message = Join {
            to,
            session: open.session,
            attachment: open.attachment,
            user: open.identity.user.clone(),
            anonymous: open.anonymous,
            since: join.since,
            producer: join.producer,
            value: join.presence,
            preferences: Preferences {
                echo: join.echo,
                watch: join.watch,
                producer,
            },
            view: View::new(join.state, join.locks),
            grant: StateGrant::of(&open.identity, &room.name),
            room,
        };
        self.sent(id);
        let home = self.directory.home(&message.room);
        self.send(home, Message::Join(Box::new(message)), host);
        Ok(())
    }

    /// Whether the connection is in a room of this name.
    pub(super) fn is_in(&self, id: ConnectionId, name: &RoomName) -> bool {
        let Some(open) = self.connection(id).and_then(Connection::open) else {
            return false;
        };
        open.memberships.iter().any(|membership| {
            self.hubs
                .get(&membership.room)
                .is_some_and(|hub| hub.room.name == *name)
        })
    }

    /// The end of a join: the member is subscribed before anything else of the room can arrive.
    pub(super) fn joined(
        &mut self,
        to: Origin,
        room: RoomAlias,
        outcome: Result<Box<Admitted>, Refusal>,
        now: Now,
        host: &mut dyn Host,
    ) {
        let joining = to
            .request
            .filter(|request| self.end_joining(to.connection, *request));
        match (outcome, joining) {
            (Ok(admitted), Some(request)) => {
                self.subscribe(to.connection, request, room, *admitted, host);
            }
            (Ok(admitted), None) => {
                // The connection went away meanwhile: the owner holds a member for nobody.
                let (member, attachment) = (admitted.member, admitted.attachment);
                let request = Request::Detach {
                    member,
                    attachment,
                    shard: self.id,
                };
                self.send(admitted.home, Message::Request { room, request }, host);
            }
            (Err(refusal), joining) => {
                let open = self
                    .connection_mut(to.connection)
                    .and_then(Connection::open_mut);
                if let (Some(open), Some(_)) = (open, joining) {
                    open.give_membership();
                }
                self.refuse(to.connection, to.request, refusal);
            }
        }
        self.returned(to.connection, now, host);
    }

    /// Whether a join with this request id was on its way; it is no more.
    pub(super) fn end_joining(&mut self, id: ConnectionId, request: RequestId) -> bool {
        let Some(open) = self.connection_mut(id).and_then(Connection::open_mut) else {
            return false;
        };
        let before = open.joining.len();
        open.joining.retain(|(joining, _)| *joining != request);
        let was_on_its_way = open.joining.len() < before;
        if open.joining.is_empty() {
            open.joining = Vec::new();
        }
        was_on_its_way
    }

    /// Puts a new member into the hub, live or at its position, and tells it so.
    pub(super) fn subscribe(
        &mut self,
        id: ConnectionId,
        request: RequestId,
        alias: RoomAlias,
        admitted: Admitted,
        host: &mut dyn Host,
    ) {
        let preferences = admitted.preferences;
        let hub = self.hubs.entry(alias).or_insert_with(|| {
            Hub::new(
                admitted.room,
                alias,
                admitted.home,
                admitted.head,
                admitted.revision,
            )
        });
        let recovering = admitted.recovery == Recovery::Recovering;
        let place = if recovering {
            Place::At(admitted.position.offset)
        } else {
            Place::Live(hub.next_turn())
        };
        let view = hub.views.take(admitted.view);
        let index = hub.insert(Subscriber {
            connection: id,
            member: admitted.member,
            place,
            missed_presence: None,
            mute: preferences.producer.filter(|_| !preferences.echo),
            view,
            watch: preferences.watch,
            recovering,
        });
        let pull = hub.want(index);
        self.counters.subscribers.add(1);
        if let Some(open) = self.connection_mut(id).and_then(Connection::open_mut) {
            let membership = Membership {
                room: alias,
                member: admitted.member,
                index,
                attachment: admitted.attachment,
                producer: preferences.producer,
            };
            push_first_alone(&mut open.memberships, membership);
        }
        let joined = Joined {
            request,
            room: alias,
            member: admitted.member,
            position: admitted.position,
            head: admitted.head,
            recovery: admitted.recovery,
            durability: admitted.durability,
            revision: admitted.revision,
            occupancy: admitted.occupancy,
            state: admitted.state.map(|page| *page),
            locks: admitted.locks.map(|page| *page),
        };
        self.stage(id, &joined.into());
        if self.is_overtaken(id, alias, &admitted.grant, host) {
            return;
        }
        if let Some(from) = pull {
            let request = Request::Pull {
                shard: self.id,
                from,
            };
            self.send(
                admitted.home,
                Message::Request {
                    room: alias,
                    request,
                },
                host,
            );
        }
    }

    /// Goes by the token of now, which may be another than the one that the join came with: whether the membership ended at once.
    fn is_overtaken(
        &mut self,
        id: ConnectionId,
        room: RoomAlias,
        carried: &StateGrant,
        host: &mut dyn Host,
    ) -> bool {
        let Ok(membership) = self.member(id, room, Some(Verb::Join)) else {
            self.end_forbidden(id, host);
            return true;
        };
        self.tell_grant(id, membership, carried, host);
        false
    }

    /// Ends a membership at once on this side; the reply comes from the owner.
    pub(super) fn ask_leave(
        &mut self,
        id: ConnectionId,
        request: RequestId,
        room: RoomAlias,
        host: &mut dyn Host,
    ) -> Outcome {
        let to = self.origin(id, Some(request));
        let membership = self
            .connection_mut(id)
            .and_then(Connection::open_mut)
            .and_then(|open| open.remove(room));
        let membership = membership.ok_or_else(|| not_joined(room))?;
        self.forget_waiting(id, room);
        self.sent(id);
        let leave = Request::Leave {
            member: membership.member,
            attachment: membership.attachment,
            to,
        };
        self.unsubscribe(room, membership.index, leave, host);
        Ok(())
    }

    /// Ends what the connection's new grants do not allow any more.
    pub(super) fn end_forbidden(&mut self, id: ConnectionId, host: &mut dyn Host) {
        let to = self.origin(id, None);
        let Some(open) = self.connection(id).and_then(Connection::open) else {
            return;
        };
        let forbidden: Vec<_> = open
            .memberships
            .iter()
            .filter(|membership| {
                let hub = self.hubs.get(&membership.room);
                hub.is_some_and(|hub| !open.identity.grants.allows(&hub.room.name, Verb::Join))
            })
            .copied()
            .collect();
        for membership in forbidden {
            let leave = Request::Leave {
                member: membership.member,
                attachment: membership.attachment,
                to,
            };
            self.end_membership(id, membership, ErrorCode::Forbidden, leave, host);
        }
    }

    /// The owner, or this shard, has ended memberships.
    pub(super) fn ended(
        &mut self,
        room: RoomAlias,
        connection: Option<ConnectionId>,
        code: ErrorCode,
        host: &mut dyn Host,
    ) {
        let Some(id) = connection else {
            return self.all_ended(room, code);
        };
        let open = self.connection(id).and_then(Connection::open);
        let Some(membership) = open.and_then(|open| open.membership(room)).copied() else {
            return;
        };
        let (member, attachment) = (membership.member, membership.attachment);
        let detach = Request::Detach {
            member,
            attachment,
            shard: self.id,
        };
        self.end_membership(id, membership, code, detach, host);
    }

    /// The owner has ended all memberships, and holds none of them any more: thousands in one step, so it is told nothing.
    fn all_ended(&mut self, room: RoomAlias, code: ErrorCode) {
        let Some(hub) = self.remove_hub(room) else {
            return;
        };
        for subscriber in hub.iter() {
            self.counters.subscribers.sub(1);
            let id = subscriber.connection;
            if let Some(open) = self.connection_mut(id).and_then(Connection::open_mut) {
                open.remove(room);
            }
            self.forget_waiting(id, room);
            self.say_left(id, room, code);
        }
    }

    /// Takes a member out, and tells it and the owner.
    pub(super) fn end_membership(
        &mut self,
        id: ConnectionId,
        membership: Membership,
        code: ErrorCode,
        request: Request,
        host: &mut dyn Host,
    ) {
        let room = membership.room;
        if let Some(open) = self.connection_mut(id).and_then(Connection::open_mut) {
            open.remove(room);
        }
        self.forget_waiting(id, room);
        self.unsubscribe(room, membership.index, request, host);
        self.say_left(id, room, code);
    }

    /// Drops what the room still had in the connection's outbox.
    pub(super) fn forget_waiting(&mut self, id: ConnectionId, room: RoomAlias) {
        let counters = Arc::clone(&self.counters);
        if let Some(outbox) = self
            .outlet_mut(id)
            .and_then(|outlet| outlet.outbox.as_mut())
        {
            let before = outbox.sizes();
            outbox.forget_room(room);
            track(&counters, before, outbox.sizes());
        }
    }
}

/// Most connections are in one room, and a list that grows by itself begins with room for four.
fn push_first_alone<T>(list: &mut Vec<T>, item: T) {
    if list.is_empty() {
        list.reserve_exact(1);
    }
    list.push(item);
}

pub(super) fn left_text(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::RoomReopened => "the room was opened again after a fault; join again",
        ErrorCode::FellBehind => "this member fell behind the history that is kept; join again",
        ErrorCode::MembershipTaken => "another connection of this session is in the room",
        ErrorCode::Forbidden => "the new token does not allow this room",
        _ => code.name(),
    }
}
