//! A healthy room: somebody publishes, others read, while a test does its worst beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use roomful_protocol::id::RoomAlias;
use roomful_protocol::payload::Payload;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::raw::{Connect, RawClient};
use crate::server::Server;
use crate::wait::within;

/// A publisher and a few readers of one room, each on a connection of its own, from [`Healthy::start`] to [`Healthy::check`].
#[derive(Debug)]
pub struct Healthy {
    stopping: Arc<AtomicBool>,
    publisher: JoinSet<()>,
    readers: JoinSet<Vec<Duration>>,
}

/// What the readers of a healthy room have seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// Events that each reader got.
    pub events: usize,
    /// The median time from a publish to its event, of all readers.
    pub median: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Healthy {
    /// Begins, on a server that needs no token.
    pub async fn start(server: &Server) -> Self {
        Self::start_with(&Connect::to(server), None).await
    }

    /// Begins, for a user who may read and publish in [`ROOM`].
    ///
    /// # Panics
    /// The user may not.
    pub async fn start_with(connect: &Connect, token: Option<&str>) -> Self {
        let epoch = Instant::now();
        let stopping = Arc::new(AtomicBool::new(false));
        let mut readers = JoinSet::new();
        for _ in 0..READERS {
            let (client, _) = member(connect, token).await;
            readers.spawn(read(client, epoch));
        }
        let mut publisher = JoinSet::new();
        let (client, room) = member(connect, token).await;
        publisher.spawn(publish(client, room, epoch, Arc::clone(&stopping)));
        Self {
            stopping,
            publisher,
            readers,
        }
    }

    /// Ends, and checks that every reader has got every event once, in order, and none of them late.
    ///
    /// # Panics
    /// One has not.
    pub async fn check(self) -> Health {
        self.stopping.store(true, Ordering::Relaxed);
        within("the healthy publisher", self.publisher.join_all()).await;
        let readers = within("the healthy readers", self.readers.join_all()).await;
        let events = readers[0].len();
        assert!(
            readers.iter().all(|delays| delays.len() == events),
            "the readers of one room have not seen the same"
        );
        let mut delays = readers.concat();
        delays.sort_unstable();
        let health = Health {
            events,
            median: delays[delays.len() / 2],
            longest: delays[delays.len() - 1],
        };
        assert!(
            health.median < MEDIAN_MAX && health.longest < LONGEST_MAX,
            "the healthy room was disturbed: {health:?}"
        );
        health
    }
}

/// Publishes the time until it is told to stop, and [`END`] then.
async fn publish(
    mut client: RawClient,
    room: RoomAlias,
    epoch: Instant,
    stopping: Arc<AtomicBool>,
) {
    while !stopping.load(Ordering::Relaxed) {
        let sent = epoch.elapsed().as_micros().to_string();
        client.publish(room, Payload::text(&sent)).await;
        sleep(INTERVAL).await;
    }
    client.publish(room, Payload::text(END)).await;
}

/// Reads to the end; gives the time that each event took.
async fn read(mut client: RawClient, epoch: Instant) -> Vec<Duration> {
    let mut delays = Vec::new();
    let mut next = None;
    loop {
        let entry = client.event().await.entry;
        assert!(
            next.is_none_or(|next| entry.offset == next),
            "{} where {next:?} was next",
            entry.offset
        );
        next = Some(entry.offset.next());
        let text = String::from_utf8(entry.payload.bytes.to_vec()).unwrap();
        if text == END {
            return delays;
        }
        let sent = Duration::from_micros(text.parse().unwrap());
        delays.push(epoch.elapsed().saturating_sub(sent));
    }
}

async fn member(connect: &Connect, token: Option<&str>) -> (RawClient, RoomAlias) {
    let mut client = connect.open().await.unwrap();
    client.hello_with(token, None).await.unwrap();
    let room = client.join(ROOM).await.room;
    (client, room)
}

/// The room's name.
pub const ROOM: &str = "chat:healthy";

const READERS: usize = 4;

/// Half of what a connection may send.
const INTERVAL: Duration = Duration::from_millis(20);

const END: &str = "end";

/// What a person notices.
const MEDIAN_MAX: Duration = Duration::from_millis(100);

/// A test's machine is shared, and now and then it stands still; a server that waits for an attacker waits for longer.
const LONGEST_MAX: Duration = Duration::from_secs(3);
