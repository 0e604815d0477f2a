//! One connection: a socket, its upgrade, and the messages on it.
//!
//! Belongs to the [`crate::pool`], whose one thread reads every socket into one buffer. A connection holds bytes only while
//! something is incomplete. What a message means is left to the peer.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mio::net::TcpStream;
use roomful_protocol::websocket::{
    OpCode, ReadLimits, Reader, Role, WebSocketEvent, masked_frame_into,
};
use socket2::{Domain, Socket, Type};

use crate::peer::{Answer, Upgrade};
use crate::tls::{Secure, Stream};

/// One WebSocket connection, from the client's side.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Stream,
    reader: Reader,
    phase: Phase,
    /// What the kernel wouldn't take yet.
    unsent: Vec<u8>,
    /// What messages are sent as.
    code: OpCode,
    /// The next frame's mask. Distinct is enough here: a mask protects intermediaries, and there are none on loopback.
    mask: u32,
}

/// How a connection is opened.
#[derive(Debug)]
pub(crate) struct Opening<'a> {
    /// Where the server listens.
    pub(crate) target: SocketAddr,
    /// What it is encrypted with, if it is.
    pub(crate) secure: Option<&'a Secure>,
    /// Number of the connection in this run; loopback connections take turns among several source addresses.
    pub(crate) index: usize,
    /// What is asked for in the upgrade request.
    pub(crate) upgrade: &'a Upgrade,
    /// Messages to send as soon as the upgrade is done.
    pub(crate) greeting: Vec<Vec<u8>>,
}

/// The server has no place for a connection now, and has said when to come again.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the server refused the upgrade and asked to come again in {} s", .0.as_secs())]
pub(crate) struct Postponed(pub(crate) Duration);

/// Takes a message, and what is to be sent in answer to it.
type Reading<'a> = &'a mut dyn FnMut(&[u8], Answer<'_>) -> Result<()>;

#[derive(Debug)]
enum Phase {
    /// The response to the upgrade request isn't complete.
    Upgrading {
        response: Vec<u8>,
        subprotocol: Option<&'static str>,
        greeting: Vec<Vec<u8>>,
    },
    /// Frames flow.
    Open,
}

/// The key and the accept value of RFC 6455 §1.3: any key does, and a constant one has a constant answer.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Far above any response to an upgrade.
const RESPONSE_BYTES_MAX: usize = 16 * 1024;

/// Larger than what the server may send in one message; a recovery chunk is the largest.
const LIMITS: ReadLimits = ReadLimits {
    message_bytes_max: 1 << 20,
    fragments_max: 64,
};

/// Source addresses, so that one run after the other finds free ports: each has some 28,000, and a closed one rests for a minute.
const SOURCES: usize = 16;

/// On loopback the kernel answers at once unless the server's backlog is full.
const CONNECT_MAX: Duration = Duration::from_secs(10);

impl Connection {
    /// Connects and sends the upgrade request.
    ///
    /// # Errors
    /// No connection, or nothing could be written to it.
    pub(crate) fn open(opening: Opening<'_>) -> Result<Self> {
        let Opening {
            target,
            secure,
            index,
            upgrade,
            greeting,
        } = opening;
        let stream = Stream::over(connect(target, index)?, secure)?;
        let phase = Phase::Upgrading {
            response: Vec::new(),
            subprotocol: upgrade.subprotocol,
            greeting,
        };
        let mask = u32::try_from(index)?.wrapping_mul(MASK_STEP);
        let mut connection = Self {
            stream,
            reader: Reader::new(Role::Client),
            phase,
            unsent: Vec::new(),
            code: upgrade.code,
            mask,
        };
        connection.unsent = request(target, upgrade).into_bytes();
        connection.flush()?;
        Ok(connection)
    }

    /// The socket, to be registered.
    pub(crate) fn socket(&mut self) -> &mut TcpStream {
        self.stream.socket()
    }

    /// Sends a message, or keeps what the kernel doesn't take for [`Connection::flush`].
    ///
    /// # Errors
    /// The connection is broken.
    pub(crate) fn send(&mut self, message: &[u8]) -> Result<()> {
        frame_into(&mut self.mask, self.code, message, &mut self.unsent);
        self.flush()
    }

    /// Writes what was kept.
    ///
    /// # Errors
    /// The connection is broken.
    pub(crate) fn flush(&mut self) -> Result<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(written) => drop(self.unsent.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("writing failed"),
            }
        }
        // Thousands of idle connections would each keep the capacity of their request.
        self.unsent = Vec::new();
        self.stream.flush().context("writing failed")
    }

    /// Reads all that has arrived, through a buffer that the connections share.
    ///
    /// Readiness is reported once per arrival. A read that doesn't fill the buffer has emptied the socket, and saves the
    /// call that would say so, without TLS; only `ending`, the news that the server has closed, must be read to the end.
    ///
    /// # Errors
    /// The server closed, refused or garbled; or what the listener returned.
    pub(crate) fn receive(
        &mut self,
        buffer: &mut [u8],
        ending: bool,
        listener: Reading<'_>,
    ) -> Result<()> {
        loop {
            let read = match self.stream.read(buffer) {
                Ok(0) => bail!("the server closed the connection without a close frame"),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("reading failed"),
            };
            let emptied = read < buffer.len() && self.stream.is_plain();
            match &self.phase {
                Phase::Open => self.frames(&mut buffer[..read], listener)?,
                Phase::Upgrading { .. } => self.response(&buffer[..read], listener)?,
            }
            if emptied && !ending {
                return Ok(());
            }
        }
    }

    fn frames(&mut self, mut input: &mut [u8], listener: Reading<'_>) -> Result<()> {
        let Self {
            reader,
            unsent,
            code,
            mask,
            ..
        } = self;
        while let Some(event) = reader
            .next(&mut input, &LIMITS)
            .context("the server broke RFC 6455")?
        {
            match event {
                WebSocketEvent::Message { payload, .. } => {
                    listener(payload, &mut |answer| {
                        frame_into(mask, *code, answer, unsent);
                    })?;
                }
                WebSocketEvent::Ping(payload) => frame_into(mask, OpCode::Pong, payload, unsent),
                WebSocketEvent::Pong(_) => {}
                WebSocketEvent::Close { code, reason } => {
                    bail!(
                        "the server closed the connection: code {} {reason}",
                        code.unwrap_or(1005)
                    );
                }
            }
        }
        if self.unsent.is_empty() {
            Ok(())
        } else {
            self.flush()
        }
    }

    fn response(&mut self, input: &[u8], listener: Reading<'_>) -> Result<()> {
        let Phase::Upgrading {
            response,
            subprotocol,
            greeting,
        } = &mut self.phase
        else {
            return Ok(());
        };
        response.extend_from_slice(input);
        let Some(end) = response.windows(4).position(|window| window == b"\r\n\r\n") else {
            anyhow::ensure!(
                response.len() < RESPONSE_BYTES_MAX,
                "the response to the upgrade has no end"
            );
            return Ok(());
        };
        let mut frames = response.split_off(end + 4);
        check_response(&String::from_utf8_lossy(response), *subprotocol)?;
        for message in std::mem::take(greeting) {
            frame_into(&mut self.mask, self.code, &message, &mut self.unsent);
        }
        self.phase = Phase::Open;
        self.flush()?;
        self.frames(&mut frames, listener)
    }
}

/// Connects to a server on loopback from one of several addresses, by the connection's number.
///
/// # Errors
/// No connection.
pub(crate) fn connect(target: SocketAddr, index: usize) -> Result<TcpStream> {
    let socket =
        Socket::new(Domain::for_address(target), Type::STREAM, None).context("no socket")?;
    if let Some(source) = source(target, index) {
        let bound = socket.bind(&SocketAddr::from((source, 0)).into());
        bound.with_context(|| {
            format!("no free port on {source}; closed connections free theirs within a minute")
        })?;
    }
    socket
        .connect_timeout(&target.into(), CONNECT_MAX)
        .with_context(|| format!("can't connect to {target}"))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    Ok(TcpStream::from_std(socket.into()))
}

/// 127.0.0.2 and up, for servers on loopback. They need no set-up on Linux.
fn source(target: SocketAddr, index: usize) -> Option<Ipv4Addr> {
    let loopback = matches!(target.ip(), IpAddr::V4(address) if address.is_loopback());
    let last = 2 + u8::try_from(index % SOURCES).ok()?;
    (loopback && cfg!(target_os = "linux")).then(|| Ipv4Addr::new(127, 0, 0, last))
}

/// The head of an upgrade request.
pub(crate) fn request(target: SocketAddr, upgrade: &Upgrade) -> String {
    let Upgrade {
        path, subprotocol, ..
    } = upgrade;
    let protocol = subprotocol.map_or_else(String::new, |name| {
        format!("Sec-WebSocket-Protocol: {name}\r\n")
    });
    format!(
        "GET {path} HTTP/1.1\r\nHost: {target}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{protocol}\r\n"
    )
}

fn check_response(response: &str, subprotocol: Option<&str>) -> Result<()> {
    let status = response.lines().next().unwrap_or("");
    let header = |name: &str| {
        let mut fields = response
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'));
        fields
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    };
    if status.split(' ').nth(1) != Some("101") {
        let seconds = header("retry-after").and_then(|value| value.parse().ok());
        if let Some(seconds) = seconds {
            return Err(Postponed(Duration::from_secs(seconds)).into());
        }
        let body = response.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        bail!("the server refused the upgrade: {status} {body}");
    }
    if header("sec-websocket-accept") != Some(ACCEPT) {
        bail!("the response to the upgrade is no answer to its key");
    }
    if header("sec-websocket-protocol") != subprotocol {
        bail!(
            "the server chose the subprotocol {:?}",
            header("sec-websocket-protocol")
        );
    }
    Ok(())
}

fn frame_into(mask: &mut u32, code: OpCode, payload: &[u8], out: &mut Vec<u8>) {
    *mask = mask.wrapping_add(MASK_STEP);
    masked_frame_into(code, payload, mask.to_le_bytes(), out);
}

/// 2^32 divided by the golden ratio: steps of it visit all masks and look unlike each other.
const MASK_STEP: u32 = 0x9e37_79b9;

#[cfg(test)]
mod tests {
    use super::*;

    fn response(accept: &str, protocol: &str) -> String {
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: {accept}\r\n{protocol}\r\n\r\n"
        )
    }

    #[test]
    fn only_the_right_answer_to_the_upgrade_is_taken() {
        let name = Some("roomful.v1.msgpack");
        let chosen = "Sec-WebSocket-Protocol: roomful.v1.msgpack";
        assert!(check_response(&response(ACCEPT, chosen), name).is_ok());
        assert!(check_response(&response(ACCEPT, "x: y"), None).is_ok());
        assert!(check_response(&response("other", chosen), name).is_err());
        assert!(check_response(&response(ACCEPT, "x: y"), name).is_err());
        let refused = check_response("HTTP/1.1 503 Service Unavailable\r\n\r\n", None).unwrap_err();
        assert!(refused.to_string().contains("503"), "{refused}");
    }

    #[test]
    fn sources_take_turns_on_loopback_alone() {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 80));
        assert_ne!(source(loopback, 0), source(loopback, 1));
        assert_eq!(source(loopback, 3), source(loopback, 3 + SOURCES));
        assert_eq!(source(SocketAddr::from(([192, 0, 2, 1], 80)), 0), None);
    }
}
