//! Paths for what a run keeps on a disk.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, process};

/// A path of this run's own, in the system's directory for such things. What is there when this is dropped is removed.
#[derive(Debug)]
pub(crate) struct TemporaryPath(PathBuf);

impl TemporaryPath {
    /// A path with nothing there yet.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("roomful-loadtest-{}-{number}", process::id());
        Self(env::temp_dir().join(name))
    }
}

impl AsRef<Path> for TemporaryPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryPath {
    fn drop(&mut self) {
        // Nothing is there if nobody came to make it.
        fs::remove_dir_all(&self.0).ok();
    }
}
