//! How often the slow paths were taken: a simulation that never takes them proves nothing.

use std::sync::Arc;

use roomful_protocol::error::CloseCode;
use roomful_server::metrics::{Label as _, MemoryShed, ShardCounters};

/// Counts over seeds.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub events: u64,
    pub catch_ups: u64,
    pub resets: u64,
    pub duplicates: u64,
    pub conflated: u64,
    pub failures: u64,
    pub mailbox_full: u64,
    pub cut_turns: u64,
    pub resumed: u64,
    pub expired: u64,
    pub slow: u64,
    pub heartbeats: u64,
    pub rate_limited: u64,
    pub restarts: u64,
    pub drains: u64,
    /// Times at which nothing was under way and everybody who watches had to know the same.
    pub lulls: u64,
    /// Connections that were refused, and that were closed, because memory was short.
    pub turned_away: u64,
    pub shed: u64,
    /// Requests that were refused for the same reason.
    pub unaffordable: u64,
    /// Changes of state that clients were told of, and writes that were refused for a version and for a fence.
    pub changes: u64,
    pub conflicts: u64,
    pub stale_fences: u64,
    /// What went wrong with disks, and after how many ends of a process what was not synced was lost.
    pub disk_faults: u64,
    pub power_cuts: u64,
    /// Requests that were refused because a disk was full or had failed, and acks of rooms in memory meanwhile.
    pub storage_refusals: u64,
    pub went_on: u64,
    /// The most bytes that ever waited for a connection.
    pub outbox_peak: usize,
}

impl Tally {
    /// What the shards of one life of the process have counted.
    pub fn of(counters: &[Arc<ShardCounters>]) -> Self {
        let sum =
            |of: fn(&ShardCounters) -> u64| counters.iter().map(|counters| of(counters)).sum();
        let closed = |code: CloseCode| {
            counters
                .iter()
                .map(|counters| counters.connections_closed.of(Some(code)).get())
                .sum()
        };
        Self {
            catch_ups: sum(|counters| counters.catch_ups.get()),
            resets: sum(|counters| counters.resets.get()),
            duplicates: sum(|counters| counters.publish_duplicates.get()),
            conflated: sum(|counters| counters.signals_conflated.get()),
            failures: sum(|counters| counters.journal_failures.get()),
            mailbox_full: sum(|counters| counters.mailbox_full.get()),
            cut_turns: sum(|counters| counters.turn_over_budget.get()),
            resumed: sum(|counters| counters.sessions_resumed.get()),
            rate_limited: sum(|counters| {
                counters
                    .errors
                    .of(roomful_protocol::error::ErrorCode::RateLimited)
                    .get()
            }),
            unaffordable: MemoryShed::all()
                .into_iter()
                .map(|shed| {
                    counters
                        .iter()
                        .map(|of| of.memory_sheds.of(shed).get())
                        .sum::<u64>()
                })
                .sum(),
            expired: closed(CloseCode::TokenExpired),
            slow: closed(CloseCode::SlowConsumer),
            heartbeats: closed(CloseCode::HeartbeatTimeout),
            ..Self::default()
        }
    }

    /// What was counted, by name.
    pub fn counts(&self) -> [(&'static str, u64); 26] {
        [
            ("events", self.events),
            ("catch-ups", self.catch_ups),
            ("resets", self.resets),
            ("duplicates", self.duplicates),
            ("conflated signals", self.conflated),
            ("journal failures", self.failures),
            ("full mailboxes", self.mailbox_full),
            ("turns cut short", self.cut_turns),
            ("resumed sessions", self.resumed),
            ("tokens that ended", self.expired),
            ("slow readers closed", self.slow),
            ("heartbeats missed", self.heartbeats),
            ("rates exceeded", self.rate_limited),
            ("restarts", self.restarts),
            ("drains", self.drains),
            ("lulls", self.lulls),
            ("turned away for memory", self.turned_away),
            ("shed for memory", self.shed),
            ("refused for memory", self.unaffordable),
            ("changes of state", self.changes),
            ("conflicts", self.conflicts),
            ("stale fences", self.stale_fences),
            ("faults of disks", self.disk_faults),
            ("power cuts", self.power_cuts),
            ("refused for the storage", self.storage_refusals),
            ("acks beside a failed disk", self.went_on),
        ]
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.events += other.events;
        self.catch_ups += other.catch_ups;
        self.resets += other.resets;
        self.duplicates += other.duplicates;
        self.conflated += other.conflated;
        self.failures += other.failures;
        self.mailbox_full += other.mailbox_full;
        self.cut_turns += other.cut_turns;
        self.resumed += other.resumed;
        self.expired += other.expired;
        self.slow += other.slow;
        self.heartbeats += other.heartbeats;
        self.rate_limited += other.rate_limited;
        self.restarts += other.restarts;
        self.drains += other.drains;
        self.lulls += other.lulls;
        self.turned_away += other.turned_away;
        self.shed += other.shed;
        self.unaffordable += other.unaffordable;
        self.changes += other.changes;
        self.conflicts += other.conflicts;
        self.stale_fences += other.stale_fences;
        self.disk_faults += other.disk_faults;
        self.power_cuts += other.power_cuts;
        self.storage_refusals += other.storage_refusals;
        self.went_on += other.went_on;
        self.outbox_peak = self.outbox_peak.max(other.outbox_peak);
    }
}
