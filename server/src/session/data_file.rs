//! Small files in the data directory that must never be seen half-written.
//!
//! A file is written beside its place, synced, and then moved there: a crash leaves the old content or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Why the data directory can't be used. Nothing was changed; the operator mends the path or its permissions.
#[derive(Debug, thiserror::Error)]
pub enum DataFileError {
    /// The directory isn't there and can't be made.
    #[error("the data directory {} can't be made (data_dir, or --data-dir, names it)", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file in it can't be read.
    #[error("{} can't be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file in it can't be written.
    #[error("{} can't be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file in it holds something else.
    #[error("{} doesn't hold {expected}; put a backup in its place, or remove it", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
}

/// What happens to a file that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    /// It is replaced.
    Replace,
    /// It stays, and the new content is dropped.
    Keep,
}

/// Reads a file; `None` if there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, DataFileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DataFileError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Writes a file that only its owner can read, and its directory if there is none.
pub(super) fn write(
    directory: &Path,
    name: &str,
    text: &str,
    existing: Existing,
) -> Result<PathBuf, DataFileError> {
    make_directory(directory).map_err(|source| DataFileError::Directory {
        path: directory.to_owned(),
        source,
    })?;
    let path = directory.join(name);
    let beside = directory.join(format!(".{name}.{}", std::process::id()));
    let written = write_beside(&beside, text).and_then(|()| put(&beside, &path, existing));
    if written.is_err() {
        // Best effort: the error that matters is the first, and a leftover is overwritten by nobody but this
        // process id.
        drop(fs::remove_file(&beside));
    }
    written
        .and_then(|()| sync_directory(directory))
        .map_err(|source| DataFileError::Write {
            path: path.clone(),
            source,
        })?;
    Ok(path)
}

fn write_beside(beside: &Path, text: &str) -> io::Result<()> {
    // A crash may have left one of an earlier process with the same id.
    match fs::remove_file(beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn put(beside: &Path, path: &Path, existing: Existing) -> io::Result<()> {
    if existing == Existing::Replace {
        return fs::rename(beside, path);
    }
    // A link refuses to replace what another process put there a moment ago.
    match fs::hard_link(beside, path) {
        Ok(()) => fs::remove_file(beside),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => fs::remove_file(beside),
        // Some file systems have no links.
        Err(_) => fs::rename(beside, path),
    }
}

/// Makes a directory that only its owner can look into, where there is none, with those above it. Their names survive a power
/// failure.
pub(crate) fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let above = match directory.parent() {
        Some(above) if above.as_os_str().is_empty() => Path::new("."),
        Some(above) => above,
        None => return Ok(()),
    };
    make_directory(above)?;
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
        made => made?,
    }
    sync_directory(above)
}

/// Makes the new name itself survive a power failure. Only Unix lets a directory be opened for it.
fn sync_directory(directory: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(directory)?.sync_all()
    } else {
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A directory of its own that disappears with the test.
    pub(crate) struct TestDirectory(PathBuf);

    impl TestDirectory {
        pub(crate) fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!(
                "roomful-test-{}-{}",
                std::process::id(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            );
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for TestDirectory {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    /// A file is replaced or kept as asked, and nothing else is left in the directory.
    #[test]
    fn a_file_is_replaced_or_kept() {
        let directory = TestDirectory::new();
        let path = directory.path();
        for (text, existing, expected) in [
            ("one", Existing::Keep, "one"),
            ("two", Existing::Keep, "one"),
            ("three", Existing::Replace, "three"),
        ] {
            write(path, "file", text, existing).unwrap();
            assert_eq!(
                read(&path.join("file")).unwrap().as_deref(),
                Some(expected),
                "{text}"
            );
            assert_eq!(fs::read_dir(path).unwrap().count(), 1, "{text}");
        }
        assert_eq!(read(&path.join("other")).unwrap(), None);
    }
}
