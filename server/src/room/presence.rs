//! Who is in a room, and what changed since when.
//!
//! Changes are gathered and leave as one delta per interval. A reader that missed deltas asks for everything
//! since the revision it knows: members carry the revision of their last change, and those who left are
//! remembered for a while.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use roomful_protocol::frame::{ChangeKind, MemberInfo, MembersPage, PresenceChange, PresenceDelta};
use roomful_protocol::id::{MemberId, RoomAlias, SessionId, UserId};
use roomful_protocol::payload::Payload;

use super::operations::ProducerKey;
use crate::shard::message::{Attachment, ConnectionId, ShardId};

/// The members of a room.
#[derive(Debug, Default)]
pub struct Members {
    /// Boxed, since the nodes of a tree that grows at its end are half empty.
    by_number: BTreeMap<MemberId, Box<Member>>,
    by_session: HashMap<SessionId, MemberId>,
    /// Bytes of all values.
    value_bytes: usize,
    last_number: u64,
    revision: u64,
    /// Members whose change is in no delta yet.
    changed: BTreeSet<MemberId>,
    /// Those who left, with the revision that said so; the newest [`GONE_MAX`], and those of whom nobody was told.
    gone: VecDeque<(u64, MemberId, UserId)>,
    /// How many of them, the last ones, are in no delta yet; their revision is [`UNTOLD`].
    gone_untold: usize,
    /// Up to this revision, those who left are forgotten.
    gone_forgotten: u64,
    /// What the last delta said.
    occupancy_told: u64,
}

/// A session inside a room.
#[derive(Debug)]
pub struct Member {
    /// Whose it is; it comes back with the same.
    pub session: SessionId,
    /// Which attachment of the session is here, or was last.
    pub attachment: Attachment,
    /// Where it is; none while it is disconnected and its grace runs.
    pub location: Option<(ShardId, ConnectionId)>,
    /// How often it was disconnected: the grace of an earlier time says nothing about a later one.
    absences: u64,
    /// The user.
    pub user: UserId,
    /// Its presence value.
    pub value: Option<Payload>,
    /// The producer it publishes with.
    pub producer: Option<ProducerKey>,
    /// The revision of the last delta that told of it; [`UNTOLD`] before the first.
    changed: u64,
}

/// One of the times that a member was disconnected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Absence(u64);

/// How many of those who left are remembered.
const GONE_MAX: usize = 1024;

/// A member in both maps, without its value.
const MEMBER_BYTES: usize = 256;

/// One who left.
const GONE_BYTES: usize = 64;

fn length(value: Option<&Payload>) -> usize {
    value.map_or(0, |value| value.bytes.len() + VALUE_BYTES)
}

/// What the allocator and the shared buffer take for a value.
const VALUE_BYTES: usize = 64;

/// How many changes are told at once: thousands come and go in one moment, and a frame that tells of all of them would
/// keep the shard, and each reader's socket, for long.
const CHANGES_MAX: usize = 1024;

/// The revision of what is still to be told.
const UNTOLD: u64 = u64::MAX;

impl Members {
    /// Nobody, in the place of members who are gone with what was known of them: their numbers are not given again,
    /// and whoever knows a revision of theirs is told that it is too far back.
    #[must_use]
    pub fn after(last_number: MemberId, revision: u64) -> Self {
        Self {
            last_number: last_number.0,
            revision: revision + 1,
            gone_forgotten: revision + 1,
            ..Self::default()
        }
    }

    /// The number that was given last.
    #[must_use]
    pub fn last_number(&self) -> MemberId {
        MemberId(self.last_number)
    }

    /// How many there are, those in their grace included.
    #[must_use]
    pub fn occupancy(&self) -> u64 {
        self.by_number.len() as u64
    }

    /// About what they take in memory, in bytes.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.by_number.len() * MEMBER_BYTES + self.value_bytes + self.gone.len() * GONE_BYTES
    }

    /// The revision of the last delta.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// A member.
    #[must_use]
    pub fn get(&self, member: MemberId) -> Option<&Member> {
        self.by_number.get(&member).map(Box::as_ref)
    }

    /// A member, to change where it is; changes of its value go through [`Members::set_value`].
    pub fn get_mut(&mut self, member: MemberId) -> Option<&mut Member> {
        self.by_number.get_mut(&member).map(Box::as_mut)
    }

    /// The member of a session.
    #[must_use]
    pub fn of_session(&self, session: SessionId) -> Option<MemberId> {
        self.by_session.get(&session).copied()
    }

    /// A member's connection is gone. The number of this absence, unless it has begun already.
    pub fn disconnect(&mut self, number: MemberId) -> Option<Absence> {
        let member = self.by_number.get_mut(&number)?;
        member.location.take()?;
        member.absences += 1;
        Some(Absence(member.absences))
    }

    /// Whether a member is still in this absence.
    #[must_use]
    pub fn is_absent(&self, number: MemberId, absence: Absence) -> bool {
        let member = self.by_number.get(&number);
        member.is_some_and(|member| member.location.is_none() && member.absences == absence.0)
    }

    /// Everybody's number.
    pub fn numbers(&self) -> Vec<MemberId> {
        self.by_number.keys().copied().collect()
    }

    /// A new member.
    pub fn insert(
        &mut self,
        session: SessionId,
        attachment: Attachment,
        location: (ShardId, ConnectionId),
        user: UserId,
        value: Option<Payload>,
    ) -> MemberId {
        self.last_number += 1;
        let number = MemberId(self.last_number);
        let location = Some(location);
        self.value_bytes += length(value.as_ref());
        let member = Member {
            session,
            attachment,
            location,
            absences: 0,
            user,
            value,
            producer: None,
            changed: UNTOLD,
        };
        self.by_number.insert(number, Box::new(member));
        self.by_session.insert(session, number);
        self.changed.insert(number);
        number
    }

    /// A member of before a restart, in the place that it had: it is disconnected, and may come back.
    pub fn restore(&mut self, number: MemberId, session: SessionId, user: UserId) -> Absence {
        let member = Member {
            session,
            attachment: Attachment(0),
            location: None,
            absences: 1,
            user,
            value: None,
            producer: None,
            changed: UNTOLD,
        };
        self.last_number = self.last_number.max(number.0);
        self.by_number.insert(number, Box::new(member));
        self.by_session.insert(session, number);
        self.changed.insert(number);
        Absence(1)
    }

    /// Changes a member's value, if it is another.
    pub fn set_value(&mut self, number: MemberId, value: Option<Payload>) {
        if let Some(member) = self
            .by_number
            .get_mut(&number)
            .filter(|member| member.value != value)
        {
            self.value_bytes += length(value.as_ref());
            self.value_bytes -= length(member.value.as_ref());
            member.value = value;
            self.changed.insert(number);
        }
    }

    /// A member is gone for good.
    pub fn remove(&mut self, number: MemberId) -> Option<Member> {
        let member = *self.by_number.remove(&number)?;
        self.value_bytes -= length(member.value.as_ref());
        self.by_session.remove(&member.session);
        self.changed.remove(&number);
        self.gone.push_back((UNTOLD, number, member.user.clone()));
        self.gone_untold += 1;
        self.forget_gone();
        Some(member)
    }

    /// Forgets the longest gone, but nobody whose going has not been told.
    fn forget_gone(&mut self) {
        while self.gone.len() > GONE_MAX
            && self
                .gone
                .front()
                .is_some_and(|(revision, ..)| *revision <= self.revision)
            && let Some((revision, ..)) = self.gone.pop_front()
        {
            self.gone_forgotten = revision;
        }
    }

    /// Whether there is something to tell.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        !self.changed.is_empty() || self.gone_untold > 0
    }

    /// What changed since the last delta, or the first `CHANGES_MAX` of it, and whether the count did. The next delta
    /// starts here.
    pub fn take_delta(&mut self, room: RoomAlias) -> (PresenceDelta, bool) {
        self.revision += 1;
        let mut changes = Vec::new();
        while let Some(number) = (changes.len() < CHANGES_MAX)
            .then(|| self.changed.pop_first())
            .flatten()
        {
            if let Some(member) = self.by_number.get_mut(&number) {
                member.changed = self.revision;
                changes.push(member.change(number));
            }
        }
        let told = self.gone_untold.min(CHANGES_MAX - changes.len());
        let from = self.gone.len() - self.gone_untold;
        for (revision, number, user) in self.gone.range_mut(from..from + told) {
            *revision = self.revision;
            changes.push(gone_change(*number, user));
        }
        self.gone_untold -= told;
        self.forget_gone();
        changes.sort_by_key(|change| change.member);
        let occupancy = self.occupancy();
        let occupancy_changed = occupancy != self.occupancy_told;
        self.occupancy_told = occupancy;
        let delta = PresenceDelta {
            room,
            revision: self.revision,
            occupancy,
            changes,
        };
        (delta, occupancy_changed)
    }

    /// What changed since a revision: all that was told since, or the first part of it, which leads to an earlier revision
    /// than the last. None when the revision is further back than what is remembered.
    #[must_use]
    pub fn since(&self, room: RoomAlias, revision: u64) -> Option<PresenceDelta> {
        if revision < self.gone_forgotten || revision > self.revision {
            return None;
        }
        let told = |of: u64| of > revision && of != UNTOLD;
        let present = self.by_number.iter();
        let present = present
            .filter(|(_, member)| told(member.changed))
            .map(|(number, member)| (member.changed, member.change(*number)));
        let gone = self.gone.iter().filter(|(of, ..)| told(*of));
        let gone = gone.map(|(of, number, user)| (*of, gone_change(*number, user)));
        let mut changes: Vec<_> = present.chain(gone).collect();
        let mut reached = self.revision;
        if changes.len() > CHANGES_MAX {
            // No delta told of more than that, so one revision at least fits.
            changes.sort_by_key(|(of, change)| (*of, change.member));
            let (beyond, _) = changes[CHANGES_MAX];
            changes.retain(|(of, _)| *of < beyond);
            reached = beyond - 1;
        }
        let mut changes: Vec<_> = changes.into_iter().map(|(_, change)| change).collect();
        changes.sort_by_key(|change| change.member);
        Some(PresenceDelta {
            room,
            revision: reached,
            occupancy: self.occupancy(),
            changes,
        })
    }

    /// A page of members.
    #[must_use]
    pub fn page(&self, after: Option<MemberId>, limit: usize) -> MembersPage {
        let start = after.map_or(0, |member| member.0 + 1);
        let mut range = self.by_number.range(MemberId(start)..);
        let members: Vec<_> = range
            .by_ref()
            .take(limit)
            .map(|(number, member)| {
                let (user, value) = (member.user.clone(), member.value.clone());
                MemberInfo {
                    member: *number,
                    user,
                    value,
                }
            })
            .collect();
        let next = range
            .next()
            .and_then(|_| members.last().map(|member| member.member));
        MembersPage {
            revision: self.revision,
            occupancy: self.occupancy(),
            members,
            next,
        }
    }
}

impl Member {
    /// How it is now.
    fn change(&self, member: MemberId) -> PresenceChange {
        PresenceChange {
            member,
            kind: ChangeKind::Present,
            user: self.user.clone(),
            value: self.value.clone(),
        }
    }
}

fn gone_change(member: MemberId, user: &UserId) -> PresenceChange {
    PresenceChange {
        member,
        kind: ChangeKind::Gone,
        user: user.clone(),
        value: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: RoomAlias = RoomAlias(1);

    fn join(members: &mut Members, session: u128) -> MemberId {
        let location = (
            ShardId(0),
            ConnectionId {
                slot: 0,
                generation: 0,
            },
        );
        members.insert(
            SessionId(session),
            Attachment(1),
            location,
            UserId::parse("u").unwrap(),
            None,
        )
    }

    fn kinds(delta: &PresenceDelta) -> Vec<(u64, ChangeKind)> {
        delta
            .changes
            .iter()
            .map(|change| (change.member.0, change.kind))
            .collect()
    }

    #[test]
    fn a_delta_tells_each_member_once_as_it_is_now() {
        let mut members = Members::default();
        let (a, b) = (join(&mut members, 1), join(&mut members, 2));
        members.set_value(a, Some(Payload::text("x")));
        members.remove(b);
        let (delta, occupancy_changed) = members.take_delta(ROOM);
        assert_eq!(
            kinds(&delta),
            [(1, ChangeKind::Present), (2, ChangeKind::Gone)]
        );
        assert_eq!(
            (delta.revision, delta.occupancy, occupancy_changed),
            (1, 1, true)
        );
        assert!(!members.is_changed());
        members.set_value(a, Some(Payload::text("x")));
        assert!(!members.is_changed());
    }

    #[test]
    fn who_missed_deltas_gets_everything_since_in_one() {
        let mut members = Members::default();
        let a = join(&mut members, 1);
        members.take_delta(ROOM);
        let b = join(&mut members, 2);
        members.take_delta(ROOM);
        members.remove(a);
        members.take_delta(ROOM);
        let delta = members.since(ROOM, 1).unwrap();
        assert_eq!(
            kinds(&delta),
            [(a.0, ChangeKind::Gone), (b.0, ChangeKind::Present)]
        );
        assert_eq!(delta.revision, 3);
        assert_eq!(members.since(ROOM, 3).unwrap().changes, []);
        assert_eq!(members.since(ROOM, 4), None);
    }

    #[test]
    fn a_revision_further_back_than_the_memory_of_the_gone_is_not_answered() {
        let mut members = Members::default();
        for session in 0..=GONE_MAX as u128 {
            let member = join(&mut members, session);
            members.remove(member);
            members.take_delta(ROOM);
        }
        assert_eq!(members.since(ROOM, 0), None);
        assert_eq!(members.since(ROOM, 1).unwrap().changes.len(), GONE_MAX);
    }

    /// Thousands who come and go at once are told in several deltas, and who missed them catches up in as many; all are
    /// told gone, since what is forgotten must have been told.
    #[test]
    fn many_who_go_together_leave_no_ghosts() {
        let mut members = Members::default();
        let numbers: Vec<_> = (0..3 * GONE_MAX as u128)
            .map(|session| join(&mut members, session))
            .collect();
        let tell = |members: &mut Members| {
            let mut told = Vec::new();
            while members.is_changed() {
                let (delta, _) = members.take_delta(ROOM);
                assert!(delta.changes.len() <= CHANGES_MAX);
                told.extend(
                    delta
                        .changes
                        .into_iter()
                        .map(|change| (change.member, change.kind)),
                );
            }
            told
        };
        let all = |kind| {
            numbers
                .iter()
                .map(|number| (*number, kind))
                .collect::<Vec<_>>()
        };
        assert_eq!(tell(&mut members), all(ChangeKind::Present));
        let (mut revision, mut caught_up) = (0, Vec::new());
        while revision < members.revision() {
            let delta = members.since(ROOM, revision).unwrap();
            assert!(delta.changes.len() <= CHANGES_MAX && delta.revision > revision);
            revision = delta.revision;
            caught_up.extend(
                delta
                    .changes
                    .into_iter()
                    .map(|change| (change.member, change.kind)),
            );
        }
        assert_eq!(caught_up, all(ChangeKind::Present));
        for number in &numbers {
            members.remove(*number);
        }
        assert_eq!(tell(&mut members), all(ChangeKind::Gone));
        assert_eq!(members.gone.len(), GONE_MAX);
    }

    #[test]
    fn pages_cover_everybody_once() {
        let mut members = Members::default();
        for session in 0..5 {
            join(&mut members, session);
        }
        let first = members.page(None, 3);
        assert_eq!((first.members.len(), first.next), (3, Some(MemberId(3))));
        let second = members.page(first.next, 3);
        assert_eq!((second.members.len(), second.next), (2, None));
    }
}
