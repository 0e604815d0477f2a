//! The publishes of one room that are not acknowledged yet, in the order in which the application made them.
//!
//! The membership owns one. A publish is either waiting or in flight; losing the connection makes all of them waiting again, in order and with
//! their op ids. The bounds over all rooms are the machine's.

use std::collections::VecDeque;
use std::time::Duration;

use roomful_protocol::frame::Change;
use roomful_protocol::id::{RequestId, Sequence};
use roomful_protocol::payload::Payload;

use super::step::CallId;

/// One room's queue.
#[derive(Debug, Default)]
pub(super) struct Publishes {
    /// To be sent, by ascending order number.
    waiting: VecDeque<Queued>,
    /// Sent on this connection, by the time of sending.
    in_flight: VecDeque<(RequestId, Queued)>,
    /// Nothing is sent before: the server asked for patience.
    held_until: Option<Duration>,
}

/// A publish without its acknowledgement.
#[derive(Debug)]
pub(super) struct Queued {
    /// Its place in the application's order.
    pub(super) order: u64,
    /// Who waits for it.
    pub(super) call: CallId,
    /// The content.
    pub(super) content: Content,
    /// The op id's second half, from the first sending on.
    pub(super) sequence: Option<Sequence>,
}

/// What goes into the log under an op id.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Publish(Payload),
    Write(Vec<Change>),
}

impl Content {
    /// What it brings for the application.
    pub(super) fn payloads(&self) -> impl Iterator<Item = &Payload> {
        let (one, many): (_, &[Change]) = match self {
            Self::Publish(payload) => (Some(payload), &[]),
            Self::Write(changes) => (None, changes),
        };
        one.into_iter()
            .chain(many.iter().filter_map(|change| change.value.as_ref()))
    }

    pub(super) fn bytes(&self) -> usize {
        self.payloads().map(|payload| payload.bytes.len()).sum()
    }
}

impl Publishes {
    pub(super) fn push(&mut self, queued: Queued) {
        self.waiting.push_back(queued);
    }

    /// Takes the oldest one that waits and may go; [`Publishes::sent`] brings it back.
    pub(super) fn next(&mut self) -> Option<Queued> {
        self.is_ready().then(|| self.waiting.pop_front()).flatten()
    }

    pub(super) fn sent(&mut self, request: RequestId, queued: Queued) {
        self.in_flight.push_back((request, queued));
    }

    /// The reply came.
    pub(super) fn take(&mut self, request: RequestId) -> Option<Queued> {
        let index = self
            .in_flight
            .iter()
            .position(|(sent, _)| *sent == request)?;
        self.in_flight.remove(index).map(|(_, queued)| queued)
    }

    /// To be sent again, at its old place.
    pub(super) fn put_back(&mut self, queued: Queued) {
        let index = self
            .waiting
            .partition_point(|other| other.order < queued.order);
        self.waiting.insert(index, queued);
    }

    /// What is in flight will get no reply: all of it waits again.
    pub(super) fn recall(&mut self) {
        for (_, queued) in std::mem::take(&mut self.in_flight) {
            self.put_back(queued);
        }
    }

    /// Sends nothing for a while.
    pub(super) fn hold(&mut self, until: Duration) {
        self.held_until = Some(until);
    }

    /// Ends the hold whose time has come.
    pub(super) fn release(&mut self, now: Duration) {
        self.held_until = self.held_until.filter(|until| *until > now);
    }

    pub(super) const fn held_until(&self) -> Option<Duration> {
        self.held_until
    }

    /// Whether one waits that may go.
    pub(super) fn is_ready(&self) -> bool {
        self.held_until.is_none() && !self.waiting.is_empty()
    }

    /// Everything, in order.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Queued> {
        self.recall();
        std::mem::take(&mut self.waiting).into_iter()
    }
}
