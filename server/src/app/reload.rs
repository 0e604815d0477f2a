//! SIGHUP: the configuration is read again, and what can change while the server runs changes.
//!
//! One task waits for the signal. A configuration with a problem changes nothing. What is applied, each part takes by
//! itself and whole; no connection is closed for it. What needs a restart is named in a warning, and stays. A key that is
//! taken away verifies no token from then on; who is connected with one of its tokens stays until that expires.

use std::error::Error as _;
use std::io;
use std::sync::Arc;

use super::{admission_limits, origin_rule, shard_settings, transport_settings};
use crate::admission::{self, Admission};
use crate::auth::Authenticator;
use crate::config::{AuthConfig, Config, Place, Problem, Problems, ShutdownConfig, Sources};
use crate::current::Current;
use crate::http::OriginRule;
use crate::metrics::{Metrics, Reloaded};
use crate::session::token::ResumeKey;
use crate::shard::ShardSettings;
use crate::shutdown::Shutdown;
use crate::tasks::Tasks;
use crate::tls::Certificates;
use crate::transport::{Shards, TransportSettings};

/// What a reload hands out: everything that can change while the server runs.
#[derive(Debug)]
struct Live {
    auth: AuthConfig,
    shard: Arc<ShardSettings>,
    transport: TransportSettings,
    admission: admission::Limits,
    origins: OriginRule,
    end: ShutdownConfig,
}

/// Reads the configuration anew, and hands it out.
#[derive(Debug)]
pub(super) struct Reload {
    /// Where the configuration comes from.
    pub(super) sources: Sources,
    /// The one that counts now.
    pub(super) config: Config,
    pub(super) resume_key: ResumeKey,
    pub(super) authenticator: Option<Authenticator>,
    pub(super) certificates: Option<Certificates>,
    pub(super) shards: Shards,
    pub(super) admission: Admission,
    pub(super) operators: Admission,
    pub(super) origins: Current<OriginRule>,
    pub(super) end: Current<ShutdownConfig>,
    pub(super) metrics: Metrics,
    pub(super) tasks: Tasks,
    pub(super) shutdown: Shutdown,
}

impl Reload {
    /// Reloads at each signal, until the shutdown.
    pub(super) async fn run(mut self, mut signals: Hangups) {
        loop {
            tokio::select! {
                () = signals.next() => self.reload(),
                () = self.shutdown.wait() => return,
            }
        }
    }

    fn reload(&mut self) {
        match self.apply() {
            Ok(kept) => {
                for key in &kept {
                    tracing::warn!(%key, "this change needs a restart");
                }
                tracing::info!(kept = kept.len(), "the configuration was reloaded");
                self.metrics.reloaded(Reloaded::Applied);
            }
            Err(problems) => {
                for problem in problems.as_slice() {
                    tracing::error!(%problem, "the new configuration is wrong");
                }
                tracing::error!("the configuration was not reloaded; the one before stays");
                self.metrics.reloaded(Reloaded::Refused);
            }
        }
    }

    /// Applies what has changed; the keys that could not be applied.
    fn apply(&mut self) -> Result<Vec<String>, Problems> {
        let newer = Config::load(&self.sources)?;
        let (config, kept) = self.config.renewed(&newer)?;
        let live = Live::of(&config, &self.resume_key)?;
        // What may still refuse goes first.
        if let Some(certificates) = &self.certificates {
            certificates.reload().map_err(|error| {
                let cause = error.source().map(|cause| format!(": {cause}"));
                problem(format!("{error}{}", cause.unwrap_or_default()))
            })?;
        }
        if let Some(authenticator) = &self.authenticator {
            authenticator.reload(&live.auth)?;
            if let Some(keys) = authenticator.remote() {
                let fetching = keys.run(self.metrics.clone(), self.shutdown.clone());
                self.tasks.spawn("jwks", tracing::Span::none(), fetching);
            }
        }
        self.shards.reload(&live.shard, live.transport);
        self.admission.set_limits(live.admission);
        self.operators.set_limits(live.admission.for_operators());
        self.origins.set(live.origins);
        self.end.set(live.end);
        self.config = config;
        Ok(kept)
    }
}

impl Live {
    fn of(config: &Config, resume_key: &ResumeKey) -> Result<Self, Problems> {
        let origins = origin_rule(config).map_err(|error| problem(error.to_string()))?;
        Ok(Self {
            auth: config.auth.clone(),
            shard: Arc::new(shard_settings(config, resume_key.clone())),
            transport: transport_settings(config),
            admission: admission_limits(config),
            origins,
            end: config.shutdown.clone(),
        })
    }
}

/// A problem that shows only where the configuration is used.
fn problem(text: String) -> Problems {
    Problems::from(Problem {
        place: Place::Default,
        text,
    })
}

/// The SIGHUPs that come.
///
/// From its making on, none ends the process.
#[derive(Debug)]
pub(super) struct Hangups {
    #[cfg(unix)]
    signal: tokio::signal::unix::Signal,
}

impl Hangups {
    /// Takes the signal over.
    ///
    /// # Errors
    /// The system refuses a handler.
    #[cfg(unix)]
    pub(super) fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        Ok(Self {
            signal: signal(SignalKind::hangup())?,
        })
    }

    /// There is no such signal here.
    ///
    /// # Errors
    /// Never.
    #[cfg(not(unix))]
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        self.signal.recv().await;
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use roomful_protocol::frame::Durability;

    use super::*;
    use crate::config::{Algorithm, KeyConfig, KeySource, Secret, SecretKey, changed_keys};

    /// Every key that counts at a reload changes something that is handed out, every other is named, and none does both.
    #[test]
    fn a_reload_applies_a_key_or_names_it() {
        let mut keyed = Config::default();
        keyed.auth.keys.push(KeyConfig {
            id: None,
            algorithm: Algorithm::Hs256,
            source: KeySource::Secret(Secret::new("a secret of more than 32 bytes, for a test")),
            place: Place::Default,
        });
        for config in [Config::default(), keyed] {
            check(&config);
        }
    }

    /// Rooms of a namespace without a section may be open, and a server without rooms on disk has no journal for them.
    #[test]
    fn a_namespace_that_comes_with_a_reload_is_stored_as_its_rooms_were() {
        let stored = |config: &Config, newer: &Config| {
            let (renewed, kept) = config.renewed(newer).unwrap();
            (renewed.namespaces["orders"].durability, kept.join(" "))
        };
        let with_orders = |config: &Config| {
            let mut newer = config.clone();
            let mut orders = newer.namespaces["default"].clone();
            orders.durability = Durability::Local;
            newer.namespaces.insert("orders".to_owned(), orders);
            newer
        };
        let anonymous = Config::default();
        let mut keyed = anonymous.clone();
        keyed.auth.keys.push(KeyConfig {
            id: None,
            algorithm: Algorithm::Hs256,
            source: KeySource::Secret(Secret::new("a secret of more than 32 bytes, for a test")),
            place: Place::Default,
        });
        let mut diskless = keyed.clone();
        for namespace in diskless.namespaces.values_mut() {
            namespace.durability = Durability::Memory;
        }
        let kept = "namespaces.orders.durability".to_owned();
        let as_before = (Durability::Memory, kept);
        assert_eq!(stored(&anonymous, &with_orders(&anonymous)), as_before);
        assert_eq!(stored(&diskless, &with_orders(&diskless)), as_before);
        let free = (Durability::Local, String::new());
        assert_eq!(stored(&keyed, &with_orders(&keyed)), free);
    }

    fn check(config: &Config) {
        let before = handed_out(config);
        let changed = changed_keys(config);
        assert!(changed.len() > 60, "{}", changed.len());
        for (key, newer) in changed {
            match config.renewed(&newer) {
                Ok((renewed, kept)) => {
                    let is_applied = handed_out(&renewed) != before;
                    let is_named = kept.iter().any(|kept| kept.starts_with(&key));
                    assert!(is_applied != is_named, "{key}: {is_applied} {kept:?}");
                }
                // Alone it doesn't fit the others; so it is one that a reload looks at.
                Err(problems) => assert!(problems.to_string().contains(&key), "{key}: {problems}"),
            }
        }
    }

    /// Everything that a reload hands out, in words.
    fn handed_out(config: &Config) -> String {
        let resume_key = ResumeKey::new(&SecretKey::from_hex(&"00".repeat(32)).unwrap());
        let mut live = Live::of(config, &resume_key).unwrap();
        // What threads and queues are made with is not looked at again.
        live.transport = TransportSettings {
            mailbox_bytes_max: 0,
            verifier_threads: NonZeroUsize::MIN,
            verifier_queue_max: 0,
            ..live.transport
        };
        format!("{live:?}")
    }
}
