//! The keys of `auth.jwks_url`: fetched, kept, and asked for anew when a token names one that isn't among them.
//!
//! [`Remote::run`] is the one task that fetches, so there is never more than one request on its way. Any thread
//! reads the keys, and may [`Remote::wait`] for the next ones; who waits blocks nobody, and no more than
//! `auth.jwks_waiting_max` do. Keys stay while new ones can't be had, up to `auth.jwks_age_max_s`. A fetch for an
//! unknown key happens at most once in `auth.jwks_unknown_key_s`, however many such tokens come.

use std::error::Error as _;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::error::AuthError;
use super::fetch::{FetchError, Fetcher};
use super::keys::{Keys, Secrets};
use crate::clock::Clock;
use crate::config::{Algorithm, AuthConfig, KeysUrl, Place, Problem};
use crate::current::Current;
use crate::metrics::{KeyFetch, Metrics};
use crate::shutdown::Shutdown;

/// Called once when the keys that were waited for have come, or could not be had.
pub type Waiter = Box<dyn FnOnce() + Send>;

/// The source of the keys that are fetched.
pub struct Remote {
    url: KeysUrl,
    fetcher: Fetcher,
    secrets: Secrets,
    refresh_ms: u64,
    age_max_ms: u64,
    unknown_key_ms: u64,
    waiting_max: usize,
    clock: Clock,
    fetched: Current<Fetched>,
    /// Held for a few lines at a time.
    asked: Mutex<Asked>,
    /// Rings when somebody has asked.
    bell: Notify,
    /// Whether keys have ever come.
    answered: Arc<watch::Sender<bool>>,
    /// Set where a newer configuration has taken over.
    ended: Shutdown,
}

/// The last good answer, and how the last attempt went.
#[derive(Debug, Clone)]
struct Fetched {
    keys: Arc<Keys>,
    /// When they came, on the monotonic clock; none before the first answer.
    at_ms: Option<u64>,
    /// Whether the last attempt brought nothing.
    failing: bool,
}

/// What others want of the task.
#[derive(Default)]
struct Asked {
    /// Whether a fetch is on its way.
    fetching: bool,
    /// Whether another has to follow.
    again: bool,
    /// From when on an unknown key may cause a fetch.
    allowed_ms: u64,
    waiters: Vec<Waiter>,
}

impl Remote {
    /// A source that has fetched nothing yet, or has what the former one had of the same address.
    ///
    /// # Errors
    /// The root certificates can't be used.
    pub(super) fn new(
        config: &AuthConfig,
        url: &KeysUrl,
        clock: &Clock,
        former: Option<&Self>,
    ) -> Result<Self, Problem> {
        let fetcher = Fetcher::new(config, url).map_err(|text| Problem {
            place: Place::Default,
            text,
        })?;
        let former = former.filter(|former| former.url == *url);
        let secrets = if config.jwks_secrets {
            Secrets::Taken
        } else {
            Secrets::PassedOver
        };
        let kept = former.filter(|former| former.secrets == secrets);
        Ok(Self {
            url: url.clone(),
            fetcher,
            secrets,
            refresh_ms: config.jwks_refresh_s * 1_000,
            age_max_ms: config.jwks_age_max_s * 1_000,
            unknown_key_ms: config.jwks_unknown_key_s * 1_000,
            waiting_max: config.jwks_waiting_max,
            clock: clock.clone(),
            fetched: Current::new(kept.map_or_else(Fetched::nothing, |former| {
                Fetched::clone(&former.fetched.get())
            })),
            asked: Mutex::new(Asked {
                allowed_ms: former.map_or(0, |former| former.asked().allowed_ms),
                ..Asked::default()
            }),
            bell: Notify::new(),
            answered: Arc::new(watch::Sender::new(
                kept.is_some_and(|former| *former.answered.borrow()),
            )),
            ended: Shutdown::new(),
        })
    }

    /// Fetches, at once and then at the configured interval or when asked, until the shutdown or a newer configuration.
    pub async fn run(self: Arc<Self>, metrics: Metrics, shutdown: Shutdown) {
        let mut failures = 0;
        while !self.ended.is_triggered() && !shutdown.is_triggered() {
            self.begin();
            let outcome = tokio::select! {
                outcome = self.fetcher.fetch() => self.take(outcome, &metrics),
                () = self.ended.wait() => break,
                () = shutdown.wait() => break,
            };
            failures = if outcome { 0 } else { failures + 1 };
            if self.is_done() {
                tokio::select! {
                    () = sleep(self.pause(failures)) => {}
                    () = self.rung() => {}
                    () = self.ended.wait() => {}
                    () = shutdown.wait() => {}
                }
            }
        }
    }

    /// Comes back when keys have been fetched. Cancel safe.
    pub async fn answered(&self) {
        let mut answers = self.answered.subscribe();
        let answered = answers.wait_for(|answered| *answered).await;
        debug_assert!(answered.is_ok(), "this source keeps the sender alive");
    }

    /// Comes back when a newer configuration has taken over. Cancel safe.
    pub async fn ended(&self) {
        self.ended.wait().await;
    }

    /// Waits for keys that are newer than what is there. The waiter is called once, from any thread.
    ///
    /// # Errors
    /// Unknown keys have caused a fetch just now, so there is nothing to wait for; or too many wait already.
    pub fn wait(&self, waiter: Waiter) -> Result<(), AuthError> {
        let now_ms = self.clock.monotonic_ms();
        let mut asked = self.asked();
        // Looked at under the lock, or somebody could come too late to be handed over.
        if asked.waiters.len() >= self.waiting_max || self.ended.is_triggered() {
            return Err(AuthError::Busy);
        }
        if now_ms >= asked.allowed_ms {
            asked.allowed_ms = now_ms.saturating_add(self.unknown_key_ms);
            asked.again = true;
            self.bell.notify_one();
        } else if !asked.fetching && !asked.again {
            return Err(if self.is_failing() {
                AuthError::KeysUnavailable
            } else {
                AuthError::UnknownKey
            });
        }
        asked.waiters.push(waiter);
        Ok(())
    }

    /// The keys that may be used now: none before the first answer, and none where the last good one is too old.
    pub(super) fn keys(&self) -> Arc<Keys> {
        let fetched = self.fetched.get();
        if self.is_fresh(&fetched) {
            Arc::clone(&fetched.keys)
        } else {
            Arc::default()
        }
    }

    /// Whether the address may have a key for such a token that isn't among these. A token that no key of an address
    /// could ever verify causes no fetch.
    pub(super) fn may_get(&self, algorithm: &str, id: Option<&str>, keys: &Keys) -> bool {
        let asymmetric = [Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa];
        let secret = self.secrets == Secrets::Taken && algorithm == Algorithm::Hs256.name();
        let is_of_ours = secret || asymmetric.iter().any(|known| known.name() == algorithm);
        let is_unknown = match id {
            Some(id) => id.len() <= ID_BYTES_MAX && !keys.has(id),
            // Without a name nothing says that a newer key would fit, unless there is none at all.
            None => keys.count() == 0,
        };
        is_of_ours && is_unknown
    }

    /// Whether the last attempt brought nothing, so that nobody knows which keys there are now.
    pub(super) fn is_failing(&self) -> bool {
        let fetched = self.fetched.get();
        fetched.failing || !self.is_fresh(&fetched)
    }

    /// Ends the task: a newer configuration has taken over. Who waits, waits for that one's keys, or is called.
    pub(super) fn end(&self, successor: Option<&Self>) {
        self.ended.trigger();
        match successor {
            Some(successor) => {
                let mut waiters = std::mem::take(&mut self.asked().waiters);
                successor.asked().waiters.append(&mut waiters);
            }
            None => self.release(),
        }
    }

    fn is_fresh(&self, fetched: &Fetched) -> bool {
        let age_ms = |at_ms| self.clock.monotonic_ms().saturating_sub(at_ms);
        fetched
            .at_ms
            .is_some_and(|at_ms| age_ms(at_ms) <= self.age_max_ms)
    }

    /// Comes back when a fetch is asked for. A ring that was heard already doesn't count twice.
    async fn rung(&self) {
        while !self.asked().again {
            self.bell.notified().await;
        }
    }

    fn begin(&self) {
        let mut asked = self.asked();
        asked.fetching = true;
        asked.again = false;
    }

    /// Whether nobody has asked for more since the fetch began; then all who waited for it are called.
    fn is_done(&self) -> bool {
        let done = {
            let mut asked = self.asked();
            asked.fetching = asked.again;
            !asked.again
        };
        if done {
            self.release();
        }
        done
    }

    fn release(&self) {
        // Called without the lock: they may come back and ask.
        let waiters = std::mem::take(&mut self.asked().waiters);
        waiters.into_iter().for_each(|waiter| waiter());
    }

    /// Takes what came; whether it was good.
    fn take(&self, answer: Result<axum::body::Bytes, FetchError>, metrics: &Metrics) -> bool {
        let read = answer
            .map_err(NoKeys::Fetch)
            .and_then(|text| Keys::read_set(&text, self.secrets).map_err(NoKeys::Set));
        match read {
            Ok(keys) => {
                metrics.keys_fetched(KeyFetch::Ok);
                metrics.keys_known(keys.count(), self.clock.unix_ms());
                self.fetched.set(Fetched {
                    keys: Arc::new(keys),
                    at_ms: Some(self.clock.monotonic_ms()),
                    failing: false,
                });
                self.answered.send_replace(true);
                true
            }
            Err(error) => {
                metrics.keys_fetched(error.label());
                tracing::warn!(%error, url = %self.url.uri(), "no keys could be fetched; the last good ones stay");
                let mut fetched = Fetched::clone(&self.fetched.get());
                fetched.failing = true;
                self.fetched.set(fetched);
                false
            }
        }
    }

    /// Until the next fetch. Many servers that were started together don't ask together for ever.
    fn pause(&self, failures: u32) -> Duration {
        let pause_ms = if failures == 0 {
            self.refresh_ms
        } else {
            let doubled = RETRY_MS.saturating_mul(1 << failures.saturating_sub(1).min(10));
            doubled.min(RETRY_MS_MAX).min(self.refresh_ms)
        };
        // Without chance everything still works.
        let chance = getrandom::u32().unwrap_or(u32::MAX / 2);
        let tenth = pause_ms / 10;
        let shift = u64::from(chance) * 2 * tenth / u64::from(u32::MAX);
        Duration::from_millis(pause_ms - tenth + shift)
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        // Each of the few lines under it leaves it whole.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fetched {
    fn nothing() -> Self {
        Self {
            keys: Arc::default(),
            at_ms: None,
            failing: false,
        }
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("url", &self.url)
            .field("fetched", &self.fetched.get())
            .finish_non_exhaustive()
    }
}

/// Why an attempt brought no keys.
enum NoKeys {
    Fetch(FetchError),
    Set(String),
}

impl NoKeys {
    const fn label(&self) -> KeyFetch {
        match self {
            Self::Fetch(FetchError::Timeout(_)) => KeyFetch::Timeout,
            Self::Fetch(FetchError::Connection(_)) => KeyFetch::Connection,
            Self::Fetch(FetchError::Status(_)) => KeyFetch::Status,
            Self::Fetch(FetchError::TooLarge(_)) => KeyFetch::TooLarge,
            Self::Set(_) => KeyFetch::Malformed,
        }
    }
}

impl fmt::Display for NoKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(text) => write!(f, "the answer {text}"),
            Self::Fetch(error) => {
                write!(f, "{error}")?;
                let mut cause = error.source();
                while let Some(error) = cause {
                    write!(f, ": {error}")?;
                    cause = error.source();
                }
                Ok(())
            }
        }
    }
}

/// As long as the ids that may be configured.
const ID_BYTES_MAX: usize = 256;

/// The first pause after a failure; each further one is twice as long.
const RETRY_MS: u64 = 1_000;

/// The longest one, unless keys are fetched more often anyway.
const RETRY_MS_MAX: u64 = 30_000;
