//! What the journal on disk costs beside the same batches in a raw file and in bare fjall.
//!
//! `journal DIRECTORY PER_RUN REPEATS` appends entries of 256 bytes to 1, 64 or 10,000 rooms with 1, 64 or 512 under way, in turn to
//! a file that is written and synced, to fjall, and to the journal; then it opens rooms of some lengths. Processor time is of the whole
//! process, settled is after everything has gone into the store. `journal DIRECTORY rooms COUNT` makes so many rooms with one entry each, and
//! says what memory the process has then and after a restart. It judges nothing.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;
use roomful_protocol::frame::{Entry, EntryKind};
use roomful_protocol::id::{Epoch, Offset, RoomId, RoomName, TenantId, UserId};
use roomful_protocol::payload::Payload;
use roomful_server::clock::Clock;
use roomful_server::journal::local::{Headroom, Local, LocalJournal, Notify, Settings};
use roomful_server::journal::{
    Completion, CompletionResult, HistoryBounds, Journal as _, Opened, Outcome, Snapshot, Ticket,
};
use roomful_server::shard::message::ShardId;

const PAYLOAD_BYTES: usize = 256;
const SEGMENT_BYTES: u64 = 32 << 20;
const SHARD: ShardId = ShardId(0);

const BOUNDS: HistoryBounds = HistoryBounds {
    entries_max: usize::MAX,
    bytes_max: usize::MAX,
    age_max_ms: u64::MAX,
};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [directory, word, count] = &arguments[..]
        && let ("rooms", Ok(count)) = (word.as_str(), count.parse())
    {
        return match many_rooms(Path::new(directory), count) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                say(&error.to_string());
                ExitCode::FAILURE
            }
        };
    }
    let [directory, per_run, repeats] = &arguments[..] else {
        say("usage: journal DIRECTORY PER_RUN REPEATS");
        return ExitCode::from(2);
    };
    let (Ok(per_run), Ok(repeats)) = (per_run.parse(), repeats.parse()) else {
        say("PER_RUN and REPEATS are numbers");
        return ExitCode::from(2);
    };
    match run(Path::new(directory), per_run, repeats) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn run(base: &Path, per_run: u64, repeats: u32) -> io::Result<()> {
    say(
        "what     rooms under-way | entries/s  p50us  p99us  cpu-us/entry | settled: cpu-us/entry bytes/entry",
    );
    for (rooms, under_way) in [
        (64, 1),
        (64, 64),
        (64, 512),
        (10_000, 64),
        (10_000, 512),
        (1, 512),
    ] {
        let count = if under_way == 1 {
            per_run / 128
        } else {
            per_run
        };
        for _ in 0..repeats {
            for name in ["raw", "fjall", "journal"] {
                let path = base.join(name);
                if path.exists() {
                    fs::remove_dir_all(&path)?;
                }
                fs::create_dir_all(&path)?;
                let case = Case {
                    name,
                    rooms,
                    under_way,
                    count,
                };
                match name {
                    "raw" => raw(&path, case)?,
                    "fjall" => bare(&path, case)?,
                    _ => journal(&path, case)?,
                }
                fs::remove_dir_all(&path)?;
            }
        }
    }
    for entries in [100, 10_000, 100_000] {
        let path = base.join("opens");
        fs::create_dir_all(&path)?;
        open_room(&path, entries)?;
        fs::remove_dir_all(&path)?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    rooms: u64,
    under_way: u64,
    count: u64,
}

/// What a case takes.
struct Watch {
    case: Case,
    clock: Clock,
    cpu_us: u64,
    took_us: Vec<u64>,
}

impl Watch {
    fn start(case: Case) -> io::Result<Self> {
        Ok(Self {
            case,
            clock: Clock::system(),
            cpu_us: cpu_us()?,
            took_us: Vec::new(),
        })
    }

    fn lap(&mut self, began_us: u64) {
        self.took_us.push(self.clock.monotonic_us() - began_us);
    }

    /// Says what it took; `settle` finishes what goes on behind.
    fn end(mut self, path: &Path, settle: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let (took_us, cpu) = (self.clock.monotonic_us(), cpu_us()? - self.cpu_us);
        settle()?;
        let settled = cpu_us()? - self.cpu_us;
        self.took_us.sort_unstable();
        let at = |percent: usize| self.took_us[(self.took_us.len() - 1) * percent / 100];
        let Case {
            name,
            rooms,
            under_way,
            count,
        } = self.case;
        say(&format!(
            "{name:8} {rooms:6} {under_way:5} | {:9} {:6} {:6} {:5.2} | {:5.2} {:5}",
            count * 1_000_000 / took_us,
            at(50),
            at(99),
            per(cpu, count),
            per(settled, count),
            disk_bytes(path)? / count
        ));
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
fn per(sum: u64, count: u64) -> f64 {
    sum as f64 / count as f64
}

fn key(room: u64, offset: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&room.to_be_bytes());
    key[8..].copy_from_slice(&offset.to_be_bytes());
    key
}

fn payload() -> Vec<u8> {
    let mut random = 88_172_645_463_325_252_u64;
    let mut bytes = Vec::with_capacity(PAYLOAD_BYTES);
    while bytes.len() < PAYLOAD_BYTES {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        bytes.extend_from_slice(&random.to_le_bytes());
    }
    bytes
}

/// A file that is written and synced, which nothing durable can beat.
fn raw(path: &Path, case: Case) -> io::Result<()> {
    let make = |number: u64| -> io::Result<File> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(path.join(number.to_string()))?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, SEGMENT_BYTES)?;
        file.sync_all()?;
        Ok(file)
    };
    let (mut file, mut number, mut at) = (make(0)?, 0, 0);
    let payload = payload();
    let mut buffer = Vec::new();
    let mut watch = Watch::start(case)?;
    for _ in 0..case.count / case.under_way {
        let began_us = watch.clock.monotonic_us();
        buffer.clear();
        for index in 0..case.under_way {
            let start = buffer.len();
            buffer.extend_from_slice(&[0; 40]);
            buffer.extend_from_slice(&key(index % case.rooms, index));
            buffer.extend_from_slice(&payload);
            let sum = crc32fast::hash(&buffer[start + 4..]);
            buffer[start..start + 4].copy_from_slice(&sum.to_le_bytes());
        }
        if at + buffer.len() as u64 > SEGMENT_BYTES {
            number += 1;
            (file, at) = (make(number)?, 0);
        }
        file.write_all_at(&buffer, at)?;
        file.sync_data()?;
        at += buffer.len() as u64;
        watch.lap(began_us);
    }
    watch.end(path, || Ok(()))
}

/// The same batches in fjall, whose commits are synced.
fn bare(path: &Path, case: Case) -> io::Result<()> {
    let failed = io::Error::other::<fjall::Error>;
    let database = fjall::Database::builder(path).open().map_err(failed)?;
    let entries = database
        .keyspace("entries", fjall::KeyspaceCreateOptions::default)
        .map_err(failed)?;
    let payload = payload();
    let mut next = 0;
    let mut watch = Watch::start(case)?;
    for _ in 0..case.count / case.under_way {
        let began_us = watch.clock.monotonic_us();
        let mut batch = database
            .batch()
            .durability(Some(fjall::PersistMode::SyncData));
        for _ in 0..case.under_way {
            let value = [&[0; 40][..], &payload].concat();
            batch.insert(&entries, key(next % case.rooms, next / case.rooms), value);
            next += 1;
        }
        batch.commit().map_err(failed)?;
        watch.lap(began_us);
    }
    watch.end(path, || {
        while database.outstanding_flushes() > 0 || database.active_compactions() > 0 {
            std::thread::yield_now();
        }
        Ok(())
    })
}

/// What the journal has told.
#[derive(Default)]
struct Heard {
    letters: Mutex<Vec<Completion>>,
    more: Condvar,
}

impl fmt::Debug for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Heard")
    }
}

impl Notify for Heard {
    fn completed(&self, _: ShardId, completions: Vec<Completion>) {
        self.letters
            .lock()
            .expect("nobody panics")
            .extend(completions);
        self.more.notify_one();
    }

    fn wake(&self, _: RoomId) {}
}

impl Heard {
    fn wait(&self) -> Vec<Completion> {
        let mut letters = self.letters.lock().expect("nobody panics");
        while letters.is_empty() {
            letters = self.more.wait(letters).expect("nobody panics");
        }
        std::mem::take(&mut *letters)
    }
}

fn begin(path: &Path) -> io::Result<(Local, LocalJournal, Arc<Heard>)> {
    let settings = Settings {
        headroom: Headroom {
            percent: 0,
            bytes_min: 0,
        },
        ..Settings::new(Epoch(1), Clock::system())
    };
    let heard = Arc::new(Heard::default());
    let local = Local::open(path, settings).map_err(io::Error::other)?;
    local.start(&(Arc::clone(&heard) as Arc<dyn Notify>))?;
    let face = local.of_shard(SHARD);
    Ok((local, face, heard))
}

/// The directory is free for the next one.
fn end(local: Local) -> io::Result<()> {
    let ended = local.close().map_err(io::Error::other);
    drop(local);
    ended
}

fn room(number: u64) -> RoomId {
    RoomId {
        tenant: TenantId::default_tenant(),
        name: RoomName::parse(format!("chat:{number}").as_bytes()).expect("a good name"),
    }
}

fn later<T>(outcome: &Outcome<T>) -> Ticket {
    match outcome {
        Outcome::Later(ticket) => *ticket,
        _ => unreachable!("the journal on disk takes its time"),
    }
}

fn open(face: &mut LocalJournal, heard: &Heard, id: &RoomId) -> Opened {
    later(&face.open(id, BOUNDS));
    face.flush();
    loop {
        for completion in heard.wait() {
            if let CompletionResult::Opened(opened) = completion.result {
                return opened.expect("a room that is whole");
            }
        }
    }
}

/// So many publishers, each of which sends its next entry when the last one is stored.
fn journal(path: &Path, case: Case) -> io::Result<()> {
    let (local, mut face, heard) = begin(path)?;
    let rooms: Vec<_> = (0..case.rooms).map(room).collect();
    for id in &rooms {
        later(&face.open(id, BOUNDS));
    }
    face.flush();
    let mut opened = 0;
    while opened < rooms.len() {
        opened += heard.wait().len();
    }
    let user = UserId::parse("ada").expect("a good name");
    let bytes = Bytes::from(payload());
    let mut heads = vec![0; rooms.len()];
    let mut under_way = VecDeque::new();
    let (mut sent, mut stored) = (0, 0);
    let mut watch = Watch::start(case)?;
    while stored < case.count {
        while sent < case.count && sent - stored < case.under_way {
            let index = usize::try_from(sent % case.rooms).expect("an index");
            heads[index] += 1;
            let entry = Arc::new(Entry {
                offset: Offset(heads[index]),
                time_ms: 1_800_000_000_000,
                kind: EntryKind::Publish,
                user: user.clone(),
                op: None,
                payload: Payload::binary(bytes.clone()),
            });
            later(&face.append(&rooms[index], Offset(heads[index] - 1), &entry));
            under_way.push_back(watch.clock.monotonic_us());
            sent += 1;
        }
        face.flush();
        for completion in heard.wait() {
            let CompletionResult::Appended(Ok(())) = completion.result else {
                return Err(io::Error::other("an append has failed"));
            };
            watch.lap(under_way.pop_front().expect("in order"));
            stored += 1;
        }
    }
    watch.end(path, || end(local))
}

/// How long a room takes to open that has a snapshot near its end, with everything in the store.
fn open_room(path: &Path, entries: u64) -> io::Result<()> {
    let id = room(0);
    let (local, mut face, heard) = begin(path)?;
    open(&mut face, &heard, &id);
    let bytes = Bytes::from(payload());
    let user = UserId::parse("ada").expect("a good name");
    for offset in 1..=entries {
        let entry = Arc::new(Entry {
            offset: Offset(offset),
            time_ms: offset,
            kind: EntryKind::Publish,
            user: user.clone(),
            op: None,
            payload: Payload::binary(bytes.clone()),
        });
        later(&face.append(&id, Offset(offset - 1), &entry));
    }
    let content = Bytes::from(vec![7; 100_000]);
    let at = Offset(entries - entries / 100);
    face.snapshot(&id, Snapshot { at, content });
    let clock = Clock::system();
    let began_us = clock.monotonic_us();
    open(&mut face, &heard, &id);
    let stored_us = clock.monotonic_us() - began_us;
    let began_us = clock.monotonic_us();
    open(&mut face, &heard, &id);
    let in_segments_us = clock.monotonic_us() - began_us;
    end(local)?;
    let (local, mut face, heard) = begin(path)?;
    let began_us = clock.monotonic_us();
    let found = open(&mut face, &heard, &id);
    let in_store_us = clock.monotonic_us() - began_us;
    say(&format!(
        "a room of {entries}: stored in {stored_us} us; opened with {} recent ones in {in_segments_us} us from segments, {in_store_us} us from the store",
        found.recent.len()
    ));
    end(local)
}

/// Rooms that are opened, get one entry, and are closed.
fn many_rooms(path: &Path, count: u64) -> io::Result<()> {
    let bytes = Bytes::from(payload());
    let user = UserId::parse("ada").expect("a good name");
    say(&format!("before: {} KiB", resident_kib()?));
    let (local, mut face, heard) = begin(path)?;
    for start in (0..count).step_by(1_000) {
        let rooms: Vec<_> = (start..count.min(start + 1_000)).map(room).collect();
        for id in &rooms {
            later(&face.open(id, BOUNDS));
        }
        settle(&mut face, &heard, rooms.len());
        for id in &rooms {
            let entry = Arc::new(Entry {
                offset: Offset(1),
                time_ms: 1,
                kind: EntryKind::Publish,
                user: user.clone(),
                op: None,
                payload: Payload::binary(bytes.clone()),
            });
            later(&face.append(id, Offset(0), &entry));
        }
        settle(&mut face, &heard, rooms.len());
        for id in &rooms {
            face.close(id);
        }
    }
    say(&format!("{count} rooms made: {} KiB", resident_kib()?));
    end(local)?;
    drop(face);
    say(&format!("closed: {} KiB", resident_kib()?));
    let clock = Clock::system();
    let (local, mut face, heard) = begin(path)?;
    let opened_us = clock.monotonic_us();
    open(&mut face, &heard, &room(count / 2));
    say(&format!(
        "opened in {opened_us} us: {} KiB",
        resident_kib()?
    ));
    end(local)
}

fn settle(face: &mut LocalJournal, heard: &Heard, calls: usize) {
    face.flush();
    let mut ended = 0;
    while ended < calls {
        ended += heard.wait().len();
    }
}

/// Memory of this process that is there.
fn resident_kib() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let digits = line.unwrap_or_default().trim().trim_end_matches(" kB");
    digits.parse().map_err(io::Error::other)
}

/// Processor time of this process, in microseconds.
fn cpu_us() -> io::Result<u64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks: u64 = [11, 12]
        .into_iter()
        .filter_map(|field: usize| fields.get(field)?.parse::<u64>().ok())
        .sum();
    Ok(ticks * 10_000)
}

fn disk_bytes(path: &Path) -> io::Result<u64> {
    let mut sum = 0;
    let mut folders: Vec<PathBuf> = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let (entry, found) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
            match found.is_dir() {
                true => folders.push(entry),
                false => sum += found.blocks() * 512,
            }
        }
    }
    Ok(sum)
}

fn say(line: &str) {
    // Nobody is there to hear of it.
    drop(writeln!(io::stdout(), "{line}"));
}
