//! From a room's turn to the sockets: fan-out, catch-up, and what happens to a connection that can't take it.
//!
//! A turn is handed to the members of a hub in a loop of direct writes. It stops when the turn's time is up and goes on where it was. A connection that blocks gets an outbox; then
//! signals are conflated or dropped, presence is skipped until it can ask for the difference, and the log is queued up to its lane's
//! bound, beyond which the member goes to its own position. Only a connection that takes no byte at all for too long, or whose replies
//! pile up, is closed.

use std::io::IoSlice;
use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::Bytes;
use roomful_protocol::error::{CloseCode, ErrorCode};
use roomful_protocol::frame::{
    CaughtUp, Entry, Goaway, PresenceDelta, ServerFrame, Signalled, Watch,
};
use roomful_protocol::id::{Offset, ProducerId, RoomAlias, UserId};

use super::hub::{Hub, Place, Subscriber};
use super::message::{
    Batch, Chunk, ConnectionId, Delta, Message, Origin, Request, Signals, Turn, Wire,
};
use super::{Flush, Host, Shard, ShardSettings, Timer};
use crate::clock::Now;
use crate::connection::outbox::{Outbox, SignalFate, Sizes};
use crate::connection::{Connection, Phase};
use crate::metrics::ShardCounters;
use crate::wire;

impl Shard {
    /// Puts a frame behind what the connection gets with its next write, at the latest at the end of the turn.
    pub(super) fn stage(&mut self, id: ConnectionId, frame: &ServerFrame) {
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        if connection.outbox.is_some() {
            let bytes = wire::message(connection.encoding, frame);
            return self.stage_bytes(id, &bytes);
        }
        let first = connection.staged.is_empty();
        wire::message_into(connection.encoding, frame, &mut connection.staged);
        if first {
            self.staged.push(id);
        }
    }

    /// As [`Shard::stage`], for a whole message.
    pub(super) fn stage_bytes(&mut self, id: ConnectionId, bytes: &Bytes) {
        let counters = Arc::clone(&self.counters);
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        if let Some(outbox) = &mut connection.outbox {
            let before = outbox.sizes();
            outbox.push_control(bytes.clone());
            track(&counters, before, outbox.sizes());
        } else {
            let first = connection.staged.is_empty();
            connection.staged.extend_from_slice(bytes);
            if !first {
                return;
            }
        }
        self.staged.push(id);
    }

    /// Writes what is staged, and closes whoever has let too much pile up.
    pub(super) fn flush_staged(&mut self, now: Now, host: &mut dyn Host) {
        for id in std::mem::take(&mut self.staged) {
            let settings = Arc::clone(&self.settings);
            let Some(connection) = self.connection(id) else {
                continue;
            };
            match &connection.outbox {
                Some(outbox) if is_over(outbox.sizes(), &settings) => {
                    self.close(id, CloseCode::SlowConsumer, now, host);
                }
                Some(_) => {}
                None => self.write(id, &[], now, host),
            }
        }
    }

    /// Writes what is staged and then `parts`; what does not fit makes an outbox.
    fn write(&mut self, id: ConnectionId, parts: &[&Bytes], now: Now, host: &mut dyn Host) {
        let counters = Arc::clone(&self.counters);
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        if write_now(connection, parts, now, host, &counters) == Written::Blocked {
            self.watch_for_stall(id, now);
        }
    }

    fn watch_for_stall(&mut self, id: ConnectionId, now: Now) {
        let due_ms = now.monotonic_ms + self.settings.write_stall_ms;
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        if !std::mem::replace(&mut connection.stall_armed, true) {
            self.wheel.set(due_ms, Timer::Stall(id));
        }
    }

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
    pub(super) fn fan_out(&mut self, now: Now, host: &mut dyn Host) -> Flush {
        let mut next = self.last_hub;
        let mut served = 0;
        loop {
            let after = self
                .dirty_hubs
                .range((std::ops::Bound::Excluded(next), std::ops::Bound::Unbounded))
                .next();
            let Some(alias) = after.or_else(|| self.dirty_hubs.first()).copied() else {
                return Flush::Done;
            };
            let progress = self.hand_on(alias, now, host);
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
                return Flush::More;
            }
        }
    }

    /// Hands a hub's front turn to its members, from where it stopped.
    fn hand_on(&mut self, alias: RoomAlias, now: Now, host: &mut dyn Host) -> Flush {
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
        let mut flush = Flush::Done;
        while hub.cursor < hub.end() {
            let looks =
                hub.cursor % self.settings.members_per_look == self.settings.members_per_look - 1;
            if looks && host.turn_is_spent() {
                flush = Flush::More;
            }
            let index = u32::try_from(hub.cursor).expect("connections are counted in 32 bits");
            hub.cursor += 1;
            let Some(subscriber) = hub.get_mut(index) else {
                continue;
            };
            let slot = subscriber.connection.slot as usize;
            let Some(Some(connection)) = self.connections.get_mut(slot) else {
                continue;
            };
            if handing.hand_to(subscriber, connection, now, host) == Written::Blocked {
                blocked.push(connection.id);
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

    /// Asks for what a member lacks, unless its connection is blocked: then it asks when that is over.
    fn catch_up_member(
        &mut self,
        alias: RoomAlias,
        index: u32,
        id: ConnectionId,
        host: &mut dyn Host,
    ) {
        if self
            .connection(id)
            .is_none_or(|connection| connection.outbox.is_some())
        {
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
                    self.move_on(chunk.room, index, batch, chunk.live, now, host);
                    self.catch_up_member(chunk.room, index, id, host);
                }
            }
        }
    }

    /// Gives a member the entries behind its place.
    fn move_on(
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
        let Some(connection) = self.connection(id) else {
            return;
        };
        let encoding = connection.encoding;
        let own = Own::of(mute, connection);
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

    fn is_log_lane_full(&self, id: ConnectionId, batch: &Batch) -> bool {
        let outbox = self
            .connection(id)
            .and_then(|connection| connection.outbox.as_ref());
        outbox.is_some_and(|outbox| {
            outbox.log_bytes() + batch.payload_bytes() > self.settings.log_lane_bytes_max()
        })
    }

    /// Sends something of the log lane, behind what waits there.
    fn deliver_log(
        &mut self,
        id: ConnectionId,
        room: RoomAlias,
        bytes: Bytes,
        now: Now,
        host: &mut dyn Host,
    ) {
        let counters = Arc::clone(&self.counters);
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        match &mut connection.outbox {
            Some(outbox) => {
                let before = outbox.sizes();
                outbox.push_log(room, bytes);
                track(&counters, before, outbox.sizes());
            }
            None => self.write(id, &[&bytes], now, host),
        }
    }

    pub(super) fn deliver_direct(
        &mut self,
        id: ConnectionId,
        signal: &Signalled,
        now: Now,
        host: &mut dyn Host,
    ) {
        let (settings, counters) = (Arc::clone(&self.settings), Arc::clone(&self.counters));
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        if connection
            .open()
            .and_then(|open| open.membership(signal.room))
            .is_none()
        {
            return;
        }
        let bytes = wire::message(connection.encoding, &signal.clone().into());
        match &mut connection.outbox {
            Some(outbox) => {
                let before = outbox.sizes();
                queue_signal(outbox, signal, bytes, &settings, &counters);
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
        let Some(connection) = self.connection(id) else {
            return;
        };
        let (encoding, blocked) = (connection.encoding, connection.outbox.is_some());
        let Some(membership) = connection
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

    /// A socket takes bytes again: what waits goes out, and whoever stood still because of it goes on.
    pub(super) fn writable(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        let counters = Arc::clone(&self.counters);
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        let Some(outbox) = &mut connection.outbox else {
            return;
        };
        let before = outbox.sizes();
        let drained = drain(outbox, id, host);
        let after = outbox.sizes();
        track(&counters, before, after);
        if after.bytes < before.bytes {
            connection.progress_ms = now.monotonic_ms;
        }
        if !drained {
            return;
        }
        connection.outbox = None;
        let memberships: Vec<_> = connection
            .open()
            .map(|open| open.memberships.clone())
            .unwrap_or_default();
        for membership in memberships {
            self.catch_up_member(membership.room, membership.index, id, host);
        }
    }

    pub(super) fn stalled(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        let stall_ms = self.settings.write_stall_ms;
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        connection.stall_armed = connection.outbox.is_some();
        let until_ms = connection.progress_ms + stall_ms;
        match connection.stall_armed {
            false => {}
            true if until_ms <= now.monotonic_ms => {
                self.close(id, CloseCode::SlowConsumer, now, host);
            }
            true => self.wheel.set(until_ms, Timer::Stall(id)),
        }
    }

    /// Ends a connection with a close frame behind everything that was said to it.
    pub(super) fn close(
        &mut self,
        id: ConnectionId,
        code: CloseCode,
        now: Now,
        host: &mut dyn Host,
    ) {
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        let staged = std::mem::take(&mut connection.staged);
        let half_out = connection.outbox.take();
        if let Some(outbox) = &half_out {
            track(&self.counters, outbox.sizes(), Sizes::default());
        }
        let waiting = half_out
            .into_iter()
            .flat_map(|outbox| outbox.into_last_words());
        let mut words: Vec<Bytes> = waiting.collect();
        words.push(staged.into());
        words.push(wire::close(code));
        host.finish(id, words);
        self.drop_connection(id, Some(code), now, host);
    }

    /// The socket is gone, or of no use any more.
    pub(super) fn gone(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        if self.connection(id).is_some() {
            host.finish(id, Vec::new());
            self.drop_connection(id, None, now, host);
        }
    }

    fn drop_connection(
        &mut self,
        id: ConnectionId,
        code: Option<CloseCode>,
        now: Now,
        host: &mut dyn Host,
    ) {
        let Some(connection) = self
            .connections
            .get_mut(id.slot as usize)
            .and_then(Option::take)
        else {
            return;
        };
        if let Some(outbox) = &connection.outbox {
            track(&self.counters, outbox.sizes(), Sizes::default());
        }
        self.counters.connections.sub(1);
        self.counters.connections_closed.of(code).add(1);
        let Phase::Open(open) = connection.phase else {
            return;
        };
        for membership in &open.memberships {
            let request = Request::Detach {
                member: membership.member,
                attachment: membership.attachment,
                shard: self.id,
            };
            self.unsubscribe(membership.room, membership.index, request, host);
        }
        if self.sessions.detach(open.session, open.attachment) {
            let due_ms = now.monotonic_ms + self.settings.session_retention_ms;
            self.wheel
                .set(due_ms, Timer::Session(open.session, open.attachment));
        } else {
            self.counters.sessions.sub(1);
        }
    }

    /// Takes a member out of its hub and tells the owner.
    pub(super) fn unsubscribe(
        &mut self,
        room: RoomAlias,
        index: u32,
        request: Request,
        host: &mut dyn Host,
    ) {
        let Some(hub) = self.hubs.get_mut(&room) else {
            return;
        };
        let home = hub.home;
        if hub.remove(index).is_some() {
            self.counters.subscribers.sub(1);
        }
        if hub.is_empty() {
            self.hubs.remove(&room);
            self.dirty_hubs.remove(&room);
        }
        self.send(home, Message::Request { room, request }, host);
    }

    /// Tells everybody when to come back, each at a time of its own, and closes.
    pub(super) fn drain(&mut self, reconnect_after_ms: u64, now: Now, host: &mut dyn Host) {
        self.draining = true;
        let ids: Vec<_> = self
            .connections
            .iter()
            .flatten()
            .map(|connection| connection.id)
            .collect();
        let count = ids.len().max(1) as u64;
        for (index, id) in (0_u64..).zip(ids) {
            let resume = self
                .connection(id)
                .and_then(|connection| Some(self.resume_token(connection.open()?, now)));
            if let Some(resume) = resume {
                let reconnect_after_ms = reconnect_after_ms * index / count;
                self.stage(
                    id,
                    &Goaway {
                        reconnect_after_ms,
                        resume,
                    }
                    .into(),
                );
            }
            self.close(id, CloseCode::Restart, now, host);
        }
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
    fn hand_to(
        &self,
        subscriber: &mut Subscriber,
        connection: &mut Connection,
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
        if connection.outbox.is_some() {
            self.queue(subscriber, connection, log, delta, signals);
            return Written::All;
        }
        let log = log.map(|batch| self.log_bytes(batch, subscriber, connection));
        let delta = delta.map(|delta| {
            self.counters.presence_deltas.add(1);
            presence_bytes(subscriber, delta, connection)
        });
        let signals = signals.map(|signals| signal_bytes(signals, subscriber, connection));
        let parts: [Option<&Bytes>; 3] = [log.as_ref(), delta, signals.as_ref()];
        let mut present = parts
            .iter()
            .flatten()
            .copied()
            .filter(|bytes| !bytes.is_empty());
        // Most turns bring one thing, and then one plain write is all there is to do.
        match (present.next(), present.next(), present.next()) {
            (None, ..) => Written::All,
            (Some(only), None, _) => write_now(connection, &[only], now, host, self.counters),
            (Some(first), Some(second), None) => {
                write_now(connection, &[first, second], now, host, self.counters)
            }
            (Some(first), Some(second), Some(third)) => write_now(
                connection,
                &[first, second, third],
                now,
                host,
                self.counters,
            ),
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

    fn log_bytes(&self, batch: &Batch, subscriber: &Subscriber, connection: &Connection) -> Bytes {
        self.counters.deliveries.add(batch.entries.len() as u64);
        match Own::of(subscriber.mute, connection) {
            Some(own) if batch.entries.iter().any(|entry| own.is(entry)) => {
                wire::batch_without_own(batch, connection.encoding, |entry| own.is(entry))
            }
            _ => wire::batch(batch, connection.encoding).clone(),
        }
    }

    /// Puts the turn into an outbox, each part as its lane's policy says.
    fn queue(
        &self,
        subscriber: &mut Subscriber,
        connection: &mut Connection,
        log: Option<&Batch>,
        delta: Option<&Delta>,
        signals: Option<&Signals>,
    ) {
        let encoding = connection.encoding;
        let log = log.map(|batch| (batch.after, self.log_bytes(batch, subscriber, connection)));
        let Some(outbox) = &mut connection.outbox else {
            return;
        };
        let before = outbox.sizes();
        if let Some((after, bytes)) = log {
            let fits = outbox.log_bytes() + bytes.len() <= self.settings.log_lane_bytes_max()
                && outbox.sizes().messages < self.settings.outbox_messages_max;
            if fits {
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
struct Own<'a> {
    producer: ProducerId,
    user: &'a UserId,
}

impl<'a> Own<'a> {
    fn of(mute: Option<ProducerId>, connection: &'a Connection) -> Option<Self> {
        Some(Self {
            producer: mute?,
            user: &connection.open()?.identity.user,
        })
    }

    fn is(&self, entry: &Entry) -> bool {
        entry.op.is_some_and(|op| op.producer == self.producer) && entry.user == *self.user
    }
}

fn wants(subscriber: &Subscriber, delta: &Delta) -> bool {
    let watches = match subscriber.watch {
        Watch::None => false,
        Watch::Occupancy => delta.occupancy_changed,
        Watch::Members => true,
    };
    watches && subscriber.missed_presence.is_none()
}

fn presence_bytes<'a>(
    subscriber: &Subscriber,
    delta: &'a Delta,
    connection: &Connection,
) -> &'a Bytes {
    match subscriber.watch {
        Watch::None | Watch::Occupancy => wire::occupancy(delta, connection.encoding),
        Watch::Members => wire::delta(delta, connection.encoding),
    }
}

/// All signals of the turn, without the member's own.
fn signal_bytes(signals: &Signals, subscriber: &Subscriber, connection: &Connection) -> Bytes {
    if signals
        .signals
        .iter()
        .all(|signal| signal.from != subscriber.member)
    {
        return wire::signals(signals, connection.encoding).clone();
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
        connection.encoding,
    )
    .clone()
}

fn queue_signal(
    outbox: &mut Outbox,
    signal: &Signalled,
    bytes: Bytes,
    settings: &ShardSettings,
    counters: &ShardCounters,
) {
    let max = settings.signal_lane_bytes_max();
    match outbox.push_signal(signal.room, signal.from, signal.key.as_ref(), bytes, max) {
        SignalFate::Queued => {}
        SignalFate::Conflated => counters.signals_conflated.add(1),
        SignalFate::Dropped => counters.signals_dropped.add(1),
    }
}

/// Whether a write took everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    All,
    /// It did not, and an outbox was made for the rest.
    Blocked,
}

/// Writes what is staged and then `parts`, past no outbox.
fn write_now(
    connection: &mut Connection,
    parts: &[&Bytes],
    now: Now,
    host: &mut dyn Host,
    counters: &ShardCounters,
) -> Written {
    let staged = std::mem::take(&mut connection.staged);
    let mut slices = [IoSlice::new(&[]); PARTS_MAX + 1];
    let mut count = 0;
    let mut total = 0;
    for bytes in std::iter::once(&staged[..]).chain(parts.iter().map(|part| &part[..])) {
        if !bytes.is_empty() {
            slices[count] = IoSlice::new(bytes);
            count += 1;
            total += bytes.len();
        }
    }
    let written = if total == 0 {
        0
    } else {
        host.write(connection.id, &slices[..count])
    };
    if written == total {
        return Written::All;
    }
    let parts = std::iter::once(Bytes::from(staged)).chain(parts.iter().copied().cloned());
    let outbox = Outbox::with_rest(after(parts, written));
    track(counters, Sizes::default(), outbox.sizes());
    connection.outbox = Some(Box::new(outbox));
    connection.progress_ms = now.monotonic_ms;
    Written::Blocked
}

/// What is left of a sequence of messages behind its first `written` bytes.
fn after(parts: impl Iterator<Item = Bytes>, mut written: usize) -> impl Iterator<Item = Bytes> {
    parts.filter_map(move |mut bytes| {
        let skipped = written.min(bytes.len());
        written -= skipped;
        let rest = bytes.split_off(skipped);
        (!rest.is_empty()).then_some(rest)
    })
}

/// Writes an outbox until it is empty (true) or the socket is full.
fn drain(outbox: &mut Outbox, id: ConnectionId, host: &mut dyn Host) -> bool {
    while !outbox.is_empty() {
        outbox.choose();
        let slices = outbox.slices();
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        let written = host.write(id, &slices);
        drop(slices);
        outbox.written(written);
        if written < total {
            return false;
        }
    }
    true
}

fn is_over(sizes: Sizes, settings: &ShardSettings) -> bool {
    sizes.bytes > settings.outbox_bytes_max || sizes.messages > settings.outbox_messages_max
}

pub(super) fn track(counters: &ShardCounters, before: Sizes, after: Sizes) {
    let bytes = counters.outbox_bytes.get() + after.bytes as u64 - before.bytes as u64;
    let messages = counters.outbox_messages.get() + after.messages as u64 - before.messages as u64;
    counters.outbox_bytes.set(bytes);
    counters.outbox_messages.set(messages);
}

/// Parts of a turn: log, presence, signals.
const PARTS_MAX: usize = 3;
