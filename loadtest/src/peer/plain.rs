//! The plain broadcast server.

use std::env;

use anyhow::Result;

use super::{LaunchArgs, Peer};
use crate::process::Launch;

/// The plain server; see [`crate::plain_server`].
#[derive(Debug)]
pub(super) struct Plain;

impl Peer for Plain {
    fn name(&self) -> &'static str {
        "plain tokio-tungstenite"
    }

    fn launch(&self, _: &LaunchArgs, workers: Option<usize>) -> Result<Launch> {
        let mut launch = Launch::new(env::current_exe()?, &["plain-server"]);
        if let Some(workers) = workers {
            let threads = ["--threads".to_owned(), workers.to_string()];
            launch.arguments.extend(threads);
        }
        Ok(launch)
    }
}
