//! What a seed makes of a run: how many of what there are, and what goes wrong how often.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::RngExt;
use rand::rngs::StdRng;
use roomful_protocol::frame::Durability;
use roomful_server::config::SecretKey;
use roomful_server::connection::{Rate, Rates};
use roomful_server::journal::HistoryBounds;
use roomful_server::memory::Marks;
use roomful_server::room::operations::OperationBounds;
use roomful_server::room::tables::TableBounds;
use roomful_server::room::{RoomSettings, kind};
use roomful_server::session::token::ResumeKey;
use roomful_server::session::users::UserLimits;
use roomful_server::shard::ShardSettings;

use crate::journal::Faults;

/// Everything that is drawn before a run begins; printed when it fails.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub shards: u16,
    pub clients: usize,
    pub steps: usize,
    pub journal: Faults,
    /// Messages that a mailbox has room for, beyond those that must get through.
    pub mailbox_max: usize,
    /// Bytes that the kernel holds for a connection: at least and at most.
    pub kernel_bytes: (usize, usize),
    /// How long a token is good, in milliseconds; none: nobody needs one.
    pub token_ms: Option<u64>,
    /// Process kills in 10,000 steps.
    pub kills: u32,
    /// Drains, each with a restart behind it, in 10,000 steps.
    pub drains: u32,
    /// Clients' steps in which a connection is cut, in percent.
    pub cuts: u32,
    /// Clients' steps in which one stops to read, in percent.
    pub stalls: u32,
    /// Cuts that lose what was on its way to the server, in percent.
    pub cuts_lose: u32,
    /// How often the memory becomes short, or is enough again, in 10,000 steps.
    pub shortages: u32,
    /// Turns that are cut short at a look at the clock, in percent.
    pub spent: u32,
    pub heartbeat_ms: u64,
    /// Frames a second and at once; none: as many as they like.
    pub rate: Option<(u32, u32)>,
    pub requests_max: u32,
    pub chunk_entries_max: usize,
    pub history_entries_max: usize,
    pub results_max: usize,
    pub waiting_turns_max: usize,
    /// Whether rooms are on disk, beside some in memory.
    pub durable: bool,
    /// Faults of the disk in 10,000 steps.
    pub disk_faults: u32,
    /// Whether clients write state and take locks.
    pub keyed: bool,
}

impl Options {
    pub fn draw(random: &mut StdRng) -> Self {
        let journal = match random.random_range(0..4) {
            0 => Faults { late: 0, fail: 0 },
            1 => Faults { late: 60, fail: 0 },
            _ => Faults { late: 40, fail: 4 },
        };
        let small = [(200, 3_000), (200, 600), (2_000, 20_000)];
        Self {
            shards: random.random_range(1..4),
            clients: random.random_range(4..9),
            steps: random.random_range(1_500..3_500),
            journal,
            mailbox_max: [1, 3, 3, 50][random.random_range(0..4)],
            kernel_bytes: small[random.random_range(0..3)],
            token_ms: one_of(random, &[None, None, Some(6_000), Some(25_000)]),
            kills: one_of(random, &[0, 0, 4, 15]),
            drains: one_of(random, &[0, 0, 0, 8]),
            cuts: one_of(random, &[1, 4, 8]),
            stalls: one_of(random, &[0, 3, 6]),
            cuts_lose: one_of(random, &[0, 30, 100]),
            shortages: one_of(random, &[0, 0, 60]),
            spent: one_of(random, &[0, 12, 50, 100]),
            heartbeat_ms: one_of(random, &[2_000, 600_000]),
            rate: one_of(random, &[None, None, Some((3, 8))]),
            requests_max: one_of(random, &[2, 8, 1_000]),
            chunk_entries_max: one_of(random, &[1, 5, 5, 40]),
            history_entries_max: one_of(random, &[4, 12, 12, 100]),
            results_max: one_of(random, &[25, 64]),
            waiting_turns_max: one_of(random, &[2, 3, 3, 16]),
            durable: false,
            disk_faults: one_of(random, &[0, 30, 100]),
            keyed: false,
        }
    }

    pub fn settings(&self) -> ShardSettings {
        let room = RoomSettings {
            kind: kind::REGISTRY[0].1,
            history: HistoryBounds {
                entries_max: self.history_entries_max,
                bytes_max: 1 << 20,
                age_max_ms: HISTORY_AGE_MS,
            },
            operations: OperationBounds {
                results_max: self.results_max,
                window_ms: 60_000,
                absent_max: 100,
            },
            durability: match self.durable {
                true => Durability::Local,
                false => Durability::Memory,
            },
            presence_grace_ms: GRACE_MS,
            presence_delta_ms: 100,
            presence_value_bytes_max: 1_000,
            members_max: 100,
            chunk_entries_max: self.chunk_entries_max,
            chunk_bytes_max: 700,
            empty_ms: RETENTION_MS,
            tables: TableBounds::default(),
        };
        let in_memory = RoomSettings {
            durability: Durability::Memory,
            ..room.clone()
        };
        let any = Rate {
            per_s: 1e6,
            burst: 1_000_000,
        };
        let messages = self.rate.map_or(any, |(per_s, burst)| {
            Rate::per_second(per_s.into(), burst.into())
        });
        ShardSettings {
            namespaces: BTreeMap::from([
                ("chat".to_owned(), Arc::new(room)),
                ("game".to_owned(), Arc::new(in_memory)),
            ]),
            other_namespaces: None,
            anonymous: self.token_ms.is_none(),
            resume_key: ResumeKey::new(&SecretKey::new([7; 32])),
            expiry_warning_ms: 4_000,
            session_retention_ms: RETENTION_MS,
            hello_timeout_ms: 60_000,
            hello_bytes_max: 65_536,
            heartbeat_ms: self.heartbeat_ms,
            message_bytes_max: 65_536,
            payload_bytes_max: 61_440,
            rooms_max: 8,
            requests_max: self.requests_max,
            rates: Rates {
                errors: any,
                messages,
                joins: any,
                bytes: any,
                pages: any,
                control: any,
                refusals: any,
            },
            outbox_bytes_max: OUTBOX_BYTES_MAX,
            outbox_messages_max: OUTBOX_MESSAGES_MAX,
            write_stall_ms: 4_000,
            write_progress_bytes_min: 1,
            user: UserLimits {
                connections_max: u32::MAX,
                memberships_max: u32::MAX,
                messages: any,
                bytes: any,
                joins: any,
                rooms: any,
            },
            members_per_look: 1,
            items_per_look: 1,
            waiting_turns_max: self.waiting_turns_max,
        }
    }
}

fn one_of<T: Copy>(random: &mut StdRng, from: &[T]) -> T {
    from[random.random_range(0..from.len())]
}

/// So close together that what the clients hold makes the difference.
pub const MARKS: Marks = Marks {
    budget: 1_000_000,
    soft: 898_000,
    hard: 900_000,
};

/// How long a member may be away, in milliseconds.
pub const GRACE_MS: u64 = 3_000;
pub const RETENTION_MS: u64 = 10_000;
pub const HISTORY_AGE_MS: u64 = 3_600_000;
pub const OUTBOX_BYTES_MAX: usize = 5_000;
pub const OUTBOX_MESSAGES_MAX: usize = 200;
pub const START_UNIX_MS: u64 = 1_800_000_000_000;
/// Publishes that a client has under way.
pub const UNACKED_MAX: usize = 20;
