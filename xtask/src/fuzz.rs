//! `cargo xtask fuzz`: libFuzzer looks for bytes for which a property does not hold.
//!
//! The targets are functions of the crate `fuzz`, which the ordinary tests run over the committed corpus. Here they are built with a nightly
//! compiler, since libFuzzer needs one, and run one after the other, each for its share of the time. What takes a new
//! path is kept in the target directory for the next run; `--keep` puts the smallest set of it into `fuzz/corpus`.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::context::Context;
use crate::{console, run};

/// Runs the targets whose name is given, or all, for so many seconds together.
///
/// # Errors
/// There is no such target or no nightly compiler, or an input breaks a property.
pub(crate) fn fuzz(context: &Context, words: &[&str]) -> Result<()> {
    let mut seconds: u32 = 600;
    let mut keep = false;
    let mut wanted = None;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "--seconds" => {
                let number = words.next().context("--seconds takes a number")?;
                seconds = number.parse().context("--seconds takes a whole number")?;
            }
            "--keep" => keep = true,
            name => wanted = Some(name),
        }
    }
    let targets: Vec<String> = all(context)?
        .into_iter()
        .filter(|target| wanted.is_none_or(|wanted| wanted == target))
        .collect();
    ensure!(!targets.is_empty(), "there is no such target");
    build(context)?;
    let share = (seconds / u32::try_from(targets.len())?).max(1);
    let failed: Vec<_> = targets
        .iter()
        .filter(|target| look(context, target, share, keep).is_err())
        .cloned()
        .collect();
    if !failed.is_empty() {
        bail!("found something in: {}", failed.join(", "));
    }
    Ok(())
}

/// Each target has a folder in the corpus.
fn all(context: &Context) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(context.root.join("fuzz/corpus"))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn build(context: &Context) -> Result<()> {
    let tools = context.target.join("tools");
    let cargo_fuzz = tools.join("bin/cargo-fuzz");
    if run::output(&cargo_fuzz, &["--version"]).is_none() {
        let root = tools.display();
        let line =
            format!("cargo install cargo-fuzz --version {VERSION} --locked --debug --root {root}");
        let build = tools.join("build").display().to_string();
        run::line_with(context, &line, &[("CARGO_TARGET_DIR", &build)])?;
    }
    // No sanitizer: the project has no unsafe code, and without one the runs are several times as many.
    let line = format!(
        "fuzz/libfuzzer: {} fuzz build --fuzz-dir . -s none --target-dir {{target}}/fuzz any",
        cargo_fuzz.display()
    );
    run::line_with(context, &line, &[("RUSTUP_TOOLCHAIN", "nightly")])
        .context("libFuzzer needs a nightly compiler: `rustup toolchain install nightly`")
}

/// Runs one target. What it finds new goes beside the corpus, and the input that breaks a property is named.
fn look(context: &Context, target: &str, seconds: u32, keep: bool) -> Result<()> {
    let found = context.target.join("fuzz/found").join(target);
    let broken = context.target.join("fuzz/broken").join(target);
    let corpus = context.root.join("fuzz/corpus").join(target);
    fs::create_dir_all(&found)?;
    fs::create_dir_all(&broken)?;
    console::say(&format!("\n{target}: {seconds} s"));
    let time = format!("-max_total_time={seconds}");
    let prefix = format!("-artifact_prefix={}/", broken.display());
    let mut libfuzzer = program(context, target)?;
    libfuzzer
        .args([&time, &prefix, "-timeout=10", "-rss_limit_mb=1024"])
        .args(["-max_len=8192", "-print_final_stats=1", "-verbosity=0"])
        .args([&found, &corpus]);
    let status = libfuzzer.status()?;
    ensure!(status.success(), "{target}: see {}", broken.display());
    if keep {
        // From nothing: what is left is a smallest set that takes all the paths.
        let smallest = context.target.join("fuzz/smallest").join(target);
        fs::remove_dir_all(&smallest).ok();
        fs::create_dir_all(&smallest)?;
        let mut merge = program(context, target)?;
        merge.args(["-set_cover_merge=1", "-max_len=512", "-verbosity=0"]);
        merge.args(["-use_counters=0", "-use_value_profile=0"]);
        let status = merge.args([&smallest, &corpus, &found]).status()?;
        ensure!(status.success(), "{target} cannot be made smaller");
        for entry in fs::read_dir(&corpus)? {
            let entry = entry?;
            // What broke a property once, `crash-…` and its like, stays whatever paths it takes.
            if !entry.file_name().to_string_lossy().contains('-') {
                fs::remove_file(entry.path())?;
            }
        }
        for entry in fs::read_dir(&smallest)? {
            let entry = entry?;
            fs::copy(entry.path(), corpus.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// The built program; cargo-fuzz builds for the machine's own target.
fn program(context: &Context, target: &str) -> Result<Command> {
    let version = run::output("rustc", &["-vV"]).context("there is no rustc")?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc names its host")?;
    let path = context.target.join("fuzz").join(host).join("release/any");
    let mut command = Command::new(path);
    command.env("ROOMFUL_FUZZ_TARGET", target);
    Ok(command)
}

const VERSION: &str = "0.13.2";
