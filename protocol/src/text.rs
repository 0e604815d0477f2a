//! A text with a bound that is checked before anything is copied.

use std::fmt;
use std::ops::Deref;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A text of at most `MAX` bytes. Its `Debug` shows the length alone, since tokens are texts.
#[derive(Clone, PartialEq, Eq)]
pub struct Text<const MAX: usize>(String);

/// A text is longer than its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the text is {got} bytes long; at most {max} are allowed")]
pub struct TextTooLong {
    /// Bytes given.
    pub got: usize,
    /// Bytes allowed.
    pub max: usize,
}

impl<const MAX: usize> Text<MAX> {
    /// Copies a text.
    ///
    /// # Errors
    /// It is longer than `MAX` bytes.
    pub fn new(text: &str) -> Result<Self, TextTooLong> {
        if text.len() > MAX {
            return Err(TextTooLong {
                got: text.len(),
                max: MAX,
            });
        }
        Ok(Self(text.to_owned()))
    }
}

impl<const MAX: usize> Deref for Text<MAX> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> fmt::Debug for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "text({} bytes)", self.0.len())
    }
}

impl<const MAX: usize> Serialize for Text<MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Text<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded<const MAX: usize>;
        impl<const MAX: usize> Visitor<'_> for Bounded<MAX> {
            type Value = Text<MAX>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a text of at most {MAX} bytes")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<MAX>, E> {
                Text::new(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Bounded)
    }
}
