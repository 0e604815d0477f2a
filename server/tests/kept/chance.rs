//! Random requests, failures, restarts and clocks, against the log: it explains every answer, and never says what may not be.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use roomful_protocol::frame::{
    Change, Entry, EntryKind, LockChange, LockReply, OpId, Reply, StateChanges, TimerChange,
    TimerWhat,
};
use roomful_protocol::id::{Key, Offset, SessionId};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;
use roomful_server::room::departures::Departure;

use crate::world::{Client, GRACE_MS, World, at, fenced, put};

#[test]
fn the_log_explains_everything() {
    for seed in 0..SEEDS {
        let mut chance = Chance::new(seed);
        (0..STEPS).for_each(|_| chance.step());
        chance.end();
    }
}

struct Chance {
    seed: u64,
    random: StdRng,
    world: World,
    /// Who is there, by session.
    clients: BTreeMap<u128, Client>,
    /// Writes by their op id.
    writes: BTreeMap<OpIdKey, Vec<Change>>,
    /// Requests that wait for a reply.
    asked: BTreeMap<u64, Asked>,
    /// Where acknowledged writes stand.
    acked: BTreeMap<OpIdKey, Position>,
    next_sequence: u64,
    /// The last grant that each client knows of, by lock.
    fences: BTreeMap<(u128, &'static str), Position>,
}

type OpIdKey = (u64, u64);

enum Asked {
    Write(OpIdKey),
    Lock(u128, &'static str),
    Other,
}

/// What a plain reading of the log makes of it.
#[derive(Default)]
struct Plain {
    values: BTreeMap<Key, (Payload, Offset)>,
    versions: BTreeMap<Key, Offset>,
    held: BTreeMap<Key, Option<SessionId>>,
    fences: BTreeMap<Key, Offset>,
    timers: BTreeMap<Key, u64>,
    departures: BTreeSet<SessionId>,
}

impl Chance {
    fn new(seed: u64) -> Self {
        let mut world = World::new(true);
        world.settings.tables.state.tombstones_max = 2;
        world.settings.tables.locks.queue_max = 2;
        world.settings.tables.timers.timers_max = 3;
        world.settings.history.entries_max = 16;
        world.restart(0, 0);
        Self {
            seed,
            random: StdRng::seed_from_u64(seed),
            world,
            clients: BTreeMap::new(),
            writes: BTreeMap::new(),
            asked: BTreeMap::new(),
            acked: BTreeMap::new(),
            next_sequence: 1,
            fences: BTreeMap::new(),
        }
    }

    fn step(&mut self) {
        let session = self.random.random_range(1..5);
        let client = self.clients.get(&session).copied();
        match (self.random.random_range(0..100), client) {
            (0..35, _) => {
                self.world.complete(false);
            }
            (35..37, _) => {
                if self.world.complete(true) {
                    self.clients.clear();
                }
            }
            (37..39, _) => {
                let (unreported, away_ms) = (
                    self.random.random_range(0..4),
                    self.random.random_range(0..500),
                );
                self.world.restart(unreported, away_ms);
                self.clients.clear();
                self.asked.clear();
            }
            (39..50, _) => self.world.pass(self.random.random_range(0..200)),
            (50..51, _) => {
                let by_ms = self.random.random_range(-500..500);
                let unix_ms = &mut self.world.now.unix_ms;
                *unix_ms = unix_ms.saturating_add_signed(by_ms);
            }
            (51..55, Some(client)) => {
                self.world.detach(client);
                self.clients.remove(&session);
            }
            (55..57, Some(client)) => {
                self.world.leave(client);
                self.clients.remove(&session);
            }
            (_, None) => {
                let client = self.world.join(session);
                self.clients.insert(session, client);
            }
            (57..60, Some(client)) => self.compare_state(client),
            (_, Some(client)) => self.ask(client),
        }
        self.read_replies();
    }

    fn ask(&mut self, client: Client) {
        let name = ["l", "m"][self.random.random_range(0..2)];
        let ttl_ms = self.random.random_range(100..600);
        let timer = ["s", "t", "u", "v"][self.random.random_range(0..4)];
        let known = self.fences.get(&(client.session, name)).copied();
        let (request, asked) = match self.random.random_range(0..10) {
            0..4 => return self.write(client, known.map(|fence| (name, fence))),
            4 | 5 => {
                let waits = self.random.random_range(0..2) > 0;
                let request = self.world.acquire(client, name, ttl_ms, waits);
                (request, Asked::Lock(client.session, name))
            }
            6 => match known {
                Some(fence) => (
                    self.world.renew(client, name, fence, ttl_ms),
                    Asked::Lock(client.session, name),
                ),
                None => (self.world.cancel_timer(client, timer), Asked::Other),
            },
            7 => (self.world.release(client, name), Asked::Other),
            8 => {
                let due_ms = self.world.now.unix_ms + ttl_ms;
                (self.world.set_timer(client, timer, due_ms), Asked::Other)
            }
            _ => {
                let changes = ["a", "b"][..self.random.random_range(0..3)].iter();
                let changes = changes.map(|name| put(name, "gone")).collect();
                (self.world.on_disconnect(client, changes), Asked::Other)
            }
        };
        self.asked.insert(request, asked);
    }

    /// A new write, or one that was sent before.
    fn write(&mut self, client: Client, known: Option<(&'static str, Position)>) {
        let producer = u64::try_from(client.session).unwrap();
        let own = self.writes.range((producer, 0)..(producer + 1, 0));
        let own: Vec<_> = own.map(|(op, changes)| (*op, changes.clone())).collect();
        let resends = !own.is_empty() && self.random.random_range(0..3) == 0;
        let (op, changes) = if resends {
            own[own.len() - 1 - self.random.random_range(0..own.len().min(5))].clone()
        } else {
            let op = (producer, self.next_sequence);
            self.next_sequence += 1;
            (op, self.random_changes(known))
        };
        self.writes.insert(op, changes.clone());
        let request = self.world.write(client, Some(op.1), changes);
        self.asked.insert(request, Asked::Write(op));
    }

    fn random_changes(&mut self, known: Option<(&'static str, Position)>) -> Vec<Change> {
        let names = ["a", "b", "c", "d"];
        let first = self.random.random_range(0..4);
        let count = self.random.random_range(1..3);
        let changes = (first..first + count).map(|index| {
            let mut change = put(names[index % 4], &format!("{}", self.next_sequence));
            match self.random.random_range(0..5) {
                0 => change.if_absent = true,
                1 => change.if_version = Some(at(self.random.random_range(0..30))),
                2 => {
                    change.action = roomful_protocol::frame::Action::Delete;
                    change.value = None;
                }
                3 => {
                    if let Some((lock, fence)) = known {
                        change = fenced(change, lock, fence);
                    }
                }
                _ => {}
            }
            change
        });
        changes.collect()
    }

    fn read_replies(&mut self) {
        let waiting: Vec<_> = self.asked.keys().copied().collect();
        for request in waiting {
            let Some(reply) = self.world.reply(request) else {
                continue;
            };
            match (self.asked.remove(&request).unwrap(), reply) {
                (Asked::Write(op), Ok(Reply::Published(published))) => {
                    let position = *self.acked.entry(op).or_insert(published.position);
                    assert_eq!(position, published.position, "seed {}", self.seed);
                    let log = self.world.journal.with(|disk| disk.entries.clone());
                    let index = usize::try_from(position.offset.0).unwrap() - 1;
                    assert_eq!(log[index].op.map(key_of), Some(op), "seed {}", self.seed);
                }
                (Asked::Lock(session, name), Ok(Reply::Lock(LockReply::Granted { fence, .. }))) => {
                    self.fences.insert((session, name), fence);
                }
                _ => {}
            }
        }
    }

    /// What anybody reads is what the log says up to there.
    fn compare_state(&mut self, client: Client) {
        let page = self.world.state(client);
        let until = page.position.offset;
        assert!(until.0 <= self.world.journal.with(|disk| disk.reported) as u64);
        let plain = self.plain(until);
        let read: Vec<_> = page
            .items
            .into_iter()
            .map(|item| (item.key, (item.value.unwrap(), item.version.offset)))
            .collect();
        assert!(read.into_iter().eq(plain.values), "seed {}", self.seed);
    }

    /// The log up to an offset; what may not stand in it is found on the way.
    fn plain(&self, until: Offset) -> Plain {
        let mut plain = Plain::default();
        let log = self.world.journal.with(|disk| disk.entries.clone());
        for entry in log.iter().filter(|entry| entry.offset <= until) {
            self.check_write(entry, &plain);
            plain.apply(entry, self.seed);
        }
        plain
    }

    /// A write stands in the log where its conditions held.
    fn check_write(&self, entry: &Entry, plain: &Plain) {
        let Some(changes) = entry.op.and_then(|op| self.writes.get(&key_of(op))) else {
            return;
        };
        for change in changes {
            let value = plain.values.get(&change.key);
            assert!(!change.if_absent || value.is_none(), "seed {}", self.seed);
            if let Some(version) = change.if_version.filter(|_| value.is_some()) {
                let held = value.map(|(_, version)| *version);
                assert_eq!(held, Some(version.offset), "seed {}", self.seed);
            }
            if let Some(fence) = &change.if_fence {
                let newest = plain.fences.get(&fence.lock);
                assert_eq!(newest, Some(&fence.fence.offset), "seed {}", self.seed);
            }
        }
    }

    /// Everybody goes, and in the end nothing is held by nobody.
    fn end(&mut self) {
        self.world.settle();
        let client = self.world.join(9);
        self.compare_state(client);
        let all: Vec<_> = self.clients.values().copied().collect();
        for client in all {
            self.world.detach(client);
        }
        for _ in 0..20 {
            self.world.pass(GRACE_MS);
            self.world.settle();
        }
        self.compare_state(client);
        let plain = self.plain(Offset(u64::MAX));
        assert!(
            plain.held.values().all(Option::is_none),
            "seed {}",
            self.seed
        );
        assert!(plain.departures.is_empty(), "seed {}", self.seed);
        assert!(plain.timers.is_empty(), "seed {}", self.seed);
        assert_eq!(self.world.journal.with(|disk| disk.wake), None);
        let writes = self.world.journal.with(|disk| disk.entries.clone());
        let ops: Vec<_> = writes.iter().filter_map(|entry| entry.op).collect();
        let once: BTreeSet<_> = ops.iter().copied().map(key_of).collect();
        assert_eq!(
            ops.len(),
            once.len(),
            "seed {}: an operation twice",
            self.seed
        );
    }
}

impl Plain {
    fn apply(&mut self, entry: &Entry, seed: u64) {
        match entry.kind {
            EntryKind::Publish => {}
            EntryKind::State => {
                for change in StateChanges::from_payload(&entry.payload).unwrap().changes {
                    self.versions.insert(change.key.clone(), entry.offset);
                    match change.value {
                        Some(value) => self.values.insert(change.key, (value, entry.offset)),
                        None => self.values.remove(&change.key),
                    };
                }
            }
            EntryKind::Lock => self.lock(entry, seed),
            EntryKind::Timer => {
                let change = TimerChange::from_payload(&entry.payload).unwrap();
                let before = self.timers.remove(&change.name);
                match change.what {
                    TimerWhat::Set => {
                        self.timers.insert(change.name, change.due_ms);
                    }
                    TimerWhat::Fired => {
                        assert_eq!(before, Some(change.due_ms), "seed {seed}");
                        assert!(change.due_ms <= entry.time_ms, "seed {seed}");
                    }
                    TimerWhat::Cancelled => assert!(before.is_some(), "seed {seed}"),
                }
            }
            EntryKind::System => {
                let departure = Departure::from_payload(&entry.payload).unwrap();
                self.departures.remove(&departure.session);
                if !departure.changes.is_empty() {
                    self.departures.insert(departure.session);
                }
            }
        }
    }

    /// A lock goes from hand to hand over nobody's, and each grant is its own offset.
    fn lock(&mut self, entry: &Entry, seed: u64) {
        let change = LockChange::from_payload(&entry.payload).unwrap();
        let now = change.held.as_ref().map(|held| held.session);
        let before = self.held.insert(change.lock.clone(), now).flatten();
        if let Some(held) = &change.held {
            if before.is_some() {
                let newest = self.fences.get(&change.lock);
                assert_eq!((before, newest), (now, Some(&held.fence)), "seed {seed}");
            } else {
                assert_eq!(held.fence, entry.offset, "seed {seed}");
                self.fences.insert(change.lock, held.fence);
            }
        }
    }
}

fn key_of(op: OpId) -> OpIdKey {
    (op.producer.0, op.sequence.0)
}

/// How many worlds, and how long each lives.
const SEEDS: u64 = 200;
const STEPS: usize = 300;
