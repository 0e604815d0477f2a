//! The rooms on disk: how the configuration opens them, and how what the disk has done comes to the shards.

use std::path::Path;

use roomful_protocol::frame::Durability;
use roomful_protocol::id::{Epoch, RoomId};

use crate::clock::Clock;
use crate::config::Config;
use crate::journal::Completion;
use crate::journal::local::{Headroom, Local, Notify, OpenError, Settings};
use crate::shard::message::ShardId;
use crate::transport::Shards;

/// The rooms on disk, where a namespace has any.
pub(super) fn open_journal(
    config: &Config,
    data_dir: &Path,
    first_epoch: Epoch,
    clock: &Clock,
) -> Result<Option<Local>, OpenError> {
    let mut namespaces = config.namespaces.values();
    if namespaces.all(|namespace| namespace.durability == Durability::Memory) {
        return Ok(None);
    }
    let storage = &config.storage;
    let settings = Settings {
        segment_bytes: storage.segment_bytes,
        headroom: Headroom {
            percent: storage.headroom_percent,
            bytes_min: storage.headroom_bytes_min,
        },
        lock_wait_ms: storage.lock_wait_ms,
        cache_bytes: storage.cache_bytes,
        ..Settings::new(first_epoch, clock.clone())
    };
    Local::open(data_dir, settings).map(Some)
}

/// What the journal has to tell goes to the shards.
#[derive(Debug)]
pub(super) struct Returns(pub(super) Shards);

impl Notify for Returns {
    fn completed(&self, shard: ShardId, completions: Vec<Completion>) {
        self.0.completed(shard, completions);
    }

    fn wake(&self, room: RoomId) {
        self.0.wake(room);
    }
}
