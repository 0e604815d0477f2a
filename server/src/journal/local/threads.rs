//! The threads of the journal: one that commits, one that takes segments into the store, one that cleans it, and a few that read.
//!
//! They hold no logic of their own: each waits for work, hands it to what does it, and passes on what came of it. A thread that
//! panics ends the process, because nobody could say any more what is stored.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fmt, io};

use roomful_protocol::id::RoomId;

use super::committer::{Command, Committer, Done, OpenRequest};
use super::counters::Counters;
use super::health::SharedHealth;
use super::ingest::Ingester;
use super::reading::{Looked, PageRequest, Reader};
use super::wakes::Wakes;
use crate::clock::Clock;
use crate::journal::{Completion, CompletionResult, Health, Ticket};
use crate::shard::message::ShardId;

/// Who hears of what the journal has done. Called by the journal's threads; it must not wait for anything.
pub trait Notify: fmt::Debug + Send + Sync {
    /// Calls of a shard have ended.
    fn completed(&self, shard: ShardId, completions: Vec<Completion>);

    /// Somebody has to look at a room.
    fn wake(&self, room: RoomId);
}

/// What shards and threads share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) commands: Queue<Command>,
    pub(super) jobs: Queue<Job>,
    pub(super) health: SharedHealth,
    pub(super) counters: Arc<Counters>,
    /// Something is damaged, and nobody knows whose it was: no room is opened.
    pub(super) is_damaged: bool,
    /// Rung when a segment was sealed.
    work: Bell,
    /// Rung when a segment has gone into the store, or can't.
    moved: Bell,
    /// Rung when the store has something to clean.
    clean: Bell,
}

/// What a reader is asked for.
#[derive(Debug)]
pub(super) enum Job {
    Open(OpenRequest),
    Read {
        room: RoomId,
        shard: ShardId,
        ticket: Ticket,
        request: PageRequest,
    },
}

/// Things that wait for a thread. They are as many as their senders may have under way.
#[derive(Debug)]
pub(super) struct Queue<T> {
    waiting: Mutex<Waiting<T>>,
    filled: Condvar,
}

#[derive(Debug)]
struct Waiting<T> {
    things: VecDeque<T>,
    /// Threads that sleep until there is something.
    sleepers: usize,
    is_closed: bool,
}

impl<T> Queue<T> {
    fn new() -> Self {
        Self {
            waiting: Mutex::new(Waiting {
                things: VecDeque::new(),
                sleepers: 0,
                is_closed: false,
            }),
            filled: Condvar::new(),
        }
    }

    /// Adds things, and wakes a thread only if one sleeps.
    pub(super) fn push(&self, things: impl IntoIterator<Item = T>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.things.extend(things);
        let sleepers = waiting.sleepers;
        drop(waiting);
        if sleepers > 0 {
            self.filled.notify_one();
        }
    }

    /// Takes all, or none after a second; false: it is closed, and nothing is left.
    fn take_all(&self, into: &mut Vec<T>) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.things.is_empty() && !waiting.is_closed {
            waiting.sleepers += 1;
            let woken = self.filled.wait_timeout(waiting, SECOND);
            waiting = woken.unwrap_or_else(PoisonError::into_inner).0;
            waiting.sleepers -= 1;
        }
        into.extend(waiting.things.drain(..));
        !(into.is_empty() && waiting.is_closed)
    }

    /// Takes one as soon as there is one; none: it is closed, and nothing is left.
    fn take(&self) -> Option<T> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(thing) = waiting.things.pop_front() {
                return Some(thing);
            }
            if waiting.is_closed {
                return None;
            }
            waiting.sleepers += 1;
            let woken = self.filled.wait(waiting);
            waiting = woken.unwrap_or_else(PoisonError::into_inner);
            waiting.sleepers -= 1;
        }
    }

    /// Takes all without waiting.
    #[cfg(feature = "simulated")]
    pub(super) fn drain(&self) -> Vec<T> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.things.drain(..).collect()
    }

    fn close(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.is_closed = true;
        drop(waiting);
        self.filled.notify_all();
    }
}

/// Wakes a thread that waits for others; rung in vain it is remembered.
#[derive(Debug, Default)]
struct Bell {
    has_rung: Mutex<bool>,
    rung: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.has_rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.rung.notify_all();
    }

    /// Waits until it rings, a second at most.
    fn wait(&self) {
        let mut has_rung = self.has_rung.lock().unwrap_or_else(PoisonError::into_inner);
        if !*has_rung {
            let woken = self.rung.wait_timeout(has_rung, SECOND);
            has_rung = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        *has_rung = false;
    }
}

impl Shared {
    pub(super) fn new(health: SharedHealth, counters: Arc<Counters>, is_damaged: bool) -> Self {
        Self {
            commands: Queue::new(),
            jobs: Queue::new(),
            health,
            counters,
            is_damaged,
            work: Bell::default(),
            moved: Bell::default(),
            clean: Bell::default(),
        }
    }
}

/// What the threads work with.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) committer: Committer,
    pub(super) reader: Reader,
    pub(super) ingester: Ingester,
    pub(super) wakes: Wakes,
    pub(super) clean_bytes_min: u64,
    pub(super) clock: Clock,
}

/// The threads, while they run.
#[derive(Debug)]
pub(super) struct Threads {
    shared: Arc<Shared>,
    /// The store is to be left as it is.
    is_ending: Arc<AtomicBool>,
    committer: JoinHandle<()>,
    readers: Vec<JoinHandle<()>>,
    ingester: JoinHandle<io::Result<()>>,
    cleaner: JoinHandle<()>,
}

impl Threads {
    pub(super) fn start(
        parts: Parts,
        shared: &Arc<Shared>,
        notify: &Arc<dyn Notify>,
    ) -> io::Result<Self> {
        let Parts {
            committer,
            reader,
            ingester,
            mut wakes,
            clean_bytes_min,
            clock,
        } = parts;
        let is_ending = Arc::new(AtomicBool::new(false));
        let ingester = Arc::new(ingester);
        // Those of time 0 are of the process before: nothing may be set before they are read.
        for room in wakes.due(clock.unix_ms())? {
            notify.wake(room);
        }
        let (at, told) = (Arc::clone(shared), Arc::clone(notify));
        let timed = clock.clone();
        let committer = spawn("journal-commit", move || {
            commit(committer, &at, &*told, &timed);
        })?;
        let mut readers = Vec::new();
        for number in 0..READERS {
            let (at, told, reader) = (Arc::clone(shared), Arc::clone(notify), reader.clone());
            readers.push(spawn(&format!("journal-read-{number}"), move || {
                read(&reader, &at, &*told);
            })?);
        }
        let taking = Taking {
            ingester: Arc::clone(&ingester),
            wakes,
            shared: Arc::clone(shared),
            is_ending: Arc::clone(&is_ending),
            notify: Arc::clone(notify),
            clock,
            clean_bytes_min,
        };
        let ingesting = spawn("journal-ingest", move || taking.run())?;
        let (at, ending) = (Arc::clone(shared), Arc::clone(&is_ending));
        let cleaner = spawn("journal-clean", move || {
            clean(&ingester, &at, &ending, clean_bytes_min);
        })?;
        Ok(Self {
            shared: Arc::clone(shared),
            is_ending,
            committer,
            readers,
            ingester: ingesting,
            cleaner,
        })
    }

    /// Stores what was handed over, takes all segments into the store, and ends the threads.
    pub(super) fn close(self) -> io::Result<()> {
        self.shared.commands.close();
        join(self.committer);
        self.shared.jobs.close();
        for reader in self.readers {
            join(reader);
        }
        self.is_ending.store(true, Ordering::Relaxed);
        self.shared.work.ring();
        self.shared.clean.ring();
        join(self.cleaner);
        join(self.ingester)
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    thread::Builder::new().name(name.to_owned()).spawn(|| {
        let guard = EndsProcess;
        let done = work();
        drop(guard);
        done
    })
}

/// A panic has been told by its hook; what is stored, nobody knows any more.
struct EndsProcess;

impl Drop for EndsProcess {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().expect("a panic ends the process")
}

fn commit(mut committer: Committer, shared: &Shared, notify: &dyn Notify, clock: &Clock) {
    let mut commands = Vec::new();
    let (mut next_look_us, mut next_seal_ms) = (0, 0);
    while shared.commands.take_all(&mut commands) {
        if shared.health.get() == Health::Full && clock.monotonic_ms() >= next_seal_ms {
            next_seal_ms = clock.monotonic_ms() + SEAL_INTERVAL_MS;
            if committer.seal_trimmed() {
                shared.work.ring();
            }
        }
        if commands.is_empty() {
            committer.look_at_space();
            committer.confirm();
            continue;
        }
        while committer.segments_waiting() >= SEALED_MAX && shared.health.get() != Health::Failed {
            shared.moved.wait();
        }
        if clock.monotonic_us() >= next_look_us {
            committer.look_at_space();
            next_look_us = clock.monotonic_us() + LOOK_INTERVAL_US;
        }
        commit_taken(&mut committer, &mut commands, shared, notify, clock);
    }
    if shared.health.get() != Health::Failed {
        committer.close();
    }
}

/// Commits what was taken from the queue, and passes on what came of it.
pub(super) fn commit_taken(
    committer: &mut Committer,
    commands: &mut Vec<Command>,
    shared: &Shared,
    notify: &dyn Notify,
    clock: &Clock,
) {
    let began_us = clock.monotonic_us();
    let mut done = Done::default();
    committer.commit(commands, &mut done);
    let took_us = clock.monotonic_us().saturating_sub(began_us);
    shared.counters.commit_us.see(took_us);
    for (shard, letter) in done.letters {
        notify.completed(shard, letter);
    }
    if !done.opens.is_empty() {
        shared.jobs.push(done.opens.into_iter().map(Job::Open));
    }
    if done.has_sealed {
        shared.work.ring();
    }
}

fn read(reader: &Reader, shared: &Shared, notify: &dyn Notify) {
    while let Some(job) = shared.jobs.take() {
        look_up(reader, shared, notify, job);
    }
}

/// Does what a reader is asked for.
pub(super) fn look_up(reader: &Reader, shared: &Shared, notify: &dyn Notify, job: Job) {
    let (shard, ticket, result) = match job {
        Job::Open(request) => {
            let result = match reader.open(&request) {
                Ok(Looked::Absent(taken)) => {
                    return shared.commands.push([Command::Begin { request, taken }]);
                }
                Ok(Looked::Found(opened)) => Ok(opened),
                Err(error) => Err(error),
            };
            shared.counters.opens.add(1);
            (
                request.shard,
                request.ticket,
                CompletionResult::Opened(result),
            )
        }
        Job::Read {
            room,
            shard,
            ticket,
            request,
        } => {
            let page = reader.read(&room, &request);
            (shard, ticket, CompletionResult::Read(page))
        }
    };
    notify.completed(shard, vec![Completion { ticket, result }]);
}

/// What the thread that takes segments works with.
#[derive(Debug)]
pub(super) struct Taking {
    pub(super) ingester: Arc<Ingester>,
    pub(super) wakes: Wakes,
    pub(super) shared: Arc<Shared>,
    pub(super) is_ending: Arc<AtomicBool>,
    pub(super) notify: Arc<dyn Notify>,
    pub(super) clock: Clock,
    pub(super) clean_bytes_min: u64,
}

impl Taking {
    fn run(mut self) -> io::Result<()> {
        if !self.ingester.has_counted() {
            // At that time nothing is too old.
            self.sweep(0);
        }
        let mut next_sweep_ms = self.clock.monotonic_ms() + SWEEP_INTERVAL_MS;
        loop {
            let ends = self.is_ending.load(Ordering::Relaxed);
            while self.shared.health.get() != Health::Failed {
                let Some(taken) = self.take_oldest() else {
                    break;
                };
                if ends {
                    taken?;
                }
            }
            if ends {
                return Ok(());
            }
            if self.clock.monotonic_ms() >= next_sweep_ms {
                next_sweep_ms = self.clock.monotonic_ms() + SWEEP_INTERVAL_MS;
                self.sweep(self.clock.unix_ms());
            }
            if self.ingester.wants_cleaning(self.clean_bytes_min) {
                self.shared.clean.ring();
            }
            self.shared.work.wait();
        }
    }

    fn sweep(&self, now_ms: u64) {
        if let Err(error) = self.ingester.sweep(now_ms) {
            tracing::error!(%error, "the journal's store can't be swept");
        }
    }

    /// Tells what is due, and takes one segment into the store, if one waits.
    pub(super) fn take_oldest(&mut self) -> Option<io::Result<()>> {
        let segment = self.ingester.oldest();
        // What is in it has to be looked at before it goes into the store.
        self.wake();
        let segment = segment?;
        let taken = self.ingester.take(&segment);
        if let Err(error) = &taken {
            tracing::error!(%error, "the journal's store can't be written: nothing durable is taken until the next start");
            self.shared.health.set(Health::Failed);
        }
        self.shared.moved.ring();
        Some(taken)
    }

    fn wake(&mut self) {
        match self.wakes.due(self.clock.unix_ms()) {
            Ok(rooms) => rooms.into_iter().for_each(|room| self.notify.wake(room)),
            Err(error) => tracing::error!(%error, "rooms that have to be looked at can't be read"),
        }
    }
}

fn clean(ingester: &Ingester, shared: &Shared, is_ending: &Arc<AtomicBool>, clean_bytes_min: u64) {
    while !is_ending.load(Ordering::Relaxed) {
        shared.clean.wait();
        if shared.health.get() == Health::Failed || !ingester.wants_cleaning(clean_bytes_min) {
            continue;
        }
        if let Err(error) = ingester.clean(is_ending) {
            tracing::error!(%error, "the journal's store can't be cleaned: nothing durable is taken until the next start");
            shared.health.set(Health::Failed);
        }
    }
}

/// Threads that read.
const READERS: usize = 2;

/// Sealed segments that may wait for the store. Beyond that appends wait too: memory and the time of a start are bounded by them.
pub(super) const SEALED_MAX: usize = 4;

/// How often a committer that has no rest looks at the disk's space. No disk loses a headroom in that time.
const LOOK_INTERVAL_US: u64 = 100_000;

/// How often a full disk's segment goes into the store for what was trimmed: nothing else fills it.
const SEAL_INTERVAL_MS: u64 = 60_000;

/// How often logs that nobody has open lose what is too old.
const SWEEP_INTERVAL_MS: u64 = 3_600_000;

const SECOND: Duration = Duration::from_secs(1);
