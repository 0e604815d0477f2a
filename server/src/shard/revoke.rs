//! Connections that the back end ends: those of a user, a session or a token.
//!
//! The step calls it with what the back end wants; each turn looks at a part of the connections, so that nobody waits
//! for a look at all of them. What they were in, they leave at once and not after the grace, and the session
//! is over. Who is refused from then on is left to `Revocations`, at which `hello` looks.

use roomful_protocol::error::CloseCode;

use super::message::{Answer, ConnectionId, Message, Request, Revoke};
use super::{Host, Shard};
use crate::clock::Now;
use crate::connection::Connection;

/// A look for the connections of somebody who is revoked.
#[derive(Debug)]
pub(super) struct Sweep {
    revoke: Revoke,
    /// Where it goes on. Who came later to a slot before it has been refused.
    next_slot: usize,
    closed: u64,
}

impl Shard {
    pub(super) fn begin_sweep(&mut self, revoke: Revoke) {
        self.sweeps.push_back(Sweep {
            revoke,
            next_slot: 0,
            closed: 0,
        });
    }

    /// Goes on with the first look; the back end is told of its end.
    pub(super) fn sweep(&mut self, now: Now, host: &mut dyn Host) {
        let Some(mut sweep) = self.sweeps.pop_front() else {
            return;
        };
        let until = (sweep.next_slot + SLOTS_MAX).min(self.outlets.len());
        let mut ends = 0;
        while sweep.next_slot < until && ends < ENDS_MAX {
            let found = self.revoked_in(sweep.next_slot, &sweep.revoke);
            sweep.next_slot += 1;
            if let Some(id) = found {
                self.guard_connection(id, now, host, |this, host| this.expel(id, now, host));
                ends += 1;
                sweep.closed += 1;
            }
        }
        if sweep.next_slot < self.outlets.len() {
            return self.sweeps.push_front(sweep);
        }
        let to = sweep.revoke.to;
        let answer = Answer::Swept(sweep.closed);
        self.send(to.shard, Message::Answer { to, answer }, host);
    }

    /// The connection in a slot, if it is meant.
    fn revoked_in(&self, slot: usize, revoke: &Revoke) -> Option<ConnectionId> {
        let outlet = self.outlets.get(slot)?.as_ref()?;
        let open = outlet.connection.open()?;
        let meant = open.identity.tenant == revoke.tenant
            && revoke.subject.is_of(&open.identity, open.session);
        meant.then_some(outlet.id)
    }

    /// Ends a connection, its memberships and its session.
    fn expel(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        let to = self.origin(id, None);
        let Some(open) = self.connection_mut(id).and_then(Connection::open_mut) else {
            return;
        };
        let (session, attachment) = (open.session, open.attachment);
        for membership in std::mem::take(&mut open.memberships) {
            let leave = Request::Leave {
                member: membership.member,
                attachment: membership.attachment,
                to,
            };
            self.unsubscribe(membership.room, membership.index, leave, host);
        }
        self.sessions.end(session, attachment);
        self.counters.connections_revoked.add(1);
        self.close(id, CloseCode::Revoked, now, host);
    }
}

/// Slots that are looked at in one turn: each may cost a cache miss, so together a part of a millisecond.
const SLOTS_MAX: usize = 1_024;

/// Connections that are ended in one turn: each costs a system call, and a message for each room.
const ENDS_MAX: usize = 32;
