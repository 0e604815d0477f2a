//! What the configuration says about the rooms of a namespace.

use crate::config::{Config, NamespaceConfig};
use crate::journal::HistoryBounds;
use crate::room::locks::LockBounds;
use crate::room::operations::OperationBounds;
use crate::room::state::StateBounds;
use crate::room::tables::TableBounds;
use crate::room::timers::TimerBounds;
use crate::room::{RoomSettings, kind};

/// What its rooms are like.
pub(super) fn room_settings(namespace: &NamespaceConfig, config: &Config) -> RoomSettings {
    RoomSettings {
        kind: kind::named(namespace.kind.name())
            .expect("a configuration names kinds of the registry"),
        durability: namespace.durability,
        history: HistoryBounds {
            entries_max: namespace.history_entries_max,
            bytes_max: namespace.history_bytes_max,
            age_max_ms: namespace.history_age_max_ms,
        },
        operations: OperationBounds {
            results_max: namespace.op_results_max,
            window_ms: namespace.op_window_ms,
            absent_max: namespace.members_max,
        },
        presence_grace_ms: namespace.presence_grace_ms,
        presence_delta_ms: namespace.presence_delta_ms,
        presence_value_bytes_max: namespace.presence_value_bytes_max,
        members_max: namespace.members_max,
        chunk_entries_max: namespace.catch_up_entries_max,
        chunk_bytes_max: namespace.catch_up_bytes_max,
        empty_ms: config.session.retention_ms,
        tables: table_bounds(namespace),
    }
}

fn table_bounds(namespace: &NamespaceConfig) -> TableBounds {
    TableBounds {
        state: StateBounds {
            keys_max: namespace.state_keys_max,
            value_bytes_max: namespace.state_value_bytes_max,
            bytes_max: namespace.state_bytes_max,
            tombstones_max: namespace.state_tombstones_max,
            tombstone_age_max_ms: namespace.state_tombstone_age_max_ms,
            fence_prefixes: namespace.fence_prefixes.clone(),
        },
        locks: LockBounds {
            locks_max: namespace.locks_max,
            queue_max: namespace.lock_queue_max,
            ttl_max_ms: namespace.lock_ttl_max_ms,
        },
        timers: TimerBounds {
            timers_max: namespace.timers_max,
            payload_bytes_max: namespace.timer_payload_bytes_max,
        },
        departure_bytes_max: namespace.on_disconnect_bytes_max,
        cursors_max: namespace.cursor_users_max,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests of rooms take the bounds of a configuration that says nothing.
    #[test]
    fn the_default_bounds_are_those_of_the_configuration() {
        let bounds = table_bounds(&NamespaceConfig::default());
        assert_eq!(bounds, TableBounds::default());
    }
}
