//! Walks through MessagePack without building anything.
//!
//! The codec of the protocol crate makes values of whole frames, which costs more than sending a delivery does. This looks at
//! the few fields that verification needs and steps over the rest. Input comes from the server under test, so everything is checked.

use anyhow::{Context as _, Result, bail};

/// A place in a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) const fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }

    /// The count of an array's elements, which follow.
    pub(super) fn array(&mut self) -> Result<usize> {
        match self.byte()? {
            marker @ 0x90..=0x9f => Ok(usize::from(marker & 0x0f)),
            0xdc => self.number(2),
            0xdd => self.number(4),
            marker => bail!("0x{marker:02x} stands where an array should"),
        }
    }

    /// An unsigned integer.
    pub(super) fn integer(&mut self) -> Result<u64> {
        Ok(match self.byte()? {
            marker @ 0x00..=0x7f => u64::from(marker),
            0xcc => self.big_endian(1)?,
            0xcd => self.big_endian(2)?,
            0xce => self.big_endian(4)?,
            0xcf => self.big_endian(8)?,
            marker => bail!("0x{marker:02x} stands where an unsigned integer should"),
        })
    }

    /// A byte string.
    pub(super) fn binary(&mut self) -> Result<&'a [u8]> {
        let length = match self.byte()? {
            0xc4 => self.number(1)?,
            0xc5 => self.number(2)?,
            0xc6 => self.number(4)?,
            marker => bail!("0x{marker:02x} stands where bytes should"),
        };
        self.take(length)
    }

    /// Steps over one value, however deep, and gives its bytes.
    pub(super) fn value(&mut self) -> Result<&'a [u8]> {
        let start = self.0;
        self.skip(1)?;
        Ok(&start[..start.len() - self.0.len()])
    }

    /// Steps over some values.
    pub(super) fn skip(&mut self, values: usize) -> Result<()> {
        let mut open = values;
        while open > 0 {
            open = open - 1 + self.skip_head()?;
        }
        Ok(())
    }

    /// Steps over a value that has no parts, or over the head of one that has; how many parts follow.
    fn skip_head(&mut self) -> Result<usize> {
        let (bytes, parts) = match self.byte()? {
            0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => (0, 0),
            marker @ 0x80..=0x8f => (0, 2 * usize::from(marker & 0x0f)),
            marker @ 0x90..=0x9f => (0, usize::from(marker & 0x0f)),
            marker @ 0xa0..=0xbf => (usize::from(marker & 0x1f), 0),
            0xcc | 0xd0 => (1, 0),
            0xcd | 0xd1 | 0xd4 => (2, 0),
            0xd5 => (3, 0),
            0xca | 0xce | 0xd2 => (4, 0),
            0xd6 => (5, 0),
            0xcb | 0xcf | 0xd3 => (8, 0),
            0xd7 => (9, 0),
            0xd8 => (17, 0),
            0xc4 | 0xd9 => (self.number(1)?, 0),
            0xc5 | 0xda => (self.number(2)?, 0),
            0xc6 | 0xdb => (self.number(4)?, 0),
            0xdc => (0, self.number(2)?),
            0xdd => (0, self.number(4)?),
            0xde => (0, 2 * self.number(2)?),
            0xdf => (0, 2 * self.number(4)?),
            marker @ (0xc1 | 0xc7..=0xc9) => {
                bail!("0x{marker:02x} begins nothing that a frame may hold")
            }
        };
        self.take(bytes)?;
        Ok(parts)
    }

    fn number(&mut self, bytes: usize) -> Result<usize> {
        Ok(usize::try_from(self.big_endian(bytes)?)?)
    }

    fn big_endian(&mut self, bytes: usize) -> Result<u64> {
        Ok(self
            .take(bytes)?
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn byte(&mut self) -> Result<u8> {
        let (first, rest) = self
            .0
            .split_first()
            .context("the message ends in the middle of a value")?;
        self.0 = rest;
        Ok(*first)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .context("the message ends in the middle of a value")?;
        self.0 = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One value of each shape, nested, and a number behind them that must be reached.
    #[test]
    fn any_value_is_stepped_over_whole() {
        let mut message = vec![
            0x9c, 0x05, 0xc0, 0xc3, 0xa2, b'h', b'i', 0xcd, 1, 0, 0xcf, 0, 0, 0, 1, 0, 0, 0, 0,
        ];
        message.extend([
            0xc4, 2, 7, 8, 0x92, 0x91, 0x01, 0x90, 0x81, 0xa1, b'k', 0x02, 0xff, 0xcb, 0, 0, 0, 0,
            0, 0, 0, 0,
        ]);
        message.extend([0xdc, 0, 1, 0x03, 0x2a]);
        let mut cursor = Cursor::new(&message);
        let value = cursor.value().unwrap();
        assert_eq!(value.len(), message.len() - 1);
        assert_eq!(cursor.integer().unwrap(), 42);
        assert!(cursor.is_at_end());
    }

    #[test]
    fn a_message_that_ends_early_is_an_error() {
        for message in [
            &[][..],
            &[0x92, 0x01],
            &[0xc4, 3, 1, 2],
            &[0xdd, 0xff, 0xff, 0xff, 0xff, 0],
            &[0xcd, 1],
        ] {
            assert!(Cursor::new(message).value().is_err(), "{message:02x?}");
        }
        assert!(Cursor::new(&[0xc1]).value().is_err());
    }

    #[test]
    fn integers_are_read_in_every_width() {
        for (message, expected) in [
            (&[0x7f][..], 127),
            (&[0xcc, 0xff], 255),
            (&[0xcd, 1, 0], 256),
            (&[0xce, 0, 1, 0, 0], 65_536),
            (&[0xcf, 0, 0, 0, 1, 0, 0, 0, 0], 1 << 32),
        ] {
            assert_eq!(Cursor::new(message).integer().unwrap(), expected);
        }
        assert!(Cursor::new(&[0xff]).integer().is_err());
    }
}
