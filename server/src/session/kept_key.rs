//! Keys that the node makes for itself at the first start and keeps in the data directory.

use std::path::Path;

use super::data_file::{self, DataFileError, Existing};
use crate::config::SecretKey;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeptKeyError {
    /// The data directory doesn't give one.
    #[error(transparent)]
    File(#[from] DataFileError),
    /// The system has no random numbers.
    #[error("the system gives no random numbers")]
    Random(#[from] getrandom::Error),
}

/// The key in `<data_dir>/<name>`, which is made at the first start and readable by its owner alone.
///
/// # Errors
/// The data directory can't be made, read or written, or the file holds no key.
pub fn open(data_dir: &Path, name: &str) -> Result<SecretKey, KeptKeyError> {
    let path = data_dir.join(name);
    if data_file::read(&path)?.is_none() {
        let mut bytes = [0; SecretKey::BYTES];
        getrandom::fill(&mut bytes)?;
        let text = format!("{}\n", SecretKey::new(bytes).to_hex());
        data_file::write(data_dir, name, &text, Existing::Keep)?;
    }
    // Read back in any case: a process that started at the same moment may have been first.
    let text = data_file::read(&path)?.unwrap_or_default();
    let key = SecretKey::from_hex(text.trim());
    Ok(key.ok_or(DataFileError::Content {
        path,
        expected: "64 hexadecimal digits",
    })?)
}
