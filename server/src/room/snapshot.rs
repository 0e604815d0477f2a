//! The stored form of what a room keeps beside its entries.
//!
//! The room writes one now and then, so that a replay stays short, and reads the newest when its log is opened. The form is one
//! byte with its version, and MessagePack. Another version, or anything that is not exactly the form, is an error and no half of
//! a room. When to write one, and from where a replay goes on, is left to the room and the journal.

use bytes::Bytes;
use roomful_protocol::frame::{LockChange, TimerChange, TimerWhat};
use roomful_protocol::id::{Key, Offset, UserId};
use roomful_protocol::payload::Payload;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::departures::{self, Departure};
use super::operations;
use super::state::Tombstone;
use super::tables::Tables;

/// What was stored is not what this version writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("what was stored can't be read: {0}")]
pub struct Undecodable(pub String);

/// Behind the version, an array of these.
#[derive(Serialize, Deserialize)]
struct Form {
    values: Vec<(Key, Payload, Offset)>,
    tombstones: Vec<(Key, Offset, u64)>,
    /// With the newest grant of each.
    locks: Vec<(LockChange, Offset)>,
    free_locks: Vec<(Key, Offset)>,
    timers: Vec<(UserId, TimerChange)>,
    departures: Vec<departures::Stored>,
    operations: operations::Stored,
}

/// What was stored.
#[derive(Debug)]
pub struct Restored {
    /// What entries had made.
    pub tables: Tables,
    /// Which operations had taken effect.
    pub operations: operations::Stored,
}

/// The stored form.
#[must_use]
pub fn encode(tables: &Tables, operations: operations::Stored) -> Bytes {
    let values = tables.state.cells();
    let tombstones = tables.state.tombstones();
    let timers = tables.timers.iter().map(|(name, timer)| {
        let set = TimerChange {
            name: name.clone(),
            what: TimerWhat::Set,
            due_ms: timer.due_ms,
            payload: Some(timer.payload.clone()),
        };
        (timer.user.clone(), set)
    });
    let form = Form {
        values: values
            .map(|(key, cell)| (key.clone(), cell.value.clone(), cell.version))
            .collect(),
        tombstones: tombstones
            .map(|(key, found)| (key.clone(), found.version, found.time_ms))
            .collect(),
        locks: tables.locks.taken().collect(),
        free_locks: tables
            .locks
            .free()
            .map(|(name, fence)| (name.clone(), fence))
            .collect(),
        timers: timers.collect(),
        departures: tables.departures.iter().map(Departure::to_stored).collect(),
        operations,
    };
    let mut content = vec![VERSION];
    content.extend(record(&form));
    content.into()
}

/// Whether a stored form can be read.
///
/// # Errors
/// Not: it is of another version, or damaged, in words.
pub fn check(content: &[u8]) -> Result<(), String> {
    read(content).map(drop).map_err(|error| error.to_string())
}

/// What a stored form says.
///
/// # Errors
/// It is of another version, or damaged.
pub fn read(content: &[u8]) -> Result<Restored, Undecodable> {
    let (version, form) = content
        .split_first()
        .ok_or_else(|| Undecodable("a snapshot without a byte".to_owned()))?;
    if *version != VERSION {
        return Err(Undecodable(format!("a snapshot of version {version}")));
    }
    let form: Form = decode(form)?;
    let mut tables = Tables::default();
    for (key, value, version) in form.values {
        tables.state.put(key, value, version);
    }
    for (key, version, time_ms) in form.tombstones {
        tables.state.bury(key, Tombstone { version, time_ms });
    }
    for (lock, fence) in form.locks {
        tables.locks.set_free(lock.lock.clone(), fence, usize::MAX);
        tables.locks.apply(&lock, 0, usize::MAX);
    }
    for (name, fence) in form.free_locks {
        tables.locks.set_free(name, fence, usize::MAX);
    }
    for (user, timer) in form.timers {
        tables.timers.apply(&user, &timer);
    }
    for departure in form.departures {
        tables.departures.apply(Departure::from_stored(departure)?);
    }
    Ok(Restored {
        tables,
        operations: form.operations,
    })
}

/// A record in MessagePack.
pub(super) fn record<T: Serialize>(record: &T) -> Vec<u8> {
    rmp_serde::to_vec(record).expect("a buffer takes every record")
}

/// Reads MessagePack to its last byte.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Undecodable> {
    let mut rest = bytes;
    let mut reader = rmp_serde::Deserializer::new(&mut rest);
    let found = T::deserialize(&mut reader).map_err(|error| Undecodable(error.to_string()))?;
    if !rest.is_empty() {
        return Err(Undecodable(format!("{} bytes too many", rest.len())));
    }
    Ok(found)
}

/// The form's version.
const VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use roomful_protocol::frame::{
        Action, Change, LockWhy, LoggedHolder, LoggedWaiter, StateChange, StateChanges,
    };
    use roomful_protocol::id::{MemberId, SessionId};

    use super::*;
    use crate::auth::TokenId;
    use crate::room::operations::{OperationBounds, Operations};
    use crate::room::tables::{Change as Logged, TableBounds};

    /// Random entries; after any of them the stored form says the same as what it was made of, also for what comes next.
    #[test]
    fn what_was_stored_is_what_was_there() {
        let bounds = TableBounds::default();
        let operations = no_operations();
        for seed in 0..50 {
            let mut random = StdRng::seed_from_u64(seed);
            let (mut tables, mut again) = (Tables::default(), Tables::default());
            let ann = UserId::parse("ann").unwrap();
            for offset in 1..60 {
                let change = random_change(&mut random, offset);
                tables.apply(&change, &ann, (Offset(offset), offset), 0, &bounds);
                again.apply(&change, &ann, (Offset(offset), offset), 0, &bounds);
                let stored = encode(&tables, operations.clone());
                let same = encode(&again, operations.clone());
                assert_eq!(stored, same, "seed {seed} at {offset}");
                if random.random_range(0..4) == 0 {
                    again = read(&stored).unwrap().tables;
                }
            }
            assert_eq!(tables.held_bytes(), again.held_bytes(), "seed {seed}");
        }
    }

    #[test]
    fn other_versions_and_damage_are_errors() {
        let bounds = TableBounds::default();
        let mut random = StdRng::seed_from_u64(1);
        let mut tables = Tables::default();
        let ann = UserId::parse("ann").unwrap();
        for offset in 1..40 {
            let change = random_change(&mut random, offset);
            tables.apply(&change, &ann, (Offset(offset), offset), 0, &bounds);
        }
        let stored = encode(&tables, no_operations());
        assert!(read(&stored).is_ok());
        for cut in 0..stored.len() {
            assert!(read(&stored[..cut]).is_err(), "{cut} bytes");
        }
        let mut longer = stored.to_vec();
        longer.push(0);
        assert!(read(&longer).is_err());
        let mut later = stored.to_vec();
        later[0] = 2;
        assert!(read(&later).is_err());
    }

    fn no_operations() -> operations::Stored {
        let bounds = OperationBounds {
            results_max: 1,
            window_ms: 1,
            absent_max: 1,
        };
        Operations::new(bounds).to_stored(Offset(0))
    }

    fn random_change(random: &mut StdRng, offset: u64) -> Logged {
        let name = Key::parse(["a", "b", "c", "d"][random.random_range(0..4)]).unwrap();
        let user = UserId::parse("bob").unwrap();
        let session = SessionId(random.random_range(0..3));
        match random.random_range(0..4) {
            0 => {
                let value = (random.random_range(0..3) > 0).then(|| Payload::json("{\"a\":1}"));
                let changes = vec![StateChange { key: name, value }];
                Logged::State(StateChanges { changes })
            }
            1 => Logged::Lock(LockChange {
                lock: name,
                why: LockWhy::Granted,
                held: (random.random_range(0..2) > 0).then(|| LoggedHolder {
                    fence: Offset(offset),
                    member: MemberId(1),
                    user: user.clone(),
                    until_ms: offset + 100,
                    session,
                    ttl_ms: 100,
                }),
                queue: (0..random.random_range(0..3))
                    .map(|member| LoggedWaiter {
                        member: MemberId(member),
                        user: user.clone(),
                        session,
                        ttl_ms: 50,
                    })
                    .collect(),
            }),
            2 => Logged::Timer(TimerChange {
                name,
                what: [TimerWhat::Set, TimerWhat::Fired][random.random_range(0..2)],
                due_ms: offset + 5,
                payload: Some(Payload::text("x")),
            }),
            _ => Logged::Departure(Departure {
                member: MemberId(1),
                session,
                user,
                token_id: TokenId::parse("t"),
                changes: (0..random.random_range(0..2))
                    .map(|_| Change {
                        key: name.clone(),
                        action: Action::Delete,
                        value: None,
                        if_version: None,
                        if_absent: false,
                        if_fence: None,
                    })
                    .collect(),
            }),
        }
    }
}
