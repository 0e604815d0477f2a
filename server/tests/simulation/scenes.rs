//! What is too seldom for a seed to meet it: played step by step in the same world.

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use roomful_protocol::frame::Watch;
use roomful_server::directory::Directory;

use crate::journal::Faults;
use crate::options::Options;
use crate::world::{World, room_id};

/// Goal: whoever watches is told of every change, however late an answer is handed on. What went wrong: an answer about presence waited for its turn,
/// turns were left out that it knew nothing of, and it counted as if it told of them too. Method: a full mailbox takes two changes, the second while
/// the answer about the first waits behind the members before.
#[test]
fn an_answer_that_waited_hides_nothing_that_was_left_out_meanwhile() {
    let mut random = StdRng::seed_from_u64(1);
    let mut world = World::of(calm(&mut random), random);
    let home = Directory::new(2, 100).home(&room_id("chat:lobby"));
    let (home, edge) = (usize::from(home.0), usize::from(1 - home.0));
    for index in 0..world.clients.len() {
        world.clients[index].watch = Watch::Members;
        "chat:lobby".clone_into(&mut world.clients[index].room);
        world.connect_to(edge, index);
    }
    world.lull();
    world.pass(200);
    world.lull();
    change_unheard(&mut world, home);
    world.flush_one(edge);
    deliver_all_mail(&mut world);
    change_unheard(&mut world, home);
    world.net.borrow_mut().spent = 100;
    (0..100).for_each(|_| world.flush_one(edge));
    world.net.borrow_mut().spent = 0;
    world.lull();
    assert!(world.tally.lulls == 3, "there is still something under way");
    world.check();
}

/// A member changes its value, and the mailbox of those who watch is full: they will be told that they have missed something.
fn change_unheard(world: &mut World, home: usize) {
    world.set_presence(0);
    world.deliver_uplink();
    deliver_all_mail(world);
    world.net.borrow_mut().mailbox_max = 0;
    (0..40).for_each(|_| world.pass(5));
    world.flush_one(home);
    world.net.borrow_mut().mailbox_max = 100;
    (0..2).for_each(|_| world.pass(5));
    world.flush_one(home);
    deliver_all_mail(world);
}

fn deliver_all_mail(world: &mut World) {
    while !world.net.borrow().ways_with_mail().is_empty() {
        world.deliver_mail();
    }
}

/// Two shards and nothing that goes wrong by itself.
fn calm(random: &mut StdRng) -> Options {
    Options {
        shards: 2,
        clients: 7,
        journal: Faults { late: 0, fail: 0 },
        mailbox_max: 100,
        kernel_bytes: (20_000, 30_000),
        token_ms: None,
        spent: 0,
        heartbeat_ms: 600_000,
        rate: None,
        requests_max: 1_000,
        waiting_turns_max: 16,
        ..Options::draw(random)
    }
}
