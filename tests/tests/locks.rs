//! Locks, timers and cursors as their users see them: one holder, a fair queue, leases, fences that guard state, timers that fire once, and what is unread.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

use roomful_protocol::codec::Encoding;
use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{
    Change, CursorRequest, Cursors, Join, Leave, LockChanged, LockReply, LockRequest, LockWhy,
    Ping, Reply, ServerFrame, TimerChanged, TimerRequest, TimerWhat,
};
use roomful_protocol::id::{MemberId, Offset, RoomAlias};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;
use roomful_tests::keyed::{fenced, key, put};
use roomful_tests::raw::{assert_error, join, placements};
use roomful_tests::{Connect, RawClient, Server};

const ROOM: &str = "game:locks";

/// A lock has one holder; who would not wait is told that it is taken, and who waits gets it in the order of asking. Each grant has a greater fence.
/// Watchers in both encodings see the holder and the queue change.
#[tokio::test]
async fn a_lock_is_held_by_one_and_handed_on_in_order() {
    let server = Server::start().await;
    let mut watchers = Vec::new();
    for (placement, encoding) in placements().zip(Encoding::ALL).take(2) {
        let connect = Connect::to(&server).encoding(encoding).placement(placement);
        watchers.push(watcher(connect.ready().await).await);
    }
    let (mut ann, anns, room) = member(&server).await;
    let (mut bob, bobs, _) = member(&server).await;
    let (mut cat, cats, _) = member(&server).await;
    let first = ann.hold(room, "card").await;
    let error = bob.acquire(room, "card", false).await.unwrap_err();
    assert_error(&error, ErrorCode::LockTaken);
    for (client, place) in [(&mut bob, 0), (&mut cat, 1)] {
        let reply = client.acquire(room, "card", true).await.unwrap();
        assert_eq!(reply, LockReply::Queued { place });
    }
    assert_eq!(ann.release(room, "card").await.unwrap(), Reply::Done);
    assert_eq!(bob.release(room, "card").await.unwrap(), Reply::Done);
    assert_eq!(cat.release(room, "card").await.unwrap(), Reply::Done);
    for (client, room, _) in &mut watchers {
        let mut fence = first.offset;
        let mut held = Vec::new();
        while held.len() < 3 {
            let changed = lock_changed(client).await;
            assert_eq!((changed.room, &changed.lock), (*room, &key("card")));
            if changed.why == LockWhy::Granted {
                let holder = changed.held.unwrap();
                assert_eq!(holder.fence, changed.offset);
                assert!(holder.fence >= fence, "fences only grow");
                fence = holder.fence;
                held.push(holder.member);
            }
        }
        assert_eq!(held, [anns, bobs, cats]);
    }
    assert_eq!(ann.locks(room).await.locks, []);
}

/// Who comes later finds holders and queue in `joined`, and in pages.
#[tokio::test]
async fn a_late_watcher_finds_holder_and_queue() {
    let server = Server::start().await;
    let (mut ann, anns, room) = member(&server).await;
    let (mut bob, bobs, _) = member(&server).await;
    let fence = ann.hold(room, "card").await;
    bob.acquire(room, "card", true).await.unwrap();
    ann.hold(room, "other").await;
    let mut late = RawClient::connect(&server).await;
    let asked = Join {
        locks: true,
        ..join(ROOM)
    };
    let joined = late.join_with(asked).await.unwrap();
    let page = joined.locks.unwrap();
    assert_eq!((page.position, page.next.clone()), (joined.position, None));
    let held = page.locks[0].held.clone().unwrap();
    assert_eq!((held.member, held.fence), (anns, fence.offset));
    let waiting: Vec<_> = page.locks[0]
        .queue
        .iter()
        .map(|waiter| waiter.member)
        .collect();
    assert_eq!(waiting, [bobs]);
    assert_eq!(page.locks[1].lock, key("other"));
    assert_eq!(late.locks(room).await, page);
    // Without the wish nothing is sent of locks.
    assert_eq!(
        late.lock(room, LockRequest::Watch { locks: false })
            .await
            .unwrap(),
        Reply::Done
    );
    ann.release(room, "other").await.unwrap();
    let said = ann.publish(room, Payload::text("end")).await;
    let frames = late.next_that(|frame| match frame {
        ServerFrame::Event(event) => Some(Ok(event.entry.offset)),
        ServerFrame::LockChanged(changed) => Some(Err(changed)),
        _ => None,
    });
    assert_eq!(frames.await.unwrap(), said.position.offset);
}

/// A lease that is not renewed ends, and the next one gets the lock; one that is renewed goes on. The former holder's renewal and release are refused.
#[tokio::test]
async fn a_lease_ends_unless_it_is_renewed() {
    let server = Server::start().await;
    let mut eve = watcher(RawClient::connect(&server).await).await.0;
    let (mut ann, _, room) = member(&server).await;
    let (mut bob, bobs, _) = member(&server).await;
    let reply = ann.acquire_for(room, "card", 300, false).await.unwrap();
    let LockReply::Granted { fence, until_ms } = reply else {
        panic!("not granted: {reply:?}")
    };
    let renew = |fence, ttl_ms| LockRequest::Renew {
        lock: key("card"),
        fence,
        ttl_ms,
    };
    match ann.lock(room, renew(fence, 1_000)).await.unwrap() {
        Reply::Lock(LockReply::Granted {
            fence: same,
            until_ms: later,
        }) => {
            assert_eq!(same, fence);
            assert!(later > until_ms);
        }
        other => panic!("not renewed: {other:?}"),
    }
    bob.acquire(room, "card", true).await.unwrap();
    let expired = until_why(&mut eve, LockWhy::Expired).await;
    assert_eq!(expired.held, None);
    let granted = until_why(&mut eve, LockWhy::Granted).await;
    assert_eq!(granted.held.unwrap().member, bobs);
    let stale = ann.lock(room, renew(fence, 1_000)).await.unwrap_err();
    assert!(
        [ErrorCode::StaleFence, ErrorCode::LockNotHeld]
            .iter()
            .any(|code| stale.code == (*code).into())
    );
    assert_error(
        &ann.release(room, "card").await.unwrap_err(),
        ErrorCode::LockNotHeld,
    );
}

/// Who leaves gives back its locks and its place in queues; who is lost does so when its grace is over, and keeps them if it comes back.
#[tokio::test]
async fn leaving_gives_locks_back() {
    let server = Server::with_config("[namespaces.game]\npresence_grace_ms = 300\n").await;
    let mut eve = watcher(RawClient::connect(&server).await).await.0;
    let (mut ann, _, room) = member(&server).await;
    let (mut bob, _, _) = member(&server).await;
    let (mut cat, cats, _) = member(&server).await;
    ann.hold(room, "card").await;
    bob.acquire(room, "card", true).await.unwrap();
    cat.acquire(room, "card", true).await.unwrap();
    bob.cut();
    let gone = until_why(&mut eve, LockWhy::Left).await;
    assert_eq!(gone.queue.len(), 1);
    let request = ann.new_request();
    ann.send(&Leave { request, room }.into()).await;
    let next = until_why(&mut eve, LockWhy::Granted).await;
    assert_eq!(next.held.unwrap().member, cats);
}

/// Who comes back with its session in time has its locks and its place as before, and the fence still counts.
#[tokio::test]
async fn who_comes_back_keeps_locks() {
    let server = Server::start().await;
    let (mut bob, _, room) = member(&server).await;
    let mut ann = Connect::to(&server).open().await.unwrap();
    let welcome = ann.hello().await;
    let anns = ann.join(ROOM).await.member;
    let fence = ann.hold(room, "card").await;
    bob.hold(room, "other").await;
    ann.acquire(room, "other", true).await.unwrap();
    ann.cut();
    let mut back = Connect::to(&server).open().await.unwrap();
    let resumed = back.hello_with(None, Some(&welcome.resume)).await.unwrap();
    assert!(resumed.resumed);
    assert_eq!(back.join(ROOM).await.member, anns);
    back.change(room, fenced(put("card", "ann"), "card", fence))
        .await;
    bob.release(room, "other").await.unwrap();
    let locks = bob.locks(room).await.locks;
    let holders: Vec<_> = locks
        .iter()
        .map(|lock| lock.held.clone().unwrap().member)
        .collect();
    assert_eq!(holders, [anns, anns]);
}

/// A fence guards state: with the newest grant's a write counts, with an older one, or one that never was, it is refused and changes nothing.
#[tokio::test]
async fn an_older_fence_is_refused() {
    let server = Server::with_config("[namespaces.game]\nfence_prefixes = [\"card/\"]\n").await;
    let (mut ann, _, room) = member(&server).await;
    let (mut bob, _, _) = member(&server).await;
    let older = ann.hold(room, "card").await;
    ann.change(room, fenced(put("card/1", "ann"), "card", older))
        .await;
    ann.release(room, "card").await.unwrap();
    let newer = bob.hold(room, "card").await;
    assert!(newer > older);
    let invented = Position::new(newer.epoch, Offset(newer.offset.0 + 1_000));
    let write = |fence, lock| vec![put("free", "x"), fenced(put("card/1", "x"), lock, fence)];
    for (changes, code) in [
        (write(older, "card"), ErrorCode::StaleFence),
        (write(invented, "card"), ErrorCode::StaleFence),
        (write(newer, "no-such-lock"), ErrorCode::StaleFence),
        (vec![put("card/1", "x")], ErrorCode::FenceRequired),
    ] {
        let error = ann.write(room, None, changes).await.unwrap_err();
        assert_error(&error, code);
    }
    let page = ann.page(room, "", None, 10).await;
    let texts: Vec<_> = page
        .items
        .iter()
        .map(|item| item.value.clone().unwrap())
        .collect();
    assert_eq!(texts, [Payload::text("ann")]);
    let guarded = Change {
        if_version: Some(page.items[0].version),
        ..fenced(put("card/1", "bob"), "card", newer)
    };
    bob.change(room, guarded).await;
}

/// A timer fires once, for everybody and in the log's order; one that was replaced or cancelled does not.
#[tokio::test]
async fn a_timer_fires_once_for_everybody() {
    let server = Server::start().await;
    let (mut ann, _, room) = member(&server).await;
    let json = Connect::to(&server).encoding(Encoding::Json);
    let mut bob = json.ready().await;
    bob.join(ROOM).await;
    let now_ms = time_ms(&mut ann).await;
    let set = |name, in_ms, text| TimerRequest::Set {
        name: key(name),
        due_ms: now_ms + in_ms,
        payload: Payload::text(text),
    };
    let hour = 3_600_000;
    for what in [
        set("never", hour, "no"),
        set("moved", hour, "old"),
        set("moved", 200, "new"),
        set("past", 0, "at once"),
        set("end", 700, "end"),
    ] {
        let reply = ann.timer(room, what).await.unwrap();
        assert!(matches!(reply, Reply::Published(_)), "{reply:?}");
    }
    match ann
        .timer(
            room,
            TimerRequest::Get {
                after: None,
                limit: 10,
            },
        )
        .await
        .unwrap()
    {
        Reply::Timers(page) => assert!(page.timers.iter().any(|timer| timer.name == key("never"))),
        other => panic!("no page: {other:?}"),
    }
    ann.timer(room, TimerRequest::Cancel { name: key("never") })
        .await
        .unwrap();
    let mut fired = Vec::new();
    while fired.last() != Some(&Payload::text("end")) {
        let timer = timer_changed(&mut bob).await;
        if timer.what == TimerWhat::Fired {
            fired.push(timer.payload.unwrap());
        }
    }
    assert_eq!(
        fired,
        [
            Payload::text("at once"),
            Payload::text("new"),
            Payload::text("end")
        ]
    );
    let Reply::Timers(page) = ann
        .timer(
            room,
            TimerRequest::Get {
                after: None,
                limit: 10,
            },
        )
        .await
        .unwrap()
    else {
        panic!("no page")
    };
    assert_eq!(page.timers, []);
    let error = ann
        .timer(room, TimerRequest::Cancel { name: key("never") })
        .await
        .unwrap_err();
    assert_error(&error, ErrorCode::Conflict);
}

/// Unread is what others have published behind the read cursor; cursors only move forward.
#[tokio::test]
async fn cursors_move_forward_and_tell_what_is_unread() {
    let server = Server::start().await;
    let (mut ann, _, room) = member(&server).await;
    let (mut bob, _, _) = member(&server).await;
    let mut last = Position::new(roomful_protocol::id::Epoch(0), Offset(0));
    for _ in 0..3 {
        last = ann.publish(room, Payload::text("hi")).await.position;
    }
    let own = bob.publish(room, Payload::text("own")).await.position;
    bob.change(room, put("a", "1")).await;
    let set = |read, delivered| CursorRequest::Set { read, delivered };
    let first = Position::new(last.epoch, Offset(1));
    for (what, expected) in [
        (CursorRequest::Get, (None, None, 3)),
        (set(Some(first), Some(last)), (Some(first), Some(last), 2)),
        (set(Some(last), Some(first)), (Some(last), Some(last), 0)),
        (set(Some(first), None), (Some(last), Some(last), 0)),
        (set(Some(own), None), (Some(own), Some(last), 0)),
    ] {
        let cursors = bob.cursor(room, what).await.unwrap();
        let Cursors {
            read,
            delivered,
            unread,
        } = cursors;
        assert_eq!((read, delivered, unread), expected);
    }
    let beyond = Position::new(last.epoch, Offset(1_000));
    let error = bob.cursor(room, set(Some(beyond), None)).await.unwrap_err();
    assert_error(&error, ErrorCode::BadValue);
    assert_eq!(
        ann.cursor(room, CursorRequest::Get).await.unwrap().unread,
        1
    );
}

async fn member(server: &Server) -> (RawClient, MemberId, RoomAlias) {
    let mut client = RawClient::connect(server).await;
    let joined = client.join(ROOM).await;
    (client, joined.member, joined.room)
}

/// Lets a client in that watches locks.
async fn watcher(mut client: RawClient) -> (RawClient, RoomAlias, MemberId) {
    let join = Join {
        locks: true,
        ..join(ROOM)
    };
    let joined = client.join_with(join).await.unwrap();
    (client, joined.room, joined.member)
}

/// The next change of a lock.
async fn lock_changed(client: &mut RawClient) -> LockChanged {
    client
        .next_that(|frame| match frame {
            ServerFrame::LockChanged(changed) => Some(changed),
            _ => None,
        })
        .await
}

async fn until_why(client: &mut RawClient, why: LockWhy) -> LockChanged {
    loop {
        let changed = lock_changed(client).await;
        if changed.why == why {
            return changed;
        }
    }
}

/// The next that is told of a timer.
async fn timer_changed(client: &mut RawClient) -> TimerChanged {
    client
        .next_that(|frame| match frame {
            ServerFrame::TimerChanged(changed) => Some(changed),
            _ => None,
        })
        .await
}

/// The server's clock.
async fn time_ms(client: &mut RawClient) -> u64 {
    match client.request(|request| Ping { request }).await.unwrap() {
        ServerFrame::Pong(pong) => pong.time_ms,
        other => panic!("no pong: {other:?}"),
    }
}
