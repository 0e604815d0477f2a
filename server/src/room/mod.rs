//! A room as its owner runs it: a state machine over an ordered log.
//!
//! The owning shard calls it with one request at a time and sends what it puts into its [`Context`]; it never touches a socket, a
//! clock or a disk. It promises one total order, one effect per operation id, and acknowledgements only for what the journal has reported
//! stored. Who is connected where, and what a slow reader misses, is the business of the hubs: a room answers what they
//! pull.

pub mod kind;
pub mod operations;
pub mod presence;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{
    Direction, Entry, HistoryPage, OpId, Published, Recovery, Reply, Signalled,
};
use roomful_protocol::id::{Epoch, MemberId, Offset, RoomAlias, RoomId, SignalKey};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;

use crate::clock::Now;
use crate::journal::{
    CompletionResult, HistoryBounds, Journal, JournalError, Opened, Outcome, ReadPage, ReadQuery,
    Ticket,
};
use crate::metrics::ShardCounters;
use crate::shard::message::{
    Admitted, Attachment, Batch, Chunk, Delta, Join, Message, Origin, Refusal, Request, ShardId,
    Signals, Turn, Wire,
};
use kind::{Proposal, RoomKind};
use operations::{OperationBounds, Operations, ProducerKey, Seen};
use presence::{Absence, Members};

/// A room.
#[derive(Debug)]
pub struct Room {
    id: RoomId,
    alias: RoomAlias,
    settings: Arc<RoomSettings>,
    kind: Box<dyn RoomKind>,
    log: Log,
    operations: Operations,
    members: Members,
    /// Shards with members, by their number.
    downstreams: Vec<Downstream>,
    turn: PendingTurn,
    /// Resends of operations that are still on their way into the journal.
    waiting: Vec<(Origin, Published)>,
    /// Operations whose append failed: the reopened log tells whether they took effect.
    unknown: Vec<(ProducerKey, OpId)>,
    presence_armed: bool,
    maintenance_armed: bool,
    /// Since when nobody has been here, on the monotonic clock; none while somebody is.
    empty_since_ms: Option<u64>,
    idle_armed: bool,
}

/// What the configuration says of a namespace.
#[derive(Debug, Clone)]
pub struct RoomSettings {
    /// The kind's name, one of [`kind::REGISTRY`].
    pub kind: String,
    /// How much history is kept.
    pub history: HistoryBounds,
    /// How much is remembered of operations.
    pub operations: OperationBounds,
    /// How long a member stays that has lost its connection, in milliseconds.
    pub presence_grace_ms: u64,
    /// Least time between two presence deltas, in milliseconds.
    pub presence_delta_ms: u64,
    /// Longest presence value, in bytes.
    pub presence_value_bytes_max: usize,
    /// Most members.
    pub members_max: usize,
    /// Most entries in one chunk of recovery.
    pub chunk_entries_max: usize,
    /// A chunk of recovery ends with the entry that goes beyond this, in bytes.
    pub chunk_bytes_max: usize,
    /// How long a room without members and without history stays open, in milliseconds: the session retention.
    pub empty_ms: u64,
}

/// What a room may use while it handles one input, and where it puts what comes of it.
#[expect(
    missing_debug_implementations,
    reason = "it lives for one call and borrows everything"
)]
pub struct Context<'a> {
    /// The shard's journal.
    pub journal: &'a mut dyn Journal,
    /// The time.
    pub now: Now,
    /// The shard that runs the room.
    pub shard: ShardId,
    /// Messages to send, in order.
    pub out: &'a mut Vec<(ShardId, Message)>,
    /// Timers to set: delay in milliseconds, and what it is for.
    pub timers: &'a mut Vec<(u64, RoomTimer)>,
    /// Tickets of this room that the journal has given out.
    pub tickets: &'a mut Vec<Ticket>,
    /// Which shards can take a turn now.
    pub can_send: &'a dyn Fn(ShardId) -> bool,
    /// The shard's counters.
    pub counters: &'a ShardCounters,
}

/// What a room wants to be woken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoomTimer {
    /// Send the gathered presence changes.
    Presence,
    /// A disconnected member's grace ends.
    Grace(MemberId, Absence),
    /// Drop old history and forgotten operations.
    Maintain,
    /// Close the room, if it is still empty.
    Idle,
    /// Try to send to a shard whose mailbox was full.
    Retry,
    /// Try to open the log again.
    Reopen,
}

/// What becomes of the room after an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It goes on.
    Open,
    /// It is empty and its time is over: forget it.
    Close,
}

/// The part that orders.
#[derive(Debug)]
struct Log {
    state: LogState,
    epoch: Epoch,
    /// The last entry given to the journal: what reducers build on.
    appended: Offset,
    /// The last entry reported stored: what readers may see.
    committed: Offset,
    /// The last entry sent to the hubs.
    distributed: Offset,
    /// Time of the last entry; times never go back.
    last_ms: u64,
    /// Between `committed` and `appended`, in order.
    pending: VecDeque<Pending>,
    /// The newest committed entries, so that readers near the head need no journal.
    tail: VecDeque<Arc<Entry>>,
    /// Reads on their way.
    reads: HashMap<Ticket, Read>,
}

#[derive(Debug)]
enum LogState {
    /// The journal is looking; requests wait.
    Opening {
        ticket: Option<Ticket>,
        waiting: Vec<Request>,
    },
    Open,
    /// The journal could not; it is asked again by [`RoomTimer::Reopen`], and until then requests are refused.
    Failed,
}

#[derive(Debug)]
struct Pending {
    entry: Arc<Entry>,
    producer: Option<ProducerKey>,
    to: Origin,
    state: PendingState,
}

#[derive(Debug, PartialEq, Eq)]
enum PendingState {
    Waiting(Ticket),
    Stored,
    Failed,
}

#[derive(Debug)]
enum Read {
    Pull { shard: ShardId, from: Position },
    History { to: Origin, direction: Direction },
}

/// A shard with members.
#[derive(Debug)]
struct Downstream {
    shard: ShardId,
    /// Who is there. Named one by one, so that a late word about an earlier attachment takes nothing from a later one.
    attachments: HashSet<(MemberId, Attachment)>,
    /// Its mailbox was full: it has missed turns and must be told so.
    skipped: bool,
}

/// What leaves with the next flush.
#[derive(Debug, Default)]
struct PendingTurn {
    entries: Vec<Arc<Entry>>,
    acks: Vec<(Origin, Published)>,
    signals: Vec<Signalled>,
    delta: Option<Delta>,
    retry: bool,
}

/// How many entries stay beside the journal for readers near the head.
const TAIL_MAX: usize = 64;

impl Room {
    /// A room whose log is still to be opened by [`Room::open`].
    #[must_use]
    pub fn new(
        id: RoomId,
        alias: RoomAlias,
        settings: Arc<RoomSettings>,
        kind: Box<dyn RoomKind>,
    ) -> Self {
        let operations = Operations::new(settings.operations);
        Self {
            id,
            alias,
            settings,
            kind,
            log: Log::closed(),
            operations,
            members: Members::default(),
            downstreams: Vec::new(),
            turn: PendingTurn::default(),
            waiting: Vec::new(),
            unknown: Vec::new(),
            presence_armed: false,
            maintenance_armed: false,
            empty_since_ms: None,
            idle_armed: false,
        }
    }

    /// The room's number.
    #[must_use]
    pub fn alias(&self) -> RoomAlias {
        self.alias
    }

    /// The room's id.
    #[must_use]
    pub fn id(&self) -> &RoomId {
        &self.id
    }

    /// How many members there are, those in their grace included.
    #[must_use]
    pub fn occupancy(&self) -> u64 {
        self.members.occupancy()
    }

    /// Opens the log; until the journal answers, requests wait.
    pub fn open(&mut self, context: &mut Context<'_>) {
        match context.journal.open(&self.id, self.settings.history) {
            Outcome::Done(opened) => self.opened(&opened, context),
            Outcome::Later(ticket) => {
                context.tickets.push(ticket);
                if let LogState::Opening {
                    ticket: waiting_for,
                    ..
                } = &mut self.log.state
                {
                    *waiting_for = Some(ticket);
                }
            }
            Outcome::Failed(error) => self.open_failed(error, context),
        }
    }

    /// Handles one request.
    pub fn handle(&mut self, request: Request, context: &mut Context<'_>) {
        match &mut self.log.state {
            LogState::Open => {}
            LogState::Opening { waiting, .. } => return waiting.push(request),
            // Leaving needs no log.
            LogState::Failed
                if matches!(request, Request::Leave { .. } | Request::Detach { .. }) => {}
            LogState::Failed => return refuse(&request, self.alias, context),
        }
        match request {
            Request::Join(join) => self.join(&join, context),
            Request::Leave {
                member,
                attachment,
                to,
            } => self.leave(member, attachment, to, context),
            Request::Detach {
                member,
                attachment,
                shard,
            } => self.detach(member, attachment, shard, context),
            Request::Publish {
                member,
                to,
                op,
                payload,
            } => self.publish(member, to, op, payload, context),
            Request::Signal {
                member,
                reply,
                to,
                key,
                payload,
            } => self.signal(member, reply, to, key, payload, context),
            Request::SetPresence { member, to, value } => {
                self.set_presence(member, to, value, context);
            }
            Request::Members { to, after, limit } => {
                context.reply(to, Ok(Reply::Members(self.members.page(after, limit))));
            }
            Request::History {
                to,
                from,
                direction,
                limit,
            } => self.history(to, from, direction, limit, context),
            Request::Pull { shard, from } => self.pull(shard, from, context),
            Request::PullPresence { to, since } => {
                let delta = self.members.since(self.alias, since).map(Box::new);
                context.send(
                    to.shard,
                    Message::Presence {
                        to: to.connection,
                        delta,
                        room: self.alias,
                    },
                );
            }
        }
    }

    /// Handles the end of something that the journal gave a ticket for.
    pub fn complete(
        &mut self,
        ticket: Ticket,
        result: CompletionResult,
        context: &mut Context<'_>,
    ) {
        match result {
            CompletionResult::Opened(outcome) => {
                let expected = matches!(self.log.state, LogState::Opening { ticket: Some(waiting), .. } if waiting == ticket);
                match outcome {
                    Ok(opened) if expected => self.opened(&opened, context),
                    Err(error) if expected => self.open_failed(error, context),
                    Ok(_) | Err(_) => {}
                }
            }
            CompletionResult::Appended(outcome) => {
                let waiting = PendingState::Waiting(ticket);
                if let Some(pending) = self
                    .log
                    .pending
                    .iter_mut()
                    .find(|pending| pending.state == waiting)
                {
                    pending.state = if outcome.is_ok() {
                        PendingState::Stored
                    } else {
                        PendingState::Failed
                    };
                    self.settle(context);
                }
            }
            CompletionResult::Read(outcome) => {
                if let Some(read) = self.log.reads.remove(&ticket) {
                    self.read_done(read, outcome, context);
                }
            }
        }
    }

    /// Handles a timer.
    pub fn timer(&mut self, timer: RoomTimer, context: &mut Context<'_>) -> After {
        match timer {
            RoomTimer::Presence => {
                self.presence_armed = false;
                self.take_delta();
            }
            RoomTimer::Grace(number, absence) => {
                if self.members.is_absent(number, absence) {
                    self.remove(number, context);
                }
            }
            RoomTimer::Maintain => {
                self.maintenance_armed = false;
                self.maintain(context);
            }
            RoomTimer::Idle => {
                self.idle_armed = false;
                return self.close_if_idle(context);
            }
            RoomTimer::Retry => self.turn.retry = true,
            RoomTimer::Reopen if self.members.occupancy() == 0 => return After::Close,
            RoomTimer::Reopen => {
                self.log = Log::closed();
                self.open(context);
            }
        }
        After::Open
    }

    /// Whether [`Room::flush`] has something to send.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        let turn = &self.turn;
        !turn.entries.is_empty()
            || !turn.acks.is_empty()
            || !turn.signals.is_empty()
            || turn.delta.is_some()
            || turn.retry
    }

    /// Sends what the turn brought: acknowledgements, then one message to each shard with members.
    pub fn flush(&mut self, context: &mut Context<'_>) {
        let turn = std::mem::take(&mut self.turn);
        for (to, published) in turn.acks {
            context.reply(to, Ok(Reply::Published(published)));
        }
        let after = self.log.distributed;
        self.log.distributed = self.log.committed;
        let log = (!turn.entries.is_empty()).then(|| Arc::new(self.batch(after, turn.entries)));
        let signals = (!turn.signals.is_empty()).then(|| {
            Arc::new(Signals {
                signals: turn.signals,
                wire: Wire::default(),
            })
        });
        let presence = turn.delta.map(Arc::new);
        let message = Turn {
            room: self.alias,
            missed: None,
            log,
            signals,
            presence,
        };
        let head = self.log.distributed;
        let alias = self.alias;
        for downstream in &mut self.downstreams {
            if !(context.can_send)(downstream.shard) {
                context.counters.mailbox_full.add(1);
                downstream.skipped = true;
                context.timers.push((RETRY_MS, RoomTimer::Retry));
            } else if downstream.skipped {
                downstream.skipped = false;
                context
                    .out
                    .push((downstream.shard, Message::Turn(Turn::missed(alias, head))));
            } else if !message.is_empty() {
                context
                    .out
                    .push((downstream.shard, Message::Turn(message.clone())));
            }
        }
    }

    fn join(&mut self, join: &Join, context: &mut Context<'_>) {
        let known = self.members.of_session(join.session);
        if let Err(refusal) = self.may_join(join, known) {
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
            Some(number) => self.come_back(number, join, context),
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
        self.bind_producer(number, join, context.now);
        self.attach_downstream(join.to.shard, (number, join.attachment), context);
        self.presence_changed(context);
        let (position, recovery) = self.recovery(join.since, context);
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
        };
        context.send(
            join.to.shard,
            Message::Joined {
                to: join.to,
                room: self.alias,
                outcome: Ok(Box::new(admitted)),
            },
        );
    }

    fn may_join(&self, join: &Join, known: Option<MemberId>) -> Result<(), Refusal> {
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
            return Err(Refusal {
                code: ErrorCode::RoomFull,
                text,
                after_ms: Some(FULL_RETRY_MS),
            });
        }
        Ok(())
    }

    fn check_value(&self, bytes: usize) -> Result<(), Refusal> {
        let max = self.settings.presence_value_bytes_max;
        if bytes > max {
            let text =
                format!("the presence value has {bytes} bytes; at most {max} are allowed here");
            return Err(Refusal::new(ErrorCode::PayloadTooLarge, text));
        }
        Ok(())
    }

    /// A session that is a member already comes from another connection, or back within its grace.
    fn come_back(&mut self, number: MemberId, join: &Join, context: &mut Context<'_>) -> MemberId {
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

    fn bind_producer(&mut self, number: MemberId, join: &Join, now: Now) {
        let Some(member) = self.members.get_mut(number) else {
            return;
        };
        if let Some(former) = member.producer.take() {
            self.operations.leave(&former, now.unix_ms);
        }
        if let Some(producer) = &join.producer {
            let scope = (!join.anonymous).then(|| join.user.clone());
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
            self.operations.join(&key, next);
            member.producer = Some(key);
        }
    }

    fn attach_downstream(
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

    fn detach_downstream(&mut self, shard: ShardId, who: (MemberId, Attachment)) {
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

    fn recovery(&self, since: Option<Position>, context: &Context<'_>) -> (Position, Recovery) {
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
    fn keeps(&self, offset: Offset, context: &Context<'_>) -> bool {
        context.journal.first(&self.id) <= offset.next()
    }

    fn head(&self) -> Position {
        Position::new(self.log.epoch, self.log.distributed)
    }

    fn leave(
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

    fn detach(
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

    /// The member has no connection any more; its grace begins.
    fn disconnect(&mut self, number: MemberId, context: &mut Context<'_>) {
        if let Some(absence) = self.members.disconnect(number) {
            context.timers.push((
                self.settings.presence_grace_ms,
                RoomTimer::Grace(number, absence),
            ));
        }
    }

    fn remove(&mut self, number: MemberId, context: &mut Context<'_>) {
        let Some(member) = self.members.remove(number) else {
            return;
        };
        if let Some(producer) = member.producer {
            self.operations.leave(&producer, context.now.unix_ms);
            self.arm_maintenance(context);
        }
        self.presence_changed(context);
        self.watch_if_empty(context);
    }

    /// Where nobody is here, the room closes unless somebody comes while its history may still be wanted.
    fn watch_if_empty(&mut self, context: &mut Context<'_>) {
        if self.members.occupancy() > 0 {
            return;
        }
        self.empty_since_ms.get_or_insert(context.now.monotonic_ms);
        if !self.idle_armed {
            self.idle_armed = true;
            context.timers.push((self.idle_ms(), RoomTimer::Idle));
        }
    }

    /// How long an empty room stays.
    fn idle_ms(&self) -> u64 {
        let has_history = self.log.committed > Offset(0);
        let history_ms = if has_history {
            self.settings.history.age_max_ms
        } else {
            0
        };
        history_ms.max(self.settings.empty_ms)
    }

    fn close_if_idle(&mut self, context: &mut Context<'_>) -> After {
        let Some(since_ms) = self.empty_since_ms else {
            return After::Open;
        };
        let left_ms = (since_ms + self.idle_ms()).saturating_sub(context.now.monotonic_ms);
        let settled = matches!(self.log.state, LogState::Open);
        if left_ms == 0 && settled {
            context.journal.close(&self.id);
            return After::Close;
        }
        self.idle_armed = true;
        context
            .timers
            .push((left_ms.max(MAINTENANCE_MS), RoomTimer::Idle));
        After::Open
    }

    fn publish(
        &mut self,
        number: MemberId,
        to: Origin,
        op: Option<OpId>,
        payload: Payload,
        context: &mut Context<'_>,
    ) {
        let producer = match self.producer_of(number, op) {
            Ok(producer) => producer,
            Err(refusal) => return context.reply(to, Err(refusal)),
        };
        if let (Some(op), Some(producer)) = (op, &producer) {
            match self.operations.look_up(producer, op.sequence, &payload) {
                Seen::New => {}
                Seen::Accepted(published) => return self.acknowledge_again(to, published, context),
                Seen::Expired => {
                    let text = "the operation is below the window in which results are kept; it may have taken effect";
                    return context.reply(to, Err(Refusal::new(ErrorCode::OpIdExpired, text)));
                }
                Seen::Conflict => {
                    let text = "the operation's id was used before with another payload";
                    return context.reply(to, Err(Refusal::new(ErrorCode::OpIdConflict, text)));
                }
            }
        }
        match self.reduce(number, op, payload, context.now) {
            Ok(entry) => self.append(entry, producer, to, context),
            Err(refusal) => context.reply(to, Err(refusal)),
        }
    }

    fn producer_of(
        &self,
        number: MemberId,
        op: Option<OpId>,
    ) -> Result<Option<ProducerKey>, Refusal> {
        let member = self.members.get(number).ok_or_else(not_a_member)?;
        match (op, &member.producer) {
            (None, _) => Ok(None),
            (Some(op), Some(key)) if key.1 == op.producer => Ok(Some(key.clone())),
            (Some(_), _) => {
                let text = "the operation's producer is not the one that join named";
                Err(Refusal::new(ErrorCode::BadValue, text))
            }
        }
    }

    /// The same operation once more: the first result, as soon as that is certain.
    fn acknowledge_again(&mut self, to: Origin, published: Published, context: &mut Context<'_>) {
        context.counters.publish_duplicates.add(1);
        let again = Published {
            duplicate: true,
            ..published
        };
        let offset = published.position.offset;
        if offset <= self.log.distributed {
            context.reply(to, Ok(Reply::Published(again)));
        } else if offset <= self.log.committed {
            self.turn.acks.push((to, again));
        } else {
            self.waiting.push((to, again));
        }
    }

    fn reduce(
        &mut self,
        number: MemberId,
        op: Option<OpId>,
        payload: Payload,
        now: Now,
    ) -> Result<Arc<Entry>, Refusal> {
        let user = self
            .members
            .get(number)
            .ok_or_else(not_a_member)?
            .user
            .clone();
        let offset = self.log.appended.next();
        let time_ms = now.unix_ms.max(self.log.last_ms);
        let proposal = Proposal {
            user: &user,
            offset,
            time_ms,
            payload,
        };
        let decision = self
            .kind
            .reduce(proposal)
            .map_err(|rejection| Refusal::new(ErrorCode::Rejected, rejection.text))?;
        Ok(Arc::new(Entry {
            offset,
            time_ms,
            kind: decision.kind,
            user,
            op,
            payload: decision.payload,
        }))
    }

    fn append(
        &mut self,
        entry: Arc<Entry>,
        producer: Option<ProducerKey>,
        to: Origin,
        context: &mut Context<'_>,
    ) {
        context.counters.journal_appends.add(1);
        let expected = self.log.appended;
        let state = match context.journal.append(&self.id, expected, &entry) {
            Outcome::Done(()) => PendingState::Stored,
            Outcome::Later(ticket) => {
                context.tickets.push(ticket);
                PendingState::Waiting(ticket)
            }
            Outcome::Failed(_) => PendingState::Failed,
        };
        if let (Some(producer), Some(op)) = (&producer, entry.op) {
            let published = self.published(&entry);
            self.operations
                .accept(producer, op, &entry.payload, published);
        }
        self.log.appended = entry.offset;
        self.log.last_ms = entry.time_ms;
        self.log.pending.push_back(Pending {
            entry,
            producer,
            to,
            state,
        });
        self.settle(context);
    }

    fn published(&self, entry: &Entry) -> Published {
        let position = Position::new(self.log.epoch, entry.offset);
        Published {
            position,
            time_ms: entry.time_ms,
            duplicate: false,
        }
    }

    /// Commits what is stored, in order, up to the first entry that is not.
    fn settle(&mut self, context: &mut Context<'_>) {
        while let Some(pending) = self.log.pending.front() {
            match pending.state {
                PendingState::Waiting(_) => return,
                PendingState::Failed => return self.reopen(context),
                PendingState::Stored => self.commit(context),
            }
        }
    }

    fn commit(&mut self, context: &mut Context<'_>) {
        let Some(Pending { entry, to, .. }) = self.log.pending.pop_front() else {
            return;
        };
        self.log.committed = entry.offset;
        self.log.tail.push_back(Arc::clone(&entry));
        if self.log.tail.len() > TAIL_MAX {
            self.log.tail.pop_front();
        }
        context.counters.publishes.add(1);
        let published = self.published(&entry);
        self.turn.acks.push((to, published));
        let committed = self.log.committed;
        let again = self
            .waiting
            .extract_if(.., |(_, again)| again.position.offset <= committed);
        self.turn.acks.extend(again);
        self.turn.entries.push(entry);
        self.arm_maintenance(context);
    }

    /// An append failed, or its outcome is unknown: so is that of everything after it. The members are told to come again, and the
    /// journal is asked what it has.
    fn reopen(&mut self, context: &mut Context<'_>) {
        context.counters.journal_failures.add(1);
        tracing::error!(room = %self.id, offset = self.log.committed.0, "an append failed; the room is opened again");
        self.flush(context);
        self.give_up_pending(context);
        for downstream in std::mem::take(&mut self.downstreams) {
            let ended = Message::Ended {
                room: self.alias,
                connection: None,
                code: ErrorCode::RoomReopened,
            };
            context.send(downstream.shard, ended);
        }
        for number in self.members.numbers() {
            self.disconnect(number, context);
        }
        if let Some(kind) = kind::create(&self.settings.kind) {
            self.kind = kind;
        }
        self.log = Log::closed();
        self.open(context);
    }

    /// Answers everything that waits for the journal: nothing will come of it.
    fn give_up_pending(&mut self, context: &mut Context<'_>) {
        let refusal = |code, text: &str| Err(Refusal::new(code, text));
        for Pending {
            entry,
            producer,
            to,
            ..
        } in self.log.pending.drain(..)
        {
            if let (Some(producer), Some(op)) = (producer, entry.op) {
                self.operations.withdraw(&producer, op);
                self.unknown.push((producer, op));
            }
            context.reply(to, refusal(ErrorCode::OutcomeUnknown, UNKNOWN_TEXT));
        }
        for (to, _) in self.waiting.drain(..) {
            context.reply(to, refusal(ErrorCode::OutcomeUnknown, UNKNOWN_TEXT));
        }
        let mut reads: Vec<_> = self.log.reads.drain().collect();
        reads.sort_unstable_by_key(|(ticket, _)| *ticket);
        for (_, read) in reads {
            if let Read::History { to, .. } = read {
                context.reply(
                    to,
                    refusal(
                        ErrorCode::RoomReopened,
                        "the room was opened again; join and read again",
                    ),
                );
            }
        }
    }

    fn opened(&mut self, opened: &Opened, context: &mut Context<'_>) {
        let LogState::Opening { waiting, .. } =
            std::mem::replace(&mut self.log.state, LogState::Open)
        else {
            return;
        };
        self.log.epoch = opened.epoch;
        self.log.appended = opened.head;
        self.log.committed = opened.head;
        self.log.distributed = opened.head;
        self.log.last_ms = opened.recent.last().map_or(0, |entry| entry.time_ms);
        let skipped = opened.recent.len().saturating_sub(TAIL_MAX);
        self.log.tail = opened.recent.iter().skip(skipped).cloned().collect();
        self.settle_unknown(&opened.recent);
        for request in waiting {
            self.handle(request, context);
        }
    }

    /// The log knows which of the operations in doubt took effect.
    fn settle_unknown(&mut self, recent: &[Arc<Entry>]) {
        for (producer, op) in std::mem::take(&mut self.unknown) {
            let user = &producer.0;
            let is_this = |entry: &&Arc<Entry>| {
                entry.op == Some(op) && user.as_ref().is_none_or(|user| *user == entry.user)
            };
            if let Some(entry) = recent.iter().rev().find(is_this) {
                self.operations
                    .accept(&producer, op, &entry.payload, self.published(entry));
            }
        }
    }

    fn open_failed(&mut self, error: JournalError, context: &mut Context<'_>) {
        tracing::error!(room = %self.id, %error, "the room's log can't be opened");
        context.counters.journal_failures.add(1);
        let LogState::Opening { waiting, .. } =
            std::mem::replace(&mut self.log.state, LogState::Failed)
        else {
            return;
        };
        for request in waiting {
            refuse(&request, self.alias, context);
        }
        context.timers.push((REOPEN_MS, RoomTimer::Reopen));
    }

    fn signal(
        &mut self,
        number: MemberId,
        reply: Origin,
        to: Option<MemberId>,
        key: Option<SignalKey>,
        payload: Payload,
        context: &mut Context<'_>,
    ) {
        let Some(sender) = self.members.get(number) else {
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

    fn set_presence(
        &mut self,
        number: MemberId,
        to: Origin,
        value: Option<Payload>,
        context: &mut Context<'_>,
    ) {
        let bytes = value.as_ref().map_or(0, |value| value.bytes.len());
        let known = self
            .members
            .get(number)
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

    fn presence_changed(&mut self, context: &mut Context<'_>) {
        if self.members.is_changed() && !self.presence_armed {
            self.presence_armed = true;
            context
                .timers
                .push((self.settings.presence_delta_ms, RoomTimer::Presence));
        }
    }

    fn take_delta(&mut self) {
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

    fn history(
        &mut self,
        to: Origin,
        from: Option<Position>,
        direction: Direction,
        limit: usize,
        context: &mut Context<'_>,
    ) {
        if from.is_some_and(|from| from.epoch != self.log.epoch) {
            let text = format!(
                "the position is of another epoch; the room's is {}",
                self.log.epoch
            );
            return context.reply(to, Err(Refusal::new(ErrorCode::BadValue, text)));
        }
        let end = self.log.distributed.next();
        let start = match direction {
            Direction::Forward => from.map_or(Offset(0), |from| from.offset),
            Direction::Backward => from.map_or(end, |from| from.offset.min(end)),
        };
        let query = ReadQuery {
            from: start,
            until: self.log.distributed,
            direction,
            entries_max: limit,
            bytes_max: self.settings.chunk_bytes_max,
        };
        self.read(query, Read::History { to, direction }, context);
    }

    fn pull(&mut self, shard: ShardId, from: Position, context: &mut Context<'_>) {
        let head = self.head();
        if from == head {
            return self.send_chunk(shard, from, Some(Vec::new()), context);
        }
        if from.epoch != head.epoch || from > head || !self.keeps(from.offset, context) {
            return self.send_chunk(shard, from, None, context);
        }
        if self
            .log
            .tail
            .front()
            .is_some_and(|oldest| oldest.offset <= from.offset.next())
        {
            let until = self.log.distributed;
            let wanted = self
                .log
                .tail
                .iter()
                .filter(|entry| entry.offset > from.offset && entry.offset <= until);
            let mut bytes = 0;
            let bounded = wanted.take_while(|entry| {
                let fits = bytes <= self.settings.chunk_bytes_max;
                bytes += entry.payload.bytes.len();
                fits
            });
            let entries = bounded
                .take(self.settings.chunk_entries_max)
                .cloned()
                .collect();
            return self.send_chunk(shard, from, Some(entries), context);
        }
        let query = ReadQuery {
            from: from.offset,
            until: self.log.distributed,
            direction: Direction::Forward,
            entries_max: self.settings.chunk_entries_max,
            bytes_max: self.settings.chunk_bytes_max,
        };
        self.read(query, Read::Pull { shard, from }, context);
    }

    fn read(&mut self, query: ReadQuery, read: Read, context: &mut Context<'_>) {
        match context.journal.read(&self.id, query) {
            Outcome::Done(page) => self.read_done(read, Ok(page), context),
            Outcome::Later(ticket) => {
                context.tickets.push(ticket);
                self.log.reads.insert(ticket, read);
            }
            Outcome::Failed(error) => self.read_done(read, Err(error), context),
        }
    }

    fn read_done(
        &mut self,
        read: Read,
        outcome: Result<ReadPage, JournalError>,
        context: &mut Context<'_>,
    ) {
        match (read, outcome) {
            (Read::Pull { shard, from }, outcome) => {
                // A page that does not follow the reader's place, or could not be read, is one it can't have: it is told so.
                let entries = outcome.ok().map(|page| page.entries);
                let follows = |entries: &Vec<Arc<Entry>>| {
                    entries
                        .first()
                        .is_some_and(|entry| entry.offset == from.offset.next())
                };
                self.send_chunk(shard, from, entries.filter(follows), context);
            }
            (Read::History { to, direction }, Ok(page)) => {
                context.reply(to, Ok(Reply::History(self.history_page(&page, direction))));
            }
            (Read::History { to, .. }, Err(_)) => {
                let text = "the storage could not be read; try again";
                context.reply(
                    to,
                    Err(Refusal {
                        code: ErrorCode::Internal,
                        text: text.to_owned(),
                        after_ms: Some(1000),
                    }),
                );
            }
        }
    }

    fn history_page(&self, page: &ReadPage, direction: Direction) -> HistoryPage {
        let next = match direction {
            Direction::Forward => page
                .entries
                .last()
                .filter(|last| last.offset < self.log.distributed),
            Direction::Backward => page
                .entries
                .first()
                .filter(|first| first.offset > page.first),
        };
        let next = next.map(|entry| Position::new(self.log.epoch, entry.offset));
        HistoryPage {
            entries: page
                .entries
                .iter()
                .map(|entry| Entry::clone(entry))
                .collect(),
            next,
        }
    }

    fn send_chunk(
        &mut self,
        shard: ShardId,
        from: Position,
        entries: Option<Vec<Arc<Entry>>>,
        context: &mut Context<'_>,
    ) {
        let batch = entries.map(|entries| Arc::new(self.batch(from.offset, entries)));
        let live = batch
            .as_ref()
            .is_some_and(|batch| batch.last() == self.log.distributed);
        let skipped = self
            .downstreams
            .iter_mut()
            .find(|downstream| downstream.shard == shard && downstream.skipped);
        if let Some(downstream) = skipped {
            // The hub stands further back than it knows. It must learn that first, or this chunk would seem to run ahead of it.
            downstream.skipped = false;
            context.send(
                shard,
                Message::Turn(Turn::missed(self.alias, self.log.distributed)),
            );
        }
        context
            .counters
            .events_recovered
            .add(batch.as_ref().map_or(0, |batch| batch.entries.len() as u64));
        context.send(
            shard,
            Message::Chunk(Chunk {
                room: self.alias,
                from,
                batch,
                live,
            }),
        );
    }

    fn batch(&self, after: Offset, entries: Vec<Arc<Entry>>) -> Batch {
        Batch {
            room: self.alias,
            epoch: self.log.epoch,
            after,
            entries,
            wire: Wire::default(),
        }
    }

    fn maintain(&mut self, context: &mut Context<'_>) {
        let now_ms = context.now.unix_ms;
        self.operations.expire(now_ms);
        let trim_ms = context.journal.trim(&self.id, now_ms);
        let due_ms = [trim_ms, self.operations.next_expiry_ms()]
            .into_iter()
            .flatten()
            .min();
        if let Some(due_ms) = due_ms {
            self.maintenance_armed = true;
            let delay_ms = due_ms.saturating_sub(now_ms).max(MAINTENANCE_MS);
            context.timers.push((delay_ms, RoomTimer::Maintain));
        }
    }

    fn arm_maintenance(&mut self, context: &mut Context<'_>) {
        if !self.maintenance_armed {
            self.maintenance_armed = true;
            context.timers.push((MAINTENANCE_MS, RoomTimer::Maintain));
        }
    }
}

impl Log {
    fn closed() -> Self {
        Self {
            state: LogState::Opening {
                ticket: None,
                waiting: Vec::new(),
            },
            epoch: Epoch(0),
            appended: Offset(0),
            committed: Offset(0),
            distributed: Offset(0),
            last_ms: 0,
            pending: VecDeque::new(),
            tail: VecDeque::new(),
            reads: HashMap::new(),
        }
    }
}

impl Context<'_> {
    fn send(&mut self, to: ShardId, message: Message) {
        self.out.push((to, message));
    }

    fn reply(&mut self, to: Origin, outcome: Result<Reply, Refusal>) {
        if to.request.is_some() {
            self.out.push((to.shard, Message::Reply { to, outcome }));
        }
    }
}

/// Answers a request of a room that could not be opened.
fn refuse(request: &Request, room: RoomAlias, context: &mut Context<'_>) {
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

fn not_a_member() -> Refusal {
    Refusal::new(
        ErrorCode::NotJoined,
        "this connection is no member of the room any more; join again",
    )
}

/// When to look again at a full room.
const FULL_RETRY_MS: u64 = 5_000;

/// When to look again at a shard whose mailbox was full: a few turns later.
const RETRY_MS: u64 = 5;

/// When to ask a journal again that could not open a room.
const REOPEN_MS: u64 = 1_000;

const UNKNOWN_TEXT: &str =
    "the storage failed, so the outcome is unknown; send it again with the same op id";

/// Least time between two clean-ups of a room: they are bookkeeping, and a second late is early enough.
const MAINTENANCE_MS: u64 = 1_000;
