//! The WebSocket reader.
//!
//! It reads the same from a stream however that is cut into pieces; a message keeps to the limits and a text is UTF-8;
//! it holds no more than has arrived.

use roomful_protocol::websocket::{ReadLimits, Reader, Role, Violation, WebSocketEvent};

/// The first three bytes choose the role, the limits and where the stream is cut.
pub(crate) fn check(data: &[u8]) {
    let Some(([role, limits, cut], stream)) = data.split_first_chunk() else {
        return;
    };
    let role = if role % 2 == 0 {
        Role::Server
    } else {
        Role::Client
    };
    let limits = ReadLimits {
        message_bytes_max: [16, 200, 65_536][usize::from(limits % 3)],
        fragments_max: [2, 1_024][usize::from(limits / 3 % 2)],
    };
    let whole = read(role, &limits, stream, stream.len().max(1));
    for piece in [1, 2, usize::from(*cut) + 3] {
        let pieces = read(role, &limits, stream, piece);
        assert_eq!(whole, pieces, "pieces of {piece} are read otherwise");
    }
}

/// What a stream says, up to its end or its first violation.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    events: Vec<Event>,
    violation: Option<Violation>,
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Message(bool, Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

fn read(role: Role, limits: &ReadLimits, stream: &[u8], piece: usize) -> Read {
    let mut reader = Reader::new(role);
    let mut said = Read {
        events: Vec::new(),
        violation: None,
    };
    for bytes in stream.chunks(piece) {
        let mut bytes = bytes.to_vec();
        let mut input = &mut bytes[..];
        loop {
            match reader.next(&mut input, limits) {
                Ok(None) => break,
                Ok(Some(event)) => {
                    said.events.push(copy(&event, limits));
                    if matches!(event, WebSocketEvent::Close { .. }) {
                        return said;
                    }
                }
                Err(violation) => {
                    said.violation = Some(violation);
                    return said;
                }
            }
        }
        // A buffer that grows by doubling, and the bookkeeping beside it.
        assert!(
            reader.held_bytes() <= 2 * stream.len() + 1_024,
            "it holds more than has arrived"
        );
    }
    said
}

fn copy(event: &WebSocketEvent<'_>, limits: &ReadLimits) -> Event {
    match event {
        WebSocketEvent::Message { text, payload } => {
            assert!(payload.len() <= limits.message_bytes_max, "a long message");
            assert!(
                !text || std::str::from_utf8(payload).is_ok(),
                "text that is not UTF-8"
            );
            Event::Message(*text, payload.to_vec())
        }
        WebSocketEvent::Ping(payload) => {
            assert!(payload.len() <= 125, "a long ping");
            Event::Ping(payload.to_vec())
        }
        WebSocketEvent::Pong(payload) => {
            assert!(payload.len() <= 125, "a long pong");
            Event::Pong(payload.to_vec())
        }
        WebSocketEvent::Close { code, reason } => {
            assert!(reason.len() <= 123, "a long reason");
            Event::Close(*code, (*reason).to_owned())
        }
    }
}
