//! Rooms out of a file: into a data directory that is there, or into one of their own.
//!
//! The file is read twice. The first time everything in it is checked, so that nothing is written for a file that was cut off or
//! changed; the second time it goes in. All rooms get a new epoch: whoever holds a position of an earlier one is told `reset`,
//! and no position ever means something else than it did.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use roomful_protocol::id::{Epoch, RoomId};

use super::{Offline, ToolError, is_empty, start};
use crate::archive::{ArchiveError, DamagedRoom, Header, Item, Reader};
use crate::clock::Clock;
use crate::config::Config;
use crate::journal::local::DIRECTORY;
use crate::journal::local::freezing::Frozen;
use crate::journal::local::loading::{Loader, Piece};
use crate::session::data_file::make_directory;
use crate::session::generation::{self, Generation};
use crate::session::revocation_file::{self, RevocationFile};
use crate::session::revocations::Revocations;

/// What becomes of rooms that are there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Nothing is imported.
    Refuse,
    /// Those of the file take their place.
    Replace,
}

/// Brings the rooms of a file into the data directory; says what has come.
///
/// # Errors
/// The file or the directory can't be used, or one of the rooms is there. Then nothing was changed.
pub fn import(
    config: &Config,
    file: &Path,
    existing: Existing,
    clock: &Clock,
) -> Result<String, ToolError> {
    let offline = Offline::open(config, clock).map_err(|error| match error {
        ToolError::Used(path) => ToolError::UsedForWriting(path),
        error => error,
    })?;
    let frozen = offline.freeze()?;
    let found = check(file)?;
    if existing == Existing::Refuse {
        refuse_taken(file, &frozen, &offline)?;
    }
    drop(frozen);
    let Offline { local, data_dir } = offline;
    let epoch_max = found.header.epoch_max;
    let generation = Generation::begin_behind(&data_dir, clock.unix_ms(), epoch_max)?;
    let mut loader = local.into_loader(generation.first_epoch())?;
    load(&mut loader, file, generation.first_epoch(), &data_dir)?;
    let mut left_out = Vec::new();
    let count = found.revocations.count();
    if count > 0 {
        left_out.push(format!(
            "{count} revocations of the file were left out: they belong to no room"
        ));
    }
    found.told(&format!("imported into {}", data_dir.display()), &left_out)
}

/// Makes a data directory of a file; says what is in it.
///
/// # Errors
/// The file can't be used, or there is something where the directory should be. Then nothing is there that was not there before.
pub fn restore(config: &Config, file: &Path, clock: &Clock) -> Result<String, ToolError> {
    let data_dir = PathBuf::from(&config.node.data_dir);
    let failed = |source| ToolError::Store {
        path: data_dir.clone(),
        source,
    };
    let found = check(file)?;
    if !is_empty(&data_dir, &[BUILDING, LOST_AND_FOUND]).map_err(failed)? {
        return Err(ToolError::NotEmpty(data_dir));
    }
    // Beside the others there may be what an earlier attempt has left.
    let building = data_dir.join(BUILDING);
    match fs::remove_dir_all(&building) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    make_directory(&building).map_err(failed)?;
    let built = build(config, &found, file, &building, clock);
    let placed = built.and_then(|()| place(&building, &data_dir).map_err(failed));
    if placed.is_err() {
        // The first error is the one that counts.
        drop(fs::remove_dir_all(&building));
    }
    placed?;
    let mut also = Vec::new();
    let count = found.revocations.count();
    if count > 0 {
        also.push(format!("{count} revocations"));
    }
    found.told(&format!("restored into {}", data_dir.display()), &also)
}

/// What is in a file.
struct Found {
    header: Header,
    rooms: u64,
    entries: u64,
    damaged: Vec<DamagedRoom>,
    revocations: Revocations,
}

impl Found {
    fn told(self, what: &str, more: &[String]) -> Result<String, ToolError> {
        if !self.damaged.is_empty() {
            return Err(ToolError::WithoutDamaged(self.damaged));
        }
        let Self { rooms, entries, .. } = self;
        let more: String = more.iter().map(|line| format!("\n{line}")).collect();
        Ok(format!(
            "{rooms} rooms with {entries} entries {what}, each with a new epoch{more}"
        ))
    }
}

fn open(file: &Path) -> Result<Reader<BufReader<File>>, ToolError> {
    let opened = File::open(file).map_err(ArchiveError::Io);
    let reader = opened.and_then(|file| Reader::open(BufReader::with_capacity(READ_BYTES, file)));
    reader.map_err(|error| wrong(file, error))
}

fn wrong(file: &Path, source: ArchiveError) -> ToolError {
    let path = file.to_owned();
    ToolError::Archive { path, source }
}

/// Reads all of a file, and says what is in it.
fn check(file: &Path) -> Result<Found, ToolError> {
    let mut reader = open(file)?;
    let mut found = Found {
        header: reader.header().clone(),
        rooms: 0,
        entries: 0,
        damaged: Vec::new(),
        revocations: Revocations::default(),
    };
    let (mut room, mut entries) = (None, 0);
    while let Some(item) = reader.next_item().map_err(|error| wrong(file, error))? {
        match item {
            Item::Revocation { whom, until_ms } => found.revocations.restore(whom, until_ms),
            Item::Room(beginning) => (room, entries) = (Some(beginning.room), 0),
            Item::Entry(_) => entries += 1,
            Item::RoomEnd { damage } => match damage.zip(room.take()) {
                None => {
                    found.rooms += 1;
                    found.entries += entries;
                }
                Some((damage, room)) => found.damaged.push(DamagedRoom { room, damage }),
            },
            Item::Snapshot(_) | Item::Cursor(..) => {}
        }
    }
    Ok(found)
}

fn refuse_taken(file: &Path, frozen: &Frozen, offline: &Offline) -> Result<(), ToolError> {
    let mut reader = open(file)?;
    let mut taken: Option<(RoomId, u64)> = None;
    while let Some(item) = reader.next_item().map_err(|error| wrong(file, error))? {
        let Item::Room(beginning) = item else {
            continue;
        };
        let is_there = frozen.room(&beginning.room);
        if is_there.map_err(|error| offline.failed(error))?.is_some() {
            match &mut taken {
                None => taken = Some((beginning.room, 0)),
                Some((_, more)) => *more += 1,
            }
        }
    }
    match taken {
        None => Ok(()),
        Some((first, more)) => Err(ToolError::Taken { first, more }),
    }
}

/// Fills an empty directory with what is in a file.
fn build(
    config: &Config,
    found: &Found,
    file: &Path,
    building: &Path,
    clock: &Clock,
) -> Result<(), ToolError> {
    let epoch_max = found.header.epoch_max;
    let epoch = Generation::begin_behind(building, clock.unix_ms(), epoch_max)?.first_epoch();
    let mut loader = start(config, building, epoch, clock)?.into_loader(epoch)?;
    load(&mut loader, file, epoch, building)?;
    RevocationFile::open(building, &found.revocations, clock.unix_ms())?;
    Ok(())
}

/// What was built gets its place; the journal last, since that is what nobody begins anew.
fn place(building: &Path, data_dir: &Path) -> io::Result<()> {
    for name in [generation::FILE, revocation_file::FILE, DIRECTORY] {
        fs::rename(building.join(name), data_dir.join(name))?;
    }
    fs::remove_dir(building)?;
    File::open(data_dir)?.sync_all()
}

fn load(loader: &mut Loader, file: &Path, epoch: Epoch, data_dir: &Path) -> Result<(), ToolError> {
    let reader = open(file)?;
    let loaded = loader.load(&mut Pieces { reader, epoch });
    loaded.map_err(|error| match error {
        LoadError::Archive(error) => wrong(file, error),
        LoadError::Store(source) => ToolError::Store {
            path: data_dir.to_owned(),
            source,
        },
    })
}

/// Why rooms don't go in.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(transparent)]
    Archive(ArchiveError),
    #[error(transparent)]
    Store(#[from] io::Error),
}

/// What a file says, as the journal takes it.
struct Pieces {
    reader: Reader<BufReader<File>>,
    /// Of the rooms, from now on.
    epoch: Epoch,
}

impl Iterator for Pieces {
    type Item = Result<Piece, LoadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let item = match self.reader.next_item() {
                Ok(item) => item?,
                Err(error) => return Some(Err(LoadError::Archive(error))),
            };
            return Some(Ok(match item {
                Item::Revocation { .. } => continue,
                Item::Room(beginning) => Piece::Room(beginning),
                Item::Snapshot(snapshot) => Piece::Snapshot(snapshot),
                Item::Cursor(user, cursor) => {
                    let (key, value) = cursor.to_register(&user, self.epoch);
                    Piece::Register { key, value }
                }
                Item::Entry(entry) => Piece::Entry(entry),
                Item::RoomEnd { damage: None } => Piece::Whole,
                Item::RoomEnd { damage: Some(_) } => Piece::Void,
            }));
        }
    }
}

/// Where a directory is built, inside of the one that it becomes.
const BUILDING: &str = ".restoring";

/// What a disk of its own has in it from the beginning.
const LOST_AND_FOUND: &str = "lost+found";

const READ_BYTES: usize = 1 << 20;
