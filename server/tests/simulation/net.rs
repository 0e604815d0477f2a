//! What lies between the parts: mailboxes, the kernel's buffers, and the checking of tokens.

use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::StdRng;
use roomful_protocol::codec::Encoding;
use roomful_server::shard::Host;
use roomful_server::shard::message::{ConnectionId, Message, ShardId};

use crate::options::{Options, START_UNIX_MS};

/// A connection: its shard, and its number there.
pub type Link = (usize, ConnectionId);

/// All of it, for one life of the process.
#[derive(Default)]
pub struct Net {
    pub now_ms: u64,
    /// Between shards, in order.
    pub mail: BTreeMap<(u16, u16), VecDeque<Message>>,
    /// What the kernel holds for a connection.
    pub downlinks: BTreeMap<Link, Downlink>,
    /// What clients have sent and shards have not got.
    pub uplinks: BTreeMap<Link, Uplink>,
    /// Connections that the shard has ended.
    pub finished: Vec<Link>,
    /// Tokens that are being checked.
    pub verifying: Vec<(Link, String)>,
    /// Until when what is known of a connection's user holds, in milliseconds since 1970.
    pub expiries: BTreeMap<Link, u64>,
    pub mailbox_max: usize,
    /// In percent.
    pub spent: u32,
    /// What must not have been; a panic here would be survived by the shard.
    pub violation: Option<&'static str>,
}

#[derive(Default)]
pub struct Downlink {
    pub bytes: VecDeque<u8>,
    pub capacity: usize,
    pub blocked: bool,
    pub closed: bool,
    /// Whether the last write did not fit.
    pub cut_short: bool,
    /// What was left of the write that made the server begin to keep bytes back.
    pub rest_bytes: usize,
}

pub struct Uplink {
    pub encoding: Encoding,
    pub queue: VecDeque<Up>,
}

/// What arrives at the server.
pub enum Up {
    Message(Vec<u8>),
    Pong,
    Gone,
}

impl Net {
    pub fn new(options: &Options, now_ms: u64) -> Self {
        Self {
            now_ms,
            mailbox_max: options.mailbox_max,
            spent: options.spent,
            ..Self::default()
        }
    }

    /// Nothing is full or late from now on.
    pub fn heal(&mut self) {
        self.mailbox_max = usize::MAX;
        self.spent = 0;
    }

    /// Between which shards something is under way.
    pub fn ways_with_mail(&self) -> Vec<(u16, u16)> {
        let with_more = self.mail.iter().filter(|(_, mail)| !mail.is_empty());
        with_more.map(|(way, _)| *way).collect()
    }

    pub fn is_quiet(&self) -> bool {
        self.mail.values().all(VecDeque::is_empty)
            && self.downlinks.values().all(|link| link.bytes.is_empty())
            && self.uplinks.values().all(|link| link.queue.is_empty())
            && self.verifying.is_empty()
    }

    pub fn send_up(&mut self, link: Link, up: Up) {
        if let Some(uplink) = self.uplinks.get_mut(&link) {
            uplink.queue.push_back(up);
        }
    }
}

/// A shard's view of the world for the length of a step.
pub struct SimHost<'a> {
    pub shard: usize,
    pub net: &'a mut Net,
    pub random: &'a mut StdRng,
    /// Whether timers are due that have not been looked at.
    pub is_late: bool,
    /// How often it was asked whether the turn is spent.
    pub looks: u32,
}

impl Host for SimHost<'_> {
    fn write(&mut self, connection: ConnectionId, slices: &[IoSlice<'_>]) -> usize {
        let link = (self.shard, connection);
        let now_unix_ms = START_UNIX_MS + self.net.now_ms;
        let expiry = self.net.expiries.get(&link);
        // Where more is due than one turn may do, an end may have to wait for the next one.
        if !self.is_late && expiry.is_some_and(|expiry_ms| now_unix_ms >= *expiry_ms) {
            self.net.violation = Some("a write to somebody whose token has ended");
        }
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        let Some(link) = self.net.downlinks.get_mut(&link) else {
            return total;
        };
        if link.closed {
            self.net.violation = Some("a write behind the end of a connection");
        }
        let room = link.capacity.saturating_sub(link.bytes.len());
        let written = total.min(room);
        link.bytes.extend(
            slices
                .iter()
                .flat_map(|slice| slice.iter().copied())
                .take(written),
        );
        link.blocked |= written < total;
        if !std::mem::replace(&mut link.cut_short, written < total) {
            link.rest_bytes = total - written;
        }
        written
    }

    fn finish(&mut self, connection: ConnectionId, last_words: Vec<Bytes>) {
        let link = (self.shard, connection);
        if let Some(link) = self.net.downlinks.get_mut(&link) {
            last_words
                .iter()
                .for_each(|words| link.bytes.extend(words.iter().copied()));
            link.closed = true;
        }
        self.net.expiries.remove(&link);
        self.net.uplinks.remove(&link);
        self.net.finished.push(link);
    }

    /// Who is read is asked when something of a connection may arrive.
    fn read_again(&mut self, _: ConnectionId) {}

    fn verify(&mut self, connection: ConnectionId, token: &str) {
        let link = (self.shard, connection);
        self.net.verifying.push((link, token.to_owned()));
    }

    fn send(&mut self, to: ShardId, message: Message) {
        let from = u16::try_from(self.shard).unwrap();
        let mail = self.net.mail.entry((from, to.0)).or_default();
        mail.push_back(message);
    }

    fn can_send(&self, to: ShardId) -> bool {
        let from = u16::try_from(self.shard).unwrap();
        let mail = self.net.mail.get(&(from, to.0));
        mail.is_none_or(|mail| mail.len() < self.net.mailbox_max)
    }

    fn random(&mut self) -> u128 {
        self.random.random()
    }

    fn turn_is_spent(&mut self) -> bool {
        self.looks += 1;
        if self.looks == LOOKS_MAX {
            self.net.violation = Some("a turn that gets nowhere");
        }
        self.looks >= LOOKS_MAX || self.random.random_range(0..100) < self.net.spent
    }
}

/// Nothing that a few clients ask for takes so many.
const LOOKS_MAX: u32 = 10_000;
