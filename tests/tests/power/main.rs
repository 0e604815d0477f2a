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
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::RngExt as _;
use roomful_tests::publisher::{Phase, Publisher, Record};
use roomful_tests::seed::seeded;
use roomful_tests::server::{Directory, UNLIMITED};
use roomful_tests::until;
use roomful_tests::wait::PATIENCE;
use roomful_tests::{Connect, Server};
use tokio::sync::watch;
use tokio::task::JoinSet;

use disk::Disk;
use trace::Trace;

/// One record, many cuts. A directory with a finding is left where it is, and named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_loses_nothing_that_was_acknowledged_under_strace() {
    let cuts = cuts();
    let mut random = seeded("a_power_cut_loses_nothing_that_was_acknowledged_under_strace");
    let (trace, disk, records) = record(if cuts > SHORT_CUTS { 12_000 } else { 5_000 }).await;
    let place = Directory(in_memory());
    let lines = trace.times_us.len();
    let (mut acks, mut unsynced) = (0, 0);
    let mut wrong = Vec::new();
    for number in 0..cuts {
        let cut = random.random_range(1..lines);
        let seed = random.random();
        let dir = place.0.join(number.to_string());
        disk.rebuild(cut, seed, &dir);
        let data_dir = dir.join(DATA);
        let (looked_for, found) = reopened::check(&data_dir, &records, trace.times_us[cut]);
        acks += looked_for;
        unsynced += disk.unsynced(cut);
        if found.is_empty() {
            fs::remove_dir_all(&dir).unwrap();
        } else {
            // As it was before it was opened.
            fs::remove_dir_all(&dir).unwrap();
            disk.rebuild(cut, seed, &dir);
            wrong.push((cut, dir, found));
        }
    }
    for (cut, dir, found) in &wrong {
        println!("cut before line {cut} of {lines}, {}:", dir.display());
        found.iter().take(5).for_each(|found| println!("  {found}"));
        println!("  {} in all", found.len());
    }
    let all: usize = records.iter().map(|record| record.acked.len()).sum();
    println!(
        "{cuts} cuts of a record of {lines} calls and {all} acks, {unsynced} changes lost or torn, {acks} acks looked for: {} findings",
        wrong.len()
    );
    assert!(acks > cuts, "hardly anything was looked for");
    assert!(unsynced > 0, "nothing could be lost");
    if !wrong.is_empty() {
        std::mem::forget(place);
        panic!("{} cuts have lost something", wrong.len());
    }
}

/// Publishers fill rooms of a server whose every change to files is recorded, up to its orderly end.
async fn record(acks_min: u64) -> (Trace, Disk, Vec<Record>) {
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
    let records = publishers.join_all().await;
    let ended = server.terminate().await;
    assert!(ended.status.success(), "{}", ended.output);
    let text = whole(&file).await;
    let trace = Trace::read(&text);
    let disk = Disk::follow(&fs::canonicalize(server.dir()).unwrap(), &trace);
    (trace, disk, records)
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

const ROOMS: usize = 6;

const PUBLISHERS_PER_ROOM: usize = 2;

const RECORDING: Duration = Duration::from_secs(300);
