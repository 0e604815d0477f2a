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
use crate::tls::{Received, Records};

/// What a thread keeps for a connection.
///
/// Fan-out touches one cache line of it.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Socket {
    /// Tells this use of the slot from earlier ones.
    pub(super) generation: u32,
    stream: TcpStream,
    /// What stands between bytes and the stream, where it is TLS.
    tls: Option<Box<Records>>,
    /// A write has not taken everything since the kernel last said that it takes bytes, or TLS has kept something of it.
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
    rest: Rest,
    /// The connection's place.
    place: Box<Place>,
}

// With debug assertions mio keeps what it checks in each socket.
#[cfg(not(debug_assertions))]
const _: () = assert!(
    size_of::<Socket>() == 64,
    "fan-out touches one cache line a socket"
);

/// What is left to do, first by the core and then without it.
#[derive(Debug)]
enum Rest {
    /// What was read and may not be handled while the connection is paused.
    Unread(Box<[u8]>),
    /// The core is done with it.
    Goodbye(Box<Goodbye>),
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
    /// So many bytes; none where TLS had something to say to itself.
    Bytes(usize),
    /// Nothing for now.
    Nothing,
    /// That there will be no more.
    End,
}

impl Socket {
    pub(super) fn new(
        generation: u32,
        stream: TcpStream,
        tls: Option<Box<Records>>,
        place: Place,
    ) -> Self {
        // TLS may have read ahead, and may hold what was not written; the kernel will not tell of either.
        let secure = tls.is_some();
        Self {
            generation,
            stream,
            tls,
            full: secure,
            readable: secure,
            ending: false,
            over: false,
            again: false,
            timed: false,
            reader: Reader::new(Role::Server),
            rest: Rest::Unread(Box::default()),
            place: Box::new(place),
        }
    }

    /// Remembers what the kernel tells; whether a socket that was full takes bytes again.
    pub(super) fn told(&mut self, event: &Event) -> bool {
        self.ending |= event.is_read_closed() || event.is_error();
        self.readable |= event.is_readable() || self.ending;
        event.is_writable() && std::mem::take(&mut self.full) && self.flush()
    }

    /// Writes what TLS has kept; whether there is room for more.
    fn flush(&mut self) -> bool {
        let Some(tls) = &mut self.tls else {
            return true;
        };
        let flushed = tls.flush(&mut self.stream);
        // A broken one is found out by the next read.
        self.ending |= flushed.is_err();
        self.readable |= self.ending;
        self.full = matches!(flushed, Ok(false));
        !self.full
    }

    /// Whether a look at the socket may find something.
    pub(super) fn is_readable(&self) -> bool {
        self.readable
    }

    /// Whether a look at the socket, or at what is left of the last one, may find something.
    pub(super) fn has_input(&self) -> bool {
        self.readable || matches!(&self.rest, Rest::Unread(bytes) if !bytes.is_empty())
    }

    /// What an earlier read has left.
    pub(super) fn take_unread(&mut self) -> Box<[u8]> {
        match &mut self.rest {
            Rest::Unread(bytes) => std::mem::take(bytes),
            Rest::Goodbye(_) => Box::default(),
        }
    }

    /// Keeps what may not be handled now. One that says goodbye has nothing to hear any more.
    pub(super) fn keep_unread(&mut self, bytes: &[u8]) {
        if let Rest::Unread(unread) = &mut self.rest {
            *unread = Box::from(bytes);
        }
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
        let outcome = match &mut self.tls {
            None => receive(&mut self.stream, buffer),
            Some(tls) => {
                let outcome = tls.read(&mut self.stream, buffer);
                self.full |= tls.is_waiting();
                outcome
            }
        };
        match outcome {
            Ok(None) => Heard::End,
            Ok(Some(Received { bytes, emptied })) => {
                self.readable = self.ending || !emptied;
                Heard::Bytes(bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Heard::Nothing
            }
            Err(_) => Heard::End,
        }
    }

    /// Writes what the kernel takes. After less than everything, the kernel tells when there is room again. TLS takes
    /// more by one record at most, which it keeps until then.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let total = slices.iter().map(|slice| slice.len()).sum();
        let outcome = match (&mut self.tls, slices) {
            (None, [only]) => self.stream.write(only),
            (None, several) => self.stream.write_vectored(several),
            (Some(tls), slices) => {
                let outcome = tls.write(&mut self.stream, slices);
                self.full |= tls.is_waiting();
                outcome
            }
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
        let unread = match &self.rest {
            Rest::Unread(bytes) => bytes.len(),
            Rest::Goodbye(_) => 0,
        };
        let record = self.tls.as_ref().map_or(0, |tls| tls.counted_bytes());
        self.reader.held_bytes() + unread + record
    }

    /// Counts what TLS holds of a record that has not come whole.
    pub(super) fn count_record(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.count_unread();
        }
    }

    /// Forgets how much of it was counted, and says so.
    pub(super) fn uncount_record(&mut self) -> usize {
        self.tls.as_mut().map_or(0, |tls| tls.uncount())
    }

    /// Its session is open.
    pub(super) fn authenticated(&mut self) {
        self.place.ticket.authenticate();
    }

    /// Whether the core is done with it.
    pub(super) fn is_saying_goodbye(&self) -> bool {
        matches!(self.rest, Rest::Goodbye(_))
    }

    /// Nothing of it concerns the core from here on. The last words are said as far as the peer takes them, and
    /// then the peer has its time to close: a socket that is closed with input unread is reset, and the last
    /// words with it.
    pub(super) fn say_goodbye(&mut self, words: Vec<Bytes>) {
        self.reader = Reader::new(Role::Server);
        self.rest = Rest::Goodbye(Box::new(Goodbye {
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
                // It fails where the peer is gone, which the next read finds out.
                self.stream.shutdown(Shutdown::Write).ok();
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

    /// Whether everything is said, and TLS has said that it was everything.
    fn speak(&mut self) -> io::Result<bool> {
        while let Some(mut words) = self.next_words() {
            let written = self.write(&[IoSlice::new(&words)])?;
            words.advance(written);
            if let (true, Rest::Goodbye(goodbye)) = (words.has_remaining(), &mut self.rest) {
                goodbye.words.push_front(words);
                return Ok(false);
            }
        }
        let Some(tls) = &mut self.tls else {
            return Ok(true);
        };
        let closed = tls.close(&mut self.stream)?;
        self.full |= !closed;
        Ok(closed)
    }

    fn next_words(&mut self) -> Option<Bytes> {
        match &mut self.rest {
            Rest::Unread(_) => None,
            Rest::Goodbye(goodbye) => goodbye.words.pop_front(),
        }
    }
}

/// Reads once; `None` at the end.
fn receive(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) => return Ok(None),
            Ok(bytes) => {
                let emptied = bytes < buffer.len();
                return Ok(Some(Received { bytes, emptied }));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Reads of one socket before others get their turn.
pub(super) const READS_MAX: usize = 4;
