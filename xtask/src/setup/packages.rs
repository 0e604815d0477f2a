//! Packages of the system, by apt-get.

use anyhow::{Result, bail};

use crate::context::Context;
use crate::run;

/// Installs packages.
///
/// # Errors
/// There is no apt-get or no root, or it fails.
pub(super) fn install(context: &Context, packages: &str) -> Result<()> {
    if !run::succeeds("apt-get", &["--version"]) {
        bail!("{packages} missing, and there is no apt-get here to install them");
    }
    let is_root = run::output("id", &["-u"]).is_some_and(|id| id == "0");
    let sudo = match (is_root, run::succeeds("sudo", &["-n", "true"])) {
        (true, _) => "",
        (false, true) => "sudo -n ",
        (false, false) => {
            bail!("{packages} missing; installing needs root (`apt-get install {packages}`)")
        }
    };
    // The lists of a fresh container are empty, and those of an old one name versions that are gone.
    run::line(context, &format!("{sudo}apt-get update -q"))?;
    let options = "-q -y --no-install-recommends";
    run::line_with(
        context,
        &format!("{sudo}apt-get install {options} {packages}"),
        &[("DEBIAN_FRONTEND", "noninteractive")],
    )
}

/// The browser's program, where there is one.
fn browser() -> Option<&'static str> {
    const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
    NAMES
        .into_iter()
        .find(|name| run::succeeds(name, &["--version"]))
}

/// Finds or installs Chromium, with fonts: without any, a page has boxes for letters.
///
/// # Errors
/// It can't be installed.
pub(super) fn set_up_browsers(context: &Context) -> Result<()> {
    if browser().is_some() {
        return Ok(());
    }
    install(context, "chromium fonts-dejavu-core fonts-noto-color-emoji")?;
    if browser().is_none() {
        bail!("chromium is installed but does not start");
    }
    Ok(())
}

/// Finds or installs valgrind.
///
/// # Errors
/// It can't be installed.
pub(super) fn set_up_valgrind(context: &Context) -> Result<()> {
    const WORKS: [&str; 3] = ["--tool=none", "-q", "/bin/true"];
    if run::succeeds("valgrind", &WORKS) {
        return Ok(());
    }
    install(context, "valgrind")?;
    if !run::succeeds("valgrind", &WORKS) {
        bail!("valgrind is installed but does not run a program here");
    }
    Ok(())
}

/// Finds or installs strace.
///
/// # Errors
/// It can't be installed, or may not look at a process here.
pub(super) fn set_up_strace(context: &Context) -> Result<()> {
    const WORKS: [&str; 4] = ["-D", "-f", "--seccomp-bpf", "true"];
    if run::succeeds("strace", &WORKS) {
        return Ok(());
    }
    install(context, "strace")?;
    if !run::succeeds("strace", &WORKS) {
        bail!("strace is installed but may not follow a program here");
    }
    Ok(())
}
