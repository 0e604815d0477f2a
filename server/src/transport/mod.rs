//! The threads that run the shards, with their sockets, clocks and mailboxes.
//!
//! Each shard has one thread with an event queue of its own: a connection that was dealt to it never leaves.
//! Other threads reach it by its mailbox alone. Everything that may happen is turned into an input of the core;
//! what the core wants is done at once, or after the step where it would come back into the core. Nothing here
//! waits but the loop for its events. Rooms, sessions and what frames mean are not known here.

mod calls;
mod core;
mod host;
mod mailbox;
mod socket;
mod thread;
mod verifier;

use std::net::{IpAddr, TcpStream};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use mio::{Poll, Waker};
use roomful_protocol::codec::Encoding;
use roomful_protocol::id::{PlacementKey, RoomId};

pub use self::core::Core;
use crate::admission::{Counted, Reason, Refusal, Ticket};
use crate::clock::{Clock, Now};
use crate::current::Current;
use crate::directory::Directory;
use crate::http::{Upgraded, Upgrades};
use crate::journal::Completion;
use crate::memory::{Elsewhere, Level, Memory};
use crate::metrics::{ShardCounters, resident_bytes};
use crate::shard::ShardSettings;
use crate::shard::message::{Message, Origin, ShardId};
use crate::tls::Records;
use calls::Calls;
pub use calls::{Answered, PendingCall};
use mailbox::{Letter, Mailbox};
use thread::{MAIL, Thread};
pub use verifier::Judge;
use verifier::Verifier;

/// The running shards; clones share them.
#[derive(Debug, Clone)]
pub struct Shards {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: Directory,
    posts: Vec<Post>,
    calls: Calls,
    /// How many have been let in, until their sockets are closed.
    admitted: Arc<AtomicUsize>,
    settings: Current<TransportSettings>,
    memory: Memory,
    draining: AtomicBool,
}

/// What is known of a shard from outside.
#[derive(Debug, Clone)]
struct Post {
    mailbox: Arc<Mailbox>,
    /// Connections that were dealt to it and have not ended.
    connections: Arc<AtomicUsize>,
}

/// A socket on its way to its shard.
#[derive(Debug)]
struct Opened {
    stream: TcpStream,
    tls: Option<Box<Records>>,
    read_ahead: Bytes,
    encoding: Encoding,
    client: IpAddr,
    place: Place,
}

/// A connection's place: in the server for as long as its socket is open, and on its shard until its last words
/// are said.
#[derive(Debug)]
struct Place {
    _admitted: Counted,
    ticket: Ticket,
    dealt: Option<Counted>,
}

impl Place {
    /// Leaves the shard; whether it was there until now.
    fn leave(&mut self) -> bool {
        self.dealt.take().is_some()
    }
}

/// What the configuration says about sockets and threads.
#[derive(Debug, Clone, Copy)]
pub struct TransportSettings {
    /// Connections at a time.
    pub connections_max: usize,
    /// How long each kind of work of a turn may take before others of the thread get theirs.
    pub turn_budget: Duration,
    /// A turn that takes longer is counted and logged.
    pub turn_warning: Duration,
    /// Bytes that may wait in a mailbox before what can be pulled later is left out.
    pub mailbox_bytes_max: usize,
    /// By how many connections the shard of a placement key may exceed the least loaded one.
    pub imbalance_max: usize,
    /// Most fragments of a message.
    pub fragments_max: u32,
    /// How long a message may take from its first byte to its last, in milliseconds.
    pub message_timeout_ms: u64,
    /// How long a connection that was closed may take to close too, in milliseconds.
    pub close_timeout_ms: u64,
    /// Threads that check costly tokens.
    pub verifier_threads: NonZeroUsize,
    /// Tokens that may wait for them.
    pub verifier_queue_max: usize,
}

/// What the threads are made of.
#[derive(Debug)]
pub struct Parts {
    /// Which shard a placement key means.
    pub directory: Directory,
    /// One set of counters a shard; there are as many shards.
    pub counters: Vec<Arc<ShardCounters>>,
    /// Checks tokens; none on an anonymous server.
    pub judge: Option<Arc<dyn Judge>>,
    /// What may be held.
    pub memory: Memory,
    /// The time.
    pub clock: Clock,
    /// The configuration.
    pub settings: TransportSettings,
}

/// A shard's thread has ended although nobody asked it to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the thread of shard {0} has ended")]
pub struct ThreadEnded(pub u16);

/// The threads, which never end by themselves.
#[derive(Debug)]
pub struct Threads {
    handles: Vec<(ShardId, JoinHandle<()>)>,
}

impl Shards {
    /// Starts a thread for each shard, which makes its core by calling `core`.
    ///
    /// # Errors
    /// The system gives no thread or no event queue.
    pub fn start<C: Core>(
        parts: Parts,
        core: impl Fn(ShardId, Now) -> C + Clone + Send + 'static,
    ) -> std::io::Result<(Self, Threads)> {
        let settings = parts.settings;
        let mut posts = Vec::new();
        let mut polls = Vec::new();
        for _ in &parts.counters {
            let poll = Poll::new()?;
            let waker = Waker::new(poll.registry(), MAIL)?;
            posts.push(Post {
                mailbox: Arc::new(Mailbox::new(settings.mailbox_bytes_max, waker)),
                connections: Arc::new(AtomicUsize::new(0)),
            });
            polls.push(poll);
        }
        let verifier = match &parts.judge {
            Some(judge) => Some(Verifier::start(judge, &parts.clock, &posts, &settings)?),
            None => None,
        };
        let calls = Calls::default();
        let mut handles = Vec::new();
        for (index, ((counters, poll), post)) in
            (0..).zip(parts.counters.into_iter().zip(polls).zip(&posts))
        {
            let id = ShardId(index);
            let thread = Thread {
                id,
                poll,
                mailbox: Arc::clone(&post.mailbox),
                counters,
                clock: parts.clock.clone(),
                posts: posts.clone(),
                calls: calls.clone(),
                verifier: verifier.clone(),
                memory: parts.memory.clone(),
                settings,
            };
            handles.push((id, thread.start(core.clone())?));
        }
        let inner = Inner {
            directory: parts.directory,
            posts,
            calls,
            admitted: Arc::default(),
            settings: Current::new(settings),
            memory: parts.memory,
            draining: AtomicBool::new(false),
        };
        Ok((
            Self {
                inner: Arc::new(inner),
            },
            Threads { handles },
        ))
    }

    /// Takes nobody in any more, and says goodbye to everybody within `spread`.
    pub fn drain(&self, spread: Duration) {
        self.inner.draining.store(true, Ordering::Relaxed);
        let spread_ms = u64::try_from(spread.as_millis()).unwrap_or(u64::MAX);
        for post in &self.inner.posts {
            post.mailbox.push(Letter::Drain { spread_ms });
            post.mailbox.wake();
        }
    }

    /// Adds up what is held, with what `elsewhere` knows of HTTP and TLS, for as long as the process lives, on a thread of its own: it has to be on time whatever
    /// the others do.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn watch_memory(
        &self,
        counters: Vec<Arc<ShardCounters>>,
        elsewhere: impl Fn() -> Elsewhere + Send + 'static,
    ) -> std::io::Result<()> {
        let shards = self.clone();
        let process_bytes = resident_bytes().unwrap_or(0);
        let sum = move || {
            let mailboxes = shards.inner.posts.iter().map(|post| post.mailbox.bytes());
            let elsewhere = Elsewhere {
                process_bytes,
                mailbox_bytes: mailboxes.sum::<usize>() as u64,
                ..elsewhere()
            };
            let to_shed = shards.inner.memory.sum(&counters, elsewhere);
            for (post, bytes) in shards.inner.posts.iter().zip(to_shed) {
                post.mailbox.ask_to_shed(bytes);
            }
        };
        sum();
        let watch = move || {
            loop {
                std::thread::park_timeout(SUM_INTERVAL);
                sum();
            }
        };
        std::thread::Builder::new()
            .name("memory".to_owned())
            .spawn(watch)?;
        Ok(())
    }

    /// Goes on with other settings, without a pause: each shard between two turns, whoever comes next at once. How much
    /// a mailbox holds and who checks tokens stays.
    pub fn reload(&self, shard: &Arc<ShardSettings>, transport: TransportSettings) {
        self.inner.settings.set(transport);
        for post in &self.inner.posts {
            let letter = Letter::Reload(Arc::clone(shard), Box::new(transport));
            post.mailbox.push(letter);
            post.mailbox.wake();
        }
    }

    /// The journal has ended calls of a shard, in this order.
    pub fn completed(&self, shard: ShardId, completions: Vec<Completion>) {
        if let Some(post) = self.inner.posts.get(usize::from(shard.0)) {
            post.mailbox.push(Letter::Journal(completions));
            post.mailbox.wake();
        }
    }

    /// Has a room looked at, where it is at home.
    pub fn wake(&self, room: RoomId) {
        let home = self.inner.directory.home(&room);
        if let Some(post) = self.inner.posts.get(usize::from(home.0)) {
            post.mailbox.push(Letter::Wake(room));
            post.mailbox.wake();
        }
    }

    /// How many connections there are, those included whose last words are not said.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.inner
            .posts
            .iter()
            .map(|post| post.connections.load(Ordering::Relaxed))
            .sum()
    }

    /// The rooms, and where each is at home.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.inner.directory
    }

    /// Calls one shard, which answers once.
    pub fn call(&self, shard: ShardId, message: impl FnOnce(Origin) -> Message) -> PendingCall {
        let pending = self.inner.calls.begin(1);
        if let Some(post) = self.inner.posts.get(usize::from(shard.0)) {
            post.mailbox
                .push(Letter::Message(message(pending.origin())));
            post.mailbox.wake();
        }
        pending
    }

    /// Calls every shard; each answers once. How many there are stands beside it.
    pub fn call_all(&self, message: impl Fn(Origin) -> Message) -> (PendingCall, usize) {
        let count = self.inner.posts.len();
        let pending = self.inner.calls.begin(count);
        for post in &self.inner.posts {
            post.mailbox
                .push(Letter::Message(message(pending.origin())));
            post.mailbox.wake();
        }
        (pending, count)
    }

    /// The shard of the placement key, unless it is too far ahead of the least loaded one (consistent hashing
    /// with bounded loads, Mirrokni et al. 2018): small rooms meet on one shard, and a large one spreads.
    fn place(&self, key: Option<PlacementKey>) -> ShardId {
        let load = |post: &Post| post.connections.load(Ordering::Relaxed);
        let loads: Vec<usize> = self.inner.posts.iter().map(load).collect();
        let least = (0..).zip(&loads).min_by_key(|(_, load)| **load);
        let (least, least_load) = least.map_or((0, 0), |(index, load)| (index, *load));
        let home = key.map(|key| self.inner.directory.shard_of(key));
        let imbalance_max = self.inner.settings.get().imbalance_max;
        let close = |home: &ShardId| {
            let load = loads
                .get(usize::from(home.0))
                .copied()
                .unwrap_or(usize::MAX);
            load <= least_load.saturating_add(imbalance_max)
        };
        home.filter(close).unwrap_or(ShardId(least))
    }
}

impl Upgrades for Shards {
    fn admit(&self) -> Result<Counted, Refusal> {
        if self.inner.draining.load(Ordering::Relaxed) {
            return Err(Refusal {
                reason: Reason::Draining,
                retry_after: ELSEWHERE_AFTER,
            });
        }
        if self.inner.memory.level() > Level::Normal {
            return Err(Refusal {
                reason: Reason::Memory,
                retry_after: RETRY_AFTER,
            });
        }
        let connections_max = self.inner.settings.get().connections_max;
        Counted::below(&self.inner.admitted, connections_max).ok_or(Refusal {
            reason: Reason::Full,
            retry_after: RETRY_AFTER,
        })
    }

    fn hand_over(&self, upgraded: Vec<Upgraded>) {
        let mut touched = Vec::new();
        for socket in upgraded {
            let shard = self.place(socket.placement);
            if let Some(post) = self.inner.posts.get(usize::from(shard.0)) {
                post.take_in(socket);
                touched.push(shard);
            }
        }
        touched.sort_unstable();
        touched.dedup();
        for shard in touched {
            self.inner.posts[usize::from(shard.0)].mailbox.wake();
        }
    }
}

impl Post {
    /// Adds a socket to the shard's mail.
    fn take_in(&self, upgraded: Upgraded) {
        let place = Place {
            _admitted: upgraded.place,
            ticket: upgraded.ticket,
            dealt: Some(Counted::new(&self.connections)),
        };
        self.mailbox.push(Letter::Opened(Box::new(Opened {
            stream: upgraded.stream,
            tls: upgraded.tls,
            read_ahead: upgraded.read_ahead,
            encoding: upgraded.encoding,
            client: upgraded.client,
            place,
        })));
    }
}

impl Threads {
    /// Whether all of them run.
    ///
    /// # Errors
    /// One has ended.
    pub fn check(&self) -> Result<(), ThreadEnded> {
        match self.handles.iter().find(|(_, handle)| handle.is_finished()) {
            Some((id, _)) => Err(ThreadEnded(id.0)),
            None => Ok(()),
        }
    }
}

/// Often, since what comes meanwhile is bounded only by each shard's share of what is left.
const SUM_INTERVAL: Duration = Duration::from_millis(50);

/// When somebody who was not let in should come again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// When somebody should come again whom a process that ends has not let in. Behind a balancer the next attempt meets
/// another process, so that it should come soon; where the next process takes this one's port, the client's back-off
/// makes the attempts rarer until it is there.
const ELSEWHERE_AFTER: Duration = Duration::from_secs(1);
