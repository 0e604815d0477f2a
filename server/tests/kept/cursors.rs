//! How far users have read.

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
