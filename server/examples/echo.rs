//! An echo over the server's own sockets: acceptor, handshake, shard threads, frame reader, outbox and goodbye are the server's, and
//! a core that sends every message back stands where rooms and sessions would. Any WebSocket conformance suite can be pointed at it, at
//! any path:
//!
//! ```sh
//! cargo run --release --example echo -- --listen 127.0.0.1:9001
//! ```

use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use clap::Parser;
use roomful_protocol::websocket::OpCode;
use roomful_server::admission::Admission;
use roomful_server::admission::client::Trust;
use roomful_server::app;
use roomful_server::clock::{Clock, Now};
use roomful_server::config::Config;
use roomful_server::connection::outbox::Outbox;
use roomful_server::current::Current;
use roomful_server::directory::Directory;
use roomful_server::http::{self, Limits, OriginRule, Readiness, Site};
use roomful_server::logging;
use roomful_server::memory::Memory;
use roomful_server::metrics::Metrics;
use roomful_server::shard::message::ConnectionId;
use roomful_server::shard::{Host, Input};
use roomful_server::shutdown::Shutdown;
use roomful_server::tasks::Tasks;
use roomful_server::transport::{Core, Parts, Shards, TransportSettings};
use roomful_server::wire;

/// Sends every WebSocket message back.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:9001")]
    listen: SocketAddr,
    /// Longest message, in bytes.
    #[arg(long, default_value_t = 16 * 1024 * 1024)]
    message_bytes_max: usize,
    /// Most fragments of a message. Suites send 65,536 and end them with an empty one.
    #[arg(long, default_value_t = 131_072)]
    fragments_max: u32,
    /// How long a message may take, in milliseconds.
    #[arg(long, default_value_t = 60_000)]
    message_timeout_ms: u64,
    /// How long a closed connection may take to close too, in milliseconds.
    #[arg(long, default_value_t = 3_000)]
    close_timeout_ms: u64,
    /// Connections at a time.
    #[arg(long, default_value_t = 10_000)]
    connections_max: usize,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    shards: u16,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    logging::init(&Config::default().log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(serve(&arguments))
}

/// Runs until somebody ends the process.
async fn serve(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let tasks = Tasks::new();
    let shards = arguments.shards;
    let metrics = Metrics::new(tasks.clone(), usize::from(shards));
    let parts = Parts {
        directory: Directory::new(shards, 0),
        counters: metrics.shards().to_vec(),
        judge: None,
        memory: Memory::unlimited(usize::from(shards)),
        clock: Clock::system(),
        settings: arguments.transport(),
    };
    let message_bytes_max = arguments.message_bytes_max;
    let core = move |_shard, _now| Echo {
        message_bytes_max,
        connections: Vec::new(),
    };
    let (shards, _threads) = Shards::start(parts, core)?;
    let limits = app::admission_limits(&Config::default());
    let admission = Admission::new(limits, Trust::none());
    let site = http::Shared {
        metrics,
        readiness: Readiness::new(None),
        tasks,
        limits: Limits::default(),
    };
    let site = Site::plain(
        site,
        admission,
        Arc::new(shards),
        Current::new(OriginRule::SameHost),
    );
    let unsent = u32::try_from(Config::default().connection.kernel_unsent_bytes_max)?;
    let listener = http::listen(arguments.listen, unsent)?;
    http::serve(listener, site, Shutdown::new()).await?;
    Ok(())
}

impl Arguments {
    fn transport(&self) -> TransportSettings {
        TransportSettings {
            connections_max: self.connections_max,
            fragments_max: self.fragments_max,
            message_timeout_ms: self.message_timeout_ms,
            close_timeout_ms: self.close_timeout_ms,
            ..app::transport_settings(&Config::default())
        }
    }
}

/// The connections of one thread.
#[derive(Debug)]
struct Echo {
    message_bytes_max: usize,
    /// By slot.
    connections: Vec<Option<Connection>>,
}

#[derive(Debug)]
struct Connection {
    id: ConnectionId,
    /// What its socket would not take yet. While there is some, nothing is read: who doesn't read is not read.
    outbox: Option<Outbox>,
}

impl Echo {
    fn open(&mut self, id: ConnectionId) {
        let slot = id.slot as usize;
        if self.connections.len() <= slot {
            self.connections.resize_with(slot + 1, || None);
        }
        self.connections[slot] = Some(Connection { id, outbox: None });
    }

    /// Sends a frame back, behind whatever waits.
    fn send(&mut self, id: ConnectionId, code: OpCode, payload: &[u8], host: &mut dyn Host) {
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        let mut bytes = wire::control(code, payload);
        match &mut connection.outbox {
            Some(outbox) => outbox.push_control(bytes),
            None => {
                let written = host.write(id, &[IoSlice::new(&bytes)]);
                if written < bytes.len() {
                    let rest = bytes.split_off(written);
                    connection.outbox = Some(Outbox::with_rest([rest]));
                }
            }
        }
    }

    /// The socket takes bytes again.
    fn writable(&mut self, id: ConnectionId, host: &mut dyn Host) {
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        let Some(outbox) = &mut connection.outbox else {
            return;
        };
        while !outbox.is_empty() {
            outbox.choose();
            let slices = outbox.slices();
            let total: usize = slices.iter().map(|slice| slice.len()).sum();
            let written = host.write(id, &slices);
            drop(slices);
            outbox.written(written);
            if written < total {
                return;
            }
        }
        connection.outbox = None;
        host.read_again(id);
    }

    /// Ends a connection with a close frame behind everything that waits.
    fn close(&mut self, id: ConnectionId, close: Bytes, host: &mut dyn Host) {
        if let Some(connection) = self.remove(id) {
            let waiting = connection.outbox.into_iter();
            let mut words: Vec<Bytes> = waiting
                .flat_map(|outbox| outbox.into_last_words(true))
                .collect();
            words.push(close);
            host.finish(id, words);
        }
    }

    fn gone(&mut self, id: ConnectionId, host: &mut dyn Host) {
        if self.remove(id).is_some() {
            host.finish(id, Vec::new());
        }
    }

    fn connection(&self, id: ConnectionId) -> Option<&Connection> {
        let connection = self.connections.get(id.slot as usize)?.as_ref()?;
        (connection.id == id).then_some(connection)
    }

    fn connection_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(id.slot as usize)?.as_mut()?;
        (connection.id == id).then_some(connection)
    }

    fn remove(&mut self, id: ConnectionId) -> Option<Connection> {
        self.connection(id)?;
        self.connections.get_mut(id.slot as usize)?.take()
    }
}

impl Core for Echo {
    fn step(&mut self, input: Input<'_>, _now: Now, host: &mut dyn Host) {
        match input {
            Input::Opened { connection, .. } => self.open(connection),
            Input::Message {
                connection,
                text,
                payload,
            } => {
                let code = if text { OpCode::Text } else { OpCode::Binary };
                self.send(connection, code, payload, host);
            }
            Input::Ping {
                connection,
                payload,
            } => self.send(connection, OpCode::Pong, payload, host),
            Input::Closed { connection, code } => {
                self.close(connection, wire::closed(code), host);
            }
            Input::Close { connection, code } => self.close(connection, wire::close(code), host),
            Input::Gone { connection } => self.gone(connection, host),
            Input::Writable { connection } => self.writable(connection, host),
            Input::Pong { .. }
            | Input::Verified { .. }
            | Input::Mail(_)
            | Input::Journal(_)
            | Input::Wake(_)
            | Input::Settings(_)
            | Input::Tick
            | Input::Drain { .. } => {}
        }
    }

    fn flush(&mut self, _now: Now, _host: &mut dyn Host) {}

    fn next_tick_ms(&self) -> Option<u64> {
        None
    }

    fn is_idle(&self) -> bool {
        true
    }

    fn is_reading(&self, connection: ConnectionId) -> bool {
        self.connection(connection)
            .is_some_and(|connection| connection.outbox.is_none())
    }

    fn message_bytes_max(&self, _connection: ConnectionId) -> usize {
        self.message_bytes_max
    }

    fn outbox_bytes(&self, _connection: ConnectionId) -> usize {
        // Nothing is closed for want of memory here.
        0
    }

    fn backlog_bytes(&self, _connection: ConnectionId) -> usize {
        0
    }
}
