//! `roomful repair`: what was damaged while no server ran is named, with what would be lost; applied, the server starts again, other
//! rooms have lost nothing, and whoever was in a room that was cut is told `reset`.
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{Direction, Entry, Join, Recovery};
use roomful_protocol::id::Offset;
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;
use roomful_tests::process::{Ended, Process};
use roomful_tests::raw::{assert_error, join};
use roomful_tests::storage::{segments, tables};
use roomful_tests::{RawClient, Server};

/// One bit in the middle of the log: its room alone is cut, and a repair that is not applied changes nothing.
#[tokio::test]
async fn a_flipped_bit_costs_its_room_what_follows() {
    let mut server = Server::with_config(CONFIG).await;
    let cut = publish(&server, CUT).await;
    let (position, other) = publish(&server, OTHER).await;
    server.kill().await;
    let log = segments(&data(&server)).pop().unwrap();
    flip(&log, format!("entry 3 of {CUT}").as_bytes());

    let planned = repair(&server, &[]).await;
    let stays = "default/chat:cut: entries 1 to 2 stay; lost: entries 3 to 10";
    for said in [
        "default/chat:cut: entry 3: a record can't be read",
        stays,
        "1 room is whole and stays as it is",
        "nothing was changed: --apply makes it so",
    ] {
        assert!(planned.output.contains(said), "{}", planned.output);
    }
    assert!(planned.status.success());
    server.start_again().await;
    let mut client = RawClient::connect(&server).await;
    let refused = client.join_with(join(CUT)).await.unwrap_err();
    assert_error(&refused, ErrorCode::StorageDamaged);
    server.terminate().await;

    let applied = repair(&server, &["--apply"]).await;
    assert!(applied.status.success(), "{}", applied.output);
    assert!(applied.output.contains(stays), "{}", applied.output);
    server.start_again().await;
    check_cut(&server, &cut, 2).await;
    assert_eq!(history(&server, OTHER).await, other);
    let recovery = rejoin(&server, OTHER, position).await;
    assert_ne!(recovery, Recovery::Reset);
    assert_eq!(publish(&server, OTHER).await.1.len(), 20);
}

/// A bit in the store, a log that ends too early, one that is gone: a repair names each, and the server serves again.
#[tokio::test]
async fn whatever_is_damaged_the_server_serves_again() {
    for damage in [Damage::Store, Damage::Short, Damage::Gone] {
        let mut server = Server::with_config(CONFIG).await;
        let before = publish(&server, CUT).await;
        server.terminate().await;
        server.start_again().await;
        let kept = match damage {
            Damage::Store => 0,
            Damage::Short | Damage::Gone => {
                publish(&server, OTHER).await;
                10
            }
        };
        server.kill().await;
        let log = segments(&data(&server)).pop().unwrap();
        let named = match damage {
            Damage::Store => {
                for table in tables(&data(&server)) {
                    let bytes = fs::read(&table).unwrap();
                    let middle = b"of chat:cut";
                    if bytes.windows(middle.len()).any(|window| window == middle) {
                        flip(&table, middle);
                    }
                }
                "damaged: store: default/chat:cut: entry 1"
            }
            Damage::Short => {
                let bytes = fs::read(&log).unwrap();
                fs::write(&log, &bytes[..bytes.len() / 2]).unwrap();
                "its end is missing"
            }
            Damage::Gone => {
                fs::remove_file(&log).unwrap();
                "the segment is missing"
            }
        };
        let applied = repair(&server, &["--apply"]).await;
        assert!(applied.status.success(), "{damage:?}: {}", applied.output);
        assert!(applied.output.contains(named), "{}", applied.output);
        server.start_again().await;
        check_cut(&server, &before, kept).await;
        publish(&server, OTHER).await;
    }
}

/// A directory that is used, one that is whole, one of a later version, and none at all: each is said, and nothing is changed.
#[tokio::test]
async fn what_cannot_be_repaired_is_said() {
    let mut server = Server::with_config(CONFIG).await;
    publish(&server, CUT).await;
    let line = ["--set", "storage.lock_wait_ms=100", "--apply"];
    let used = repair(&server, &line).await;
    assert_refused(&used, "another process uses the journal in");
    server.terminate().await;
    assert_refused(&repair(&server, &line).await, "nothing is damaged in");
    let none = repair(&server, &["--data-dir", "nowhere"]).await;
    assert_refused(&none, "there is no journal in nowhere");
    assert!(!server.dir().join("nowhere").exists());
    let format = data(&server).join("journal/FORMAT");
    fs::write(&format, "roomful journal 2\n").unwrap();
    assert_refused(&repair(&server, &line).await, "has format 2");
}

#[derive(Debug, Clone, Copy)]
enum Damage {
    Store,
    Short,
    Gone,
}

async fn repair(server: &Server, arguments: &[&str]) -> Ended {
    Process::run(server.dir(), &[&["repair"], arguments].concat(), &[]).await
}

fn assert_refused(ended: &Ended, said: &str) {
    assert_eq!(ended.status.code(), Some(1), "{}", ended.output);
    assert!(ended.output.contains(said), "{}", ended.output);
}

/// The room has so many of its entries and takes more; whoever was in it is told `reset`.
async fn check_cut(server: &Server, (position, before): &(Position, Vec<Entry>), kept: usize) {
    let recovery = rejoin(server, CUT, *position).await;
    assert_eq!(recovery, Recovery::Reset);
    assert_eq!(history(server, CUT).await, before[..kept]);
    assert_eq!(publish(server, CUT).await.1.len(), kept + 10);
}

/// Joins with a position.
async fn rejoin(server: &Server, room: &str, since: Position) -> Recovery {
    let mut client = RawClient::connect(server).await;
    let wanted = Join {
        since: Some(since),
        ..join(room)
    };
    client.join_with(wanted).await.unwrap().recovery
}

/// Publishes ten texts; gives the last one's position and the room's log.
async fn publish(server: &Server, room: &str) -> (Position, Vec<Entry>) {
    let mut client = RawClient::connect(server).await;
    let alias = client.join(room).await.room;
    let mut last = None;
    for number in 1..=10 {
        let text = Payload::text(format!("entry {number} of {room}"));
        last = Some(client.publish(alias, text).await.position);
    }
    (last.unwrap(), history(server, room).await)
}

/// A room's whole log.
async fn history(server: &Server, room: &str) -> Vec<Entry> {
    let mut client = RawClient::connect(server).await;
    let joined = client.join(room).await;
    let from = Position::new(joined.head.epoch, Offset(0));
    let page = client.history(joined.room, Some(from), Direction::Forward, 1_000);
    page.await.entries
}

/// Flips a bit of some bytes in a file.
fn flip(path: &Path, part: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    let mut windows = bytes.windows(part.len());
    let at = windows.position(|window| window == part).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn data(server: &Server) -> PathBuf {
    server.dir().join("roomful-data")
}

/// The machine's own disk may be fuller than the headroom asks for.
const CONFIG: &str = "[storage]\nheadroom_percent = 0\nheadroom_bytes_min = 0\n";

const CUT: &str = "chat:cut";
const OTHER: &str = "chat:other";
