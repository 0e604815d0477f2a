//! The wiring: from a configuration to a running server and back to nothing.
//!
//! The only place that knows all parts. Everything that can fail at the start fails here, before anybody is
//! let in, with one line that says what to do.

mod listeners;
mod reload;
mod rooms;
mod storage;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, timeout_at};

use crate::admin::key::{AdminKey, AdminKeyError};
use crate::admin::{self, Admin, AdminSettings};
use crate::admission::client::Trust;
use crate::admission::{self, Admission, descriptors};
use crate::auth::Authenticator;
use crate::clock::Clock;
use crate::config::{
    Config, DEFAULT_NAMESPACE, HttpConfig, NamespaceConfig, Problems, ShutdownConfig, Sources,
    is_loopback,
};
use crate::connection::{Rate, Rates};
use crate::current::Current;
use crate::directory::Directory;
use crate::http::{
    self, Limits, Operations, Origin, OriginError, OriginRule, Readiness, Site, Tls,
};
use crate::journal::local::{Local, Notify, OpenError};
use crate::journal::memory::MemoryJournal;
use crate::journal::{Journal, Journals};
use crate::memory::{
    Elsewhere, HTTP_CONNECTION_BYTES, Marks, Memory, TLS_CONNECTION_BYTES, budget_of_system,
};
use crate::metrics::Metrics;
use crate::session::DataFileError;
use crate::session::generation::Generation;
use crate::session::index::Sessions;
use crate::session::revocation_file::RevocationFile;
use crate::session::token::{ResumeKey, ResumeKeyError};
use crate::session::users::{UserLimits, Users};
use crate::shard::message::ShardId;
use crate::shard::{Shard, ShardSettings, Shared};
use crate::shutdown::{Plan, Shutdown, Signal, Signals, is_on_terminal};
use crate::tasks::Tasks;
use crate::tls::{CertificateError, Certificates, Files};
use crate::transport::{Judge, Parts, Shards, ThreadEnded, Threads, TransportSettings};
use listeners::{deaf, listen};
use reload::{Hangups, Reload};
use rooms::room_settings;
use storage::{Returns, open_journal};

pub use storage::{RepairFailed, repair};

/// Why the server did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// An address can't be listened on.
    #[error("can't listen on {address} for the {listener} listener: {advice}")]
    Listen {
        /// Which listener.
        listener: &'static str,
        /// Where.
        address: SocketAddr,
        /// What to do.
        advice: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A listener has ended; nobody comes in by it any more, so the process ends too.
    #[error("the {listener} listener has ended")]
    Deaf {
        /// Which listener.
        listener: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The system gives no threads, timers or signals.
    #[error("the system gives no threads or event queues")]
    System(#[source] io::Error),
    /// The keys for tokens are unusable.
    #[error(transparent)]
    Keys(#[from] Problems),
    /// There is no certificate to show.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The key for resume tokens is unusable.
    #[error(transparent)]
    ResumeKey(#[from] ResumeKeyError),
    /// The key of the admin listener is unusable.
    #[error(transparent)]
    AdminKey(#[from] AdminKeyError),
    /// The data directory is unusable.
    #[error(transparent)]
    Data(#[from] DataFileError),
    /// The rooms on disk can't be used.
    #[error(transparent)]
    Journal(#[from] OpenError),
    /// A configured origin is none.
    #[error("listen.origins: {text:?} is no origin")]
    Origin {
        /// As configured.
        text: String,
        /// Why not.
        #[source]
        source: OriginError,
    },
    /// A shard's thread has ended; what it held is gone, so the process ends too.
    #[error(transparent)]
    Thread(#[from] ThreadEnded),
    /// A second signal came before everybody had been told to come back.
    #[error("a second signal ({signal}) ended it before everybody was told to come back")]
    Interrupted {
        /// The second one.
        signal: Signal,
    },
}

/// Runs the server until it is told to stop.
///
/// # Errors
/// It can't start, or a part of it that it can't do without has ended.
pub fn run(config: &Config, sources: Sources) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .enable_all()
        .build()
        .map_err(RunError::System)?;
    let outcome = runtime.block_on(async { App::start(config, sources).await?.serve().await });
    // What is left is asked nothing any more.
    runtime.shutdown_background();
    outcome
}

/// A server that has everything it needs and has let nobody in yet.
struct App {
    /// The rooms on disk.
    local: Option<Arc<Local>>,
    public: TcpListener,
    admin: TcpListener,
    operations: Operations,
    back_end: Admin,
    shards: Shards,
    threads: Threads,
    metrics: Metrics,
    tasks: Tasks,
    readiness: Readiness,
    authenticator: Option<Authenticator>,
    origins: Current<OriginRule>,
    tls: Option<Tls>,
    /// Who may come in at the public listener.
    admission: Admission,
    /// Who may come in at the admin listener, counted apart.
    operators: Admission,
    limits: Limits,
    end: Current<ShutdownConfig>,
    shutdown: Shutdown,
    reload: Reload,
}

impl App {
    async fn start(config: &Config, sources: Sources) -> Result<Self, RunError> {
        let clock = Clock::system();
        raise_descriptors();
        let origins = Current::new(origin_rule(config)?);
        let authenticator = authenticator(config, &clock)?;
        let tasks = Tasks::new();
        let metrics = Metrics::new(tasks.clone(), config.shard_count().get());
        let tls = tls(config, &clock, &metrics)?;
        let unsent = u32::try_from(config.connection.kernel_unsent_bytes_max).unwrap_or(u32::MAX);
        let patience = Instant::now() + Duration::from_millis(config.listen.wait_ms);
        let public = listen("public", config.listen.public, unsent, patience).await?;
        let admin = listen("admin", config.listen.admin, unsent, patience).await?;
        let data_dir = Path::new(&config.node.data_dir);
        let resume_key = ResumeKey::open(&config.auth, data_dir)?;
        let admin_key = AdminKey::open(&config.admin, data_dir)?;
        let generation = Generation::begin(data_dir, clock.unix_ms())?;
        // Whoever has the journal has the directory: an earlier process still writes its files until it has ended.
        let first_epoch = generation.first_epoch();
        let local = open_journal(config, data_dir, first_epoch, &clock)?.map(Arc::new);
        let memory = Memory::new(marks(config), config.shard_count().get());
        metrics.show_budget(memory.clone());
        let shared = shared(config, resume_key.clone(), &clock, memory.clone());
        let revocations = shared.sessions.revocations().clone();
        let revocation_file = RevocationFile::open(data_dir, &revocations, clock.unix_ms())?;
        metrics.revoked(revocations.count());
        let users = shared.users.clone();
        let counters = metrics.shards().to_vec();
        let parts = Parts {
            directory: shared.directory.clone(),
            counters: counters.clone(),
            judge: authenticator
                .clone()
                .map(|judge| Arc::new(judge) as Arc<dyn Judge>),
            memory,
            clock: clock.clone(),
            settings: transport_settings(config),
        };
        let disk = local.clone();
        let core = move |id: ShardId, now| {
            let memory = Box::new(MemoryJournal::new(first_epoch));
            let local = disk
                .as_ref()
                .map(|disk| Box::new(disk.of_shard(id)) as Box<dyn Journal>);
            let journals = Journals::new(memory, local);
            let counters = Arc::clone(&counters[usize::from(id.0)]);
            Shard::new(id, shared.clone(), journals, counters, now)
        };
        let (shards, threads) = Shards::start(parts, core).map_err(RunError::System)?;
        if let Some(local) = &local {
            let notify: Arc<dyn Notify> = Arc::new(Returns(shards.clone()));
            local.start(&notify).map_err(RunError::System)?;
            metrics.show_journal(Arc::clone(local));
        }
        let (counted, live) = (metrics.clone(), tasks.clone());
        let http_bytes = http_connection_bytes(config);
        let elsewhere = move || Elsewhere::now(&counted, &live, http_bytes);
        shards
            .watch_memory(metrics.shards().to_vec(), elsewhere)
            .map_err(RunError::System)?;
        let limits = admission_limits(config);
        let admission = Admission::new(limits, trust(config));
        let operators = Admission::new(limits.for_operators(), Trust::none());
        metrics.show_registries(users, admission.clone());
        let end = Current::new(config.shutdown.clone());
        let shutdown = Shutdown::new();
        let reload = Reload {
            sources,
            config: config.clone(),
            resume_key,
            authenticator: authenticator.clone(),
            certificates: tls.as_ref().map(|tls| tls.certificates.clone()),
            shards: shards.clone(),
            admission: admission.clone(),
            operators: operators.clone(),
            origins: origins.clone(),
            end: end.clone(),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
        };
        let back_end = Admin::new(admin::Parts {
            shards: shards.clone(),
            revocations,
            revocation_file,
            local: local.clone(),
            last_epoch: generation.last_epoch(),
            key: admin_key,
            metrics: metrics.clone(),
            clock,
            settings: admin_settings(config),
        });
        Ok(Self {
            readiness: Readiness::new(local.clone()),
            local,
            public,
            admin,
            operations: Operations {
                routes: back_end.routes(),
                body_bytes_max: config.admin.body_bytes_max,
            },
            back_end,
            shards,
            threads,
            metrics,
            tasks,
            authenticator,
            origins,
            tls,
            limits: http_limits(&config.http),
            admission,
            operators,
            end,
            shutdown,
            reload,
        })
    }

    /// Serves until a signal, then says goodbye within the limit. A second signal ends it at once.
    async fn serve(self) -> Result<(), RunError> {
        let mut signals = Signals::new().map_err(RunError::System)?;
        let hangups = Hangups::new().map_err(RunError::System)?;
        let shutdown = self.shutdown;
        let site = http::Shared {
            metrics: self.metrics.clone(),
            readiness: self.readiness.clone(),
            tasks: self.tasks.clone(),
            limits: self.limits,
        };
        let mut public = Site::public(
            site.clone(),
            self.admission.clone(),
            Arc::new(self.shards.clone()),
            self.origins,
        );
        let admin = Site::admin(site, self.operators, self.operations);
        let span = tracing::Span::none;
        if let Some(tls) = self.tls {
            let watch = tls.certificates.clone().watch();
            self.tasks
                .spawn("certificates", span(), until(watch, shutdown.clone()));
            public = public.with_tls(tls);
        }
        self.tasks.spawn(
            "revocations",
            span(),
            until(self.back_end.watch(), shutdown.clone()),
        );
        let public = http::serve(self.public, public, shutdown.clone());
        let admin = http::serve(self.admin, admin, shutdown.clone());
        let mut deaf = pin!(deaf([
            ("public", self.tasks.spawn("listener", span(), public)),
            ("admin", self.tasks.spawn("listener", span(), admin)),
        ]));
        self.tasks.spawn("reload", span(), self.reload.run(hangups));
        let remote = self.authenticator.and_then(|authenticator| {
            let keys = authenticator.remote()?;
            Some((authenticator, keys))
        });
        match remote {
            Some((authenticator, keys)) => {
                self.readiness.waits_for_keys();
                let answered = ready_with_keys(authenticator, self.readiness.clone());
                self.tasks
                    .spawn("readiness", span(), until(answered, shutdown.clone()));
                let fetching = keys.run(self.metrics.clone(), shutdown.clone());
                self.tasks.spawn("jwks", span(), fetching);
            }
            None => self.readiness.ready(),
        }
        tokio::select! {
            signal = signals.next() => tracing::info!(%signal, "stopping"),
            ended = watch(&self.threads) => return Err(ended.into()),
            error = &mut deaf => return Err(error),
        }
        self.readiness.draining();
        let end = self.end.get();
        tokio::select! {
            () = goodbye(&self.shards, &self.tasks, &end, &shutdown) => {}
            signal = signals.next() => return Err(RunError::Interrupted { signal }),
            ended = watch(&self.threads) => return Err(ended.into()),
            error = &mut deaf => return Err(error),
        }
        if let Some(local) = self.local {
            block_in_place(|| local.close())?;
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// The server is ready with the first keys, whichever source they come from: a reload may put another one in its place, or none.
async fn ready_with_keys(authenticator: Authenticator, readiness: Readiness) {
    while let Some(keys) = authenticator.remote() {
        tokio::select! {
            () = keys.answered() => break,
            () = keys.ended() => {}
        }
    }
    readiness.ready();
}

/// Runs something to its end, or to that of the process.
async fn until(running: impl Future<Output = ()>, shutdown: Shutdown) {
    tokio::select! {
        () = running => {}
        () = shutdown.wait() => {}
    }
}

/// Each connection takes a descriptor, and the usual soft limit is made for programs of another kind.
fn raise_descriptors() {
    match descriptors::raise() {
        Ok(limit) => tracing::debug!(limit, "file descriptors"),
        Err(error) => {
            tracing::warn!(%error, "the limit of file descriptors can't be raised; it bounds the connections");
        }
    }
}

/// Comes back when a shard's thread has ended.
async fn watch(threads: &Threads) -> ThreadEnded {
    loop {
        if let Err(ended) = threads.check() {
            tracing::error!(error = %ended, "the server can't go on");
            return ended;
        }
        sleep(WATCH_INTERVAL).await;
    }
}

/// Says goodbye to everybody: goes on for a while, then turns newcomers away while the others are told, and closes
/// the listeners when all have gone. Until then each newcomer gets an answer, whatever a balancer still believes.
async fn goodbye(shards: &Shards, tasks: &Tasks, config: &ShutdownConfig, shutdown: &Shutdown) {
    let plan = Plan::new(config, shards.connections(), is_on_terminal());
    let deadline = Instant::now() + plan.limit;
    let all_gone = async {
        sleep(plan.accept).await;
        let connections = shards.connections();
        tracing::info!(connections, spread = ?plan.spread, "saying goodbye");
        shards.drain(plan.spread);
        gone(shards).await;
    };
    let told = timeout_at(deadline, all_gone).await;
    shutdown.trigger();
    // Whoever was accepted in the last moment is on its way to its shard until the listeners have ended.
    let ended = async {
        tasks.wait().await;
        gone(shards).await;
    };
    if told.is_err() || timeout_at(deadline, ended).await.is_err() {
        tracing::warn!(
            connections = shards.connections(),
            "not everybody took the goodbye in time"
        );
    }
}

/// Comes back when nobody is connected.
async fn gone(shards: &Shards) {
    while shards.connections() > 0 {
        sleep(GOODBYE_INTERVAL).await;
    }
}

fn authenticator(config: &Config, clock: &Clock) -> Result<Option<Authenticator>, RunError> {
    if config.is_anonymous() {
        return Ok(None);
    }
    Ok(Some(Authenticator::new(&config.auth, clock)?))
}

fn tls(config: &Config, clock: &Clock, metrics: &Metrics) -> Result<Option<Tls>, CertificateError> {
    let listen = &config.listen;
    let files = listen
        .tls_certificate_file
        .clone()
        .zip(listen.tls_key_file.clone());
    let Some((certificate, key)) = files else {
        return Ok(None);
    };
    let files = Files { certificate, key };
    Ok(Some(Tls {
        certificates: Certificates::open(files, clock.clone(), metrics.clone())?,
        handshake_timeout: Duration::from_millis(listen.tls_handshake_timeout_ms),
    }))
}

fn origin_rule(config: &Config) -> Result<OriginRule, RunError> {
    let parse = |text: &str| {
        Origin::parse(text).map_err(|source| RunError::Origin {
            text: text.to_owned(),
            source,
        })
    };
    let listed: Vec<Origin> = config
        .listen
        .origins
        .iter()
        .map(|origin| parse(origin.as_str()))
        .collect::<Result<_, _>>()?;
    if config.is_anonymous() && is_loopback(config.listen.public) {
        return Ok(OriginRule::Loopback { listed });
    }
    Ok(if listed.is_empty() {
        OriginRule::SameHost
    } else {
        OriginRule::Listed(listed)
    })
}

/// An HTTP connection, over TLS where there is a certificate.
fn http_connection_bytes(config: &Config) -> u64 {
    let has_tls = config.listen.tls_certificate_file.is_some();
    HTTP_CONNECTION_BYTES + if has_tls { TLS_CONNECTION_BYTES } else { 0 }
}

/// What is no WebSocket yet gets an eighth of the memory at most. With TLS each of them may be in its handshake, so
/// they are no more than handshakes may be: where the oldest goes, silence keeps no newcomer out.
fn http_connections_max(config: &Config) -> usize {
    let most = marks(config).budget / 8 / http_connection_bytes(config);
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let handshakes = match config.listen.tls_certificate_file {
        Some(_) => config.listen.tls_handshakes_max,
        None => usize::MAX,
    };
    let configured = config.admission.http_connections_max.min(handshakes);
    configured.min(most.max(1))
}

fn marks(config: &Config) -> Marks {
    let budget = match config.memory.budget_bytes as u64 {
        0 => budget_of_system(),
        bytes => bytes,
    };
    Marks::new(
        budget,
        config.memory.soft_percent,
        config.memory.hard_percent,
    )
}

fn shared(config: &Config, resume_key: ResumeKey, clock: &Clock, memory: Memory) -> Shared {
    let shards = u16::try_from(config.shard_count().get()).unwrap_or(u16::MAX);
    Shared {
        directory: Directory::new(shards, config.node.rooms_max as u64),
        sessions: Sessions::new(clock.unix_ms(), config.session.retention_ms),
        users: Users::default(),
        settings: Arc::new(shard_settings(config, resume_key)),
        memory,
    }
}

fn shard_settings(config: &Config, resume_key: ResumeKey) -> ShardSettings {
    let room = |namespace: &NamespaceConfig| Arc::new(room_settings(namespace, config));
    let connection = &config.connection;
    let others = config
        .namespaces
        .get(DEFAULT_NAMESPACE)
        .filter(|_| config.is_anonymous());
    ShardSettings {
        namespaces: config
            .namespaces
            .iter()
            .map(|(name, namespace)| (name.clone(), room(namespace)))
            .collect(),
        other_namespaces: others.map(room),
        anonymous: config.is_anonymous(),
        resume_key,
        expiry_warning_ms: config.auth.expiry_warning_s * 1000,
        session_retention_ms: config.session.retention_ms,
        hello_timeout_ms: connection.hello_timeout_ms,
        hello_bytes_max: connection.hello_bytes_max,
        heartbeat_ms: connection.heartbeat_ms,
        message_bytes_max: connection.message_bytes_max,
        payload_bytes_max: connection.payload_bytes_max,
        rooms_max: connection.rooms_max,
        requests_max: u32::try_from(connection.requests_max).unwrap_or(u32::MAX),
        rates: Rates {
            errors: Rate::per_minute(connection.errors_per_minute_max),
            messages: Rate::per_second(connection.messages_per_s, connection.messages_burst),
            joins: Rate::per_second(connection.joins_per_s, connection.joins_burst),
            bytes: Rate::per_second(connection.bytes_per_s, connection.bytes_burst),
            pages: Rate::per_second(connection.pages_per_s, connection.pages_burst),
            control: Rate::per_second(
                connection.control_frames_per_s,
                connection.control_frames_burst,
            ),
            refusals: Rate::per_second(connection.refusals_per_s, connection.refusals_burst),
        },
        outbox_bytes_max: connection.outbox_bytes_max,
        outbox_messages_max: connection.outbox_messages_max,
        write_stall_ms: connection.write_stall_ms,
        write_progress_bytes_min: connection.write_progress_bytes_min,
        user: UserLimits {
            connections_max: config.user.connections_max,
            memberships_max: config.user.memberships_max,
            messages: Rate::per_second(config.user.messages_per_s, config.user.messages_burst),
            bytes: Rate::per_second(config.user.bytes_per_s, config.user.bytes_burst),
            joins: Rate::per_second(config.user.joins_per_s, config.user.joins_burst),
            rooms: Rate::per_minute(config.user.rooms_per_minute),
        },
        members_per_look: MEMBERS_PER_LOOK,
        items_per_look: ITEMS_PER_LOOK,
        waiting_turns_max: WAITING_TURNS_MAX,
    }
}

/// What the configuration says about how many may come in.
#[must_use]
pub fn admission_limits(config: &Config) -> admission::Limits {
    let admission = &config.admission;
    // However small the budget of all is made, one address can't spend it.
    let of_all = |one: u32, all: u32| one.min(all / 4).max(1);
    admission::Limits {
        connections_per_address_max: admission.connections_per_address_max,
        unauthenticated_per_address_max: admission.unauthenticated_per_address_max,
        limit_loopback: admission.limit_loopback,
        http_connections_max: http_connections_max(config),
        unauthenticated_max: admission.unauthenticated_max,
        connects: admission::budget::Rate {
            per_s: admission.connects_per_s,
            burst: admission.connects_burst,
        },
        connects_per_address: admission::budget::Rate {
            per_s: of_all(
                admission.connects_per_address_per_s,
                admission.connects_per_s,
            ),
            burst: of_all(
                admission.connects_per_address_burst,
                admission.connects_burst,
            ),
        },
        descriptors_reserved: admission.descriptors_reserved,
    }
}

fn http_limits(http: &HttpConfig) -> Limits {
    Limits {
        header_bytes_max: http.header_bytes_max,
        header_lines_max: http.header_lines_max,
        header_timeout: Duration::from_millis(http.header_timeout_ms),
        lifetime: Duration::from_millis(http.lifetime_ms),
    }
}

fn trust(config: &Config) -> Trust {
    Trust {
        networks: config.listen.trusted_proxies.clone(),
        proxy_protocol: config.listen.proxy_protocol,
        header: config.listen.forwarded_header,
    }
}

/// What the configuration says about sockets and threads.
#[must_use]
pub fn transport_settings(config: &Config) -> TransportSettings {
    TransportSettings {
        connections_max: config.connection.connections_max,
        turn_budget: Duration::from_micros(config.shard.turn_budget_us),
        turn_warning: Duration::from_millis(config.shard.turn_warning_ms),
        mailbox_bytes_max: config.shard.mailbox_bytes_max,
        imbalance_max: config.placement.imbalance_max,
        fragments_max: u32::try_from(config.connection.fragments_max).unwrap_or(u32::MAX),
        message_timeout_ms: config.connection.message_timeout_ms,
        close_timeout_ms: config.connection.close_timeout_ms,
        verifier_threads: NonZeroUsize::new(config.auth.pool_threads).unwrap_or(NonZeroUsize::MIN),
        verifier_queue_max: config.auth.pool_queue_max,
    }
}

/// What the operations of the admin listener go by.
#[must_use]
pub fn admin_settings(config: &Config) -> AdminSettings {
    let admin = &config.admin;
    let namespace = |config: &NamespaceConfig| admin::Namespace {
        kind: config.kind.name(),
        durability: config.durability,
    };
    AdminSettings {
        loopback: is_loopback(config.listen.admin),
        wrong_keys: Rate::per_minute(admin.wrong_keys_per_minute_max),
        requests_max: admin.requests_max,
        revocations_max: admin.revocations_max,
        token_lifetime_ms: (config.auth.lifetime_max_s + config.auth.leeway_s) * 1_000,
        request_timeout: Duration::from_millis(admin.request_timeout_ms),
        body_bytes_max: admin.body_bytes_max,
        payload_bytes_max: config.connection.payload_bytes_max,
        namespaces: config
            .namespaces
            .iter()
            .map(|(name, config)| (name.clone(), namespace(config)))
            .collect(),
        other_namespaces: config
            .namespaces
            .get(DEFAULT_NAMESPACE)
            .filter(|_| config.is_anonymous())
            .map(namespace),
    }
}

/// Threads for HTTP, pages and metrics: two, so that a slow scrape does not keep a handshake waiting.
const CONTROL_THREADS: usize = 2;

/// A look at the clock is cheap beside the system call that a member costs, and a turn of 64 members is far
/// below any budget.
const MEMBERS_PER_LOOK: usize = 64;

/// A room, a timer, a reply or a member who catches up takes a microsecond or a few, and a look some tens of nanoseconds.
const ITEMS_PER_LOOK: usize = 16;

/// Each turn waits as one shared buffer, so 64 of them are a few milliseconds of a busy room and little memory.
const WAITING_TURNS_MAX: usize = 64;

const WATCH_INTERVAL: Duration = Duration::from_millis(500);

const GOODBYE_INTERVAL: Duration = Duration::from_millis(10);
