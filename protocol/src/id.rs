//! Names and numbers that identify things: parsed once at the edge, valid ever after.
//!
//! Any crate may use them; nothing here allocates more than the id itself. Each text id promises the grammar
//! in its own documentation, so that no later layer (log, metric, subject, path) has to check again. What an id
//! refers to is left to the server.

use std::borrow::Borrow;
use std::fmt;
use std::sync::{Arc, LazyLock};

use serde::de::{self, Deserializer, Unexpected, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// Largest integer on the wire: 2^53 − 1, the largest that every JSON reader keeps exact (RFC 8259 §6).
pub const INTEGER_MAX: u64 = (1 << 53) - 1;

/// Why a text is not a valid id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing there.
    #[error("is empty")]
    Empty,
    /// Longer than the id's bound.
    #[error("is {got} bytes long; at most {max} are allowed")]
    TooLong {
        /// Bytes received.
        got: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A byte outside the id's alphabet.
    #[error("has the byte 0x{byte:02x} at index {index}; allowed are {allowed}")]
    Character {
        /// The offending byte.
        byte: u8,
        /// Its index, from 0.
        index: usize,
        /// The alphabet, for people.
        allowed: &'static str,
    },
    /// A room name without `namespace:` in front.
    #[error("has no namespace; write it as namespace:rest, for example chat:lobby")]
    NoNamespace,
}

/// A room's name, `namespace:rest`, at most 255 bytes.
///
/// `namespace` is `[a-z][a-z0-9-]{0,31}`, `rest` is one or more of `[A-Za-z0-9._~@+=,:/-]`. ASCII alone, so that two names
/// that look the same are the same, and none can carry a wildcard, a space or a control character.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomName(Arc<str>);

impl RoomName {
    /// Longest room name, in bytes.
    pub const BYTES_MAX: usize = 255;
    const NAMESPACE_BYTES_MAX: usize = 32;
    const ALPHABET: &str = "A-Z a-z 0-9 . _ ~ @ + = , : / -";
    const NAMESPACE_ALPHABET: &str = "a-z 0-9 - (a letter first)";

    /// Parses any byte sequence.
    ///
    /// # Errors
    /// The first rule of the grammar that is broken, as an [`IdError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, IdError> {
        bounded(bytes, Self::BYTES_MAX)?;
        let colon = bytes
            .iter()
            .position(|byte| *byte == b':')
            .ok_or(IdError::NoNamespace)?;
        let (namespace, rest) = bytes.split_at(colon);
        let rest = rest.split_first().map_or(&[][..], |(_, rest)| rest);
        bounded(namespace, Self::NAMESPACE_BYTES_MAX)?;
        bounded(rest, Self::BYTES_MAX)?;
        alphabet(
            namespace,
            0,
            Self::NAMESPACE_ALPHABET,
            |index, byte| match byte {
                b'a'..=b'z' => true,
                b'0'..=b'9' | b'-' => index > 0,
                _ => false,
            },
        )?;
        alphabet(rest, colon + 1, Self::ALPHABET, |_, byte| {
            byte.is_ascii_alphanumeric() || b"._~@+=,:/-".contains(&byte)
        })?;
        Ok(Self(String::from_utf8_lossy(bytes).into()))
    }

    /// The whole name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands before the first colon.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.0
            .split_once(':')
            .map_or("", |(namespace, _)| namespace)
    }

    /// The key that places this room's connections: see [`PlacementKey`].
    #[must_use]
    pub fn placement_key(&self) -> PlacementKey {
        let digest = Sha256::digest(self.0.as_bytes());
        let mut first = [0; 8];
        first
            .iter_mut()
            .zip(digest)
            .for_each(|(to, from)| *to = from);
        PlacementKey(u64::from_be_bytes(first))
    }
}

impl fmt::Debug for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a connection would like to be: the first 64 bits of SHA-256 (FIPS 180-4) over the room's name, written as
/// 16 lower-case hexadecimal digits in the URL's `k` parameter.
///
/// A balancer hashes the same text, so a room's members meet on one node, and a node hashes it to one shard. It is a
/// hint: a wrong or missing key costs a hop and nothing else. The room's name itself stays out of access logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PlacementKey(pub u64);

impl PlacementKey {
    /// Reads the 16 digits; `None` for anything else, which is then no hint at all.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let well_formed = text.len() == 16
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        well_formed
            .then(|| u64::from_str_radix(text, 16).ok().map(Self))
            .flatten()
    }
}

impl fmt::Display for PlacementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

macro_rules! text_id {
    ($(#[$meta:meta])* $name:ident, $min:literal to $max:literal, $allowed:literal, $test:expr) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Longest value, in bytes.
            pub const BYTES_MAX: usize = $max;

            /// Parses a text.
            ///
            /// # Errors
            /// The first rule that is broken, as an [`IdError`].
            pub fn parse(text: &str) -> Result<Self, IdError> {
                if $min > 0 || !text.is_empty() {
                    bounded(text.as_bytes(), $max)?;
                }
                let test: fn(u8) -> bool = $test;
                alphabet(text.as_bytes(), 0, $allowed, |_, byte| test(byte))?;
                Ok(Self(text.into()))
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "a text of {} to {} bytes", $min, $max)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        $name::parse(text).map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}

text_id!(
    /// A tenant: a name space of its own for rooms, users and sessions. 1 to 64 of `[A-Za-z0-9_-]`.
    TenantId, 1 to 64, "A-Z a-z 0-9 _ -", |byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)
);
text_id!(
    /// A user, as the token's `sub` names it, or the server for an anonymous one. 1 to 128 bytes of UTF-8 without ASCII
    /// control characters.
    UserId, 1 to 128, "any UTF-8 but ASCII control characters", |byte| !byte.is_ascii_control()
);
text_id!(
    /// The key by which a signal replaces an older one of the same sender. 1 to 64 printable ASCII characters.
    SignalKey, 1 to 64, "printable ASCII", |byte| byte.is_ascii_graphic()
);
text_id!(
    /// What a value of the keyed state, a lock or a timer is called in its room. 1 to 256 bytes of UTF-8 without ASCII control
    /// characters.
    Key, 1 to 256, "any UTF-8 but ASCII control characters", |byte| !byte.is_ascii_control()
);
text_id!(
    /// How the keys begin that somebody asks for; the empty one is every key's. At most 256 bytes, of the same characters.
    KeyPrefix, 0 to 256, "any UTF-8 but ASCII control characters", |byte| !byte.is_ascii_control()
);

impl KeyPrefix {
    /// Whether the key begins with it.
    #[must_use]
    pub fn is_of(&self, key: &Key) -> bool {
        key.0.starts_with(&*self.0)
    }
}

impl TenantId {
    /// The tenant of a token that names none, and of an anonymous server.
    #[must_use]
    pub fn default_tenant() -> Self {
        static DEFAULT: LazyLock<TenantId> = LazyLock::new(|| TenantId("default".into()));
        DEFAULT.clone()
    }
}

/// A room of a tenant: the key of every map, log and message that concerns a room.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomId {
    /// Whose room it is.
    pub tenant: TenantId,
    /// Its name inside the tenant.
    pub name: RoomName,
}

impl fmt::Display for RoomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.name)
    }
}

/// A session: 128 random bits, written as 32 lower-case hexadecimal digits.
///
/// Aligned to 8 bytes and not to the 16 of its number, which would widen all that holds one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(Rust, packed(8))]
pub struct SessionId(pub u128);

impl SessionId {
    /// Reads the 32 digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let well_formed = text.len() == 32
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        well_formed
            .then(|| u128::from_str_radix(text, 16).ok().map(Self))
            .flatten()
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", { self.0 })
    }
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| de::Error::custom("a session id has 32 lower-case hexadecimal digits"))
    }
}

macro_rules! number_id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_u64(self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                integer(deserializer).map($name)
            }
        }
    };
}

number_id!(
    /// The number a client gives a request, and finds in its one reply.
    RequestId
);
number_id!(
    /// A room's short number on this node, given by `joined` and the same for all its members there.
    RoomAlias
);
number_id!(
    /// A member's number in a room: given when it joins, kept over a resume, never given twice while the room is open.
    MemberId
);
number_id!(
    /// Generation of a room's history. A new one makes older positions meaningless; a room's epochs only grow.
    Epoch
);
number_id!(
    /// Place of an entry in a room's log, from 1 without a gap inside an epoch; 0 is before the first entry.
    Offset
);
number_id!(
    /// A producer of operations: 53 random bits that the client chooses once and keeps; bound to its user.
    ProducerId
);
number_id!(
    /// Number of an operation of one producer; a producer's sequences grow.
    Sequence
);

impl Offset {
    /// The offset after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl RequestId {
    /// Reads a request id where a whole frame could not be read.
    pub(crate) fn from_integer(integer: u64) -> Option<Self> {
        (integer <= INTEGER_MAX).then_some(Self(integer))
    }
}

/// Reads an unsigned integer below 2^53.
pub(crate) fn integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let integer = u64::deserialize(deserializer)?;
    if integer > INTEGER_MAX {
        return Err(de::Error::invalid_value(
            Unexpected::Unsigned(integer),
            &"an integer below 2^53",
        ));
    }
    Ok(integer)
}

fn bounded(bytes: &[u8], max: usize) -> Result<(), IdError> {
    match bytes.len() {
        0 => Err(IdError::Empty),
        got if got > max => Err(IdError::TooLong { got, max }),
        _ => Ok(()),
    }
}

fn alphabet(
    bytes: &[u8],
    start: usize,
    allowed: &'static str,
    test: impl Fn(usize, u8) -> bool,
) -> Result<(), IdError> {
    match bytes
        .iter()
        .enumerate()
        .find(|(index, byte)| !test(*index, **byte))
    {
        Some((index, byte)) => Err(IdError::Character {
            byte: *byte,
            index: start + index,
            allowed,
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The grammar, as a table: the name and whether it is one.
    #[test]
    fn room_names_follow_the_grammar() {
        for (name, valid) in [
            ("chat:lobby", true),
            ("a:b", true),
            ("game-2:level/7:b@x+y=z,~._-", true),
            ("", false),
            ("lobby", false),
            (":lobby", false),
            ("chat:", false),
            ("Chat:lobby", false),
            ("2chat:lobby", false),
            ("chat:lob by", false),
            ("chat:lob*", false),
            ("chat:lobby>", false),
            ("chat:lob\0by", false),
            ("chat:löbby", false),
        ] {
            assert_eq!(RoomName::parse(name.as_bytes()).is_ok(), valid, "{name:?}");
        }
        assert!(RoomName::parse(format!("chat:{}", "a".repeat(250)).as_bytes()).is_ok());
        assert!(RoomName::parse(format!("chat:{}", "a".repeat(251)).as_bytes()).is_err());
        assert!(RoomName::parse(b"chat:\xff\xfe").is_err());
    }

    /// `printf chat:lobby | sha256sum | cut -c1-16` gives the same digits.
    #[test]
    fn placement_keys_match_the_vectors_of_the_specification() {
        for (name, key) in [
            ("chat:lobby", "1bc5c3481e8d9d9c"),
            ("doc:spec", "54fe5dffa460f9c9"),
            ("auction:lot-42", "c8a0a72888a45e6d"),
        ] {
            let computed = RoomName::parse(name.as_bytes()).unwrap().placement_key();
            assert_eq!(computed.to_string(), key, "{name}");
            assert_eq!(PlacementKey::parse(key), Some(computed));
        }
        assert_eq!(PlacementKey::parse("1BC5C3481E8D9D9C"), None);
        assert_eq!(PlacementKey::parse("+bc5c3481e8d9d9c"), None);
    }
}
