//! One budget for everything that peers can make the process hold.
//!
//! Each shard counts what it holds in its own counters; a watcher adds them up several times a second, says how full
//! the budget is ([`Level`]), and has the heaviest connections closed when it is over the hard mark. Whoever takes
//! something in asks first: the handshake for a place, a shard for what stays. Between two sums a shard goes on only
//! as far as its share of what was left ([`Memory::is_over`]), so that nothing overshoots, however fast it comes.
//! What a thing weighs is measured, and errs on the heavy side; what the kernel holds for sockets is not in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::metrics::{Label, MemoryKind, Metrics, ShardCounters};
use crate::shard::message::ShardId;
use crate::tasks::Tasks;

/// The budget; a cheap handle.
#[derive(Debug, Clone)]
pub struct Memory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    marks: Marks,
    /// Of the last sum.
    level: AtomicU8,
    /// What each kind took in the last sum, by its index.
    kinds: Vec<AtomicU64>,
    /// How far each shard may go until the next one.
    shares: Vec<Share>,
}

#[derive(Debug, Default)]
struct Share {
    all: AtomicU64,
    logs: AtomicU64,
}

/// Where the levels begin, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// The budget itself.
    pub budget: u64,
    /// Nobody new from here on; rooms keep no chunks, and close soon after their last member has left.
    pub soft: u64,
    /// From here on the heaviest connections are closed, and what would stay is refused.
    pub hard: u64,
}

/// How full the budget is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// There is room.
    Normal,
    /// Above the soft mark.
    Soft,
    /// Above the hard mark.
    Hard,
}

/// What is counted elsewhere than in the shards.
#[derive(Debug, Clone, Copy, Default)]
pub struct Elsewhere {
    /// The process before anybody came.
    pub process_bytes: u64,
    /// HTTP connections, in bytes.
    pub http_bytes: u64,
    /// WebSocket connections over TLS.
    pub tls_connections: u64,
    /// Encrypted bytes that their sockets have not taken.
    pub tls_unsent_bytes: u64,
    /// Bytes in the mailboxes.
    pub mailbox_bytes: u64,
}

impl Elsewhere {
    /// What HTTP and TLS hold now, where an HTTP connection takes so many bytes.
    #[must_use]
    pub fn now(metrics: &Metrics, tasks: &Tasks, http_connection_bytes: u64) -> Self {
        let (tls_connections, tls_unsent_bytes) = metrics.tls_held();
        Self {
            http_bytes: tasks.live_as("http_connection") as u64 * http_connection_bytes,
            tls_connections,
            tls_unsent_bytes,
            ..Self::default()
        }
    }
}

impl Marks {
    /// Marks at these percentages of a budget.
    #[must_use]
    pub const fn new(budget: u64, soft_percent: u64, hard_percent: u64) -> Self {
        Self {
            budget,
            soft: budget / 100 * soft_percent,
            hard: budget / 100 * hard_percent,
        }
    }

    /// The logs of rooms get half of the budget, so that what they hold leaves room for everything else.
    const fn logs(self) -> u64 {
        self.budget / 2
    }

    /// What logs may still take above the hard mark.
    const fn reserve(self) -> u64 {
        self.budget / 20
    }

    const fn level(self, used: u64) -> Level {
        if used >= self.hard {
            Level::Hard
        } else if used >= self.soft {
            Level::Soft
        } else {
            Level::Normal
        }
    }
}

impl Memory {
    /// A budget for this many shards, of which nothing is used.
    #[must_use]
    pub fn new(marks: Marks, shards: usize) -> Self {
        let shares = std::iter::repeat_with(Share::default).take(shards);
        let kinds = MemoryKind::all().into_iter().map(|_kind| AtomicU64::new(0));
        let memory = Self {
            inner: Arc::new(Inner {
                marks,
                level: AtomicU8::new(0),
                kinds: kinds.collect(),
                shares: shares.collect(),
            }),
        };
        memory.grant(marks.hard, marks.logs(), &vec![(0, 0); shards]);
        memory
    }

    /// A budget that is never used up.
    #[must_use]
    pub fn unlimited(shards: usize) -> Self {
        Self::new(Marks::new(u64::MAX / 2, 80, 90), shards)
    }

    /// The marks.
    #[must_use]
    pub fn marks(&self) -> Marks {
        self.inner.marks
    }

    /// How full the budget was at the last sum.
    #[must_use]
    pub fn level(&self) -> Level {
        match self.inner.level.load(Ordering::Relaxed) {
            0 => Level::Normal,
            1 => Level::Soft,
            _ => Level::Hard,
        }
    }

    /// What a kind took at the last sum, in bytes.
    #[must_use]
    pub fn of(&self, kind: MemoryKind) -> u64 {
        self.inner.kinds[kind.index()].load(Ordering::Relaxed)
    }

    /// Whether a shard should take in nothing that stays: the budget is over its hard mark, or the shard has used
    /// up its share of what was left at the last sum.
    #[must_use]
    pub fn is_over(&self, shard: ShardId, counters: &ShardCounters) -> bool {
        self.level() == Level::Hard
            || counters.held_bytes() > self.share(shard).all.load(Ordering::Relaxed)
    }

    /// Whether the logs have their part of the budget, and this shard's its share of what was left.
    #[must_use]
    pub fn is_log_over(&self, shard: ShardId, counters: &ShardCounters) -> bool {
        counters.log_bytes.get() > self.share(shard).logs.load(Ordering::Relaxed)
    }

    /// Adds everything up, and says how many bytes each shard should get rid of, by its index.
    pub fn sum(&self, shards: &[Arc<ShardCounters>], elsewhere: Elsewhere) -> Vec<u64> {
        let mut used = 0;
        for kind in MemoryKind::all() {
            let bytes = match kind {
                MemoryKind::Process => elsewhere.process_bytes,
                MemoryKind::Http => elsewhere.http_bytes,
                MemoryKind::Tls => {
                    elsewhere.tls_connections * TLS_CONNECTION_BYTES + elsewhere.tls_unsent_bytes
                }
                MemoryKind::Mailboxes => elsewhere.mailbox_bytes,
                kind => shards.iter().map(|shard| shard.bytes_of(kind)).sum(),
            };
            self.inner.kinds[kind.index()].store(bytes, Ordering::Relaxed);
            used += bytes;
        }
        let marks = self.inner.marks;
        self.inner
            .level
            .store(marks.level(used) as u8, Ordering::Relaxed);
        let held: Vec<_> = shards
            .iter()
            .map(|shard| (shard.held_bytes(), shard.log_bytes.get()))
            .collect();
        let logs: u64 = held.iter().map(|(_, logs)| logs).sum();
        // Small rooms go on publishing for a while where others have filled the budget.
        let left_for_logs = (marks.hard + marks.reserve()).saturating_sub(used);
        self.grant(
            marks.hard.saturating_sub(used),
            left_for_logs.min(marks.logs().saturating_sub(logs)),
            &held,
        );
        to_shed(marks, used, shards)
    }

    /// Gives each shard its share of what is left.
    fn grant(&self, left: u64, left_for_logs: u64, held: &[(u64, u64)]) {
        let count = self.inner.shares.len().max(1) as u64;
        for (share, (all, logs)) in self.inner.shares.iter().zip(held) {
            share.all.store(all + left / count, Ordering::Relaxed);
            let logs = logs + left_for_logs / count;
            share.logs.store(logs, Ordering::Relaxed);
        }
    }

    fn share(&self, shard: ShardId) -> &Share {
        &self.inner.shares[usize::from(shard.0)]
    }
}

/// How much each shard should let go of: as much as brings the whole to the middle between the marks, from each as
/// much as it has of what can be let go.
fn to_shed(marks: Marks, used: u64, shards: &[Arc<ShardCounters>]) -> Vec<u64> {
    let sheddable =
        |shard: &Arc<ShardCounters>| shard.outbox_bytes.get() + shard.bytes_of(MemoryKind::Input);
    let all: u64 = shards.iter().map(sheddable).sum();
    let excess = if used >= marks.hard {
        used - u64::midpoint(marks.soft, marks.hard)
    } else {
        0
    };
    shards
        .iter()
        .map(|shard| {
            let part = u128::from(excess) * u128::from(sheddable(shard)) / u128::from(all.max(1));
            u64::try_from(part).unwrap_or(u64::MAX)
        })
        .collect()
}

impl ShardCounters {
    /// Everything that the shard holds, in bytes.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        IN_SHARDS.iter().map(|kind| self.bytes_of(*kind)).sum()
    }

    /// What the shard holds of a kind, in bytes.
    #[must_use]
    pub fn bytes_of(&self, kind: MemoryKind) -> u64 {
        match kind {
            MemoryKind::Connections => {
                self.connections.get() * CONNECTION_BYTES
                    + self.subscribers.get() * SUBSCRIBER_BYTES
            }
            MemoryKind::Sessions => self.sessions.get() * SESSION_BYTES,
            MemoryKind::Input => self.input_bytes.get() + self.backlog_bytes.get(),
            MemoryKind::Outboxes => {
                // They come and go in all sizes, and the allocator leaves gaps between them: a quarter, measured.
                (self.outbox_bytes.get() + self.pages_awaited.get() * PAGE_BYTES) * 5 / 4
            }
            MemoryKind::Rooms => self.room_bytes.get(),
            MemoryKind::Logs => self.log_bytes.get(),
            MemoryKind::Process | MemoryKind::Http | MemoryKind::Tls | MemoryKind::Mailboxes => 0,
        }
    }
}

/// What a budget of 0 stands for: three quarters of what the process may have, by its cgroup or the machine. The rest
/// is for what the kernel holds for sockets, and for the allocator's gaps.
#[must_use]
pub fn budget_of_system() -> u64 {
    let limits = [
        system::number("/sys/fs/cgroup/memory.max"),
        system::number("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        system::machine_bytes(),
    ];
    let least = limits.into_iter().flatten().min();
    least.map_or(UNKNOWN_BUDGET_BYTES, |bytes| bytes / 4 * 3)
}

/// What the system says about memory.
mod system {
    /// The number in a file; none where there is no such file, or no limit.
    pub(super) fn number(path: &str) -> Option<u64> {
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    }

    /// All of the machine's memory.
    pub(super) fn machine_bytes() -> Option<u64> {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kibibytes * 1024)
    }
}

/// The kinds that shards hold.
const IN_SHARDS: [MemoryKind; 6] = [
    MemoryKind::Connections,
    MemoryKind::Sessions,
    MemoryKind::Input,
    MemoryKind::Outboxes,
    MemoryKind::Rooms,
    MemoryKind::Logs,
];

/// A socket, what the shard knows of it, and its timers. With a session, a membership and a member it comes to what
/// docs/performance.md measures for an idle connection.
const CONNECTION_BYTES: u64 = 832;

/// A membership in its hub.
const SUBSCRIBER_BYTES: u64 = 128;

/// A page that is on its way to its connection: a chunk at its default length.
const PAGE_BYTES: u64 = 64 * 1024;

/// A session in the index, with its timer.
const SESSION_BYTES: u64 = 256;

/// An HTTP connection: its task, and the engine with its buffers.
pub const HTTP_CONNECTION_BYTES: u64 = 30 * 1024;

/// What TLS keeps for a connection: its state with the keys of both directions, and a buffer of 4 KiB for what comes next. What a
/// longer record needs until it has come whole is counted as input, and one that has not gone by its length.
pub const TLS_CONNECTION_BYTES: u64 = 10 * 1024;

/// Where the system doesn't tell.
const UNKNOWN_BUDGET_BYTES: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn shards() -> Vec<Arc<ShardCounters>> {
        vec![Arc::default(), Arc::default()]
    }

    fn memory() -> Memory {
        Memory::new(Marks::new(100 * MIB, 80, 90), 2)
    }

    /// The level follows the sum, up and down.
    #[test]
    fn the_level_follows_what_is_held() {
        let (memory, shards) = (memory(), shards());
        for (mebibytes, level) in [
            (79, Level::Normal),
            (81, Level::Soft),
            (91, Level::Hard),
            (85, Level::Soft),
            (10, Level::Normal),
        ] {
            shards[0].input_bytes.set(mebibytes * MIB / 2);
            let elsewhere = Elsewhere {
                process_bytes: mebibytes * MIB / 2,
                ..Elsewhere::default()
            };
            memory.sum(&shards, elsewhere);
            assert_eq!(memory.level(), level, "{mebibytes}");
        }
        assert_eq!(memory.of(MemoryKind::Process), 5 * MIB);
    }

    /// Between two sums a shard may take half of what two of them have left, and not more.
    #[test]
    fn a_shard_stops_at_its_share_before_the_next_sum() {
        let (memory, shards) = (memory(), shards());
        shards[0].input_bytes.set(40 * MIB);
        memory.sum(&shards, Elsewhere::default());
        let (first, second) = (ShardId(0), ShardId(1));
        shards[0].input_bytes.set(65 * MIB);
        assert!(!memory.is_over(first, &shards[0]));
        shards[0].input_bytes.set(66 * MIB);
        assert!(memory.is_over(first, &shards[0]));
        assert!(!memory.is_over(second, &shards[1]));
        memory.sum(&shards, Elsewhere::default());
        assert!(!memory.is_over(first, &shards[0]), "there is still room");
    }

    /// Where others fill the budget, logs may still take a twentieth of it.
    #[test]
    fn logs_have_a_reserve_above_the_hard_mark() {
        let (memory, shards) = (memory(), shards());
        shards[0].room_bytes.set(90 * MIB);
        shards[1].log_bytes.set(MIB);
        memory.sum(&shards, Elsewhere::default());
        assert!(memory.is_over(ShardId(1), &shards[1]));
        shards[1].log_bytes.set(3 * MIB);
        assert!(!memory.is_log_over(ShardId(1), &shards[1]));
        shards[1].log_bytes.set(4 * MIB);
        assert!(memory.is_log_over(ShardId(1), &shards[1]));
    }

    /// Logs stop at their half.
    #[test]
    fn logs_stop_at_half_of_the_budget() {
        let (memory, shards) = (memory(), shards());
        shards[0].log_bytes.set(30 * MIB);
        memory.sum(&shards, Elsewhere::default());
        assert!(!memory.is_log_over(ShardId(0), &shards[0]));
        shards[0].log_bytes.set(41 * MIB);
        assert!(memory.is_log_over(ShardId(0), &shards[0]));
        assert!(!memory.is_over(ShardId(0), &shards[0]));
    }

    /// What is over is shed from each shard in proportion to what it can shed, and nothing below the mark.
    #[test]
    fn each_shard_sheds_its_part() {
        let (memory, shards) = (memory(), shards());
        // With the allocator's gaps that is 60.
        shards[0].outbox_bytes.set(48 * MIB);
        shards[1].input_bytes.set(24 * MIB);
        let process = |mebibytes| Elsewhere {
            process_bytes: mebibytes * MIB,
            ..Elsewhere::default()
        };
        assert_eq!(memory.sum(&shards, process(3)), [0, 0]);
        assert_eq!(memory.sum(&shards, process(7)), [4 * MIB, 2 * MIB]);
    }

    /// A machine has memory.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_system_tells_how_much_there_is() {
        assert!(budget_of_system() > 64 * MIB);
    }
}
