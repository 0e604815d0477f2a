//! The power is cut while the real server writes: what was acknowledged before is there afterwards.
//!
//! A kill spares what the kernel has taken, so this goes another way: strace records each call by which the server changes files,
//! and clients note when each ack came. Then the directory is built anew as a disk could show it after a cut at many a point of
//! the record, with what was not synced lost or torn; the real journal opens it, and every ack from before the cut is looked for.
//!
//! The short form cuts a few dozen times. `ROOMFUL_POWER_CUTS` sets the full one (`cargo xtask crash --power`).
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

mod disk;
mod reopened;
mod trace;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use roomful_tests::publisher::{self, Phase, Publisher};
use roomful_tests::seed::seeded;
use roomful_tests::server::{Directory, UNLIMITED};
use roomful_tests::until;
use roomful_tests::wait::PATIENCE;
use roomful_tests::{Connect, Server};
use tokio::sync::watch;
use tokio::task::JoinSet;

use disk::Disk;
use trace::Trace;

/// One record, many cuts. A directory with a finding is made again, stays, and is named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_loses_nothing_that_was_acknowledged_under_strace() {
    let cuts = cuts();
    let mut random = seeded("a_power_cut_loses_nothing_that_was_acknowledged_under_strace");
    let record = Record::new(if cuts > SHORT_CUTS { 12_000 } else { 5_000 }).await;
    let place = Directory(in_memory());
    let mut cut = |cuts, lines, disk: &Disk| record.cut(cuts, lines, disk, &place.0, &mut random);
    let found = cut(cuts, record.at_work(), &record.disk);
    let start = cut(cuts, record.first_start(), &record.disk);
    // A check that sees nothing there sees nothing anywhere.
    let unsynced = record.disk.without_syncs_in("log");
    let without = cut(SHORT_CUTS, record.at_work(), &unsynced);
    println!(
        "without syncs: {} of {SHORT_CUTS} cuts lose something",
        without.wrong.len()
    );
    let unmarked = record.disk.without("NEW");
    let unmarked = cut(SHORT_CUTS, record.first_start(), &unmarked);
    println!(
        "{cuts} cuts of the first start, {} changes lost or torn: {} findings; without its mark {} of {SHORT_CUTS}",
        start.unsynced,
        start.wrong.len(),
        unmarked.wrong.len()
    );
    let acks: usize = record.told.iter().map(|told| told.acked.len()).sum();
    let Found {
        unsynced,
        looked_for,
        wrong,
    } = found;
    let lines = record.trace.times_us.len();
    println!(
        "{cuts} cuts of a record of {lines} calls and {acks} acks, {unsynced} changes lost or torn, {looked_for} acks looked for: {} findings",
        wrong.len()
    );
    assert!(looked_for > cuts, "hardly anything was looked for");
    assert!(unsynced > 0, "nothing could be lost");
    assert!(!without.wrong.is_empty(), "nobody would have noticed");
    assert!(!unmarked.wrong.is_empty(), "the mark is for nothing");
    let wrong: Vec<_> = wrong.into_iter().chain(start.wrong).collect();
    for (number, Wrong { cut, seed, what }) in wrong.iter().take(SHOWN).enumerate() {
        let dir = place.0.join(number.to_string());
        record.disk.rebuild(*cut, *seed, &dir);
        println!("cut before line {cut} of {lines}, {}:", dir.display());
        what.iter()
            .take(SHOWN)
            .for_each(|what| println!("  {what}"));
        println!("  {} in all", what.len());
    }
    if !wrong.is_empty() {
        // It stays for whoever looks into it.
        place.keep();
        panic!("{} cuts have lost something", wrong.len());
    }
}

/// What a server did to its files, and what it said meanwhile.
struct Record {
    trace: Trace,
    disk: Disk,
    told: Vec<publisher::Record>,
}

/// What came of cuts.
#[derive(Default)]
struct Found {
    /// Changes that no sync had reached.
    unsynced: usize,
    looked_for: usize,
    wrong: Vec<Wrong>,
}

/// A cut that has lost something.
struct Wrong {
    /// The line before which it was.
    cut: usize,
    /// What the disk showed of what was not synced.
    seed: u64,
    what: Vec<String>,
}

impl Record {
    /// Cuts the power at random lines out of some, and looks what is left.
    fn cut(
        &self,
        cuts: usize,
        lines: Range<usize>,
        disk: &Disk,
        place: &Path,
        random: &mut StdRng,
    ) -> Found {
        let mut all = Found::default();
        let dir = place.join("cut");
        for _ in 0..cuts {
            let cut = random.random_range(lines.clone());
            let seed = random.random();
            disk.rebuild(cut, seed, &dir);
            let until_us = self.trace.times_us[cut];
            let (looked_for, what) = reopened::check(&dir.join(DATA), &self.told, until_us);
            fs::remove_dir_all(&dir).unwrap();
            all.looked_for += looked_for;
            all.unsynced += disk.unsynced(cut);
            if !what.is_empty() {
                all.wrong.push(Wrong { cut, seed, what });
            }
        }
        all
    }

    /// Those that were written from the first ack on, up to the orderly end and with it.
    fn at_work(&self) -> Range<usize> {
        self.first_ack()..self.trace.times_us.len()
    }

    /// Those from before the first ack.
    fn first_start(&self) -> Range<usize> {
        0..self.first_ack()
    }

    fn first_ack(&self) -> usize {
        let acks = self.told.iter().flat_map(|told| &told.acked);
        let first_us = acks.map(reopened::micros).min().unwrap();
        let times_us = &self.trace.times_us;
        times_us.partition_point(|line_us| *line_us < first_us)
    }

    /// Publishers fill rooms of a server whose every change to files is recorded, up to its orderly end.
    async fn new(acks_min: u64) -> Self {
        let place = Directory::new();
        let file = place.0.join("trace");
        let words = [
            "strace",
            "-D",
            "-f",
            "--seccomp-bpf",
            "-ttt",
            "-xx",
            "-s",
            "8388608",
            "-e",
            CALLS,
            "-o",
            file.to_str().unwrap(),
        ];
        let mut server = Server::through(&words, &format!("{UNLIMITED}{CONFIG}")).await;
        let (tell, phase) = watch::channel(Phase::Publish);
        let acks = Arc::<AtomicU64>::default();
        let mut publishers = JoinSet::new();
        for number in 0..ROOMS * PUBLISHERS_PER_ROOM {
            let room = format!("chat:power-{}", number % ROOMS);
            let publisher = Publisher::new(Connect::to(&server), room, number, Arc::clone(&acks));
            publishers.spawn(publisher.run(phase.clone()));
        }
        until("there are acks enough", RECORDING, async || {
            acks.load(Ordering::Relaxed) >= acks_min
        })
        .await;
        tell.send(Phase::Finish).unwrap();
        let told = publishers.join_all().await;
        let ended = server.terminate().await;
        assert!(ended.status.success(), "{}", ended.output);
        let text = whole(&file).await;
        let trace = Trace::read(&text);
        let disk = Disk::follow(&fs::canonicalize(server.dir()).unwrap(), &trace);
        Self { trace, disk, told }
    }
}

/// What strace has written, once it has written all.
async fn whole(file: &Path) -> String {
    let text = || fs::read_to_string(file).unwrap();
    until("the record is whole", PATIENCE, async || {
        text().trim_end().ends_with("+++ exited with 0 +++")
    })
    .await;
    text()
}

/// A directory that needs no disk, where the system has one.
fn in_memory() -> PathBuf {
    let name = format!("roomful-power-{}", std::process::id());
    let shared = Path::new("/dev/shm");
    let base = if shared.is_dir() {
        shared.to_owned()
    } else {
        std::env::temp_dir()
    };
    base.join(name)
}

#[expect(clippy::disallowed_methods, reason = "tests have no config")]
fn cuts() -> usize {
    let cuts = std::env::var("ROOMFUL_POWER_CUTS").ok();
    cuts.map_or(SHORT_CUTS, |cuts| cuts.parse().unwrap())
}

/// Every call that changes files, or says which file a number stands for.
const CALLS: &str = "trace=openat,close,dup,dup2,dup3,fcntl,lseek,write,writev,pwrite64,pwritev,pwritev2,ftruncate,truncate,fallocate,fsync,fdatasync,sync_file_range,mkdir,mkdirat,unlink,rmdir,unlinkat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,copy_file_range,sendfile";

/// Small segments: several are sealed and go into the store during the record.
const CONFIG: &str = "[storage]\nsegment_bytes = 1048576\nheadroom_percent = 0\nheadroom_bytes_min = 0\n[namespaces.chat]\nhistory_entries_max = 10000000\nhistory_bytes_max = 1099511627776\n";

const DATA: &str = "roomful-data";

const SHORT_CUTS: usize = 40;

/// How many of the cuts that have lost something are shown, and how much of each.
const SHOWN: usize = 5;

const ROOMS: usize = 6;

const PUBLISHERS_PER_ROOM: usize = 2;

const RECORDING: Duration = Duration::from_secs(300);
