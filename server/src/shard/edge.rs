//! The shard as edge: from a client's frame to a request, and from a reply to a frame.
//!
//! Here a connection says who it is, and everything it asks is checked against its grants and limits before an owner hears of it.

use std::num::NonZeroU64;
use std::sync::Arc;

use roomful_protocol::codec::{DecodeError, DecodeErrorKind, Encoding};
use roomful_protocol::error::{CloseCode, ErrorCode, Retry};
use roomful_protocol::frame::{
    self, ClientFrame, Frames, Hello, History, Joined, Left, Pong, Presence, PresenceRequest,
    Publish, Recovery, Refresh, Reply, Signal, TokenExpiring, Watch, Welcome,
};
use roomful_protocol::id::{RequestId, RoomAlias, RoomId, RoomName, SessionId, UserId};
use roomful_protocol::limits::{BATCH_FRAMES_MAX, Limits, PAGE_MAX};
use roomful_protocol::payload::Payload;
use roomful_protocol::websocket::OpCode;

use super::hub::{Hub, Place, Subscriber};
use super::message::{
    Admitted, Attachment, ConnectionId, Join, Message, Origin, Preferences, Refusal, Request,
};
use super::{Host, Shard, Timer};
use crate::auth::{AuthError, Identity, Verb};
use crate::clock::Now;
use crate::connection::{Connection, Membership, Open, Phase};
use crate::session::index::Attached;
use crate::session::token::ResumeClaims;
use crate::wire;

/// A request was refused: what its `error` says.
type Outcome = Result<(), Refusal>;

impl Shard {
    pub(super) fn opened(
        &mut self,
        id: ConnectionId,
        encoding: Encoding,
        now: Now,
        host: &mut dyn Host,
    ) {
        let slot = id.slot as usize;
        if self.connections.len() <= slot {
            self.connections.resize_with(slot + 1, || None);
        }
        let connection = Connection::new(id, encoding, now.monotonic_ms, &self.settings.rates);
        self.connections[slot] = Some(Box::new(connection));
        self.counters.connections.add(1);
        self.counters.connections_opened.add(1);
        if self.draining {
            return self.close(id, CloseCode::Restart, now, host);
        }
        self.wheel.set(
            now.monotonic_ms + self.settings.hello_timeout_ms,
            Timer::Hello(id),
        );
        self.wheel.set(
            now.monotonic_ms + self.settings.heartbeat_ms,
            Timer::Heartbeat(id),
        );
    }

    pub(super) fn heard(&mut self, id: ConnectionId, now: Now) {
        if let Some(connection) = self.connection_mut(id) {
            connection.heard_ms = now.monotonic_ms;
            connection.pinged = false;
        }
    }

    /// A whole message came: a frame, or something that is none.
    pub(super) fn message(
        &mut self,
        id: ConnectionId,
        text: bool,
        payload: &[u8],
        now: Now,
        host: &mut dyn Host,
    ) {
        self.heard(id, now);
        self.counters.messages_received.add(1);
        let settings = Arc::clone(&self.settings);
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        if text != (connection.encoding == Encoding::Json) {
            return self.close(id, CloseCode::UnsupportedData, now, host);
        }
        if let Phase::Hello { bytes } | Phase::Authenticating { bytes, .. } = &mut connection.phase
        {
            *bytes += payload.len();
            if *bytes > settings.hello_bytes_max {
                return self.close(id, CloseCode::HelloTimeout, now, host);
            }
        }
        match connection.encoding.decode_client(payload) {
            Ok(frame) => self.frame(id, frame, now, host),
            Err(error) => self.bad_frame(id, error, now, host),
        }
    }

    fn bad_frame(&mut self, id: ConnectionId, error: DecodeError, now: Now, host: &mut dyn Host) {
        let code = match error.kind {
            DecodeErrorKind::Malformed | DecodeErrorKind::TrailingBytes => ErrorCode::BadFrame,
            DecodeErrorKind::UnknownType => ErrorCode::UnknownType,
        };
        self.refuse(id, error.request, Refusal::new(code, error.text));
        self.spend_error(id, now, host);
    }

    /// Counts an error that no well-made client makes; the last one that is allowed ends the connection.
    fn spend_error(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        let rate = self.settings.rates.errors;
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        if connection.errors.take(rate, now.monotonic_ms).is_err() {
            self.close(id, CloseCode::PolicyViolation, now, host);
        }
    }

    fn frame(&mut self, id: ConnectionId, frame: ClientFrame, now: Now, host: &mut dyn Host) {
        if let ClientFrame::ClientBatch(batch) = frame {
            let Frames(frames) = batch.frames;
            return frames
                .into_iter()
                .for_each(|frame| self.frame(id, frame, now, host));
        }
        let (settings, request) = (Arc::clone(&self.settings), frame.request());
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        if let Err(after_ms) = connection
            .messages
            .take(settings.rates.messages, now.monotonic_ms)
        {
            let text = "too many frames; slow down".to_owned();
            let refusal = Refusal {
                code: ErrorCode::RateLimited,
                text,
                after_ms: Some(after_ms),
            };
            return self.refuse(id, request, refusal);
        }
        match (&mut connection.phase, frame) {
            (Phase::Hello { bytes }, ClientFrame::Hello(hello)) => {
                let bytes = *bytes;
                self.hello(id, bytes, hello, now, host);
            }
            (Phase::Hello { .. }, frame) => {
                let refusal = Refusal::new(ErrorCode::BadState, "say hello first");
                self.refuse(id, frame.request(), refusal);
                self.spend_error(id, now, host);
            }
            (Phase::Authenticating { waiting, .. }, frame) if waiting.len() < BATCH_FRAMES_MAX => {
                waiting.push(frame);
            }
            (Phase::Authenticating { .. }, _) => self.close(id, CloseCode::HelloTimeout, now, host),
            (Phase::Open(_), frame) => self.request(id, frame, now, host),
        }
    }

    fn hello(
        &mut self,
        id: ConnectionId,
        bytes: usize,
        hello: Hello,
        now: Now,
        host: &mut dyn Host,
    ) {
        if self.settings.anonymous {
            let user = self.anonymous_user(&hello, host);
            return self.open_session(id, &hello, Identity::anonymous(user), now, host);
        }
        let token = hello.token.clone();
        if let Some(connection) = self.connection_mut(id) {
            connection.phase = Phase::Authenticating {
                bytes,
                hello: Box::new(hello),
                waiting: Vec::new(),
            };
        }
        match token {
            Some(token) => host.verify(id, &token),
            None => self.verified(id, Err(AuthError::Missing), now, host),
        }
    }

    /// The user that a resume token remembers, or a new one.
    fn anonymous_user(&self, hello: &Hello, host: &mut dyn Host) -> UserId {
        let remembered = hello
            .resume
            .as_ref()
            .and_then(|token| self.settings.resume_key.verify(token));
        remembered.map_or_else(
            || {
                let name = format!("anon-{:08x}", host.random() >> 96);
                UserId::parse(&name).expect("letters, digits and a dash")
            },
            |claims| claims.user,
        )
    }

    pub(super) fn verified(
        &mut self,
        id: ConnectionId,
        outcome: Result<Identity, AuthError>,
        now: Now,
        host: &mut dyn Host,
    ) {
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        match (&mut connection.phase, outcome) {
            (Phase::Authenticating { hello, waiting, .. }, Ok(identity)) => {
                let (hello, waiting) = (hello.clone(), std::mem::take(waiting));
                self.open_session(id, &hello, identity, now, host);
                waiting
                    .into_iter()
                    .for_each(|frame| self.frame(id, frame, now, host));
            }
            (Phase::Authenticating { hello, .. }, Err(error)) => {
                let request = hello.request;
                self.counters.auth_failures.of(error.into()).add(1);
                self.refuse(
                    id,
                    Some(request),
                    Refusal::new(error.code(), error.to_string()),
                );
                let busy = error == AuthError::Busy;
                let code = if busy {
                    CloseCode::TryLater
                } else {
                    CloseCode::NotAuthenticated
                };
                self.close(id, code, now, host);
            }
            (Phase::Open(open), outcome) => {
                if let Some(request) = open.refreshing.take() {
                    self.refreshed(id, request, outcome, now, host);
                }
            }
            (Phase::Hello { .. }, _) => {}
        }
    }

    fn open_session(
        &mut self,
        id: ConnectionId,
        hello: &Hello,
        identity: Identity,
        now: Now,
        host: &mut dyn Host,
    ) {
        let claims = hello
            .resume
            .as_ref()
            .and_then(|token| self.settings.resume_key.verify(token));
        let is_own = |claims: &ResumeClaims| {
            claims.user == identity.user && claims.tenant == identity.tenant
        };
        if claims.as_ref().is_some_and(|claims| !is_own(claims)) {
            self.counters
                .auth_failures
                .of(crate::metrics::AuthFailure::Mismatch)
                .add(1);
            let text = "the resume token is of another user; connect without it";
            self.refuse(
                id,
                Some(hello.request),
                Refusal::new(ErrorCode::TokenMismatch, text),
            );
            return self.close(id, CloseCode::NotAuthenticated, now, host);
        }
        let (session, attached) = self.attach(id, claims.map(|claims| claims.session), now, host);
        let open = Open {
            anonymous: self.settings.anonymous,
            identity,
            session,
            attachment: attached.attachment,
            memberships: Vec::new(),
            joining: Vec::new(),
            refreshing: None,
            token_due_ms: None,
            token_warned: false,
        };
        let welcome = self.welcome(hello.request, &open, attached.resumed, now);
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        connection.phase = Phase::Open(Box::new(open));
        self.stage(id, &welcome.into());
        self.watch_token(id, now, host);
    }

    fn attach(
        &mut self,
        id: ConnectionId,
        resumed: Option<SessionId>,
        now: Now,
        host: &mut dyn Host,
    ) -> (SessionId, Attached) {
        let holder = (self.id, id);
        let resumed = resumed.and_then(|session| {
            Some((session, self.sessions.resume(session, holder, now.unix_ms)?))
        });
        let (session, attached) = resumed.unwrap_or_else(|| {
            let session = SessionId(host.random());
            (session, self.sessions.create(session, holder, now.unix_ms))
        });
        self.counters.sessions.add(1);
        if attached.resumed {
            self.counters.sessions_resumed.add(1);
        }
        if let Some((shard, former)) = attached.evicted {
            self.send(shard, Message::Evict(former), host);
        }
        (session, attached)
    }

    fn welcome(&self, request: RequestId, open: &Open, resumed: bool, now: Now) -> Welcome {
        let settings = &self.settings;
        Welcome {
            request,
            session: open.session,
            resumed,
            user: open.identity.user.clone(),
            resume: self.resume_token(open, now),
            heartbeat_ms: settings.heartbeat_ms,
            time_ms: now.unix_ms,
            expires_ms: open.identity.expires_ms,
            limits: Limits {
                message_bytes_max: settings.message_bytes_max as u64,
                payload_bytes_max: settings.payload_bytes_max as u64,
                rooms_max: settings.rooms_max as u64,
                requests_max: settings.requests_max.into(),
            },
        }
    }

    pub(super) fn resume_token(&self, open: &Open, now: Now) -> String {
        let (tenant, user) = (open.identity.tenant.clone(), open.identity.user.clone());
        self.settings.resume_key.sign(&ResumeClaims {
            session: open.session,
            tenant,
            user,
            issued_ms: now.unix_ms,
        })
    }

    fn request(&mut self, id: ConnectionId, frame: ClientFrame, now: Now, host: &mut dyn Host) {
        let request = frame.request();
        let outcome = match frame {
            ClientFrame::Hello(_) => {
                Err(Refusal::new(ErrorCode::BadState, "hello was said already"))
            }
            ClientFrame::Join(join) => self.ask_join(id, join, now, host),
            ClientFrame::Leave(leave) => self.ask_leave(id, leave.request, leave.room, host),
            ClientFrame::Publish(publish) => self.ask_publish(id, publish, host),
            ClientFrame::Signal(signal) => self.ask_signal(id, signal, host),
            ClientFrame::Presence(presence) => self.ask_presence(id, presence, host),
            ClientFrame::History(history) => self.ask_history(id, &history, host),
            ClientFrame::Refresh(refresh) => self.ask_refresh(id, &refresh, host),
            ClientFrame::Ping(ping) => {
                self.stage(
                    id,
                    &Pong {
                        request: ping.request,
                        time_ms: now.unix_ms,
                    }
                    .into(),
                );
                Ok(())
            }
            ClientFrame::ClientBatch(_) => Ok(()),
        };
        if let Err(refusal) = outcome {
            self.refuse(id, request, refusal);
        }
    }

    fn ask_join(
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
        connection
            .joins
            .take(settings.rates.joins, now.monotonic_ms)
            .map_err(|after_ms| Refusal {
                code: ErrorCode::RateLimited,
                text: "too many joins; slow down".to_owned(),
                after_ms: Some(after_ms),
            })?;
        let Some(open) = connection.open_mut() else {
            return Ok(());
        };
        allowed(open, &name, Verb::Join)?;
        if join.watch == Watch::Members || join.presence.is_some() {
            allowed(open, &name, Verb::Presence)?;
        }
        if let Some(value) = &join.presence {
            check_payload(value, settings.payload_bytes_max)?;
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
        if open.memberships.len() + open.joining.len() >= settings.rooms_max {
            let text = format!(
                "this connection is in {} rooms, as many as it may be in",
                settings.rooms_max
            );
            return Err(Refusal::new(ErrorCode::TooManyRooms, text));
        }
        open.joining.push((join.request, room.clone()));
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
            room,
        };
        self.sent(id, host);
        let home = self.directory.home(&message.room);
        self.send(home, Message::Join(Box::new(message)), host);
        Ok(())
    }

    fn is_in(&self, id: ConnectionId, name: &RoomName) -> bool {
        let Some(open) = self.connection(id).and_then(Connection::open) else {
            return false;
        };
        open.memberships.iter().any(|membership| {
            self.hubs
                .get(&membership.room)
                .is_some_and(|hub| hub.room.name == *name)
        })
    }

    /// Whether a join with this request id was on its way; it is no more.
    fn end_joining(&mut self, id: ConnectionId, request: RequestId) -> bool {
        let Some(open) = self.connection_mut(id).and_then(Connection::open_mut) else {
            return false;
        };
        let before = open.joining.len();
        open.joining.retain(|(joining, _)| *joining != request);
        open.joining.len() < before
    }

    /// The end of a join: the member is subscribed before anything else of the room can arrive.
    pub(super) fn joined(
        &mut self,
        to: Origin,
        room: RoomAlias,
        outcome: Result<Box<Admitted>, Refusal>,
        host: &mut dyn Host,
    ) {
        let joining = to
            .request
            .filter(|request| self.end_joining(to.connection, *request));
        self.returned(to.connection, host);
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
            (Err(refusal), _) => self.refuse(to.connection, to.request, refusal),
        }
    }

    fn subscribe(
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
        let index = hub.insert(Subscriber {
            connection: id,
            member: admitted.member,
            place,
            missed_presence: None,
            mute: preferences.producer.filter(|_| !preferences.echo),
            watch: preferences.watch,
            recovering,
        });
        let pull = hub.want(index);
        self.counters.subscribers.add(1);
        if let Some(open) = self.connection_mut(id).and_then(Connection::open_mut) {
            open.memberships.push(Membership {
                room: alias,
                member: admitted.member,
                index,
                attachment: admitted.attachment,
                producer: preferences.producer,
            });
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
        };
        self.stage(id, &joined.into());
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

    fn ask_leave(
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
        self.sent(id, host);
        let leave = Request::Leave {
            member: membership.member,
            attachment: membership.attachment,
            to,
        };
        self.unsubscribe(room, membership.index, leave, host);
        Ok(())
    }

    fn forget_waiting(&mut self, id: ConnectionId, room: RoomAlias) {
        let counters = Arc::clone(&self.counters);
        if let Some(outbox) = self
            .connection_mut(id)
            .and_then(|connection| connection.outbox.as_mut())
        {
            let before = outbox.sizes();
            outbox.forget_room(room);
            super::deliver::track(&counters, before, outbox.sizes());
        }
    }

    fn ask_publish(&mut self, id: ConnectionId, publish: Publish, host: &mut dyn Host) -> Outcome {
        let membership = self.member(id, publish.room, Some(Verb::Publish))?;
        check_payload(&publish.payload, self.settings.payload_bytes_max)?;
        if publish
            .op
            .is_some_and(|op| Some(op.producer) != membership.producer)
        {
            let text = "the operation's producer is not the one that join named";
            return Err(Refusal::new(ErrorCode::BadValue, text));
        }
        let to = self.origin(id, Some(publish.request));
        let request = Request::Publish {
            member: membership.member,
            to,
            op: publish.op,
            payload: publish.payload,
        };
        self.ask(id, publish.room, request, host);
        Ok(())
    }

    fn ask_signal(&mut self, id: ConnectionId, signal: Signal, host: &mut dyn Host) -> Outcome {
        let membership = self.member(id, signal.room, Some(Verb::Signal))?;
        check_payload(&signal.payload, self.settings.payload_bytes_max)?;
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

    fn ask_presence(
        &mut self,
        id: ConnectionId,
        presence: Presence,
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
        let to = self.origin(id, Some(presence.request));
        let request = match presence.what {
            PresenceRequest::Get { after, limit } => Request::Members {
                to,
                after,
                limit: page_limit(limit)?,
            },
            PresenceRequest::Set(value) => {
                value.as_ref().map_or(Ok(()), |value| {
                    check_payload(value, self.settings.payload_bytes_max)
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
        self.ask(id, presence.room, request, host);
        Ok(())
    }

    /// Changes what a member is sent. Whoever begins to watch is told the count first; names it reads page by page.
    fn watch(
        &mut self,
        id: ConnectionId,
        room: RoomAlias,
        index: u32,
        level: Watch,
        host: &mut dyn Host,
    ) {
        let to = self.origin(id, None);
        let Some(hub) = self.hubs.get_mut(&room) else {
            return;
        };
        let (home, revision) = (hub.home, hub.presence_revision);
        let Some(subscriber) = hub.get_mut(index) else {
            return;
        };
        let begins = level > subscriber.watch;
        subscriber.watch = level;
        subscriber.missed_presence = NonZeroU64::new(revision + 1).filter(|_| begins);
        if begins {
            let request = Request::PullPresence {
                to,
                since: revision,
            };
            self.send(home, Message::Request { room, request }, host);
        }
    }

    fn ask_history(&mut self, id: ConnectionId, history: &History, host: &mut dyn Host) -> Outcome {
        self.member(id, history.room, Some(Verb::History))?;
        let to = self.origin(id, Some(history.request));
        let limit = page_limit(history.limit)?;
        let request = Request::History {
            to,
            from: history.from,
            direction: history.direction,
            limit,
        };
        self.ask(id, history.room, request, host);
        Ok(())
    }

    fn ask_refresh(&mut self, id: ConnectionId, refresh: &Refresh, host: &mut dyn Host) -> Outcome {
        if self.settings.anonymous {
            return Err(Refusal::new(
                ErrorCode::BadState,
                "this server needs no token",
            ));
        }
        let Some(open) = self.connection_mut(id).and_then(Connection::open_mut) else {
            return Ok(());
        };
        if open.refreshing.is_some() {
            return Err(Refusal::new(ErrorCode::BadState, "a refresh is on its way"));
        }
        open.refreshing = Some(refresh.request);
        host.verify(id, &refresh.token);
        Ok(())
    }

    fn refreshed(
        &mut self,
        id: ConnectionId,
        request: RequestId,
        outcome: Result<Identity, AuthError>,
        now: Now,
        host: &mut dyn Host,
    ) {
        let identity = match outcome {
            Ok(identity) => identity,
            Err(error) => {
                self.counters.auth_failures.of(error.into()).add(1);
                return self.refuse(
                    id,
                    Some(request),
                    Refusal::new(error.code(), error.to_string()),
                );
            }
        };
        let Some(open) = self.connection_mut(id).and_then(Connection::open_mut) else {
            return;
        };
        if open.identity.user != identity.user || open.identity.tenant != identity.tenant {
            self.counters
                .auth_failures
                .of(crate::metrics::AuthFailure::Mismatch)
                .add(1);
            let text = "the token is of another user than this connection's";
            return self.refuse(
                id,
                Some(request),
                Refusal::new(ErrorCode::TokenMismatch, text),
            );
        }
        let expires_ms = identity.expires_ms;
        open.identity = identity;
        open.token_warned = false;
        self.watch_token(id, now, host);
        let reply = Reply::Refreshed {
            expires_ms: expires_ms.unwrap_or(0),
        };
        self.stage(id, &frame::Ok { request, reply }.into());
        self.end_forbidden(id, host);
    }

    /// Ends what the connection's new grants do not allow any more.
    fn end_forbidden(&mut self, id: ConnectionId, host: &mut dyn Host) {
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
        let ids = match connection {
            Some(id) => vec![id],
            None => self
                .hubs
                .get(&room)
                .map(|hub| hub.iter().map(|member| member.connection).collect())
                .unwrap_or_default(),
        };
        for id in ids {
            let open = self.connection(id).and_then(Connection::open);
            let Some(membership) = open.and_then(|open| open.membership(room)).copied() else {
                continue;
            };
            let (member, attachment) = (membership.member, membership.attachment);
            let detach = Request::Detach {
                member,
                attachment,
                shard: self.id,
            };
            self.end_membership(id, membership, code, detach, host);
        }
    }

    fn end_membership(
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
        self.counters.errors.of(code).add(1);
        let text = left_text(code).to_owned();
        self.stage(
            id,
            &Left {
                room,
                code: code.into(),
                text,
                retry: code.retry(),
                after_ms: None,
            }
            .into(),
        );
    }

    /// The end of a request.
    pub(super) fn replied(
        &mut self,
        to: Origin,
        outcome: Result<Reply, Refusal>,
        host: &mut dyn Host,
    ) {
        self.returned(to.connection, host);
        match (outcome, to.request) {
            (Ok(reply), Some(request)) => {
                self.stage(to.connection, &frame::Ok { request, reply }.into());
            }
            (Ok(_), None) => {}
            (Err(refusal), request) => self.refuse(to.connection, request, refusal),
        }
    }

    fn refuse(&mut self, id: ConnectionId, request: Option<RequestId>, refusal: Refusal) {
        self.counters.messages_rejected.add(1);
        self.counters.errors.of(refusal.code).add(1);
        let retry = if refusal.after_ms.is_some() {
            Retry::After
        } else {
            refusal.code.retry()
        };
        let frame = frame::Error {
            request,
            code: refusal.code.into(),
            text: refusal.text,
            retry,
            after_ms: refusal.after_ms,
        };
        self.stage(id, &frame.into());
    }

    fn ask(&mut self, id: ConnectionId, room: RoomAlias, request: Request, host: &mut dyn Host) {
        if request.reply_to().is_some() {
            self.sent(id, host);
        }
        if let Some(home) = self.hubs.get(&room).map(|hub| hub.home) {
            self.send(home, Message::Request { room, request }, host);
        }
    }

    /// A request went to an owner; with too many out, the connection is not read until some are back.
    fn sent(&mut self, id: ConnectionId, host: &mut dyn Host) {
        let max = self.settings.requests_max;
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        connection.in_flight += 1;
        if connection.in_flight >= max && !connection.paused {
            connection.paused = true;
            host.pause(id, true);
        }
    }

    fn returned(&mut self, id: ConnectionId, host: &mut dyn Host) {
        let max = self.settings.requests_max;
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        connection.in_flight = connection.in_flight.saturating_sub(1);
        if connection.paused && connection.in_flight <= max / 2 {
            connection.paused = false;
            host.pause(id, false);
        }
    }

    /// The connection's membership in a room, if its grants allow what it wants there.
    fn member(
        &self,
        id: ConnectionId,
        room: RoomAlias,
        verb: Option<Verb>,
    ) -> Result<Membership, Refusal> {
        let open = self
            .connection(id)
            .and_then(Connection::open)
            .ok_or_else(|| not_joined(room))?;
        let membership = *open.membership(room).ok_or_else(|| not_joined(room))?;
        if let (Some(verb), Some(hub)) = (verb, self.hubs.get(&room)) {
            allowed(open, &hub.room.name, verb)?;
        }
        Ok(membership)
    }

    fn origin(&self, connection: ConnectionId, request: Option<RequestId>) -> Origin {
        Origin {
            shard: self.id,
            connection,
            request,
        }
    }

    pub(super) fn hello_timed_out(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        if self
            .connection(id)
            .is_some_and(|connection| connection.open().is_none())
        {
            self.close(id, CloseCode::HelloTimeout, now, host);
        }
    }

    pub(super) fn heartbeat(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        let heartbeat_ms = self.settings.heartbeat_ms;
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        let silent_ms = now.monotonic_ms.saturating_sub(connection.heard_ms);
        if silent_ms >= 2 * heartbeat_ms {
            return self.close(id, CloseCode::HeartbeatTimeout, now, host);
        }
        let ask = silent_ms >= heartbeat_ms && !connection.pinged;
        connection.pinged |= ask;
        let patience_ms = if silent_ms >= heartbeat_ms {
            2 * heartbeat_ms
        } else {
            heartbeat_ms
        };
        let due_ms = connection.heard_ms + patience_ms;
        self.wheel.set(due_ms, Timer::Heartbeat(id));
        if ask {
            self.stage_bytes(id, &wire::control(OpCode::Ping, &[]));
        }
    }

    /// Looks at the token now and whenever something about it is due; one timer a connection, whatever the clocks do.
    pub(super) fn watch_token(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        let warning_ms = self.settings.expiry_warning_ms;
        let Some(open) = self.connection_mut(id).and_then(Connection::open_mut) else {
            return;
        };
        let Some(expires_ms) = open.identity.expires_ms else {
            return;
        };
        let left_ms = expires_ms.saturating_sub(now.unix_ms);
        if left_ms == 0 {
            return self.close(id, CloseCode::TokenExpired, now, host);
        }
        let warns = left_ms <= warning_ms && !open.token_warned;
        open.token_warned |= warns;
        let next_ms = if left_ms > warning_ms {
            left_ms - warning_ms
        } else {
            left_ms
        };
        let due_ms = now.monotonic_ms + next_ms;
        if open
            .token_due_ms
            .is_none_or(|armed_ms| armed_ms <= now.monotonic_ms || due_ms < armed_ms)
        {
            open.token_due_ms = Some(due_ms);
            self.wheel.set(due_ms, Timer::Token(id));
        }
        if warns {
            self.stage(id, &TokenExpiring { expires_ms }.into());
        }
    }

    pub(super) fn session_over(&self, session: SessionId, attachment: Attachment) {
        // Whoever resumed it is counted where it is now.
        self.sessions.forget(session, attachment);
        self.counters.sessions.sub(1);
    }
}

fn allowed(open: &Open, room: &RoomName, verb: Verb) -> Outcome {
    if open.identity.grants.allows(room, verb) {
        return Ok(());
    }
    Err(Refusal::new(
        ErrorCode::Forbidden,
        format!("no grant allows {} here", verb.name()),
    ))
}

fn check_payload(payload: &Payload, bytes_max: usize) -> Outcome {
    let bytes = payload.bytes.len();
    if bytes > bytes_max {
        let text = format!("the payload has {bytes} bytes; at most {bytes_max} are allowed");
        return Err(Refusal::new(ErrorCode::PayloadTooLarge, text));
    }
    payload
        .check()
        .map_err(|error| Refusal::new(ErrorCode::BadPayload, error.to_string()))
}

fn page_limit(limit: u64) -> Result<usize, Refusal> {
    match usize::try_from(limit) {
        Ok(0) | Err(_) => Err(Refusal::new(
            ErrorCode::BadValue,
            "a page has at least one entry",
        )),
        Ok(limit) => Ok(limit.min(PAGE_MAX)),
    }
}

fn not_joined(room: RoomAlias) -> Refusal {
    Refusal::new(
        ErrorCode::NotJoined,
        format!("this connection is in no room {room}; join first"),
    )
}

fn left_text(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::RoomReopened => {
            "the room was opened again after a fault of the storage; join again"
        }
        ErrorCode::FellBehind => "this member fell behind the history that is kept; join again",
        ErrorCode::MembershipTaken => "another connection of this session is in the room",
        ErrorCode::Forbidden => "the new token does not allow this room",
        _ => code.name(),
    }
}
