//! The sorted store behind the segments: what of a room is asked for by key.
//!
//! A [`Store`] keeps keys in order, in a few spaces, and shows them by [`View`]. [`Store::write`] is atomic and survives a power cut
//! from the next [`Store::sync`] on, what is ingested from the return on. What keys and values mean is left to `meta`.

use std::error::Error as _;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use bytes::Bytes;
use fjall::compaction::filter::{
    CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict,
};
use fjall::config::CompressionPolicy;
use fjall::{
    CompressionType, Database, Iter, Keyspace, KeyspaceCreateOptions, PersistMode, Readable as _,
    Snapshot as FjallSnapshot,
};
use roomful_protocol::frame::Direction;

use super::meta::{self, EntryKey};
use super::record::LogId;

/// A part of the store with keys of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Space {
    /// Log and offset → record of an entry.
    Entries,
    /// Log → what is known of it.
    Logs,
    /// Room → log.
    Rooms,
    /// Log → record of its newest snapshot.
    Snapshots,
    /// Log and key → record of a register.
    Registers,
    /// Time and log → room that has to be looked at.
    Wakes,
    /// What is known of the journal as a whole.
    State,
}

/// A change of one key; no value: it goes.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) space: Space,
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Bytes>,
}

/// Where a walk over keys is told of a key and its value; false ends it.
pub(super) type Visit<'a> = &'a mut dyn FnMut(&[u8], Bytes) -> bool;

/// Sorted keys, as they are or as they were at one moment. Calls may block; any thread may make them.
pub(super) trait View: fmt::Debug + Send + Sync {
    /// One value.
    fn get(&self, space: Space, key: &[u8]) -> io::Result<Option<Bytes>>;

    /// Walks over the keys from `from` to `until`, both included, from one end or from the other.
    fn range(
        &self,
        space: Space,
        from: &[u8],
        until: &[u8],
        direction: Direction,
        visit: Visit<'_>,
    ) -> io::Result<()>;
}

/// Sorted keys on something that keeps them.
pub(super) trait Store: View {
    /// Everything as it is now. What is dropped later is there for as long as this is held.
    fn frozen(&self) -> Box<dyn View>;

    /// Takes entries in ascending order. They are there after a power cut.
    fn ingest_entries(
        &self,
        entries: &mut dyn Iterator<Item = (EntryKey, Bytes)>,
    ) -> io::Result<()>;

    /// Takes many changes, one space after the other, logs last; of two changes of a key the later one. Those of a space are there
    /// all or none, and those that are there survive a power cut. Nothing of it stays in memory, as what is written does.
    fn ingest(&self, changes: Vec<Change>) -> io::Result<()>;

    /// Makes some changes, all or none.
    fn write(&self, changes: Vec<Change>) -> io::Result<()>;

    /// Comes back when what was written survives a power cut.
    fn sync(&self) -> io::Result<()>;

    /// What entries take on the disk.
    fn entry_bytes(&self) -> u64;

    /// How many entries there are, dropped ones among them.
    fn entry_count(&self) -> u64;

    /// Drops entries that are before their logs' first: a rewrite of all, which takes its time. Once it is to end, everything is as
    /// it was before.
    fn clean(&self, is_ending: &Arc<AtomicBool>) -> io::Result<()>;
}

/// The store of the server: fjall in a folder.
pub(super) struct Fjall {
    database: Database,
    /// In the order of [`Space`].
    spaces: Vec<Keyspace>,
    known_logs: KnownLogs,
    rewrite: Arc<Rewrite>,
}

impl Fjall {
    /// Opens it, or makes one.
    pub(super) fn open(path: &Path, cache_bytes: u64) -> io::Result<Self> {
        let known_logs = KnownLogs::default();
        let rewrite = Arc::<Rewrite>::default();
        let trims = Arc::new(Trims {
            known_logs: AssertUnwindSafe(known_logs.clone()),
            rewrite: Arc::clone(&rewrite),
        });
        let database = Database::builder(path)
            .cache_size(cache_bytes)
            .worker_threads(1)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .with_compaction_filter_factories(Arc::new(move |name| {
                (name == NAMES[0]).then(|| Arc::clone(&trims) as Arc<dyn Factory>)
            }))
            .open()
            .map_err(failed)?;
        let options = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(MEMTABLE_BYTES)
                .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
        };
        let mut spaces = Vec::with_capacity(NAMES.len());
        for name in NAMES {
            spaces.push(database.keyspace(name, options).map_err(failed)?);
        }
        sync_directories(path)?;
        // Until this is known, a compaction keeps everything.
        known_logs.set(Some(spaces[Space::Logs as usize].clone()));
        Ok(Self {
            database,
            spaces,
            known_logs,
            rewrite,
        })
    }

    /// A space, once it can take another ingestion. Each adds a run to the first level, whose number of runs fjall writes as
    /// one byte: with more than 255 the store could not be opened any more. Its own writes wait for its worker, ingestions don't.
    /// The worker is given time to merge some; while all entries are rewritten it has to wait itself, and nobody waits for it.
    #[expect(
        clippy::disallowed_methods,
        reason = "only the journal's own thread comes here"
    )]
    fn for_ingestion(&self, space: Space) -> io::Result<&Keyspace> {
        let keyspace = self.space(space);
        let mut looks = 0;
        loop {
            let (runs, is_rewritten) = (keyspace.l0_table_count(), self.rewrite.is_running());
            let has_waited = looks >= MERGE_LOOKS;
            let is_crowded = runs >= RUNS_MAX && !is_rewritten && !has_waited;
            if runs < RUNS_LIMIT && !is_crowded {
                return Ok(keyspace);
            }
            if is_rewritten && space == Space::Entries {
                // Nobody else can merge them before that is over.
                looks = 0;
            } else if has_waited {
                keyspace.major_compact().map_err(failed)?;
                return Ok(keyspace);
            }
            thread::sleep(MERGE_LOOK);
            looks += 1;
        }
    }

    fn space(&self, space: Space) -> &Keyspace {
        &self.spaces[space as usize]
    }
}

/// Lets the names of all directories below one survive a power cut: fjall makes some that it doesn't sync.
fn sync_directories(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_directories(&entry.path())?;
        }
    }
    File::open(path)?.sync_all()
}

impl fmt::Debug for Fjall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fjall").finish_non_exhaustive()
    }
}

impl View for Fjall {
    fn get(&self, space: Space, key: &[u8]) -> io::Result<Option<Bytes>> {
        let value = self.space(space).get(key).map_err(failed)?;
        Ok(value.map(Bytes::from))
    }

    fn range(
        &self,
        space: Space,
        from: &[u8],
        until: &[u8],
        direction: Direction,
        visit: Visit<'_>,
    ) -> io::Result<()> {
        walk(self.space(space).range(from..=until), direction, visit)
    }
}

fn walk(mut items: Iter, direction: Direction, visit: Visit<'_>) -> io::Result<()> {
    loop {
        let item = match direction {
            Direction::Forward => items.next(),
            Direction::Backward => items.next_back(),
        };
        let Some(item) = item else {
            return Ok(());
        };
        let (key, value) = item.into_inner().map_err(failed)?;
        if !visit(&key, Bytes::from(value)) {
            return Ok(());
        }
    }
}

impl Store for Fjall {
    fn frozen(&self) -> Box<dyn View> {
        Box::new(FrozenFjall {
            snapshot: self.database.snapshot(),
            spaces: self.spaces.clone(),
        })
    }

    fn ingest_entries(
        &self,
        entries: &mut dyn Iterator<Item = (EntryKey, Bytes)>,
    ) -> io::Result<()> {
        let space = self.for_ingestion(Space::Entries)?;
        let mut ingestion = space.start_ingestion().map_err(failed)?;
        for (key, value) in entries {
            ingestion.write(key.0, value).map_err(failed)?;
        }
        ingestion.finish().map_err(failed)
    }

    fn ingest(&self, changes: Vec<Change>) -> io::Result<()> {
        for changes in by_space(changes) {
            let space = self.for_ingestion(changes[0].space)?;
            let mut ingestion = space.start_ingestion().map_err(failed)?;
            for Change { key, value, .. } in changes {
                match value {
                    Some(value) => ingestion.write(key, value),
                    None => ingestion.write_tombstone(key),
                }
                .map_err(failed)?;
            }
            ingestion.finish().map_err(failed)?;
        }
        Ok(())
    }

    fn write(&self, changes: Vec<Change>) -> io::Result<()> {
        let mut batch = self.database.batch();
        for Change { space, key, value } in changes {
            match value {
                Some(value) => batch.insert(self.space(space), key, value),
                None => batch.remove(self.space(space), key),
            }
        }
        batch.commit().map_err(failed)
    }

    fn sync(&self) -> io::Result<()> {
        self.database.persist(PersistMode::SyncAll).map_err(failed)
    }

    fn entry_bytes(&self) -> u64 {
        self.space(Space::Entries).disk_space()
    }

    fn entry_count(&self) -> u64 {
        self.space(Space::Entries).approximate_len() as u64
    }

    fn clean(&self, is_ending: &Arc<AtomicBool>) -> io::Result<()> {
        self.rewrite.begin(is_ending);
        let cleaned = self.space(Space::Entries).major_compact();
        self.rewrite.end();
        match cleaned {
            Err(_) if is_ending.load(Ordering::Relaxed) => Ok(()),
            cleaned => cleaned.map_err(failed),
        }
    }
}

/// The store of the server at one moment.
struct FrozenFjall {
    snapshot: FjallSnapshot,
    /// In the order of [`Space`].
    spaces: Vec<Keyspace>,
}

impl View for FrozenFjall {
    fn get(&self, space: Space, key: &[u8]) -> io::Result<Option<Bytes>> {
        let space = &self.spaces[space as usize];
        let value = self.snapshot.get(space, key).map_err(failed)?;
        Ok(value.map(Bytes::from))
    }

    fn range(
        &self,
        space: Space,
        from: &[u8],
        until: &[u8],
        direction: Direction,
        visit: Visit<'_>,
    ) -> io::Result<()> {
        let space = &self.spaces[space as usize];
        walk(self.snapshot.range(space, from..=until), direction, visit)
    }
}

impl fmt::Debug for FrozenFjall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrozenFjall").finish_non_exhaustive()
    }
}

/// Changes as they are to be ingested: sorted, one for each key, the space of logs last.
pub(super) fn by_space(mut changes: Vec<Change>) -> Vec<Vec<Change>> {
    let place = |change: &Change| (change.space == Space::Logs, change.space);
    changes.sort_by(|one, other| (place(one), &one.key).cmp(&(place(other), &other.key)));
    // Of equal keys the later change stands behind, since the order is kept among them.
    changes.dedup_by(|later, earlier| {
        let is_same = (later.space, &later.key) == (earlier.space, &earlier.key);
        if is_same {
            std::mem::swap(later, earlier);
        }
        is_same
    });
    let mut spaces: Vec<Vec<Change>> = Vec::new();
    for change in changes {
        match spaces.last_mut() {
            Some(space) if space[0].space == change.space => space.push(change),
            _ => spaces.push(vec![change]),
        }
    }
    spaces
}

fn failed(error: fjall::Error) -> io::Error {
    match error {
        fjall::Error::Io(error) => error,
        // What the disk says stands below what the store makes of it.
        fjall::Error::Storage(error) => match error
            .source()
            .and_then(|source| source.downcast_ref::<io::Error>())
        {
            Some(source) => io::Error::new(source.kind(), error),
            None => io::Error::new(io::ErrorKind::InvalidData, error),
        },
        error => io::Error::other(error),
    }
}

/// What an error says of the store itself, where it does; it is logged here.
pub(super) fn damage_of(error: &io::Error) -> Option<&'static str> {
    let is_damage = error.kind() == io::ErrorKind::InvalidData;
    is_damage.then(|| {
        tracing::error!(%error, "the journal's store is damaged");
        DAMAGED_BLOCK
    })
}

/// What the checksum of a block of the store says of it.
pub(super) const DAMAGED_BLOCK: &str = "a block of the store";

impl Drop for Fjall {
    /// A compaction would hold what it belongs to, and the directory would stay locked.
    fn drop(&mut self) {
        self.known_logs.set(None);
    }
}

/// The space of logs, while the store is open.
#[derive(Clone, Default)]
struct KnownLogs(Arc<Mutex<Option<Keyspace>>>);

impl KnownLogs {
    fn set(&self, logs: Option<Keyspace>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = logs;
    }

    fn get(&self) -> Option<Keyspace> {
        let logs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        logs.clone()
    }
}

/// The rewrite of all entries that is under way: which thread does it, and whether it is to end.
#[derive(Default)]
struct Rewrite(Mutex<Option<(ThreadId, Arc<AtomicBool>)>>);

impl Rewrite {
    fn begin(&self, is_ending: &Arc<AtomicBool>) {
        let by = thread::current().id();
        *self.running() = Some((by, Arc::clone(is_ending)));
    }

    fn end(&self) {
        *self.running() = None;
    }

    fn is_running(&self) -> bool {
        self.running().is_some()
    }

    /// What ends the compaction of this thread, where it is the rewrite. An error would take down fjall's own worker.
    fn of_this_thread(&self) -> Option<Arc<AtomicBool>> {
        let running = self.running();
        let (by, is_ending) = running.as_ref()?;
        (*by == thread::current().id()).then(|| Arc::clone(is_ending))
    }

    fn running(&self) -> MutexGuard<'_, Option<(ThreadId, Arc<AtomicBool>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets a compaction drop what is before a log's first entry.
struct Trims {
    known_logs: AssertUnwindSafe<KnownLogs>,
    rewrite: Arc<Rewrite>,
}

impl Factory for Trims {
    fn name(&self) -> &str {
        "trims"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(Trim {
            known_logs: self.known_logs.clone(),
            last: None,
            is_ending: self.rewrite.of_this_thread(),
        })
    }
}

struct Trim {
    known_logs: KnownLogs,
    /// The log of the item before, and its first offset.
    last: Option<(LogId, u64)>,
    /// Whether it is given up; none: it is not one that can be.
    is_ending: Option<Arc<AtomicBool>>,
}

impl CompactionFilter for Trim {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> CompactionFilterResult {
        let is_ending = self.is_ending.as_ref();
        if is_ending.is_some_and(|is_ending| is_ending.load(Ordering::Relaxed)) {
            return Err(io::Error::from(io::ErrorKind::Interrupted).into());
        }
        // Whatever is not understood stays.
        let Some((log, offset)) = EntryKey::read(item.key()) else {
            return Ok(Verdict::Keep);
        };
        let first = match self.last {
            Some((last, first)) if last == log => first,
            _ => {
                let logs = self.known_logs.get();
                let known = logs.and_then(|logs| logs.get(log.0.to_be_bytes()).ok().flatten());
                let first = known.and_then(|value| meta::first_of(&value)).unwrap_or(0);
                self.last = Some((log, first));
                first
            }
        };
        // A key is written again with the same value only, so that no older value can come to light.
        Ok(match offset.0 < first {
            true => Verdict::Destroy,
            false => Verdict::Keep,
        })
    }
}

const NAMES: [&str; 7] = [
    "entries",
    "logs",
    "rooms",
    "snapshots",
    "registers",
    "wakes",
    "state",
];

/// Tables of a first level that are waited for.
const RUNS_MAX: usize = 64;

/// With so many nothing is added before they are merged: well below 255, of which the worker's own take some.
const RUNS_LIMIT: usize = 192;

/// How often the worker is given time to merge them by itself: five seconds.
const MERGE_LOOKS: u32 = 500;

const MERGE_LOOK: Duration = Duration::from_millis(10);

/// The store's own journal holds changes of the small spaces alone.
const JOURNAL_BYTES_MAX: u64 = 64 << 20;

/// What a space holds in memory before it is written out.
const MEMTABLE_BYTES: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use roomful_protocol::id::{Epoch, Offset};

    use super::super::meta::LogMeta;
    use super::super::tests::TestDirectory;
    use super::*;

    fn change(space: Space, key: &[u8], value: Option<&'static [u8]>) -> Change {
        Change {
            space,
            key: key.to_vec(),
            value: value.map(Bytes::from_static),
        }
    }

    /// In any order, over what was there before; the later of two changes of a key counts.
    #[test]
    fn changes_of_several_spaces_are_ingested() {
        let directory = TestDirectory::new();
        let open = || Fjall::open(directory.path(), 1 << 20).unwrap();
        let store = open();
        store
            .write(vec![change(Space::Wakes, b"written", Some(b"1"))])
            .unwrap();
        store
            .ingest(vec![
                change(Space::Logs, b"b", Some(b"2")),
                change(Space::Wakes, b"twice", None),
                change(Space::Logs, b"a", Some(b"3")),
                change(Space::Wakes, b"written", None),
                change(Space::Wakes, b"twice", Some(b"4")),
            ])
            .unwrap();
        drop(store);
        let store = open();
        let found = |space, key: &[u8]| store.get(space, key).unwrap();
        assert_eq!(found(Space::Logs, b"a").as_deref(), Some(&b"3"[..]));
        assert_eq!(found(Space::Logs, b"b").as_deref(), Some(&b"2"[..]));
        assert_eq!(found(Space::Wakes, b"twice").as_deref(), Some(&b"4"[..]));
        assert_eq!(found(Space::Wakes, b"written"), None);
    }

    /// More ingestions than a first level may have runs: the store opens again.
    #[test]
    fn many_ingestions_leave_a_store_that_opens() {
        let directory = TestDirectory::new();
        let open = || Fjall::open(directory.path(), 1 << 20).unwrap();
        let store = open();
        for number in 0..300_u32 {
            store
                .ingest(vec![change(Space::Logs, &number.to_be_bytes(), Some(b"1"))])
                .unwrap();
            assert!(store.space(Space::Logs).l0_table_count() <= RUNS_LIMIT);
        }
        drop(store);
        let store = open();
        let last = store.get(Space::Logs, &299_u32.to_be_bytes()).unwrap();
        assert_eq!(last.as_deref(), Some(&b"1"[..]));
    }

    /// A store with entries of one log, all of which are before its first.
    fn with_garbage(path: &Path) -> Fjall {
        let store = Fjall::open(path, 1 << 20).unwrap();
        let entries = (1..=100).map(|offset| {
            let key = EntryKey::new(LogId(1), Offset(offset));
            (key, Bytes::from_static(b"entry"))
        });
        store.ingest_entries(&mut entries.into_iter()).unwrap();
        let meta = LogMeta {
            first: 101,
            ..LogMeta::new(Epoch(1))
        };
        let log = meta::log_key(LogId(1));
        let change = Change {
            space: Space::Logs,
            key: log,
            value: Some(meta.to_value()),
        };
        store.ingest(vec![change]).unwrap();
        store
    }

    /// A rewrite takes its time, and fjall's worker has to wait for it: what is taken meanwhile doesn't.
    #[test]
    fn ingestions_go_on_while_all_is_rewritten() {
        let directory = TestDirectory::new();
        let store = with_garbage(directory.path());
        let is_ending = Arc::default();
        let (done, ends) = mpsc::channel();
        // The rewrite stands still at the first entry.
        let held = store.known_logs.0.lock().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| store.clean(&is_ending).unwrap());
            while !store.rewrite.is_running() {
                thread::yield_now();
            }
            scope.spawn(|| {
                for log in 2..=100 {
                    let key = EntryKey::new(LogId(log), Offset(1));
                    let entry = (key, Bytes::from_static(b"entry"));
                    store.ingest_entries(&mut [entry].into_iter()).unwrap();
                }
                done.send(()).unwrap();
            });
            let ended = ends.recv_timeout(Duration::from_secs(60));
            let runs = store.space(Space::Entries).l0_table_count();
            drop(held);
            ended.expect("nothing is taken while all is rewritten");
            assert!(runs > RUNS_MAX, "{runs}");
        });
        assert_eq!(store.entry_count(), 99);
    }

    /// Nobody waits for a rewrite at the end; another one does its work.
    #[test]
    fn a_rewrite_ends_when_it_is_to() {
        let directory = TestDirectory::new();
        let store = with_garbage(directory.path());
        let is_ending = Arc::<AtomicBool>::default();
        let held = store.known_logs.0.lock().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| store.clean(&is_ending).unwrap());
            while !store.rewrite.is_running() {
                thread::yield_now();
            }
            is_ending.store(true, Ordering::Relaxed);
            drop(held);
        });
        assert_eq!(store.entry_count(), 100, "it has not ended early");
        drop(store);
        let store = Fjall::open(directory.path(), 1 << 20).unwrap();
        store.clean(&Arc::default()).unwrap();
        assert_eq!(store.entry_count(), 0);
    }

    /// A log says that it was taken; so what belongs to it is there before.
    #[test]
    fn logs_are_ingested_last() {
        let spaces = by_space(vec![
            change(Space::Logs, b"a", None),
            change(Space::Wakes, b"a", None),
            change(Space::Rooms, b"a", None),
        ]);
        let order: Vec<_> = spaces.iter().map(|changes| changes[0].space).collect();
        assert_eq!(order, [Space::Rooms, Space::Wakes, Space::Logs]);
    }
}
