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
use roomful_protocol::frame::{CaughtUp, Signalled, Watch};
use roomful_protocol::id::RoomAlias;

use super::deliver::{Own, presence_bytes, queue_signal};
use super::hub::{Place, Subscriber};
use super::message::{Batch, Chunk, ConnectionId, Delta, Message, Request};
use super::view::Viewed;
use super::write::track;
use super::{Host, Shard, outlet_of};
use crate::clock::Now;
use crate::wire;

/// Members who stand at one place, and what follows it: they are served a few in a turn.
#[derive(Debug)]
pub(super) struct Catching {
    pub(super) room: RoomAlias,
    lacking: Lacking,
    /// Indexes in the hub; the next one is the last.
    left: Vec<u32>,
}

/// What members lack.
#[derive(Debug)]
enum Lacking {
    Log(Chunk, Viewed),
    Presence(Answer),
}

/// What has changed in presence since a revision; none where that is too long ago.
#[derive(Debug)]
struct Answer {
    since: u64,
    delta: Option<Arc<Delta>>,
    /// [`Hub::omissions`](super::hub::Hub::omissions) when it came: it tells nothing of what was left out later.
    omissions: u64,
}

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
        let presence = hub.want_presence(index);
        let presence = presence.map(|since| Request::PullPresence { shard, since });
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
    pub(super) fn receive_chunk(&mut self, chunk: Chunk) {
        let hub = self.hubs.get_mut(&chunk.room);
        let Some(hub) = hub.filter(|hub| hub.epoch == chunk.from.epoch) else {
            return;
        };
        let waiting = hub.pulls.remove(&chunk.from.offset).unwrap_or_default();
        self.catching.push_back(Catching {
            room: chunk.room,
            lacking: Lacking::Log(chunk, Viewed::default()),
            left: waiting.into_iter().rev().collect(),
        });
    }

    /// The difference for members that missed deltas.
    pub(super) fn receive_presence(
        &mut self,
        room: RoomAlias,
        since: u64,
        delta: Option<Arc<Delta>>,
    ) {
        let Some(hub) = self.hubs.get_mut(&room) else {
            return;
        };
        let waiting = hub.presence_pulls.remove(&since).unwrap_or_default();
        self.catching.push_back(Catching {
            room,
            lacking: Lacking::Presence(Answer {
                since,
                delta,
                omissions: hub.omissions,
            }),
            left: waiting.into_iter().rev().collect(),
        });
    }

    /// Gives members what they lack until all have it or the time is up; rooms take turns.
    pub(super) fn catch_up(&mut self, now: Now, host: &mut dyn Host) {
        let mut served = 0_usize;
        while let Some(mut catching) = self.catching.pop_front() {
            while let Some(index) = catching.left.pop() {
                match &mut catching.lacking {
                    Lacking::Log(chunk, viewed) => {
                        self.serve_chunk(chunk, viewed, index, now, host);
                    }
                    Lacking::Presence(answer) => {
                        self.serve_presence(catching.room, answer, index, now, host);
                    }
                }
                self.handle_local(now, host);
                served += 1;
                if served.is_multiple_of(self.settings.items_per_look) && host.turn_is_spent() {
                    if !catching.left.is_empty() {
                        self.catching.push_back(catching);
                    }
                    return;
                }
            }
        }
    }

    fn serve_chunk(
        &mut self,
        chunk: &Chunk,
        viewed: &mut Viewed,
        index: u32,
        now: Now,
        host: &mut dyn Host,
    ) {
        let room = chunk.room;
        let hub = self.hubs.get(&room);
        let hub = hub.filter(|hub| hub.epoch == chunk.from.epoch);
        let Some(subscriber) = hub.and_then(|hub| hub.get(index)) else {
            return;
        };
        // Whoever has gone on by itself, or is another by now, lacks something else.
        if subscriber.place != Place::At(chunk.from.offset) {
            return;
        }
        let id = subscriber.connection;
        match &chunk.batch {
            None => self.ended(room, Some(id), ErrorCode::FellBehind, host),
            Some(batch) => {
                self.guard_connection(id, now, host, |shard, host| {
                    let bytes = shard.chunk_bytes(room, index, batch, viewed);
                    // Without room for it it stays where it is, and asks again when its connection has drained.
                    if shard.has_room_for(id, bytes.len()) {
                        shard.move_on(room, index, (batch, bytes), chunk.live, now, host);
                        shard.catch_up_member(room, index, id, host);
                    }
                });
            }
        }
    }

    fn serve_presence(
        &mut self,
        room: RoomAlias,
        answer: &Answer,
        index: u32,
        now: Now,
        host: &mut dyn Host,
    ) {
        let Some(hub) = self.hubs.get_mut(&room) else {
            return;
        };
        let Answer { since, delta, .. } = answer;
        let passed = hub.get(index).zip(delta.as_ref());
        let passed = passed.is_some_and(|(member, delta)| {
            hub.omissions > answer.omissions || hub.has_passed(member.place, delta.delta.revision)
        });
        let waits = |member: &&mut Subscriber| member.missed_presence == NonZeroU64::new(since + 1);
        let Some(subscriber) = hub.get_mut(index).filter(waits) else {
            return;
        };
        let id = subscriber.connection;
        let Some(delta) = delta else {
            return self.ended(room, Some(id), ErrorCode::FellBehind, host);
        };
        let outlet = outlet_of(&mut self.outlets, id);
        // A blocked one asks again when it has drained.
        let Some(outlet) = outlet.filter(|outlet| outlet.outbox.is_none()) else {
            return;
        };
        let missed = NonZeroU64::new(delta.delta.revision + 1).filter(|_| passed);
        subscriber.missed_presence = missed.filter(|_| subscriber.watch != Watch::None);
        if subscriber.watch == Watch::None {
            return;
        }
        self.counters.presence_deltas.add(1);
        let bytes = presence_bytes(subscriber, delta, outlet).clone();
        self.guard_connection(id, now, host, |shard, host| {
            shard.write(id, &[&bytes], now, host);
            shard.catch_up_member(room, index, id, host);
        });
    }

    /// A chunk as a member's view shows it, and without its own events where it does not want them back.
    fn chunk_bytes(
        &self,
        room: RoomAlias,
        index: u32,
        batch: &Batch,
        viewed: &mut Viewed,
    ) -> Bytes {
        let hub = self.hubs.get(&room);
        let Some((hub, subscriber)) = hub.and_then(|hub| Some((hub, hub.get(index)?))) else {
            return Bytes::new();
        };
        let outlet = self.outlet(subscriber.connection);
        let Some(outlet) = outlet.filter(|_| !batch.entries.is_empty()) else {
            return Bytes::new();
        };
        let encoding = outlet.encoding;
        let own = Own::of(subscriber.mute, &outlet.connection);
        let view = hub.views.get(subscriber.view);
        own.and_then(|own| own.left_out(batch, view, encoding))
            .unwrap_or_else(|| hub.views.show(viewed, batch, subscriber.view, encoding))
    }

    /// Whether so many bytes may wait behind what waits for a connection already.
    fn has_room_for(&self, id: ConnectionId, bytes: usize) -> bool {
        self.outlet(id).is_none_or(|outlet| {
            let outbox = outlet.outbox.as_ref();
            outbox.is_none_or(|outbox| self.settings.takes_log(outbox, bytes))
        })
    }

    /// Gives a member the entries behind its place, as it is sent them.
    fn move_on(
        &mut self,
        room: RoomAlias,
        index: u32,
        (batch, bytes): (&Batch, Bytes),
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
        let id = subscriber.connection;
        let Some(encoding) = self.outlet(id).map(|outlet| outlet.encoding) else {
            return;
        };
        if !bytes.is_empty() {
            self.counters.deliveries.add(batch.entries.len() as u64);
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
