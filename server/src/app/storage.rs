//! The rooms on disk: how the configuration opens them, and how what the disk has done comes to the shards.

use std::path::Path;

use roomful_protocol::frame::Durability;
use roomful_protocol::id::{Epoch, RoomId};

use crate::clock::Clock;
use crate::config::Config;
use crate::journal::Completion;
use crate::journal::local::{Headroom, Local, Notify, OpenError, Repair, RepairError, Settings};
use crate::room::snapshot;
use crate::session::DataFileError;
use crate::session::generation::Generation;
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

/// Says what of the rooms on disk is damaged, and what a repair would lose; applied, it goes on without that.
///
/// # Errors
/// Nothing is damaged, a server uses the directory, or it can't be read or written. Nothing was changed, where it isn't said.
pub fn repair(
    config: &Config,
    is_applied: bool,
    say: &mut dyn FnMut(&str),
) -> Result<(), RepairFailed> {
    let data_dir = Path::new(&config.node.data_dir);
    let clock = Clock::system();
    let wait_ms = config.storage.lock_wait_ms;
    let repair = Repair::plan(data_dir, wait_ms, &clock, snapshot::check, say)?;
    if !is_applied {
        say(
            "nothing was changed: --apply makes it so, and gives the rooms that are named a new epoch",
        );
        return Ok(());
    }
    let generation = Generation::begin(data_dir, clock.unix_ms())?;
    let aside = repair.apply(generation.first_epoch())?;
    say(&format!(
        "repaired: the rooms that are named have a new epoch, and the damaged journal is kept in {}",
        aside.display()
    ));
    Ok(())
}

/// Why a repair has not ended as it should. Nothing was changed, where it isn't said.
#[derive(Debug, thiserror::Error)]
pub enum RepairFailed {
    /// Of the journal.
    #[error(transparent)]
    Journal(#[from] RepairError),
    /// Without the number of the last start nobody knows which epochs are new.
    #[error(transparent)]
    Generation(#[from] DataFileError),
}
