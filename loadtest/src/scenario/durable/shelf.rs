//! Rooms that nobody is in: what they leave in memory after a start, and how long the first join takes.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use roomful_protocol::frame::Durability;
use tokio::time::Instant;

use super::{ARCHIVE, Shape};
use crate::console::{self, Bar};
use crate::process::resident_bytes;
use crate::scenario::class::{Class, LOCAL};
use crate::scenario::medians::Medians;
use crate::scenario::target::Target;
use crate::scenario::{Deadline, Restartable, Subject};
use crate::writers::{Done, RoomNumber, Run, Told, Watching, Writers};

/// Rooms of the shelf that the other one is compared with.
const FEW: usize = 1000;

/// Rooms that are opened for the second look at the memory.
const OPENED: usize = 1000;

/// Rooms with a long history.
const LONG: usize = 3;

/// Connections that fill a shelf.
const CONNECTIONS: usize = 16;

/// Rooms that are filled at a time.
const FILLED_MAX: usize = 1024;

/// Publishes in flight in each.
const WINDOW: u64 = 256;

/// After a start, until the server has come to rest.
const SETTLE: Duration = Duration::from_secs(2);

/// For a million rooms.
const FILL_MAX: Duration = Duration::from_secs(1200);

const TURN_MAX: Duration = Duration::from_millis(100);

/// What was found of one shelf.
#[derive(Debug)]
struct Shelf {
    filled: Duration,
    /// From the signal to stop to the address of the new process.
    restarted: Duration,
    /// Resident after a start, in MiB.
    resting: f64,
    /// Resident after some of its rooms were opened and left.
    used: f64,
    /// From the first join to a long room to the answer, in milliseconds.
    opening: Vec<f64>,
}

/// Measures two shelves, one after the other.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(super) fn measure(
    target: &Target,
    shape: Shape,
    rooms: usize,
    medians: &mut Medians,
) -> Result<()> {
    ensure!(
        rooms >= FEW,
        "a shelf has at least {FEW} rooms, as many as the one it is compared with"
    );
    let few = shelf(target, shape, FEW)?;
    let many = shelf(target, shape, rooms)?;
    let seconds = many.filled.as_secs_f64();
    for (name, unit, value) in [
        ("seconds to fill it", "s", seconds),
        ("rooms filled per second", "/s", rooms as f64 / seconds),
        ("restart", "s", many.restarted.as_secs_f64()),
        (
            "restart with a thousand rooms",
            "s",
            few.restarted.as_secs_f64(),
        ),
        ("resident after a start", "MiB", many.resting),
        (
            "resident after a start with a thousand rooms",
            "MiB",
            few.resting,
        ),
        (
            "the difference",
            "MiB, ≤ 32 asked",
            many.resting - few.resting,
        ),
        ("resident after opening a thousand", "MiB", many.used),
        ("the same with a thousand rooms", "MiB", few.used),
        (
            "the difference after opening a thousand",
            "MiB, ≤ 32 asked",
            many.used - few.used,
        ),
    ] {
        medians.add(format!("shelf: {name}"), unit, value);
    }
    for ms in many.opening {
        let name = "shelf: first join to a long room";
        medians.add(name.to_owned(), "ms, < 50 asked", ms);
    }
    Ok(())
}

fn shelf(target: &Target, shape: Shape, rooms: usize) -> Result<Shelf> {
    console::progress(&format!("a shelf of {rooms} rooms"));
    let mut server = target.run()?;
    let run = Run::new();
    let filled = fill(&server.subject(), shape, rooms, run);
    let filled = filled.map_err(|error| server.explain(error))?;
    let begun = Instant::now();
    let mut server = server.restart()?;
    let restarted = begun.elapsed();
    std::thread::park_timeout(SETTLE);
    let resting = resident(&server)?;
    let subject = server.subject();
    let opening = open(&subject, shape, rooms, run);
    let opening = opening.map_err(|error| server.explain(error))?;
    Ok(Shelf {
        filled,
        restarted,
        resting,
        used: resident(&server)?,
        opening,
    })
}

fn resident(server: &Restartable<'_>) -> Result<f64> {
    Ok(resident_bytes(server.subject().pid)? as f64 / 1_048_576.0)
}

/// Writes one event into each room and leaves it; and the long rooms' events. How long the former took.
fn fill(subject: &Subject, shape: Shape, rooms: usize, run: Run) -> Result<Duration> {
    let deadline = Deadline::after(FILL_MAX);
    let mut writers = Writers::new(subject, run, shape.payload_bytes)?;
    let short = LOCAL.rooms(&mut writers, rooms)?;
    let long = ARCHIVE.rooms(&mut writers, LONG)?;
    for room in short.iter().take(CONNECTIONS) {
        writers.connect(*room)?;
    }
    writers.await_welcomes(&deadline)?;
    write(&mut writers, &long, shape.long_events, &deadline)?;
    let begun = Instant::now();
    write(&mut writers, &short, 1, &deadline)?;
    Ok(begun.elapsed())
}

/// Writes so many events into each of the rooms, and leaves them.
fn write(
    writers: &mut Writers,
    rooms: &[RoomNumber],
    events: u64,
    deadline: &Deadline,
) -> Result<()> {
    let bar = Bar::counting("filling", rooms.len());
    let (mut begun, mut done, mut told) = (0, 0, Vec::new());
    while done < rooms.len() {
        bar.reach(done);
        let until = rooms.len().min(done + FILLED_MAX);
        for (number, room) in rooms.iter().enumerate().take(until).skip(begun) {
            writers.join(number % CONNECTIONS, *room, Watching::Publishes)?;
        }
        begun = until;
        writers.turn(TURN_MAX, &mut |what| {
            told.push(what);
            Ok(())
        })?;
        for Told { spot, what, .. } in told.drain(..) {
            match what {
                Done::Joined { .. } => {
                    for _ in 0..events.min(WINDOW) {
                        writers.publish(spot)?;
                    }
                }
                Done::Published(acknowledged) if acknowledged == events => writers.leave(spot)?,
                Done::Published(_) if writers.published(spot) < events => writers.publish(spot)?,
                Done::Published(_) => {}
                Done::Left => done += 1,
                other => bail!("{other:?} where publishes are acknowledged"),
            }
        }
        deadline.check(|| format!("{done} of {} rooms are filled", rooms.len()))?;
    }
    Ok(())
}

/// Joins the long rooms one after the other, and then some of the others; all must have what was written. How long the former took, in
/// milliseconds.
fn open(subject: &Subject, shape: Shape, rooms: usize, run: Run) -> Result<Vec<f64>> {
    let deadline = shape.deadline()?;
    let mut writers = Writers::new(subject, run, shape.payload_bytes)?;
    let mut opening = Vec::new();
    let near = writers.room(LOCAL.namespace, 0, Durability::Local, 1)?;
    let writer = writers.connect(near)?;
    writers.await_welcomes(&deadline)?;
    for number in 0..LONG {
        let took = visit(
            &mut writers,
            writer,
            (ARCHIVE, number),
            shape.long_events,
            &deadline,
        )?;
        opening.push(took.as_secs_f64() * 1e3);
    }
    for number in (0..rooms).step_by(rooms / OPENED).take(OPENED) {
        visit(&mut writers, writer, (LOCAL, number), 1, &deadline)?;
    }
    Ok(opening)
}

/// Joins a room, sees what it holds, and leaves it. How long joining took.
fn visit(
    writers: &mut Writers,
    writer: usize,
    (class, number): (Class, usize),
    holds: u64,
    deadline: &Deadline,
) -> Result<Duration> {
    let room = writers.room(class.namespace, number, class.durability, holds)?;
    let spot = writers.join(writer, room, Watching::Publishes)?;
    let mut joining = None;
    while joining.is_none() {
        writers.turn(TURN_MAX, &mut |told| {
            joining = Some((told.what, told.took));
            Ok(())
        })?;
        deadline.check(|| "a room is joined".to_owned())?;
    }
    let (what, took) = joining.unwrap_or((Done::Left, Duration::ZERO));
    ensure!(
        what == Done::Joined { head: holds },
        "lost: a room with {holds} events came back as {what:?}"
    );
    writers.leave(spot)?;
    let mut is_left = false;
    while !is_left {
        writers.turn(TURN_MAX, &mut |told| {
            is_left = told.what == Done::Left;
            Ok(())
        })?;
        deadline.check(|| "a room is left".to_owned())?;
    }
    Ok(took)
}
