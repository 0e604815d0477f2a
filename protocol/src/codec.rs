//! From frames to messages and back, in the two encodings.
//!
//! `roomful.v1.msgpack` carries one MessagePack array in a binary message, `roomful.v1.json` the same array in a text message. Any crate may encode and decode;
//! nothing else in the project serializes what goes over the wire.

use std::fmt;

use bytes::BufMut;
use rmp_serde::decode::ReadRefReader;
use serde::de::{DeserializeOwned, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer as _, Serialize};

use crate::frame::{ClientFrame, Fields, ServerBatch, ServerFrame, UNKNOWN_TYPE};
use crate::id::RequestId;
use crate::limits::DEPTH_MAX;
use crate::payload::json_depth_within;

/// How frames are written; chosen by the WebSocket subprotocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// MessagePack, in binary messages.
    MessagePack,
    /// JSON, in text messages.
    Json,
}

/// Why a message is not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct DecodeError {
    /// Which of the three ways it is wrong.
    pub kind: DecodeErrorKind,
    /// The request id, where one could be read.
    pub request: Option<RequestId>,
    /// One sentence, with the field's name where there is one.
    pub text: String,
}

/// How a message fails to be a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeErrorKind {
    /// Wrong syntax, type, length or nesting, or a missing field.
    Malformed,
    /// The type is none of this direction.
    UnknownType,
    /// Something stands behind the frame.
    TrailingBytes,
}

impl Encoding {
    /// Both, the preferred one first.
    pub const ALL: [Self; 2] = [Self::MessagePack, Self::Json];

    /// The WebSocket subprotocol (RFC 6455 §1.9).
    #[must_use]
    pub const fn subprotocol(self) -> &'static str {
        match self {
            Self::MessagePack => "roomful.v1.msgpack",
            Self::Json => "roomful.v1.json",
        }
    }

    /// The encoding of a subprotocol.
    #[must_use]
    pub fn from_subprotocol(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|encoding| encoding.subprotocol() == name)
    }

    /// Appends a frame's bytes.
    ///
    /// # Panics
    /// Never for frames of this crate: a `json` payload in them has passed [`crate::payload::Payload::check`].
    pub fn encode<F: Serialize>(self, frame: &F, out: &mut Vec<u8>) {
        match self {
            Self::MessagePack => {
                rmp_serde::encode::write(out, frame).expect("writing to memory cannot fail");
            }
            Self::Json => {
                serde_json::to_writer(out, frame).expect("checked payloads are valid JSON");
            }
        }
    }

    /// Appends a `batch` of frames that are encoded already, in the same encoding.
    pub fn encode_batch<'a>(
        self,
        frames: impl ExactSizeIterator<Item = &'a [u8]>,
        out: &mut Vec<u8>,
    ) {
        match self {
            Self::MessagePack => {
                out.put_u8(0x92);
                out.put_u8(<ServerBatch as Fields>::CODE);
                let count = u16::try_from(frames.len())
                    .expect("a batch holds at most BATCH_FRAMES_MAX frames");
                if count < 16 {
                    out.put_u8(0x90 | count.to_le_bytes()[0]);
                } else {
                    out.put_u8(0xdc);
                    out.put_u16(count);
                }
                frames.for_each(|frame| out.extend_from_slice(frame));
            }
            Self::Json => {
                out.extend_from_slice(b"[\"batch\",[");
                for (index, frame) in frames.enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    out.extend_from_slice(frame);
                }
                out.extend_from_slice(b"]]");
            }
        }
    }

    /// Reads a client's message.
    ///
    /// # Errors
    /// Why it is not a frame, with its request id where one could be read.
    pub fn decode_client(self, message: &[u8]) -> Result<ClientFrame, DecodeError> {
        self.decode(message)
    }

    /// Reads a server's message.
    ///
    /// # Errors
    /// Why it is not a frame.
    pub fn decode_server(self, message: &[u8]) -> Result<ServerFrame, DecodeError> {
        self.decode(message)
    }

    fn decode<F: DeserializeOwned>(self, message: &[u8]) -> Result<F, DecodeError> {
        let outcome = match self {
            Self::MessagePack => decode_msgpack(message),
            Self::Json => decode_json(message),
        };
        outcome.map_err(|(kind, text)| DecodeError {
            kind,
            request: self.peek_request(message),
            text,
        })
    }

    /// The second element, if it is an integer: the request id of every client frame that has one.
    fn peek_request(self, message: &[u8]) -> Option<RequestId> {
        let mut found = None;
        // The visitor stops in mid-array, which the readers report as an error; what it saw is in `found`.
        match self {
            Self::MessagePack => {
                drop(msgpack_reader(message).deserialize_seq(PeekRequest(&mut found)))
            }
            Self::Json if json_depth_within(message, DEPTH_MAX) => {
                drop(
                    serde_json::Deserializer::from_slice(message)
                        .deserialize_seq(PeekRequest(&mut found)),
                );
            }
            Self::Json => {}
        }
        found
    }
}

type Failure = (DecodeErrorKind, String);

fn msgpack_reader(message: &[u8]) -> rmp_serde::Deserializer<ReadRefReader<'_, [u8]>> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(message);
    reader.set_max_depth(DEPTH_MAX);
    reader
}

fn decode_msgpack<F: DeserializeOwned>(message: &[u8]) -> Result<F, Failure> {
    let mut reader = msgpack_reader(message);
    let frame = F::deserialize(&mut reader).map_err(|error| classify(&error))?;
    // The reader doesn't tell how far it got. Only at the very end does reading one more value fail at its first byte.
    match IgnoredAny::deserialize(&mut reader) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(frame),
        Ok(_) | Err(_) => Err(trailing()),
    }
}

fn decode_json<F: DeserializeOwned>(message: &[u8]) -> Result<F, Failure> {
    if !json_depth_within(message, DEPTH_MAX) {
        return Err((
            DecodeErrorKind::Malformed,
            format!("the frame nests deeper than {DEPTH_MAX} levels"),
        ));
    }
    let mut reader = serde_json::Deserializer::from_slice(message);
    let frame = F::deserialize(&mut reader).map_err(|error| classify(&error))?;
    reader.end().map(|()| frame).map_err(|_| trailing())
}

fn classify(error: &impl fmt::Display) -> Failure {
    let text = error.to_string();
    let unknown = text.contains(UNKNOWN_TYPE);
    let kind = if unknown {
        DecodeErrorKind::UnknownType
    } else {
        DecodeErrorKind::Malformed
    };
    (kind, text)
}

fn trailing() -> Failure {
    (
        DecodeErrorKind::TrailingBytes,
        "bytes follow the frame; send one frame a message, or a batch".to_owned(),
    )
}

/// Reads the first two elements and keeps the second.
struct PeekRequest<'a>(&'a mut Option<RequestId>);

impl<'de> Visitor<'de> for PeekRequest<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a frame")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        seq.next_element::<IgnoredAny>()?;
        *self.0 = seq.next_element::<u64>()?.and_then(RequestId::from_integer);
        Ok(())
    }
}
