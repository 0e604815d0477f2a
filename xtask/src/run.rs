//! Running other programs: visibly, and with their test counts read off what they print.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::console;
use crate::context::Context;
use crate::summary::Counts;

/// Runs one command line in the root; see [`counted`] for how lines are written.
///
/// # Errors
/// It can't be started, or it fails.
pub(crate) fn line(context: &Context, line: &str) -> Result<()> {
    line_with(context, line, &[])
}

/// Runs one command line with more environment.
///
/// # Errors
/// It can't be started, or it fails.
pub(crate) fn line_with(context: &Context, line: &str, env: &[(&str, &str)]) -> Result<()> {
    counted(context, line, env).1
}

/// Runs one command line and counts the tests it reports.
///
/// A line is words and `{placeholders}`; a first word `dir:` names the directory to run in, below the root. No quoting, no shell: what needs
/// more is a script of its own.
pub(crate) fn counted(context: &Context, line: &str, env: &[(&str, &str)]) -> (Counts, Result<()>) {
    let mut counts = Counts::default();
    let outcome =
        command(context, line, env).and_then(|command| stream(context, command, line, &mut counts));
    (counts, outcome)
}

fn command(context: &Context, line: &str, env: &[(&str, &str)]) -> Result<Command> {
    let mut words = line.split_whitespace().peekable();
    let dir = words
        .next_if(|word| word.ends_with(':'))
        .map_or("", |word| word.trim_end_matches(':'));
    let program = words.next().context("an empty command")?;
    let mut command = Command::new(context.expand(program));
    command
        .args(words.map(|word| context.expand(word)))
        .current_dir(context.root.join(dir));
    command.env("CARGO_TARGET_DIR", &context.target);
    command.env("ROOMFUL_BIN", context.server_binary());
    command.env("PATH", path_with(&context.own_node_dir().join("bin")));
    // Into a pipe Node would write TAP, five lines a test.
    command.env("NODE_OPTIONS", "--test-reporter=spec");
    command.envs(env.iter().copied());
    Ok(command)
}

/// Passes the output on line by line, so that a long run shows that it lives.
fn stream(context: &Context, mut command: Command, line: &str, counts: &mut Counts) -> Result<()> {
    console::say(&format!("$ {}", context.expand(line)));
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let output = child.stdout.take().context("the output was asked for")?;
    for text in BufReader::new(output).split(b'\n') {
        let text = String::from_utf8_lossy(&text?).into_owned();
        counts.read(&text);
        console::say(&text);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{line}` ended with {status}");
    }
    Ok(())
}

/// Whether a program runs and succeeds, in silence.
pub(crate) fn succeeds(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> bool {
    output(program, arguments).is_some()
}

/// What a program prints, if it runs and succeeds.
pub(crate) fn output(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the child's search path is ours with one directory in front"
)]
fn path_with(first: &Path) -> OsString {
    let old = std::env::var("PATH").unwrap_or_default();
    let mut path = OsString::from(first);
    path.push(":");
    path.push(old);
    path
}
