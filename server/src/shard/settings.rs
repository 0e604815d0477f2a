//! What the configuration says that a shard needs.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::connection::outbox::Outbox;
use crate::connection::{Rates, Terms};
use crate::room::RoomSettings;
use crate::session::token::ResumeKey;
use crate::session::users::UserLimits;

/// What the configuration says that a shard needs.
#[derive(Debug, Clone)]
pub struct ShardSettings {
    /// What each namespace's rooms are like.
    pub namespaces: BTreeMap<String, Arc<RoomSettings>>,
    /// What the rooms of other namespaces are like; none refuses them.
    pub other_namespaces: Option<Arc<RoomSettings>>,
    /// Whether users need no token.
    pub anonymous: bool,
    /// Signs resume tokens.
    pub resume_key: ResumeKey,
    /// How long before its end a token's end is announced, in milliseconds.
    pub expiry_warning_ms: u64,
    /// How long a session waits for a connection, in milliseconds.
    pub session_retention_ms: u64,
    /// Time to say hello, in milliseconds.
    pub hello_timeout_ms: u64,
    /// Bytes before the session is open.
    pub hello_bytes_max: usize,
    /// The heartbeat, in milliseconds.
    pub heartbeat_ms: u64,
    /// Longest message, in bytes.
    pub message_bytes_max: usize,
    /// Longest payload, in bytes.
    pub payload_bytes_max: usize,
    /// Rooms a connection may be in.
    pub rooms_max: usize,
    /// Requests that a connection may have with owners.
    pub requests_max: u32,
    /// How often a connection may do what.
    pub rates: Rates,
    /// Bytes that may wait for a connection; see [`ShardSettings::log_lane_bytes_max`] and its sibling for its parts.
    pub outbox_bytes_max: usize,
    /// Messages that may wait for a connection.
    pub outbox_messages_max: usize,
    /// How long a connection may take no byte while some wait, in milliseconds.
    pub write_stall_ms: u64,
    /// What it has to take in that time, in bytes, where it doesn't take all.
    pub write_progress_bytes_min: u32,
    /// What all connections of a user may do together.
    pub user: UserLimits,
    /// Members that fan-out serves between two looks at the turn's time.
    pub members_per_look: usize,
    /// Rooms, timers, replies, or members who catch up, that are served between two looks.
    pub items_per_look: usize,
    /// Turns of a room that may wait for a fan-out that is slower than the room; at least 2, since the first may be half handed on.
    pub waiting_turns_max: usize,
}

impl ShardSettings {
    /// What a connection that comes now is told.
    #[must_use]
    pub fn terms(&self) -> Arc<Terms> {
        Arc::new(Terms {
            heartbeat_ms: self.heartbeat_ms,
            message_bytes_max: self.message_bytes_max,
            payload_bytes_max: self.payload_bytes_max,
            rooms_max: self.rooms_max,
            requests_max: self.requests_max,
        })
    }

    /// Whether so many bytes more may wait in an outbox. The rest of the write that has made it may have been more than all of it, and
    /// replies wait until the turn's end whatever their size; then the connection is closed that has too much.
    #[must_use]
    pub fn takes(&self, outbox: &Outbox, bytes: usize) -> bool {
        let sizes = outbox.sizes();
        sizes.bytes + bytes <= self.outbox_bytes_max && sizes.messages < self.outbox_messages_max
    }

    /// Whether so many bytes of the log may wait; otherwise the member goes to its own position.
    #[must_use]
    pub fn takes_log(&self, outbox: &Outbox, bytes: usize) -> bool {
        outbox.log_bytes() + bytes <= self.log_lane_bytes_max() && self.takes(outbox, bytes)
    }

    /// Beyond this the log is not queued any more and the member goes to its own position: a quarter of the outbox.
    #[must_use]
    pub fn log_lane_bytes_max(&self) -> usize {
        self.outbox_bytes_max / 4
    }

    /// Beyond this the connection is read no more until replies have left: a quarter of the outbox.
    #[must_use]
    pub fn reply_bytes_max(&self) -> usize {
        self.outbox_bytes_max / 4
    }

    /// Beyond this signals are dropped: an eighth of the outbox.
    #[must_use]
    pub fn signal_lane_bytes_max(&self) -> usize {
        self.outbox_bytes_max / 8
    }
}
