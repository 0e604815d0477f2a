//! The generation of this process: a number that only grows, one per start.
//!
//! Rooms in memory take their first epoch from it, so that a position from before a restart is never mistaken
//! for one of after, even where the wall clock was set back: the number is kept in `<data_dir>/generation`,
//! synced before anybody sees it. Where the directory is lost as well, it is the time that keeps it growing.

use std::path::Path;

use roomful_protocol::id::Epoch;

use super::data_file::{self, DataFileError, Existing};

/// A start of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(u64);

impl Generation {
    /// Begins a new generation: the seconds since 1970, or one more than the last, whichever is larger.
    ///
    /// # Errors
    /// The data directory can't be made, read or written, or the file holds no generation.
    pub fn begin(data_dir: &Path, now_unix_ms: u64) -> Result<Self, DataFileError> {
        Self::begin_behind(data_dir, now_unix_ms, Epoch(0))
    }

    /// The same, and no epoch of it has been given out where this is the last one: for rooms that come from elsewhere.
    ///
    /// # Errors
    /// As [`Generation::begin`]; no later epoch is left.
    pub fn begin_behind(
        data_dir: &Path,
        now_unix_ms: u64,
        epoch: Epoch,
    ) -> Result<Self, DataFileError> {
        let last = Self::last(data_dir)?.map_or(0, |last| last.0);
        let last = last.max(epoch.0 >> EPOCH_BITS);
        let generation = (now_unix_ms / 1_000).max(last + 1);
        if generation >= GENERATION_MAX {
            return Err(DataFileError::Content {
                path: data_dir.join(FILE),
                expected: "a generation that another one can follow",
            });
        }
        data_file::write(
            data_dir,
            FILE,
            &format!("{generation}\n"),
            Existing::Replace,
        )?;
        Ok(Self(generation))
    }

    /// The last one that has begun, if one has.
    ///
    /// # Errors
    /// The data directory can't be read, or the file holds no generation.
    pub fn last(data_dir: &Path) -> Result<Option<Self>, DataFileError> {
        let path = data_dir.join(FILE);
        let Some(text) = data_file::read(&path)? else {
            return Ok(None);
        };
        let number = text
            .trim()
            .parse()
            .ok()
            .filter(|number| *number < GENERATION_MAX);
        let number = number.ok_or(DataFileError::Content {
            path,
            expected: "a generation",
        })?;
        Ok(Some(Self(number)))
    }

    /// The last epoch that this generation's rooms may have.
    #[must_use]
    pub const fn last_epoch(self) -> Epoch {
        Epoch(((self.0 + 1) << EPOCH_BITS) - 1)
    }

    /// The epoch that this generation's rooms begin with; a room that loses its history within it takes the
    /// next ones, up to a million of them.
    #[must_use]
    pub const fn first_epoch(self) -> Epoch {
        Epoch(self.0 << EPOCH_BITS)
    }
}

/// The last epoch that is taken from elsewhere: behind it there are a million generations, so that no file uses them up.
pub(crate) const ELSEWHERE_EPOCH_MAX: Epoch = Generation(GENERATION_MAX - (1 << 20)).last_epoch();

/// Epochs of one generation, as bits. With the seconds of the 22nd century on top that is below the protocol's 2^53.
const EPOCH_BITS: u32 = 20;

const GENERATION_MAX: u64 = (1 << (53 - EPOCH_BITS)) - 1;

pub(crate) const FILE: &str = "generation";

#[cfg(test)]
mod tests {
    use roomful_protocol::id::INTEGER_MAX;

    use super::*;
    use crate::session::data_file::tests::TestDirectory;

    const NOON: u64 = 1_800_000_000_000;

    /// Three starts, the last two at an earlier time: the epochs grow all the same, and fit the wire.
    #[test]
    fn epochs_grow_over_restarts_even_if_the_clock_steps_back() {
        let directory = TestDirectory::new();
        let first = Generation::begin(directory.path(), NOON).unwrap();
        let second = Generation::begin(directory.path(), NOON - 86_400_000).unwrap();
        let third = Generation::begin(directory.path(), 0).unwrap();
        let later = Generation::begin(directory.path(), NOON + 86_400_000).unwrap();
        assert_eq!(first.first_epoch(), Epoch(1_800_000_000 << 20));
        assert_eq!(second.first_epoch(), Epoch(1_800_000_001 << 20));
        assert!(second < third && third < later);
        assert!(later.first_epoch().0 < INTEGER_MAX);
    }

    /// What comes from elsewhere gets epochs that nobody there has ever had, whatever the time says here.
    #[test]
    fn epochs_of_elsewhere_are_left_behind() {
        let directory = TestDirectory::new();
        let elsewhere = Generation(NOON / 1_000 + 5);
        let here = Generation::begin_behind(directory.path(), NOON, elsewhere.last_epoch());
        let here = here.unwrap();
        assert!(here.first_epoch() > elsewhere.last_epoch());
        assert_eq!(Generation::last(directory.path()).unwrap(), Some(here));
    }

    /// Behind the last generation there is none: it is refused before anything is written, since every later start would refuse that.
    #[test]
    fn the_last_generation_is_followed_by_none() {
        let directory = TestDirectory::new();
        let last = Generation::begin_behind(directory.path(), NOON, ELSEWHERE_EPOCH_MAX).unwrap();
        let epochs = [
            Epoch(INTEGER_MAX),
            Generation(GENERATION_MAX - 1).last_epoch(),
        ];
        for epoch in epochs {
            let error = Generation::begin_behind(directory.path(), NOON, epoch).unwrap_err();
            assert!(
                error.to_string().contains("another one can follow"),
                "{error}"
            );
            assert_eq!(Generation::last(directory.path()).unwrap(), Some(last));
        }
        assert!(Generation::begin(directory.path(), NOON).unwrap() > last);
    }

    /// A file that was damaged stops the start instead of restarting epochs below the clients'.
    #[test]
    fn a_damaged_file_is_an_error_that_names_it() {
        for content in ["", "-1", "yesterday", "99999999999999999999", "8589934591"] {
            let directory = TestDirectory::new();
            std::fs::write(directory.path().join(FILE), content).unwrap();
            let error = Generation::begin(directory.path(), NOON).unwrap_err();
            assert!(
                error.to_string().contains("generation"),
                "{content:?}: {error}"
            );
        }
    }

    /// A directory that can't be made is named, together with the setting that names it.
    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let directory = TestDirectory::new();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = Generation::begin(&file.join("below"), NOON).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
    }
}
