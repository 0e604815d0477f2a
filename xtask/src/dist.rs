//! `cargo xtask dist`: the server as one static file, for machines that have nothing.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::context::Context;
use crate::run;

/// Builds `target/dist/roomful` and proves that it needs no library.
///
/// # Errors
/// It can't be built, or needs one.
pub(crate) fn build(context: &Context) -> Result<PathBuf> {
    // With a target, the flags are for the server alone and not for what builds it. A static file finds no function by its name at run time, so
    // the crate that draws random numbers is told that the kernel has a call for it, and needs no /dev.
    let host = host()?;
    let line =
        format!("cargo build --profile dist -p roomful-server --bin roomful --target {host}");
    run::line_with(context, &line, &[("RUSTFLAGS", FLAGS)])?;
    let built = context.target.join(host).join("dist/roomful");
    let dist = context.target.join("dist");
    fs::create_dir_all(&dist)?;
    let path = dist.join("roomful");
    fs::copy(&built, &path).with_context(|| format!("cannot copy {}", built.display()))?;
    let ldd = Command::new("ldd").arg(&path).output();
    let ldd = ldd.context("ldd can't be run")?;
    let said =
        String::from_utf8_lossy(&ldd.stdout).into_owned() + &String::from_utf8_lossy(&ldd.stderr);
    ensure!(
        said.contains("statically linked") || said.contains("not a dynamic executable"),
        "{} needs libraries:\n{said}",
        path.display()
    );
    Ok(path)
}

/// The machine that this is built on, as Rust names it.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output()?;
    let text = String::from_utf8(output.stdout)?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc names no host")?.to_owned())
}

const FLAGS: &str = r#"-C target-feature=+crt-static --cfg getrandom_backend="linux_getrandom""#;
