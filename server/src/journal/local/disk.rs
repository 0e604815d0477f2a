//! Where segments are: files that are reserved whole, written at places and synced.
//!
//! A [`Disk`] promises no more than a kernel does: what was written is there after a sync that was reported done, and before that may
//! be there in part. After a sync that failed, nothing is known of what was written since the one before, whatever a later one says
//! (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020): the caller doesn't try again. What the bytes mean is
//! left to `segment`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, OFlags, fallocate, statvfs};

/// Segments on something that keeps them. Calls may block; any thread may make them.
pub(super) trait Disk: fmt::Debug + Send + Sync {
    /// The segments that are there, ascending.
    fn segments(&self) -> io::Result<Vec<u64>>;

    /// Makes a segment of zeros that takes `bytes`. It is there after a power cut.
    fn create(&self, segment: u64, bytes: u64) -> io::Result<()>;

    /// Writes at a place.
    fn write(&self, segment: u64, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Comes back when everything that was written to a segment survives a power cut.
    fn sync(&self, segment: u64) -> io::Result<()>;

    /// How long a segment is.
    fn length(&self, segment: u64) -> io::Result<u64>;

    /// Reads so many bytes, or fewer where the segment ends.
    fn read(&self, segment: u64, at: u64, bytes: usize) -> io::Result<Vec<u8>>;

    /// Takes a segment away.
    fn remove(&self, segment: u64) -> io::Result<()>;

    /// Makes zeros of a segment from a place on, and lets them survive a power cut.
    fn cut(&self, segment: u64, at: u64) -> io::Result<()>;

    /// Puts a segment aside, for somebody to look at.
    fn put_aside(&self, segment: u64) -> io::Result<()>;

    /// How much space there is.
    fn space(&self) -> io::Result<Space>;
}

/// A segment as far as the disk gives it.
#[derive(Debug)]
pub(super) struct Legible {
    /// Zeros stand for what can't be read.
    pub(super) bytes: Vec<u8>,
    /// All of it could be read.
    pub(super) is_whole: bool,
}

impl Legible {
    /// Reads the first bytes of a segment, and on behind what can't be read.
    ///
    /// # Errors
    /// The segment is not there, or can't be looked at.
    pub(super) fn read(disk: &dyn Disk, segment: u64, bytes: usize) -> io::Result<Self> {
        let error = match disk.read(segment, 0, bytes) {
            Ok(bytes) => {
                let is_whole = true;
                return Ok(Self { bytes, is_whole });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
            Err(error) => error,
        };
        let length = usize::try_from(disk.length(segment)?).expect("a segment fits into memory");
        let mut legible = vec![0; length.min(bytes)];
        let mut unread = Vec::new();
        for (number, block) in legible.chunks_mut(BLOCK_BYTES).enumerate() {
            let at = number * BLOCK_BYTES;
            match disk.read(segment, at as u64, block.len()) {
                Ok(read) if read.len() == block.len() => block.copy_from_slice(&read),
                _ => unread.push(at),
            }
            if unread.first() == Some(&0) {
                // Without its head nothing of it means anything, and a disk that gives nothing at all takes its time for each block.
                break;
            }
        }
        let blocks = unread.len();
        tracing::error!(segment, %error, at = unread.first(), blocks, "a segment can't be read as a whole");
        Ok(Self {
            bytes: legible,
            is_whole: unread.is_empty(),
        })
    }
}

/// Bytes of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) free: u64,
    pub(super) total: u64,
}

/// Segments as files of a folder.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Kept open: an error of the kernel's own writing is told to those who had the file open then.
    files: Mutex<BTreeMap<u64, Arc<File>>>,
}

impl Folder {
    /// A folder that is there.
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            files: Mutex::default(),
        }
    }

    fn path_of(&self, segment: u64) -> PathBuf {
        self.path.join(format!("{segment:010}{EXTENSION}"))
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<File>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, segment: u64) -> io::Result<Arc<File>> {
        let mut files = self.files();
        if let Some(file) = files.get(&segment) {
            return Ok(Arc::clone(file));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(NO_LINKS)
            .open(self.path_of(segment))?;
        let file = Arc::new(file);
        files.insert(segment, Arc::clone(&file));
        Ok(file)
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl Disk for Folder {
    fn segments(&self) -> io::Result<Vec<u64>> {
        let mut segments = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(EXTENSION));
            segments.extend(number.and_then(|number| number.parse::<u64>().ok()));
        }
        segments.sort_unstable();
        Ok(segments)
    }

    fn create(&self, segment: u64, bytes: u64) -> io::Result<()> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path_of(segment))?;
        fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
        file.sync_all()?;
        self.sync_names()
    }

    fn write(&self, segment: u64, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(segment)?.write_all_at(bytes, at)
    }

    fn sync(&self, segment: u64) -> io::Result<()> {
        self.file(segment)?.sync_data()
    }

    fn length(&self, segment: u64) -> io::Result<u64> {
        Ok(self.file(segment)?.metadata()?.len())
    }

    fn read(&self, segment: u64, at: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let file = self.file(segment)?;
        let left = file.metadata()?.len().saturating_sub(at);
        let bytes = bytes.min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut read = vec![0; bytes];
        file.read_exact_at(&mut read, at)?;
        Ok(read)
    }

    fn remove(&self, segment: u64) -> io::Result<()> {
        {
            // With the list in hand: a reader that comes in between would open it again, and keep it.
            let mut files = self.files();
            fs::remove_file(self.path_of(segment))?;
            files.remove(&segment);
        }
        self.sync_names()
    }

    fn cut(&self, segment: u64, at: u64) -> io::Result<()> {
        let file = self.file(segment)?;
        let zeros = vec![0; 1 << 20];
        let mut left = file.metadata()?.len().saturating_sub(at);
        let end = at + left;
        while left > 0 {
            let bytes = left.min(zeros.len() as u64);
            file.write_all_at(
                &zeros[..usize::try_from(bytes).expect("less than the zeros")],
                end - left,
            )?;
            left -= bytes;
        }
        file.sync_data()
    }

    fn put_aside(&self, segment: u64) -> io::Result<()> {
        let path = self.path_of(segment);
        self.files().remove(&segment);
        fs::rename(&path, path.with_extension("damaged"))?;
        self.sync_names()
    }

    fn space(&self) -> io::Result<Space> {
        let space = statvfs(&self.path)?;
        Ok(Space {
            free: space.f_bavail * space.f_frsize,
            total: space.f_blocks * space.f_frsize,
        })
    }
}

/// Segments that are looked at and stay as they are.
#[derive(Debug)]
pub(super) struct Untouched(pub(super) Folder);

impl Disk for Untouched {
    fn segments(&self) -> io::Result<Vec<u64>> {
        self.0.segments()
    }

    fn create(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn write(&self, _: u64, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn length(&self, segment: u64) -> io::Result<u64> {
        self.0.length(segment)
    }

    fn read(&self, segment: u64, at: u64, bytes: usize) -> io::Result<Vec<u8>> {
        self.0.read(segment, at, bytes)
    }

    fn remove(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn cut(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn put_aside(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        self.0.space()
    }
}

const EXTENSION: &str = ".log";

/// What is lost with one sector: the kernel reads files by pages.
pub(super) const BLOCK_BYTES: usize = 4 << 10;

/// A file of the journal is no link to another one.
#[expect(
    clippy::cast_possible_wrap,
    reason = "a flag's bits are all that counts"
)]
pub(super) const NO_LINKS: i32 = OFlags::NOFOLLOW.bits() as i32;
