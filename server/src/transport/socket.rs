//! A connection's socket: what can be read and written without waiting, and how it ends.
//!
//! The shard's thread alone touches it. The kernel tells once per arrival that there is something to read, and
//! once that a full socket takes bytes again; what was told and not used up is remembered here.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::Shutdown;

use bytes::{Buf, Bytes};
use mio::event::Event;
use mio::net::TcpStream;
use roomful_protocol::websocket::{Reader, Role};

use super::Place;

/// What a thread keeps for a connection.
///
/// Fan-out touches one cache line of it.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Socket {
    /// Tells this use of the slot from earlier ones.
    pub(super) generation: u32,
    wire: Wire,
    /// A write has not taken everything since the kernel last said that it takes bytes.
    full: bool,
    /// There may be something to read.
    readable: bool,
    /// The peer sends no more, so the end is read even behind a short read.
    ending: bool,
    /// The end has been read, or a write has failed.
    over: bool,
    /// Whether it stands in the list of those that are read once more.
    pub(super) again: bool,
    /// Whether a timer looks after a message that is incomplete.
    pub(super) timed: bool,
    /// Incomplete input.
    pub(super) reader: Reader,
    /// What was read and may not be handled while the connection is paused.
    pub(super) unread: Box<[u8]>,
    /// None while the core has the connection.
    goodbye: Option<Box<Goodbye>>,
    /// The connection's place.
    place: Box<Place>,
}

// With debug assertions mio keeps what it checks in each socket.
#[cfg(not(debug_assertions))]
const _: () = assert!(
    size_of::<Socket>() == 64,
    "fan-out touches one cache line a socket"
);

/// What bytes go through. TLS will be the second.
#[derive(Debug)]
enum Wire {
    Plain(TcpStream),
}

/// The end of a connection that the core is done with.
#[derive(Debug)]
struct Goodbye {
    /// What is left of the last words.
    words: VecDeque<Bytes>,
}

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// So many bytes.
    Bytes(usize),
    /// Nothing for now.
    Nothing,
    /// That there will be no more.
    End,
}

impl Socket {
    pub(super) fn plain(generation: u32, stream: TcpStream, place: Place) -> Self {
        Self {
            generation,
            wire: Wire::Plain(stream),
            full: false,
            readable: false,
            ending: false,
            over: false,
            again: false,
            timed: false,
            reader: Reader::new(Role::Server),
            unread: Box::default(),
            goodbye: None,
            place: Box::new(place),
        }
    }

    /// Remembers what the kernel tells; whether a socket that was full takes bytes again.
    pub(super) fn told(&mut self, event: &Event) -> bool {
        self.ending |= event.is_read_closed() || event.is_error();
        self.readable |= event.is_readable() || self.ending;
        event.is_writable() && std::mem::take(&mut self.full)
    }

    /// Whether a look at the socket may find something.
    pub(super) fn is_readable(&self) -> bool {
        self.readable
    }

    /// Whether a look at the socket, or at what is left of the last one, may find something.
    pub(super) fn has_input(&self) -> bool {
        self.readable || !self.unread.is_empty()
    }

    /// Reads once. A read that does not fill the buffer has emptied the socket, which saves the call that would
    /// say so; only the end is still behind it.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Heard {
        if !self.readable {
            return Heard::Nothing;
        }
        let heard = self.receive(buffer);
        self.over |= heard == Heard::End;
        self.readable &= !self.over;
        heard
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Heard {
        let Wire::Plain(stream) = &mut self.wire;
        let outcome = loop {
            match stream.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome,
            }
        };
        match outcome {
            Ok(0) => Heard::End,
            Ok(bytes) => {
                self.readable = self.ending || bytes == buffer.len();
                Heard::Bytes(bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Heard::Nothing
            }
            Err(_) => Heard::End,
        }
    }

    /// Writes what the kernel takes. After less than everything, the kernel tells when there is room again.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let Wire::Plain(stream) = &mut self.wire;
        let (total, outcome) = match slices {
            [only] => (only.len(), stream.write(only)),
            several => (
                several.iter().map(|slice| slice.len()).sum(),
                stream.write_vectored(several),
            ),
        };
        let written = match outcome {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => {
                self.over = true;
                return Err(error);
            }
        };
        self.full |= written < total;
        Ok(written)
    }

    /// Whether the peer has ended it, or it broke: nothing that is written would arrive.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// Bytes that have come and that nobody has handled.
    pub(super) fn input_bytes(&self) -> usize {
        self.reader.held_bytes() + self.unread.len()
    }

    /// Its session is open.
    pub(super) fn authenticated(&mut self) {
        self.place.ticket.authenticate();
    }

    /// Whether the core is done with it.
    pub(super) fn is_saying_goodbye(&self) -> bool {
        self.goodbye.is_some()
    }

    /// Nothing of it concerns the core from here on. The last words are said as far as the peer takes them, and
    /// then the peer has its time to close: a socket that is closed with input unread is reset, and the last
    /// words with it.
    pub(super) fn say_goodbye(&mut self, words: Vec<Bytes>) {
        self.unread = Box::default();
        self.reader = Reader::new(Role::Server);
        self.goodbye = Some(Box::new(Goodbye {
            words: words.into(),
        }));
    }

    /// Goes on with a goodbye as far as it goes without waiting; whether it is over. What the peer still sends
    /// is read into `buffer` and dropped.
    pub(super) fn go_on(&mut self, buffer: &mut [u8]) -> bool {
        if self.over {
            return true;
        }
        match self.speak() {
            Ok(true) if self.place.leave() => {
                let Wire::Plain(stream) = &self.wire;
                // It fails where the peer is gone, which the next read finds out.
                stream.shutdown(Shutdown::Write).ok();
                self.readable = true;
            }
            Ok(_) => {}
            // A peer that is gone needs no goodbye.
            Err(_) => return true,
        }
        for _ in 0..READS_MAX {
            match self.read(buffer) {
                Heard::End => return true,
                Heard::Nothing => return false,
                Heard::Bytes(_) => {}
            }
        }
        false
    }

    /// Whether everything is said.
    fn speak(&mut self) -> io::Result<bool> {
        while let Some(mut words) = self
            .goodbye
            .as_mut()
            .and_then(|goodbye| goodbye.words.pop_front())
        {
            let written = self.write(&[IoSlice::new(&words)])?;
            words.advance(written);
            if let (true, Some(goodbye)) = (words.has_remaining(), &mut self.goodbye) {
                goodbye.words.push_front(words);
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Reads of one socket before others get their turn.
pub(super) const READS_MAX: usize = 4;
