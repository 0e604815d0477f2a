//! What an operator does with rooms on disk: look at them, copy them into a file and bring them back, beside a running server and
//! without one. What comes back is what was there, in a new epoch; what can't be used is said clearly, and nothing is changed then.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test reports by panicking"
)]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use roomful_protocol::frame::{
    CursorRequest, Direction, Entry, Join, LocksPage, OpId, Published, Recovery, Reply, StatePage,
    TimerRequest, TimersPage,
};
use roomful_protocol::id::{Offset, ProducerId, RoomAlias, Sequence};
use roomful_protocol::payload::{Payload, PayloadFormat};
use roomful_protocol::position::Position;
use roomful_tests::back_end::{BackEnd, read};
use roomful_tests::keyed::{key, patch, put};
use roomful_tests::process::{Ended, Process};
use roomful_tests::publisher::{Phase, Publisher, Record};
use roomful_tests::raw::{self, join};
use roomful_tests::server::{Directory, UNLIMITED, each_namespace};
use roomful_tests::storage::{segments, tables};
use roomful_tests::tokens::{self, AUDIENCE, KEY};
use roomful_tests::wait::{PATIENCE, until, within};
use roomful_tests::{Connect, RawClient, Server};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Entries of every kind and format, state, a lock, a timer, a cursor and the result of an operation: in another server they are
/// what they were, at the same offsets of a later epoch.
#[tokio::test]
async fn a_room_is_moved_with_all_that_it_is() {
    let mut from = Server::with_config(&keyed()).await;
    let mut ann = enter(&from, "ann").await;
    let room = ann.join_as(ROOM, PRODUCER, Sequence(1)).await;
    for (number, payload) in payloads().into_iter().enumerate() {
        publish(&mut ann, room, number as u64 + 1, payload)
            .await
            .unwrap();
    }
    ann.change(room, put("card/1", "one")).await;
    ann.change(room, put("card/2", "two")).await;
    ann.change(room, patch("card/3", "{\"a\":[1, 2]}")).await;
    ann.hold(room, "card/1").await;
    let timer = TimerRequest::Set {
        name: key("later"),
        due_ms: (tokens::now() + 86_400) * 1_000,
        payload: Payload::text("ring"),
    };
    ann.timer(room, timer).await.unwrap();
    let head = ann.publish(room, Payload::text("last")).await.position;
    let read = Position::new(head.epoch, Offset(3));
    let cursor = CursorRequest::Set {
        read: Some(read),
        delivered: None,
    };
    ann.cursor(room, cursor).await.unwrap();
    let before = Room::of(&mut ann, room).await;
    from.terminate().await;

    let file = from.dir().join("rooms.jsonl");
    let file = file.to_str().unwrap();
    let exported = run(from.dir(), &["export", file, "--room", ROOM]).await;
    assert_done(&exported, &["1 rooms with 10 entries in", "rooms.jsonl"]);
    let mut to = Server::with_config(&keyed()).await;
    to.terminate().await;
    let imported = run(to.dir(), &["import", file]).await;
    assert_done(
        &imported,
        &["1 rooms with 10 entries imported into", "new epoch"],
    );
    to.start_again().await;

    let mut ann = enter(&to, "ann").await;
    let late = Join {
        since: Some(head),
        ..join(ROOM)
    };
    let joined = ann.join_with(late).await.unwrap();
    assert_eq!(joined.recovery, Recovery::Reset);
    assert!(joined.head.epoch > head.epoch);
    assert_eq!(joined.head.offset, head.offset);
    let room = joined.room;
    assert_eq!(Room::of(&mut ann, room).await, before);
    ann.close().await;
    let mut ann = enter(&to, "ann").await;
    let room = ann.join_as(ROOM, PRODUCER, Sequence(2)).await;
    let again = publish(&mut ann, room, 2, payloads().remove(1))
        .await
        .unwrap();
    assert_eq!((again.position.offset, again.duplicate), (Offset(2), true));
    let new = publish(&mut ann, room, 9, Payload::text("new"))
        .await
        .unwrap();
    assert_eq!(new.position.offset, head.offset.next());
}

/// While publishers publish, a backup is made through the admin listener. A server that is restored from it has every entry that was
/// acknowledged before the backup was begun, no room has a gap, and who has seen more is told `reset`.
#[tokio::test]
async fn a_backup_under_load_has_all_that_was_acknowledged_before_it() {
    let mut server = Server::with_config(&format!("{UNLIMITED}{SMALL}")).await;
    let (tell, phase) = watch::channel(Phase::Publish);
    let acks = Arc::<AtomicU64>::default();
    let mut publishing = JoinSet::new();
    for number in 0..4 {
        let room = format!("chat:load-{}", number % 3);
        let connect = Connect::to(&server);
        let publisher = Publisher::new(connect, room, number, Arc::clone(&acks));
        publishing.spawn(publisher.run(phase.clone()));
    }
    let count = || acks.load(Ordering::Relaxed);
    until("many are acknowledged", PATIENCE, async || count() > 2_000).await;
    let back_end = BackEnd::of(&server).await;
    let revoked = json!({ "user": "mallory" });
    back_end.ok("POST /v1/revocations", Some(&revoked)).await;

    let began = now();
    let file = server.dir().join("all.jsonl");
    let file = file.to_str().unwrap();
    let made = run_beside(&server, &["backup", file, "--running"]).await;
    assert_done(&made, &["3 rooms with ", "all.jsonl"]);
    let at_end = count();
    until("it goes on", PATIENCE, async || count() > at_end + 500).await;
    tell.send(Phase::Finish).unwrap();
    let records: Vec<Record> = publishing.join_all().await;
    server.kill().await;

    let data = server.dir().join("roomful-data");
    fs::rename(&data, server.dir().join("lost")).unwrap();
    let restored = run(server.dir(), &["restore", file]).await;
    assert_done(&restored, &["3 rooms with ", "new epoch", "1 revocations"]);
    server.start_again().await;
    for record in &records {
        let entries = history(&server, &record.room).await;
        let offsets: Vec<_> = entries.iter().map(|entry| entry.offset.0).collect();
        let all: Vec<_> = (1..=offsets.len() as u64).collect();
        assert_eq!(offsets, all, "{} has no gap", record.room);
        for ack in record.acked.iter().filter(|ack| ack.at < began) {
            let offset = ack.published.position.offset;
            let found = entries.get(usize::try_from(offset.0).unwrap() - 1);
            let op = found.and_then(|entry| entry.op).unwrap();
            assert_eq!((op.producer, op.sequence), (record.producer, ack.sequence));
        }
        let last = record.acked.last().unwrap().published.position;
        let mut client = RawClient::connect(&server).await;
        let late = Join {
            since: Some(last),
            ..join(&record.room)
        };
        let joined = client.join_with(late).await.unwrap();
        assert_eq!(joined.recovery, Recovery::Reset);
        assert!(joined.head.epoch > last.epoch);
        let next = client.publish(joined.room, Payload::text("on")).await;
        assert_eq!(next.position.offset, joined.head.offset.next());
    }
    let back_end = BackEnd::of(&server).await;
    let listed = back_end.ok("GET /v1/revocations", None).await;
    assert_eq!(listed["revocations"][0]["user"], "mallory");
}

/// What a running server says of its rooms is what its directory says when it has ended, in a table and as JSON, of all and of some.
#[tokio::test]
async fn an_inspection_says_the_same_beside_a_server_and_without_one() {
    let mut server = Server::with_config(SMALL).await;
    for (room, count) in [("chat:one", 3), ("chat:two", 5), ("doc:three", 1)] {
        fill(&server, room, count).await;
    }
    fill(&server, "game:in-memory", 1).await;
    let json = run_beside(&server, &["inspect", "--json", "--running"]).await;
    let rooms = lines(&json);
    let names: Vec<_> = rooms.iter().map(|room| room["room"].as_str()).collect();
    let expected = ["chat:one", "chat:two", "doc:three"].map(Some);
    assert_eq!(names, expected);
    assert_eq!(
        (&rooms[1]["entries"], &rooms[1]["head"]),
        (&json!(5), &json!(5))
    );
    assert_eq!(
        (&rooms[1]["first"], &rooms[1]["damaged"]),
        (&json!(1), &json!(null))
    );
    let verified = ["inspect", "--running", "--verify", "--room", "chat:two"];
    let table = run_beside(&server, &verified).await;
    assert_done(&table, &["default/chat:two", "1 rooms, 5 entries, "]);
    assert!(!table.output.contains("chat:one"));
    server.terminate().await;

    let offline = run(server.dir(), &["inspect", "--json", "--verify"]).await;
    let now = lines(&offline);
    let what = |room: &Value| {
        (
            room["room"].clone(),
            room["epoch"].clone(),
            room["bytes"].clone(),
        )
    };
    assert_eq!(
        now.iter().map(what).collect::<Vec<_>>(),
        rooms.iter().map(what).collect::<Vec<_>>()
    );
    let table = run(server.dir(), &["inspect", "--room", "chat:two"]).await;
    assert_done(&table, &["default/chat:two", "1 rooms, 5 entries, "]);
}

/// One entry of a room can't be read: an inspection names it, and a backup has all others. What is restored from that is whole.
#[tokio::test]
async fn a_damaged_room_is_named_and_left_out() {
    let mut server = Server::with_config(SMALL).await;
    fill(&server, "chat:bad", 5).await;
    let good = fill(&server, "chat:good", 5).await;
    server.kill().await;
    let log = segments(&server.dir().join("roomful-data")).pop().unwrap();
    let mut bytes = fs::read(&log).unwrap();
    let part = b"entry 2 of chat:bad";
    let at = bytes.windows(part.len()).position(|window| window == part);
    bytes[at.unwrap()] ^= 1;
    fs::write(&log, &bytes).unwrap();

    let named = run(server.dir(), &["inspect"]).await;
    assert_failed(
        &named,
        &[
            "DAMAGED",
            "default/chat:bad: records of it could not be read",
        ],
    );
    assert!(named.output.contains("default/chat:good"));
    let read = run(server.dir(), &["inspect", "--verify"]).await;
    assert_failed(&read, &["DAMAGED: ", "default/chat:bad: entry 3"]);
    let read = run(server.dir(), &["inspect", "--verify", "--json"]).await;
    assert_failed(&read, &["{\"finding\":\"", "\"room\":\"chat:good\""]);
    let file = server.dir().join("all.jsonl");
    let file = file.to_str().unwrap();
    let made = run(server.dir(), &["backup", file]).await;
    let others = "the rest is there, but no room that is damaged:";
    assert_failed(&made, &[others, "default/chat:bad"]);

    fs::rename(
        server.dir().join("roomful-data"),
        server.dir().join("damaged"),
    )
    .unwrap();
    let restored = run(server.dir(), &["restore", file]).await;
    assert_failed(&restored, &[others, "default/chat:bad"]);
    server.start_again().await;
    assert_eq!(history(&server, "chat:good").await, good);
    assert_eq!(history(&server, "chat:bad").await, []);
}

/// A bit in the store has flipped: the rooms that stand in its block are named, and the copy and the list have all others.
#[tokio::test]
async fn a_damaged_block_of_the_store_ends_no_copy() {
    let mut server = Server::with_config(SMALL).await;
    fill(&server, "chat:bad", 200).await;
    let good = fill(&server, "chat:good", 200).await;
    server.terminate().await;
    // The first one is not compressed to what it has in common with another.
    let part = b"entry 0 of chat:bad";
    let find = |bytes: &[u8]| bytes.windows(part.len()).position(|window| window == part);
    let mut tables = tables(&server.dir().join("roomful-data")).into_iter();
    let found = tables.find_map(|table| {
        let bytes = fs::read(&table).unwrap();
        find(&bytes).map(|at| (table, bytes, at))
    });
    let (table, mut bytes, at) = found.unwrap();
    bytes[at] ^= 1;
    fs::write(table, bytes).unwrap();
    let damaged = "default/chat:bad: a block of the store";
    let made = run(server.dir(), &["backup", "all.jsonl"]).await;
    assert_failed(&made, &["the rest is there", damaged]);
    let read = run(server.dir(), &["inspect", "--verify"]).await;
    assert_failed(&read, &[damaged, "default/chat:good"]);

    let data = server.dir().join("roomful-data");
    fs::rename(data, server.dir().join("damaged")).unwrap();
    let restored = run(server.dir(), &["restore", "all.jsonl"]).await;
    assert_failed(&restored, &["the rest is there", "default/chat:bad"]);
    server.start_again().await;
    assert_eq!(history(&server, "chat:good").await, good);
}

/// Only the journal has been moved, without the number of the last start: a backup of it can be restored all the same. It said of its
/// rooms that they can't be.
#[tokio::test]
async fn a_backup_without_a_generation_can_be_restored() {
    let mut server = Server::with_config(SMALL).await;
    let before = fill(&server, "chat:one", 5).await;
    server.terminate().await;
    let data = server.dir().join("roomful-data");
    for last in [None, Some("7\n")] {
        fs::remove_file(data.join("generation")).unwrap();
        if let Some(last) = last {
            fs::write(data.join("generation"), last).unwrap();
        }
        let file = server.dir().join(format!("{}.jsonl", last.is_some()));
        let file = file.to_str().unwrap();
        let made = run(server.dir(), &["backup", file]).await;
        assert_done(&made, &["1 rooms with 5 entries in"]);
        fs::remove_dir_all(&data).unwrap();
        let restored = run(server.dir(), &["restore", file]).await;
        assert_done(&restored, &["1 rooms with 5 entries restored"]);
    }
    server.start_again().await;
    assert_eq!(history(&server, "chat:one").await, before);
}

/// What is damaged may be anybody's: no copy is made of it, by whoever is asked, and an inspection says where it is.
#[tokio::test]
async fn a_damaged_journal_is_not_copied() {
    let mut server = Server::with_config(SMALL).await;
    fill(&server, "chat:one", 5).await;
    server.kill().await;
    let log = segments(&server.dir().join("roomful-data")).pop().unwrap();
    let mut bytes = fs::read(&log).unwrap();
    bytes[3] ^= 1;
    fs::write(&log, &bytes).unwrap();
    let damaged = "is damaged, and nobody knows whose the damaged part was: `roomful repair`";
    let named = run(server.dir(), &["inspect", "--verify"]).await;
    let file = log.file_name().unwrap().to_str().unwrap();
    assert_failed(&named, &["DAMAGED: ", file, damaged]);
    for command in [&["inspect"][..], &["backup", "b"], &["import", "b"]] {
        assert_failed(&run(server.dir(), command).await, &[damaged]);
    }
    server.start_again().await;
    let refused = run_beside(&server, &["backup", "b", "--running"]).await;
    assert_failed(&refused, &["refuses it: what was stored is damaged"]);
    assert!(!server.dir().join("b").exists());
}

/// An import refuses rooms that are there, all of the file; told to replace them it does, and what they were is gone.
#[tokio::test]
async fn an_import_replaces_rooms_only_when_it_is_told_to() {
    let mut server = Server::with_config(SMALL).await;
    let before = fill(&server, "chat:one", 3).await;
    server.terminate().await;
    let file = server.dir().join("one.jsonl");
    let file = file.to_str().unwrap();
    let exported = run(server.dir(), &["export", file, "--room", "chat:one"]).await;
    assert_done(&exported, &["1 rooms with 3 entries"]);
    server.start_again().await;
    let more = fill(&server, "chat:one", 4).await;
    assert_eq!(more.len(), 7);
    server.terminate().await;
    let refused = run(server.dir(), &["import", file]).await;
    assert_failed(
        &refused,
        &[
            "default/chat:one is there already: nothing was imported",
            "--replace",
        ],
    );
    server.start_again().await;
    assert_eq!(history(&server, "chat:one").await, more);
    server.terminate().await;
    for _ in 0..2 {
        let replaced = run(server.dir(), &["import", file, "--replace"]).await;
        assert_done(&replaced, &["1 rooms with 3 entries imported"]);
    }
    server.start_again().await;
    assert_eq!(history(&server, "chat:one").await, before);
    fill(&server, "chat:one", 1).await;
    server.terminate().await;
    let whole = run(server.dir(), &["inspect", "--verify"]).await;
    assert_done(&whole, &["1 rooms, 4 entries"]);
}

/// Everything that can be wrong with a directory is said in one line that names it, and nothing is written.
#[tokio::test]
async fn what_is_wrong_with_a_directory_is_said() {
    let dir = Directory::new();
    for command in [&["inspect"][..], &["backup", "f"], &["import", "f"]] {
        let missing = run(&dir.0, command).await;
        assert_failed(&missing, &["there is no directory ./roomful-data"]);
    }
    fs::create_dir(dir.0.join("roomful-data")).unwrap();
    let empty = run(&dir.0, &["inspect"]).await;
    assert_failed(&empty, &["roomful-data has no rooms on disk"]);
    let nobody = run(
        &dir.0,
        &["inspect", "--running", "--admin-listen", "127.0.0.1:9"],
    )
    .await;
    assert_failed(&nobody, &["admin.key", "can't be read"]);
    fs::write(dir.0.join("roomful-data/admin.key"), KEY).unwrap();
    let nobody = run(
        &dir.0,
        &["inspect", "--running", "--admin-listen", "127.0.0.1:9"],
    )
    .await;
    assert_failed(
        &nobody,
        &["no server answers at 127.0.0.1:9", "listen.admin"],
    );

    let mut server = Server::with_config(SMALL).await;
    fill(&server, "chat:one", 3).await;
    let used = run(server.dir(), &["inspect"]).await;
    assert_failed(&used, &["another process uses ./roomful-data", "--running"]);
    let none = ["export", "f", "--running", "--room", "chat:none"];
    let none = run_beside(&server, &none).await;
    assert_failed(&none, &["there is no room default/chat:none on disk"]);
    let made = run_beside(&server, &["backup", "b", "--running"]).await;
    assert_done(&made, &["1 rooms with 3 entries in b"]);
    let written = run_beside(&server, &["backup", "b", "--running"]).await;
    assert_failed(&written, &["b is there already: nothing was written"]);
    let used = run(server.dir(), &["import", "b"]).await;
    assert_failed(
        &used,
        &["another process uses ./roomful-data: stop the server"],
    );
    server.terminate().await;
    let full = run(server.dir(), &["restore", "b"]).await;
    assert_failed(
        &full,
        &["./roomful-data is not empty: nothing was restored"],
    );
    let none = run(server.dir(), &["export", "f", "--room", "chat:none"]).await;
    assert_failed(&none, &["there is no room default/chat:none on disk"]);
    let none = run(server.dir(), &["export", "f"]).await;
    assert_eq!(none.status.code(), Some(2), "{}", none.output);
    assert!(!server.dir().join("f").exists() && !server.dir().join("f.part").exists());
    fs::write(
        server.dir().join("roomful-data/journal/FORMAT"),
        "roomful journal 2\n",
    )
    .unwrap();
    let newer = run(server.dir(), &["inspect"]).await;
    assert_failed(
        &newer,
        &["has format 2, and this server knows formats up to 1"],
    );
}

/// A file that was cut off at any line, or changed in any, is refused with the line, and so are a later version's and what is no
/// such file. Nothing is left where it should have gone.
#[tokio::test]
async fn what_is_wrong_with_a_file_is_said() {
    let mut server = Server::with_config(SMALL).await;
    fill(&server, "chat:one", 3).await;
    fill(&server, "chat:two", 2).await;
    server.terminate().await;
    assert_done(
        &run(server.dir(), &["backup", "b"]).await,
        &["2 rooms with 5 entries in b"],
    );
    let whole = fs::read_to_string(server.dir().join("b")).unwrap();
    let lines: Vec<_> = whole.lines().collect();
    let dir = Directory::new();
    let refused = async |text: &str, parts: &[&str]| {
        fs::write(dir.0.join("f"), text).unwrap();
        let ended = run(&dir.0, &["restore", "f"]).await;
        assert_failed(&ended, &[&["f: "], parts].concat());
        assert!(!dir.0.join("roomful-data").exists());
    };
    for kept in 1..lines.len() {
        let cut = lines[..kept].join("\n") + "\n";
        refused(&cut, &[&format!("it was cut off: line {kept} is")]).await;
    }
    refused(
        &whole[..whole.len() - 3],
        &["it was cut off", &format!("line {}", lines.len())],
    )
    .await;
    let end_of_one = lines
        .iter()
        .position(|line| line.contains("room_end"))
        .unwrap();
    let first = lines
        .iter()
        .position(|line| line.contains("\"room\":\"chat:one\""))
        .unwrap();
    let changed = whole.replace("entry 1 of chat:one", "entry X of chat:one");
    let line = format!(
        "line {}: one of the lines from {} on was changed",
        end_of_one + 1,
        first + 1
    );
    refused(&changed, &[&line]).await;
    let header = whole.replace("\"content\":\"backup\"", "\"content\":\"rooms\"");
    refused(
        &header,
        &[&format!(
            "line {}: a line outside of the rooms was changed",
            lines.len()
        )],
    )
    .await;
    let mut shorter = lines.clone();
    shorter.remove(first + 1);
    refused(
        &(shorter.join("\n") + "\n"),
        &["it doesn't follow what is before it"],
    )
    .await;
    refused(
        &format!("{whole}{{}}\n"),
        &["something stands behind the end"],
    )
    .await;
    refused(
        &whole.replace("{\"entry\":", "{\"entri\":"),
        &["unknown variant `entri`"],
    )
    .await;
    let newer = whole.replace("\"roomful_export\":1", "\"roomful_export\":2");
    refused(
        &newer,
        &["it has format 2, and this server knows formats up to 1"],
    )
    .await;
    let header: Value = serde_json::from_str(lines[0]).unwrap();
    let epoch = format!("\"epoch_max\":{}", header["epoch_max"]);
    let last = whole.replace(&epoch, "\"epoch_max\":9007199254740991");
    refused(&last, &["line 1: its epoch_max can't be"]).await;
    refused(
        "some notes\n",
        &["line 1: this is no export and no backup of Roomful"],
    )
    .await;
    refused("", &["line 1: this is no export and no backup of Roomful"]).await;
    let missing = run(&dir.0, &["restore", "nothing"]).await;
    assert_failed(&missing, &["nothing: it can't be read", "No such file"]);
    fs::write(dir.0.join("f"), &whole).unwrap();
    assert_done(
        &run(&dir.0, &["restore", "f"]).await,
        &["2 rooms with 5 entries restored"],
    );
}

/// The admin listener gives copies to who shows the key and asks for what there is.
#[tokio::test]
async fn the_admin_listener_gives_copies() {
    let server = Server::with_config(SMALL).await;
    fill(&server, "chat:one", 3).await;
    let back_end = BackEnd::of(&server).await;
    let all = back_end.call("GET /v1/storage/backup", &[], None).await;
    assert_eq!(all.status, 200);
    assert_eq!(all.header("content-type"), Some("application/x-ndjson"));
    assert!(all.text().lines().last().unwrap().contains("\"end\""));
    let one = json!({ "rooms": ["chat:one"] });
    let some = back_end
        .call("POST /v1/storage/export", &[], Some(&one))
        .await;
    assert!(some.text().contains("entry 2 of chat:one"));
    let listed = back_end
        .call("POST /v1/storage/inspect", &[], Some(&json!({})))
        .await;
    let listed: Value = serde_json::from_str(&listed.text()).unwrap();
    assert_eq!(
        (&listed["room"], &listed["entries"]),
        (&json!("chat:one"), &json!(3))
    );
    for (line, body, status) in [
        (
            "POST /v1/storage/export",
            json!({ "rooms": ["chat:none"] }),
            404,
        ),
        ("POST /v1/storage/export", json!({ "rooms": [] }), 400),
        (
            "POST /v1/storage/export",
            json!({ "rooms": ["no room"] }),
            400,
        ),
        ("POST /v1/storage/inspect", json!({ "names": [] }), 400),
        ("GET /v1/storage/export", json!(null), 405),
    ] {
        let body = Some(&body).filter(|body| !body.is_null());
        assert_eq!(back_end.refused(line, body).await.0, status, "{line}");
    }
    let stranger = BackEnd {
        key: KEY.to_owned(),
        ..back_end
    };
    assert_eq!(
        stranger.refused("GET /v1/storage/backup", None).await.0,
        401
    );

    let memory = each_namespace(|_| "durability = \"memory\"".to_owned());
    let server = Server::with_config(&memory).await;
    let back_end = BackEnd::of(&server).await;
    let response = back_end.call("GET /v1/storage/backup", &[], None).await;
    assert_eq!(response.status, 400);
    let text = &read(&response)["error"]["text"];
    assert_eq!(text, "this server has no rooms on disk");
}

/// Copies that are taken slowly take longer than a connection may live, and come whole. There are two of them at a time, and rooms
/// go on meanwhile.
#[tokio::test]
async fn copies_take_the_time_that_they_take() {
    let config = format!("[http]\nlifetime_ms = {LIFETIME_MS}\n{UNLIMITED}{SMALL}");
    let server = Server::with_config(&config).await;
    for number in 0..12 {
        raw::fill(&server, &format!("chat:large-{number}")).await;
    }
    let back_end = BackEnd::of(&server).await;
    let mut copies = Vec::new();
    for _ in 0..2 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        let mut stream = socket.connect(back_end.address).await.unwrap();
        let request = format!(
            "GET /v1/storage/backup HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\r\n",
            back_end.address, back_end.key
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 1_024];
        stream.read_exact(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 "));
        copies.push((stream, answer));
    }
    let (status, error) = back_end.refused("GET /v1/storage/backup", None).await;
    assert_eq!((status, &error["name"]), (503, &json!("overloaded")));
    fill(&server, "chat:meanwhile", 20).await;
    // Longer than a connection whose time is up may take for its last answer.
    sleep(Duration::from_millis(LIFETIME_MS + 3_000)).await;
    for (mut stream, mut answer) in copies {
        let rest = stream.read_to_end(&mut answer);
        within("the rest of a copy", rest).await.unwrap();
        assert!(answer.len() > 12 * 15 * 60_000);
        let end = String::from_utf8_lossy(&answer[answer.len() - 200..]).into_owned();
        assert!(end.contains("{\"end\":{\"rooms\":12,"), "{end}");
        assert!(end.ends_with("\r\n0\r\n\r\n"), "{end}");
    }
    let free = async || {
        back_end
            .call("GET /v1/storage/backup", &[], None)
            .await
            .status
    };
    until("there is a place again", PATIENCE, async || {
        free().await == 200
    })
    .await;
}

/// What a member sees of a room, without its epoch.
#[derive(Debug, PartialEq)]
struct Room {
    entries: Vec<Entry>,
    state: Vec<(String, Offset, Option<Payload>)>,
    locks: Vec<(String, Offset)>,
    timers: Vec<(String, u64, Payload)>,
    read: Option<Offset>,
    unread: u64,
}

impl Room {
    async fn of(client: &mut RawClient, room: RoomAlias) -> Self {
        let StatePage { items, .. } = client.page(room, "", None, 100).await;
        let LocksPage { locks, .. } = client.locks(room).await;
        let get = TimerRequest::Get {
            after: None,
            limit: 100,
        };
        let Reply::Timers(TimersPage { timers, .. }) = client.timer(room, get).await.unwrap()
        else {
            panic!("no timers");
        };
        let cursors = client.cursor(room, CursorRequest::Get).await.unwrap();
        Self {
            entries: entries(client, room).await,
            state: items
                .into_iter()
                .map(|item| (item.key.to_string(), item.version.offset, item.value))
                .collect(),
            locks: locks
                .into_iter()
                .map(|lock| (lock.lock.to_string(), lock.held.unwrap().fence))
                .collect(),
            timers: timers
                .into_iter()
                .map(|timer| (timer.name.to_string(), timer.due_ms, timer.payload))
                .collect(),
            read: cursors.read.map(|read| read.offset),
            unread: cursors.unread,
        }
    }
}

async fn enter(server: &Server, user: &str) -> RawClient {
    let token = tokens::sign(&tokens::claims(user));
    let mut client = Connect::to(server).open().await.unwrap();
    client.hello_with(Some(&token), None).await.unwrap();
    client
}

async fn publish(
    client: &mut RawClient,
    room: RoomAlias,
    sequence: u64,
    payload: Payload,
) -> Result<Published, roomful_protocol::frame::Error> {
    let op = OpId {
        producer: PRODUCER,
        sequence: Sequence(sequence),
    };
    client.publish_with(room, Some(op), payload).await
}

fn payloads() -> Vec<Payload> {
    vec![
        Payload::text("a text\nof two lines \u{1f600}"),
        Payload::json("{ \"b\": 1,\n \"a\": [1.0, 2e3] }"),
        Payload::binary(vec![0, 255, 10, 13]),
        Payload {
            format: PayloadFormat::MessagePack,
            bytes: vec![0x93, 1, 2, 3].into(),
        },
    ]
}

/// Publishes some entries in a room; gives all that it has.
async fn fill(server: &Server, room: &str, count: usize) -> Vec<Entry> {
    let mut client = RawClient::connect(server).await;
    let alias = client.join(room).await.room;
    for number in 0..count {
        let text = Payload::text(format!("entry {number} of {room}"));
        client.publish(alias, text).await;
    }
    client.close().await;
    history(server, room).await
}

/// A room's whole log.
async fn history(server: &Server, room: &str) -> Vec<Entry> {
    let mut client = RawClient::connect(server).await;
    let alias = client.join(room).await.room;
    entries(&mut client, alias).await
}

async fn entries(client: &mut RawClient, room: RoomAlias) -> Vec<Entry> {
    let (mut entries, mut from) = (Vec::new(), None);
    loop {
        let page = client.history(room, from, Direction::Backward, 1_000).await;
        entries.splice(0..0, page.entries);
        match page.next {
            Some(next) => from = Some(next),
            None => return entries,
        }
    }
}

/// Runs a command on the data directory of a server that is down.
async fn run(dir: &Path, arguments: &[&str]) -> Ended {
    Process::run(dir, arguments, &[]).await
}

/// Runs a command beside a server.
async fn run_beside(server: &Server, arguments: &[&str]) -> Ended {
    let address = server.admin_address().await.to_string();
    let environment = [("ROOMFUL_LISTEN__ADMIN", &*address)];
    Process::run(server.dir(), arguments, &environment).await
}

fn lines(ended: &Ended) -> Vec<Value> {
    assert!(ended.status.success(), "{}", ended.output);
    let lines = ended.output.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[track_caller]
fn assert_done(ended: &Ended, parts: &[&str]) {
    assert!(ended.status.success(), "{}", ended.output);
    assert_says(ended, parts);
}

#[track_caller]
fn assert_failed(ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.status.code(), Some(1), "{}", ended.output);
    assert_says(ended, parts);
}

#[track_caller]
fn assert_says(ended: &Ended, parts: &[&str]) {
    for part in parts {
        assert!(ended.output.contains(part), "{part:?}: {}", ended.output);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "publishers note by the real clock when they were answered"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

fn keyed() -> String {
    format!(
        "[auth]\nkeys = [{{ algorithm = \"HS256\", secret = \"{KEY}\" }}]\naudience = \"{AUDIENCE}\"\n{SMALL}"
    )
}

/// Segments are small, so that some of what is there has gone into the store and some has not.
const SMALL: &str =
    "[storage]\nheadroom_percent = 0\nheadroom_bytes_min = 0\nsegment_bytes = 1048576\n";

/// How long a connection may live that is no WebSocket.
const LIFETIME_MS: u64 = 500;

const ROOM: &str = "chat:moved";

const PRODUCER: ProducerId = ProducerId(7);
