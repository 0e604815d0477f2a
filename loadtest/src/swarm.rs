//! All connections of a run, driven by one thread.
//!
//! Scenarios own one and turn it: each turn waits for readiness, reads what has arrived and reports it, in terms that every peer has.
//! Each connection is in one room for as long as it lives; scenarios that come, go and come back have a [`crate::crowd`]. Any error of any
//! connection ends the run.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::console::Bar;
use crate::peer::{Heard, Peer, Seat};
use crate::pool::{Pool, Waiting};
use crate::scenario::Deadline;

/// The connections, in the order in which they were opened.
#[derive(Debug)]
pub(crate) struct Swarm {
    peer: Box<dyn Peer>,
    pool: Pool,
    /// Part of all room names, so that no two runs meet in a room.
    run: u64,
    members: Vec<Member>,
    joined: usize,
    /// Where a message is put together before it is framed.
    message: Vec<u8>,
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

impl Swarm {
    /// No connections yet.
    ///
    /// # Errors
    /// The kernel gives no poll.
    pub(crate) fn new(peer: Box<dyn Peer>, target: SocketAddr, waiting: Waiting) -> Result<Self> {
        let secure = peer.secure().cloned();
        Ok(Self {
            peer,
            pool: Pool::new(target, secure, waiting)?,
            run: RandomState::new().hash_one("run"),
            members: Vec::new(),
            joined: 0,
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
            ..Self::new(peer, self.pool.target(), Waiting::Sleep)?
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
        let Self {
            peer,
            pool,
            members,
            joined,
            ..
        } = self;
        pool.turn(wait, &mut |index, message, answer| {
            let Member {
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
            peer.read(seat, message, &mut hear, answer)
        })
    }

    /// Processor time that went into looking for work that wasn't there.
    pub(crate) const fn spun(&self) -> Duration {
        self.pool.spun()
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
        self.pool.send(connection, &self.message)
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

    fn connect(&mut self, plan: Plan) -> Result<()> {
        let index = self.members.len();
        let room = format!("chat:load-{:016x}-{}", self.run, index / plan.room_members);
        let seat = Seat::new(index, room);
        let upgrade = self.peer.upgrade(&seat)?;
        let greeting = self.peer.greeting(&seat)?;
        self.pool.open(index, &upgrade, greeting)?;
        self.members.push(Member {
            seat,
            published: 0,
            joined: None,
        });
        Ok(())
    }
}
