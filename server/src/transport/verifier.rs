//! A few threads that check tokens whose signatures are too costly for a shard's thread.
//!
//! The queue is bounded; what does not fit is refused at once. A token with an unknown key waits for newer keys
//! first, in the bounded queue of its source, and blocks nobody. A panic ends the one check. The threads end when
//! the last shard that could ask them has ended.

use std::fmt;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::{io, thread};

use super::mailbox::Letter;
use super::{Post, TransportSettings};
use crate::auth::{Assessed, AuthError, Authenticator, Identity};
use crate::clock::Clock;
use crate::shard::message::{ConnectionId, ShardId};
use crate::survive::survive;

/// Who knows what a token is worth: the server's is [`Authenticator`]. Any thread may ask at any time.
pub trait Judge: fmt::Debug + Send + Sync {
    /// Checks a token if that is cheap.
    fn assess(&self, token: &str, now_unix_ms: u64) -> Assessed;

    /// Checks a token, whatever that takes.
    ///
    /// # Errors
    /// The first reason not to believe it.
    fn verify(&self, token: &str, now_unix_ms: u64) -> Result<Identity, AuthError>;
}

impl Judge for Authenticator {
    fn assess(&self, token: &str, now_unix_ms: u64) -> Assessed {
        Self::assess(self, token, now_unix_ms)
    }

    fn verify(&self, token: &str, now_unix_ms: u64) -> Result<Identity, AuthError> {
        Self::verify(self, token, now_unix_ms)
    }
}

/// Checks tokens; clones share the threads.
#[derive(Debug, Clone)]
pub(super) struct Verifier {
    judge: Arc<dyn Judge>,
    clock: Clock,
    jobs: SyncSender<Job>,
    posts: Vec<Post>,
}

struct Job {
    shard: ShardId,
    connection: ConnectionId,
    token: String,
}

impl Verifier {
    pub(super) fn start(
        judge: &Arc<dyn Judge>,
        clock: &Clock,
        posts: &[Post],
        settings: &TransportSettings,
    ) -> io::Result<Self> {
        let (jobs, queue) = sync_channel(settings.verifier_queue_max);
        let queue = Arc::new(Mutex::new(queue));
        for index in 0..settings.verifier_threads.get() {
            let worker = Worker {
                judge: Arc::clone(judge),
                clock: clock.clone(),
                queue: Arc::clone(&queue),
                posts: posts.to_vec(),
            };
            thread::Builder::new()
                .name(format!("verifier-{index}"))
                .spawn(move || worker.run())?;
        }
        Ok(Self {
            judge: Arc::clone(judge),
            clock: clock.clone(),
            jobs,
            posts: posts.to_vec(),
        })
    }

    /// The result, if the check is cheap; else none, and the result comes as a letter.
    pub(super) fn verify(
        &self,
        shard: ShardId,
        connection: ConnectionId,
        token: &str,
    ) -> Option<Result<Identity, AuthError>> {
        let job = || Job {
            shard,
            connection,
            token: token.to_owned(),
        };
        match self.judge.assess(token, self.clock.unix_ms()) {
            Assessed::Done(outcome) => Some(outcome),
            Assessed::Costly => self.enqueue(job()).err().map(Err),
            Assessed::UnknownKey(keys) => {
                let (this, job) = (self.clone(), job());
                let retry = move || {
                    if let Err(error) = this.enqueue(job) {
                        answer(&this.posts, shard, connection, Err(error));
                    }
                };
                keys.wait(Box::new(retry)).err().map(Err)
            }
        }
    }

    fn enqueue(&self, job: Job) -> Result<(), AuthError> {
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => AuthError::Busy,
        })
    }
}

/// Tells a shard what a token is worth.
fn answer(
    posts: &[Post],
    shard: ShardId,
    connection: ConnectionId,
    outcome: Result<Identity, AuthError>,
) {
    if let Some(post) = posts.get(usize::from(shard.0)) {
        post.mailbox.push(Letter::Verified(connection, outcome));
        post.mailbox.wake();
    }
}

struct Worker {
    judge: Arc<dyn Judge>,
    clock: Clock,
    queue: Arc<Mutex<Receiver<Job>>>,
    posts: Vec<Post>,
}

impl Worker {
    fn run(self) {
        while let Some(job) = self.next() {
            let check = || self.judge.verify(&job.token, self.clock.unix_ms());
            let outcome = survive(check).unwrap_or_else(|| {
                tracing::error!("checking a token panicked; its connection is refused");
                Err(AuthError::Internal)
            });
            answer(&self.posts, job.shard, job.connection, outcome);
        }
    }

    fn next(&self) -> Option<Job> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.recv().ok()
    }
}
