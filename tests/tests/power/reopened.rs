//! The real journal on a directory as the disk shows it after the power came back.

use std::collections::HashSet;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use roomful_protocol::frame::{Direction, Entry};
use roomful_protocol::id::{Epoch, Offset, RoomId, RoomName, TenantId};
use roomful_server::clock::Clock;
use roomful_server::journal::local::{Headroom, Local, LocalJournal, Notify, Settings};
use roomful_server::journal::{
    Completion, CompletionResult, HistoryBounds, Journal as _, Outcome, ReadQuery, Ticket,
};
use roomful_server::shard::message::ShardId;
use roomful_tests::publisher::{Ack, Record, payload};

/// Opens the journal and compares every room with what was acknowledged there before a time. Gives how many acks that were, and
/// what is wrong.
pub(crate) fn check(data_dir: &Path, records: &[Record], until_us: u64) -> (usize, Vec<String>) {
    let settings = Settings {
        headroom: Headroom {
            percent: 0,
            bytes_min: 0,
        },
        ..Settings::new(Epoch(1 << 52), Clock::system())
    };
    let local = match Local::open(data_dir, settings) {
        Ok(local) => local,
        Err(error) => return (0, vec![format!("it can't be opened: {error:?}")]),
    };
    if local.is_damaged() {
        return (0, vec!["it is damaged".to_owned()]);
    }
    let (tell, told) = channel();
    let notify: Arc<dyn Notify> = Arc::new(Told(Mutex::new(tell)));
    local.start(&notify).unwrap();
    let mut reader = Reader {
        journal: local.of_shard(ShardId(0)),
        told,
    };
    let (mut acks, mut wrong) = (0, Vec::new());
    let rooms: HashSet<_> = records.iter().map(|record| record.room.as_str()).collect();
    for room in rooms {
        let of_room = records.iter().filter(|record| record.room == room);
        match reader.room(room) {
            Err(error) => wrong.push(format!("{room}: {error}")),
            Ok((epoch, entries)) => {
                check_log(room, &entries, &mut wrong);
                for record in of_room {
                    for ack in record.acked.iter().filter(|ack| micros(ack) < until_us) {
                        acks += 1;
                        wrong.extend(missing(record, ack, epoch, &entries));
                    }
                }
            }
        }
    }
    if let Err(error) = local.close() {
        wrong.push(format!("it can't be closed: {error}"));
    }
    (acks, wrong)
}

/// Entries stand one behind the other, none twice, each producer's in their order.
fn check_log(room: &str, entries: &[Entry], wrong: &mut Vec<String>) {
    let mut last = std::collections::HashMap::new();
    for (number, entry) in entries.iter().enumerate() {
        if entry.offset.0 != number as u64 + 1 {
            wrong.push(format!("{room}: {:?} is at place {number}", entry.offset));
        }
        let op = entry.op.unwrap();
        if last.insert(op.producer, op.sequence) >= Some(op.sequence) {
            wrong.push(format!("{room}: {op:?} is there twice, or out of order"));
        }
    }
}

/// What is wrong about an operation that was acknowledged.
fn missing(record: &Record, ack: &Ack, epoch: Epoch, entries: &[Entry]) -> Option<String> {
    let position = ack.published.position;
    let place = usize::try_from(position.offset.0 - 1).unwrap();
    let payload = payload(record.producer, ack.sequence);
    let is_there = entries.get(place).is_some_and(|entry| {
        let op = entry.op.unwrap();
        (op.producer, op.sequence) == (record.producer, ack.sequence) && entry.payload == payload
    });
    let is_lost = !is_there || epoch != position.epoch;
    is_lost.then(|| {
        let Record { room, producer, .. } = record;
        format!(
            "{room}: {producer:?} {:?} was acknowledged at {position} and is not there",
            ack.sequence
        )
    })
}

/// When an ack came.
pub(crate) fn micros(ack: &Ack) -> u64 {
    let since = ack.at.duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_micros()).unwrap()
}

/// A shard that only reads.
struct Reader {
    journal: LocalJournal,
    told: Receiver<Completion>,
}

impl Reader {
    /// The epoch and all entries of a room.
    fn room(&mut self, name: &str) -> Result<(Epoch, Vec<Entry>), String> {
        let room = RoomId {
            tenant: TenantId::default_tenant(),
            name: RoomName::parse(name.as_bytes()).unwrap(),
        };
        let bounds = HistoryBounds {
            entries_max: usize::MAX,
            bytes_max: usize::MAX,
            age_max_ms: u64::MAX,
        };
        let opening = self.journal.open(&room, bounds);
        let CompletionResult::Opened(opened) = self.end_of(&opening)? else {
            panic!("an open ends as one")
        };
        let opened = opened.map_err(|error| error.to_string())?;
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let query = ReadQuery {
                from: entries.last().map_or(Offset(0), |entry| entry.offset),
                until: opened.head,
                direction: Direction::Forward,
                entries_max: 10_000,
                bytes_max: 64 << 20,
            };
            let reading = self.journal.read(&room, query);
            let CompletionResult::Read(page) = self.end_of(&reading)? else {
                panic!("a read ends as one")
            };
            let page = page.map_err(|error| error.to_string())?;
            if page.entries.is_empty() {
                break;
            }
            entries.extend(page.entries.iter().map(|entry| Entry::clone(entry)));
        }
        if entries.len() as u64 != opened.head.0 {
            return Err(format!(
                "{} of {:?} can be read",
                entries.len(),
                opened.head
            ));
        }
        Ok((opened.epoch, entries))
    }

    fn end_of<T>(&mut self, outcome: &Outcome<T>) -> Result<CompletionResult, String> {
        let ticket: Ticket = match outcome {
            Outcome::Later(ticket) => *ticket,
            Outcome::Failed(error) => return Err(error.to_string()),
            Outcome::Done(_) => panic!("a disk takes its time"),
        };
        self.journal.flush();
        let completion = self.told.recv_timeout(PATIENCE).unwrap();
        assert_eq!(completion.ticket, ticket, "nothing else is asked");
        Ok(completion.result)
    }
}

#[derive(Debug)]
struct Told(Mutex<Sender<Completion>>);

impl Notify for Told {
    fn completed(&self, _: ShardId, completions: Vec<Completion>) {
        let tell = self.0.lock().unwrap();
        for completion in completions {
            // Nobody listens any more once everything is read.
            drop(tell.send(completion));
        }
    }

    fn wake(&self, _: RoomId) {}
}

const PATIENCE: Duration = Duration::from_secs(60);
