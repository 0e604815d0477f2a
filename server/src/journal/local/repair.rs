//! What can be done with a damaged journal: a new one with everything of it that is whole.
//!
//! A room that is damaged is cut before its first entry that can't be read, or goes on from its newest snapshot where that is
//! behind it. It gets a new epoch, so that no position means two things, and so does every room of which nobody can say whether the
//! damaged part was its own. [`Repair::plan`] only reads. [`Repair::apply`] writes the new journal beside the damaged one and then
//! exchanges the two in one step: until then nothing has changed, and afterwards the damaged one is kept whole.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use roomful_protocol::id::{Epoch, Offset, RoomId};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::directory::{Directory, OpenError, sync_directory};
use super::ingest::{write_begun, write_state};
use super::marks::{Counted, Marks};
use super::meta::{self, EntryKey, LogMeta, State};
use super::record::{Head, Kind, LogId, Record, Term, put_register};
use super::still::Still;
use super::store::{Change, Space, Store};
use super::survey::{ReadSnapshot, Step, Surveyed};
use super::verify::{self, Finding};
use super::{DIRECTORY, open_store};
use crate::clock::Clock;

/// Why a repair has not ended as it should. Nothing was changed, where it isn't said.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The journal can't be looked at. Where it is the store that can't be opened, a copy has to be restored.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is nothing to do.
    #[error("nothing is damaged in {}: nothing was changed", .0.display())]
    Whole(PathBuf),
    /// The new journal can't be read from the old one, or not written.
    #[error("a repaired journal can't be written to {}: nothing was changed", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The new journal is in the place of the damaged one, but nobody knows whether a power cut leaves it there. Both are whole, and
    /// are to be kept until the disk has been looked at.
    #[error(
        "the repaired journal is in {} and the damaged one in {}, but the disk has failed to store that: after a power cut each may be in the other's place",
        journal.display(),
        aside.display()
    )]
    Unsynced {
        /// Where the new one is.
        journal: PathBuf,
        /// Where the damaged one is.
        aside: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A damaged journal, and what would become of it.
#[derive(Debug)]
pub struct Repair {
    still: Still,
    data_dir: PathBuf,
    clock: Clock,
    read_snapshot: ReadSnapshot,
    /// Of rooms that don't stay as they are.
    plans: BTreeMap<LogId, Plan>,
    /// Those are all rooms that there were.
    knows_rooms: bool,
}

/// What stays of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    first: Offset,
    last: Offset,
}

impl Repair {
    /// Looks at everything in a data directory that no server uses, and says what is damaged and what would be lost.
    ///
    /// # Errors
    /// Nothing is damaged, or the journal can't be looked at.
    pub fn plan(
        data_dir: &Path,
        lock_wait_ms: u64,
        clock: &Clock,
        read_snapshot: ReadSnapshot,
        say: &mut dyn FnMut(&str),
    ) -> Result<Self, RepairError> {
        let still = Still::open(data_dir, lock_wait_ms, clock)?;
        let found = &mut |finding: Finding| say(&format!("damaged: {finding}"));
        let verified = verify::verify(&still.reader, &still.flaws, read_snapshot, found);
        if verified.findings == 0 {
            return Err(RepairError::Whole(still.directory.path().to_owned()));
        }
        let mut repair = Self {
            still,
            data_dir: data_dir.to_owned(),
            clock: clock.clone(),
            read_snapshot,
            plans: BTreeMap::new(),
            knows_rooms: true,
        };
        repair.decide(say);
        Ok(repair)
    }

    /// Decides about every room, and says what isn't as it was.
    fn decide(&mut self, say: &mut dyn FnMut(&str)) {
        let unknown = self.still.flaws.iter().filter(|flaw| flaw.of.is_none());
        // Where the store has forgotten what it has, no segment is behind that.
        let unknown = unknown.map(|flaw| match flaw.segment {
            0 => u64::MAX,
            number => number,
        });
        let unknown = unknown.max();
        let (mut whole, mut plans) = (0_u64, BTreeMap::new());
        let mut logs = std::collections::BTreeSet::new();
        let reader = &self.still.reader;
        let listed = reader.rooms(&mut |room, log| {
            let Ok(log) = log else {
                say(&format!("{room}: all of it is lost"));
                return;
            };
            logs.insert(log);
            match reader.survey(room, log, self.read_snapshot, &mut |_, _| {}) {
                Err(_) => say(&format!("{room}: all of it is lost")),
                Ok(surveyed) => {
                    // Entries that go on behind the damaged part show that none of them was in it.
                    let is_suspect = unknown.is_some_and(|unknown| surveyed.segment <= unknown);
                    if !is_suspect && surveyed.is_whole() {
                        whole += 1;
                        return;
                    }
                    let plan = Plan::of(&surveyed);
                    say(&plan.describe(&surveyed));
                    plans.insert(log, plan);
                }
            }
        });
        if listed.is_err() {
            say("rooms that are not known any more are lost");
        }
        for (log, last) in self.unnamed(&logs) {
            say(&format!(
                "log {}, of which nobody knows the room: entries up to {last} are lost",
                log.0
            ));
        }
        let others = match whole {
            0 => "no room is whole".to_owned(),
            1 => "1 room is whole and stays as it is".to_owned(),
            whole => format!("{whole} rooms are whole and stay as they are"),
        };
        say(&others);
        self.plans = plans;
        self.knows_rooms = listed.is_ok();
    }

    /// Logs in segments that no room has, and their last entries.
    fn unnamed(&self, logs: &std::collections::BTreeSet<LogId>) -> BTreeMap<LogId, Offset> {
        let index = self.still.reader.index();
        let runs = index.segments().flat_map(super::index::Segment::runs);
        let unnamed = runs.filter(|(log, _)| !logs.contains(log));
        unnamed
            .filter_map(|(log, run)| Some((log, run.head()?)))
            .collect()
    }

    /// Puts a journal of what is whole in the place of the damaged one, which is kept; gives where. The epochs of the rooms that
    /// don't stay as they are begin with this one.
    ///
    /// # Errors
    /// The new journal can't be written: nothing was changed. Or it is in its place, and nobody knows for how long.
    pub fn apply(self, first_epoch: Epoch) -> Result<PathBuf, RepairError> {
        self.apply_synced(first_epoch, sync_directory)
    }

    fn apply_synced(
        self,
        first_epoch: Epoch,
        sync: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<PathBuf, RepairError> {
        let seconds = self.clock.unix_ms() / 1_000;
        let aside = self.data_dir.join(format!("damaged-{seconds}"));
        let journal = self.data_dir.join(DIRECTORY);
        let failed = |source| RepairError::Io {
            path: aside.clone(),
            source,
        };
        if aside.exists() {
            return Err(failed(io::ErrorKind::AlreadyExists.into()));
        }
        let exchanged = self.build(&aside, first_epoch).and_then(|directory| {
            renameat_with(CWD, &aside, CWD, &journal, RenameFlags::EXCHANGE)
                .map_err(|error| failed(error.into()))?;
            Ok(directory)
        });
        let _held = match exchanged {
            Ok(directory) => directory,
            Err(error) => {
                // What was written of it is of no use; the error that matters is the first.
                drop(fs::remove_dir_all(&aside));
                return Err(error);
            }
        };
        // From here on the damaged one is aside, and nothing takes that away.
        match sync(&self.data_dir) {
            Ok(()) => Ok(aside),
            Err(source) => Err(RepairError::Unsynced {
                journal,
                aside,
                source,
            }),
        }
    }

    fn build(&self, path: &Path, first_epoch: Epoch) -> Result<Directory, RepairError> {
        let directory = Directory::take(path.to_owned(), 0, &self.clock)?;
        let store = open_store(&directory, CACHE_BYTES)?;
        let mut copy = Copy {
            repair: self,
            store: &*store,
            epoch: first_epoch,
            next_log: self.still.next_log,
            entries: Vec::new(),
            bytes: 0,
            changes: Vec::new(),
        };
        let copied = copy.rooms().and_then(|()| copy.finish());
        copied
            .and_then(|()| {
                drop(store);
                directory.begun()
            })
            .map_err(|source| RepairError::Io {
                path: path.to_owned(),
                source,
            })?;
        Ok(directory)
    }
}

impl Plan {
    fn of(surveyed: &Surveyed) -> Self {
        let held = surveyed.held();
        let (mut first, mut last) = (surveyed.first, surveyed.head);
        if held > Offset(0) && first > held.next() {
            // What followed the snapshot went with a newer one, which is lost: the room is what it was then.
            return Self {
                first: held.next(),
                last: held,
            };
        }
        if held == Offset(0) && surveyed.has_lost_snapshot && first > Offset(1) {
            // What needs a replay from the beginning can't be had any more.
            first = first.max(surveyed.pinned.next());
        }
        for lost in &surveyed.lost {
            if lost.from <= held {
                first = first.max(lost.to.min(held).next());
            }
            if lost.to > held {
                last = last.min(Offset(lost.from.max(held.next()).0 - 1));
            }
        }
        match first <= last.next() {
            true => Self { first, last },
            false => Self {
                first: Offset(1),
                last: Offset(0),
            },
        }
    }

    /// What stays and what is lost, in words.
    fn describe(&self, surveyed: &Surveyed) -> String {
        let range = |from: Offset, to: Offset| match to.0.saturating_sub(from.0) {
            _ if to < from => None,
            0 => Some(format!("entry {from}")),
            _ => Some(format!("entries {from} to {to}")),
        };
        let stays = range(self.first, self.last).unwrap_or_else(|| "no entry".to_owned());
        let state = match surveyed.held() {
            Offset(0) => String::new(),
            held => format!("what it was at {held}, and "),
        };
        let before = range(surveyed.first, Offset(self.first.0.saturating_sub(1)));
        let after = range(self.last.next(), surveyed.head);
        let mut lost: Vec<_> = before.into_iter().chain(after).collect();
        lost.extend(surveyed.wrong.iter().cloned());
        if lost.is_empty() {
            lost.push("what was stored last, if that was its own".to_owned());
        }
        let lost = lost.join("; ");
        format!("{}: {state}{stays} stay; lost: {lost}", surveyed.room)
    }
}

impl Surveyed {
    fn is_whole(&self) -> bool {
        self.lost.is_empty() && self.wrong.is_empty()
    }

    fn held(&self) -> Offset {
        self.snapshot
            .as_ref()
            .map_or(Offset(0), |snapshot| snapshot.at)
    }
}

/// What goes from one journal into the other.
struct Copy<'a> {
    repair: &'a Repair,
    store: &'a dyn Store,
    /// Of rooms that don't stay as they are.
    epoch: Epoch,
    next_log: u64,
    entries: Vec<(EntryKey, Bytes)>,
    bytes: usize,
    changes: Vec<Change>,
}

impl Copy<'_> {
    fn rooms(&mut self) -> io::Result<()> {
        let reader = &self.repair.still.reader;
        let mut outcome = Ok(());
        let listed = reader.rooms(&mut |room, log| {
            if let (true, Ok(log)) = (outcome.is_ok(), log) {
                let surveyed = reader.survey(room, log, self.repair.read_snapshot, &mut |_, _| {});
                // One of which nothing can be read begins anew when it is opened.
                if let Ok(surveyed) = surveyed {
                    outcome = self.room(room, &surveyed);
                }
            }
        });
        match listed {
            Err(error) if self.repair.knows_rooms => Err(error),
            _ => outcome,
        }
    }

    fn room(&mut self, room: &RoomId, surveyed: &Surveyed) -> io::Result<()> {
        let plan = self.repair.plans.get(&surveyed.log).copied();
        let (log, epoch) = match plan {
            None => (surveyed.log, surveyed.epoch),
            Some(_) => {
                self.next_log += 1;
                (LogId(self.next_log - 1), self.epoch)
            }
        };
        let Plan { first, last } = plan.unwrap_or(Plan {
            first: surveyed.first,
            last: surveyed.head,
        });
        let mut marks = Marks::default();
        let mut outcome = Ok(());
        let reader = &self.repair.still.reader;
        reader.walk(surveyed.log, first, last, &mut |step| match step {
            Step::Entry(record, _) if outcome.is_ok() => {
                let bytes = with_log(&record, log, epoch);
                marks.push(Counted {
                    offset: record.head.offset,
                    bytes: bytes.len() as u64,
                    time_ms: record.head.time_ms,
                    is_pinned: record.head.is_pinned,
                });
                self.bytes += bytes.len();
                let key = EntryKey::new(log, record.head.offset);
                self.entries.push((key, bytes));
                if self.bytes >= BYTES_AT_ONCE {
                    outcome = self.store_entries();
                }
            }
            Step::Entry(..) => {}
            Step::Lost(lost) => {
                let what = format!("{room}: entry {}: {}", lost.from, lost.what);
                outcome = Err(io::Error::other(what));
            }
        });
        outcome?;
        let snapshot = surveyed.snapshot.as_ref().filter(|held| held.at <= last);
        let head = Head {
            kind: Kind::Register,
            is_pinned: false,
            log,
            epoch,
            term: Term(self.epoch.0),
            offset: Offset(0),
            time_ms: 0,
        };
        if let Some(snapshot) = snapshot {
            let head = Head {
                kind: Kind::Snapshot,
                offset: snapshot.at,
                ..head
            };
            let content = |out: &mut Vec<u8>| out.extend_from_slice(&snapshot.content);
            self.put(Space::Snapshots, meta::log_key(log), record(&head, content));
        }
        for (key, value) in &surveyed.registers {
            let value = record(&head, |out| put_register(key, value, out));
            self.put(Space::Registers, meta::register_key(log, key), value);
        }
        if let Some(at_ms) = surveyed.wake_ms {
            let value = Bytes::from(meta::room_key(room));
            self.put(Space::Wakes, meta::wake_key(at_ms, log), value);
        }
        self.put(Space::Rooms, meta::room_key(room), meta::log_value(log));
        let meta = LogMeta {
            head: last.0,
            first: first.0,
            snapshot: snapshot.map_or(0, |snapshot| snapshot.at.0),
            wake_ms: surveyed.wake_ms,
            age_max_ms: surveyed.age_max_ms,
            segment: self.taken(),
            marks,
            ..LogMeta::new(epoch)
        };
        self.put(Space::Logs, meta::log_key(log), meta.to_value());
        match self.changes.len() >= CHANGES_AT_ONCE {
            true => self.store_all(),
            false => Ok(()),
        }
    }

    fn put(&mut self, space: Space, key: Vec<u8>, value: Bytes) {
        self.changes.push(Change {
            space,
            key,
            value: Some(value),
        });
    }

    fn store_entries(&mut self) -> io::Result<()> {
        self.bytes = 0;
        if self.entries.is_empty() {
            return Ok(());
        }
        self.entries.sort_unstable_by_key(|(key, _)| *key);
        self.store.ingest_entries(&mut self.entries.drain(..))
    }

    /// What is known of logs goes after what belongs to them.
    fn store_all(&mut self) -> io::Result<()> {
        self.store_entries()?;
        self.store.ingest(std::mem::take(&mut self.changes))
    }

    /// The new journal has no segments: the store has taken all.
    fn finish(&mut self) -> io::Result<()> {
        self.store_all()?;
        let taken = self.taken();
        let next_batch = self.repair.still.reader.index().next_batch();
        let next_log = self.next_log;
        let state = State {
            taken,
            next_batch,
            next_log,
        };
        write_state(self.store, state)?;
        write_begun(self.store, taken)
    }

    fn taken(&self) -> u64 {
        self.repair.still.next_segment - 1
    }
}

/// The record of an entry as one of a log.
fn with_log(entry: &Record<'_>, log: LogId, epoch: Epoch) -> Bytes {
    let head = Head {
        log,
        epoch,
        ..entry.head
    };
    record(&head, |out| out.extend_from_slice(entry.content()))
}

fn record(head: &Head, content: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut out = Vec::new();
    head.write(&mut out, content);
    out.into()
}

/// Everything is read twice, and from one end to the other.
const CACHE_BYTES: u64 = 16 << 20;

/// Entries that are held in memory until they are stored.
const BYTES_AT_ONCE: usize = 32 << 20;

/// So much of rooms beside entries.
const CHANGES_AT_ONCE: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::super::damaged::{REPAIRED, filled, flip, log, look, plan};
    use super::*;

    /// Once the two have changed places, a disk that fails costs neither: what was taken for the new one was the damaged one, and
    /// was deleted as of no use.
    #[test]
    fn a_sync_that_fails_leaves_both_journals() {
        let directory = filled(false);
        flip(&log(&directory), b"entry 7 of default/chat:a");
        let damaged = fs::read(log(&directory)).unwrap();
        let (repair, _) = plan(&directory).unwrap();
        let error = repair
            .apply_synced(REPAIRED, |_| Err(io::Error::other("the disk")))
            .unwrap_err();
        let said = error.to_string();
        let RepairError::Unsynced { aside, .. } = error else {
            panic!("{error}");
        };
        assert!(said.contains(&aside.display().to_string()), "{said}");
        let kept = fs::read_dir(aside.join("log")).unwrap().next().unwrap();
        assert_eq!(fs::read(kept.unwrap().path()).unwrap(), damaged);
        assert_eq!(look(&directory).1, [], "the new one is in its place");
    }
}
