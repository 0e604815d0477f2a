//! How far users have read: cursors from a request to a register, and what is left unread.
//!
//! The room calls it with requests and with what the journal has stored or read. A cursor counts for all members of a user. It
//! moves when its register is stored, and is acknowledged then; a request that asks for no more than one that is on its way waits
//! for that. The answer says what is unread: a count of the log behind the cursor, as [`super::cursors`] says, page by page.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{Direction, Entry, Reply};
use roomful_protocol::id::{MemberId, Offset, UserId};
use roomful_protocol::position::Position;

use super::cursors::Cursor;
use super::kept::is_publish;
use super::{Context, Read, Room, not_a_member};
use crate::journal::{JournalError, Outcome, ReadPage, ReadQuery, Ticket};
use crate::shard::message::{Origin, Refusal};

/// Registers on their way.
#[derive(Debug, Default)]
pub(super) struct Registers {
    by_ticket: BTreeMap<Ticket, Move>,
    /// The last one of each user.
    newest: BTreeMap<UserId, Ticket>,
}

/// Cursors as a register will say them.
#[derive(Debug)]
pub(super) struct Move {
    user: UserId,
    cursor: Cursor,
    waiting: Vec<Origin>,
}

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

impl Registers {
    /// The last one of a user.
    fn newest(&mut self, user: &UserId) -> Option<&mut Move> {
        let ticket = self.newest.get(user)?;
        self.by_ticket.get_mut(ticket)
    }

    fn insert(&mut self, ticket: Ticket, coming: Move) {
        self.newest.insert(coming.user.clone(), ticket);
        self.by_ticket.insert(ticket, coming);
    }

    /// The one that has come to an end.
    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<Move> {
        let ended = self.by_ticket.remove(&ticket)?;
        if self.newest.get(&ended.user) == Some(&ticket) {
            self.newest.remove(&ended.user);
        }
        Some(ended)
    }

    /// Who waits for any of them.
    pub(super) fn waiting(&self) -> impl Iterator<Item = Origin> {
        let moves = self.by_ticket.values();
        moves.flat_map(|coming| coming.waiting.iter().copied())
    }
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
            Ok((member.user.clone(), Cursor { read, delivered }))
        });
        match judged {
            Ok((user, cursor)) => self.move_cursor(to, user, cursor, context),
            Err(refusal) => context.reply(to, Err(refusal)),
        }
    }

    /// Stores the cursors if they stand further back, or waits for the register that moves them as far.
    fn move_cursor(&mut self, to: Origin, user: UserId, by: Cursor, context: &mut Context<'_>) {
        let kept = self.keep();
        let stored = kept.cursors.of(&user);
        if stored.forward(by) == stored {
            return self.count_unread(to, user, context);
        }
        let newest = kept.registers.newest(&user);
        let ahead = newest.as_ref().map_or(stored, |newest| newest.cursor);
        let cursor = ahead.forward(by);
        if let Some(newest) = newest
            && newest.cursor == cursor
        {
            return newest.waiting.push(to);
        }
        let coming = Move {
            user,
            cursor,
            waiting: vec![to],
        };
        self.store_cursor(coming, context);
    }

    /// Shows the cursors of a member's user.
    pub(super) fn get_cursors(&mut self, member: MemberId, to: Origin, context: &mut Context<'_>) {
        match self.members.get(member).map(|member| member.user.clone()) {
            Some(user) => self.count_unread(to, user, context),
            None => context.reply(to, Err(not_a_member())),
        }
    }

    fn store_cursor(&mut self, coming: Move, context: &mut Context<'_>) {
        let (key, value) = coming.cursor.to_register(&coming.user, self.epoch());
        match context.journal.register(&self.id, key, value) {
            Outcome::Done(()) => self.cursor_stored(Ok(()), coming, context),
            Outcome::Later(ticket) => {
                context.tickets.push(ticket);
                self.keep().registers.insert(ticket, coming);
            }
            Outcome::Failed(error) => self.cursor_stored(Err(error), coming, context),
        }
    }

    /// The journal has stored a cursor, or could not.
    pub(super) fn cursor_stored(
        &mut self,
        outcome: Result<(), JournalError>,
        stored: Move,
        context: &mut Context<'_>,
    ) {
        let Move {
            user,
            cursor,
            waiting,
        } = stored;
        if outcome.is_err() {
            let text = "the cursor could not be stored; try again";
            for to in waiting {
                context.reply(to, Err(Refusal::new(ErrorCode::OutcomeUnknown, text)));
            }
            return;
        }
        self.keep().cursors.advance(&user, cursor);
        self.forget_cursors(&user, context);
        for to in waiting {
            self.count_unread(to, user.clone(), context);
        }
    }

    /// Forgets who is furthest behind where too many have cursors: not the one whose turn it is, nor anybody whose register is
    /// on its way, which would be taken away with the former.
    fn forget_cursors(&mut self, but: &UserId, context: &mut Context<'_>) {
        let users_max = self.settings.tables.cursors_max;
        loop {
            let kept = self.keep();
            let newest = &kept.registers.newest;
            let may_be = |user: &UserId| user != but && !newest.contains_key(user);
            let Some(user) = kept.cursors.forget_one(users_max, may_be) else {
                return;
            };
            context.counters.cursors_forgotten.add(1);
            let gone = context
                .journal
                .register(&self.id, Cursor::key(&user), Bytes::new());
            if let Outcome::Later(ticket) = gone {
                context.tickets.push(ticket);
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
