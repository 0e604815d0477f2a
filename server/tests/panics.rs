//! What a panic ends, and what it does not: one shard without I/O whose rooms, sockets and storage panic when a test wants them to.
//!
//! They can because the core is given all three: the kind of a namespace's rooms, the host, and the journal.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed check is a panic, and so is what is tested"
)]

mod loose;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use roomful_protocol::codec::Encoding;
use roomful_protocol::error::{CloseCode, ErrorCode};
use roomful_protocol::frame::{
    ClientFrame, Durability, Entry, Error, Hello, Join, JoinProducer, Joined, OpId, Publish,
    Published, Recovery, Reply, ServerFrame, Watch,
};
use roomful_protocol::id::{
    Epoch, MemberId, Offset, ProducerId, RequestId, RoomAlias, RoomId, Sequence,
};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;
use roomful_protocol::websocket::{ReadLimits, Reader, Role, WebSocketEvent};
use roomful_server::clock::Now;
use roomful_server::journal::memory::MemoryJournal;
use roomful_server::journal::{
    HistoryBounds, Journal, Journals, Opened, Outcome, ReadPage, ReadQuery, Snapshot,
};
use roomful_server::metrics::{PanicPlace, ShardCounters};
use roomful_server::room::RoomSettings;
use roomful_server::room::kind::{Decision, Proposal, Rejection, Relay, RoomKind};
use roomful_server::shard::message::{ConnectionId, Message, ShardId};
use roomful_server::shard::{Flush, Host, Input, Shard, ShardSettings, Shared};

/// A room's code panics: its members are told to come again, whoever waited for an answer has one, what was stored is there
/// with its op ids, and what was not takes effect once. Another room notices nothing.
#[test]
fn a_panic_in_a_room_ends_that_room_alone() {
    let mut world = World::new();
    let [ann, bob, cid] = [0, 1, 2];
    let room = world.enter(ann, "fragile:x", None).room;
    world.enter(bob, "fragile:x", None);
    let other = world.enter(cid, "fragile:y", None).room;
    let first = world.publish(ann, room, 1, "one").unwrap();

    let error = world.publish(ann, room, 2, POISON).unwrap_err();
    assert_eq!(error.code.known(), Some(ErrorCode::OutcomeUnknown));
    assert!(error.after_ms.is_some(), "{error:?}");
    assert_eq!(world.left(ann), [ErrorCode::RoomReopened]);
    assert_eq!(world.left(bob), [ErrorCode::RoomReopened]);
    assert_eq!(world.panics(), [0, 0, 1]);

    let back = world.enter(ann, "fragile:x", Some(first.position));
    assert_eq!((back.recovery, back.head), (Recovery::Live, first.position));
    assert!(back.member > MemberId(2), "a number is not given twice");
    let again = world.publish(ann, back.room, 1, "one").unwrap();
    assert!(again.duplicate);
    assert_eq!(again.position, first.position);
    let second = world.publish(ann, back.room, 2, "two").unwrap();
    assert_eq!(
        (second.duplicate, second.position.offset),
        (false, Offset(2))
    );

    assert_eq!(world.left(cid), []);
    assert_eq!(
        world
            .publish(cid, other, 1, "well")
            .unwrap()
            .position
            .offset,
        Offset(1)
    );
    world.empties();
}

/// A log of which opening makes the room panic is opened at once, later and later, and after the fifth time once in five
/// minutes. Who comes meanwhile is told when to come again. When it opens at last, everybody is served.
#[test]
fn a_room_that_panics_whenever_it_opens_does_not_keep_the_shard_busy() {
    let mut world = World::new();
    world.enter(0, "fragile:healthy", None);
    world.journal.borrow_mut().unopenable = true;
    let error = world.join(1, "fragile:poisoned", None).unwrap_err();
    assert_eq!(error.code.known(), Some(ErrorCode::Internal));
    world.pass(300_000);
    let panics = world.counters.panics.of(PanicPlace::Room).get();
    assert!((5..=7).contains(&panics), "{panics} panics in five minutes");
    let error = world.join(1, "fragile:poisoned", None).unwrap_err();
    assert!(error.after_ms.is_some_and(|ms| ms > 1_000), "{error:?}");
    assert_eq!(
        world.counters.panics.of(PanicPlace::Room).get(),
        panics,
        "a join opens nothing"
    );

    world.journal.borrow_mut().unopenable = false;
    assert!(world.join(2, "fragile:other", None).is_ok());
    world.pass(300_000);
    assert!(world.join(1, "fragile:poisoned", None).is_ok());
    world.empties();
}

/// Writing to a connection panics: it is closed so that it may resume, its member begins its grace, and the room goes on.
#[test]
fn a_panic_in_a_connection_ends_that_connection_alone() {
    let mut world = World::new();
    let room = world.enter(0, "fragile:x", None).room;
    world.enter(1, "fragile:x", None);
    world.network.unwritable.insert(id(1));
    let ping = roomful_protocol::frame::Ping {
        request: RequestId(9),
    };
    world.send(1, &ping.into());
    world.settle();
    assert_eq!(world.panics(), [1, 0, 0]);
    assert_eq!(
        world.network.finished,
        [(id(1), Some(CloseCode::InternalError.code()))]
    );
    let counters = &world.counters;
    assert_eq!(
        (
            counters.connections.get(),
            counters.subscribers.get(),
            counters.members.get()
        ),
        (1, 1, 2)
    );
    world.publish(0, room, 1, "on").unwrap();
    assert_eq!(world.left(0), []);
    world.empties();
}

/// The same in the middle of a fan-out: nobody knows who has got the turn, so all members come again and get it then.
#[test]
fn a_panic_in_a_fan_out_ends_the_memberships_alone() {
    let mut world = World::new();
    let joined = world.enter(0, "fragile:x", None);
    world.enter(1, "fragile:x", None);
    world.enter(2, "fragile:x", None);
    let other = world.enter(3, "fragile:y", None).room;
    world.network.unwritable.insert(id(1));
    let published = world.publish(0, joined.room, 1, "one").unwrap();
    assert_eq!(world.panics(), [0, 1, 0]);
    assert_eq!(
        world.network.finished.len(),
        1,
        "who was being written to is closed"
    );
    assert_eq!(world.left(2), [ErrorCode::RoomReopened]);
    let back = world.enter(2, "fragile:x", Some(joined.head));
    assert_eq!(
        (back.recovery, back.head),
        (Recovery::Recovering, published.position)
    );
    assert_eq!(world.events(2), [Offset(1)]);
    world.publish(3, other, 1, "well").unwrap();
    world.empties();
}

/// One shard with what it needs.
struct World {
    shard: Shard,
    network: Network,
    journal: Rc<RefCell<Faults>>,
    counters: Arc<ShardCounters>,
    now: Now,
    next_request: u64,
}

/// Sockets that take everything, or panic.
#[derive(Default)]
struct Network {
    written: BTreeMap<ConnectionId, Vec<u8>>,
    unwritable: BTreeSet<ConnectionId>,
    /// With the code of the close frame.
    finished: Vec<(ConnectionId, Option<u16>)>,
    randoms: u128,
}

#[derive(Default)]
struct Faults {
    unopenable: bool,
}

impl World {
    fn new() -> Self {
        let now = Now {
            monotonic_ms: 0,
            unix_ms: UNIX_MS,
        };
        let journal = Rc::<RefCell<Faults>>::default();
        let counters = Arc::<ShardCounters>::default();
        let storage = Storage {
            journal: MemoryJournal::new(Epoch(1)),
            faults: Rc::clone(&journal),
        };
        Self {
            shard: Shard::new(
                ShardId(0),
                shared(),
                Journals::new(Box::new(storage), None),
                Arc::clone(&counters),
                now,
            ),
            network: Network::default(),
            journal,
            counters,
            now,
            next_request: 0,
        }
    }

    /// Joins, connecting first where need be.
    fn join(
        &mut self,
        member: usize,
        room: &str,
        since: Option<Position>,
    ) -> Result<Joined, Error> {
        let connection = id(member);
        if !self.shard.is_open(connection) {
            let opened = Input::Opened {
                connection,
                encoding: Encoding::MessagePack,
            };
            self.shard.step(opened, self.now, &mut self.network);
            let hello = Hello {
                request: RequestId(0),
                token: None,
                resume: None,
                agent: None,
            };
            self.send(member, &hello.into());
        }
        let request = self.request();
        let producer = JoinProducer {
            producer: ProducerId(1 + member as u64),
            next: Sequence(3),
        };
        let join = Join {
            request,
            room: room.into(),
            since,
            producer: Some(producer),
            echo: true,
            watch: Watch::None,
            presence: None,
            state: None,
            locks: false,
        };
        self.send(member, &join.into());
        self.settle();
        self.reply(member, |frame| match frame {
            ServerFrame::Joined(joined) if joined.request == request => Some(Ok(*joined)),
            ServerFrame::Error(error) if error.request == Some(request) => Some(Err(error)),
            _ => None,
        })
    }

    fn enter(&mut self, member: usize, room: &str, since: Option<Position>) -> Joined {
        self.join(member, room, since).unwrap()
    }

    fn publish(
        &mut self,
        member: usize,
        room: RoomAlias,
        sequence: u64,
        text: &str,
    ) -> Result<Published, Error> {
        let request = self.request();
        let op = OpId {
            producer: ProducerId(1 + member as u64),
            sequence: Sequence(sequence),
        };
        let publish = Publish {
            request,
            room,
            op: Some(op),
            payload: Payload::text(text),
        };
        self.send(member, &publish.into());
        self.settle();
        self.reply(member, |frame| match frame {
            ServerFrame::Ok(ok) if ok.request == request => match ok.reply {
                Reply::Published(published) => Some(Ok(published)),
                other => panic!("{other:?}"),
            },
            ServerFrame::Error(error) if error.request == Some(request) => Some(Err(error)),
            _ => None,
        })
    }

    fn request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    fn send(&mut self, member: usize, frame: &ClientFrame) {
        let mut message = Vec::new();
        Encoding::MessagePack.encode(frame, &mut message);
        let input = Input::Message {
            connection: id(member),
            text: false,
            payload: &message,
        };
        self.shard.step(input, self.now, &mut self.network);
    }

    fn settle(&mut self) {
        while self.shard.flush(self.now, &mut self.network) == Flush::More {}
    }

    fn pass(&mut self, ms: u64) {
        let until_ms = self.now.monotonic_ms + ms;
        while let Some(due_ms) = self
            .shard
            .next_tick_ms()
            .filter(|due_ms| *due_ms <= until_ms)
        {
            let passed_ms = due_ms.saturating_sub(self.now.monotonic_ms);
            self.now.unix_ms += passed_ms;
            self.now.monotonic_ms += passed_ms;
            self.shard.step(Input::Tick, self.now, &mut self.network);
            self.settle();
        }
        self.now.unix_ms += until_ms - self.now.monotonic_ms;
        self.now.monotonic_ms = until_ms;
    }

    /// Takes the one frame that answers.
    fn reply<T>(&self, member: usize, mut read: impl FnMut(ServerFrame) -> Option<T>) -> T {
        let mut found: Vec<T> = self
            .frames(member)
            .into_iter()
            .filter_map(&mut read)
            .collect();
        assert_eq!(found.len(), 1, "one reply for each request");
        found.remove(0)
    }

    fn left(&self, member: usize) -> Vec<ErrorCode> {
        let codes = self
            .frames(member)
            .into_iter()
            .filter_map(|frame| match frame {
                ServerFrame::Left(left) => left.code.known(),
                _ => None,
            });
        codes.collect()
    }

    fn events(&self, member: usize) -> Vec<Offset> {
        let offsets = self
            .frames(member)
            .into_iter()
            .filter_map(|frame| match frame {
                ServerFrame::Event(event) => Some(event.entry.offset),
                _ => None,
            });
        offsets.collect()
    }

    /// Everything that was written to somebody.
    fn frames(&self, member: usize) -> Vec<ServerFrame> {
        let mut bytes = self
            .network
            .written
            .get(&id(member))
            .cloned()
            .unwrap_or_default();
        let mut input = &mut bytes[..];
        let mut reader = Reader::new(Role::Client);
        let mut frames = Vec::new();
        while let Some(event) = reader.next(&mut input, &ReadLimits::default()).unwrap() {
            if let WebSocketEvent::Message { payload, .. } = event {
                match Encoding::MessagePack.decode_server(payload).unwrap() {
                    ServerFrame::ServerBatch(batch) => frames.extend(batch.frames.0),
                    frame => frames.push(frame),
                }
            }
        }
        frames
    }

    /// Of connections, hubs and rooms.
    fn panics(&self) -> [u64; 3] {
        [PanicPlace::Connection, PanicPlace::Hub, PanicPlace::Room]
            .map(|place| self.counters.panics.of(place).get())
    }

    /// Everybody goes, and nothing of them stays.
    fn empties(&mut self) {
        for member in 0..4 {
            self.shard.step(
                Input::Gone {
                    connection: id(member),
                },
                self.now,
                &mut self.network,
            );
        }
        self.settle();
        self.pass(4_000_000);
        let counters = &self.counters;
        let gauges = [
            &counters.connections,
            &counters.sessions,
            &counters.members,
            &counters.subscribers,
            &counters.rooms,
        ];
        assert_eq!(
            gauges.map(|gauge| gauge.get()),
            [0; 5],
            "connections, sessions, members, subscribers, rooms"
        );
    }
}

impl Host for Network {
    fn write(&mut self, connection: ConnectionId, slices: &[IoSlice<'_>]) -> usize {
        assert!(!self.unwritable.contains(&connection), "on purpose");
        let written = self.written.entry(connection).or_default();
        slices
            .iter()
            .for_each(|slice| written.extend_from_slice(slice));
        slices.iter().map(|slice| slice.len()).sum()
    }

    fn finish(&mut self, connection: ConnectionId, last_words: Vec<Bytes>) {
        let close = last_words
            .last()
            .filter(|words| words.first() == Some(&0x88));
        let code = close.map(|close| u16::from_be_bytes([close[2], close[3]]));
        self.finished.push((connection, code));
    }

    fn read_again(&mut self, _: ConnectionId) {}

    fn verify(&mut self, _: ConnectionId, _: &str) {
        unreachable!("nobody has a token")
    }

    fn send(&mut self, to: ShardId, _: Message) {
        unreachable!("there is no shard {to:?}")
    }

    fn can_send(&self, _: ShardId) -> bool {
        true
    }

    fn random(&mut self) -> u128 {
        self.randoms += 1;
        self.randoms
    }

    fn turn_is_spent(&mut self) -> bool {
        false
    }
}

/// Relays everything but one payload.
#[derive(Debug)]
struct Fragile(Relay);

const POISON: &str = "poison";

impl RoomKind for Fragile {
    fn reduce(&mut self, proposal: Proposal<'_>) -> Result<Decision, Rejection> {
        assert_ne!(&*proposal.payload.bytes, POISON.as_bytes(), "on purpose");
        self.0.reduce(proposal)
    }
}

/// Keeps everything, or panics.
struct Storage {
    journal: MemoryJournal,
    faults: Rc<RefCell<Faults>>,
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.journal.fmt(f)
    }
}

impl Journal for Storage {
    fn durability(&self) -> Durability {
        self.journal.durability()
    }

    fn open(&mut self, room: &RoomId, bounds: HistoryBounds) -> Outcome<Opened> {
        assert!(!self.faults.borrow().unopenable, "on purpose");
        self.journal.open(room, bounds)
    }

    fn set_bounds(&mut self, room: &RoomId, bounds: HistoryBounds) {
        self.journal.set_bounds(room, bounds);
    }

    fn append(&mut self, room: &RoomId, expected: Offset, entry: &Arc<Entry>) -> Outcome<()> {
        self.journal.append(room, expected, entry)
    }

    fn snapshot(&mut self, room: &RoomId, snapshot: Snapshot) {
        self.journal.snapshot(room, snapshot);
    }

    fn register(&mut self, room: &RoomId, key: Bytes, value: Bytes) -> Outcome<()> {
        self.journal.register(room, key, value)
    }

    fn wake_at(&mut self, room: &RoomId, at_ms: Option<u64>) {
        self.journal.wake_at(room, at_ms);
    }

    fn read(&mut self, room: &RoomId, query: ReadQuery) -> Outcome<ReadPage> {
        self.journal.read(room, query)
    }

    fn first(&self, room: &RoomId) -> Offset {
        self.journal.first(room)
    }

    fn trim(&mut self, room: &RoomId, now_ms: u64) -> Option<u64> {
        self.journal.trim(room, now_ms)
    }

    fn close(&mut self, room: &RoomId) {
        self.journal.close(room);
    }
}

fn id(member: usize) -> ConnectionId {
    ConnectionId {
        slot: u32::try_from(member).unwrap(),
        generation: 1,
    }
}

const UNIX_MS: u64 = 1_800_000_000_000;

fn shared() -> Shared {
    let room = RoomSettings {
        kind: || Box::new(Fragile(Relay)),
        ..loose::room()
    };
    let settings = ShardSettings {
        // Nobody is asked whether it lives.
        heartbeat_ms: 1_000_000_000,
        ..loose::shard("fragile", room)
    };
    loose::shared(1, settings, UNIX_MS)
}
