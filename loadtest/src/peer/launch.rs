//! Arguments that say how peers are started.

use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Where the programs are and how many workers they get.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct LaunchArgs {
    /// The roomful binary [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    pub(super) server: Option<PathBuf>,
    /// The roomful server's configuration
    #[arg(long, value_name = "FILE", default_value = "bench.toml")]
    pub(super) config: PathBuf,
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
}
