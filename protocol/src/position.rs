//! Positions: where something stands in a room's history, and everything that is one (versions, fences, cursors).
//!
//! An offset without its epoch means nothing, so the two travel as one type.

use std::fmt;
use std::str::FromStr;

use crate::frame::record;
use crate::id::{Epoch, INTEGER_MAX, Offset};

record! {
    /// `(epoch, offset)`, ordered; on the wire `[epoch, offset]`, as text `epoch-offset`.
    #[derive(Copy, Hash, PartialOrd, Ord)]
    Position {
        /// Generation of the history.
        epoch: Epoch,
        /// Place in it.
        offset: Offset,
    }
}

impl Position {
    /// A position from its parts.
    #[must_use]
    pub const fn new(epoch: Epoch, offset: Offset) -> Self {
        Self { epoch, offset }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.offset)
    }
}

/// The text is not `epoch-offset` with two decimal integers below 2^53.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a position is written epoch-offset, two decimal integers below 2^53, for example 7-42")]
pub struct ParsePositionError;

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (epoch, offset) = text.split_once('-').ok_or(ParsePositionError)?;
        Ok(Self::new(Epoch(decimal(epoch)?), Offset(decimal(offset)?)))
    }
}

fn decimal(text: &str) -> Result<u64, ParsePositionError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = digits && (text.len() == 1 || !text.starts_with('0'));
    match text.parse() {
        Ok(integer) if canonical && integer <= INTEGER_MAX => Ok(integer),
        _ => Err(ParsePositionError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_has_one_text_form() {
        let position = Position::new(Epoch(7), Offset(42));
        assert_eq!(position.to_string(), "7-42");
        assert_eq!("7-42".parse(), Ok(position));
        for bad in [
            "",
            "7",
            "7-",
            "-42",
            "7-42-1",
            "07-42",
            "+7-42",
            "7-9007199254740992",
            "7 -42",
        ] {
            assert_eq!(bad.parse::<Position>(), Err(ParsePositionError), "{bad:?}");
        }
    }

    #[test]
    fn a_later_epoch_is_a_later_position() {
        assert!(Position::new(Epoch(8), Offset(0)) > Position::new(Epoch(7), Offset(42)));
    }
}
