//! Frame headers (RFC 6455 §5.2) and whole frames around a payload.

use bytes::BufMut;

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
    pub(super) fn from_bits(bits: u8) -> Option<Self> {
        [Self::Continuation, Self::Text, Self::Binary, Self::Close, Self::Ping, Self::Pong]
            .into_iter()
            .find(|code| *code as u8 == bits)
    }

    pub(super) const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// Appends one unfragmented, unmasked frame: a server's.
pub fn frame_into(code: OpCode, payload: &[u8], out: &mut Vec<u8>) {
    out.reserve(payload.len() + 10);
    out.put_u8(FIN | code as u8);
    put_length(0, payload.len(), out);
    out.extend_from_slice(payload);
}

/// Appends one unfragmented, masked frame: a client's.
pub fn masked_frame_into(code: OpCode, payload: &[u8], mask: [u8; 4], out: &mut Vec<u8>) {
    out.reserve(payload.len() + 14);
    out.put_u8(FIN | code as u8);
    put_length(MASKED, payload.len(), out);
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.into_iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// The payload of a close frame (RFC 6455 §5.5.1): the code and as much of the reason as fits 125 bytes.
#[must_use]
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    let mut payload = code.to_be_bytes().to_vec();
    let end = (0..=reason.len().min(123)).rev().find(|end| reason.is_char_boundary(*end)).unwrap_or(0);
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
