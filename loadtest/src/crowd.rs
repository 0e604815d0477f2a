//! Clients of a Roomful server that come, go and come back, driven by one thread.
//!
//! Where the [`crate::swarm`] speaks to any peer in the few words that all have, this speaks Roomful's own frames: sessions that are
//! resumed, positions, presence, signals. Each client is in at most one room. What every client may count on is checked here for each
//! of them: the log without a gap, no reset, and a resumed session that is the same session and the same member. What a scenario expects beyond
//! that, it checks itself. Any error of any connection ends the run.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use roomful_protocol::codec::Encoding;
use roomful_protocol::frame::{
    ClientFrame, Hello, Join, JoinProducer, Joined, Leave, OpId, PresenceDelta, Publish, Recovery,
    Reply, RoomText, ServerFrame, Signal, Watch,
};
use roomful_protocol::id::{
    INTEGER_MAX, MemberId, Offset, ProducerId, RequestId, RoomAlias, RoomName, Sequence, SignalKey,
};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;
use roomful_protocol::text::Text;
use roomful_protocol::websocket::OpCode;

use tokio::time::Instant;

use crate::console::Bar;
use crate::peer::Upgrade;
use crate::peer::frames::{Frame, each_frame, encoded, fault};
use crate::pool::{Pool, Waiting};
use crate::scenario::{Deadline, Subject};

/// The clients, by their numbers.
#[derive(Debug)]
pub(crate) struct Crowd {
    pool: Pool,
    /// Part of all room names, so that no two runs meet in a room.
    run: u64,
    /// Producer of client 0. Chosen anew for each run: a server that is still running may remember those of the last one.
    producer_first: u64,
    clients: Vec<Client>,
    /// Messages received so far.
    messages: u64,
    /// How often a client was told to come again later.
    refusals: u64,
    /// Where a message is put together before it is framed.
    message: Vec<u8>,
}

/// One client: what it keeps over its connections.
#[derive(Debug)]
struct Client {
    room: RoomName,
    watch: Watch,
    /// The newest resume token; none before the first `welcome`.
    resume: Option<String>,
    /// What it is in its room; `None` while it is out.
    seat: Option<Seat>,
    /// What it was when its connection was cut, and must still be when it comes back.
    before: Option<Seat>,
    /// Where it stands in the room's log.
    position: Option<Position>,
    /// Publishes so far.
    published: u32,
}

/// A place in a room.
#[derive(Debug, Clone, Copy)]
struct Seat {
    alias: RoomAlias,
    member: MemberId,
}

/// What a client was told.
#[derive(Debug)]
pub(crate) enum Told<'a> {
    /// It is in its room.
    Joined(&'a Joined),
    /// It has left its room.
    Left,
    /// An entry of the log, the next one.
    Event {
        /// Its place.
        offset: u64,
        /// Its content.
        payload: &'a [u8],
    },
    /// What it missed is complete.
    CaughtUp,
    /// Its publish was taken.
    Published,
    /// Somebody's signal.
    Signal(&'a [u8]),
    /// Presence has changed.
    Presence(&'a PresenceDelta),
}

/// Takes what a client was told, with its number; an error ends the run.
pub(crate) type Listener<'a> = &'a mut dyn FnMut(usize, Told<'_>) -> Result<()>;

const HELLO_REQUEST: u64 = 1;
const JOIN_REQUEST: u64 = 2;
const LEAVE_REQUEST: u64 = 3;
/// Sequences count from 1, so the first publish has the next number.
const PUBLISH_REQUEST: u64 = 3;

/// Connections that are opened before what has arrived is read.
const OPENED_PER_TURN: usize = 64;

impl Crowd {
    /// Nobody yet.
    ///
    /// # Errors
    /// The kernel gives no poll.
    pub(crate) fn new(subject: &Subject, waiting: Waiting) -> Result<Self> {
        let random = RandomState::new();
        Ok(Self {
            pool: Pool::new(subject.address, subject.peer.secure().cloned(), waiting)?,
            run: random.hash_one("run"),
            producer_first: random.hash_one("producer") & (INTEGER_MAX >> 1),
            clients: Vec::new(),
            messages: 0,
            refusals: 0,
            message: Vec::new(),
        })
    }

    /// More clients, which haven't connected; their numbers. The room is one of this run's, by its namespace and number.
    ///
    /// # Errors
    /// No room may be called that.
    pub(crate) fn add(
        &mut self,
        count: usize,
        namespace: &str,
        room: usize,
        watch: Watch,
    ) -> Result<Range<usize>> {
        let name = format!("{namespace}:load-{:016x}-{room}", self.run);
        let room = RoomName::parse(name.as_bytes()).context(name)?;
        let first = self.clients.len();
        self.clients.extend((0..count).map(|_| Client {
            room: room.clone(),
            watch,
            resume: None,
            seat: None,
            before: None,
            position: None,
            published: 0,
        }));
        Ok(first..first + count)
    }

    /// From now on a client that is told when to come again does so, as both of our clients do.
    pub(crate) fn heed_refusals(&mut self) {
        self.pool.heed_refusals();
    }

    /// How often a client was told to come again later.
    pub(crate) const fn refusals(&self) -> u64 {
        self.refusals
    }

    /// Connects clients, at most so many on their way at a time, until all are in their rooms. One that was there before resumes its session
    /// and its place in the log.
    ///
    /// # Errors
    /// Those of [`Crowd::turn`], or the deadline passed.
    pub(crate) fn enter(
        &mut self,
        who: Range<usize>,
        joining_max: usize,
        deadline: &Deadline,
        listener: Listener<'_>,
    ) -> Result<()> {
        let bar = Bar::counting("joining", who.len());
        let (mut opened, mut joined) = (0, 0);
        let mut later: Vec<(Instant, usize)> = Vec::new();
        while joined < who.len() {
            bar.reach(joined);
            let now = Instant::now();
            for (_, index) in later.extract_if(.., |(due, _)| *due <= now) {
                self.connect(index)?;
            }
            let until = who.len().min(joined + joining_max);
            for index in who
                .clone()
                .skip(opened)
                .take((until - opened).min(OPENED_PER_TURN))
            {
                self.connect(index)?;
                opened += 1;
            }
            // While more can be opened, only what is there already is read.
            let wait = if opened < until {
                Duration::ZERO
            } else {
                TURN_MAX
            };
            self.turn(wait, &mut |index, told| {
                joined += usize::from(matches!(told, Told::Joined(_)) && who.contains(&index));
                listener(index, told)
            })?;
            for (index, wait) in self.pool.postponed() {
                self.refusals += 1;
                // SPEC §8: on top of what was asked for, a random time, so that not all come in one moment.
                let spread = RandomState::new().hash_one(index) % SPREAD_MAX_MS;
                later.push((Instant::now() + wait + Duration::from_millis(spread), index));
            }
            deadline.check(|| format!("{joined} of {} clients are in their rooms", who.len()))?;
        }
        Ok(())
    }

    /// Reads for so long.
    ///
    /// # Errors
    /// Those of [`Crowd::turn`], or the deadline passed.
    pub(crate) fn wait(
        &mut self,
        duration: Duration,
        deadline: &Deadline,
        listener: Listener<'_>,
    ) -> Result<()> {
        let end = Deadline::after(duration);
        while let Some(left) = end.left() {
            self.turn(left.min(TURN_MAX), listener)?;
            deadline.check(|| "waiting".to_owned())?;
        }
        Ok(())
    }

    /// Waits for readiness, at most so long, and reports what clients were told.
    ///
    /// # Errors
    /// Any connection failed, something is wrong with what came, or what the listener returned.
    pub(crate) fn turn(&mut self, wait: Duration, listener: Listener<'_>) -> Result<()> {
        let Self {
            pool,
            clients,
            messages,
            ..
        } = self;
        pool.turn(wait, &mut |index, message, _| {
            *messages += 1;
            let client = &mut clients[index];
            each_frame(message, &mut |frame| match frame {
                Frame::Event {
                    offset, payload, ..
                } => {
                    client.event(offset)?;
                    listener(index, Told::Event { offset, payload })
                }
                Frame::Other(frame) => client.frame(&frame, &mut |told| listener(index, told)),
            })
        })
    }

    /// Ends a client's connection without a word.
    pub(crate) fn cut(&mut self, index: usize) {
        let client = &mut self.clients[index];
        client.before = client.seat.take();
        self.pool.drop_connection(index);
    }

    /// Joins the room again, on the connection that left it, as somebody new.
    ///
    /// # Errors
    /// The connection is broken.
    pub(crate) fn join(&mut self, index: usize) -> Result<()> {
        let producer = self.producer(index);
        let client = &mut self.clients[index];
        client.position = None;
        let join = client.join(producer);
        self.send(index, &join.into())
    }

    /// Leaves the room.
    ///
    /// # Errors
    /// The connection is broken, or the client isn't in.
    pub(crate) fn leave(&mut self, index: usize) -> Result<()> {
        let request = RequestId(LEAVE_REQUEST);
        let room = self.clients[index].seat()?.alias;
        self.send(index, &Leave { request, room }.into())
    }

    /// Publishes.
    ///
    /// # Errors
    /// The connection is broken, or the client isn't in.
    pub(crate) fn publish(&mut self, index: usize, payload: &[u8]) -> Result<()> {
        let producer = self.producer(index);
        let client = &mut self.clients[index];
        client.published += 1;
        let sequence = u64::from(client.published);
        let publish = Publish {
            request: RequestId(PUBLISH_REQUEST + sequence),
            room: client.seat()?.alias,
            op: Some(OpId {
                producer,
                sequence: Sequence(sequence),
            }),
            payload: Payload::binary(payload.to_vec()),
        };
        self.send(index, &publish.into())
    }

    /// Sends a signal to all others of the room; a newer one replaces an older one of the same key that still waits.
    ///
    /// # Errors
    /// The connection is broken, or the client isn't in.
    pub(crate) fn signal(&mut self, index: usize, key: &str, payload: &[u8]) -> Result<()> {
        let signal = Signal {
            request: None,
            room: self.clients[index].seat()?.alias,
            to: None,
            key: Some(SignalKey::parse(key).context("a signal's key")?),
            payload: Payload::binary(payload.to_vec()),
        };
        self.send(index, &signal.into())
    }

    /// Where a client stands in its room's log.
    pub(crate) fn offset(&self, index: usize) -> u64 {
        self.clients[index]
            .position
            .map_or(0, |position| position.offset.0)
    }

    /// Messages received so far; one may carry many frames.
    pub(crate) const fn messages(&self) -> u64 {
        self.messages
    }

    /// Processor time that went into looking for work that wasn't there.
    pub(crate) const fn spun(&self) -> Duration {
        self.pool.spun()
    }

    fn connect(&mut self, index: usize) -> Result<()> {
        let producer = self.producer(index);
        let client = &self.clients[index];
        let hello = Hello {
            request: RequestId(HELLO_REQUEST),
            token: None,
            resume: client.resume.as_deref().map(Text::new).transpose()?,
            agent: Text::new("roomful-loadtest").ok(),
        };
        let upgrade = Upgrade {
            path: format!("/v1/ws?k={}", client.room.placement_key()),
            subprotocol: Some(Encoding::MessagePack.subprotocol()),
            code: OpCode::Binary,
        };
        let greeting = vec![
            encoded(&hello.into()),
            encoded(&client.join(producer).into()),
        ];
        self.pool.open(index, &upgrade, greeting)
    }

    fn send(&mut self, index: usize, frame: &ClientFrame) -> Result<()> {
        self.message.clear();
        Encoding::MessagePack.encode(frame, &mut self.message);
        self.pool.send(index, &self.message)
    }

    fn producer(&self, index: usize) -> ProducerId {
        ProducerId(self.producer_first + index as u64)
    }
}

/// What SPEC §8 recommends for the first attempt.
const SPREAD_MAX_MS: u64 = 500;

/// A turn ends by then even if nothing arrives.
const TURN_MAX: Duration = Duration::from_millis(100);

impl Client {
    fn join(&self, producer: ProducerId) -> Join {
        Join {
            request: RequestId(JOIN_REQUEST),
            room: RoomText::from(&self.room),
            since: self.position,
            producer: Some(JoinProducer {
                producer,
                next: Sequence(u64::from(self.published) + 1),
            }),
            echo: true,
            watch: self.watch,
            presence: None,
            state: None,
            locks: false,
        }
    }

    fn seat(&self) -> Result<Seat> {
        self.seat.context("a client that isn't in its room")
    }

    /// The log has no gap and repeats nothing.
    fn event(&mut self, offset: u64) -> Result<()> {
        let position = self.position.as_mut();
        let position = position.context("an event before the join was answered")?;
        let expected = position.offset.0 + 1;
        ensure!(
            offset >= expected,
            "doubled: offset {offset} came again where {expected} is due"
        );
        ensure!(
            offset == expected,
            "lost or out of order: offset {offset} came where {expected} is due"
        );
        position.offset = Offset(offset);
        Ok(())
    }

    fn frame(
        &mut self,
        frame: &ServerFrame,
        tell: &mut dyn FnMut(Told<'_>) -> Result<()>,
    ) -> Result<()> {
        match frame {
            ServerFrame::Welcome(welcome) => {
                ensure!(
                    welcome.resumed || self.resume.is_none(),
                    "a session was not resumed but replaced by a new one"
                );
                self.resume = Some(welcome.resume.clone());
                Ok(())
            }
            ServerFrame::Joined(joined) => {
                self.joined(joined)?;
                tell(Told::Joined(joined))
            }
            ServerFrame::Ok(ok) => match &ok.reply {
                Reply::Done if ok.request == RequestId(LEAVE_REQUEST) => {
                    self.seat = None;
                    tell(Told::Left)
                }
                Reply::Published(published) if !published.duplicate => tell(Told::Published),
                reply => bail!("an unexpected reply: {reply:?}"),
            },
            ServerFrame::CaughtUp(caught_up) => {
                let stands = self.position.map(|position| position.offset);
                ensure!(
                    stands == Some(caught_up.offset),
                    "lost: caught up at offset {} with events up to {stands:?}",
                    caught_up.offset
                );
                tell(Told::CaughtUp)
            }
            ServerFrame::Signalled(signal) => tell(Told::Signal(&signal.payload.bytes)),
            ServerFrame::PresenceDelta(delta) => tell(Told::Presence(delta)),
            ServerFrame::TokenExpiring(_) | ServerFrame::Pong(_) => Ok(()),
            unwelcome @ (ServerFrame::Error(_)
            | ServerFrame::Left(_)
            | ServerFrame::Goaway(_)
            | ServerFrame::Advance(_)
            | ServerFrame::Event(_)
            | ServerFrame::ServerBatch(_)
            | ServerFrame::StateChanged(_)
            | ServerFrame::LockChanged(_)
            | ServerFrame::TimerChanged(_)) => Err(fault(unwelcome)),
        }
    }

    fn joined(&mut self, joined: &Joined) -> Result<()> {
        if let Some(since) = self.position {
            ensure!(
                joined.recovery != Recovery::Reset,
                "reset: what a client held up to {since} is void, the room is at {}",
                joined.head
            );
            ensure!(
                joined.position == since,
                "joined at {} with {since} as the last position",
                joined.position
            );
        }
        if let Some(before) = self.before.take() {
            ensure!(
                joined.member == before.member,
                "member {} came back as member {}",
                before.member,
                joined.member
            );
        }
        self.position = Some(joined.position);
        self.seat = Some(Seat {
            alias: joined.room,
            member: joined.member,
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use roomful_protocol::frame::{CaughtUp, Durability};
    use roomful_protocol::id::Epoch;

    use super::*;

    fn client() -> Client {
        Client {
            room: RoomName::parse(b"chat:lobby").unwrap(),
            watch: Watch::None,
            resume: None,
            seat: None,
            before: None,
            position: None,
            published: 0,
        }
    }

    fn joined(member: u64, offset: u64, recovery: Recovery) -> ServerFrame {
        let position = Position::new(Epoch(1), Offset(offset));
        Joined {
            request: RequestId(JOIN_REQUEST),
            room: RoomAlias(1),
            member: MemberId(member),
            position,
            head: position,
            recovery,
            durability: Durability::Memory,
            revision: 1,
            occupancy: 1,
            state: None,
            locks: None,
        }
        .into()
    }

    /// What the frame is worth to the client: nothing, or the name of a fault.
    fn told(client: &mut Client, frame: &ServerFrame) -> Result<(), String> {
        let told = client.frame(frame, &mut |_| Ok(()));
        told.map_err(|error| format!("{error:#}"))
    }

    /// A client that stands at offset 5, and lost its connection there.
    fn cut() -> Client {
        let mut client = client();
        told(&mut client, &joined(7, 5, Recovery::Live)).unwrap();
        client.before = client.seat.take();
        client
    }

    #[test]
    fn the_log_is_taken_in_order_and_nothing_else_is() {
        let mut client = client();
        assert!(client.event(1).is_err());
        told(&mut client, &joined(7, 5, Recovery::Live)).unwrap();
        client.event(6).unwrap();
        let doubled = client.event(6).unwrap_err().to_string();
        assert!(doubled.starts_with("doubled"), "{doubled}");
        let skipped = client.event(8).unwrap_err().to_string();
        assert!(skipped.starts_with("lost or out of order"), "{skipped}");
        client.event(7).unwrap();
    }

    #[test]
    fn who_comes_back_must_be_who_was_there() {
        told(&mut cut(), &joined(7, 5, Recovery::Recovering)).unwrap();
        for (frame, name) in [
            (joined(8, 5, Recovery::Recovering), "came back as member 8"),
            (joined(7, 9, Recovery::Reset), "reset"),
            (joined(7, 6, Recovery::Live), "joined at 1-6"),
        ] {
            let text = told(&mut cut(), &frame).unwrap_err();
            assert!(text.contains(name), "{text}");
        }
    }

    #[test]
    fn having_caught_up_means_having_everything() {
        let mut client = cut();
        told(&mut client, &joined(7, 5, Recovery::Recovering)).unwrap();
        client.event(6).unwrap();
        let caught_up = |offset| {
            CaughtUp {
                room: RoomAlias(1),
                offset: Offset(offset),
            }
            .into()
        };
        let text = told(&mut client, &caught_up(7)).unwrap_err();
        assert!(text.starts_with("lost"), "{text}");
        told(&mut client, &caught_up(6)).unwrap();
    }
}
