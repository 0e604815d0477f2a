//! How a value of each type is read, described and printed.
//!
//! A [`Scalar`] is one TOML value that is not a table; an optional one may be left out; a list of them is an
//! array, or a comma-separated text in a variable or flag. Everything that the table in `sections` declares
//! is a [`Setting`].

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use roomful_protocol::frame::Durability;

use super::problem::Report;
use super::secret::{REDACTED, Secret, SecretKey};
use super::value::{Node, Value};

/// The smallest and the largest number that a setting allows. Other types ignore it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) min: u64,
    pub(super) max: u64,
}

/// A value that can be set, described and printed.
pub(super) trait Setting {
    /// Takes the value of a node, or reports why not and stays as it was.
    fn set(&mut self, key: &str, range: Range, node: &Node, report: &mut Report);

    /// What is allowed, for people: follows "allowed is".
    fn allowed(&self, range: Range) -> String;

    /// The value in TOML; `None` where there is none. A secret is printed as redacted.
    fn to_toml(&self) -> Option<String>;
}

/// A single value.
pub(super) trait Scalar: Sized {
    /// Whether problems and prints must not show it.
    const SECRET: bool = false;

    /// What is allowed, for people.
    fn grammar(range: Range) -> String;

    /// Reads it; `None` if it is not allowed.
    fn read(value: &Value, range: Range) -> Option<Self>;

    /// The value in TOML.
    fn print(&self) -> String;
}

impl<T: Scalar> Setting for T {
    fn set(&mut self, key: &str, range: Range, node: &Node, report: &mut Report) {
        if let Some(value) = read(key, range, node, report) {
            *self = value;
        }
    }

    fn allowed(&self, range: Range) -> String {
        T::grammar(range)
    }

    fn to_toml(&self) -> Option<String> {
        Some(print(self))
    }
}

impl<T: Scalar> Setting for Option<T> {
    fn set(&mut self, key: &str, range: Range, node: &Node, report: &mut Report) {
        if let Some(value) = read(key, range, node, report) {
            *self = Some(value);
        }
    }

    fn allowed(&self, range: Range) -> String {
        T::grammar(range)
    }

    fn to_toml(&self) -> Option<String> {
        self.as_ref().map(print)
    }
}

impl<T: Scalar> Setting for Vec<T> {
    fn set(&mut self, key: &str, range: Range, node: &Node, report: &mut Report) {
        let elements = match &node.value {
            Value::Array(elements) => elements.clone(),
            Value::Bare(text) if text.trim_start().starts_with('[') => match node.parse_bare() {
                Some(Node {
                    value: Value::Array(elements),
                    ..
                }) => elements,
                _ => return report.add(&node.place, format!("{key} is not a TOML list")),
            },
            Value::Bare(text) => comma_separated(text, node),
            _ => {
                return report.add(
                    &node.place,
                    format!(
                        "{key} is {}; allowed is {}",
                        node.value.shown(),
                        self.allowed(range)
                    ),
                );
            }
        };
        // One problem per wrong element, and none of a list that has one.
        let count = elements.len();
        let values: Self = elements
            .iter()
            .filter_map(|element| read(key, range, element, report))
            .collect();
        if values.len() == count {
            *self = values;
        }
    }

    fn allowed(&self, range: Range) -> String {
        format!("a list, each element {}", T::grammar(range))
    }

    fn to_toml(&self) -> Option<String> {
        let values: Vec<String> = self.iter().map(print).collect();
        Some(format!("[{}]", values.join(", ")))
    }
}

impl Scalar for u64 {
    fn grammar(Range { min, max }: Range) -> String {
        format!("a whole number from {min} to {max}")
    }

    fn read(value: &Value, Range { min, max }: Range) -> Option<Self> {
        let number = match value {
            Value::Integer(number) => *number,
            Value::Bare(text) => text.trim().replace('_', "").parse().ok(),
            _ => None,
        };
        number.filter(|number| (min..=max).contains(number))
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

impl Scalar for usize {
    fn grammar(range: Range) -> String {
        u64::grammar(range)
    }

    fn read(value: &Value, range: Range) -> Option<Self> {
        u64::read(value, range).and_then(|number| Self::try_from(number).ok())
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

impl Scalar for u32 {
    fn grammar(range: Range) -> String {
        u64::grammar(range)
    }

    fn read(value: &Value, range: Range) -> Option<Self> {
        u64::read(value, range).and_then(|number| Self::try_from(number).ok())
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

impl Scalar for bool {
    fn grammar(_: Range) -> String {
        "true or false".to_owned()
    }

    fn read(value: &Value, _: Range) -> Option<Self> {
        match value {
            Value::Boolean(boolean) => Some(*boolean),
            Value::Bare(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

/// Gives a type that is written as a text its [`Scalar`].
macro_rules! text_scalar {
    ($type:ty, $allowed:expr, |$text:ident| $read:expr, |$value:ident| $print:expr) => {
        impl Scalar for $type {
            fn grammar(_: Range) -> String {
                String::from($allowed)
            }

            fn read(value: &Value, _: Range) -> Option<Self> {
                text_of(value).and_then(|$text| $read)
            }

            fn print(&self) -> String {
                let $value = self;
                quoted($print)
            }
        }
    };
}
pub(super) use text_scalar;

text_scalar!(
    String,
    "a text that is not empty",
    |text| Some(text.to_owned()),
    |value| value
);
text_scalar!(
    SocketAddr,
    "an IP address and a port, such as 127.0.0.1:7400 or [::]:7400",
    |text| text.parse().ok(),
    |value| value.to_string()
);
text_scalar!(
    IpNet,
    "a network such as 10.0.0.0/8 or 2001:db8::/32, or one address",
    |text| text
        .parse()
        .or_else(|_| text.parse::<IpAddr>().map(Self::from))
        .ok(),
    |value| value.to_string()
);
text_scalar!(PathBuf, "a path", |text| Some(Self::from(text)), |value| {
    value.to_string_lossy()
});
// The protocol knows more classes than this server has stores for, and a class that is not kept must not be promised.
text_scalar!(
    Durability,
    "\"memory\", \"local\"; \"replicated\" needs a store that this version does not have",
    |text| match text {
        "memory" => Some(Self::Memory),
        "local" => Some(Self::Local),
        _ => None,
    },
    |value| match value {
        Self::Memory => "memory",
        Self::Local => "local",
        Self::Replicated => "replicated",
    }
);

impl Scalar for Secret {
    const SECRET: bool = true;

    fn grammar(_: Range) -> String {
        "a text that is not empty".to_owned()
    }

    fn read(value: &Value, _: Range) -> Option<Self> {
        text_of(value).map(Self::new)
    }

    fn print(&self) -> String {
        quoted(self.expose())
    }
}

impl Scalar for SecretKey {
    const SECRET: bool = true;

    fn grammar(_: Range) -> String {
        "64 hexadecimal digits".to_owned()
    }

    fn read(value: &Value, _: Range) -> Option<Self> {
        text_of(value).and_then(Self::from_hex)
    }

    fn print(&self) -> String {
        quoted(self.to_hex())
    }
}

fn read<T: Scalar>(key: &str, range: Range, node: &Node, report: &mut Report) -> Option<T> {
    let value = T::read(&node.value, range);
    if value.is_none() {
        let shown = if T::SECRET {
            "something else".to_owned()
        } else {
            node.value.shown()
        };
        report.add(
            &node.place,
            format!("{key} is {shown}; allowed is {}", T::grammar(range)),
        );
    }
    value
}

fn print<T: Scalar>(value: &T) -> String {
    if T::SECRET {
        quoted(REDACTED)
    } else {
        value.print()
    }
}

/// A text, without the emptiness that an unset shell variable leaves behind.
pub(super) fn text_of(value: &Value) -> Option<&str> {
    match value {
        Value::Bare(text) | Value::Text(text) if !text.is_empty() => Some(text),
        _ => None,
    }
}

fn comma_separated(text: &str, node: &Node) -> Vec<Node> {
    let parts = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    parts
        .map(|part| Node {
            value: Value::Bare(part.to_owned()),
            place: node.place.clone(),
        })
        .collect()
}

/// A text in TOML.
pub(super) fn quoted(text: impl AsRef<str>) -> String {
    toml::Value::String(text.as_ref().to_owned()).to_string()
}
