//! One room that everybody follows: 200 members are cut at random while 20 publishers write and are cut as well.
//!
//! At the end of a round every member has every offset once, in order, and every publish took effect once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use roomful_protocol::codec::Encoding;
use roomful_protocol::frame::{OpId, Publish, ServerFrame};
use roomful_protocol::id::{Offset, ProducerId, RequestId, RoomAlias, Sequence};
use roomful_protocol::payload::Payload;
use roomful_tests::raw::{Incoming, placements, reply_to};
use roomful_tests::wait::PATIENCE;
use roomful_tests::{Connect, Follower, RawClient, Server};
use tokio::sync::watch as goals;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::token;

const FOLLOWERS: usize = 200;
const PUBLISHERS: u64 = 20;
const ROOM: &str = "default:soak";

/// One round; gives the number of cuts.
pub(crate) async fn chaos(
    server: &Server,
    publishers: &mut Vec<Publisher>,
    length: Duration,
    random: &mut StdRng,
) -> u64 {
    let (goal, _) = goals::channel(None);
    let mut following = JoinSet::new();
    for (number, (placement, encoding)) in placements()
        .zip(Encoding::ALL.into_iter().cycle())
        .take(FOLLOWERS)
        .enumerate()
    {
        let connect = Connect::to(server).encoding(encoding).placement(placement);
        let token = token(&format!("follower-{number}"));
        let mut follower = Follower::new(connect, ROOM).token(token);
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
pub(crate) struct Publisher {
    connect: Connect,
    user: String,
    producer: ProducerId,
    next: Sequence,
    resume: Option<String>,
    unacknowledged: VecDeque<(RequestId, OpId)>,
    acknowledged: BTreeMap<OpId, Offset>,
}

impl Publisher {
    /// All of them, before the first round.
    pub(crate) fn all(server: &Server) -> Vec<Self> {
        (0..PUBLISHERS)
            .map(|number| Self::new(server, number))
            .collect()
    }

    fn new(server: &Server, number: u64) -> Self {
        let placement = placements().nth(usize::try_from(number).unwrap()).unwrap();
        Self {
            connect: Connect::to(server).placement(placement),
            user: format!("publisher-{number}"),
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
                .hello_with(Some(&token(&self.user)), self.resume.as_deref())
                .await
                .unwrap()
                .resume,
        );
        let room = client.join_as(ROOM, self.producer, self.next).await;
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
