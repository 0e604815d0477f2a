//! Power cuts and kills at any step, on a simulated disk: whatever was reported stored is there afterwards.
//!
//! The real committer, ingester, recovery and reader work on a [`Machine`]; nothing runs beside them, so that a seed repeats
//! everything. After each end the directory is opened again by the real code, and every room is compared with what was said of it:
//! nothing that was reported is missing, nothing is there twice or in another order, nothing is there that nobody sent.
//! `ROOMFUL_JOURNAL_SEED` repeats one seed.

use std::collections::{BTreeMap, HashMap};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use roomful_protocol::frame::Direction;
use roomful_protocol::id::UserId;
use roomful_protocol::payload::Payload;

use super::committer::Done;
use super::reading::Looked;
use super::simulated::{End, Machine};
use super::*;
use crate::journal::CompletionResult;
use crate::journal::conformance::room;

const SHARD: ShardId = ShardId(0);

pub(super) const BOUNDS: HistoryBounds = HistoryBounds {
    entries_max: 40,
    bytes_max: 1 << 30,
    age_max_ms: AGE_MAX_MS,
};

/// Longer than any story takes, with the sweep's slack.
pub(super) const AGE_MAX_MS: u64 = 1_000_000_000;

/// A process on a machine: what the threads would work with.
pub(super) struct Process {
    pub(super) face: LocalJournal,
    pub(super) parts: Parts,
}

impl Process {
    pub(super) fn start(machine: &Machine, starts: u64) -> io::Result<Self> {
        let recovered = recover(machine, machine, machine.is_new()).map_err(io::Error::other)?;
        assert_eq!(recovered.flaws, [], "a power cut damages nothing");
        Self::on(machine, recovered, starts)
    }

    pub(super) fn on(machine: &Machine, recovered: Recovered, starts: u64) -> io::Result<Self> {
        let store: Arc<dyn Store> = Arc::new(machine.clone());
        let process = Self::over(machine, &store, recovered, starts)?;
        machine.begun();
        Ok(process)
    }

    /// With the segments on a machine and another store.
    pub(super) fn over(
        machine: &Machine,
        store: &Arc<dyn Store>,
        recovered: Recovered,
        starts: u64,
    ) -> io::Result<Self> {
        Self::with_segments(machine, store, recovered, starts, 3_000)
    }

    pub(super) fn with_segments(
        machine: &Machine,
        store: &Arc<dyn Store>,
        recovered: Recovered,
        starts: u64,
        segment_bytes: u64,
    ) -> io::Result<Self> {
        let shared = Shared::new(SharedHealth::default(), Arc::default(), false);
        let settings = Settings {
            segment_bytes,
            headroom: Headroom {
                percent: 0,
                bytes_min: HEADROOM,
            },
            ..Settings::new(Epoch(starts), Clock::manual(0))
        };
        let disk: Arc<dyn Disk> = Arc::new(machine.clone());
        let parts = parts_of(settings, starts, &shared, disk, store, recovered)?;
        let face = LocalJournal::new(SHARD, &Arc::new(shared));
        Ok(Self { face, parts })
    }

    /// Commits what was asked for, and looks up what is to be looked up; gives what came of it.
    pub(super) fn settle(&mut self) -> HashMap<Ticket, CompletionResult> {
        let mut ended = HashMap::new();
        while !self.face.commands.is_empty() {
            let mut done = Done::default();
            self.parts
                .committer
                .commit(&mut self.face.commands, &mut done);
            for request in done.opens {
                match self.parts.reader.open(&request) {
                    Ok(Looked::Absent(taken)) => {
                        self.face.commands.push(Command::Begin { request, taken });
                    }
                    Ok(Looked::Found(opened)) => {
                        ended.insert(request.ticket, CompletionResult::Opened(Ok(opened)));
                    }
                    Err(error) => {
                        ended.insert(request.ticket, CompletionResult::Opened(Err(error)));
                    }
                }
            }
            let letters = done.letters.into_iter().flat_map(|(_, letter)| letter);
            ended.extend(letters.map(|completion| (completion.ticket, completion.result)));
        }
        ended
    }

    pub(super) fn open(&mut self, id: &RoomId) -> Result<Opened, JournalError> {
        let Outcome::Later(ticket) = self.face.open(id, BOUNDS) else {
            panic!("it takes its time");
        };
        match self.settle().remove(&ticket) {
            Some(CompletionResult::Opened(opened)) => opened,
            other => panic!("the end of an open, not {other:?}"),
        }
    }

    pub(super) fn read(
        &mut self,
        id: &RoomId,
        direction: Direction,
    ) -> Result<ReadPage, JournalError> {
        let room = self.face.open_room(id).unwrap();
        let query = ReadQuery {
            from: Offset(match direction {
                Direction::Forward => 0,
                Direction::Backward => u64::MAX,
            }),
            until: Offset(u64::MAX),
            direction,
            entries_max: usize::MAX,
            bytes_max: usize::MAX,
        };
        let request = PageRequest {
            log: room.log.id,
            first: room.first,
            query,
        };
        self.parts.reader.read(id, &request)
    }

    /// Takes one segment into the store, if there is one.
    pub(super) fn ingest(&self) -> io::Result<()> {
        match self.parts.ingester.oldest() {
            Some(segment) => self.parts.ingester.take(&segment),
            None => Ok(()),
        }
    }
}

/// What was said of a room.
#[derive(Default)]
struct Said {
    epoch: Option<Epoch>,
    /// The last entry that was reported stored.
    acked: u64,
    /// What was handed over last at each offset.
    sent: BTreeMap<u64, Arc<Entry>>,
    /// The last value of the register that was reported stored, and those that were handed over after it.
    register: Option<Bytes>,
    later_registers: Vec<Bytes>,
    /// The newest snapshot that was known to be stored.
    snapshot: u64,
}

/// One story: a machine, its processes one after the other, and what they said.
struct Story {
    seed: u64,
    random: StdRng,
    machine: Machine,
    rooms: Vec<(RoomId, Said)>,
    starts: u64,
    next_value: u64,
    ends: u64,
    acks: u64,
}

impl Story {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let rooms = random.random_range(1..6);
        Self {
            seed,
            machine: Machine::new(random.random()),
            random,
            rooms: (0..rooms)
                .map(|number| (room(&number.to_string()), Said::default()))
                .collect(),
            starts: 0,
            next_value: 0,
            ends: 0,
            acks: 0,
        }
    }

    fn tell(&mut self) {
        for _ in 0..ENDS {
            let steps = self.random.random_range(0..60);
            self.machine.end_after(steps);
            if let Ok(mut process) = self.start()
                && self.check(&mut process)
            {
                self.live(&mut process);
            }
            let end = match self.random.random_range(0..3) {
                0 => End::Kill,
                _ => End::PowerCut,
            };
            self.machine.come_back(end);
            self.ends += 1;
        }
        let mut process = self.start().unwrap();
        assert!(self.check(&mut process), "nothing goes wrong any more");
    }

    fn start(&mut self) -> io::Result<Process> {
        self.starts += 1;
        Process::start(&self.machine, self.starts)
    }

    /// Opens every room and compares; false: the power went.
    fn check(&mut self, process: &mut Process) -> bool {
        for (id, said) in &mut self.rooms {
            let seed = self.seed;
            let opened = match process.open(id) {
                Ok(opened) => opened,
                Err(error) => {
                    assert!(self.machine.is_off(), "seed {seed}: {id}: {error}");
                    return false;
                }
            };
            let head = opened.head.0;
            assert!(
                said.epoch.is_none_or(|epoch| epoch == opened.epoch),
                "seed {seed}: {id} has another epoch"
            );
            said.epoch = Some(opened.epoch);
            assert!(
                head >= said.acked,
                "seed {seed}: {id}: {head} is the head, and {} was stored",
                said.acked
            );
            let pages = [Direction::Forward, Direction::Backward].map(|way| process.read(id, way));
            for page in pages {
                let page = page.unwrap_or_else(|error| panic!("seed {seed}: {id}: {error}"));
                let first = page.first.0;
                assert!(
                    first + BOUNDS.entries_max as u64 * 7 / 8 <= head.max(36) + 1,
                    "seed {seed}: {id}: {first} to {head} is less than was to be kept"
                );
                let found: Vec<_> = page.entries.iter().map(|entry| entry.offset.0).collect();
                assert_eq!(
                    found,
                    (first..=head).collect::<Vec<_>>(),
                    "seed {seed}: {id}"
                );
                for entry in &page.entries {
                    assert_eq!(
                        Some(entry),
                        said.sent.get(&entry.offset.0),
                        "seed {seed}: {id}"
                    );
                }
            }
            let register = opened.registers.first().map(|(_, value)| value.clone());
            let later = said
                .later_registers
                .iter()
                .any(|later| register.as_ref() == Some(later));
            assert!(
                later || register == said.register,
                "seed {seed}: {id}: a register has {register:?}"
            );
            let snapshot = opened.snapshot;
            assert!(
                snapshot.as_ref().map_or(0, |snapshot| snapshot.at.0) >= said.snapshot,
                "seed {seed}: {id}: its snapshot is an old one"
            );
            if let Some(snapshot) = snapshot {
                let at = snapshot.at.0.to_be_bytes();
                assert_eq!(snapshot.content, at[..], "seed {seed}: {id}");
                said.snapshot = snapshot.at.0;
            }
            // What is there now stays, whether it was reported or not.
            said.acked = head;
            said.sent.split_off(&(head + 1));
            said.register = register;
            said.later_registers.clear();
        }
        true
    }

    /// Works until the power goes, or for a while.
    fn live(&mut self, process: &mut Process) {
        let mut heads: Vec<_> = self.rooms.iter().map(|(_, said)| said.acked).collect();
        for _ in 0..self.random.random_range(1..60) {
            if self.machine.is_off() {
                return;
            }
            let mut waiting = HashMap::new();
            for _ in 0..self.random.random_range(1..8) {
                self.ask(process, &mut heads, &mut waiting);
            }
            let is_over = self.random.random_range(0..100) == 0;
            if is_over {
                self.machine.fail_sync();
            }
            for (ticket, result) in process.settle() {
                let Some((room, asked)) = waiting.remove(&ticket) else {
                    panic!("seed {}: an answer to nothing", self.seed);
                };
                let said = &mut self.rooms[room].1;
                match (result, asked) {
                    (CompletionResult::Appended(Ok(())), Asked::Entry(offset)) => {
                        said.acked = said.acked.max(offset);
                        self.acks += 1;
                    }
                    (CompletionResult::Appended(Ok(())), Asked::Register(value)) => {
                        said.later_registers.retain(|later| *later > value);
                        said.register = said.register.take().max(Some(value));
                    }
                    (CompletionResult::Appended(Err(_)), _) => {
                        assert_eq!(process.face.health(), Health::Failed);
                    }
                    (other, _) => panic!("the end of an append, not {other:?}"),
                }
            }
            assert!(waiting.is_empty(), "seed {}: no answer", self.seed);
            if process.face.health() == Health::Failed {
                return;
            }
            for (id, said) in &mut self.rooms {
                let held = process.face.open_room(id).unwrap().log.held();
                said.snapshot = said.snapshot.max(held.0);
            }
            if self.random.random_range(0..3) == 0 && process.ingest().is_err() {
                return;
            }
            if self.random.random() {
                process.parts.committer.confirm();
            }
        }
    }

    /// Asks for something in one of the rooms.
    fn ask(
        &mut self,
        process: &mut Process,
        heads: &mut [u64],
        waiting: &mut HashMap<Ticket, (usize, Asked)>,
    ) {
        let room = self.random.random_range(0..self.rooms.len());
        let (id, said) = &mut self.rooms[room];
        self.next_value += 1;
        let value = Bytes::copy_from_slice(&self.next_value.to_be_bytes());
        match self.random.random_range(0..20) {
            0 => {
                let at = Offset(heads[room]);
                let content = Bytes::copy_from_slice(&at.0.to_be_bytes());
                if at > Offset(0) {
                    process.face.snapshot(id, Snapshot { at, content });
                }
            }
            1 => {
                let asked = process.face.register(id, "key".into(), value.clone());
                let Outcome::Later(ticket) = asked else {
                    panic!("it takes its time");
                };
                said.later_registers.push(value.clone());
                waiting.insert(ticket, (room, Asked::Register(value)));
            }
            _ => {
                let offset = heads[room] + 1;
                let length = match self.random.random_range(0..30) {
                    0 => self.random.random_range(0..6_000),
                    _ => 8,
                };
                let payload = [&value[..], &vec![0; length]].concat();
                let entry = Arc::new(Entry {
                    offset: Offset(offset),
                    time_ms: offset,
                    kind: match self.random.random_range(0..10) {
                        0 => EntryKind::State,
                        _ => EntryKind::Publish,
                    },
                    user: UserId::parse("u").unwrap(),
                    op: None,
                    payload: Payload::binary(payload),
                });
                let asked = process.face.append(id, Offset(offset - 1), &entry);
                let Outcome::Later(ticket) = asked else {
                    panic!("it takes its time: {asked:?}");
                };
                said.sent.insert(offset, entry);
                heads[room] = offset;
                waiting.insert(ticket, (room, Asked::Entry(offset)));
            }
        }
    }
}

/// What an answer is awaited for.
enum Asked {
    Entry(u64),
    Register(Bytes),
}

/// Ends of a story.
const ENDS: u64 = 6;

pub(super) const HEADROOM: u64 = 100_000;

#[test]
fn what_was_reported_stored_survives_every_end() {
    #[expect(clippy::disallowed_methods, reason = "a test has no config")]
    let chosen = std::env::var("ROOMFUL_JOURNAL_SEED").ok();
    let seeds = match chosen {
        Some(seed) => vec![seed.parse().unwrap()],
        None => (0..600).collect(),
    };
    let (mut ends, mut acks) = (0, 0);
    for seed in seeds {
        let mut story = Story::new(seed);
        story.tell();
        ends += story.ends;
        acks += story.acks;
    }
    println!("{ends} ends, {acks} entries reported stored");
}
