//! The members of a room whose connections are on this shard, and what they are to be sent.
//!
//! A member is *live*, and gets each turn of the room as it comes, or *at a position*, and pulls from there
//! until it is live again. A join with an old position, a slow reader and a shard that missed turns all are
//! the second case. Turns wait here in order and are handed to the members one after the other; whoever
//! becomes live meanwhile starts at the next turn. The hub holds no sockets: the shard delivers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU64;

use roomful_protocol::frame::Watch;
use roomful_protocol::id::{Epoch, MemberId, Offset, ProducerId, RoomAlias, RoomId};
use roomful_protocol::position::Position;

use super::message::{ConnectionId, ShardId, Turn, View};
use super::view::{ViewIndex, Views};

/// The subscribers of one room on one shard.
#[derive(Debug)]
pub struct Hub {
    /// The room.
    pub room: RoomId,
    /// Its number.
    pub alias: RoomAlias,
    /// Where it is ordered.
    pub home: ShardId,
    /// The epoch of all positions here.
    pub epoch: Epoch,
    /// Up to where turns have arrived.
    pub received: Offset,
    /// Up to where turns have been handed to all members.
    pub fanned: Offset,
    /// The revision of the last presence delta that was handed to all members.
    pub presence_revision: u64,
    /// By stable index, so that a fan-out can stop anywhere and go on later.
    subscribers: Vec<Option<Subscriber>>,
    vacant: Vec<u32>,
    /// Turns that have not reached every member.
    pub queue: VecDeque<Turn>,
    /// The number of the turn at the front of the queue.
    pub front: u64,
    /// The next member that gets the front turn.
    pub cursor: usize,
    /// How often turns were left out, here or before they came.
    pub omissions: u64,
    /// Who waits for which part of the log; one request for all who stand at the same place.
    pub pulls: BTreeMap<Offset, BTreeSet<u32>>,
    /// Who waits for which part of presence, in the same way.
    pub presence_pulls: BTreeMap<u64, BTreeSet<u32>>,
    /// What of the log its members are sent.
    pub views: Views,
}

/// A member of the room on this shard. What fan-out touches fits one cache line.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub struct Subscriber {
    /// Its connection.
    pub connection: ConnectionId,
    /// Its number in the room.
    pub member: MemberId,
    /// Where it is.
    pub place: Place,
    /// The revision of the first delta that it missed; none while it misses none.
    pub missed_presence: Option<NonZeroU64>,
    /// Its producer, if its own events are not to come back.
    pub mute: Option<ProducerId>,
    /// What of the log it is sent.
    pub view: ViewIndex,
    /// How much of presence it is sent.
    pub watch: Watch,
    /// Whether `caught_up` is owed to it.
    pub recovering: bool,
}

/// Where a member is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It gets every turn from this number on.
    Live(u64),
    /// It has everything up to here and nothing after it.
    At(Offset),
}

const _: () = assert!(
    size_of::<Option<Subscriber>>() == 64,
    "fan-out touches one cache line a member"
);

impl Hub {
    /// A hub without members, that stands where the room is.
    #[must_use]
    pub fn new(
        room: RoomId,
        alias: RoomAlias,
        home: ShardId,
        head: Position,
        presence_revision: u64,
    ) -> Self {
        Self {
            room,
            alias,
            home,
            epoch: head.epoch,
            received: head.offset,
            fanned: head.offset,
            presence_revision,
            subscribers: Vec::new(),
            vacant: Vec::new(),
            queue: VecDeque::new(),
            front: 0,
            cursor: 0,
            omissions: 0,
            pulls: BTreeMap::new(),
            presence_pulls: BTreeMap::new(),
            views: Views::default(),
        }
    }

    /// Whether it has no members.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.subscribers.len() == self.vacant.len()
    }

    /// One more than the highest index in use.
    #[must_use]
    pub fn end(&self) -> usize {
        self.subscribers.len()
    }

    /// The number that the next turn to arrive will have.
    #[must_use]
    pub fn next_turn(&self) -> u64 {
        self.front + self.queue.len() as u64
    }

    /// Adds a member and gives its index.
    ///
    /// # Panics
    /// With 2^32 members, which is more than there are connections.
    pub fn insert(&mut self, subscriber: Subscriber) -> u32 {
        if let Some(index) = self.vacant.pop() {
            self.subscribers[index as usize] = Some(subscriber);
            return index;
        }
        self.subscribers.push(Some(subscriber));
        u32::try_from(self.subscribers.len() - 1).expect("connections are counted in 32 bits")
    }

    /// Takes a member out.
    pub fn remove(&mut self, index: u32) -> Option<Subscriber> {
        let removed = self.subscribers.get_mut(index as usize)?.take();
        if let Some(subscriber) = &removed {
            self.views.give_back(subscriber.view);
            self.vacant.push(index);
        }
        removed
    }

    /// Changes what of the log a member is sent, from the next batch on that is handed to it.
    pub fn change_view(&mut self, index: u32, change: impl FnOnce(&View) -> View) {
        let member = self.subscribers.get_mut(index as usize);
        let Some(subscriber) = member.and_then(Option::as_mut) else {
            return;
        };
        let view = self.views.take(change(self.views.get(subscriber.view)));
        self.views.give_back(subscriber.view);
        subscriber.view = view;
    }

    /// A member.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<&Subscriber> {
        self.subscribers.get(index as usize)?.as_ref()
    }

    /// A member.
    pub fn get_mut(&mut self, index: u32) -> Option<&mut Subscriber> {
        self.subscribers.get_mut(index as usize)?.as_mut()
    }

    /// A member, and what it takes to know what it is sent.
    pub fn hand(&mut self, index: u32) -> Option<(&mut Subscriber, &mut Views)> {
        let subscriber = self.subscribers.get_mut(index as usize)?.as_mut()?;
        Some((subscriber, &mut self.views))
    }

    /// Everybody.
    pub fn iter(&self) -> impl Iterator<Item = &Subscriber> {
        self.subscribers.iter().flatten()
    }

    /// Everybody, with the index.
    pub fn indexed(&self) -> impl Iterator<Item = (u32, &Subscriber)> {
        (0..)
            .zip(&self.subscribers)
            .filter_map(|(index, subscriber)| Some((index, subscriber.as_ref()?)))
    }

    /// Who is being handed the front turn, on the shard that this is: one member, or one of its publishers.
    #[must_use]
    pub fn in_hand(&self, shard: ShardId) -> Vec<ConnectionId> {
        if let Some(index) = self.cursor.checked_sub(1) {
            let member = self.subscribers.get(index).and_then(Option::as_ref);
            return member.map(|member| member.connection).into_iter().collect();
        }
        let publishers = self.queue.front().map(|turn| turn.publishers.iter());
        publishers
            .into_iter()
            .flatten()
            .filter(|(of, _)| *of == shard)
            .map(|(_, publisher)| *publisher)
            .collect()
    }

    /// Takes a turn in; it waits until [`Hub::finish_turn`] has been called for those before it. Where too
    /// many wait, it and the last of them are left out, for the members to pull: fewer and larger steps,
    /// since small ones were too slow. The members who had become live behind all of those stand where they
    /// were; they are given back, to be caught up.
    pub fn receive(&mut self, turn: Turn, turns_max: usize) -> Vec<(u32, ConnectionId)> {
        let before = self.received;
        self.received = turn.last().unwrap_or(before);
        let fits = self.queue.len() < turns_max;
        self.omissions += u64::from(turn.missed.is_some() || !fits);
        if fits {
            self.queue.push_back(turn);
            return Vec::new();
        }
        let next = self.next_turn();
        if let Some(last) = self.queue.back_mut() {
            *last = Turn::missed(self.alias, self.received);
        }
        let mut behind = Vec::new();
        for (index, subscriber) in (0..).zip(&mut self.subscribers) {
            if let Some(subscriber) = subscriber
                .as_mut()
                .filter(|subscriber| subscriber.place == Place::Live(next))
            {
                subscriber.place = Place::At(before);
                behind.push((index, subscriber.connection));
            }
        }
        behind
    }

    /// Whether turns before this one were not handed on.
    #[must_use]
    pub fn misses_before(&self, turn: &Turn) -> bool {
        let log = turn
            .log
            .as_ref()
            .is_some_and(|batch| batch.after != self.fanned);
        let presence = turn
            .presence
            .as_ref()
            .is_some_and(|delta| delta.delta.revision > self.presence_revision + 1);
        turn.missed.is_some() || log || presence
    }

    /// The front turn has reached everybody.
    pub fn finish_turn(&mut self) {
        let Some(turn) = self.queue.pop_front() else {
            return;
        };
        self.front += 1;
        self.cursor = 0;
        self.views.finish_front();
        self.fanned = turn.last().unwrap_or(self.fanned);
        if let Some(delta) = turn.presence {
            self.presence_revision = delta.delta.revision;
        }
    }

    /// Whether a member at this place may have been passed by a delta after this revision: one that was handed on already, or one in a turn that is
    /// not for it since it became live behind that. What was left out is counted in `omissions`.
    #[must_use]
    pub fn has_passed(&self, place: Place, revision: u64) -> bool {
        let waiting = (self.front..).zip(&self.queue);
        let mut past = waiting.filter(|(number, _)| {
            let begun = *number == self.front && self.cursor > 0;
            begun || matches!(place, Place::Live(from) if from > *number)
        });
        let is_later = |turn: &Turn| {
            let presence = turn.presence.as_ref();
            presence.is_some_and(|delta| delta.delta.revision > revision)
        };
        self.presence_revision > revision || past.any(|(_, turn)| is_later(turn))
    }

    /// Notes that a member waits for what changed since it missed a delta. The revision to ask for, unless somebody
    /// has asked already.
    pub fn want_presence(&mut self, index: u32) -> Option<u64> {
        let since = self.get(index)?.missed_presence?.get() - 1;
        let waiting = self.presence_pulls.entry(since).or_default();
        let first = waiting.is_empty();
        waiting.insert(index);
        first.then_some(since)
    }

    /// Notes that a member waits for what follows its place. The position to ask for, unless somebody has
    /// asked already.
    pub fn want(&mut self, index: u32) -> Option<Position> {
        let Some(Subscriber {
            place: Place::At(offset),
            ..
        }) = self.get(index)
        else {
            return None;
        };
        let offset = *offset;
        let waiting = self.pulls.entry(offset).or_default();
        let first = waiting.is_empty();
        waiting.insert(index);
        first.then(|| Position::new(self.epoch, offset))
    }
}
