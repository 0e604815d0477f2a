//! From frames to the bytes of whole WebSocket messages.
//!
//! The core writes messages, not frames: header and payload together, so that one buffer serves every
//! receiver of a format.

use std::sync::Arc;

use bytes::Bytes;
use roomful_protocol::codec::Encoding;
use roomful_protocol::error::CloseCode;
use roomful_protocol::frame::{Advance, Entry, Event, ServerFrame};
use roomful_protocol::id::{Offset, RoomAlias};
use roomful_protocol::limits::BATCH_FRAMES_MAX;
use roomful_protocol::websocket::{OpCode, close_payload, frame_into};

use crate::shard::message::{Batch, Delta, Signals};

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

/// A batch as the messages that all members get: one event alone, or several in a `batch`.
pub fn batch(batch: &Batch, encoding: Encoding) -> &Bytes {
    batch.wire.get(encoding, || {
        let frames = batch.entries.iter().map(|entry| event(batch.room, entry));
        messages(encoding, frames, encoded_bytes(batch))
    })
}

/// A batch for a member who does not want its own events back: they become `advance`.
#[must_use]
pub fn batch_without_own(
    batch: &Batch,
    encoding: Encoding,
    is_own: impl Fn(&Entry) -> bool,
) -> Bytes {
    let mut frames: Vec<ServerFrame> = Vec::with_capacity(batch.entries.len());
    for entry in &batch.entries {
        match frames.last_mut() {
            Some(ServerFrame::Advance(advance)) if is_own(entry) => advance.offset = entry.offset,
            _ if is_own(entry) => frames.push(
                Advance {
                    room: batch.room,
                    offset: entry.offset,
                }
                .into(),
            ),
            _ => frames.push(event(batch.room, entry)),
        }
    }
    messages(encoding, frames.into_iter(), encoded_bytes(batch))
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
    message(encoding, &Advance { room, offset }.into())
}

fn event(room: RoomAlias, entry: &Arc<Entry>) -> ServerFrame {
    Event {
        room,
        entry: Entry::clone(entry),
    }
    .into()
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
