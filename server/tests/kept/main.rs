//! What a room keeps beside its log, over a journal that answers late, fails and outlives the room: state, locks, timers, what
//! members leave, cursors.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed check is a panic"
)]
#![expect(
    unreachable_pub,
    reason = "a test is one crate, and its modules are for each other"
)]

mod chance;
mod clocks;
mod cursors;
mod grants;
mod journal;
mod world;

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{
    Durability, EntryKind, LockChange, LockReply, LockWhy, Reply, StateChanges, TimerChange,
    TimerWhat,
};
use roomful_protocol::id::{KeyPrefix, Offset, SessionId};
use roomful_server::auth::TokenId;
use roomful_server::journal::{Health, Snapshot};
use roomful_server::room::Room;
use roomful_server::shard::message::{Request, ShardId, View};

use world::{Client, GRACE_MS, UNIX_MS, World, at, fenced, granted, put};

/// Nobody reads what is not stored, and nobody is told before it is; what is decided goes by it all the same.
#[test]
fn a_write_is_acknowledged_and_seen_when_it_is_stored_and_counts_at_once() {
    let mut world = World::new(true);
    let ann = world.join(1);
    let first = world.write(ann, None, vec![put("a", "1"), put("b", "1")]);
    let mut absent = put("a", "2");
    absent.if_absent = true;
    let second = world.write(ann, None, vec![absent, put("c", "2")]);
    assert_eq!(world.values(ann), []);
    assert!(world.reply(first).is_none() && world.reply(second).is_none());
    world.settle();
    assert_eq!(world.published(first).position, at(1));
    let refusal = world.refusal(second);
    assert_eq!(refusal.code, ErrorCode::Conflict);
    assert_eq!(refusal.current.len(), 1);
    assert_eq!(refusal.current[0].version, at(1));
    let seen = [("a", "1"), ("b", "1")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(world.values(ann), seen);
    assert_eq!(world.state(ann).position, at(1));
}

/// Whatever became of a write whose append failed, it and what was decided after it are unknown, and the same operation
/// has one effect.
#[test]
fn a_failed_append_takes_back_what_was_decided_on_it() {
    for reached in [false, true] {
        let mut world = World::new(true);
        let ann = world.join(1);
        let first = world.write(ann, Some(1), vec![put("a", "1")]);
        let mut absent = put("a", "2");
        absent.if_absent = true;
        let second = world.write(ann, Some(2), vec![absent.clone()]);
        if !reached {
            world.journal.with(|disk| disk.entries.clear());
        }
        world.complete(true);
        assert_eq!(world.refusal(first).code, ErrorCode::OutcomeUnknown);
        assert_eq!(world.refusal(second).code, ErrorCode::OutcomeUnknown);
        let ann = world.join(1);
        let first = world.write(ann, Some(1), vec![put("a", "1")]);
        let second = world.write(ann, Some(2), vec![absent]);
        world.settle();
        assert_eq!(world.published(first).duplicate, reached);
        assert_eq!(world.refusal(second).code, ErrorCode::Conflict);
        assert_eq!(world.journal.with(|disk| disk.entries.len()), 1);
    }
}

/// A disk that doesn't answer must not fill the memory unseen, nor must what is kept of stored entries for readers.
#[test]
fn entries_that_wait_or_are_kept_for_readers_are_counted() {
    const BYTES: u64 = 10_000;
    let text = "x".repeat(usize::try_from(BYTES).unwrap());
    let mut world = World::new(true);
    let ann = world.join(1);
    let before = world.room.held_bytes();
    for _ in 0..3 {
        world.publish(ann, &text);
    }
    assert!(world.room.held_bytes() >= before + 3 * BYTES);
    world.journal.with(|disk| disk.entries.clear());
    world.complete(true);
    world.settle();
    let given_up = world.room.held_bytes();
    assert!(given_up < before + BYTES, "{given_up} is not {before}");
    let ann = world.join(1);
    let mut most = 0;
    for count in 1..=100 {
        world.publish(ann, &text);
        world.settle();
        match count {
            1..=70 => most = world.room.held_bytes(),
            _ => assert_eq!(world.room.held_bytes(), most, "after {count} entries"),
        }
    }
    assert!(most > before + 60 * BYTES);
}

/// The same op id is the same write, also after a restart; another write with it is a conflict, as far as that is known.
#[test]
fn a_write_takes_effect_once_however_often_it_is_sent() {
    let mut world = World::new(true);
    let ann = world.join(1);
    let first = world.write(ann, Some(1), vec![put("a", "1")]);
    let again = world.write(ann, Some(1), vec![put("a", "1")]);
    let other = world.write(ann, Some(1), vec![put("a", "2")]);
    assert_eq!(world.refusal(other).code, ErrorCode::OpIdConflict);
    world.settle();
    let first = world.published(first);
    let again = world.published(again);
    assert_eq!((first.position, first.duplicate), (at(1), false));
    assert_eq!((again.position, again.duplicate), (at(1), true));
    world.restart(0, 50);
    let ann = world.join(1);
    let again = world.write(ann, Some(1), vec![put("a", "1")]);
    let again = world.published(again);
    assert_eq!((again.position, again.duplicate), (at(1), true));
}

#[test]
fn a_lock_goes_to_the_next_in_the_turn_in_which_it_is_free() {
    let mut world = World::new(true);
    let [ann, bob, cid] = [1, 2, 3].map(|session| world.join(session));
    let first = world.acquire(ann, "l", 500, false);
    let second = world.acquire(bob, "l", 500, true);
    let third = world.acquire(cid, "l", 500, true);
    let refused = world.acquire(cid, "m", 50, false);
    assert!(world.reply(first).is_none(), "not before it is stored");
    world.settle();
    let (fence, until_ms) = world.granted(first);
    assert_eq!((fence, until_ms), (at(1), UNIX_MS + 500));
    let place = |place| Some(Ok(Reply::Lock(LockReply::Queued { place })));
    assert_eq!(world.reply(second), place(0));
    assert_eq!(world.reply(third), place(1));
    assert_eq!(world.refusal(refused).code, ErrorCode::BadValue);
    let released = world.release(ann, "l");
    world.settle();
    world.done(released);
    assert_eq!(
        locks(&world),
        [
            (LockWhy::Granted, Some(1), 0),
            (LockWhy::Queued, Some(1), 1),
            (LockWhy::Queued, Some(1), 2),
            (LockWhy::Released, None, 2),
            (LockWhy::Granted, Some(2), 1),
        ]
    );
    let again = world.release(ann, "l");
    assert_eq!(world.refusal(again).code, ErrorCode::LockNotHeld);
    let tried = world.acquire(ann, "l", 500, false);
    let refusal = world.refusal(tried);
    assert_eq!(
        (refusal.code, refusal.after_ms),
        (ErrorCode::LockTaken, Some(500))
    );
    world.leave(bob);
    world.settle();
    assert_eq!(
        locks(&world)[5..],
        [(LockWhy::Left, None, 1), (LockWhy::Granted, Some(3), 0)]
    );
}

/// A lease ends unless it is renewed, and then an older fence writes nothing, whoever holds the lock, also after a restart.
#[test]
fn a_lease_ends_and_its_fence_counts_no_more() {
    let mut world = World::new(false);
    let [ann, bob] = [1, 2].map(|session| world.join(session));
    let asked = world.acquire(ann, "l", 500, false);
    let (old, _) = world.granted(asked);
    let waits = world.acquire(bob, "l", 500, true);
    assert!(matches!(world.reply(waits), Some(Ok(Reply::Lock(_)))));
    world.pass(400);
    let renewed = world.renew(ann, "l", old, 500);
    assert_eq!(world.granted(renewed), (old, UNIX_MS + 900));
    world.pass(400);
    assert_eq!(locks(&world).len(), 2, "it was renewed");
    let written = world.write(ann, None, vec![fenced(put("a", "1"), "l", old)]);
    world.published(written);
    world.pass(200);
    assert_eq!(
        locks(&world)[2..],
        [(LockWhy::Expired, None, 1), (LockWhy::Granted, Some(2), 0)]
    );
    let stale = |world: &mut World, client: Client| {
        let refused = world.write(client, None, vec![fenced(put("a", "2"), "l", old)]);
        assert_eq!(world.refusal(refused).code, ErrorCode::StaleFence);
    };
    stale(&mut world, ann);
    let renewed = world.renew(ann, "l", old, 500);
    assert_eq!(world.refusal(renewed).code, ErrorCode::LockNotHeld);
    let released = world.release(bob, "l");
    world.done(released);
    stale(&mut world, ann);
    world.restart(0, 0);
    let ann = world.join(1);
    stale(&mut world, ann);
}

/// Prefixes that demand a fence, and the bounds of everything, refuse with their codes and change nothing.
#[test]
fn what_may_not_be_is_refused_and_changes_nothing() {
    let mut world = World::new(false);
    world.settings.tables.state.fence_prefixes = vec![KeyPrefix::parse("g/").unwrap()];
    world.settings.tables.state.keys_max = 1;
    world.settings.tables.locks.locks_max = 1;
    world.settings.tables.timers.timers_max = 1;
    world.settings.tables.departure_bytes_max = 200;
    world.restart(0, 0);
    let [ann, bob] = [1, 2].map(|session| world.join(session));
    let guarded = world.write(ann, None, vec![put("g/1", "1")]);
    assert_eq!(world.refusal(guarded).code, ErrorCode::FenceRequired);
    let fits = [
        world.write(ann, None, vec![put("a", "1")]),
        world.acquire(ann, "l", 500, false),
        world.set_timer(ann, "t", UNIX_MS + 500),
        world.on_disconnect(ann, vec![put("a", "gone")]),
        world.ask(ann, |to| Request::SetCursor {
            member: ann.member,
            to,
            read: Some(at(0)),
            delivered: None,
        }),
    ];
    for request in fits {
        assert!(world.reply(request).unwrap().is_ok(), "request {request}");
    }
    let entries = world.journal.with(|disk| disk.entries.len());
    let over = [
        world.write(ann, None, vec![put("b", "1")]),
        world.acquire(ann, "m", 500, false),
        world.set_timer(ann, "u", UNIX_MS + 500),
        world.on_disconnect(bob, vec![put("a", &"x".repeat(200))]),
    ];
    for request in over {
        assert_eq!(world.refusal(request).code, ErrorCode::QuotaExceeded);
    }
    assert_eq!(world.journal.with(|disk| disk.entries.len()), entries);
    let ahead = world.ask(ann, |to| Request::SetCursor {
        member: ann.member,
        to,
        read: Some(at(99)),
        delivered: None,
    });
    assert_eq!(world.refusal(ahead).code, ErrorCode::BadValue);
}

/// A restart disconnects members, and no more: who comes back in the grace keeps the lock, and of who doesn't the lock falls
/// and what was left is written.
#[test]
fn a_restart_gives_members_their_grace() {
    for comes_back in [true, false] {
        let mut world = World::new(true);
        let [ann, bob] = [1, 2].map(|session| world.join(session));
        world.acquire(ann, "l", 60_000, false);
        world.on_disconnect(ann, vec![put("ann", "gone")]);
        world.acquire(bob, "l", 60_000, true);
        world.settle();
        assert_eq!(world.journal.with(|disk| disk.wake), Some(0));
        world.restart(0, 5_000);
        let bob_again = world.join(2);
        assert_eq!(bob_again.member, bob.member);
        world.pass(GRACE_MS / 2);
        if comes_back {
            assert_eq!(world.join(1).member, ann.member);
        }
        world.pass(GRACE_MS);
        world.settle();
        let held = world.acquire(bob_again, "l", 60_000, true);
        world.settle();
        if comes_back {
            assert_eq!(
                world.reply(held),
                Some(Ok(Reply::Lock(LockReply::Queued { place: 0 })))
            );
            assert_eq!(world.values(bob_again), []);
        } else {
            let (fence, _) = world.granted(held);
            assert_eq!(
                fence,
                at(7),
                "behind the write, the note of it, and the fall of the lock"
            );
            let gone = ("ann".to_owned(), "gone".to_owned());
            assert_eq!(world.values(bob_again), [gone]);
        }
    }
}

/// What was left is written once, when presence ends and no earlier, unless it was taken back, its author was revoked, or its
/// conditions do not hold any more.
#[test]
fn what_was_left_is_written_when_presence_ends() {
    let mut world = World::new(false);
    let [ann, bob, cid, dan, eve] = [1, 2, 3, 4, 5].map(|session| world.join(session));
    for (client, name) in [(ann, "ann"), (bob, "bob"), (cid, "cid"), (dan, "dan")] {
        let left = world.on_disconnect(client, vec![put(name, "gone")]);
        world.done(left);
    }
    let taken_back = world.on_disconnect(bob, Vec::new());
    world.done(taken_back);
    world.revoked.push(SessionId(3));
    let in_the_way = world.write(eve, None, vec![put("eve", "1")]);
    world.published(in_the_way);
    let mut absent = put("eve", "2");
    absent.if_absent = true;
    let left = world.on_disconnect(eve, vec![absent]);
    world.done(left);
    for client in [ann, bob, cid, eve] {
        world.detach(client);
    }
    world.pass(GRACE_MS - 1);
    let back = world.join(1);
    world.pass(10);
    let values = |world: &mut World| world.values(dan);
    let kept = ("eve".to_owned(), "1".to_owned());
    assert_eq!(values(&mut world), std::slice::from_ref(&kept));
    world.detach(back);
    world.pass(GRACE_MS + 1);
    let gone = ("ann".to_owned(), "gone".to_owned());
    assert_eq!(values(&mut world), [gone, kept]);
    let before = world.journal.with(|disk| disk.entries.len());
    world.pass(10 * GRACE_MS);
    assert_eq!(world.journal.with(|disk| disk.entries.len()), before);
    assert_eq!(world.counters.departures.get(), 1);
}

/// Whether a member may still write is asked of the token that it has now, not of the one that it came with.
#[test]
fn what_was_left_goes_by_the_token_of_now() {
    let mut world = World::new(false);
    let [ann, bob, cid, dan] = [1, 2, 3, 4].map(|session| world.join(session));
    for (client, name) in [(ann, "ann"), (bob, "bob"), (cid, "cid")] {
        let left = world.on_disconnect(client, vec![put(name, "gone")]);
        world.done(left);
    }
    world.set_grant(ann, granted(Some("old")));
    world.set_grant(ann, granted(Some("good")));
    world.set_grant(bob, granted(Some("bad")));
    world.revoked_tokens = ["old", "bad"]
        .map(|token| TokenId::parse(token).unwrap())
        .into();
    for client in [ann, bob, cid] {
        world.detach(client);
    }
    world.grant.is_allowed = false;
    let cid = world.join(3);
    world.detach(cid);
    world.pass(2 * GRACE_MS);
    assert_eq!(world.values(dan), [("ann".to_owned(), "gone".to_owned())]);
}

/// While nothing can be stored, everything that would have to be is refused with its code, and what is due waits.
#[test]
fn a_full_disk_refuses_and_lets_what_is_due_wait() {
    let mut world = World::new(false);
    let ann = world.join(1);
    let set = world.set_timer(ann, "t", UNIX_MS + 100);
    world.published(set);
    world.acquire(ann, "l", 200, false);
    for (health, code, after_ms) in [
        (Health::Full, ErrorCode::StorageFull, Some(1_000)),
        (Health::Failed, ErrorCode::StorageFailed, None),
    ] {
        world.journal.with(|disk| disk.health = health);
        let refused = [
            world.publish(ann, "x"),
            world.write(ann, None, vec![put("a", "1")]),
            world.on_disconnect(ann, vec![put("a", "1")]),
            world.acquire(ann, "m", 500, false),
            world.release(ann, "l"),
            world.set_timer(ann, "u", UNIX_MS),
            world.cancel_timer(ann, "t"),
            world.ask(ann, |to| Request::SetCursor {
                member: ann.member,
                to,
                read: Some(at(1)),
                delivered: None,
            }),
        ];
        for request in refused {
            let refusal = world.refusal(request);
            assert_eq!((refusal.code, refusal.after_ms), (code, after_ms));
        }
        world.pass(5_000);
    }
    assert_eq!(fired(&world), Vec::<String>::new());
    world.journal.with(|disk| disk.health = Health::Good);
    world.pass(1_001);
    assert_eq!(fired(&world), ["t"]);
    assert_eq!(locks(&world).last(), Some(&(LockWhy::Expired, None, 0)));
}

/// What is stored is enough to go on from, and no entry that a snapshot says is needed; a room that keeps nothing writes none.
#[test]
fn snapshots_are_written_now_and_then_and_where_the_room_closes() {
    let mut world = World::new(false);
    let ann = world.join(1);
    (0..200).for_each(|_| {
        let published = world.publish(ann, "x");
        world.published(published);
    });
    assert_eq!(world.journal.with(|disk| disk.snapshot.clone()), None);
    // Half of the history's 64 entries.
    for number in 0..32 {
        let written = world.write(ann, None, vec![put(&format!("k{number:02}"), "1")]);
        world.published(written);
    }
    let first = world.journal.with(|disk| disk.snapshot.clone()).unwrap();
    assert_eq!(first.at, Offset(232));
    let written = world.write(ann, None, vec![put("k00", "2")]);
    world.published(written);
    world.restart(0, 0);
    let ann = world.join(1);
    let values = world.values(ann);
    assert_eq!((values.len(), values[0].1.as_str()), (32, "2"));
    assert_eq!(world.state(ann).items[1].version, at(202));
    world.leave(ann);
    world.pass(60_000);
    assert!(world.closed);
    let last = world.journal.with(|disk| disk.snapshot.clone()).unwrap();
    assert_eq!(last.at, Offset(233));
}

/// A room whose stored form can't be read is refused as damaged, and nothing is made of the rest.
#[test]
fn a_damaged_snapshot_closes_the_room() {
    let mut world = World::new(false);
    let content = b"\x01damaged".as_slice().into();
    let at = Offset(0);
    world
        .journal
        .with(|disk| disk.snapshot = Some(Snapshot { at, content }));
    world.restart(0, 0);
    let nobody = Client {
        session: 1,
        member: roomful_protocol::id::MemberId(1),
        attachment: roomful_server::shard::message::Attachment(1),
    };
    let refused = world.publish(nobody, "x");
    assert_eq!(world.refusal(refused).code, ErrorCode::StorageDamaged);
    assert_eq!(world.journal.with(|disk| disk.entries.len()), 0);
}

/// Who joins with a view gets a page that is exactly the state at its position; who is behind gets no value that a newer one
/// has replaced, and every newest one.
#[test]
fn pages_stand_at_the_head_and_chunks_show_the_newest_alone() {
    let mut world = World::new(false);
    let ann = world.join(1);
    for (name, value) in [("a", "1"), ("b", "1"), ("a", "2")] {
        let written = world.write(ann, None, vec![put(name, value), put("c", value)]);
        world.published(written);
    }
    let left = world.on_disconnect(ann, vec![put("ann", "gone")]);
    world.done(left);
    let asked = world.acquire(ann, "l", 500, false);
    world.granted(asked);
    let view = View {
        state: Some(vec![KeyPrefix::parse("").unwrap()]),
        locks: true,
    };
    let (_, admitted) = world.join_with(2, view);
    let page = admitted.state.unwrap();
    assert_eq!((page.position, admitted.head), (at(5), at(5)));
    let versions: Vec<_> = page
        .items
        .iter()
        .map(|item| item.version.offset.0)
        .collect();
    assert_eq!(versions, [3, 2, 3]);
    assert_eq!(admitted.locks.unwrap().locks.len(), 1);
    let pull = Request::Pull {
        shard: ShardId(0),
        from: at(0),
    };
    world.run(|room, context| room.handle(pull, context));
    let shown: Vec<_> = world
        .chunk
        .iter()
        .map(|entry| {
            let changes = StateChanges::from_payload(&entry.payload);
            let keys = changes.map_or_else(
                |_| String::new(),
                |changes| {
                    changes
                        .changes
                        .iter()
                        .map(|change| change.key.as_str())
                        .collect()
                },
            );
            (entry.kind, keys)
        })
        .collect();
    let of = |kind, keys: &str| (kind, keys.to_owned());
    assert_eq!(
        shown,
        [
            of(EntryKind::System, ""),
            of(EntryKind::State, "b"),
            of(EntryKind::State, "ac"),
            of(EntryKind::System, ""),
            of(EntryKind::Lock, ""),
        ]
    );
}

/// A room in memory has no other place: it stays while a timer is set.
#[test]
fn a_room_in_memory_stays_while_a_timer_is_set() {
    let mut world = World::new(false);
    world.settings.durability = Durability::Memory;
    world.restart(0, 0);
    let ann = world.join(1);
    let set = world.set_timer(ann, "t", UNIX_MS + 8_000_000);
    world.published(set);
    world.leave(ann);
    world.pass(7_900_000);
    assert!(!world.closed);
    world.pass(200_000);
    assert_eq!(fired(&world), ["t"]);
    assert!(world.closed);
}

/// A room on disk closes and is woken.
#[test]
fn a_room_that_is_woken_does_what_is_due_and_closes() {
    let mut world = World::new(false);
    let ann = world.join(1);
    let set = world.set_timer(ann, "t", UNIX_MS + 500_000);
    world.published(set);
    world.leave(ann);
    world.pass(60_000);
    assert!(world.closed);
    assert_eq!(
        world.journal.with(|disk| disk.wake),
        Some(UNIX_MS + 500_000)
    );
    world.restart(0, 440_000);
    world.run(Room::wake);
    world.pass(5);
    assert_eq!(fired(&world), ["t"]);
    world.pass(60_000);
    assert!(world.closed);
    assert_eq!(world.journal.with(|disk| disk.wake), None);
}

/// What the log says of locks: why, who holds it then, and how many wait.
fn locks(world: &World) -> Vec<(LockWhy, Option<u64>, usize)> {
    let entries = world.journal.with(|disk| disk.entries.clone());
    let locks = entries.iter().filter(|entry| entry.kind == EntryKind::Lock);
    locks
        .map(|entry| {
            let change = LockChange::from_payload(&entry.payload).unwrap();
            let held = change.held.map(|held| held.member.0);
            (change.why, held, change.queue.len())
        })
        .collect()
}

/// The timers that the log says have fired.
fn fired(world: &World) -> Vec<String> {
    let entries = world.journal.with(|disk| disk.entries.clone());
    let timers = entries
        .iter()
        .filter(|entry| entry.kind == EntryKind::Timer);
    let changes = timers.map(|entry| TimerChange::from_payload(&entry.payload).unwrap());
    changes
        .filter(|change| change.what == TimerWhat::Fired)
        .map(|change| change.name.as_str().to_owned())
        .collect()
}
