//! What is wrong with a configuration, and where it was written.
//!
//! Loading collects every problem before it gives up, so that a person mends a file once. A problem names its
//! place in the words that the person used (file and line, variable, or flag), the key, what is wrong and
//! what is allowed.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A line of a file, from 1.
    File {
        /// The file, as it was named.
        path: Arc<Path>,
        /// The line.
        line: usize,
    },
    /// An environment variable.
    Variable(Arc<str>),
    /// A flag of the command line.
    Flag(Arc<str>),
    /// Nowhere: a default, or a value that a program set.
    Default,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
            Self::Default => f.write_str("default"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where the value was written.
    pub place: Place,
    /// What is wrong and what is allowed, beginning with the key. Never a secret.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}

/// Everything that is wrong, at least one thing, by place: files by line, then variables, flags and defaults.
///
/// The next sensible action is to mend them all and start again; nothing was bound or written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Nothing, if there is no problem; else all of them, sorted.
    ///
    /// # Errors
    /// There is at least one problem.
    pub(crate) fn check(mut problems: Vec<Problem>) -> Result<(), Self> {
        problems.sort();
        problems.dedup();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Self(problems))
        }
    }

    /// The problems.
    #[must_use]
    pub fn as_slice(&self) -> &[Problem] {
        &self.0
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = &*self.0 {
            return write!(f, "{only}");
        }
        write!(f, "the configuration has {} problems", self.0.len())?;
        self.0
            .iter()
            .try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl Error for Problems {}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

/// What loading has found so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// What is wrong, in no order.
    pub(super) problems: Vec<Problem>,
    /// Where each key that was given got its last value, so that a wrong relation between two keys has a place too.
    places: BTreeMap<String, Place>,
}

impl Report {
    /// Notes a problem.
    pub(super) fn add(&mut self, place: &Place, text: String) {
        self.problems.push(Problem {
            place: place.clone(),
            text,
        });
    }

    /// Notes that a key was given.
    pub(super) fn given(&mut self, key: &str, place: &Place) {
        self.places.insert(key.to_owned(), place.clone());
    }

    /// Where the first of these keys that was given was given.
    pub(super) fn place(&self, keys: &[String]) -> Place {
        keys.iter()
            .find_map(|key| self.places.get(key))
            .cloned()
            .unwrap_or(Place::Default)
    }
}
