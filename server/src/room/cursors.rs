//! How far each user has read, and been delivered to.
//!
//! The room calls it. A cursor only moves forward, whatever order the requests of a user's devices arrive in; it has no place in
//! the log and is a register of the journal, in the form that is made here. Those of another epoch are void. Users are counted,
//! and where they are too many, the one who is furthest behind is forgotten: most likely it has gone for good.
//!
//! What a user has not read is counted in the log when it is asked for: the publishes of others behind its read cursor, as far as
//! history is kept, and no more than the newest entries of a bounded number behind it. What history has dropped counts
//! as read.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use roomful_protocol::id::{Epoch, Offset, UserId};

use super::snapshot::{self, Undecodable, decode};

/// The cursors of a room, by user, as they are stored.
#[derive(Debug, Default)]
pub struct Cursors {
    by_user: BTreeMap<UserId, Cursor>,
    /// The same by where they stand.
    by_place: BTreeSet<(Option<Offset>, UserId)>,
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
                cursors.advance(&user, cursor);
            }
        }
        Ok(cursors)
    }

    /// A user's cursors.
    #[must_use]
    pub fn of(&self, user: &UserId) -> Cursor {
        self.by_user.get(user).copied().unwrap_or_default()
    }

    /// Moves a user's cursors forward, as its register says that was stored.
    pub fn advance(&mut self, user: &UserId, to: Cursor) {
        let before = self.of(user);
        let after = before.forward(to);
        self.by_place.remove(&(before.place(), user.clone()));
        self.by_place.insert((after.place(), user.clone()));
        self.by_user.insert(user.clone(), after);
    }

    /// Where there are too many users, forgets the one who is furthest behind of those who may be forgotten.
    pub fn forget_one(
        &mut self,
        users_max: usize,
        may_be: impl Fn(&UserId) -> bool,
    ) -> Option<UserId> {
        if self.by_user.len() <= users_max {
            return None;
        }
        let found = self.by_place.iter().find(|(_, user)| may_be(user))?.clone();
        self.by_place.remove(&found);
        self.by_user.remove(&found.1);
        Some(found.1)
    }

    /// About what they take in memory, in bytes.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.by_user.len() * CURSOR_BYTES
    }
}

impl Cursor {
    /// Each where it is further.
    #[must_use]
    pub fn forward(self, to: Self) -> Self {
        Self {
            read: self.read.max(to.read),
            delivered: self.delivered.max(to.delivered),
        }
    }

    /// How far the user has come at all.
    fn place(self) -> Option<Offset> {
        self.read.max(self.delivered)
    }

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
        (Self::key(user), value.into())
    }

    /// The key of a user's register.
    #[must_use]
    pub fn key(user: &UserId) -> Bytes {
        Bytes::copy_from_slice(user.as_str().as_bytes())
    }
}

/// The form of a register.
const VERSION: u8 = 1;

/// A user's cursors in their two trees, with the user's name.
const CURSOR_BYTES: usize = 320;

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
    fn who_is_furthest_behind_is_forgotten_first() {
        let mut cursors = Cursors::default();
        for (number, read, delivered) in [(1, 5, 0), (2, 1, 9), (3, 2, 3), (4, 4, 0), (3, 7, 0)] {
            let to = Cursor {
                read: Some(Offset(read)),
                delivered: Some(Offset(delivered)),
            };
            cursors.advance(&user(number), to);
        }
        let any = |_: &UserId| true;
        assert_eq!(cursors.forget_one(4, any), None);
        let not_4 = |other: &UserId| *other != user(4);
        assert_eq!(cursors.forget_one(1, not_4), Some(user(1)));
        assert_eq!(cursors.forget_one(1, any), Some(user(4)));
        assert_eq!(cursors.forget_one(1, any), Some(user(3)));
        assert_eq!(cursors.forget_one(1, any), None);
        assert_eq!(cursors.of(&user(4)), Cursor::default());
        assert_eq!(cursors.of(&user(2)).read, Some(Offset(1)));
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
            cursors.advance(&user(number), to);
            let moved = cursors.of(&user(number));
            let (key, value) = moved.to_register(&user(number), Epoch(4));
            registers.insert(key, value);
            assert_eq!(moved, greatest);
        }
        let registers: Vec<_> = registers.into_iter().collect();
        let again = Cursors::from_registers(&registers, Epoch(4)).unwrap();
        assert_eq!(again.by_user, cursors.by_user);
        assert_eq!(again.by_place, cursors.by_place);
        let other = Cursors::from_registers(&registers, Epoch(5)).unwrap();
        assert!(other.by_user.is_empty());
        let damaged = [(registers[0].0.clone(), registers[0].1.slice(1..))];
        assert!(Cursors::from_registers(&damaged, Epoch(4)).is_err());
    }
}
