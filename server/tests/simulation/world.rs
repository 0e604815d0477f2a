//! Shards, a network, clients and a clock, all of them data and all of them driven by one seed.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use roomful_protocol::codec::Encoding;
use roomful_protocol::error::CloseCode;
use roomful_protocol::frame::{ClientFrame, LockRequest, OpId, Watch};
use roomful_protocol::id::{Epoch, Key, MemberId, Offset, RoomId, RoomName, TenantId, UserId};
use roomful_protocol::position::Position;
use roomful_protocol::websocket::{ReadLimits, Reader, Role, WebSocketEvent};
use roomful_server::auth::{AuthError, Grants, Identity};
use roomful_server::clock::Now;
use roomful_server::directory::Directory;
use roomful_server::journal::local::stepped::Told;
use roomful_server::journal::{Journal, Journals};
use roomful_server::memory::{Elsewhere, Level, Memory};
use roomful_server::metrics::ShardCounters;
use roomful_server::session::index::Sessions;
use roomful_server::session::users::Users;
use roomful_server::shard::message::{ConnectionId, ShardId};
use roomful_server::shard::{Flush, Input, Shard, Shared};

use crate::client::{Client, Noted, Stage, content};
use crate::durable::Disk;
use crate::journal::{Faults, FaultyJournal};
use crate::keyed::{self, Keyed};
use crate::net::{Downlink, Link, Net, SimHost, Up, Uplink};
use crate::options::{
    GRACE_MS, HISTORY_AGE_MS, MARKS, Options, RETENTION_MS, START_UNIX_MS, UNACKED_MAX,
};
use crate::tally::Tally;

/// Everything there is.
pub struct World {
    pub options: Options,
    random: StdRng,
    pub now_ms: u64,
    pub shards: Vec<Option<Shard>>,
    pub journals: Vec<FaultyJournal>,
    /// What rooms on disk are on; none: all rooms are in memory.
    pub disk: Option<Disk>,
    pub counters: Vec<Arc<ShardCounters>>,
    memory: Memory,
    /// What the rest of the process holds.
    elsewhere: Elsewhere,
    pub net: Rc<RefCell<Net>>,
    pub clients: Vec<Client>,
    /// Which connection a client has.
    pub links: Vec<Option<Link>>,
    free_slots: Vec<Vec<u32>>,
    next_generation: u32,
    readers: BTreeMap<Link, Reader>,
    /// What stands at each position of each room: the same for everybody, for ever.
    pub truth: BTreeMap<(String, Epoch, Offset), OpId>,
    /// The numbers that stood in each key of each room, by version.
    values: BTreeMap<(String, Epoch, Key), BTreeMap<Offset, u64>>,
    /// Whose a member is.
    owners: BTreeMap<(String, Epoch, MemberId), usize>,
    stalled: BTreeSet<usize>,
    /// A way between two shards on which nothing arrives, and for how many steps more.
    held: Option<((u16, u16), u32)>,
    healthy: bool,
    /// How often the process was started.
    starts: u64,
    /// When everybody has been told to go, if the process is draining.
    drained_ms: Option<u64>,
    connects: u64,
    /// Of the lives before this one.
    pub tally: Tally,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let options = Options {
            keyed: seed % KEYED_APART == KEYED_APART / 2 || seed % (2 * KEYED_APART) == 1,
            durable: seed % KEYED_APART == 1,
            ..Options::draw(&mut random)
        };
        Self::of(options, random)
    }

    /// With options that are chosen.
    pub fn of(options: Options, mut random: StdRng) -> Self {
        let mut options = options;
        if options.durable {
            // Rooms in memory are then as they are.
            options.journal = Faults { late: 0, fail: 0 };
        }
        let disk = options.durable.then(|| Disk::new(random.random()));
        let journals: Vec<_> = (0..options.shards)
            .map(|_| FaultyJournal::new(random.random(), options.journal))
            .collect();
        let clients = (0..options.clients)
            .map(|index| client(index, &options, &mut random))
            .collect();
        let mut world = Self {
            options,
            now_ms: 0,
            shards: Vec::new(),
            journals,
            disk,
            counters: Vec::new(),
            memory: Memory::unlimited(0),
            elsewhere: Elsewhere::default(),
            net: Rc::default(),
            clients,
            links: vec![None; options.clients],
            free_slots: Vec::new(),
            next_generation: 0,
            readers: BTreeMap::new(),
            truth: BTreeMap::new(),
            values: BTreeMap::new(),
            owners: BTreeMap::new(),
            stalled: BTreeSet::new(),
            held: None,
            healthy: false,
            starts: 0,
            drained_ms: None,
            connects: 0,
            tally: Tally::default(),
            random,
        };
        world.start();
        world
    }

    /// A process begins: what the one before had in memory is gone.
    fn start(&mut self) {
        self.starts += 1;
        let shards = self.options.shards;
        let first_epoch = Epoch(self.starts << 32);
        self.journals
            .iter()
            .for_each(|journal| journal.restart(first_epoch));
        if let Some(disk) = &mut self.disk {
            disk.start(first_epoch);
        }
        self.counters = (0..shards)
            .map(|_| Arc::new(ShardCounters::default()))
            .collect();
        self.net = Rc::new(RefCell::new(Net::new(&self.options, self.now_ms)));
        self.free_slots = vec![(0..SLOTS).rev().collect(); usize::from(shards)];
        self.drained_ms = None;
        self.memory = Memory::new(MARKS, usize::from(shards));
        self.elsewhere = Elsewhere::default();
        let now = self.now();
        let shared = Shared {
            directory: Directory::new(shards, 100),
            sessions: Sessions::new(now.unix_ms, RETENTION_MS),
            users: Users::default(),
            settings: Arc::new(self.options.settings()),
            memory: self.memory.clone(),
        };
        let shards = (0..shards).map(|id| {
            let index = usize::from(id);
            let on_disk = self.disk.as_ref().map(|disk| disk.of_shard(ShardId(id)));
            let on_disk = on_disk.map(|journal| Box::new(journal) as Box<dyn Journal>);
            let journals = Journals::new(Box::new(self.journals[index].clone()), on_disk);
            let counters = Arc::clone(&self.counters[index]);
            Some(Shard::new(
                ShardId(id),
                shared.clone(),
                journals,
                counters,
                now,
            ))
        });
        self.shards = shards.collect();
    }

    /// The process is killed and started again. Some clients read what the kernel still has for them, others do not.
    fn restart(&mut self) {
        self.tally += Tally::of(&self.counters);
        self.tally.restarts += 1;
        if let Some(disk) = &mut self.disk {
            let now_ms = self.now_ms;
            disk.end(
                self.drained_ms
                    .is_some_and(|drained_ms| drained_ms <= now_ms),
            );
            // Members are numbered anew in the same epoch, but for those who have a lock or wait for one.
            self.owners.clear();
            for client in &mut self.clients {
                client.has_left = true;
            }
        }
        let old = std::mem::take(&mut *self.net.borrow_mut());
        self.start();
        for (link, mut downlink) in old.downlinks {
            downlink.closed = true;
            self.net.borrow_mut().downlinks.insert(link, downlink);
        }
        for index in 0..self.clients.len() {
            if self.random.random() || self.disk.is_some() {
                self.cut_client(index);
            }
        }
        if self.healthy {
            self.net.borrow_mut().heal();
        }
    }

    /// Everything goes wrong that may, for a while.
    pub fn run(&mut self) {
        for _ in 0..self.options.steps {
            let chance = self.random.random_range(0..10_000);
            if chance < self.options.kills {
                self.restart();
            } else if chance < self.options.kills + self.options.drains {
                self.drain();
            }
            if self.random.random_range(0..10_000) < self.options.shortages {
                self.change_memory();
            }
            self.something_of_the_disk();
            if self.random.random_range(0..LULLS_APART) == 0 {
                self.lull();
            }
            self.something();
        }
    }

    /// Nothing goes wrong any more; within a minute or so everybody has everything, and keeps it.
    pub fn heal(&mut self) {
        self.healthy = true;
        self.held = None;
        self.net.borrow_mut().heal();
        self.stalled.clear();
        self.elsewhere = Elsewhere::default();
        self.sum_memory();
        self.journals.iter().for_each(FaultyJournal::heal);
        if let Some(disk) = &mut self.disk {
            disk.heal();
            if disk.has_failed() {
                self.restart();
            }
        }
        for client in &mut self.clients {
            client.token_ms = client.token_ms.map(|_| 3_600_000);
        }
        let until_ms = self.now_ms + 120_000;
        loop {
            while !self.is_settled() {
                assert!(
                    self.now_ms < until_ms,
                    "not settled after two minutes: {}",
                    self.describe()
                );
                self.something();
            }
            // Members whose connection never heard of its welcome are still in their grace.
            let (connects, quiet_ms) = (self.connects, self.now_ms + GRACE_MS + 500);
            while self.now_ms < quiet_ms {
                self.something();
            }
            if self.connects == connects && self.is_settled() && self.all_agree() {
                return;
            }
        }
    }

    /// Everybody goes, and nothing of them stays.
    pub fn empty(&mut self) {
        for index in 0..self.clients.len() {
            self.cut_client(index);
        }
        self.wait(RETENTION_MS + 2 * GRACE_MS);
        self.check_nobody_is_left();
        self.pass(HISTORY_AGE_MS);
        self.wait(HISTORY_AGE_MS.min(20_000));
        self.check_no_room_is_left();
    }

    /// For a moment nobody begins anything and everybody reads: then all who watch know the same.
    pub fn lull(&mut self) {
        self.stalled.clear();
        self.held = None;
        let mut quiet = 0;
        for _ in 0..LULL_STEPS_MAX {
            if self.net.borrow().is_quiet() && self.is_at_rest() {
                if quiet == LULL_MOMENTS {
                    self.tally.lulls += 1;
                    return self.check_told();
                }
                quiet += 1;
                self.pass(6);
            }
            self.something_of_the_server();
            let index = self.random.random_range(0..self.clients.len());
            self.read(index);
        }
    }

    fn wait(&mut self, ms: u64) {
        let until_ms = self.now_ms + ms;
        while self.now_ms < until_ms {
            self.something_of_the_server();
            self.pass(20);
        }
    }

    fn is_settled(&self) -> bool {
        let idle = self.shards.iter().flatten().all(Shard::is_idle);
        self.net.borrow().is_quiet()
            && idle
            && self.drained_ms.is_none()
            && self.clients.iter().all(Client::is_settled)
            && self.heads_are_reached()
    }

    fn is_at_rest(&self) -> bool {
        self.net.borrow().mail.values().all(VecDeque::is_empty)
            && self
                .shards
                .iter()
                .flatten()
                .all(|shard| shard.is_idle() && !is_due(shard, self.now_ms))
    }

    /// Now and then what one shard has sent to another stays there for a while, and everything else goes on.
    fn hold_a_way(&mut self) {
        self.held = match self.held {
            Some((way, steps)) if steps > 0 && !self.healthy => Some((way, steps - 1)),
            None if !self.healthy && self.random.random_range(0..100) == 0 => {
                let ways = self.net.borrow().ways_with_mail();
                let steps = self.random.random_range(20..400);
                self.pick(&ways).map(|way| (way, steps))
            }
            _ => None,
        };
    }

    fn something(&mut self) {
        self.hold_a_way();
        match self.random.random_range(0..10) {
            0..4 => self.something_of_a_client(),
            4..9 => self.something_of_the_server(),
            _ => {
                let longest = if self.healthy { 2 } else { 5 };
                let ms = [1, 5, 20, 150, 900][self.random.random_range(0..longest)];
                self.pass(ms);
            }
        }
        self.check_bounds();
    }

    fn something_of_a_client(&mut self) {
        let index = self.random.random_range(0..self.clients.len());
        if self.healthy {
            // Nothing new is begun; what was begun comes to its end.
            return match self.random.random_range(0..4) {
                0 if self.links[index].is_none() => self.connect(index),
                0 | 1 => self.ask_again(index),
                _ => self.read(index),
            };
        }
        let chance = self.random.random_range(0..100);
        if chance < self.options.cuts {
            return self.cut_client(index);
        }
        if chance < self.options.cuts + self.options.stalls {
            self.stalled.insert(index);
            return;
        }
        if self.options.keyed && self.random.random_range(0..3) == 0 {
            return self.something_keyed(index);
        }
        match self.random.random_range(0..100) {
            0..28 if self.links[index].is_none() => self.connect(index),
            0..15 => self.publish(index),
            15..25 => self.signal(index),
            25..28 => self.set_presence(index),
            28..36 => {
                self.stalled.remove(&index);
            }
            36..37 => self.leave(index),
            37..47 => self.ask_again(index),
            _ => self.read(index),
        }
    }

    fn something_of_the_server(&mut self) {
        match self.random.random_range(0..7) {
            0 | 1 => self.deliver_mail(),
            2 | 3 => self.deliver_uplink(),
            4 if self.disk.is_some() => self.step_disk(),
            4 => self.complete_journal(),
            5 => self.verify(),
            _ => self.flush(),
        }
        self.notice_the_closed();
    }

    pub fn pass(&mut self, ms: u64) {
        // A shard is not busy for long.
        let ms = if self.held.is_some() { ms.min(1) } else { ms };
        // Inside a process nothing takes long: before much time passes, the mail has arrived and the turns are over.
        let mut steps = 0;
        while ms > 5 && !self.is_at_rest() {
            self.deliver_mail();
            self.flush();
            steps += 1;
            assert!(steps < REST_STEPS_MAX, "the shards never come to rest");
        }
        self.now_ms += ms;
        self.net.borrow_mut().now_ms = self.now_ms;
        if let Some(disk) = &self.disk {
            disk.pass(ms);
        }
        self.sum_memory();
        (0..self.shards.len()).for_each(|shard| self.tick(shard));
        if self
            .drained_ms
            .is_some_and(|drained_ms| drained_ms <= self.now_ms)
        {
            self.check_everybody_was_told_to_go();
            self.restart();
        }
    }

    /// Whether a room is on disk.
    pub fn is_on_disk(&self, room: &str) -> bool {
        self.disk.is_some() && room.starts_with("chat:")
    }

    /// Now and then something is wrong with the disk. Somebody starts the process anew when it has failed, in his own time.
    fn something_of_the_disk(&mut self) {
        let chance = self.random.random_range(0..10_000);
        let Some(disk) = &mut self.disk else {
            return;
        };
        if disk.has_failed() {
            if chance < RESTARTS_OF_FAILED {
                self.restart();
            }
        } else if chance < self.options.disk_faults {
            disk.fail();
        }
    }

    fn step_disk(&mut self) {
        let told = self.disk.as_mut().and_then(Disk::step);
        match told {
            Some(Told::Completed(shard, completion)) => {
                self.step(usize::from(shard.0), Input::Journal(completion));
            }
            Some(Told::Wake(room)) => {
                let home = Directory::new(self.options.shards, 100).home(&room);
                self.step(usize::from(home.0), Input::Wake(room));
            }
            None => {}
        }
    }

    /// The rest of the process takes so much that the clients bring the whole to a mark or, at times, far beyond; or it takes nothing again.
    fn change_memory(&mut self) {
        let held = self.sum(ShardCounters::held_bytes);
        let beyond =
            [None, Some(0..4_000), Some(52_000..60_000)][self.random.random_range(0..3)].clone();
        let used = beyond.map(|beyond| MARKS.soft + self.random.random_range(beyond));
        self.elsewhere.process_bytes = used.map_or(0, |used| used - held);
        self.sum_memory();
    }

    /// Adds up what is held; where that is too much, each shard closes its heaviest connections until its part is free.
    fn sum_memory(&mut self) {
        let to_shed = self.memory.sum(&self.counters, self.elsewhere);
        for (index, mut bytes) in to_shed.into_iter().enumerate() {
            let shard = self.shards[index].as_ref().unwrap();
            let net = self.net.borrow();
            let links = net.uplinks.keys().filter(|(of, _)| *of == index);
            let outboxes =
                links.map(|(_, connection)| (shard.outbox_bytes(*connection), *connection));
            let mut heavy: Vec<_> = outboxes.filter(|(outbox, _)| *outbox > 0).collect();
            drop(net);
            heavy.sort_unstable_by_key(|(outbox, connection)| (Reverse(*outbox), connection.slot));
            for (outbox, connection) in heavy {
                if bytes == 0 {
                    break;
                }
                bytes = bytes.saturating_sub(outbox as u64);
                self.tally.shed += 1;
                let code = CloseCode::SlowConsumer;
                self.step(index, Input::Close { connection, code });
            }
        }
    }

    /// The process is asked to stop.
    fn drain(&mut self) {
        if self.drained_ms.is_some() {
            return;
        }
        let spread_ms = self.random.random_range(0..3_000);
        for shard in 0..self.shards.len() {
            self.step(shard, Input::Drain { spread_ms });
        }
        self.tally.drains += 1;
        // A slice that has begun is told to its end.
        self.drained_ms = Some(self.now_ms + spread_ms + 1_000);
    }

    fn connect(&mut self, index: usize) {
        if self.memory.level() > Level::Normal {
            self.tally.turned_away += 1;
            return;
        }
        let shard = self.random.random_range(0..self.shards.len());
        self.connect_to(shard, index);
    }

    pub fn connect_to(&mut self, shard: usize, index: usize) {
        let Some(slot) = self.free_slots[shard].pop() else {
            return;
        };
        let connection = ConnectionId {
            slot,
            generation: self.next_generation,
        };
        self.next_generation += 1;
        self.connects += 1;
        let link = (shard, connection);
        let (least, most) = self.options.kernel_bytes;
        let downlink = Downlink {
            capacity: self.random.random_range(least..=most),
            ..Downlink::default()
        };
        let encoding = self.clients[index].encoding;
        let uplink = Uplink {
            encoding,
            queue: VecDeque::new(),
        };
        {
            let mut net = self.net.borrow_mut();
            net.downlinks.insert(link, downlink);
            net.uplinks.insert(link, uplink);
        }
        self.readers.insert(link, Reader::new(Role::Client));
        self.links[index] = Some(link);
        let opened = Input::Opened {
            connection,
            encoding,
        };
        self.step(shard, opened);
        let frames = self.clients[index].connect(self.now_ms);
        self.send_all(index, frames);
    }

    fn publish(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if client.stage == Stage::In && client.unacked.len() < UNACKED_MAX {
            let frame = client.publish();
            self.send_all(index, vec![frame]);
        }
    }

    /// Some client writes, takes a lock or gives it back, or watches something else.
    fn something_keyed(&mut self, index: usize) {
        let (chance, kind) = (
            self.random.random_range(0..20),
            self.random.random_range(0..11),
        );
        let watched = self.pick(&WATCHED).unwrap();
        let queue = self.random.random();
        let client = &mut self.clients[index];
        if client.stage != Stage::In {
            return;
        }
        let lock = Key::parse(keyed::LOCK).unwrap();
        let frame = match chance {
            0..12 => client.write(kind),
            12..16 => client.lock(LockRequest::Acquire {
                lock,
                ttl_ms: LEASE_MS,
                queue,
            }),
            16 => client.lock(LockRequest::Release { lock }),
            17 => client.watch_state(watched),
            _ => client.ask_page(),
        };
        self.send_all(index, frame.into_iter().collect());
    }

    /// Whether each copy of the state was found to be what its room has, now that nothing changes; those that were not are asked to look.
    fn all_agree(&mut self) -> bool {
        let mut agree = true;
        for index in 0..self.clients.len() {
            let keyed = self.clients[index].keyed.as_ref();
            if keyed.is_some_and(|keyed| !keyed.agreed) {
                let frame = self.clients[index].ask_page();
                self.send_all(index, frame.into_iter().collect());
                agree = false;
            }
        }
        agree
    }

    /// To everybody, or to one of those whom the client sees.
    fn signal(&mut self, index: usize) {
        let key = [None, Some("cursor")][self.random.random_range(0..2)];
        let client = &self.clients[index];
        let others = client.view.keys().copied();
        let others: Vec<_> = others
            .filter(|member| Some(*member) != client.member)
            .collect();
        let to = if self.random.random_range(0..4) == 0 {
            self.pick(&others)
        } else {
            None
        };
        if self.clients[index].stage == Stage::In {
            let frame = self.clients[index].signal(key, to);
            self.send_all(index, frame.into_iter().collect());
        }
    }

    pub fn set_presence(&mut self, index: usize) {
        if self.clients[index].stage == Stage::In {
            let frame = self.clients[index].set_presence();
            self.send_all(index, vec![frame]);
        }
    }

    fn ask_again(&mut self, index: usize) {
        if self.links[index].is_some() {
            let frame = self.clients[index].ask_again(self.now_ms);
            self.send_all(index, frame.into_iter().collect());
        }
    }

    /// A client goes for good; half of them say something of themselves with the same breath.
    fn leave(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if client.stage == Stage::In && client.unacked.is_empty() {
            let mut frames = Vec::new();
            if self.random.random() {
                frames.push(client.set_presence());
            }
            frames.extend(client.leave());
            self.send_all(index, frames);
        }
    }

    /// A client's end of a connection is gone. What it had sent may still arrive, also behind what it sends on its next.
    fn cut_client(&mut self, index: usize) {
        let Some(link) = self.links[index].take() else {
            return;
        };
        self.clients[index].cut();
        self.readers.remove(&link);
        let loses = self.random.random_range(0..100) < self.options.cuts_lose;
        let mut net = self.net.borrow_mut();
        net.downlinks.remove(&link);
        if let Some(uplink) = net.uplinks.get_mut(&link).filter(|_| loses) {
            uplink.queue.clear();
        }
        net.send_up(link, Up::Gone);
    }

    /// The client reads some of what the kernel holds for it.
    fn read(&mut self, index: usize) {
        let Some(link) = self.links[index].filter(|_| !self.stalled.contains(&index)) else {
            return;
        };
        let Some((mut bytes, blocked)) = self.take_down(link) else {
            return;
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
                WebSocketEvent::Close { code, .. } => {
                    let client = &self.clients[index];
                    let expected = code != Some(CloseCode::Restart.code())
                        || client.told_to_go
                        || !client.welcomed;
                    assert!(expected, "sent away without a goaway");
                    closed = true;
                }
                WebSocketEvent::Ping(_) => self.net.borrow_mut().send_up(link, Up::Pong),
                WebSocketEvent::Pong(_) => {}
            }
        }
        self.readers.insert(link, reader);
        if closed {
            return self.cut_client(index);
        }
        if blocked {
            let connection = link.1;
            self.step(link.0, Input::Writable { connection });
        }
        let net = self.net.borrow();
        if net
            .downlinks
            .get(&link)
            .is_some_and(|link| link.bytes.is_empty() && !link.blocked && !link.closed)
        {
            self.clients[index].fresh_ms = self.now_ms;
        }
    }

    /// Some of what waits for a client, and whether the server waits for room.
    fn take_down(&mut self, link: Link) -> Option<(Vec<u8>, bool)> {
        let mut net = self.net.borrow_mut();
        let downlink = net.downlinks.get_mut(&link)?;
        let waits = downlink.bytes.len();
        let wanted = self.random.random_range(1..=waits.max(1) * 2).min(waits);
        let bytes = downlink.bytes.drain(..wanted).collect();
        let blocked = std::mem::take(&mut downlink.blocked) && !downlink.closed;
        Some((bytes, blocked))
    }

    fn receive(&mut self, index: usize, frame: roomful_protocol::frame::ServerFrame) {
        let mut noted = Vec::new();
        let now_ms = self.now_ms;
        let frames = self.clients[index].receive(frame, now_ms, &mut noted);
        let client = &self.clients[index];
        let room = client.room.clone();
        let epoch = client.position.map(|position| position.epoch);
        if let (Some(member), Some(epoch)) = (client.member, epoch) {
            self.owners.insert((room.clone(), epoch, member), index);
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
                    self.check_stored(&room, position, op);
                    let key = (room.clone(), position.epoch, position.offset);
                    let stands = self.truth.insert(key, op);
                    assert!(
                        stands.is_none_or(|stands| stands == op),
                        "two meanings of {position}"
                    );
                }
                Noted::Acked(sequence, position) => {
                    let has_failed = self.disk.as_ref().is_some_and(Disk::has_failed);
                    self.tally.went_on += u64::from(has_failed && !self.is_on_disk(&room));
                    let producer = self.clients[index].producer();
                    self.check_stored(&room, position, OpId { producer, sequence });
                }
                Noted::Gone(member) => self.check_gone(&room, epoch.unwrap(), member),
                Noted::Written(position) => self.check_reported(&room, position),
                Noted::Changed(position, changes) => {
                    self.check_reported(&room, position);
                    for change in changes {
                        if let Some(value) = &change.value {
                            let number = keyed::number_in(value);
                            self.note_value(&room, position, change.key, number);
                        }
                    }
                }
            }
        }
        self.send_all(index, frames);
    }

    /// A key has one value at a version. The counter was raised by each change of it, and no older fence than before ever wrote the guarded key.
    fn note_value(&mut self, room: &str, position: Position, key: Key, number: u64) {
        let (is_counter, is_guarded) = (
            key.as_str() == keyed::COUNTER,
            key.as_str() == keyed::GUARDED,
        );
        let values = self.values.entry((room.to_owned(), position.epoch, key));
        let values = values.or_default();
        let stands = values.insert(position.offset, number);
        assert!(
            stands.is_none_or(|stands| stands == number),
            "two values of one version"
        );
        let before = values.range(..position.offset).next_back();
        let after = values.range(position.offset.next()..).next();
        let before = before.map(|(_, before)| *before);
        let after = after.map(|(_, after)| *after);
        if is_counter {
            assert!(before.is_none_or(|before| before < number), "a lost update");
            assert!(after.is_none_or(|after| number < after), "a lost update");
        }
        if is_guarded {
            assert!(
                before.is_none_or(|before| before <= number),
                "a stale fence"
            );
            assert!(after.is_none_or(|after| number <= after), "a stale fence");
        }
    }

    fn check_reported(&self, room: &str, position: Position) {
        let id = room_id(room);
        if let Some(disk) = self.disk.as_ref().filter(|_| self.is_on_disk(room)) {
            let stored = disk.books.reported(&id, position);
            assert!(stored.is_some(), "told of a change that is not stored");
            return;
        }
        let mut journals = self.journals.iter();
        let stored = journals.any(|journal| journal.has_reported(&id, position));
        assert!(stored, "told of a change that is not stored");
    }

    /// Nobody is told of what the journal has not reported stored.
    fn check_stored(&self, room: &str, position: Position, op: OpId) {
        let id = room_id(room);
        if let Some(disk) = self.disk.as_ref().filter(|_| self.is_on_disk(room)) {
            let stored = disk.books.reported(&id, position);
            let stored = stored.and_then(|entry| entry.op);
            assert_eq!(stored, Some(op), "told of what is not stored");
            return;
        }
        let stored = self
            .journals
            .iter()
            .find_map(|journal| journal.reported(&id, position));
        assert_eq!(stored, Some(op), "told of what is not stored");
    }

    /// Nobody is said to be gone who was away for less than the grace.
    fn check_gone(&self, room: &str, epoch: Epoch, member: MemberId) {
        let Some(owner) = self.owners.get(&(room.to_owned(), epoch, member)) else {
            return;
        };
        let client = &self.clients[*owner];
        let is_epoch = client.position.map(|position| position.epoch) == Some(epoch);
        if client.member != Some(member) || !is_epoch {
            // It is here as another member, and that it may be was looked at when it became so.
            return;
        }
        // A client that has not read for a while may not know yet that it is out.
        let away_ms = self.now_ms - client.away_since_ms.unwrap_or(client.fresh_ms);
        let may_be_gone = client.has_left || away_ms.max(client.longest_away_ms) >= GRACE_MS;
        assert!(
            may_be_gone,
            "a member flickered: client {owner}, {away_ms} ms: {}",
            self.describe()
        );
    }

    fn send_all(&self, index: usize, frames: Vec<ClientFrame>) {
        let Some(link) = self.links[index] else {
            return;
        };
        let encoding = self.clients[index].encoding;
        for frame in frames {
            let mut message = Vec::new();
            encoding.encode(&frame, &mut message);
            self.net.borrow_mut().send_up(link, Up::Message(message));
        }
    }

    /// Whether a shard reads a connection; one that it has ended, or not opened yet, hears nothing of it.
    fn reads(&self, (shard, connection): Link) -> bool {
        let shard = self.shards[shard].as_ref();
        shard.is_none_or(|shard| shard.is_reading(connection))
    }

    /// Something that a client has sent arrives: of each connection in order, of different ones in any.
    pub fn deliver_uplink(&mut self) {
        let waiting: Vec<Link> = {
            let net = self.net.borrow();
            let with_more = net
                .uplinks
                .iter()
                .filter(|(link, uplink)| !uplink.queue.is_empty() && self.reads(**link));
            with_more.map(|(link, _)| *link).collect()
        };
        let Some(link) = self.pick(&waiting) else {
            return;
        };
        let (up, encoding) = {
            let mut net = self.net.borrow_mut();
            let uplink = net.uplinks.get_mut(&link).unwrap();
            (uplink.queue.pop_front().unwrap(), uplink.encoding)
        };
        let (shard, connection) = link;
        match up {
            Up::Message(message) => self.step(
                shard,
                Input::Message {
                    connection,
                    text: encoding == Encoding::Json,
                    payload: &message,
                },
            ),
            Up::Pong => self.step(shard, Input::Pong { connection }),
            Up::Gone => self.step(shard, Input::Gone { connection }),
        }
    }

    pub fn deliver_mail(&mut self) {
        let mut waiting = self.net.borrow().ways_with_mail();
        waiting.retain(|way| self.held.is_none_or(|(held, _)| held != *way));
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
        let shard = self.random.random_range(0..self.shards.len());
        if let Some(completion) = self.journals[shard].complete_one() {
            self.step(shard, Input::Journal(completion));
        }
    }

    /// A token has been looked at: it says who it is of, and until when.
    fn verify(&mut self) {
        let waiting = self.net.borrow().verifying.len();
        if waiting == 0 {
            return;
        }
        let any = self.random.random_range(0..waiting);
        let (link, token) = self.net.borrow_mut().verifying.remove(any);
        let (user, until_ms) = token.split_once(' ').unwrap();
        let until_ms: u64 = until_ms.parse().unwrap();
        let outcome = if until_ms > self.now().unix_ms {
            Ok(Identity {
                tenant: TenantId::default_tenant(),
                user: UserId::parse(user).unwrap(),
                grants: Grants::everything(),
                expires_ms: Some(until_ms),
                token_id: None,
            })
        } else {
            Err(AuthError::Expired)
        };
        let (shard, connection) = link;
        let is_there = self.net.borrow().uplinks.contains_key(&link);
        if outcome.is_ok() && is_there {
            self.net.borrow_mut().expiries.insert(link, until_ms);
        }
        let verified = Input::Verified {
            connection,
            outcome,
        };
        self.step(shard, verified);
    }

    fn tick(&mut self, shard: usize) {
        if is_due(self.shards[shard].as_ref().unwrap(), self.now_ms) {
            self.step(shard, Input::Tick);
        }
    }

    fn flush(&mut self) {
        let shard = self.random.random_range(0..self.shards.len());
        self.flush_one(shard);
    }

    pub fn flush_one(&mut self, shard: usize) {
        self.tick(shard);
        self.on_shard(shard, |shard, now, host| {
            if !shard.is_idle() {
                let _more: Flush = shard.flush(now, host);
            }
        });
    }

    /// A connection's slot is free once the shard has ended it. Clients find out when they have read everything.
    fn notice_the_closed(&mut self) {
        let finished = std::mem::take(&mut self.net.borrow_mut().finished);
        for (shard, connection) in finished {
            self.free_slots[shard].push(connection.slot);
        }
        for index in 0..self.clients.len() {
            let over = self.links[index].is_some_and(|link| {
                let net = self.net.borrow();
                let downlink = net.downlinks.get(&link);
                downlink.is_none_or(|downlink| downlink.closed && downlink.bytes.is_empty())
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
        let now = self.now();
        let mut shard = self.shards[index].take().unwrap();
        let net = Rc::clone(&self.net);
        let mut host = SimHost {
            shard: index,
            net: &mut net.borrow_mut(),
            random: &mut self.random,
            is_late: is_due(&shard, self.now_ms),
            looks: 0,
        };
        act(&mut shard, now, &mut host);
        let violation = host.net.violation;
        assert!(violation.is_none(), "{}", violation.unwrap_or_default());
        self.shards[index] = Some(shard);
    }

    fn now(&self) -> Now {
        Now {
            monotonic_ms: self.now_ms,
            unix_ms: START_UNIX_MS + self.now_ms,
        }
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.random.random_range(0..from.len())])
    }

    pub fn describe(&self) -> String {
        let clients = self.clients.iter().map(|client| {
            format!(
                "\n  {} {:?} {} {:?} member {:?} unacked {} resets {} {}",
                client.index,
                client.stage,
                client.room,
                client.position,
                client.member,
                client.unacked.len(),
                client.resets,
                if client.is_settled() { "settled" } else { "" },
            )
        });
        format!("at {} ms{}", self.now_ms, clients.collect::<String>())
    }
}

fn is_due(shard: &Shard, now_ms: u64) -> bool {
    shard.next_tick_ms().is_some_and(|due_ms| due_ms <= now_ms)
}

fn client(index: usize, options: &Options, random: &mut StdRng) -> Client {
    let encoding = if random.random() {
        Encoding::MessagePack
    } else {
        Encoding::Json
    };
    // Rooms with different homes, as far as there are several shards.
    let room = match random.random_range(0..4) {
        0 | 1 if options.durable && index.is_multiple_of(2) => "game:memory",
        0 => "chat:b",
        _ => "chat:lobby",
    };
    let watch = [Watch::None, Watch::Occupancy, Watch::Members][random.random_range(0..3)];
    let echo = random.random_range(0..4) > 0;
    let mut client = Client::new(index, encoding, room.to_owned(), echo, watch);
    client.token_ms = options.token_ms;
    client.refreshes = random.random_range(0..3) > 0;
    if options.keyed {
        client.keyed = Some(Keyed {
            watched: WATCHED[random.random_range(0..WATCHED.len())],
            locks: random.random(),
            ..Keyed::default()
        });
    }
    client
}

pub fn room_id(name: &str) -> RoomId {
    RoomId {
        tenant: TenantId::default_tenant(),
        name: RoomName::parse(name.as_bytes()).unwrap(),
    }
}

/// One seed of so many has state and locks in it.
const KEYED_APART: u64 = 4;

/// How often a process whose disk has failed is started anew, in 10,000 steps.
const RESTARTS_OF_FAILED: u32 = 40;

/// What clients watch of the state.
const WATCHED: [Option<&[&str]>; 4] = [None, Some(&[""]), Some(&["a/"]), Some(&["a/2", "b/"])];

/// How long a lock is held, in milliseconds.
const LEASE_MS: u64 = 800;

/// Steps from one lull to the next, on average.
const LULLS_APART: u32 = 800;

/// A lull that is not quiet by then is given up: much was under way.
const LULL_STEPS_MAX: usize = 1_000;

/// How often a few milliseconds have to pass quietly: a room that met a full mailbox tries again each time.
const LULL_MOMENTS: u32 = 6;

/// Steps in which everything that is under way inside the process must have come to its end.
const REST_STEPS_MAX: u32 = 100_000;

/// Connections that a shard can have at once.
const SLOTS: u32 = 16;
