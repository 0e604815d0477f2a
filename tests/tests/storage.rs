//! What the disk can do to a server: it is closed, of a later version, somebody else's, short, damaged or broken. Each is said clearly at
//! the start, or is a refusal that says whether to come again; nothing wrong is ever served, and rooms in memory go on.
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{Direction, Entry, Error};
use roomful_protocol::id::{Offset, RoomAlias};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;
use roomful_tests::process::{Ended, Process, binary};
use roomful_tests::publisher::{Phase, Publisher};
use roomful_tests::raw::{assert_error, join};
use roomful_tests::server::{Directory, UNLIMITED};
use roomful_tests::storage::{on_tmpfs, segments, until_ready, with_failing};
use roomful_tests::wait::{PATIENCE, until};
use roomful_tests::{Connect, RawClient, Server};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A file in its place, and a disk that is mounted to be read: neither is written, and the error names it.
#[tokio::test]
async fn a_data_directory_that_cannot_be_written_is_named() {
    let dir = Directory::new();
    let data = dir.0.join("roomful-data");
    fs::write(&data, "somebody's notes").unwrap();
    let ended = serve(&[], &dir.0, "").await;
    assert_refused(&ended, &["roomful-data", "Not a directory"]);
    assert_eq!(fs::read_to_string(&data).unwrap(), "somebody's notes");

    let dir = Directory::new();
    let data = dir.0.join("roomful-data");
    let words = on_tmpfs("ro", data.to_str().unwrap());
    let ended = serve(&words, &dir.0, "").await;
    assert_refused(&ended, &["roomful-data", "Read-only file system"]);
}

/// What a later version wrote is left as it is; the version that wrote it goes on with it.
#[tokio::test]
async fn a_journal_of_a_later_version_is_left_alone() {
    let mut server = Server::with_config(CONFIG).await;
    let (_, before) = publish(&server, DURABLE, 3).await;
    server.terminate().await;
    let format = server.dir().join("roomful-data/journal/FORMAT");
    let known = fs::read_to_string(&format).unwrap();
    fs::write(&format, "roomful journal 2\n").unwrap();
    let ended = serve(&[], server.dir(), CONFIG).await;
    assert_refused(
        &ended,
        &[
            "journal has format 2, and this server knows formats up to 1",
            "start the version that wrote it, or a later one",
        ],
    );
    fs::write(&format, known).unwrap();
    server.start_again().await;
    assert_eq!(history(&server, DURABLE).await, before);
}

/// A second server waits for the lock as long as it may, and then says who has it. The first goes on.
#[tokio::test]
async fn a_directory_in_use_is_waited_for_and_then_named() {
    let server = Server::with_config(CONFIG).await;
    publish(&server, DURABLE, 3).await;
    let other = format!("{CONFIG}lock_wait_ms = 300\n");
    let ended = serve(&[], server.dir(), &other).await;
    assert_refused(
        &ended,
        &[
            "another process uses the journal in",
            "roomful-data/journal",
        ],
    );
    assert!(
        ended.output.contains("waiting for it"),
        "it has waited: {}",
        ended.output
    );
    publish(&server, DURABLE, 3).await;
}

/// A new process is started while the old one says goodbye: it waits and then serves, and no publisher notices more than one
/// reconnect.
#[tokio::test]
async fn a_restart_in_place_loses_nothing() {
    let config = format!(
        "{UNLIMITED}[listen]\nwait_ms = 20000\n{CONFIG}[shutdown]\ndrain_accept_ms = 100\nspread_ms = 300\n"
    );
    let mut server = Server::with_config(&config).await;
    let (tell, phase) = watch::channel(Phase::Publish);
    let acks = Arc::<AtomicU64>::default();
    let publisher = Publisher::new(
        Connect::to(&server),
        DURABLE.to_owned(),
        0,
        Arc::clone(&acks),
    );
    let mut publishing = JoinSet::new();
    publishing.spawn(publisher.run(phase));
    let count = || acks.load(Ordering::Relaxed);
    until("somebody publishes", PATIENCE, async || count() > 100).await;
    server.process().signal("TERM").await;
    let old = server.let_go();
    server.start_again().await;
    let ended = old.ended().await;
    assert!(ended.status.success(), "{}", ended.output);
    let before = count();
    until("it goes on", PATIENCE, async || count() > before + 100).await;
    tell.send(Phase::Finish).unwrap();
    let record = publishing.join_all().await.remove(0);
    let entries = history(&server, DURABLE).await;
    assert_eq!(entries.len(), record.acked.len());
    for ack in &record.acked {
        let offset = ack.published.position.offset;
        let entry = entries.iter().find(|entry| entry.offset == offset);
        assert_eq!(entry.unwrap().op.unwrap().sequence, ack.sequence);
    }
}

/// The last batch ends too early, as after a write that never finished: what stood before it is served, and the log says
/// that something was cut off.
#[tokio::test]
async fn a_torn_tail_is_cut_back_to_the_last_whole_batch() {
    let mut server = Server::with_config(CONFIG).await;
    let (_, before) = publish(&server, DURABLE, 8).await;
    server.kill().await;
    let log = segments(&data(&server)).pop().unwrap();
    let mut bytes = fs::read(&log).unwrap();
    let last = text_of(DURABLE, 7);
    let at = position(&bytes, last.as_bytes());
    bytes[at + 3..].fill(0);
    fs::write(&log, &bytes).unwrap();
    server.start_again().await;
    assert_eq!(history(&server, DURABLE).await, before[..7]);
    let cut = "a write that never finished is cut off";
    assert!(server.log().iter().any(|line| line.contains(cut)));
    // It goes on behind that.
    let (positions, _) = publish(&server, DURABLE, 1).await;
    assert_eq!(positions[0].offset, Offset(8));
}

/// A file of the log that is shorter than it was made has lost what stood there, and one that is gone has: nobody knows whose that
/// was.
#[tokio::test]
async fn a_log_that_is_short_or_gone_refuses_all_rooms_on_disk() {
    for is_gone in [false, true] {
        let mut server = Server::with_config(CONFIG).await;
        publish(&server, DURABLE, 5).await;
        server.kill().await;
        let log = segments(&data(&server)).pop().unwrap();
        let bytes = fs::read(&log).unwrap();
        match is_gone {
            true => fs::remove_file(&log).unwrap(),
            false => fs::write(&log, &bytes[..bytes.len() / 2]).unwrap(),
        }
        server.start_again().await;
        let mut client = RawClient::connect(&server).await;
        let refused = client.join_with(join(DURABLE)).await.unwrap_err();
        assert_error(&refused, ErrorCode::StorageDamaged);
        let said = match is_gone {
            true => "the segment is missing",
            false => "its end is missing",
        };
        assert!(server.log().iter().any(|line| line.contains(said)));
    }
}

/// One bit of one entry has flipped: its room is refused and named, also later on; every other one is whole.
#[tokio::test]
async fn a_flipped_bit_refuses_its_room_alone() {
    let mut server = Server::with_config(CONFIG).await;
    publish(&server, DURABLE, 5).await;
    let (_, other) = publish(&server, "chat:other", 5).await;
    server.kill().await;
    let log = segments(&data(&server)).pop().unwrap();
    let mut bytes = fs::read(&log).unwrap();
    let text = text_of(DURABLE, 2);
    let at = position(&bytes, text.as_bytes());
    bytes[at] ^= 1;
    fs::write(&log, &bytes).unwrap();
    for _ in 0..2 {
        server.start_again().await;
        let mut client = RawClient::connect(&server).await;
        let refused = client.join_with(join(DURABLE)).await.unwrap_err();
        assert_error(&refused, ErrorCode::StorageDamaged);
        assert_eq!(history(&server, "chat:other").await, other);
        until_ready(&server, 200, "ready").await;
        // The second time it has gone into the store, or would have.
        server.terminate().await;
    }
}

/// What is damaged may be anybody's: no room on disk opens, those in memory do, and the server says that it isn't ready.
#[tokio::test]
async fn damage_that_may_be_anybodys_refuses_all_rooms_on_disk() {
    let mut server = Server::with_config(CONFIG).await;
    publish(&server, DURABLE, 5).await;
    server.kill().await;
    let log = segments(&data(&server)).pop().unwrap();
    let mut bytes = fs::read(&log).unwrap();
    bytes[3] ^= 1;
    fs::write(&log, &bytes).unwrap();
    server.start_again().await;
    let damaged = "the journal is damaged: no room on disk opens before it is repaired";
    until_ready(&server, 503, damaged).await;
    for room in [DURABLE, "chat:new"] {
        let mut client = RawClient::connect(&server).await;
        let refused = client.join_with(join(room)).await.unwrap_err();
        assert_error(&refused, ErrorCode::StorageDamaged);
    }
    publish(&server, IN_MEMORY, 3).await;
    let metrics = server.metrics().await;
    let health = metrics.labelled("roomful_journal_health", "state", "damaged");
    assert_eq!(health, 1.0);
    // Nothing was made of it: it is there for whoever repairs it.
    assert!(fs::read(&log).unwrap().starts_with(&bytes[..64]));
}

/// The process before had a clock that ran ten years ahead: rooms keep their epochs and go on, and those that begin now are not
/// mistaken for older ones.
#[tokio::test]
async fn a_clock_that_steps_moves_no_room() {
    let mut server = Server::with_config(CONFIG).await;
    let (positions, before) = publish(&server, DURABLE, 3).await;
    for ahead_s in [315_360_000, 0] {
        server.terminate().await;
        let file = data(&server).join("generation");
        let generation: u64 = fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        fs::write(&file, format!("{}\n", generation + ahead_s)).unwrap();
        server.start_again().await;
        assert_eq!(history(&server, DURABLE).await, before);
        let mut client = RawClient::connect(&server).await;
        assert_eq!(client.join(DURABLE).await.head, positions[2]);
        let room = format!("chat:new-{ahead_s}");
        let begun = client.join(&room).await.head.epoch;
        assert!(begun.0 >> 20 > generation + ahead_s, "{begun:?}");
    }
}

/// A disk with less space than its headroom takes nothing for rooms on it, says so to clients and balancers, and goes on by itself
/// once there is space. Rooms in memory don't notice.
#[tokio::test]
async fn a_full_disk_refuses_and_recovers_by_itself() {
    let config =
        "[storage]\nsegment_bytes = 1048576\nheadroom_percent = 0\nheadroom_bytes_min = 16777216\n";
    let dir = "roomful-data";
    let server = Server::through(&on_tmpfs("size=64m", dir), config).await;
    let mut client = RawClient::connect(&server).await;
    let durable = client.join(DURABLE).await.room;
    let memory = client.join(IN_MEMORY).await.room;
    client.publish(durable, Payload::text("before")).await;
    until_ready(&server, 200, "ready").await;

    // Another's file takes what there is, but for half of the headroom. The server's own mounts are seen through its process.
    let root = format!("/proc/{}/cwd/{dir}/ballast", server.process().id());
    let ballast = vec![7; 52 << 20];
    fs::write(&root, &ballast).unwrap();
    until_ready(&server, 503, "the disk has too little space").await;
    let refused = refusal(&mut client, durable).await;
    assert_error(&refused, ErrorCode::StorageFull);
    assert_eq!(refused.after_ms, Some(1_000));
    client.publish(memory, Payload::text("goes on")).await;

    fs::remove_file(&root).unwrap();
    until_ready(&server, 200, "ready").await;
    client.publish(durable, Payload::text("after")).await;
    let texts: Vec<_> = history(&server, DURABLE).await;
    let texts: Vec<_> = texts.into_iter().map(|entry| entry.payload).collect();
    assert_eq!(texts, ["before", "after"].map(Payload::text));
}

/// A sync or a write that fails, also because the disk is full after all: nothing on disk is acknowledged any more until a restart,
/// which has all that was. Rooms in memory go on.
#[tokio::test]
async fn a_disk_that_fails_takes_nothing_until_a_restart_under_strace() {
    for inject in [
        "fdatasync:error=EIO:when=9",
        "pwrite64:error=EIO:when=9",
        "pwrite64:error=ENOSPC:when=9",
    ] {
        let words = with_failing(inject);
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let mut server = Server::through(&words, CONFIG).await;
        let mut client = RawClient::connect(&server).await;
        let room = client.join(DURABLE).await.room;
        let mut acked = Vec::new();
        let refused = loop {
            let text = text_of(DURABLE, acked.len());
            match client.publish_with(room, None, Payload::text(text)).await {
                Ok(published) => acked.push(published.position),
                Err(refused) => break refused,
            }
            assert!(acked.len() < 100, "{inject}: it has not failed");
        };
        assert!(!acked.is_empty(), "{inject}");
        assert_error(&refused, ErrorCode::OutcomeUnknown);
        until_ready(&server, 503, "the disk has failed").await;
        for room in [DURABLE, "chat:new"] {
            let mut client = RawClient::connect(&server).await;
            let refused = match client.join_with(join(room)).await {
                Ok(joined) => refusal(&mut client, joined.room).await,
                Err(refused) => refused,
            };
            assert_error(&refused, ErrorCode::StorageFailed);
        }
        publish(&server, IN_MEMORY, 3).await;
        let failed = "the journal can't be written";
        assert!(
            server.log().iter().any(|line| line.contains(failed)),
            "{inject}"
        );

        server.kill().await;
        server.start_again().await;
        let entries = history(&server, DURABLE).await;
        for (number, position) in acked.iter().enumerate() {
            let entry = &entries[number];
            assert_eq!(entry.offset, position.offset, "{inject}");
            assert_eq!(entry.payload, Payload::text(text_of(DURABLE, number)));
        }
        // That of which nothing was known may be there; nothing else is.
        assert!(entries.len() <= acked.len() + 1, "{inject}: {entries:?}");
        publish(&server, DURABLE, 3).await;
    }
}

/// Starts the server where it can't start, and gives what it says.
async fn serve(words: &[&str], dir: &Path, config: &str) -> Ended {
    fs::write(dir.join("roomful.toml"), config).unwrap();
    let server = binary();
    let line = [words, &[server.to_str().unwrap(), "serve"]].concat();
    let environment = [
        ("ROOMFUL_LISTEN__PUBLIC", "127.0.0.1:0"),
        ("ROOMFUL_LISTEN__ADMIN", "127.0.0.1:0"),
    ];
    let process = Process::start_program(Path::new(line[0]), dir, &line[1..], &environment);
    process.ended().await
}

fn assert_refused(ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.status.code(), Some(1), "{}", ended.output);
    for part in parts {
        assert!(ended.output.contains(part), "{part:?} in {}", ended.output);
    }
}

/// Publishes so many texts one after the other; gives their positions and the room's log.
async fn publish(server: &Server, room: &str, count: usize) -> (Vec<Position>, Vec<Entry>) {
    let mut client = RawClient::connect(server).await;
    let alias = client.join(room).await.room;
    let mut positions = Vec::new();
    for number in 0..count {
        let text = Payload::text(text_of(room, number));
        positions.push(client.publish(alias, text).await.position);
    }
    (positions, history(server, room).await)
}

fn text_of(room: &str, number: usize) -> String {
    format!("entry {number} of {room}")
}

async fn refusal(client: &mut RawClient, room: RoomAlias) -> Error {
    let published = client.publish_with(room, None, Payload::text("no")).await;
    published.unwrap_err()
}

/// A room's whole log.
async fn history(server: &Server, room: &str) -> Vec<Entry> {
    let mut client = RawClient::connect(server).await;
    let joined = client.join(room).await;
    let mut from = Position::new(joined.head.epoch, Offset(0));
    let mut entries = Vec::new();
    loop {
        let page = client.history(joined.room, Some(from), Direction::Forward, 1_000);
        let page = page.await;
        entries.extend(page.entries);
        match page.next {
            Some(next) => from = next,
            None => return entries,
        }
    }
}

fn position(bytes: &[u8], part: &[u8]) -> usize {
    let found = bytes.windows(part.len()).position(|window| window == part);
    found.unwrap()
}

fn data(server: &Server) -> PathBuf {
    server.dir().join("roomful-data")
}

/// The machine's own disk may be fuller than the headroom asks for.
const CONFIG: &str = "[storage]\nheadroom_percent = 0\nheadroom_bytes_min = 0\n";

const DURABLE: &str = "chat:durable";
const IN_MEMORY: &str = "game:in-memory";
