//! What is shown of the journal on disk: read from its own counters when somebody looks.

use std::fmt;
use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, MetricFamily, MetricType};

use super::{desc, family, sample};
use crate::journal::Health;
use crate::journal::local::Local;
use crate::journal::local::counters::{Count, Counters, Spread};

/// The journal's numbers.
pub(super) struct JournalMetrics {
    journal: Arc<Local>,
    descs: Vec<Desc>,
}

type Shown = (&'static str, &'static str, fn(&Counters) -> &Count);

const COUNTERS: [Shown; 7] = [
    (
        "roomful_journal_commits_total",
        "Batches that were written to the disk.",
        |counters| &counters.commits,
    ),
    (
        "roomful_journal_records_total",
        "Records in them: entries, snapshots, registers and the like.",
        |counters| &counters.records,
    ),
    (
        "roomful_journal_written_bytes_total",
        "Bytes of them.",
        |counters| &counters.bytes,
    ),
    (
        "roomful_journal_syncs_total",
        "Times that the disk was asked to keep what was written.",
        |counters| &counters.syncs,
    ),
    (
        "roomful_journal_ingestions_total",
        "Segments of the log that went into the store.",
        |counters| &counters.ingestions,
    ),
    (
        "roomful_journal_opens_total",
        "Rooms that were read from the disk, or begun there.",
        |counters| &counters.opens,
    ),
    (
        "roomful_journal_cleanings_total",
        "Rewrites of the store that gave space back.",
        |counters| &counters.cleanings,
    ),
];

const GAUGES: [Shown; 2] = [
    (
        "roomful_journal_segment_bytes",
        "Bytes in segments of the log that are not in the store yet.",
        |counters| &counters.segment_bytes,
    ),
    (
        "roomful_journal_store_bytes",
        "Bytes of entries in the store.",
        |counters| &counters.store_bytes,
    ),
];

const BATCH: (&str, &str) = (
    "roomful_journal_batch_records",
    "Records that were written and synced together.",
);

const COMMIT: (&str, &str) = (
    "roomful_journal_commit_seconds",
    "Time from taking a batch to having it on the disk.",
);

const HEALTH: (&str, &str) = (
    "roomful_journal_health",
    "1 for how the journal is: good, full (too little space on the disk), failed (no more until a restart), damaged.",
);

impl JournalMetrics {
    pub(super) fn new(journal: Arc<Local>) -> Self {
        let shown = COUNTERS.iter().chain(&GAUGES);
        let plain = shown.map(|(name, help, _)| desc(name, help, &[]));
        let others = [BATCH, COMMIT].map(|(name, help)| desc(name, help, &[]));
        let health = desc(HEALTH.0, HEALTH.1, &["state"]);
        Self {
            journal,
            descs: plain.chain(others).chain([health]).collect(),
        }
    }

    fn health(&self) -> MetricFamily {
        let state = match self.journal.health() {
            _ if self.journal.is_damaged() => "damaged",
            Health::Good => "good",
            Health::Full => "full",
            Health::Failed => "failed",
        };
        let samples = ["good", "full", "failed", "damaged"].map(|name| {
            let labels = [("state", name)];
            sample(MetricType::GAUGE, &labels, u64::from(name == state))
        });
        family(HEALTH.0, HEALTH.1, MetricType::GAUGE, samples.into())
    }
}

impl Collector for JournalMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let counters = self.journal.counters();
        let one = |kind, (name, help, count): &Shown| {
            let sample = sample(kind, &[], count(&counters).get());
            family(name, help, kind, vec![sample])
        };
        let mut families: Vec<_> = COUNTERS
            .iter()
            .map(|shown| one(MetricType::COUNTER, shown))
            .chain(GAUGES.iter().map(|shown| one(MetricType::GAUGE, shown)))
            .collect();
        families.push(histogram(BATCH, &counters.batch_records, 1.0));
        families.push(histogram(COMMIT, &counters.commit_us, 1e-6));
        families.push(self.health());
        families
    }
}

/// A spread as a histogram, in another unit.
fn histogram((name, help): (&str, &str), spread: &Spread, unit: f64) -> MetricFamily {
    let mut count = 0;
    let mut bound = 1_u64;
    let mut buckets = Vec::new();
    for seen in spread.classes() {
        count += seen;
        let mut bucket = proto::Bucket::default();
        bucket.set_upper_bound(bound as f64 * unit);
        bucket.set_cumulative_count(count);
        buckets.push(bucket);
        bound *= 2;
    }
    // The last class has no bound, which is the bucket that the format adds by itself.
    buckets.pop();
    let mut histogram = proto::Histogram::default();
    histogram.set_sample_count(count);
    histogram.set_sample_sum(spread.sum() as f64 * unit);
    histogram.set_bucket(buckets);
    let mut metric = proto::Metric::from_label(Vec::new());
    metric.set_histogram(histogram);
    family(name, help, MetricType::HISTOGRAM, vec![metric])
}

impl fmt::Debug for JournalMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournalMetrics").finish_non_exhaustive()
    }
}
