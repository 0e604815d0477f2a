//! How far users have read: cursors from a request to a register, and what is left unread.
//!
//! The room calls it with requests and with what the journal has stored or read. A cursor counts for all members of a user. It is
//! acknowledged when its register is stored, and answered with what is unread then: a count of the log behind it, as
//! [`super::cursors`] says, page by page.

use std::sync::Arc;

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{Direction, Entry, Reply};
use roomful_protocol::id::{MemberId, Offset, UserId};
use roomful_protocol::position::Position;

use super::changing::over;
use super::cursors::Cursor;
use super::kept::is_publish;
use super::{Context, Read, Room, not_a_member};
use crate::journal::{JournalError, Outcome, ReadPage, ReadQuery};
use crate::shard::message::{Origin, Refusal};

/// A count on its way.
#[derive(Debug)]
pub(super) struct Counting {
    /// Who waits for it.
    pub(super) to: Origin,
    user: UserId,
    cursor: Cursor,
    /// Up to where it has come.
    at: Offset,
    unread: u64,
    /// Entries that are still looked at.
    left: usize,
}

impl Room {
    /// Moves the cursors of a member's user forward.
    pub(super) fn set_cursor(
        &mut self,
        member: MemberId,
        to: Origin,
        (read, delivered): (Option<Position>, Option<Position>),
        context: &mut Context<'_>,
    ) {
        let judged = self.check_cursor(read).and_then(|read| {
            let delivered = self.check_cursor(delivered)?;
            context.check_health()?;
            let member = self.members.get(member).ok_or_else(not_a_member)?;
            let user = member.user.clone();
            let users_max = self.settings.tables.cursors_max;
            let cursor = Cursor { read, delivered };
            let moved = self.keep().cursors.advance(&user, cursor, users_max);
            let moved = moved.map_err(|quota| over(quota, context))?;
            Ok((user, moved))
        });
        match judged {
            Ok((user, true)) => self.store_cursor(to, user, context),
            Ok((user, false)) => self.count_unread(to, user, context),
            Err(refusal) => context.reply(to, Err(refusal)),
        }
    }

    /// Shows the cursors of a member's user.
    pub(super) fn get_cursors(&mut self, member: MemberId, to: Origin, context: &mut Context<'_>) {
        match self.members.get(member).map(|member| member.user.clone()) {
            Some(user) => self.count_unread(to, user, context),
            None => context.reply(to, Err(not_a_member())),
        }
    }

    fn store_cursor(&mut self, to: Origin, user: UserId, context: &mut Context<'_>) {
        let epoch = self.epoch();
        let (key, value) = self.keep().cursors.register(&user, epoch);
        match context.journal.register(&self.id, key, value) {
            Outcome::Done(()) => self.cursor_stored(Ok(()), to, user, context),
            Outcome::Later(ticket) => {
                context.tickets.push(ticket);
                self.keep().registers.insert(ticket, (to, user));
            }
            Outcome::Failed(error) => self.cursor_stored(Err(error), to, user, context),
        }
    }

    /// The journal has stored a cursor, or could not.
    pub(super) fn cursor_stored(
        &mut self,
        outcome: Result<(), JournalError>,
        to: Origin,
        user: UserId,
        context: &mut Context<'_>,
    ) {
        match outcome {
            Ok(()) => self.count_unread(to, user, context),
            Err(_) => {
                let text = "the cursor could not be stored; try again";
                context.reply(to, Err(Refusal::new(ErrorCode::OutcomeUnknown, text)));
            }
        }
    }

    /// The place that a cursor is moved to, if the hubs have been told that far.
    fn check_cursor(&self, to: Option<Position>) -> Result<Option<Offset>, Refusal> {
        let head = self.head();
        match to {
            Some(to) if to.epoch != head.epoch || to > head => {
                let text = format!("a cursor stands in the log, whose head is {head}");
                Err(Refusal::new(ErrorCode::BadValue, text))
            }
            to => Ok(to.map(|to| to.offset)),
        }
    }

    /// Begins to count what the user has not read.
    fn count_unread(&mut self, to: Origin, user: UserId, context: &mut Context<'_>) {
        let kept = self.kept.as_ref();
        let cursor = kept.map_or_else(Cursor::default, |kept| kept.cursors.of(&user));
        let dropped = Offset(context.journal.first(&self.id).0.saturating_sub(1));
        let counting = Counting {
            to,
            user,
            cursor,
            at: cursor.read.unwrap_or_default().max(dropped),
            unread: 0,
            left: UNREAD_MAX,
        };
        self.go_on_counting(counting, context);
    }

    fn go_on_counting(&mut self, counting: Counting, context: &mut Context<'_>) {
        let head = self.log.distributed;
        if counting.at >= head || counting.left == 0 {
            let of = |offset| Position::new(self.log.epoch, offset);
            let cursors = roomful_protocol::frame::Cursors {
                read: counting.cursor.read.map(of),
                delivered: counting.cursor.delivered.map(of),
                unread: counting.unread,
            };
            return context.reply(counting.to, Ok(Reply::Cursors(cursors)));
        }
        let query = ReadQuery {
            from: counting.at,
            until: head,
            direction: Direction::Forward,
            entries_max: counting.left,
            bytes_max: PAGE_BYTES,
        };
        self.read(query, Read::Unread(Box::new(counting)), context);
    }

    /// The journal has read what follows.
    pub(super) fn count_page(
        &mut self,
        mut counting: Counting,
        outcome: Result<ReadPage, JournalError>,
        context: &mut Context<'_>,
    ) {
        let Ok(ReadPage { entries, .. }) = outcome else {
            let text = "the storage could not be read; try again";
            let refusal = Refusal::later(ErrorCode::Internal, text, 1000);
            return context.reply(counting.to, Err(refusal));
        };
        let is_unread = |entry: &&Arc<Entry>| is_publish(entry) && entry.user != counting.user;
        counting.unread += entries.iter().filter(is_unread).count() as u64;
        counting.left = counting.left.saturating_sub(entries.len());
        // Where nothing follows, history was dropped meanwhile.
        let last = entries.last().map(|last| last.offset);
        counting.at = last.unwrap_or(self.log.distributed);
        self.go_on_counting(counting, context);
    }
}

/// Entries behind a cursor that are looked at: who has more to read than this need not know how much more.
const UNREAD_MAX: usize = 1_000;

/// What is read at a time: few steps for long entries too.
const PAGE_BYTES: usize = 1_048_576;
