//! Every metric of the process: its name, its labels, its help.
//!
//! A shard counts in its own [`ShardCounters`], which only its thread writes, so that counting on a message's
//! path costs a load and a store; a scrape adds the shards up. What happens on other threads is counted
//! in [`Metrics`] itself. A label's values are a fixed set in this folder or in the protocol's catalogues:
//! never a room, a user, or anything that a peer sent. What the numbers mean for an operator is left to the
//! dashboards.

mod admin;
mod budget;
mod cells;
mod journal;
mod keys;
mod labels;
mod registries;
mod tls;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};
use roomful_protocol::error::{CloseCode, ErrorCode};

pub use admin::AdminDenial;
pub use cells::{By, Counter, Gauge, Label, Longest};
pub use keys::{KeyFetch, Reloaded};
pub use labels::{
    AuthFailure, HandshakeRejection, LimitedBy, MemoryKind, MemoryShed, PanicPlace, Quota,
    Violation,
};
pub use tls::{TlsHandshake, TlsReload};

use crate::admission::Admission;
use crate::journal::local::Local;
use crate::memory::Memory;
use crate::session::users::Users;
use crate::tasks::Tasks;
use admin::AdminMetrics;
use budget::Budget;
use cells::Row;
use journal::JournalMetrics;
use keys::KeyMetrics;
use labels::labels;
use registries::Registries;
use tls::TlsMetrics;

/// The metrics of a process; a cheap handle.
#[derive(Debug, Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    registry: Registry,
    /// One for each shard, by its index; written by that shard's thread alone.
    shards: Vec<Arc<ShardCounters>>,
    /// One for each [`HandshakeRejection`], by its index; written by HTTP connections.
    rejections: Vec<IntCounter>,
    /// Written by the accept loops.
    accept_errors: IntCounter,
    admin: AdminMetrics,
    /// Written by the accept loops, and shown beside the panics of others.
    acceptor_panics: Arc<AtomicU64>,
    keys: KeyMetrics,
    tls: TlsMetrics,
}

/// Declares [`ShardCounters`]: a field, its kind (see [`Row`]), its metric's name and help. A new metric is a new line.
macro_rules! shard_counters {
    ($( $field:ident: $row:ty = $name:literal, $help:literal; )*) => {
        /// What one shard counts.
        ///
        /// Only the shard's own thread may write: two writers would lose counts. Anybody may read.
        // The alignment keeps two shards off one cache line, and off one pair that the processor fetches together.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct ShardCounters { $( #[doc = $help] pub $field: $row, )* }

        impl ShardCounters {
            fn descs() -> Vec<Desc> {
                vec![$( desc($name, $help, <$row>::LABELS) ),*]
            }

            fn families(shards: &[Arc<Self>]) -> Vec<MetricFamily> {
                vec![$( family($name, $help, <$row>::KIND, <$row>::fold(shards.iter().map(|shard| &shard.$field))) ),*]
            }
        }
    };
}

shard_counters! {
    connections: Gauge = "roomful_connections", "WebSocket connections that are open.";
    connections_opened: Counter = "roomful_connections_opened_total", "WebSocket connections that were handed to a shard.";
    connections_closed: By<Option<CloseCode>> = "roomful_connections_closed_total", "Connections that ended, by the close code sent; none where the socket just went away.";
    sessions: Gauge = "roomful_sessions", "Sessions that are attached or can still be resumed.";
    sessions_resumed: Counter = "roomful_sessions_resumed_total", "Sessions that a new connection resumed.";
    violations: By<Violation> = "roomful_violations_total", "Connections that were closed because the peer broke the WebSocket protocol or a limit of it.";
    connections_revoked: Counter = "roomful_connections_revoked_total", "Connections that the back end ended, by a revocation or a disconnect.";
    auth_failures: By<AuthFailure> = "roomful_auth_failures_total", "Tokens that were refused.";
    rooms: Gauge = "roomful_rooms", "Rooms that are open.";
    members: Gauge = "roomful_members", "Members of the rooms, those inside the presence grace included.";
    subscribers: Gauge = "roomful_subscribers", "Memberships of the connections that are open.";
    input_bytes: Gauge = "roomful_input_bytes", "Bytes of messages that have not arrived whole, or may not be read yet.";
    backlog_bytes: Gauge = "roomful_backlog_bytes", "Bytes of frames that were read and may not be handled yet.";
    log_bytes: Gauge = "roomful_log_bytes", "Bytes that the logs of rooms hold in memory.";
    room_bytes: Gauge = "roomful_room_bytes", "Bytes that rooms hold beside their logs: members, presence values, results of operations, chunks of recoveries.";
    memory_sheds: By<MemoryShed> = "roomful_memory_sheds_total", "Things that were let go of, or not taken in, for want of memory.";
    outbox_bytes: Gauge = "roomful_outbox_bytes", "Bytes that wait in the outboxes.";
    pages_awaited: Gauge = "roomful_pages_awaited", "Pages of history and of members that connections wait for.";
    outbox_messages: Gauge = "roomful_outbox_messages", "Messages that wait in the outboxes.";
    messages_received: Counter = "roomful_messages_received_total", "Frames that clients sent.";
    messages_rejected: Counter = "roomful_messages_rejected_total", "Frames that were answered with an error.";
    errors: By<ErrorCode> = "roomful_errors_total", "Errors that were sent, in error and left frames.";
    publishes: Counter = "roomful_publishes_total", "Publishes that entered a log.";
    publish_duplicates: Counter = "roomful_publish_duplicates_total", "Publishes that were answered from the window of op ids.";
    state_writes: Counter = "roomful_state_writes_total", "Writes of keyed state that entered a log.";
    lock_changes: Counter = "roomful_lock_changes_total", "Grants, releases and other changes of locks that entered a log.";
    timers_fired: Counter = "roomful_timers_fired_total", "Timers whose firing entered a log.";
    cursors_forgotten: Counter = "roomful_cursors_forgotten_total", "Users whose cursors were forgotten, since too many of a room had some.";
    departures: Counter = "roomful_departures_total", "Writes that members had left and that were made when they were gone.";
    quota_refusals: By<Quota> = "roomful_quota_refusals_total", "Requests that were refused because a room keeps as much as it may, by the bound.";
    snapshots: Counter = "roomful_snapshots_total", "Snapshots of rooms that were given to a journal.";
    deliveries: Counter = "roomful_deliveries_total", "Events that were put into an outbox or a socket.";
    events_recovered: Counter = "roomful_events_recovered_total", "Events that were sent out of the history to a member behind.";
    catch_ups: Counter = "roomful_catch_ups_total", "Times that a member fell behind and was switched to its own position in the log.";
    resets: Counter = "roomful_resets_total", "Times that a member was told that the history after its position is gone.";
    signals: Counter = "roomful_signals_total", "Signals that were accepted.";
    signals_conflated: Counter = "roomful_signals_conflated_total", "Waiting signals that a newer one with the same key replaced.";
    signals_dropped: Counter = "roomful_signals_dropped_total", "Signals that a full outbox refused.";
    presence_deltas: Counter = "roomful_presence_deltas_total", "Presence deltas that were sent.";
    presence_conflated: Counter = "roomful_presence_conflated_total", "Presence changes that a newer one of the same member replaced.";
    journal_appends: Counter = "roomful_journal_appends_total", "Appends that the journal completed.";
    journal_failures: Counter = "roomful_journal_failures_total", "Appends that the journal failed, or whose outcome is unknown.";
    mailbox_messages: Counter = "roomful_mailbox_messages_total", "Messages between shards.";
    mailbox_full: Counter = "roomful_mailbox_full_total", "Messages between shards that found the mailbox full.";
    rate_limited: By<LimitedBy> = "roomful_rate_limited_total", "Frames and connections that were refused because there were too many, by the limit.";
    panics: By<PanicPlace> = "roomful_panics_total", "Panics, each of which ended one thing alone, by what that was.";
    turns: Counter = "roomful_turns_total", "Turns of the shards' loops.";
    turn_over_budget: Counter = "roomful_turn_over_budget_total", "Turns that were cut because their time was spent.";
    turns_stalled: Counter = "roomful_turns_stalled_total", "Turns that took longer than shard.turn_warning_ms.";
    turn_longest_us: Longest = "roomful_turn_longest_us", "Microseconds that the longest turn since the start took.";
}

impl Metrics {
    /// Metrics of a process with this many shards.
    ///
    /// # Panics
    /// Never: the names in this file are well-formed and distinct, which a test checks.
    #[must_use]
    pub fn new(tasks: Tasks, shards: usize) -> Self {
        let registry = Registry::new();
        let shards: Vec<_> = (0..shards)
            .map(|_index| Arc::new(ShardCounters::default()))
            .collect();
        let rejections = by_label::<HandshakeRejection>(
            "roomful_handshakes_rejected_total",
            "Connections that got no WebSocket, or no answer at all.",
        );
        let accept_errors = Opts::new(
            "roomful_accept_errors_total",
            "Connections that could not be accepted.",
        );
        let accept_errors = IntCounter::with_opts(accept_errors).expect(WELL_FORMED);
        let acceptor_panics = Arc::new(AtomicU64::new(0));
        let collectors: [Box<dyn Collector>; 4] = [
            Box::new(Shards {
                counters: shards.clone(),
                tasks: tasks.clone(),
                acceptor_panics: Arc::clone(&acceptor_panics),
                descs: ShardCounters::descs(),
            }),
            Box::new(Process {
                tasks,
                descs: Process::descs(),
            }),
            Box::new(rejections.clone()),
            Box::new(accept_errors.clone()),
        ];
        for collector in collectors {
            registry.register(collector).expect(WELL_FORMED);
        }
        let admin = AdminMetrics::register(&registry);
        let keys = KeyMetrics::register(&registry);
        let tls = TlsMetrics::register(&registry);
        let inner = Inner {
            admin,
            registry,
            shards,
            rejections: resolved::<HandshakeRejection>(&rejections),
            accept_errors,
            acceptor_panics,
            keys,
            tls,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Shows a memory budget too.
    ///
    /// # Panics
    /// It shows one already.
    pub fn show_budget(&self, memory: Memory) {
        let budget = Budget::new(memory);
        self.inner
            .registry
            .register(Box::new(budget))
            .expect("there is one budget");
    }

    /// Shows how many users and addresses are counted too.
    ///
    /// # Panics
    /// It shows them already.
    pub fn show_registries(&self, users: Users, admission: Admission) {
        let registries = Registries::new(users, admission);
        self.inner
            .registry
            .register(Box::new(registries))
            .expect("there is one registry of each");
    }

    /// Shows the journal on disk too.
    ///
    /// # Panics
    /// It shows one already.
    pub fn show_journal(&self, journal: Arc<Local>) {
        self.inner
            .registry
            .register(Box::new(JournalMetrics::new(journal)))
            .expect("there is one journal on disk");
    }

    /// The shards' counters, by the shard's index.
    #[must_use]
    pub fn shards(&self) -> &[Arc<ShardCounters>] {
        &self.inner.shards
    }

    /// Counts a connection that got no WebSocket.
    pub fn handshake_rejected(&self, reason: HandshakeRejection) {
        self.inner.rejections[reason.index()].inc();
    }

    /// How many connections got no WebSocket for this reason.
    #[must_use]
    pub fn handshakes_rejected(&self, reason: HandshakeRejection) -> u64 {
        self.inner.rejections[reason.index()].get()
    }

    /// Counts a connection that could not be accepted.
    pub fn accept_failed(&self) {
        self.inner.accept_errors.inc();
    }

    /// Counts a panic over a socket that had just been accepted.
    pub fn acceptor_panicked(&self) {
        self.inner.acceptor_panics.fetch_add(1, Ordering::Relaxed);
    }

    /// How many connections could not be accepted.
    #[must_use]
    pub fn accept_errors(&self) -> u64 {
        self.inner.accept_errors.get()
    }

    /// Counts a TLS handshake that has ended.
    pub fn tls_handshake(&self, outcome: TlsHandshake) {
        self.inner.tls.handshake(outcome);
    }

    /// Counts a connection over TLS that begins.
    pub fn tls_opened(&self) {
        self.inner.tls.opened();
    }

    /// Counts one that ends.
    pub fn tls_closed(&self) {
        self.inner.tls.closed();
    }

    /// Notes how many encrypted bytes a socket has not taken, and how many that were before.
    pub fn tls_unsent(&self, before: usize, after: usize) {
        self.inner.tls.unsent(before, after);
    }

    /// How many connections over TLS there are, and how many encrypted bytes their sockets have not taken.
    #[must_use]
    pub fn tls_held(&self) -> (u64, u64) {
        (self.inner.tls.connections(), self.inner.tls.unsent_bytes())
    }

    /// Counts a connection that broke TLS after its handshake.
    pub fn tls_violated(&self) {
        self.inner.tls.violated();
    }

    /// Counts a certificate that was read again.
    pub fn tls_reloaded(&self, outcome: TlsReload) {
        self.inner.tls.reloaded(outcome);
    }

    /// Notes when the certificate in use expires.
    pub fn certificate_expires(&self, unix_s: i64) {
        self.inner.tls.expires(unix_s);
    }

    /// Counts a request for keys.
    pub fn keys_fetched(&self, outcome: KeyFetch) {
        self.inner.keys.fetched(outcome);
    }

    /// Counts a reload of the configuration.
    pub fn reloaded(&self, outcome: Reloaded) {
        self.inner.keys.reloaded(outcome);
    }

    /// Notes the keys of a good answer.
    pub fn keys_known(&self, count: usize, unix_ms: u64) {
        self.inner.keys.known(count, unix_ms);
    }

    /// All of it in the text format, [`TEXT_FORMAT`].
    ///
    /// # Panics
    /// Never: the families have names and samples, which a test checks.
    #[must_use]
    pub fn render(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.inner.registry.gather())
            .expect(WELL_FORMED)
    }
}

/// The content type of [`Metrics::render`].
pub const TEXT_FORMAT: &str = prometheus::TEXT_FORMAT;

/// Adds the shards up when somebody looks.
struct Shards {
    counters: Vec<Arc<ShardCounters>>,
    /// Whose panics are counted with those of the shards.
    tasks: Tasks,
    /// And those of the accept loops.
    acceptor_panics: Arc<AtomicU64>,
    descs: Vec<Desc>,
}

impl Collector for Shards {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let others = ShardCounters::default();
        for (place, panics) in [
            (PanicPlace::Task, self.tasks.panics()),
            (
                PanicPlace::Acceptor,
                self.acceptor_panics.load(Ordering::Relaxed),
            ),
        ] {
            others.panics.of(place).add(panics);
        }
        let mut counters = self.counters.clone();
        counters.push(Arc::new(others));
        ShardCounters::families(&counters)
    }
}

/// What the process as a whole looks like, read when somebody looks.
struct Process {
    tasks: Tasks,
    descs: Vec<Desc>,
}

impl Process {
    fn descs() -> Vec<Desc> {
        vec![
            desc(BUILD_INFO.0, BUILD_INFO.1, &["version"]),
            desc(TASKS.0, TASKS.1, &["task"]),
            desc(RESIDENT_BYTES.0, RESIDENT_BYTES.1, &[]),
            desc(OPEN_FILES.0, OPEN_FILES.1, &[]),
        ]
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let build = sample(
            MetricType::GAUGE,
            &[("version", env!("CARGO_PKG_VERSION"))],
            1,
        );
        let live = self.tasks.live().into_iter();
        let live =
            live.map(|(name, live)| sample(MetricType::GAUGE, &[("task", name)], live as u64));
        // Absent where the system does not tell; the registry leaves out families without samples.
        let gauge = |value: Option<u64>| {
            value
                .map(|value| sample(MetricType::GAUGE, &[], value))
                .into_iter()
                .collect()
        };
        vec![
            family(BUILD_INFO.0, BUILD_INFO.1, MetricType::GAUGE, vec![build]),
            family(TASKS.0, TASKS.1, MetricType::GAUGE, live.collect()),
            family(
                RESIDENT_BYTES.0,
                RESIDENT_BYTES.1,
                MetricType::GAUGE,
                gauge(resident_bytes()),
            ),
            family(
                OPEN_FILES.0,
                OPEN_FILES.1,
                MetricType::GAUGE,
                gauge(system::open_files()),
            ),
        ]
    }
}

const BUILD_INFO: (&str, &str) = (
    "roomful_build_info",
    "Always 1; the version is in the label.",
);
const TASKS: (&str, &str) = ("roomful_tasks", "Tasks that are live, by their name.");
const RESIDENT_BYTES: (&str, &str) = (
    "process_resident_memory_bytes",
    "Bytes of memory that the process holds.",
);
const OPEN_FILES: (&str, &str) = (
    "process_open_fds",
    "Files and sockets that the process holds open.",
);

pub use system::resident_bytes;

/// What the system knows about this process.
#[cfg(target_os = "linux")]
mod system {
    /// Bytes of memory that the process holds; none where the system doesn't tell.
    #[must_use]
    pub fn resident_bytes() -> Option<u64> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kibibytes * 1024)
    }

    /// File descriptors, without the one that reads them.
    pub(super) fn open_files() -> Option<u64> {
        let entries = std::fs::read_dir("/proc/self/fd").ok()?.count();
        Some(entries.saturating_sub(1) as u64)
    }
}

/// What the system knows about this process: nothing that we read.
#[cfg(not(target_os = "linux"))]
mod system {
    /// Bytes of memory that the process holds; none where the system doesn't tell.
    #[must_use]
    pub fn resident_bytes() -> Option<u64> {
        None
    }

    pub(super) fn open_files() -> Option<u64> {
        None
    }
}

fn by_label<L: Label>(name: &str, help: &str) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), &[L::NAME]).expect(WELL_FORMED)
}

fn gauge(name: &str, help: &str) -> IntGauge {
    IntGauge::new(name, help).expect(WELL_FORMED)
}

/// A counter for each value of a label. Resolved once, which also makes every series exist from the start, at 0.
fn resolved<L: Label>(counters: &IntCounterVec) -> Vec<IntCounter> {
    let texts = L::all().into_iter().map(L::text);
    texts
        .map(|text| counters.with_label_values(&[text]))
        .collect()
}

fn desc(name: &str, help: &str, labels: &[&str]) -> Desc {
    let labels = labels.iter().map(|&label| label.to_owned()).collect();
    Desc::new(name.to_owned(), help.to_owned(), labels, HashMap::new()).expect(WELL_FORMED)
}

fn family(name: &str, help: &str, kind: MetricType, samples: Vec<proto::Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(samples);
    family
}

fn sample(kind: MetricType, labels: &[(&str, &str)], value: u64) -> proto::Metric {
    let mut metric = proto::Metric::from_label(
        labels
            .iter()
            .map(|(name, value)| label_pair(name, value))
            .collect(),
    );
    // The text format's numbers are doubles: beyond 2^53 the last digits go.
    if kind == MetricType::GAUGE {
        let mut gauge = proto::Gauge::default();
        gauge.set_value(value as f64);
        metric.set_gauge(gauge);
    } else {
        let mut counter = proto::Counter::default();
        counter.set_value(value as f64);
        metric.set_counter(counter);
    }
    metric
}

fn label_pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

/// Why building a metric of this file does not fail.
const WELL_FORMED: &str = "the names and labels of this file are well-formed and distinct";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The shards' numbers are added up, by label where there is one, and gauges go down again.
    #[test]
    fn a_scrape_adds_the_shards_up() {
        let metrics = Metrics::new(Tasks::new(), 2);
        let [first, second] = metrics.shards() else {
            panic!("two shards")
        };
        first.deliveries.add(3);
        second.deliveries.add(4);
        first.members.add(5);
        second.members.add(2);
        first.members.sub(5);
        second.rooms.set(9);
        first.connections_closed.of(None).add(1);
        second
            .connections_closed
            .of(Some(CloseCode::Restart))
            .add(2);
        second.errors.of(ErrorCode::Internal).add(1);
        first.auth_failures.of(AuthFailure::Mismatch).add(1);
        metrics.handshake_rejected(HandshakeRejection::Draining);

        let text = metrics.render();
        for line in [
            "roomful_deliveries_total 7",
            "roomful_members 2",
            "roomful_rooms 9",
            "roomful_connections_closed_total{code=\"none\"} 1",
            "roomful_connections_closed_total{code=\"1012\"} 2",
            "roomful_errors_total{code=\"internal\"} 1",
            "roomful_auth_failures_total{kind=\"mismatch\"} 1",
            "roomful_handshakes_rejected_total{reason=\"draining\"} 1",
            "roomful_handshakes_rejected_total{reason=\"malformed\"} 0",
            "roomful_accept_errors_total 0",
            "# TYPE roomful_members gauge",
            "# TYPE roomful_deliveries_total counter",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is missing in:\n{text}"
            );
        }
    }

    /// Counters end in `_total` and gauges do not, every sample has its family's help and type, and no series
    /// comes twice.
    #[test]
    fn the_exposition_follows_the_conventions() {
        let tasks = Tasks::new();
        let text = Metrics::new(tasks, 1).render();
        let mut series = BTreeSet::new();
        let mut family = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                name.clone_into(&mut family);
                assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            } else if !line.starts_with("# HELP ") {
                let (name, value) = line.rsplit_once(' ').unwrap();
                assert!(value.parse::<f64>().is_ok(), "{line}");
                assert_eq!(name.split('{').next(), Some(family.as_str()), "{line}");
                assert!(series.insert(name.to_owned()), "{line} comes twice");
            }
        }
        assert!(
            series.contains("roomful_build_info{version=\"0.1.0\"}"),
            "{series:?}"
        );
    }

    /// Every value of a label has a place of its own.
    #[test]
    fn labels_are_numbered_in_their_order() {
        fn check<L: Label>() {
            for (place, label) in L::all().into_iter().enumerate() {
                assert_eq!(label.index(), place, "{}", label.text());
            }
        }
        check::<LimitedBy>();
        check::<PanicPlace>();
        check::<AuthFailure>();
        check::<HandshakeRejection>();
        check::<KeyFetch>();
        check::<Reloaded>();
        check::<TlsHandshake>();
        check::<TlsReload>();
        check::<ErrorCode>();
        check::<Option<CloseCode>>();
    }

    /// A process that runs holds memory and at least its three standard files.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_system_tells_memory_and_files() {
        assert!(resident_bytes().unwrap() > 1 << 20);
        assert!(system::open_files().unwrap() >= 3);
    }
}
