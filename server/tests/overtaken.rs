//! A join that a refresh overtakes: the room's home answers for the old token, and the new one counts. Two shards without I/O, whose
//! mail the test delivers.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic")]

mod loose;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;
use roomful_protocol::codec::Encoding;
use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{ClientFrame, Hello, Join, Refresh, ServerFrame, Watch};
use roomful_protocol::id::{Epoch, RequestId, RoomId, RoomName, UserId};
use roomful_protocol::text::Text;
use roomful_protocol::websocket::{ReadLimits, Reader, Role, WebSocketEvent};
use roomful_server::auth::{Grant, Grants, Identity, RoomPattern, TokenId, Verb, Verbs};
use roomful_server::clock::Now;
use roomful_server::journal::Journals;
use roomful_server::journal::memory::MemoryJournal;
use roomful_server::metrics::ShardCounters;
use roomful_server::room::RoomSettings;
use roomful_server::shard::message::{ConnectionId, Message, Request, ShardId, StateGrant};
use roomful_server::shard::{Host, Input, Shard, ShardSettings, Shared};

/// Once the membership stayed, since the refresh had looked at those that were there.
#[test]
fn a_member_whose_new_token_does_not_allow_the_room_is_sent_away() {
    let mut world = World::new();
    world.join_and_refresh(token("b", &[Verb::State]));
    assert_eq!(world.told(), ["welcome", "ok", "joined", "forbidden"]);
    world.deliver();
    let occupancy: u64 = world.counters.iter().map(|of| of.members.get()).sum();
    assert_eq!(occupancy, 0, "its home has been told");
}

/// Once what the member had left before was written by the old token.
#[test]
fn the_home_is_told_of_a_token_that_says_something_else_of_the_state() {
    for (new, told) in [
        (token("a", &[Verb::Join, Verb::State]), None),
        (token("a", &[Verb::Join]), Some(("a", false))),
        (token("b", &[Verb::Join, Verb::State]), Some(("b", true))),
    ] {
        let mut world = World::new();
        world.join_and_refresh(new);
        assert_eq!(world.told(), ["welcome", "ok", "joined"]);
        let told = told.map(|(id, is_allowed)| StateGrant {
            token_id: TokenId::parse(id),
            is_allowed,
        });
        assert_eq!(world.grants, Vec::from_iter(told));
    }
}

/// The connection's shard, and the room's.
struct World {
    shards: [Shard; 2],
    network: Network,
    counters: [Arc<ShardCounters>; 2],
    /// What the room was told of tokens.
    grants: Vec<StateGrant>,
}

#[derive(Default)]
struct Network {
    written: Vec<u8>,
    mail: VecDeque<(ShardId, Message)>,
    randoms: u128,
}

impl World {
    fn new() -> Self {
        let counters: [Arc<ShardCounters>; 2] = Default::default();
        let shared = shared();
        let shards = [0, 1].map(|number| {
            let journals = Journals::new(Box::new(MemoryJournal::new(Epoch(1))), None);
            let counters = Arc::clone(&counters[usize::from(number)]);
            Shard::new(ShardId(number), shared.clone(), journals, counters, NOW)
        });
        Self {
            shards,
            network: Network::default(),
            counters,
            grants: Vec::new(),
        }
    }

    /// The join is on its way when the refresh is over.
    fn join_and_refresh(&mut self, new: Identity) {
        self.step(Input::Opened {
            connection: CONNECTION,
            encoding: Encoding::MessagePack,
        });
        let hello = Hello {
            request: RequestId(0),
            token: Text::new("a token").ok(),
            resume: None,
            agent: None,
        };
        self.send(&hello.into());
        self.verified(token("a", &[Verb::Join, Verb::State]));
        let home = |room: &str| {
            let name = RoomName::parse(room.as_bytes()).unwrap();
            let tenant = token("a", &[]).tenant;
            shared().directory.home(&RoomId { tenant, name })
        };
        let mut rooms = (0..).map(|number| format!("chat:{number}"));
        let room = rooms.find(|room| home(room) == ShardId(1)).unwrap();
        let join = Join {
            request: RequestId(1),
            room: room.as_str().into(),
            since: None,
            producer: None,
            echo: true,
            watch: Watch::None,
            presence: None,
            state: None,
            locks: false,
        };
        self.send(&join.into());
        let refresh = Refresh {
            request: RequestId(2),
            token: Text::new("another").unwrap(),
        };
        self.send(&refresh.into());
        self.verified(new);
        self.deliver();
    }

    fn verified(&mut self, identity: Identity) {
        self.step(Input::Verified {
            connection: CONNECTION,
            outcome: Ok(identity),
        });
    }

    fn send(&mut self, frame: &ClientFrame) {
        let mut message = Vec::new();
        Encoding::MessagePack.encode(frame, &mut message);
        self.step(Input::Message {
            connection: CONNECTION,
            text: false,
            payload: &message,
        });
    }

    fn step(&mut self, input: Input<'_>) {
        self.shards[0].step(input, NOW, &mut self.network);
    }

    /// Delivers all mail, and what comes of it.
    fn deliver(&mut self) {
        while let Some((to, message)) = self.network.mail.pop_front() {
            if let Message::Request {
                request: Request::SetGrant { grant, .. },
                ..
            } = &message
            {
                self.grants.push(grant.clone());
            }
            let shard = &mut self.shards[usize::from(to.0)];
            shard.step(Input::Mail(message), NOW, &mut self.network);
            self.shards.iter_mut().for_each(|shard| {
                shard.flush(NOW, &mut self.network);
            });
        }
    }

    /// What the client was told.
    fn told(&self) -> Vec<&'static str> {
        let mut bytes = self.network.written.clone();
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
        let name = |frame| match frame {
            ServerFrame::Welcome(_) => "welcome",
            ServerFrame::Ok(_) => "ok",
            ServerFrame::Joined(_) => "joined",
            ServerFrame::Left(left) if left.code.known() == Some(ErrorCode::Forbidden) => {
                "forbidden"
            }
            _ => "something else",
        };
        frames.into_iter().map(name).collect()
    }
}

impl Host for Network {
    fn write(&mut self, _: ConnectionId, slices: &[IoSlice<'_>]) -> usize {
        let all = slices.iter();
        all.for_each(|slice| self.written.extend_from_slice(slice));
        slices.iter().map(|slice| slice.len()).sum()
    }

    fn finish(&mut self, _: ConnectionId, _: Vec<Bytes>) {}

    fn read_again(&mut self, _: ConnectionId) {}

    /// The test itself says what came of it.
    fn verify(&mut self, _: ConnectionId, _: &str) {}

    fn send(&mut self, to: ShardId, message: Message) {
        self.mail.push_back((to, message));
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

/// What a token says that allows this in every room.
fn token(id: &str, verbs: &[Verb]) -> Identity {
    let user = UserId::parse("ann").unwrap();
    let grant = Grant {
        rooms: vec![RoomPattern::parse("*", &user).unwrap()],
        verbs: verbs
            .iter()
            .fold(Verbs::default(), |verbs, verb| verbs.with(*verb)),
    };
    Identity {
        grants: Grants::new(vec![grant]),
        token_id: TokenId::parse(id),
        ..Identity::anonymous(user)
    }
}

const CONNECTION: ConnectionId = ConnectionId {
    slot: 0,
    generation: 1,
};

const NOW: Now = Now {
    monotonic_ms: 1_000,
    unix_ms: 1_800_000_000_000,
};

fn shared() -> Shared {
    let room = RoomSettings {
        presence_grace_ms: 1_000,
        ..loose::room()
    };
    let settings = ShardSettings {
        anonymous: false,
        ..loose::shard("chat", room)
    };
    loose::shared(2, settings, NOW.unix_ms)
}
