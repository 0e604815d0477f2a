//! One room, its members and its clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use roomful_protocol::frame::{
    Action, Change, Durability, Entry, HeldFence, JoinProducer, LockReply, OpId, Published, Reply,
    StateItem, StatePage, Watch,
};
use roomful_protocol::id::{
    Key, KeyPrefix, MemberId, Offset, ProducerId, RequestId, RoomAlias, RoomId, RoomName, Sequence,
    SessionId, TenantId, UserId,
};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;
use roomful_server::auth::TokenId;
use roomful_server::clock::Now;
use roomful_server::journal::HistoryBounds;
use roomful_server::metrics::ShardCounters;
use roomful_server::room::departures::Departure;
use roomful_server::room::operations::OperationBounds;
use roomful_server::room::tables::TableBounds;
use roomful_server::room::{After, Context, Room, RoomSettings, RoomTimer, kind};
use roomful_server::shard::message::{
    Admitted, Attachment, Author, ConnectionId, Join, Message, Origin, Preferences, Refusal,
    Request, ShardId, StateGrant, View,
};

use crate::journal::TestJournal;

pub const GRACE_MS: u64 = 1_000;

pub struct World {
    pub room: Room,
    pub journal: TestJournal,
    pub settings: RoomSettings,
    pub now: Now,
    pub counters: ShardCounters,
    /// Sessions that are revoked.
    pub revoked: Vec<SessionId>,
    /// Tokens that are revoked.
    pub revoked_tokens: Vec<TokenId>,
    /// What the token of who joins says.
    pub grant: StateGrant,
    /// Whether memory is short.
    pub is_short: bool,
    /// Entries that the hub was sent.
    pub told: Vec<Arc<Entry>>,
    pub closed: bool,
    /// Whether all members were sent away, and none was let in since.
    pub sent_away: bool,
    timers: Vec<(u64, RoomTimer)>,
    replies: BTreeMap<u64, Result<Reply, Refusal>>,
    admitted: Vec<Admitted>,
    /// The last chunk that was sent.
    pub chunk: Vec<Arc<Entry>>,
    next_request: u64,
    attachments: u64,
}

/// A member as its client knows it.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    pub session: u128,
    pub member: MemberId,
    pub attachment: Attachment,
}

impl World {
    /// With a journal that answers later, or at once.
    pub fn new(late: bool) -> Self {
        let settings = RoomSettings {
            kind: kind::REGISTRY[0].1,
            durability: Durability::Local,
            history: HistoryBounds {
                entries_max: 64,
                bytes_max: 1 << 20,
                age_max_ms: 3_600_000,
            },
            operations: OperationBounds {
                results_max: 64,
                window_ms: 60_000,
                absent_max: 100,
            },
            presence_grace_ms: GRACE_MS,
            presence_delta_ms: 100,
            presence_value_bytes_max: 1_000,
            members_max: 100,
            chunk_entries_max: 256,
            chunk_bytes_max: 64 * 1024,
            empty_ms: 60_000,
            tables: TableBounds::default(),
        };
        let mut world = Self {
            room: new_room(&settings),
            journal: TestJournal::new(late),
            settings,
            now: Now {
                monotonic_ms: 1,
                unix_ms: UNIX_MS,
            },
            counters: ShardCounters::default(),
            revoked: Vec::new(),
            revoked_tokens: Vec::new(),
            grant: granted(None),
            is_short: false,
            told: Vec::new(),
            closed: false,
            sent_away: false,
            timers: Vec::new(),
            replies: BTreeMap::new(),
            admitted: Vec::new(),
            chunk: Vec::new(),
            next_request: 1,
            attachments: 0,
        };
        world.run(|room, context| room.open(false, context));
        world
    }

    /// Runs the room once, and ends the turn.
    pub fn run<T>(&mut self, act: impl FnOnce(&mut Room, &mut Context<'_>) -> T) -> T {
        let (mut out, mut timers, mut tickets) = (Vec::new(), Vec::new(), Vec::new());
        let (revoked, tokens) = (&self.revoked, &self.revoked_tokens);
        let is_revoked = |left: &Departure| {
            let token = left.token_id.as_ref();
            revoked.contains(&left.session) || token.is_some_and(|token| tokens.contains(token))
        };
        let mut context = Context {
            journal: &mut self.journal,
            now: self.now,
            shard: ShardId(0),
            out: &mut out,
            timers: &mut timers,
            tickets: &mut tickets,
            can_send: &|_| true,
            counters: &self.counters,
            is_short: self.is_short,
            is_revoked: &|_: &TenantId, left: &Departure| is_revoked(left),
        };
        let done = act(&mut self.room, &mut context);
        if self.room.is_dirty() {
            self.room.flush(&mut context);
        }
        let now_ms = self.now.monotonic_ms;
        let timers = timers.into_iter();
        self.timers
            .extend(timers.map(|(delay_ms, timer)| (now_ms + delay_ms, timer)));
        for (_, message) in out {
            self.receive(message);
        }
        done
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Reply { to, outcome } => {
                let request = to.request.expect("a reply is of a request");
                let before = self.replies.insert(request.0, outcome);
                assert!(before.is_none(), "request {} has one reply", request.0);
            }
            Message::Joined { outcome, .. } => {
                self.sent_away = false;
                self.admitted.push(*outcome.unwrap());
            }
            Message::Ended {
                connection: None, ..
            } => self.sent_away = true,
            Message::Turn(turn) => {
                if let Some(batch) = turn.log {
                    self.told.extend(batch.entries.iter().cloned());
                }
            }
            Message::Chunk(chunk) => {
                self.chunk = chunk
                    .batch
                    .map_or_else(Vec::new, |batch| batch.entries.clone());
            }
            _ => {}
        }
    }

    /// Lets time pass, and fires what is due in it.
    pub fn pass(&mut self, ms: u64) {
        let until_ms = self.now.monotonic_ms + ms;
        loop {
            let due = (0..)
                .zip(&self.timers)
                .min_by_key(|(_, (due_ms, _))| *due_ms);
            let Some((index, (due_ms, timer))) = due.filter(|(_, (due_ms, _))| *due_ms <= until_ms)
            else {
                break;
            };
            let (index, due_ms, timer): (usize, u64, RoomTimer) = (index, *due_ms, *timer);
            self.timers.remove(index);
            let passed_ms = due_ms.saturating_sub(self.now.monotonic_ms);
            self.now.monotonic_ms += passed_ms;
            self.now.unix_ms += passed_ms;
            let after = self.run(|room, context| room.timer(timer, context));
            self.closed |= after == After::Close;
        }
        self.now.unix_ms += until_ms - self.now.monotonic_ms;
        self.now.monotonic_ms = until_ms;
    }

    /// Ends everything that the journal has in flight, and what follows from it.
    pub fn settle(&mut self) {
        while self.complete(false) {}
    }

    /// Ends one call of the journal.
    pub fn complete(&mut self, fails: bool) -> bool {
        let Some(completion) = self.journal.complete(fails) else {
            return false;
        };
        self.run(|room, context| room.complete(completion.ticket, completion.result, context));
        true
    }

    /// The process ends without a word and is there again, after a while; the room is opened.
    pub fn restart(&mut self, unreported: usize, away_ms: u64) {
        self.journal.crash(unreported);
        self.timers.clear();
        self.now.unix_ms += away_ms;
        self.now.monotonic_ms = 1;
        self.closed = false;
        self.room = new_room(&self.settings);
        self.run(|room, context| room.open(false, context));
        if self.journal.with(|disk| disk.wake).is_some() {
            self.run(Room::wake);
        }
    }

    pub fn join(&mut self, session: u128) -> Client {
        self.join_with(session, View::default()).0
    }

    pub fn join_with(&mut self, session: u128, view: View) -> (Client, Admitted) {
        self.attachments += 1;
        let attachment = Attachment(self.attachments);
        let join = Join {
            room: id(),
            to: self.origin(session),
            session: SessionId(session),
            attachment,
            user: UserId::parse(&format!("user-{session}")).unwrap(),
            anonymous: false,
            since: None,
            producer: Some(JoinProducer {
                producer: ProducerId(u64::try_from(session).unwrap()),
                next: Sequence(1),
            }),
            value: None,
            preferences: Preferences {
                echo: true,
                watch: Watch::None,
                producer: None,
            },
            view,
            grant: self.grant.clone(),
        };
        self.run(|room, context| room.handle(Request::Join(Box::new(join)), context));
        let admitted = self.admitted.pop().expect("the member is let in");
        let client = Client {
            session,
            member: admitted.member,
            attachment,
        };
        (client, admitted)
    }

    pub fn detach(&mut self, client: Client) {
        let request = Request::Detach {
            member: client.member,
            attachment: client.attachment,
            shard: ShardId(0),
        };
        self.run(|room, context| room.handle(request, context));
    }

    pub fn leave(&mut self, client: Client) {
        let to = self.origin(client.session);
        let request = Request::Leave {
            member: client.member,
            attachment: client.attachment,
            to,
        };
        self.run(|room, context| room.handle(request, context));
    }

    fn origin(&mut self, session: u128) -> Origin {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        Origin {
            shard: ShardId(0),
            connection: ConnectionId {
                slot: u32::try_from(session).unwrap(),
                generation: 1,
            },
            request: Some(request),
        }
    }

    /// Asks for something; the number of the request.
    pub fn ask(&mut self, client: Client, request: impl FnOnce(Origin) -> Request) -> u64 {
        let to = self.origin(client.session);
        let request = request(to);
        self.run(|room, context| room.handle(request, context));
        to.request.unwrap().0
    }

    /// The reply to a request, once.
    pub fn reply(&mut self, request: u64) -> Option<Result<Reply, Refusal>> {
        self.replies.remove(&request)
    }

    pub fn write(&mut self, client: Client, op: Option<u64>, changes: Vec<Change>) -> u64 {
        let op = op.map(|sequence| OpId {
            producer: ProducerId(u64::try_from(client.session).unwrap()),
            sequence: Sequence(sequence),
        });
        self.ask(client, |to| Request::WriteState {
            author: Author::Member(client.member),
            to,
            op,
            changes,
        })
    }

    pub fn publish(&mut self, client: Client, text: &str) -> u64 {
        self.ask(client, |to| Request::Publish {
            author: Author::Member(client.member),
            to,
            op: None,
            payload: Payload::text(text),
        })
    }

    pub fn on_disconnect(&mut self, client: Client, changes: Vec<Change>) -> u64 {
        self.ask(client, |to| Request::OnDisconnect {
            member: client.member,
            to,
            changes,
            token_id: None,
        })
    }

    pub fn set_grant(&mut self, client: Client, grant: StateGrant) {
        self.ask(client, |to| Request::SetGrant {
            member: client.member,
            to: Origin {
                request: None,
                ..to
            },
            grant,
        });
    }

    pub fn acquire(&mut self, client: Client, name: &str, ttl_ms: u64, queue: bool) -> u64 {
        self.ask(client, |to| Request::AcquireLock {
            member: client.member,
            to,
            lock: key(name),
            ttl_ms,
            queue,
        })
    }

    pub fn renew(&mut self, client: Client, name: &str, fence: Position, ttl_ms: u64) -> u64 {
        self.ask(client, |to| Request::RenewLock {
            member: client.member,
            to,
            lock: key(name),
            fence,
            ttl_ms,
        })
    }

    pub fn release(&mut self, client: Client, name: &str) -> u64 {
        self.ask(client, |to| Request::ReleaseLock {
            member: client.member,
            to,
            lock: key(name),
        })
    }

    pub fn set_timer(&mut self, client: Client, name: &str, due_ms: u64) -> u64 {
        self.ask(client, |to| Request::SetTimer {
            author: Author::Member(client.member),
            to,
            name: key(name),
            due_ms,
            payload: Payload::text(name),
        })
    }

    pub fn cancel_timer(&mut self, client: Client, name: &str) -> u64 {
        self.ask(client, |to| Request::CancelTimer {
            author: Author::Member(client.member),
            to,
            name: key(name),
        })
    }

    /// The state, as anybody may read it.
    pub fn state(&mut self, client: Client) -> StatePage {
        let request = self.ask(client, |to| Request::GetState {
            to,
            prefix: KeyPrefix::parse("").unwrap(),
            after: None,
            limit: 1_000,
        });
        match self.reply(request) {
            Some(Ok(Reply::State(page))) => page,
            other => panic!("{other:?}"),
        }
    }

    /// The keys and values of the state, as text.
    pub fn values(&mut self, client: Client) -> Vec<(String, String)> {
        let text = |item: StateItem| {
            let bytes = item.value.unwrap().bytes;
            let value = String::from_utf8(bytes.to_vec()).unwrap();
            (item.key.as_str().to_owned(), value)
        };
        self.state(client).items.into_iter().map(text).collect()
    }

    pub fn published(&mut self, request: u64) -> Published {
        match self.reply(request) {
            Some(Ok(Reply::Published(published))) => published,
            other => panic!("{other:?}"),
        }
    }

    pub fn refusal(&mut self, request: u64) -> Refusal {
        match self.reply(request) {
            Some(Err(refusal)) => refusal,
            other => panic!("{other:?}"),
        }
    }

    /// The grant that a request got, and until when.
    pub fn granted(&mut self, request: u64) -> (Position, u64) {
        match self.reply(request) {
            Some(Ok(Reply::Lock(LockReply::Granted { fence, until_ms }))) => (fence, until_ms),
            other => panic!("{other:?}"),
        }
    }

    pub fn done(&mut self, request: u64) {
        match self.reply(request) {
            Some(Ok(Reply::Done)) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn new_room(settings: &RoomSettings) -> Room {
    Room::new(id(), RoomAlias(1), Arc::new(settings.clone()))
}

fn id() -> RoomId {
    RoomId {
        tenant: TenantId::default_tenant(),
        name: RoomName::parse(b"doc:x").unwrap(),
    }
}

pub fn key(name: &str) -> Key {
    Key::parse(name).unwrap()
}

pub fn put(name: &str, value: &str) -> Change {
    Change {
        key: key(name),
        action: Action::Put,
        value: Some(Payload::text(value)),
        if_version: None,
        if_absent: false,
        if_fence: None,
    }
}

pub fn fenced(change: Change, lock: &str, fence: Position) -> Change {
    let lock = key(lock);
    Change {
        if_fence: Some(HeldFence { lock, fence }),
        ..change
    }
}

pub fn at(offset: u64) -> Position {
    Position::new(roomful_protocol::id::Epoch(5), Offset(offset))
}

pub const UNIX_MS: u64 = 1_800_000_000_000;

/// A token that allows to change the state.
pub fn granted(token: Option<&str>) -> StateGrant {
    StateGrant {
        token_id: token.map(|token| TokenId::parse(token).unwrap()),
        is_allowed: true,
    }
}
