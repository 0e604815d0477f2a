//! Where things are: the repository, the target directory, the tools put there.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Paths that every command needs.
#[derive(Debug)]
pub(crate) struct Context {
    /// The repository's root.
    pub root: PathBuf,
    /// Cargo's target directory; everything that set-up makes is in it, so that removing it is a fresh start.
    pub target: PathBuf,
}

impl Context {
    /// Finds the paths from where xtask was built and what cargo was told.
    #[expect(
        clippy::disallowed_methods,
        reason = "cargo's own variable, and xtask has no config"
    )]
    pub(crate) fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask is inside the repository")?;
        let target = std::env::var("CARGO_TARGET_DIR")
            .map_or_else(|_| root.join("target"), |dir| root.join(dir));
        Ok(Self {
            root: root.to_owned(),
            target,
        })
    }

    /// Replaces the `{names}` in a command's word.
    pub(crate) fn expand(&self, word: &str) -> String {
        let target = self.target.display().to_string();
        word.replace("{target}", &target)
            .replace("{python}", &format!("{target}/venv/bin/python"))
            .replace("{deny}", &format!("{target}/tools/bin/cargo-deny"))
    }

    /// The server that tests start: built once, by the first stage that needs it.
    pub(crate) fn server_binary(&self) -> PathBuf {
        self.target.join("debug").join("roomful")
    }

    /// A node of our own, where the system has none or an old one.
    pub(crate) fn own_node_dir(&self) -> PathBuf {
        self.target.join("tools/node")
    }
}
