//! What the process has at one moment, and how it is printed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use roomful_tests::Server;

/// What is as before once everybody has gone, and more while they are here.
pub(crate) const PEOPLE: [&str; 7] = [
    "roomful_connections",
    "roomful_sessions",
    "roomful_rooms",
    "roomful_members",
    "roomful_subscribers",
    "roomful_users",
    "roomful_addresses",
];

/// What is as before once everybody has gone, and may be nothing at any moment.
const REST: [&str; 4] = [
    "roomful_outbox_bytes",
    "roomful_outbox_messages",
    "roomful_input_bytes",
    "roomful_tasks",
];

/// One moment.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// What has to return exactly.
    pub counts: BTreeMap<String, f64>,
    /// What the memory budget accounts for, in bytes, without what a scrape itself takes.
    pub accounted: f64,
    /// What the logs of the rooms hold of it.
    pub log_bytes: f64,
    /// Connections since the start.
    pub opened: f64,
    /// Resident memory in bytes.
    pub resident: f64,
}

impl Sample {
    pub(crate) async fn take(server: &Server) -> Self {
        let metrics = server.metrics().await;
        let process = PathBuf::from(format!("/proc/{}", server.process().id()));
        let entries = |folder: &str| {
            let listing = std::fs::read_dir(process.join(folder));
            listing.map_or(0, Iterator::count)
        };
        let mut counts = metrics.values(&PEOPLE);
        counts.extend(metrics.values(&REST));
        for (name, folder) in [("files", "fd"), ("threads", "task")] {
            let count = u32::try_from(entries(folder)).unwrap_or(u32::MAX);
            counts.insert(name.to_owned(), count.into());
        }
        let accounted = metrics.value("roomful_memory_bytes");
        Self {
            counts,
            accounted: accounted - metrics.labelled("roomful_memory_bytes", "kind", "http"),
            log_bytes: metrics.value("roomful_log_bytes"),
            opened: metrics.value("roomful_connections_opened_total"),
            resident: metrics.value("process_resident_memory_bytes"),
        }
    }

    /// A line of the series; [`HEAD`] is above it.
    pub(crate) fn line(&self, minutes: f64, state: &str) -> String {
        let count = |name: &str| self.counts[name];
        let people = PEOPLE.map(|name| format!("{:>8}", count(name))).concat();
        format!(
            "{minutes:>7.2} {state:>6} {:>8}{people}{:>8}{:>8}{:>6}{:>12.1}{:>12.2}",
            self.opened,
            count("files"),
            count("threads"),
            count("roomful_tasks"),
            self.accounted / 1024.0,
            self.resident / f64::from(1 << 20),
        )
    }
}

/// Names the columns.
pub(crate) const HEAD: &str = " minute  state   opened   conns sessions  rooms members  subscr   users   addrs   files threads tasks  accnt KiB  resident MiB";
