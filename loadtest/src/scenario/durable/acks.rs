//! Acknowledged publishes a second, beside what the disk gives.

use anyhow::{Result, ensure};

use super::floor::{self, Load};
use super::{Shape, Stretch, Turn, stretch};
use crate::latency::Latency;
use crate::scenario::class::{Class, LOCAL, MEMORY};
use crate::scenario::medians::Medians;
use crate::scenario::target::Target;
use crate::scenario::{Subject, check_files};
use crate::writers::{Run, Watching, Writers};

/// Connections that are opened before those that are open are welcomed.
const OPENED_MAX: usize = 64;

/// What the disk gives.
struct Floors {
    store: floor::Floor,
    file: floor::Floor,
    syncs: Latency,
}

/// One repeat: at each level rooms in memory, rooms on disk, and the floors with batches like theirs.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(super) fn measure(
    target: &Target,
    levels: &[usize],
    turn: Turn,
    medians: &mut Medians,
) -> Result<()> {
    for publishers in levels.iter().copied() {
        check_files(publishers)?;
        target.measure(|subject| {
            let run = |class| publish(&subject, turn.shape, class, publishers);
            // The floors need to know the batches.
            let (memory, local, floors) = if turn.is_reversed {
                let local = run(LOCAL)?;
                let floors = floors(turn, &local)?;
                (run(MEMORY)?, local, floors)
            } else {
                let (memory, local) = (run(MEMORY)?, run(LOCAL)?);
                let floors = floors(turn, &local)?;
                (memory, local, floors)
            };
            add(medians, publishers, &memory, &local, &floors)
        })?;
    }
    Ok(())
}

fn publish(subject: &Subject, shape: Shape, class: Class, publishers: usize) -> Result<Stretch> {
    let deadline = shape.deadline()?;
    let mut writers = Writers::new(subject, Run::new(), shape.payload_bytes)?;
    let rooms = class.rooms(&mut writers, shape.rooms)?;
    let mut who = Vec::new();
    for (opened, room) in rooms.iter().cycle().take(publishers).enumerate() {
        who.push((writers.connect(*room)?, *room));
        if opened % OPENED_MAX == 0 {
            writers.await_welcomes(&deadline)?;
        }
    }
    writers.await_welcomes(&deadline)?;
    let spots = writers.enter(&who, Watching::Publishes, &deadline)?;
    stretch(subject, shape, &mut writers, &spots, &mut |spot| spot)
}

fn floors(turn: Turn, local: &Stretch) -> Result<Floors> {
    let journal = local.journal;
    ensure!(
        journal.commits > 0.0,
        "the journal has committed nothing: is durability = \"local\"?"
    );
    let load = Load {
        batch_records: journal.records / journal.commits,
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a quotient of counts that is far below what an integer holds"
        )]
        record_bytes: (journal.bytes / journal.records) as usize,
        rooms: turn.shape.rooms as u64,
        duration: turn.shape.duration()?,
    };
    let (store, (file, syncs)) = if turn.is_reversed {
        let file = floor::file(load)?;
        (floor::store(load)?, file)
    } else {
        (floor::store(load)?, floor::file(load)?)
    };
    Ok(Floors { store, file, syncs })
}

fn add(
    medians: &mut Medians,
    publishers: usize,
    memory: &Stretch,
    local: &Stretch,
    floors: &Floors,
) -> Result<()> {
    let Floors { store, file, syncs } = floors;
    let acks = local.per_second();
    let p50 = local.written.latency.us_at(0.5)?;
    let memory_p50 = memory.written.latency.us_at(0.5)?;
    let sync_p50 = syncs.us_at(0.5)?;
    let committing = local.journal.records / local.journal.commit_s;
    let tester = local.usage.tester.as_secs_f64() / local.usage.wall.as_secs_f64();
    let batch = local.journal.records / local.journal.commits;
    for (name, unit, value) in [
        ("acks per second", "/s", acks),
        (
            "acks / bare store's records",
            "×, ≥ 0.8 asked",
            acks / store.per_second,
        ),
        ("acks / bare file's records", "×", acks / file.per_second),
        (
            "acks / memory and the bare store in turn",
            "×",
            acks * (memory.per_second().recip() + store.per_second.recip()),
        ),
        (
            "acks / acks of rooms in memory",
            "×",
            acks / memory.per_second(),
        ),
        ("records per second of committing", "/s", committing),
        (
            "the same / bare store's",
            "×",
            committing / store.per_second,
        ),
        ("the same / bare file's", "×", committing / file.per_second),
        ("records of a batch", "", batch),
        ("ack, p50", "µs", p50),
        ("ack, p99", "µs", local.written.latency.us_at(0.99)?),
        ("ack of a room in memory, p50", "µs", memory_p50),
        (
            "batch of the bare store, p50",
            "µs",
            store.latency.us_at(0.5)?,
        ),
        (
            "batch of the bare file, p50",
            "µs",
            file.latency.us_at(0.5)?,
        ),
        ("one fdatasync, p50", "µs", sync_p50),
        (
            "ack p50 over memory's",
            "fdatasyncs, ≤ 3 asked",
            (p50 - memory_p50) / sync_p50,
        ),
        ("server CPU per ack", "µs", local.cpu_us()),
        ("server CPU per ack, in memory", "µs", memory.cpu_us()),
        ("bare store's CPU per record", "µs", store.cpu_us),
        ("bare file's CPU per record", "µs", file.cpu_us),
        ("tester busy", "% of a core", 100.0 * tester),
    ] {
        medians.add(format!("{publishers} publishers: {name}"), unit, value);
    }
    Ok(())
}
