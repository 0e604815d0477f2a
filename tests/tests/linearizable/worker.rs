//! A client that changes and reads what everybody else in its room changes too, and keeps a record of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{
    Change, ClientFrame, Error, Join, JoinProducer, Lock, LockReply, LockRequest, OpId, Reply,
    ServerFrame, State, StateRequest,
};
use roomful_protocol::id::{Key, KeyPrefix, ProducerId, RoomAlias, Sequence, UserId};
use roomful_protocol::position::Position;
use roomful_tests::Connect;
use roomful_tests::keyed::{delete, fenced, key, prefixes, put};
use roomful_tests::link::{Session, enter_again};
use roomful_tests::raw::{Incoming, RawClient, join, reply_to};

use tokio::time::sleep;

use super::history::{Answer, Asked, Operation, Stamps};

/// What all clients share.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) stamps: Stamps,
    /// Operations so far.
    pub(crate) begun: AtomicU64,
    /// How many there are to be.
    pub(crate) wanted: u64,
}

/// One client.
pub(crate) struct Worker {
    connect: Connect,
    room: String,
    plan: Arc<Plan>,
    random: StdRng,
    producer: ProducerId,
    next: u64,
    session: Option<Session>,
    /// The versions that it has heard of last.
    versions: BTreeMap<Key, Position>,
    /// Every grant that it ever got; the last is not the only one that it writes under.
    fences: Vec<(Key, Position)>,
    /// The lock that it got last, until it has given it back.
    held: Option<(Key, Position)>,
    /// A write without an answer that it sends again on the next connection.
    open: Option<usize>,
    operations: Vec<Operation>,
}

/// What a client leaves behind.
pub(crate) struct Record {
    pub(crate) room: String,
    pub(crate) operations: Vec<Operation>,
}

impl Worker {
    pub(crate) fn new(
        connect: Connect,
        room: String,
        number: usize,
        plan: Arc<Plan>,
        random: StdRng,
    ) -> Self {
        Self {
            connect,
            room,
            plan,
            random,
            producer: ProducerId(1 + number as u64),
            next: 1,
            session: None,
            versions: BTreeMap::new(),
            fences: Vec::new(),
            held: None,
            open: None,
            operations: Vec::new(),
        }
    }

    /// Works until there are enough operations, and until its last write is answered.
    pub(crate) async fn run(mut self) -> Record {
        while !self.is_done() {
            let before = self.plan.stamps.next();
            if self.random.random_range(0..2) == 0 {
                self.session = None;
            }
            let (producer, next) = (self.producer, Sequence(self.next));
            let (mut client, session, joined) =
                enter_again(&self.connect, self.session.take(), || Join {
                    producer: Some(JoinProducer { producer, next }),
                    state: prefixes(&[""]),
                    echo: false,
                    ..join(&self.room)
                })
                .await;
            let at = self.plan.stamps.next();
            // Somebody who comes is told of the state like somebody who asks.
            if let Some(page) = joined.state {
                let (asked, reply) = (Asked::State(everything()), Ok(Reply::State(page)));
                self.operations.push(Operation {
                    user: session.user.clone(),
                    invoked: before,
                    attempts: 1,
                    asked,
                    answer: None,
                });
                self.answered(self.operations.len() - 1, at, reply);
            }
            let user = session.user.clone();
            self.session = Some(session);
            if self.work(&mut client, &user, joined.room).await.is_some() {
                // It is done; its locks and places in queues are left to the end of its presence.
                return self.record();
            }
            match self.random.random_range(0..3) {
                0 => client.cut(),
                _ => drop(client),
            }
            if self.random.random_range(0..3) == 0 {
                self.open = None;
            }
        }
        self.record()
    }

    fn record(self) -> Record {
        Record {
            room: self.room,
            operations: self.operations,
        }
    }

    fn is_done(&self) -> bool {
        self.open.is_none() && self.plan.begun.load(Ordering::Relaxed) >= self.plan.wanted
    }

    /// Works on one connection; none where it ends before the work does.
    async fn work(&mut self, client: &mut RawClient, user: &UserId, room: RoomAlias) -> Option<()> {
        while !self.is_done() {
            let place = match self.open.take() {
                Some(place) => place,
                None => self.begin(user),
            };
            let operation = &mut self.operations[place];
            operation.attempts += 1;
            let is_write = matches!(operation.asked, Asked::State(StateRequest::Write { .. }));
            let asked = operation.asked.clone();
            if self.held.is_some() && self.random.random_range(0..NAPS_APART) == 0 {
                sleep(NAP).await;
            }
            // Some leave in the middle of an operation.
            let leaves = self.random.random_range(0..LEAVES_APART) == 0;
            match exchange(client, room, asked, leaves).await {
                Some(reply) if !is_passing(&reply) => {
                    let at = self.plan.stamps.next();
                    self.answered(place, at, reply);
                }
                _ => {
                    self.open = is_write.then_some(place);
                    return None;
                }
            }
        }
        Some(())
    }

    /// Thinks of something to do.
    fn begin(&mut self, user: &UserId) -> usize {
        self.plan.begun.fetch_add(1, Ordering::Relaxed);
        let asked = match self.random.random_range(0..100) {
            0..60 => {
                let op = OpId {
                    producer: self.producer,
                    sequence: Sequence(self.next),
                };
                self.next += 1;
                let changes = self.changes(&format!("{}/{}", op.producer.0, op.sequence.0));
                Asked::State(StateRequest::Write {
                    op: Some(op),
                    changes,
                })
            }
            60..68 => Asked::State(everything()),
            _ => Asked::Lock(self.lock()),
        };
        self.operations.push(Operation {
            user: user.clone(),
            invoked: self.plan.stamps.next(),
            attempts: 0,
            asked,
            answer: None,
        });
        self.operations.len() - 1
    }

    /// What a write changes, and on which conditions; its text is nobody else's.
    fn changes(&mut self, text: &str) -> Vec<Change> {
        let any = KEYS[self.random.random_range(0..KEYS.len())];
        match self.random.random_range(0..20) {
            0..9 => vec![self.as_known(put(any, text))],
            9..11 => vec![self.as_known(delete(any))],
            11..14 => vec![Change {
                if_absent: true,
                ..put(any, text)
            }],
            14..17 => {
                let all = KEYS.map(|name| self.as_known(put(name, text)));
                all.to_vec()
            }
            _ => {
                let Some((lock, fence)) = self.fence() else {
                    return vec![self.as_known(put(any, text))];
                };
                vec![fenced(
                    put(&format!("of-{lock}"), text),
                    lock.as_str(),
                    fence,
                )]
            }
        }
    }

    /// On the condition that the key is as this client has seen it last.
    fn as_known(&self, change: Change) -> Change {
        Change {
            if_version: self.versions.get(&change.key).copied(),
            if_absent: !self.versions.contains_key(&change.key),
            ..change
        }
    }

    /// Takes a lock, and gives it back, keeps it, or forgets that it has it.
    fn lock(&mut self) -> LockRequest {
        let lock = match self.random.random_range(0..SELDOM_APART) {
            0 => SELDOM,
            _ => LOCKS[self.random.random_range(0..LOCKS.len())],
        };
        let (lock, held) = (key(lock), self.held.clone());
        match (self.random.random_range(0..12), held) {
            (0, _) => LockRequest::Get {
                after: None,
                limit: 100,
            },
            (1..4, Some((lock, fence))) => LockRequest::Renew {
                lock,
                fence,
                ttl_ms: LEASE_MS,
            },
            (4..8, Some((lock, _))) => {
                self.held = None;
                LockRequest::Release { lock }
            }
            (8, _) => LockRequest::Release { lock },
            _ => LockRequest::Acquire {
                lock,
                ttl_ms: LEASE_MS,
                queue: self.random.random(),
            },
        }
    }

    /// Mostly the newest grant that it knows of, sometimes an old one, or that of a lock that nobody may have taken since.
    fn fence(&mut self) -> Option<(Key, Position)> {
        let mut fences = self.fences.iter();
        let fence = match self.random.random_range(0..4) {
            0 => fences.nth_back(self.random.random_range(1..8)),
            1 => fences.rfind(|(lock, _)| lock.as_str() == SELDOM),
            _ => fences.next_back(),
        };
        fence.cloned()
    }

    /// Keeps an answer, and what there is to learn from it.
    fn answered(&mut self, place: usize, at: u64, reply: Result<Reply, Error>) {
        let operation = &mut self.operations[place];
        match (&operation.asked, &reply) {
            (Asked::State(StateRequest::Write { changes, .. }), Ok(Reply::Published(told))) => {
                for change in changes {
                    self.versions.insert(change.key.clone(), told.position);
                }
            }
            (_, Ok(Reply::State(page))) => {
                self.versions.clear();
                let items = page.items.iter();
                self.versions
                    .extend(items.map(|item| (item.key.clone(), item.version)));
            }
            (
                Asked::Lock(LockRequest::Acquire { lock, .. }),
                Ok(Reply::Lock(LockReply::Granted { fence, .. })),
            ) => {
                self.fences.push((lock.clone(), *fence));
                self.held = self.fences.last().cloned();
            }
            (_, Err(error)) => {
                let items = error.current.iter();
                self.versions
                    .extend(items.map(|item| (item.key.clone(), item.version)));
            }
            _ => {}
        }
        operation.answer = Some(Answer { at, reply });
    }
}

/// Sends a request, and waits for what comes of it; none: the connection ended before that was known.
async fn exchange(
    client: &mut RawClient,
    room: RoomAlias,
    asked: Asked,
    leaves: bool,
) -> Option<Result<Reply, Error>> {
    let request = client.new_request();
    let frame: ClientFrame = match asked {
        Asked::State(what) => State {
            request,
            room,
            what,
        }
        .into(),
        Asked::Lock(what) => Lock {
            request,
            room,
            what,
        }
        .into(),
    };
    client.try_frame(&frame).await.ok()?;
    if leaves {
        return None;
    }
    loop {
        match client.incoming().await {
            Incoming::Frame(ServerFrame::Left(_)) | Incoming::Closed(_) => return None,
            Incoming::Frame(frame) if reply_to(&frame) == Some(request) => match frame {
                ServerFrame::Ok(ok) => return Some(Ok(ok.reply)),
                ServerFrame::Error(error) => return Some(Err(error)),
                _ => return None,
            },
            Incoming::Frame(_) => {}
        }
    }
}

/// Whether the server could not tell, or would have to be asked again.
fn is_passing(reply: &Result<Reply, Error>) -> bool {
    let code = reply.as_ref().err().and_then(|error| error.code.known());
    matches!(
        code,
        Some(ErrorCode::OutcomeUnknown | ErrorCode::NotJoined | ErrorCode::Overloaded)
    )
}

/// All of the state.
pub(crate) fn everything() -> StateRequest {
    StateRequest::Get {
        prefix: KeyPrefix::parse("").unwrap(),
        after: None,
        limit: 1_000,
    }
}

/// Few, so that clients meet.
const KEYS: [&str; 4] = ["a", "b", "c", "d"];

const LOCKS: [&str; 3] = ["m", "n", "o"];

/// A lock that is free most of the time, often over a snapshot and the restart behind it.
const SELDOM: &str = "p";

/// Requests about locks, of all that there are, for one about that lock.
const SELDOM_APART: usize = 150;

/// Short: some end while their holders are away or busy.
const LEASE_MS: u64 = 100;

/// Operations after which a client that holds a lock is held up for longer than its lease, on average.
const NAPS_APART: u32 = 400;

const NAP: Duration = Duration::from_millis(2 * LEASE_MS);

/// Operations after which a client's connection ends in the middle of one, on average.
const LEAVES_APART: u32 = 400;
