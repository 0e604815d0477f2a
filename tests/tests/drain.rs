//! The end of a process with people in it: all are told when to come back, over a window, and all do come back to the process in its place.
//!
//! `ROOMFUL_DRAIN_MEMBERS=5000` runs it as large as that, with the window that a server has by default.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]
#![expect(clippy::print_stdout, reason = "how it was spread is worth reading")]

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt as _;
use roomful_client::{Client, JoinOptions, Options, RoomEvent};
use roomful_protocol::error::CloseCode;
use roomful_protocol::frame::{
    ClientFrame, Event, Goaway, Join, Joined, Publish, Recovery, Reply, ServerFrame,
};
use roomful_protocol::id::{Offset, UserId};
use roomful_protocol::payload::Payload;
use roomful_tests::raw::{Closed, Incoming, join};
use roomful_tests::wait::{PATIENCE, until, within};
use roomful_tests::{Connect, RawClient, Server, http};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_tungstenite::tungstenite;

/// Everybody who was connected is told within the window, and finds its way to the process that waits for the port. There it goes on where it was: whatever was acknowledged is in the room, and nobody is told `reset`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_are_told_over_the_window_and_come_back_to_the_next_process() {
    let scale = Scale::of_environment();
    let mut server = Server::with_config(&scale.config()).await;
    let mut members = JoinSet::new();
    for number in 0..scale.members {
        let (connect, room) = (Connect::to(&server), scale.room(number));
        let member = Member::enter(connect, room, number < scale.rooms).await;
        members.spawn(member.until_back());
    }
    let library = Library::connect(&server).await;

    // Before it is sent, which takes a shell some time: nobody can be told too early by this.
    let signalled = Instant::now();
    server.process().signal("TERM").await;
    let ready = async || http::get(server.address(), "/readyz", &[]).await.status;
    until("the server isn't ready any more", PATIENCE, async || {
        ready().await == 503
    })
    .await;
    let late = Member::enter(Connect::to(&server), scale.room(0), false).await;
    assert!(
        signalled.elapsed() < scale.accept,
        "the machine is too slow for this window"
    );
    members.spawn(late.until_back());
    let old = server.let_go();
    sleep(scale.accept).await;
    server.start_again().await;
    let replaced = signalled.elapsed();
    let ended = old.ended().await;
    assert!(ended.status.success(), "{:?}", ended.status);

    let stories = members.join_all().await;
    scale.report(&stories, signalled, replaced);
    check_window(&scale, &stories, signalled);
    check_acknowledged(&stories);
    library.check_back().await;
    let metrics = server.metrics().await;
    assert_eq!(metrics.value("roomful_resets_total"), 0.0);
    assert_eq!(metrics.value("roomful_panics_total"), 0.0);
}

/// A second signal ends the process at once, with an exit code that says so.
#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let config = "[shutdown]\ndrain_accept_ms = 60000\nspread_ms = 60000\nlimit_ms = 120000\n";
    for second in ["TERM", "INT"] {
        let mut server = Server::with_config(config).await;
        let mut client = RawClient::connect(&server).await;
        server.process().signal("TERM").await;
        until("the server isn't ready any more", PATIENCE, async || {
            http::get(server.address(), "/readyz", &[]).await.status == 503
        })
        .await;
        // It goes on until then.
        client.join("chat:second").await;
        server.process().signal(second).await;
        let ended = server.ended().await;
        assert_eq!(ended.status.code(), Some(130), "{}", ended.output);
    }
}

/// A process without connections has nothing to wait for.
#[tokio::test]
async fn an_idle_process_ends_at_once() {
    let config = "[shutdown]\ndrain_accept_ms = 60000\nspread_ms = 60000\nlimit_ms = 120000\n";
    let mut server = Server::with_config(config).await;
    RawClient::connect(&server).await.close().await;
    until("nobody is connected", PATIENCE, async || {
        server.metrics().await.value("roomful_connections") == 0.0
    })
    .await;
    let ended = server.terminate().await;
    assert!(ended.status.success(), "{:?}", ended.status);
}

/// Without `listen.wait_ms` a port that is taken is a mistake, told at once.
#[tokio::test]
async fn a_taken_port_is_told_at_once() {
    let server = Server::start().await;
    let arguments = ["serve", "--listen", &server.address().to_string()];
    let second = roomful_tests::process::Process::run(server.dir(), &arguments, &[]).await;
    assert_eq!(second.status.code(), Some(1));
    assert!(
        second.output.contains("another process has it"),
        "{}",
        second.output
    );
}

/// How large the test is.
struct Scale {
    members: usize,
    rooms: usize,
    accept: Duration,
    spread: Duration,
}

impl Scale {
    #[expect(clippy::disallowed_methods, reason = "tests have no config")]
    fn of_environment() -> Self {
        let members = std::env::var("ROOMFUL_DRAIN_MEMBERS").map(|text| text.parse().unwrap());
        match members {
            Ok(members) => Self {
                members,
                rooms: members.div_ceil(50),
                accept: Duration::from_secs(5),
                spread: Duration::from_secs(12),
            },
            Err(_) => Self {
                members: 300,
                rooms: 10,
                accept: Duration::from_secs(2),
                spread: Duration::from_secs(3),
            },
        }
    }

    fn config(&self) -> String {
        format!(
            "[listen]\nwait_ms = 60000\n[shutdown]\ndrain_accept_ms = {}\nspread_ms = {}\nlimit_ms = 25000\n",
            self.accept.as_millis(),
            self.spread.as_millis()
        )
    }

    fn room(&self, number: usize) -> String {
        format!("chat:drain-{}", number % self.rooms)
    }

    fn report(&self, stories: &[Story], signalled: Instant, replaced: Duration) {
        let mut slices = BTreeMap::<u128, usize>::new();
        for story in stories {
            let told = story.told.duration_since(signalled);
            *slices.entry(told.as_millis() / 500).or_default() += 1;
        }
        let slices: Vec<_> = slices
            .iter()
            .map(|(slice, count)| format!("{:.1} s: {count}", *slice as f64 / 2.0))
            .collect();
        let mut away: Vec<_> = stories.iter().map(|story| story.away).collect();
        away.sort_unstable();
        let refused: usize = stories.iter().map(|story| story.refused).sum();
        let acked: usize = stories.iter().map(|story| story.acked.len()).sum();
        println!(
            "{} goaways in a window of {:?} after {:?}, by half seconds after the signal: {}\n\
             the next process listened after {replaced:.1?}; {refused} handshakes were answered 503 meanwhile\n\
             {} back, nobody told reset; away: median {:.1?}, longest {:.1?}; {acked} publishes acknowledged before",
            stories.len(),
            self.spread,
            self.accept,
            slices.join(", "),
            stories.len(),
            away[away.len() / 2],
            away[away.len() - 1],
        );
    }
}

/// What became of a member.
struct Story {
    room: String,
    /// When it was told to go.
    told: Instant,
    reconnect_after: Duration,
    /// How long it had no connection.
    away: Duration,
    /// How often it was not let in.
    refused: usize,
    /// Where it stood when it had come back.
    last: Offset,
    /// What it had published, and been told that it is stored.
    acked: Vec<Offset>,
}

/// A member that does what the protocol says, and keeps account.
struct Member {
    connect: Connect,
    client: RawClient,
    user: UserId,
    room: String,
    joined: Joined,
    publishes: bool,
    last: Offset,
    acked: Vec<Offset>,
}

impl Member {
    async fn enter(connect: Connect, room: String, publishes: bool) -> Self {
        let mut client = connect.open().await.unwrap();
        let user = client.hello().await.user;
        let joined = client.join(&room).await;
        Self {
            connect,
            client,
            user,
            room,
            last: joined.position.offset,
            joined,
            publishes,
            acked: Vec::new(),
        }
    }

    /// Follows its room until it is told to go, and comes back.
    async fn until_back(mut self) -> Story {
        let (goaway, told) = self.until_told().await;
        let reconnect_after = Duration::from_millis(goaway.reconnect_after_ms);
        let mut refused = 0;
        sleep(reconnect_after).await;
        let mut client = loop {
            match self.connect.open().await {
                Ok(client) => break client,
                Err(error) => {
                    let asked = asked_to_wait(&error);
                    refused += usize::from(asked.is_some());
                    let ceiling_ms = 500 << refused.min(4);
                    let jitter_ms = rand::rng().random_range(0..ceiling_ms);
                    sleep(asked.unwrap_or_default() + Duration::from_millis(jitter_ms)).await;
                }
            }
        };
        let away = told.elapsed();
        let welcome = client.hello_with(None, Some(&goaway.resume)).await.unwrap();
        assert_eq!((welcome.resumed, &welcome.user), (true, &self.user));
        let mut position = self.joined.position;
        position.offset = self.last;
        let again = client
            .join_with(Join {
                since: Some(position),
                ..join(&self.room)
            })
            .await
            .unwrap();
        assert_ne!(again.recovery, Recovery::Reset);
        assert_eq!(again.position, position);
        while self.last < again.head.offset {
            self.follow(&client.event().await);
        }
        client.close().await;
        Story {
            room: self.room,
            told,
            reconnect_after,
            away,
            refused,
            last: self.last,
            acked: self.acked,
        }
    }

    async fn until_told(&mut self) -> (Goaway, Instant) {
        let mut due = interval(Duration::from_millis(250));
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = None;
        loop {
            let incoming = tokio::select! {
                incoming = self.client.incoming_forever() => incoming,
                _ = due.tick(), if self.publishes && told.is_none() => {
                    self.publish().await;
                    continue;
                }
            };
            match incoming {
                Incoming::Frame(ServerFrame::Event(event)) => self.follow(&event),
                Incoming::Frame(ServerFrame::Ok(ok)) => {
                    if let Reply::Published(published) = ok.reply {
                        self.acked.push(published.position.offset);
                    }
                }
                Incoming::Frame(ServerFrame::Goaway(goaway)) => {
                    assert!(told.is_none(), "told twice");
                    told = Some((goaway, Instant::now()));
                }
                Incoming::Frame(_) => {}
                Incoming::Closed(Closed { code, .. }) => {
                    assert_eq!(code, Some(CloseCode::Restart.code()));
                    return told.expect("nobody is closed without a goaway");
                }
            }
        }
    }

    fn follow(&mut self, event: &Event) {
        assert_eq!(event.entry.offset, self.last.next(), "{}", self.room);
        self.last = event.entry.offset;
    }

    async fn publish(&mut self) {
        let publish = Publish {
            request: self.client.new_request(),
            room: self.joined.room,
            op: None,
            payload: Payload::text("on the way"),
        };
        let mut bytes = Vec::new();
        let frame = ClientFrame::from(publish);
        self.client.encoding().encode(&frame, &mut bytes);
        let message = tungstenite::Message::binary(bytes);
        // The server may have closed in this moment; then the outcome is unknown, and counts nowhere.
        drop(self.client.try_send(message).await);
    }
}

/// How long a refused handshake asks to wait; nothing where nobody listens.
fn asked_to_wait(error: &tungstenite::Error) -> Option<Duration> {
    let tungstenite::Error::Http(response) = error else {
        return None;
    };
    assert_eq!(response.status(), 503);
    let seconds = response.headers()["retry-after"].to_str().unwrap();
    Some(Duration::from_secs(seconds.parse().unwrap()))
}

/// Nobody is told before the window, and the window is used.
fn check_window(scale: &Scale, stories: &[Story], signalled: Instant) {
    let told = |story: &Story| story.told.duration_since(signalled);
    let first = stories.iter().map(told).min().unwrap();
    let last = stories.iter().map(told).max().unwrap();
    assert!(
        first >= scale.accept,
        "{first:?} is before {:?}",
        scale.accept
    );
    let (window, used) = (scale.spread, last - first);
    assert!(used >= window / 2, "{used:?} of {window:?} was used");
    let early = stories
        .iter()
        .filter(|story| told(story) < first + window / 2);
    let early = early.count();
    assert!(
        early * 4 < stories.len() * 3,
        "{early} of {} in the first half",
        stories.len()
    );
    let waits: Vec<_> = stories.iter().map(|story| story.reconnect_after).collect();
    let longest = waits.iter().max().unwrap();
    assert!(*longest < Duration::from_secs(1), "{longest:?}");
    let distinct = waits.iter().collect::<std::collections::BTreeSet<_>>();
    assert!(distinct.len() > 50, "the waits are random: {distinct:?}");
}

/// What was acknowledged is there for everybody in the room who has come back.
fn check_acknowledged(stories: &[Story]) {
    let mut compared = 0;
    for publisher in stories.iter().filter(|story| !story.acked.is_empty()) {
        let acked = publisher.acked.iter().max().unwrap();
        for member in stories {
            if member.room == publisher.room {
                assert!(member.last >= *acked, "{} of {acked:?}", member.last.0);
                compared += 1;
            }
        }
    }
    assert!(compared >= stories.len(), "every room has a publisher");
}

/// The client library, left to itself.
struct Library {
    client: Client,
    user: Option<UserId>,
    events: roomful_client::RoomEvents,
    room: roomful_client::Room,
}

impl Library {
    async fn connect(server: &Server) -> Self {
        let client = Client::connect(&server.websocket_url(), Options::default())
            .await
            .unwrap();
        let (room, events) = client
            .join("chat:library", JoinOptions::default())
            .await
            .unwrap();
        room.publish(Payload::text("before")).await.unwrap();
        Self {
            user: client.user(),
            client,
            events,
            room,
        }
    }

    async fn check_back(mut self) {
        within("an ack", self.room.publish(Payload::text("after")))
            .await
            .unwrap();
        let mut heard = Vec::new();
        while heard.len() < 2 {
            match within("an event", self.events.next()).await.unwrap() {
                RoomEvent::Event { entry, .. } => heard.push(entry.payload),
                RoomEvent::Reset(position) => panic!("reset to {position}"),
                _ => {}
            }
        }
        assert_eq!(heard, [Payload::text("before"), Payload::text("after")]);
        assert_eq!(self.client.user(), self.user);
        self.client.close().await;
    }
}
