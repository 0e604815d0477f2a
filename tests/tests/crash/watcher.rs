//! Follows one room over all kills, and checks that it gets every entry once and in order.

use std::time::Duration;

use roomful_protocol::frame::{Entry, Join, Recovery, ServerFrame};
use roomful_protocol::position::Position;
use roomful_tests::Connect;
use roomful_tests::link::enter;
use roomful_tests::publisher::Phase;
use roomful_tests::raw::{Incoming, RawClient, join};
use tokio::sync::watch;
use tokio::time::timeout;

/// A member that only reads.
pub(crate) struct Watcher {
    connect: Connect,
    room: String,
    at: Option<Position>,
    /// Where the room stood when it came last.
    head: Option<Position>,
    entries: Vec<Entry>,
}

/// What a watcher has seen.
pub(crate) struct Seen {
    pub(crate) room: String,
    pub(crate) at: Position,
    pub(crate) entries: Vec<Entry>,
}

impl Watcher {
    pub(crate) fn new(connect: Connect, room: String) -> Self {
        Self {
            connect,
            room,
            at: None,
            head: None,
            entries: Vec::new(),
        }
    }

    /// Follows until it is told to stop, and then up to the head.
    pub(crate) async fn run(mut self, phase: watch::Receiver<Phase>) -> Seen {
        loop {
            let since = self.at;
            let (mut client, joined) = enter(&self.connect, || Join {
                since,
                ..join(&self.room)
            })
            .await;
            match since {
                None => self.at = Some(joined.position),
                Some(since) => {
                    assert_ne!(joined.recovery, Recovery::Reset, "{}: {since}", self.room);
                    assert_eq!(joined.position.epoch, since.epoch);
                }
            }
            self.head = Some(joined.head);
            let is_last = *phase.borrow() == Phase::Read;
            if self.follow(&mut client, is_last, &phase).await {
                return Seen {
                    room: self.room,
                    at: self.at.unwrap(),
                    entries: self.entries,
                };
            }
        }
    }

    /// Reads from one connection; whether it is done for good.
    async fn follow(
        &mut self,
        client: &mut RawClient,
        is_last: bool,
        phase: &watch::Receiver<Phase>,
    ) -> bool {
        loop {
            if is_last && self.at >= self.head {
                return true;
            }
            let Ok(incoming) = timeout(LOOK, client.incoming_forever()).await else {
                // Once everybody has finished it comes again, to learn where the end is.
                if !is_last && *phase.borrow() == Phase::Read {
                    return false;
                }
                continue;
            };
            match incoming {
                Incoming::Frame(ServerFrame::Event(event)) => self.take(event.entry),
                Incoming::Frame(ServerFrame::Advance(advance)) => {
                    panic!("{}: nothing is left out for it: {advance:?}", self.room)
                }
                Incoming::Frame(ServerFrame::Left(_)) | Incoming::Closed(_) => return false,
                Incoming::Frame(_) => {}
            }
        }
    }

    fn take(&mut self, entry: Entry) {
        let at = self.at.as_mut().unwrap();
        assert_eq!(entry.offset, at.offset.next(), "{}", self.room);
        at.offset = entry.offset;
        self.entries.push(entry);
    }
}

const LOOK: Duration = Duration::from_millis(100);
