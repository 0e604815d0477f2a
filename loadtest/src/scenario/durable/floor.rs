//! What the disk gives without a server: a bare store and a bare file, with the server's batches.
//!
//! Both run in this process, on one thread of their own choice of moment: a batch follows the one before at once. Records have as many bytes
//! as the server's had, and batches as many records, on average: what a batch takes grows evenly with its records, so the spread around the average
//! doesn't matter to the sum. The store is fjall as it comes, one `SyncData` commit a batch; runs are short enough that nearly nothing of
//! it is compacted meanwhile, which flatters it. The file is reserved whole, as the server's segments are, and its time is what any
//! log on this disk takes.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use rustix::fs::{FallocateFlags, fallocate, fdatasync, statfs};
use tokio::time::Instant;

use crate::latency::Latency;
use crate::process::{CpuTime, TemporaryPath};

/// What is written, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Records of a batch, on average.
    pub(super) batch_records: f64,
    /// Bytes of a record.
    pub(super) record_bytes: usize,
    /// Rooms that take turns.
    pub(super) rooms: u64,
    /// For how long.
    pub(super) duration: Duration,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Floor {
    /// Records that were stored, in a second.
    pub(super) per_second: f64,
    /// This process's time for a record, in microseconds.
    pub(super) cpu_us: f64,
    /// Of batches.
    pub(super) latency: Latency,
}

/// Takes the records of a batch, each a key and a value, and comes back when they survive a power cut.
trait Engine {
    fn commit(&mut self, keys: &[[u8; KEY_BYTES]], value: &[u8]) -> Result<()>;
}

/// A room and an offset.
const KEY_BYTES: usize = 16;

/// As large as the server's segments.
const FILE_BYTES: u64 = 32 << 20;

/// TMPFS_MAGIC of statfs(2).
const IN_MEMORY: u64 = 0x0102_1994;

/// One `fdatasync` is nothing where nothing has to be written.
///
/// # Errors
/// Temporary files are kept in memory.
pub(super) fn check_disk() -> Result<()> {
    let directory = std::env::temp_dir();
    let kind = statfs(&directory).with_context(|| directory.display().to_string())?;
    ensure!(
        u64::try_from(kind.f_type).ok() != Some(IN_MEMORY),
        "{} is in memory: name a directory on the disk that is to be measured with TMPDIR",
        directory.display()
    );
    Ok(())
}

/// The bare store.
///
/// # Errors
/// The disk's.
pub(super) fn store(load: Load) -> Result<Floor> {
    let path = TemporaryPath::new();
    drive(&mut Store::open(path.as_ref())?, load)
}

/// The bare file, and how long its syncs took.
///
/// # Errors
/// The disk's.
pub(super) fn file(load: Load) -> Result<(Floor, Latency)> {
    let path = TemporaryPath::new();
    fs::create_dir_all(path.as_ref())?;
    let mut log = Log::begin(path.as_ref())?;
    let floor = drive(&mut log, load)?;
    Ok((floor, log.syncs))
}

fn drive(engine: &mut dyn Engine, load: Load) -> Result<Floor> {
    let value = incompressible(load.record_bytes.saturating_sub(KEY_BYTES));
    let (mut written, mut due, mut keys) = (0_u64, 0.0, Vec::new());
    let mut latency = Latency::new();
    // The first batch finds nothing prepared.
    engine.commit(&[key(u64::MAX, 0)], &value)?;
    let cpu = CpuTime::of_process(process::id());
    let start = Instant::now();
    while start.elapsed() < load.duration {
        // Batches differ by at most one record, and have the average in the long run.
        due += load.batch_records;
        keys.clear();
        while keys.is_empty() || (written as f64) < due.floor() {
            keys.push(key(written % load.rooms, written / load.rooms));
            written += 1;
        }
        let begun = Instant::now();
        engine.commit(&keys, &value)?;
        latency.record(begun.elapsed());
    }
    let took = start.elapsed();
    let cpu = cpu.until(CpuTime::of_process(process::id()));
    Ok(Floor {
        per_second: written as f64 / took.as_secs_f64(),
        cpu_us: cpu.as_secs_f64() * 1e6 / written as f64,
        latency,
    })
}

/// Rooms lie apart from each other, offsets of a room one behind the other.
fn key(room: u64, offset: u64) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    let (first, second) = key.split_at_mut(KEY_BYTES / 2);
    first.copy_from_slice(&room.wrapping_mul(GOLDEN).to_be_bytes());
    second.copy_from_slice(&offset.to_be_bytes());
    key
}

/// 2^64 divided by the golden ratio: multiples of it are spread evenly, and odd, so no two are the same.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn incompressible(bytes: usize) -> Vec<u8> {
    let mut state = GOLDEN;
    let next = || {
        // Marsaglia's xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

struct Store {
    database: Database,
    log: Keyspace,
}

impl Store {
    fn open(path: &Path) -> Result<Self> {
        let database = Database::builder(path)
            .manual_journal_persist(true)
            .open()
            .context("the bare store")?;
        let log = database
            .keyspace("log", KeyspaceCreateOptions::default)
            .context("the bare store")?;
        Ok(Self { database, log })
    }
}

impl Engine for Store {
    fn commit(&mut self, keys: &[[u8; KEY_BYTES]], value: &[u8]) -> Result<()> {
        let mut batch = self
            .database
            .batch()
            .durability(Some(PersistMode::SyncData));
        for key in keys {
            batch.insert(&self.log, key, value);
        }
        batch.commit().context("the bare store")
    }
}

/// A file that is written from its beginning to its end, then another one in its place.
struct Log<'a> {
    directory: &'a Path,
    file: File,
    at: u64,
    batch: Vec<u8>,
    syncs: Latency,
}

impl<'a> Log<'a> {
    fn begin(directory: &'a Path) -> Result<Self> {
        Ok(Self {
            directory,
            file: reserve(directory)?,
            at: 0,
            batch: Vec::new(),
            syncs: Latency::new(),
        })
    }
}

fn reserve(directory: &Path) -> Result<File> {
    let path = directory.join("log");
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(path)
        .context("the bare file")?;
    fallocate(&file, FallocateFlags::empty(), 0, FILE_BYTES).context("the bare file")?;
    file.sync_all().context("the bare file")?;
    Ok(file)
}

impl Engine for Log<'_> {
    fn commit(&mut self, keys: &[[u8; KEY_BYTES]], value: &[u8]) -> Result<()> {
        self.batch.clear();
        for key in keys {
            self.batch.extend_from_slice(key);
            self.batch.extend_from_slice(value);
        }
        if self.at + self.batch.len() as u64 > FILE_BYTES {
            self.file = reserve(self.directory)?;
            self.at = 0;
        }
        let written = self.file.write_all_at(&self.batch, self.at);
        written.context("the bare file")?;
        self.at += self.batch.len() as u64;
        let begun = Instant::now();
        fdatasync(&self.file).context("the bare file")?;
        self.syncs.record(begun.elapsed());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts what it is given.
    #[derive(Default)]
    struct Counter {
        batches: Vec<usize>,
        value_bytes: usize,
    }

    impl Engine for Counter {
        fn commit(&mut self, keys: &[[u8; KEY_BYTES]], value: &[u8]) -> Result<()> {
            self.batches.push(keys.len());
            self.value_bytes = value.len();
            Ok(())
        }
    }

    #[test]
    fn batches_have_the_average_that_is_asked_for() {
        let load = Load {
            batch_records: 2.5,
            record_bytes: 100,
            rooms: 3,
            duration: Duration::from_millis(20),
        };
        let mut counter = Counter::default();
        let floor = drive(&mut counter, load).unwrap();
        // The first one is not counted.
        let batches = &counter.batches[1..];
        assert!(batches.iter().all(|records| (2..=3).contains(records)));
        let average = batches.iter().sum::<usize>() as f64 / batches.len() as f64;
        assert!(
            batches.len() > 10 && (average - 2.5).abs() < 0.1,
            "{average}"
        );
        assert_eq!(counter.value_bytes + KEY_BYTES, 100);
        assert!(floor.per_second > 0.0);
    }

    #[test]
    fn both_floors_store_and_are_timed() {
        let load = Load {
            batch_records: 8.0,
            record_bytes: 100,
            rooms: 4,
            duration: Duration::from_millis(50),
        };
        let floor = store(load).unwrap();
        assert!(floor.per_second > 0.0 && floor.latency.count() > 0);
        let (floor, syncs) = file(load).unwrap();
        assert!(floor.per_second > 0.0);
        // One more than the batches that were timed.
        assert_eq!(syncs.count(), floor.latency.count() + 1);
    }
}
