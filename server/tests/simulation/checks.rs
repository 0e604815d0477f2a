//! What must be true: after each step, when everybody has settled, and when everybody has gone.

use std::collections::{BTreeMap, BTreeSet};

use roomful_protocol::frame::Watch;
use roomful_protocol::id::Offset;
use roomful_server::metrics::{Label as _, PanicPlace, ShardCounters};

use crate::client::Client;
use crate::journal::FaultyJournal;
use crate::options::{OUTBOX_BYTES_MAX, OUTBOX_MESSAGES_MAX};
use crate::world::{World, room_id};

impl World {
    /// Nothing that has a bound is beyond it (P9), at any time.
    pub fn check_bounds(&mut self) {
        let panics = |place| self.sum(|counters| counters.panics.of(place).get());
        let panics: u64 = PanicPlace::all().into_iter().map(panics).sum();
        assert_eq!(panics, 0, "the server panicked");
        let net = self.net.borrow();
        let connections: u64 = self.sum(|counters| counters.connections.get());
        for (way, mail) in &net.mail {
            let must_pass = connections * u64::from(self.options.requests_max) * 2 + 100;
            let max = net
                .mailbox_max
                .saturating_add(usize::try_from(must_pass).unwrap());
            assert!(mail.len() <= max, "mailbox {way:?} has {}", mail.len());
        }
        drop(net);
        self.check_outboxes();
    }

    /// What waits for a connection between two turns is at most the bound, or the rest of the one write that was too much at once. Until the turn ends, replies
    /// may wait beside it.
    fn check_outboxes(&mut self) {
        let net = self.net.borrow();
        for (link, downlink) in &net.downlinks {
            let (shard, connection) = *link;
            let shard = self.shards[shard].as_ref().unwrap();
            let bytes = shard.outbox_bytes(connection);
            self.tally.outbox_peak = self.tally.outbox_peak.max(bytes);
            let max = OUTBOX_BYTES_MAX.max(downlink.rest_bytes) + CAUGHT_UP_BYTES;
            assert!(
                bytes <= max || !shard.is_idle(),
                "{bytes} bytes wait for a connection, of at most {max}"
            );
        }
        for (shard, counters) in self.shards.iter().zip(&self.counters) {
            let (messages, connections) =
                (counters.outbox_messages.get(), counters.connections.get());
            let max = connections * (OUTBOX_MESSAGES_MAX as u64 + 1);
            assert!(
                messages <= max || !shard.as_ref().unwrap().is_idle(),
                "{messages} messages wait for {connections} connections"
            );
        }
    }

    /// When nothing is under way, all who watch a room's members have been told of the same revision.
    pub fn check_told(&self) {
        let mut newest = BTreeMap::new();
        for client in &self.clients {
            if client.watch == Watch::Members
                && client.is_settled()
                && self.links[client.index].is_some()
            {
                let of = (&client.room, client.position.unwrap().epoch);
                let told = *newest.entry(of).or_insert(client.told_revision);
                assert_eq!(
                    client.told_revision, told,
                    "client {} missed a change of presence, or another did",
                    client.index
                );
            }
        }
    }

    /// What must be true when everybody is settled.
    pub fn check(&self) {
        for client in &self.clients {
            self.check_log(client);
            self.check_state(client);
            self.check_view(client);
        }
        let outbox = self.sum(|counters| counters.outbox_bytes.get());
        assert_eq!(outbox, 0, "bytes wait for clients who read");
        let there = self.clients.len() as u64;
        for (name, gauge) in [
            (
                "connections",
                self.sum(|counters| counters.connections.get()),
            ),
            ("members", self.sum(|counters| counters.members.get())),
            (
                "subscribers",
                self.sum(|counters| counters.subscribers.get()),
            ),
        ] {
            assert_eq!(gauge, there, "{name} for as many clients");
        }
    }

    /// The gauges when the clients are gone.
    pub fn check_nobody_is_left(&self) {
        for (name, gauge) in [
            (
                "connections",
                self.sum(|counters| counters.connections.get()),
            ),
            ("sessions", self.sum(|counters| counters.sessions.get())),
            ("members", self.sum(|counters| counters.members.get())),
            (
                "subscribers",
                self.sum(|counters| counters.subscribers.get()),
            ),
            (
                "outbox bytes",
                self.sum(|counters| counters.outbox_bytes.get()),
            ),
            (
                "outbox messages",
                self.sum(|counters| counters.outbox_messages.get()),
            ),
        ] {
            assert_eq!(gauge, 0, "{name} that nobody has");
        }
    }

    /// Rooms without members close when their history is too old to be wanted.
    pub fn check_no_room_is_left(&self) {
        let rooms = self.sum(|counters| counters.rooms.get());
        assert_eq!(rooms, 0, "rooms that nobody is in");
        let forgotten = self.journals.iter().all(FaultyJournal::is_empty);
        assert!(forgotten, "logs of rooms that are closed");
    }

    /// The window of a drain is over.
    pub fn check_everybody_was_told_to_go(&self) {
        let connections = self.sum(|counters| counters.connections.get());
        assert_eq!(connections, 0, "connections after the drain");
    }

    pub fn heads_are_reached(&self) -> bool {
        self.clients.iter().all(|client| {
            let room = room_id(&client.room);
            if let Some(disk) = self.disk.as_ref().filter(|_| self.is_on_disk(&client.room)) {
                let head = disk.books.head(&room);
                return client
                    .position
                    .is_some_and(|position| position.offset >= head);
            }
            let head = self
                .journals
                .iter()
                .filter_map(|journal| journal.entries(&room).last().map(|last| last.offset));
            let head = head.max().unwrap_or(Offset(0));
            client
                .position
                .is_some_and(|position| position.offset >= head)
        })
    }

    fn check_log(&self, client: &Client) {
        let epoch = client.position.unwrap().epoch;
        let head = self
            .truth
            .range((client.room.clone(), epoch, Offset(0))..)
            .take_while(|((room, of, _), _)| *room == client.room && *of == epoch);
        let head = head.last().map_or(Offset(0), |((_, _, offset), _)| *offset);
        assert!(
            client.position.unwrap().offset >= head,
            "client {} is behind: {}",
            client.index,
            self.describe()
        );
        for (epoch, from, to) in &client.advanced {
            let passed =
                (client.room.clone(), *epoch, from.next())..=(client.room.clone(), *epoch, *to);
            for (position, op) in self.truth.range(passed) {
                let own = op.producer == client.producer();
                assert!(
                    own && !client.echo,
                    "client {} was moved past {position:?}",
                    client.index
                );
            }
        }
        let mut once = BTreeMap::new();
        for ((room, of, offset), op) in &self.truth {
            if *room == client.room && op.producer == client.producer() {
                let before = once.insert((*of, op.sequence), *offset);
                assert!(
                    before.is_none(),
                    "client {}: {:?} took effect twice, at {before:?} and {offset}",
                    client.index,
                    op.sequence
                );
            }
        }
    }

    /// Whoever watches all of the state of a room on disk has what the entries of all lives make of it.
    fn check_state(&self, client: &Client) {
        let Some(disk) = self.disk.as_ref().filter(|_| self.is_on_disk(&client.room)) else {
            return;
        };
        let state = disk.books.fold(&room_id(&client.room));
        let keyed = client.keyed.as_ref();
        if let Some(keyed) = keyed.filter(|keyed| keyed.watched == Some(&[""])) {
            assert_eq!(keyed.copy, state, "not what the log makes of the state");
        }
    }

    fn check_view(&self, watcher: &Client) {
        if watcher.watch != Watch::Members {
            return;
        }
        let there = self
            .clients
            .iter()
            .filter(|client| client.room == watcher.room);
        let there: Vec<_> = there
            .map(|client| (client.member, Some(client.presence_value())))
            .collect();
        let there: BTreeSet<_> = there
            .iter()
            .map(|(member, value)| (member.unwrap(), value.as_ref().map(|value| &value.bytes)))
            .collect();
        let seen: BTreeSet<_> = watcher
            .view
            .iter()
            .map(|(member, (_, value))| (*member, value.as_ref().map(|value| &value.bytes)))
            .collect();
        assert_eq!(
            seen, there,
            "client {} sees ghosts, or too few, or old values",
            watcher.index
        );
    }

    pub fn sum(&self, of: impl Fn(&ShardCounters) -> u64) -> u64 {
        self.counters.iter().map(|counters| of(counters)).sum()
    }
}

/// The word that a recovery is over goes with its last chunk, which was found to fit.
const CAUGHT_UP_BYTES: usize = 64;
