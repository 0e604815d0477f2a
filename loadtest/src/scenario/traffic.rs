//! Publishing into rooms and taking the deliveries, each of them verified.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::time::Instant;

use super::Deadline;
use crate::peer::{Ability, Heard};
use crate::swarm::{Plan, Swarm};
use crate::verify::{Fault, Key, Pattern, Verifier};

/// Connections in their rooms, and what is expected there.
#[derive(Debug)]
pub(super) struct Traffic {
    swarm: Swarm,
    rooms: Vec<Room>,
    room_members: usize,
    pattern: Pattern,
    deadline: Deadline,
    published: u64,
    delivered: u64,
    /// Publishes that haven't arrived everywhere.
    open: usize,
    /// When something last arrived.
    heard: Instant,
}

/// One room.
#[derive(Debug)]
struct Room {
    /// Its connections.
    members: Range<usize>,
    /// Its publishers are every so-manyth member, so that they sit in all parts of the server's list of members.
    stride: usize,
    verifier: Verifier,
}

/// What goes through the rooms.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// Publishers of a room.
    pub(super) publishers: usize,
    /// Length of a payload.
    pub(super) payload_bytes: usize,
}

/// A delivery or a reply that was verified.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    /// In which room.
    pub(super) room: usize,
    /// Of which publish.
    pub(super) key: Key,
    /// Whether it is a delivery and no reply.
    pub(super) delivered: bool,
    /// Whether it is the publisher's own delivery.
    pub(super) own: bool,
    /// Whether the publish is now everywhere.
    pub(super) complete: bool,
}

/// With something outstanding, silence of this length means that it won't come. The slowest server here needs some 30 ms for a publish.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// How long the server may finish what it does after the last delivery, before its processor time is read.
const REST: Duration = Duration::from_millis(100);

impl Traffic {
    /// Connects and joins everybody.
    ///
    /// # Errors
    /// Any connection failed, or the deadline passed.
    pub(super) fn open(
        mut swarm: Swarm,
        plan: Plan,
        layout: Layout,
        deadline: Deadline,
    ) -> Result<Self> {
        swarm.open(plan, &deadline)?;
        let starts = (0..plan.connections).step_by(plan.room_members);
        let room = |start| {
            Room::new(
                &swarm,
                start..plan.connections.min(start + plan.room_members),
                layout.publishers,
            )
        };
        let rooms = starts.map(room).collect::<Result<_>>()?;
        let pattern = Pattern::new(layout.payload_bytes);
        let (room_members, heard) = (plan.room_members, Instant::now());
        Ok(Self {
            swarm,
            rooms,
            room_members,
            pattern,
            deadline,
            published: 0,
            delivered: 0,
            open: 0,
            heard,
        })
    }

    /// Publishes into a room.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) fn publish(&mut self, room: usize, publisher: u32) -> Result<Key> {
        if self.is_complete() {
            // Silence counts from here: nobody owed anything before.
            self.heard = Instant::now();
        }
        let state = &mut self.rooms[room];
        let key = state.verifier.publish(publisher);
        self.published += 1;
        self.open += 1;
        self.swarm
            .publish(state.connection_of(publisher), self.pattern.write(key))?;
        Ok(key)
    }

    /// Waits for readiness, at most so long, and reports what has arrived.
    ///
    /// # Errors
    /// Something is wrong with it, a connection failed, nothing came for too long, or the deadline passed.
    pub(super) fn turn(&mut self, wait: Duration, arrived: &mut dyn FnMut(Arrival)) -> Result<()> {
        let Self {
            swarm,
            rooms,
            room_members,
            pattern,
            delivered,
            open,
            ..
        } = self;
        let mut count = 0;
        swarm.turn(wait, &mut |connection, heard| {
            let index = connection / *room_members;
            let room = &mut rooms[index];
            count += 1;
            let (key, complete) = match heard {
                Heard::Delivery { offset, payload } => {
                    *delivered += 1;
                    room.delivery(connection, offset, pattern.read(payload)?)?
                }
                Heard::Acknowledged { sequence } => room.acknowledgement(connection, sequence)?,
                Heard::Joined { .. } => return Ok(()),
            };
            *open -= usize::from(complete);
            let is_delivery = matches!(heard, Heard::Delivery { .. });
            arrived(Arrival {
                room: index,
                key,
                delivered: is_delivery,
                own: is_delivery && connection == room.connection_of(key.publisher),
                complete,
            });
            Ok(())
        })?;
        self.check_progress(count)
    }

    /// Turns until everything that was published has arrived.
    ///
    /// # Errors
    /// Those of [`Traffic::turn`].
    pub(super) fn drain(&mut self, arrived: &mut dyn FnMut(Arrival)) -> Result<()> {
        while !self.is_complete() {
            self.turn(Duration::from_millis(100), arrived)?;
        }
        Ok(())
    }

    /// Lets the server come to rest. Whatever still arrives now is too much, and an error.
    ///
    /// # Errors
    /// Those of [`Traffic::turn`], or something is missing.
    pub(super) fn rest(&mut self) -> Result<()> {
        self.wait(REST)?;
        self.finish().map_err(Into::into)
    }

    /// Reads for so long.
    ///
    /// # Errors
    /// Those of [`Traffic::turn`].
    pub(super) fn wait(&mut self, duration: Duration) -> Result<()> {
        let end = Instant::now() + duration;
        while let Some(left) = end
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
        {
            self.turn(left, &mut |_| {})?;
        }
        Ok(())
    }

    /// Proves that everybody is in a room: one publish in each, which must arrive at all its members once.
    ///
    /// # Errors
    /// Those of [`Traffic::turn`], or something is missing.
    pub(super) fn call_the_roll(&mut self) -> Result<()> {
        for room in 0..self.rooms.len() {
            self.publish(room, 0)?;
        }
        self.drain(&mut |_| {})?;
        self.rest()
    }

    /// Whether nothing is outstanding.
    pub(super) const fn is_complete(&self) -> bool {
        self.open == 0
    }

    /// How many rooms there are.
    pub(super) const fn rooms(&self) -> usize {
        self.rooms.len()
    }

    /// How many publishers the first room has; only the last may have fewer.
    pub(super) fn publishers(&self) -> usize {
        self.rooms
            .first()
            .map_or(0, |room| room.verifier.publishers())
    }

    /// How many publishes of a publisher there were.
    pub(super) fn published_by(&self, room: usize, publisher: usize) -> u32 {
        self.rooms[room].verifier.published_by(publisher)
    }

    /// Processor time that went into looking for work that wasn't there.
    pub(super) const fn spun(&self) -> Duration {
        self.swarm.spun()
    }

    /// Deliveries so far.
    pub(super) const fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Publishes so far.
    pub(super) const fn published(&self) -> u64 {
        self.published
    }

    fn check_progress(&mut self, arrivals: usize) -> Result<()> {
        let now = Instant::now();
        if arrivals > 0 {
            self.heard = now;
        } else if now - self.heard > SILENCE_MAX && !self.is_complete() {
            let missing = self
                .finish()
                .err()
                .map_or_else(String::new, |fault| format!("; {fault}"));
            bail!(
                "nothing has arrived for {} s{missing}",
                SILENCE_MAX.as_secs()
            );
        }
        self.deadline.check(|| {
            format!(
                "{} publishes, {} deliveries",
                self.published, self.delivered
            )
        })
    }

    fn finish(&self) -> Result<(), Fault> {
        self.rooms
            .iter()
            .try_for_each(|room| room.verifier.finish())
    }
}

impl Room {
    fn new(swarm: &Swarm, members: Range<usize>, publishers: usize) -> Result<Self> {
        let count = members.len();
        let publishers = publishers.min(count);
        let head = swarm.head(members.clone())?;
        let verifier = if swarm.peer().has(Ability::Offsets) {
            let base = head.context("the server gave no offset with the join")?;
            Verifier::with_offsets(base, count, publishers)
        } else {
            Verifier::without_offsets(count, publishers)
        };
        Ok(Self {
            members,
            stride: count / publishers,
            verifier,
        })
    }

    const fn connection_of(&self, publisher: u32) -> usize {
        self.members.start + publisher as usize * self.stride
    }

    /// Which publish it is of, and whether that is now everywhere.
    fn delivery(
        &mut self,
        connection: usize,
        offset: Option<u64>,
        key: Key,
    ) -> Result<(Key, bool), Fault> {
        let member = connection - self.members.start;
        let complete = self.verifier.deliver(member, offset, key)?;
        Ok((key, complete))
    }

    /// The same of a reply. It names only the publisher's own count, so the publisher is found by its place.
    fn acknowledgement(&mut self, connection: usize, sequence: u32) -> Result<(Key, bool)> {
        let member = connection - self.members.start;
        let publisher = u32::try_from(member / self.stride)?;
        ensure!(
            self.connection_of(publisher) == connection,
            "connection {connection} got a reply to no publish"
        );
        let key = Key {
            publisher,
            sequence,
        };
        Ok((key, self.verifier.acknowledge(member, key)?))
    }
}
