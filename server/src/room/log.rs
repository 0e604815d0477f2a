//! What the room orders: from a proposal to a stored entry, and what happens when it can't be stored.
//!
//! The room calls it with publishes and with what the journal reports. Entries are committed from the front
//! only, whatever the order of the completions, and nobody is told of an entry before it is. After a failed
//! append the room is opened again, and what the journal then shows decides which operations took effect.
//! What an entry says is left to the kind, where it is kept to the journal.

use std::sync::Arc;

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{Entry, EntryKind, OpId, Published, Reply};
use roomful_protocol::id::{Offset, UserId};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;

use super::asked::refuse;
use super::due::UNHEALTHY_MS;
use super::kept::{Answer, Kept};
use super::kind::Proposal;
use super::operations::{self, BACK_END_SEQUENCE, ProducerKey, Scope, Seen, Shows};
use super::snapshot;
use super::tables::{Change, Tables};
use super::{
    Context, Log, LogState, MAINTENANCE_MAX_MS, MAINTENANCE_MS, Pending, PendingState, Restores,
    Room, RoomTimer, TAIL_MAX, UNKNOWN_TEXT, not_a_member,
};
use crate::clock::Now;
use crate::journal::memory::ENTRY_BYTES;
use crate::journal::{JournalError, Opened, Outcome};
use crate::shard::message::{Author, Message, Origin, Refusal};

/// An entry that is to be appended, and who waits for it.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) entry: Arc<Entry>,
    pub(super) producer: Option<ProducerKey>,
    /// What its operation is known again by, where that isn't the entry's payload.
    pub(super) asked: Option<Payload>,
    /// What it changes; none for a publish.
    pub(super) change: Option<Box<Change>>,
    pub(super) answer: Answer,
    pub(super) to: Origin,
}

impl Room {
    /// One publish: the same operation has one effect, whatever becomes of its answers.
    pub(super) fn publish(
        &mut self,
        author: &Author,
        to: Origin,
        op: Option<OpId>,
        payload: Payload,
        context: &mut Context<'_>,
    ) {
        if matches!(author, Author::BackEnd(_)) {
            self.used(context);
        }
        let (user, producer) = match self.author(author, op, context) {
            Ok(author) => author,
            Err(refusal) => return context.reply(to, Err(refusal)),
        };
        if let (Some(op), Some(producer)) = (op, &producer)
            && self.is_answered(producer, op, &payload, to, context)
        {
            return;
        }
        let entry = context
            .check_health()
            .and_then(|()| self.reduce(&user, op, payload, context.now));
        match entry {
            Ok(entry) => {
                let draft = Draft {
                    entry,
                    producer,
                    asked: None,
                    change: None,
                    answer: Answer::Published,
                    to,
                };
                self.append(draft, context);
            }
            Err(refusal) => context.reply(to, Err(refusal)),
        }
    }

    /// Whether the operation has a result already, or can't have one any more, which is its answer.
    pub(super) fn is_answered(
        &mut self,
        producer: &ProducerKey,
        op: OpId,
        asked: &Payload,
        to: Origin,
        context: &mut Context<'_>,
    ) -> bool {
        match self.operations.look_up(producer, op.sequence, asked) {
            Seen::New => return false,
            Seen::Accepted(published) => self.acknowledge_again(to, published, context),
            Seen::Expired => {
                let text = "the operation is below the window in which results are kept; it may have taken effect";
                context.reply(to, Err(Refusal::new(ErrorCode::OpIdExpired, text)));
            }
            Seen::Conflict => {
                let text = "the operation's id was used before with another payload";
                context.reply(to, Err(Refusal::new(ErrorCode::OpIdConflict, text)));
            }
        }
        true
    }

    /// Who publishes, and whose operation it is; a member's producer has to be the one that it joined with.
    pub(super) fn author(
        &mut self,
        author: &Author,
        op: Option<OpId>,
        context: &mut Context<'_>,
    ) -> Result<(UserId, Option<ProducerKey>), Refusal> {
        let number = match author {
            Author::Member(number) => *number,
            Author::BackEnd(user) => {
                let producer = op.map(|op| self.bind_back_end(op, context));
                return Ok((user.clone(), producer));
            }
        };
        let member = self.members.get(number).ok_or_else(not_a_member)?;
        let user = member.user.clone();
        match (op, &member.producer) {
            (None, _) => Ok((user, None)),
            (Some(op), Some(key)) if key.1 == op.producer => Ok((user, Some(key.clone()))),
            (Some(_), _) => {
                let text = "the operation's producer is not the one that join named";
                Err(Refusal::new(ErrorCode::BadValue, text))
            }
        }
    }

    /// The producer of the back end's operation, which nobody stays for: its window begins to end at once.
    fn bind_back_end(&mut self, op: OpId, context: &mut Context<'_>) -> ProducerKey {
        let key = (Scope::BackEnd, op.producer);
        self.operations
            .join(&key, BACK_END_SEQUENCE, context.now.unix_ms);
        self.operations.leave(&key, context.now.unix_ms);
        self.arm_maintenance(context);
        key
    }

    /// The same operation once more: the first result, as soon as that is certain.
    pub(super) fn acknowledge_again(
        &mut self,
        to: Origin,
        published: Published,
        context: &mut Context<'_>,
    ) {
        context.counters.publish_duplicates.add(1);
        let again = Published {
            duplicate: true,
            ..published
        };
        let reply = Ok(Reply::Published(again));
        self.reply_at(published.position.offset, to, reply, context);
    }

    /// A reply that goes by what an entry at this offset has brought about: not before that is stored.
    pub(super) fn reply_at(
        &mut self,
        offset: Offset,
        to: Origin,
        outcome: Result<Reply, Refusal>,
        context: &mut Context<'_>,
    ) {
        if offset <= self.log.distributed {
            context.reply(to, outcome);
        } else if offset <= self.log.committed {
            self.turn.acks.push((to, outcome.into()));
        } else {
            self.waiting.push((offset, to, outcome.into()));
        }
    }

    /// The time of the next entry. The time of day may be set back; times in the log never go back.
    pub(super) fn entry_ms(&self, now: Now) -> u64 {
        now.unix_ms.max(self.log.last_ms)
    }

    /// Asks the kind what to append: the entry, with its place and time.
    pub(super) fn reduce(
        &mut self,
        user: &UserId,
        op: Option<OpId>,
        payload: Payload,
        now: Now,
    ) -> Result<Arc<Entry>, Refusal> {
        let offset = self.log.appended.next();
        let time_ms = self.entry_ms(now);
        let proposal = Proposal {
            user,
            offset,
            time_ms,
            payload,
        };
        let create = self.settings.kind;
        let decision = self
            .kind
            .get_or_insert_with(create)
            .reduce(proposal)
            .map_err(|rejection| Refusal::new(ErrorCode::Rejected, rejection.text))?;
        Ok(Arc::new(Entry {
            offset,
            time_ms,
            kind: decision.kind,
            user: user.clone(),
            op,
            payload: decision.payload,
        }))
    }

    /// Gives an entry to the journal, and remembers who waits for it.
    pub(super) fn append(&mut self, draft: Draft, context: &mut Context<'_>) {
        context.counters.journal_appends.add(1);
        let Draft {
            entry,
            producer,
            asked,
            change,
            answer,
            to,
        } = draft;
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
            let asked = asked.as_ref().unwrap_or(&entry.payload);
            self.operations.accept(producer, op, Some(asked), published);
        }
        if let Some(change) = &change {
            let is_next = state == PendingState::Stored && self.log.pending.is_empty();
            self.advance(&entry, change, context.now, is_next);
        }
        self.log.entry_bytes += bytes_of(&entry);
        self.log.appended = entry.offset;
        self.log.last_ms = entry.time_ms;
        self.log.pending.push_back(Pending {
            entry,
            producer,
            change,
            answer,
            to,
            state,
        });
        self.settle(context);
    }

    /// Commits what is stored, in order, up to the first entry that is not.
    pub(super) fn settle(&mut self, context: &mut Context<'_>) {
        while let Some(pending) = self.log.pending.front() {
            match pending.state {
                PendingState::Waiting(_) => return,
                PendingState::Failed => return self.reopen(context),
                PendingState::Stored => self.commit(context),
            }
        }
    }

    /// The front entry is stored: its ack and the entry itself leave with the turn.
    pub(super) fn commit(&mut self, context: &mut Context<'_>) {
        let Some(pending) = self.log.pending.pop_front() else {
            return;
        };
        let Pending {
            entry,
            change,
            answer,
            to,
            ..
        } = pending;
        self.log.committed = entry.offset;
        self.log.tail.push_back(Arc::clone(&entry));
        if self.log.tail.len() > TAIL_MAX
            && let Some(oldest) = self.log.tail.pop_front()
        {
            self.log.entry_bytes -= bytes_of(&oldest);
        }
        match change {
            None => context.counters.publishes.add(1),
            Some(change) => self.keep_committed(&entry, &change, context),
        }
        if to.request.is_some() {
            let reply = match answer {
                Answer::Published => Reply::Published(self.published(&entry)),
                Answer::Done => Reply::Done,
                Answer::Lock(reply) => Reply::Lock(reply),
            };
            self.turn.acks.push((to, Ok(reply).into()));
        }
        if !self.waiting.is_empty() {
            let committed = self.log.committed;
            let again = self
                .waiting
                .extract_if(.., |(offset, ..)| *offset <= committed);
            self.turn
                .acks
                .extend(again.map(|(_, to, settled)| (to, settled)));
        }
        self.turn.entries.push(entry);
        self.arm_maintenance(context);
    }

    /// An append failed, or its outcome is unknown: so is that of everything after it. The members are told
    /// to come again, and the journal is asked what it has.
    pub(super) fn reopen(&mut self, context: &mut Context<'_>) {
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
        self.kind = None;
        self.log = Log::closed();
        self.ask_for_log(context);
    }

    /// Answers everything that waits for the journal: nothing will come of it.
    pub(super) fn give_up_pending(&mut self, context: &mut Context<'_>) {
        let refusal = |code, text: &str| Err(Refusal::new(code, text));
        while let Some(Pending {
            entry,
            producer,
            to,
            ..
        }) = self.log.pending.pop_front()
        {
            self.log.entry_bytes -= bytes_of(&entry);
            if let (Some(producer), Some(op)) = (producer, entry.op) {
                self.operations.withdraw(&producer, op);
                self.unknown.push((producer, op));
            }
            context.reply(to, refusal(ErrorCode::OutcomeUnknown, UNKNOWN_TEXT));
        }
        for (_, to, _) in self.waiting.drain(..) {
            context.reply(to, refusal(ErrorCode::OutcomeUnknown, UNKNOWN_TEXT));
        }
        let kept = self.kept.take();
        for to in kept.iter().flat_map(|kept| kept.registers.waiting()) {
            context.reply(to, refusal(ErrorCode::OutcomeUnknown, UNKNOWN_TEXT));
        }
        let mut reads: Vec<_> = self.log.reads.drain().collect();
        reads.sort_unstable_by_key(|(ticket, _)| *ticket);
        for (_, read) in reads {
            if let Some(to) = read.reply_to() {
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

    /// The journal shows the log: the room stands at its head, and what has waited is handled.
    pub(super) fn opened(&mut self, opened: &Opened, context: &mut Context<'_>) {
        let snapshot = opened.snapshot.as_ref();
        let rebuilt = snapshot
            .map(|snapshot| snapshot::read(&snapshot.content))
            .transpose()
            .and_then(|restored| {
                let (tables, operations) = match restored {
                    Some(restored) => (restored.tables, Some(restored.operations)),
                    None => (Tables::default(), None),
                };
                let bounds = &self.settings.tables;
                let kept = Kept::rebuilt(opened, tables, context.now, bounds)?;
                Ok((kept, operations))
            });
        let (kept, operations) = match rebuilt {
            Ok(rebuilt) => rebuilt,
            Err(error) => {
                tracing::error!(room = %self.id, %error, "what the room has stored can't be read");
                return self.open_failed(JournalError::Damaged, context);
            }
        };
        let LogState::Opening { waiting, .. } =
            std::mem::replace(&mut self.log.state, LogState::Open)
        else {
            return;
        };
        self.kept = kept;
        self.log.epoch = opened.epoch;
        self.log.appended = opened.head;
        self.log.committed = opened.head;
        self.log.distributed = opened.head;
        self.log.snapshot = snapshot.map_or(Offset(0), |snapshot| snapshot.at);
        self.log.last_ms = opened.recent.last().map_or(0, |entry| entry.time_ms);
        let skipped = opened.recent.len().saturating_sub(TAIL_MAX);
        self.log.tail = opened.recent.iter().skip(skipped).cloned().collect();
        self.log.entry_bytes = self.log.tail.iter().map(|entry| bytes_of(entry)).sum();
        self.settle_unknown(&opened.recent);
        // Not at once: where the journal fails at once, that would never end.
        let look_ms = self.restores.as_ref().map_or(UNHEALTHY_MS, |_| 1);
        if let Some(restores) = self.restores.take() {
            self.restore(opened, operations, restores, context.now);
        }
        self.restore_members(context);
        self.queued = waiting.into();
        while let Some(request) = self.queued.pop_front() {
            self.handle(request, context);
        }
        if std::mem::take(&mut self.woken) {
            self.keep();
        }
        if self.kept.is_some() {
            self.look_in(look_ms, context);
            self.tell_wake(context);
        }
        // Entries get too old also where nobody writes any more.
        self.arm_maintenance(context);
    }

    /// The log knows which of the operations in doubt took effect.
    pub(super) fn settle_unknown(&mut self, recent: &[Arc<Entry>]) {
        for (producer, op) in std::mem::take(&mut self.unknown) {
            let is_theirs = |entry: &Entry| match &producer.0 {
                Scope::User(user) => *user == entry.user,
                Scope::Anonymous | Scope::BackEnd => true,
            };
            let is_this = |entry: &&Arc<Entry>| entry.op == Some(op) && is_theirs(entry);
            if let Some(entry) = recent.iter().rev().find(is_this) {
                self.operations
                    .accept(&producer, op, asked(entry), self.published(entry));
            }
        }
    }

    /// What the log and its snapshot show of operations that another room accepted.
    fn restore(
        &mut self,
        opened: &Opened,
        stored: Option<operations::Stored>,
        Restores { anonymous }: Restores,
        now: Now,
    ) {
        let shown = opened.recent.len() as u64;
        let stored_until = opened.snapshot.as_ref().map_or(0, |snapshot| snapshot.at.0);
        let shows = if shown >= opened.head.0 {
            Shows::All
        } else if shown + stored_until >= opened.head.0 {
            Shows::Remembered
        } else {
            Shows::Part
        };
        self.operations.begin_again(shows, now.unix_ms);
        if let Some(stored) = stored {
            self.operations.adopt(stored, opened.epoch, now.unix_ms);
        }
        for entry in &opened.recent {
            if let Some(op) = entry.op {
                let published = self.published(entry);
                // The log doesn't tell whether the back end has published in the user's name.
                let of_back_end = (op.sequence == BACK_END_SEQUENCE).then_some(Scope::BackEnd);
                for scope in [Scope::of(&entry.user, anonymous)]
                    .into_iter()
                    .chain(of_back_end)
                {
                    let key = (scope, op.producer);
                    self.operations
                        .restore(&key, op, asked(entry), published, now.unix_ms);
                }
            }
        }
    }

    /// The journal could not open the log: what has waited is refused, and it is asked again later.
    pub(super) fn open_failed(&mut self, error: JournalError, context: &mut Context<'_>) {
        tracing::error!(room = %self.id, %error, "the room's log can't be opened");
        context.counters.journal_failures.add(1);
        let LogState::Opening { waiting, .. } =
            std::mem::replace(&mut self.log.state, LogState::Failed(error))
        else {
            return;
        };
        for request in waiting {
            refuse(&request, error, self.alias, context);
        }
        context.timers.push((REOPEN_MS, RoomTimer::Reopen));
    }

    /// Whether a log that could not be opened is not asked for again: nobody waits for it, and nothing is due that would be
    /// forgotten, or nothing can come of it.
    pub(super) fn is_given_up(&self) -> bool {
        let is_damaged = matches!(self.log.state, LogState::Failed(JournalError::Damaged));
        self.members.occupancy() == 0 && (is_damaged || !self.woken)
    }

    /// What an ack says of an entry.
    pub(super) fn published(&self, entry: &Entry) -> Published {
        let position = Position::new(self.log.epoch, entry.offset);
        Published {
            position,
            time_ms: entry.time_ms,
            duplicate: false,
        }
    }

    /// Sees to it that there will be a clean-up.
    pub(super) fn arm_maintenance(&mut self, context: &mut Context<'_>) {
        if !self.maintenance_armed {
            self.maintenance_armed = true;
            context.timers.push((MAINTENANCE_MS, RoomTimer::Maintain));
        }
    }

    /// Drops what is too old, and sets the timer for the next time.
    pub(super) fn maintain(&mut self, context: &mut Context<'_>) {
        let now_ms = context.now.unix_ms;
        self.operations.expire(now_ms);
        let trim_ms = context.journal.trim(&self.id, now_ms);
        let due_ms = [trim_ms, self.operations.next_expiry_ms()]
            .into_iter()
            .flatten()
            .min();
        if let Some(due_ms) = due_ms {
            self.maintenance_armed = true;
            let delay_ms = due_ms
                .saturating_sub(now_ms)
                .clamp(MAINTENANCE_MS, MAINTENANCE_MAX_MS);
            context.timers.push((delay_ms, RoomTimer::Maintain));
        }
    }
}

/// What an operation asked for, where its entry shows it: a publish is what was published, a change what came of it.
fn asked(entry: &Entry) -> Option<&Payload> {
    (entry.kind == EntryKind::Publish).then_some(&entry.payload)
}

/// When to ask a journal again that could not open a room.
const REOPEN_MS: u64 = 1_000;

/// What an entry takes in memory.
fn bytes_of(entry: &Entry) -> usize {
    entry.payload.bytes.len() + ENTRY_BYTES
}
