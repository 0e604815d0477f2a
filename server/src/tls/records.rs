//! An open TLS connection without its socket: bytes to records, and records to bytes.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::mem;

use rustls::ServerConnection;

use crate::metrics::Metrics;

/// A connection whose handshake is done.
///
/// What waits to be written is kept by whoever writes, as plain bytes that can still be dropped or replaced. So
/// bytes are encrypted only when everything before them has gone into the socket, and one record at most waits here.
pub struct Records {
    connection: ServerConnection,
    metrics: Metrics,
    /// Bytes of a record that has not come whole.
    unread_bytes: usize,
    /// As many of them as somebody has counted.
    counted_bytes: usize,
    /// Bytes of the last record that was encrypted, where the socket has not taken it all.
    unsent_bytes: usize,
}

/// What a read has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes for the caller; none where a record has not come whole, or was none with data.
    pub bytes: usize,
    /// Whether there is nothing more, here or in the socket, until the socket has more.
    pub emptied: bool,
}

impl Records {
    pub(crate) fn new(mut connection: ServerConnection, metrics: Metrics) -> Self {
        connection.set_buffer_limit(Some(RECORD_BYTES));
        metrics.tls_opened();
        Self {
            connection,
            metrics,
            unread_bytes: 0,
            counted_bytes: 0,
            unsent_bytes: 0,
        }
    }

    /// Reads from the socket once, unless there is something left of an earlier read. `None` at the end.
    ///
    /// # Errors
    /// `WouldBlock` where the socket has nothing, what the socket failed with, or what the peer did wrong; the latter is
    /// answered with an alert, and counted.
    pub fn read(
        &mut self,
        socket: &mut (impl Read + Write),
        buffer: &mut [u8],
    ) -> io::Result<Option<Received>> {
        if let Some(bytes) = self.decrypted(buffer)? {
            // The socket was not asked.
            let emptied = false;
            return Ok((bytes > 0).then_some(Received { bytes, emptied }));
        }
        let mut tap = Tap {
            socket,
            emptied: false,
        };
        let read = self.connection.read_tls(&mut tap)?;
        let emptied = tap.emptied;
        let processed = self.connection.process_new_packets();
        let has_come = !matches!(&processed, Ok(state) if state.plaintext_bytes_to_read() == 0);
        self.came(read, has_come);
        // An alert, or an answer to a new key; what the socket doesn't take waits for the next write.
        let flushed = self.flush(socket);
        if let Err(error) = processed {
            self.metrics.tls_violated();
            tracing::debug!(%error, "a connection broke TLS");
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        flushed?;
        Ok(match self.decrypted(buffer)? {
            Some(0) => None,
            decrypted => Some(Received {
                bytes: decrypted.unwrap_or(0),
                emptied: emptied && decrypted.unwrap_or(0) < buffer.len(),
            }),
        })
    }

    /// Notes how much is there of a record that is not whole.
    fn came(&mut self, bytes: usize, whole: bool) {
        if !whole {
            self.unread_bytes = (self.unread_bytes + bytes).min(RECORD_BYTES);
        } else if self.unread_bytes > 0 {
            self.unread_bytes = 0;
            // What a long record needed is given back when the next one is read, which may be never.
            self.connection.read_tls(&mut Nothing).ok();
        }
    }

    /// Counts the bytes of a record that has not come whole.
    pub fn count_unread(&mut self) {
        self.counted_bytes = self.unread_bytes;
    }

    /// Forgets how many were counted, and says so.
    pub fn uncount(&mut self) -> usize {
        mem::take(&mut self.counted_bytes)
    }

    /// How many were counted last.
    #[must_use]
    pub fn counted_bytes(&self) -> usize {
        self.counted_bytes
    }

    /// What has been decrypted: no bytes at the end, `None` where more is needed.
    fn decrypted(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.connection.reader().read(buffer) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            // The peer closed its socket without a word, as many do.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Some(0)),
            Err(error) => Err(error),
        }
    }

    /// Encrypts and writes as much as the socket takes, and at most one record more; how many bytes that were.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn write(&mut self, socket: &mut impl Write, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        let (mut taken, mut last) = (0, 0);
        while self.flush(socket)? && taken < total {
            last = if taken == 0 {
                self.connection.writer().write_vectored(slices)?
            } else {
                let mut rest = slices.to_vec();
                let mut rest = &mut rest[..];
                IoSlice::advance_slices(&mut rest, taken);
                self.connection.writer().write_vectored(rest)?
            };
            taken += last;
        }
        if self.is_waiting() && last > 0 {
            self.keep_unsent(last);
        }
        Ok(taken)
    }

    /// Writes what is encrypted; whether nothing is left of it.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn flush(&mut self, socket: &mut impl Write) -> io::Result<bool> {
        while self.connection.wants_write() {
            match self.connection.write_tls(socket) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        if self.unsent_bytes > 0 {
            self.keep_unsent(0);
        }
        Ok(true)
    }

    fn keep_unsent(&mut self, bytes: usize) {
        self.metrics.tls_unsent(self.unsent_bytes, bytes);
        self.unsent_bytes = bytes;
    }

    /// Whether something is encrypted that the socket has not taken.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.connection.wants_write()
    }

    /// Tells the peer, once, that nothing follows; whether it and everything before it has gone into the socket.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn close(&mut self, socket: &mut impl Write) -> io::Result<bool> {
        self.connection.send_close_notify();
        self.flush(socket)
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        self.keep_unsent(0);
        self.metrics.tls_closed();
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records")
            .field("version", &self.connection.protocol_version())
            .finish_non_exhaustive()
    }
}

/// Notes whether a read took everything that the socket had.
struct Tap<'a, S> {
    socket: &'a mut S,
    emptied: bool,
}

impl<S: Read> Read for Tap<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = loop {
            match self.socket.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome?,
            }
        };
        self.emptied = bytes < buffer.len();
        Ok(bytes)
    }
}

/// A socket that has nothing now.
struct Nothing;

impl Read for Nothing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// The most that one record holds (RFC 8446 §5.1).
const RECORD_BYTES: usize = 16 * 1024;
