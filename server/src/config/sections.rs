//! Every key that there is: the one table behind the structs, the defaults, the reader and `print-config`.
//!
//! Units are in the names: `_ms` milliseconds, `_s` seconds (or "per second" after `_per`), `_us`
//! microseconds, `_bytes` bytes; `_max` is the largest value that still passes.
//!
//! Each key says whether a reload applies it: `live`, or `restart` where it only counts at the start.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use roomful_protocol::frame::Durability;
use roomful_protocol::id::KeyPrefix;

use super::choice::{ForwardedHeader, LogFilter, LogFormat, RoomKind, WebOrigin};
use super::key::KeyConfig;
use super::keys_url::KeysUrl;
use super::secret::{Secret, SecretKey};
use super::section::{Field, Reload, Section, renew, section};
use super::setting::Range;

section! {
    /// The node itself.
    pub struct NodeConfig {
        /// Directory for what outlives the process: the rooms on disk, the resume key, the generation. Made at the first start.
        /// Relative to the working directory.
        restart data_dir: PathBuf = PathBuf::from("./roomful-data");
        /// Threads that hold connections and rooms. 0 takes one per core, at most 64.
        restart shards: usize = 0, 0..=64;
        /// Rooms that are open on the node at a time.
        restart rooms_max: usize = 100_000, 1..=100_000_000;
    }
}

section! {
    /// Where the server listens, and to whom.
    pub struct ListenConfig {
        /// Address of the public listener: WebSocket, pages, health. Port 0 lets the system choose.
        restart public: SocketAddr = loopback(7400);
        /// Address of the admin listener. It also serves /metrics when the public listener isn't loopback.
        restart admin: SocketAddr = loopback(7401);
        /// How long to wait for an address that another process still has, in milliseconds: for a start in the place of
        /// a process that is about to end.
        restart wait_ms: u64 = 0, 0..=600_000;
        /// Lets a server without keys listen beyond loopback, where everybody may then do everything.
        restart allow_anonymous: bool = false;
        /// Web origins that browsers may connect from, such as `https://app.example.com`. Compared exactly.
        live origins: Vec<WebOrigin> = Vec::new();
        /// Certificate chain in PEM, the server's own certificate first. With it the public listener speaks TLS and nothing else.
        /// Read again when the file changes.
        restart tls_certificate_file: Option<PathBuf> = None;
        /// The certificate's private key in PEM. Read again when the file changes.
        restart tls_key_file: Option<PathBuf> = None;
        /// How long a TLS handshake may take, in milliseconds.
        restart tls_handshake_timeout_ms: u64 = 5_000, 10..=600_000;
        /// TLS handshakes at a time; with one more the oldest is dropped. With TLS no more connections may be no WebSocket
        /// than this, whatever `admission.http_connections_max` is.
        restart tls_handshakes_max: usize = 4_096, 1..=1_000_000;
        /// Networks, such as `10.0.0.0/8`, or single addresses, of proxies that are believed about whom they speak for. Nobody
        /// else is. A trusted proxy has no limit per address itself; those behind it have theirs.
        restart trusted_proxies: Vec<IpNet> = Vec::new();
        /// Whether connections of trusted proxies begin with a PROXY protocol header, version 1 or 2. Then each has to, and
        /// whoever else sends one is refused.
        restart proxy_protocol: bool = false;
        /// The header in which trusted proxies name their client: X-Forwarded-For or Forwarded. The other is not looked at,
        /// since a proxy may pass it on as it came.
        restart forwarded_header: ForwardedHeader = ForwardedHeader::XForwardedFor;
    }
}

section! {
    /// Who may connect. Without any key the server is anonymous: everybody may do everything, from this machine alone.
    pub struct AuthConfig {
        /// Keys that tokens (JWT) are verified with. A list of tables, each with an `algorithm` (HS256, RS256, ES256, EdDSA)
        /// and its key; an `id` where tokens name their key (`kid`):
        ///   { id = "main", algorithm = "HS256", secret = "at least 32 bytes" }
        ///   { id = "file", algorithm = "HS256", secret_file = "secret.txt" }
        ///   { id = "rsa", algorithm = "RS256", public_key_file = "public.pem" }
        live keys: Vec<KeyConfig> = Vec::new();
        /// A JWK Set (RFC 7517) with more keys, read at the start.
        live jwks_file: Option<PathBuf> = None;
        /// The address of a JWK Set with more keys, such as an identity provider's `jwks_uri`. Begins with https://, or with http://
        /// for this machine itself. A token never names an address; until the first answer /readyz says that the server starts.
        live jwks_url: Option<KeysUrl> = None;
        /// Root certificates (PEM) that the certificate of `jwks_url` is checked with, instead of the system's.
        live jwks_ca_file: Option<PathBuf> = None;
        /// Takes shared secrets (HS256) from `jwks_url`. Whoever can read that address can then make tokens.
        live jwks_secrets: bool = false;
        /// How often the keys of `jwks_url` are fetched, in seconds, give or take a tenth.
        live jwks_refresh_s: u64 = 300, 1..=86_400;
        /// How long the last good keys of `jwks_url` are used while it gives no new ones, in seconds.
        live jwks_age_max_s: u64 = 86_400, 1..=31_536_000;
        /// How often a token that names an unknown key may cause a fetch, in seconds. Its check waits for the answer.
        live jwks_unknown_key_s: u64 = 30, 1..=86_400;
        /// Tokens that wait for such an answer at a time; beyond it a connection is told to try later.
        live jwks_waiting_max: usize = 1_024, 1..=1_000_000;
        /// How long a fetch may take in all, in milliseconds.
        live jwks_timeout_ms: u64 = 5_000, 10..=600_000;
        /// How long connecting for it may take, in milliseconds.
        live jwks_connect_timeout_ms: u64 = 2_000, 10..=600_000;
        /// Longest answer, in bytes. A longer one changes nothing.
        live jwks_bytes_max: usize = 262_144, 256..=16_777_216;
        /// What a token's `aud` has to be or contain. Where this isn't set, a token must not have one (RFC 7519 §4.1.3).
        live audience: Option<String> = None;
        /// What a token's `iss` has to be. Where this isn't set, it isn't looked at.
        live issuer: Option<String> = None;
        /// How far the clocks of this node and of the token's issuer may differ, in seconds.
        live leeway_s: u64 = 30, 0..=600;
        /// Longest lifetime of a token, from its `iat` (or now) to its `exp`, in seconds.
        live lifetime_max_s: u64 = 86_400, 1..=31_536_000;
        /// How long before its expiry a client is told to refresh its token, in seconds.
        live expiry_warning_s: u64 = 60, 0..=86_400;
        /// Threads that verify tokens whose signature is costly (RS256, ES256, EdDSA).
        restart pool_threads: usize = 1, 1..=64;
        /// Tokens that wait for those threads at a time; beyond it a connection is told to try later.
        restart pool_queue_max: usize = 1_024, 1..=1_000_000;
        /// Key that resume tokens are signed with: 64 hexadecimal digits, the same on every node of a cluster. Where it isn't
        /// set, the node makes one and keeps it in the data directory.
        restart resume_key: Option<SecretKey> = None;
    }
}

section! {
    /// What a back end asks of the admin listener, and who may: see docs/admin.md.
    pub struct AdminConfig {
        /// Key that a back end shows (`Authorization: Bearer`), at least 32 bytes. Where neither it nor `key_file` is set, the
        /// node makes one at the first start and keeps it in the data directory, in `admin.key`.
        restart key: Option<Secret> = None;
        /// File with that key; spaces and line ends around it don't count.
        restart key_file: Option<PathBuf> = None;
        /// Lets the admin listener be bound beyond loopback, where its key and whatever is published can be read on the way.
        restart allow_plaintext: bool = false;
        /// Wrong keys from one address (an IPv6 /64) per minute; beyond it nothing that it shows is looked at.
        restart wrong_keys_per_minute_max: u64 = 10, 1..=1_000_000;
        /// Requests that are worked on at a time.
        restart requests_max: usize = 64, 1..=65_536;
        /// How long a request may take, in milliseconds: to arrive, and to be answered by the rooms.
        restart request_timeout_ms: u64 = 5_000, 10..=30_000;
        /// Users, sessions and token ids that are revoked at a time.
        restart revocations_max: usize = 100_000, 1..=10_000_000;
        /// Longest body of a request, in bytes. A payload in base64 takes a third more than `connection.payload_bytes_max`.
        restart body_bytes_max: usize = 131_072, 1_024..=33_554_432;
    }
}

section! {
    /// Bounds of one connection, and of how many there are.
    pub struct ConnectionConfig {
        /// Connections at a time.
        live connections_max: usize = 100_000, 1..=10_000_000;
        /// Time from the first byte to a complete `hello`, in milliseconds.
        live hello_timeout_ms: u64 = 10_000, 10..=600_000;
        /// Bytes that are read before a `hello` is answered, `hello` and the frames right behind it together.
        live hello_bytes_max: usize = 65_536, 1_024..=16_777_216;
        /// How often a silent client pings, in milliseconds. After two of these in silence the connection is given up.
        live heartbeat_ms: u64 = 25_000, 10..=3_600_000;
        /// Longest message from a client, in bytes.
        live message_bytes_max: usize = 65_536, 2_048..=16_777_216;
        /// Fragments of one message from a client. Empty ones count.
        live fragments_max: usize = 1_024, 1..=1_000_000_000;
        /// How long a message from a client may take, from its first byte to its last, in milliseconds.
        live message_timeout_ms: u64 = 30_000, 10..=3_600_000;
        /// How long a connection that was closed may take to say what is left and to close too, in milliseconds. Then its
        /// socket is dropped.
        live close_timeout_ms: u64 = 3_000, 10..=600_000;
        /// Longest payload of a publish, a signal or a presence value, in bytes. At least 1024 less than a message, for the
        /// frame around it.
        live payload_bytes_max: usize = 61_440, 1..=16_777_216;
        /// Rooms that a connection is in at a time.
        live rooms_max: usize = 128, 1..=65_536;
        /// Requests of a connection without a reply at a time; beyond it the server stops reading.
        live requests_max: usize = 256, 1..=65_536;
        /// Bad frames of a connection per minute; beyond it the connection is closed.
        live errors_per_minute_max: u64 = 16, 1..=1_000_000;
        /// Bytes that wait to be written to a connection. Only the rest of the one write that its socket has cut short may be
        /// more: at most what one turn of a room brought, and shared by all who get it. Then nothing else is added, and the
        /// connection is closed at its next reply, to resume.
        live outbox_bytes_max: usize = 1_048_576, 4_096..=1_073_741_824;
        /// Messages that wait to be written to a connection.
        live outbox_messages_max: usize = 4_096, 16..=1_000_000;
        /// Bytes that the kernel holds unsent for a connection.
        restart kernel_unsent_bytes_max: usize = 65_536, 4_096..=16_777_216;
        /// How long a connection may take no byte while some wait, in milliseconds.
        live write_stall_ms: u64 = 15_000, 10..=600_000;
        /// Messages of a connection per second, on average. A large number switches this off.
        live messages_per_s: u64 = 100, 1..=1_000_000_000;
        /// Messages of a connection at once, before the average counts.
        live messages_burst: u64 = 200, 1..=1_000_000_000;
        /// Joins of a connection per second, on average. A large number switches this off.
        live joins_per_s: u64 = 50, 1..=1_000_000_000;
        /// Joins of a connection at once, before the average counts.
        live joins_burst: u64 = 200, 1..=1_000_000_000;
        /// Bytes of a connection's messages per second, on average.
        live bytes_per_s: u64 = 1_048_576, 1..=1_000_000_000_000;
        /// Bytes at once, before the average counts. One message may go beyond it; what comes next then waits.
        live bytes_burst: u64 = 4_194_304, 1..=4_000_000_000;
        /// Pages of history and of members that a connection asks for per second, on average, and changes of what it watches.
        live pages_per_s: u64 = 50, 1..=1_000_000_000;
        /// Pages at once, before the average counts.
        live pages_burst: u64 = 200, 1..=1_000_000_000;
        /// Pings and pongs of a connection per second, on average; beyond it the connection is closed.
        live control_frames_per_s: u64 = 10, 1..=1_000_000_000;
        /// Pings and pongs at once, before the average counts.
        live control_frames_burst: u64 = 50, 1..=1_000_000_000;
        /// Requests of a connection that are refused as `rate_limited` per second, on average; beyond it the connection is closed.
        live refusals_per_s: u64 = 10, 1..=1_000_000_000;
        /// Refusals at once, before the average counts. More than a client that heeds them can have on their way.
        live refusals_burst: u64 = 512, 1..=1_000_000_000;
        /// Bytes that a connection has to take within `write_stall_ms`, where it doesn't take all that waits.
        live write_progress_bytes_min: u32 = 4_096, 1..=16_777_216;
    }
}

section! {
    /// Bounds of one user, over all connections with tokens of that user. On an anonymous server nobody is counted here.
    pub struct UserConfig {
        /// Connections at a time.
        live connections_max: u32 = 1_000, 1..=4_000_000_000;
        /// Memberships of all of them at a time.
        live memberships_max: u32 = 10_000, 1..=4_000_000_000;
        /// Messages per second, on average.
        live messages_per_s: u64 = 1_000, 1..=1_000_000_000;
        /// Messages at once, before the average counts.
        live messages_burst: u64 = 2_000, 1..=1_000_000_000;
        /// Bytes of messages per second, on average.
        live bytes_per_s: u64 = 10_485_760, 1..=1_000_000_000_000;
        /// Bytes at once, before the average counts.
        live bytes_burst: u64 = 41_943_040, 1..=4_000_000_000;
        /// Joins per second, on average.
        live joins_per_s: u64 = 500, 1..=1_000_000_000;
        /// Joins at once, before the average counts.
        live joins_burst: u64 = 2_000, 1..=1_000_000_000;
        /// Rooms per minute that are opened because this user joins them.
        live rooms_per_minute: u64 = 600, 1..=1_000_000_000;
    }
}

section! {
    /// Who may come in, and how many at a time. Limits per address count IPv4 addresses and IPv6 networks of 64 bits.
    pub struct AdmissionConfig {
        /// Connections of one address at a time; one more gets 429.
        live connections_per_address_max: u32 = 1_024, 1..=10_000_000;
        /// Connections of one address without a session at a time, from the first byte to a good `hello`; one more gets 429.
        live unauthenticated_per_address_max: u32 = 256, 1..=10_000_000;
        /// Whether the limits of an address hold for this machine's loopback addresses too.
        live limit_loopback: bool = false;
        /// Connections of a listener at a time that are no WebSocket and whose handshake didn't arrive at once; with one more
        /// the oldest gets 503.
        live http_connections_max: usize = 8_192, 1..=1_000_000;
        /// WebSockets without a session at a time; one more gets 503.
        live unauthenticated_max: usize = 32_768, 1..=10_000_000;
        /// WebSockets let in per second, on average; more get 503 and are told when it is their turn.
        live connects_per_s: u32 = 10_000, 1..=1_000_000;
        /// WebSockets let in at once, before the average counts. At least one second's worth.
        live connects_burst: u32 = 20_000, 1..=10_000_000;
        /// WebSockets of one address let in per second, on average; more get 429 and are told when it is their turn. It counts
        /// as a quarter of `connects_per_s` at most, so that nobody alone spends what is for all. A hundredth of that by
        /// default: everybody of an office behind one address may come back every ten seconds, and who only knocks gets
        /// little. Where all come through a balancer that isn't in `listen.trusted_proxies`, this is for all of them.
        live connects_per_address_per_s: u32 = 100, 1..=1_000_000;
        /// WebSockets of one address let in at once, before the average counts. At least one second's worth, and as a quarter
        /// of `connects_burst` at most. By default as many as an address may have connections: all of them may be lost in
        /// one moment, and come back in the next.
        live connects_per_address_burst: u32 = 1_024, 1..=10_000_000;
        /// File descriptors that the public listener leaves to others: the admin listener, the shards and the disk.
        live descriptors_reserved: u64 = 64, 0..=65_536;
    }
}

section! {
    /// What a request may be before there is a WebSocket.
    pub struct HttpConfig {
        /// Longest head of a request, in bytes; a longer one gets 431.
        restart header_bytes_max: usize = 16_384, 8_192..=1_048_576;
        /// Header lines of a request; more get 431.
        restart header_lines_max: usize = 64, 16..=1_024;
        /// Time for a request's head to arrive, from the connection's start or the answer before it, in milliseconds; then 408.
        restart header_timeout_ms: u64 = 5_000, 10..=600_000;
        /// Longest life of a connection that doesn't become a WebSocket, in milliseconds.
        restart lifetime_ms: u64 = 60_000, 10..=3_600_000;
    }
}

section! {
    /// Sessions: what a client keeps over a reconnect.
    pub struct SessionConfig {
        /// How long a session outlives its connection, in milliseconds. At least every namespace's presence grace.
        restart retention_ms: u64 = 120_000, 0..=86_400_000;
    }
}

section! {
    /// What the rooms of a namespace are: the part of their name before the colon. A new name starts with these defaults; the
    /// namespace `default` serves unknown names, and only on an anonymous server.
    pub struct NamespaceConfig {
        /// What a room does with what is published.
        restart kind: RoomKind = RoomKind::Relay;
        /// What an acknowledged publish survives: `memory` nothing beyond the process, `local` a kill, a restart and a power cut,
        /// since it is synced to this machine's disk first.
        restart durability: Durability = Durability::Memory;
        /// Entries of history that a room keeps.
        live history_entries_max: usize = 1_000, 1..=10_000_000;
        /// Bytes of history that a room keeps. At least one payload.
        live history_bytes_max: usize = 1_048_576, 1_024..=1_099_511_627_776;
        /// Age of the oldest entry of history that a room keeps, in milliseconds.
        live history_age_max_ms: u64 = 3_600_000, 1..=31_536_000_000;
        /// How long a member whose connection is lost stays in the room, in milliseconds.
        live presence_grace_ms: u64 = 15_000, 0..=86_400_000;
        /// How long changes of presence are gathered before they are sent, in milliseconds. 0 sends each turn's at its end.
        live presence_delta_ms: u64 = 100, 0..=60_000;
        /// Longest presence value, in bytes. At most one payload.
        live presence_value_bytes_max: usize = 4_096, 1..=16_777_216;
        /// Members of a room at a time.
        live members_max: usize = 100_000, 1..=10_000_000;
        /// Results that a room keeps per producer, to answer a resent publish.
        live op_results_max: usize = 128, 1..=65_536;
        /// How long a result is kept, in milliseconds.
        live op_window_ms: u64 = 300_000, 1..=86_400_000;
        /// Entries in one chunk of a recovery.
        live catch_up_entries_max: usize = 256, 1..=65_536;
        /// Bytes in one chunk of a recovery. At most what an outbox holds.
        live catch_up_bytes_max: usize = 65_536, 1_024..=16_777_216;
        /// Keys of a room's state.
        live state_keys_max: usize = 4_096, 1..=10_000_000;
        /// Longest value of a room's state, in bytes, also where a patch has made it longer.
        live state_value_bytes_max: usize = 61_440, 1..=16_777_216;
        /// Bytes of all keys and values of a room's state.
        live state_bytes_max: usize = 1_048_576, 1..=1_073_741_824;
        /// Deleted keys of a room's state whose deletion is remembered.
        live state_tombstones_max: usize = 1_024, 0..=10_000_000;
        /// How long a deletion is remembered, in milliseconds.
        live state_tombstone_age_max_ms: u64 = 86_400_000, 1..=31_536_000_000;
        /// Keys of a room's state that begin with one of these are written with a lock's fence alone. Locks are advice elsewhere.
        live fence_prefixes: Vec<KeyPrefix> = Vec::new();
        /// Bytes of what the members of a room leave to be written when they are gone.
        live on_disconnect_bytes_max: usize = 262_144, 0..=1_073_741_824;
        /// Locks of a room that are held at a time. Of as many free ones the last holder's fence still counts.
        live locks_max: usize = 1_024, 1..=1_000_000;
        /// Members that wait for one lock.
        live lock_queue_max: usize = 256, 0..=100_000;
        /// Longest time that a lock is held without being renewed, in milliseconds.
        live lock_ttl_max_ms: u64 = 300_000, 100..=86_400_000;
        /// Timers of a room that are set at a time.
        live timers_max: usize = 256, 1..=1_000_000;
        /// Longest payload of a timer, in bytes.
        live timer_payload_bytes_max: usize = 4_096, 0..=16_777_216;
        /// Users of a room with read or delivered cursors; where there are more, those of the one who is furthest behind are forgotten.
        live cursor_users_max: usize = 10_000, 1..=10_000_000;
    }
}

section! {
    /// Rooms on disk: those of namespaces with `durability = "local"`. They are in `<data_dir>/journal`.
    pub struct StorageConfig {
        /// How long to wait for the data directory where another process still uses it, in milliseconds: for a start in the
        /// place of a process that is about to end.
        restart lock_wait_ms: u64 = 10_000, 0..=600_000;
        /// Percentage of the disk that stays free: below it, publishes to rooms on disk are refused until there is space again.
        restart headroom_percent: u64 = 5, 0..=90;
        /// Bytes of the disk that stay free at least. Two files of the log count as so many, unless this and the percentage are 0.
        restart headroom_bytes_min: u64 = 268_435_456, 0..=1_099_511_627_776;
        /// Bytes of one file of the log. What is acknowledged stands there first, and goes into the sorted store file by file.
        restart segment_bytes: u64 = 67_108_864, 1_048_576..=1_073_741_824;
        /// Bytes of the store's blocks that stay in memory.
        restart cache_bytes: u64 = 33_554_432, 1_048_576..=1_099_511_627_776;
    }
}

section! {
    /// Which shard a new connection goes to.
    pub struct PlacementConfig {
        /// Connections by which the shard of a placement key may exceed the least loaded one before it is passed over.
        live imbalance_max: usize = 1_024, 0..=10_000_000;
    }
}

section! {
    /// Bounds of one shard.
    pub struct ShardConfig {
        /// How long each kind of work (reading, mail, timers, rooms, catching up, fan-out, replies) may take in one turn before the
        /// others get theirs, in microseconds.
        live turn_budget_us: u64 = 2_000, 100..=1_000_000;
        /// A turn that takes longer in all is counted and logged, in milliseconds.
        live turn_warning_ms: u64 = 50, 1..=60_000;
        /// Bytes that wait in a shard's mailbox. A room whose messages don't fit is fetched from its history instead.
        restart mailbox_bytes_max: usize = 67_108_864, 65_536..=17_179_869_184;
    }
}

section! {
    /// One budget for everything that peers can make the process hold.
    pub struct MemoryConfig {
        /// Bytes that the process may hold. 0 takes three quarters of what its cgroup allows, or of the machine.
        restart budget_bytes: usize = 0, 0..=1_099_511_627_776;
        /// Percentage of the budget above which new connections get 503.
        restart soft_percent: u64 = 80, 1..=100;
        /// Percentage of the budget above which the heaviest connections are closed, to come back, and publishes that need
        /// more memory are refused.
        restart hard_percent: u64 = 90, 1..=100;
    }
}

section! {
    /// The end of the process.
    pub struct ShutdownConfig {
        /// How long new connections are still accepted after the signal, in milliseconds: balancers learn late that
        /// the server isn't ready any more. Not waited where there is no connection, or on a terminal.
        live drain_accept_ms: u64 = 5_000, 0..=600_000;
        /// Over how long the connections are then told to come back, in milliseconds, an equal share in each half
        /// second. All at once on a terminal.
        live spread_ms: u64 = 12_000, 0..=600_000;
        /// How long after the signal the process ends at the latest, in milliseconds. Keep it below what a supervisor
        /// waits before it kills (30 s in Kubernetes).
        live limit_ms: u64 = 25_000, 0..=600_000;
    }
}

section! {
    /// Logs, on standard error.
    pub struct LogConfig {
        /// How a line looks.
        restart format: LogFormat = LogFormat::Auto;
        /// What is logged: a level, or levels per module such as "info,roomful_server::session=debug".
        restart filter: LogFilter = LogFilter::info();
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
