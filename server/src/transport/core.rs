//! What a shard's thread runs.

use crate::clock::Now;
use crate::shard::message::ConnectionId;
use crate::shard::{Host, Input, Shard};

/// A state machine that a thread feeds with what its sockets bring: the server's is [`Shard`].
///
/// A thread is compiled for its core, so a call of it costs no look-up. It is never called from within a call of
/// the [`Host`] that it was given.
pub trait Core {
    /// Handles one input. For each connection, [`Input::Opened`] is the first and [`Input::Gone`] the last, unless
    /// the core has ended it with [`Host::finish`].
    fn step(&mut self, input: Input<'_>, now: Now, host: &mut dyn Host);

    /// Ends a turn of the thread. It is called again for as long as the core is not idle.
    fn flush(&mut self, now: Now, host: &mut dyn Host);

    /// When [`Input::Tick`] is due, on the monotonic clock in milliseconds.
    fn next_tick_ms(&self) -> Option<u64>;

    /// Whether [`Core::flush`] would find nothing to do.
    fn is_idle(&self) -> bool;

    /// Whether a connection may be read. One that may not is read again after [`Host::read_again`] says so.
    fn is_reading(&self, connection: ConnectionId) -> bool;

    /// Longest message that a connection may send now, in bytes.
    fn message_bytes_max(&self, connection: ConnectionId) -> usize;

    /// Bytes that wait to be written to a connection, and would go with it.
    fn outbox_bytes(&self, connection: ConnectionId) -> usize;

    /// Bytes of a connection's messages that were taken and wait to be handled.
    fn backlog_bytes(&self, connection: ConnectionId) -> usize;
}

impl Core for Shard {
    fn step(&mut self, input: Input<'_>, now: Now, host: &mut dyn Host) {
        Self::step(self, input, now, host);
    }

    fn flush(&mut self, now: Now, host: &mut dyn Host) {
        // What is left over shows in `is_idle`.
        Self::flush(self, now, host);
    }

    fn next_tick_ms(&self) -> Option<u64> {
        Self::next_tick_ms(self)
    }

    fn is_idle(&self) -> bool {
        Self::is_idle(self)
    }

    fn is_reading(&self, connection: ConnectionId) -> bool {
        Self::is_reading(self, connection)
    }

    fn message_bytes_max(&self, connection: ConnectionId) -> usize {
        Self::message_bytes_max(self, connection)
    }

    fn outbox_bytes(&self, connection: ConnectionId) -> usize {
        Self::outbox_bytes(self, connection)
    }

    fn backlog_bytes(&self, connection: ConnectionId) -> usize {
        Self::backlog_bytes(self, connection)
    }
}
