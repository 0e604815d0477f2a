//! The core under a virtual clock and network, with everything going wrong that may: cuts, slow and stalled readers, full mailboxes, shards that keep another
//! waiting, turns that are cut short, tokens that end, rates, shortages of memory, drains, processes that are killed, and a journal that is late, out of turn, or fails.
//! Some seeds have rooms on disk: the real journal on a machine that is slow, full, fails, and loses its power.
//!
//! A seed decides everything, so a failure is replayed by `ROOMFUL_SIMULATION_SEED=<seed> cargo test -p roomful-server --test simulation`.
//! `ROOMFUL_SIMULATION_SEEDS=<count>` runs more of them.

#![expect(
    clippy::disallowed_methods,
    reason = "a test reads its seed from the environment"
)]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    reason = "a failed check is a panic, and a test has no other users"
)]

mod checks;
mod client;
mod durable;
mod journal;
mod keyed;
mod net;
mod options;
mod scenes;
mod tally;
mod world;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use options::Options;
use tally::Tally;
use world::World;

/// Goal: whatever happens, positions are one gap-free order for everybody (P1), an operation takes effect once (P3), whoever comes back gets every later
/// event once and in order or an explicit reset (P4), a reader that stalls harms nobody and is brought up to date (P5), and presence neither
/// flickers inside the grace nor keeps ghosts (P8). Method: each client checks every frame; at the end the faults stop, everybody must
/// settle, and what all have seen is compared.
#[test]
fn the_promises_hold_whatever_goes_wrong() {
    let mut tally = Tally::default();
    for seed in seeds() {
        let outcome = catch_unwind(AssertUnwindSafe(|| simulate(seed)));
        match outcome {
            Ok(one) => tally += one,
            Err(panic) => {
                println!("simulation: failed at seed {seed}: {}", reason(&*panic));
                let options = Options::draw(&mut StdRng::seed_from_u64(seed));
                println!("{options:?}");
                println!("replay with ROOMFUL_SIMULATION_SEED={seed}");
                resume_unwind(panic);
            }
        }
    }
    eprintln!("{tally:?}");
    if std::env::var("ROOMFUL_SIMULATION_SEED").is_err() {
        for (name, count) in tally.counts() {
            assert!(
                count > 100,
                "only {count} {name}: the simulation does not reach what it is for"
            );
        }
    }
}

fn simulate(seed: u64) -> Tally {
    let mut world = World::new(seed);
    world.run();
    world.heal();
    world.check();
    world.empty();
    world.tally += Tally::of(&world.counters);
    if let Some(disk) = &world.disk {
        world.tally.disk_faults += disk.faults;
        world.tally.power_cuts += disk.power_cuts;
    }
    world.tally.events += world.truth.len() as u64;
    let refusals = world.clients.iter().map(|client| client.storage_refusals);
    world.tally.storage_refusals += refusals.sum::<u64>();
    for keyed in world
        .clients
        .iter()
        .filter_map(|client| client.keyed.as_ref())
    {
        world.tally.changes += keyed.told;
        world.tally.conflicts += keyed.conflicts;
        world.tally.stale_fences += keyed.stale;
    }
    world.tally
}

/// The first line of what a panic says.
fn reason(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.and_then(|text| text.lines().next())
        .unwrap_or("a panic without words")
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().expect("a number"))
    };
    match number("ROOMFUL_SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("ROOMFUL_SIMULATION_SEEDS").unwrap_or(1_000),
    }
}
