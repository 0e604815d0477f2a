//! Many rooms that are written in turns, beside one.
//!
//! Publishes in flight are as many in both, and those in flight at a moment come over as few connections: what differs is the number of rooms, not
//! the number of sockets. Each writer is alone in its rooms, so an event is delivered once in both.

use anyhow::Result;

use super::{Shape, Stretch, Turn, stretch};
use crate::scenario::Subject;
use crate::scenario::class::{Class, LOCAL, MEMORY};
use crate::scenario::medians::Medians;
use crate::writers::{Run, Spot, Watching, Writers};

/// Rooms of a writer.
const ROOMS_EACH: usize = 1000;

/// One repeat, with rooms on disk and in memory.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(super) fn measure(subject: &Subject, turn: Turn, medians: &mut Medians) -> Result<()> {
    let shape = turn.shape;
    for (class, kind, asked) in [
        (LOCAL, "on disk", "×, ≤ 2 asked"),
        (MEMORY, "in memory", "×"),
    ] {
        let run = |rooms| write(subject, shape, class, rooms);
        let (one, many) = if turn.is_reversed {
            let many = run(shape.many_rooms)?;
            (run(1)?, many)
        } else {
            (run(1)?, run(shape.many_rooms)?)
        };
        let figures = [
            ("server CPU per ack, one room", "µs", one.cpu_us()),
            ("server CPU per ack, many rooms", "µs", many.cpu_us()),
            ("many rooms / one", asked, many.cpu_us() / one.cpu_us()),
            ("acks per second, one room", "/s", one.per_second()),
            ("acks per second, many rooms", "/s", many.per_second()),
        ];
        for (name, unit, value) in figures {
            medians.add(format!("{kind}: {name}"), unit, value);
        }
    }
    Ok(())
}

fn write(subject: &Subject, shape: Shape, class: Class, count: usize) -> Result<Stretch> {
    let deadline = shape.deadline()?;
    let mut writers = Writers::new(subject, Run::new(), shape.payload_bytes)?;
    let rooms = class.rooms(&mut writers, count)?;
    let mut who = Vec::new();
    for rooms in rooms.chunks(ROOMS_EACH) {
        let writer = writers.connect(rooms[0])?;
        who.extend(rooms.iter().map(|room| (writer, *room)));
    }
    writers.await_welcomes(&deadline)?;
    let spots = writers.enter(&who, Watching::Publishes, &deadline)?;
    let mut turns = spots.iter().copied().cycle();
    let mut next = || turns.next();
    let first: Vec<Spot> = std::iter::from_fn(&mut next)
        .take(shape.in_flight)
        .collect();
    stretch(subject, shape, &mut writers, &first, &mut |spot| {
        // There is always another one.
        next().unwrap_or(spot)
    })
}
