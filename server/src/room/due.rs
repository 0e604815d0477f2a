//! What happens in a room by itself: timers fire, leases end, locks fall to those who wait, and what a member has left is written
//! when it is gone.
//!
//! The room calls it when its timer says so, when a member is gone, when its log has been opened, and behind each change that may
//! have made something due. What is due is looked for in what has been appended, so that nothing happens twice, whatever the
//! clock does and however often somebody looks; each is an entry like any other. While the journal takes none, they wait.
//! What a member has left comes before its locks fall, so that it may be written under them.

use roomful_protocol::id::UserId;

use super::changing::By;
use super::departures::Departure;
use super::tables::Change;
use super::{Context, LogState, Room, RoomTimer};
use crate::clock::Now;
use crate::journal::Health;

/// What is due.
enum Due {
    /// Somebody has left something and is gone.
    Departure(Departure),
    /// A lock or a timer changes, or what was left goes by another token, on behalf of this user.
    Change(UserId, Change),
}

impl Room {
    /// Brings about what is due, a bounded number at a time, and sees to the next look.
    pub(super) fn look(&mut self, context: &mut Context<'_>) {
        for _ in 0..DUE_MAX {
            let Some(due) = self.due(context) else {
                return self.look_later(context);
            };
            if context.journal.health() != Health::Good {
                return self.look_in(UNHEALTHY_MS, context);
            }
            match due {
                Due::Departure(departure) => self.depart(&departure, context),
                Due::Change(user, change) => self.record(change, By::itself(user), context),
            }
        }
        self.look_in(1, context);
    }

    /// The timer has come to look.
    pub(super) fn looked(&mut self, context: &mut Context<'_>) {
        let now_ms = context.now.monotonic_ms;
        if let Some(kept) = &mut self.kept {
            kept.look_ms = kept.look_ms.filter(|look_ms| *look_ms > now_ms);
            self.look(context);
        }
    }

    /// Whether something waits for the next look.
    pub(super) fn is_due(&self, context: &Context<'_>) -> bool {
        self.due(context).is_some()
    }

    fn due(&self, context: &Context<'_>) -> Option<Due> {
        if !matches!(self.log.state, LogState::Open) {
            return None;
        }
        let tables = self.kept.as_ref()?.ahead();
        let place = self.place(context.now);
        // A write is taken away before it would be made.
        if let Some(changed) = self.grants.due(&tables.departures) {
            let user = changed.user.clone();
            return Some(Due::Change(user, Change::Departure(changed)));
        }
        let is_here = |member, session| self.members.of_session(session) == Some(member);
        let mut left = tables.departures.iter();
        if let Some(departure) = left.find(|left| !is_here(left.member, left.session)) {
            return Some(Due::Departure(departure.clone()));
        }
        if let Some((user, change)) = tables.locks.due(place, is_here) {
            return Some(Due::Change(user, Change::Lock(change)));
        }
        // Not by the time of entries: that is ahead where the clock was set back, and no timer fires before its time.
        let (user, change) = tables.timers.due(context.now.unix_ms)?;
        Some(Due::Change(user, Change::Timer(change)))
    }

    /// Writes what a member has left that is gone, if it still may and the conditions hold. What is stored first is the write:
    /// should the process end between the two entries, it is made again.
    fn depart(&mut self, departure: &Departure, context: &mut Context<'_>) {
        let user = departure.user.clone();
        let is_revoked = (context.is_revoked)(&self.id.tenant, departure);
        let judged = (!is_revoked).then(|| self.judge_write(&departure.changes, context));
        match judged {
            Some(Ok(change)) => {
                context.counters.departures.add(1);
                self.record(change, By::itself(user.clone()), context);
            }
            Some(Err(refusal)) => {
                tracing::debug!(room = %self.id, code = %refusal.code, "what a member had left is not written");
            }
            None => {
                tracing::debug!(room = %self.id, "what a member had left is not written: it was revoked");
            }
        }
        // A failed append has opened the room again; then what is there is looked at again.
        let known = self.kept.as_ref().map(|kept| &kept.ahead().departures);
        let is_left = known.and_then(|known| known.of(departure.session)) == Some(departure);
        if is_left && matches!(self.log.state, LogState::Open) {
            let done = Change::Departure(departure.emptied());
            self.record(done, By::itself(user), context);
        }
    }

    /// Sees to a look when something will be due.
    fn look_later(&mut self, context: &mut Context<'_>) {
        let Some(kept) = &self.kept else {
            return;
        };
        let tables = kept.ahead();
        let Now {
            monotonic_ms,
            unix_ms,
        } = context.now;
        let lease_ms = tables.locks.next_end_ms();
        let timer_ms = tables.timers.next_due_ms();
        let left = [
            lease_ms.map(|lease_ms| lease_ms.saturating_sub(monotonic_ms)),
            timer_ms.map(|timer_ms| timer_ms.saturating_sub(unix_ms)),
        ];
        if let Some(left_ms) = left.into_iter().flatten().min() {
            self.look_in(left_ms, context);
        }
    }

    /// Sets the timer, unless one is set that comes before. The time of day may be set while it runs, so it never runs for long.
    pub(super) fn look_in(&mut self, delay_ms: u64, context: &mut Context<'_>) {
        let delay_ms = delay_ms.clamp(1, LOOK_MAX_MS);
        let look_ms = context.now.monotonic_ms + delay_ms;
        let Some(kept) = &mut self.kept else {
            return;
        };
        if kept.look_ms.is_none_or(|armed_ms| look_ms < armed_ms) {
            kept.look_ms = Some(look_ms);
            context.timers.push((delay_ms, RoomTimer::Look));
        }
    }
}

/// What is brought about at a time; a room with more due goes on in a later turn.
const DUE_MAX: usize = 64;

/// When to look again while the journal takes nothing.
pub(super) const UNHEALTHY_MS: u64 = 1_000;

/// Longest time between two looks: how late a clock that was set forward is noticed.
const LOOK_MAX_MS: u64 = 60_000;
