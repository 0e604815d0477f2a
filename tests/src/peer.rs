//! A WebSocket peer without a library: bytes out as a test writes them, frames in as they come.
//!
//! What a library would refuse to send, or hide of an answer, is sent and seen here.

use std::io::ErrorKind;
use std::net::SocketAddr;

use roomful_protocol::codec::Encoding;
use roomful_protocol::frame::{ClientFrame, Hello};
use roomful_protocol::id::RequestId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::wait::within;

/// A socket whose handshake is done.
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
    received: Vec<u8>,
    /// The head of the answer to the handshake.
    pub head: String,
}

/// A frame of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A whole text message.
    Text(String),
    /// A whole binary message.
    Binary(Vec<u8>),
    /// A ping.
    Ping(Vec<u8>),
    /// A pong.
    Pong(Vec<u8>),
    /// A close frame with its code, where there is one.
    Close(Option<u16>),
}

impl Peer {
    /// Connects, and offers a subprotocol if one is given.
    ///
    /// # Panics
    /// The handshake is refused.
    pub async fn open(address: SocketAddr, subprotocol: Option<&str>) -> Self {
        let lines = subprotocol.map(|name| format!("Sec-WebSocket-Protocol: {name}\r\n"));
        Self::open_with(address, &lines.unwrap_or_default(), None).await
    }

    /// Connects with more header lines, each with its end, and with a receive buffer of so many bytes.
    ///
    /// # Panics
    /// The handshake is refused.
    pub async fn open_with(address: SocketAddr, lines: &str, receive_buffer: Option<u32>) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes).unwrap();
        }
        let stream = within("connecting", socket.connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut peer = Self {
            stream,
            received: Vec::new(),
            head: String::new(),
        };
        let request = format!(
            "GET /v1/ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n"
        );
        peer.send(request.as_bytes()).await;
        let end = loop {
            let end = peer
                .received
                .windows(4)
                .position(|four| four == b"\r\n\r\n");
            if let Some(end) = end {
                break end + 4;
            }
            assert!(peer.receive().await, "no answer to the handshake");
        };
        let head: Vec<u8> = peer.received.drain(..end).collect();
        peer.head = String::from_utf8(head).unwrap();
        assert!(peer.head.starts_with("HTTP/1.1 101 "), "{}", peer.head);
        peer
    }

    /// Says hello in MessagePack, without a token.
    ///
    /// # Panics
    /// Something else than an answer comes.
    pub async fn hello(&mut self) {
        let hello = Hello {
            request: RequestId(1),
            token: None,
            resume: None,
            agent: None,
        };
        let mut bytes = Vec::new();
        Encoding::MessagePack.encode(&ClientFrame::from(hello), &mut bytes);
        self.send(&frame(BINARY, &bytes)).await;
        let welcome = self.frame().await;
        assert!(matches!(welcome, Some(Frame::Binary(_))), "{welcome:?}");
    }

    /// Sends a ping and waits for its answer, whatever comes before it.
    ///
    /// # Panics
    /// The connection ends.
    pub async fn until_pong(&mut self) {
        self.send(&frame(PING, b"until")).await;
        let pong = Frame::Pong(b"until".to_vec());
        while self.frame().await.expect("a pong before the end") != pong {}
    }

    /// Sends bytes as they are.
    ///
    /// # Panics
    /// The connection is gone.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).await.unwrap();
    }

    /// Sends bytes to a server that may have closed already.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        within("sending", self.stream.write_all(bytes)).await
    }

    /// Sends what the socket takes at once, and how many bytes that was.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send_now(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.stream.try_write(bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            outcome => outcome,
        }
    }

    /// The next frame; none at the end of the stream.
    ///
    /// # Panics
    /// A server must not send it, nothing comes in time, or the connection is reset, which destroys what was on its way.
    pub async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.take_frame() {
                return Some(frame);
            }
            if !self.receive().await {
                assert!(self.received.is_empty(), "the end inside a frame");
                return None;
            }
        }
    }

    /// A frame that has arrived already, or arrives at once.
    pub fn frame_now(&mut self) -> Option<Frame> {
        let mut bytes = [0; 1024];
        let count = self.stream.try_read(&mut bytes).unwrap_or(0);
        self.received.extend(&bytes[..count]);
        self.take_frame()
    }

    /// The code with which the server closes, whatever comes before; and the end of the stream behind it.
    ///
    /// # Panics
    /// It ends without a close frame, or anything comes behind one.
    pub async fn close_code(&mut self) -> Option<u16> {
        loop {
            match self.frame().await.expect("a close frame before the end") {
                Frame::Close(code) => {
                    assert_eq!(self.frame().await, None, "a frame behind the close frame");
                    return code;
                }
                Frame::Text(_) | Frame::Binary(_) | Frame::Ping(_) | Frame::Pong(_) => {}
            }
        }
    }

    /// Waits until the server has dropped the socket: what is sent is answered by a reset.
    pub async fn dropped(&mut self) {
        within("the server drops the socket", async {
            while self.stream.write_all(&[0]).await.is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// Whether something came, and not the end.
    async fn receive(&mut self) -> bool {
        within(
            "bytes of the server",
            self.stream.read_buf(&mut self.received),
        )
        .await
        .unwrap()
            > 0
    }

    fn take_frame(&mut self) -> Option<Frame> {
        let [first, second, ..] = self.received[..] else {
            return None;
        };
        assert_eq!(first & 0x70, 0, "a server set a reserved bit");
        assert_eq!(second & 0x80, 0, "a server masked a frame");
        assert_eq!(first & 0x80, 0x80, "our server sends no fragments");
        let (header, length) = match second {
            126 => (4, self.length(2)?),
            127 => (10, self.length(8)?),
            short => (2, usize::from(short)),
        };
        if self.received.len() < header + length {
            return None;
        }
        let payload: Vec<u8> = self
            .received
            .drain(..header + length)
            .skip(header)
            .collect();
        Some(match first & 0x0f {
            0x1 => Frame::Text(String::from_utf8(payload).unwrap()),
            0x2 => Frame::Binary(payload),
            0x8 => Frame::Close(payload.first_chunk().map(|code| u16::from_be_bytes(*code))),
            0x9 => Frame::Ping(payload),
            0xa => Frame::Pong(payload),
            other => panic!("a server sent opcode {other}"),
        })
    }

    /// The length that stands in that many bytes behind the first two.
    fn length(&self, bytes: usize) -> Option<usize> {
        let digits = self.received.get(2..2 + bytes)?;
        Some(
            digits
                .iter()
                .fold(0, |length, byte| length << 8 | usize::from(*byte)),
        )
    }
}

/// A client's frame with this first byte: its final bit, its reserved bits and its opcode.
#[must_use]
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(first, payload.len());
    bytes.extend(masked(payload));
    bytes
}

/// The head of such a frame, with its mask, whether or not its payload follows.
#[must_use]
pub fn header(first: u8, length: usize) -> Vec<u8> {
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..126), _) => header_of(first, short, &[]),
        (_, Ok(medium)) => header_of(first, 126, &medium.to_be_bytes()),
        _ => header_of(first, 127, &(length as u64).to_be_bytes()),
    }
}

/// The same with any length field: the seven bits, and what follows them.
#[must_use]
pub fn header_of(first: u8, seven: u8, more: &[u8]) -> Vec<u8> {
    [&[first, 0x80 | seven], more, &MASK].concat()
}

/// What stands behind the header of such a frame.
pub fn masked(payload: &[u8]) -> impl Iterator<Item = u8> {
    payload
        .iter()
        .zip(MASK.into_iter().cycle())
        .map(|(byte, mask)| byte ^ mask)
}

/// A client's close frame.
#[must_use]
pub fn close(code: u16) -> Vec<u8> {
    frame(CLOSE, &code.to_be_bytes())
}

/// The first byte of a text message in one frame.
pub const TEXT: u8 = 0x81;
/// The first byte of a binary message in one frame.
pub const BINARY: u8 = 0x82;
/// The first byte of a text message's first fragment.
pub const TEXT_BEGINS: u8 = 0x01;
/// The first byte of a binary message's first fragment.
pub const BINARY_BEGINS: u8 = 0x02;
/// The first byte of a fragment between the first and the last.
pub const GOES_ON: u8 = 0x00;
/// The first byte of the last fragment.
pub const ENDS: u8 = 0x80;
/// The first byte of a close frame.
pub const CLOSE: u8 = 0x88;
/// The first byte of a ping.
pub const PING: u8 = 0x89;
/// The first byte of a pong.
pub const PONG: u8 = 0x8a;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
