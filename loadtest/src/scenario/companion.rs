//! A second process of this program, beside a scenario: one that is asked by a line, and answers by a line.
//!
//! A scenario's own process is busy with what it does, and would count its own business as the server's. A companion says by an empty
//! line that it is ready, and ends when nobody can ask any more.

use std::env;
use std::io::{BufRead as _, BufReader, Write as _, stdin};
use std::process::{self, Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use anyhow::{Context as _, Result, ensure};

/// The second process, from the first one's side. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Companion {
    name: &'static str,
    child: Child,
    asking: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Companion {
    /// Starts one, which is a command of this program, and waits until it is ready.
    ///
    /// # Errors
    /// It can't be started, or has ended before.
    pub(super) fn start(name: &'static str, arguments: &[String]) -> Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .arg(name)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("can't start the {name}"))?;
        let asking = child.stdin.take();
        let answers = child.stdout.take().context("it has no output")?;
        let mut companion = Self {
            name,
            child,
            asking,
            answers: BufReader::new(answers),
        };
        companion.answer()?;
        Ok(companion)
    }

    /// What it has to say since it was last asked.
    ///
    /// # Errors
    /// It has failed.
    pub(super) fn ask(&mut self) -> Result<String> {
        let asking = self.asking.as_mut();
        let asking = asking.with_context(|| format!("the {} has ended", self.name))?;
        // If it has ended, its answer is missing, and the reason is on standard error.
        asking.write_all(b"\n").ok();
        self.answer()
    }

    /// Lets it finish.
    ///
    /// # Errors
    /// It has failed.
    pub(super) fn finish(mut self) -> Result<()> {
        drop(self.asking.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "the {} failed ({status})", self.name);
        Ok(())
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the {} failed", self.name);
        Ok(line)
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        // Either fails only if it has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// One for each line of the standard input; none any more when it has ended.
pub(super) fn questions() -> Receiver<()> {
    let (ask, questions) = channel();
    thread::spawn(move || {
        for line in stdin().lines() {
            if line.is_err() || ask.send(()).is_err() {
                return;
            }
        }
    });
    questions
}

/// Gives this process the lowest priority. It never gets the old one back.
///
/// # Errors
/// The system refuses.
pub(super) fn step_back() -> Result<()> {
    let pid = process::id().to_string();
    let renice = Command::new("renice")
        .args(["-n", "19", "-p", &pid])
        .stdout(Stdio::null())
        .status()
        .context("renice can't be run")?;
    ensure!(renice.success(), "renice failed with {renice}");
    Ok(())
}
