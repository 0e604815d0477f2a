//! Members who are not live: from a position, or a presence revision, until they are.
//!
//! Joins, fan-out and sockets that take bytes again call it with a member that lacks something. It asks the
//! owner, once for all who stand at one place, and gives each what comes back, in order and behind what waits
//! for its connection; a blocked one asks when it has drained. What is for one member alone, a signal to it,
//! is delivered here too. How far the history reaches back is the room's business.

use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::Bytes;
use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{CaughtUp, PresenceDelta, Signalled, Watch};
use roomful_protocol::id::RoomAlias;

use super::deliver::{Own, queue_signal};
use super::hub::Place;
use super::message::{Batch, Chunk, ConnectionId, Message, Origin, Request};
use super::write::track;
use super::{Host, Shard};
use crate::clock::Now;
use crate::wire;

impl Shard {
    /// Asks for what a member lacks, unless its connection is blocked: then it asks when that is over.
    pub(super) fn catch_up_member(
        &mut self,
        alias: RoomAlias,
        index: u32,
        id: ConnectionId,
        host: &mut dyn Host,
    ) {
        if self.outlet(id).is_none_or(|outlet| outlet.outbox.is_some()) {
            return;
        }
        let shard = self.id;
        let Some(hub) = self.hubs.get_mut(&alias) else {
            return;
        };
        let home = hub.home;
        let pull = hub.want(index).map(|from| Request::Pull { shard, from });
        let to = Origin {
            shard,
            connection: id,
            request: None,
        };
        let missed = hub
            .get(index)
            .and_then(|subscriber| subscriber.missed_presence);
        let presence = missed.map(|first| Request::PullPresence {
            to,
            since: first.get() - 1,
        });
        for request in [pull, presence].into_iter().flatten() {
            self.send(
                home,
                Message::Request {
                    room: alias,
                    request,
                },
                host,
            );
        }
    }

    /// Entries for members who stand at one place: they move on, and the last of them makes them live.
    pub(super) fn receive_chunk(&mut self, chunk: &Chunk, now: Now, host: &mut dyn Host) {
        let Some(hub) = self.hubs.get_mut(&chunk.room) else {
            return;
        };
        if hub.epoch != chunk.from.epoch {
            return;
        }
        for index in hub.pulls.remove(&chunk.from.offset).unwrap_or_default() {
            let hub = self.hubs.get(&chunk.room);
            let subscriber = hub.and_then(|hub| hub.get(index));
            let waiting =
                subscriber.filter(|subscriber| subscriber.place == Place::At(chunk.from.offset));
            let Some(id) = waiting.map(|subscriber| subscriber.connection) else {
                continue;
            };
            match &chunk.batch {
                None => self.ended(chunk.room, Some(id), ErrorCode::FellBehind, host),
                // It stays where it is, and asks again when its connection has drained.
                Some(batch) if self.is_log_lane_full(id, batch) => {}
                Some(batch) => {
                    self.guard_connection(id, now, host, |shard, host| {
                        shard.move_on(chunk.room, index, batch, chunk.live, now, host);
                        shard.catch_up_member(chunk.room, index, id, host);
                    });
                }
            }
        }
    }

    /// Whether a chunk would overfill what waits for a connection already.
    pub(super) fn is_log_lane_full(&self, id: ConnectionId, batch: &Batch) -> bool {
        let outbox = self.outlet(id).and_then(|outlet| outlet.outbox.as_ref());
        outbox.is_some_and(|outbox| {
            outbox.log_bytes() + batch.payload_bytes() > self.settings.log_lane_bytes_max()
        })
    }

    /// Gives a member the entries behind its place.
    pub(super) fn move_on(
        &mut self,
        room: RoomAlias,
        index: u32,
        batch: &Batch,
        reaches_hub: bool,
        now: Now,
        host: &mut dyn Host,
    ) {
        let Some(hub) = self.hubs.get_mut(&room) else {
            return;
        };
        let live = reaches_hub && batch.last() == hub.received;
        let place = if live {
            Place::Live(hub.next_turn())
        } else {
            Place::At(batch.last())
        };
        // The turns that still wait are not for it any more, and with them what they say of presence.
        let skips = live
            && hub
                .queue
                .iter()
                .any(|turn| turn.presence.is_some() || turn.missed.is_some());
        let first_skipped = NonZeroU64::new(hub.presence_revision + 1).filter(|_| skips);
        let Some(subscriber) = hub.get_mut(index) else {
            return;
        };
        subscriber.place = place;
        if subscriber.watch != Watch::None {
            subscriber.missed_presence = subscriber.missed_presence.or(first_skipped);
        }
        let caught_up = live && std::mem::take(&mut subscriber.recovering);
        let (id, mute) = (subscriber.connection, subscriber.mute);
        let Some(outlet) = self.outlet(id) else {
            return;
        };
        let encoding = outlet.encoding;
        let own = Own::of(mute, &outlet.connection);
        if !batch.entries.is_empty() {
            self.counters.deliveries.add(batch.entries.len() as u64);
            let bytes = match own {
                Some(own) => wire::batch_without_own(batch, encoding, |entry| own.is(entry)),
                None => wire::batch(batch, encoding).clone(),
            };
            self.deliver_log(id, room, bytes, now, host);
        }
        if caught_up {
            let frame = CaughtUp {
                room,
                offset: batch.last(),
            };
            self.deliver_log(id, room, wire::message(encoding, &frame.into()), now, host);
        }
    }

    /// Sends something of the log lane, behind what waits there.
    pub(super) fn deliver_log(
        &mut self,
        id: ConnectionId,
        room: RoomAlias,
        bytes: Bytes,
        now: Now,
        host: &mut dyn Host,
    ) {
        let counters = Arc::clone(&self.counters);
        let Some(outlet) = self.outlet_mut(id) else {
            return;
        };
        match &mut outlet.outbox {
            Some(outbox) => {
                let before = outbox.sizes();
                outbox.push_log(room, bytes);
                track(&counters, before, outbox.sizes());
            }
            None => self.write(id, &[&bytes], now, host),
        }
    }

    /// The difference for a member that missed deltas.
    pub(super) fn deliver_presence(
        &mut self,
        id: ConnectionId,
        room: RoomAlias,
        delta: Option<Box<PresenceDelta>>,
        now: Now,
        host: &mut dyn Host,
    ) {
        let Some(outlet) = self.outlet(id) else {
            return;
        };
        let (encoding, blocked) = (outlet.encoding, outlet.outbox.is_some());
        let Some(membership) = outlet
            .connection
            .open()
            .and_then(|open| open.membership(room))
            .copied()
        else {
            return;
        };
        let Some(mut delta) = delta else {
            return self.ended(room, Some(id), ErrorCode::FellBehind, host);
        };
        let Some(subscriber) = self
            .hubs
            .get_mut(&room)
            .and_then(|hub| hub.get_mut(membership.index))
        else {
            return;
        };
        if blocked || subscriber.missed_presence.take().is_none() {
            return;
        }
        match subscriber.watch {
            Watch::None => return,
            Watch::Occupancy => delta.changes.clear(),
            Watch::Members => {}
        }
        self.counters.presence_deltas.add(1);
        let bytes = wire::message(encoding, &(*delta).into());
        self.write(id, &[&bytes], now, host);
    }

    /// A signal for one member alone.
    pub(super) fn deliver_direct(
        &mut self,
        id: ConnectionId,
        signal: &Signalled,
        now: Now,
        host: &mut dyn Host,
    ) {
        let (settings, counters) = (Arc::clone(&self.settings), Arc::clone(&self.counters));
        let Some(outlet) = self.outlet_mut(id) else {
            return;
        };
        if outlet
            .connection
            .open()
            .and_then(|open| open.membership(signal.room))
            .is_none()
        {
            return;
        }
        let bytes = wire::message(outlet.encoding, &signal.clone().into());
        match &mut outlet.outbox {
            Some(outbox) => {
                let before = outbox.sizes();
                queue_signal(outbox, signal, bytes, &settings, &counters);
                track(&counters, before, outbox.sizes());
            }
            None => self.write(id, &[&bytes], now, host),
        }
    }
}
