//! Frame headers (RFC 6455 §5.2) and whole frames around a payload.

use bytes::BufMut;

use super::mask;

/// What a WebSocket frame is (RFC 6455 §11.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OpCode {
    /// The next fragment of a message.
    Continuation = 0x0,
    /// UTF-8.
    Text = 0x1,
    /// Bytes.
    Binary = 0x2,
    /// The last frame of a direction.
    Close = 0x8,
    /// Are you there.
    Ping = 0x9,
    /// Yes.
    Pong = 0xa,
}

impl OpCode {
    pub(super) const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    pub(super) const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// Appends one unfragmented, unmasked frame: a server's.
pub fn frame_into(code: OpCode, payload: &[u8], out: &mut Vec<u8>) {
    out.reserve(payload.len() + HEADER_BYTES_MAX);
    out.put_u8(FIN | code as u8);
    put_length(0, payload.len(), out);
    out.extend_from_slice(payload);
}

/// Appends one unfragmented, masked frame: a client's.
pub fn masked_frame_into(code: OpCode, payload: &[u8], mask: [u8; 4], out: &mut Vec<u8>) {
    out.reserve(payload.len() + HEADER_BYTES_MAX);
    out.put_u8(FIN | code as u8);
    put_length(MASKED, payload.len(), out);
    out.extend_from_slice(&mask);
    let start = out.len();
    out.extend_from_slice(payload);
    let (_, copy) = out.split_at_mut(start);
    mask::apply(mask, copy);
}

/// The payload of a close frame (RFC 6455 §5.5.1): the code and as much of the reason as fits 125 bytes.
#[must_use]
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    let mut payload = code.to_be_bytes().to_vec();
    let end = (0..=reason.len().min(123))
        .rev()
        .find(|end| reason.is_char_boundary(*end))
        .unwrap_or(0);
    payload.extend(reason.bytes().take(end));
    payload
}

fn put_length(mask_bit: u8, length: usize, out: &mut Vec<u8>) {
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short < 126 => out.put_u8(mask_bit | short),
        (_, Ok(medium)) => {
            out.put_u8(mask_bit | 126);
            out.put_u16(medium);
        }
        _ => {
            out.put_u8(mask_bit | 127);
            out.put_u64(length as u64);
        }
    }
}

/// Longest header: two bytes, eight of length, four of mask.
pub(super) const HEADER_BYTES_MAX: usize = 14;

/// Longest payload of a control frame, and longest that the second byte tells by itself (RFC 6455 §5.5, §5.2).
pub(super) const SHORT_BYTES_MAX: u8 = 125;

/// In the first byte: the message ends with this frame.
pub(super) const FIN: u8 = 0x80;

/// In the second byte: a mask stands before the payload.
pub(super) const MASKED: u8 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 6455 §5.7.
    #[test]
    fn frames_are_those_of_the_standard() {
        let framed = |code, payload: &[u8]| {
            let mut out = Vec::new();
            frame_into(code, payload, &mut out);
            out
        };
        assert_eq!(framed(OpCode::Text, b"Hello"), b"\x81\x05Hello");
        assert_eq!(framed(OpCode::Ping, b"Hello"), b"\x89\x05Hello");
        assert_eq!(
            framed(OpCode::Binary, &[7; 256])[..5],
            [0x82, 0x7e, 0x01, 0x00, 7]
        );
        assert_eq!(
            framed(OpCode::Binary, &[7; 65536])[..11],
            [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0, 7]
        );
        let mut masked = Vec::new();
        masked_frame_into(
            OpCode::Text,
            b"Hello",
            [0x37, 0xfa, 0x21, 0x3d],
            &mut masked,
        );
        assert_eq!(
            masked,
            [
                0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58
            ]
        );
    }

    #[test]
    fn lengths_are_written_in_the_fewest_bytes() {
        for (length, header) in [(0, 2), (125, 2), (126, 4), (65535, 4), (65536, 10)] {
            let mut out = Vec::new();
            frame_into(OpCode::Binary, &vec![0; length], &mut out);
            assert_eq!(out.len() - length, header, "{length}");
        }
    }

    #[test]
    fn a_close_reason_is_cut_between_characters() {
        assert_eq!(close_payload(1000, ""), [0x03, 0xe8]);
        assert_eq!(close_payload(4401, "no"), [0x11, 0x31, b'n', b'o']);
        assert_eq!(close_payload(1000, &"a".repeat(200)).len(), 125);
        assert_eq!(close_payload(1000, &"ü".repeat(100)).len(), 124);
    }
}
