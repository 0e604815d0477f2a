//! Roomful's messages, taken apart into frames.
//!
//! An event is looked into where it lies, as far as verification needs, since there is one for each delivery; all other frames are
//! decoded by the protocol crate. Input comes from the server under test, so everything is checked.

use anyhow::{Context as _, Error, Result, anyhow, bail};
use roomful_protocol::codec::Encoding;
use roomful_protocol::frame::{ClientFrame, ServerFrame};

use super::cursor::Cursor;

/// A frame from the server.
#[derive(Debug)]
pub(crate) enum Frame<'a> {
    /// An entry of the log.
    Event {
        /// The room's alias on this connection.
        room: u64,
        /// Its place.
        offset: u64,
        /// Its content.
        payload: &'a [u8],
    },
    /// Anything else.
    Other(Box<ServerFrame>),
}

type Take<'a> = &'a mut dyn FnMut(Frame<'_>) -> Result<()>;

/// Type codes, as a frame's first element.
const EVENT: u64 = 34;
const BATCH: u64 = 45;

/// Takes a message apart: one frame, or a batch of them.
///
/// # Errors
/// It is malformed, or what was returned for a frame.
pub(crate) fn each_frame(message: &[u8], take: Take<'_>) -> Result<()> {
    let mut cursor = Cursor::new(message);
    frames(&mut cursor, take)?;
    if !cursor.is_at_end() {
        bail!("the server sent bytes behind a frame");
    }
    Ok(())
}

/// What is wrong when a frame comes that no scenario expects.
pub(crate) fn fault(frame: &ServerFrame) -> Error {
    match frame {
        ServerFrame::Error(error) => anyhow!(
            "the server refused a request: {} ({})",
            error.code,
            error.text
        ),
        ServerFrame::Left(left) => anyhow!(
            "the server ended a membership: {} ({})",
            left.code,
            left.text
        ),
        ServerFrame::Goaway(_) => anyhow!("the server is stopping"),
        ServerFrame::Advance(advance) => {
            anyhow!("lost: the server stepped over offset {}", advance.offset)
        }
        other => anyhow!("an unexpected frame: {other:?}"),
    }
}

/// A frame as a message.
pub(crate) fn encoded(frame: &ClientFrame) -> Vec<u8> {
    let mut message = Vec::new();
    Encoding::MessagePack.encode(frame, &mut message);
    message
}

fn frames(cursor: &mut Cursor<'_>, take: Take<'_>) -> Result<()> {
    let mut inside = *cursor;
    let fields = inside.array()?;
    if inside.integer()? != BATCH {
        return frame(cursor, take);
    }
    for _ in 0..inside.array()? {
        frame(&mut inside, take)?;
    }
    inside.skip(fields.checked_sub(2).context("a batch without frames")?)?;
    *cursor = inside;
    Ok(())
}

fn frame(cursor: &mut Cursor<'_>, take: Take<'_>) -> Result<()> {
    let mut inside = *cursor;
    let fields = inside.array()?;
    if inside.integer()? != EVENT {
        let frame = Encoding::MessagePack.decode_server(cursor.value()?)?;
        return take(Frame::Other(Box::new(frame)));
    }
    event(&mut inside, fields, take)?;
    *cursor = inside;
    Ok(())
}

/// `[34, room, [offset, time, kind, user, op, [format, payload]]]`, each array with room for later fields.
fn event(cursor: &mut Cursor<'_>, fields: usize, take: Take<'_>) -> Result<()> {
    let room = cursor.integer()?;
    let entry_fields = cursor.array()?;
    let offset = cursor.integer()?;
    cursor.skip(4)?;
    let payload_fields = cursor.array()?;
    cursor.skip(1)?;
    let payload = cursor.binary()?;
    let later = [
        fields.checked_sub(3),
        entry_fields.checked_sub(6),
        payload_fields.checked_sub(2),
    ];
    for count in later.into_iter().rev() {
        cursor.skip(count.context("an event with too few fields")?)?;
    }
    take(Frame::Event {
        room,
        offset,
        payload,
    })
}
