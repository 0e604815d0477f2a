//! One core for the server and one for the tester, so that neither takes the other's time.

use std::fs;
use std::path::Path;
use std::process::{self, Command, Stdio};

use anyhow::{Context as _, Result};

/// The two cores of a pinned run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cores {
    /// Where the server runs.
    pub(crate) server: u32,
    /// Where this process runs.
    pub(crate) tester: u32,
}

impl Cores {
    /// Moves this process to its core and names the other one. Needs `taskset` (util-linux) and two allowed cores; the error
    /// says which is missing, and the run may go on without.
    ///
    /// # Errors
    /// What pinning lacks here.
    pub(crate) fn pin_tester() -> Result<Self> {
        let status = fs::read_to_string("/proc/self/status").context("no /proc/self/status")?;
        let mut allowed = allowed_cores(&status).into_iter();
        let (Some(server), Some(tester)) = (allowed.next(), allowed.next()) else {
            anyhow::bail!("only one core is allowed to this process");
        };
        let pid = process::id().to_string();
        let pinned = Command::new("taskset")
            .args([
                "--all-tasks",
                "--cpu-list",
                "--pid",
                &tester.to_string(),
                &pid,
            ])
            .stdout(Stdio::null())
            .status()
            .context("taskset can't be run")?;
        anyhow::ensure!(pinned.success(), "taskset failed with {pinned}");
        Ok(Self { server, tester })
    }

    /// A command that runs `program` on the server's core.
    pub(super) fn server_command(self, program: &Path) -> Command {
        let mut command = Command::new("taskset");
        command
            .args(["--cpu-list", &self.server.to_string()])
            .arg(program);
        command
    }
}

/// How many files this process may open; `None` where nothing tells. A server that is started inherits it.
pub(crate) fn files_allowed() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// `Cpus_allowed_list` of proc_pid_status(5), for example `0-3,8`.
fn allowed_cores(status: &str) -> Vec<u32> {
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .unwrap_or("");
    let ranges = list.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?)
    });
    ranges.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_single_cores_are_read() {
        assert_eq!(
            allowed_cores("x: 1\nCpus_allowed_list:\t0-2,8\n"),
            [0, 1, 2, 8]
        );
        assert_eq!(allowed_cores("Cpus_allowed_list:\t5\n"), [5]);
        assert_eq!(allowed_cores(""), [0; 0]);
    }
}
