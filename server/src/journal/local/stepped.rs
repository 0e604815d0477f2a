//! The journal on a simulated machine and without its threads: whoever drives it says which of them goes on next.
//!
//! Each step does once what the thread does in its loop, with the same code. Nothing waits and nothing runs beside it, so that a
//! seed repeats everything. What the journal tells the process is kept in order until somebody takes it.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use roomful_protocol::id::RoomId;

use super::committer::Committer;
use super::disk::Disk;
use super::health::SharedHealth;
use super::reading::Reader;
use super::recovery::recover;
use super::simulated::Machine;
use super::store::Store;
use super::threads::{Notify, Parts, SEALED_MAX, Shared, Taking, commit_taken, look_up};
use super::{LocalJournal, Settings, parts_of};
use crate::clock::Clock;
use crate::journal::{Completion, Health};
use crate::shard::message::ShardId;

/// The journal of one process.
#[derive(Debug)]
pub struct Stepped {
    shared: Arc<Shared>,
    committer: Committer,
    reader: Reader,
    taking: Taking,
    mailbox: Arc<Mailbox>,
    clock: Clock,
}

/// What the journal tells.
#[derive(Debug)]
pub enum Told {
    /// A call of a shard has ended.
    Completed(ShardId, Completion),
    /// Somebody has to look at a room.
    Wake(RoomId),
}

/// What was told and not taken yet.
#[derive(Debug, Default)]
struct Mailbox(Mutex<VecDeque<Told>>);

impl Stepped {
    /// Opens the journal of a machine, or begins one.
    ///
    /// # Errors
    /// The machine's disk fails, or what is on it can't be used.
    pub fn open(machine: &Machine, settings: Settings) -> io::Result<Self> {
        let recovered = recover(machine, machine, machine.is_new()).map_err(io::Error::other)?;
        if recovered.is_damaged() {
            return Err(io::Error::other("it is damaged"));
        }
        let shared = Arc::new(Shared::new(SharedHealth::default(), Arc::default(), false));
        let disk: Arc<dyn Disk> = Arc::new(machine.clone());
        let store: Arc<dyn Store> = Arc::new(machine.clone());
        let salt = settings.first_epoch.0;
        let Parts {
            committer,
            reader,
            ingester,
            mut wakes,
            clean_bytes_min,
            clock,
        } = parts_of(settings, salt, &shared, disk, &store, recovered)?;
        machine.begun();
        let mailbox = Arc::<Mailbox>::default();
        for room in wakes.due(clock.unix_ms())? {
            mailbox.wake(room);
        }
        let taking = Taking {
            ingester: Arc::new(ingester),
            wakes,
            shared: Arc::clone(&shared),
            is_ending: Arc::default(),
            notify: Arc::clone(&mailbox) as Arc<dyn Notify>,
            clock: clock.clone(),
            clean_bytes_min,
        };
        Ok(Self {
            shared,
            committer,
            reader,
            taking,
            mailbox,
            clock,
        })
    }

    /// The journal of one shard.
    #[must_use]
    pub fn of_shard(&self, shard: ShardId) -> LocalJournal {
        LocalJournal::new(shard, &self.shared)
    }

    /// Whether it takes entries.
    #[must_use]
    pub fn health(&self) -> Health {
        self.shared.health.get()
    }

    /// Looks at the disk's space and commits what was handed over; without that it confirms what was.
    pub fn commit(&mut self) {
        let is_behind = self.committer.segments_waiting() >= SEALED_MAX;
        if is_behind && self.health() != Health::Failed {
            return;
        }
        let mut commands = self.shared.commands.drain();
        self.committer.look_at_space();
        if self.health() == Health::Full {
            self.committer.seal_trimmed();
        }
        if commands.is_empty() {
            return self.committer.confirm();
        }
        let (shared, notify) = (&self.shared, &*self.mailbox);
        commit_taken(
            &mut self.committer,
            &mut commands,
            shared,
            notify,
            &self.clock,
        );
    }

    /// Looks up what readers are asked for.
    pub fn read(&self) {
        for job in self.shared.jobs.drain() {
            look_up(&self.reader, &self.shared, &*self.mailbox, job);
        }
    }

    /// Tells which rooms have to be looked at, and takes a segment into the store, if there is one that is full.
    pub fn ingest(&mut self) {
        if self.health() != Health::Failed {
            // What has failed is in the health.
            drop(self.taking.take_oldest());
        }
    }

    /// Ends as a process does that was asked to: everything is stored, and is in the store.
    pub fn close(mut self) {
        // What is looked up may have to be stored, and the store has to keep up with it.
        for _ in 0..STEPS_TO_CLOSE {
            self.commit();
            self.read();
            self.ingest();
        }
        if self.health() != Health::Failed {
            self.committer.close();
        }
        while self.health() != Health::Failed && self.taking.ingester.oldest().is_some() {
            self.ingest();
        }
    }

    /// The first thing that it tells and nobody has taken.
    #[must_use]
    pub fn told(&self) -> Option<Told> {
        self.mailbox.queue().pop_front()
    }
}

impl Mailbox {
    fn queue(&self) -> std::sync::MutexGuard<'_, VecDeque<Told>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Notify for Mailbox {
    fn completed(&self, shard: ShardId, completions: Vec<Completion>) {
        let told = completions.into_iter();
        self.queue()
            .extend(told.map(|completion| Told::Completed(shard, completion)));
    }

    fn wake(&self, room: RoomId) {
        self.queue().push_back(Told::Wake(room));
    }
}

/// Nothing new comes: what was handed over is looked up and stored in a few.
const STEPS_TO_CLOSE: usize = 4;
