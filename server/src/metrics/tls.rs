//! What is counted of TLS.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus::{IntCounter, IntGauge, Registry};

use super::{Label, WELL_FORMED, by_label, gauge, labels, resolved};

labels! {
    /// How a TLS handshake ended.
    TlsHandshake by "outcome" {
        /// A good one with the certificate.
        Full = "full",
        /// A good one with a ticket of an earlier one.
        Resumed = "resumed",
        /// What came is HTTP without TLS.
        PlainHttp = "plain_http",
        /// What came is not TLS, or breaks it.
        Malformed = "malformed",
        /// No version or cipher that both sides have.
        Incompatible = "incompatible",
        /// The client wants to speak something else than HTTP/1.1.
        Alpn = "alpn",
        /// The client refused: most often it doesn't trust the certificate.
        Alert = "alert",
        /// The client went away.
        Gone = "gone",
        /// It took too long.
        Timeout = "timeout",
        /// There were as many as there may be at a time.
        Busy = "busy",
    }

    /// What became of a certificate that was read again.
    TlsReload by "outcome" {
        /// It is in use.
        Loaded = "loaded",
        /// It is no good; the old one stays in use.
        Failed = "failed",
    }
}

/// Written by HTTP connections, by shards, and by whoever reads the certificate.
#[derive(Debug)]
pub(super) struct TlsMetrics {
    /// One for each [`TlsHandshake`], by its index.
    handshakes: Vec<IntCounter>,
    violations: IntCounter,
    /// One for each [`TlsReload`], by its index.
    reloads: Vec<IntCounter>,
    expires_s: IntGauge,
    connections: IntGauge,
    /// Encrypted bytes that sockets have not taken.
    unsent_bytes: AtomicU64,
}

impl TlsMetrics {
    pub(super) fn register(registry: &Registry) -> Self {
        let handshakes = by_label::<TlsHandshake>(
            "roomful_tls_handshakes_total",
            "TLS handshakes that have ended.",
        );
        let violations = IntCounter::new(
            "roomful_tls_violations_total",
            "Connections that broke TLS after their handshake.",
        )
        .expect(WELL_FORMED);
        let reloads = by_label::<TlsReload>(
            "roomful_tls_reloads_total",
            "Times that the certificate was read again.",
        );
        let expires_s = gauge(
            "roomful_tls_certificate_expires_timestamp_seconds",
            "When the certificate in use expires, in seconds since 1970; 0 without one.",
        );
        let connections = gauge("roomful_tls_connections", "WebSocket connections over TLS.");
        registry
            .register(Box::new(handshakes.clone()))
            .and_then(|()| registry.register(Box::new(violations.clone())))
            .and_then(|()| registry.register(Box::new(reloads.clone())))
            .and_then(|()| registry.register(Box::new(expires_s.clone())))
            .and_then(|()| registry.register(Box::new(connections.clone())))
            .expect(WELL_FORMED);
        Self {
            handshakes: resolved::<TlsHandshake>(&handshakes),
            violations,
            reloads: resolved::<TlsReload>(&reloads),
            expires_s,
            connections,
            unsent_bytes: AtomicU64::new(0),
        }
    }

    pub(super) fn handshake(&self, outcome: TlsHandshake) {
        self.handshakes[outcome.index()].inc();
    }

    pub(super) fn opened(&self) {
        self.connections.inc();
    }

    pub(super) fn closed(&self) {
        self.connections.dec();
    }

    pub(super) fn connections(&self) -> u64 {
        u64::try_from(self.connections.get()).unwrap_or(0)
    }

    pub(super) fn unsent(&self, before: usize, after: usize) {
        let (before, after) = (before as u64, after as u64);
        self.unsent_bytes.fetch_add(after, Ordering::Relaxed);
        self.unsent_bytes.fetch_sub(before, Ordering::Relaxed);
    }

    pub(super) fn unsent_bytes(&self) -> u64 {
        self.unsent_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn violated(&self) {
        self.violations.inc();
    }

    pub(super) fn reloaded(&self, outcome: TlsReload) {
        self.reloads[outcome.index()].inc();
    }

    pub(super) fn expires(&self, unix_s: i64) {
        self.expires_s.set(unix_s);
    }
}
