//! What a frame carries for the application: bytes with a format tag, which the server never interprets.
//!
//! In MessagePack a payload is `[tag, bytes]`. In JSON it is `[name, value]`, where `json` embeds the value itself,
//! `text` is a string, and `binary` and `msgpack` are base64 (RFC 4648 §4, padded). A `json` or `text` payload is checked once, by
//! [`Payload::check`], before anybody else gets it, so that it can be embedded without another look.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::de::{self, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::ser::{self, SerializeTuple};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::limits::PAYLOAD_DEPTH_MAX;

/// Bytes of the application and what they are.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Payload {
    /// What the bytes are.
    pub format: PayloadFormat,
    /// The bytes, as the sender gave them.
    pub bytes: Bytes,
}

/// What a payload's bytes are. The number is the MessagePack tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PayloadFormat {
    /// Anything.
    Binary = 0,
    /// One JSON text (RFC 8259), at most 24 levels deep.
    Json = 1,
    /// UTF-8.
    Text = 2,
    /// One MessagePack value; not checked.
    MessagePack = 3,
}

/// Why a payload is not what its tag says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// `text` that is not UTF-8.
    #[error("the payload is tagged text but is not UTF-8")]
    NotUtf8,
    /// `json` that is not one JSON text.
    #[error("the payload is tagged json but is not one JSON text")]
    NotJson,
    /// `json` deeper than 24 levels.
    #[error("the payload is tagged json and nests deeper than {PAYLOAD_DEPTH_MAX} levels")]
    TooDeep,
}

impl Payload {
    /// Bytes of any kind.
    #[must_use]
    pub fn binary(bytes: impl Into<Bytes>) -> Self {
        Self {
            format: PayloadFormat::Binary,
            bytes: bytes.into(),
        }
    }

    /// A text.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            format: PayloadFormat::Text,
            bytes: text.into().into(),
        }
    }

    /// A JSON text; [`Payload::check`] tells whether it is one.
    #[must_use]
    pub fn json(text: impl Into<String>) -> Self {
        Self {
            format: PayloadFormat::Json,
            bytes: text.into().into(),
        }
    }

    /// Whether the bytes are what the tag says. `binary` and `msgpack` always are.
    ///
    /// # Errors
    /// What is wrong with them, as a [`PayloadError`].
    pub fn check(&self) -> Result<(), PayloadError> {
        match self.format {
            PayloadFormat::Binary | PayloadFormat::MessagePack => Ok(()),
            PayloadFormat::Text => self.utf8().map(|_| ()),
            PayloadFormat::Json => {
                let text = self.utf8().map_err(|_| PayloadError::NotJson)?;
                json_depth_within(text.as_bytes(), PAYLOAD_DEPTH_MAX)
                    .then_some(())
                    .ok_or(PayloadError::TooDeep)?;
                serde_json::from_str::<IgnoredAny>(text)
                    .map(|_| ())
                    .map_err(|_| PayloadError::NotJson)
            }
        }
    }

    fn utf8(&self) -> Result<&str, PayloadError> {
        std::str::from_utf8(&self.bytes).map_err(|_| PayloadError::NotUtf8)
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({} bytes)", self.format.name(), self.bytes.len())
    }
}

impl PayloadFormat {
    pub(crate) const ALL: [Self; 4] = [Self::Binary, Self::Json, Self::Text, Self::MessagePack];

    /// The name in the JSON form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::Json => "json",
            Self::Text => "text",
            Self::MessagePack => "msgpack",
        }
    }

    fn from_tag(tag: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|format| *format as u8 == tag)
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let human = serializer.is_human_readable();
        let mut pair = serializer.serialize_tuple(2)?;
        if human {
            pair.serialize_element(self.format.name())?;
            match self.format {
                PayloadFormat::Json => {
                    let value: &RawValue =
                        serde_json::from_slice(&self.bytes).map_err(ser::Error::custom)?;
                    pair.serialize_element(value)?;
                }
                PayloadFormat::Text => {
                    pair.serialize_element(self.utf8().map_err(ser::Error::custom)?)?;
                }
                PayloadFormat::Binary | PayloadFormat::MessagePack => {
                    pair.serialize_element(&BASE64.encode(&self.bytes))?;
                }
            }
        } else {
            pair.serialize_element(&(self.format as u8))?;
            pair.serialize_element(&Bin(&self.bytes))?;
        }
        pair.end()
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let visitor = PayloadVisitor {
            human: deserializer.is_human_readable(),
        };
        deserializer.deserialize_any(visitor)
    }
}

struct PayloadVisitor {
    human: bool,
}

impl<'de> Visitor<'de> for PayloadVisitor {
    type Value = Payload;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a payload: [format, content]")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Payload, A::Error> {
        let payload = if self.human {
            human_payload(&mut seq)?
        } else {
            binary_payload(&mut seq)?
        };
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(payload)
    }
}

fn binary_payload<'de, A: SeqAccess<'de>>(seq: &mut A) -> Result<Payload, A::Error> {
    let tag: u8 = element(seq, "format")?;
    let format = PayloadFormat::from_tag(tag).ok_or_else(|| {
        de::Error::custom(format_args!("{tag} is no payload format; they are 0 to 3"))
    })?;
    Ok(Payload {
        format,
        bytes: element::<_, BinBuf>(seq, "bytes")?.0,
    })
}

fn human_payload<'de, A: SeqAccess<'de>>(seq: &mut A) -> Result<Payload, A::Error> {
    let name: Cow<'de, str> = element(seq, "format")?;
    let format = PayloadFormat::from_name(&name).ok_or_else(|| {
        de::Error::custom("a payload format is one of \"binary\", \"json\", \"text\", \"msgpack\"")
    })?;
    let bytes = match format {
        PayloadFormat::Json => {
            let text: Box<str> = element::<_, Box<RawValue>>(seq, "value")?.into();
            text.into_boxed_bytes().into()
        }
        PayloadFormat::Text => element::<_, String>(seq, "text")?.into(),
        PayloadFormat::Binary | PayloadFormat::MessagePack => {
            let text: Cow<'de, str> = element(seq, "base64")?;
            let bytes = BASE64.decode(text.as_bytes());
            bytes
                .map_err(|_| de::Error::custom("the payload is not padded base64"))?
                .into()
        }
    };
    Ok(Payload { format, bytes })
}

fn element<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(
    seq: &mut A,
    name: &str,
) -> Result<T, A::Error> {
    seq.next_element()?
        .ok_or_else(|| de::Error::custom(format_args!("a payload without its {name}")))
}

/// A MessagePack `bin`, written from a slice.
struct Bin<'a>(&'a [u8]);

impl Serialize for Bin<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// A MessagePack `bin`, copied once out of the message: what is kept must not pin a read buffer.
struct BinBuf(Bytes);

impl<'de> Deserialize<'de> for BinBuf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Copy;
        impl Visitor<'_> for Copy {
            type Value = BinBuf;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes (MessagePack bin)")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<BinBuf, E> {
                Ok(BinBuf(Bytes::copy_from_slice(bytes)))
            }
        }
        deserializer.deserialize_bytes(Copy)
    }
}

/// Whether the brackets of a JSON text nest at most `max` deep. Says nothing about its syntax; runs before the parser does, so that
/// the parser's recursion is bounded.
pub(crate) fn json_depth_within(text: &[u8], max: usize) -> bool {
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut escaped = false;
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > max {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_what_its_tag_says_or_is_refused() {
        assert_eq!(Payload::text("grüezi").check(), Ok(()));
        assert_eq!(Payload::json("{\"a\": [1, 2]}").check(), Ok(()));
        assert_eq!(
            Payload::json("{\"a\": NaN}").check(),
            Err(PayloadError::NotJson)
        );
        assert_eq!(Payload::json("1 2").check(), Err(PayloadError::NotJson));
        assert_eq!(Payload::json("").check(), Err(PayloadError::NotJson));
        let bad = Payload {
            format: PayloadFormat::Text,
            bytes: Bytes::from_static(b"\xff"),
        };
        assert_eq!(bad.check(), Err(PayloadError::NotUtf8));
        assert_eq!(Payload::binary(&b"\xff"[..]).check(), Ok(()));
    }

    #[test]
    fn json_nests_24_levels_and_no_deeper() {
        let nested = |levels: usize| Payload::json("[".repeat(levels) + &"]".repeat(levels));
        assert_eq!(nested(24).check(), Ok(()));
        assert_eq!(nested(25).check(), Err(PayloadError::TooDeep));
        assert_eq!(nested(1_000_000).check(), Err(PayloadError::TooDeep));
        assert_eq!(
            Payload::json(format!("\"{}\"", "[".repeat(100))).check(),
            Ok(())
        );
    }
}
