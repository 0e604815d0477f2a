//! What has been ordered, read again: pages of history, and chunks for members who are behind.
//!
//! The room calls it with requests and with what the journal has read. No reader sees beyond what has been
//! sent to the hubs, and a chunk follows the reader's place without a gap or says that the history is gone.
//! Entries near the head come from the room's tail, all others from the journal; chunks and pages are
//! bounded. A few chunks are kept for a second, since many come back from the same place in one
//! moment. What the hubs do with chunks is theirs.

use std::sync::Arc;

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{Direction, Entry, EntryKind, HistoryPage, Reply};
use roomful_protocol::id::Offset;
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;

use super::{Context, KeptChunk, Read, Room, RoomTimer};
use crate::journal::{JournalError, Outcome, ReadPage, ReadQuery};
use crate::shard::message::{
    Answer, Batch, Chunk, Message, OpenRoom, Origin, Refusal, ShardId, Turn,
};

impl Room {
    /// What there is of the room.
    pub(super) fn describe(&self, to: Origin, context: &mut Context<'_>) {
        let answer = Answer::Room(Some(OpenRoom {
            head: self.head(),
            occupancy: self.members.occupancy(),
        }));
        context.send(to.shard, Message::Answer { to, answer });
    }

    /// A page beside a position, as far as entries have been sent to the hubs.
    pub(super) fn history(
        &mut self,
        to: Origin,
        from: Option<Position>,
        direction: Direction,
        limit: usize,
        context: &mut Context<'_>,
    ) {
        if from.is_some_and(|from| from.epoch != self.log.epoch) {
            let text = format!(
                "the position is of another epoch; the room's is {}",
                self.log.epoch
            );
            return context.reply(to, Err(Refusal::new(ErrorCode::BadValue, text)));
        }
        let end = self.log.distributed.next();
        let start = match direction {
            Direction::Forward => from.map_or(Offset(0), |from| from.offset),
            Direction::Backward => from.map_or(end, |from| from.offset.min(end)),
        };
        let query = ReadQuery {
            from: start,
            until: self.log.distributed,
            direction,
            entries_max: limit,
            bytes_max: self.settings.chunk_bytes_max,
        };
        self.read(query, Read::History { to, direction }, context);
    }

    /// What follows a hub's place: from the tail where that reaches back far enough, else from the journal.
    pub(super) fn pull(&mut self, shard: ShardId, from: Position, context: &mut Context<'_>) {
        let head = self.head();
        if from == head {
            let nothing = Arc::new(self.batch(from.offset, Vec::new()));
            return self.send_chunk(shard, from, Some(nothing), context);
        }
        if from.epoch != head.epoch || from > head || !self.keeps(from.offset, context) {
            return self.send_chunk(shard, from, None, context);
        }
        if let Some(batch) = self.kept_chunk(from.offset) {
            return self.send_chunk(shard, from, Some(batch), context);
        }
        if self
            .log
            .tail
            .front()
            .is_some_and(|oldest| oldest.offset <= from.offset.next())
        {
            let until = self.log.distributed;
            let wanted = self
                .log
                .tail
                .iter()
                .filter(|entry| entry.offset > from.offset && entry.offset <= until);
            let mut bytes = 0;
            let bounded = wanted.take_while(|entry| {
                let fits = bytes <= self.settings.chunk_bytes_max;
                bytes += entry.payload.bytes.len();
                fits
            });
            let entries = bounded
                .take(self.settings.chunk_entries_max)
                .cloned()
                .collect();
            let batch = self.keep_chunk(from.offset, entries, context);
            return self.send_chunk(shard, from, Some(batch), context);
        }
        let query = ReadQuery {
            from: from.offset,
            until: self.log.distributed,
            direction: Direction::Forward,
            entries_max: self.settings.chunk_entries_max,
            bytes_max: self.settings.chunk_bytes_max,
        };
        self.read(query, Read::Pull { shard, from }, context);
    }

    /// Asks the journal, and notes what for where it answers later.
    pub(super) fn read(&mut self, query: ReadQuery, read: Read, context: &mut Context<'_>) {
        match context.journal.read(&self.id, query) {
            Outcome::Done(page) => self.read_done(read, Ok(page), context),
            Outcome::Later(ticket) => {
                context.tickets.push(ticket);
                self.log.reads.insert(ticket, read);
            }
            Outcome::Failed(error) => self.read_done(read, Err(error), context),
        }
    }

    /// The journal has answered: a chunk for a hub, or a page for a client.
    pub(super) fn read_done(
        &mut self,
        read: Read,
        outcome: Result<ReadPage, JournalError>,
        context: &mut Context<'_>,
    ) {
        match (read, outcome) {
            (Read::Pull { shard, from }, outcome) => {
                // A page that does not follow the reader's place, or could not be read, is one it can't have:
                // it is told so.
                let entries = outcome.ok().map(|page| page.entries);
                let follows = |entries: &Vec<Arc<Entry>>| {
                    entries
                        .first()
                        .is_some_and(|entry| entry.offset == from.offset.next())
                };
                let batch = entries
                    .filter(follows)
                    .map(|entries| self.keep_chunk(from.offset, entries, context));
                self.send_chunk(shard, from, batch, context);
            }
            (Read::Unread(counting), outcome) => self.count_page(*counting, outcome, context),
            (Read::History { to, direction }, Ok(page)) => {
                context.reply(to, Ok(Reply::History(self.history_page(&page, direction))));
            }
            (Read::History { to, .. }, Err(_)) => {
                let text = "the storage could not be read; try again";
                context.reply(to, Err(Refusal::later(ErrorCode::Internal, text, 1000)));
            }
        }
    }

    /// The page, with the position to go on from while there is more.
    pub(super) fn history_page(&self, page: &ReadPage, direction: Direction) -> HistoryPage {
        let next = match direction {
            Direction::Forward => page
                .entries
                .last()
                .filter(|last| last.offset < self.log.distributed),
            Direction::Backward => page
                .entries
                .first()
                .filter(|first| first.offset > page.first),
        };
        let next = next.map(|entry| Position::new(self.log.epoch, entry.offset));
        HistoryPage {
            entries: page.entries.iter().map(|entry| shown(entry)).collect(),
            next,
        }
    }

    /// A chunk that was read lately and still is what follows an offset.
    fn kept_chunk(&self, after: Offset) -> Option<Arc<Batch>> {
        let head = self.log.distributed;
        let is_right = |kept: &&KeptChunk| {
            let last = kept.batch.last();
            kept.batch.after == after && (last < kept.head || last == head)
        };
        let kept = self.log.chunks.iter().find(is_right)?;
        Some(Arc::clone(&kept.batch))
    }

    /// A chunk, without what newer entries have replaced, kept for a while unless memory is short.
    fn keep_chunk(
        &mut self,
        after: Offset,
        entries: Vec<Arc<Entry>>,
        context: &mut Context<'_>,
    ) -> Arc<Batch> {
        let entries = match &self.kept {
            None => entries,
            Some(kept) => {
                let conflated = entries
                    .iter()
                    .map(|entry| kept.committed().conflated(entry));
                conflated.collect()
            }
        };
        let batch = Arc::new(self.batch(after, entries));
        if context.is_short {
            return batch;
        }
        if self.log.chunks.is_empty() {
            context.timers.push((CHUNKS_MS, RoomTimer::Chunks));
        }
        self.log.chunks.retain(|kept| kept.batch.after != after);
        if self.log.chunks.len() == CHUNKS_MAX {
            self.log.chunks.pop_front();
        }
        self.log.chunks.push_back(KeptChunk {
            batch: Arc::clone(&batch),
            bytes: 2 * batch.payload_bytes() + batch.entries.len() * CHUNK_ENTRY_BYTES,
            head: self.log.distributed,
        });
        batch
    }

    /// Sends a hub its chunk; without entries, it says that they are gone.
    pub(super) fn send_chunk(
        &mut self,
        shard: ShardId,
        from: Position,
        batch: Option<Arc<Batch>>,
        context: &mut Context<'_>,
    ) {
        let live = batch
            .as_ref()
            .is_some_and(|batch| batch.last() == self.log.distributed);
        let skipped = self
            .downstreams
            .iter_mut()
            .find(|downstream| downstream.shard == shard && downstream.skipped);
        if let Some(downstream) = skipped {
            // The hub stands further back than it knows. It must learn that first, or this chunk would seem
            // to run ahead of it.
            downstream.skipped = false;
            context.send(
                shard,
                Message::Turn(Turn::missed(self.alias, self.log.distributed)),
            );
        }
        context
            .counters
            .events_recovered
            .add(batch.as_ref().map_or(0, |batch| batch.entries.len() as u64));
        context.send(
            shard,
            Message::Chunk(Chunk {
                room: self.alias,
                from,
                batch,
                live,
            }),
        );
    }

    /// Entries behind an offset, to be encoded once for all who get them.
    pub(super) fn batch(&self, after: Offset, entries: Vec<Arc<Entry>>) -> Batch {
        Batch::new(self.alias, self.log.epoch, after, entries)
    }
}

/// An entry as history shows it: that the server has one of its own there, and nothing of what it holds.
fn shown(entry: &Entry) -> Entry {
    match entry.kind {
        EntryKind::System => Entry {
            payload: Payload::binary(&b""[..]),
            ..entry.clone()
        },
        _ => entry.clone(),
    }
}

/// How long chunks are kept, in milliseconds: who comes back in one moment comes within seconds.
const CHUNKS_MS: u64 = 1_000;

/// What an entry takes in a chunk beside its payload: its place there, and the frame around it in two formats.
const CHUNK_ENTRY_BYTES: usize = 192;

/// Chunks that a room keeps: the steps of those who come back from far behind together.
const CHUNKS_MAX: usize = 8;
