//! Connections that come, go and are cut at random: nothing is lost, nothing doubled, and afterwards nothing is left over.
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use roomful_protocol::codec::Encoding;
use roomful_protocol::frame::{Join, JoinProducer, Leave, OpId, Publish, ServerFrame};
use roomful_protocol::id::{Offset, ProducerId, RequestId, RoomAlias, Sequence};
use roomful_protocol::payload::Payload;
use roomful_tests::raw::{Incoming, join, placements, reply_to};
use roomful_tests::seed::seeded;
use roomful_tests::server::UNLIMITED;
use roomful_tests::wait::{PATIENCE, until};
use roomful_tests::{Connect, Follower, RawClient, Server};
use tokio::sync::watch as goals;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

const FOLLOWERS: usize = 200;
const PUBLISHERS: u64 = 20;
const CHURNERS: usize = 100;
const ROOM: &str = "chat:soak";

/// A round of the short form, of which there are [`SHORT_ROUNDS`]; `ROOMFUL_SOAK_MINUTES` sets rounds of [`FULL_ROUND`], and then memory is judged.
const SHORT_ROUND: Duration = Duration::from_secs(4);
const SHORT_ROUNDS: usize = 3;
const FULL_ROUND: Duration = Duration::from_secs(30);

/// How much larger the process may be at the end of the second half of the rounds than at its beginning, along the line through all of them.
const GROWTH_MAX: f64 = 0.03;

/// The history and the windows are short, so that they are full after the second round and empty soon after each.
const CONFIG: &str = "
[session]
retention_ms = 2000
[namespaces]
chat = { presence_grace_ms = 1000, history_entries_max = 2000 }
default = { presence_grace_ms = 1000 }
doc = { presence_grace_ms = 1000 }
game = { presence_grace_ms = 1000, history_age_max_ms = 1000 }
auction = { presence_grace_ms = 1000 }
";

/// What must be as before once everybody has gone.
const GAUGES: [&str; 8] = [
    "roomful_connections",
    "roomful_rooms",
    "roomful_sessions",
    "roomful_members",
    "roomful_subscribers",
    "roomful_outbox_bytes",
    "roomful_outbox_messages",
    "roomful_tasks",
];

/// 200 members are cut at random while 20 publishers write and are cut as well, and 100 others come, join rooms of their own, publish, stop to read, leave,
/// close or are cut. Every member has every offset once, in order; every publish took effect once; afterwards all gauges, open files and threads are what
/// they were, and over the second half of the rounds the process does not grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn churn_loses_nothing_and_leaves_nothing() {
    let (rounds, length) = extent();
    let mut random = seeded("churn_loses_nothing_and_leaves_nothing");
    let server = Server::with_config(&format!("{UNLIMITED}{CONFIG}")).await;
    let mut before = server.metrics().await.values(&GAUGES);
    // The room that everybody follows has a history, so it stays.
    before.insert("roomful_rooms".to_owned(), 1.0);
    let mut publishers: Vec<Publisher> = (0..PUBLISHERS)
        .map(|number| Publisher::new(&server, number))
        .collect();
    let (mut resident, mut first) = (Vec::new(), None);
    for round in 1..=rounds {
        let (end, seed) = (Instant::now() + length, random.random());
        let (cuts, lives, ()) = tokio::join!(
            chaos(&server, &mut publishers, length, &mut random),
            churn(&server, end, seed),
            watch(&server, end),
        );
        settle(&server, &before).await;
        // The first round has started what is started when it is needed; a thread or a socket may end a moment late.
        let first = *first.get_or_insert(Sample::take(&server).await.counts());
        until("no more open files or threads", PATIENCE, || async {
            let (files, threads) = Sample::take(&server).await.counts();
            files <= first.0 && threads <= first.1
        })
        .await;
        let sample = Sample::take(&server).await;
        eprintln!("round {round}: {cuts} cuts, {lives} short lives, {sample:?}");
        resident.push(sample.resident_mib);
    }
    assert_eq!(server.metrics().await.value("roomful_panics_total"), 0.0);
    if length == FULL_ROUND {
        let growth = growth(&resident[rounds / 2..]);
        eprintln!(
            "resident {resident:.2?} MiB; the second half grew by {:.2} %",
            growth * 100.0
        );
        assert!(growth <= GROWTH_MAX, "resident memory grew by {growth}");
    }
}

/// What the process has at one moment.
#[derive(Debug)]
struct Sample {
    resident_mib: f64,
    files: usize,
    threads: usize,
    #[expect(dead_code, reason = "it is printed")]
    gauges: BTreeMap<String, f64>,
}

impl Sample {
    /// Open files and threads.
    fn counts(&self) -> (usize, usize) {
        (self.files, self.threads)
    }

    async fn take(server: &Server) -> Self {
        let metrics = server.metrics().await;
        let process = std::path::PathBuf::from(format!("/proc/{}", server.process().id()));
        let count = |folder: &str| {
            let listing = std::fs::read_dir(process.join(folder));
            listing.map_or(0, Iterator::count)
        };
        Self {
            resident_mib: metrics.value("process_resident_memory_bytes") / f64::from(1 << 20),
            files: count("fd"),
            threads: count("task"),
            gauges: metrics.values(&GAUGES),
        }
    }
}

/// Prints a sample every few seconds.
#[expect(clippy::print_stderr, reason = "the series is what a soak shows")]
async fn watch(server: &Server, end: Instant) {
    while Instant::now() + SAMPLE < end {
        sleep(SAMPLE).await;
        eprintln!("  {:?}", Sample::take(server).await);
    }
}

const SAMPLE: Duration = Duration::from_secs(5);

/// The growth along the line through the points (least squares), as a part of their mean.
fn growth(series: &[f64]) -> f64 {
    let count = f64::from(u32::try_from(series.len()).unwrap());
    let middle = (count - 1.0) / 2.0;
    let mean = series.iter().sum::<f64>() / count;
    let (mut rise, mut run) = (0.0, 0.0);
    for (index, value) in (0_u32..).zip(series) {
        let x = f64::from(index) - middle;
        rise += x * (value - mean);
        run += x * x;
    }
    if run == 0.0 {
        0.0
    } else {
        rise / run * (count - 1.0) / mean
    }
}

/// Short lives, one after the other, on many connections at once. Gives their number.
async fn churn(server: &Server, end: Instant, seed: u64) -> u64 {
    let mut random = StdRng::seed_from_u64(seed);
    let mut lives = JoinSet::new();
    for placement in placements().take(CHURNERS) {
        let connect = Connect::to(server)
            .placement(placement)
            .receive_buffer(4_096);
        let random = StdRng::seed_from_u64(random.random());
        lives.spawn(live(connect, end, random));
    }
    lives.join_all().await.iter().sum()
}

async fn live(connect: Connect, end: Instant, mut random: StdRng) -> u64 {
    let (mut count, mut resume) = (0, None::<String>);
    while Instant::now() < end {
        count += 1;
        let mut client = connect.open().await.unwrap();
        // Half of them come back as who they were.
        let again = resume.take().filter(|_| random.random());
        let welcome = client.hello_with(None, again.as_deref()).await.unwrap();
        resume = Some(welcome.resume);
        let room = client
            .join(&format!("game:{}", random.random_range(0..50)))
            .await
            .room;
        for _ in 0..random.random_range(0..5) {
            let text = "x".repeat(random.random_range(1..2_000));
            client.publish(room, Payload::text(text)).await;
        }
        if random.random_range(0..4) == 0 {
            // It stops to read while the others of its room go on.
            sleep(Duration::from_millis(random.random_range(100..1_500))).await;
        }
        match random.random_range(0..3) {
            0 => client.cut(),
            1 => client.close().await,
            _ => {
                let request = client.new_request();
                client.send(&Leave { request, room }.into()).await;
                client.close().await;
            }
        }
    }
    count
}

/// Waits for the windows to end, and for everything to be what it was.
async fn settle(server: &Server, before: &BTreeMap<String, f64>) {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let now = server.metrics().await.values(&GAUGES);
        if now == *before {
            return;
        }
        assert!(
            Instant::now() < end,
            "left over: {now:?}; before: {before:?}"
        );
        sleep(Duration::from_millis(50)).await;
    }
}

/// One round; gives the number of cuts.
async fn chaos(
    server: &Server,
    publishers: &mut Vec<Publisher>,
    length: Duration,
    random: &mut StdRng,
) -> u64 {
    let (goal, _) = goals::channel(None);
    let mut following = JoinSet::new();
    for (placement, encoding) in placements()
        .zip(Encoding::ALL.into_iter().cycle())
        .take(FOLLOWERS)
    {
        let mut follower = Follower::new(
            Connect::to(server).encoding(encoding).placement(placement),
            ROOM,
        );
        follower.attach().await;
        following.spawn(follow(
            follower,
            goal.subscribe(),
            StdRng::seed_from_u64(random.random()),
        ));
    }
    let end = Instant::now() + length;
    let mut publishing = JoinSet::new();
    for publisher in publishers.drain(..) {
        publishing.spawn(publisher.run(end, StdRng::seed_from_u64(random.random())));
    }
    let mut expected = BTreeSet::new();
    let mut head = Offset(0);
    for (publisher, sent, last) in publishing.join_all().await {
        expected.extend(sent);
        head = head.max(last);
        publishers.push(publisher);
    }
    goal.send_replace(Some(head));
    let followers = following.join_all().await;
    let (first, _) = &followers[0];
    let operations: BTreeSet<OpId> = first.operations().iter().copied().collect();
    assert_eq!(
        operations.len(),
        first.operations().len(),
        "an operation took effect twice"
    );
    assert_eq!(
        operations, expected,
        "what was acknowledged is not what arrived"
    );
    for (follower, _) in &followers {
        assert_eq!((follower.resets(), follower.at().offset), (0, head));
        assert_eq!(follower.digest(), first.digest());
    }
    followers.iter().map(|(_, cuts)| cuts).sum()
}

/// Follows and is cut, again and again, until the head is known and reached. Gives the number of cuts.
async fn follow(
    mut follower: Follower,
    mut goal: goals::Receiver<Option<Offset>>,
    mut random: StdRng,
) -> (Follower, u64) {
    let mut cuts = 0;
    let mut next_cut = Instant::now() + cut_after(&mut random);
    loop {
        let head = *goal.borrow();
        if head.is_some_and(|head| follower.at().offset >= head) {
            follower.close().await;
            return (follower, cuts);
        }
        tokio::select! {
            step = follower.step() => assert_eq!(step, roomful_tests::follower::Step::Frame, "the server closed"),
            () = sleep_until(next_cut), if head.is_none() => {
                follower.cut(&mut random);
                follower.attach().await;
                cuts += 1;
                next_cut = Instant::now() + cut_after(&mut random);
            }
            changed = goal.changed() => changed.unwrap(),
            () = sleep(PATIENCE), if head.is_some() => unreachable!("{} of {head:?}", follower.at()),
        }
    }
}

fn cut_after(random: &mut StdRng) -> Duration {
    Duration::from_millis(random.random_range(20..1_500))
}

/// Publishes with op ids, and sends again what was not acknowledged when it was cut.
struct Publisher {
    connect: Connect,
    producer: ProducerId,
    next: Sequence,
    resume: Option<String>,
    unacknowledged: VecDeque<(RequestId, OpId)>,
    acknowledged: BTreeMap<OpId, Offset>,
}

impl Publisher {
    fn new(server: &Server, number: u64) -> Self {
        let placement = placements().nth(usize::try_from(number).unwrap()).unwrap();
        Self {
            connect: Connect::to(server).placement(placement),
            producer: ProducerId(1_000 + number),
            next: Sequence(1),
            resume: None,
            unacknowledged: VecDeque::new(),
            acknowledged: BTreeMap::new(),
        }
    }

    /// Publishes until the end. Gives what this round published, and the highest offset that it got.
    async fn run(mut self, end: Instant, mut random: StdRng) -> (Self, Vec<OpId>, Offset) {
        let (mut client, mut room) = self.attach().await;
        let mut next_cut = Instant::now() + cut_after(&mut random);
        let mut next_publish = Instant::now();
        while Instant::now() < end || !self.unacknowledged.is_empty() {
            tokio::select! {
                incoming = client.incoming_forever() => match incoming {
                    Incoming::Frame(frame) => self.take(&frame),
                    Incoming::Closed(closed) => unreachable!("the server closed a publisher: {closed:?}"),
                },
                () = sleep_until(end), if Instant::now() < end => {}
                () = sleep_until(end + PATIENCE) => {
                    unreachable!("never acknowledged: {:?}", self.unacknowledged);
                }
                () = sleep_until(next_publish), if next_publish < end => {
                    self.publish(&mut client, room).await;
                    next_publish = Instant::now() + Duration::from_millis(random.random_range(20..180));
                }
                () = sleep_until(next_cut), if next_cut < end => {
                    client.cut();
                    (client, room) = self.attach().await;
                    next_cut = Instant::now() + cut_after(&mut random);
                }
            }
        }
        client.close().await;
        let acknowledged = std::mem::take(&mut self.acknowledged);
        let last = acknowledged.values().max().copied().unwrap_or_default();
        (self, acknowledged.into_keys().collect(), last)
    }

    async fn attach(&mut self) -> (RawClient, RoomAlias) {
        let mut client = self.connect.open().await.unwrap();
        self.resume = Some(
            client
                .hello_with(None, self.resume.as_deref())
                .await
                .unwrap()
                .resume,
        );
        let producer = Some(JoinProducer {
            producer: self.producer,
            next: self.next,
        });
        let room = client
            .join_with(Join {
                producer,
                echo: false,
                ..join(ROOM)
            })
            .await
            .unwrap()
            .room;
        for (request, op) in &mut self.unacknowledged {
            *request = client.new_request();
            client.send(&publish(*request, room, *op).into()).await;
        }
        (client, room)
    }

    async fn publish(&mut self, client: &mut RawClient, room: RoomAlias) {
        let op = OpId {
            producer: self.producer,
            sequence: self.next,
        };
        self.next = Sequence(self.next.0 + 1);
        let request = client.new_request();
        self.unacknowledged.push_back((request, op));
        client.send(&publish(request, room, op).into()).await;
    }

    fn take(&mut self, frame: &ServerFrame) {
        let Some(request) = reply_to(frame) else {
            return;
        };
        let Some(index) = self
            .unacknowledged
            .iter()
            .position(|(waiting, _)| *waiting == request)
        else {
            return;
        };
        match frame {
            ServerFrame::Ok(ok) => {
                let roomful_protocol::frame::Reply::Published(published) = &ok.reply else {
                    unreachable!("{ok:?}")
                };
                let (_, op) = self.unacknowledged.remove(index).unwrap();
                self.acknowledged.insert(op, published.position.offset);
            }
            other => unreachable!("a publish failed: {other:?}"),
        }
    }
}

/// 64 bytes that tell their operation.
fn publish(request: RequestId, room: RoomAlias, op: OpId) -> Publish {
    let text = format!("{}/{:0>60}", op.producer, op.sequence.0);
    Publish {
        request,
        room,
        op: Some(op),
        payload: Payload::text(text),
    }
}

/// How many rounds, and how long each is.
#[expect(clippy::disallowed_methods, reason = "tests have no config")]
fn extent() -> (usize, Duration) {
    let minutes = std::env::var("ROOMFUL_SOAK_MINUTES").ok();
    minutes.map_or((SHORT_ROUNDS, SHORT_ROUND), |minutes| {
        let minutes: usize = minutes.parse().unwrap();
        (minutes * 2, FULL_ROUND)
    })
}
