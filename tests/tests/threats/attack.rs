//! What every attack has in common: the room beside it, and the one counter that it moves.

use roomful_tests::wait::{PATIENCE, until};
use roomful_tests::{Healthy, Metrics, Server};

/// A series, by name and label: `("roomful_connections_closed_total", Some(("code", "1002")))`.
pub(crate) type Series<'a> = (&'a str, Option<(&'a str, &'a str)>);

/// A server that is about to be attacked, with a healthy room on it.
pub(crate) struct Attack<'a> {
    server: &'a Server,
    healthy: Healthy,
    before: Metrics,
}

impl<'a> Attack<'a> {
    /// Begins to watch.
    pub(crate) async fn beside(server: &'a Server, healthy: Healthy) -> Self {
        Self {
            server,
            healthy,
            before: server.metrics().await,
        }
    }

    /// Checks that the series moved by exactly so many, that nothing panicked, and that the healthy room noticed nothing.
    pub(crate) async fn moved(self, series: Series<'_>, by: f64) {
        let start = read(&self.before, series);
        until(&format!("{series:?} moves by {by}"), PATIENCE, async || {
            read(&self.server.metrics().await, series) - start >= by
        })
        .await;
        self.healthy.check().await;
        let after = self.server.metrics().await;
        assert_eq!(read(&after, series) - start, by, "{series:?}");
        assert_eq!(after.value("roomful_panics_total"), 0.0);
    }
}

fn read(metrics: &Metrics, (name, label): Series<'_>) -> f64 {
    match label {
        Some((label, value)) => metrics.labelled(name, label, value),
        None => metrics.value(name),
    }
}
