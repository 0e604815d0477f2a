//! What is counted of the keys that tokens are checked with, and of reloads.

use prometheus::{IntCounter, IntGauge, Registry};

use super::{Label, WELL_FORMED, by_label, gauge, labels, resolved};

labels! {
    /// What became of a request for the keys of `auth.jwks_url`.
    KeyFetch by "outcome" {
        /// The keys came.
        Ok = "ok",
        /// There was no whole answer in time.
        Timeout = "timeout",
        /// There was no connection, or it broke.
        Connection = "connection",
        /// The answer was no 200. Redirects are not followed.
        Status = "status",
        /// The answer was too long.
        TooLarge = "too_large",
        /// The answer was no JWK Set, or had no key that can be used.
        Malformed = "malformed",
    }

    /// What became of a SIGHUP.
    Reloaded by "outcome" {
        /// The configuration was read and counts.
        Applied = "applied",
        /// It has problems, and the one before stays.
        Refused = "refused",
    }
}

/// Written by the task that fetches.
#[derive(Debug)]
pub(super) struct KeyMetrics {
    /// One for each [`KeyFetch`], by its index.
    fetches: Vec<IntCounter>,
    /// Of the last good answer.
    known: IntGauge,
    fetched_s: IntGauge,
    /// One for each [`Reloaded`], by its index; written by the task that reloads.
    reloads: Vec<IntCounter>,
}

impl KeyMetrics {
    pub(super) fn register(registry: &Registry) -> Self {
        let fetches = by_label::<KeyFetch>(
            "roomful_jwks_fetches_total",
            "Requests for the keys of auth.jwks_url.",
        );
        let known = gauge(
            "roomful_jwks_keys",
            "Keys in the last good answer of auth.jwks_url.",
        );
        let fetched_s = gauge(
            "roomful_jwks_fetched_timestamp_seconds",
            "When the last good answer of auth.jwks_url came, in seconds since 1970; 0 before the first.",
        );
        let reloads = by_label::<Reloaded>(
            "roomful_reloads_total",
            "Times that the configuration was read again.",
        );
        registry
            .register(Box::new(fetches.clone()))
            .and_then(|()| registry.register(Box::new(known.clone())))
            .and_then(|()| registry.register(Box::new(fetched_s.clone())))
            .and_then(|()| registry.register(Box::new(reloads.clone())))
            .expect(WELL_FORMED);
        Self {
            fetches: resolved::<KeyFetch>(&fetches),
            known,
            fetched_s,
            reloads: resolved::<Reloaded>(&reloads),
        }
    }

    pub(super) fn reloaded(&self, outcome: Reloaded) {
        self.reloads[outcome.index()].inc();
    }

    pub(super) fn fetched(&self, outcome: KeyFetch) {
        self.fetches[outcome.index()].inc();
    }

    pub(super) fn known(&self, count: usize, unix_ms: u64) {
        let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.known.set(whole(count as u64));
        self.fetched_s.set(whole(unix_ms / 1_000));
    }
}
