//! What an operator does with rooms on disk: look at them, copy them into a file, and bring them back.
//!
//! `main` calls it, with the configuration that the server would start with. On a data directory that no server uses it opens the
//! journal as a start does, and nothing else; of a running server it asks the admin listener (`running`), which answers from the same
//! code. Files appear whole or not at all, and so does what is restored. Everything blocks: there is nobody else to serve.
//!
//! Read on in [`copying`] (export, backup), [`restoring`] (import, restore) and [`inspecting`].

pub mod copying;
pub mod inspecting;
pub mod restoring;
pub mod running;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use roomful_protocol::id::{Epoch, RoomId};

use crate::archive::{ArchiveError, DamagedRoom};
use crate::clock::Clock;
use crate::config::Config;
use crate::journal::Completion;
use crate::journal::JournalError;
use crate::journal::local::freezing::{FindError, Frozen, StoredRoom};
use crate::journal::local::{Local, Notify, OpenError, Settings};
use crate::session::DataFileError;
use crate::shard::message::ShardId;
use running::RunningError;

/// Why a tool has not done what it should.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// There is no such directory.
    #[error("there is no directory {} (data_dir, or --data-dir, names it)", .0.display())]
    NoDirectory(PathBuf),
    /// No server has ever kept rooms in it.
    #[error("{} has no rooms on disk: there is no journal in it (data_dir, or --data-dir, names it)", .0.display())]
    NoJournal(PathBuf),
    /// A server, or another tool, works on it.
    #[error("another process uses {}: to ask the server that runs on it, say --running", .0.display())]
    Used(PathBuf),
    /// A server, or another tool, works on it, and only that may write.
    #[error("another process uses {}: stop the server that runs on it first", .0.display())]
    UsedForWriting(PathBuf),
    /// The journal can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The journal doesn't show its rooms.
    #[error("the rooms can't be read")]
    Journal(#[source] JournalError),
    /// The store can't be read, or can't be written.
    #[error("the rooms in {} can't be read or written", path.display())]
    Store {
        /// The data directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no such room on disk.
    #[error("there is no room {0} on disk")]
    NoRoom(RoomId),
    /// Some rooms are there already.
    #[error("{} is there already{}: nothing was imported. --replace puts the rooms of the file in their place", first, and_others(*more))]
    Taken {
        /// One of them.
        first: RoomId,
        /// How many others.
        more: u64,
    },
    /// A restore needs a place of its own.
    #[error("{} is not empty: nothing was restored. Name another data_dir, or move away what is in it", .0.display())]
    NotEmpty(PathBuf),
    /// A file can't be used.
    #[error("{}", path.display())]
    Archive {
        /// Which.
        path: PathBuf,
        /// Why.
        source: ArchiveError,
    },
    /// A file would be overwritten.
    #[error("{} is there already: nothing was written", .0.display())]
    Exists(PathBuf),
    /// Another command writes it.
    #[error("another command writes {}: nothing was written", .0.display())]
    Written(PathBuf),
    /// What was found can't be written.
    #[error("{what} can't be written")]
    Output {
        /// The file, or the output.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A small file of the data directory can't be used.
    #[error(transparent)]
    Data(#[from] DataFileError),
    /// The running server doesn't give it.
    #[error(transparent)]
    Running(#[from] RunningError),
    /// The file is whole but for some rooms.
    #[error("the rest is there, but no room that is damaged:{}", damaged_rooms(.0))]
    WithoutDamaged(Vec<DamagedRoom>),
    /// What is stored is not whole, but no room is known to be concerned.
    #[error("{0} findings in what is stored: `roomful repair` says what of it is lost")]
    Findings(u64),
    /// Some rooms are damaged.
    #[error("damaged, and refused to everybody:{}", damaged_rooms(.0))]
    DamagedRooms(Vec<DamagedRoom>),
}

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whence {
    /// The data directory, which nobody uses.
    Directory,
    /// The server that runs on it.
    Server,
}

fn and_others(more: u64) -> String {
    match more {
        0 => String::new(),
        1 => ", and another room".to_owned(),
        _ => format!(", and {more} other rooms"),
    }
}

fn damaged_rooms(rooms: &[DamagedRoom]) -> String {
    let mut text = String::new();
    for DamagedRoom { room, damage } in rooms {
        text.push_str(&format!("\n  {room}: {damage}"));
    }
    text
}

/// A journal on which no server works.
struct Offline {
    local: Local,
    data_dir: PathBuf,
}

impl Offline {
    fn open(config: &Config, clock: &Clock) -> Result<Self, ToolError> {
        let data_dir = PathBuf::from(&config.node.data_dir);
        if !data_dir.is_dir() {
            return Err(ToolError::NoDirectory(data_dir));
        }
        if !Local::is_in(&data_dir) {
            return Err(ToolError::NoJournal(data_dir));
        }
        let local = start(config, &data_dir, Epoch(0), clock).map_err(|error| match error {
            ToolError::Open(OpenError::Locked(_)) => ToolError::Used(data_dir.clone()),
            error => error,
        })?;
        Ok(Self { local, data_dir })
    }

    fn freeze(&self) -> Result<Frozen, ToolError> {
        self.local.freeze().map_err(|error| match error {
            JournalError::Damaged => OpenError::Damaged(self.data_dir.clone()).into(),
            error => ToolError::Journal(error),
        })
    }

    fn find(&self, frozen: &Frozen, rooms: &[RoomId]) -> Result<Vec<StoredRoom>, ToolError> {
        frozen.find(rooms).map_err(|error| match error {
            FindError::NoRoom(room) => ToolError::NoRoom(room),
            FindError::Io(error) => self.failed(error),
        })
    }

    fn failed(&self, source: io::Error) -> ToolError {
        let path = self.data_dir.clone();
        ToolError::Store { path, source }
    }

    fn close(self) -> Result<(), ToolError> {
        Ok(self.local.close()?)
    }
}

/// Opens the journal of a data directory, or makes one.
fn start(
    config: &Config,
    data_dir: &Path,
    first_epoch: Epoch,
    clock: &Clock,
) -> Result<Local, ToolError> {
    let storage = &config.storage;
    let settings = Settings {
        segment_bytes: storage.segment_bytes,
        lock_wait_ms: 0,
        cache_bytes: storage.cache_bytes,
        ..Settings::new(first_epoch, clock.clone())
    };
    let local = Local::open(data_dir, settings)?;
    let nobody: Arc<dyn Notify> = Arc::new(Nobody);
    local.start(&nobody).map_err(|source| ToolError::Store {
        path: data_dir.to_owned(),
        source,
    })?;
    Ok(local)
}

/// Nobody is in any room.
#[derive(Debug)]
struct Nobody;

impl Notify for Nobody {
    fn completed(&self, _: ShardId, _: Vec<Completion>) {}

    fn wake(&self, _: RoomId) {}
}

/// Whether a directory is there and has nothing in it, but for what is passed over.
fn is_empty(path: &Path, but: &[&str]) -> io::Result<bool> {
    match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
        Ok(mut entries) => entries.try_fold(true, |is_empty, entry| {
            let name = entry?.file_name();
            Ok(is_empty && but.iter().any(|but| name == *but))
        }),
    }
}
