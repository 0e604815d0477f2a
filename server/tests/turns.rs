//! What one turn of a shard may take, with 19,000 members in one room and everything that can happen to all of them at once.
//!
//! Time is not measured but counted: the host says that the time is up after a few looks at it, as it would be when each stretch between two
//! looks takes long. A turn may then do a few stretches of each kind of work, and what is left has to come in later turns, in its order.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic")]

mod loose;

use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;
use roomful_protocol::codec::Encoding;
use roomful_protocol::frame::{ClientFrame, Hello, Join, Ping, Publish, ServerFrame, Watch};
use roomful_protocol::id::{Epoch, Offset, RequestId, RoomAlias, UserId};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;
use roomful_protocol::text::Text;
use roomful_protocol::websocket::{ReadLimits, Reader, Role, WebSocketEvent};
use roomful_server::auth::Identity;
use roomful_server::clock::Now;
use roomful_server::journal::Journals;
use roomful_server::journal::memory::MemoryJournal;
use roomful_server::metrics::ShardCounters;
use roomful_server::room::RoomSettings;
use roomful_server::shard::message::{ConnectionId, Message, ShardId};
use roomful_server::shard::{Flush, Host, Input, Phase, Shard, ShardSettings, Shared};

const MEMBERS: usize = 19_000;
const HEARTBEAT_MS: u64 = 25_000;

/// Looks that a kind of work has in one turn.
const LOOKS: usize = 4;

/// A look comes after 16 rooms, timers or members, or after 64 members of a fan-out; so a turn writes at most so often, for each of its
/// three kinds of work that write.
const WRITES_MAX: usize = 3 * LOOKS * 64 + 64;

/// All join in one moment: their replies, and then the changes of presence for all who watch, leave in bounded turns.
#[test]
fn a_storm_of_joins_is_written_in_bounded_turns() {
    let mut world = World::new();
    let turns = world.everybody_joins(Watch::Members, None);
    assert!(turns > MEMBERS / WRITES_MAX, "{turns} turns");
    assert_eq!(
        world.count(MEMBERS - 1, |frame| matches!(frame, ServerFrame::Joined(_))),
        1
    );
    world.pass(3_000);
    let told: usize = world
        .frames(MEMBERS - 1)
        .iter()
        .map(|frame| match frame {
            ServerFrame::PresenceDelta(delta) => delta.changes.len(),
            _ => 0,
        })
        .sum();
    assert!(told >= MEMBERS, "{told} changes were told");
}

/// All come back to one position: each gets everything behind it, once and in order, over many turns, while the room goes on.
#[test]
fn a_catch_up_of_everybody_takes_bounded_turns() {
    let mut world = World::new();
    let first = world.enter(0, Watch::None, None);
    (0..50).for_each(|_| world.publish(0, first.1));
    world.settle();
    world.everybody_joins(Watch::None, Some(Position::new(first.0.epoch, Offset(0))));
    (0..10).for_each(|_| world.publish(0, first.1));
    world.settle();
    for member in [1, MEMBERS / 2, MEMBERS - 1] {
        let events = world
            .frames(member)
            .into_iter()
            .filter_map(|frame| match frame {
                ServerFrame::Event(event) => Some(event.entry.offset.0),
                _ => None,
            });
        assert!(events.eq(1..=60), "member {member} missed something");
    }
}

/// All timers of all connections are due in one moment: first everybody is asked whether it lives, then everybody is given up.
#[test]
fn timers_that_fire_together_take_bounded_turns() {
    let mut world = World::new();
    world.everybody_joins(Watch::None, None);
    let before = world.turns;
    world.pass(HEARTBEAT_MS + 1);
    let turns = world.turns - before;
    assert!(
        turns >= MEMBERS / (LOOKS * 16),
        "all were asked in {turns} turns"
    );
    assert_eq!(world.counters.connections.get(), MEMBERS as u64);
    world.pass(HEARTBEAT_MS + 1);
    assert_eq!(world.counters.connections.get(), 0);
    world.pass(70_000);
    assert_eq!(
        (world.counters.members.get(), world.counters.sessions.get()),
        (0, 0)
    );
}

/// A token lives for a day, and a timer can't be cancelled: who comes with one and goes leaves nothing to wake up for.
#[test]
fn nothing_is_waited_for_when_all_have_gone() {
    let mut world = World::with_tokens();
    (0..100).for_each(|member| world.sign_in(member, 86_400_000));
    world.settle();
    for member in 0..100 {
        let connection = id(member);
        let gone = Input::Gone { connection };
        world.shard.step(gone, world.now, &mut world.network);
    }
    world.pass(61_000);
    assert_eq!(world.counters.sessions.get(), 0);
    assert_eq!(world.shard.next_tick_ms(), None);
}

/// However long a token is good, its user is warned once, a minute before, and closed at its end.
#[test]
fn a_long_token_ends_on_time() {
    let mut world = World::with_tokens();
    world.sign_in(0, 600_000);
    let warnings =
        |world: &World| world.count(0, |frame| matches!(frame, ServerFrame::TokenExpiring(_)));
    for (until_s, warned) in [(539, 0), (541, 1), (599, 1)] {
        while world.now.monotonic_ms < until_s * 1_000 {
            let ping = Ping {
                request: RequestId(9),
            };
            world.send(0, &ping.into());
            world.pass((until_s * 1_000 - world.now.monotonic_ms).min(HEARTBEAT_MS));
        }
        assert_eq!(warnings(&world), warned, "after {until_s} s");
        assert!(world.shard.is_open(id(0)), "after {until_s} s");
    }
    world.pass(1_000);
    assert!(!world.shard.is_open(id(0)));
}

/// One shard, and what its longest turn wrote.
struct World {
    shard: Shard,
    network: Network,
    counters: Arc<ShardCounters>,
    now: Now,
    turns: usize,
}

#[derive(Default)]
struct Network {
    written: Vec<Vec<u8>>,
    writes: usize,
    looks: usize,
    randoms: u128,
}

impl World {
    /// Of anonymous users.
    fn new() -> Self {
        Self::of(shared(true))
    }

    /// Of users with tokens.
    fn with_tokens() -> Self {
        Self::of(shared(false))
    }

    fn of(shared: Shared) -> Self {
        let now = Now {
            monotonic_ms: 0,
            unix_ms: UNIX_MS,
        };
        let counters = Arc::<ShardCounters>::default();
        let journals = Journals::new(Box::new(MemoryJournal::new(Epoch(1))), None);
        let network = Network {
            written: vec![Vec::new(); MEMBERS],
            ..Network::default()
        };
        Self {
            shard: Shard::new(ShardId(0), shared, journals, Arc::clone(&counters), now),
            network,
            counters,
            now,
            turns: 0,
        }
    }

    /// In one turn, for all that the shard can see. How many turns it took until all had their answers.
    fn everybody_joins(&mut self, watch: Watch, since: Option<Position>) -> usize {
        (0..MEMBERS).for_each(|member| self.arrive(member, watch, since));
        let before = self.turns;
        self.settle();
        self.turns - before
    }

    fn enter(
        &mut self,
        member: usize,
        watch: Watch,
        since: Option<Position>,
    ) -> (Position, RoomAlias) {
        self.arrive(member, watch, since);
        self.settle();
        let joined = self
            .frames(member)
            .into_iter()
            .find_map(|frame| match frame {
                ServerFrame::Joined(joined) => Some((joined.head, joined.room)),
                _ => None,
            });
        joined.unwrap()
    }

    fn arrive(&mut self, member: usize, watch: Watch, since: Option<Position>) {
        if self.shard.is_open(id(member)) {
            return;
        }
        self.greet(member, None);
        let join = Join {
            request: RequestId(1),
            room: "chat:all".into(),
            since,
            producer: None,
            echo: true,
            watch,
            presence: None,
            state: None,
            locks: false,
        };
        self.send(member, &join.into());
    }

    fn greet(&mut self, member: usize, token: Option<&str>) {
        let opened = Input::Opened {
            connection: id(member),
            encoding: Encoding::MessagePack,
        };
        self.shard.step(opened, self.now, &mut self.network);
        let hello = Hello {
            request: RequestId(0),
            token: token.map(|token| Text::new(token).unwrap()),
            resume: None,
            agent: None,
        };
        self.send(member, &hello.into());
    }

    /// Says hello with a token that is good for so long.
    fn sign_in(&mut self, member: usize, lifetime_ms: u64) {
        self.greet(member, Some("a token"));
        let identity = Identity {
            expires_ms: Some(self.now.unix_ms + lifetime_ms),
            ..Identity::anonymous(UserId::parse("ann").unwrap())
        };
        let verified = Input::Verified {
            connection: id(member),
            outcome: Ok(identity),
        };
        self.shard.step(verified, self.now, &mut self.network);
    }

    fn publish(&mut self, member: usize, room: RoomAlias) {
        let publish = Publish {
            request: RequestId(2),
            room,
            op: None,
            payload: Payload::text("hi"),
        };
        self.send(member, &publish.into());
        self.turn();
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

    /// One turn, within its bounds.
    fn turn(&mut self) -> Flush {
        self.turns += 1;
        self.network.writes = 0;
        let flush = self.shard.flush(self.now, &mut self.network);
        assert!(
            self.network.writes <= WRITES_MAX,
            "{} writes in one turn",
            self.network.writes
        );
        flush
    }

    fn settle(&mut self) {
        while self.turn() == Flush::More {}
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
            self.network.begin(Phase::Timers);
            self.shard.step(Input::Tick, self.now, &mut self.network);
            self.turn();
        }
        self.settle();
        self.now.unix_ms += until_ms - self.now.monotonic_ms;
        self.now.monotonic_ms = until_ms;
    }

    fn count(&self, member: usize, of: impl Fn(&ServerFrame) -> bool) -> usize {
        self.frames(member).iter().filter(|frame| of(frame)).count()
    }

    fn frames(&self, member: usize) -> Vec<ServerFrame> {
        let mut bytes = self.network.written[member].clone();
        let mut input = &mut bytes[..];
        let mut reader = Reader::new(Role::Client);
        let limits = ReadLimits {
            message_bytes_max: usize::MAX,
            ..ReadLimits::default()
        };
        let mut frames = Vec::new();
        while let Some(event) = reader.next(&mut input, &limits).unwrap() {
            if let WebSocketEvent::Message { payload, .. } = event {
                match Encoding::MessagePack.decode_server(payload).unwrap() {
                    ServerFrame::ServerBatch(batch) => frames.extend(batch.frames.0),
                    frame => frames.push(frame),
                }
            }
        }
        frames
    }
}

impl Host for Network {
    /// What two members in the middle and the last one get is kept; what 19,000 get would fill the memory.
    fn write(&mut self, connection: ConnectionId, slices: &[IoSlice<'_>]) -> usize {
        self.writes += 1;
        let member = connection.slot as usize;
        if [0, 1, MEMBERS / 2, MEMBERS - 1].contains(&member) {
            slices
                .iter()
                .for_each(|slice| self.written[member].extend_from_slice(slice));
        }
        slices.iter().map(|slice| slice.len()).sum()
    }

    fn finish(&mut self, _: ConnectionId, _: Vec<Bytes>) {}

    fn read_again(&mut self, _: ConnectionId) {}

    /// The test itself says what came of it.
    fn verify(&mut self, _: ConnectionId, _: &str) {}

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

    fn begin(&mut self, _: Phase) {
        self.looks = 0;
    }

    fn turn_is_spent(&mut self) -> bool {
        self.looks += 1;
        self.looks >= LOOKS
    }
}

fn id(member: usize) -> ConnectionId {
    ConnectionId {
        slot: u32::try_from(member).unwrap(),
        generation: 1,
    }
}

const UNIX_MS: u64 = 1_800_000_000_000;

fn shared(anonymous: bool) -> Shared {
    let room = RoomSettings {
        presence_grace_ms: 1_000,
        members_max: MEMBERS,
        ..loose::room()
    };
    let settings = ShardSettings {
        anonymous,
        heartbeat_ms: HEARTBEAT_MS,
        ..loose::shard("chat", room)
    };
    loose::shared(1, settings, UNIX_MS)
}
