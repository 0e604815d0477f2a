//! A value as it was written, with its place: what a file, a variable and a flag have in common.

use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Place, Report};

/// A value and where it was written.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
}

/// A key of a table and its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) node: Node,
}

/// What was written.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// A variable's or a flag's text, without a type of its own: each setting reads it in its way.
    Bare(String),
    /// A TOML string.
    Text(String),
    /// A TOML integer; `None` beyond 64 bits or below zero, which no setting allows.
    Integer(Option<u64>),
    /// A TOML boolean.
    Boolean(bool),
    /// A TOML array.
    Array(Vec<Node>),
    /// A TOML table.
    Table(Vec<Entry>),
    /// A type that no setting has.
    Other(&'static str),
}

impl Node {
    /// Reads the text of a variable or flag as a TOML value, for settings that have no shorter form.
    pub(super) fn parse_bare(&self) -> Option<Self> {
        let Value::Bare(text) = &self.value else {
            return Some(self.clone());
        };
        let value = DeValue::parse(text).ok()?;
        let place = |_: usize| self.place.clone();
        Some(Self {
            value: Value::from_toml(value.get_ref(), &place),
            place: self.place.clone(),
        })
    }
}

impl Value {
    /// How the value is shown in a problem. Not for secrets.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Bare(text) | Self::Text(text) => format!("{text:?}"),
            Self::Integer(Some(number)) => number.to_string(),
            Self::Integer(None) => "a number out of range".to_owned(),
            Self::Boolean(boolean) => boolean.to_string(),
            Self::Array(_) => "a list".to_owned(),
            Self::Table(_) => "a table".to_owned(),
            Self::Other(name) => format!("a {name}"),
        }
    }

    fn from_toml(value: &DeValue<'_>, place: &dyn Fn(usize) -> Place) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Integer(integer) => {
                Self::Integer(u64::from_str_radix(integer.as_str(), integer.radix()).ok())
            }
            DeValue::Boolean(boolean) => Self::Boolean(*boolean),
            DeValue::Array(array) => Self::Array(
                array
                    .iter()
                    .map(|element| element_node(element, place))
                    .collect(),
            ),
            DeValue::Table(table) => Self::Table(entries(table, place)),
            DeValue::Float(_) | DeValue::Datetime(_) => Self::Other(value.type_str()),
        }
    }
}

/// Reads a TOML text. What it cannot read is reported, and then nothing of the text counts: a half-read file would add
/// problems that are none.
pub(super) fn read_toml(path: &Arc<Path>, text: &str, report: &mut Report) -> Vec<Entry> {
    let place = |offset: usize| Place::File {
        path: Arc::clone(path),
        line: line_of(text, offset),
    };
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let offset = error.span().map_or(text.len(), |span| span.start);
        report.add(
            &place(offset),
            format!("this is not TOML: {}", error.message()),
        );
    }
    if errors.is_empty() {
        entries(table.get_ref(), &place)
    } else {
        Vec::new()
    }
}

fn entries(table: &DeTable<'_>, place: &dyn Fn(usize) -> Place) -> Vec<Entry> {
    let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| Entry {
        key: <std::borrow::Cow<'_, str>>::clone(key.get_ref()).into_owned(),
        node: Node {
            value: Value::from_toml(value.get_ref(), place),
            place: place(key.span().start),
        },
    };
    table.iter().map(entry).collect()
}

fn element_node(element: &Spanned<DeValue<'_>>, place: &dyn Fn(usize) -> Place) -> Node {
    Node {
        value: Value::from_toml(element.get_ref(), place),
        place: place(element.span().start),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}
