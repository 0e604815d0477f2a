//! Where values come from, and in which order: file, then environment, then flags.
//!
//! A variable is `ROOMFUL_` and the key in capitals, a dot becoming two underscores: `listen.public` is
//! `ROOMFUL_LISTEN__PUBLIC`, `shards` is `ROOMFUL_SHARDS`. A text needs no quotes, a list of texts is
//! comma-separated, and `auth.keys` is written as in TOML. A namespace whose name has a hyphen can only be
//! set in the file or by `--set`.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::problem::{Place, Report};
use super::value::{Entry, Node, Value, read_toml};

/// Everything that a configuration is read from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file, which has to exist; without one `roomful.toml` in the working directory is read if it is there.
    pub file: Option<PathBuf>,
    /// Environment variables. Those that don't begin with `ROOMFUL_` are left alone.
    pub variables: Vec<(OsString, OsString)>,
    /// Flags of the command line; a later one wins.
    pub flags: Vec<Flag>,
}

/// A flag that sets a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// What the person typed, for problems: `--shards`.
    pub name: String,
    /// The key, such as `shards`.
    pub key: String,
    /// Its value, as typed.
    pub value: String,
}

impl Sources {
    /// The sources of this process: a file, its environment, and the flags it was started with.
    #[must_use]
    pub fn of_process(file: Option<PathBuf>, flags: Vec<Flag>) -> Self {
        Self {
            file,
            variables: std::env::vars_os().collect(),
            flags,
        }
    }

    /// Everything that was written, in the order in which it counts.
    pub(super) fn read(&self, report: &mut Report) -> Vec<Entry> {
        let mut entries = self.read_file(report);
        entries.extend(
            self.variables
                .iter()
                .filter_map(|variable| read_variable(variable, report)),
        );
        entries.extend(self.flags.iter().map(read_flag));
        entries
    }

    fn read_file(&self, report: &mut Report) -> Vec<Entry> {
        let path: Arc<Path> = self
            .file
            .as_deref()
            .unwrap_or(Path::new(DEFAULT_FILE))
            .into();
        match std::fs::read_to_string(&path) {
            Ok(text) => read_toml(&path, &text, report),
            Err(error) if self.file.is_none() && error.kind() == io::ErrorKind::NotFound => {
                Vec::new()
            }
            Err(error) => {
                let place = match &self.file {
                    Some(path) => Place::Flag(format!("--config {}", path.display()).into()),
                    None => Place::File { path, line: 1 },
                };
                report.add(&place, format!("the file can't be read: {error}"));
                Vec::new()
            }
        }
    }
}

/// The variable of a key.
pub(super) fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_uppercase())
}

fn read_variable((name, value): &(OsString, OsString), report: &mut Report) -> Option<Entry> {
    let name = name.to_str()?;
    let key = name.strip_prefix(PREFIX)?;
    if is_service_link(key) {
        return None;
    }
    let place = Place::Variable(name.into());
    let Some(value) = value.to_str() else {
        report.add(&place, "its value is not UTF-8".to_owned());
        return None;
    };
    Some(nested(
        &key.to_lowercase().replace("__", "."),
        value,
        &place,
    ))
}

fn read_flag(flag: &Flag) -> Entry {
    nested(
        &flag.key,
        &flag.value,
        &Place::Flag(flag.name.as_str().into()),
    )
}

/// `a.b.c` as a table in a table, which is how a file would have it.
fn nested(key: &str, value: &str, place: &Place) -> Entry {
    let node = |value| Node {
        value,
        place: place.clone(),
    };
    match key.split_once('.') {
        None => Entry {
            key: key.to_owned(),
            node: node(Value::Bare(value.to_owned())),
        },
        Some((first, rest)) => {
            let inner = nested(rest, value, place);
            Entry {
                key: first.to_owned(),
                node: node(Value::Table(vec![inner])),
            }
        }
    }
}

/// Whether Kubernetes put the variable there: for a Service whose name begins with "roomful" every container
/// gets some, such as `ROOMFUL_PORT`, `ROOMFUL_SERVICE_HOST` and `ROOMFUL_PORT_7400_TCP_ADDR`. Reporting
/// those would keep the server from starting.
fn is_service_link(key: &str) -> bool {
    if key.contains("__") {
        return false;
    }
    let key = format!("_{key}");
    key.ends_with("_SERVICE_HOST") || key.contains("_SERVICE_PORT") || key.ends_with("_PORT") || {
        let after = key.split("_PORT_").nth(1);
        after.is_some_and(|after| after.starts_with(|first: char| first.is_ascii_digit()))
    }
}

/// What the environment variables of the configuration begin with.
const PREFIX: &str = "ROOMFUL_";

/// The file that is read when none is named.
const DEFAULT_FILE: &str = "roomful.toml";

#[cfg(test)]
mod tests {
    use super::*;

    /// What Kubernetes injects is left alone; a key with a slip is not.
    #[test]
    fn service_links_are_told_from_slips() {
        for link in [
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_WS",
            "PORT",
            "PORT_7400_TCP",
            "PORT_7400_TCP_ADDR",
            "ADMIN_PORT_7401_TCP_PORT",
            "ADMIN_SERVICE_HOST",
        ] {
            assert!(is_service_link(link), "{link}");
        }
        for slip in [
            "LISTEN_PUBLIC",
            "SHARD",
            "LISTEN__PORT",
            "DATADIR",
            "SESSION_RETENTION_MS",
        ] {
            assert!(!is_service_link(slip), "{slip}");
        }
    }
}
