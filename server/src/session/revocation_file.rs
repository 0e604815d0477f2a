//! Revocations that outlive the process: `<data_dir>/revocations`, one JSON object a line, synced before anybody is told.
//!
//! A line says who is revoked until when; a later one about the same replaces it, and one that ends at 0 takes it back. Where
//! most lines are old, the file is written anew. What a line means for connections is left to the list.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use roomful_protocol::id::{SessionId, TenantId, UserId};
use serde::{Deserialize, Serialize};

use super::data_file::{self, DataFileError, Existing};
use super::revocations::{Revocations, Subject};
use crate::auth::TokenId;

/// The file. One process has it at a time.
#[derive(Debug)]
pub struct RevocationFile {
    directory: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// None after a write that failed: what it has left in the file is unknown, so the next one writes all of it.
    file: Option<File>,
    lines: usize,
}

/// Who is revoked, and until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    tenant: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token_id: Option<String>,
    until_ms: u64,
}

impl RevocationFile {
    /// Reads the file into a list, without what has ended.
    ///
    /// # Errors
    /// It can't be read or written, or holds something else.
    pub fn open(
        data_dir: &Path,
        revocations: &Revocations,
        now_ms: u64,
    ) -> Result<Self, DataFileError> {
        let path = data_dir.join(FILE);
        let text = data_file::read(&path)?.unwrap_or_default();
        // What stands behind the last line's end was never confirmed to anybody.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            let line: Option<Line> = serde_json::from_str(line).ok();
            let Some((whom, until_ms)) = line.and_then(|line| line.read()) else {
                let expected = "revocations";
                return Err(DataFileError::Content { path, expected });
            };
            revocations.restore(whom, until_ms);
        }
        revocations.expire(now_ms);
        let file = Self {
            directory: data_dir.to_owned(),
            state: Mutex::new(State {
                file: None,
                lines: 0,
            }),
        };
        let written = file.write_all(&mut file.lock(), revocations);
        written.map_err(|source| DataFileError::Write { path, source })?;
        Ok(file)
    }

    /// Keeps what the list says of somebody. It blocks until that is on the disk.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn keep(&self, whom: &(TenantId, Subject), revocations: &Revocations) -> io::Result<()> {
        let mut state = self.lock();
        // Asked with the file in hand: of two who change the same, the one who writes last writes what holds.
        let until_ms = revocations.until_ms(whom).unwrap_or(0);
        if state.lines > SPARE_LINES + 2 * revocations.count() {
            return self.write_all(&mut state, revocations);
        }
        let Some(mut file) = state.file.take() else {
            return self.write_all(&mut state, revocations);
        };
        let mut line = Line::of(whom, until_ms).to_text();
        line.push('\n');
        file.write_all(line.as_bytes())?;
        file.sync_data()?;
        state.file = Some(file);
        state.lines += 1;
        Ok(())
    }

    fn write_all(&self, state: &mut State, revocations: &Revocations) -> io::Result<()> {
        let all = Line::all(revocations);
        let mut text = String::new();
        for line in &all {
            text.push_str(&line.to_text());
            text.push('\n');
        }
        let path = data_file::write(&self.directory, FILE, &text, Existing::Replace)
            .map_err(io::Error::other)?;
        state.file = Some(OpenOptions::new().append(true).open(path)?);
        state.lines = all.len();
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // A thread that ended with it in hand has taken the file out, so the next write begins anew.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// All that a list holds.
    #[must_use]
    pub fn all(revocations: &Revocations) -> Vec<Self> {
        let all = revocations.all().into_iter();
        all.map(|(whom, until_ms)| Self::of(&whom, until_ms))
            .collect()
    }

    fn of((tenant, subject): &(TenantId, Subject), until_ms: u64) -> Self {
        let (mut user, mut session, mut token_id) = (None, None, None);
        match subject {
            Subject::User(id) => user = Some(id.to_string()),
            Subject::Session(id) => session = Some(id.to_string()),
            Subject::TokenId(id) => token_id = Some(id.as_str().to_owned()),
        }
        Self {
            tenant: tenant.to_string(),
            user,
            session,
            token_id,
            until_ms,
        }
    }

    fn to_text(&self) -> String {
        serde_json::to_string(self).expect("texts and a number have a form")
    }

    /// Whom it names, and until when; none: nobody.
    #[must_use]
    pub fn read(&self) -> Option<((TenantId, Subject), u64)> {
        let subject = match (&self.user, &self.session, &self.token_id) {
            (Some(user), None, None) => Subject::User(UserId::parse(user).ok()?),
            (None, Some(session), None) => Subject::Session(SessionId::parse(session)?),
            (None, None, Some(id)) => Subject::TokenId(TokenId::parse(id)?),
            _ => return None,
        };
        let tenant = TenantId::parse(&self.tenant).ok()?;
        Some(((tenant, subject), self.until_ms))
    }
}

pub(crate) const FILE: &str = "revocations";

/// Old lines that may stay, beside as many as there are live ones.
const SPARE_LINES: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::super::data_file::tests::TestDirectory;
    use super::*;

    fn whom(name: &str) -> (TenantId, Subject) {
        let user = UserId::parse(name).unwrap();
        (TenantId::default_tenant(), Subject::User(user))
    }

    fn reopened(directory: &TestDirectory, now_ms: u64) -> (RevocationFile, Vec<u64>) {
        let list = Revocations::default();
        let file = RevocationFile::open(directory.path(), &list, now_ms).unwrap();
        let mut ends: Vec<_> = list
            .all()
            .into_iter()
            .map(|(_, until_ms)| until_ms)
            .collect();
        ends.sort_unstable();
        (file, ends)
    }

    /// What was kept is there again, what was taken back or has ended is not, and a line that was never finished hurts nobody.
    #[test]
    fn what_was_kept_is_there_again() {
        let directory = TestDirectory::new();
        let list = Revocations::default();
        let file = RevocationFile::open(directory.path(), &list, 0).unwrap();
        for (name, until_ms) in [("ann", 100), ("bob", 200), ("ann", 300), ("eve", 150)] {
            list.revoke(whom(name), until_ms, 0, 10).unwrap();
            file.keep(&whom(name), &list).unwrap();
        }
        assert!(list.lift(&TenantId::default_tenant(), &whom("bob").1));
        file.keep(&whom("bob"), &list).unwrap();
        let path = directory.path().join(FILE);
        let mut torn = OpenOptions::new().append(true).open(&path).unwrap();
        torn.write_all(b"{\"tenant\":\"def").unwrap();
        assert_eq!(reopened(&directory, 0).1, [150, 300]);
        assert_eq!(reopened(&directory, 200).1, [300]);
    }

    /// The file is written anew before old lines are more than live ones and some.
    #[test]
    fn the_file_stays_small() {
        let directory = TestDirectory::new();
        let list = Revocations::default();
        let file = RevocationFile::open(directory.path(), &list, 0).unwrap();
        for until_ms in 1..=2_500 {
            list.revoke(whom("ann"), until_ms, 0, 10).unwrap();
            file.keep(&whom("ann"), &list).unwrap();
        }
        let text = std::fs::read_to_string(directory.path().join(FILE)).unwrap();
        assert!(
            text.lines().count() <= SPARE_LINES + 4,
            "{}",
            text.lines().count()
        );
        assert_eq!(reopened(&directory, 0).1, [2_500]);
    }

    /// Somebody else's file is named, and stays as it is.
    #[test]
    fn a_foreign_file_is_refused() {
        let directory = TestDirectory::new();
        let path = directory.path().join(FILE);
        std::fs::write(&path, "notes\n").unwrap();
        let opened = RevocationFile::open(directory.path(), &Revocations::default(), 0);
        assert!(opened.unwrap_err().to_string().contains("revocations"));
        assert_eq!(std::fs::read_to_string(path).unwrap(), "notes\n");
    }
}
