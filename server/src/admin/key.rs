//! The key of the admin listener: whoever shows it may do everything that the listener offers.
//!
//! It is configured, or made at the first start and kept in the data directory, readable by its owner alone. It is
//! never shown, neither in logs nor in answers; where it is kept is. Keys are compared in constant time.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

use crate::config::{ADMIN_KEY_BYTES_MIN, AdminConfig};
use crate::session::kept_key::{self, KeptKeyError};

/// The key, as a digest: comparing digests tells nothing of the key's length either.
pub struct AdminKey([u8; 32]);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum AdminKeyError {
    /// The data directory doesn't give one.
    #[error("there is no key for the admin listener")]
    Kept(#[from] KeptKeyError),
    /// The configured file can't be read.
    #[error("admin.key_file: {} can't be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configured file holds too little.
    #[error("admin.key_file: {} holds {got} bytes; a key has at least {ADMIN_KEY_BYTES_MIN}", path.display())]
    Short {
        /// The file.
        path: PathBuf,
        /// What there is.
        got: usize,
    },
}

impl AdminKey {
    /// The configured key; else the one in `<data_dir>/admin.key`, which is made at the first start.
    ///
    /// # Errors
    /// A file can't be read, made or written, or holds no key.
    pub fn open(config: &AdminConfig, data_dir: &Path) -> Result<Self, AdminKeyError> {
        if let Some(key) = &config.key {
            return Ok(Self::new(key.expose().as_bytes()));
        }
        if let Some(path) = &config.key_file {
            return Self::read(path);
        }
        let key = kept_key::open(data_dir, FILE)?;
        let path = data_dir.join(FILE);
        tracing::info!(path = %path.display(), "the admin key is kept in a file");
        Ok(Self::new(key.to_hex().as_bytes()))
    }

    fn read(path: &Path) -> Result<Self, AdminKeyError> {
        let text = std::fs::read_to_string(path).map_err(|source| AdminKeyError::Read {
            path: path.to_owned(),
            source,
        })?;
        let key = text.trim();
        if key.len() < ADMIN_KEY_BYTES_MIN {
            return Err(AdminKeyError::Short {
                path: path.to_owned(),
                got: key.len(),
            });
        }
        Ok(Self::new(key.as_bytes()))
    }

    fn new(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// Whether this is the key.
    #[must_use]
    pub fn is(&self, shown: &[u8]) -> bool {
        let shown: [u8; 32] = Sha256::digest(shown).into();
        self.0.ct_eq(&shown).into()
    }
}

impl fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminKey(redacted)")
    }
}

pub(crate) const FILE: &str = "admin.key";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    const KEY: &str = "an-admin-key-of-thirty-two-bytes";

    /// The configured key, and a file's without its line end; nothing else, however close.
    #[test]
    fn the_configured_key_is_the_key() {
        let path = std::env::temp_dir().join(format!("roomful-admin-key-{}", std::process::id()));
        std::fs::write(&path, format!("  {KEY}\n")).unwrap();
        let of_file = AdminConfig {
            key_file: Some(path.clone()),
            ..AdminConfig::default()
        };
        let configured = AdminConfig {
            key: Some(Secret::new(KEY)),
            ..AdminConfig::default()
        };
        for config in [of_file.clone(), configured] {
            let key = AdminKey::open(&config, Path::new("nowhere")).unwrap();
            assert!(key.is(KEY.as_bytes()));
            for other in ["", &KEY[1..], &format!("{KEY} "), &KEY.to_uppercase()] {
                assert!(!key.is(other.as_bytes()), "{other:?}");
            }
            assert_eq!(format!("{key:?}"), "AdminKey(redacted)");
        }
        std::fs::write(&path, &KEY[1..]).unwrap();
        let short = AdminKey::open(&of_file, Path::new("nowhere")).unwrap_err();
        assert!(matches!(short, AdminKeyError::Short { got: 31, .. }));
        assert!(!short.to_string().contains(&KEY[1..]), "{short}");
        std::fs::remove_file(&path).unwrap();
        let missing = AdminKey::open(&of_file, Path::new("nowhere"));
        assert!(matches!(missing, Err(AdminKeyError::Read { .. })));
    }
}
