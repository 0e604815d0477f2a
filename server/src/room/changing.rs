//! What members change beside the log: state, locks and timers, from a request to an entry.
//!
//! The room calls it with requests. Each is judged on what has been appended, becomes one entry, and is answered when that is
//! committed. A refusal changes nothing, and waits as long, since what it goes by may yet be lost. A write of state has an op id
//! like a publish, and one window of results with it. A lock is asked for by a member in person, by the connection that it is
//! here with. What happens by itself is left to `due`.

use std::sync::Arc;

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{Change as StateRequest, Entry, LockReply, OpId, Reply, StateItem};
use roomful_protocol::id::{Key, MemberId, Offset, UserId};
use roomful_protocol::payload::{Payload, PayloadFormat};
use roomful_protocol::position::Position;

use super::departures::Departure;
use super::kept::Answer;
use super::locks::{Acquired, Asker, LockRefusal, Place};
use super::log::Draft;
use super::operations::ProducerKey;
use super::snapshot;
use super::state::StateRefusal;
use super::tables::Change;
use super::{Context, Room, not_a_member};
use crate::auth::TokenId;
use crate::clock::Now;
use crate::metrics::Quota;
use crate::shard::message::{Author, Origin, Refusal, StateGrant};

/// Whose change it is, and who waits for it.
#[derive(Debug)]
pub(super) struct By {
    pub(super) user: UserId,
    pub(super) op: Option<OpId>,
    pub(super) producer: Option<ProducerKey>,
    /// What was asked for, by which the operation is known again.
    pub(super) asked: Option<Payload>,
    pub(super) to: Origin,
    pub(super) answer: Answer,
}

impl By {
    /// Somebody without an operation's id.
    fn user(user: UserId, to: Origin, answer: Answer) -> Self {
        Self {
            user,
            op: None,
            producer: None,
            asked: None,
            to,
            answer,
        }
    }

    /// Nobody who waits: it happens by itself.
    pub(super) fn itself(user: UserId) -> Self {
        Self::user(user, Origin::NOBODY, Answer::Done)
    }
}

impl Room {
    /// One write of the keyed state: all of it or nothing, and once.
    pub(super) fn write_state(
        &mut self,
        author: &Author,
        to: Origin,
        op: Option<OpId>,
        changes: &[StateRequest],
        context: &mut Context<'_>,
    ) {
        if matches!(author, Author::BackEnd(_)) {
            self.used(context);
        }
        let (user, producer) = match self.author(author, op, context) {
            Ok(author) => author,
            Err(refusal) => return context.reply(to, Err(refusal)),
        };
        let asked = op.map(|_| content_of(changes));
        if let (Some(op), Some(producer), Some(asked)) = (op, &producer, &asked)
            && self.is_answered(producer, op, asked, to, context)
        {
            return;
        }
        let judged = context
            .check_health()
            .and_then(|()| self.judge_write(changes, context));
        match judged {
            Ok(change) => {
                let by = By {
                    user,
                    op,
                    producer,
                    asked,
                    to,
                    answer: Answer::Published,
                };
                self.record(change, by, context);
            }
            Err(refusal) => self.refuse_judged(refusal, to, context),
        }
    }

    /// What a write would make of the state as it is ahead.
    pub(super) fn judge_write(
        &mut self,
        changes: &[StateRequest],
        context: &Context<'_>,
    ) -> Result<Change, Refusal> {
        let epoch = self.epoch();
        let settings = Arc::clone(&self.settings);
        let tables = self.keep().ahead();
        let bounds = &settings.tables.state;
        let judged = tables.state.check(changes, epoch, &tables.locks, bounds);
        judged
            .map(Change::State)
            .map_err(|refusal| refuse_write(refusal, settings.chunk_bytes_max, context))
    }

    /// Keeps what is to be written when the member is gone.
    pub(super) fn on_disconnect(
        &mut self,
        member: MemberId,
        to: Origin,
        changes: Vec<StateRequest>,
        token_id: Option<TokenId>,
        context: &mut Context<'_>,
    ) {
        let Some(asker) = self.asker(member, to) else {
            return context.reply(to, Err(not_a_member()));
        };
        let departure = Departure {
            member,
            session: asker.session,
            user: asker.user.clone(),
            token_id,
            changes,
        };
        let known = self.kept.as_ref().map(|kept| &kept.ahead().departures);
        let is_left = known.is_some_and(|known| known.of(asker.session).is_some());
        if departure.changes.is_empty() && !is_left {
            return context.reply(to, Ok(Reply::Done));
        }
        let bytes_max = self.settings.tables.departure_bytes_max;
        let judged = context.check_health().and_then(|()| {
            let fits = self.keep().ahead().departures.check(&departure, bytes_max);
            fits.map_err(|quota| over(quota, context))
        });
        match judged {
            Ok(()) => {
                let by = By::user(asker.user, to, Answer::Done);
                self.record(Change::Departure(departure), by, context);
            }
            Err(refusal) => self.refuse_judged(refusal, to, context),
        }
    }

    /// What the member has left goes by the token that it has now, whether or not that can be stored already.
    pub(super) fn set_grant(
        &mut self,
        member: MemberId,
        to: Origin,
        grant: &StateGrant,
        context: &mut Context<'_>,
    ) {
        let Some(asker) = self.asker(member, to) else {
            return;
        };
        let Some(kept) = &self.kept else {
            return;
        };
        let known = [kept.ahead(), kept.committed()].map(|tables| &tables.departures);
        if self.grants.note(asker.session, grant, known) {
            self.look(context);
        }
    }

    /// Gives a lock to a member, or a place in its queue.
    pub(super) fn acquire_lock(
        &mut self,
        member: MemberId,
        to: Origin,
        name: &Key,
        (ttl_ms, waits): (u64, bool),
        context: &mut Context<'_>,
    ) {
        let Some(asker) = self.asker(member, to) else {
            return context.reply(to, Err(not_a_member()));
        };
        let place = self.place(context.now);
        let bounds = self.settings.tables.locks;
        let judged = self.check_ttl(ttl_ms).and_then(|()| {
            let wish = (ttl_ms, waits);
            let ahead = self.keep().ahead();
            let judged = ahead.locks.acquire(name, &asker, wish, place, bounds);
            judged.map_err(|refusal| refuse_lock(refusal, name, context))
        });
        match judged {
            Ok(Acquired::Changed(change, reply)) => match context.check_health() {
                Ok(()) => {
                    let by = By::user(asker.user, to, Answer::Lock(reply));
                    self.record(Change::Lock(change), by, context);
                    self.look(context);
                }
                Err(refusal) => self.refuse_judged(refusal, to, context),
            },
            Ok(Acquired::Held(fence)) => {
                self.hold_longer(member, to, name, (fence, ttl_ms), context);
            }
            Ok(Acquired::Waits(reply)) => {
                self.reply_at(self.log.appended, to, Ok(Reply::Lock(reply)), context);
            }
            Err(refusal) => self.refuse_judged(refusal, to, context),
        }
    }

    /// Lets a member hold a lock for longer.
    pub(super) fn renew_lock(
        &mut self,
        member: MemberId,
        to: Origin,
        name: &Key,
        (fence, ttl_ms): (Position, u64),
        context: &mut Context<'_>,
    ) {
        let judged = self.check_ttl(ttl_ms).and_then(|()| {
            self.asker(member, to).ok_or_else(not_a_member)?;
            if fence.epoch != self.epoch() {
                return Err(refuse_lock(LockRefusal::StaleFence, name, context));
            }
            Ok(())
        });
        match judged {
            Ok(()) => self.hold_longer(member, to, name, (fence.offset, ttl_ms), context),
            Err(refusal) => self.refuse_judged(refusal, to, context),
        }
    }

    fn hold_longer(
        &mut self,
        member: MemberId,
        to: Origin,
        name: &Key,
        (fence, ttl_ms): (Offset, u64),
        context: &mut Context<'_>,
    ) {
        let epoch = self.epoch();
        let now = context.now;
        let mut renewed = Err(LockRefusal::NotHeld);
        // What is decided on comes last. The grant may not be committed yet; then only that has it.
        self.keep()
            .each(|tables| renewed = tables.locks.renew(name, member, fence, ttl_ms, now));
        match renewed {
            Ok(until_ms) => {
                let fence = Position::new(epoch, fence);
                let reply = Reply::Lock(LockReply::Granted { fence, until_ms });
                self.reply_at(fence.offset, to, Ok(reply), context);
            }
            Err(refusal) => {
                let refusal = refuse_lock(refusal, name, context);
                self.refuse_judged(refusal, to, context);
            }
        }
    }

    /// Takes a lock back from a member, or its place in the queue.
    pub(super) fn release_lock(
        &mut self,
        member: MemberId,
        to: Origin,
        name: &Key,
        context: &mut Context<'_>,
    ) {
        let Some(asker) = self.asker(member, to) else {
            return context.reply(to, Err(not_a_member()));
        };
        let released = self
            .kept
            .as_ref()
            .map_or(Err(LockRefusal::NotHeld), |kept| {
                kept.ahead().locks.release(name, member)
            });
        let judged = released
            .map_err(|refusal| refuse_lock(refusal, name, context))
            .and_then(|change| context.check_health().map(|()| change));
        match judged {
            Ok(change) => {
                let by = By::user(asker.user, to, Answer::Done);
                self.record(Change::Lock(change), by, context);
                self.look(context);
            }
            Err(refusal) => self.refuse_judged(refusal, to, context),
        }
    }

    /// Sets a timer, in the place of one of that name.
    pub(super) fn set_timer(
        &mut self,
        author: &Author,
        to: Origin,
        name: &Key,
        (due_ms, payload): (u64, Payload),
        context: &mut Context<'_>,
    ) {
        let bounds = self.settings.tables.timers;
        let judged = self
            .author(author, None, context)
            .and_then(|(user, _)| context.check_health().map(|()| user))
            .and_then(|user| {
                let set = self
                    .keep()
                    .ahead()
                    .timers
                    .set(name, due_ms, payload, bounds);
                let change = set.map_err(|quota| over(quota, context))?;
                Ok((user, Change::Timer(change)))
            });
        self.record_timer(judged, to, context);
    }

    /// Takes a timer away.
    pub(super) fn cancel_timer(
        &mut self,
        author: &Author,
        to: Origin,
        name: &Key,
        context: &mut Context<'_>,
    ) {
        let judged = self
            .author(author, None, context)
            .and_then(|(user, _)| context.check_health().map(|()| user))
            .and_then(|user| {
                let kept = self.kept.as_ref();
                let cancelled = kept.and_then(|kept| kept.ahead().timers.cancel(name));
                let change = cancelled.ok_or_else(|| {
                    let text = format!("no timer of name {name:?} is set; it may have fired");
                    Refusal::new(ErrorCode::Conflict, text)
                })?;
                Ok((user, Change::Timer(change)))
            });
        self.record_timer(judged, to, context);
    }

    fn record_timer(
        &mut self,
        judged: Result<(UserId, Change), Refusal>,
        to: Origin,
        context: &mut Context<'_>,
    ) {
        match judged {
            Ok((user, change)) => {
                let by = By::user(user, to, Answer::Published);
                self.record(change, by, context);
                self.look(context);
            }
            Err(refusal) => self.refuse_judged(refusal, to, context),
        }
    }

    /// Makes an entry of a change, and gives it to the journal.
    pub(super) fn record(&mut self, change: Change, by: By, context: &mut Context<'_>) {
        let place = self.place(context.now);
        self.wake_before(&change, context);
        let entry = Arc::new(Entry {
            offset: place.offset,
            time_ms: self.entry_ms(context.now),
            kind: change.kind(),
            user: by.user,
            op: by.op,
            payload: change.to_payload(),
        });
        let draft = Draft {
            entry,
            producer: by.producer,
            asked: by.asked,
            change: Some(Box::new(change)),
            answer: by.answer,
            to: by.to,
        };
        self.append(draft, context);
    }

    /// A refusal goes by what has been appended, and shows it: nobody is told before that is stored. What the storage itself
    /// refuses goes by nothing else.
    fn refuse_judged(&mut self, refusal: Refusal, to: Origin, context: &mut Context<'_>) {
        let is_of_storage = matches!(
            refusal.code,
            ErrorCode::StorageFull | ErrorCode::StorageFailed
        );
        let offset = if is_of_storage {
            self.log.distributed
        } else {
            self.log.appended
        };
        self.reply_at(offset, to, Err(refusal), context);
    }

    /// Where the next entry stands, and when that is decided.
    pub(super) fn place(&self, now: Now) -> Place {
        Place {
            epoch: self.log.epoch,
            offset: self.log.appended.next(),
            now,
        }
    }

    /// The member in person.
    fn asker(&self, number: MemberId, from: Origin) -> Option<Asker> {
        let member = self.speaker(number, from)?;
        Some(Asker {
            member: number,
            user: member.user.clone(),
            session: member.session,
        })
    }

    fn check_ttl(&self, ttl_ms: u64) -> Result<(), Refusal> {
        let max = self.settings.tables.locks.ttl_max_ms;
        if (TTL_MIN_MS..=max).contains(&ttl_ms) {
            return Ok(());
        }
        let text = format!("a lock is held for {TTL_MIN_MS} to {max} ms at a time");
        Err(Refusal::new(ErrorCode::BadValue, text))
    }
}

/// What a write asks for, to be known again by.
fn content_of(changes: &[StateRequest]) -> Payload {
    Payload {
        format: PayloadFormat::MessagePack,
        bytes: snapshot::record(&changes).into(),
    }
}

/// The answer to a write that is not made. What is there is shown as far as it fits.
fn refuse_write(refusal: StateRefusal, bytes_max: usize, context: &Context<'_>) -> Refusal {
    match refusal {
        StateRefusal::Conflict(mut current) => {
            let mut bytes = 0;
            let fits = |item: &StateItem| {
                let fits = bytes <= bytes_max;
                bytes += item.value.as_ref().map_or(0, |value| value.bytes.len());
                fits
            };
            current.truncate(current.iter().map(fits).take_while(|fits| *fits).count());
            let text = "a condition of the write does not hold; nothing was written";
            Refusal {
                current,
                ..Refusal::new(ErrorCode::Conflict, text)
            }
        }
        StateRefusal::StaleFence(lock) => {
            let text = format!("the fence is not that of the newest grant of lock {lock:?}");
            Refusal::new(ErrorCode::StaleFence, text)
        }
        StateRefusal::FenceRequired(key) => {
            let text = format!("key {key:?} is written under a lock alone; give its fence");
            Refusal::new(ErrorCode::FenceRequired, text)
        }
        StateRefusal::Quota(quota) => over(quota, context),
        StateRefusal::Twice(key) => {
            let text = format!("key {key:?} stands in the write twice");
            Refusal::new(ErrorCode::BadValue, text)
        }
        StateRefusal::NoValue(key) => {
            let text = format!("the change of key {key:?} has no value");
            Refusal::new(ErrorCode::BadValue, text)
        }
        StateRefusal::NoName(key) => {
            let text =
                format!("a member's name in the value or the patch of key {key:?} is no text");
            Refusal::new(ErrorCode::BadValue, text)
        }
    }
}

fn refuse_lock(refusal: LockRefusal, name: &Key, context: &Context<'_>) -> Refusal {
    match refusal {
        LockRefusal::Taken(after_ms) => {
            let text = format!("somebody else holds lock {name:?}");
            Refusal::later(ErrorCode::LockTaken, text, after_ms)
        }
        LockRefusal::NotHeld => {
            let text = format!("this member neither holds lock {name:?} nor waits for it");
            Refusal::new(ErrorCode::LockNotHeld, text)
        }
        LockRefusal::StaleFence => {
            let text = format!("the fence is not that of the newest grant of lock {name:?}");
            Refusal::new(ErrorCode::StaleFence, text)
        }
        LockRefusal::Quota(quota) => over(quota, context),
    }
}

/// The answer to what a bound doesn't allow.
pub(super) fn over(quota: Quota, context: &Context<'_>) -> Refusal {
    use crate::metrics::Label as _;
    context.counters.quota_refusals.of(quota).add(1);
    let text = format!("the room may not keep more: {}_max", quota.text());
    Refusal::new(ErrorCode::QuotaExceeded, text)
}

/// Shortest lease: a shorter one would end on its way.
const TTL_MIN_MS: u64 = 100;
