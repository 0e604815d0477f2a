//! All connections of a run, driven by one thread.
//!
//! Scenarios own one and turn it: each turn waits for readiness, reads what has arrived and reports it. Readiness comes from
//! the kernel once per arrival, all sockets read into one buffer, and nothing is allocated or woken for a delivery, so that the server is the
//! limit and not this. Any error of any connection ends the run.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::hint;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mio::{Events, Interest, Poll, Token};
use tokio::time::Instant;

use crate::connection::{Connection, Opening};
use crate::console::Bar;
use crate::peer::{Heard, Peer, Seat};
use crate::scenario::Deadline;

/// The connections, in the order in which they were opened.
#[derive(Debug)]
pub(crate) struct Swarm {
    peer: Box<dyn Peer>,
    target: SocketAddr,
    waiting: Waiting,
    /// Time that was spent spinning: in pauses, and in looks that found nothing.
    spun: Duration,
    /// Part of all room names, so that no two runs meet in a room.
    run: u64,
    poll: Poll,
    events: Events,
    members: Vec<Member>,
    joined: usize,
    /// What sockets are read into. Larger than what a server writes at once, so that one read empties a socket.
    buffer: Vec<u8>,
    /// Where a message is put together before it is framed.
    message: Vec<u8>,
}

/// How readiness is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// Sleep until the kernel wakes this thread. On loopback the waking is done by whoever sends, so the server pays for it with each
    /// delivery that finds this thread asleep, which no server on a network does.
    Sleep,
    /// Ask again and again, but not more often than this. Needs a core of its own.
    Spin {
        /// From one look to the next. A look costs as much as reading a delivery, so looking for each alone doubles the work.
        every: Duration,
    },
}

/// How many connections, and where they go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Connections.
    pub(crate) connections: usize,
    /// Members of a room; the last one may have fewer.
    pub(crate) room_members: usize,
    /// Connections on their way at a time.
    pub(crate) joining_max: usize,
}

#[derive(Debug)]
struct Member {
    connection: Connection,
    seat: Seat,
    /// Publishes so far.
    published: u32,
    /// Where it stood when it had joined; `None` before that.
    joined: Option<JoinedAt>,
}

/// What a member's deliveries follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct JoinedAt {
    /// Its offset, where the server numbers deliveries.
    head: Option<u64>,
}

const BUFFER_BYTES: usize = 256 * 1024;

/// Readiness taken from the kernel at a time.
const EVENTS: usize = 1024;

impl Waiting {
    /// Spinning at a rate at which a look finds several deliveries; ten of them take a server some 30 µs.
    pub(crate) const SPIN: Self = Self::Spin {
        every: Duration::from_micros(20),
    };

    /// The same without pauses, where it matters when something arrives.
    pub(crate) const fn eager(self) -> Self {
        match self {
            Self::Sleep => Self::Sleep,
            Self::Spin { .. } => Self::Spin {
                every: Duration::ZERO,
            },
        }
    }
}

impl Swarm {
    /// No connections yet.
    ///
    /// # Errors
    /// The kernel gives no poll.
    pub(crate) fn new(peer: Box<dyn Peer>, target: SocketAddr, waiting: Waiting) -> Result<Self> {
        Ok(Self {
            peer,
            target,
            waiting,
            spun: Duration::ZERO,
            run: RandomState::new().hash_one("run"),
            poll: Poll::new().context("no poll")?,
            events: Events::with_capacity(EVENTS),
            members: Vec::new(),
            joined: 0,
            buffer: vec![0; BUFFER_BYTES],
            message: Vec::new(),
        })
    }

    /// None either, for more members of the same rooms: they come on connections of their own, and are turned on their own.
    ///
    /// # Errors
    /// The kernel gives no poll.
    pub(crate) fn beside(&self, peer: Box<dyn Peer>) -> Result<Self> {
        Ok(Self {
            run: self.run,
            ..Self::new(peer, self.target, Waiting::Sleep)?
        })
    }

    /// Connects everybody and waits until all have joined.
    ///
    /// # Errors
    /// Any connection failed, or the deadline passed.
    pub(crate) fn open(&mut self, plan: Plan, deadline: &Deadline) -> Result<()> {
        let bar = Bar::counting("joining", plan.connections);
        while self.joined < plan.connections {
            bar.reach(self.joined);
            while self.members.len() < plan.connections
                && self.members.len() < self.joined + plan.joining_max
            {
                self.connect(plan)?;
            }
            self.turn(Duration::from_millis(100), &mut |member, _| {
                bail!("member {member} got a delivery of nothing")
            })?;
            deadline.check(|| {
                format!(
                    "{} of {} connections have joined",
                    self.joined, plan.connections
                )
            })?;
        }
        Ok(())
    }

    /// Waits for readiness, at most so long, and reports what was heard, with the index of its connection.
    ///
    /// # Errors
    /// Any connection failed, or what the listener returned.
    pub(crate) fn turn(
        &mut self,
        wait: Duration,
        listener: &mut dyn FnMut(usize, Heard<'_>) -> Result<()>,
    ) -> Result<()> {
        self.wait(wait)?;
        let Self {
            peer,
            events,
            members,
            joined,
            buffer,
            ..
        } = self;
        for event in events.iter() {
            let Token(index) = event.token();
            let Member {
                connection,
                seat,
                joined: joined_at,
                ..
            } = &mut members[index];
            let mut hear = |heard: Heard<'_>| match heard {
                Heard::Joined { head } => {
                    *joined += usize::from(joined_at.replace(JoinedAt { head }).is_none());
                    Ok(())
                }
                Heard::Delivery { .. } | Heard::Acknowledged { .. } => listener(index, heard),
            };
            let mut receive = || {
                connection.flush()?;
                connection.receive(buffer, event.is_read_closed(), &mut |message, answer| {
                    peer.read(seat, message, &mut hear, answer)
                })
            };
            receive().with_context(|| format!("connection {index}"))?;
        }
        Ok(())
    }

    /// Processor time that went into looking for work that wasn't there.
    pub(crate) const fn spun(&self) -> Duration {
        self.spun
    }

    /// Publishes from a connection.
    ///
    /// # Errors
    /// The connection is broken.
    pub(crate) fn publish(&mut self, connection: usize, payload: &[u8]) -> Result<()> {
        let member = &mut self.members[connection];
        member.published += 1;
        self.message.clear();
        self.peer
            .publish(&member.seat, member.published, payload, &mut self.message);
        member
            .connection
            .send(&self.message)
            .with_context(|| format!("connection {connection}"))
    }

    /// Where the members of a room stood when they had joined: all at the same offset, or at none if the server doesn't number.
    ///
    /// # Errors
    /// They differ, although nobody had published yet.
    pub(crate) fn head(&self, mut members: std::ops::Range<usize>) -> Result<Option<u64>> {
        let first = members
            .next()
            .and_then(|member| self.members[member].joined);
        if members.any(|member| self.members[member].joined != first) {
            bail!(
                "the members of a room joined at different offsets, before anything was published"
            );
        }
        Ok(first.and_then(|joined| joined.head))
    }

    /// Who is spoken to.
    pub(crate) fn peer(&self) -> &dyn Peer {
        &*self.peer
    }

    /// Leaves `events` empty if nothing became ready.
    fn wait(&mut self, wait: Duration) -> Result<()> {
        match self.waiting {
            Waiting::Sleep => self.poll(wait),
            Waiting::Spin { every } => {
                let start = Instant::now();
                while start.elapsed() < every {
                    hint::spin_loop();
                }
                let paused = start.elapsed();
                self.poll(Duration::ZERO)?;
                self.spun += if self.events.is_empty() {
                    start.elapsed()
                } else {
                    paused
                };
                Ok(())
            }
        }
    }

    fn poll(&mut self, timeout: Duration) -> Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                self.events.clear();
                Ok(())
            }
            outcome => outcome.context("waiting for readiness failed"),
        }
    }

    fn connect(&mut self, plan: Plan) -> Result<()> {
        let index = self.members.len();
        let room = format!("chat:load-{:016x}-{}", self.run, index / plan.room_members);
        let seat = Seat::new(index, room);
        let upgrade = self.peer.upgrade(&seat)?;
        let opening = Opening {
            target: self.target,
            index,
            upgrade: &upgrade,
            greeting: self.peer.greeting(&seat)?,
        };
        let mut connection =
            Connection::open(opening).with_context(|| format!("connection {index}"))?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(connection.stream(), Token(index), interest)
            .context("registering a socket")?;
        self.members.push(Member {
            connection,
            seat,
            published: 0,
            joined: None,
        });
        Ok(())
    }
}
