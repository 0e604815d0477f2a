//! `auth.keys`: a list of tables, each of which becomes a key with one algorithm and one source.

use std::path::PathBuf;

use super::choice::Algorithm;
use super::problem::{Place, Report};
use super::secret::{REDACTED, Secret};
use super::section::{Field, Reload, Section, renew, section, set_fields};
use super::setting::{Range, Setting, quoted};
use super::value::{Entry, Node, Value};

/// A key that tokens are verified with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyConfig {
    /// Its name, which a token's `kid` may give. 1 to 256 bytes.
    pub id: Option<String>,
    /// The one algorithm that it verifies.
    pub algorithm: Algorithm,
    /// Where the key itself is.
    pub source: KeySource,
    /// Where it was configured, for problems that show when it is read.
    pub place: Place,
}

/// Where a key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A shared secret, for HS256.
    Secret(Secret),
    /// A file with a shared secret, for HS256. A line end at its end isn't part of it.
    SecretFile(PathBuf),
    /// A PEM file with a public key, for the others.
    PublicKeyFile(PathBuf),
}

section! {
    /// A key as it is written.
    struct WrittenKey {
        /// Its name.
        live id: Option<String> = None;
        /// Its algorithm.
        live algorithm: Option<Algorithm> = None;
        /// A shared secret.
        live secret: Option<Secret> = None;
        /// A file with a shared secret.
        live secret_file: Option<PathBuf> = None;
        /// A PEM file with a public key.
        live public_key_file: Option<PathBuf> = None;
    }
}

impl Setting for Vec<KeyConfig> {
    fn set(&mut self, key: &str, range: Range, node: &Node, report: &mut Report) {
        // The value isn't shown: it may hold a secret.
        let Some(Node {
            value: Value::Array(elements),
            ..
        }) = node.parse_bare()
        else {
            return report.add(
                &node.place,
                format!(
                    "{key} is something else; allowed is {}",
                    self.allowed(range)
                ),
            );
        };
        if elements.len() > KEYS_MAX {
            return report.add(
                &node.place,
                format!("{key} has {} keys; allowed are {KEYS_MAX}", elements.len()),
            );
        }
        let read = |(index, element): (usize, &Node)| {
            read_key(&format!("{key}[{index}]"), element, report)
        };
        *self = elements.iter().enumerate().filter_map(read).collect();
    }

    fn allowed(&self, _: Range) -> String {
        format!("a list of at most {KEYS_MAX} tables")
    }

    fn to_toml(&self) -> Option<String> {
        let keys: Vec<String> = self.iter().map(print_key).collect();
        Some(format!("[{}]", keys.join(", ")))
    }
}

fn read_key(key: &str, node: &Node, report: &mut Report) -> Option<KeyConfig> {
    let Value::Table(entries) = &node.value else {
        report.add(
            &node.place,
            format!("{key} is something else; allowed is a table"),
        );
        return None;
    };
    let before = report.problems.len();
    let mut written = WrittenKey::default();
    set_fields(&mut written, &format!("{key}."), entries, report);
    if report.problems.len() > before {
        return None;
    }
    let place = place_of(node, entries);
    match choose(written) {
        Ok((id, algorithm, source)) => Some(KeyConfig {
            id,
            algorithm,
            source,
            place,
        }),
        Err(text) => {
            report.add(&place, format!("{key} {text}"));
            None
        }
    }
}

fn choose(written: WrittenKey) -> Result<(Option<String>, Algorithm, KeySource), String> {
    let WrittenKey {
        id,
        algorithm,
        secret,
        secret_file,
        public_key_file,
    } = written;
    let Some(algorithm) = algorithm else {
        return Err("has no algorithm; allowed is one of HS256, RS256, ES256 and EdDSA".to_owned());
    };
    if id.as_ref().is_some_and(|id| id.len() > KEY_ID_BYTES_MAX) {
        return Err(format!("has an id of more than {KEY_ID_BYTES_MAX} bytes"));
    }
    let symmetric = algorithm == Algorithm::Hs256;
    let source = match (secret, secret_file, public_key_file) {
        (Some(secret), None, None) if symmetric => KeySource::Secret(secret),
        (None, Some(path), None) if symmetric => KeySource::SecretFile(path),
        (None, None, Some(path)) if !symmetric => KeySource::PublicKeyFile(path),
        _ if symmetric => {
            return Err(
                "is for HS256; it needs either secret or secret_file, and nothing else".to_owned(),
            );
        }
        _ => {
            return Err(format!(
                "is for {}; it needs public_key_file, and nothing else",
                algorithm.name()
            ));
        }
    };
    Ok((id, algorithm, source))
}

/// A table in a list of tables begins at its first key, since its header has no place of its own.
fn place_of(node: &Node, entries: &[Entry]) -> Place {
    entries
        .iter()
        .map(|entry| &entry.node.place)
        .min()
        .unwrap_or(&node.place)
        .clone()
}

fn print_key(key: &KeyConfig) -> String {
    let id = key
        .id
        .as_ref()
        .map(|id| format!("id = {}, ", quoted(id)))
        .unwrap_or_default();
    let source = match &key.source {
        KeySource::Secret(_) => format!("secret = {}", quoted(REDACTED)),
        KeySource::SecretFile(path) => format!("secret_file = {}", quoted(path.to_string_lossy())),
        KeySource::PublicKeyFile(path) => {
            format!("public_key_file = {}", quoted(path.to_string_lossy()))
        }
    };
    format!(
        "{{ {id}algorithm = {}, {source} }}",
        quoted(key.algorithm.name())
    )
}

/// Keys in the configuration: a token without a `kid` may be tried against each.
const KEYS_MAX: usize = 16;

/// As long as any issuer's key ids.
const KEY_ID_BYTES_MAX: usize = 256;
