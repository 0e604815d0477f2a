//! What members have left with the server to be written when they are gone.
//!
//! The room calls it, on one copy for what is committed and on another for what is on its way. Each session has at most one such
//! write, which is kept until it is replaced, taken away or made; it is stored as an entry of the server's own, that nobody is
//! sent. It stands beside the id of the token that it came with, since whether its author may still write is asked when it is
//! made. All of them together are bounded in bytes. What a member's token of now says of what it has left is an entry too, which
//! may have to wait until the journal takes one: `Grants` has it until then. Who is gone, the room knows.

use std::collections::BTreeMap;

use roomful_protocol::frame::Change;
use roomful_protocol::id::{MemberId, SessionId, UserId};
use roomful_protocol::payload::{Payload, PayloadFormat};

use super::snapshot::{self, Undecodable, decode};
use crate::auth::TokenId;
use crate::metrics::Quota;
use crate::shard::message::StateGrant;

/// What has been left, by session.
#[derive(Debug, Clone, Default)]
pub struct Departures {
    by_session: BTreeMap<SessionId, Departure>,
    /// Bytes of keys and values.
    bytes: usize,
}

/// What one member has left; nothing where it has no changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departure {
    /// The member.
    pub member: MemberId,
    /// Its session.
    pub session: SessionId,
    /// Its user.
    pub user: UserId,
    /// The token that it was left with.
    pub token_id: Option<TokenId>,
    /// What to write.
    pub changes: Vec<Change>,
}

/// What the tokens of now say of what has been left, where that is not stored yet. It outlives a log that is opened again, since
/// that may know an earlier token.
#[derive(Debug, Default)]
pub(super) struct Grants {
    by_session: BTreeMap<SessionId, StateGrant>,
}

/// As it is stored.
pub(super) type Stored = (MemberId, SessionId, UserId, Option<String>, Vec<Change>);

impl Departures {
    /// Judges what is to be left.
    ///
    /// # Errors
    /// All together would be more than there may be.
    pub fn check(&self, departure: &Departure, bytes_max: usize) -> Result<(), Quota> {
        let before = self.by_session.get(&departure.session);
        let before = before.map_or(0, Departure::bytes);
        let bytes = departure.bytes();
        if bytes > before && self.bytes - before + bytes > bytes_max {
            return Err(Quota::DepartureBytes);
        }
        Ok(())
    }

    /// Takes what an entry says.
    pub fn apply(&mut self, departure: Departure) {
        let before = self.by_session.remove(&departure.session);
        self.bytes -= before.map_or(0, |before| before.bytes());
        if !departure.changes.is_empty() {
            self.bytes += departure.bytes();
            self.by_session.insert(departure.session, departure);
        }
    }

    /// What a session has left.
    #[must_use]
    pub fn of(&self, session: SessionId) -> Option<&Departure> {
        self.by_session.get(&session)
    }

    /// All of them, by session.
    pub fn iter(&self) -> impl Iterator<Item = &Departure> {
        self.by_session.values()
    }

    /// Whether nothing has been left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_session.is_empty()
    }

    /// About what they take in memory, in bytes.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.bytes + self.by_session.len() * DEPARTURE_BYTES
    }
}

impl Grants {
    /// Takes what the token of a session says now; whether something is to be stored of it. What is stored and what is on its
    /// way may differ, and either may be what stays.
    pub(super) fn note(
        &mut self,
        session: SessionId,
        grant: &StateGrant,
        known: [&Departures; 2],
    ) -> bool {
        let mut left = known.iter().filter_map(|known| known.of(session));
        let is_news = left.any(|left| left.under(grant).is_some());
        if is_news {
            self.by_session.insert(session, grant.clone());
        } else {
            self.by_session.remove(&session);
        }
        is_news
    }

    /// What is to be stored next.
    pub(super) fn due(&self, known: &Departures) -> Option<Departure> {
        let mut noted = self.by_session.iter();
        noted.find_map(|(session, grant)| known.of(*session)?.under(grant))
    }

    /// Forgets the token of a session if it is stored.
    pub(super) fn stored(&mut self, session: SessionId, known: &Departures) {
        let both = known.of(session).zip(self.by_session.get(&session));
        if both.is_none_or(|(left, grant)| left.under(grant).is_none()) {
            self.by_session.remove(&session);
        }
    }

    /// Forgets what a log that was opened says already.
    pub(super) fn opened(&mut self, known: Option<&Departures>) {
        self.by_session.retain(|session, grant| {
            let left = known.and_then(|known| known.of(*session));
            left.is_some_and(|left| left.under(grant).is_some())
        });
    }

    /// Whether all is stored.
    pub(super) fn is_empty(&self) -> bool {
        self.by_session.is_empty()
    }

    /// About what they take in memory, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        self.by_session.len() * GRANT_BYTES
    }
}

impl Departure {
    /// What becomes of it by the token of now; none where it stays.
    fn under(&self, grant: &StateGrant) -> Option<Self> {
        if !grant.is_allowed {
            return Some(self.emptied());
        }
        let is_other = self.token_id != grant.token_id;
        is_other.then(|| Self {
            token_id: grant.token_id.clone(),
            ..self.clone()
        })
    }

    /// The same with nothing to write.
    #[must_use]
    pub fn emptied(&self) -> Self {
        Self {
            changes: Vec::new(),
            ..self.clone()
        }
    }

    /// As an entry carries it.
    #[must_use]
    pub fn to_payload(&self) -> Payload {
        Payload {
            format: PayloadFormat::MessagePack,
            bytes: snapshot::record(&(TAG, self.to_stored())).into(),
        }
    }

    /// Reads an entry's payload.
    ///
    /// # Errors
    /// It is none of these.
    pub fn from_payload(payload: &Payload) -> Result<Self, Undecodable> {
        let (tag, stored): (u8, Stored) = decode(&payload.bytes)?;
        if tag != TAG {
            return Err(Undecodable(format!("a record of kind {tag}")));
        }
        Self::from_stored(stored)
    }

    pub(super) fn to_stored(&self) -> Stored {
        let token_id = self.token_id.as_ref().map(|id| id.as_str().to_owned());
        let changes = self.changes.clone();
        (
            self.member,
            self.session,
            self.user.clone(),
            token_id,
            changes,
        )
    }

    pub(super) fn from_stored(stored: Stored) -> Result<Self, Undecodable> {
        let (member, session, user, token_id, changes) = stored;
        let token_id = match token_id {
            Some(text) => {
                let parsed = TokenId::parse(&text);
                Some(parsed.ok_or_else(|| Undecodable("a token id".to_owned()))?)
            }
            None => None,
        };
        Ok(Self {
            member,
            session,
            user,
            token_id,
            changes,
        })
    }

    fn bytes(&self) -> usize {
        let changes = self.changes.iter();
        changes
            .map(|change| {
                let value = change.value.as_ref().map_or(0, |value| value.bytes.len());
                change.key.as_str().len() + value + CHANGE_BYTES
            })
            .sum()
    }
}

/// The first field of the record, by which others of the server's own can be told from it.
const TAG: u8 = 1;

/// What a change is charged beside its key and value.
const CHANGE_BYTES: usize = 64;

/// One of them in its tree.
const DEPARTURE_BYTES: usize = 256;

/// What is noted of a token in its tree, with its id.
const GRANT_BYTES: usize = 384;

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use roomful_protocol::frame::Action;
    use roomful_protocol::id::Key;

    use super::*;

    pub(crate) fn departure(session: u128, texts: &[&str]) -> Departure {
        let change = |text: &&str| Change {
            key: Key::parse("k").unwrap(),
            action: Action::Put,
            value: Some(Payload::text(*text)),
            if_version: None,
            if_absent: true,
            if_fence: None,
        };
        Departure {
            member: MemberId(7),
            session: SessionId(session),
            user: UserId::parse("ann").unwrap(),
            token_id: TokenId::parse("jti-1"),
            changes: texts.iter().map(change).collect(),
        }
    }

    #[test]
    fn an_entry_tells_it_whole_and_nothing_else_is_read_as_one() {
        for departure in [departure(1, &["a", "b"]), departure(2, &[])] {
            let payload = departure.to_payload();
            assert_eq!(Departure::from_payload(&payload), Ok(departure));
            for cut in 0..payload.bytes.len() {
                let cut = Payload::binary(payload.bytes.slice(..cut));
                assert!(Departure::from_payload(&cut).is_err());
            }
        }
        let other = rmp_serde::to_vec(&(2_u8, departure(1, &[]).to_stored())).unwrap();
        assert!(Departure::from_payload(&Payload::binary(other)).is_err());
    }

    #[test]
    fn all_together_are_bounded_and_shrinking_passes() {
        let mut departures = Departures::default();
        let one = departure(1, &["12345"]);
        let max = 2 * one.bytes();
        departures.apply(one);
        assert!(departures.check(&departure(2, &["12345"]), max).is_ok());
        let more = departure(2, &["123456"]);
        assert_eq!(departures.check(&more, max), Err(Quota::DepartureBytes));
        assert!(departures.check(&departure(1, &["1"]), 0).is_ok());
    }

    /// Random ones against a map: the latest of each session, and the sum of their bytes.
    #[test]
    fn it_is_what_a_naive_model_says() {
        let mut random = StdRng::seed_from_u64(7);
        let mut departures = Departures::default();
        let mut model = BTreeMap::new();
        for _ in 0..500 {
            let session = random.random_range(0..5);
            let texts = &["a", "bb", "ccc"][..random.random_range(0..4)];
            let departure = departure(session, texts);
            departures.apply(departure.clone());
            model.insert(session, departure);
            model.retain(|_, departure| !departure.changes.is_empty());
            assert!(departures.iter().eq(model.values()));
            let bytes: usize = model.values().map(Departure::bytes).sum();
            assert_eq!(departures.bytes, bytes);
        }
    }
}
