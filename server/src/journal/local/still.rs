//! A journal that nobody works with: it is held, looked at, and stays as it is.

use std::path::Path;
use std::sync::Arc;

use super::directory::{Directory, OpenError};
use super::disk::{Disk, Folder, Untouched};
use super::reading::Reader;
use super::recovery::{Flaw, recover};
use super::survey::ReadSnapshot;
use super::verify::{self as verifying, Finding, STORE, Verified};
use super::{DIRECTORY, open_store, unrecovered};
use crate::clock::Clock;

/// A journal as it lies there.
#[derive(Debug)]
pub(super) struct Still {
    pub(super) reader: Reader,
    pub(super) flaws: Vec<Flaw>,
    /// No log has this number or a higher one.
    pub(super) next_log: u64,
    /// No segment has this number or a higher one.
    pub(super) next_segment: u64,
    pub(super) directory: Directory,
}

impl Still {
    pub(super) fn open(
        data_dir: &Path,
        lock_wait_ms: u64,
        clock: &Clock,
    ) -> Result<Self, OpenError> {
        let directory = Directory::find(data_dir.join(DIRECTORY), lock_wait_ms, clock)?;
        let disk: Arc<dyn Disk> = Arc::new(Untouched(Folder::new(directory.log())));
        let store = open_store(&directory, CACHE_BYTES)?;
        let recovered = recover(&*disk, &*store, directory.is_new())
            .map_err(|error| unrecovered(&directory, error))?;
        Ok(Self {
            reader: Reader::new(disk, store, recovered.index),
            flaws: recovered.flaws,
            next_log: recovered.next_log,
            next_segment: recovered.next_segment,
            directory,
        })
    }
}

/// Looks at everything that is stored in a data directory which no server uses, and tells what is wrong.
///
/// # Errors
/// There is no journal, somebody has it, or it is of a later version.
pub fn verify(
    data_dir: &Path,
    lock_wait_ms: u64,
    clock: &Clock,
    read_snapshot: ReadSnapshot,
    found: &mut dyn FnMut(Finding),
) -> Result<Verified, OpenError> {
    let still = match Still::open(data_dir, lock_wait_ms, clock) {
        Err(OpenError::Store { source, .. }) => {
            found(Finding {
                file: STORE.to_owned(),
                room: None,
                offset: None,
                what: format!("it can't be opened: {source}"),
            });
            return Ok(Verified {
                findings: 1,
                ..Verified::default()
            });
        }
        opened => opened?,
    };
    let Still { reader, flaws, .. } = &still;
    Ok(verifying::verify(reader, flaws, read_snapshot, found))
}

/// Everything is read once.
const CACHE_BYTES: u64 = 16 << 20;
