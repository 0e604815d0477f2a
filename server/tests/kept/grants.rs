//! What a member has left goes by the token that it has now, also where the journal can't take that.

use roomful_protocol::error::ErrorCode;
use roomful_protocol::id::Key;
use roomful_server::auth::TokenId;
use roomful_server::journal::Health;
use roomful_server::shard::message::StateGrant;

use crate::world::{Client, GRACE_MS, World, at, granted, put};

/// A token that allows nothing.
fn denied() -> StateGrant {
    StateGrant {
        is_allowed: false,
        ..granted(None)
    }
}

fn leave_writes(world: &mut World, clients: &[(Client, &str)]) {
    for (client, name) in clients {
        let left = world.on_disconnect(*client, vec![put(name, "gone")]);
        world.settle();
        world.done(left);
    }
}

/// The keys of the state, as a new member reads them.
fn keys(world: &mut World) -> Vec<Key> {
    let reader = world.join(9);
    let items = world.state(reader).items;
    items.into_iter().map(|item| item.key).collect()
}

/// Once the room tried to store the new token all the same, and was opened again at each join of the member.
#[test]
fn a_changed_token_waits_for_the_disk_and_counts_at_once() {
    for (health, code) in [
        (Health::Full, ErrorCode::StorageFull),
        (Health::Failed, ErrorCode::StorageFailed),
    ] {
        let mut world = World::new(false);
        let [ann, bob, cid, dan, eve] = [1, 2, 3, 4, 5].map(|session| world.join(session));
        let all = [
            (ann, "ann"),
            (bob, "bob"),
            (cid, "cid"),
            (dan, "dan"),
            (eve, "eve"),
        ];
        leave_writes(&mut world, &all);
        let stored = world.journal.with(|disk| disk.entries.len());
        world.journal.with(|disk| disk.health = health);
        world.set_grant(ann, denied());
        world.set_grant(bob, granted(Some("bad")));
        world.revoked_tokens.extend(TokenId::parse("bad"));
        world.set_grant(dan, denied());
        world.set_grant(dan, granted(None));
        world.detach(cid);
        world.grant = denied();
        let cid = world.join(3);
        world.grant = granted(None);
        let asked = world.acquire(cid, "l", 500, false);
        assert_eq!(world.refusal(asked).code, code, "it is a member");
        for client in [ann, bob, cid, dan, eve] {
            world.detach(client);
        }
        world.pass(3 * GRACE_MS);
        assert!(!world.sent_away, "the room was not opened again");
        assert_eq!(world.journal.with(|disk| disk.entries.len()), stored);
        world.is_short = true;
        world.pass(120_000);
        assert!(!world.closed, "nobody else knows of the tokens");
        world.journal.with(|disk| disk.health = Health::Good);
        world.pass(1_001);
        let made = ["dan", "eve"].map(|name| Key::parse(name).unwrap());
        assert_eq!(keys(&mut world), made, "{health:?}");
        assert_eq!(world.counters.departures.get(), 2);
        let left = world.journal.with(|disk| disk.entries.len());
        world.pass(10_000);
        assert_eq!(
            world.journal.with(|disk| disk.entries.len()),
            left,
            "each is stored once"
        );
    }
}

/// The entry of the new token is lost, and the member doesn't come back.
#[test]
fn a_token_whose_entry_is_lost_still_counts() {
    let mut world = World::new(true);
    let [ann, bob] = [1, 2].map(|session| world.join(session));
    leave_writes(&mut world, &[(ann, "ann"), (bob, "bob")]);
    world.set_grant(ann, denied());
    world.journal.with(|disk| disk.entries.truncate(2));
    world.complete(true);
    assert!(world.sent_away);
    world.pass(3 * GRACE_MS);
    world.settle();
    assert_eq!(keys(&mut world), [Key::parse("bob").unwrap()]);
    let entries = world.journal.with(|disk| disk.entries.len());
    assert_eq!(entries, 2 + 1 + 2, "the token, and a write and its note");
}

/// A member that comes back is let in by a log that is open, and is sent away behind that with all the others.
#[test]
fn a_join_whose_token_can_not_be_stored_is_told_of_the_failure_last() {
    let mut world = World::new(false);
    let ann = world.join(1);
    leave_writes(&mut world, &[(ann, "ann")]);
    world.detach(ann);
    world.journal.with(|disk| disk.fails = true);
    world.grant = denied();
    let (_, admitted) = world.join_with(1, Default::default());
    assert_eq!(admitted.position, at(1));
    assert!(world.sent_away);
    let ann = world.join(1);
    assert!(!world.sent_away);
    let asked = world.acquire(ann, "l", 500, false);
    world.granted(asked);
    world.leave(ann);
    assert_eq!(keys(&mut world), []);
}
