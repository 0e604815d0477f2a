//! What a room keeps, through the client's handles, against a scripted server: what a handle shows and what its calls give.

use std::time::Duration;

use crate::fake::{ALIAS, Peer, Server, joined, published};
use roomful_client::{
    Change, Client, Error, ErrorCode, JoinOptions, Key, KeyPrefix, Payload, Recovery, Retry, Room,
    RoomEvent, RoomEvents,
};
use roomful_protocol::frame::{
    self, ClientFrame, CursorRequest, Cursors, Holder, Joined, LockChanged, LockInfo, LockReply,
    LockRequest, LockWhy, LocksPage, Ok as OkFrame, Reply, StateChange, StateChanged, StateItem,
    StatePage, StateRequest, TimerChanged, TimerRequest, TimerWhat,
};
use roomful_protocol::id::{Epoch, MemberId, Offset, RequestId, UserId};
use roomful_protocol::position::Position;

fn key(name: &str) -> Key {
    Key::parse(name).unwrap()
}

fn at(offset: u64) -> Position {
    Position::new(Epoch(1), Offset(offset))
}

fn bob() -> UserId {
    UserId::parse("bob").unwrap()
}

/// In a room whose state and locks are watched, with one value and one lock.
async fn watching() -> (Client, Room, RoomEvents, Peer) {
    let (mut server, options) = Server::new(64 * 1024);
    let client = Client::start("ws://server", options).unwrap();
    let options = JoinOptions {
        state: Some(vec![KeyPrefix::parse("card/").unwrap()]),
        locks: true,
        ..JoinOptions::default()
    };
    let serve = async {
        let mut peer = server.accept().await;
        peer.welcome().await;
        let join = peer.join().await;
        assert!(join.state.is_some() && join.locks);
        let state = StatePage {
            position: at(5),
            items: vec![StateItem {
                key: key("card/1"),
                version: at(3),
                value: Some(Payload::text("old")),
            }],
            next: None,
        };
        let locks = LocksPage {
            position: at(5),
            locks: vec![LockInfo {
                lock: key("card/1"),
                held: Some(holder(4)),
                queue: Vec::new(),
            }],
            next: None,
        };
        peer.send(Joined {
            state: Some(state),
            locks: Some(locks),
            ..joined(join.request, 5, Recovery::Live)
        })
        .await;
        peer
    };
    let (room, peer) = tokio::join!(client.join("chat:lobby", options), serve);
    let (room, events) = room.unwrap();
    (client, room, events, peer)
}

fn holder(fence: u64) -> Holder {
    Holder {
        fence: Offset(fence),
        member: MemberId(9),
        user: bob(),
        until_ms: 0,
    }
}

/// The events up to the one that is meant.
async fn until(events: &mut RoomEvents, meant: fn(&RoomEvent) -> bool) -> RoomEvent {
    loop {
        let event = events.next().await.expect("the room goes on");
        if meant(&event) {
            return event;
        }
    }
}

async fn receive(peer: &mut Peer) -> ClientFrame {
    peer.receive().await.unwrap()
}

async fn ok(peer: &mut Peer, request: RequestId, reply: Reply) {
    peer.send(OkFrame { request, reply }).await;
}

#[tokio::test(start_paused = true)]
async fn the_copies_are_those_of_the_join_and_follow_what_changes() {
    let (_client, room, mut events, mut peer) = watching().await;
    until(&mut events, |event| {
        matches!(event, RoomEvent::LocksPage { .. })
    })
    .await;
    let (state, locks) = (room.state(), room.locks());
    assert!(state.is_complete());
    assert_eq!(state.get(&key("card/1")).unwrap().version, at(3));
    assert_eq!(locks.get(&key("card/1")).unwrap().held, Some(holder(4)));
    let change = |name, value: Option<&str>| StateChange {
        key: key(name),
        value: value.map(Payload::text),
    };
    peer.send(StateChanged {
        room: ALIAS,
        offset: Offset(6),
        time_ms: 0,
        user: bob(),
        op: None,
        changes: vec![change("card/1", None), change("card/2", Some("new"))],
    })
    .await;
    peer.send(LockChanged {
        room: ALIAS,
        offset: Offset(7),
        time_ms: 0,
        lock: key("card/1"),
        why: LockWhy::Released,
        held: None,
        queue: Vec::new(),
    })
    .await;
    until(&mut events, |event| matches!(event, RoomEvent::Lock { .. })).await;
    let items: Vec<_> = state.items();
    assert_eq!(items.len(), 1);
    assert_eq!((&items[0].key, items[0].version), (&key("card/2"), at(6)));
    assert_eq!(locks.all(), []);
    assert_eq!(room.position(), at(7));
}

#[tokio::test(start_paused = true)]
async fn a_write_has_an_op_id_and_a_conflict_brings_what_is_there() {
    let (client, room, _events, mut peer) = watching().await;
    let state = room.state();
    let change = Change::put(key("card/1"), Payload::text("new")).if_version(at(2));
    let current = vec![StateItem {
        key: key("card/1"),
        version: at(3),
        value: Some(Payload::text("old")),
    }];
    let serve = async {
        let ClientFrame::State(frame::State {
            request,
            what: StateRequest::Write { op, changes },
            ..
        }) = receive(&mut peer).await
        else {
            panic!("no write")
        };
        assert_eq!(op.unwrap().producer, client.producer());
        assert_eq!(changes, std::slice::from_ref(&change));
        peer.send(frame::Error {
            request: Some(request),
            code: ErrorCode::Conflict.into(),
            text: String::new(),
            retry: Retry::Never,
            after_ms: None,
            current: current.clone(),
        })
        .await;
        let ClientFrame::State(frame::State { request, .. }) = receive(&mut peer).await else {
            panic!("no second write")
        };
        peer.send(published(request, 6)).await;
    };
    let write = async {
        let Err(Error::Conflict { current: found, .. }) = state.write([change.clone()]).await
        else {
            panic!("no conflict")
        };
        assert_eq!(found, current);
        state.delete(key("card/1")).await.unwrap()
    };
    let (stored, ()) = tokio::join!(write, serve);
    assert_eq!(stored.position, at(6));
}

/// Goal: a held lock is renewed without the application. Method: time passes, and the renewals arrive; then it is released.
#[tokio::test(start_paused = true)]
async fn a_lock_is_held_until_it_is_released() {
    let (_client, room, mut events, mut peer) = watching().await;
    let locks = room.locks();
    let serve = async {
        let mut renewals = 0;
        loop {
            let ClientFrame::Lock(frame::Lock { request, what, .. }) = receive(&mut peer).await
            else {
                continue;
            };
            let granted = Reply::Lock(LockReply::Granted {
                fence: at(6),
                until_ms: 0,
            });
            match what {
                LockRequest::Acquire { .. } => ok(&mut peer, request, granted).await,
                LockRequest::Renew { fence, .. } => {
                    assert_eq!(fence, at(6));
                    renewals += 1;
                    ok(&mut peer, request, granted).await;
                }
                _ => {
                    ok(&mut peer, request, Reply::Done).await;
                    return renewals;
                }
            }
        }
    };
    let hold = async {
        let fence = locks.try_acquire(key("a"), Duration::from_secs(9)).await;
        assert_eq!(fence, Ok(at(6)));
        tokio::time::sleep(Duration::from_secs(10)).await;
        locks.release(key("a")).await.unwrap();
    };
    let ((), renewals) = tokio::join!(hold, serve);
    assert_eq!(renewals, 3);
    let granted = until(&mut events, |event| {
        matches!(event, RoomEvent::LockGranted { .. })
    })
    .await;
    assert!(matches!(granted, RoomEvent::LockGranted { fence, .. } if fence == at(6)));
}

#[tokio::test(start_paused = true)]
async fn timers_and_cursors_are_asked_for_and_told() {
    let (_client, room, mut events, mut peer) = watching().await;
    let serve = async {
        let ClientFrame::Timer(frame::Timer { request, what, .. }) = receive(&mut peer).await
        else {
            panic!("no timer")
        };
        assert!(matches!(what, TimerRequest::Set { due_ms: 9, .. }));
        peer.send(published(request, 6)).await;
        peer.send(TimerChanged {
            room: ALIAS,
            offset: Offset(6),
            time_ms: 9,
            user: bob(),
            name: key("t"),
            what: TimerWhat::Fired,
            due_ms: 9,
            payload: Some(Payload::text("now")),
        })
        .await;
        let ClientFrame::Cursor(frame::Cursor { request, what, .. }) = receive(&mut peer).await
        else {
            panic!("no cursor")
        };
        let read = Some(at(6));
        let delivered = None;
        assert_eq!(what, CursorRequest::Set { read, delivered });
        let cursors = Cursors {
            read,
            delivered,
            unread: 2,
        };
        ok(&mut peer, request, Reply::Cursors(cursors)).await;
    };
    let ask = async {
        let set = room.timers().set(key("t"), 9, Payload::text("now")).await;
        assert_eq!(set.unwrap().position, at(6));
        let fired = until(&mut events, |event| {
            matches!(event, RoomEvent::Timer { .. })
        })
        .await;
        assert!(
            matches!(fired, RoomEvent::Timer { what: TimerWhat::Fired, position, .. } if position == at(6))
        );
        room.set_cursors(Some(at(6)), None).await.unwrap().unread
    };
    let (unread, ()) = tokio::join!(ask, serve);
    assert_eq!(unread, 2);
}
