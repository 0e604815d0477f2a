//! How a sealed segment goes into the store.
//!
//! Entries go in sorted, then rooms, snapshots, registers and wake-up times, then what is known of each log, then the number of
//! the segment; each step survives a power cut before the next. All of it may be done again after a crash and comes to the
//! same: entries have keys, and a log remembers the last segment that it was taken from. Nothing of it goes through what the
//! store holds in memory before it is written out: that would be read again at every start, whatever rooms are opened then.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use roomful_protocol::frame::Direction;
use roomful_protocol::id::Offset;

use super::counters::Counters;
use super::disk::Disk;
use super::holding::Holders;
use super::index::{Index, Rest, Run, Segment, Spot};
use super::marks::{Kept, Marks};
use super::meta::{self, BEGUN_KEY, EntryKey, LogMeta, STATE_KEY, State};
use super::reading::register_of;
use super::record::LogId;
use super::store::{Change, Space, Store};
use crate::journal::HistoryBounds;

/// Takes sealed segments into the store, one after the other.
#[derive(Debug)]
pub(super) struct Ingester {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) store: Arc<dyn Store>,
    pub(super) index: Arc<Mutex<Index>>,
    pub(super) counters: Arc<Counters>,
    pub(super) holders: Arc<Holders>,
    pub(super) garbage: Garbage,
}

/// What of the store's entries is not kept any more: those that are there and that no log counts.
#[derive(Debug)]
pub(super) struct Garbage {
    /// What all logs count; none: nobody knows before the next sweep. Held while a segment is taken, so that nobody takes
    /// for garbage what is not counted yet.
    kept: Mutex<Option<Kept>>,
    /// Entries that the last rewrite has left, though no log counts them: the next one would too.
    left: AtomicU64,
    /// What has to be free beside what a rewrite writes, in bytes.
    slack_bytes: u64,
    /// A rewrite waits for space, and that has been said.
    is_waiting: AtomicBool,
}

impl Garbage {
    /// As the store knows it.
    pub(super) fn read(store: &dyn Store, slack_bytes: u64) -> io::Result<Self> {
        let kept = store.get(Space::State, meta::KEPT_KEY)?;
        let kept = kept.and_then(|value| rmp_serde::from_slice(&value).ok());
        Ok(Self {
            kept: Mutex::new(kept),
            left: AtomicU64::new(0),
            slack_bytes,
            is_waiting: AtomicBool::new(false),
        })
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ingester {
    /// The oldest sealed segment.
    pub(super) fn oldest(&self) -> Option<Arc<Segment>> {
        self.index().oldest()
    }

    /// Takes the oldest sealed segment.
    pub(super) fn take(&self, segment: &Segment) -> io::Result<()> {
        let mut logs: Vec<_> = segment.runs().collect();
        logs.sort_unstable_by_key(|(log, _)| *log);
        let bytes = self.disk.read(segment.number, 0, to_usize(segment.end))?;
        let bytes = Bytes::from(bytes);
        let mut kept = self.garbage.kept();
        if (bytes.len() as u64) < segment.end {
            return Err(io::Error::other("a segment is shorter than it was"));
        }
        self.take_entries(&bytes, &logs)?;
        for logs in logs.chunks(LOGS_AT_ONCE) {
            let mut changes = Vec::new();
            for (log, run) in logs {
                let changed = self.take_log(segment, &bytes, *log, run, &mut changes)?;
                if let (Some(kept), (before, after)) = (&mut *kept, changed) {
                    kept.remove(before);
                    kept.add(after);
                }
            }
            self.store.ingest(changes)?;
        }
        write_kept(&*self.store, *kept)?;
        self.take_segment(segment, logs.last().map(|(log, _)| *log))?;
        drop(kept);
        self.index().take();
        for freeze in &segment.freezes {
            freeze.done(&*self.store);
        }
        match segment.is_damaged {
            true => self.disk.put_aside(segment.number)?,
            false => self.disk.remove(segment.number)?,
        }
        let left = self.index().bytes();
        self.counters.segment_bytes.set(left);
        self.counters.store_bytes.set(self.store.entry_bytes());
        self.counters.ingestions.add(1);
        Ok(())
    }

    /// Whether what all logs keep is known.
    pub(super) fn has_counted(&self) -> bool {
        self.garbage.kept().is_some()
    }

    /// Whether so much of the store is not kept any more that a rewrite pays.
    pub(super) fn wants_cleaning(&self, bytes_min: u64) -> bool {
        let Some(kept) = *self.garbage.kept() else {
            return false;
        };
        let (stored, bytes) = (self.store.entry_count(), self.store.entry_bytes());
        let garbage = stored.saturating_sub(kept.entries);
        let left = self.garbage.left.fetch_min(garbage, Ordering::Relaxed);
        let garbage = garbage - left.min(garbage);
        // Entries of logs that are kept short are about as long as others.
        let garbage_bytes = u128::from(bytes) * u128::from(garbage) / u128::from(stored.max(1));
        garbage_bytes >= u128::from(bytes_min.max(bytes / 2))
    }

    /// Gives back what is not kept any more. That writes all of the rest anew beside what is there, so it waits for space.
    pub(super) fn clean(&self, is_ending: &Arc<AtomicBool>) -> io::Result<()> {
        let kept = self.garbage.kept().unwrap_or_default();
        // What is written is no more than this, and most often less: it is compressed.
        let rewritten = kept.bytes + kept.entries * ENTRY_BYTES;
        let needed = rewritten.min(self.store.entry_bytes()) + self.garbage.slack_bytes;
        let is_short = self.disk.space()?.free < needed;
        let is_told = self.garbage.is_waiting.swap(is_short, Ordering::Relaxed);
        if is_short {
            if !is_told {
                tracing::warn!(
                    needed,
                    "too little of the disk is free to give space back to it"
                );
            }
            return Ok(());
        }
        self.store.clean(is_ending)?;
        if let Some(kept) = *self.garbage.kept() {
            let left = self.store.entry_count().saturating_sub(kept.entries);
            self.garbage.left.store(left, Ordering::Relaxed);
        }
        self.counters.cleanings.add(1);
        self.counters.store_bytes.set(self.store.entry_bytes());
        Ok(())
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_entries(&self, bytes: &Bytes, logs: &[(LogId, &Run)]) -> io::Result<()> {
        let mut entries = logs.iter().flat_map(|(log, run)| {
            let rest = run.rest.as_ref();
            let first = rest.map_or(Offset(0), |rest| rest.trimmed);
            let kept = run.entries().filter(move |(offset, spot)| {
                let is_missing = spot.bytes == 0;
                *offset >= first && !is_missing
            });
            kept.map(|(offset, spot)| (EntryKey::new(*log, offset), slice(bytes, spot)))
        });
        self.store.ingest_entries(&mut entries)
    }

    /// Takes what is known of a log; gives what it kept before and what it keeps now.
    fn take_log(
        &self,
        segment: &Segment,
        bytes: &Bytes,
        log: LogId,
        run: &Run,
        changes: &mut Vec<Change>,
    ) -> io::Result<(Kept, Kept)> {
        let key = meta::log_key(log);
        let mut meta = match self.store.get(Space::Logs, &key)? {
            None => LogMeta::new(run.epoch),
            Some(value) => {
                let damaged = || io::Error::other("what the store knows of a log is damaged");
                LogMeta::read(&value).ok_or_else(damaged)?
            }
        };
        let before = meta.marks.kept();
        if meta.segment >= segment.number {
            // It was taken before a crash, and the sum was not: it is no less than this.
            let mut again = Marks::default();
            segment.count(run, Offset(0), &mut again);
            return Ok((Kept::default(), again.kept()));
        }
        meta.segment = segment.number;
        if let Some(head) = run.head() {
            if run.first.0 > meta.head + 1 {
                meta.damage(head);
            }
            segment.count(run, Offset(meta.head), &mut meta.marks);
            meta.head = meta.head.max(head.0);
        }
        if let Some(rest) = &run.rest {
            take_rest((segment, bytes), log, rest, &mut meta, changes);
        }
        changes.push(Change {
            space: Space::Logs,
            key,
            value: Some(meta.to_value()),
        });
        Ok((before, meta.marks.kept()))
    }

    /// Lets go of what is too old in logs that nobody has open, and counts what all of them keep. Those that are open let go
    /// themselves, by the bounds that they have now.
    pub(super) fn sweep(&self, now_ms: u64) -> io::Result<()> {
        let mut from = meta::log_key(LogId(0));
        let until = meta::log_key(LogId(u64::MAX));
        let mut kept = Kept::default();
        loop {
            let mut logs = Vec::new();
            let mut look = |key: &[u8], value: Bytes| {
                logs.push((key.to_vec(), value));
                logs.len() < LOGS_AT_ONCE
            };
            self.store
                .range(Space::Logs, &from, &until, Direction::Forward, &mut look)?;
            let Some((last, _)) = logs.last() else {
                break;
            };
            from = [last, &[0][..]].concat();
            // Until what was trimmed is there, so that who opens a log sees either all of it or what is left.
            let held = self.holders.look();
            let trimmed = logs.into_iter().filter_map(|(key, value)| {
                let (log, mut meta) = (meta::read_log(&key)?, LogMeta::read(&value)?);
                let is_trimmed = !held.has(log) && sweep_log(&mut meta, now_ms);
                kept.add(meta.marks.kept());
                is_trimmed.then(|| Change {
                    space: Space::Logs,
                    key,
                    value: Some(meta.to_value()),
                })
            });
            let trimmed: Vec<_> = trimmed.collect();
            if !trimmed.is_empty() {
                // On the disk before anybody sees it: what a compaction drops by it, a power cut must not bring back.
                self.store.ingest(trimmed)?;
            }
        }
        let mut known = self.garbage.kept();
        *known = Some(kept);
        write_kept(&*self.store, *known)
    }

    fn take_segment(&self, segment: &Segment, last_log: Option<LogId>) -> io::Result<()> {
        let state = read_state(&*self.store)?.unwrap_or(State::NEW);
        let next_log = last_log.map_or(0, |log| log.0 + 1);
        write_state(
            &*self.store,
            State {
                taken: segment.number,
                next_batch: segment.next_batch,
                next_log: state.next_log.max(next_log),
            },
        )
    }
}

fn take_rest(
    (segment, bytes): (&Segment, &Bytes),
    log: LogId,
    rest: &Rest,
    meta: &mut LogMeta,
    changes: &mut Vec<Change>,
) {
    let mut put = |space, key, value| changes.push(Change { space, key, value });
    if let Some(room) = &rest.room {
        let value = Some(meta::log_value(log));
        put(Space::Rooms, meta::room_key(room), value);
    }
    if let Some((at, spot)) = rest.snapshot {
        meta.snapshot = at.0;
        let value = Some(slice(bytes, spot));
        put(Space::Snapshots, meta::log_key(log), value);
    }
    for (key, spot) in &rest.registers {
        let value = slice(bytes, *spot);
        let gone = register_of(log, &value).filter(|(_, content)| content.is_empty());
        let value = gone.is_none().then_some(value);
        put(Space::Registers, meta::register_key(log, key), value);
    }
    if let Some(wake) = segment.wake(log) {
        if let Some(before_ms) = meta.wake_ms {
            put(Space::Wakes, meta::wake_key(before_ms, log), None);
        }
        if let Some(at_ms) = wake.at_ms {
            let value = Some(Bytes::from(meta::room_key(&wake.room)));
            put(Space::Wakes, meta::wake_key(at_ms, log), value);
        }
        meta.wake_ms = wake.at_ms;
    }
    meta.age_max_ms = rest.age_max_ms.or(meta.age_max_ms);
    trim(meta, rest.trimmed);
    if rest.is_damaged {
        meta.damage(rest.seen);
    }
}

/// Drops what is too old of a log; whether there was such.
fn sweep_log(meta: &mut LogMeta, now_ms: u64) -> bool {
    let Some(age_max_ms) = meta.age_max_ms else {
        return false;
    };
    let bounds = HistoryBounds {
        entries_max: usize::MAX,
        bytes_max: usize::MAX,
        age_max_ms: age_max_ms.saturating_add(SWEEP_SLACK_MS),
    };
    let first = meta.marks.trim(bounds, now_ms, Offset(meta.snapshot));
    meta.first = meta.first.max(first.map_or(0, |first| first.0));
    first.is_some()
}

fn trim(meta: &mut LogMeta, first: Offset) {
    if first.0 > meta.first {
        meta.first = first.0;
        meta.marks.drop_before(first);
    }
}

/// What is known of the journal as a whole, if it is not new.
pub(super) fn read_state(store: &dyn Store) -> io::Result<Option<State>> {
    let Some(value) = store.get(Space::State, STATE_KEY)? else {
        return Ok(None);
    };
    let damaged = || io::Error::other("what the store knows of the journal is damaged");
    State::read(&value).map(Some).ok_or_else(damaged)
}

/// Keeps what is known of the journal as a whole.
pub(super) fn write_state(store: &dyn Store, state: State) -> io::Result<()> {
    store.write(vec![Change {
        space: Space::State,
        key: STATE_KEY.to_vec(),
        value: Some(state.to_value()),
    }])?;
    store.sync()
}

/// Keeps what all logs keep, where that is known.
fn write_kept(store: &dyn Store, kept: Option<Kept>) -> io::Result<()> {
    let Some(kept) = kept else {
        return Ok(());
    };
    let value = rmp_serde::to_vec(&kept).expect("numbers have a form, and a buffer takes all");
    store.write(vec![Change {
        space: Space::State,
        key: meta::KEPT_KEY.to_vec(),
        value: Some(value.into()),
    }])
}

/// What makes somebody count anew what all logs keep.
pub(super) fn without_kept() -> Change {
    Change {
        space: Space::State,
        key: meta::KEPT_KEY.to_vec(),
        value: None,
    }
}

/// The newest segment that may have been written to, if there was one.
pub(super) fn read_begun(store: &dyn Store) -> io::Result<Option<u64>> {
    let Some(value) = store.get(Space::State, BEGUN_KEY)? else {
        return Ok(None);
    };
    let number = meta::read_log(&value).map(|number| number.0);
    let damaged = || io::Error::other("what the store knows of the journal's segments is damaged");
    number.map(Some).ok_or_else(damaged)
}

/// Keeps the number of a segment before anything is written to it.
pub(super) fn write_begun(store: &dyn Store, segment: u64) -> io::Result<()> {
    store.write(vec![Change {
        space: Space::State,
        key: BEGUN_KEY.to_vec(),
        value: Some(meta::log_value(LogId(segment))),
    }])?;
    store.sync()
}

fn slice(segment: &Bytes, spot: Spot) -> Bytes {
    let at = spot.at as usize;
    segment.slice(at..at + spot.bytes as usize)
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a segment fits into memory")
}

/// What of a segment's logs is held in memory at once.
const LOGS_AT_ONCE: usize = 16_384;

/// What an entry takes in the store beside its record, at most.
const ENTRY_BYTES: u64 = 64;

/// How much longer than they have to entries stay in a log that nobody has open: a clock that is a little ahead costs no history.
const SWEEP_SLACK_MS: u64 = 3_600_000;
