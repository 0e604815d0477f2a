//! What a shard takes in when memory is short.
//!
//! Called with what would stay: a join, a presence value, a publish, a write of state, a page that its connection is slow to take. All of it can be sent again later, so the answer
//! is `overloaded` with a time, and nothing has changed. A room that holds little goes on publishing where the logs of
//! others have filled their part, and so does one whose new entries take the place of old ones.

use roomful_protocol::error::ErrorCode;
use roomful_protocol::id::RoomAlias;

use super::Shard;
use super::message::{Message, Refusal, Request};
use crate::metrics::MemoryShed;
use crate::room::{Asked, Awaited};

impl Shard {
    /// The answer to a request that memory doesn't suffice for; none where it does.
    pub(super) fn unaffordable(&self, alias: RoomAlias, request: &Request) -> Option<Message> {
        let is_over = || self.memory.is_over(self.id, &self.counters);
        let shed = match request {
            Request::Join(_) if is_over() => MemoryShed::Join,
            Request::SetPresence { value: Some(_), .. } if is_over() => MemoryShed::Presence,
            Request::WriteState { .. }
            | Request::SetTimer { .. }
            | Request::OnDisconnect { .. }
                if is_over() =>
            {
                MemoryShed::Write
            }
            Request::Publish { .. }
                if self.memory.is_log_over(self.id, &self.counters) && self.takes_more(alias) =>
            {
                MemoryShed::Publish
            }
            _ => return None,
        };
        let Asked { to, awaited } = Asked::of(request)?;
        self.counters.memory_sheds.of(shed).add(1);
        let refusal = short();
        Some(match awaited {
            Awaited::Joined => Message::Joined {
                to,
                room: alias,
                outcome: Err(refusal),
            },
            Awaited::Published | Awaited::Other => Message::Reply {
                to,
                outcome: Err(refusal),
            },
        })
    }

    /// Whether there is memory for a page, which waits here until its connection has taken it.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn afford_page(&self) -> Result<(), Refusal> {
        if !self.memory.is_over(self.id, &self.counters) {
            return Ok(());
        }
        self.counters.memory_sheds.of(MemoryShed::Page).add(1);
        Err(short())
    }

    /// Whether a room's log would grow, and holds more than a quarter of what a log of this shard holds on average.
    /// So the whole stays within a quarter more than its part, whoever comes when.
    fn takes_more(&self, alias: RoomAlias) -> bool {
        let Some(room) = self.rooms.get(&alias) else {
            return false;
        };
        let held = self.journals.held_by(room.id());
        let average = self.journals.held_bytes() / self.rooms.len().max(1);
        !held.is_full && held.bytes > average / 4
    }
}

fn short() -> Refusal {
    let text = "the server is short of memory";
    Refusal::later(ErrorCode::Overloaded, text, RETRY_MS)
}

/// Memory comes back as connections end and history ages: seldom at once, often within seconds.
const RETRY_MS: u64 = 2_000;
