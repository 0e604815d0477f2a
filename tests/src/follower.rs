//! A member that follows one room over any number of connections, and checks that nothing is missing, doubled or out of order.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::RngExt as _;
use rand::rngs::StdRng;
use roomful_protocol::error::Retry;
use roomful_protocol::frame::{Entry, Join, Joined, OpId, Recovery, ServerFrame};
use roomful_protocol::id::{Offset, SessionId};
use roomful_protocol::position::Position;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::raw::{Closed, Connect, Incoming, RawClient, join};

/// A member of one room. It remembers its session and its position between connections, as a client library does.
#[derive(Debug)]
pub struct Follower {
    connect: Connect,
    room: String,
    token: Option<String>,
    client: Option<RawClient>,
    session: Option<(SessionId, String)>,
    at: Option<Position>,
    resets: u64,
    recoveries: u64,
    catch_ups: u64,
    operations: Vec<OpId>,
    digest: DefaultHasher,
    progress: Arc<AtomicU64>,
    /// Connections whose path is dead: open, and never read again. The newest two, since sockets are not endless.
    lost: Vec<RawClient>,
}

/// What a turn of [`Follower::step`] saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A frame.
    Frame,
    /// The end of the connection.
    Closed(Closed),
}

impl Follower {
    /// A member that has not connected yet.
    #[must_use]
    pub fn new(connect: Connect, room: &str) -> Self {
        Self {
            connect,
            room: room.to_owned(),
            token: None,
            client: None,
            session: None,
            at: None,
            resets: 0,
            recoveries: 0,
            catch_ups: 0,
            operations: Vec::new(),
            digest: DefaultHasher::new(),
            progress: Arc::default(),
            lost: Vec::new(),
        }
    }

    /// With a token.
    #[must_use]
    pub fn token(mut self, token: String) -> Self {
        self.token = Some(token);
        self
    }

    /// Where it stands.
    ///
    /// # Panics
    /// It has not joined yet.
    #[must_use]
    pub fn at(&self) -> Position {
        self.at.unwrap()
    }

    /// Where it stands, for others to watch.
    #[must_use]
    pub fn progress(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.progress)
    }

    /// How often what it held was void.
    #[must_use]
    pub const fn resets(&self) -> u64 {
        self.resets
    }

    /// How often a join brought back what it had missed.
    #[must_use]
    pub const fn recoveries(&self) -> u64 {
        self.recoveries
    }

    /// How often it was told that it has caught up.
    #[must_use]
    pub const fn catch_ups(&self) -> u64 {
        self.catch_ups
    }

    /// The op ids of the entries, in their order.
    #[must_use]
    pub fn operations(&self) -> &[OpId] {
        &self.operations
    }

    /// Of everything received, in order: equal for members that received the same.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest.finish()
    }

    /// The live connection.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn client(&mut self) -> &mut RawClient {
        self.client.as_mut().unwrap()
    }

    /// Connects, resumes the session, and joins from the last position.
    ///
    /// # Panics
    /// Any of that is refused.
    pub async fn attach(&mut self) -> Joined {
        let mut client = self.connect.open().await.unwrap();
        let resume = self.session.as_ref().map(|(_, resume)| resume.as_str());
        let welcome = client
            .hello_with(self.token.as_deref(), resume)
            .await
            .unwrap();
        self.session = Some((welcome.session, welcome.resume));
        self.client = Some(client);
        self.join().await
    }

    async fn join(&mut self) -> Joined {
        let wanted = Join {
            since: self.at,
            ..join(&self.room)
        };
        let joined = self.client().join_with(wanted).await.unwrap();
        match (joined.recovery, self.at) {
            (Recovery::Live, Some(at)) => assert_eq!((joined.position, joined.head), (at, at)),
            (Recovery::Recovering, Some(at)) => {
                assert_eq!(joined.position, at);
                self.recoveries += 1;
            }
            (Recovery::Reset, Some(_)) => self.resets += 1,
            (Recovery::Live, None) => {}
            (recovery, None) => panic!("{recovery:?} for a first join"),
        }
        self.at = Some(joined.position);
        self.progress
            .store(joined.position.offset.0, Ordering::Relaxed);
        joined
    }

    /// Takes the next frame, or the end of the connection. Cancel safe, unless the server ended the membership and it joins again.
    ///
    /// # Panics
    /// The frame leaves a gap, or comes twice.
    pub async fn step(&mut self) -> Step {
        match self.client().incoming_forever().await {
            Incoming::Frame(frame) => {
                self.take(frame).await;
                Step::Frame
            }
            Incoming::Closed(closed) => {
                self.client = None;
                Step::Closed(closed)
            }
        }
    }

    async fn take(&mut self, frame: ServerFrame) {
        match frame {
            ServerFrame::Event(event) => self.take_entry(&event.entry),
            ServerFrame::Advance(advance) => {
                assert!(
                    advance.offset > self.at().offset,
                    "from {} to {}",
                    self.at(),
                    advance.offset
                );
                self.move_to(advance.offset);
            }
            ServerFrame::CaughtUp(caught_up) => {
                assert_eq!(caught_up.offset, self.at().offset);
                self.catch_ups += 1;
            }
            ServerFrame::Left(left) => {
                assert_ne!(left.retry, Retry::Never, "{left:?}");
                self.join().await;
            }
            _ => {}
        }
    }

    fn take_entry(&mut self, entry: &Entry) {
        assert_eq!(
            entry.offset,
            self.at().offset.next(),
            "{} at {}",
            self.room,
            self.at()
        );
        (entry.offset, &entry.user, entry.op, &entry.payload).hash(&mut self.digest);
        self.operations.extend(entry.op);
        self.move_to(entry.offset);
    }

    fn move_to(&mut self, offset: Offset) {
        self.at = self.at.map(|at| Position::new(at.epoch, offset));
        self.progress.store(offset.0, Ordering::Relaxed);
    }

    /// Follows until a goal is set and reached, never closed by the server.
    ///
    /// # Panics
    /// The server closes the connection.
    pub async fn follow(mut self, mut goal: watch::Receiver<Option<Offset>>) -> Self {
        loop {
            if goal.borrow().is_some_and(|goal| self.at().offset >= goal) {
                return self;
            }
            tokio::select! {
                step = self.step() => assert_eq!(step, Step::Frame, "the server closed a healthy member"),
                changed = goal.changed() => changed.unwrap(),
            }
        }
    }

    /// Follows until it stands at an offset, connecting again whenever it was closed.
    ///
    /// # Panics
    /// Nothing comes for too long.
    pub async fn until_at(&mut self, offset: Offset) {
        while self.at().offset < offset {
            if self.client.is_none() {
                self.attach().await;
                continue;
            }
            let Ok(step) = timeout(crate::wait::PATIENCE, self.step()).await else {
                panic!("stands at {} and waits for {offset}", self.at())
            };
            drop(step);
        }
    }

    /// Loses its connection in one of the ways in which networks lose them.
    pub fn cut(&mut self, random: &mut StdRng) {
        let Some(client) = self.client.take() else {
            return;
        };
        match random.random_range(0..4) {
            0 => drop(client),
            1 => client.cut(),
            2 => {
                // A message that announces 64 KiB and never goes on.
                drop(
                    client
                        .stream()
                        .try_write(b"\x82\xff\0\0\0\0\0\x01\0\0\0\0\0\0\x92"),
                );
                client.cut();
            }
            // The path is dead and nobody says so: the server notices when the session comes back.
            _ => {
                self.lost.truncate(1);
                self.lost.insert(0, client);
            }
        }
    }

    /// Says goodbye.
    ///
    /// # Panics
    /// The server doesn't answer.
    pub async fn close(&mut self) {
        if let Some(client) = self.client.take() {
            client.close().await;
        }
        self.lost.clear();
    }
}
