//! The servers that the load test compares Roomful with, each of one version: programs on Node and Bun from npm, nats-server from source.
//!
//! They go into `peers` in the target directory, where the load test looks for them. Nobody needs all of them, so what can't be
//! set up is named and left out.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::node;
use crate::console;
use crate::context::Context;
use crate::run;

/// The programs, their settings, and the list of their packages.
const SOURCE: &str = "loadtest/peers";

const NATS_VERSION: &str = "2.14.9";

/// Sets up every peer, and says for each whether it is there.
///
/// # Errors
/// None of them can be.
pub(crate) fn set_up(context: &Context) -> Result<()> {
    let dir = context.target.join("peers");
    copy(&context.root.join(SOURCE), &dir)?;
    let packages = node::set_up_program(context)
        .and_then(|()| node::set_up_packages(context, &dir))
        .map_err(|error| format!("{error:#}"));
    let package = |name: &str| {
        packages.clone().map_err(anyhow::Error::msg)?;
        let manifest = dir.join("node_modules").join(name).join("package.json");
        if !manifest.is_file() {
            bail!("there is no package {name} for this machine");
        }
        Ok(())
    };
    let peers = [
        ("ws", package("ws")),
        ("socket-io", package("socket.io")),
        ("bun", bun(&dir, package)),
        ("nats", nats(context, &dir)),
    ];
    let mut ready = 0;
    for (name, outcome) in peers {
        match outcome {
            Ok(()) => {
                ready += 1;
                console::say(&format!("{name}: ready"));
            }
            Err(error) => console::say(&format!("{name}: left out: {error:#}")),
        }
    }
    console::say("centrifugo: from a binary alone, with roomful-loadtest --centrifugo FILE");
    if ready == 0 {
        bail!("no peer could be set up");
    }
    Ok(())
}

fn copy(source: &Path, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let listing = fs::read_dir(source);
    for entry in listing.with_context(|| format!("cannot list {}", source.display()))? {
        let path = entry?.path();
        // What npm installs there is its own.
        if let (true, Some(name)) = (path.is_file(), path.file_name()) {
            fs::copy(&path, dir.join(name))?;
        }
    }
    Ok(())
}

/// One of the packages fits this machine; npm leaves out the others.
fn bun(dir: &Path, package: impl Fn(&str) -> Result<()>) -> Result<()> {
    let name = match std::env::consts::ARCH {
        "x86_64" => "@oven/bun-linux-x64",
        "aarch64" => "@oven/bun-linux-aarch64",
        arch => bail!("none is known for {arch}"),
    };
    package(name)?;
    let program = dir.join("node_modules").join(name).join("bin/bun");
    if !run::succeeds(program, &["--version"]) {
        bail!("{name} does not run here");
    }
    Ok(())
}

fn nats(context: &Context, dir: &Path) -> Result<()> {
    let bin = dir.join("bin");
    let program = bin.join("nats-server");
    let is_there = || {
        let version = run::output(&program, &["--version"]).unwrap_or_default();
        version == format!("nats-server: v{NATS_VERSION}")
    };
    if is_there() {
        return Ok(());
    }
    if !run::succeeds("go", &["version"]) {
        bail!("it is built from source, and there is no go here");
    }
    let line = format!("go install github.com/nats-io/nats-server/v2@v{NATS_VERSION}");
    let bin = bin.display().to_string();
    run::line_with(context, &line, &[("GOBIN", &bin)])?;
    if !is_there() {
        bail!("what was built is not version {NATS_VERSION}");
    }
    Ok(())
}
