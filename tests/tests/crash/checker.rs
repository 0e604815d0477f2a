//! Compares everybody's record with what the server has.

use std::collections::HashMap;

use roomful_protocol::frame::{Direction, Entry, OpId};
use roomful_protocol::id::{Epoch, Offset};
use roomful_protocol::position::Position;
use roomful_tests::publisher::{Ack, Record, payload};
use roomful_tests::{RawClient, Server};

use super::watcher::Seen;

/// Every acknowledged operation stands where it was said to, once, with its payload; each producer's are in the order of their
/// sequences; and watchers have seen exactly the log. Gives the number of entries.
pub(crate) async fn check(server: &Server, records: &[Record], seen: &[Seen]) -> usize {
    let mut entries = 0;
    for seen in seen {
        let log = log(server, &seen.room).await;
        entries += log.entries.len();
        assert_eq!(seen.at, Position::new(log.epoch, log.head()));
        let behind = log.entries.len() - seen.entries.len();
        assert_eq!(log.entries[behind..], seen.entries, "{}", seen.room);
        let places = log.places();
        for record in records.iter().filter(|record| record.room == seen.room) {
            for Ack {
                sequence,
                published,
                ..
            } in &record.acked
            {
                let op = OpId {
                    producer: record.producer,
                    sequence: *sequence,
                };
                let room = &seen.room;
                let entry = places.get(&op).map(|place| &log.entries[*place]);
                let Some(entry) = entry else {
                    panic!(
                        "{room}: {op:?} was acknowledged at {} and is lost",
                        published.position
                    )
                };
                let position = Position::new(log.epoch, entry.offset);
                assert_eq!(position, published.position, "{room}: {op:?} has moved");
                assert_eq!(entry.time_ms, published.time_ms, "{room}: {op:?}");
                assert_eq!(entry.payload, payload(op.producer, op.sequence), "{room}");
            }
            let mut last = None;
            let mut of_producer: Vec<_> = record.acked.clone();
            of_producer.sort_unstable_by_key(|ack| ack.sequence);
            for ack in of_producer {
                let offset = Some(ack.published.position.offset);
                let room = &seen.room;
                assert!(last < offset, "{room}: {:?} is out of order", ack.sequence);
                last = offset;
            }
        }
    }
    entries
}

/// A room's whole log.
struct Log {
    epoch: Epoch,
    entries: Vec<Entry>,
}

impl Log {
    fn head(&self) -> Offset {
        self.entries.last().map_or(Offset(0), |entry| entry.offset)
    }

    /// Where each operation stands.
    fn places(&self) -> HashMap<OpId, usize> {
        let mut places = HashMap::new();
        for (place, entry) in self.entries.iter().enumerate() {
            let before = places.insert(entry.op.unwrap(), place);
            assert_eq!(before, None, "{:?} is there twice", entry.op);
        }
        places
    }
}

async fn log(server: &Server, room: &str) -> Log {
    let mut client = RawClient::connect(server).await;
    let joined = client.join(room).await;
    let epoch = joined.head.epoch;
    let mut entries: Vec<Entry> = Vec::new();
    let mut from = Position::new(epoch, Offset(0));
    loop {
        let page = client
            .history(joined.room, Some(from), Direction::Forward, 1_000)
            .await;
        for entry in page.entries {
            assert_eq!(entry.offset.0, 1 + entries.len() as u64, "{room} has a gap");
            entries.push(entry);
        }
        match page.next {
            Some(next) => from = next,
            None => return Log { epoch, entries },
        }
    }
}
