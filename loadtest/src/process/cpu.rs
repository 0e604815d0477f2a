//! Processor time, from the kernel's own accounting.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::tree::{self, Stat};

/// User and system time that a process tree had used up to a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CpuTime {
    /// Sum over the living threads, in nanoseconds (`schedstat`): fine, but blind to threads that have ended.
    nanoseconds: u64,
    /// Sum over the processes, ended threads and children included, in ticks (`stat`): complete, but coarse.
    ticks: u64,
}

/// Busy time of all processors together up to a moment, in ticks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MachineTime(u64);

/// `/proc` counts in hundredths of a second for programs, whatever the kernel's own rate is (USER_HZ).
const TICK: Duration = Duration::from_millis(10);

/// Each of the two samples is rounded to a tick, and a second process adds its own rounding.
const ROUNDING: Duration = TICK.saturating_mul(3);

impl CpuTime {
    /// What a process and its descendants have used until now.
    ///
    /// # Errors
    /// The process has ended.
    pub(crate) fn of_tree(pid: u32) -> Result<Self> {
        // A descendant may end while it is looked at; its time is then in its parent's.
        let members = tree::members(pid)?.into_iter().map(Self::of_process);
        Ok(members.fold(
            Self {
                nanoseconds: 0,
                ticks: 0,
            },
            |sum, process| Self {
                nanoseconds: sum.nanoseconds + process.nanoseconds,
                ticks: sum.ticks + process.ticks,
            },
        ))
    }

    /// What a process has used without its descendants, 0 if it has ended.
    pub(crate) fn of_process(pid: u32) -> Self {
        Self {
            nanoseconds: thread_nanoseconds(pid),
            ticks: process_ticks(pid).unwrap_or(0),
        }
    }

    /// How much was used between this sample and a later one.
    ///
    /// The fine count is right unless a thread ended in between; then the coarse one is larger by more than its rounding.
    pub(crate) fn until(self, later: Self) -> Duration {
        let fine = Duration::from_nanos(later.nanoseconds.saturating_sub(self.nanoseconds));
        let coarse = ticks(later.ticks.saturating_sub(self.ticks));
        if coarse > fine + ROUNDING {
            coarse
        } else {
            fine
        }
    }
}

impl MachineTime {
    /// What all processors have done until now.
    ///
    /// # Errors
    /// There is no `/proc/stat`.
    pub(crate) fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("measuring needs /proc/stat")?;
        Ok(Self(busy_ticks(&text)))
    }

    /// Busy time between this sample and a later one.
    pub(crate) fn until(self, later: Self) -> Duration {
        ticks(later.0.saturating_sub(self.0))
    }
}

fn ticks(count: u64) -> Duration {
    Duration::from_millis(count * 10)
}

/// The first line of proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal.
fn busy_ticks(text: &str) -> u64 {
    let fields = text
        .lines()
        .next()
        .unwrap_or("")
        .split_ascii_whitespace()
        .skip(1)
        .take(8);
    let idle = |index: &usize| matches!(index, 3 | 4);
    fields
        .enumerate()
        .filter(|(index, _)| !idle(index))
        .filter_map(|(_, field)| field.parse::<u64>().ok())
        .sum()
}

fn thread_nanoseconds(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let of_thread = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    threads.filter_map(of_thread).sum()
}

/// Own user and system time (fields 14 and 15), and that of children that have been waited for (16 and 17).
fn process_ticks(pid: u32) -> Option<u64> {
    let stat = Stat::of(pid)?;
    (14..=17).map(|number| stat.field(number)).sum()
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::{process, thread};

    use tokio::time::Instant;

    use super::*;

    fn spin(duration: Duration) {
        let start = Instant::now();
        while start.elapsed() < duration {
            black_box(0);
        }
    }

    /// Work of this thread and of one that has ended by the second sample must both be counted. The upper bound is loose: other tests
    /// of this process run at the same time.
    #[test]
    fn time_of_living_and_of_ended_threads_is_counted() {
        let before = CpuTime::of_tree(process::id()).unwrap();
        thread::spawn(|| spin(Duration::from_millis(150)))
            .join()
            .unwrap();
        spin(Duration::from_millis(50));
        let used = before.until(CpuTime::of_tree(process::id()).unwrap());
        // The machine may have given the time to somebody else, so a spin of 200 ms may be less processor time.
        assert!(used > Duration::from_millis(60), "{used:?}");
        assert!(used < Duration::from_secs(5), "{used:?}");
    }

    #[test]
    fn the_fine_count_wins_unless_a_thread_was_lost() {
        let start = CpuTime {
            nanoseconds: 1_000_000,
            ticks: 3,
        };
        let fine = CpuTime {
            nanoseconds: 91_234_567,
            ticks: 12,
        };
        assert_eq!(start.until(fine), Duration::from_nanos(90_234_567));
        let lost = CpuTime {
            nanoseconds: 1_000_000,
            ticks: 12,
        };
        assert_eq!(start.until(lost), Duration::from_millis(90));
    }

    #[test]
    fn idle_and_waiting_are_not_busy() {
        assert_eq!(
            busy_ticks("cpu  1 2 4 1000 2000 8 16 32 5000 6000\ncpu0 9 9"),
            63
        );
    }
}
