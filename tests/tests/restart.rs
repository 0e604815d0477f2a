//! The server is gone and comes back on the same port: who was there is told honestly what is left.
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::time::Duration;

use roomful_client::{Client, JoinOptions, Options, RoomEvent};
use roomful_protocol::frame::{
    Durability, Join, Presence, PresenceRequest, Recovery, Reply, Watch, Welcome,
};
use roomful_protocol::id::Offset;
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;
use roomful_tests::raw::join;
use roomful_tests::wait::within;
use roomful_tests::{Connect, Follower, RawClient, Server};

/// In memory.
const ROOM: &str = "game:restart";

/// On disk.
const STORED: &str = "chat:restart";

/// After a kill the memory room is another one: its epoch is later, and whoever brings an old position is told `reset`, once, and goes on from the head.
#[tokio::test]
async fn after_a_restart_an_old_position_is_reset_honestly() {
    let mut server = Server::start().await;
    let mut follower = Follower::new(Connect::to(&server), ROOM);
    follower.attach().await;
    let before = publish(&server, 5).await;
    follower.until_at(before.offset).await;

    server.kill().await;
    server.start_again().await;
    let joined = follower.attach().await;
    assert_eq!((joined.recovery, follower.resets()), (Recovery::Reset, 1));
    assert!(
        joined.position.epoch > before.epoch,
        "{} is not after {}",
        joined.position,
        before
    );
    assert_eq!(joined.position.offset, Offset(0));
    let after = publish(&server, 3).await;
    follower.until_at(after.offset).await;
    assert_eq!(follower.resets(), 1);
}

/// After a kill the room on disk is the same: whoever comes back goes on where it was.
#[tokio::test]
async fn after_a_restart_a_room_on_disk_is_the_same() {
    let mut server = Server::start().await;
    let mut follower = Follower::new(Connect::to(&server), STORED);
    let joined = follower.attach().await;
    assert_eq!(joined.durability, Durability::Local);
    let mut last = publish_to(&server, STORED, 5).await;
    follower.until_at(last.offset).await;
    for _ in 0..2 {
        server.kill().await;
        server.start_again().await;
        let missed = publish_to(&server, STORED, 3).await;
        assert_eq!(missed.epoch, last.epoch);
        assert_eq!(missed.offset.0, last.offset.0 + 3);
        last = missed;
        let joined = follower.attach().await;
        assert_eq!(joined.recovery, Recovery::Recovering);
        follower.until_at(last.offset).await;
    }
    assert_eq!(follower.resets(), 0);
}

/// Epochs grow over every restart, also when nobody was in the room meanwhile.
#[tokio::test]
async fn epochs_grow_over_every_restart() {
    let mut server = Server::start().await;
    let mut last = publish(&server, 1).await.epoch;
    for _ in 0..3 {
        server.kill().await;
        server.start_again().await;
        let epoch = publish(&server, 1).await.epoch;
        assert!(epoch > last, "{epoch} after {last}");
        last = epoch;
    }
}

/// The resume token is a signed statement: the process that gave it may be gone, its bearer is still the same user, in the same session.
#[tokio::test]
async fn a_resume_token_outlives_the_process() {
    let mut server = Server::start().await;
    let mut client = Connect::to(&server).open().await.unwrap();
    let before = client.hello().await;
    server.kill().await;
    server.start_again().await;
    let after = resumed(&server, &before).await;
    assert_eq!(
        (after.resumed, after.session, &after.user),
        (true, before.session, &before.user)
    );
    // And the next one too: each welcome brings a token of its own.
    server.kill().await;
    server.start_again().await;
    assert_eq!(resumed(&server, &after).await.user, before.user);
}

/// After a restart the members are those who came back, and nobody else.
#[tokio::test]
async fn after_a_restart_presence_has_no_ghosts() {
    let mut server = Server::start().await;
    let mut welcomes = Vec::new();
    for _ in 0..3 {
        let mut client = Connect::to(&server).open().await.unwrap();
        welcomes.push(client.hello().await);
        client
            .join_with(Join {
                watch: Watch::Members,
                ..join(ROOM)
            })
            .await
            .unwrap();
    }
    server.kill().await;
    server.start_again().await;
    let mut users = Vec::new();
    let mut back = Vec::new();
    for welcome in &welcomes[..2] {
        let mut client = Connect::to(&server).open().await.unwrap();
        users.push(
            client
                .hello_with(None, Some(&welcome.resume))
                .await
                .unwrap()
                .user,
        );
        let joined = client
            .join_with(Join {
                watch: Watch::Members,
                ..join(ROOM)
            })
            .await
            .unwrap();
        back.push((client, joined.room));
    }
    let (client, room) = &mut back[0];
    let room = *room;
    let what = PresenceRequest::Get {
        after: None,
        limit: 10,
    };
    let Reply::Members(page) = client
        .ask(|request| Presence {
            request,
            room,
            what,
        })
        .await
        .unwrap()
    else {
        panic!("no members")
    };
    let mut found: Vec<_> = page.members.into_iter().map(|info| info.user).collect();
    found.sort();
    users.sort();
    assert_eq!((page.occupancy, found), (2, users));
}

/// The client library needs nobody's help: it comes back by itself, says `reset` once, and what was published meanwhile takes effect once, in its order.
#[tokio::test]
async fn the_rust_client_comes_back_by_itself() {
    let mut server = Server::start().await;
    let options = Options {
        reconnect_base: Duration::from_millis(20),
        reconnect_max: Duration::from_millis(100),
        ..Options::default()
    };
    let client = Client::connect(&server.websocket_url(), options)
        .await
        .unwrap();
    let user = client.user();
    let (room, mut events) = client.join(ROOM, JoinOptions::default()).await.unwrap();
    let first = room.publish(Payload::text("before")).await.unwrap();

    server.kill().await;
    let mut receipts = Vec::new();
    for number in 0..10 {
        receipts.push(
            room.enqueue(Payload::text(number.to_string()))
                .await
                .unwrap(),
        );
    }
    server.start_again().await;
    for (receipt, offset) in receipts.into_iter().zip(1..) {
        let published = within("the outcome of a publish", receipt).await.unwrap();
        assert!(published.position.epoch > first.position.epoch);
        assert_eq!(published.position.offset, Offset(offset));
    }
    let mut told = Vec::new();
    while told.len() < 12 {
        match within("an event", events.next()).await.unwrap() {
            RoomEvent::Event { entry, .. } => {
                told.push(String::from_utf8(entry.payload.bytes.to_vec()).unwrap());
            }
            RoomEvent::Reset(_) => told.push("reset".to_owned()),
            _ => {}
        }
    }
    assert_eq!(
        told,
        [
            "before", "reset", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9"
        ]
    );
    assert_eq!(client.user(), user);
    client.close().await;
}

async fn publish(server: &Server, count: usize) -> Position {
    publish_to(server, ROOM, count).await
}

async fn publish_to(server: &Server, room: &str, count: usize) -> Position {
    let mut client = RawClient::connect(server).await;
    let joined = client.join(room).await;
    let mut position = joined.position;
    for number in 0..count {
        position = client
            .publish(joined.room, Payload::text(number.to_string()))
            .await
            .position;
    }
    client.close().await;
    position
}

async fn resumed(server: &Server, before: &Welcome) -> Welcome {
    let mut client = Connect::to(server).open().await.unwrap();
    client.hello_with(None, Some(&before.resume)).await.unwrap()
}
