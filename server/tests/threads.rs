//! What stands around the shards' cores: their threads, the verifiers, and the listeners. Each test makes one of them
//! panic or stall, and looks at what the others do.
//!
//! They can because a thread is given its core, a verifier its judge, and a listener whom it hands sockets over to.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed check is a panic, and so is what is tested"
)]

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use roomful_protocol::id::Epoch;
use roomful_server::admin::key::AdminKey;
use roomful_server::admin::{self, Admin};
use roomful_server::admission::client::Trust;
use roomful_server::admission::{Admission, Counted, Refusal};
use roomful_server::app;
use roomful_server::auth::{Assessed, AuthError, Identity};
use roomful_server::clock::{Clock, Now};
use roomful_server::config::Config;
use roomful_server::current::Current;
use roomful_server::directory::Directory;
use roomful_server::http::{
    self, Limits, Operations, OriginRule, Readiness, Site, Upgraded, Upgrades,
};
use roomful_server::memory::Memory;
use roomful_server::metrics::{Metrics, PanicPlace};
use roomful_server::session::revocation_file::RevocationFile;
use roomful_server::session::revocations::Revocations;
use roomful_server::shard::message::{ConnectionId, Message, ShardId};
use roomful_server::shard::{Host, Input};
use roomful_server::shutdown::Shutdown;
use roomful_server::tasks::Tasks;
use roomful_server::transport::{Core, Judge, Parts, Shards, Threads, TransportSettings};
use tokio::runtime::Runtime;
use tokio::time::Instant;

/// A turn that takes long is counted, and the log says which shard and which part of the turn. The next one is counted and,
/// so soon, not logged.
#[test]
fn a_shard_that_stalls_is_counted_and_logged() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(log.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let world = World::with(None, Duration::from_millis(50));
    let counters = &world.metrics.shards()[0];
    for number in 1..=2 {
        world.act(Act::Stall(Duration::from_millis(80)));
        until("the stall is counted", || {
            counters.turns_stalled.get() >= number
        });
    }
    assert!(counters.turn_longest_us.get() >= 80_000);
    let text = log.text();
    let warnings: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("a turn took too long"))
        .collect();
    assert_eq!(warnings.len(), 1, "{text}");
    assert!(
        warnings[0].contains("WARN") && warnings[0].contains("shard=0"),
        "{text}"
    );
    assert!(warnings[0].contains("phase=Mail"), "{text}");
}

/// A token of which the check panics is refused with an error of its own, and counted; the one thread checks the next one.
#[test]
fn a_panic_of_a_verifier_ends_one_check_alone() {
    let world = World::new(Some(Arc::new(Brittle)));
    for (token, error) in [
        (POISON, AuthError::Internal),
        ("old", AuthError::Expired),
        (POISON, AuthError::Internal),
        ("old", AuthError::Expired),
    ] {
        world.act(Act::Verify(token));
        let verified = world.verified.recv_timeout(PATIENCE).unwrap();
        assert_eq!(verified.unwrap_err(), error);
    }
    let panics = &world.metrics.shards()[0].panics;
    assert_eq!(panics.of(PanicPlace::Verifier).get(), 2);
    let shown = "roomful_panics_total{where=\"verifier\"} 2";
    assert!(world.metrics.render().contains(shown));
}

/// A panic over a socket that has just been accepted ends that socket, and is counted; the next one is let in.
#[test]
fn a_panic_of_the_acceptor_ends_one_socket_alone() {
    let world = World::new(None);
    let upgrades = Arc::new(Doorkeeper {
        shards: world.shards.clone(),
        panics: AtomicBool::new(true),
    });
    let runtime = Runtime::new().unwrap();
    let _context = runtime.enter();
    let listener = http::listen("127.0.0.1:0".parse().unwrap(), 16_384).unwrap();
    let address = listener.local_addr().unwrap();
    // It is all there before anybody accepts it.
    let mut first = shake(address);
    let site = Site::plain(
        world.site(),
        admission(),
        Arc::clone(&upgrades) as Arc<dyn Upgrades>,
        Current::new(OriginRule::SameHost),
    );
    let shutdown = Shutdown::new();
    let served = runtime.spawn(http::serve(listener, site, shutdown.clone()));
    assert_eq!(rest_of(&mut first), "");
    let shown = "roomful_panics_total{where=\"acceptor\"} 1";
    // The socket ends while the panic is on its way, and the count follows.
    until("the panic is counted", || {
        world.metrics.render().contains(shown)
    });

    upgrades.panics.store(false, Ordering::Relaxed);
    let mut answer = [0; 12];
    shake(address).read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    assert!(world.metrics.render().contains(shown));
    shutdown.trigger();
    runtime.block_on(served).unwrap().unwrap();
}

/// A back end that asks a room whose shard does not answer is told so when its time is up, and that the outcome is unknown. Whoever
/// asks meanwhile, while one request at a time is worked on, is told when to come again; pages for operators are there as ever.
#[test]
fn a_back_end_is_told_when_a_shard_does_not_answer() {
    let world = World::new(None);
    let runtime = Runtime::new().unwrap();
    let _context = runtime.enter();
    let mut config = Config::default();
    config.admin.request_timeout_ms = 3_000;
    config.admin.requests_max = 1;
    let (operations, key) = operations(&world, &config);
    let listener = http::listen("127.0.0.1:0".parse().unwrap(), 16_384).unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = Shutdown::new();
    let site = Site::admin(world.site(), admission(), operations);
    let served = runtime.spawn(http::serve(listener, site, shutdown.clone()));
    let get = |path| {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
        );
        let mut stream = connect(address);
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    // The core takes what it is asked, and never answers.
    let (tell, taken) = channel();
    world.script.lock().unwrap().push_back(Act::Tell(tell));
    let mut asked = get("/v1/rooms/chat:silent");
    taken.recv_timeout(PATIENCE).unwrap();
    let refused = rest_of(&mut get("/v1/rooms"));
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!(refused.contains("\"name\":\"overloaded\""), "{refused}");
    assert!(refused.contains("retry-after: 1\r\n"), "{refused}");
    let healthy = rest_of(&mut get("/healthz"));
    assert!(healthy.starts_with("HTTP/1.1 200 "), "{healthy}");

    let answer = rest_of(&mut asked);
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    assert!(answer.contains("\"name\":\"outcome_unknown\""), "{answer}");
    let again = rest_of(&mut get("/v1/rooms"));
    assert!(again.starts_with("HTTP/1.1 200 "), "{again}");
    shutdown.trigger();
    runtime.block_on(served).unwrap().unwrap();
}

/// The operations of a back end, and the key to them.
fn operations(world: &World, config: &Config) -> (Operations, String) {
    let dir = std::env::temp_dir().join(format!("roomful-threads-{}", std::process::id()));
    let key = AdminKey::open(&config.admin, &dir).unwrap();
    let shown = std::fs::read_to_string(dir.join("admin.key")).unwrap();
    let revocations = Revocations::default();
    let revocation_file = RevocationFile::open(&dir, &revocations, 0).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    let admin = Admin::new(admin::Parts {
        shards: world.shards.clone(),
        revocations,
        revocation_file,
        local: None,
        last_epoch: Epoch(0),
        key,
        metrics: world.metrics.clone(),
        clock: Clock::system(),
        settings: app::admin_settings(config),
    });
    let operations = Operations {
        routes: admin.routes(),
        body_bytes_max: config.admin.body_bytes_max,
    };
    (operations, shown.trim().to_owned())
}

/// One shard's thread with a core that does what it is told.
struct World {
    shards: Shards,
    metrics: Metrics,
    tasks: Tasks,
    script: Script,
    verified: Receiver<Result<Identity, AuthError>>,
    _threads: Threads,
}

/// What a core does with its next letters.
type Script = Arc<Mutex<VecDeque<Act>>>;

enum Act {
    /// Nothing else for so long.
    Stall(Duration),
    /// Has a token checked.
    Verify(&'static str),
    /// Says that the letter came.
    Tell(Sender<()>),
}

impl World {
    /// In which no turn is too long.
    fn new(judge: Option<Arc<dyn Judge>>) -> Self {
        Self::with(judge, Duration::MAX)
    }

    fn with(judge: Option<Arc<dyn Judge>>, turn_warning: Duration) -> Self {
        let mut config = Config::default();
        config.auth.pool_threads = 1;
        let tasks = Tasks::new();
        let metrics = Metrics::new(tasks.clone(), 1);
        let parts = Parts {
            directory: Directory::new(1, 0),
            counters: metrics.shards().to_vec(),
            judge,
            memory: Memory::unlimited(1),
            clock: Clock::system(),
            settings: TransportSettings {
                turn_warning,
                ..app::transport_settings(&config)
            },
        };
        let script = Script::default();
        let (tell, verified) = channel();
        let acts = Arc::clone(&script);
        let core = move |_shard, _now| Scripted {
            acts: Arc::clone(&acts),
            verified: tell.clone(),
        };
        let (shards, threads) = Shards::start(parts, core).unwrap();
        Self {
            shards,
            metrics,
            tasks,
            script,
            verified,
            _threads: threads,
        }
    }

    /// Has the core do something.
    fn act(&self, act: Act) {
        self.script.lock().unwrap().push_back(act);
        drop(self.shards.call(ShardId(0), |_| Message::Evict(NOBODY)));
    }

    fn site(&self) -> http::Shared {
        http::Shared {
            metrics: self.metrics.clone(),
            readiness: Readiness::new(None),
            tasks: self.tasks.clone(),
            limits: Limits::default(),
        }
    }
}

/// A core without rooms.
struct Scripted {
    acts: Script,
    verified: Sender<Result<Identity, AuthError>>,
}

impl Core for Scripted {
    fn step(&mut self, input: Input<'_>, _: Now, host: &mut dyn Host) {
        match input {
            Input::Mail(_) => match self.acts.lock().unwrap().pop_front() {
                Some(Act::Stall(duration)) => stall(duration),
                Some(Act::Verify(token)) => host.verify(NOBODY, token),
                Some(Act::Tell(whom)) => whom.send(()).unwrap(),
                None => {}
            },
            Input::Verified { outcome, .. } => self.verified.send(outcome).unwrap(),
            _ => {}
        }
    }

    fn flush(&mut self, _: Now, _: &mut dyn Host) {}

    fn next_tick_ms(&self) -> Option<u64> {
        None
    }

    fn is_idle(&self) -> bool {
        true
    }

    fn is_reading(&self, _: ConnectionId) -> bool {
        false
    }

    fn message_bytes_max(&self, _: ConnectionId) -> usize {
        0
    }

    fn outbox_bytes(&self, _: ConnectionId) -> usize {
        0
    }

    fn backlog_bytes(&self, _: ConnectionId) -> usize {
        0
    }
}

/// Finds every token costly and old, and panics over one of them.
#[derive(Debug)]
struct Brittle;

impl Judge for Brittle {
    fn assess(&self, _: &str, _: u64) -> Assessed {
        Assessed::Costly
    }

    fn verify(&self, token: &str, _: u64) -> Result<Identity, AuthError> {
        assert_ne!(token, POISON, "a panic of the test");
        Err(AuthError::Expired)
    }
}

/// Lets everybody in, or panics.
struct Doorkeeper {
    shards: Shards,
    panics: AtomicBool,
}

impl Upgrades for Doorkeeper {
    fn admit(&self) -> Result<Counted, Refusal> {
        assert!(!self.panics.load(Ordering::Relaxed), "a panic of the test");
        self.shards.admit()
    }

    fn hand_over(&self, upgraded: Vec<Upgraded>) {
        self.shards.hand_over(upgraded);
    }
}

/// What was logged.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl tracing_subscriber::fmt::MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

fn admission() -> Admission {
    Admission::new(app::admission_limits(&Config::default()), Trust::none())
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A socket that has sent a good handshake.
fn shake(address: SocketAddr) -> TcpStream {
    let mut stream = connect(address);
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// Until the end, which may be a reset.
fn rest_of(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error}"),
    }
    String::from_utf8(bytes).unwrap()
}

fn stall(duration: Duration) {
    let end = Instant::now() + duration;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let mut looks = 0;
    while !holds() {
        looks += 1;
        assert!(looks < 3_000, "{what}: not in time");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

const NOBODY: ConnectionId = ConnectionId {
    slot: 0,
    generation: 0,
};

const POISON: &str = "poison";

const PATIENCE: Duration = Duration::from_secs(30);
