//! The echo: a program that sends messages back over the server's own sockets.

use std::net::SocketAddr;

use crate::peer::Peer;
use crate::process::{Process, example};
use crate::server::{Directory, listening_address};

/// A running echo. Dropping it kills it.
#[derive(Debug)]
pub struct Echo {
    /// The process.
    pub process: Process,
    address: SocketAddr,
    _dir: Directory,
}

impl Echo {
    /// Starts one with these flags.
    pub async fn start(flags: &[&str]) -> Self {
        let dir = Directory::new();
        let arguments = [&["--listen", "127.0.0.1:0"], flags].concat();
        let mut process = Process::start_program(&example("echo"), &dir.0, &arguments, &[]);
        let address = process.line("the echo listens", listening_address).await;
        Self {
            process,
            address,
            _dir: dir,
        }
    }

    /// Connects.
    pub async fn peer(&self) -> Peer {
        Peer::open(self.address, None).await
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}
