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
use crate::limits::{BATCH_FRAMES_MAX, DEPTH_MAX};
use crate::payload::{Payload, PayloadFormat, json_depth_within};

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
    /// On a `json` or `text` payload that has not passed [`crate::payload::Payload::check`], in the JSON encoding.
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

    /// Appends a `batch` of server frames that are encoded already, in the same encoding.
    ///
    /// # Panics
    /// On more than [`crate::limits::BATCH_FRAMES_MAX`] frames.
    pub fn encode_batch<'a>(
        self,
        frames: impl ExactSizeIterator<Item = &'a [u8]>,
        out: &mut Vec<u8>,
    ) {
        let count = u16::try_from(frames.len()).unwrap_or(u16::MAX);
        assert!(
            usize::from(count) <= BATCH_FRAMES_MAX,
            "a batch holds at most {BATCH_FRAMES_MAX} frames"
        );
        match self {
            Self::MessagePack => {
                out.extend_from_slice(&[FIXARRAY | 2, <ServerBatch as Fields>::CODE]);
                put_array_length(count, out);
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
        self.decode(message).map_err(|(kind, text)| DecodeError {
            kind,
            request: self.peek_request(message),
            text,
        })
    }

    /// Reads a server's message. One of a type that is not known here is to be passed over
    /// ([`DecodeErrorKind::UnknownType`]); inside a batch it already is.
    ///
    /// # Errors
    /// Why it is not a frame; never with a request id.
    pub fn decode_server(self, message: &[u8]) -> Result<ServerFrame, DecodeError> {
        self.decode(message).map_err(|(kind, text)| DecodeError {
            kind,
            request: None,
            text,
        })
    }

    fn decode<F: DeserializeOwned>(self, message: &[u8]) -> Result<F, Failure> {
        match self {
            Self::MessagePack => decode_msgpack(message),
            Self::Json => decode_json(message),
        }
    }

    /// The second element, if it is an integer: the request id of every client frame that has one.
    fn peek_request(self, message: &[u8]) -> Option<RequestId> {
        let mut found = None;
        // The visitor stops in mid-array, which the readers report as an error; what it saw is in `found`.
        match self {
            Self::MessagePack => {
                drop(msgpack_reader(message).deserialize_any(PeekRequest(&mut found)));
            }
            Self::Json if json_depth_within(message, DEPTH_MAX) => {
                let mut reader = serde_json::Deserializer::from_slice(message);
                drop(reader.deserialize_any(PeekRequest(&mut found)));
            }
            Self::Json => {}
        }
        found
    }
}

/// A record of the server's own as an entry's payload.
pub(crate) fn write_content(record: &impl Serialize) -> Payload {
    let mut bytes = Vec::new();
    Encoding::MessagePack.encode(record, &mut bytes);
    Payload {
        format: PayloadFormat::MessagePack,
        bytes: bytes.into(),
    }
}

/// Reads back what [`write_content`] wrote.
pub(crate) fn read_content<T: DeserializeOwned>(payload: &Payload) -> Result<T, DecodeError> {
    let read = if payload.format == PayloadFormat::MessagePack {
        decode_msgpack(&payload.bytes)
    } else {
        let text = "the entry's content is not MessagePack".to_owned();
        Err((DecodeErrorKind::Malformed, text))
    };
    read.map_err(|(kind, text)| DecodeError {
        kind,
        request: None,
        text,
    })
}

type Failure = (DecodeErrorKind, String);

fn msgpack_reader(message: &[u8]) -> rmp_serde::Deserializer<ReadRefReader<'_, [u8]>> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(message);
    // The reader refuses the level at which its count reaches zero.
    reader.set_max_depth(DEPTH_MAX + 1);
    reader
}

fn decode_msgpack<F: DeserializeOwned>(message: &[u8]) -> Result<F, Failure> {
    let mut reader = msgpack_reader(message);
    let frame = F::deserialize(&mut reader).map_err(|error| classify(&error))?;
    // The reader doesn't tell how far it got. Reading a boolean looks at one marker and never inside an array, so that it
    // fails to read a marker at the very end alone.
    match bool::deserialize(&mut reader) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(frame),
        Ok(_) | Err(_) => Err(trailing()),
    }
}

fn decode_json<F: DeserializeOwned>(message: &[u8]) -> Result<F, Failure> {
    if !json_depth_within(message, DEPTH_MAX) {
        let text = format!("the frame nests deeper than {DEPTH_MAX} levels");
        return Err((DecodeErrorKind::Malformed, text));
    }
    let mut reader = serde_json::Deserializer::from_slice(message);
    let frame = F::deserialize(&mut reader).map_err(|error| classify(&error))?;
    reader.end().map(|()| frame).map_err(|_| trailing())
}

fn classify(error: &impl fmt::Display) -> Failure {
    let text = without_content(error.to_string());
    let unknown = text.contains(UNKNOWN_TYPE);
    let kind = if unknown {
        DecodeErrorKind::UnknownType
    } else {
        DecodeErrorKind::Malformed
    };
    (kind, text)
}

/// Takes a quoted string of the message out of an error text: it may be a token in the wrong place, or as long as the
/// message. Serde writes `invalid type: string "…", expected …`.
fn without_content(text: String) -> String {
    match (
        text.split_once("string \""),
        text.rsplit_once("\", expected "),
    ) {
        (Some((before, _)), Some((_, after))) => format!("{before}a string, expected {after}"),
        _ => text,
    }
}

fn trailing() -> Failure {
    let text = "bytes follow the frame; send one frame a message, or a batch";
    (DecodeErrorKind::TrailingBytes, text.to_owned())
}

fn put_array_length(count: u16, out: &mut Vec<u8>) {
    match u8::try_from(count) {
        Ok(count) if count < 16 => out.put_u8(FIXARRAY | count),
        _ => {
            out.put_u8(ARRAY_16);
            out.put_u16(count);
        }
    }
}

/// MessagePack's first byte of an array of up to 15, without the count in its low half.
const FIXARRAY: u8 = 0x90;

/// MessagePack's first byte of an array whose count is the next two.
const ARRAY_16: u8 = 0xdc;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{CaughtUp, Frames, Ping, Pong};
    use crate::id::{INTEGER_MAX, Offset, RoomAlias};

    fn kind(encoding: Encoding, message: &[u8]) -> DecodeErrorKind {
        encoding.decode_client(message).unwrap_err().kind
    }

    #[test]
    fn subprotocols_name_the_encodings() {
        for encoding in Encoding::ALL {
            assert_eq!(
                Encoding::from_subprotocol(encoding.subprotocol()),
                Some(encoding)
            );
        }
        assert_eq!(Encoding::from_subprotocol("roomful.v2.json"), None);
    }

    /// Also bytes that begin a value without ending it: `91` is the start of an array.
    #[test]
    fn nothing_may_follow_a_frame() {
        let ping = b"\x92\x09\x07";
        assert!(Encoding::MessagePack.decode_client(ping).is_ok());
        for tail in 0..=u8::MAX {
            let message = [&ping[..], &[tail]].concat();
            assert_eq!(
                kind(Encoding::MessagePack, &message),
                DecodeErrorKind::TrailingBytes,
                "{tail:02x}"
            );
        }
        assert!(Encoding::Json.decode_client(b"[\"ping\",7]\n").is_ok());
        assert_eq!(
            kind(Encoding::Json, b"[\"ping\",7],"),
            DecodeErrorKind::TrailingBytes
        );
        assert_eq!(
            kind(Encoding::Json, b"[\"ping\",7][\"ping\",8]"),
            DecodeErrorKind::TrailingBytes
        );
    }

    /// A newer sender's additions, of any kind and at any depth that is left.
    #[test]
    fn fields_that_follow_the_known_ones_are_read_over() {
        let ping = Ok(Ping {
            request: RequestId(7),
        }
        .into());
        let extras: [&[u8]; 6] = [
            b"\xc0",
            b"\xcb\x3f\xf8\0\0\0\0\0\0",
            b"\xa1x",
            b"\x81\x01\x91\x02",
            b"\xc4\x01x",
            b"\xd4\x05x",
        ];
        for extra in extras {
            let message = [b"\x93\x09\x07", extra].concat();
            assert_eq!(
                Encoding::MessagePack.decode_client(&message),
                ping,
                "{extra:02x?}"
            );
        }
        let message = b"[\"ping\",7,null,1.5,\"x\",{\"a\":[2]}]";
        assert_eq!(Encoding::Json.decode_client(message), ping);
    }

    #[test]
    fn a_message_nests_32_levels_and_no_deeper() {
        let msgpack =
            |levels: usize| [b"\x93\x09\x07".to_vec(), vec![0x91; levels - 2], vec![0x90]].concat();
        assert!(Encoding::MessagePack.decode_client(&msgpack(32)).is_ok());
        assert_eq!(
            kind(Encoding::MessagePack, &msgpack(33)),
            DecodeErrorKind::Malformed
        );
        assert_eq!(
            kind(Encoding::MessagePack, &msgpack(60_000)),
            DecodeErrorKind::Malformed
        );
        let json = |levels: usize| {
            format!(
                "[\"ping\",7,{}{}]",
                "[".repeat(levels - 1),
                "]".repeat(levels - 1)
            )
        };
        assert!(Encoding::Json.decode_client(json(32).as_bytes()).is_ok());
        assert_eq!(
            kind(Encoding::Json, json(33).as_bytes()),
            DecodeErrorKind::Malformed
        );
        assert_eq!(
            kind(Encoding::Json, json(60_000).as_bytes()),
            DecodeErrorKind::Malformed
        );
    }

    #[test]
    fn integers_end_below_2_to_the_53() {
        for (encoding, field) in [
            (Encoding::Json, "99999"),
            (Encoding::Json, "9007199254740991"),
        ] {
            let message = format!("[\"history\",{field},{field},null,\"forward\",{field}]");
            assert!(encoding.decode_client(message.as_bytes()).is_ok());
        }
        let too_big = INTEGER_MAX + 1;
        for message in [
            format!("[\"ping\",{too_big}]"),
            format!("[\"history\",1,1,null,\"forward\",{too_big}]"),
            format!("[\"history\",1,1,[{too_big},1]]"),
            format!("[\"presence\",1,1,[\"get\",null,{too_big}]]"),
            "[\"ping\",-1]".to_owned(),
            "[\"ping\",1.0]".to_owned(),
        ] {
            assert_eq!(
                kind(Encoding::Json, message.as_bytes()),
                DecodeErrorKind::Malformed,
                "{message}"
            );
        }
        let message = format!("[\"pong\",1,{too_big}]");
        assert!(Encoding::Json.decode_server(message.as_bytes()).is_err());
    }

    #[test]
    fn bytes_are_no_array() {
        assert_eq!(
            kind(Encoding::MessagePack, b"\xc4\x02\x09\x07"),
            DecodeErrorKind::Malformed
        );
        let position_as_bytes = b"\x94\x07\x01\x01\xc4\x02\x07\x2a";
        assert_eq!(
            kind(Encoding::MessagePack, position_as_bytes),
            DecodeErrorKind::Malformed
        );
    }

    #[test]
    fn a_client_passes_over_frames_of_a_newer_server() {
        let known: ServerFrame = CaughtUp {
            room: RoomAlias(1),
            offset: Offset(2),
        }
        .into();
        let expected = Ok(ServerBatch {
            frames: Frames(vec![known.clone(), known]),
        }
        .into());
        let msgpack = b"\x92\x2d\x93\x93\x28\x01\x02\x93\x7f\xa1x\x91\x01\x93\x28\x01\x02";
        assert_eq!(Encoding::MessagePack.decode_server(msgpack), expected);
        let json = b"[\"batch\",[[\"caught_up\",1,2],[\"moved\",{}],[\"caught_up\",1,2]]]";
        assert_eq!(Encoding::Json.decode_server(json), expected);
        let alone = Encoding::Json.decode_server(b"[\"moved\",{}]").unwrap_err();
        assert_eq!(alone.kind, DecodeErrorKind::UnknownType);
    }

    #[test]
    fn a_server_refuses_a_batch_with_an_unknown_frame() {
        let message = b"[\"batch\",[[\"ping\",1],[\"moved\",1]]]";
        assert_eq!(kind(Encoding::Json, message), DecodeErrorKind::UnknownType);
    }

    #[test]
    fn a_batch_holds_256_frames_and_no_batch() {
        let batch =
            |frames: usize| format!("[\"batch\",[{}]]", vec!["[\"ping\",1]"; frames].join(","));
        assert!(Encoding::Json.decode_client(batch(256).as_bytes()).is_ok());
        assert_eq!(
            kind(Encoding::Json, batch(257).as_bytes()),
            DecodeErrorKind::Malformed
        );
        assert_eq!(
            kind(Encoding::Json, b"[\"batch\",[[\"batch\",[]]]]"),
            DecodeErrorKind::Malformed
        );
    }

    #[test]
    fn encoded_frames_batch_like_frames() {
        for count in [0, 1, 15, 16, 256] {
            let frames: Vec<ServerFrame> = (0..count)
                .map(|request| {
                    Pong {
                        request: RequestId(request),
                        time_ms: 1,
                    }
                    .into()
                })
                .collect();
            for encoding in Encoding::ALL {
                let encoded = |frame: &ServerFrame| {
                    let mut out = Vec::new();
                    encoding.encode(frame, &mut out);
                    out
                };
                let parts: Vec<Vec<u8>> = frames.iter().map(encoded).collect();
                let mut out = Vec::new();
                encoding.encode_batch(parts.iter().map(Vec::as_slice), &mut out);
                assert_eq!(
                    out,
                    encoded(
                        &ServerBatch {
                            frames: Frames(frames.clone())
                        }
                        .into()
                    )
                );
            }
        }
    }

    #[test]
    fn the_request_id_is_read_from_a_broken_frame() {
        for (message, request) in [
            (&b"[\"join\",7]"[..], Some(7)),
            (b"[\"nonsense\",8,{}]", Some(8)),
            (b"[\"join\",9,1,2", Some(9)),
            (b"[\"join\",\"9\"]", None),
            (b"[\"join\",-1]", None),
            (b"[\"join\",9007199254740992]", None),
            (b"[\"batch\",[[\"join\",9]]]", None),
            (b"{}", None),
            (b"", None),
        ] {
            let error = Encoding::Json.decode_client(message).unwrap_err();
            assert_eq!(error.request, request.map(RequestId), "{error}");
        }
        let error = Encoding::MessagePack
            .decode_client(b"\x92\x02\x07")
            .unwrap_err();
        assert_eq!(error.request, Some(RequestId(7)));
    }

    /// A token in the wrong place must not reach a log through the error's text.
    #[test]
    fn an_error_text_quotes_nothing_of_the_message() {
        for message in [
            "[\"ping\",\"secret\"]",
            "[\"leave\",1,\"a \\\", expected secret\"]",
            "[\"ping\",\"unknown frame type\"]",
        ] {
            let error = Encoding::Json
                .decode_client(message.as_bytes())
                .unwrap_err();
            assert_eq!(error.kind, DecodeErrorKind::Malformed);
            assert!(
                !error.text.contains("secret") && error.text.len() < 100,
                "{error}"
            );
        }
        let error = Encoding::MessagePack
            .decode_client(b"\x92\x09\xa6secret")
            .unwrap_err();
        assert!(!error.text.contains("secret"), "{error}");
    }
}
