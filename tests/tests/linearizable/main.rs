//! Many clients change the same keys and take the same locks, over restarts and kills of the server: what they were told is what
//! one after the other would have been told, and no stale fence changed anything.
//!
//! The short form has some ten thousand operations. `ROOMFUL_LINEARIZABLE_OPERATIONS` sets the full one
//! (`cargo xtask crash --linearizable`). What is checked, and why that is enough, is in `checker`; that it finds what it is for, in
//! `refused`.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

mod checker;
mod folded;
mod history;
mod refused;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use roomful_protocol::frame::{Direction, Entry, Reply};
use roomful_protocol::id::{Epoch, Offset};
use roomful_protocol::position::Position;
use roomful_tests::link::enter_again;
use roomful_tests::raw::join;
use roomful_tests::seed::seeded;
use roomful_tests::server::UNLIMITED;
use roomful_tests::wait::until;
use roomful_tests::{Connect, RawClient, Server};
use tokio::task::JoinSet;

use checker::{Seen, check};
use folded::Folded;
use history::{Answer, Asked, Operation, Stamps};
use worker::{Plan, Record, Worker, everything};

/// Goal: state and locks of rooms on disk behave as if one request after the other was handled, each at some moment between its
/// being sent and its being answered, whatever happens to connections and processes. Method: the record of all clients is checked
/// against the log of each room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_are_told_is_linearizable() {
    let wanted = operations();
    let restarts = wanted / OPERATIONS_PER_LIFE;
    let mut random = seeded("what_clients_are_told_is_linearizable");
    let mut server = Server::with_config(&format!("{UNLIMITED}{CONFIG}")).await;
    let plan = Arc::new(Plan {
        stamps: Stamps::default(),
        begun: AtomicU64::new(0),
        wanted,
    });
    let mut workers = JoinSet::new();
    for number in 0..ROOMS * CLIENTS_PER_ROOM {
        let (connect, plan) = (Connect::to(&server), Arc::clone(&plan));
        let random = StdRng::seed_from_u64(random.random());
        let worker = Worker::new(connect, room(number % ROOMS), number, plan, random);
        workers.spawn(worker.run());
    }
    let mut kills = 0;
    for restart in 1..=restarts {
        let enough = wanted * restart / (restarts + 1);
        until("clients go on", LIFE_MAX, async || {
            plan.begun.load(Ordering::Relaxed) >= enough
        })
        .await;
        if restart % 2 == 1 {
            server.kill().await;
            kills += 1;
        } else {
            server.terminate().await;
        }
        server.start_again().await;
    }
    let records = workers.join_all().await;
    let mut seen = Vec::new();
    for number in 0..ROOMS {
        seen.push(judge(&server, &room(number), &records, &plan.stamps).await);
    }
    println!("{}", report(&records, &seen, restarts, kills));
}

/// Checks one room; it panics with what is wrong.
async fn judge(server: &Server, room: &str, records: &[Record], stamps: &Stamps) -> Seen {
    let invoked = stamps.next();
    let connect = Connect::to(server);
    let (mut client, session, joined) = enter_again(&connect, None, || join(room)).await;
    // One more read, behind everything.
    let last = client.state(joined.room, everything()).await;
    let Ok(Reply::State(page)) = &last else {
        panic!("{room}: no page: {last:?}")
    };
    let epoch = page.position.epoch;
    let last = Operation {
        user: session.user,
        invoked,
        attempts: 1,
        asked: Asked::State(everything()),
        answer: Some(Answer {
            at: stamps.next(),
            reply: last,
        }),
    };
    let of_room = records.iter().filter(|record| record.room == room);
    let mut operations: Vec<_> = of_room
        .flat_map(|record| record.operations.iter().cloned())
        .collect();
    operations.push(last);
    let log = log(&mut client, joined.room, epoch).await;
    let checked = Folded::of(epoch, &log).and_then(|folded| check(&folded, &operations));
    checked.unwrap_or_else(|wrong| panic!("{room}: {wrong}"))
}

async fn log(
    client: &mut RawClient,
    room: roomful_protocol::id::RoomAlias,
    epoch: Epoch,
) -> Vec<Entry> {
    let mut log = Vec::new();
    let mut from = Some(Position::new(epoch, Offset(0)));
    while from.is_some() {
        let page = client.history(room, from, Direction::Forward, 1_000).await;
        log.extend(page.entries);
        from = page.next;
    }
    log
}

/// Says what was checked; a run in which what it is for never happened proves nothing.
fn report(records: &[Record], seen: &[Seen], restarts: u64, kills: u64) -> String {
    let sum = |of: fn(&Seen) -> u64| seen.iter().map(of).sum::<u64>();
    let operations: usize = records.iter().map(|record| record.operations.len()).sum();
    let counts = [
        ("writes taken", sum(|seen| seen.taken)),
        ("refused for a version", sum(|seen| seen.conflicts)),
        ("refused for a fence", sum(|seen| seen.stale_fences)),
        ("pages", sum(|seen| seen.pages)),
        ("grants", sum(|seen| seen.grants)),
        ("leases that ran out", sum(|seen| seen.expiries)),
        ("writes with an unknown outcome", sum(|seen| seen.unknown)),
    ];
    let there = sum(|seen| seen.unknown_and_there);
    let counted = counts.map(|(name, count)| format!("{count} {name}"));
    for (name, count) in counts {
        assert!(count > 0, "no {name}: nothing is proved of them");
    }
    format!(
        "{operations} operations, {restarts} restarts, {kills} of them kills: {}, {there} of which took effect: linearizable, and no stale fence changed anything",
        counted.join(", "),
    )
}

#[expect(clippy::disallowed_methods, reason = "tests have no config")]
fn operations() -> u64 {
    let operations = std::env::var("ROOMFUL_LINEARIZABLE_OPERATIONS").ok();
    operations.map_or(SHORT_OPERATIONS, |operations| operations.parse().unwrap())
}

fn room(number: usize) -> String {
    format!("chat:linear-{number}")
}

/// Small segments, so that the store takes some over; all of the history, since it is what is checked; and a short grace, so that
/// members who are gone lose their locks.
const CONFIG: &str = "[storage]\nsegment_bytes = 1048576\nheadroom_percent = 0\nheadroom_bytes_min = 0\n[namespaces.chat]\nhistory_entries_max = 10000000\nhistory_bytes_max = 1099511627776\npresence_grace_ms = 500\n";

const SHORT_OPERATIONS: u64 = 24_000;

/// Operations between two restarts.
const OPERATIONS_PER_LIFE: u64 = 3_000;

const ROOMS: usize = 3;

const CLIENTS_PER_ROOM: usize = 6;

/// How long one life of the server may take.
const LIFE_MAX: Duration = Duration::from_secs(120);
