//! What must arrive in a room, and whether it did: every publish once at every member, in order.
//!
//! A scenario tells it what was published and what came, and gets a [`Fault`] for anything that is lost, doubled, out of order,
//! damaged or nobody's. Where the server numbers its deliveries, all members must in addition see one and the same order without a
//! gap. It costs a few nanoseconds a delivery, and holds no socket and no clock.

use std::collections::VecDeque;

/// Names a publish: who published, and which of theirs, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    /// Index among the room's publishers.
    pub(crate) publisher: u32,
    /// Counts that publisher's publishes.
    pub(crate) sequence: u32,
}

/// What is wrong with what arrived. A member is its index in the room.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// Deliveries are missing at the end.
    #[error("lost: member {member} got {got} of {expected} deliveries")]
    Lost {
        /// Who lacks them.
        member: usize,
        /// How many came.
        got: u64,
        /// How many should have come.
        expected: u64,
    },
    /// Replies are missing at the end.
    #[error("lost: publisher {publisher} got {got} of {expected} acknowledgements")]
    Unacknowledged {
        /// Who lacks them.
        publisher: usize,
        /// How many came.
        got: u32,
        /// How many should have come.
        expected: u32,
    },
    /// Something came before what should have come first.
    #[error(
        "lost or out of order: member {member} got number {got} of {of} where number {expected} is due"
    )]
    Skipped {
        /// Who got it.
        member: usize,
        /// Of which sequence of numbers.
        of: Numbers,
        /// What came.
        got: u64,
        /// What should have come.
        expected: u64,
    },
    /// Something came again.
    #[error("doubled: member {member} got number {got} of {of} again, number {expected} is due")]
    Doubled {
        /// Who got it.
        member: usize,
        /// Of which sequence of numbers.
        of: Numbers,
        /// What came.
        got: u64,
        /// What should have come.
        expected: u64,
    },
    /// Two members see different orders.
    #[error(
        "out of order: at offset {offset} member {member} got {got:?}, the others {expected:?}"
    )]
    Disagreement {
        /// Who differs.
        member: usize,
        /// Where.
        offset: u64,
        /// What it got there.
        got: Key,
        /// What the others got there.
        expected: Key,
    },
    /// Something came that nobody published.
    #[error("invented: member {member} got {got:?}, which nobody has published")]
    Invented {
        /// Who got it.
        member: usize,
        /// What it got.
        got: Key,
    },
    /// The content is not what was published.
    #[error("damaged: the payload is not one that was published ({bytes} bytes)")]
    Damaged {
        /// How long it is.
        bytes: usize,
    },
}

/// Which numbers a fault counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// The room's offsets.
    Offsets,
    /// A publisher's sequence.
    Sequence(u32),
    /// The replies to a publisher.
    Acknowledgements(u32),
}

/// Checks one room.
#[derive(Debug)]
pub(crate) struct Verifier {
    order: Order,
    publishers: Vec<Publisher>,
    /// Deliveries so far, by member.
    received: Vec<u64>,
    /// Arrivals that complete a publish: one delivery a member, and its acknowledgement where the server gives one.
    arrivals: usize,
}

/// How order is checked.
#[derive(Debug)]
enum Order {
    /// Deliveries are numbered from `base` + 1: all members agree on what stands where.
    Offsets {
        base: u64,
        log: Vec<Key>,
        logged: Vec<u32>,
    },
    /// They are not: each member gets each publisher's in order. The last sequence, by member and publisher.
    Publishers { last: Vec<u32> },
}

#[derive(Debug, Clone, Default)]
struct Publisher {
    /// Publishes so far.
    sent: u32,
    /// Of these, acknowledged ones.
    acknowledged: u32,
    /// Of these, complete ones.
    complete: u32,
    /// Arrivals of those that are not complete, the oldest first.
    arrived: VecDeque<usize>,
}

impl Verifier {
    /// A room whose server numbers deliveries, from the offset after `base`, and acknowledges publishes.
    pub(crate) fn with_offsets(base: u64, members: usize, publishers: usize) -> Self {
        let order = Order::Offsets {
            base,
            log: Vec::new(),
            logged: vec![0; publishers],
        };
        Self::new(order, members, publishers, members + 1)
    }

    /// A room whose server does neither.
    pub(crate) fn without_offsets(members: usize, publishers: usize) -> Self {
        Self::new(
            Order::Publishers {
                last: vec![0; members * publishers],
            },
            members,
            publishers,
            members,
        )
    }

    fn new(order: Order, members: usize, publishers: usize, arrivals: usize) -> Self {
        Self {
            order,
            publishers: vec![Publisher::default(); publishers],
            received: vec![0; members],
            arrivals,
        }
    }

    /// Names the next publish of a publisher, which is expected everywhere from now on.
    pub(crate) fn publish(&mut self, publisher: u32) -> Key {
        let state = &mut self.publishers[publisher as usize];
        state.sent += 1;
        state.arrived.push_back(0);
        Key {
            publisher,
            sequence: state.sent,
        }
    }

    /// How many publishers there are.
    pub(crate) const fn publishers(&self) -> usize {
        self.publishers.len()
    }

    /// How many publishes of a publisher there were.
    pub(crate) fn published_by(&self, publisher: usize) -> u32 {
        self.publishers[publisher].sent
    }

    /// Takes a delivery; whether its publish is complete with it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn deliver(
        &mut self,
        member: usize,
        offset: Option<u64>,
        key: Key,
    ) -> Result<bool, Fault> {
        let invented = Fault::Invented { member, got: key };
        let publisher = self
            .publishers
            .get(key.publisher as usize)
            .ok_or_else(|| invented.clone())?;
        if key.sequence > publisher.sent {
            return Err(invented);
        }
        match (&mut self.order, offset) {
            (Order::Offsets { base, log, logged }, Some(offset)) => {
                let index = self.received[member];
                in_turn(member, Numbers::Offsets, offset, *base + index + 1)?;
                agreed(member, offset, key, log, logged, index)?;
            }
            (Order::Publishers { last }, None) => {
                let last = &mut last[member * self.publishers.len() + key.publisher as usize];
                in_turn(
                    member,
                    Numbers::Sequence(key.publisher),
                    key.sequence.into(),
                    u64::from(*last) + 1,
                )?;
                *last = key.sequence;
            }
            (Order::Offsets { .. }, None) | (Order::Publishers { .. }, Some(_)) => {
                return Err(invented);
            }
        }
        self.received[member] += 1;
        Ok(self.arrive(key))
    }

    /// Takes the acknowledgement of a publish by its publisher, which is `member`; whether the publish is complete with it.
    ///
    /// # Errors
    /// It is not the next one.
    pub(crate) fn acknowledge(&mut self, member: usize, key: Key) -> Result<bool, Fault> {
        let state = &mut self.publishers[key.publisher as usize];
        if key.sequence > state.sent {
            return Err(Fault::Invented { member, got: key });
        }
        let expected = u64::from(state.acknowledged) + 1;
        in_turn(
            member,
            Numbers::Acknowledgements(key.publisher),
            key.sequence.into(),
            expected,
        )?;
        state.acknowledged += 1;
        Ok(self.arrive(key))
    }

    /// Whether everything that was published has arrived everywhere, at the end of a run.
    ///
    /// # Errors
    /// What is missing, of the first member that lacks something.
    pub(crate) fn finish(&self) -> Result<(), Fault> {
        let expected = self
            .publishers
            .iter()
            .map(|publisher| u64::from(publisher.sent))
            .sum();
        for (member, got) in self.received.iter().copied().enumerate() {
            if got != expected {
                return Err(Fault::Lost {
                    member,
                    got,
                    expected,
                });
            }
        }
        // Every delivery is there, so what is open lacks its reply.
        let open = self
            .publishers
            .iter()
            .enumerate()
            .find(|(_, state)| !state.arrived.is_empty());
        open.map_or(Ok(()), |(publisher, state)| {
            Err(Fault::Unacknowledged {
                publisher,
                got: state.acknowledged,
                expected: state.sent,
            })
        })
    }

    /// Counts an arrival. Publishes of one publisher complete in order, since each of their arrivals comes in order.
    fn arrive(&mut self, key: Key) -> bool {
        let publisher = &mut self.publishers[key.publisher as usize];
        let index = (key.sequence - publisher.complete - 1) as usize;
        publisher.arrived[index] += 1;
        let complete = publisher.arrived[index] == self.arrivals;
        while publisher.arrived.front() == Some(&self.arrivals) {
            publisher.arrived.pop_front();
            publisher.complete += 1;
        }
        complete
    }
}

fn in_turn(member: usize, of: Numbers, got: u64, expected: u64) -> Result<(), Fault> {
    match got {
        _ if got == expected => Ok(()),
        _ if got < expected => Err(Fault::Doubled {
            member,
            of,
            got,
            expected,
        }),
        _ => Err(Fault::Skipped {
            member,
            of,
            got,
            expected,
        }),
    }
}

/// The first to see an offset says what stands there; everybody else must see the same.
fn agreed(
    member: usize,
    offset: u64,
    key: Key,
    log: &mut Vec<Key>,
    logged: &mut [u32],
    index: u64,
) -> Result<(), Fault> {
    let seen = usize::try_from(index).ok().and_then(|index| log.get(index));
    match seen {
        Some(expected) if *expected == key => Ok(()),
        Some(expected) => Err(Fault::Disagreement {
            member,
            offset,
            got: key,
            expected: *expected,
        }),
        None => {
            let last = &mut logged[key.publisher as usize];
            in_turn(
                member,
                Numbers::Sequence(key.publisher),
                key.sequence.into(),
                u64::from(*last) + 1,
            )?;
            *last = key.sequence;
            log.push(key);
            Ok(())
        }
    }
}

/// The payloads of a run: the key, and filling that shows damage. All of it is printable ASCII that neither JSON nor any other
/// text has to escape, since some peers carry nothing else.
#[derive(Debug, Clone)]
pub(crate) struct Pattern(Vec<u8>);

/// Digits of the key, six bits each: more publishers than a process may have connections, and more publishes than fit into any run.
const PUBLISHER_DIGITS: usize = 3;
const SEQUENCE_DIGITS: usize = 5;

impl Pattern {
    /// Shortest payload, in bytes: the key has to fit.
    pub(crate) const BYTES_MIN: usize = PUBLISHER_DIGITS + SEQUENCE_DIGITS;

    /// Payloads of a length, at least [`Pattern::BYTES_MIN`].
    pub(crate) fn new(bytes: usize) -> Self {
        Self(
            (0..64)
                .map(digit)
                .cycle()
                .take(bytes.max(Self::BYTES_MIN))
                .collect(),
        )
    }

    /// Whether there are payloads of a length.
    ///
    /// # Errors
    /// Which lengths there are.
    pub(crate) fn check(bytes: usize) -> anyhow::Result<()> {
        anyhow::ensure!(
            (Self::BYTES_MIN..=usize::from(u16::MAX)).contains(&bytes),
            "a payload may have {} to {} bytes",
            Self::BYTES_MIN,
            u16::MAX
        );
        Ok(())
    }

    /// The payload of a publish.
    pub(crate) fn write(&mut self, key: Key) -> &[u8] {
        let (publisher, rest) = self.0.split_at_mut(PUBLISHER_DIGITS);
        write_digits(key.publisher, publisher);
        write_digits(key.sequence, &mut rest[..SEQUENCE_DIGITS]);
        &self.0
    }

    /// The publish of a payload.
    ///
    /// # Errors
    /// It is none of this pattern's.
    pub(crate) fn read(&self, payload: &[u8]) -> Result<Key, Fault> {
        let damaged = Fault::Damaged {
            bytes: payload.len(),
        };
        let (key, filling) = payload
            .split_at_checked(Self::BYTES_MIN)
            .ok_or_else(|| damaged.clone())?;
        let (publisher, sequence) = key.split_at(PUBLISHER_DIGITS);
        match (read_digits(publisher), read_digits(sequence)) {
            (Some(publisher), Some(sequence)) if *filling == self.0[Self::BYTES_MIN..] => Ok(Key {
                publisher,
                sequence,
            }),
            _ => Err(damaged),
        }
    }
}

/// The lowest six bits as `#` to `c`, without the backslash between them.
const fn digit(value: u8) -> u8 {
    let character = b'#' + (value & 0x3f);
    if character < b'\\' {
        character
    } else {
        character + 1
    }
}

/// The lowest digit first.
fn write_digits(mut value: u32, out: &mut [u8]) {
    for character in out {
        *character = digit(value.to_le_bytes()[0]);
        value >>= 6;
    }
}

fn read_digits(digits: &[u8]) -> Option<u32> {
    digits.iter().rev().try_fold(0, |value, character| {
        let digit = match character {
            b'#'..=b'[' => character - b'#',
            b']'..=b'c' => character - b'#' - 1,
            _ => return None,
        };
        Some(value << 6 | u32::from(digit))
    })
}

impl std::fmt::Display for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Offsets => f.write_str("the room's offsets"),
            Self::Sequence(publisher) => write!(f, "publisher {publisher}'s publishes"),
            Self::Acknowledgements(publisher) => write!(f, "the replies to publisher {publisher}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn key(publisher: u32, sequence: u32) -> Key {
        Key {
            publisher,
            sequence,
        }
    }

    /// Two members, two publishers, one publish of each; the room stood at offset 10.
    fn numbered() -> Verifier {
        let mut verifier = Verifier::with_offsets(10, 2, 2);
        assert_eq!(verifier.publish(0), key(0, 1));
        assert_eq!(verifier.publish(1), key(1, 1));
        verifier
    }

    fn unnumbered() -> Verifier {
        let mut verifier = Verifier::without_offsets(2, 2);
        for publisher in [0, 0, 1] {
            verifier.publish(publisher);
        }
        verifier
    }

    #[test]
    fn what_arrives_everywhere_once_and_in_order_is_complete() {
        let mut verifier = numbered();
        assert_eq!(verifier.deliver(0, Some(11), key(1, 1)), Ok(false));
        assert_eq!(verifier.deliver(0, Some(12), key(0, 1)), Ok(false));
        assert_eq!(verifier.deliver(1, Some(11), key(1, 1)), Ok(false));
        assert_eq!(verifier.acknowledge(1, key(1, 1)), Ok(true));
        assert_eq!(verifier.acknowledge(0, key(0, 1)), Ok(false));
        assert_eq!(verifier.deliver(1, Some(12), key(0, 1)), Ok(true));
        assert_eq!(verifier.finish(), Ok(()));
    }

    #[test]
    fn without_offsets_only_each_publishers_order_counts() {
        let mut verifier = unnumbered();
        for (member, key) in [
            (0, key(1, 1)),
            (0, key(0, 1)),
            (1, key(0, 1)),
            (1, key(0, 2)),
            (0, key(0, 2)),
        ] {
            verifier.deliver(member, None, key).unwrap();
        }
        assert_eq!(verifier.deliver(1, None, key(1, 1)), Ok(true));
        assert_eq!(verifier.finish(), Ok(()));
    }

    #[test]
    fn a_lost_delivery_is_detected() {
        let mut verifier = numbered();
        verifier.deliver(0, Some(11), key(0, 1)).unwrap();
        verifier.deliver(0, Some(12), key(1, 1)).unwrap();
        let skipped = Fault::Skipped {
            member: 1,
            of: Numbers::Offsets,
            got: 12,
            expected: 11,
        };
        assert_eq!(verifier.deliver(1, Some(12), key(1, 1)), Err(skipped));
        assert_eq!(
            verifier.finish(),
            Err(Fault::Lost {
                member: 1,
                got: 0,
                expected: 2
            })
        );

        let mut verifier = unnumbered();
        let skipped = Fault::Skipped {
            member: 1,
            of: Numbers::Sequence(0),
            got: 2,
            expected: 1,
        };
        assert_eq!(verifier.deliver(1, None, key(0, 2)), Err(skipped));
        assert_eq!(
            verifier.finish(),
            Err(Fault::Lost {
                member: 0,
                got: 0,
                expected: 3
            })
        );
    }

    #[test]
    fn a_doubled_delivery_is_detected() {
        let mut verifier = numbered();
        verifier.deliver(0, Some(11), key(0, 1)).unwrap();
        let again = Fault::Doubled {
            member: 0,
            of: Numbers::Offsets,
            got: 11,
            expected: 12,
        };
        assert_eq!(verifier.deliver(0, Some(11), key(0, 1)), Err(again));
        // The same publish in two places of the log.
        let twice = Fault::Doubled {
            member: 0,
            of: Numbers::Sequence(0),
            got: 1,
            expected: 2,
        };
        assert_eq!(verifier.deliver(0, Some(12), key(0, 1)), Err(twice));

        let mut verifier = unnumbered();
        verifier.deliver(1, None, key(0, 1)).unwrap();
        let again = Fault::Doubled {
            member: 1,
            of: Numbers::Sequence(0),
            got: 1,
            expected: 2,
        };
        assert_eq!(verifier.deliver(1, None, key(0, 1)), Err(again));
    }

    #[test]
    fn a_reordered_delivery_is_detected() {
        let mut verifier = numbered();
        verifier.deliver(0, Some(11), key(0, 1)).unwrap();
        let other = Fault::Disagreement {
            member: 1,
            offset: 11,
            got: key(1, 1),
            expected: key(0, 1),
        };
        assert_eq!(verifier.deliver(1, Some(11), key(1, 1)), Err(other));

        let mut verifier = unnumbered();
        let early = Fault::Skipped {
            member: 0,
            of: Numbers::Sequence(0),
            got: 2,
            expected: 1,
        };
        assert_eq!(verifier.deliver(0, None, key(0, 2)), Err(early));
    }

    #[test]
    fn what_nobody_published_is_detected() {
        let mut verifier = numbered();
        assert_eq!(
            verifier.deliver(0, Some(11), key(0, 2)),
            Err(Fault::Invented {
                member: 0,
                got: key(0, 2)
            })
        );
        assert_eq!(
            verifier.deliver(0, Some(11), key(7, 1)),
            Err(Fault::Invented {
                member: 0,
                got: key(7, 1)
            })
        );
        assert_eq!(
            verifier.acknowledge(0, key(0, 2)),
            Err(Fault::Invented {
                member: 0,
                got: key(0, 2)
            })
        );
    }

    #[test]
    fn a_missing_or_doubled_acknowledgement_is_detected() {
        let mut verifier = Verifier::with_offsets(0, 1, 1);
        verifier.publish(0);
        verifier.deliver(0, Some(1), key(0, 1)).unwrap();
        let missing = Fault::Unacknowledged {
            publisher: 0,
            got: 0,
            expected: 1,
        };
        assert_eq!(verifier.finish(), Err(missing));
        assert_eq!(verifier.acknowledge(0, key(0, 1)), Ok(true));
        let again = Fault::Doubled {
            member: 0,
            of: Numbers::Acknowledgements(0),
            got: 1,
            expected: 2,
        };
        assert_eq!(verifier.acknowledge(0, key(0, 1)), Err(again));
    }

    #[test]
    fn a_payload_gives_its_key_back_and_shows_damage() {
        let mut pattern = Pattern::new(64);
        let mut payload = pattern.write(key(3, 77)).to_vec();
        assert_eq!(payload.len(), 64);
        assert_eq!(pattern.read(&payload), Ok(key(3, 77)));
        for far in [key((1 << 18) - 1, (1 << 30) - 1), key(0, 1), key(64, 4096)] {
            let payload = pattern.write(far).to_vec();
            let escaped = |byte: &u8| !(b' '..=b'~').contains(byte) || b"\"\\".contains(byte);
            assert!(!payload.iter().any(escaped), "{payload:?}");
            assert_eq!(pattern.read(&payload), Ok(far));
        }
        assert_eq!(
            pattern.read(&payload[..63]),
            Err(Fault::Damaged { bytes: 63 })
        );
        assert_eq!(pattern.read(&[]), Err(Fault::Damaged { bytes: 0 }));
        payload[40] ^= 1;
        assert_eq!(pattern.read(&payload), Err(Fault::Damaged { bytes: 64 }));
    }
}
