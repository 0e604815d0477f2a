//! The attackers of a siege: a process of their own, which never listens and never gives up.
//!
//! Whoever is thrown out comes again. Slow ones send the head of a request a byte a second; a ping flooder sends WebSocket pings and a fragment
//! flooder empty fragments of one message, as fast as the socket takes them, and neither reads anything.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mio::net::TcpStream;
use roomful_protocol::websocket::{OpCode, masked_frame_into};
use serde::{Deserialize, Serialize};

use super::companion::{Companion, questions, step_back};
use crate::connection::{connect, request};
use crate::console;
use crate::peer::{PeerName, Seat, Upgrade};

/// The command of the second process.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the server listens
    address: SocketAddr,
    /// How the upgrade is asked for
    #[arg(long, value_parser = PeerName::parser(), default_value_t = PeerName::ROOMFUL)]
    peer: PeerName,
    #[command(flatten)]
    forces: Forces,
}

/// How many of each.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Forces {
    /// Sockets that send the head of a request a byte a second; this program and the server need an open file for each
    #[arg(long, default_value_t = 5000)]
    pub(crate) slow: usize,
    /// Connections that send pings without end
    #[arg(long, default_value_t = 1)]
    pub(crate) pingers: usize,
    /// Connections that send empty fragments without end
    #[arg(long, default_value_t = 1)]
    pub(crate) fragmenters: usize,
}

/// The second process, from the first one's side. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Besiegers(Companion);

/// What they have done so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Deeds {
    /// Times that a slow socket was thrown out and came again.
    pub(super) slow_returns: u64,
    /// Times that a flooder was.
    pub(super) flooder_returns: u64,
    /// Bytes that the flooders got rid of.
    pub(super) flooded_bytes: u64,
}

/// What several threads count.
#[derive(Debug, Default)]
struct Counts {
    returns: AtomicU64,
    bytes: AtomicU64,
}

/// Runs the second process: says by an empty line that all slow sockets are open, and answers each line with what was done.
///
/// # Errors
/// The server can't be reached at the beginning.
pub(crate) fn run(args: &Args) -> Result<()> {
    step_back()?;
    let counts = Arc::new(Counts::default());
    let mut slow = Vec::new();
    for index in 0..args.forces.slow {
        slow.push(Slow {
            stream: connect(args.address, index)?,
            sent: 0,
        });
    }
    let floods = [
        (args.forces.pingers, Flood::Pings),
        (args.forces.fragmenters, Flood::Fragments),
    ];
    for (count, flood) in floods {
        for _ in 0..count {
            let (address, counts) = (args.address, Arc::clone(&counts));
            let head = request(address, &args.upgrade()?);
            thread::spawn(move || {
                loop {
                    // It fails when it is thrown out, which is what it comes back from.
                    flood.run(address, &head, &counts).ok();
                    counts.returns.fetch_add(1, Ordering::Relaxed);
                    thread::park_timeout(RETURN_AFTER);
                }
            });
        }
    }
    let questions = questions();
    console::result("");
    let mut deeds = Deeds::default();
    let mut next = 0;
    loop {
        // A hundred slices a second, so that the bytes come evenly.
        let slice = slow.len().div_ceil(SLICES);
        let end = (next + slice).min(slow.len());
        for (index, slow) in slow.iter_mut().enumerate().take(end).skip(next) {
            deeds.slow_returns += u64::from(slow.step(args.address, index));
        }
        next = if end == slow.len() { 0 } else { end };
        match questions.recv_timeout(SLICE) {
            Ok(()) => {
                deeds.flooder_returns = counts.returns.load(Ordering::Relaxed);
                deeds.flooded_bytes = counts.bytes.load(Ordering::Relaxed);
                console::result(&serde_json::to_string(&deeds)?);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

const SLICES: usize = 100;
const SLICE: Duration = Duration::from_millis(10);

/// Before a flooder comes again, so that it is a flood of frames and not of connections.
const RETURN_AFTER: Duration = Duration::from_millis(100);

impl Args {
    fn upgrade(&self) -> Result<Upgrade> {
        let seat = Seat::new(0, "chat:besieged".to_owned());
        self.peer.adapter().upgrade(&seat)
    }
}

/// A socket that sends the head of a request, byte by byte.
#[derive(Debug)]
struct Slow {
    stream: TcpStream,
    sent: usize,
}

impl Slow {
    /// Sends a byte, or comes again if it was thrown out; whether that was so.
    fn step(&mut self, address: SocketAddr, index: usize) -> bool {
        let byte = SLOW_HEAD[self.sent % SLOW_HEAD.len()];
        self.sent += 1;
        let heard = self.stream.read(&mut [0; 512]);
        let open = matches!(&heard, Err(error) if error.kind() == ErrorKind::WouldBlock)
            && self.stream.write(&[byte]).is_ok();
        if open {
            return false;
        }
        // Where there is no connection to be had, it tries again with its next byte.
        if let Ok(stream) = connect(address, index) {
            *self = Self { stream, sent: 0 };
        }
        true
    }
}

/// A head that goes on for ever.
const SLOW_HEAD: &[u8] = b"GET /v1/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// What a flooder sends.
#[derive(Debug, Clone, Copy)]
enum Flood {
    Pings,
    Fragments,
}

impl Flood {
    /// Connects, and sends until it is thrown out.
    fn run(self, address: SocketAddr, head: &str, counts: &Counts) -> Result<()> {
        let mut stream = std::net::TcpStream::from(connect(address, 0)?);
        stream.set_nonblocking(false)?;
        stream.write_all(head.as_bytes())?;
        stream.write_all(&self.first())?;
        let frames = self.frames();
        loop {
            stream.write_all(&frames)?;
            counts
                .bytes
                .fetch_add(frames.len() as u64, Ordering::Relaxed);
        }
    }

    /// What has to come before.
    fn first(self) -> Vec<u8> {
        match self {
            Self::Pings => Vec::new(),
            // The start of a binary message, without FIN.
            Self::Fragments => vec![OpCode::Binary as u8, EMPTY, 0, 0, 0, 0],
        }
    }

    /// A socket's worth of them, whole.
    fn frames(self) -> Vec<u8> {
        let mut frames = Vec::new();
        for _ in 0..FRAMES {
            match self {
                Self::Pings => masked_frame_into(OpCode::Ping, b"", [0; 4], &mut frames),
                Self::Fragments => frames.extend([OpCode::Continuation as u8, EMPTY, 0, 0, 0, 0]),
            }
        }
        frames
    }
}

/// The second byte of a masked frame without a payload.
const EMPTY: u8 = 0x80;

const FRAMES: usize = 4096;

impl Besiegers {
    /// Starts them, and waits until all slow ones are connected.
    ///
    /// # Errors
    /// They can't be started, or can't connect.
    pub(super) fn start(address: SocketAddr, peer: PeerName, forces: Forces) -> Result<Self> {
        let arguments = [
            address.to_string(),
            format!("--peer={peer}"),
            format!("--slow={}", forces.slow),
            format!("--pingers={}", forces.pingers),
            format!("--fragmenters={}", forces.fragmenters),
        ];
        Ok(Self(Companion::start("besiegers", &arguments)?))
    }

    /// What they have done so far.
    ///
    /// # Errors
    /// They have failed.
    pub(super) fn ask(&mut self) -> Result<Deeds> {
        serde_json::from_str(&self.0.ask()?).context("the besiegers' answer")
    }
}
