//! The server is killed again and again while people publish to rooms on disk: nothing that was acknowledged is lost, nothing is
//! there twice, nothing changes its place, and whoever comes back goes on where it was.
//!
//! The short form kills a few times. `ROOMFUL_CRASH_KILLS` sets the full one (`cargo xtask crash`). A kill spares what the kernel
//! has taken: what a power cut leaves is tried with a recorded disk elsewhere.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

mod checker;
mod watcher;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::RngExt as _;
use roomful_tests::publisher::{Phase, Publisher};
use roomful_tests::seed::seeded;
use roomful_tests::server::UNLIMITED;
use roomful_tests::wait::{PATIENCE, until};
use roomful_tests::{Connect, Server};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use checker::check;
use watcher::Watcher;

/// Publishers keep several operations in flight in rooms on both shards, watchers follow them, and the server is killed at random
/// moments and started anew at the same place. In the end everybody's record is compared with what the server has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_lose_nothing_that_was_acknowledged() {
    let kills = kills();
    let mut random = seeded("kills_lose_nothing_that_was_acknowledged");
    let config = format!("{UNLIMITED}{CONFIG}");
    let mut server = Server::with_config(&config).await;
    let (tell, phase) = watch::channel(Phase::Publish);
    let acks = Arc::<AtomicU64>::default();
    let (mut publishers, mut watchers) = (JoinSet::new(), JoinSet::new());
    for number in 0..ROOMS * PUBLISHERS_PER_ROOM {
        let room = room(number % ROOMS);
        let publisher = Publisher::new(Connect::to(&server), room, number, Arc::clone(&acks));
        publishers.spawn(publisher.run(phase.clone()));
    }
    for number in 0..ROOMS {
        let watcher = Watcher::new(Connect::to(&server), room(number));
        watchers.spawn(watcher.run(phase.clone()));
    }
    for _ in 0..kills {
        let before = acks.load(Ordering::Relaxed);
        // Some are killed while they start, most in the middle of work.
        sleep(Duration::from_millis(random.random_range(0..LIFE_MS_MAX))).await;
        if random.random_range(0..4) > 0 {
            until("somebody gets an answer", PATIENCE, async || {
                acks.load(Ordering::Relaxed) > before
            })
            .await;
        }
        server.kill().await;
        server.start_again().await;
    }
    tell.send(Phase::Finish).unwrap();
    let records = publishers.join_all().await;
    tell.send(Phase::Read).unwrap();
    let seen = watchers.join_all().await;
    let entries = check(&server, &records, &seen).await;
    println!(
        "{kills} kills, {} acks, {} answered again, {entries} entries: nothing lost, doubled or moved",
        acks.load(Ordering::Relaxed),
        records.iter().map(|record| record.again).sum::<u64>(),
    );
}

#[expect(clippy::disallowed_methods, reason = "tests have no config")]
fn kills() -> usize {
    let kills = std::env::var("ROOMFUL_CRASH_KILLS").ok();
    kills.map_or(SHORT_KILLS, |kills| kills.parse().unwrap())
}

fn room(number: usize) -> String {
    format!("chat:crash-{number}")
}

/// Small segments, so that some are sealed and taken over by the store between the kills, and all of the history.
const CONFIG: &str = "[storage]\nsegment_bytes = 1048576\nheadroom_percent = 0\nheadroom_bytes_min = 0\n[namespaces.chat]\nhistory_entries_max = 10000000\nhistory_bytes_max = 1099511627776\n";

const SHORT_KILLS: usize = 8;

const ROOMS: usize = 6;

const PUBLISHERS_PER_ROOM: usize = 3;

/// Longest wait before a kill, in milliseconds.
const LIFE_MS_MAX: u64 = 700;
