//! A disk and a store that forget what was not synced, as a seed decides.
//!
//! Both count steps. At a step that was chosen before, the power goes: that call fails, having done its work in part or not, and so
//! does every later one. [`Machine::come_back`] then decides what of everything unsynced is there: any part of a write, sector by
//! sector, and the first few of the store's changes. After a kill all of it is there, and still not synced.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use roomful_protocol::frame::Direction;

use super::disk::{Disk, Space as Free};
use super::meta::EntryKey;
use super::store::{Change, Space, Store, View, Visit, by_space};

/// A disk with segments and a store on it. Clones are the same.
#[derive(Debug, Clone)]
pub struct Machine(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    random: StdRng,
    /// Steps until the power goes.
    steps_left: Option<u64>,
    is_off: bool,
    /// The next sync of a segment fails once, and what it should have stored is lost when the power goes.
    sync_fails: bool,
    /// The next write to a segment fails once, half done.
    write_fails: bool,
    /// The next change of the store fails once.
    store_fails: bool,
    files: BTreeMap<u64, SimulatedFile>,
    /// Of a segment, what the disk doesn't give back.
    unreadable: Option<(u64, Range<usize>)>,
    /// What is left for more.
    free: u64,
    /// Something may have been stored.
    is_begun: bool,
    synced: Spaces,
    unsynced: Vec<Vec<Change>>,
    current: Spaces,
}

type Spaces = BTreeMap<(Space, Vec<u8>), Bytes>;

#[derive(Debug, Default)]
struct SimulatedFile {
    synced: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
    current: Vec<u8>,
}

const SECTOR: usize = 512;

/// How it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The process is killed.
    Kill,
    /// The power goes.
    PowerCut,
}

impl Machine {
    /// An empty disk; the seed decides what is lost.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            random: StdRng::seed_from_u64(seed),
            steps_left: None,
            is_off: false,
            sync_fails: false,
            write_fails: false,
            store_fails: false,
            files: BTreeMap::new(),
            unreadable: None,
            free: 1 << 30,
            is_begun: false,
            synced: Spaces::new(),
            unsynced: Vec::new(),
            current: Spaces::new(),
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power goes after so many steps.
    pub fn end_after(&self, steps: u64) {
        self.inner().steps_left = Some(steps);
    }

    /// Whether it has.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.inner().is_off
    }

    /// Whether nothing was ever stored, as the directory says it.
    pub(super) fn is_new(&self) -> bool {
        !self.inner().is_begun
    }

    /// A process has opened the journal whole.
    pub(super) fn begun(&self) {
        self.inner().is_begun = true;
    }

    /// The next sync of a segment fails.
    pub fn fail_sync(&self) {
        self.inner().sync_fails = true;
    }

    /// The next write to a segment fails, half done.
    pub fn fail_write(&self) {
        self.inner().write_fails = true;
    }

    /// The next change of the store fails.
    pub fn fail_store(&self) {
        self.inner().store_fails = true;
    }

    /// Leaves so many bytes free.
    pub fn set_free(&self, bytes: u64) {
        self.inner().free = bytes;
    }

    /// The machine is there again, with what has survived.
    pub fn come_back(&self, end: End) {
        let mut inner = self.inner();
        inner.steps_left = None;
        inner.is_off = false;
        (inner.sync_fails, inner.write_fails, inner.store_fails) = (false, false, false);
        if end == End::Kill {
            return;
        }
        let Inner {
            random,
            files,
            synced,
            unsynced,
            current,
            ..
        } = &mut *inner;
        let kept_percent = [0, 50, 90, 100][random.random_range(0..4)];
        for file in files.values_mut() {
            for (at, bytes) in file.unsynced.drain(..) {
                let mut start = 0;
                while start < bytes.len() {
                    let end = (start + SECTOR - (at + start) % SECTOR).min(bytes.len());
                    if random.random_range(0..100) < kept_percent {
                        put(&mut file.synced, at + start, &bytes[start..end]);
                    }
                    start = end;
                }
            }
            file.current = file.synced.clone();
        }
        let kept = random.random_range(0..=unsynced.len());
        for changes in unsynced.drain(..).take(kept) {
            apply(synced, changes);
        }
        *current = synced.clone();
    }
}

/// What is done to the disk behind everybody's back.
#[cfg(test)]
impl Machine {
    /// Changes a segment behind everybody's back.
    pub(super) fn damage(&self, segment: u64, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.inner();
        let file = inner.file_that_is_there(segment);
        change(&mut file.current);
        file.synced = file.current.clone();
        file.unsynced.clear();
    }

    /// Has the disk not give back a part of a segment any more.
    pub(super) fn spoil(&self, segment: u64, part: Range<usize>) {
        self.inner().unreadable = Some((segment, part));
    }

    /// What is in a segment.
    pub(super) fn bytes(&self, segment: u64) -> Vec<u8> {
        self.inner().files[&segment].current.clone()
    }

    /// Whether a segment is there.
    pub(super) fn has(&self, segment: u64) -> bool {
        self.inner().files.contains_key(&segment)
    }

    /// Takes everything out of the store behind everybody's back.
    pub(super) fn lose_store(&self) {
        let mut inner = self.inner();
        inner.current.clear();
        inner.synced.clear();
    }

    /// Takes a segment away behind everybody's back.
    pub(super) fn lose(&self, segment: u64) {
        self.inner().files.remove(&segment).unwrap();
    }
}

fn put(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if file.len() < at + bytes.len() {
        file.resize(at + bytes.len(), 0);
    }
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

fn apply(spaces: &mut Spaces, changes: Vec<Change>) {
    for Change { space, key, value } in changes {
        match value {
            Some(value) => spaces.insert((space, key), value),
            None => spaces.remove(&(space, key)),
        };
    }
}

/// What becomes of a call.
enum Step {
    Done,
    /// The power goes in it: it fails, and may have done its work.
    Last {
        is_done: bool,
    },
}

impl Inner {
    fn step(&mut self) -> io::Result<Step> {
        if self.is_off {
            return Err(off());
        }
        match &mut self.steps_left {
            Some(0) => {
                self.is_off = true;
                let is_done = self.random.random();
                Ok(Step::Last { is_done })
            }
            left => {
                *left = left.map(|left| left - 1);
                Ok(Step::Done)
            }
        }
    }

    /// Work that is done or not.
    fn act(&mut self, act: impl FnOnce(&mut Self)) -> io::Result<()> {
        match self.step()? {
            Step::Done => {
                act(self);
                Ok(())
            }
            Step::Last { is_done } => {
                if is_done {
                    act(self);
                }
                Err(off())
            }
        }
    }

    fn file_that_is_there(&mut self, segment: u64) -> &mut SimulatedFile {
        self.files.get_mut(&segment).expect("it was looked for")
    }

    fn file(&mut self, segment: u64) -> io::Result<&mut SimulatedFile> {
        self.files
            .get_mut(&segment)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a simulated disk is small")
}

fn off() -> io::Error {
    io::Error::other("the power is off")
}

impl Disk for Machine {
    fn segments(&self) -> io::Result<Vec<u64>> {
        let inner = self.inner();
        match inner.is_off {
            true => Err(off()),
            false => Ok(inner.files.keys().copied().collect()),
        }
    }

    fn create(&self, segment: u64, bytes: u64) -> io::Result<()> {
        let mut inner = self.inner();
        if inner.free < bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        inner.act(|inner| {
            inner.free -= bytes;
            let zeros = vec![0; to_usize(bytes)];
            let file = SimulatedFile {
                synced: zeros.clone(),
                unsynced: Vec::new(),
                current: zeros,
            };
            let before = inner.files.insert(segment, file);
            assert!(before.is_none(), "a segment is never made twice");
        })
    }

    fn write(&self, segment: u64, at: u64, bytes: &[u8]) -> io::Result<()> {
        let at = to_usize(at);
        let mut inner = self.inner();
        inner.file(segment)?;
        let fails = std::mem::take(&mut inner.write_fails);
        let done = if fails {
            &bytes[..bytes.len() / 2]
        } else {
            bytes
        };
        inner.act(|inner| {
            if let Ok(file) = inner.file(segment) {
                put(&mut file.current, at, done);
                file.unsynced.push((at, done.to_vec()));
            }
        })?;
        match fails {
            true => Err(io::Error::other("the disk can't")),
            false => Ok(()),
        }
    }

    fn sync(&self, segment: u64) -> io::Result<()> {
        let mut inner = self.inner();
        inner.file(segment)?;
        if std::mem::take(&mut inner.sync_fails) {
            // As Linux does: the pages count as clean now, and a later sync says that all is well.
            inner.file(segment)?.unsynced.clear();
            return Err(io::Error::other("the disk can't"));
        }
        inner.act(|inner| {
            let file = inner.file_that_is_there(segment);
            file.synced = file.current.clone();
            file.unsynced.clear();
        })
    }

    fn length(&self, segment: u64) -> io::Result<u64> {
        let mut inner = self.inner();
        match inner.is_off {
            true => Err(off()),
            false => Ok(inner.file(segment)?.current.len() as u64),
        }
    }

    fn read(&self, segment: u64, at: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut inner = self.inner();
        if inner.is_off {
            return Err(off());
        }
        let at = to_usize(at);
        let unreadable = inner.unreadable.clone();
        let file = inner.file(segment)?;
        let end = at.saturating_add(bytes).min(file.current.len());
        if unreadable.is_some_and(|(of, part)| of == segment && at < part.end && part.start < end) {
            return Err(io::Error::other("the disk can't"));
        }
        Ok(file.current[at.min(end)..end].to_vec())
    }

    fn remove(&self, segment: u64) -> io::Result<()> {
        let mut inner = self.inner();
        inner.file(segment)?;
        inner.act(|inner| {
            if let Some(file) = inner.files.remove(&segment) {
                inner.free += file.current.len() as u64;
            }
        })
    }

    fn cut(&self, segment: u64, at: u64) -> io::Result<()> {
        let mut inner = self.inner();
        inner.file(segment)?;
        inner.act(|inner| {
            let file = inner.file_that_is_there(segment);
            file.current[to_usize(at)..].fill(0);
            file.synced = file.current.clone();
            file.unsynced.clear();
        })
    }

    fn put_aside(&self, segment: u64) -> io::Result<()> {
        self.remove(segment)
    }

    fn space(&self) -> io::Result<Free> {
        let free = self.inner().free;
        Ok(Free {
            free,
            total: 1 << 40,
        })
    }
}

impl View for Machine {
    fn get(&self, space: Space, key: &[u8]) -> io::Result<Option<Bytes>> {
        let inner = self.inner();
        match inner.is_off {
            true => Err(off()),
            false => Ok(inner.current.get(&(space, key.to_vec())).cloned()),
        }
    }

    fn range(
        &self,
        space: Space,
        from: &[u8],
        until: &[u8],
        direction: Direction,
        visit: Visit<'_>,
    ) -> io::Result<()> {
        let inner = self.inner();
        if inner.is_off {
            return Err(off());
        }
        walk(&inner.current, space, (from, until), direction, visit);
        Ok(())
    }
}

fn walk(
    spaces: &Spaces,
    space: Space,
    (from, until): (&[u8], &[u8]),
    direction: Direction,
    visit: Visit<'_>,
) {
    if from > until {
        return;
    }
    let mut items = spaces.range((space, from.to_vec())..=(space, until.to_vec()));
    while let Some(((_, key), value)) = match direction {
        Direction::Forward => items.next(),
        Direction::Backward => items.next_back(),
    } {
        if !visit(key, value.clone()) {
            break;
        }
    }
}

/// What the store was at one moment.
#[derive(Debug)]
struct Frozen(Spaces);

impl View for Frozen {
    fn get(&self, space: Space, key: &[u8]) -> io::Result<Option<Bytes>> {
        Ok(self.0.get(&(space, key.to_vec())).cloned())
    }

    fn range(
        &self,
        space: Space,
        from: &[u8],
        until: &[u8],
        direction: Direction,
        visit: Visit<'_>,
    ) -> io::Result<()> {
        walk(&self.0, space, (from, until), direction, visit);
        Ok(())
    }
}

impl Store for Machine {
    fn frozen(&self) -> Box<dyn View> {
        Box::new(Frozen(self.inner().current.clone()))
    }

    fn ingest_entries(
        &self,
        entries: &mut dyn Iterator<Item = (EntryKey, Bytes)>,
    ) -> io::Result<()> {
        let mut last = None;
        let changes: Vec<_> = entries
            .map(|(key, value)| {
                assert!(last < Some(key), "entries are sorted");
                last = Some(key);
                Change {
                    space: Space::Entries,
                    key: key.0.to_vec(),
                    value: Some(value),
                }
            })
            .collect();
        self.inner().act(|inner| {
            apply(&mut inner.current, changes.clone());
            apply(&mut inner.synced, changes);
        })
    }

    fn ingest(&self, changes: Vec<Change>) -> io::Result<()> {
        if std::mem::take(&mut self.inner().store_fails) {
            return Err(io::Error::other("the store can't"));
        }
        for changes in by_space(changes) {
            let space = changes[0].space;
            self.inner().act(|inner| {
                apply(&mut inner.current, changes.clone());
                // What was written to the space before goes with it.
                for written in &mut inner.unsynced {
                    let before = written.extract_if(.., |change| change.space == space);
                    apply(&mut inner.synced, before.collect());
                }
                apply(&mut inner.synced, changes);
            })?;
        }
        Ok(())
    }

    fn write(&self, changes: Vec<Change>) -> io::Result<()> {
        self.inner().act(|inner| {
            apply(&mut inner.current, changes.clone());
            inner.unsynced.push(changes);
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.inner().act(|inner| {
            inner.synced = inner.current.clone();
            inner.unsynced.clear();
        })
    }

    fn entry_bytes(&self) -> u64 {
        0
    }

    fn entry_count(&self) -> u64 {
        0
    }

    fn clean(&self, _: &Arc<AtomicBool>) -> io::Result<()> {
        Ok(())
    }
}
