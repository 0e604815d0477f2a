//! What goes to one connection: staged replies, the outbox where the socket is full, and the end.
//!
//! Everything that leaves for a socket passes here, from all of the shard. Bytes leave in order, and none
//! passes an outbox; a turn's replies and its events leave in one write where they can. A connection that
//! takes no byte for too long, or whose replies pile up, is closed, and its members and its session are told.
//! What may wait in which lane is left to the outbox and to those who fill it.

use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;
use roomful_protocol::error::CloseCode;
use roomful_protocol::frame::ServerFrame;
use roomful_protocol::id::RoomAlias;

use super::hub::Hub;
use super::message::{ConnectionId, Message, Request};
use super::{ConnectionTimer, Host, Shard, ShardSettings, Timer};
use crate::clock::Now;
use crate::connection::outbox::{Outbox, Sizes};
use crate::connection::{Connection, Outlet};
use crate::metrics::{MemoryShed, ShardCounters};
use crate::wire;

impl Shard {
    /// Puts a frame behind what the connection gets with its next write, at the latest at the end of the turn.
    pub(super) fn stage(&mut self, id: ConnectionId, frame: &ServerFrame) {
        let reply_bytes_max = self.settings.reply_bytes_max();
        let Some(outlet) = self.outlet_mut(id) else {
            return;
        };
        if outlet.outbox.is_some() {
            let bytes = wire::message(outlet.encoding, frame);
            return self.stage_bytes(id, &bytes);
        }
        let first = outlet.staged.is_empty();
        wire::message_into(outlet.encoding, frame, &mut outlet.staged);
        outlet.connection.pauses.replies |= outlet.staged.len() > reply_bytes_max;
        if first {
            self.staged.push_back(id);
        }
    }

    /// As [`Shard::stage`], for a whole message.
    pub(super) fn stage_bytes(&mut self, id: ConnectionId, bytes: &Bytes) {
        let counters = Arc::clone(&self.counters);
        let reply_bytes_max = self.settings.reply_bytes_max();
        let Some(outlet) = self.outlet_mut(id) else {
            return;
        };
        let pauses = &mut outlet.connection.pauses;
        if let Some(outbox) = &mut outlet.outbox {
            let before = outbox.sizes();
            outbox.push_control(bytes.clone());
            pauses.replies |= outbox.reply_bytes() > reply_bytes_max;
            track(&counters, before, outbox.sizes());
        } else {
            let first = outlet.staged.is_empty();
            outlet.staged.extend_from_slice(bytes);
            pauses.replies |= outlet.staged.len() > reply_bytes_max;
            if !first {
                return;
            }
        }
        self.staged.push_back(id);
    }

    /// Writes what is staged until all is or the time is up, and closes whoever has let too much pile up.
    pub(super) fn flush_staged(&mut self, now: Now, host: &mut dyn Host) {
        for served in 1_usize.. {
            let Some(id) = self.staged.pop_front() else {
                return;
            };
            self.guard_connection(id, now, host, |shard, host| {
                shard.write_staged(id, now, host);
            });
            if served.is_multiple_of(self.settings.items_per_look) && host.turn_is_spent() {
                return;
            }
        }
    }

    fn write_staged(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        let Some(outlet) = self.outlet(id) else {
            return;
        };
        match &outlet.outbox {
            Some(outbox)
                if outbox.sizes().bytes > OUTBOX_FREE_BYTES
                    && self.memory.is_over(self.id, &self.counters) =>
            {
                self.counters.memory_sheds.of(MemoryShed::Outbox).add(1);
                self.close(id, CloseCode::SlowConsumer, now, host);
            }
            Some(outbox) if is_over(outbox.sizes(), &self.settings) => {
                self.close(id, CloseCode::SlowConsumer, now, host);
            }
            Some(_) => {}
            None => self.write(id, &[], now, host),
        }
        self.read_on(id, now, host);
    }

    /// Reads a connection again when most of its replies have left.
    fn read_on(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        let few = self.settings.reply_bytes_max() / 2;
        let Some(outlet) = self.outlet_mut(id) else {
            return;
        };
        let waiting = outlet
            .outbox
            .as_ref()
            .map_or(0, |outbox| outbox.reply_bytes());
        let pauses = &mut outlet.connection.pauses;
        if pauses.replies && waiting <= few && outlet.staged.len() <= few {
            pauses.replies = false;
            self.go_on(id, now, host);
        }
    }

    /// Writes what is staged and then `parts`; what does not fit makes an outbox.
    pub(super) fn write(
        &mut self,
        id: ConnectionId,
        parts: &[&Bytes],
        now: Now,
        host: &mut dyn Host,
    ) {
        let counters = Arc::clone(&self.counters);
        let Some(outlet) = self.outlet_mut(id) else {
            return;
        };
        if write_now(outlet, parts, now, host, &counters) == Written::Blocked {
            self.watch_for_stall(id, now);
        }
    }

    /// Sees to it that a blocked connection is looked at when its patience ends.
    pub(super) fn watch_for_stall(&mut self, id: ConnectionId, now: Now) {
        let due_ms = now.monotonic_ms + self.settings.write_stall_ms;
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        if !std::mem::replace(&mut connection.stall_armed, true) {
            self.wheel
                .set(due_ms, Timer::Connection(ConnectionTimer::Stall, id));
        }
    }

    /// A socket takes bytes again: what waits goes out, and whoever stood still because of it goes on.
    pub(super) fn writable(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        let progress_bytes = self.settings.write_progress_bytes_min;
        let counters = Arc::clone(&self.counters);
        let Some(outlet) = self.outlet_mut(id) else {
            return;
        };
        let Some(outbox) = &mut outlet.outbox else {
            return;
        };
        let before = outbox.sizes();
        let drained = drain(outbox, id, host);
        let after = outbox.sizes();
        track(&counters, before, after);
        let connection = &mut outlet.connection;
        let bytes = u32::try_from(before.bytes - after.bytes).unwrap_or(u32::MAX);
        connection.drained_bytes = connection.drained_bytes.saturating_add(bytes);
        if connection.drained_bytes >= progress_bytes {
            connection.drained_bytes = 0;
            connection.progress_ms = now.monotonic_ms;
        }
        if !drained {
            return self.read_on(id, now, host);
        }
        outlet.outbox = None;
        self.read_on(id, now, host);
        let Some(outlet) = self.outlet_mut(id) else {
            return;
        };
        let memberships: Vec<_> = outlet
            .connection
            .open()
            .map(|open| open.memberships.clone())
            .unwrap_or_default();
        for membership in memberships {
            self.catch_up_member(membership.room, membership.index, id, host);
        }
    }

    /// Closes a connection that has taken next to nothing for too long; looks again later where it has taken some.
    pub(super) fn stalled(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        let stall_ms = self.settings.write_stall_ms;
        let Some(Outlet {
            outbox, connection, ..
        }) = self.outlet_mut(id)
        else {
            return;
        };
        connection.stall_armed = outbox.is_some();
        let until_ms = connection.progress_ms + stall_ms;
        match connection.stall_armed {
            false => {}
            true if until_ms <= now.monotonic_ms => {
                self.close(id, CloseCode::SlowConsumer, now, host);
            }
            true => self
                .wheel
                .set(until_ms, Timer::Connection(ConnectionTimer::Stall, id)),
        }
    }

    /// The peer has closed, and gets its answer.
    pub(super) fn closed(
        &mut self,
        id: ConnectionId,
        code: Option<u16>,
        now: Now,
        host: &mut dyn Host,
    ) {
        self.end(id, CloseCode::Normal, wire::closed(code), now, host);
    }

    /// Ends a connection with a close frame.
    pub(super) fn close(
        &mut self,
        id: ConnectionId,
        code: CloseCode,
        now: Now,
        host: &mut dyn Host,
    ) {
        self.end(id, code, wire::close(code), now, host);
    }

    /// Ends a connection with a close frame behind everything that was said to it; it counts as closed with `code`.
    fn end(
        &mut self,
        id: ConnectionId,
        code: CloseCode,
        close: Bytes,
        now: Now,
        host: &mut dyn Host,
    ) {
        let Some(outlet) = self.outlet_mut(id) else {
            return;
        };
        let staged = std::mem::take(&mut outlet.staged);
        let half_out = outlet.outbox.take();
        if let Some(outbox) = &half_out {
            track(&self.counters, outbox.sizes(), Sizes::default());
        }
        // Whoever is closed for what waits must not go on holding it.
        let replies_too = code != CloseCode::SlowConsumer;
        let waiting = half_out
            .into_iter()
            .flat_map(|outbox| outbox.into_last_words(replies_too));
        let mut words: Vec<Bytes> = waiting.collect();
        if !staged.is_empty() {
            words.push(staged.into());
        }
        words.push(close);
        // Counted before it is said, so that whoever has read it finds it in the metrics.
        self.drop_connection(id, Some(code), now, host);
        host.finish(id, words);
    }

    /// The socket is gone, or of no use any more.
    pub(super) fn gone(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        if self.connection(id).is_some() {
            host.finish(id, Vec::new());
            self.drop_connection(id, None, now, host);
        }
    }

    /// Forgets a connection: its members begin their grace, its session its retention.
    pub(super) fn drop_connection(
        &mut self,
        id: ConnectionId,
        code: Option<CloseCode>,
        now: Now,
        host: &mut dyn Host,
    ) {
        // It leaves everything one by one before it goes itself: where that panics, what is left can still be told.
        while let Some(open) = self.connection_mut(id).and_then(Connection::open_mut)
            && let Some(membership) = open.memberships.pop()
        {
            let request = Request::Detach {
                member: membership.member,
                attachment: membership.attachment,
                shard: self.id,
            };
            self.unsubscribe(membership.room, membership.index, request, host);
        }
        if let Some(open) = self
            .connection_mut(id)
            .and_then(|connection| connection.open())
        {
            let (session, attachment) = (open.session, open.attachment);
            if self.sessions.detach(session, attachment) {
                let due_ms = now.monotonic_ms + self.settings.session_retention_ms;
                self.wheel
                    .set(due_ms, Timer::Session(Box::new((session, attachment))));
            } else {
                self.counters.sessions.sub(1);
            }
        }
        let outlet = self.outlets.get_mut(id.slot as usize);
        let Some(outlet) = outlet.and_then(|outlet| outlet.take_if(|outlet| outlet.id == id))
        else {
            return;
        };
        if let Some(outbox) = &outlet.outbox {
            track(&self.counters, outbox.sizes(), Sizes::default());
        }
        if outlet.connection.pauses.page {
            self.counters.pages_awaited.sub(1);
        }
        let backlog = outlet.connection.backlog_bytes() as u64;
        self.counters.backlog_bytes.sub(backlog);
        self.counters.connections.sub(1);
        self.counters.connections_closed.of(code).add(1);
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
            self.remove_hub(room);
        }
        self.send(home, Message::Request { room, request }, host);
    }

    /// Takes a hub away, with the work that is left for it: places and views of a later one are others.
    pub(super) fn remove_hub(&mut self, room: RoomAlias) -> Option<Hub> {
        self.dirty_hubs.remove(&room);
        self.catching.retain(|catching| catching.room != room);
        self.hubs.remove(&room)
    }
}

/// Whether a write took everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    All,
    /// It did not, and an outbox was made for the rest.
    Blocked,
}

/// Writes what is staged and then `parts`, past no outbox.
pub(super) fn write_now(
    outlet: &mut Outlet,
    parts: &[&Bytes],
    now: Now,
    host: &mut dyn Host,
    counters: &ShardCounters,
) -> Written {
    let staged = std::mem::take(&mut outlet.staged);
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
        host.write(outlet.id, &slices[..count])
    };
    if written == total {
        return Written::All;
    }
    // Copied, so that what is out already, and the room that the buffer has grown to, are free again.
    let waiting = Bytes::copy_from_slice(staged.get(written..).unwrap_or_default());
    let written = written.saturating_sub(staged.len());
    drop(staged);
    let shared = after(parts.iter().copied().cloned(), written);
    let outbox = Outbox::with_rest(some(waiting).chain(shared));
    track(counters, Sizes::default(), outbox.sizes());
    outlet.outbox = Some(Box::new(outbox));
    outlet.connection.progress_ms = now.monotonic_ms;
    outlet.connection.drained_bytes = 0;
    Written::Blocked
}

/// Bytes, if there are any.
fn some(bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::once(bytes).filter(|bytes| !bytes.is_empty())
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

/// What a connection may have waiting without being closed for it when memory is short.
const OUTBOX_FREE_BYTES: usize = 64 * 1024;

/// Parts of a turn: log, presence, signals.
const PARTS_MAX: usize = 3;
