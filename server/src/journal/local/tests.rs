//! The whole journal on a real directory.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, MutexGuard};
use std::time::Duration;

use roomful_protocol::id::RoomId;

use super::*;
use crate::journal::conformance::{self, Subject};
use crate::journal::{Completion, CompletionResult};

/// A directory that goes with the test.
pub(super) struct TestDirectory(PathBuf);

impl TestDirectory {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("roomful-journal-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TestDirectory {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// What the journal has told.
#[derive(Debug, Default)]
struct Heard {
    told: Mutex<Told>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Told {
    completions: HashMap<(ShardId, Ticket), CompletionResult>,
    woken: Vec<RoomId>,
}

impl Heard {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap()
    }

    fn wait<T>(&self, mut look: impl FnMut(&mut Told) -> Option<T>) -> T {
        let mut told = self.told();
        loop {
            if let Some(value) = look(&mut told) {
                return value;
            }
            let (next, waited) = self.more.wait_timeout(told, DEADLINE).unwrap();
            assert!(!waited.timed_out(), "the journal says nothing");
            told = next;
        }
    }
}

impl Notify for Heard {
    fn completed(&self, shard: ShardId, completions: Vec<Completion>) {
        let mut told = self.told();
        for Completion { ticket, result } in completions {
            let before = told.completions.insert((shard, ticket), result);
            assert!(before.is_none(), "told twice");
        }
        self.more.notify_all();
    }

    fn wake(&self, room: RoomId) {
        self.told().woken.push(room);
        self.more.notify_all();
    }
}

const DEADLINE: Duration = Duration::from_secs(30);

const SHARD: ShardId = ShardId(0);

fn settings() -> Settings {
    Settings {
        segment_bytes: 1 << 20,
        headroom: Headroom {
            percent: 0,
            bytes_min: 0,
        },
        lock_wait_ms: 0,
        ..Settings::new(Epoch(5), Clock::system())
    }
}

/// A journal that runs, and the rooms of its one shard.
struct Running {
    local: Option<Local>,
    journal: LocalJournal,
    heard: Arc<Heard>,
    // Last: it goes when nothing uses it any more.
    directory: Option<TestDirectory>,
}

impl Running {
    fn new(settings: Settings) -> Self {
        Self::on(TestDirectory::new(), settings)
    }

    fn on(directory: TestDirectory, settings: Settings) -> Self {
        let heard = Arc::new(Heard::default());
        let mut local = Local::open(directory.path(), settings).unwrap();
        let notify = Arc::clone(&heard) as Arc<dyn Notify>;
        local.start(&notify).unwrap();
        Self {
            journal: local.of_shard(SHARD),
            local: Some(local),
            heard,
            directory: Some(directory),
        }
    }

    /// Ends it in order.
    fn close(mut self) -> TestDirectory {
        self.local.take().unwrap().close().unwrap();
        self.directory.take().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(local) = self.local.take() {
            local.close().unwrap();
        }
    }
}

impl Subject for Running {
    fn journal(&mut self) -> &mut dyn Journal {
        &mut self.journal
    }

    fn wait(&mut self, ticket: Ticket) -> CompletionResult {
        self.journal.flush();
        self.heard
            .wait(|told| told.completions.remove(&(SHARD, ticket)))
    }
}

mod as_every_journal {
    use super::*;

    conformance::suite!(Running::new(settings()));
}

/// The same with segments so small that most is in the store when it is asked for.
mod as_every_journal_with_small_segments {
    use super::*;

    conformance::suite!(Running::new(Settings {
        segment_bytes: 2_000,
        ..settings()
    }));
}
