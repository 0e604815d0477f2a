//! The directory of the journal: whose it is, and what is in it.
//!
//! | name | what |
//! |---|---|
//! | `lock` | locked by the process that uses the directory |
//! | `FORMAT` | `roomful journal` and the version of all the rest |
//! | `NEW` | here until the journal was opened whole for the first time: nothing was ever stored in it |
//! | `log/` | segments |
//! | `store/` | fjall's files |
//!
//! Only the owner may look into it. A link is never followed, and nothing is written where something else is.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::disk::NO_LINKS;
use crate::clock::Clock;
use crate::session::data_file::make_directory;

/// Why the journal can't be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Something in it can't be made, read or written.
    #[error("the journal in {} can't be used", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It, or something in it, is a link.
    #[error("{} is a link: the journal follows none, put the directory itself there", .0.display())]
    Link(PathBuf),
    /// Somebody has it.
    #[error("another process uses the journal in {}", .0.display())]
    Locked(PathBuf),
    /// There is none.
    #[error("there is no journal in {}", .0.display())]
    Absent(PathBuf),
    /// The store can't be opened, so nothing is known of what is in it.
    #[error("the journal's store in {} can't be opened", path.display())]
    Store {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something in it can't be read, and nobody knows which rooms that concerns.
    #[error("the journal in {} is damaged, and nobody knows whose the damaged part was: `roomful repair` says what can be kept", .0.display())]
    Damaged(PathBuf),
    /// There are other files.
    #[error("{} holds files that are not of a journal: nothing was changed, name another data_dir or move them away", .0.display())]
    Foreign(PathBuf),
    /// It is of a later version of the server.
    #[error("the journal in {} has format {found}, and this server knows formats up to {known}: start the version that wrote it, or a later one", path.display())]
    Newer {
        /// Where.
        path: PathBuf,
        /// What it says.
        found: u64,
        /// What is known.
        known: u64,
    },
    /// It has records of a later version of the server.
    #[error("the journal in {} was written by a later version of the server: {what}", path.display())]
    NewerRecords {
        /// Where.
        path: PathBuf,
        /// Which.
        what: String,
    },
}

/// A directory that this process alone uses.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    is_new: bool,
    /// Locked while it is open.
    _lock: File,
}

impl Directory {
    /// Whether there is one.
    pub(super) fn is_in(path: &Path) -> bool {
        path.join(FORMAT).exists()
    }

    /// Takes the directory, if there is one.
    pub(super) fn find(path: PathBuf, wait_ms: u64, clock: &Clock) -> Result<Self, OpenError> {
        match Self::is_in(&path) {
            true => Self::take(path, wait_ms, clock),
            false => Err(OpenError::Absent(path)),
        }
    }

    /// Takes the directory, or makes one. Waits for another process that has it.
    pub(super) fn take(path: PathBuf, wait_ms: u64, clock: &Clock) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Io {
            path: path.clone(),
            source,
        };
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_symlink() => return Err(OpenError::Link(path)),
            Ok(found) if !found.is_dir() => return Err(OpenError::Foreign(path)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_directory(&path).map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        }
        if !path.join(FORMAT).exists() && has_others(&path).map_err(failed)? {
            return Err(OpenError::Foreign(path));
        }
        for name in [FORMAT, LOCK, NEW, LOG, STORE] {
            let inner = path.join(name);
            if fs::symlink_metadata(&inner).is_ok_and(|found| found.is_symlink()) {
                return Err(OpenError::Link(inner));
            }
        }
        let lock = lock(&path, wait_ms, clock)?;
        // Once more, now that nobody else writes here.
        if !path.join(FORMAT).exists() && has_others(&path).map_err(failed)? {
            return Err(OpenError::Foreign(path));
        }
        check_format(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(failed)?;
        let is_new = path.join(NEW).exists();
        if is_new {
            // What an interrupted first start has left may be half-made, and nobody was told that anything is in it.
            for name in [LOG, STORE] {
                remove_directory(&path.join(name)).map_err(failed)?;
            }
        }
        for name in [LOG, STORE] {
            let inner = path.join(name);
            if !inner.exists() {
                make_directory(&inner).map_err(failed)?;
            }
        }
        sync_directory(&path).map_err(failed)?;
        Ok(Self {
            path,
            is_new,
            _lock: lock,
        })
    }

    /// Whether nothing was ever stored in it.
    pub(super) fn is_new(&self) -> bool {
        self.is_new
    }

    /// It was opened whole: from now on what is in it counts.
    pub(super) fn begun(&self) -> io::Result<()> {
        match self.is_new {
            true => {
                fs::remove_file(self.path.join(NEW))?;
                sync_directory(&self.path)
            }
            false => Ok(()),
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where segments are.
    pub(super) fn log(&self) -> PathBuf {
        self.path.join(LOG)
    }

    /// Where the store is.
    pub(super) fn store(&self) -> PathBuf {
        self.path.join(STORE)
    }
}

/// Whether there is something else than what a start that was interrupted may leave.
fn has_others(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        if ![LOCK, FORMAT_BESIDE, NEW].iter().any(|own| name == *own) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn remove_directory(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn lock(path: &Path, wait_ms: u64, clock: &Clock) -> Result<File, OpenError> {
    let failed = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    let open = || {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(NO_LINKS)
            .open(path.join(LOCK))
    };
    let mut file = open().map_err(failed)?;
    let until_ms = clock.monotonic_ms() + wait_ms;
    let mut has_told = false;
    loop {
        match file.try_lock() {
            // A repair puts another directory in the place of this one: then this lock is that of the old one.
            Ok(()) if !is_at(&file, &path.join(LOCK)).map_err(failed)? => {
                file = open().map_err(failed)?;
            }
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) if clock.monotonic_ms() >= until_ms => {
                return Err(OpenError::Locked(path.to_owned()));
            }
            Err(TryLockError::WouldBlock) => {
                if !has_told {
                    tracing::info!(path = %path.display(), wait_ms, "another process uses the journal: waiting for it");
                    has_told = true;
                }
                thread::park_timeout(LOCK_POLL);
            }
        }
    }
}

/// Whether an open file is the one that has a name.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let (open, named) = (file.metadata()?, fs::symlink_metadata(path)?);
    Ok((open.dev(), open.ino()) == (named.dev(), named.ino()))
}

fn check_format(path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::Io {
        path: path.join(FORMAT),
        source,
    };
    let mut file = OpenOptions::new();
    let file = file
        .read(true)
        .custom_flags(NO_LINKS)
        .open(path.join(FORMAT));
    let mut file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return write_format(path).map_err(failed);
        }
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    if file.read_to_string(&mut text).is_err() {
        return Err(OpenError::Foreign(path.join(FORMAT)));
    }
    let version = text
        .strip_prefix(FORMAT_NAME)
        .and_then(|version| version.trim().parse::<u64>().ok());
    match version {
        Some(VERSION) => Ok(()),
        Some(found) if found > VERSION => Err(OpenError::Newer {
            path: path.to_owned(),
            found,
            known: VERSION,
        }),
        _ => Err(OpenError::Foreign(path.join(FORMAT))),
    }
}

/// Whole or not at all: it is written beside its place and moved there. That nothing is stored yet is said before.
fn write_format(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let options = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(NO_LINKS);
    options.open(path.join(NEW))?.sync_all()?;
    sync_directory(path)?;
    let beside = path.join(FORMAT_BESIDE);
    let mut file = options.open(&beside)?;
    file.write_all(format!("{FORMAT_NAME}{VERSION}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path.join(FORMAT))?;
    sync_directory(path)
}

const FORMAT: &str = "FORMAT";
const FORMAT_BESIDE: &str = ".FORMAT";
const FORMAT_NAME: &str = "roomful journal ";
const VERSION: u64 = 1;
const NEW: &str = "NEW";
const LOCK: &str = "lock";
const LOG: &str = "log";
const STORE: &str = "store";

/// How often a lock that somebody has is tried again.
const LOCK_POLL: Duration = Duration::from_millis(20);
