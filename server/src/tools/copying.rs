//! Rooms into a file: some of them, or all as they are at one moment.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufReader, BufWriter, PipeWriter, Read, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use roomful_protocol::id::{Epoch, RoomId};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
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
            copy(answer, SENT, &mut sink)?
        }
        Whence::Directory => {
            let offline = Offline::open(config, clock)?;
            let frozen = offline.freeze()?;
            let rooms = offline.find(&frozen, rooms)?;
            let header = header(Content::Rooms, &offline.data_dir, clock)?;
            let write = |out| archive::export(&frozen, rooms, &header, out);
            let summary = written(|error| offline.failed(error), write, &mut sink)?;
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
            copy(answer, SENT, &mut sink)?
        }
        Whence::Directory => {
            let offline = Offline::open(config, clock)?;
            let frozen = offline.freeze()?;
            let revocations = Revocations::default();
            RevocationFile::open(&offline.data_dir, &revocations, clock.unix_ms())?;
            let revocations = revocation_file::Line::all(&revocations);
            let header = header(Content::Backup, &offline.data_dir, clock)?;
            let write = |out| archive::backup(&frozen, revocations, &header, out);
            let summary = written(|error| offline.failed(error), write, &mut sink)?;
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

/// Has a file written, and reads it back on the way as whoever restores it will.
fn written(
    failed: impl Fn(io::Error) -> ToolError,
    write: impl FnOnce(BufWriter<PipeWriter>) -> io::Result<Summary> + Send,
    sink: &mut Sink,
) -> Result<Summary, ToolError> {
    let (from, to) = io::pipe().map_err(&failed)?;
    let (written, copied) = thread::scope(|scope| {
        let writing = scope.spawn(|| write(BufWriter::with_capacity(READ_BYTES, to)));
        let copied = copy(from, WRITTEN, sink);
        let written = writing.join();
        (written.unwrap_or_else(|panic| resume_unwind(panic)), copied)
    });
    match written {
        // What was read of it was all there is.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(failed(error)),
        _ => copied,
    }
}

/// Writes what comes, and looks on the way whether all of it has come.
fn copy(from: impl Read, what: &str, sink: &mut Sink) -> Result<Summary, ToolError> {
    let tee = Tee {
        from,
        sink: &mut *sink,
    };
    let read = read_through(BufReader::with_capacity(READ_BYTES, tee));
    read.map_err(|source| match sink.failure.take() {
        Some(failure) => sink.failed(failure),
        None => ToolError::Archive {
            path: what.into(),
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
                let file = open_part(&part)?;
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
        if let Some(part) = &self.part {
            let synced = File::open(part).and_then(|file| file.sync_all());
            synced.map_err(|error| self.failed(error))?;
            name(part, &path).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => ToolError::Exists(path.clone()),
                _ => self.failed(error),
            })?;
            self.part = None;
            sync_directory_of(&path).map_err(|error| self.failed(error))?;
        }
        done(summary, &format!(" in {}", path.display()))
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

/// Opens the file in which another one is made. One that somebody left is used again, and one that somebody writes is not.
fn open_part(part: &Path) -> Result<File, ToolError> {
    let failed = |source| ToolError::Output {
        what: part.display().to_string(),
        source,
    };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(part)
        .map_err(failed)?;
    match file.try_lock() {
        // Who had it may have given it its name by now, and then it is no part any more.
        Ok(()) if is_at(&file, part) => {}
        Err(TryLockError::Error(error)) => return Err(failed(error)),
        Ok(()) | Err(TryLockError::WouldBlock) => {
            return Err(ToolError::Written(part.to_owned()));
        }
    }
    file.set_len(0).map_err(failed)?;
    Ok(file)
}

fn is_at(file: &File, path: &Path) -> bool {
    let place = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let open = file.metadata().map(place);
    open.is_ok_and(|open| {
        path.symlink_metadata()
            .is_ok_and(|named| place(named) == open)
    })
}

/// Gives a file its name, unless there is one of that name by now.
fn name(part: &Path, path: &Path) -> io::Result<()> {
    match renameat_with(CWD, part, CWD, path, RenameFlags::NOREPLACE) {
        // Some file systems, those of a network above all, know links and not this.
        Err(Errno::INVAL | Errno::NOSYS) => {
            fs::hard_link(part, path)?;
            fs::remove_file(part)
        }
        named => Ok(named?),
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

/// Whose file it is that is read on the way.
const SENT: &str = "what the server sends";
const WRITTEN: &str = "what was written";

const WRITE_BYTES: usize = 1 << 20;

const READ_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::data_file::tests::TestDirectory;

    fn sink(path: &Path) -> Result<Sink, ToolError> {
        Sink::open(&Target::File(path.to_owned()))
    }

    fn of_store(source: io::Error) -> ToolError {
        let path = PathBuf::new();
        ToolError::Store { path, source }
    }

    fn some() -> Summary {
        Summary {
            rooms: 1,
            ..Summary::default()
        }
    }

    /// Two commands that are told the same name: the second one says so, and the file is that of the first. It wrote into it, also
    /// when it had its name.
    #[test]
    fn a_file_is_written_by_one_command_at_a_time() {
        let directory = TestDirectory::new();
        let path = directory.path().join("all.jsonl");
        let mut first = sink(&path).unwrap();
        first.write_all(b"first").unwrap();
        let refused = sink(&path).err().unwrap();
        assert!(matches!(refused, ToolError::Written(_)), "{refused}");
        first.finish(some()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        let refused = sink(&path).err().unwrap();
        assert!(matches!(refused, ToolError::Exists(_)), "{refused}");
    }

    /// What is written is read back on the way, as whoever restores it will: a file that nobody could use is no success, and doesn't
    /// appear.
    #[test]
    fn what_is_written_is_read_back() {
        let directory = TestDirectory::new();
        let path = directory.path().join("all.jsonl");
        let header = Header::new(Content::Backup, 0, Epoch(0));
        let header = serde_json::to_string(&header).unwrap();
        let mut sink = sink(&path).unwrap();
        let write = |mut out: BufWriter<PipeWriter>| {
            writeln!(out, "{header}")?;
            out.flush()?;
            Ok(some())
        };
        let refused = written(of_store, write, &mut sink).unwrap_err();
        assert!(matches!(refused, ToolError::Archive { .. }), "{refused}");
        drop(sink);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    /// Where the rooms can't be read, that is what is said, and not that their file ends too early.
    #[test]
    fn a_store_that_fails_is_named() {
        let directory = TestDirectory::new();
        let mut sink = sink(&directory.path().join("all.jsonl")).unwrap();
        let write = |_| Err(io::Error::other("the disk"));
        let refused = written(of_store, write, &mut sink).unwrap_err();
        assert!(matches!(refused, ToolError::Store { .. }), "{refused}");
    }

    /// One that was cut off has left a part: the next one begins it anew.
    #[test]
    fn what_a_command_has_left_is_written_over() {
        let directory = TestDirectory::new();
        let path = directory.path().join("all.jsonl");
        fs::write(
            directory.path().join("all.jsonl.part"),
            "longer than the next",
        )
        .unwrap();
        let mut next = sink(&path).unwrap();
        next.write_all(b"next").unwrap();
        next.finish(some()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"next");
        assert!(!directory.path().join("all.jsonl.part").exists());
    }

    /// A file that has come meanwhile stays, and nothing is left of the other one.
    #[test]
    fn no_file_is_written_over() {
        let directory = TestDirectory::new();
        let path = directory.path().join("all.jsonl");
        let mut late = sink(&path).unwrap();
        late.write_all(b"late").unwrap();
        fs::write(&path, "other").unwrap();
        let refused = late.finish(some()).unwrap_err();
        assert!(matches!(refused, ToolError::Exists(_)), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), b"other");
        assert!(!directory.path().join("all.jsonl.part").exists());
    }
}
