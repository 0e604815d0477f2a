//! From frames to the bytes of whole WebSocket messages.
//!
//! The core writes messages, not frames: header and payload together, so that one buffer serves every
//! receiver of a format.

use std::sync::Arc;

use bytes::Bytes;
use roomful_protocol::codec::{DecodeError, Encoding};
use roomful_protocol::error::CloseCode;
use roomful_protocol::frame::{
    Advance, Entry, EntryKind, Event, Holder, LockChange, LockChanged, ServerFrame, StateChanged,
    StateChanges, TimerChange, TimerChanged, Waiter,
};
use roomful_protocol::id::{Offset, RoomAlias};
use roomful_protocol::limits::BATCH_FRAMES_MAX;
use roomful_protocol::payload::Payload;
use roomful_protocol::websocket::{OpCode, close_payload, frame_into};

use crate::shard::message::{Batch, Delta, Signals, View};

/// Appends one frame as one message.
pub fn message_into(encoding: Encoding, frame: &ServerFrame, out: &mut Vec<u8>) {
    let mut payload = Vec::with_capacity(FRAME_BYTES);
    encoding.encode(frame, &mut payload);
    frame_into(op_code(encoding), &payload, out);
}

/// One frame as one message.
#[must_use]
pub fn message(encoding: Encoding, frame: &ServerFrame) -> Bytes {
    let mut out = Vec::new();
    message_into(encoding, frame, &mut out);
    out.into()
}

/// The close frame of a catalogue row.
#[must_use]
pub fn close(code: CloseCode) -> Bytes {
    let mut out = Vec::new();
    frame_into(
        OpCode::Close,
        &close_payload(code.code(), code.name()),
        &mut out,
    );
    out.into()
}

/// The answer to a peer's close frame: its code goes back to it (RFC 6455 §5.5.1).
#[must_use]
pub fn closed(code: Option<u16>) -> Bytes {
    code.map_or_else(
        || close(CloseCode::Normal),
        |code| control(OpCode::Close, &close_payload(code, "")),
    )
}

/// A WebSocket frame of its own.
#[must_use]
pub fn control(code: OpCode, payload: &[u8]) -> Bytes {
    let mut out = Vec::new();
    frame_into(code, payload, &mut out);
    out.into()
}

/// A batch as the messages that members get who watch neither state nor locks: one event alone, or several in a `batch`.
pub fn batch(batch: &Batch, encoding: Encoding) -> &Bytes {
    batch.wire.get(encoding, || {
        let is_publish = |entry: &Arc<Entry>| entry.kind == EntryKind::Publish;
        if !batch.entries.iter().all(is_publish) {
            return batch_of(batch, encoding, &View::default(), |_| false);
        }
        let frames = batch.entries.iter().map(|entry| event(batch.room, entry));
        messages(encoding, frames, encoded_bytes(batch))
    })
}

/// A batch as a view shows it. What is not in the view becomes `advance`, and so does what `is_own`: a member's own
/// events that it does not want back.
#[must_use]
pub fn batch_of(
    batch: &Batch,
    encoding: Encoding,
    view: &View,
    is_own: impl Fn(&Entry) -> bool,
) -> Bytes {
    let shown = |entry: &Entry| {
        if is_own(entry) {
            return None;
        }
        entry_of(batch.room, entry, view)
    };
    let (mut entries, mut behind) = (batch.entries.iter(), None);
    let frames = std::iter::from_fn(|| {
        if behind.is_some() {
            return behind.take();
        }
        let mut passed = None;
        for entry in entries.by_ref() {
            match (shown(entry), passed) {
                (None, _) => passed = Some(entry.offset),
                (frame, None) => return frame,
                (frame, Some(offset)) => {
                    behind = frame;
                    return Some(advanced(batch.room, offset));
                }
            }
        }
        passed.map(|offset| advanced(batch.room, offset))
    });
    messages(encoding, frames, encoded_bytes(batch))
}

/// All signals of a turn.
pub fn signals(signals: &Signals, encoding: Encoding) -> &Bytes {
    signals.wire.get(encoding, || {
        let mut out = Vec::new();
        signals
            .signals
            .iter()
            .for_each(|signal| message_into(encoding, &signal.clone().into(), &mut out));
        out.into()
    })
}

/// A presence delta, whole.
pub fn delta(delta: &Delta, encoding: Encoding) -> &Bytes {
    delta
        .wire
        .get(encoding, || message(encoding, &delta.delta.clone().into()))
}

/// A presence delta's occupancy.
pub fn occupancy(delta: &Delta, encoding: Encoding) -> &Bytes {
    delta.occupancy_wire.get(encoding, || {
        let mut bare = delta.delta.clone();
        bare.changes.clear();
        message(encoding, &bare.into())
    })
}

/// Up to `offset` there was nothing for the member.
#[must_use]
pub fn advance(encoding: Encoding, room: RoomAlias, offset: Offset) -> Bytes {
    message(encoding, &advanced(room, offset))
}

fn advanced(room: RoomAlias, offset: Offset) -> ServerFrame {
    Advance { room, offset }.into()
}

/// An entry as a view shows it, if it does.
fn entry_of(room: RoomAlias, entry: &Entry, view: &View) -> Option<ServerFrame> {
    match entry.kind {
        EntryKind::Publish => Some(event(room, entry)),
        EntryKind::State => state_of(room, entry, view),
        EntryKind::Lock if view.locks => lock_of(room, entry),
        EntryKind::Timer => timer_of(room, entry),
        EntryKind::Lock | EntryKind::System => None,
    }
}

fn event(room: RoomAlias, entry: &Entry) -> ServerFrame {
    let entry = entry.clone();
    Event { room, entry }.into()
}

fn state_of(room: RoomAlias, entry: &Entry, view: &View) -> Option<ServerFrame> {
    view.state.as_ref()?;
    let mut changes = content(room, entry, StateChanges::from_payload)?.changes;
    changes.retain(|change| view.shows(&change.key));
    let changed = StateChanged {
        room,
        offset: entry.offset,
        time_ms: entry.time_ms,
        user: entry.user.clone(),
        op: entry.op,
        changes,
    };
    Some(changed)
        .filter(|changed| !changed.changes.is_empty())
        .map(ServerFrame::from)
}

fn lock_of(room: RoomAlias, entry: &Entry) -> Option<ServerFrame> {
    let LockChange {
        lock,
        why,
        held,
        queue,
    } = content(room, entry, LockChange::from_payload)?;
    let changed = LockChanged {
        room,
        offset: entry.offset,
        time_ms: entry.time_ms,
        lock,
        why,
        held: held.as_ref().map(Holder::from),
        queue: queue.iter().map(Waiter::from).collect(),
    };
    Some(changed.into())
}

fn timer_of(room: RoomAlias, entry: &Entry) -> Option<ServerFrame> {
    let TimerChange {
        name,
        what,
        due_ms,
        payload,
    } = content(room, entry, TimerChange::from_payload)?;
    let changed = TimerChanged {
        room,
        offset: entry.offset,
        time_ms: entry.time_ms,
        user: entry.user.clone(),
        name,
        what,
        due_ms,
        payload,
    };
    Some(changed.into())
}

/// What the server wrote into an entry. It was checked when the room was opened, so that it can be read.
fn content<T>(
    room: RoomAlias,
    entry: &Entry,
    read: impl Fn(&Payload) -> Result<T, DecodeError>,
) -> Option<T> {
    read(&entry.payload)
        .inspect_err(|error| {
            tracing::error!(%room, offset = %entry.offset, error = %error.text, "an entry can't be read");
        })
        .ok()
}

/// Frames as messages of at most [`BATCH_FRAMES_MAX`] frames and about [`MESSAGE_BYTES_MAX`] bytes.
/// `bytes` is about what they take, so that the buffers seldom grow.
fn messages(encoding: Encoding, frames: impl Iterator<Item = ServerFrame>, bytes: usize) -> Bytes {
    let mut out = Vec::with_capacity(bytes);
    let mut encoded = Vec::with_capacity(bytes.min(MESSAGE_BYTES_MAX + FRAME_BYTES));
    let mut ends = Vec::new();
    for frame in frames {
        encoding.encode(&frame, &mut encoded);
        ends.push(encoded.len());
        if ends.len() == BATCH_FRAMES_MAX || encoded.len() >= MESSAGE_BYTES_MAX {
            flush(encoding, &mut encoded, &mut ends, &mut out);
        }
    }
    flush(encoding, &mut encoded, &mut ends, &mut out);
    out.into()
}

fn encoded_bytes(batch: &Batch) -> usize {
    batch.payload_bytes() + batch.entries.len() * FRAME_BYTES
}

fn flush(encoding: Encoding, encoded: &mut Vec<u8>, ends: &mut Vec<usize>, out: &mut Vec<u8>) {
    match ends.len() {
        0 => {}
        1 => frame_into(op_code(encoding), encoded, out),
        _ => {
            let starts = std::iter::once(0).chain(ends.iter().copied());
            let frames: Vec<&[u8]> = starts
                .zip(&*ends)
                .map(|(start, end)| &encoded[start..*end])
                .collect();
            let mut payload = Vec::with_capacity(encoded.len() + 16);
            encoding.encode_batch(frames.into_iter(), &mut payload);
            frame_into(op_code(encoding), &payload, out);
        }
    }
    encoded.clear();
    ends.clear();
}

fn op_code(encoding: Encoding) -> OpCode {
    match encoding {
        Encoding::MessagePack => OpCode::Binary,
        Encoding::Json => OpCode::Text,
    }
}

/// Enough for most frames beside their payload.
const FRAME_BYTES: usize = 128;

/// Where a batch message ends: large enough to save headers, small enough not to stall a small client.
const MESSAGE_BYTES_MAX: usize = 32 * 1024;
