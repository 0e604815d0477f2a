//! How far users have read.

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{Cursors, Reply};
use roomful_server::shard::message::Request;

use crate::world::{Client, World, at, put};

/// A cursor moves forward alone, is there after a restart, and tells what others have published behind it.
#[test]
fn cursors_move_forward_and_count_what_others_published() {
    let mut world = World::new(true);
    let [ann, bob] = [1, 2].map(|session| world.join(session));
    for client in [ann, bob, bob, ann, bob] {
        world.publish(client, "x");
    }
    world.write(bob, None, vec![put("a", "1")]);
    world.settle();
    let set = |world: &mut World, client: Client, read: Option<u64>, delivered: Option<u64>| {
        let request = world.ask(client, |to| Request::SetCursor {
            member: client.member,
            to,
            read: read.map(at),
            delivered: delivered.map(at),
        });
        assert!(world.reply(request).is_none(), "not before it is stored");
        world.settle();
        cursors(world, request)
    };
    let expect = |read: Option<u64>, delivered: Option<u64>, unread| Cursors {
        read: read.map(at),
        delivered: delivered.map(at),
        unread,
    };
    assert_eq!(
        set(&mut world, ann, Some(2), None),
        expect(Some(2), None, 2)
    );
    assert_eq!(
        set(&mut world, ann, Some(1), Some(4)),
        expect(Some(2), Some(4), 2)
    );
    let get = |world: &mut World, client: Client| {
        let request = world.ask(client, |to| Request::GetCursors {
            member: client.member,
            to,
        });
        world.settle();
        cursors(world, request)
    };
    assert_eq!(get(&mut world, bob), expect(None, None, 2));
    world.restart(0, 0);
    let ann = world.join(1);
    assert_eq!(get(&mut world, ann), expect(Some(2), Some(4), 2));
    assert_eq!(
        set(&mut world, ann, Some(6), None),
        expect(Some(6), Some(4), 0)
    );
}

fn cursors(world: &mut World, request: u64) -> Cursors {
    match world.reply(request) {
        Some(Ok(Reply::Cursors(cursors))) => cursors,
        other => panic!("{other:?}"),
    }
}

fn set(world: &mut World, client: Client, read: u64) -> u64 {
    world.ask(client, |to| Request::SetCursor {
        member: client.member,
        to,
        read: Some(at(read)),
        delivered: None,
    })
}

/// How far the user has read, as anybody is told now.
fn read(world: &mut World, client: Client) -> Option<u64> {
    let request = world.ask(client, |to| Request::GetCursors {
        member: client.member,
        to,
    });
    world.settle();
    let read = cursors(world, request).read;
    read.map(|read| read.offset.0)
}

fn with_publishes(late: bool, users_max: usize) -> World {
    let mut world = World::new(late);
    world.settings.tables.cursors_max = users_max;
    world.restart(0, 0);
    let author = world.join(9);
    (0..5).for_each(|_| {
        world.publish(author, "x");
    });
    world.settle();
    world
}

/// A request that asks for no more than a register on its way is answered with that, and shares its fate.
#[test]
fn no_cursor_is_acknowledged_before_its_register_is_stored() {
    for fails in [false, true] {
        let mut world = with_publishes(true, 9);
        let ann = world.join(1);
        let behind = [3, 3, 2].map(|at| set(&mut world, ann, at));
        let ahead = [5, 4].map(|at| set(&mut world, ann, at));
        for request in behind.iter().chain(&ahead) {
            assert!(world.reply(*request).is_none(), "request {request}");
        }
        world.complete(fails);
        if fails {
            for request in behind {
                assert_eq!(world.refusal(request).code, ErrorCode::OutcomeUnknown);
            }
            world.complete(fails);
            for request in ahead {
                assert_eq!(world.refusal(request).code, ErrorCode::OutcomeUnknown);
            }
            assert_eq!(read(&mut world, ann), None);
            let again = set(&mut world, ann, 3);
            assert!(world.reply(again).is_none(), "nothing of it is stored yet");
            world.settle();
            assert_eq!(cursors(&mut world, again).read, Some(at(3)));
        } else {
            world.settle();
            for request in behind.into_iter().chain(ahead) {
                assert!(cursors(&mut world, request).read >= Some(at(3)));
            }
        }
        let before = read(&mut world, ann);
        assert_eq!(before, Some(if fails { 3 } else { 5 }));
        world.restart(0, 0);
        let ann = world.join(1);
        assert_eq!(read(&mut world, ann), before);
    }
}

/// Where too many users have cursors, the one who is furthest behind has none any more, also after a restart; but nobody whose
/// register is on its way.
#[test]
fn who_is_furthest_behind_makes_room() {
    let mut world = with_publishes(true, 2);
    let clients @ [ann, bob, cid] = [1, 2, 3].map(|session| world.join(session));
    for (client, at) in [(ann, 1), (bob, 2)] {
        let request = set(&mut world, client, at);
        world.settle();
        cursors(&mut world, request);
    }
    let asked = [set(&mut world, cid, 1), set(&mut world, ann, 3)];
    world.settle();
    for request in asked {
        cursors(&mut world, request);
    }
    let all = |world: &mut World, clients: [Client; 3]| clients.map(|client| read(world, client));
    let expected = [Some(3), None, Some(1)];
    assert_eq!(all(&mut world, clients), expected);
    assert_eq!(world.journal.with(|disk| disk.registers.len()), 2);
    world.restart(0, 0);
    let clients = [1, 2, 3].map(|session| world.join(session));
    assert_eq!(all(&mut world, clients), expected);
}
