//! Arguments that say how peers are started, and where what was set up for them is.

use std::env;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

/// Where the programs are and how many workers they get.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct LaunchArgs {
    /// The roomful binary [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    pub(super) server: Option<PathBuf>,
    /// The roomful server's configuration
    #[arg(long, value_name = "FILE", default_value = "bench.toml")]
    pub(super) config: PathBuf,
    /// A setting of the roomful server over its configuration, such as placement.imbalance_max=1; may be given again
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
    /// Where `cargo xtask peers` has put the other servers [default: peers in the target directory of this program]
    #[arg(long, value_name = "DIR")]
    peers_dir: Option<PathBuf>,
    /// A Centrifugo binary, of version 6
    #[arg(long, value_name = "FILE")]
    pub(super) centrifugo: Option<PathBuf>,
    /// Shards of the server, or threads of another one [default: 1 if pinned, else its own default]
    #[arg(long)]
    shards: Option<NonZeroUsize>,
}

impl LaunchArgs {
    /// How many shards or threads a server gets; one on a core of its own, and `None` leaves it to the server.
    pub(crate) fn workers(&self, pinned: bool) -> Option<usize> {
        let asked = self.shards.map(NonZeroUsize::get);
        asked.or(pinned.then_some(1))
    }

    /// The path of something that was set up for a peer.
    ///
    /// # Errors
    /// It isn't there.
    pub(super) fn set_up(&self, name: &str) -> Result<String> {
        let path = match &self.peers_dir {
            Some(dir) => dir.join(name),
            None => target_dir()?.join("peers").join(name),
        };
        if !path.is_file() {
            bail!("{} is missing; run cargo xtask peers", path.display());
        }
        let path = path.into_os_string().into_string();
        path.map_err(|path| anyhow::anyhow!("{} is not UTF-8", path.display()))
    }

    /// The node that was set up with the peers where the system has none or an old one, else the system's.
    ///
    /// # Errors
    /// This program is in no target directory.
    pub(super) fn node(&self) -> Result<PathBuf> {
        let own = target_dir()?.join("tools/node/bin/node");
        Ok(if own.is_file() { own } else { "node".into() })
    }
}

/// Two above this program, which cargo puts into a directory for its profile.
fn target_dir() -> Result<PathBuf> {
    let program = env::current_exe()?;
    let target = program.ancestors().nth(2);
    Ok(target
        .context("this program is in no directory")?
        .to_owned())
}
