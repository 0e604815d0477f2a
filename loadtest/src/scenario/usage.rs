//! Processor time over a stretch of a run.

use std::process;
use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use crate::process::{CpuTime, MachineTime};
use crate::report::Figure;

/// The start of a stretch.
#[derive(Debug)]
pub(crate) struct Meter {
    pid: u32,
    at: Instant,
    server: CpuTime,
    tester: CpuTime,
    spun: Duration,
    machine: MachineTime,
}

/// What a stretch took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Time on the wall.
    pub(crate) wall: Duration,
    /// The server's processor time.
    pub(crate) server: Duration,
    /// This process's, without the server that it may have started and without what it spun away.
    pub(crate) tester: Duration,
    /// Everybody else's on this machine: caches and cores were shared with it.
    pub(crate) others: Duration,
}

impl Meter {
    /// Begins now; `spun` is what this process has spun away so far.
    ///
    /// # Errors
    /// The server has ended.
    pub(crate) fn start(pid: u32, spun: Duration) -> Result<Self> {
        Ok(Self {
            pid,
            spun,
            machine: MachineTime::now()?,
            tester: CpuTime::of_process(process::id()),
            server: CpuTime::of_tree(pid)?,
            at: Instant::now(),
        })
    }

    /// Ends now.
    ///
    /// # Errors
    /// The server has ended.
    pub(crate) fn stop(&self, spun: Duration) -> Result<Usage> {
        let wall = self.at.elapsed();
        let server = self.server.until(CpuTime::of_tree(self.pid)?);
        let process = self.tester.until(CpuTime::of_process(process::id()));
        let machine = self.machine.until(MachineTime::now()?);
        let others = machine.saturating_sub(server + process);
        Ok(Usage {
            wall,
            server,
            tester: process.saturating_sub(spun - self.spun),
            others,
        })
    }
}

impl Usage {
    /// The server's microseconds for one of `count` things.
    pub(crate) fn server_us_per(&self, count: u64) -> f64 {
        self.server.as_secs_f64() * 1e6 / count as f64
    }

    /// How busy everybody was, in percent of one core: a tester near 100 would itself be the limit, and others disturb.
    pub(crate) fn shares(&self) -> [Figure; 3] {
        let percent = |part: Duration| 100.0 * part.as_secs_f64() / self.wall.as_secs_f64();
        [
            Figure::new(SERVER_BUSY, "% of a core", percent(self.server)),
            Figure::new(TESTER_BUSY, "% of a core", percent(self.tester)),
            Figure::new(OTHERS_BUSY, "% of a core", percent(self.others)),
        ]
    }
}

/// Names of the shares.
pub(crate) const SERVER_BUSY: &str = "server busy";
pub(crate) const TESTER_BUSY: &str = "tester busy";
pub(crate) const OTHERS_BUSY: &str = "others on this machine busy";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_divided_by_what_was_done() {
        let usage = Usage {
            wall: Duration::from_secs(2),
            server: Duration::from_secs(1),
            tester: Duration::from_millis(500),
            others: Duration::ZERO,
        };
        assert!((usage.server_us_per(1_000_000) - 1.0).abs() < 1e-9);
        assert_eq!(
            usage.shares().map(|figure| figure.value.round()),
            [50.0, 25.0, 0.0]
        );
    }
}
