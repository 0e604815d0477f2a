//! What a connection could not write yet: lanes of whole messages, made when a write would block and dropped
//! when the last byte is out.
//!
//! The shard fills it and drains it when the socket takes more. Order holds inside a lane; between lanes the
//! more important one goes first. Everything is counted in bytes and messages. It keeps plain messages, so
//! that what waits can still be replaced by something newer. What happens at a bound is decided by the
//! caller, lane by lane; presence has no lane, since a reader that missed it asks for the difference.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};
use roomful_protocol::id::{MemberId, RoomAlias, SignalKey};

/// Messages that wait for the socket.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Chosen for the next write; the first may be half out, so nothing can overtake it.
    sending: VecDeque<Bytes>,
    /// Replies, memberships, heartbeats, goodbyes.
    control: VecDeque<Bytes>,
    /// Events of rooms.
    log: VecDeque<(RoomAlias, Bytes)>,
    /// Signals; the newest of each key.
    signals: VecDeque<WaitingSignal>,
    sizes: Sizes,
    log_bytes: usize,
    signal_bytes: usize,
}

#[derive(Debug)]
struct WaitingSignal {
    room: RoomAlias,
    from: MemberId,
    key: Option<SignalKey>,
    bytes: Bytes,
}

/// How much waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes.
    pub bytes: usize,
    /// Messages, or shared runs of them.
    pub messages: usize,
}

/// What became of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalFate {
    /// It waits.
    Queued,
    /// It waits in the place of an older one.
    Conflated,
    /// There was no room for it.
    Dropped,
}

impl Outbox {
    /// An outbox that begins with the rest of a write.
    #[must_use]
    pub fn with_rest(rest: impl IntoIterator<Item = Bytes>) -> Self {
        let mut outbox = Self::default();
        for bytes in rest {
            outbox.sizes.add(&bytes);
            outbox.sending.push_back(bytes);
        }
        outbox
    }

    /// How much waits.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// How much of the log waits, in bytes.
    #[must_use]
    pub fn log_bytes(&self) -> usize {
        self.log_bytes
    }

    /// How much waits beside the log and signals, in bytes: replies above all.
    #[must_use]
    pub fn reply_bytes(&self) -> usize {
        self.sizes.bytes - self.log_bytes - self.signal_bytes
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sizes.messages == 0
    }

    /// Appends to the control lane.
    pub fn push_control(&mut self, bytes: Bytes) {
        self.sizes.add(&bytes);
        self.control.push_back(bytes);
    }

    /// Appends to the log lane.
    pub fn push_log(&mut self, room: RoomAlias, bytes: Bytes) {
        self.sizes.add(&bytes);
        self.log_bytes += bytes.len();
        self.log.push_back((room, bytes));
    }

    /// Puts a signal in the place of the sender's older one of the same key, or at the end while the lane has room.
    pub fn push_signal(
        &mut self,
        room: RoomAlias,
        from: MemberId,
        key: Option<&SignalKey>,
        bytes: Bytes,
        lane_bytes_max: usize,
    ) -> SignalFate {
        let same = |waiting: &WaitingSignal| {
            key.is_some()
                && waiting.key.as_ref() == key
                && waiting.from == from
                && waiting.room == room
        };
        if let Some(index) = self.signals.iter().position(same) {
            let older = &self.signals[index].bytes;
            if self.signal_bytes - older.len() + bytes.len() > lane_bytes_max {
                return SignalFate::Dropped;
            }
            self.sizes.remove(older);
            self.sizes.add(&bytes);
            self.signal_bytes = self.signal_bytes + bytes.len() - older.len();
            // Behind what came after the older one: signals of one sender keep their order.
            if let Some(mut waiting) = self.signals.remove(index) {
                waiting.bytes = bytes;
                self.signals.push_back(waiting);
            }
            return SignalFate::Conflated;
        }
        if self.signal_bytes + bytes.len() > lane_bytes_max {
            return SignalFate::Dropped;
        }
        self.sizes.add(&bytes);
        self.signal_bytes += bytes.len();
        self.signals.push_back(WaitingSignal {
            room,
            from,
            key: key.cloned(),
            bytes,
        });
        SignalFate::Queued
    }

    /// Forgets what waits for a room that the connection has left.
    pub fn forget_room(&mut self, room: RoomAlias) {
        let (sizes, log_bytes, signal_bytes) =
            (&mut self.sizes, &mut self.log_bytes, &mut self.signal_bytes);
        self.log.retain(|(of, bytes)| {
            let keep = *of != room;
            if !keep {
                sizes.remove(bytes);
                *log_bytes -= bytes.len();
            }
            keep
        });
        self.signals.retain(|waiting| {
            let keep = waiting.room != room;
            if !keep {
                sizes.remove(&waiting.bytes);
                *signal_bytes -= waiting.bytes.len();
            }
            keep
        });
    }

    /// Chooses what goes into the next write, the more important lanes first.
    pub fn choose(&mut self) {
        while self.sending.len() < WRITE_SLICES_MAX {
            let next = self
                .control
                .pop_front()
                .or_else(|| self.pop_log())
                .or_else(|| self.pop_signal());
            let Some(bytes) = next else { return };
            self.sending.push_back(bytes);
        }
    }

    /// What was chosen, as slices for one write.
    #[must_use]
    pub fn slices(&self) -> Vec<IoSlice<'_>> {
        self.sending
            .iter()
            .map(|bytes| IoSlice::new(bytes))
            .collect()
    }

    /// That many bytes of what was chosen are out.
    pub fn written(&mut self, mut bytes: usize) {
        self.sizes.bytes -= bytes;
        while let Some(first) = self.sending.front_mut() {
            if bytes < first.len() {
                first.advance(bytes);
                return;
            }
            bytes -= first.len();
            self.sizes.messages -= 1;
            self.sending.pop_front();
        }
    }

    /// What a connection that ends still has to say: the message that is half out, and the control lane where
    /// `replies_too`.
    pub fn into_last_words(mut self, replies_too: bool) -> impl Iterator<Item = Bytes> {
        let control = replies_too.then_some(self.control);
        let control = control.into_iter().flatten();
        self.sending.pop_front().into_iter().chain(control)
    }

    fn pop_log(&mut self) -> Option<Bytes> {
        let (_, bytes) = self.log.pop_front()?;
        self.log_bytes -= bytes.len();
        Some(bytes)
    }

    fn pop_signal(&mut self) -> Option<Bytes> {
        let waiting = self.signals.pop_front()?;
        self.signal_bytes -= waiting.bytes.len();
        Some(waiting.bytes)
    }
}

impl Sizes {
    fn add(&mut self, bytes: &Bytes) {
        self.bytes += bytes.len();
        self.messages += 1;
    }

    fn remove(&mut self, bytes: &Bytes) {
        self.bytes -= bytes.len();
        self.messages -= 1;
    }
}

/// Slices in one gathered write: enough for a turn's messages, few enough for the kernel's fast path.
const WRITE_SLICES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: RoomAlias = RoomAlias(1);

    fn drain(outbox: &mut Outbox) -> Vec<u8> {
        outbox.choose();
        let out: Vec<u8> = outbox
            .slices()
            .iter()
            .flat_map(|slice| slice.to_vec())
            .collect();
        outbox.written(out.len());
        out
    }

    fn key(text: &str) -> SignalKey {
        SignalKey::parse(text).unwrap()
    }

    #[test]
    fn lanes_leave_in_order_of_importance_after_the_rest_of_a_write() {
        let mut outbox = Outbox::with_rest([Bytes::from_static(b"rest ")]);
        outbox.push_signal(ROOM, MemberId(1), None, Bytes::from_static(b"signal "), 100);
        outbox.push_log(ROOM, Bytes::from_static(b"log "));
        outbox.push_control(Bytes::from_static(b"control "));
        assert_eq!(
            outbox.sizes(),
            Sizes {
                bytes: 24,
                messages: 4
            }
        );
        assert_eq!(drain(&mut outbox), b"rest control log signal ");
        assert!(outbox.is_empty());
        assert_eq!(outbox.sizes(), Sizes::default());
    }

    #[test]
    fn a_message_that_is_half_out_is_finished_first() {
        let mut outbox = Outbox::with_rest([Bytes::from_static(b"abc")]);
        outbox.choose();
        outbox.written(1);
        outbox.push_control(Bytes::from_static(b"x"));
        assert_eq!(drain(&mut outbox), b"bcx");
    }

    #[test]
    fn a_newer_signal_replaces_the_older_one_of_its_key_and_sender() {
        let mut outbox = Outbox::default();
        let push = |outbox: &mut Outbox, from: u64, text: &'static str, bytes: &'static str| {
            outbox.push_signal(
                ROOM,
                MemberId(from),
                Some(&key(text)),
                Bytes::from_static(bytes.as_bytes()),
                8,
            )
        };
        assert_eq!(push(&mut outbox, 1, "k", "one "), SignalFate::Queued);
        assert_eq!(push(&mut outbox, 1, "k", "two "), SignalFate::Conflated);
        assert_eq!(push(&mut outbox, 2, "k", "b "), SignalFate::Queued);
        assert_eq!(push(&mut outbox, 1, "l", "long"), SignalFate::Dropped);
        assert_eq!(drain(&mut outbox), b"two b ");
    }

    #[test]
    fn a_larger_signal_does_not_burst_the_lane_in_the_place_of_a_smaller_one() {
        let mut outbox = Outbox::default();
        let mut push = |bytes: &'static [u8]| {
            outbox.push_signal(
                ROOM,
                MemberId(1),
                Some(&key("k")),
                Bytes::from_static(bytes),
                8,
            )
        };
        assert_eq!(push(b"small"), SignalFate::Queued);
        assert_eq!(push(b"much larger"), SignalFate::Dropped);
        assert_eq!(drain(&mut outbox), b"small");
    }

    #[test]
    fn a_room_that_was_left_is_forgotten() {
        let mut outbox = Outbox::default();
        outbox.push_log(ROOM, Bytes::from_static(b"gone"));
        outbox.push_log(RoomAlias(2), Bytes::from_static(b"stays"));
        outbox.push_signal(ROOM, MemberId(1), None, Bytes::from_static(b"gone"), 100);
        outbox.forget_room(ROOM);
        assert_eq!(
            (outbox.sizes(), outbox.log_bytes()),
            (
                Sizes {
                    bytes: 5,
                    messages: 1
                },
                5
            )
        );
        assert_eq!(drain(&mut outbox), b"stays");
    }
}
