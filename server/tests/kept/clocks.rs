//! What happens by itself: when, whatever the clock does, and that nobody forgets it.

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::LockWhy;
use roomful_server::journal::Health;

use crate::world::{UNIX_MS, World, put};
use crate::{fired, locks};

/// A timer fires once: on time, at the next look where it was due while nobody looked, and however the clock is set.
#[test]
fn a_timer_fires_once_whatever_the_clock_does() {
    let mut world = World::new(false);
    let ann = world.join(1);
    for (name, after_ms) in [("a", 1_000), ("b", 3_000), ("c", 500_000), ("d", 2_000)] {
        let set = world.set_timer(ann, name, UNIX_MS + after_ms);
        world.published(set);
    }
    let cancelled = world.cancel_timer(ann, "d");
    world.published(cancelled);
    let again = world.cancel_timer(ann, "d");
    assert_eq!(world.refusal(again).code, ErrorCode::Conflict);
    assert_eq!(world.journal.with(|disk| disk.wake), Some(UNIX_MS + 1_000));
    world.pass(999);
    assert_eq!(fired(&world), Vec::<String>::new());
    world.pass(2);
    assert_eq!(fired(&world), ["a"]);
    world.now.unix_ms -= 5_000;
    world.pass(3_000);
    assert_eq!(fired(&world), ["a"], "by the clock it is not time yet");
    world.pass(5_000);
    assert_eq!(fired(&world), ["a", "b"]);
    let past = world.set_timer(ann, "e", 1);
    world.published(past);
    assert_eq!(fired(&world), ["a", "b", "e"]);
    world.restart(0, 600_000);
    world.pass(5);
    assert_eq!(fired(&world), ["a", "b", "e", "c"]);
    assert_eq!(world.journal.with(|disk| disk.wake), None);
    world.restart(0, 600_000);
    world.pass(5);
    assert_eq!(fired(&world), ["a", "b", "e", "c"]);
    world.now.unix_ms += 100_000;
    let ann = world.join(1);
    let set = world.set_timer(ann, "f", world.now.unix_ms + 100_000);
    world.published(set);
    world.now.unix_ms += 200_000;
    world.pass(60_001);
    assert_eq!(
        fired(&world)[4..],
        ["f"],
        "a clock that was set forward is noticed"
    );
}

/// A room doesn't close before what is due is stored; where memory is short it does, and is woken for it.
#[test]
fn a_room_with_something_due_stays_or_is_woken() {
    for is_short in [false, true] {
        let mut world = World::new(false);
        let ann = world.join(1);
        let left = world.on_disconnect(ann, vec![put("ann", "gone")]);
        world.done(left);
        let set = world.set_timer(ann, "t", UNIX_MS + 20_000);
        world.published(set);
        world.journal.with(|disk| disk.health = Health::Full);
        world.is_short = is_short;
        world.leave(ann);
        world.pass(120_000);
        assert_eq!(world.closed, is_short);
        world.journal.with(|disk| disk.health = Health::Good);
        if is_short {
            let wake_ms = world.journal.with(|disk| disk.wake).unwrap();
            assert!(wake_ms > UNIX_MS, "not in the next process alone");
            world.restart(0, 0);
        }
        world.pass(2_000);
        assert_eq!(fired(&world), ["t"]);
        let bob = world.join(2);
        let gone = ("ann".to_owned(), "gone".to_owned());
        assert_eq!(world.values(bob), [gone]);
        world.leave(bob);
        world.pass(60_000);
        assert!(world.closed, "nothing is due any more");
        assert_eq!(world.journal.with(|disk| disk.wake), None);
    }
}

/// A lease lasts as long as it was granted for, whichever way the clock is set meanwhile, and whatever the log says of times.
#[test]
fn a_lease_lasts_as_long_whatever_the_clock_does() {
    for by_ms in [-100_000_i64, 100_000] {
        let mut world = World::new(false);
        let [ann, bob] = [1, 2].map(|session| world.join(session));
        let first = world.acquire(ann, "before", 500, false);
        let (fence, _) = world.granted(first);
        world.now.unix_ms = UNIX_MS.saturating_add_signed(by_ms);
        let second = world.acquire(ann, "behind", 500, false);
        assert_eq!(world.granted(second).1, world.now.unix_ms + 500);
        let tried = world.acquire(bob, "before", 500, false);
        assert_eq!(world.refusal(tried).after_ms, Some(500));
        world.pass(300);
        let renewed = world.renew(ann, "before", fence, 500);
        assert_eq!(world.granted(renewed).1, world.now.unix_ms + 500);
        world.pass(199);
        assert_eq!(locks(&world).len(), 2, "by {by_ms}");
        world.pass(2);
        assert_eq!(locks(&world)[2..], [(LockWhy::Expired, None, 0)]);
        world.pass(298);
        assert_eq!(locks(&world).len(), 3, "it was renewed");
        world.pass(2);
        assert_eq!(locks(&world)[3..], [(LockWhy::Expired, None, 0)]);
    }
}

/// A clock that was set forth for one entry and back again lets no timer fire before its time and no lease end in the grace,
/// also after a restart.
#[test]
fn an_entry_from_a_time_to_come_brings_nothing_forward() {
    const AHEAD_MS: u64 = 3_600_000;
    let mut world = World::new(false);
    let ann = world.join(1);
    world.now.unix_ms += AHEAD_MS;
    let published = world.publish(ann, "x");
    world.published(published);
    world.now.unix_ms -= AHEAD_MS;
    let asked = world.acquire(ann, "l", 5_000, false);
    world.granted(asked);
    for (name, after_ms) in [("a", 500), ("b", 10_000)] {
        let set = world.set_timer(ann, name, UNIX_MS + after_ms);
        world.published(set);
    }
    world.pass(499);
    assert_eq!(fired(&world), Vec::<String>::new());
    world.pass(2);
    assert_eq!(fired(&world), ["a"]);
    world.restart(0, 0);
    world.pass(500);
    let ann_again = world.join(1);
    assert_eq!(ann_again.member, ann.member);
    world.pass(4_499);
    assert_eq!(locks(&world), [(LockWhy::Granted, Some(ann.member.0), 0)]);
    assert_eq!(fired(&world), ["a"]);
    world.pass(5_000);
    assert_eq!(locks(&world)[1..], [(LockWhy::Expired, None, 0)]);
    assert_eq!(fired(&world), ["a", "b"]);
    let entries = world.journal.with(|disk| disk.entries.clone());
    assert!(entries.is_sorted_by_key(|entry| entry.time_ms));
}

/// Entries that grow old after weeks are let go soon after the clock was set forward by as much, though no timer has run for so long.
#[test]
fn a_clock_that_was_set_forward_makes_entries_old() {
    let month_ms = 30 * 86_400_000;
    let mut world = World::new(false);
    world
        .journal
        .with(|disk| disk.too_old_ms = Some(UNIX_MS + month_ms));
    let ann = world.join(1);
    world.pass(10_000);
    let looks = world.journal.with(|disk| (disk.too_old_ms, disk.trims));
    assert_eq!(looks, (Some(UNIX_MS + month_ms), 1));
    world.now.unix_ms += month_ms;
    world.pass(3_600_000);
    assert_eq!(world.journal.with(|disk| disk.too_old_ms), None);
    world.leave(ann);
}
