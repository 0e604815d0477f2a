//! What a publish and a delivery cost the core, counted instead of timed: allocations, bytes of them, and calls that write to a socket.
//!
//! `cost MEMBERS IN_FLIGHT` puts members into one room of one shard without I/O, lets some publish, and counts over a fixed stretch once
//! everything is warm. The numbers are the same in every run. Instructions are counted by running it under
//! `valgrind --tool=callgrind --toggle-collect=cost::stretch`. `cargo xtask test guard` does both and holds the result to bounds. It judges
//! nothing itself, beyond that every member got every event.

#[path = "../tests/loose/mod.rs"]
mod loose;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::IoSlice;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use roomful_protocol::codec::Encoding;
use roomful_protocol::frame::{
    ClientFrame, Hello, Join, JoinProducer, OpId, Publish, ServerFrame, Watch,
};
use roomful_protocol::id::{Epoch, ProducerId, RequestId, RoomAlias, Sequence};
use roomful_protocol::payload::Payload;
use roomful_protocol::websocket::{ReadLimits, Reader, Role, WebSocketEvent};
use roomful_server::clock::Now;
use roomful_server::journal::Journals;
use roomful_server::journal::memory::MemoryJournal;
use roomful_server::room::RoomSettings;
use roomful_server::shard::message::{ConnectionId, Message, ShardId};
use roomful_server::shard::{Flush, Host, Input, Shard, ShardSettings, Shared};

/// Publishes before counting begins: more than the history and the op-id window keep, so that both only replace.
const WARMUP: usize = 128;
/// Publishes that are counted.
const COUNTED: usize = 256;
const PAYLOAD_BYTES: usize = 64;
const UNIX_MS: u64 = 1_800_000_000_000;

fn main() -> ExitCode {
    let arguments: Vec<usize> = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse().ok())
        .collect();
    let &[members, in_flight] = &arguments[..] else {
        say("usage: cost MEMBERS IN_FLIGHT");
        return ExitCode::from(2);
    };
    if members == 0 || !(1..=members).contains(&in_flight) || !COUNTED.is_multiple_of(in_flight) {
        say("IN_FLIGHT must divide 256 and be at most MEMBERS");
        return ExitCode::from(2);
    }
    let mut world = World::new(members, in_flight);
    let (warmup, counted) = (
        world.prepare(WARMUP.div_ceil(in_flight)),
        world.prepare(COUNTED / in_flight),
    );
    world.perform(&warmup);
    world.network.forget();
    let allocations = ALLOCATIONS.load(Ordering::Relaxed);
    let bytes = ALLOCATED_BYTES.load(Ordering::Relaxed);
    stretch(&mut world, &counted);
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - allocations;
    let bytes = ALLOCATED_BYTES.load(Ordering::Relaxed) - bytes;
    world.check();
    say(&format!("publishes {COUNTED}"));
    say(&format!("deliveries {}", COUNTED * members));
    say(&format!("allocations {allocations}"));
    say(&format!("allocated_bytes {bytes}"));
    say(&format!("writes {}", world.network.writes));
    ExitCode::SUCCESS
}

#[expect(clippy::print_stdout, reason = "this is what the program is for")]
fn say(line: &str) {
    println!("{line}");
}

/// What is counted. By name, for callgrind, so it must stay a function.
#[inline(never)]
fn stretch(world: &mut World, messages: &[Vec<u8>]) {
    world.perform(messages);
}

/// One shard, with members that are all in one room.
struct World {
    shard: Shard,
    network: Network,
    in_flight: usize,
    room: RoomAlias,
    now: Now,
    /// The publishes of each publisher so far.
    sequence: u64,
}

/// Takes what the shard writes; every socket takes everything.
#[derive(Default)]
struct Network {
    /// Calls.
    writes: usize,
    /// Bytes for each connection.
    bytes: Vec<u64>,
    /// All that was written to the last connection, which doesn't publish unless all do.
    witness: Vec<u8>,
    randoms: u128,
}

impl World {
    fn new(members: usize, in_flight: usize) -> Self {
        let now = Now {
            monotonic_ms: 0,
            unix_ms: UNIX_MS,
        };
        let journals = Journals::new(Box::new(MemoryJournal::new(Epoch(1))), None);
        let mut world = Self {
            shard: Shard::new(ShardId(0), shared(members), journals, Arc::default(), now),
            network: Network::default(),
            in_flight,
            room: RoomAlias(0),
            now,
            sequence: 0,
        };
        world.network.bytes = vec![0; members];
        // Enough for all that it will hold, so that its growth isn't counted.
        world.network.witness.reserve(1 << 20);
        (0..members).for_each(|member| world.enter(member));
        world.flush();
        world.room = world.alias();
        world
    }

    fn enter(&mut self, member: usize) {
        let connection = id(member);
        let opened = Input::Opened {
            connection,
            encoding: Encoding::MessagePack,
        };
        self.shard.step(opened, self.now, &mut self.network);
        let hello = Hello {
            request: RequestId(1),
            token: None,
            resume: None,
            agent: None,
        };
        self.send(member, &encoded(&hello.into()));
        let join = Join {
            request: RequestId(2),
            room: "bench:room".into(),
            since: None,
            producer: Some(JoinProducer {
                producer: producer(member),
                next: Sequence(1),
            }),
            echo: true,
            watch: Watch::None,
            presence: None,
            state: None,
            locks: false,
        };
        self.send(member, &encoded(&join.into()));
    }

    /// Rounds of publishes, encoded: what clients spend isn't counted. In each as many as may be in flight, by different members.
    fn prepare(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        for _ in 0..count {
            self.sequence += 1;
            messages.extend((0..self.in_flight).map(|publisher| self.publish(publisher)));
        }
        messages
    }

    fn publish(&self, publisher: usize) -> Vec<u8> {
        let publish = Publish {
            request: RequestId(2 + self.sequence),
            room: self.room,
            op: Some(OpId {
                producer: producer(publisher),
                sequence: Sequence(self.sequence),
            }),
            payload: Payload::binary(vec![0x5a; PAYLOAD_BYTES]),
        };
        encoded(&publish.into())
    }

    /// Each round ends the turn.
    fn perform(&mut self, messages: &[Vec<u8>]) {
        for round in messages.chunks(self.in_flight) {
            for (publisher, message) in round.iter().enumerate() {
                self.send(publisher, message);
            }
            self.flush();
            self.now.monotonic_ms += 1;
            self.now.unix_ms += 1;
        }
    }

    fn send(&mut self, member: usize, message: &[u8]) {
        let input = Input::Message {
            connection: id(member),
            text: false,
            payload: message,
        };
        self.shard.step(input, self.now, &mut self.network);
    }

    fn flush(&mut self) {
        while self.shard.flush(self.now, &mut self.network) == Flush::More {}
    }

    /// What the witness' room is called.
    fn alias(&self) -> RoomAlias {
        self.witnessed()
            .iter()
            .find_map(|frame| match frame {
                ServerFrame::Joined(joined) => Some(joined.room),
                _ => None,
            })
            .expect("everybody may join")
    }

    /// Everybody who didn't publish got the same, and it was every event.
    fn check(&self) {
        let events = self
            .witnessed()
            .iter()
            .filter(|frame| matches!(frame, ServerFrame::Event(_)))
            .count();
        assert_eq!(events, COUNTED, "the witness missed an event");
        let silent = self.network.bytes.iter().skip(self.in_flight);
        let witness = self.network.witness.len() as u64;
        for (member, bytes) in silent.enumerate() {
            assert_eq!(*bytes, witness, "silent member {member} got something else");
        }
    }

    fn witnessed(&self) -> Vec<ServerFrame> {
        let mut bytes = self.network.witness.clone();
        let mut input = &mut bytes[..];
        let mut reader = Reader::new(Role::Client);
        let mut frames = Vec::new();
        while let Some(event) = reader
            .next(&mut input, &ReadLimits::default())
            .expect("the server keeps to RFC 6455")
        {
            if let WebSocketEvent::Message { payload, .. } = event {
                let frame = Encoding::MessagePack.decode_server(payload);
                push_flat(frame.expect("the server sends frames"), &mut frames);
            }
        }
        frames
    }
}

fn encoded(frame: &ClientFrame) -> Vec<u8> {
    let mut message = Vec::new();
    Encoding::MessagePack.encode(frame, &mut message);
    message
}

/// A batch stands for the frames in it.
fn push_flat(frame: ServerFrame, frames: &mut Vec<ServerFrame>) {
    match frame {
        ServerFrame::ServerBatch(batch) => {
            for frame in batch.frames.0 {
                push_flat(frame, frames);
            }
        }
        frame => frames.push(frame),
    }
}

impl Network {
    fn forget(&mut self) {
        self.writes = 0;
        self.bytes.fill(0);
        self.witness.clear();
    }
}

impl Host for Network {
    fn write(&mut self, connection: ConnectionId, slices: &[IoSlice<'_>]) -> usize {
        self.writes += 1;
        let member = connection.slot as usize;
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        self.bytes[member] += total as u64;
        if member + 1 == self.bytes.len() {
            slices
                .iter()
                .for_each(|slice| self.witness.extend_from_slice(slice));
        }
        total
    }

    fn finish(&mut self, connection: ConnectionId, _: Vec<Bytes>) {
        unreachable!("{connection:?} was closed, and nobody misbehaves")
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

fn id(member: usize) -> ConnectionId {
    ConnectionId {
        slot: u32::try_from(member).expect("a room has fewer members"),
        generation: 1,
    }
}

fn producer(member: usize) -> ProducerId {
    ProducerId(1 + member as u64)
}

/// Everything on, nothing in the way.
fn shared(members: usize) -> Shared {
    let room = RoomSettings {
        members_max: members,
        ..loose::room()
    };
    let settings = ShardSettings {
        requests_max: 16_384,
        ..loose::shard("bench", room)
    };
    loose::shared(1, settings, UNIX_MS)
}

/// The system's allocator, counted.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static ALLOCATED_BYTES: AtomicU64 = AtomicU64::new(0);

fn count(bytes: usize) {
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    ALLOCATED_BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
}

#[expect(
    unsafe_code,
    reason = "an allocator is unsafe by its trait; this one hands every call on, and only this development tool uses it"
)]
// SAFETY: every method passes its arguments on to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's duties are those of the call that is made.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(bytes);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}
