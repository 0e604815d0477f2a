//! From a room's turn to the sockets: fan-out.
//!
//! A turn is handed to the members of a hub in a loop of direct writes. It stops when the turn's time is up
//! and goes on where it was. A connection that blocks gets an outbox; then signals are conflated or dropped,
//! presence is skipped until it can ask for the difference, and the log is queued up to its lane's bound,
//! beyond which the member goes to its own position. From there `catch_up` takes it on; when a connection is
//! closed, `write` decides.

use std::num::NonZeroU64;

use bytes::Bytes;
use roomful_protocol::codec::Encoding;
use roomful_protocol::frame::{Entry, EntryKind, Signalled, Watch};
use roomful_protocol::id::{Offset, ProducerId, RoomAlias, UserId};

use super::hub::{Hub, Place, Subscriber};
use super::message::{Batch, ConnectionId, Delta, Signals, Turn, View, Wire};
use super::view::{ViewIndex, Views};
use super::write::{Written, track, write_now};
use super::{Flush, Host, Shard, ShardSettings, next_of, outlet_of};
use crate::clock::Now;
use crate::connection::outbox::{Outbox, SignalFate};
use crate::connection::{Connection, Outlet};
use crate::metrics::ShardCounters;
use crate::wire;

impl Shard {
    pub(super) fn receive_turn(&mut self, turn: Turn, host: &mut dyn Host) {
        let Some(hub) = self.hubs.get_mut(&turn.room) else {
            return;
        };
        let alias = hub.alias;
        let behind = hub.receive(turn, self.settings.waiting_turns_max);
        self.dirty_hubs.insert(alias);
        self.counters.catch_ups.add(behind.len() as u64);
        for (index, id) in behind {
            self.catch_up_member(alias, index, id, host);
        }
    }

    /// Hands turns to members until all have them or the turn's time is up. Hubs take their chance one after the other.
    pub(super) fn fan_out(&mut self, now: Now, host: &mut dyn Host) {
        let mut next = self.last_hub;
        let mut served = 0;
        loop {
            let Some(alias) = next_of(&self.dirty_hubs, next) else {
                return;
            };
            let mut progress = Flush::Done;
            self.guard_hub(alias, now, host, |shard, host| {
                progress = shard.hand_on(alias, now, host);
            });
            next = alias;
            self.last_hub = alias;
            if self.hubs.get(&alias).is_none_or(|hub| hub.queue.is_empty()) {
                self.dirty_hubs.remove(&alias);
            }
            served += self.hubs.get(&alias).map_or(0, Hub::end);
            let look = served >= self.settings.members_per_look;
            if look {
                served = 0;
            }
            if progress == Flush::More
                || (look && !self.dirty_hubs.is_empty() && host.turn_is_spent())
            {
                return;
            }
        }
    }

    /// Hands a hub's front turn to its members, from where it stopped.
    pub(super) fn hand_on(&mut self, alias: RoomAlias, now: Now, host: &mut dyn Host) -> Flush {
        let Some(hub) = self.hubs.get_mut(&alias) else {
            return Flush::Done;
        };
        let Some(turn) = hub.queue.front().cloned() else {
            return Flush::Done;
        };
        let handing = Handing {
            gap: hub.misses_before(&turn),
            number: hub.front,
            fanned: hub.fanned,
            presence_revision: hub.presence_revision,
            turn,
            settings: &self.settings,
            counters: &self.counters,
        };
        let (mut behind, mut blocked) = (Vec::new(), Vec::new());
        if hub.cursor == 0 && !handing.gap {
            let own = handing
                .turn
                .publishers
                .iter()
                .filter(|(shard, _)| *shard == self.id);
            for (_, publisher) in own {
                if handing.hand_first(*publisher, hub, &mut self.outlets, now, host)
                    == Written::Blocked
                {
                    blocked.push(*publisher);
                }
            }
        }
        let mut flush = Flush::Done;
        while hub.cursor < hub.end() {
            let looks =
                hub.cursor % self.settings.members_per_look == self.settings.members_per_look - 1;
            if looks && host.turn_is_spent() {
                flush = Flush::More;
            }
            let index = u32::try_from(hub.cursor).expect("connections are counted in 32 bits");
            hub.cursor += 1;
            let Some((subscriber, views)) = hub.hand(index) else {
                continue;
            };
            let Some(outlet) = outlet_of(&mut self.outlets, subscriber.connection) else {
                continue;
            };
            if handing.hand_to(subscriber, views, outlet, now, host) == Written::Blocked {
                blocked.push(outlet.id);
            }
            if handing.gap {
                behind.push((index, subscriber.connection));
            }
            if flush == Flush::More {
                break;
            }
        }
        if hub.cursor >= hub.end() {
            hub.finish_turn();
        }
        for id in blocked {
            self.watch_for_stall(id, now);
        }
        for (index, id) in behind {
            self.catch_up_member(alias, index, id, host);
        }
        flush
    }
}

/// A turn on its way to the members of a hub.
struct Handing<'a> {
    turn: Turn,
    /// Whether turns before this one are missing.
    gap: bool,
    number: u64,
    fanned: Offset,
    presence_revision: u64,
    settings: &'a ShardSettings,
    counters: &'a ShardCounters,
}

impl Handing<'_> {
    /// Serves a publisher before everybody else; its turn is then over. One that blocks waits with the others: what
    /// is queued may set it back to a position, and then it would be served again.
    fn hand_first(
        &self,
        publisher: ConnectionId,
        hub: &mut Hub,
        outlets: &mut [Option<Outlet>],
        now: Now,
        host: &mut dyn Host,
    ) -> Written {
        let Some(outlet) = outlet_of(outlets, publisher).filter(|outlet| outlet.outbox.is_none())
        else {
            return Written::All;
        };
        let membership = outlet
            .connection
            .open()
            .and_then(|open| open.membership(hub.alias));
        let Some((subscriber, views)) = membership
            .map(|membership| membership.index)
            .and_then(|index| hub.hand(index))
        else {
            return Written::All;
        };
        if !matches!(subscriber.place, Place::Live(from) if from <= self.number) {
            return Written::All;
        }
        let written = self.hand_to(subscriber, views, outlet, now, host);
        subscriber.place = Place::Live(self.number + 1);
        written
    }

    fn hand_to(
        &self,
        subscriber: &mut Subscriber,
        views: &mut Views,
        outlet: &mut Outlet,
        now: Now,
        host: &mut dyn Host,
    ) -> Written {
        if matches!(subscriber.place, Place::Live(from) if from > self.number) {
            return Written::All;
        }
        if self.gap {
            self.set_back(subscriber);
            return Written::All;
        }
        let log = self
            .turn
            .log
            .as_deref()
            .filter(|batch| !batch.entries.is_empty());
        let log = log.filter(|_| matches!(subscriber.place, Place::Live(_)));
        let delta = self
            .turn
            .presence
            .as_deref()
            .filter(|delta| wants(subscriber, delta));
        let signals = self.turn.signals.as_deref();
        if outlet.outbox.is_some() {
            self.queue((subscriber, views), outlet, log, delta, signals);
            return Written::All;
        }
        let log = log.map(|batch| self.log_bytes(batch, subscriber, views, outlet));
        let delta = delta.map(|delta| {
            self.counters.presence_deltas.add(1);
            presence_bytes(subscriber, delta, outlet)
        });
        let signals = signals.map(|signals| signal_bytes(signals, subscriber, outlet));
        let parts: [Option<&Bytes>; 3] = [log.as_ref(), delta, signals.as_ref()];
        let mut present = parts
            .iter()
            .flatten()
            .copied()
            .filter(|bytes| !bytes.is_empty());
        // Most turns bring one thing, and then one plain write is all there is to do.
        match (present.next(), present.next(), present.next()) {
            (None, ..) => Written::All,
            (Some(only), None, _) => write_now(outlet, &[only], now, host, self.counters),
            (Some(first), Some(second), None) => {
                write_now(outlet, &[first, second], now, host, self.counters)
            }
            (Some(first), Some(second), Some(third)) => {
                write_now(outlet, &[first, second, third], now, host, self.counters)
            }
        }
    }

    /// The member missed something: it goes on from where it is.
    fn set_back(&self, subscriber: &mut Subscriber) {
        if matches!(subscriber.place, Place::Live(_)) {
            self.counters.catch_ups.add(1);
            subscriber.place = Place::At(self.fanned);
        }
        if subscriber.watch != Watch::None {
            subscriber.missed_presence = subscriber
                .missed_presence
                .or(NonZeroU64::new(self.presence_revision + 1));
        }
    }

    fn log_bytes(
        &self,
        batch: &Batch,
        subscriber: &Subscriber,
        views: &mut Views,
        outlet: &Outlet,
    ) -> Bytes {
        self.counters.deliveries.add(batch.entries.len() as u64);
        if subscriber.mute.is_some() || subscriber.view != ViewIndex::PLAIN {
            return not_plain(batch, subscriber, views, outlet);
        }
        wire::batch(batch, outlet.encoding).clone()
    }

    /// Puts the turn into an outbox, each part as its lane's policy says.
    fn queue(
        &self,
        (subscriber, views): (&mut Subscriber, &mut Views),
        outlet: &mut Outlet,
        log: Option<&Batch>,
        delta: Option<&Delta>,
        signals: Option<&Signals>,
    ) {
        let encoding = outlet.encoding;
        let log = log.map(|batch| {
            let bytes = self.log_bytes(batch, subscriber, views, outlet);
            (batch.after, bytes)
        });
        let Some(outbox) = &mut outlet.outbox else {
            return;
        };
        let before = outbox.sizes();
        if let Some((after, bytes)) = log {
            if self.settings.takes_log(outbox, bytes.len()) {
                outbox.push_log(self.turn.room, bytes);
            } else {
                self.counters.catch_ups.add(1);
                subscriber.place = Place::At(after);
            }
        }
        if let Some(delta) = delta {
            self.counters.presence_conflated.add(1);
            subscriber.missed_presence = NonZeroU64::new(delta.delta.revision);
        }
        for signal in signals.into_iter().flat_map(|signals| &signals.signals) {
            if signal.from != subscriber.member {
                let bytes = wire::message(encoding, &signal.clone().into());
                queue_signal(outbox, signal, bytes, self.settings, self.counters);
            }
        }
        track(self.counters, before, outbox.sizes());
    }
}

/// Whose events do not come back: a producer's number is its user's own, so another user's events never pass for it.
pub(super) struct Own<'a> {
    producer: ProducerId,
    user: &'a UserId,
}

impl<'a> Own<'a> {
    pub(super) fn of(mute: Option<ProducerId>, connection: &'a Connection) -> Option<Self> {
        Some(Self {
            producer: mute?,
            user: &connection.open()?.identity.user,
        })
    }

    /// A batch as a view shows it, without one's own; none where it has nothing of one's own.
    pub(super) fn left_out(&self, batch: &Batch, view: &View, encoding: Encoding) -> Option<Bytes> {
        let has_own = batch.entries.iter().any(|entry| self.is(entry));
        has_own.then(|| wire::batch_of(batch, encoding, view, |entry| self.is(entry)))
    }

    /// Of the state everybody who watches it is told everything: nobody can tell from an `ok` what became of a value.
    fn is(&self, entry: &Entry) -> bool {
        entry.kind == EntryKind::Publish
            && entry.op.is_some_and(|op| op.producer == self.producer)
            && entry.user == *self.user
    }
}

/// A batch for a member who has a view of its own, or does not want its own events back. Not inlined, or the connection,
/// which fan-out doesn't touch, would be read for every member, ahead of the question whether it is one of these.
#[inline(never)]
fn not_plain(batch: &Batch, subscriber: &Subscriber, views: &mut Views, outlet: &Outlet) -> Bytes {
    let encoding = outlet.encoding;
    let own = Own::of(subscriber.mute, &outlet.connection);
    own.and_then(|own| own.left_out(batch, views.get(subscriber.view), encoding))
        .unwrap_or_else(|| views.front(batch, subscriber.view, encoding))
}

fn wants(subscriber: &Subscriber, delta: &Delta) -> bool {
    let watches = match subscriber.watch {
        Watch::None => false,
        Watch::Occupancy => delta.occupancy_changed,
        Watch::Members => true,
    };
    watches && subscriber.missed_presence.is_none()
}

pub(super) fn presence_bytes<'a>(
    subscriber: &Subscriber,
    delta: &'a Delta,
    outlet: &Outlet,
) -> &'a Bytes {
    match subscriber.watch {
        Watch::None | Watch::Occupancy => wire::occupancy(delta, outlet.encoding),
        Watch::Members => wire::delta(delta, outlet.encoding),
    }
}

/// All signals of the turn, without the member's own.
fn signal_bytes(signals: &Signals, subscriber: &Subscriber, outlet: &Outlet) -> Bytes {
    if signals
        .signals
        .iter()
        .all(|signal| signal.from != subscriber.member)
    {
        return wire::signals(signals, outlet.encoding).clone();
    }
    let others = signals
        .signals
        .iter()
        .filter(|signal| signal.from != subscriber.member)
        .cloned()
        .collect();
    wire::signals(
        &Signals {
            signals: others,
            wire: Wire::default(),
        },
        outlet.encoding,
    )
    .clone()
}

pub(super) fn queue_signal(
    outbox: &mut Outbox,
    signal: &Signalled,
    bytes: Bytes,
    settings: &ShardSettings,
    counters: &ShardCounters,
) {
    if !settings.takes(outbox, bytes.len()) {
        return counters.signals_dropped.add(1);
    }
    let max = settings.signal_lane_bytes_max();
    match outbox.push_signal(signal.room, signal.from, signal.key.as_ref(), bytes, max) {
        SignalFate::Queued => {}
        SignalFate::Conflated => counters.signals_conflated.add(1),
        SignalFate::Dropped => counters.signals_dropped.add(1),
    }
}
