//! What a room keeps beside its log, as the room holds it: committed and ahead, rebuilt from the journal, stored now and then.
//!
//! The room calls it with what it appends and commits, and where its log is opened. A room that has never kept anything has none
//! of it. What is decided goes by what has been appended; what is read, and what is stored, by what is committed. A
//! snapshot is written once so much stands behind the last one that replaying it would take long, and where the room
//! closes. When the room has to be looked at though nobody is in it, the journal knows before the entry is stored that
//! asks for it.

use roomful_protocol::frame::{
    Durability, Entry, EntryKind, LockReply, LocksPage, StatePage, TimersPage,
};
use roomful_protocol::id::{Epoch, Key, KeyPrefix, MemberId, Offset, SessionId, UserId};

use super::cursors::Cursors;
use super::progress::Registers;
use super::snapshot::{self, Undecodable};
use super::tables::{Change, TableBounds, Tables};
use super::{Context, Room, RoomTimer};
use crate::clock::Now;
use crate::journal::{ENTRY_OVERHEAD_BYTES, HistoryBounds, Opened, RECENT_MAX, Snapshot};

/// What a room keeps.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// As readers see it.
    committed: Tables,
    /// With the entries that are on their way. None as long as the journal has stored every entry at once.
    ahead: Option<Box<Tables>>,
    /// Of the users.
    pub(super) cursors: Cursors,
    /// Registers that are on their way, and who waits for them.
    pub(super) registers: Registers,
    /// Entries behind the last snapshot that it would have to say.
    unsaved: Unsaved,
    /// Bytes of the last snapshot.
    saved_bytes: usize,
    /// What the journal was told last about when to look; none: nothing since the log was opened.
    wake: Option<Option<u64>>,
    /// When a look is due that a timer is set for, on the monotonic clock.
    pub(super) look_ms: Option<u64>,
}

/// What a replay would take.
#[derive(Debug, Clone, Copy, Default)]
struct Unsaved {
    entries: usize,
    bytes: usize,
}

/// What somebody is told whose entry is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Where it stands.
    Published,
    /// That it is done.
    Done,
    /// What became of a lock.
    Lock(LockReply),
}

impl Kept {
    /// What a log shows, behind a snapshot's tables; none where there is nothing of this.
    pub(super) fn rebuilt(
        opened: &Opened,
        tables: Tables,
        now: Now,
        bounds: &TableBounds,
    ) -> Result<Option<Box<Self>>, Undecodable> {
        let snapshot = opened.snapshot.as_ref();
        let at = snapshot.map_or(Offset(0), |snapshot| snapshot.at);
        let mut kept = Self {
            committed: tables,
            saved_bytes: snapshot.map_or(0, |snapshot| snapshot.content.len()),
            ..Self::default()
        };
        for entry in opened.recent.iter().filter(|entry| entry.offset > at) {
            if let Some(change) = Change::of(entry)? {
                kept.commit(entry, &change, now.monotonic_ms, bounds);
            }
        }
        let is_used = kept.committed.held_bytes() > 0 || kept.unsaved.entries > 0;
        if !is_used && opened.registers.is_empty() {
            return Ok(None);
        }
        kept.cursors = Cursors::from_registers(&opened.registers, opened.epoch)?;
        kept.committed.locks.begin_leases(now);
        Ok(Some(Box::new(kept)))
    }

    /// What to decide on.
    pub(super) fn ahead(&self) -> &Tables {
        self.ahead.as_deref().unwrap_or(&self.committed)
    }

    /// What to read.
    pub(super) fn committed(&self) -> &Tables {
        &self.committed
    }

    /// Changes what no entry says, in both.
    pub(super) fn each(&mut self, mut act: impl FnMut(&mut Tables)) {
        act(&mut self.committed);
        if let Some(ahead) = &mut self.ahead {
            act(ahead);
        }
    }

    /// An entry was given to the journal, and will be committed later.
    fn advance(&mut self, entry: &Entry, change: &Change, now_ms: u64, bounds: &TableBounds) {
        let committed = &self.committed;
        let ahead = self
            .ahead
            .get_or_insert_with(|| Box::new(committed.clone()));
        let place = (entry.offset, entry.time_ms);
        ahead.apply(change, &entry.user, place, now_ms, bounds);
    }

    /// An entry is stored.
    fn commit(&mut self, entry: &Entry, change: &Change, now_ms: u64, bounds: &TableBounds) {
        let place = (entry.offset, entry.time_ms);
        self.committed
            .apply(change, &entry.user, place, now_ms, bounds);
        self.unsaved.entries += 1;
        self.unsaved.bytes += entry.payload.bytes.len() + ENTRY_OVERHEAD_BYTES;
    }

    /// Whether a snapshot is worth its cost: replaying would take long, or keep history beyond its bounds; and not while
    /// it would be many times what has come since the last one.
    fn is_snapshot_due(&self, history: HistoryBounds) -> bool {
        let entries_max = UNSAVED_MAX.min(history.entries_max / 2).max(1);
        let is_much =
            self.unsaved.entries >= entries_max || self.unsaved.bytes >= history.bytes_max / 2;
        is_much && self.unsaved.bytes >= self.saved_bytes / 8
    }

    /// When somebody has to look, whether or not an entry on its way is stored: at the start of a process, where members are
    /// missed by locks or by what they left; else for the first timer.
    fn wake_ms(&self) -> Option<u64> {
        let of = |tables: &Tables| {
            let is_tied = tables.tied().next().is_some();
            let timer = tables.timers.next_due_ms();
            if is_tied { Some(0) } else { timer }
        };
        [of(&self.committed), self.ahead.as_deref().and_then(of)]
            .into_iter()
            .flatten()
            .min()
    }

    /// About what it takes in memory, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        let ahead = self.ahead.as_ref().map_or(0, |ahead| ahead.held_bytes());
        size_of::<Self>() + self.committed.held_bytes() + ahead + self.cursors.held_bytes()
    }
}

impl Room {
    /// What entries have made of the room, those on their way included; begun where there is none.
    pub(super) fn keep(&mut self) -> &mut Kept {
        self.kept.get_or_insert_default()
    }

    /// Keeps what an entry changes that was given to the journal; `is_next` says that it is committed before anything is
    /// decided again.
    pub(super) fn advance(&mut self, entry: &Entry, change: &Change, now: Now, is_next: bool) {
        let bounds = &self.settings.tables;
        let kept = self.kept.get_or_insert_default();
        if !is_next || kept.ahead.is_some() {
            kept.advance(entry, change, now.monotonic_ms, bounds);
        }
    }

    /// Keeps what a stored entry changes, and stores all of it where much has come.
    pub(super) fn keep_committed(
        &mut self,
        entry: &Entry,
        change: &Change,
        context: &mut Context<'_>,
    ) {
        let counters = context.counters;
        match change {
            Change::State(_) => counters.state_writes.add(1),
            Change::Lock(_) => counters.lock_changes.add(1),
            Change::Timer(timer) if timer.what == roomful_protocol::frame::TimerWhat::Fired => {
                counters.timers_fired.add(1);
            }
            Change::Timer(_) | Change::Departure(_) => {}
        }
        let kept = self.kept.get_or_insert_default();
        let now_ms = context.now.monotonic_ms;
        kept.commit(entry, change, now_ms, &self.settings.tables);
        if let Change::Departure(left) = change {
            self.grants.stored(left.session, &kept.committed.departures);
        }
        if kept.is_snapshot_due(self.settings.history) {
            self.store_snapshot(context);
        }
        self.tell_wake(context);
    }

    /// Whether opening the room again would take long, or would not show every operation that is remembered: a log without a
    /// snapshot shows its newest entries alone, and of them what its bounds keep.
    pub(super) fn is_replay_long(&self) -> bool {
        let behind = self.log.committed.0 - self.log.snapshot.0;
        let results = self.operations.results();
        let is_replayed = self.log.snapshot > Offset(0) || self.kept.is_some() || results > 0;
        let long = match results {
            0 => REPLAY_MAX,
            _ => (self.settings.history.entries_max / 2).clamp(1, REPLAY_MAX.max(results)),
        };
        is_replayed && behind >= long as u64
    }

    /// Whether a snapshot would say more than the last one and what a replay takes in its stride.
    pub(super) fn has_unsaved(&self) -> bool {
        let kept = self.kept.as_ref();
        kept.is_some_and(|kept| kept.unsaved.entries > 0) || self.is_replay_long()
    }

    /// Stores what is committed.
    pub(super) fn store_snapshot(&mut self, context: &mut Context<'_>) {
        let at = self.log.committed;
        let operations = self.operations.to_stored(at);
        let content = match &mut self.kept {
            Some(kept) => {
                let content = snapshot::encode(&kept.committed, operations);
                kept.saved_bytes = content.len();
                kept.unsaved = Unsaved::default();
                content
            }
            None => snapshot::encode(&Tables::default(), operations),
        };
        self.log.snapshot = at;
        context.counters.snapshots.add(1);
        context.journal.snapshot(&self.id, Snapshot { at, content });
    }

    /// Tells the journal when to look, before an entry is given to it that makes it earlier.
    pub(super) fn wake_before(&mut self, change: &Change, context: &mut Context<'_>) {
        let wake_ms = match change {
            Change::Timer(timer) => timer.payload.as_ref().map(|_| timer.due_ms),
            Change::Lock(lock) => lock.held.as_ref().map(|_| 0),
            Change::Departure(departure) => departure.changes.first().map(|_| 0),
            Change::State(_) => None,
        };
        let told = self.kept.as_ref().and_then(|kept| kept.wake).flatten();
        if let Some(wake_ms) = wake_ms
            && told.is_none_or(|told| wake_ms < told)
        {
            self.set_wake(Some(wake_ms), context);
        }
    }

    /// Tells the journal when to look, if that has changed.
    pub(super) fn tell_wake(&mut self, context: &mut Context<'_>) {
        let wake_ms = self.kept.as_ref().and_then(|kept| kept.wake_ms());
        let told = self.kept.as_ref().and_then(|kept| kept.wake);
        if told != Some(wake_ms) {
            self.set_wake(wake_ms, context);
        }
    }

    fn set_wake(&mut self, wake_ms: Option<u64>, context: &mut Context<'_>) {
        self.keep().wake = Some(wake_ms);
        context.journal.wake_at(&self.id, wake_ms);
    }

    /// Whether the room must not be forgotten: it has something to do, and is nowhere else, or what is due now waits for the
    /// disk. The journal tells each time once.
    pub(super) fn is_needed(&self, context: &Context<'_>) -> bool {
        match self.settings.durability {
            Durability::Memory => {
                let timers = self.kept.as_ref().map(|kept| &kept.committed.timers);
                timers.is_some_and(|timers| !timers.is_empty())
            }
            Durability::Local | Durability::Replicated => self.is_due(context),
        }
    }

    /// A room that closes all the same is woken for what is due, a while later.
    pub(super) fn wake_if_due(&mut self, context: &mut Context<'_>) {
        if self.is_due(context) {
            self.set_wake(Some(context.now.unix_ms + REWAKE_MS), context);
        }
    }

    /// Members of before the log was opened, who have something to lose: they are disconnected, and their grace begins.
    pub(super) fn restore_members(&mut self, context: &mut Context<'_>) {
        let Some(kept) = &self.kept else {
            return;
        };
        let tied = kept.committed.tied();
        let tied: Vec<(MemberId, UserId, SessionId)> = tied
            .map(|(member, user, session)| (member, user.clone(), session))
            .collect();
        for (member, user, session) in tied {
            let is_known = self.members.of_session(session).is_some();
            if !is_known && self.members.get(member).is_none() {
                let absence = self.members.restore(member, session, user);
                let grace = RoomTimer::Grace(member, absence);
                context
                    .timers
                    .push((self.settings.presence_grace_ms, grace));
            }
        }
        self.presence_changed(context);
    }

    /// A page of the state as it is committed, and as all hubs have been told it.
    pub(super) fn state_page(
        &mut self,
        prefixes: &[KeyPrefix],
        after: Option<&Key>,
        limit: usize,
        context: &mut Context<'_>,
    ) -> StatePage {
        self.distribute(context);
        let at = self.head();
        let bytes_max = self.settings.chunk_bytes_max;
        match &self.kept {
            Some(kept) => kept
                .committed
                .state
                .page(at, prefixes, after, limit, bytes_max),
            None => StatePage {
                position: at,
                items: Vec::new(),
                next: None,
            },
        }
    }

    /// A page of the locks, likewise.
    pub(super) fn locks_page(
        &mut self,
        after: Option<&Key>,
        limit: usize,
        context: &mut Context<'_>,
    ) -> LocksPage {
        self.distribute(context);
        let at = self.head();
        match &self.kept {
            Some(kept) => kept.committed.locks.page(at, after, limit),
            None => LocksPage {
                position: at,
                locks: Vec::new(),
                next: None,
            },
        }
    }

    /// A page of the timers, likewise.
    pub(super) fn timers_page(
        &mut self,
        after: Option<&Key>,
        limit: usize,
        context: &mut Context<'_>,
    ) -> TimersPage {
        self.distribute(context);
        let at = self.head();
        let bytes_max = self.settings.chunk_bytes_max;
        match &self.kept {
            Some(kept) => kept.committed.timers.page(at, after, limit, bytes_max),
            None => TimersPage {
                position: at,
                timers: Vec::new(),
                next: None,
            },
        }
    }

    /// Sends the turn so far, so that what is read next is exactly what the hubs have been told.
    pub(super) fn distribute(&mut self, context: &mut Context<'_>) {
        if self.log.distributed < self.log.committed {
            self.flush(context);
        }
    }

    /// The epoch that fences and versions are of.
    pub(super) fn epoch(&self) -> Epoch {
        self.log.epoch
    }
}

/// Whether an entry counts as a publish.
pub(super) fn is_publish(entry: &Entry) -> bool {
    entry.kind == EntryKind::Publish
}

/// When a room is woken again that had to close with something due: memory may not be short any more.
const REWAKE_MS: u64 = 60_000;

/// Entries behind a snapshot, of whatever kind, that a replay is let to take; half of what a log without one shows.
const REPLAY_MAX: usize = RECENT_MAX / 2;

/// Entries behind a snapshot that change what is kept: some milliseconds' worth.
const UNSAVED_MAX: usize = 256;
