//! Two shards, a network, clients and a clock, all of them data and all of them driven by one seed.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::IoSlice;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use roomful_protocol::codec::Encoding;
use roomful_protocol::frame::{ClientFrame, OpId, Watch};
use roomful_protocol::id::{Epoch, MemberId, Offset, RoomId, RoomName, TenantId};
use roomful_protocol::websocket::{ReadLimits, Reader, Role, WebSocketEvent};
use roomful_server::clock::Now;
use roomful_server::config::SecretKey;
use roomful_server::connection::{Rate, Rates};
use roomful_server::directory::Directory;
use roomful_server::journal::HistoryBounds;
use roomful_server::memory::Memory;
use roomful_server::metrics::ShardCounters;
use roomful_server::room::operations::OperationBounds;
use roomful_server::room::{RoomSettings, kind};
use roomful_server::session::index::Sessions;
use roomful_server::session::token::ResumeKey;
use roomful_server::shard::message::{ConnectionId, Message, ShardId};
use roomful_server::shard::{Flush, Host, Input, Shard, ShardSettings, Shared};

use crate::client::{Client, Noted, Stage, content};
use crate::journal::{Faults, FaultyJournal};

/// How long a member may be away, in milliseconds.
const GRACE_MS: u64 = 3_000;
const RETENTION_MS: u64 = 10_000;
const SHARDS: u16 = 2;
const CLIENTS: usize = 6;
const START_UNIX_MS: u64 = 1_800_000_000_000;

/// Everything there is.
pub struct World {
    random: StdRng,
    now_ms: u64,
    shards: Vec<Option<Shard>>,
    journals: Vec<FaultyJournal>,
    counters: Vec<Arc<ShardCounters>>,
    net: Rc<RefCell<Net>>,
    clients: Vec<Client>,
    /// Which connection a client has.
    links: Vec<Option<(usize, ConnectionId)>>,
    /// What clients have sent and shards have not got.
    uplinks: BTreeMap<(usize, ConnectionId), VecDeque<Vec<u8>>>,
    /// Connections that were cut and whose shard does not know it.
    cut: BTreeSet<(usize, ConnectionId)>,
    free_slots: Vec<Vec<u32>>,
    next_generation: u32,
    readers: BTreeMap<(usize, ConnectionId), Reader>,
    /// What stands at each position of each room: the same for everybody, for ever.
    truth: BTreeMap<(String, Epoch, Offset), OpId>,
    owners: BTreeMap<(String, MemberId), usize>,
    stalled: BTreeSet<usize>,
    healthy: bool,
}

/// What lies between the parts.
#[derive(Default)]
struct Net {
    /// Between shards, in order.
    mail: BTreeMap<(u16, u16), VecDeque<Message>>,
    /// What the kernel holds for a connection.
    downlinks: BTreeMap<(usize, ConnectionId), Downlink>,
    /// Connections that the shard has ended.
    finished: Vec<(usize, ConnectionId)>,
    verified: Vec<ConnectionId>,
    faulty: bool,
}

#[derive(Default)]
struct Downlink {
    bytes: VecDeque<u8>,
    capacity: usize,
    blocked: bool,
    closed: bool,
}

/// A shard's view of the world for the length of a step.
struct SimHost<'a> {
    shard: usize,
    net: &'a mut Net,
    random: &'a mut StdRng,
}

impl Host for SimHost<'_> {
    fn write(&mut self, connection: ConnectionId, slices: &[IoSlice<'_>]) -> usize {
        let Some(link) = self.net.downlinks.get_mut(&(self.shard, connection)) else {
            return slices.iter().map(|slice| slice.len()).sum();
        };
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        let room = link.capacity.saturating_sub(link.bytes.len());
        let written = total.min(room);
        link.bytes.extend(
            slices
                .iter()
                .flat_map(|slice| slice.iter().copied())
                .take(written),
        );
        link.blocked |= written < total;
        written
    }

    fn finish(&mut self, connection: ConnectionId, last_words: Vec<Bytes>) {
        if let Some(link) = self.net.downlinks.get_mut(&(self.shard, connection)) {
            last_words
                .iter()
                .for_each(|words| link.bytes.extend(words.iter().copied()));
            link.closed = true;
        }
        self.net.finished.push((self.shard, connection));
    }

    fn pause(&mut self, _: ConnectionId, _: bool) {}

    fn verify(&mut self, connection: ConnectionId, _: &str) {
        self.net.verified.push(connection);
    }

    fn send(&mut self, to: ShardId, message: Message) {
        let from = u16::try_from(self.shard).unwrap();
        self.net
            .mail
            .entry((from, to.0))
            .or_default()
            .push_back(message);
    }

    fn can_send(&self, to: ShardId) -> bool {
        let from = u16::try_from(self.shard).unwrap();
        !self.net.faulty
            || self
                .net
                .mail
                .get(&(from, to.0))
                .is_none_or(|mail| mail.len() < 3)
    }

    fn random(&mut self) -> u128 {
        self.random.random()
    }

    fn turn_is_spent(&mut self) -> bool {
        self.net.faulty && self.random.random_range(0..8) == 0
    }
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let shared = shared();
        let faults = match seed % 4 {
            0 => Faults { late: 0, fail: 0 },
            1 => Faults { late: 60, fail: 0 },
            _ => Faults { late: 40, fail: 4 },
        };
        let counters: Vec<_> = (0..SHARDS)
            .map(|_| Arc::new(ShardCounters::default()))
            .collect();
        let journals: Vec<_> = (0..SHARDS)
            .map(|_| FaultyJournal::new(random.random(), faults))
            .collect();
        let now = Now {
            monotonic_ms: 0,
            unix_ms: START_UNIX_MS,
        };
        let shards = (0..SHARDS).map(|id| {
            let index = usize::from(id);
            let journal = Box::new(journals[index].clone());
            Some(Shard::new(
                ShardId(id),
                shared.clone(),
                journal,
                Arc::clone(&counters[index]),
                now,
            ))
        });
        let shards = shards.collect();
        let clients = (0..CLIENTS).map(|index| {
            let encoding = if random.random() {
                Encoding::MessagePack
            } else {
                Encoding::Json
            };
            // Two rooms, homed on different shards.
            let room = if random.random_range(0..4) == 0 {
                "chat:b"
            } else {
                "chat:lobby"
            };
            let watch = [Watch::None, Watch::Occupancy, Watch::Members][random.random_range(0..3)];
            Client::new(
                index,
                encoding,
                room.to_owned(),
                random.random_range(0..4) > 0,
                watch,
            )
        });
        let clients = clients.collect();
        Self {
            now_ms: 0,
            shards,
            journals,
            counters,
            net: Rc::new(RefCell::new(Net {
                faulty: true,
                ..Net::default()
            })),
            clients,
            links: vec![None; CLIENTS],
            uplinks: BTreeMap::new(),
            cut: BTreeSet::new(),
            free_slots: vec![(0..16).rev().collect(); usize::from(SHARDS)],
            next_generation: 0,
            readers: BTreeMap::new(),
            truth: BTreeMap::new(),
            owners: BTreeMap::new(),
            stalled: BTreeSet::new(),
            healthy: false,
            random,
        }
    }

    /// Everything goes wrong that may, for a while.
    pub fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.something();
        }
    }

    /// Nothing goes wrong any more; within a minute everybody has everything.
    pub fn heal(&mut self) {
        self.healthy = true;
        self.net.borrow_mut().faulty = false;
        self.stalled.clear();
        self.journals.iter().for_each(FaultyJournal::heal);
        let until_ms = self.now_ms + 60_000;
        while !self.is_settled() {
            assert!(
                self.now_ms < until_ms,
                "not settled after a minute: {}",
                self.describe()
            );
            self.something();
        }
        // Members whose connection never heard of its welcome are still in their grace.
        let until_ms = self.now_ms + GRACE_MS + 500;
        while self.now_ms < until_ms {
            self.something();
        }
    }

    /// What must be true when everybody is settled.
    pub fn check(&self) {
        for client in &self.clients {
            self.check_log(client);
            self.check_view(client);
        }
        let outbox: u64 = self
            .counters
            .iter()
            .map(|counters| counters.outbox_bytes.get())
            .sum();
        assert_eq!(outbox, 0, "bytes wait for clients who read");
    }

    /// Everybody goes, and nothing of them stays.
    pub fn empty(&mut self) {
        for index in 0..CLIENTS {
            self.cut_client(index);
        }
        let until_ms = self.now_ms + RETENTION_MS + 2 * GRACE_MS;
        while self.now_ms < until_ms {
            self.something_of_the_server();
            self.pass(50);
        }
        for counters in &self.counters {
            for (name, gauge) in [
                ("connections", counters.connections.get()),
                ("sessions", counters.sessions.get()),
                ("members", counters.members.get()),
                ("subscribers", counters.subscribers.get()),
                ("outbox bytes", counters.outbox_bytes.get()),
                ("outbox messages", counters.outbox_messages.get()),
            ] {
                assert_eq!(gauge, 0, "{name} that nobody has");
            }
        }
    }

    /// How often each of the slow paths was taken: a simulation that never takes them proves nothing.
    pub fn tally(&self) -> Tally {
        let sum =
            |of: fn(&ShardCounters) -> u64| self.counters.iter().map(|counters| of(counters)).sum();
        Tally {
            events: self.truth.len() as u64,
            catch_ups: sum(|counters| counters.catch_ups.get()),
            resets: sum(|counters| counters.resets.get()),
            duplicates: sum(|counters| counters.publish_duplicates.get()),
            conflated: sum(|counters| counters.signals_conflated.get()),
            failures: sum(|counters| counters.journal_failures.get()),
            mailbox_full: sum(|counters| counters.mailbox_full.get()),
            cut_turns: sum(|counters| counters.turn_over_budget.get()),
            resumed: sum(|counters| counters.sessions_resumed.get()),
        }
    }

    fn check_log(&self, client: &Client) {
        let epoch = client.position.unwrap().epoch;
        let head = self
            .truth
            .range((client.room.clone(), epoch, Offset(0))..)
            .take_while(|((room, of, _), _)| *room == client.room && *of == epoch);
        let head = head.last().map_or(Offset(0), |((_, _, offset), _)| *offset);
        assert!(
            client.position.unwrap().offset >= head,
            "client {} is behind: {}",
            client.index,
            self.describe()
        );
        for (sequence, position) in &client.acked {
            let key = (client.room.clone(), position.epoch, position.offset);
            if let Some(op) = self.truth.get(&key) {
                assert_eq!(
                    (op.producer, op.sequence),
                    (client.producer(), *sequence),
                    "an ack for somebody else's entry"
                );
            }
        }
        let mut once = BTreeSet::new();
        for ((room, of, _), op) in &self.truth {
            if *room == client.room && *of == epoch && op.producer == client.producer() {
                assert!(
                    once.insert(op.sequence),
                    "client {}: {:?} took effect twice",
                    client.index,
                    op.sequence
                );
            }
        }
    }

    fn check_view(&self, watcher: &Client) {
        if watcher.watch != Watch::Members {
            return;
        }
        let there = self
            .clients
            .iter()
            .filter(|client| client.room == watcher.room);
        let there: BTreeSet<_> = there.filter_map(|client| client.member).collect();
        let seen: BTreeSet<_> = watcher.view.keys().copied().collect();
        assert_eq!(
            seen, there,
            "client {} sees ghosts, or too few",
            watcher.index
        );
    }

    fn is_settled(&self) -> bool {
        let net = self.net.borrow();
        let quiet = net.mail.values().all(VecDeque::is_empty)
            && net.downlinks.values().all(|link| link.bytes.is_empty())
            && self.uplinks.values().all(VecDeque::is_empty)
            && self.cut.is_empty();
        let idle = self.shards.iter().flatten().all(Shard::is_idle);
        quiet && idle && self.clients.iter().all(Client::is_settled) && self.heads_are_reached()
    }

    fn heads_are_reached(&self) -> bool {
        self.clients.iter().all(|client| {
            let room = RoomId {
                tenant: TenantId::default_tenant(),
                name: RoomName::parse(client.room.as_bytes()).unwrap(),
            };
            let head = self
                .journals
                .iter()
                .filter_map(|journal| journal.entries(&room).last().map(|last| last.offset));
            let head = head.max().unwrap_or(Offset(0));
            client
                .position
                .is_some_and(|position| position.offset >= head)
        })
    }

    fn something(&mut self) {
        match self.random.random_range(0..10) {
            0..4 => self.something_of_a_client(),
            4..9 => self.something_of_the_server(),
            _ => {
                let longest = if self.healthy { 2 } else { 5 };
                let ms = [1, 5, 20, 150, 900][self.random.random_range(0..longest)];
                self.pass(ms);
            }
        }
    }

    fn something_of_a_client(&mut self) {
        let index = self.random.random_range(0..CLIENTS);
        let mut choice = self.random.random_range(0..100);
        if self.healthy {
            // Nothing new is begun; what was begun comes to its end.
            choice = if choice < 50 { 0 } else { 99 };
        }
        match choice {
            0..30 if self.links[index].is_none() => self.connect(index),
            0..45 => self.publish(index),
            45..55 => self.signal(index),
            55..59 => self.cut_client(index),
            59..62 => {
                self.stalled.insert(index);
            }
            62..68 => {
                self.stalled.remove(&index);
            }
            68..69 => self.leave(index),
            _ => self.read(index),
        }
    }

    fn something_of_the_server(&mut self) {
        match self.random.random_range(0..6) {
            0 | 1 => self.deliver_mail(),
            2 => self.deliver_uplink(),
            3 => self.complete_journal(),
            4 => self.tell_of_a_cut(),
            _ => self.flush(),
        }
        self.notice_the_closed();
    }

    fn pass(&mut self, ms: u64) {
        // Between the shards of a process nothing takes long: before much time passes, the mail has arrived.
        while ms > 5 && self.net.borrow().mail.values().any(|mail| !mail.is_empty()) {
            self.deliver_mail();
        }
        self.now_ms += ms;
        for shard in 0..usize::from(SHARDS) {
            let due = self.shards[shard].as_ref().and_then(Shard::next_tick_ms);
            if due.is_some_and(|due_ms| due_ms <= self.now_ms) {
                self.step(shard, Input::Tick);
            }
        }
    }

    fn connect(&mut self, index: usize) {
        let shard = self.random.random_range(0..usize::from(SHARDS));
        let Some(slot) = self.free_slots[shard].pop() else {
            return;
        };
        let connection = ConnectionId {
            slot,
            generation: self.next_generation,
        };
        self.next_generation += 1;
        let capacity = [200, 600, 3_000][self.random.random_range(0..3)];
        let link = Downlink {
            capacity,
            ..Downlink::default()
        };
        self.net
            .borrow_mut()
            .downlinks
            .insert((shard, connection), link);
        self.readers
            .insert((shard, connection), Reader::new(Role::Client));
        self.links[index] = Some((shard, connection));
        let encoding = self.clients[index].encoding;
        self.step(
            shard,
            Input::Opened {
                connection,
                encoding,
            },
        );
        let frames = self.clients[index].connect();
        self.send_all(index, frames);
    }

    fn publish(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if client.stage == Stage::In && !self.healthy && client.unacked.len() < 20 {
            let frame = client.publish();
            self.send_all(index, vec![frame]);
        }
    }

    fn signal(&mut self, index: usize) {
        let key = [None, Some("cursor")][self.random.random_range(0..2)];
        let frame = self.clients[index]
            .signal(key)
            .filter(|_| self.clients[index].stage == Stage::In);
        self.send_all(index, frame.into_iter().collect());
    }

    fn leave(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if client.stage == Stage::In && client.unacked.is_empty() && client.is_settled() {
            let frames = client.leave().into_iter().collect();
            self.send_all(index, frames);
        }
    }

    fn cut_client(&mut self, index: usize) {
        if let Some(link) = self.links[index].take() {
            self.clients[index].cut();
            self.uplinks.remove(&link);
            self.readers.remove(&link);
            let link_is_open = self
                .net
                .borrow_mut()
                .downlinks
                .remove(&link)
                .is_some_and(|link| !link.closed);
            if link_is_open {
                self.cut.insert(link);
            } else {
                self.free(link);
            }
        }
    }

    /// A connection's slot may be used again once both sides have let go of it.
    fn free(&mut self, (shard, connection): (usize, ConnectionId)) {
        self.free_slots[shard].push(connection.slot);
    }

    /// The client reads some of what the kernel holds for it.
    fn read(&mut self, index: usize) {
        let Some(link) = self.links[index].filter(|_| !self.stalled.contains(&index)) else {
            return;
        };
        let (mut bytes, blocked) = {
            let mut net = self.net.borrow_mut();
            let Some(downlink) = net.downlinks.get_mut(&link) else {
                return;
            };
            let wanted = self
                .random
                .random_range(1..=downlink.bytes.len().max(1) * 2);
            let wanted = wanted.min(downlink.bytes.len());
            let bytes: Vec<u8> = downlink.bytes.drain(..wanted).collect();
            (bytes, std::mem::take(&mut downlink.blocked))
        };
        let mut reader = self.readers.remove(&link).unwrap();
        let mut input = &mut bytes[..];
        let limits = ReadLimits {
            message_bytes_max: 1 << 20,
            ..ReadLimits::default()
        };
        let mut closed = false;
        while let Some(event) = reader
            .next(&mut input, &limits)
            .expect("the server keeps to RFC 6455")
        {
            match event {
                WebSocketEvent::Message { text, payload } => {
                    let encoding = self.clients[index].encoding;
                    assert_eq!(text, encoding == Encoding::Json);
                    let frame = encoding
                        .decode_server(payload)
                        .expect("the server sends frames");
                    self.receive(index, frame);
                }
                WebSocketEvent::Close { .. } => closed = true,
                WebSocketEvent::Ping(_) | WebSocketEvent::Pong(_) => {}
            }
        }
        self.readers.insert(link, reader);
        if closed {
            self.cut_client(index);
        } else if blocked {
            self.step(link.0, Input::Writable { connection: link.1 });
        }
        let net = self.net.borrow();
        if net
            .downlinks
            .get(&link)
            .is_some_and(|link| link.bytes.is_empty() && !link.blocked)
        {
            self.clients[index].fresh_ms = self.now_ms;
        }
    }

    fn receive(&mut self, index: usize, frame: roomful_protocol::frame::ServerFrame) {
        let mut noted = Vec::new();
        let now_ms = self.now_ms;
        let frames = self.clients[index].receive(frame, now_ms, &mut noted);
        let client = &self.clients[index];
        let room = client.room.clone();
        if let Some(member) = client.member {
            self.owners.insert((room.clone(), member), index);
        }
        for note in noted {
            match note {
                Noted::Entry(position, entry) => {
                    let op = entry.op.unwrap();
                    let publisher = usize::try_from(op.producer.0 - 1000).unwrap();
                    assert_eq!(
                        entry.payload,
                        content(publisher, op.sequence),
                        "not what was published"
                    );
                    let key = (room.clone(), position.epoch, position.offset);
                    let stands = self.truth.insert(key, op);
                    assert!(
                        stands.is_none_or(|stands| stands == op),
                        "two meanings of {position}"
                    );
                }
                Noted::Gone(member) => self.check_gone(&room, member),
            }
        }
        self.send_all(index, frames);
    }

    /// Nobody is said to be gone who was away for less than the grace.
    fn check_gone(&self, room: &str, member: MemberId) {
        let Some(owner) = self.owners.get(&(room.to_owned(), member)) else {
            return;
        };
        let client = &self.clients[*owner];
        // A client that has not read for a while may not know yet that it is out.
        let away_ms = self.now_ms - client.away_since_ms.unwrap_or(client.fresh_ms);
        let may_be_gone = client.has_left || away_ms.max(client.longest_away_ms) >= GRACE_MS;
        assert!(may_be_gone, "client {owner} flickered: {}", self.describe());
    }

    fn send_all(&mut self, index: usize, frames: Vec<ClientFrame>) {
        let Some(link) = self.links[index] else {
            return;
        };
        let encoding = self.clients[index].encoding;
        let uplink = self.uplinks.entry(link).or_default();
        for frame in frames {
            let mut message = Vec::new();
            encoding.encode(&frame, &mut message);
            uplink.push_back(message);
        }
    }

    fn deliver_uplink(&mut self) {
        let waiting: Vec<_> = self
            .uplinks
            .iter()
            .filter(|(_, queue)| !queue.is_empty())
            .map(|(link, _)| *link)
            .collect();
        let Some(link) = self.pick(&waiting) else {
            return;
        };
        let message = self
            .uplinks
            .get_mut(&link)
            .and_then(VecDeque::pop_front)
            .unwrap();
        let (shard, connection) = link;
        let text = self
            .links
            .iter()
            .position(|of| *of == Some(link))
            .map(|index| self.clients[index].encoding);
        let text = text == Some(Encoding::Json);
        self.step(
            shard,
            Input::Message {
                connection,
                text,
                payload: &message,
            },
        );
    }

    fn deliver_mail(&mut self) {
        let waiting: Vec<_> = self
            .net
            .borrow()
            .mail
            .iter()
            .filter(|(_, mail)| !mail.is_empty())
            .map(|(way, _)| *way)
            .collect();
        let Some(way) = self.pick(&waiting) else {
            return;
        };
        let message = self
            .net
            .borrow_mut()
            .mail
            .get_mut(&way)
            .and_then(VecDeque::pop_front)
            .unwrap();
        self.step(usize::from(way.1), Input::Mail(message));
    }

    fn complete_journal(&mut self) {
        let shard = self.random.random_range(0..usize::from(SHARDS));
        if let Some(completion) = self.journals[shard].complete_one() {
            self.step(shard, Input::Journal(completion));
        }
    }

    fn tell_of_a_cut(&mut self) {
        let cut: Vec<_> = self.cut.iter().copied().collect();
        if let Some(link) = self.pick(&cut) {
            self.cut.remove(&link);
            self.step(link.0, Input::Gone { connection: link.1 });
            self.free(link);
        }
    }

    fn flush(&mut self) {
        let shard = self.random.random_range(0..usize::from(SHARDS));
        self.on_shard(shard, |shard, now, host| {
            if !shard.is_idle() {
                let _more: Flush = shard.flush(now, host);
            }
        });
    }

    /// Clients whose connection the server has closed find out when they have read everything.
    fn notice_the_closed(&mut self) {
        let finished = std::mem::take(&mut self.net.borrow_mut().finished);
        for link in finished {
            if self.cut.remove(&link) {
                self.free(link);
            }
            self.uplinks.remove(&link);
        }
        for index in 0..CLIENTS {
            let over = self.links[index].is_some_and(|link| {
                self.net
                    .borrow()
                    .downlinks
                    .get(&link)
                    .is_some_and(|link| link.closed && link.bytes.is_empty())
            });
            if over {
                self.cut_client(index);
            }
        }
    }

    fn step(&mut self, shard: usize, input: Input<'_>) {
        self.on_shard(shard, |shard, now, host| shard.step(input, now, host));
    }

    fn on_shard(&mut self, index: usize, act: impl FnOnce(&mut Shard, Now, &mut SimHost<'_>)) {
        let now = Now {
            monotonic_ms: self.now_ms,
            unix_ms: START_UNIX_MS + self.now_ms,
        };
        let mut shard = self.shards[index].take().unwrap();
        let net = Rc::clone(&self.net);
        act(
            &mut shard,
            now,
            &mut SimHost {
                shard: index,
                net: &mut net.borrow_mut(),
                random: &mut self.random,
            },
        );
        self.shards[index] = Some(shard);
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.random.random_range(0..from.len())])
    }

    fn describe(&self) -> String {
        let clients = self.clients.iter().map(|client| {
            format!(
                "\n  {} {:?} {} {:?} unacked {} resets {} {}",
                client.index,
                client.stage,
                client.room,
                client.position,
                client.unacked.len(),
                client.resets,
                if client.is_settled() { "settled" } else { "" },
            )
        });
        format!("at {} ms{}", self.now_ms, clients.collect::<String>())
    }
}

/// How often the slow paths were taken.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub events: u64,
    pub catch_ups: u64,
    pub resets: u64,
    pub duplicates: u64,
    pub conflated: u64,
    pub failures: u64,
    pub mailbox_full: u64,
    pub cut_turns: u64,
    pub resumed: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.events += other.events;
        self.catch_ups += other.catch_ups;
        self.resets += other.resets;
        self.duplicates += other.duplicates;
        self.conflated += other.conflated;
        self.failures += other.failures;
        self.mailbox_full += other.mailbox_full;
        self.cut_turns += other.cut_turns;
        self.resumed += other.resumed;
    }
}

fn shared() -> Shared {
    let room = RoomSettings {
        kind: kind::REGISTRY[0].1,
        history: HistoryBounds {
            entries_max: 12,
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
        chunk_entries_max: 5,
        chunk_bytes_max: 700,
        empty_ms: RETENTION_MS,
    };
    let any = Rate {
        per_s: 1e6,
        burst: 1_000_000,
    };
    let settings = ShardSettings {
        namespaces: BTreeMap::from([("chat".to_owned(), Arc::new(room))]),
        other_namespaces: None,
        anonymous: true,
        resume_key: ResumeKey::new(&SecretKey::new([7; 32])),
        expiry_warning_ms: 60_000,
        session_retention_ms: RETENTION_MS,
        hello_timeout_ms: 60_000,
        hello_bytes_max: 65_536,
        heartbeat_ms: 600_000,
        message_bytes_max: 65_536,
        payload_bytes_max: 61_440,
        rooms_max: 8,
        requests_max: 1_000,
        rates: Rates {
            errors: any,
            messages: any,
            joins: any,
        },
        outbox_bytes_max: 8_000,
        outbox_messages_max: 200,
        write_stall_ms: 4_000,
        members_per_look: 1,
        waiting_turns_max: 3,
    };
    Shared {
        directory: Directory::new(SHARDS, 100),
        sessions: Sessions::new(START_UNIX_MS - RETENTION_MS, RETENTION_MS),
        settings: Arc::new(settings),
        memory: Memory::unlimited(usize::from(SHARDS)),
    }
}
