//! The reader: from the bytes of a socket to messages and control frames, in place.
//!
//! A frame that arrives whole is unmasked where it lies and handed out as a slice of the input. Only what is incomplete
//! (half a header, half a frame, a message in fragments) is copied, as it arrives and never ahead of it, and the copy is
//! freed when the message is complete: an idle connection holds two words and no heap.

use std::mem;

use super::header::{FIN, HEADER_BYTES_MAX, MASKED, OpCode, SHORT_BYTES_MAX};
use super::mask;
use crate::error::CloseCode;

/// Reads the frames of one connection.
///
/// ```
/// use roomful_protocol::websocket::{ReadLimits, Reader, Role, WebSocketEvent};
///
/// let mut reader = Reader::new(Role::Client);
/// let mut received = *b"\x82\x02hi\x89\x00";
/// let mut input = &mut received[..];
/// let limits = ReadLimits::default();
/// let first = reader.next(&mut input, &limits).unwrap();
/// assert_eq!(first, Some(WebSocketEvent::Message { text: false, payload: b"hi" }));
/// let second = reader.next(&mut input, &limits).unwrap();
/// assert_eq!(second, Some(WebSocketEvent::Ping(b"")));
/// assert_eq!(reader.next(&mut input, &limits), Ok(None));
/// ```
#[derive(Debug)]
pub struct Reader {
    role: Role,
    /// What is incomplete; none most of the time.
    partial: Option<Box<Partial>>,
}

/// Which side reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A server: what it reads must be masked.
    Server,
    /// A client: what it reads must not be masked.
    Client,
}

/// What a reader refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimits {
    /// Longest message, in bytes, over all its fragments. Default 65,536.
    pub message_bytes_max: usize,
    /// Most fragments of one message: empty ones cost no bytes but a turn each. Default 1,024.
    pub fragments_max: u32,
}

/// What arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebSocketEvent<'a> {
    /// A whole message.
    Message {
        /// Whether it is a text message; its payload is then UTF-8.
        text: bool,
        /// The content, without mask and framing.
        payload: &'a [u8],
    },
    /// Wants a pong with the same payload.
    Ping(&'a [u8]),
    /// The answer to a ping, or a one-sided sign of life.
    Pong(&'a [u8]),
    /// The peer closes. Nothing after it means anything: stop reading.
    Close {
        /// The peer's code, where it gave one.
        code: Option<u16>,
        /// The peer's reason, often empty.
        reason: &'a str,
    },
}

/// How a peer broke RFC 6455 or a limit. The connection can't be read any further: answer with a close frame of
/// [`Violation::close_code`] and drop it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Violation {
    /// A client's frame without a mask (§5.1).
    #[error("a frame from a client has no mask")]
    Unmasked,
    /// A server's frame with a mask (§5.1).
    #[error("a frame from a server has a mask")]
    Masked,
    /// A reserved bit is set, and no extension gives it a meaning (§5.2).
    #[error("a reserved bit is set and no extension was agreed")]
    ReservedBits,
    /// None of the six opcodes (§5.2).
    #[error("the opcode is unknown")]
    UnknownOpCode,
    /// A control frame without the final bit (§5.5).
    #[error("a control frame is fragmented")]
    FragmentedControl,
    /// A control frame of more than 125 bytes (§5.5).
    #[error("a control frame is longer than 125 bytes")]
    LongControl,
    /// A continuation where no message is open (§5.4).
    #[error("a continuation continues nothing")]
    StrayContinuation,
    /// A new message before the open one is complete (§5.4).
    #[error("a message begins inside another one")]
    InterleavedMessage,
    /// The length could be written in fewer bytes (§5.2).
    #[error("a length is not written in the fewest bytes")]
    NonMinimalLength,
    /// The length is 2^63 or more (§5.2).
    #[error("a length has its highest bit set")]
    LengthOverflow,
    /// A close frame with half a code, or with one that must not be sent (§7.4).
    #[error("the close frame's code is not one that may be sent")]
    BadClose,
    /// A text message or a close reason that is not UTF-8 (§8.1).
    #[error("the text is not UTF-8")]
    NotUtf8,
    /// The message is longer than [`ReadLimits::message_bytes_max`].
    #[error("the message is longer than the limit")]
    MessageTooBig,
    /// The message has more fragments than [`ReadLimits::fragments_max`].
    #[error("the message has too many fragments")]
    TooManyFragments,
    /// The message has not arrived in time. A reader has no clock: whoever has one finds out by
    /// [`Reader::incomplete_since`].
    #[error("the message has not arrived in time")]
    MessageTimeout,
}

impl Reader {
    /// A reader at the start of a connection.
    #[must_use]
    pub const fn new(role: Role) -> Self {
        Self {
            role,
            partial: None,
        }
    }

    /// Takes the next event off the front of `input`, which it unmasks in place.
    ///
    /// `None`: the input is used up, and what was incomplete in it is kept for the next call. Whoever stops before that
    /// keeps the rest of `input` and brings it again in front of what arrives later.
    ///
    /// # Errors
    /// What the peer violated; the reader is of no use afterwards.
    pub fn next<'a, 'input: 'a>(
        &'a mut self,
        input: &mut &'input mut [u8],
        limits: &ReadLimits,
    ) -> Result<Option<WebSocketEvent<'a>>, Violation> {
        self.release();
        loop {
            let Some(frame) = self.frame(input, limits)? else {
                return Ok(None);
            };
            if frame.is_whole(input) {
                let payload = take(input, frame.length);
                frame.unmask(payload);
                return event(frame.code, payload).map(Some);
            }
            let partial = self.partial.get_or_insert_default();
            match partial.absorb(frame, input, limits)? {
                Absorbed::Incomplete => return Ok(None),
                Absorbed::Fragment => {}
                Absorbed::Complete(code) => break self.kept(code).map(Some),
            }
        }
    }

    /// Since when the peer owes the rest of something: the time of the first call that found it incomplete, on a clock of
    /// the caller's. `None` between messages.
    pub fn incomplete_since(&mut self, now_ms: u64) -> Option<u64> {
        let partial = self.partial.as_deref_mut()?;
        let owes = partial.frame.is_some() || !partial.is_between_messages();
        owes.then(|| *partial.since_ms.get_or_insert(now_ms))
    }

    /// Bytes of heap that it holds; 0 between messages.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        let held = |partial: &Partial| {
            size_of::<Partial>() + partial.data.capacity() + partial.control.capacity()
        };
        self.partial.as_deref().map_or(0, held)
    }

    /// Frees what the last event was made of, as the next call of [`Reader::next`] would.
    pub fn release(&mut self) {
        let Some(partial) = self.partial.as_deref_mut() else {
            return;
        };
        if partial.frame.is_none() {
            partial.control = Vec::new();
            if partial.is_between_messages() {
                self.partial = None;
            }
        }
    }

    /// The frame whose payload comes next.
    fn frame(
        &mut self,
        input: &mut &mut [u8],
        limits: &ReadLimits,
    ) -> Result<Option<Frame>, Violation> {
        let Some(partial) = self.partial.as_deref_mut() else {
            return self.first_frame(input, limits);
        };
        if let Some(frame) = partial.frame.take() {
            return Ok(Some(frame));
        }
        let context = Context {
            role: self.role,
            limits,
            open: partial.message,
            held: partial.data.len(),
        };
        let frame = if partial.header.is_empty() {
            context.take_header(input)?
        } else {
            partial.header.complete(&context, input)?
        };
        if frame.is_none() {
            partial.header.push(take(input, input.len()));
        }
        Ok(frame)
    }

    /// The same where nothing is incomplete.
    fn first_frame(
        &mut self,
        input: &mut &mut [u8],
        limits: &ReadLimits,
    ) -> Result<Option<Frame>, Violation> {
        let context = Context {
            role: self.role,
            limits,
            open: None,
            held: 0,
        };
        let frame = context.take_header(input)?;
        if frame.is_none() && !input.is_empty() {
            let partial = self.partial.get_or_insert_default();
            partial.header.push(take(input, input.len()));
        }
        Ok(frame)
    }

    /// The event of a message or control frame that was put together in `partial`.
    fn kept(&self, code: OpCode) -> Result<WebSocketEvent<'_>, Violation> {
        let Some(partial) = self.partial.as_deref() else {
            return event(code, &[]);
        };
        match code {
            OpCode::Text if partial.text_bytes < partial.data.len() => Err(Violation::NotUtf8),
            // Its characters have been looked at as they arrived.
            OpCode::Text => Ok(WebSocketEvent::Message {
                text: true,
                payload: &partial.data,
            }),
            OpCode::Binary | OpCode::Continuation => event(code, &partial.data),
            OpCode::Close | OpCode::Ping | OpCode::Pong => event(code, &partial.control),
        }
    }
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self {
            message_bytes_max: 64 * 1024,
            fragments_max: 1024,
        }
    }
}

impl Violation {
    /// What to close the connection with.
    #[must_use]
    pub const fn close_code(self) -> CloseCode {
        match self {
            Self::Unmasked
            | Self::Masked
            | Self::ReservedBits
            | Self::UnknownOpCode
            | Self::FragmentedControl
            | Self::LongControl
            | Self::StrayContinuation
            | Self::InterleavedMessage
            | Self::NonMinimalLength
            | Self::LengthOverflow
            | Self::BadClose => CloseCode::ProtocolError,
            Self::NotUtf8 => CloseCode::InvalidUtf8,
            Self::MessageTooBig => CloseCode::MessageTooBig,
            Self::TooManyFragments | Self::MessageTimeout => CloseCode::PolicyViolation,
        }
    }
}

/// What is kept while something is incomplete.
#[derive(Debug, Default)]
struct Partial {
    /// The bytes of a header that hasn't arrived whole.
    header: PartialHeader,
    /// The frame whose payload hasn't arrived whole.
    frame: Option<Frame>,
    /// The message whose fragments haven't all arrived.
    message: Option<OpenMessage>,
    /// What has arrived of the message, without masks.
    data: Vec<u8>,
    /// How much of a text message is known to be whole characters.
    text_bytes: usize,
    /// What has arrived of a control frame: it may stand between two fragments.
    control: Vec<u8>,
    /// See [`Reader::incomplete_since`].
    since_ms: Option<u64>,
}

/// What taking payload in led to.
enum Absorbed {
    /// The frame goes on.
    Incomplete,
    /// The frame is complete and its message isn't.
    Fragment,
    /// The control frame, or the message that began with this code, is complete.
    Complete(OpCode),
}

impl Partial {
    /// Whether no message and no header is open.
    const fn is_between_messages(&self) -> bool {
        self.message.is_none() && self.header.is_empty()
    }

    /// Takes in as much of a frame's payload as has arrived.
    ///
    /// # Errors
    /// It is of a text message, and no character goes on like this: a long message is refused where it goes wrong.
    fn absorb(
        &mut self,
        mut frame: Frame,
        input: &mut &mut [u8],
        limits: &ReadLimits,
    ) -> Result<Absorbed, Violation> {
        let missing = frame.length - frame.received;
        let piece = take(input, missing.min(input.len()));
        frame.unmask(piece);
        frame.received += piece.len();
        let buffer = if frame.code.is_control() {
            &mut self.control
        } else {
            &mut self.data
        };
        let more_max = if frame.last {
            missing
        } else {
            limits.message_bytes_max.saturating_sub(buffer.len())
        };
        append(buffer, piece, more_max);
        if self.code_of(&frame) == OpCode::Text {
            self.check_text()?;
        }
        if frame.received < frame.length {
            self.frame = Some(frame);
            return Ok(Absorbed::Incomplete);
        }
        Ok(self.end_of(&frame))
    }

    /// What a frame is a piece of.
    fn code_of(&self, frame: &Frame) -> OpCode {
        match self.message {
            Some(message) if frame.code == OpCode::Continuation => message.code,
            _ => frame.code,
        }
    }

    /// Looks at what was added to a text. Its last character may be incomplete.
    fn check_text(&mut self) -> Result<(), Violation> {
        let (_, added) = self.data.split_at(self.text_bytes);
        match std::str::from_utf8(added) {
            Ok(text) => self.text_bytes += text.len(),
            Err(error) if error.error_len().is_none() => self.text_bytes += error.valid_up_to(),
            Err(_) => return Err(Violation::NotUtf8),
        }
        Ok(())
    }

    fn end_of(&mut self, frame: &Frame) -> Absorbed {
        if frame.code.is_control() {
            return Absorbed::Complete(frame.code);
        }
        let message = self.message.take().unwrap_or(OpenMessage {
            code: frame.code,
            fragments: 0,
        });
        if frame.last {
            return Absorbed::Complete(message.code);
        }
        self.message = Some(OpenMessage {
            fragments: message.fragments + 1,
            ..message
        });
        Absorbed::Fragment
    }
}

/// A message in fragments.
#[derive(Debug, Clone, Copy)]
struct OpenMessage {
    /// Text or binary, as its first frame said.
    code: OpCode,
    /// How many frames of it are complete.
    fragments: u32,
}

/// The first bytes of a header.
#[derive(Debug, Default)]
struct PartialHeader {
    bytes: [u8; HEADER_BYTES_MAX],
    length: usize,
}

impl PartialHeader {
    const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Appends the front of a header; a whole one is never kept.
    fn push(&mut self, bytes: &[u8]) {
        let free = self.bytes.iter_mut().skip(self.length);
        free.zip(bytes).for_each(|(to, from)| *to = *from);
        self.length += bytes.len();
    }

    /// Takes from the input, byte by byte, what the header lacks.
    fn complete(
        &mut self,
        context: &Context<'_>,
        input: &mut &mut [u8],
    ) -> Result<Option<Frame>, Violation> {
        while !input.is_empty() {
            self.push(take(input, 1));
            let (bytes, _) = self.bytes.split_at(self.length);
            if let Some((frame, _)) = context.header(bytes)? {
                self.length = 0;
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }
}

/// A frame whose header was found to be in order.
#[derive(Debug, Clone, Copy)]
struct Frame {
    code: OpCode,
    /// Whether its message ends with it.
    last: bool,
    mask: Option<[u8; 4]>,
    /// Bytes of payload.
    length: usize,
    /// How many of them have been taken in.
    received: usize,
}

impl Frame {
    /// Whether it is a message or control frame by itself, and all there.
    fn is_whole(&self, input: &[u8]) -> bool {
        self.last
            && self.code != OpCode::Continuation
            && self.received == 0
            && input.len() >= self.length
    }

    /// Takes the mask off the next piece of the payload.
    fn unmask(&self, piece: &mut [u8]) {
        if let Some(mask) = self.mask {
            mask::apply(mask::from_index(mask, self.received), piece);
        }
    }
}

/// What a header is judged by.
struct Context<'a> {
    role: Role,
    limits: &'a ReadLimits,
    open: Option<OpenMessage>,
    /// Bytes of the open message so far.
    held: usize,
}

impl Context<'_> {
    /// Takes a header off the input, if it is there whole.
    fn take_header(&self, input: &mut &mut [u8]) -> Result<Option<Frame>, Violation> {
        let Some((frame, bytes)) = self.header(input)? else {
            return Ok(None);
        };
        take(input, bytes);
        Ok(Some(frame))
    }

    /// Reads a header and its length in bytes (§5.2). Each byte is judged as soon as it is there.
    fn header(&self, bytes: &[u8]) -> Result<Option<(Frame, usize)>, Violation> {
        let Some((first, rest)) = bytes.split_first() else {
            return Ok(None);
        };
        let code = self.op_code(*first)?;
        let Some((second, rest)) = rest.split_first() else {
            return Ok(None);
        };
        self.second_byte(code, *second)?;
        let Some((length, rest)) = length(second & !MASKED, rest)? else {
            return Ok(None);
        };
        let length = self.bounded(code, length)?;
        let (mask, rest) = match self.role {
            Role::Client => (None, rest),
            Role::Server => match rest.split_first_chunk::<4>() {
                Some((mask, rest)) => (Some(*mask), rest),
                None => return Ok(None),
            },
        };
        let frame = Frame {
            code,
            last: first & FIN != 0,
            mask,
            length,
            received: 0,
        };
        Ok(Some((frame, bytes.len() - rest.len())))
    }

    fn op_code(&self, first: u8) -> Result<OpCode, Violation> {
        if first & 0x70 != 0 {
            return Err(Violation::ReservedBits);
        }
        let code = OpCode::from_bits(first & 0x0f).ok_or(Violation::UnknownOpCode)?;
        match (code, self.open) {
            (OpCode::Close | OpCode::Ping | OpCode::Pong, _) if first & FIN == 0 => {
                Err(Violation::FragmentedControl)
            }
            (OpCode::Continuation, None) => Err(Violation::StrayContinuation),
            (OpCode::Continuation, Some(open)) if open.fragments >= self.limits.fragments_max => {
                Err(Violation::TooManyFragments)
            }
            (OpCode::Text | OpCode::Binary, Some(_)) => Err(Violation::InterleavedMessage),
            _ => Ok(code),
        }
    }

    const fn second_byte(&self, code: OpCode, second: u8) -> Result<(), Violation> {
        match (self.role, second & MASKED != 0) {
            (Role::Server, false) => Err(Violation::Unmasked),
            (Role::Client, true) => Err(Violation::Masked),
            _ if code.is_control() && second & !MASKED > SHORT_BYTES_MAX => {
                Err(Violation::LongControl)
            }
            _ => Ok(()),
        }
    }

    /// The length, where the message stays within the limit with it.
    fn bounded(&self, code: OpCode, length: u64) -> Result<usize, Violation> {
        let length = usize::try_from(length).map_err(|_| Violation::MessageTooBig)?;
        let free = self.limits.message_bytes_max.saturating_sub(self.held);
        if length > free && !code.is_control() {
            return Err(Violation::MessageTooBig);
        }
        Ok(length)
    }
}

/// The payload's length and what follows it; `short` is what the second byte says.
fn length(short: u8, rest: &[u8]) -> Result<Option<(u64, &[u8])>, Violation> {
    let (length, least, rest) = match short {
        126 => match rest.split_first_chunk::<2>() {
            Some((bytes, rest)) => (u64::from(u16::from_be_bytes(*bytes)), 126, rest),
            None => return Ok(None),
        },
        127 => match rest.split_first_chunk::<8>() {
            Some((bytes, rest)) => (u64::from_be_bytes(*bytes), 65536, rest),
            None => return Ok(None),
        },
        _ => (u64::from(short), 0, rest),
    };
    match length {
        _ if length >= 1 << 63 => Err(Violation::LengthOverflow),
        _ if length < least => Err(Violation::NonMinimalLength),
        _ => Ok(Some((length, rest))),
    }
}

/// Takes `count` bytes off the front.
fn take<'a>(input: &mut &'a mut [u8], count: usize) -> &'a mut [u8] {
    let (taken, rest) = mem::take(input).split_at_mut(count);
    *input = rest;
    taken
}

/// Appends what arrived. Room is made by doubling, so that a peer pays for memory with bytes, and never for more than the
/// `more_max` bytes that may still come.
fn append(buffer: &mut Vec<u8>, piece: &[u8], more_max: usize) {
    if buffer.capacity() - buffer.len() < piece.len() {
        buffer.reserve_exact(piece.len().max(buffer.capacity()).min(more_max));
    }
    buffer.extend_from_slice(piece);
}

/// The event of a whole payload.
fn event(code: OpCode, payload: &[u8]) -> Result<WebSocketEvent<'_>, Violation> {
    Ok(match code {
        OpCode::Text => WebSocketEvent::Message {
            text: true,
            payload: utf8(payload)?.as_bytes(),
        },
        OpCode::Binary | OpCode::Continuation => WebSocketEvent::Message {
            text: false,
            payload,
        },
        OpCode::Ping => WebSocketEvent::Ping(payload),
        OpCode::Pong => WebSocketEvent::Pong(payload),
        OpCode::Close => return close(payload),
    })
}

fn close(payload: &[u8]) -> Result<WebSocketEvent<'_>, Violation> {
    if payload.is_empty() {
        return Ok(WebSocketEvent::Close {
            code: None,
            reason: "",
        });
    }
    let (code, reason) = payload
        .split_first_chunk::<2>()
        .ok_or(Violation::BadClose)?;
    match u16::from_be_bytes(*code) {
        // §7.4 and its registry: 1004 has no meaning; 1005, 1006 and 1015 describe a connection and are never sent.
        code @ (1000..=1003 | 1007..=1014 | 3000..=4999) => Ok(WebSocketEvent::Close {
            code: Some(code),
            reason: utf8(reason)?,
        }),
        _ => Err(Violation::BadClose),
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, Violation> {
    std::str::from_utf8(bytes).map_err(|_| Violation::NotUtf8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{frame_into, masked_frame_into};
    use super::*;

    /// An event that outlives its input.
    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Seen {
        Message(bool, Vec<u8>),
        Ping(Vec<u8>),
        Pong(Vec<u8>),
        Close(Option<u16>, String),
    }

    impl From<WebSocketEvent<'_>> for Seen {
        fn from(event: WebSocketEvent<'_>) -> Self {
            match event {
                WebSocketEvent::Message { text, payload } => Self::Message(text, payload.to_vec()),
                WebSocketEvent::Ping(payload) => Self::Ping(payload.to_vec()),
                WebSocketEvent::Pong(payload) => Self::Pong(payload.to_vec()),
                WebSocketEvent::Close { code, reason } => Self::Close(code, reason.to_owned()),
            }
        }
    }

    /// What a server reads when the bytes arrive in these pieces. Checks on the way that what is held stays within the
    /// limit, and that nothing is held once everything was complete.
    fn read<'a>(
        pieces: impl IntoIterator<Item = &'a [u8]>,
        limits: &ReadLimits,
    ) -> (Vec<Seen>, Option<Violation>) {
        let mut reader = Reader::new(Role::Server);
        let mut seen = Vec::new();
        for piece in pieces {
            let mut piece = piece.to_vec();
            let mut input = &mut piece[..];
            loop {
                let event = match reader.next(&mut input, limits) {
                    Ok(Some(event)) => Seen::from(event),
                    Ok(None) => break,
                    Err(violation) => return (seen, Some(violation)),
                };
                seen.push(event);
                let bound =
                    size_of::<Partial>() + limits.message_bytes_max + usize::from(SHORT_BYTES_MAX);
                assert!(
                    reader.held_bytes() <= bound,
                    "holds {}",
                    reader.held_bytes()
                );
            }
            assert!(input.is_empty());
        }
        (seen, None)
    }

    fn read_whole(bytes: &[u8]) -> (Vec<Seen>, Option<Violation>) {
        read([bytes], &ReadLimits::default())
    }

    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    /// A client's frame with any first byte.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        masked_frame_into(OpCode::Binary, payload, MASK, &mut out);
        out[0] = first;
        out
    }

    /// A bit of everything: empty, short, medium and long frames, fragments with control frames between them, a close.
    fn conversation() -> (Vec<u8>, Vec<Seen>) {
        let medium: Vec<u8> = (0..300_u32).map(|index| index.to_le_bytes()[0]).collect();
        let bytes = [
            frame(0x82, b"hello"),
            frame(0x81, "grüezi".as_bytes()),
            frame(0x82, b""),
            frame(0x89, b"are you there"),
            frame(0x82, &medium),
            frame(0x01, b"one \xe2\x82"),
            frame(0x8a, b""),
            frame(0x00, b""),
            frame(0x00, b"\xac two "),
            frame(0x89, b"in between"),
            frame(0x80, b"three"),
            frame(0x02, b""),
            frame(0x80, b""),
            frame(0x88, b"\x03\xe8bye"),
        ];
        let seen = vec![
            Seen::Message(false, b"hello".to_vec()),
            Seen::Message(true, "grüezi".into()),
            Seen::Message(false, vec![]),
            Seen::Ping(b"are you there".to_vec()),
            Seen::Message(false, medium),
            Seen::Pong(vec![]),
            Seen::Ping(b"in between".to_vec()),
            Seen::Message(true, "one € two three".into()),
            Seen::Message(false, vec![]),
            Seen::Close(Some(1000), "bye".to_owned()),
        ];
        (bytes.concat(), seen)
    }

    /// Goal: where the network cuts the stream changes nothing. Method: one conversation, cut once at every place, cut
    /// twice at every pair of nearby places, and cut into single bytes.
    #[test]
    fn every_split_gives_the_same_events() {
        let (bytes, expected) = conversation();
        let limits = ReadLimits::default();
        assert_eq!(read_whole(&bytes), (expected.clone(), None));
        assert_eq!(read(bytes.chunks(1), &limits), (expected.clone(), None));
        for first in 0..=bytes.len() {
            let (head, tail) = bytes.split_at(first);
            assert_eq!(
                read([head, tail], &limits),
                (expected.clone(), None),
                "cut at {first}"
            );
            for second in 0..tail.len().min(20) {
                let (middle, tail) = tail.split_at(second);
                let seen = read([head, middle, tail], &limits);
                assert_eq!(
                    seen,
                    (expected.clone(), None),
                    "cut at {first} and {second} later"
                );
            }
        }
    }

    #[test]
    fn a_whole_frame_is_handed_out_where_it_lies() {
        let mut reader = Reader::new(Role::Server);
        let mut bytes = frame(0x82, b"in place");
        let range = bytes.as_ptr_range();
        let mut input = &mut bytes[..];
        let limits = ReadLimits::default();
        let Some(WebSocketEvent::Message { payload, .. }) =
            reader.next(&mut input, &limits).unwrap()
        else {
            panic!("no message");
        };
        assert!(range.contains(&payload.as_ptr()));
        assert_eq!(reader.held_bytes(), 0);
    }

    #[test]
    fn an_idle_reader_is_two_words_and_holds_no_heap() {
        assert!(size_of::<Reader>() <= 16);
        let limits = ReadLimits::default();
        let (bytes, _) = conversation();
        let mut reader = Reader::new(Role::Server);
        for byte in bytes {
            let mut piece = [byte];
            let mut input = &mut piece[..];
            while reader.next(&mut input, &limits).unwrap().is_some() {}
        }
        assert_eq!(reader.held_bytes(), 0);
    }

    #[test]
    fn memory_follows_what_arrived_and_not_what_was_announced() {
        let limits = ReadLimits {
            message_bytes_max: 1 << 30,
            ..ReadLimits::default()
        };
        let mut reader = Reader::new(Role::Server);
        let mut bytes = frame(0x82, &vec![0; 1 << 20]);
        bytes.truncate(14 + 1000);
        assert_eq!(reader.next(&mut &mut bytes[..], &limits), Ok(None));
        assert!(reader.held_bytes() <= 1000 + size_of::<Partial>());
    }

    /// A stop between two events loses nothing: the caller has the rest.
    #[test]
    fn the_rest_of_the_input_stays_with_the_caller() {
        let mut bytes = [frame(0x82, b"one"), frame(0x82, b"two")].concat();
        let expected_rest = frame(0x82, b"two");
        let mut input = &mut bytes[..];
        let mut reader = Reader::new(Role::Server);
        assert!(
            reader
                .next(&mut input, &ReadLimits::default())
                .unwrap()
                .is_some()
        );
        assert_eq!(input, expected_rest);
    }

    fn long_header(first: u8, short: u8, length: &[u8]) -> Vec<u8> {
        [&[first, 0x80 | short], length, &MASK].concat()
    }

    /// Every violation, in one piece and byte by byte.
    #[test]
    fn what_breaks_the_standard_is_refused() {
        let unmasked = |code, payload: &[u8]| {
            let mut out = Vec::new();
            frame_into(code, payload, &mut out);
            out
        };
        let rows = [
            (unmasked(OpCode::Text, b"hi"), Violation::Unmasked),
            (frame(0xc2, b""), Violation::ReservedBits),
            (frame(0xa2, b""), Violation::ReservedBits),
            (frame(0x92, b""), Violation::ReservedBits),
            (frame(0x83, b""), Violation::UnknownOpCode),
            (frame(0x87, b""), Violation::UnknownOpCode),
            (frame(0x8b, b""), Violation::UnknownOpCode),
            (frame(0x8f, b""), Violation::UnknownOpCode),
            (frame(0x09, b""), Violation::FragmentedControl),
            (frame(0x08, b""), Violation::FragmentedControl),
            (frame(0x0a, b""), Violation::FragmentedControl),
            (frame(0x89, &[0; 126]), Violation::LongControl),
            (frame(0x88, &[0; 126]), Violation::LongControl),
            (frame(0x8a, &[0; 70_000]), Violation::LongControl),
            (frame(0x80, b"x"), Violation::StrayContinuation),
            (frame(0x00, b"x"), Violation::StrayContinuation),
            (
                [frame(0x01, b"x"), frame(0x80, b"x"), frame(0x80, b"x")].concat(),
                Violation::StrayContinuation,
            ),
            (
                [frame(0x01, b"x"), frame(0x81, b"x")].concat(),
                Violation::InterleavedMessage,
            ),
            (
                [frame(0x02, b"x"), frame(0x01, b"x")].concat(),
                Violation::InterleavedMessage,
            ),
            (
                long_header(0x82, 126, &[0, 125]),
                Violation::NonMinimalLength,
            ),
            (
                long_header(0x82, 127, &[0, 0, 0, 0, 0, 0, 0xff, 0xff]),
                Violation::NonMinimalLength,
            ),
            (
                long_header(0x82, 127, &[0x80, 0, 0, 0, 0, 0, 0, 0]),
                Violation::LengthOverflow,
            ),
            (frame(0x88, b"\x03"), Violation::BadClose),
            (frame(0x81, b"\xff"), Violation::NotUtf8),
            (frame(0x81, b"\xed\xa0\x80"), Violation::NotUtf8),
            (
                [frame(0x01, b"\xe2\x82"), frame(0x80, b"x")].concat(),
                Violation::NotUtf8,
            ),
            (
                [frame(0x01, b"x"), frame(0x80, b"\xe2\x82")].concat(),
                Violation::NotUtf8,
            ),
            (frame(0x88, b"\x03\xe8\xff"), Violation::NotUtf8),
            (frame(0x82, &[0; 65_537]), Violation::MessageTooBig),
            (
                long_header(0x82, 127, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
                Violation::MessageTooBig,
            ),
            (
                [frame(0x02, &[0; 65_536]), frame(0x80, b"x")].concat(),
                Violation::MessageTooBig,
            ),
            (
                [frame(0x02, b""), frame(0x00, b"").repeat(1024)].concat(),
                Violation::TooManyFragments,
            ),
        ];
        for (bytes, violation) in rows {
            assert_eq!(read_whole(&bytes).1, Some(violation));
            assert_eq!(
                read(bytes.chunks(1), &ReadLimits::default()).1,
                Some(violation)
            );
        }
    }

    #[test]
    fn violations_close_with_the_codes_of_the_standard() {
        assert_eq!(Violation::Unmasked.close_code().code(), 1002);
        assert_eq!(Violation::LengthOverflow.close_code().code(), 1002);
        assert_eq!(Violation::BadClose.close_code().code(), 1002);
        assert_eq!(Violation::NotUtf8.close_code().code(), 1007);
        assert_eq!(Violation::TooManyFragments.close_code().code(), 1008);
        assert_eq!(Violation::MessageTimeout.close_code().code(), 1008);
        assert_eq!(Violation::MessageTooBig.close_code().code(), 1009);
    }

    #[test]
    fn a_client_refuses_masks() {
        let mut bytes = frame(0x82, b"x");
        let mut reader = Reader::new(Role::Client);
        let refused = reader.next(&mut &mut bytes[..], &ReadLimits::default());
        assert_eq!(refused, Err(Violation::Masked));
        assert_eq!(Violation::Masked.close_code(), CloseCode::ProtocolError);
    }

    #[test]
    fn close_codes_are_those_that_may_be_sent() {
        let accepted = |code: u16| read_whole(&frame(0x88, &code.to_be_bytes())).1.is_none();
        let good = [
            1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999,
            4000, 4999,
        ];
        assert_eq!(good.into_iter().find(|code| !accepted(*code)), None);
        let bad = [
            0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535,
        ];
        assert_eq!(bad.into_iter().find(|code| accepted(*code)), None);
        assert_eq!(
            read_whole(&frame(0x88, b"")).0,
            [Seen::Close(None, String::new())]
        );
    }

    /// One below, at, and one above the limit: in one frame, in fragments, and in pieces of a frame.
    #[test]
    fn the_message_limit_is_exact() {
        let limits = ReadLimits {
            message_bytes_max: 1000,
            ..ReadLimits::default()
        };
        for (length, fits) in [(999, true), (1000, true), (1001, false)] {
            let payload = vec![7; length];
            let whole = frame(0x82, &payload);
            let (head, tail) = payload.split_at(400);
            let fragments = [frame(0x02, head), frame(0x80, tail)].concat();
            for bytes in [whole, fragments] {
                for size in [1, 33, bytes.len()] {
                    let (seen, violation) = read(bytes.chunks(size), &limits);
                    assert_eq!(
                        violation,
                        (!fits).then_some(Violation::MessageTooBig),
                        "{length} in {size}"
                    );
                    assert_eq!(seen.len(), usize::from(fits));
                }
            }
        }
    }

    /// Text is refused at its first wrong byte, though the frame and the message go on.
    #[test]
    fn text_is_refused_where_it_goes_wrong() {
        let mut endless = frame(0x01, &[b'a'; 60_000]);
        endless.truncate(1_000);
        let unfinished = |text: &[u8]| {
            let mut bytes = frame(0x01, &[text, &[b'a'; 60_000]].concat());
            bytes.truncate(8 + text.len());
            bytes
        };
        let rows = [
            (endless, None),
            (frame(0x01, b"\xf0\x9f\x98"), None),
            (unfinished(b"good \xf0\x9f\x98"), None),
            (unfinished(b"good \xff"), Some(Violation::NotUtf8)),
            (unfinished(b"good \xe2\x28"), Some(Violation::NotUtf8)),
            // Beyond the last code point, a surrogate, an overlong slash: told by the second byte.
            (unfinished(b"good \xf4\x90"), Some(Violation::NotUtf8)),
            (unfinished(b"good \xed\xa0"), Some(Violation::NotUtf8)),
            (unfinished(b"good \xc0"), Some(Violation::NotUtf8)),
            (
                [
                    frame(0x01, b"\xe2\x82"),
                    frame(0x89, b""),
                    unfinished(b"\x28"),
                ]
                .concat(),
                Some(Violation::InterleavedMessage),
            ),
            (
                [frame(0x01, b"\xe2\x82"), frame(0x00, b"\x28")].concat(),
                Some(Violation::NotUtf8),
            ),
        ];
        for (bytes, violation) in rows {
            for size in [1, 7, bytes.len()] {
                let (_, seen) = read(bytes.chunks(size), &ReadLimits::default());
                assert_eq!(seen, violation, "{bytes:x?} in {size}");
            }
        }
    }

    /// The time is that of the first look at something incomplete, and there is none between messages.
    #[test]
    fn what_is_incomplete_knows_since_when() {
        let limits = ReadLimits::default();
        let mut reader = Reader::new(Role::Server);
        let feed = |reader: &mut Reader, bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            let mut input = &mut bytes[..];
            while reader.next(&mut input, &limits).unwrap().is_some() {}
        };
        assert_eq!(reader.incomplete_since(1), None);
        for (bytes, now_ms, since_ms) in [
            (frame(0x02, b"a"), 10, Some(10)),
            (frame(0x89, b"ping"), 20, Some(10)),
            (frame(0x00, b"b"), 30, Some(10)),
            (frame(0x80, b"c"), 40, None),
            (vec![0x82], 50, Some(50)),
            (frame(0x82, b"abc").split_off(1), 60, None),
            ([frame(0x82, b"whole"), vec![0x82]].concat(), 70, Some(70)),
            (
                [frame(0x82, b"whole").split_off(1), vec![0x82]].concat(),
                80,
                Some(80),
            ),
            (frame(0x82, b"half")[1..8].to_vec(), 90, Some(80)),
        ] {
            feed(&mut reader, &bytes);
            assert_eq!(reader.incomplete_since(now_ms), since_ms, "at {now_ms}");
        }
    }

    #[test]
    fn the_limit_is_judged_from_the_header_alone() {
        let mut bytes = frame(0x82, &[0; 65_537]);
        bytes.truncate(10);
        assert_eq!(read_whole(&bytes).1, Some(Violation::MessageTooBig));
    }

    #[test]
    fn the_limit_is_not_for_control_frames() {
        let limits = ReadLimits {
            message_bytes_max: 10,
            ..ReadLimits::default()
        };
        let bytes = [
            frame(0x02, &[1; 10]),
            frame(0x89, &[2; 125]),
            frame(0x80, b""),
        ]
        .concat();
        let expected = vec![Seen::Ping(vec![2; 125]), Seen::Message(false, vec![1; 10])];
        assert_eq!(read([&bytes[..]], &limits), (expected, None));
    }

    #[test]
    fn the_fragment_limit_is_exact() {
        let limits = ReadLimits {
            fragments_max: 4,
            ..ReadLimits::default()
        };
        let message = |middle: usize| {
            [
                frame(0x02, b"a"),
                frame(0x00, b"b").repeat(middle),
                frame(0x80, b"c"),
            ]
            .concat()
        };
        assert_eq!(read([&message(1)[..]], &limits).1, None);
        assert_eq!(
            read([&message(2)[..]], &limits).0,
            [Seen::Message(false, b"abbc".to_vec())]
        );
        assert_eq!(
            read([&message(3)[..]], &limits),
            (vec![], Some(Violation::TooManyFragments))
        );
    }

    /// One message as a client may send it: in fragments, with control frames between them.
    fn any_message() -> impl Strategy<Value = (Vec<u8>, Vec<Seen>)> {
        let payload = || {
            prop_oneof![
                9 => prop::collection::vec(any::<u8>(), 0..40),
                1 => prop::collection::vec(any::<u8>(), 100..400),
            ]
        };
        let fragment = (
            payload(),
            prop::option::of(prop::collection::vec(any::<u8>(), 0..126)),
        );
        prop::collection::vec(fragment, 1..4).prop_map(|fragments| {
            let count = fragments.len();
            let (mut bytes, mut seen, mut message) = (Vec::new(), Vec::new(), Vec::new());
            for (index, (payload, ping)) in fragments.into_iter().enumerate() {
                let first =
                    if index == 0 { 0x02 } else { 0x00 } | if index + 1 == count { FIN } else { 0 };
                if let Some(ping) = ping {
                    bytes.extend(frame(0x89, &ping));
                    seen.push(Seen::Ping(ping));
                }
                bytes.extend(frame(first, &payload));
                message.extend(payload);
            }
            seen.push(Seen::Message(false, message));
            (bytes, seen)
        })
    }

    proptest! {
        #[test]
        fn any_conversation_in_any_pieces_gives_its_events(
            messages in prop::collection::vec(any_message(), 1..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let (bytes, expected): (Vec<_>, Vec<_>) = messages.into_iter().unzip();
            let (bytes, expected) = (bytes.concat(), expected.concat());
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
            prop_assert_eq!(read(pieces, &ReadLimits::default()), (expected, None));
        }

        /// Broken input breaks in the same way however it is cut.
        #[test]
        fn a_damaged_conversation_never_panics(
            at in any::<prop::sample::Index>(), byte in any::<u8>(), size in 1..40_usize,
        ) {
            let (mut bytes, _) = conversation();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            prop_assert_eq!(read(bytes.chunks(size), &ReadLimits::default()), read_whole(&bytes));
        }

        /// Text, good or damaged, in any fragments and any pieces, gives what it gives in one piece.
        #[test]
        fn text_in_any_pieces_gives_the_same(
            text in "[a-zäß€😀]{1,30}",
            damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
            cut in any::<prop::sample::Index>(),
            size in 1..20_usize,
        ) {
            let mut text = text.into_bytes();
            if let Some((at, byte)) = damage {
                let at = at.index(text.len());
                text[at] = byte;
            }
            let (head, tail) = text.split_at(cut.index(text.len()));
            let bytes = [frame(0x01, head), frame(0x80, tail)].concat();
            let good = String::from_utf8(text).ok();
            let expected = match good {
                Some(text) => (vec![Seen::Message(true, text.into_bytes())], None),
                None => (vec![], Some(Violation::NotUtf8)),
            };
            prop_assert_eq!(&read_whole(&bytes), &expected);
            prop_assert_eq!(read(bytes.chunks(size), &ReadLimits::default()), expected);
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), size in 1..20_usize) {
            let whole = read_whole(&bytes);
            prop_assert_eq!(read(bytes.chunks(size), &ReadLimits::default()), whole);
        }
    }
}
