//! Bars on a terminal: what runs now, how much of it is done, what is left.
//!
//! A process has one terminal, so the bars are the process' too and nothing hands them around. Where standard error is no terminal nothing is
//! drawn; [`Runs`] then prints a line for each run. Bars are drawn four times a second by a thread of their own, and counting costs one
//! store, so that a measurement doesn't feel them.

use std::io::{self, IsTerminal as _};
use std::sync::LazyLock;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use tokio::time::Instant;

use super::complain;

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

const REDRAWN_EVERY: Duration = Duration::from_millis(250);

/// Cells of a bar that grows with time.
const CELLS: usize = 30;

/// A part of a run, shown until it is dropped.
#[derive(Debug)]
pub(crate) struct Bar(ProgressBar);

/// Several runs, one after the other, shown until it is dropped.
#[derive(Debug)]
pub(crate) struct Runs {
    bar: ProgressBar,
    started: Instant,
    begun: u64,
    total: u64,
}

/// Prints past the bars.
pub(super) fn aside<T>(print: impl FnOnce() -> T) -> T {
    BARS.suspend(print)
}

impl Bar {
    /// Of things that are counted.
    pub(crate) fn counting(what: &'static str, total: usize) -> Self {
        let template = "  {msg:<12} [{bar:30}] {pos} of {len}, {eta} left";
        Self(add(total as u64, template, what))
    }

    /// Of something that takes so long.
    pub(crate) fn timing(what: &'static str, takes: Duration) -> Self {
        let share = move |state: &ProgressState| {
            (state.elapsed().as_secs_f64() / takes.as_secs_f64().max(1e-9)).min(1.0)
        };
        let style = style("  {msg:<12} [{cells}] {left} s left")
            .with_key(
                "cells",
                move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                    out.write_str(&cells(share(state))).ok();
                },
            )
            .with_key(
                "left",
                move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                    let left = takes.saturating_sub(state.elapsed());
                    write!(out, "{:.0}", left.as_secs_f64().ceil()).ok();
                },
            );
        let bar = add(1, "", what);
        bar.set_style(style);
        Self(bar)
    }

    /// So many are done now.
    pub(crate) fn reach(&self, done: usize) {
        self.0.set_position(done as u64);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        BARS.remove(&self.0);
    }
}

impl Runs {
    /// None begun yet.
    pub(crate) fn new(total: usize) -> Self {
        Self {
            bar: add(
                total as u64,
                "[{bar:30}] {pos} of {len} runs, {prefix}{msg}",
                "",
            ),
            started: Instant::now(),
            begun: 0,
            total: total as u64,
        }
    }

    /// The one before is done, and this one begins.
    pub(crate) fn begin(&mut self, name: &str) {
        let left = time_left(self.started.elapsed(), self.begun, self.total);
        let left = left.map_or_else(String::new, |left| format!("{left}; "));
        self.bar.set_position(self.begun);
        self.begun += 1;
        if io::stderr().is_terminal() {
            self.bar.set_prefix(left);
            self.bar.set_message(name.to_owned());
        } else {
            complain(&format!("{} of {}: {left}{name}", self.begun, self.total));
        }
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        BARS.remove(&self.bar);
    }
}

fn add(total: u64, template: &str, what: &'static str) -> ProgressBar {
    let bar = BARS.add(ProgressBar::new(total));
    bar.set_style(style(template));
    bar.set_message(what);
    bar.enable_steady_tick(REDRAWN_EVERY);
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the templates are this module's own")
        .progress_chars("━━╌")
}

fn cells(share: f64) -> String {
    let full = (share * CELLS as f64).round();
    (0..CELLS)
        .map(|cell| if (cell as f64) < full { '━' } else { '╌' })
        .collect()
}

/// If the rest goes as what is done did: runs differ, so it is rounded and says "about".
fn time_left(elapsed: Duration, done: u64, total: u64) -> Option<String> {
    if done == 0 {
        return None;
    }
    let seconds = elapsed.as_secs_f64() * total.saturating_sub(done) as f64 / done as f64;
    Some(if seconds < 90.0 {
        format!("about {:.0} s left", seconds.ceil())
    } else {
        format!("about {:.0} min left", (seconds / 60.0).ceil())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_follows_from_what_is_done() {
        let minute = Duration::from_secs(60);
        assert_eq!(time_left(minute, 0, 10), None);
        for (done, total, text) in [
            (1, 2, "about 60 s left"),
            (1, 10, "about 9 min left"),
            (9, 10, "about 7 s left"),
            (10, 10, "about 0 s left"),
        ] {
            assert_eq!(time_left(minute, done, total).as_deref(), Some(text));
        }
    }

    #[test]
    fn a_bar_of_time_is_full_at_its_end() {
        assert_eq!(cells(0.0), "╌".repeat(CELLS));
        assert_eq!(cells(1.0), "━".repeat(CELLS));
        assert_eq!(cells(0.5).matches('━').count(), CELLS / 2);
    }
}
