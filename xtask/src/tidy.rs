//! `cargo xtask tidy`: what no compiler checks.
//!
//! Every Rust file says in its first line what it is for; nothing is left for later; no file grows without being asked why; the project
//! speaks of no machine but the reader's own.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::context::Context;

/// Longer files need a reason here.
const LINES_MAX: usize = 700;

/// Files that may be longer, each with its reason.
const LONG_FILES: &[(&str, &str)] = &[
    (
        "tests/tests/tools.rs",
        "five commands and one helper for what a room is seen as",
    ),
    (
        "clients/rust/src/machine/membership.rs",
        "one state machine: a membership from its join to its leave",
    ),
    (
        "server/tests/simulation/world.rs",
        "the simulated world, whose parts all meet in it",
    ),
    (
        "server/tests/simulation/client.rs",
        "one client by the whole specification, whose every frame checks what the others have told it",
    ),
    (
        "protocol/examples/fixtures/vectors.rs",
        "a table: one row for each golden fixture",
    ),
    (
        "server/src/http/tests.rs",
        "one table-driven suite over the whole folder",
    ),
];

/// Written by programs, or texts that are not ours.
const NOT_OURS: &[&str] = &[
    "Cargo.lock",
    "package-lock.json",
    "server/assets/",
    "protocol/fixtures/",
    "fuzz/corpus/",
    "LICENSE-",
];

/// What must not be left in a file. Split, so that this file passes.
const LEFTOVERS: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("X", "XX"),
    concat!("to", "do!("),
    concat!("unimplemen", "ted!("),
    concat!("/wo", "rk/"),
];

/// Checks every file that git knows.
///
/// # Errors
/// A list of what is not tidy, one a line.
pub(crate) fn check(context: &Context) -> Result<String> {
    let files = tracked(context)?;
    let mut problems = Vec::new();
    for name in &files {
        // Pictures are not text; a file that is staged for removal is no longer there.
        let Ok(text) = fs::read_to_string(context.root.join(name)) else {
            continue;
        };
        problems.extend(problems_of(name, &text));
    }
    if !problems.is_empty() {
        bail!("not tidy:\n{}", problems.join("\n"));
    }
    Ok(format!("{} files are tidy", files.len()))
}

fn tracked(context: &Context) -> Result<Vec<String>> {
    let listing = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(&context.root)
        .output()
        .context("cannot start git")?;
    if !listing.status.success() {
        bail!(
            "git ls-files: {}",
            String::from_utf8_lossy(&listing.stderr).trim()
        );
    }
    let names = String::from_utf8(listing.stdout).context("a file name that is not UTF-8")?;
    let ours = names
        .lines()
        .filter(|name| !NOT_OURS.iter().any(|part| name.contains(part)));
    Ok(ours.map(str::to_owned).collect())
}

fn problems_of(name: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if name.ends_with(".rs") && !text.trim_start().starts_with("//!") {
        problems.push(format!(
            "{name}:1: no module docs; start with `//! what this is for`"
        ));
    }
    for (index, line) in text.lines().enumerate() {
        for leftover in LEFTOVERS
            .iter()
            .filter(|leftover| line.contains(**leftover))
        {
            problems.push(format!("{name}:{}: {leftover}", index + 1));
        }
    }
    // Unit tests, at the foot of a Rust file or beside it, grow with its rules and not with its tangle.
    let lines = text
        .split("\n#[cfg(test)]\nmod tests {")
        .next()
        .map_or(0, |text| text.lines().count());
    let is_code = [".rs", ".ts", ".mjs", ".js", ".py", ".css"]
        .iter()
        .any(|end| name.ends_with(end));
    if is_code
        && !name.ends_with("/tests.rs")
        && lines > LINES_MAX
        && !LONG_FILES.iter().any(|(long, _)| *long == name)
    {
        problems.push(format!(
            "{name}: {lines} lines; split it, or give a reason in xtask/src/tidy.rs"
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each rule finds its slip, with the line; a clean file gives nothing.
    #[test]
    fn each_rule_finds_its_slip() {
        let leftover = format!("//! Docs.\n// {}: later\n", LEFTOVERS[0]);
        let long = "//! Docs.\n".to_owned() + &"\n".repeat(LINES_MAX);
        let tested =
            "//! Docs.\n\n#[cfg(test)]\nmod tests {\n".to_owned() + &"\n".repeat(LINES_MAX);
        for (name, text, found) in [
            ("a.rs", "//! Docs.\nfn f() {}\n", None),
            ("a.rs", "fn f() {}\n", Some("a.rs:1: no module docs")),
            ("a.rs", &leftover, Some("a.rs:2: ")),
            ("a.rs", &long, Some("701 lines")),
            ("a.rs", &tested, None),
            ("a.md", "words\n", None),
        ] {
            let problems = problems_of(name, text);
            assert_eq!(problems.len(), usize::from(found.is_some()), "{problems:?}");
            assert!(
                found.is_none_or(|part| problems[0].contains(part)),
                "{problems:?}"
            );
        }
    }
}
