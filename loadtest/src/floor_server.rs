//! The floor: the least that any server can do for a broadcast, to measure the others against.
//!
//! One thread, the kernel's readiness, and one `send` for each delivery of a frame that was encoded once. It checks nothing and
//! knows nobody: no token, no history, no presence, no limits. A message goes to everybody in the room that the path of
//! the URL names, its sender included. With `--coalesce` the frames of one turn of the loop leave in one `send` a member,
//! which is the least under load.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry, Token};
use roomful_protocol::websocket::{OpCode, ReadLimits, Reader, Role, WebSocketEvent, frame_into};
use slab::Slab;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::console;

/// How the floor server runs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Send the frames of one turn of the loop together, instead of each on its own
    #[arg(long)]
    coalesce: bool,
}

/// Everything there is.
struct Floor {
    connections: Slab<Connection>,
    rooms: Vec<Room>,
    /// Index of a room by the path that names it.
    names: HashMap<String, usize>,
    /// Rooms with something in their batch.
    batched: Vec<usize>,
    coalesce: bool,
}

#[derive(Default)]
struct Room {
    members: Vec<usize>,
    /// What the members get at the end of this turn.
    batch: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    reader: Reader,
    /// Index of its room; `None` while the request of the upgrade is incomplete.
    room: Option<usize>,
    /// That request so far, and later what the kernel didn't take.
    held: Vec<u8>,
}

/// How a connection stands after it was read.
#[derive(PartialEq, Eq)]
enum Standing {
    Open,
    Ended,
}

const LISTENER: Token = Token(usize::MAX);

const BUFFER_BYTES: usize = 256 * 1024;

const REQUEST_BYTES_MAX: usize = 16 * 1024;

const LIMITS: ReadLimits = ReadLimits {
    message_bytes_max: 1 << 20,
    fragments_max: 64,
};

/// Serves until the process is ended.
///
/// # Errors
/// The address is taken, or the kernel gives no poll.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut listener = TcpListener::bind(args.listen)
        .with_context(|| format!("can't listen on {}", args.listen))?;
    console::progress(&format!("listening address={}", listener.local_addr()?));
    let mut poll = Poll::new().context("no poll")?;
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut floor = Floor {
        connections: Slab::new(),
        rooms: Vec::new(),
        names: HashMap::new(),
        batched: Vec::new(),
        coalesce: args.coalesce,
    };
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            outcome => outcome.context("waiting for readiness failed")?,
        }
        for event in &events {
            match event.token() {
                LISTENER => floor.accept(&listener, poll.registry())?,
                Token(index) => floor.ready(index, event.is_read_closed(), &mut buffer),
            }
        }
        floor.flush();
    }
}

impl Floor {
    fn accept(&mut self, listener: &TcpListener, registry: &Registry) -> Result<()> {
        loop {
            let mut stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("accepting failed"),
            };
            stream.set_nodelay(true)?;
            let entry = self.connections.vacant_entry();
            let interest = Interest::READABLE | Interest::WRITABLE;
            registry.register(&mut stream, Token(entry.key()), interest)?;
            entry.insert(Connection {
                stream,
                reader: Reader::new(Role::Server),
                room: None,
                held: Vec::new(),
            });
        }
    }

    /// A connection can be read or written. One that fails is the tester's to notice.
    fn ready(&mut self, index: usize, ending: bool, buffer: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        if connection.room.is_some() && !connection.held.is_empty() {
            connection.retry();
        }
        if !matches!(self.read(index, ending, buffer), Ok(Standing::Open)) {
            self.remove(index);
        }
    }

    fn read(&mut self, index: usize, ending: bool, buffer: &mut [u8]) -> Result<Standing> {
        loop {
            let connection = &mut self.connections[index];
            let read = match connection.stream.read(buffer) {
                Ok(0) => return Ok(Standing::Ended),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Standing::Open),
                Err(error) => return Err(error.into()),
            };
            let emptied = read < buffer.len();
            match connection.room {
                Some(room) => self.messages(index, room, &mut buffer[..read])?,
                None => self.request(index, &buffer[..read])?,
            }
            // Readiness is told once per arrival, and a read that doesn't fill the buffer has emptied the socket.
            if emptied && !ending {
                return Ok(Standing::Open);
            }
        }
    }

    fn messages(&mut self, index: usize, room: usize, mut input: &mut [u8]) -> Result<()> {
        let mut reader = std::mem::replace(
            &mut self.connections[index].reader,
            Reader::new(Role::Server),
        );
        while let Some(event) = reader.next(&mut input, &LIMITS)? {
            match event {
                WebSocketEvent::Message { payload, .. } => self.publish(room, payload),
                WebSocketEvent::Close { .. } => bail!("closed by the client"),
                WebSocketEvent::Ping(_) | WebSocketEvent::Pong(_) => {}
            }
        }
        self.connections[index].reader = reader;
        Ok(())
    }

    fn publish(&mut self, index: usize, payload: &[u8]) {
        let room = &mut self.rooms[index];
        if room.batch.is_empty() {
            self.batched.push(index);
        }
        frame_into(OpCode::Binary, payload, &mut room.batch);
        if !self.coalesce {
            self.flush();
        }
    }

    fn flush(&mut self) {
        for index in self.batched.drain(..) {
            let room = &mut self.rooms[index];
            for &member in &room.members {
                self.connections[member].send(&room.batch);
            }
            room.batch.clear();
        }
    }

    /// Takes a part of the request that asks for the upgrade, and answers it when it is whole.
    fn request(&mut self, index: usize, input: &[u8]) -> Result<()> {
        let connection = &mut self.connections[index];
        connection.held.extend_from_slice(input);
        if !connection.held.ends_with(b"\r\n\r\n") {
            ensure!(
                connection.held.len() < REQUEST_BYTES_MAX,
                "the request has no end"
            );
            return Ok(());
        }
        let request = std::mem::take(&mut connection.held);
        let (path, key) = upgrade(std::str::from_utf8(&request)?)?;
        let mut answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            derive_accept_key(key.as_bytes())
        )
        .into_bytes();
        // The reply to joining, as the tester knows it.
        frame_into(OpCode::Binary, &[], &mut answer);
        connection.send(&answer);
        let room = match self.names.get(path) {
            Some(room) => *room,
            None => {
                self.names.insert(path.to_owned(), self.rooms.len());
                self.rooms.push(Room::default());
                self.rooms.len() - 1
            }
        };
        self.rooms[room].members.push(index);
        self.connections[index].room = Some(room);
        Ok(())
    }

    fn remove(&mut self, index: usize) {
        let connection = self.connections.remove(index);
        if let Some(room) = connection.room {
            self.rooms[room].members.retain(|member| *member != index);
        }
    }
}

impl Connection {
    /// Writes, or keeps what the kernel doesn't take. A broken connection is found out when it is read.
    fn send(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        if self.held.is_empty() {
            match self.stream.write(bytes) {
                Ok(written) => rest = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
        self.held.extend_from_slice(rest);
    }

    fn retry(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.send(&held);
    }
}

/// The path and the key of an upgrade request.
fn upgrade(request: &str) -> Result<(&str, &str)> {
    let path = request.split(' ').nth(1).context("no request line")?;
    let mut fields = request.lines().filter_map(|line| line.split_once(':'));
    let (_, key) = fields
        .find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"))
        .context("the request asks for no upgrade")?;
    Ok((path, key.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_and_the_key_are_found_in_a_request() {
        let request = "GET /room-7 HTTP/1.1\r\nHost: x\r\nsec-websocket-KEY: abc==\r\n\r\n";
        assert_eq!(upgrade(request).unwrap(), ("/room-7", "abc=="));
        assert!(upgrade("GET / HTTP/1.1\r\nHost: x\r\n\r\n").is_err());
    }
}
