//! Which operations took effect already: the op-id window of a room.
//!
//! A producer's accepted results are kept for its last `results_max` sequences, as long as a member publishes
//! with it and for `window_ms` after. Each producer has a floor: at and below it nothing is known any more,
//! and the answer is a refusal rather than a second effect. A producer that the room does not know starts
//! with the floor that its join declares, so that forgetting one is always safe.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use roomful_protocol::frame::{OpId, Published};
use roomful_protocol::id::{Epoch, Offset, ProducerId, Sequence, UserId};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

/// A producer id belongs to whoever chose it.
pub type ProducerKey = (Scope, ProducerId);

/// Among whom a producer id is unique.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Scope {
    /// One user's connections.
    User(UserId),
    /// All anonymous users, since their names are given by the server and change.
    Anonymous,
    /// The back end's calls, whatever user they name: nobody else can take their ids.
    BackEnd,
}

/// The sequence of every operation of the back end: each has a producer of its own.
pub const BACK_END_SEQUENCE: Sequence = Sequence(1);

impl Scope {
    /// That of a user's connections.
    #[must_use]
    pub fn of(user: &UserId, anonymous: bool) -> Self {
        if anonymous {
            Self::Anonymous
        } else {
            Self::User(user.clone())
        }
    }
}

/// The window of one room.
#[derive(Debug)]
pub struct Operations {
    bounds: OperationBounds,
    producers: HashMap<ProducerKey, Producer>,
    /// Producers without a member, by the time at which the last one left: the order in which they are forgotten.
    absent: BTreeSet<(u64, ProducerKey)>,
    /// Until then everything that ever took effect is known, so that what a join declares needs no trust; in
    /// milliseconds since 1970.
    complete_until_ms: u64,
    /// What is restored comes from a log that has lost entries whose results would still be remembered.
    is_partial: bool,
    /// Results of all producers.
    results: usize,
    digests: DigestKey,
}

/// What payloads are digested with (`SipHash`-1-3, Aumasson and Bernstein 2012): a secret of the room, so that nobody can make two
/// payloads look the same.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct DigestKey(u64, u64);

/// A window as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stored {
    digests: DigestKey,
    producers: Vec<StoredProducer>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct StoredProducer {
    scope: Scope,
    producer: ProducerId,
    floor: Sequence,
    /// Sequence, digest, place and time of each.
    results: Vec<(Sequence, Option<u64>, Offset, u64)>,
}

/// How much is remembered.
#[derive(Debug, Clone, Copy)]
pub struct OperationBounds {
    /// Results per producer.
    pub results_max: usize,
    /// Time after a producer's last member left, in milliseconds.
    pub window_ms: u64,
    /// Producers without a member; beyond it the longest absent one is forgotten.
    pub absent_max: usize,
}

#[derive(Debug)]
struct Producer {
    /// At and below this sequence nothing is known.
    floor: Sequence,
    results: BTreeMap<Sequence, Known>,
    /// There may be more above the floor: the log that they were taken from doesn't show everything.
    is_partial: bool,
    /// How many members publish with it.
    members: usize,
    /// When the last of them left, in milliseconds since 1970.
    absent_since_ms: u64,
}

impl Producer {
    fn new(floor: Sequence) -> Self {
        Self {
            floor,
            results: BTreeMap::new(),
            is_partial: false,
            members: 0,
            absent_since_ms: 0,
        }
    }
}

/// An operation that was accepted: in flight to the journal, or stored.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// None where the log alone tells of it and doesn't show what was asked for.
    digest: Option<u64>,
    outcome: Published,
}

/// What a log and the window that is stored with it show of operations that took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shows {
    /// Everything that ever did.
    All,
    /// Everything that was remembered.
    Remembered,
    /// Less than that: entries are gone that no window was stored behind.
    Part,
}

/// What is known of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Nothing: judge it.
    New,
    /// It stands here. While its offset is above the committed head it is still on its way into the journal.
    Accepted(Published),
    /// It is below the window.
    Expired,
    /// The same id came with another payload.
    Conflict,
}

impl Operations {
    /// An empty window.
    #[must_use]
    pub fn new(bounds: OperationBounds) -> Self {
        Self {
            bounds,
            producers: HashMap::new(),
            absent: BTreeSet::new(),
            results: 0,
            complete_until_ms: 0,
            is_partial: false,
            digests: DigestKey::random(),
        }
    }

    /// Takes other bounds; what is beyond them goes as members and operations come.
    pub const fn set_bounds(&mut self, bounds: OperationBounds) {
        self.bounds = bounds;
    }

    /// A member comes with a producer and says which sequence it has never sent. Only a producer that is not
    /// known, or not wholly, takes the floor from it.
    pub fn join(&mut self, key: &ProducerKey, next: Sequence, now_ms: u64) {
        let floor = if now_ms < self.complete_until_ms {
            Sequence(0)
        } else {
            Sequence(next.0.saturating_sub(1))
        };
        let producer = self
            .producers
            .entry(key.clone())
            .or_insert_with(|| Producer::new(floor));
        if std::mem::take(&mut producer.is_partial) {
            producer.floor = producer.floor.max(floor);
        }
        if producer.members == 0 {
            self.absent.remove(&(producer.absent_since_ms, key.clone()));
        }
        producer.members += 1;
    }

    /// A member with this producer is gone.
    pub fn leave(&mut self, key: &ProducerKey, now_ms: u64) {
        let Some(producer) = self.producers.get_mut(key) else {
            return;
        };
        producer.members = producer.members.saturating_sub(1);
        if producer.members == 0 {
            producer.absent_since_ms = now_ms;
            self.absent.insert((now_ms, key.clone()));
        }
        while self.absent.len() > self.bounds.absent_max {
            self.forget_oldest();
        }
    }

    /// A window that is filled from a log and what was stored with it.
    pub fn begin_again(&mut self, shows: Shows, now_ms: u64) {
        self.is_partial = shows == Shows::Part;
        // Nothing of the log is forgotten before its producer has been absent for the window.
        self.complete_until_ms = match shows {
            Shows::All => now_ms + self.bounds.window_ms,
            Shows::Remembered | Shows::Part => 0,
        };
    }

    /// Remembers an operation that a log shows. Of a producer that is not known yet, nothing is known at and below the
    /// sequence before this one.
    pub fn restore(
        &mut self,
        key: &ProducerKey,
        op: OpId,
        payload: Option<&Payload>,
        outcome: Published,
        now_ms: u64,
    ) {
        let complete = now_ms < self.complete_until_ms;
        let floor = if complete {
            0
        } else {
            op.sequence.0.saturating_sub(1)
        };
        if !self.producers.contains_key(key) {
            let mut producer = Producer::new(Sequence(floor));
            producer.is_partial = self.is_partial;
            producer.absent_since_ms = now_ms;
            self.producers.insert(key.clone(), producer);
            self.absent.insert((now_ms, key.clone()));
        }
        self.accept(key, op, payload, outcome);
        while self.absent.len() > self.bounds.absent_max {
            self.forget_oldest();
        }
    }

    /// How many results are known.
    #[must_use]
    pub fn results(&self) -> usize {
        self.results
    }

    /// The window as it is to be stored: what stands in the log up to an offset.
    #[must_use]
    pub fn to_stored(&self, until: Offset) -> Stored {
        let producers = self.producers.iter().map(|((scope, producer), known)| {
            let results = known.results.iter().map(|(sequence, known)| {
                let Published {
                    position, time_ms, ..
                } = known.outcome;
                (*sequence, known.digest, position.offset, time_ms)
            });
            StoredProducer {
                scope: scope.clone(),
                producer: *producer,
                floor: known.floor,
                results: results
                    .filter(|(_, _, offset, _)| *offset <= until)
                    .collect(),
            }
        });
        let mut producers: Vec<_> = producers
            .filter(|producer| !producer.results.is_empty())
            .collect();
        producers.sort_unstable_by(|one, other| {
            (&one.scope, one.producer).cmp(&(&other.scope, other.producer))
        });
        Stored {
            digests: self.digests,
            producers,
        }
    }

    /// Begins with a stored window: nobody publishes with any of its producers yet.
    pub fn adopt(&mut self, stored: Stored, epoch: Epoch, now_ms: u64) {
        self.digests = stored.digests;
        for known in stored.producers {
            let key = (known.scope, known.producer);
            let mut producer = Producer::new(known.floor);
            producer.is_partial = self.is_partial;
            producer.absent_since_ms = now_ms;
            for (sequence, digest, offset, time_ms) in known.results {
                let outcome = Published {
                    position: Position::new(epoch, offset),
                    time_ms,
                    duplicate: false,
                };
                producer.results.insert(sequence, Known { digest, outcome });
            }
            self.results += producer.results.len();
            self.absent.insert((now_ms, key.clone()));
            self.producers.insert(key, producer);
        }
    }

    /// Takes an acceptance back: its append failed, so only the log knows whether it took effect.
    pub fn withdraw(&mut self, key: &ProducerKey, op: OpId) {
        if let Some(producer) = self.producers.get_mut(key) {
            self.results -= usize::from(producer.results.remove(&op.sequence).is_some());
        }
    }

    /// Looks an operation up.
    #[must_use]
    pub fn look_up(&self, key: &ProducerKey, sequence: Sequence, payload: &Payload) -> Seen {
        let Some(producer) = self.producers.get(key) else {
            return Seen::New;
        };
        match producer.results.get(&sequence) {
            Some(known)
                if known
                    .digest
                    .is_none_or(|digest| digest == self.digest(payload)) =>
            {
                Seen::Accepted(known.outcome)
            }
            Some(_) => Seen::Conflict,
            None if sequence <= producer.floor => Seen::Expired,
            None => Seen::New,
        }
    }

    /// Remembers an accepted operation of a producer that has joined. Without a payload any that comes later is taken for the
    /// same.
    pub fn accept(
        &mut self,
        key: &ProducerKey,
        op: OpId,
        payload: Option<&Payload>,
        outcome: Published,
    ) {
        let digest = payload.map(|payload| self.digest(payload));
        let Some(producer) = self.producers.get_mut(key) else {
            return;
        };
        let before = producer.results.len();
        producer
            .results
            .insert(op.sequence, Known { digest, outcome });
        while producer.results.len() > self.bounds.results_max {
            if let Some((oldest, _)) = producer.results.pop_first() {
                producer.floor = producer.floor.max(oldest);
            }
        }
        self.results += producer.results.len();
        self.results -= before;
    }

    /// Forgets producers that have been absent for longer than the window.
    pub fn expire(&mut self, now_ms: u64) {
        while self.next_expiry_ms().is_some_and(|due_ms| due_ms <= now_ms) {
            self.forget_oldest();
        }
    }

    /// When [`Operations::expire`] has something to do next.
    #[must_use]
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.absent
            .first()
            .map(|(since_ms, _)| since_ms + self.bounds.window_ms)
    }

    /// About what it takes in memory, in bytes.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.producers.len() * PRODUCER_BYTES + self.results * RESULT_BYTES
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.absent.pop_first() {
            let forgotten = self.producers.remove(&key);
            self.results -= forgotten.map_or(0, |producer| producer.results.len());
            self.complete_until_ms = 0;
        }
    }

    fn digest(&self, payload: &Payload) -> u64 {
        let DigestKey(one, other) = self.digests;
        let mut hasher = SipHasher13::new_with_keys(one, other);
        hasher.write(&[payload.format as u8]);
        hasher.write(&payload.bytes);
        hasher.finish()
    }
}

impl DigestKey {
    fn random() -> Self {
        let random = RandomState::new();
        Self(random.hash_one(0), random.hash_one(1))
    }
}

/// A producer in its map, and in the order of the absent ones.
const PRODUCER_BYTES: usize = 320;

/// A result in its tree, whose nodes are a little more than half full.
const RESULT_BYTES: usize = 112;

#[cfg(test)]
mod tests {
    use roomful_protocol::id::{Epoch, Offset};
    use roomful_protocol::position::Position;

    use super::*;

    const BOUNDS: OperationBounds = OperationBounds {
        results_max: 3,
        window_ms: 1000,
        absent_max: 2,
    };

    fn key(producer: u64) -> ProducerKey {
        (Scope::Anonymous, ProducerId(producer))
    }

    fn published(offset: u64) -> Published {
        Published {
            position: Position::new(Epoch(1), Offset(offset)),
            time_ms: 0,
            duplicate: false,
        }
    }

    fn joined(producer: u64) -> Operations {
        let mut window = Operations::new(BOUNDS);
        window.join(&key(producer), Sequence(1), 0);
        window
    }

    fn accept(window: &mut Operations, producer: u64, sequence: u64) {
        let op = OpId {
            producer: ProducerId(producer),
            sequence: Sequence(sequence),
        };
        let payload = Payload::text("a");
        window.accept(&key(producer), op, Some(&payload), published(sequence));
    }

    fn seen(window: &Operations, producer: u64, sequence: u64, text: &str) -> Seen {
        window.look_up(&key(producer), Sequence(sequence), &Payload::text(text))
    }

    #[test]
    fn a_resend_gets_the_first_result_and_another_payload_is_a_conflict() {
        let mut window = joined(1);
        assert_eq!(seen(&window, 1, 1, "a"), Seen::New);
        accept(&mut window, 1, 1);
        assert_eq!(seen(&window, 1, 1, "a"), Seen::Accepted(published(1)));
        assert_eq!(seen(&window, 1, 1, "b"), Seen::Conflict);
    }

    #[test]
    fn where_the_log_does_not_show_what_was_asked_any_resend_gets_the_result() {
        let mut window = joined(1);
        let op = OpId {
            producer: ProducerId(1),
            sequence: Sequence(1),
        };
        window.accept(&key(1), op, None, published(1));
        assert_eq!(seen(&window, 1, 1, "a"), Seen::Accepted(published(1)));
        assert_eq!(seen(&window, 1, 1, "b"), Seen::Accepted(published(1)));
    }

    /// A stored window answers as the one that it was made of, up to where it was stored.
    #[test]
    fn a_stored_window_answers_as_before() {
        let mut window = joined(1);
        for sequence in 1..=5 {
            accept(&mut window, 1, sequence);
        }
        let stored = window.to_stored(Offset(4));
        let bytes = rmp_serde::to_vec(&stored).unwrap();
        let mut again = Operations::new(BOUNDS);
        again.adopt(rmp_serde::from_slice(&bytes).unwrap(), Epoch(1), 0);
        assert_eq!(again.results(), 2);
        assert_eq!(seen(&again, 1, 2, "a"), Seen::Expired);
        for sequence in 3..=4 {
            let known = Seen::Accepted(published(sequence));
            assert_eq!(seen(&again, 1, sequence, "a"), known);
            assert_eq!(seen(&again, 1, sequence, "b"), Seen::Conflict);
        }
        assert_eq!(seen(&again, 1, 5, "a"), Seen::New);
        again.expire(BOUNDS.window_ms);
        assert_eq!((again.results(), again.held_bytes()), (0, 0));
    }

    /// A log that has lost its first entries shows a late operation and not an earlier one with a higher number: that may have taken
    /// effect, so it is not taken again.
    #[test]
    fn what_a_log_may_have_lost_is_refused() {
        let op = OpId {
            producer: ProducerId(1),
            sequence: Sequence(3),
        };
        let payload = Payload::text("a");
        for (shows, known) in [
            (Shows::Part, Seen::Expired),
            (Shows::Remembered, Seen::New),
            (Shows::All, Seen::New),
        ] {
            let mut window = Operations::new(BOUNDS);
            window.begin_again(shows, 0);
            window.restore(&key(1), op, Some(&payload), published(3), 0);
            window.join(&key(1), Sequence(6), 0);
            assert_eq!(seen(&window, 1, 3, "a"), Seen::Accepted(published(3)));
            assert_eq!(seen(&window, 1, 5, "a"), known);
            assert_eq!(seen(&window, 1, 6, "a"), Seen::New);
        }
    }

    #[test]
    fn below_the_window_the_answer_is_a_refusal() {
        let mut window = joined(1);
        (1..=5).for_each(|sequence| accept(&mut window, 1, sequence));
        assert_eq!(seen(&window, 1, 2, "a"), Seen::Expired);
        assert_eq!(seen(&window, 1, 3, "a"), Seen::Accepted(published(3)));
    }

    #[test]
    fn a_forgotten_producer_that_comes_back_is_refused_what_it_sent_before() {
        let mut window = joined(1);
        accept(&mut window, 1, 1);
        window.leave(&key(1), 0);
        window.expire(999);
        assert_eq!(seen(&window, 1, 1, "a"), Seen::Accepted(published(1)));
        window.expire(1000);
        window.join(&key(1), Sequence(2), 0);
        assert_eq!(seen(&window, 1, 1, "a"), Seen::Expired);
        assert_eq!(seen(&window, 1, 2, "a"), Seen::New);
    }

    #[test]
    fn a_producer_is_not_forgotten_while_a_member_publishes_with_it() {
        let mut window = joined(1);
        window.join(&key(1), Sequence(9), 0);
        accept(&mut window, 1, 1);
        window.leave(&key(1), 0);
        window.expire(5000);
        assert_eq!(seen(&window, 1, 1, "a"), Seen::Accepted(published(1)));
    }

    #[test]
    fn absent_producers_are_bounded_and_the_longest_absent_one_goes_first() {
        let mut window = joined(1);
        accept(&mut window, 1, 1);
        window.leave(&key(1), 1);
        for producer in 2..=3 {
            window.join(&key(producer), Sequence(1), 0);
            accept(&mut window, producer, 1);
            window.leave(&key(producer), producer);
        }
        assert_eq!(seen(&window, 2, 1, "a"), Seen::Accepted(published(1)));
        window.join(&key(1), Sequence(2), 0);
        assert_eq!(seen(&window, 1, 1, "a"), Seen::Expired);
    }
}
