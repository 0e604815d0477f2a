//! The rooms of a machine: joining, coming back, the order of events, and the publishes that wait for their acknowledgement.

use std::time::Duration;

use roomful_protocol::error::{ErrorCode, Retry};
use roomful_protocol::frame::{
    CaughtUp, Change, ClientFrame, Cursor, Event, History, Join, JoinProducer, Joined, Leave, Left,
    Lock, LockChanged, LockInfo, LockRequest, OpId, Presence, PresenceDelta, PresenceRequest,
    Publish, Recovery, Reply, RoomText, Signal as SignalFrame, Signalled, State, StateChanged,
    StateItem, StateRequest, Timer, TimerChanged, TimerRequest,
};
use roomful_protocol::id::{MemberId, Offset, RequestId, RoomAlias, Sequence};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;

use super::backoff::Backoff;
use super::claims::Claims;
use super::connection::Cause;
use super::copies::Pages;
use super::publishes::{Content, Publishes, Queued};
use super::requests::{Expects, Request};
use super::step::{
    Answer, CallId, JoinInfo, JoinOptions, Output, RoomEvent, RoomKey, RoomRequest, Signal,
};
use super::{Machine, Turn};
use crate::error::{Error, Refusal};

/// A room that the application is in, whatever the connection does.
#[derive(Debug)]
pub(super) struct Membership {
    /// As the application wrote it; the server judges it.
    name: String,
    /// How to join again: `presence` and `watch` follow what the application asked for later, `since` the newest position.
    pub(super) options: JoinOptions,
    standing: Standing,
    /// The application's call, until the first `joined`.
    joining: Option<CallId>,
    /// Whether a presence value was ever wanted. A member that comes back without one keeps the one it had, so taking it away has to be said.
    had_presence: bool,
    /// What was asked while the room was being joined again.
    parked: Vec<(CallId, RoomRequest)>,
    publishes: Publishes,
    /// What is still to be read of what is watched.
    pub(super) pages: Pages,
    /// Locks held or waited for.
    pub(super) claims: Claims,
    /// What was left with the server for when this member is gone, if anything ever was: taking it back has to be said too.
    on_disconnect: Option<Vec<Change>>,
    /// The own number, from the first `joined` on.
    pub(super) member: Option<MemberId>,
    backoff: Backoff,
    /// When it was last joined.
    joined_at: Duration,
}

/// What this connection knows of the membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Nothing.
    Out,
    /// `join` is sent.
    Joining,
    /// `joined` came.
    In { alias: RoomAlias },
    /// The server ended it, and may be asked again then.
    Retry { at: Duration },
    /// `leave` is sent.
    Leaving {
        alias: RoomAlias,
        call: Option<CallId>,
    },
}

impl Membership {
    pub(super) fn alias(&self) -> Option<RoomAlias> {
        match self.standing {
            Standing::In { alias } => Some(alias),
            Standing::Out
            | Standing::Joining
            | Standing::Retry { .. }
            | Standing::Leaving { .. } => None,
        }
    }

    /// Keeps for the next join what can be kept.
    fn remember(&mut self, request: RoomRequest) -> bool {
        match request {
            RoomRequest::SetPresence(value) => {
                self.want_presence(value);
            }
            RoomRequest::Watch(level) => self.options.watch = level,
            _ => return false,
        }
        true
    }

    /// The value to have from now on; gives the one before.
    fn want_presence(&mut self, value: Option<Payload>) -> Option<Payload> {
        self.had_presence |= value.is_some();
        std::mem::replace(&mut self.options.presence, value)
    }

    /// When the room wants a tick.
    pub(super) fn deadline(&self, open: bool) -> Option<Duration> {
        match self.standing {
            Standing::Retry { at } if open => Some(at),
            Standing::In { .. } if open => {
                let held = self.publishes.held_until().into_iter();
                held.chain(self.pages.deadline())
                    .chain(self.claims.deadline(true))
                    .min()
            }
            _ => self.claims.deadline(false),
        }
    }
}

/// Joining and leaving.
impl Machine {
    pub(super) fn join(
        &mut self,
        call: CallId,
        key: RoomKey,
        name: String,
        options: JoinOptions,
        turn: &mut Turn<'_>,
    ) {
        let there = |room: &Membership| {
            room.name == name && !matches!(room.standing, Standing::Leaving { .. })
        };
        if self.rooms.values().any(there) {
            return turn.reply(call, Err(Error::AlreadyJoined));
        }
        if let Some(Err(error)) = options
            .presence
            .as_ref()
            .map(|value| self.check_size(value))
        {
            return turn.reply(call, Err(error));
        }
        let membership = Membership {
            name,
            had_presence: options.presence.is_some(),
            options,
            standing: Standing::Out,
            joining: Some(call),
            parked: Vec::new(),
            publishes: Publishes::default(),
            pages: Pages::default(),
            claims: Claims::default(),
            on_disconnect: None,
            member: None,
            backoff: Backoff::new(self.config.reconnect_base, self.config.reconnect_max),
            joined_at: turn.at.now,
        };
        self.rooms.insert(key, membership);
        if self.is_greeted() {
            self.send_join(key, turn);
        }
    }

    /// After `hello`: everything that was joined before is joined again.
    pub(super) fn join_all(&mut self, turn: &mut Turn<'_>) {
        let keys: Vec<RoomKey> = self.rooms.keys().copied().collect();
        keys.into_iter().for_each(|key| self.send_join(key, turn));
    }

    fn send_join(&mut self, key: RoomKey, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        if self.left_early.values().any(|name| *name == room.name) {
            return;
        }
        room.standing = Standing::Joining;
        room.pages.told(&room.options.state, room.options.locks);
        let producer = JoinProducer {
            producer: self.config.producer,
            next: Sequence(self.next_sequence),
        };
        let room_text = RoomText::from(room.name.as_str());
        let JoinOptions {
            since,
            echo,
            watch,
            presence,
            state,
            locks,
        } = room.options.clone();
        self.request(Request::Join(key), turn, |request| {
            Join {
                request,
                room: room_text,
                since,
                producer: Some(producer),
                echo,
                watch,
                presence,
                state,
                locks,
            }
            .into()
        });
    }

    pub(super) fn joined(&mut self, joined: Joined, turn: &mut Turn<'_>) {
        let alias = joined.room;
        let key = match self.requests.close(joined.request) {
            Some(Request::Join(key)) if self.rooms.contains_key(&key) => key,
            // The application stopped waiting for it, or left before it was in.
            given_up => {
                self.request(Request::Quiet, turn, |request| {
                    Leave {
                        request,
                        room: alias,
                    }
                    .into()
                });
                if let Some(Request::Join(key)) = given_up {
                    self.join_next(key, turn);
                }
                return;
            }
        };
        self.aliases.insert(alias, key);
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        let info = join_info(&joined);
        room.member = Some(info.member);
        room.standing = Standing::In { alias };
        room.joined_at = turn.at.now;
        room.options.since = Some(info.position);
        let (position, recovery) = (info.position, info.recovery);
        match room.joining.take() {
            Some(call) => turn.reply(call, Ok(Answer::Joined(info))),
            None => turn.out.push(Output::Event(key, RoomEvent::Joined(info))),
        }
        if recovery == Recovery::Reset {
            turn.out
                .push(Output::Event(key, RoomEvent::Reset(position)));
        }
        let parked = std::mem::take(&mut room.parked);
        if room.had_presence && room.options.presence.is_none() {
            let what = PresenceRequest::Set(None);
            self.request(Request::Quiet, turn, |request| {
                Presence {
                    request,
                    room: alias,
                    what,
                }
                .into()
            });
        }
        self.leave_again(key, alias, turn);
        self.copies_joined(key, joined.state, joined.locks, turn);
        self.claims_joined(key, turn);
        for (call, request) in parked {
            self.room_request(call, key, request, turn);
        }
        self.pump(turn);
    }

    /// A new session has left nothing with the server; one that goes on leaves the same again.
    fn leave_again(&mut self, key: RoomKey, alias: RoomAlias, turn: &mut Turn<'_>) {
        let room = self.rooms.get(&key);
        if let Some(changes) = room.and_then(|room| room.on_disconnect.clone()) {
            self.request(Request::Quiet, turn, |request| {
                State {
                    request,
                    room: alias,
                    what: StateRequest::OnDisconnect { changes },
                }
                .into()
            });
        }
    }

    /// The join of a room that was left is answered: another room of its name may join.
    fn join_next(&mut self, key: RoomKey, turn: &mut Turn<'_>) {
        let left = self.left_early.remove(&key);
        let waits =
            |room: &Membership| room.standing == Standing::Out && left.as_ref() == Some(&room.name);
        let next = self.rooms.iter().find(|(_, room)| waits(room));
        if let Some(next) = next.map(|(key, _)| *key) {
            self.send_join(next, turn);
        }
    }

    pub(super) fn join_refused(&mut self, key: RoomKey, refusal: Refusal, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return self.join_next(key, turn);
        };
        if let Some(call) = room.joining.take() {
            turn.reply(call, Err(Error::Refused(refusal)));
            return self.end(key, &Error::NotJoined, turn);
        }
        self.membership_ended(key, refusal, turn);
    }

    pub(super) fn join_timed_out(&mut self, key: RoomKey, turn: &mut Turn<'_>) {
        let room = self.rooms.get_mut(&key);
        match room.and_then(|room| room.joining.take()) {
            Some(call) => {
                turn.reply(call, Err(Error::Timeout));
                self.end(key, &Error::NotJoined, turn);
            }
            // A server that forgets a join that once worked, or that nobody waits for, is not well: another connection may find a better one.
            None => self.drop_connection(Cause::Timeout("a join"), turn),
        }
    }

    pub(super) fn left(&mut self, left: Left, turn: &mut Turn<'_>) {
        let Some(key) = self.aliases.remove(&left.room) else {
            return;
        };
        self.membership_ended(
            key,
            Refusal::new(left.code, left.text, left.retry, left.after_ms),
            turn,
        );
    }

    /// Whether a request met the end of its membership, so that its error says as little as a lost connection: the room is to be joined again, or was.
    pub(super) fn was_too_late(&self, key: RoomKey, error: &Error) -> bool {
        self.rooms.get(&key).is_some_and(|room| {
            error.code() == Some(ErrorCode::NotJoined.into())
                || matches!(
                    room.standing,
                    Standing::Out | Standing::Joining | Standing::Retry { .. }
                )
        })
    }

    /// The server ended a membership, or refused to renew it.
    fn membership_ended(&mut self, key: RoomKey, refusal: Refusal, turn: &mut Turn<'_>) {
        self.requests.close_publishes(key);
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        room.publishes.recall();
        if let Standing::Leaving { .. } = room.standing {
            return self.left_by_request(key, Ok(Answer::Done), turn);
        }
        if turn.at.now >= room.joined_at + STABLE {
            room.backoff.reset();
        }
        let random = turn.at.random;
        let delay = match (refusal.retry, refusal.after) {
            (Retry::Never, _) => {
                turn.out.push(Output::Event(key, RoomEvent::Left(refusal)));
                return self.end(key, &Error::NotJoined, turn);
            }
            (Retry::Now, _) => room.backoff.next_after_now(random),
            (Retry::After, Some(after)) => room.backoff.next_after(after, random),
            (Retry::After, None) | (Retry::Refresh, _) => room.backoff.next(random),
        };
        room.standing = Standing::Retry {
            at: turn.at.now + delay,
        };
        if refusal.retry == Retry::Refresh {
            self.renew_token(turn);
        }
        self.rejoin_due(turn);
    }

    /// Does what rooms waited to do: join again, or go on publishing.
    pub(super) fn tick_rooms(&mut self, turn: &mut Turn<'_>) {
        self.rooms
            .values_mut()
            .for_each(|room| room.publishes.release(turn.at.now));
        let keys: Vec<RoomKey> = self.rooms.keys().copied().collect();
        for key in keys {
            self.tick_watches(key, turn);
            self.ask_page(key, turn);
        }
        self.rejoin_due(turn);
        self.pump(turn);
    }

    fn rejoin_due(&mut self, turn: &mut Turn<'_>) {
        let due = |room: &Membership| matches!(room.standing, Standing::Retry { at } if at <= turn.at.now);
        let keys: Vec<RoomKey> = self
            .rooms
            .iter()
            .filter(|(_, room)| due(room))
            .map(|(key, _)| *key)
            .collect();
        keys.into_iter().for_each(|key| self.send_join(key, turn));
    }

    pub(super) fn leave(&mut self, call: Option<CallId>, key: RoomKey, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        let Standing::In { alias } = room.standing else {
            if room.standing == Standing::Joining {
                self.left_early.insert(key, room.name.clone());
            }
            if let Some(joining) = room.joining.take() {
                turn.reply(joining, Err(Error::NotJoined));
            }
            self.end(key, &Error::NotJoined, turn);
            return call
                .into_iter()
                .for_each(|call| turn.reply(call, Ok(Answer::Done)));
        };
        room.standing = Standing::Leaving { alias, call };
        self.request(Request::Leave(key), turn, |request| {
            Leave {
                request,
                room: alias,
            }
            .into()
        });
    }

    /// The reply to `leave`, or the certainty that there will be none.
    pub(super) fn left_by_request(
        &mut self,
        key: RoomKey,
        result: Result<Answer, Error>,
        turn: &mut Turn<'_>,
    ) {
        let standing = self.rooms.get(&key).map(|room| room.standing);
        if let Some(Standing::Leaving { alias, call }) = standing {
            if self.aliases.get(&alias) == Some(&key) {
                self.aliases.remove(&alias);
            }
            self.end(key, &Error::NotJoined, turn);
            if let Some(call) = call {
                turn.reply(call, result);
            }
        }
    }

    /// Before a goodbye: nobody shall wait for this client's grace to end.
    pub(super) fn leave_all(&mut self, turn: &mut Turn<'_>) {
        let keys: Vec<RoomKey> = self
            .rooms
            .iter()
            .filter(|(_, room)| room.alias().is_some())
            .map(|(key, _)| *key)
            .collect();
        keys.into_iter().for_each(|key| self.leave(None, key, turn));
    }

    /// The connection is gone: memberships stay, what was in flight waits again.
    pub(super) fn memberships_lost(&mut self, turn: &mut Turn<'_>) {
        self.aliases.clear();
        self.left_early.clear();
        for room in self.rooms.values_mut() {
            room.standing = Standing::Out;
            room.publishes.recall();
            room.pages.recall();
            for (call, request) in std::mem::take(&mut room.parked) {
                let remembered = room.remember(request);
                turn.reply(
                    call,
                    remembered
                        .then_some(Answer::Done)
                        .ok_or(Error::ConnectionLost),
                );
            }
        }
    }

    pub(super) fn end_all(&mut self, error: &Error, turn: &mut Turn<'_>) {
        let keys: Vec<RoomKey> = self.rooms.keys().copied().collect();
        keys.into_iter().for_each(|key| self.end(key, error, turn));
        self.aliases.clear();
    }

    /// Forgets a membership; everything that waits in it fails.
    fn end(&mut self, key: RoomKey, error: &Error, turn: &mut Turn<'_>) {
        self.requests.close_publishes(key);
        let Some(mut room) = self.rooms.remove(&key) else {
            return;
        };
        let leaving = match room.standing {
            Standing::Leaving { call, .. } if matches!(error, Error::Closed(_)) => call,
            _ => None,
        };
        room.joining
            .into_iter()
            .chain(leaving)
            .for_each(|call| turn.reply(call, Err(error.clone())));
        room.claims
            .into_calls()
            .for_each(|call| turn.reply(call, Err(error.clone())));
        room.parked
            .into_iter()
            .for_each(|(call, _)| turn.reply(call, Err(error.clone())));
        for queued in room.publishes.drain() {
            self.unload(&queued);
            let outcome = if queued.sequence.is_some() {
                Error::OutcomeUnknown
            } else {
                error.clone()
            };
            turn.reply(queued.call, Err(outcome));
        }
        turn.out.push(Output::Ended(key));
    }
}

/// What arrives.
impl Machine {
    pub(super) fn event(&mut self, event: Event, turn: &mut Turn<'_>) {
        let Some((key, position)) = self.follows(event.room, event.entry.offset, turn) else {
            return;
        };
        turn.out.push(Output::Event(
            key,
            RoomEvent::Event {
                position,
                entry: event.entry,
            },
        ));
    }

    pub(super) fn advance(&mut self, room: RoomAlias, offset: Offset, turn: &mut Turn<'_>) {
        let Some((key, last)) = self.stands_at(room) else {
            return;
        };
        if offset > last.offset {
            let position = self.move_to(key, offset, last);
            turn.out.push(Output::Position(key, position));
        }
    }

    pub(super) fn caught_up(&mut self, caught_up: &CaughtUp, turn: &mut Turn<'_>) {
        let Some((key, last)) = self.stands_at(caught_up.room) else {
            return;
        };
        if caught_up.offset > last.offset {
            return self.gap(turn);
        }
        turn.out.push(Output::Event(key, RoomEvent::CaughtUp(last)));
    }

    pub(super) fn state_changed(&mut self, changed: StateChanged, turn: &mut Turn<'_>) {
        if let Some((key, position)) = self.follows(changed.room, changed.offset, turn) {
            let event = RoomEvent::State {
                position,
                time_ms: changed.time_ms,
                user: changed.user,
                op: changed.op,
                changes: changed.changes,
            };
            turn.out.push(Output::Event(key, event));
        }
    }

    pub(super) fn lock_changed(&mut self, changed: &LockChanged, turn: &mut Turn<'_>) {
        if let Some((key, position)) = self.follows(changed.room, changed.offset, turn) {
            let event = RoomEvent::Lock {
                position,
                time_ms: changed.time_ms,
                why: changed.why,
                lock: LockInfo {
                    lock: changed.lock.clone(),
                    held: changed.held.clone(),
                    queue: changed.queue.clone(),
                },
            };
            turn.out.push(Output::Event(key, event));
            self.lock_told(key, changed, position, turn);
        }
    }

    pub(super) fn timer_changed(&mut self, changed: TimerChanged, turn: &mut Turn<'_>) {
        if let Some((key, position)) = self.follows(changed.room, changed.offset, turn) {
            let event = RoomEvent::Timer {
                position,
                time_ms: changed.time_ms,
                user: changed.user,
                name: changed.name,
                what: changed.what,
                due_ms: changed.due_ms,
                payload: changed.payload,
            };
            turn.out.push(Output::Event(key, event));
        }
    }

    /// Moves to an entry that arrived: none where it is known, or one is missing before it.
    fn follows(
        &mut self,
        alias: RoomAlias,
        offset: Offset,
        turn: &mut Turn<'_>,
    ) -> Option<(RoomKey, Position)> {
        let (key, last) = self.stands_at(alias)?;
        if offset > last.offset.next() {
            self.gap(turn);
        }
        (offset == last.offset.next()).then(|| (key, self.move_to(key, offset, last)))
    }

    /// Where the client stands in a room of this connection.
    fn stands_at(&self, alias: RoomAlias) -> Option<(RoomKey, Position)> {
        let key = *self.aliases.get(&alias)?;
        let position = self.rooms.get(&key)?.options.since?;
        Some((key, position))
    }

    fn move_to(&mut self, key: RoomKey, offset: Offset, last: Position) -> Position {
        let position = Position::new(last.epoch, offset);
        if let Some(room) = self.rooms.get_mut(&key) {
            room.options.since = Some(position);
        }
        position
    }

    /// Never a silent hole: come back with the last position, and get what was left out. A resume within the grace is hidden from the others;
    /// leaving and joining on this connection would not be.
    fn gap(&mut self, turn: &mut Turn<'_>) {
        self.gaps += 1;
        self.drop_connection(Cause::Gap, turn);
    }

    pub(super) fn signalled(&self, signal: Signalled, turn: &mut Turn<'_>) {
        if let Some(key) = self.aliases.get(&signal.room) {
            let Signalled {
                from,
                user,
                key: signal_key,
                payload,
                ..
            } = signal;
            turn.out.push(Output::Event(
                *key,
                RoomEvent::Signal {
                    from,
                    user,
                    key: signal_key,
                    payload,
                },
            ));
        }
    }

    pub(super) fn presence_delta(&self, delta: PresenceDelta, turn: &mut Turn<'_>) {
        if let Some(key) = self.aliases.get(&delta.room) {
            let PresenceDelta {
                revision,
                occupancy,
                changes,
                ..
            } = delta;
            turn.out.push(Output::Event(
                *key,
                RoomEvent::Presence {
                    revision,
                    occupancy,
                    changes,
                },
            ));
        }
    }
}

/// What the application asks of a room.
impl Machine {
    pub(super) fn room_request(
        &mut self,
        call: CallId,
        key: RoomKey,
        request: RoomRequest,
        turn: &mut Turn<'_>,
    ) {
        let open = self.is_greeted();
        let Some(room) = self
            .rooms
            .get_mut(&key)
            .filter(|room| !matches!(room.standing, Standing::Leaving { .. }))
        else {
            return turn.reply(call, Err(Error::NotJoined));
        };
        match (request, room.alias()) {
            (RoomRequest::Leave, _) => self.leave(Some(call), key, turn),
            (RoomRequest::Publish(payload), _) => {
                self.publish(call, key, Content::Publish(payload), turn);
            }
            (RoomRequest::State(StateRequest::Write { changes, .. }), _) => {
                self.publish(call, key, Content::Write(changes), turn);
            }
            (RoomRequest::State(StateRequest::Watch { prefixes }), _) => {
                self.watch_state(call, key, prefixes, turn);
            }
            (RoomRequest::State(StateRequest::OnDisconnect { changes }), alias) => {
                room.on_disconnect = Some(changes.clone());
                let what = StateRequest::OnDisconnect { changes };
                match alias {
                    Some(alias) => self.send_change((call, key), alias, what, turn),
                    None => turn.reply(call, Ok(Answer::Done)),
                }
            }
            (RoomRequest::Acquire { lock, ttl, queue }, _) => {
                self.acquire(call, key, (lock, ttl, queue), turn);
            }
            (RoomRequest::Lock(LockRequest::Release { lock }), _) => {
                self.release(call, key, lock, turn);
            }
            (RoomRequest::Lock(LockRequest::Watch { locks }), _) => {
                self.watch_locks(call, key, locks, turn);
            }
            (request, Some(alias)) => self.request_now(call, key, alias, request, turn),
            (request, None) if open && room.parked.len() < PARKED_MAX => {
                room.parked.push((call, request));
            }
            (request, None) => {
                let remembered = room.remember(request);
                turn.reply(
                    call,
                    remembered
                        .then_some(Answer::Done)
                        .ok_or(Error::NotConnected),
                );
            }
        }
    }

    fn request_now(
        &mut self,
        call: CallId,
        key: RoomKey,
        alias: RoomAlias,
        request: RoomRequest,
        turn: &mut Turn<'_>,
    ) {
        let checked = match &request {
            RoomRequest::Signal(signal) => self.check_size(&signal.payload),
            RoomRequest::SetPresence(Some(value)) => self.check_size(value),
            RoomRequest::Timer(TimerRequest::Set { payload, .. }) => self.check_size(payload),
            _ => Ok(()),
        };
        if let Err(error) = checked {
            return turn.reply(call, Err(error));
        }
        match request {
            RoomRequest::Signal(signal) => {
                let pending = Request::Call {
                    call,
                    expects: Expects::Done,
                };
                self.request(pending, turn, |request| {
                    signal_frame(Some(request), alias, signal).into()
                });
            }
            RoomRequest::Members { after, limit } => {
                let what = PresenceRequest::Get { after, limit };
                let pending = Request::Call {
                    call,
                    expects: Expects::Members,
                };
                self.request(pending, turn, |request| {
                    Presence {
                        request,
                        room: alias,
                        what,
                    }
                    .into()
                });
            }
            RoomRequest::History {
                from,
                direction,
                limit,
            } => {
                let pending = Request::Call {
                    call,
                    expects: Expects::History,
                };
                self.request(pending, turn, |request| {
                    History {
                        request,
                        room: alias,
                        from,
                        direction,
                        limit,
                    }
                    .into()
                });
            }
            request @ (RoomRequest::SetPresence(_) | RoomRequest::Watch(_)) => {
                self.change_presence(call, key, alias, request, turn);
            }
            RoomRequest::State(what) => self.call(call, Expects::State, turn, |request| {
                State {
                    request,
                    room: alias,
                    what,
                }
                .into()
            }),
            RoomRequest::Lock(what) => self.call(call, Expects::Locks, turn, |request| {
                Lock {
                    request,
                    room: alias,
                    what,
                }
                .into()
            }),
            RoomRequest::Timer(what) => {
                let expects = match what {
                    TimerRequest::Get { .. } => Expects::Timers,
                    TimerRequest::Set { .. } | TimerRequest::Cancel { .. } => Expects::Published,
                };
                self.call(call, expects, turn, |request| {
                    Timer {
                        request,
                        room: alias,
                        what,
                    }
                    .into()
                });
            }
            RoomRequest::Cursor(what) => self.call(call, Expects::Cursors, turn, |request| {
                Cursor {
                    request,
                    room: alias,
                    what,
                }
                .into()
            }),
            RoomRequest::Leave | RoomRequest::Publish(_) | RoomRequest::Acquire { .. } => {}
        }
    }

    fn call(
        &mut self,
        call: CallId,
        expects: Expects,
        turn: &mut Turn<'_>,
        frame: impl FnOnce(RequestId) -> ClientFrame,
    ) {
        self.request(Request::Call { call, expects }, turn, frame);
    }

    fn send_change(
        &mut self,
        (call, key): (CallId, RoomKey),
        room: RoomAlias,
        what: StateRequest,
        turn: &mut Turn<'_>,
    ) {
        self.request(Request::Change { call, key }, turn, |request| {
            State {
                request,
                room,
                what,
            }
            .into()
        });
    }

    /// Remembers the change for the next join, and makes it now.
    fn change_presence(
        &mut self,
        call: CallId,
        key: RoomKey,
        alias: RoomAlias,
        request: RoomRequest,
        turn: &mut Turn<'_>,
    ) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        let (pending, what) = match request {
            RoomRequest::SetPresence(value) => {
                let before = room.want_presence(value.clone());
                (
                    Request::SetPresence { call, key, before },
                    PresenceRequest::Set(value),
                )
            }
            RoomRequest::Watch(level) => {
                let before = std::mem::replace(&mut room.options.watch, level);
                (
                    Request::Watch { call, key, before },
                    PresenceRequest::Watch(level),
                )
            }
            _ => return,
        };
        self.request(pending, turn, |request| {
            Presence {
                request,
                room: alias,
                what,
            }
            .into()
        });
    }

    /// Into the room if there is a way now; else nowhere, as a signal may.
    pub(super) fn signal_unconfirmed(&mut self, key: RoomKey, signal: Signal, turn: &mut Turn<'_>) {
        let alias = self.rooms.get(&key).and_then(Membership::alias);
        if let (Some(alias), Ok(())) = (alias, self.check_size(&signal.payload)) {
            self.send(signal_frame(None, alias, signal).into(), turn);
        }
    }
}

/// Publishing.
impl Machine {
    fn publish(&mut self, call: CallId, key: RoomKey, content: Content, turn: &mut Turn<'_>) {
        let (count, bytes) = (self.queued.count, self.queued.bytes);
        if count >= self.config.publishes_max
            || bytes + content.bytes() > self.config.publish_bytes_max
        {
            return turn.reply(call, Err(Error::QueueFull { count, bytes }));
        }
        if let Err(error) = self.check_sizes(&content) {
            return turn.reply(call, Err(error));
        }
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        self.queued.count += 1;
        self.queued.bytes += content.bytes();
        room.publishes.push(Queued {
            order: self.next_order,
            call,
            content,
            sequence: None,
        });
        self.next_order += 1;
        self.pump(turn);
    }

    /// Sends what waits, one of each room in turn, as long as the server may have more requests.
    pub(super) fn pump(&mut self, turn: &mut Turn<'_>) {
        if !self.is_open() {
            return;
        }
        let allowed = self
            .limits
            .as_ref()
            .map_or(1, |limits| limits.requests_max.max(1));
        let window = usize::try_from(allowed)
            .unwrap_or(usize::MAX)
            .min(WINDOW_MAX);
        loop {
            let before = self.requests.publishes();
            let waits = |room: &Membership| room.alias().is_some() && room.publishes.is_ready();
            let keys: Vec<RoomKey> = self
                .rooms
                .iter()
                .filter(|(_, room)| waits(room))
                .map(|(key, _)| *key)
                .collect();
            for key in keys {
                if self.requests.publishes() >= window {
                    return;
                }
                self.send_publish(key, turn);
            }
            if self.requests.publishes() == before {
                return;
            }
        }
    }

    fn send_publish(&mut self, key: RoomKey, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        let Some(alias) = room.alias() else {
            return;
        };
        let Some(mut queued) = room.publishes.next() else {
            return;
        };
        // Queued before the first `welcome` said what is too large.
        if let Err(error) = self.check_sizes(&queued.content) {
            self.unload(&queued);
            return turn.reply(queued.call, Err(error));
        }
        let sequence = queued.sequence.unwrap_or_else(|| self.next_sequence());
        queued.sequence = Some(sequence);
        let op = OpId {
            producer: self.config.producer,
            sequence,
        };
        let content = queued.content.clone();
        let request = self.request(Request::Publish(key), turn, |request| match content {
            Content::Publish(payload) => Publish {
                request,
                room: alias,
                op: Some(op),
                payload,
            }
            .into(),
            Content::Write(changes) => State {
                request,
                room: alias,
                what: StateRequest::Write {
                    op: Some(op),
                    changes,
                },
            }
            .into(),
        });
        if let Some(room) = self.rooms.get_mut(&key) {
            room.publishes.sent(request, queued);
        }
    }

    pub(super) fn published(
        &mut self,
        key: RoomKey,
        request: RequestId,
        reply: &Reply,
        turn: &mut Turn<'_>,
    ) {
        let Some(queued) = self
            .rooms
            .get_mut(&key)
            .and_then(|room| room.publishes.take(request))
        else {
            return;
        };
        let answer = match reply {
            Reply::Published(published) => Ok(Answer::Published(*published)),
            _ => Err(Error::UnexpectedAnswer),
        };
        self.unload(&queued);
        turn.reply(queued.call, answer);
        self.pump(turn);
    }

    pub(super) fn publish_refused(
        &mut self,
        key: RoomKey,
        request: RequestId,
        refusal: Refusal,
        current: Vec<StateItem>,
        turn: &mut Turn<'_>,
    ) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        let Some(queued) = room.publishes.take(request) else {
            return;
        };
        match refusal.retry {
            // Under its op id it takes effect once, however often it is sent.
            Retry::Now | Retry::After => {
                let wait = match refusal.after {
                    Some(after) => room.backoff.next_after(after, turn.at.random),
                    None => room.backoff.next(turn.at.random),
                };
                room.publishes.hold(turn.at.now + wait);
                room.publishes.put_back(queued);
            }
            Retry::Never | Retry::Refresh => {
                self.unload(&queued);
                let error = match refusal.code.known() {
                    Some(ErrorCode::OpIdExpired) => Error::OutcomeUnknown,
                    Some(ErrorCode::Conflict) => Error::Conflict { refusal, current },
                    _ => Error::Refused(refusal),
                };
                turn.reply(queued.call, Err(error));
            }
        }
        self.pump(turn);
    }

    fn unload(&mut self, queued: &Queued) {
        self.queued.count -= 1;
        self.queued.bytes -= queued.content.bytes();
    }

    fn check_sizes(&self, content: &Content) -> Result<(), Error> {
        let mut payloads = content.payloads();
        payloads.try_for_each(|payload| self.check_size(payload))
    }
}

fn signal_frame(request: Option<RequestId>, room: RoomAlias, signal: Signal) -> SignalFrame {
    let Signal { to, key, payload } = signal;
    SignalFrame {
        request,
        room,
        to,
        key,
        payload,
    }
}

fn join_info(joined: &Joined) -> JoinInfo {
    JoinInfo {
        member: joined.member,
        position: joined.position,
        head: joined.head,
        recovery: joined.recovery,
        durability: joined.durability,
        revision: joined.revision,
        occupancy: joined.occupancy,
        alias: joined.room,
    }
}

/// Publishes in flight at a time, whatever the server would allow: fewer than the results that it keeps for a producer, so that all of them may be
/// sent again.
const WINDOW_MAX: usize = 64;

/// Requests that wait for a room to be joined again; each is a call that somebody awaits.
const PARKED_MAX: usize = 256;

/// A membership that lasted this long was a success: see the connection's constant of the same name.
const STABLE: Duration = Duration::from_secs(5);
