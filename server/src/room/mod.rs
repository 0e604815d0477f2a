//! A room as its owner runs it: a state machine over an ordered log.
//!
//! The owning shard calls it with one request at a time and sends what it puts into its [`Context`]; it never
//! touches a socket, a clock or a disk. It promises one total order, one effect per operation id, and
//! acknowledgements only for what the journal has reported stored. Who is connected where, and what a slow
//! reader misses, is the business of the hubs: a room answers what they pull.
//!
//! Read on in `asked` (which part a request is for), `membership` (who is here), `log` (what is ordered), `reading` (what is read
//! again), [`operations`] (what took effect already), [`presence`] and [`kind`]. What a room keeps beside its log is [`tables`]:
//! [`state`], [`locks`], [`timers`] and [`departures`], with `changing` (requests), `due` (what happens by itself), `kept`
//! (committed and ahead) and [`snapshot`] (as it is stored); `progress` and [`cursors`] are about who has read how far.

mod asked;
mod changing;
pub mod cursors;
pub mod departures;
mod due;
mod kept;
pub mod kind;
pub mod locks;
mod log;
mod membership;
pub mod operations;
pub mod presence;
mod progress;
mod reading;
pub mod snapshot;
pub mod state;
pub mod tables;
pub mod timers;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{Direction, Durability, Entry, OpId, Reply, Signalled};
use roomful_protocol::id::{Epoch, MemberId, Offset, RoomAlias, RoomId, TenantId};
use roomful_protocol::position::Position;

use crate::clock::Now;
use crate::journal::{
    CompletionResult, Health, HistoryBounds, Journal, JournalError, Outcome, Ticket,
};
use crate::metrics::ShardCounters;
use crate::shard::message::{
    Attachment, Batch, Delta, Message, Origin, Refusal, Request, ShardId, Signals, Turn, Wire,
};
pub use asked::{Asked, Awaited};
use asked::{Settled, storage_full};
use departures::Departure;
use kept::{Answer, Kept};
use kind::RoomKind;
use operations::{OperationBounds, Operations, ProducerKey};
use presence::{Absence, Members};
use progress::Counting;
use tables::{Change, TableBounds};

/// A room.
#[derive(Debug)]
pub struct Room {
    id: RoomId,
    alias: RoomAlias,
    settings: Arc<RoomSettings>,
    /// None until the first proposal since the log was opened.
    kind: Option<Box<dyn RoomKind>>,
    log: Log,
    /// Requests that have waited for the log and are handled now.
    queued: VecDeque<Request>,
    /// Whose request is being handled.
    asking: Option<Asked>,
    operations: Operations,
    members: Members,
    /// Shards with members, by their number.
    downstreams: Vec<Downstream>,
    turn: PendingTurn,
    /// What the room keeps beside its log, once it has kept anything.
    kept: Option<Box<Kept>>,
    /// Who waits for what somebody else has on its way into the journal, and where that will stand.
    waiting: Vec<(Offset, Origin, Settled)>,
    /// Operations whose append failed: the reopened log tells whether they took effect.
    unknown: Vec<(ProducerKey, OpId)>,
    /// Whether the log that is being opened shows operations that nobody here remembers.
    restores: Option<Restores>,
    presence_armed: bool,
    maintenance_armed: bool,
    /// Since when nobody has been here, on the monotonic clock; none while somebody is.
    empty_since_ms: Option<u64>,
    idle_armed: bool,
    /// Whether something is due since it was woken, and the log is not open yet.
    woken: bool,
}

/// What the configuration says of a namespace.
#[derive(Debug, Clone)]
pub struct RoomSettings {
    /// Begins what decides on proposals; one of [`kind::REGISTRY`].
    pub kind: kind::Create,
    /// What an acknowledged publish survives.
    pub durability: Durability,
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
    /// How much is kept beside the log.
    pub tables: TableBounds,
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
    /// Whether memory is short, so that what is kept for convenience goes.
    pub is_short: bool,
    /// Whether somebody who has left something to be written may not any more.
    pub is_revoked: &'a dyn Fn(&TenantId, &Departure) -> bool,
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
    /// Drop the chunks that were kept.
    Chunks,
    /// Try to send to a shard whose mailbox was full.
    Retry,
    /// Try to open the log again.
    Reopen,
    /// Bring about what is due: timers, ends of leases.
    Look,
}

/// What outlives a room that has panicked, so that nobody mistakes the next one for it.
#[derive(Debug, Clone, Copy)]
pub struct Remains {
    /// The last member's number.
    last_member: MemberId,
    /// The last revision of presence.
    revision: u64,
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
    /// What stands in the last snapshot; 0 for none.
    snapshot: Offset,
    /// Time of the last entry; times never go back.
    last_ms: u64,
    /// Between `committed` and `appended`, in order.
    pending: VecDeque<Pending>,
    /// The newest committed entries, so that readers near the head need no journal.
    tail: VecDeque<Arc<Entry>>,
    /// What the entries of `pending` and `tail` take in memory.
    entry_bytes: usize,
    /// Chunks that were read lately: many come back from the same place in one moment.
    chunks: VecDeque<KeptChunk>,
    /// Reads on their way.
    reads: HashMap<Ticket, Read>,
}

/// A chunk, encoded for those who got it.
#[derive(Debug)]
struct KeptChunk {
    batch: Arc<Batch>,
    /// What its entries take, in each of the formats in which they may be asked for.
    bytes: usize,
    /// Where the room stood when it was read: a chunk that reached this far may be short of what has come since.
    head: Offset,
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
    Failed(JournalError),
}

#[derive(Debug)]
struct Pending {
    entry: Arc<Entry>,
    producer: Option<ProducerKey>,
    /// What it changes; none for a publish.
    change: Option<Box<Change>>,
    answer: Answer,
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
    Unread(Box<Counting>),
}

/// How to tell whose operations a log shows.
#[derive(Debug, Clone, Copy)]
struct Restores {
    /// Whether users are anonymous, and so share the scope of producers.
    anonymous: bool,
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
    acks: Vec<(Origin, Settled)>,
    signals: Vec<Signalled>,
    delta: Option<Delta>,
    retry: bool,
}

/// An empty room: itself, its places in the shard's maps and the directory, and its log's.
const ROOM_BYTES: usize = 2_048;

/// How many entries stay beside the journal for readers near the head.
const TAIL_MAX: usize = 64;

impl Room {
    /// A room whose log is still to be opened by [`Room::open`].
    #[must_use]
    pub fn new(id: RoomId, alias: RoomAlias, settings: Arc<RoomSettings>) -> Self {
        let operations = Operations::new(settings.operations);
        Self {
            id,
            alias,
            settings,
            kind: None,
            log: Log::closed(),
            queued: VecDeque::new(),
            asking: None,
            operations,
            members: Members::default(),
            downstreams: Vec::new(),
            turn: PendingTurn::default(),
            kept: None,
            waiting: Vec::new(),
            unknown: Vec::new(),
            restores: None,
            presence_armed: false,
            maintenance_armed: false,
            empty_since_ms: None,
            idle_armed: false,
            woken: false,
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

    /// Which journal its log is in.
    #[must_use]
    pub fn durability(&self) -> Durability {
        self.settings.durability
    }

    /// How many members there are, those in their grace included.
    #[must_use]
    pub fn occupancy(&self) -> u64 {
        self.members.occupancy()
    }

    /// About what it takes in memory, its log not included, in bytes.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        let chunks: usize = self.log.chunks.iter().map(|kept| kept.bytes).sum();
        let kept = self.kept.as_ref().map_or(0, |kept| kept.held_bytes());
        let entries = match self.settings.durability {
            // The journal has the same ones, and counts them.
            Durability::Memory => 0,
            Durability::Local | Durability::Replicated => self.log.entry_bytes,
        };
        let held = self.members.held_bytes() + self.operations.held_bytes();
        (ROOM_BYTES + held + chunks + kept + entries) as u64
    }

    /// Opens the log; until the journal answers, requests wait. Operations are known as far as it shows them; `anonymous` says
    /// whether users are.
    pub fn open(&mut self, anonymous: bool, context: &mut Context<'_>) {
        // A log in memory begins with its room: that it is empty says nothing of what took effect in an earlier one.
        if self.settings.durability != Durability::Memory {
            self.restores = Some(Restores { anonymous });
        }
        self.ask_for_log(context);
    }

    pub(super) fn ask_for_log(&mut self, context: &mut Context<'_>) {
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

    /// As [`Room::open`], in the place of a room that has panicked.
    pub fn open_again(&mut self, remains: Remains, anonymous: bool, context: &mut Context<'_>) {
        self.members = Members::after(remains.last_member, remains.revision);
        self.restores = Some(Restores { anonymous });
        self.ask_for_log(context);
        self.watch_if_empty(context);
    }

    /// Who waits for a reply of this room, each once, and what outlives it. It reads and computes nothing, since the room
    /// may have panicked.
    #[must_use]
    pub fn remains(&self) -> (Vec<Asked>, Remains) {
        let mut asked: Vec<_> = self.asking.into_iter().collect();
        if let LogState::Opening { waiting, .. } = &self.log.state {
            asked.extend(waiting.iter().filter_map(Asked::of));
        }
        asked.extend(self.queued.iter().filter_map(Asked::of));
        let pending = self.log.pending.iter().map(|pending| pending.to);
        let again = self.waiting.iter().map(|(_, to, _)| *to);
        let stored = self.turn.acks.iter().map(|(to, _)| *to);
        let kept = self.kept.iter();
        let registers = kept.flat_map(|kept| kept.registers.waiting());
        let all = pending.chain(again).chain(stored).chain(registers);
        asked.extend(all.map(|to| Asked {
            to,
            awaited: Awaited::Published,
        }));
        let mut reads: Vec<_> = self.log.reads.iter().collect();
        reads.sort_unstable_by_key(|(ticket, _)| **ticket);
        asked.extend(reads.into_iter().filter_map(|(_, read)| {
            let (to, awaited) = (read.reply_to()?, Awaited::Other);
            Some(Asked { to, awaited })
        }));
        let mut told = HashSet::new();
        asked.retain(|asked| asked.to.request.is_some() && told.insert(asked.to));
        let remains = Remains {
            last_member: self.members.last_number(),
            revision: self.members.revision(),
        };
        (asked, remains)
    }

    /// Handles one request.
    pub fn handle(&mut self, request: Request, context: &mut Context<'_>) {
        self.asking = Asked::of(&request);
        self.decide(request, context);
        self.asking = None;
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
                } else if let Some(stored) = self
                    .kept
                    .as_mut()
                    .and_then(|kept| kept.registers.remove(ticket))
                {
                    self.cursor_stored(outcome, stored, context);
                }
            }
            CompletionResult::Read(outcome) => {
                if let Some(read) = self.log.reads.remove(&ticket) {
                    self.read_done(read, outcome, context);
                }
            }
        }
    }

    /// Goes by other bounds from now on, if they are others.
    pub fn renew(&mut self, settings: Arc<RoomSettings>, journal: &mut dyn Journal) {
        if Arc::ptr_eq(&self.settings, &settings) {
            return;
        }
        if settings.durability != self.settings.durability {
            // It is not in the other journal. Its namespace went and came again; it has what it began with until it closes.
            return;
        }
        self.operations.set_bounds(settings.operations);
        journal.set_bounds(&self.id, settings.history);
        self.settings = settings;
    }

    /// Handles a timer.
    pub fn timer(&mut self, timer: RoomTimer, context: &mut Context<'_>) -> After {
        match timer {
            RoomTimer::Presence => {
                self.presence_armed = false;
                self.take_delta();
                // What one delta could not hold.
                self.presence_changed(context);
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
            RoomTimer::Chunks => self.log.chunks.clear(),
            RoomTimer::Retry => self.turn.retry = true,
            RoomTimer::Look => self.looked(context),
            RoomTimer::Reopen if self.is_given_up() => {
                context.journal.close(&self.id);
                return After::Close;
            }
            RoomTimer::Reopen => {
                self.log = Log::closed();
                self.ask_for_log(context);
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
        if self.settings.durability != Durability::Memory && self.is_replay_long() {
            self.store_snapshot(context);
        }
        let turn = std::mem::take(&mut self.turn);
        let publishers = turn
            .acks
            .iter()
            .map(|(to, _)| (to.shard, to.connection))
            .collect();
        for (to, settled) in turn.acks {
            context.reply(to, settled.into());
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
            publishers,
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

    pub(super) fn head(&self) -> Position {
        Position::new(self.log.epoch, self.log.distributed)
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
            snapshot: Offset(0),
            last_ms: 0,
            pending: VecDeque::new(),
            tail: VecDeque::new(),
            entry_bytes: 0,
            chunks: VecDeque::new(),
            reads: HashMap::new(),
        }
    }
}

impl Read {
    /// Whose request it is for.
    fn reply_to(&self) -> Option<Origin> {
        match self {
            Self::History { to, .. } => Some(*to),
            Self::Unread(counting) => Some(counting.to),
            Self::Pull { .. } => None,
        }
    }
}

impl Context<'_> {
    /// Whether an entry would be stored.
    fn check_health(&self) -> Result<(), Refusal> {
        match self.journal.health() {
            Health::Good => Ok(()),
            Health::Full => Err(storage_full()),
            Health::Failed => {
                let text = "the storage failed; nothing is stored until the server is restarted";
                Err(Refusal::new(ErrorCode::StorageFailed, text))
            }
        }
    }

    fn send(&mut self, to: ShardId, message: Message) {
        self.out.push((to, message));
    }

    fn reply(&mut self, to: Origin, outcome: Result<Reply, Refusal>) {
        if to.request.is_some() {
            self.out.push((to.shard, Message::Reply { to, outcome }));
        }
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

const UNKNOWN_TEXT: &str =
    "the storage failed, so the outcome is unknown; send it again with the same op id";

/// Least time between two clean-ups of a room: they are bookkeeping, and a second late is early enough.
const MAINTENANCE_MS: u64 = 1_000;

/// Most time between two clean-ups of a room that has one before it: how late a clock that was set forward is noticed.
const MAINTENANCE_MAX_MS: u64 = 3_600_000;
