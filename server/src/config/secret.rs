//! Texts that must not be printed.
//!
//! Whatever a configuration carries that lets somebody in is one of these types, so that a `Debug` of the whole
//! configuration is safe to log.

use std::fmt;

/// A secret text. `Debug` shows that it is there and nothing else.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for whoever signs or verifies with it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// A secret key of 256 bits, written as 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey([u8; Self::BYTES]);

impl SecretKey {
    /// Its length.
    pub const BYTES: usize = 32;

    /// Takes the bytes.
    #[must_use]
    pub const fn new(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// Reads 64 hexadecimal digits; `None` for anything else.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 2 * Self::BYTES {
            return None;
        }
        let mut bytes = [0; Self::BYTES];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair
                .iter()
                .try_fold(0, |value, digit| Some(value << 4 | nibble(*digit)?))?;
        }
        Some(Self(bytes))
    }

    /// The 64 digits, for the file that keeps the key.
    #[must_use]
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The bytes, for whoever signs or verifies with them.
    #[must_use]
    pub const fn expose(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

/// What stands where a secret would.
pub(super) const REDACTED: &str = "(redacted)";

#[cfg(test)]
mod tests {
    use super::*;

    /// Neither type shows its content, on its own or inside another `Debug`.
    #[test]
    fn debug_shows_no_secret() {
        let secret = Secret::new("correct horse battery staple");
        let key = SecretKey::new([0xab; 32]);
        let shown = format!("{secret:?} {key:?} {:?}", Some((&secret, &key)));
        assert!(
            !shown.contains("horse") && !shown.contains("ab") && !shown.contains("171"),
            "{shown}"
        );
    }

    /// Hexadecimal is read back as written, in either case, and nothing but 64 digits is a key.
    #[test]
    fn keys_are_64_hexadecimal_digits() {
        let text = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1eff";
        assert_eq!(SecretKey::from_hex(text).unwrap().to_hex(), text);
        assert_eq!(
            SecretKey::from_hex(&text.to_uppercase()).unwrap().to_hex(),
            text
        );
        for wrong in [
            "",
            &text[1..],
            &format!("{text}0"),
            &text.replace('f', "g"),
            &text.replace("00", "+1"),
        ] {
            assert_eq!(SecretKey::from_hex(wrong), None, "{wrong:?}");
        }
    }
}
