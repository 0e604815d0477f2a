//! The plain broadcast server that Roomful is compared with: tokio-tungstenite the way it is usually written.
//!
//! A task and a bounded channel per connection, one room under a mutex, and each binary message goes to everybody in it, its
//! sender included. It has small buffers (with tungstenite's default of 128 KiB it would cost several times as much), and no authentication,
//! no rooms, no order across senders, no history and no limits.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::select;
use tokio::sync::mpsc::{Sender, channel};
use tokio_tungstenite::accept_async_with_config;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

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

/// Everybody's channel, by connection.
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
    let room = Room::default();
    for id in 0_u64.. {
        let (stream, _) = listener.accept().await.context("accepting failed")?;
        start(member(stream, id, Arc::clone(&room)));
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

async fn member(stream: TcpStream, id: u64, room: Room) -> Result<()> {
    stream.set_nodelay(true)?;
    let config = WebSocketConfig::default()
        .read_buffer_size(1024)
        .write_buffer_size(0);
    let mut socket = accept_async_with_config(stream, Some(config)).await?;
    let (own, mut deliveries) = channel(CHANNEL_MESSAGES);
    room.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(id, own);
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
    room.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(&id);
    Ok(())
}

fn broadcast(room: &Room, message: &Bytes) {
    let mut members = room.lock().unwrap_or_else(PoisonError::into_inner);
    members.retain(|_, member| member.try_send(message.clone()).is_ok());
}
