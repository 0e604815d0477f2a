//! The plain broadcast server that Roomful is compared with: tokio-tungstenite the way it is usually written.
//!
//! A task and a bounded channel per connection, a mutex for each room, and each binary message goes to everybody in the room that the
//! path of the URL names, its sender included. It has small buffers (with tungstenite's default of 128 KiB it would cost several times as much), and no authentication,
//! no order across senders, no history and no limits.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::select;
use tokio::sync::mpsc::{Sender, channel};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config};

use crate::console;

/// How the plain server runs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Worker threads; one of them runs everything without the multi-threaded scheduler's cost [default: one per core]
    #[arg(long)]
    threads: Option<NonZeroUsize>,
}

/// The rooms, by the path that names them.
type Rooms = Arc<Mutex<HashMap<String, Room>>>;

/// The members' channels, by connection.
type Room = Arc<Mutex<HashMap<u64, Sender<Bytes>>>>;

/// Messages that wait for one connection, ten seconds' worth at the rate of the comparison. A member that lags further behind is
/// dropped from the room. The channel takes memory only for what waits in it.
const CHANNEL_MESSAGES: usize = 1024;

/// Serves until the process is ended.
///
/// # Errors
/// No runtime, or the address is taken.
pub(crate) fn run(args: &Args) -> Result<()> {
    runtime(args.threads)
        .context("no runtime")?
        .block_on(serve(args.listen))
}

fn runtime(threads: Option<NonZeroUsize>) -> std::io::Result<Runtime> {
    match threads.map(NonZeroUsize::get) {
        Some(1) => Builder::new_current_thread().enable_all().build(),
        Some(threads) => Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build(),
        None => Builder::new_multi_thread().enable_all().build(),
    }
}

async fn serve(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("can't listen on {address}"))?;
    console::progress(&format!("listening address={}", listener.local_addr()?));
    let rooms = Rooms::default();
    for id in 0_u64.. {
        let (stream, _) = listener.accept().await.context("accepting failed")?;
        start(member(stream, id, Arc::clone(&rooms)));
    }
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "a detached task per connection is what this server is measured for"
)]
fn start(member: impl Future<Output = Result<()>> + Send + 'static) {
    // A connection that fails is the tester's to notice.
    drop(tokio::spawn(member));
}

async fn member(stream: TcpStream, id: u64, rooms: Rooms) -> Result<()> {
    stream.set_nodelay(true)?;
    let config = WebSocketConfig::default()
        .read_buffer_size(1024)
        .write_buffer_size(0);
    let mut name = String::new();
    let mut socket = accept_named(stream, config, &mut name).await?;
    let room = Arc::clone(lock(&rooms).entry(name).or_default());
    let (own, mut deliveries) = channel(CHANNEL_MESSAGES);
    lock(&room).insert(id, own);
    // The reply to joining, as the tester knows it.
    socket.send(Message::Binary(Bytes::new())).await?;
    loop {
        select! {
            received = socket.next() => match received {
                Some(Ok(Message::Binary(message))) => broadcast(&room, &message),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => break,
            },
            delivery = deliveries.recv() => match delivery {
                Some(message) => socket.send(Message::Binary(message)).await?,
                None => break,
            },
        }
    }
    lock(&room).remove(&id);
    Ok(())
}

/// Accepts the upgrade, and writes the path that it asked for.
#[expect(
    clippy::result_large_err,
    reason = "the type of the library's callback"
)]
async fn accept_named(
    stream: TcpStream,
    config: WebSocketConfig,
    name: &mut String,
) -> Result<WebSocketStream<TcpStream>> {
    let callback = |request: &Request, response: Response| {
        request.uri().path().clone_into(name);
        Ok(response)
    };
    Ok(accept_hdr_async_with_config(stream, callback, Some(config)).await?)
}

fn broadcast(room: &Room, message: &Bytes) {
    lock(room).retain(|_, member| member.try_send(message.clone()).is_ok());
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
