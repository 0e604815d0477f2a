//! Clients of a Roomful server that publish and wait for the replies, driven by one thread.
//!
//! Where a client of the [`crate::crowd`] comes, goes and comes back in one room, one of these keeps its connection and may be in many rooms;
//! what counts is each publish's reply, and how long it took. Checked is what an acknowledgement promises: each room's log comes to
//! every writer in it without a gap, whole, and in the end holds as many entries as were acknowledged, none twice. Any error of any
//! connection ends the run.

mod writer;

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use roomful_protocol::codec::Encoding;
use roomful_protocol::frame::{
    Change, ClientFrame, Durability, Hello, Join, JoinProducer, Leave, Lock, LockRequest, OpId,
    Publish, RoomText, State, StateRequest, Watch,
};
use roomful_protocol::id::{
    INTEGER_MAX, Key as Name, KeyPrefix, MemberId, Offset, ProducerId, RequestId, RoomAlias,
    RoomName, Sequence,
};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;
use roomful_protocol::text::Text;
use roomful_protocol::websocket::OpCode;
use tokio::time::Instant;

use self::writer::{Asked, Place, Waiting, Writer};
use crate::latency::Latency;
use crate::peer::Upgrade;
use crate::peer::frames::{Frame, each_frame, encoded};
use crate::pool::Pool;
use crate::scenario::{Deadline, Subject};
use crate::verify::{Key, Pattern};

/// The writers, by their numbers.
#[derive(Debug)]
pub(crate) struct Writers {
    pool: Pool,
    /// Part of all room names.
    run: Run,
    /// Producer of the first writer.
    producer_first: u64,
    writers: Vec<Writer>,
    rooms: Vec<Room>,
    pattern: Pattern,
    /// Where a message is put together before it is framed.
    message: Vec<u8>,
}

/// Part of the names of a run's rooms, so that no two runs meet in a room.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run(u64);

/// A room of this run.
#[derive(Debug)]
struct Room {
    name: RoomName,
    durability: Durability,
    /// Publishes and writes that were acknowledged, since the log's beginning.
    acknowledged: u64,
}

/// The number of a room among the writers'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RoomNumber(usize);

/// A writer and one of its places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spot {
    writer: usize,
    place: usize,
}

impl Spot {
    /// The writer's number.
    pub(crate) const fn writer(self) -> usize {
        self.writer
    }
}

/// What a writer is sent of its room besides publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watching {
    /// Nothing.
    Publishes,
    /// All changes of the keyed state.
    State,
    /// All changes of locks.
    Locks,
}

/// What a writer was told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    /// Who, and of which room.
    pub(crate) spot: Spot,
    /// From the request to this reply; nothing for what came unasked.
    pub(crate) took: Duration,
    /// What was done.
    pub(crate) what: Done,
}

/// What was done, by a request of the writer or by somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// The writer is in the room, whose log ends there.
    Joined {
        /// The log's last entry.
        head: u64,
    },
    /// The publish is in the log, as durably as the room promises; so many of the room were acknowledged now.
    Published(u64),
    /// The writer has left the room.
    Left,
    /// The write is in the log; that is the version of its keys.
    Wrote(Position),
    /// The key has another version, and that value; nothing was written.
    Conflict {
        /// The key's version.
        version: Position,
        /// Its value, where it is a number.
        value: Option<u64>,
    },
    /// The writer holds the lock, by that grant.
    Granted(Position),
    /// The writer waits for the lock.
    Queued,
    /// The writer has given the lock back.
    Released,
    /// Somebody has changed the state.
    StateChanged,
    /// A lock has changed; that member holds it by that grant.
    LockChanged(Option<(MemberId, Offset)>),
}

/// What came of a stretch of publishing.
#[derive(Debug)]
pub(crate) struct Written {
    /// Publishes that were acknowledged.
    pub(crate) acknowledged: u64,
    /// From the first publish to the last reply.
    pub(crate) took: Duration,
    /// From each publish to its reply.
    pub(crate) latency: Latency,
}

type Listener<'a> = &'a mut dyn FnMut(Told) -> Result<()>;

/// A turn ends by then even if nothing arrives.
const TURN_MAX: Duration = Duration::from_millis(100);

impl Run {
    /// One of its own.
    pub(crate) fn new() -> Self {
        Self(RandomState::new().hash_one("run"))
    }
}

impl Writers {
    /// Nobody yet.
    ///
    /// # Errors
    /// The kernel gives no poll.
    pub(crate) fn new(subject: &Subject, run: Run, payload_bytes: usize) -> Result<Self> {
        let secure = subject.peer.secure().cloned();
        Ok(Self {
            pool: Pool::new(subject.address, secure, subject.waiting)?,
            run,
            // Chosen anew, since the server may remember an earlier writer's.
            producer_first: RandomState::new().hash_one("producer") & (INTEGER_MAX >> 1),
            writers: Vec::new(),
            rooms: Vec::new(),
            pattern: Pattern::new(payload_bytes),
            message: Vec::new(),
        })
    }

    /// Another room of this run, by its namespace and number, with what its acknowledgements have to promise and as many entries as it
    /// holds already.
    ///
    /// # Errors
    /// No room may be called that.
    pub(crate) fn room(
        &mut self,
        namespace: &str,
        number: usize,
        durability: Durability,
        holds: u64,
    ) -> Result<RoomNumber> {
        let name = format!("{namespace}:load-{:016x}-{number}", self.run.0);
        self.rooms.push(Room {
            name: RoomName::parse(name.as_bytes()).context(name)?,
            durability,
            acknowledged: holds,
        });
        Ok(RoomNumber(self.rooms.len() - 1))
    }

    /// Connects another writer, where a room is or will be; its number.
    ///
    /// # Errors
    /// No connection.
    pub(crate) fn connect(&mut self, near: RoomNumber) -> Result<usize> {
        let number = self.writers.len();
        let upgrade = Upgrade {
            path: format!("/v1/ws?k={}", self.rooms[near.0].name.placement_key()),
            subprotocol: Some(Encoding::MessagePack.subprotocol()),
            code: OpCode::Binary,
        };
        let hello = Hello {
            request: RequestId(HELLO_REQUEST),
            token: None,
            resume: None,
            agent: Text::new("roomful-loadtest").ok(),
        };
        self.pool
            .open(number, &upgrade, vec![encoded(&hello.into())])?;
        self.writers.push(Writer {
            last_request: HELLO_REQUEST,
            ..Writer::default()
        });
        Ok(number)
    }

    /// Waits until all writers are welcome.
    ///
    /// # Errors
    /// Those of [`Writers::turn`], or the deadline passed.
    pub(crate) fn await_welcomes(&mut self, deadline: &Deadline) -> Result<()> {
        while !self.writers.iter().all(|writer| writer.is_welcome) {
            self.turn(TURN_MAX, &mut |_| Ok(()))?;
            deadline.check(|| "connections are being welcomed".to_owned())?;
        }
        Ok(())
    }

    /// Has a welcome writer join a room.
    ///
    /// # Errors
    /// The connection is broken.
    pub(crate) fn join(
        &mut self,
        writer: usize,
        room: RoomNumber,
        watching: Watching,
    ) -> Result<Spot> {
        let places = &mut self.writers[writer].places;
        places.push(Place {
            room,
            member: None,
            alias: None,
            head: 0,
            published: 0,
        });
        let spot = Spot {
            writer,
            place: places.len() - 1,
        };
        let request = self.ask(spot, Asked::Join);
        let join = Join {
            request,
            room: RoomText::from(&self.rooms[room.0].name),
            since: None,
            producer: Some(JoinProducer {
                producer: self.producer(spot),
                next: Sequence(1),
            }),
            echo: true,
            watch: Watch::None,
            presence: None,
            state: (watching == Watching::State)
                .then(|| KeyPrefix::parse("").map(|all| vec![all]))
                .transpose()?,
            locks: watching == Watching::Locks,
        };
        self.send(writer, &join.into())?;
        Ok(spot)
    }

    /// Joins rooms, at most so many on their way at a time, and waits for all.
    ///
    /// # Errors
    /// Those of [`Writers::turn`], or the deadline passed.
    pub(crate) fn enter(
        &mut self,
        who: &[(usize, RoomNumber)],
        watching: Watching,
        deadline: &Deadline,
    ) -> Result<Vec<Spot>> {
        let mut spots = Vec::with_capacity(who.len());
        let mut joined = 0;
        while joined < who.len() {
            for (writer, room) in who
                .iter()
                .skip(spots.len())
                .take(JOINING_MAX + joined - spots.len())
            {
                spots.push(self.join(*writer, *room, watching)?);
            }
            self.turn(TURN_MAX, &mut |_| {
                joined += 1;
                Ok(())
            })?;
            deadline.check(|| format!("{joined} of {} rooms are joined", who.len()))?;
        }
        Ok(spots)
    }

    /// Publishes.
    ///
    /// # Errors
    /// The connection is broken, or the writer isn't in the room.
    pub(crate) fn publish(&mut self, spot: Spot) -> Result<()> {
        let producer = self.producer(spot);
        let request = self.ask(spot, Asked::Publish);
        let place = &mut self.writers[spot.writer].places[spot.place];
        place.published += 1;
        let key = Key {
            publisher: u32::try_from(spot.writer)?,
            sequence: place.published,
        };
        let publish = Publish {
            request,
            room: place.alias()?,
            op: Some(OpId {
                producer,
                sequence: Sequence(u64::from(place.published)),
            }),
            payload: Payload::binary(self.pattern.write(key).to_vec()),
        };
        self.send(spot.writer, &publish.into())
    }

    /// Gives a key a value, a number, if it has that version; if none is named, if it has no value.
    ///
    /// # Errors
    /// The connection is broken, or the writer isn't in the room.
    pub(crate) fn put_if(
        &mut self,
        spot: Spot,
        key: &Name,
        value: u64,
        version: Option<Position>,
    ) -> Result<()> {
        let change = Change::put(key.clone(), number_payload(value));
        let change = match version {
            Some(version) => change.if_version(version),
            None => change.if_absent(),
        };
        self.write(spot, change)
    }

    /// Gives a key a value, a number.
    ///
    /// # Errors
    /// The connection is broken, or the writer isn't in the room.
    pub(crate) fn put(&mut self, spot: Spot, key: &Name, value: u64) -> Result<()> {
        self.write(spot, Change::put(key.clone(), number_payload(value)))
    }

    fn write(&mut self, spot: Spot, change: Change) -> Result<()> {
        let request = self.ask(spot, Asked::Write);
        let room = self.alias(spot)?;
        let changes = vec![change];
        let what = StateRequest::Write { op: None, changes };
        let state = State {
            request,
            room,
            what,
        };
        self.send(spot.writer, &state.into())
    }

    /// Takes a lock, or waits for it.
    ///
    /// # Errors
    /// The connection is broken, or the writer isn't in the room.
    pub(crate) fn acquire(&mut self, spot: Spot, lock: &Name, ttl_ms: u64) -> Result<()> {
        let lock = lock.clone();
        let queue = true;
        self.lock(
            spot,
            LockRequest::Acquire {
                lock,
                ttl_ms,
                queue,
            },
        )
    }

    /// Gives a lock back.
    ///
    /// # Errors
    /// The connection is broken, or the writer isn't in the room.
    pub(crate) fn release(&mut self, spot: Spot, lock: &Name) -> Result<()> {
        let lock = lock.clone();
        self.lock(spot, LockRequest::Release { lock })
    }

    fn lock(&mut self, spot: Spot, what: LockRequest) -> Result<()> {
        let request = self.ask(spot, Asked::Lock);
        let room = self.alias(spot)?;
        let lock = Lock {
            request,
            room,
            what,
        };
        self.send(spot.writer, &lock.into())
    }

    /// What a spot's writer is in the room.
    pub(crate) fn member(&self, spot: Spot) -> Option<MemberId> {
        self.writers[spot.writer].places[spot.place].member
    }

    fn alias(&self, spot: Spot) -> Result<RoomAlias> {
        self.writers[spot.writer].places[spot.place].alias()
    }

    /// How many publishes a spot has sent.
    pub(crate) fn published(&self, spot: Spot) -> u64 {
        u64::from(self.writers[spot.writer].places[spot.place].published)
    }

    /// Leaves a room.
    ///
    /// # Errors
    /// The connection is broken, or the writer isn't in the room.
    pub(crate) fn leave(&mut self, spot: Spot) -> Result<()> {
        let request = self.ask(spot, Asked::Leave);
        let room = self.alias(spot)?;
        self.send(spot.writer, &Leave { request, room }.into())
    }

    /// Keeps publishes in flight for so long: those of `first`, and for each that was acknowledged the one that `next` names. Then waits
    /// until all are.
    ///
    /// # Errors
    /// Those of [`Writers::turn`], or the deadline passed.
    pub(crate) fn closed_loop(
        &mut self,
        first: &[Spot],
        duration: Duration,
        deadline: &Deadline,
        next: &mut dyn FnMut(Spot) -> Spot,
    ) -> Result<Written> {
        let mut written = Written {
            acknowledged: 0,
            took: Duration::ZERO,
            latency: Latency::new(),
        };
        let start = Instant::now();
        let (mut ready, mut in_flight) = (first.to_vec(), 0);
        loop {
            if start.elapsed() < duration {
                in_flight += ready.len();
                for spot in ready.drain(..) {
                    self.publish(spot)?;
                }
            } else if in_flight == 0 {
                written.took = start.elapsed();
                return Ok(written);
            }
            self.turn(TURN_MAX, &mut |told| {
                in_flight -= 1;
                written.acknowledged += 1;
                written.latency.record(told.took);
                ready.push(next(told.spot));
                Ok(())
            })?;
            deadline.check(|| format!("{in_flight} publishes wait for their replies"))?;
        }
    }

    /// Waits for readiness, at most so long, and reports what writers were told.
    ///
    /// # Errors
    /// Any connection failed, something is wrong with what came, or what the listener returned.
    pub(crate) fn turn(&mut self, wait: Duration, listener: Listener<'_>) -> Result<()> {
        let Self {
            pool,
            writers,
            rooms,
            pattern,
            ..
        } = self;
        pool.turn(wait, &mut |number, message, _| {
            let writer = &mut writers[number];
            each_frame(message, &mut |frame| match frame {
                Frame::Event {
                    room,
                    offset,
                    payload,
                } => {
                    pattern.read(payload)?;
                    writer.event(room, offset).map(|_| ())
                }
                Frame::Other(frame) => writer.frame(number, &frame, rooms, listener),
            })
        })
    }

    /// Everything that was acknowledged is in the logs, and has come to everybody there; nothing else has.
    ///
    /// # Errors
    /// Something is lost or doubled; or those of [`Writers::turn`].
    pub(crate) fn finish(&mut self, deadline: &Deadline) -> Result<()> {
        while let Err(error) = self.check() {
            // An event may come after the reply.
            deadline.check(|| error.to_string())?;
            self.turn(TURN_MAX, &mut expect_changes)?;
        }
        let end = Deadline::after(SETTLE);
        while let Some(left) = end.left() {
            self.turn(left, &mut expect_changes)?;
        }
        self.check()
    }

    /// Processor time that went into looking for work that wasn't there.
    pub(crate) const fn spun(&self) -> Duration {
        self.pool.spun()
    }

    fn check(&self) -> Result<()> {
        let places = self.writers.iter().flat_map(|writer| &writer.places);
        for place in places.filter(|place| place.alias.is_some()) {
            let room = &self.rooms[place.room.0];
            ensure!(
                place.head == room.acknowledged,
                "lost or doubled: {} entries came of {}, where {} publishes were acknowledged",
                place.head,
                room.name,
                room.acknowledged
            );
        }
        Ok(())
    }

    fn ask(&mut self, spot: Spot, what: Asked) -> RequestId {
        let writer = &mut self.writers[spot.writer];
        writer.last_request += 1;
        let waiting = Waiting {
            place: spot.place,
            since: Instant::now(),
            what,
        };
        writer.waiting.insert(writer.last_request, waiting);
        RequestId(writer.last_request)
    }

    fn send(&mut self, writer: usize, frame: &ClientFrame) -> Result<()> {
        self.message.clear();
        Encoding::MessagePack.encode(frame, &mut self.message);
        self.pool.send(writer, &self.message)
    }

    /// A writer is another producer in each of its rooms, as sequences count in one.
    fn producer(&self, spot: Spot) -> ProducerId {
        ProducerId(self.producer_first + ((spot.writer << PLACE_BITS) + spot.place) as u64)
    }
}

const HELLO_REQUEST: u64 = 1;

/// Rooms on their way to be joined at a time.
const JOINING_MAX: usize = 256;

/// More places than a writer ever has.
const PLACE_BITS: u32 = 20;

/// After the last event, for what shouldn't come any more.
const SETTLE: Duration = Duration::from_millis(100);

/// At the end of a run changes may still come, and no reply.
fn expect_changes(told: Told) -> Result<()> {
    match told.what {
        Done::StateChanged | Done::LockChanged(_) => Ok(()),
        reply => bail!("a reply to nothing: {reply:?}"),
    }
}

fn number_payload(value: u64) -> Payload {
    Payload::binary(value.to_le_bytes().to_vec())
}
