//! The whole client against a scripted server, over a pipe in memory: what the network does is spelled out, and time is paused.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that can't go on shall fail where it stands"
)]

mod fake;
mod keyed;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fake::{ALIAS, Peer, Server, event, published};
use roomful_client::{
    Client, CloseReason, ConnectionState, Encoding, Error, JoinOptions, Options, Payload, Recovery,
    Room, RoomEvent, RoomEvents, TokenSource,
};
use roomful_protocol::frame::{CaughtUp, ClientFrame, Goaway, Ok as OkFrame, Reply, TokenExpiring};
use roomful_protocol::id::Offset;
use tokio::time::{Instant, timeout};

const PIPE_BYTES: usize = 64 * 1024;

/// Goal: a publish, its acknowledgement and an event pass in both encodings, with payloads untouched.
#[tokio::test(start_paused = true)]
async fn a_publish_and_an_event_pass_in_both_encodings() {
    for encoding in Encoding::ALL {
        let (mut server, options) = Server::new(PIPE_BYTES);
        let options = Options {
            encoding,
            ..options
        };
        let (client, room, mut events, mut peer) = in_room(&mut server, options).await;
        let receipt = room
            .enqueue(Payload::binary(&b"\x00\xff"[..]))
            .await
            .unwrap();
        let publish = peer.publish().await;
        assert_eq!(publish.payload, Payload::binary(&b"\x00\xff"[..]));
        assert_eq!(publish.op.unwrap().producer, client.producer());
        peer.send(published(publish.request, 1)).await;
        assert_eq!(receipt.await.unwrap().position.offset, Offset(1));
        peer.send(event(1, Payload::json("{\"a\":1}"))).await;
        let RoomEvent::Event { position, entry } = next(&mut events).await else {
            panic!("no event")
        };
        assert_eq!(
            (position.to_string(), entry.payload),
            ("1-1".to_owned(), Payload::json("{\"a\":1}"))
        );
        assert_eq!(room.position(), position);
    }
}

/// Goal: a full server's `Retry-After` is waited out each time, with a jitter on top that grows.
#[tokio::test(start_paused = true)]
async fn a_full_server_is_asked_again_when_it_said() {
    let (mut server, options) = Server::new(PIPE_BYTES);
    let client = Client::start("ws://server", options).unwrap();
    let full = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n";
    let mut asked = Instant::now();
    server.refuse(full).await;
    for jitter_ms in [500, 1_000] {
        server.refuse(full).await;
        let waited = asked.elapsed();
        let longest = Duration::from_millis(7_000 + jitter_ms + 5);
        assert!(
            waited >= Duration::from_secs(7) && waited <= longest,
            "{waited:?}"
        );
        asked = Instant::now();
    }
    let mut peer = server.accept().await;
    assert!(asked.elapsed() >= Duration::from_secs(7));
    peer.welcome().await;
    let mut state = client.state();
    let connected = |state: &ConnectionState| *state == ConnectionState::Connected;
    state.wait_for(connected).await.unwrap();
}

/// Goal: after the network failed, the client resumes, joins from its last position, and sends again what wasn't acknowledged, then what came meanwhile.
#[tokio::test(start_paused = true)]
async fn a_cut_is_healed_without_the_application() {
    let (mut server, options) = Server::new(PIPE_BYTES);
    let (_client, room, mut events, mut peer) = in_room(&mut server, options).await;
    peer.send(event(1, Payload::text("one"))).await;
    next(&mut events).await;
    let sent = room.enqueue(Payload::text("a")).await.unwrap();
    let first = peer.publish().await;
    drop(peer);

    let queued = room.enqueue(Payload::text("b")).await.unwrap();
    let mut peer = server.accept().await;
    assert_eq!(peer.welcome().await.resume.as_deref(), Some("resume-1"));
    let join = peer.let_in(1, Recovery::Recovering).await;
    assert_eq!(join.since.unwrap().to_string(), "1-1");
    let (again, then) = (peer.publish().await, peer.publish().await);
    assert_eq!((again.op, again.payload), (first.op, Payload::text("a")));
    assert_eq!(then.payload, Payload::text("b"));
    peer.send(event(2, Payload::text("missed"))).await;
    peer.send(CaughtUp {
        room: ALIAS,
        offset: Offset(2),
    })
    .await;
    peer.send(published(again.request, 3)).await;
    peer.send(published(then.request, 4)).await;
    assert_eq!(sent.await.unwrap().position.offset, Offset(3));
    assert_eq!(queued.await.unwrap().position.offset, Offset(4));
    assert!(matches!(next(&mut events).await, RoomEvent::Joined(_)));
    assert!(matches!(next(&mut events).await, RoomEvent::Event { .. }));
    assert!(matches!(next(&mut events).await, RoomEvent::CaughtUp(_)));
}

/// Goal: a reader that doesn't read stops the socket, not the memory; nothing is lost, and heartbeats go on meanwhile.
#[tokio::test(start_paused = true)]
async fn a_reader_that_does_not_read_stops_the_socket_and_misses_nothing() {
    let (mut server, options) = Server::new(1_024);
    let options = Options {
        events_max: 2,
        ..options
    };
    let (_client, _room, mut events, mut peer) = in_room(&mut server, options).await;
    let mut written = 0;
    let text = "x".repeat(100);
    while written < 1_000 {
        let send = peer.send(event(written + 1, Payload::text(text.clone())));
        if timeout(Duration::from_secs(1), send).await.is_err() {
            break;
        }
        written += 1;
    }
    assert!(
        written < 100,
        "{written} events were taken from a server whose reader sleeps"
    );

    // Ten heartbeats of the application's sleep don't end the connection; the pings keep coming. The pipe is full in one direction alone.
    for _ in 0..10 {
        let frame = timeout(Duration::from_secs(21), peer.receive())
            .await
            .unwrap();
        assert!(matches!(frame, Ok(ClientFrame::Ping(_))), "{frame:?}");
    }
    for offset in 1..=written {
        let RoomEvent::Event { position, .. } = next(&mut events).await else {
            panic!("no event")
        };
        assert_eq!(position.offset, Offset(offset));
    }
}

/// Goal: goaway's delay is obeyed, and its resume token brought.
#[tokio::test(start_paused = true)]
async fn a_server_that_goes_away_is_given_its_time() {
    let (mut server, options) = Server::new(PIPE_BYTES);
    let options = Options {
        reconnect_base: Duration::from_millis(100),
        ..options
    };
    let (_client, mut peer) = connected(&mut server, options).await;
    peer.send(Goaway {
        reconnect_after_ms: 3_000,
        resume: "resume-2".to_owned(),
    })
    .await;
    peer.close(1012, "restart").await;
    let start = Instant::now();
    let mut peer = server.accept().await;
    let waited = start.elapsed();
    assert!((3_000..=3_101).contains(&waited.as_millis()), "{waited:?}");
    assert_eq!(peer.welcome().await.resume.as_deref(), Some("resume-2"));
}

/// Goal: a close code that forbids coming back ends the client, its streams and its calls with the reason.
#[tokio::test(start_paused = true)]
async fn a_client_that_was_replaced_stays_away() {
    let (mut server, options) = Server::new(PIPE_BYTES);
    let (client, room, mut events, mut peer) = in_room(&mut server, options).await;
    let receipt = room.enqueue(Payload::text("a")).await.unwrap();
    peer.publish().await;
    peer.close(4409, "replaced").await;
    let reason = CloseReason::ByServer {
        code: 4409,
        reason: "replaced".to_owned(),
    };
    assert_eq!(receipt.await, Err(Error::OutcomeUnknown));
    assert_eq!(events.next().await, None);
    assert_eq!(
        *client.state().borrow(),
        ConnectionState::Closed(reason.clone())
    );
    assert_eq!(
        room.publish(Payload::text("b")).await,
        Err(Error::Closed(reason))
    );
    client.close().await;
}

/// Goal: the token source is asked before connecting and when the token expires.
#[tokio::test(start_paused = true)]
async fn tokens_come_from_the_source_and_are_refreshed() {
    let (mut server, options) = Server::new(PIPE_BYTES);
    let asked = Arc::new(AtomicU32::new(0));
    let source = TokenSource::new(move || {
        let number = asked.fetch_add(1, Ordering::Relaxed);
        async move { Ok::<_, std::io::Error>(format!("token-{number}")) }
    });
    let options = Options {
        token_source: Some(source),
        ..options
    };
    let (client, (mut peer, hello)) = tokio::join!(Client::connect("ws://fake", options), async {
        let mut peer = server.accept().await;
        let hello = peer.welcome().await;
        (peer, hello)
    });
    let _client = client.unwrap();
    assert_eq!(hello.token.as_deref(), Some("token-0"));
    peer.send(TokenExpiring { expires_ms: 1 }).await;
    let frame = peer.receive().await;
    assert!(
        matches!(&frame, Ok(ClientFrame::Refresh(refresh)) if &*refresh.token == "token-1"),
        "{frame:?}"
    );
}

/// Goal: a room is left when nobody holds it any more, and the last handle says goodbye.
#[tokio::test(start_paused = true)]
async fn dropped_handles_leave_the_room_and_close_the_connection() {
    let (mut server, options) = Server::new(PIPE_BYTES);
    let (client, room, events, mut peer) = in_room(&mut server, options).await;
    drop(room);
    assert!(
        timeout(Duration::from_secs(5), peer.receive())
            .await
            .is_err(),
        "the stream holds the room"
    );
    drop(events);
    let Ok(ClientFrame::Leave(leave)) = peer.receive().await else {
        panic!("no leave")
    };
    peer.send(OkFrame {
        request: leave.request,
        reply: Reply::Done,
    })
    .await;
    drop(client);
    assert_eq!(peer.receive().await, Err(Some(1000)));
}

/// Goal: a join whose caller went away doesn't leave a member behind.
#[tokio::test(start_paused = true)]
async fn a_join_that_is_given_up_leaves_the_room_again() {
    let (mut server, options) = Server::new(PIPE_BYTES);
    let (client, mut peer) = connected(&mut server, options).await;
    let joining = timeout(
        Duration::from_secs(1),
        client.join("chat:lobby", JoinOptions::default()),
    );
    assert!(joining.await.is_err());
    peer.let_in(0, Recovery::Live).await;
    assert!(matches!(peer.receive().await, Ok(ClientFrame::Leave(_))));
}

/// Goal: `connect` reports what `start` would go on trying.
#[tokio::test(start_paused = true)]
async fn the_first_attempt_that_fails_is_reported_by_connect_and_survived_by_start() {
    let (server, options) = Server::new(PIPE_BYTES);
    drop(server);
    assert!(matches!(
        Client::connect("ws://fake", options).await,
        Err(Error::CannotConnect(_))
    ));

    let (mut server, options) = Server::new(PIPE_BYTES);
    let client = Client::start("ws://fake", options).unwrap();
    drop(server.accept().await);
    let mut peer = server.accept().await;
    peer.welcome().await;
    client
        .state()
        .wait_for(|state| *state == ConnectionState::Connected)
        .await
        .unwrap();
}

/// Goal: `round_trip` is the time between ping and pong.
#[tokio::test(start_paused = true)]
async fn the_round_trip_is_measured() {
    let (mut server, options) = Server::new(PIPE_BYTES);
    let (client, mut peer) = connected(&mut server, options).await;
    let (round_trip, ()) = tokio::join!(client.round_trip(), async {
        let Ok(ClientFrame::Ping(ping)) = peer.receive().await else {
            panic!("no ping")
        };
        tokio::time::sleep(Duration::from_millis(40)).await;
        peer.send(roomful_protocol::frame::Pong {
            request: ping.request,
            time_ms: 0,
        })
        .await;
    });
    let round_trip = round_trip.unwrap();
    assert!(
        (40..=42).contains(&round_trip.as_millis()),
        "{round_trip:?}"
    );
}

/// A client in the room, and the server's end of its connection.
async fn in_room(server: &mut Server, options: Options) -> (Client, Room, RoomEvents, Peer) {
    let (client, mut peer) = connected(server, options).await;
    let (joined, _) = tokio::join!(
        client.join("chat:lobby", JoinOptions::default()),
        peer.let_in(0, Recovery::Live)
    );
    let (room, events) = joined.unwrap();
    (client, room, events, peer)
}

async fn connected(server: &mut Server, options: Options) -> (Client, Peer) {
    let (client, peer) = tokio::join!(Client::connect("ws://fake", options), async {
        let mut peer = server.accept().await;
        peer.welcome().await;
        peer
    });
    (client.unwrap(), peer)
}

async fn next(events: &mut RoomEvents) -> RoomEvent {
    timeout(Duration::from_secs(60), events.next())
        .await
        .expect("an event comes in time")
        .expect("the stream goes on")
}
