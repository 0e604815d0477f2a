//! What is counted of the admin listener's operations.

use prometheus::{IntCounter, IntGauge, Registry};

use super::{Label, Metrics, WELL_FORMED, by_label, gauge, labels, resolved};

labels! {
    /// Why the admin listener has denied a request.
    AdminDenial by "reason" {
        /// It was called by a name that is not this machine's own.
        Host = "host",
        /// No key was shown.
        Missing = "missing",
        /// Another key was shown.
        Wrong = "wrong",
        /// Too many wrong keys came from the address.
        Limited = "limited",
    }
}

/// Written by the admin listener's requests, and by the task that looks after revocations.
#[derive(Debug)]
pub(super) struct AdminMetrics {
    /// One for each [`AdminDenial`], by its index.
    denials: Vec<IntCounter>,
    revocations: IntGauge,
}

impl AdminMetrics {
    pub(super) fn register(registry: &Registry) -> Self {
        let denials = by_label::<AdminDenial>(
            "roomful_admin_denied_total",
            "Requests that the admin listener has denied.",
        );
        let revocations = gauge(
            "roomful_revocations",
            "Users, sessions and token ids that are revoked.",
        );
        registry
            .register(Box::new(denials.clone()))
            .and_then(|()| registry.register(Box::new(revocations.clone())))
            .expect(WELL_FORMED);
        Self {
            denials: resolved::<AdminDenial>(&denials),
            revocations,
        }
    }
}

impl Metrics {
    /// Counts a request that the admin listener has denied.
    pub fn admin_denied(&self, reason: AdminDenial) {
        self.inner.admin.denials[reason.index()].inc();
    }

    /// Notes how many users, sessions and token ids are revoked.
    pub fn revoked(&self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.inner.admin.revocations.set(count);
    }
}
