//! Settings of which nobody meets a bound, for shards without I/O.

use std::collections::BTreeMap;
use std::sync::Arc;

use roomful_protocol::frame::Durability;
use roomful_server::config::SecretKey;
use roomful_server::connection::{Rate, Rates};
use roomful_server::directory::Directory;
use roomful_server::journal::HistoryBounds;
use roomful_server::memory::Memory;
use roomful_server::room::operations::OperationBounds;
use roomful_server::room::tables::TableBounds;
use roomful_server::room::{RoomSettings, kind};
use roomful_server::session::index::Sessions;
use roomful_server::session::token::ResumeKey;
use roomful_server::session::users::{UserLimits, Users};
use roomful_server::shard::{ShardSettings, Shared};

/// Rooms in memory.
pub(crate) fn room() -> RoomSettings {
    RoomSettings {
        kind: kind::REGISTRY[0].1,
        history: HistoryBounds {
            entries_max: 64,
            bytes_max: 1 << 20,
            age_max_ms: 3_600_000,
        },
        operations: OperationBounds {
            results_max: 64,
            window_ms: 60_000,
            absent_max: 100,
        },
        durability: Durability::Memory,
        presence_grace_ms: 10_000,
        presence_delta_ms: 100,
        presence_value_bytes_max: 1_000,
        members_max: 100,
        chunk_entries_max: 256,
        chunk_bytes_max: 64 * 1024,
        empty_ms: 60_000,
        tables: TableBounds::default(),
    }
}

/// A shard that lets anybody in, and has rooms of one namespace.
pub(crate) fn shard(namespace: &str, room: RoomSettings) -> ShardSettings {
    let any = Rate {
        per_s: 1e7,
        burst: 10_000_000,
    };
    ShardSettings {
        namespaces: BTreeMap::from([(namespace.to_owned(), Arc::new(room))]),
        other_namespaces: None,
        anonymous: true,
        resume_key: ResumeKey::new(&SecretKey::new([7; 32])),
        expiry_warning_ms: 60_000,
        session_retention_ms: 60_000,
        hello_timeout_ms: 10_000,
        hello_bytes_max: 65_536,
        heartbeat_ms: 25_000,
        message_bytes_max: 65_536,
        payload_bytes_max: 61_440,
        rooms_max: 8,
        requests_max: 256,
        rates: Rates {
            errors: any,
            messages: any,
            joins: any,
            bytes: any,
            pages: any,
            control: any,
            refusals: any,
        },
        outbox_bytes_max: 1 << 20,
        outbox_messages_max: 1_000,
        write_stall_ms: 10_000,
        write_progress_bytes_min: 1,
        user: UserLimits {
            connections_max: u32::MAX,
            memberships_max: u32::MAX,
            messages: any,
            bytes: any,
            joins: any,
            rooms: any,
        },
        members_per_look: 64,
        items_per_look: 16,
        waiting_turns_max: 64,
    }
}

/// What so many shards share, in a process that began a minute ago.
pub(crate) fn shared(shards: u16, settings: ShardSettings, unix_ms: u64) -> Shared {
    Shared {
        directory: Directory::new(shards, 100),
        sessions: Sessions::new(unix_ms - 60_000, 60_000),
        users: Users::default(),
        settings: Arc::new(settings),
        memory: Memory::unlimited(shards.into()),
    }
}
