//! What the scenarios that publish have in common: the closed loop, and the figures of a stretch of it.

use std::time::Duration;

use anyhow::{Error, Result, ensure};
use tokio::time::Instant;

use super::traffic::{Arrival, Traffic};
use super::usage::{Meter, Usage};
use crate::console::{self, Bar};
use crate::process::Syscalls;
use crate::report::Figure;

/// The start of a stretch.
#[derive(Debug)]
pub(super) struct Load {
    meter: Meter,
    /// Where asked for, and possible here.
    syscalls: Option<Syscalls>,
    published: u64,
    delivered: u64,
}

/// What a stretch took, and what came of it.
#[derive(Debug)]
pub(super) struct Done {
    usage: Usage,
    syscalls: Option<u64>,
    publishes: u64,
    deliveries: u64,
}

/// What is counted besides, at the price of a slower server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counting {
    /// Nothing.
    Nothing,
    /// The server's system calls.
    Syscalls,
}

/// For the commands of scenarios that can count.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct CountingArgs {
    /// Count the server's system calls of every kind, per delivery, with `perf stat`; costs it some 0.1 µs a call. Left out where
    /// perf can't do it
    #[arg(long)]
    syscalls: bool,
}

impl CountingArgs {
    /// What is asked for.
    pub(crate) const fn counting(self) -> Counting {
        if self.syscalls {
            Counting::Syscalls
        } else {
            Counting::Nothing
        }
    }
}

const SYSCALLS: &str = "server system calls per delivery";

/// Name of the figure that most are here for.
pub(crate) const PER_DELIVERY: &str = "server CPU per delivery";

/// Keeps publishes in flight for so long: those of `first`, each a room and one of its publishers, and for each that has arrived everywhere
/// the one that `next` names. Then waits until all have arrived.
///
/// # Errors
/// Those of [`Traffic::turn`].
pub(super) fn closed_loop(
    traffic: &mut Traffic,
    duration: Duration,
    first: Vec<(usize, u32)>,
    mut next: impl FnMut(Arrival) -> (usize, u32),
) -> Result<()> {
    let _bar = Bar::timing("traffic", duration);
    let end = Instant::now() + duration;
    let mut ready = first;
    while Instant::now() < end {
        for (room, publisher) in ready.drain(..) {
            traffic.publish(room, publisher)?;
        }
        traffic.turn(TURN_MAX, &mut |arrival| {
            if arrival.complete {
                ready.push(next(arrival));
            }
        })?;
    }
    traffic.drain(&mut |_| {})
}

/// A turn of the closed loop ends by then even if nothing arrives.
const TURN_MAX: Duration = Duration::from_millis(100);

impl Load {
    /// Begins now, and counts system calls where they are asked for.
    ///
    /// # Errors
    /// The server has ended.
    pub(super) fn start(pid: u32, counting: Counting, traffic: &Traffic) -> Result<Self> {
        let syscalls = match counting {
            Counting::Syscalls => Syscalls::start(pid).map_err(uncounted).ok(),
            Counting::Nothing => None,
        };
        Ok(Self {
            syscalls,
            published: traffic.published(),
            delivered: traffic.delivered(),
            meter: Meter::start(pid, traffic.spun())?,
        })
    }

    /// Ends now.
    ///
    /// # Errors
    /// The server has ended, or nothing was delivered.
    pub(super) fn stop(self, traffic: &Traffic) -> Result<Done> {
        let usage = self.meter.stop(traffic.spun())?;
        let count = |syscalls: Syscalls| syscalls.stop().map_err(uncounted).ok();
        let deliveries = traffic.delivered() - self.delivered;
        ensure!(deliveries > 0, "no publish fitted into {:?}", usage.wall);
        Ok(Done {
            usage,
            syscalls: self.syscalls.and_then(count),
            publishes: traffic.published() - self.published,
            deliveries,
        })
    }
}

/// The figure is then left out.
#[expect(
    clippy::needless_pass_by_value,
    reason = "it is what an error is mapped by"
)]
fn uncounted(error: Error) {
    console::progress(&format!("system calls are not counted: {error:#}"));
}

impl Done {
    /// The server's processor time for each.
    pub(super) fn per_delivery(&self) -> Figure {
        let each = self.usage.server_us_per(self.deliveries);
        Figure::new(PER_DELIVERY, "µs", each)
    }

    /// How much was done, and how busy everybody was.
    pub(super) fn figures(&self) -> Vec<Figure> {
        let deliveries = self.deliveries as f64;
        let counts = [
            Figure::new("publishes", "", self.publishes as f64),
            Figure::new("deliveries", "", deliveries),
            Figure::new(
                "deliveries per second",
                "",
                deliveries / self.usage.wall.as_secs_f64(),
            ),
        ];
        let calls = self
            .syscalls
            .map(|calls| Figure::new(SYSCALLS, "calls", calls as f64 / deliveries));
        counts
            .into_iter()
            .chain(self.usage.shares())
            .chain(calls)
            .collect()
    }
}
