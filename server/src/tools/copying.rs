//! Rooms into a file: some of them, or all as they are at one moment.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use roomful_protocol::id::{Epoch, RoomId};
use serde_json::json;

use super::running::Running;
use super::{Offline, ToolError, Whence};
use crate::archive::{self, ArchiveError, Content, DamagedRoom, Header, Item, Reader, Summary};
use crate::clock::Clock;
use crate::config::Config;
use crate::session::generation::Generation;
use crate::session::revocation_file::{self, RevocationFile};
use crate::session::revocations::Revocations;

/// Where a copy goes.
#[derive(Debug, Clone)]
pub enum Target {
    /// A file that is not there yet.
    File(PathBuf),
    /// The command's output.
    Output,
}

/// Copies rooms into a file; says what is in it.
///
/// # Errors
/// They can't be read, or the file can't be written. Where a room is damaged, the file has all others.
pub fn export(
    config: &Config,
    whence: Whence,
    rooms: &[RoomId],
    target: &Target,
    clock: &Clock,
) -> Result<String, ToolError> {
    let mut sink = Sink::open(target)?;
    let summary = match whence {
        Whence::Server => {
            let names: Vec<_> = rooms.iter().map(|room| room.name.as_str()).collect();
            let tenant = rooms.first().map(|room| room.tenant.as_str());
            let body = json!({ "tenant": tenant, "rooms": names });
            let answer = Running::new(config)?.ask("/v1/storage/export", Some(&body))?;
            copy(answer, &mut sink)?
        }
        Whence::Directory => {
            let offline = Offline::open(config, clock)?;
            let frozen = offline.freeze()?;
            let rooms = offline.find(&frozen, rooms)?;
            let header = header(Content::Rooms, &offline.data_dir, clock)?;
            let written = archive::export(&frozen, rooms, &header, &mut sink);
            let summary = written.map_err(|error| sink.or_store(&offline, error))?;
            drop(frozen);
            offline.close()?;
            summary
        }
    };
    sink.finish(summary)
}

/// Copies everything into a file; says what is in it.
///
/// # Errors
/// As [`export`].
pub fn backup(
    config: &Config,
    whence: Whence,
    target: &Target,
    clock: &Clock,
) -> Result<String, ToolError> {
    let mut sink = Sink::open(target)?;
    let summary = match whence {
        Whence::Server => {
            let answer = Running::new(config)?.ask("/v1/storage/backup", None)?;
            copy(answer, &mut sink)?
        }
        Whence::Directory => {
            let offline = Offline::open(config, clock)?;
            let frozen = offline.freeze()?;
            let revocations = Revocations::default();
            RevocationFile::open(&offline.data_dir, &revocations, clock.unix_ms())?;
            let revocations = revocation_file::Line::all(&revocations);
            let header = header(Content::Backup, &offline.data_dir, clock)?;
            let written = archive::backup(&frozen, revocations, &header, &mut sink);
            let summary = written.map_err(|error| sink.or_store(&offline, error))?;
            drop(frozen);
            offline.close()?;
            summary
        }
    };
    sink.finish(summary)
}

fn header(content: Content, data_dir: &Path, clock: &Clock) -> Result<Header, ToolError> {
    let last = Generation::last(data_dir)?;
    let epoch_max = last.map_or(Epoch(0), Generation::last_epoch);
    Ok(Header::new(content, clock.unix_ms(), epoch_max))
}

/// Writes what comes, and looks on the way whether all of it has come.
fn copy(from: impl Read, sink: &mut Sink) -> Result<Summary, ToolError> {
    let tee = Tee {
        from,
        sink: &mut *sink,
    };
    let read = read_through(BufReader::with_capacity(READ_BYTES, tee));
    read.map_err(|source| match sink.failure.take() {
        Some(failure) => sink.failed(failure),
        None => ToolError::Archive {
            path: "what the server sends".into(),
            source,
        },
    })
}

fn read_through(input: impl io::BufRead) -> Result<Summary, ArchiveError> {
    let mut reader = Reader::open(input)?;
    let mut summary = Summary::default();
    let (mut room, mut entries) = (None, 0);
    while let Some(item) = reader.next_item()? {
        match item {
            Item::Room(beginning) => (room, entries) = (Some(beginning.room), 0),
            Item::Entry(_) => entries += 1,
            Item::RoomEnd { damage } => {
                summary.rooms += 1;
                match damage.zip(room.take()) {
                    None => summary.entries += entries,
                    Some((damage, room)) => summary.damaged.push(DamagedRoom { room, damage }),
                }
            }
            Item::Revocation { .. } | Item::Snapshot(_) | Item::Cursor(..) => {}
        }
    }
    Ok(summary)
}

/// What is read from one is written to the other.
struct Tee<'a, R> {
    from: R,
    sink: &'a mut Sink,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.from.read(buffer)?;
        self.sink.write_all(&buffer[..length])?;
        Ok(length)
    }
}

/// A file that appears whole or not at all, or the output.
struct Sink {
    target: Target,
    /// Beside its place.
    part: Option<PathBuf>,
    out: BufWriter<Box<dyn Write>>,
    /// Why it doesn't take more.
    failure: Option<io::Error>,
}

impl Sink {
    fn open(target: &Target) -> Result<Self, ToolError> {
        let (out, part): (Box<dyn Write>, _) = match target {
            Target::Output => (Box::new(io::stdout()), None),
            Target::File(path) => {
                if path.symlink_metadata().is_ok() {
                    return Err(ToolError::Exists(path.clone()));
                }
                let mut part = path.clone().into_os_string();
                part.push(".part");
                let part = PathBuf::from(part);
                let file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(&part)
                    .map_err(|source| ToolError::Output {
                        what: part.display().to_string(),
                        source,
                    })?;
                (Box::new(file), Some(part))
            }
        };
        Ok(Self {
            target: target.clone(),
            part,
            out: BufWriter::with_capacity(WRITE_BYTES, out),
            failure: None,
        })
    }

    /// The file gets its name.
    fn finish(mut self, summary: Summary) -> Result<String, ToolError> {
        self.out.flush().map_err(|error| self.failed(error))?;
        let Target::File(path) = self.target.clone() else {
            return done(summary, "");
        };
        if let Some(part) = self.part.take() {
            let named = File::open(&part)
                .and_then(|file| file.sync_all())
                .and_then(|()| fs::rename(&part, &path))
                .and_then(|()| sync_directory_of(&path));
            named.map_err(|error| self.failed(error))?;
        }
        done(summary, &format!(" in {}", path.display()))
    }

    /// Whose error it is that came while the store was written into it.
    fn or_store(&mut self, offline: &Offline, error: io::Error) -> ToolError {
        match self.failure.take() {
            Some(failure) => self.failed(failure),
            None => offline.failed(error),
        }
    }

    fn failed(&self, source: io::Error) -> ToolError {
        let what = match &self.target {
            Target::File(path) => path.display().to_string(),
            Target::Output => "the output".to_owned(),
        };
        ToolError::Output { what, source }
    }

    /// Remembers that it is this that failed.
    fn noted<T>(&mut self, outcome: io::Result<T>) -> io::Result<T> {
        outcome.map_err(|error| {
            let again = io::Error::new(error.kind(), error.to_string());
            self.failure = Some(error);
            again
        })
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes);
        self.noted(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.out.flush();
        self.noted(flushed)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Some(part) = &self.part {
            // What is left of it harms nobody: the next one writes over it.
            drop(fs::remove_file(part));
        }
    }
}

fn done(summary: Summary, place: &str) -> Result<String, ToolError> {
    if !summary.damaged.is_empty() {
        return Err(ToolError::WithoutDamaged(summary.damaged));
    }
    let Summary { rooms, entries, .. } = summary;
    Ok(format!("{rooms} rooms with {entries} entries{place}"))
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    File::open(above.unwrap_or(Path::new(".")))?.sync_all()
}

const WRITE_BYTES: usize = 1 << 20;

const READ_BYTES: usize = 64 << 10;
