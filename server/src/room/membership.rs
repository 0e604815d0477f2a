//! Who is in the room: joins, leaves, the grace, and what members tell each other past the log.
//!
//! The room calls it with requests and timers. A session has one member, whatever its connections do: only
//! its latest attachment counts, and a connection that is lost is not seen by the others before the grace is
//! over. Presence leaves as one delta an interval, signals with the turn; neither is kept. How changes are
//! counted is left to [`super::presence`], who is connected where to the hubs.

use std::collections::HashSet;

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{Durability, Recovery, Reply, Signalled};
use roomful_protocol::id::{MemberId, Offset, SignalKey};
use roomful_protocol::limits::PAGE_MAX;
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;

use super::operations::Scope;
use super::presence::Member;
use super::{
    After, Context, Downstream, FULL_RETRY_MS, LogState, MAINTENANCE_MS, Room, RoomTimer,
    not_a_member,
};
use crate::clock::Now;
use crate::shard::message::{
    Admitted, Attachment, Delta, Join, Message, Origin, Refusal, ShardId, Turn, View, Wire,
};

impl Room {
    /// Lets a session in, or back in, and says where it stands in the log.
    pub(super) fn join(&mut self, join: Join, context: &mut Context<'_>) {
        let known = self.members.of_session(join.session);
        if let Err(refusal) = self.may_join(&join, known) {
            self.watch_if_empty(context);
            context.send(
                join.to.shard,
                Message::Joined {
                    to: join.to,
                    room: self.alias,
                    outcome: Err(refusal),
                },
            );
            return;
        }
        let number = match known {
            Some(number) => self.come_back(number, &join, context),
            None => {
                let location = (join.to.shard, join.to.connection);
                let value = join.value.clone();
                self.members.insert(
                    join.session,
                    join.attachment,
                    location,
                    join.user.clone(),
                    value,
                )
            }
        };
        self.empty_since_ms = None;
        self.bind_producer(number, &join, context.now);
        if join.view != View::default() {
            // Before the shard is attached: this may skip it, and then it has to be told so ahead of `Joined`.
            self.distribute(context);
        }
        self.attach_downstream(join.to.shard, (number, join.attachment), context);
        self.presence_changed(context);
        let (position, recovery) = self.recovery(join.since, context);
        let is_told = recovery == Recovery::Recovering;
        let state = join.view.state.as_ref().filter(|_| !is_told);
        let state = state.map(|prefixes| self.state_page(prefixes, None, PAGE_MAX, context));
        let locks = join.view.locks && !is_told;
        let locks = locks.then(|| self.locks_page(None, PAGE_MAX, context));
        let admitted = Admitted {
            room: self.id.clone(),
            member: number,
            home: context.shard,
            position,
            head: self.head(),
            recovery,
            durability: context.journal.durability(),
            revision: self.members.revision(),
            occupancy: self.members.occupancy(),
            preferences: join.preferences,
            attachment: join.attachment,
            view: join.view,
            grant: join.grant.clone(),
            state: state.map(Box::new),
            locks: locks.map(Box::new),
        };
        context.send(
            join.to.shard,
            Message::Joined {
                to: join.to,
                room: self.alias,
                outcome: Ok(Box::new(admitted)),
            },
        );
        // Last: should it not be stored, the room is opened again, and the member has to be told so like all the others.
        let to = Origin {
            request: None,
            ..join.to
        };
        self.set_grant(number, to, &join.grant, context);
    }

    /// Whether the room takes it.
    pub(super) fn may_join(&self, join: &Join, known: Option<MemberId>) -> Result<(), Refusal> {
        let value_bytes = join.value.as_ref().map_or(0, |value| value.bytes.len());
        self.check_value(value_bytes)?;
        let newer = known.and_then(|number| self.members.get(number));
        if newer.is_some_and(|member| member.attachment > join.attachment) {
            return Err(Refusal::new(
                ErrorCode::MembershipTaken,
                "a newer connection of this session is in the room",
            ));
        }
        if known.is_none() && self.members.occupancy() >= self.settings.members_max as u64 {
            let text = format!(
                "the room has {} members, as many as it may have",
                self.settings.members_max
            );
            return Err(Refusal::later(ErrorCode::RoomFull, text, FULL_RETRY_MS));
        }
        Ok(())
    }

    /// A session that is a member already comes from another connection, or back within its grace.
    pub(super) fn come_back(
        &mut self,
        number: MemberId,
        join: &Join,
        context: &mut Context<'_>,
    ) -> MemberId {
        let Some(member) = self.members.get_mut(number) else {
            return number;
        };
        let former = member.location.replace((join.to.shard, join.to.connection));
        member.attachment = join.attachment;
        if let Some((shard, connection)) = former {
            let ended = Message::Ended {
                room: self.alias,
                connection: Some(connection),
                code: ErrorCode::MembershipTaken,
            };
            context.send(shard, ended);
        }
        if let Some(value) = &join.value {
            self.members.set_value(number, Some(value.clone()));
        }
        number
    }

    /// Ties the member to the producer that its operations are known by.
    pub(super) fn bind_producer(&mut self, number: MemberId, join: &Join, now: Now) {
        let Some(member) = self.members.get_mut(number) else {
            return;
        };
        if let Some(former) = member.producer.take() {
            self.operations.leave(&former, now.unix_ms);
        }
        if let Some(producer) = &join.producer {
            let scope = Scope::of(&join.user, join.anonymous);
            let key = (scope, producer.producer);
            // What was sent in an epoch that is gone has left nothing behind here, so it may be sent again.
            let same_epoch = join
                .since
                .is_some_and(|since| since.epoch == self.log.epoch);
            let next = if same_epoch {
                producer.next
            } else {
                roomful_protocol::id::Sequence(0)
            };
            self.operations.join(&key, next, now.unix_ms);
            member.producer = Some(key);
        }
    }

    /// The shard has this member too; one that was skipped is told before it hears anything else.
    pub(super) fn attach_downstream(
        &mut self,
        shard: ShardId,
        who: (MemberId, Attachment),
        context: &mut Context<'_>,
    ) {
        match self
            .downstreams
            .iter_mut()
            .find(|downstream| downstream.shard == shard)
        {
            Some(downstream) => {
                downstream.attachments.insert(who);
                if std::mem::take(&mut downstream.skipped) {
                    context.send(
                        shard,
                        Message::Turn(Turn::missed(self.alias, self.log.distributed)),
                    );
                }
            }
            None => self.downstreams.push(Downstream {
                shard,
                attachments: HashSet::from([who]),
                skipped: false,
            }),
        }
    }

    /// Whether a position can be gone on from, and where the member stands.
    pub(super) fn recovery(
        &self,
        since: Option<Position>,
        context: &Context<'_>,
    ) -> (Position, Recovery) {
        let head = self.head();
        match since {
            None => (head, Recovery::Live),
            Some(since) if since == head => (head, Recovery::Live),
            Some(since)
                if since.epoch == head.epoch
                    && since < head
                    && self.keeps(since.offset, context) =>
            {
                (since, Recovery::Recovering)
            }
            Some(_) => {
                context.counters.resets.add(1);
                (head, Recovery::Reset)
            }
        }
    }

    /// Whether everything after this offset is still there.
    pub(super) fn keeps(&self, offset: Offset, context: &Context<'_>) -> bool {
        context.journal.first(&self.id) <= offset.next()
    }

    /// The member goes for good, unless it is here by another attachment already.
    pub(super) fn leave(
        &mut self,
        number: MemberId,
        attachment: Attachment,
        to: Origin,
        context: &mut Context<'_>,
    ) {
        self.detach_downstream(to.shard, (number, attachment));
        if self
            .members
            .get(number)
            .is_some_and(|member| member.attachment == attachment)
        {
            self.remove(number, context);
        }
        context.reply(to, Ok(Reply::Done));
    }

    /// The member's connection is gone; it stays for its grace, unless it is back by another attachment.
    pub(super) fn detach(
        &mut self,
        number: MemberId,
        attachment: Attachment,
        shard: ShardId,
        context: &mut Context<'_>,
    ) {
        self.detach_downstream(shard, (number, attachment));
        if self
            .members
            .get(number)
            .is_some_and(|member| member.attachment == attachment)
        {
            self.disconnect(number, context);
        }
    }

    /// The shard has this member no more; without any, it gets no turns.
    pub(super) fn detach_downstream(&mut self, shard: ShardId, who: (MemberId, Attachment)) {
        if let Some(downstream) = self
            .downstreams
            .iter_mut()
            .find(|downstream| downstream.shard == shard)
        {
            downstream.attachments.remove(&who);
        }
        self.downstreams
            .retain(|downstream| !downstream.attachments.is_empty());
    }

    /// The member has no connection any more; its grace begins.
    pub(super) fn disconnect(&mut self, number: MemberId, context: &mut Context<'_>) {
        if let Some(absence) = self.members.disconnect(number) {
            context.timers.push((
                self.settings.presence_grace_ms,
                RoomTimer::Grace(number, absence),
            ));
        }
    }

    /// Takes a member out of the room.
    pub(super) fn remove(&mut self, number: MemberId, context: &mut Context<'_>) {
        let Some(member) = self.members.remove(number) else {
            return;
        };
        if let Some(producer) = member.producer {
            self.operations.leave(&producer, context.now.unix_ms);
            self.arm_maintenance(context);
        }
        self.presence_changed(context);
        if self.kept.is_some() {
            self.look(context);
        }
        self.watch_if_empty(context);
    }

    /// Where nobody is here, the room closes unless somebody comes while its history may still be wanted.
    pub(super) fn watch_if_empty(&mut self, context: &mut Context<'_>) {
        if self.members.occupancy() > 0 {
            return;
        }
        self.empty_since_ms.get_or_insert(context.now.monotonic_ms);
        if !self.idle_armed {
            self.look_again_in(self.idle_ms(), context);
        }
    }

    /// The room was opened to bring about what is due, whoever is in it.
    pub fn wake(&mut self, context: &mut Context<'_>) {
        if matches!(self.log.state, LogState::Open) {
            self.keep();
            self.look(context);
            self.tell_wake(context);
        } else {
            self.woken = true;
        }
        self.watch_if_empty(context);
    }

    /// The back end has used the room: where nobody is here, its time begins anew.
    pub(super) fn used(&mut self, context: &mut Context<'_>) {
        self.empty_since_ms = None;
        self.watch_if_empty(context);
    }

    /// Closes the room if nobody has come for long enough and nothing is left to do in it; else looks again. Where memory is
    /// short, the time of a session is enough: whoever comes later is told by a reset.
    pub(super) fn close_if_idle(&mut self, context: &mut Context<'_>) -> After {
        let Some(since_ms) = self.empty_since_ms else {
            return After::Open;
        };
        let stays_ms = match context.is_short {
            true => self.idle_ms().min(self.settings.empty_ms),
            false => self.idle_ms(),
        };
        let left_ms = (since_ms + stays_ms).saturating_sub(context.now.monotonic_ms);
        let is_stored = self.log.pending.is_empty() && self.grants.is_empty();
        let settled = matches!(self.log.state, LogState::Open) && is_stored;
        if left_ms == 0 && settled && (context.is_short || !self.is_needed(context)) {
            if self.settings.durability != Durability::Memory {
                self.wake_if_due(context);
                if self.has_unsaved() {
                    self.store_snapshot(context);
                }
            }
            context.journal.close(&self.id);
            return After::Close;
        }
        self.look_again_in(left_ms, context);
        After::Open
    }

    /// Looks whether the room is still empty when its time is over, and whether memory is short before that.
    fn look_again_in(&mut self, left_ms: u64, context: &mut Context<'_>) {
        self.idle_armed = true;
        let delay_ms = left_ms.min(self.settings.empty_ms).max(MAINTENANCE_MS);
        context.timers.push((delay_ms, RoomTimer::Idle));
    }

    /// How long an empty room stays.
    pub(super) fn idle_ms(&self) -> u64 {
        if self.settings.durability != Durability::Memory {
            return STORED_IDLE_MS;
        }
        let has_history = self.log.committed > Offset(0);
        let history_ms = if has_history {
            self.settings.history.age_max_ms
        } else {
            0
        };
        history_ms.max(self.settings.empty_ms)
    }

    /// Hands a signal to one member now, or to all with the turn. It is not kept.
    pub(super) fn signal(
        &mut self,
        number: MemberId,
        reply: Origin,
        to: Option<MemberId>,
        key: Option<SignalKey>,
        payload: Payload,
        context: &mut Context<'_>,
    ) {
        let Some(sender) = self.speaker(number, reply) else {
            return context.reply(reply, Err(not_a_member()));
        };
        context.counters.signals.add(1);
        let signal = Signalled {
            room: self.alias,
            from: number,
            user: sender.user.clone(),
            key,
            payload,
        };
        let Some(receiver) = to else {
            self.turn.signals.push(signal);
            return context.reply(reply, Ok(Reply::Done));
        };
        match self.members.get(receiver).map(|member| member.location) {
            Some(Some((shard, connection))) => {
                context.send(
                    shard,
                    Message::Direct {
                        to: connection,
                        signal: Box::new(signal),
                    },
                );
                context.reply(reply, Ok(Reply::Done));
            }
            // Disconnected: signals are never kept, so this one is dropped like any other on a bad line.
            Some(None) => context.reply(reply, Ok(Reply::Done)),
            None => {
                let text = format!("member {receiver} is not in the room");
                context.reply(reply, Err(Refusal::new(ErrorCode::NoSuchMember, text)));
            }
        }
    }

    /// Changes the member's value, which the next delta tells.
    pub(super) fn set_presence(
        &mut self,
        number: MemberId,
        to: Origin,
        value: Option<Payload>,
        context: &mut Context<'_>,
    ) {
        let bytes = value.as_ref().map_or(0, |value| value.bytes.len());
        let known = self
            .speaker(number, to)
            .map(|_| ())
            .ok_or_else(not_a_member);
        match known.and_then(|()| self.check_value(bytes)) {
            Ok(()) => {
                self.members.set_value(number, value);
                self.presence_changed(context);
                context.reply(to, Ok(Reply::Done));
            }
            Err(refusal) => context.reply(to, Err(refusal)),
        }
    }

    /// The member, if it is there by the connection that speaks. What an earlier connection of it had on its way may
    /// arrive behind what the new one says, and would undo it.
    pub(super) fn speaker(&self, number: MemberId, from: Origin) -> Option<&Member> {
        let member = self.members.get(number)?;
        (member.location == Some((from.shard, from.connection))).then_some(member)
    }

    pub(super) fn check_value(&self, bytes: usize) -> Result<(), Refusal> {
        let max = self.settings.presence_value_bytes_max;
        if bytes > max {
            let text =
                format!("the presence value has {bytes} bytes; at most {max} are allowed here");
            return Err(Refusal::new(ErrorCode::PayloadTooLarge, text));
        }
        Ok(())
    }

    /// Sees to it that what changed leaves with the next delta.
    pub(super) fn presence_changed(&mut self, context: &mut Context<'_>) {
        if self.members.is_changed() && !self.presence_armed {
            self.presence_armed = true;
            context
                .timers
                .push((self.settings.presence_delta_ms, RoomTimer::Presence));
        }
    }

    /// Puts what has changed since the last delta into the turn.
    pub(super) fn take_delta(&mut self) {
        if self.members.is_changed() {
            let (delta, occupancy_changed) = self.members.take_delta(self.alias);
            let (wire, occupancy_wire) = (Wire::default(), Wire::default());
            self.turn.delta = Some(Delta {
                delta,
                occupancy_changed,
                wire,
                occupancy_wire,
            });
        }
    }
}

/// How long a room on disk stays open when nobody is in it, in milliseconds: it is back in less than a millisecond, and a
/// reconnect takes a few seconds.
const STORED_IDLE_MS: u64 = 10_000;
