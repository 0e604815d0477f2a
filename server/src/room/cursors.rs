//! How far each user has read, and been delivered to.
//!
//! The room calls it. A cursor only moves forward, whatever order the requests of a user's devices arrive in; it has no place in
//! the log and is a register of the journal, in the form that is made here. Those of another epoch are void. Users are counted
//! and bounded.
//!
//! What a user has not read is counted in the log when it is asked for: the publishes of others behind its read cursor, as far as
//! history is kept, and no more than the newest entries of a bounded number behind it. What history has dropped counts
//! as read.

use std::collections::BTreeMap;

use bytes::Bytes;
use roomful_protocol::id::{Epoch, Offset, UserId};

use super::snapshot::{self, Undecodable, decode};
use crate::metrics::Quota;

/// The cursors of a room, by user.
#[derive(Debug, Default)]
pub struct Cursors {
    by_user: BTreeMap<UserId, Cursor>,
}

/// The cursors of one user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Up to where the user has read.
    pub read: Option<Offset>,
    /// Up to where the user has been delivered to.
    pub delivered: Option<Offset>,
}

/// A register as it is stored: its version, the epoch, and the two cursors.
type Stored = (u8, Epoch, Option<Offset>, Option<Offset>);

impl Cursors {
    /// What the registers of a journal say, for this epoch.
    ///
    /// # Errors
    /// One of them is not what is written here.
    pub fn from_registers(registers: &[(Bytes, Bytes)], epoch: Epoch) -> Result<Self, Undecodable> {
        let mut cursors = Self::default();
        for (key, value) in registers {
            let (user, of, cursor) = Cursor::from_register(key, value)?;
            if of == epoch {
                cursors.by_user.insert(user, cursor);
            }
        }
        Ok(cursors)
    }

    /// A user's cursors.
    #[must_use]
    pub fn of(&self, user: &UserId) -> Cursor {
        self.by_user.get(user).copied().unwrap_or_default()
    }

    /// Moves a user's cursors forward; whether one has moved.
    ///
    /// # Errors
    /// As many users as may have cursors have some.
    pub fn advance(&mut self, user: &UserId, to: Cursor, users_max: usize) -> Result<bool, Quota> {
        let before = self.of(user);
        let after = Cursor {
            read: before.read.max(to.read),
            delivered: before.delivered.max(to.delivered),
        };
        if before == after {
            return Ok(false);
        }
        if self.by_user.len() >= users_max && !self.by_user.contains_key(user) {
            return Err(Quota::Cursors);
        }
        self.by_user.insert(user.clone(), after);
        Ok(true)
    }

    /// The register of a user: its key and its value.
    #[must_use]
    pub fn register(&self, user: &UserId, epoch: Epoch) -> (Bytes, Bytes) {
        self.of(user).to_register(user, epoch)
    }

    /// About what they take in memory, in bytes.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.by_user.len() * CURSOR_BYTES
    }
}

impl Cursor {
    /// What a register says: whose, of which epoch, and where they stand.
    ///
    /// # Errors
    /// It is not what is written here.
    pub fn from_register(key: &[u8], value: &[u8]) -> Result<(UserId, Epoch, Self), Undecodable> {
        let user = std::str::from_utf8(key)
            .ok()
            .and_then(|user| UserId::parse(user).ok());
        let user = user.ok_or_else(|| Undecodable("a cursor's user".to_owned()))?;
        let (version, epoch, read, delivered): Stored = decode(value)?;
        if version != VERSION {
            return Err(Undecodable(format!("a cursor of version {version}")));
        }
        Ok((user, epoch, Self { read, delivered }))
    }

    /// The register of a user with these cursors: its key and its value.
    #[must_use]
    pub fn to_register(self, user: &UserId, epoch: Epoch) -> (Bytes, Bytes) {
        let stored: Stored = (VERSION, epoch, self.read, self.delivered);
        let value = snapshot::record(&stored);
        let key = Bytes::copy_from_slice(user.as_str().as_bytes());
        (key, value.into())
    }
}

/// The form of a register.
const VERSION: u8 = 1;

/// A user's cursors in their tree, with the user's name.
const CURSOR_BYTES: usize = 192;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn user(number: usize) -> UserId {
        UserId::parse(&format!("user-{number}")).unwrap()
    }

    #[test]
    fn there_are_no_more_users_than_allowed() {
        let mut cursors = Cursors::default();
        let to = |offset| Cursor {
            read: Some(Offset(offset)),
            delivered: None,
        };
        assert_eq!(cursors.advance(&user(1), to(1), 1), Ok(true));
        assert_eq!(cursors.advance(&user(2), to(1), 1), Err(Quota::Cursors));
        assert_eq!(cursors.advance(&user(1), to(2), 1), Ok(true));
    }

    /// Random moves against the greatest of each; then the registers tell the same again, and nothing in another epoch.
    #[test]
    fn it_is_what_a_naive_model_says() {
        let mut random = StdRng::seed_from_u64(3);
        let mut cursors = Cursors::default();
        let mut moves: HashMap<usize, Vec<Cursor>> = HashMap::new();
        let mut registers = BTreeMap::new();
        for _ in 0..500 {
            let number = random.random_range(0..4);
            let mut any = || {
                let offset = random.random_range(0..200);
                (offset < 100).then_some(Offset(offset))
            };
            let to = Cursor {
                read: any(),
                delivered: any(),
            };
            let made = moves.entry(number).or_default();
            made.push(to);
            let greatest = Cursor {
                read: made.iter().filter_map(|to| to.read).max(),
                delivered: made.iter().filter_map(|to| to.delivered).max(),
            };
            if cursors.advance(&user(number), to, 9).unwrap() {
                let (key, value) = cursors.register(&user(number), Epoch(4));
                registers.insert(key, value);
            }
            assert_eq!(cursors.of(&user(number)), greatest);
        }
        let registers: Vec<_> = registers.into_iter().collect();
        let again = Cursors::from_registers(&registers, Epoch(4)).unwrap();
        assert_eq!(again.by_user, cursors.by_user);
        let other = Cursors::from_registers(&registers, Epoch(5)).unwrap();
        assert!(other.by_user.is_empty());
        let damaged = [(registers[0].0.clone(), registers[0].1.slice(1..))];
        assert!(Cursors::from_registers(&damaged, Epoch(4)).is_err());
    }
}
