//! A few threads that check tokens whose signatures are too costly for a shard's thread.
//!
//! The queue is bounded; what does not fit is refused at once. The threads end when the last shard that could
//! ask them has ended.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::{io, thread};

use super::mailbox::Letter;
use super::{Post, TransportSettings};
use crate::auth::{AuthError, Authenticator, Identity};
use crate::clock::Clock;
use crate::shard::message::{ConnectionId, ShardId};

/// Checks tokens; clones share the threads.
#[derive(Debug, Clone)]
pub(super) struct Verifier {
    authenticator: Arc<Authenticator>,
    clock: Clock,
    jobs: SyncSender<Job>,
}

struct Job {
    shard: ShardId,
    connection: ConnectionId,
    token: String,
}

impl Verifier {
    pub(super) fn start(
        authenticator: &Arc<Authenticator>,
        clock: &Clock,
        posts: &[Post],
        settings: &TransportSettings,
    ) -> io::Result<Self> {
        let (jobs, queue) = sync_channel(settings.verifier_queue_max);
        let queue = Arc::new(Mutex::new(queue));
        for index in 0..settings.verifier_threads.get() {
            let worker = Worker {
                authenticator: Arc::clone(authenticator),
                clock: clock.clone(),
                queue: Arc::clone(&queue),
                posts: posts.to_vec(),
            };
            thread::Builder::new()
                .name(format!("verifier-{index}"))
                .spawn(move || worker.run())?;
        }
        Ok(Self {
            authenticator: Arc::clone(authenticator),
            clock: clock.clone(),
            jobs,
        })
    }

    /// The result, if the check is cheap; else none, and the result comes as a letter.
    pub(super) fn verify(
        &self,
        shard: ShardId,
        connection: ConnectionId,
        token: &str,
    ) -> Option<Result<Identity, AuthError>> {
        if !self.authenticator.is_costly(token) {
            return Some(self.authenticator.verify(token, self.clock.unix_ms()));
        }
        match self.jobs.try_send(Job {
            shard,
            connection,
            token: token.to_owned(),
        }) {
            Ok(()) => None,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                Some(Err(AuthError::Busy))
            }
        }
    }
}

struct Worker {
    authenticator: Arc<Authenticator>,
    clock: Clock,
    queue: Arc<Mutex<Receiver<Job>>>,
    posts: Vec<Post>,
}

impl Worker {
    fn run(self) {
        while let Some(job) = self.next() {
            let outcome = self.authenticator.verify(&job.token, self.clock.unix_ms());
            if let Some(post) = self.posts.get(usize::from(job.shard.0)) {
                post.mailbox.push(Letter::Verified(job.connection, outcome));
                post.mailbox.wake();
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.recv().ok()
    }
}
