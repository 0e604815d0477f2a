//! System calls of a process tree, counted by `perf stat`.
//!
//! Counts every entry into the kernel of every thread, whatever the call is. Needs perf and the right to use its tracepoints; where either is
//! missing there is no count. Counting costs the server some 0.1 µs a call.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::tree;

/// A count that is going on.
#[derive(Debug)]
pub(crate) struct Syscalls(Child);

const EVENT: &str = "raw_syscalls:sys_enter";

/// How long perf takes to attach.
const ATTACH: Duration = Duration::from_millis(300);

impl Syscalls {
    /// Begins to count.
    ///
    /// # Errors
    /// What is missing.
    pub(crate) fn start(pid: u32) -> Result<Self> {
        let pids: Vec<String> = tree::members(pid)?.iter().map(u32::to_string).collect();
        let child = Command::new("perf")
            .args(["stat", "-x,", "-e", EVENT, "-p", &pids.join(",")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("perf can't be run")?;
        let mut count = Self(child);
        thread::park_timeout(ATTACH);
        if count.0.try_wait()?.is_some() {
            // It says why it ended instead of a count.
            return count.stop().and_then(|_| bail!("perf has ended at once"));
        }
        Ok(count)
    }

    /// Ends the count.
    ///
    /// # Errors
    /// perf has none.
    pub(crate) fn stop(self) -> Result<u64> {
        let interrupt = Command::new("kill")
            .args(["-INT", &self.0.id().to_string()])
            .stderr(Stdio::null())
            .status()
            .context("kill can't be run")?;
        let output = self.0.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(interrupt.success(), "perf has ended: {}", text.trim());
        count(&text).with_context(|| format!("perf has no count: {}", text.trim()))
    }
}

/// A line of comma-separated values, the count first.
fn count(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains(EVENT))?;
    line.split(',').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_stands_first_on_its_line() {
        let counted = "# started\n1234,,raw_syscalls:sys_enter,5000,100.00,,\n";
        assert_eq!(count(counted), Some(1234));
        assert_eq!(
            count("<not counted>,,raw_syscalls:sys_enter,0,100.00,,"),
            None
        );
        assert_eq!(count("Access to performance monitoring is limited"), None);
    }
}
