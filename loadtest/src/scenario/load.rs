//! What the scenarios that publish have in common: the closed loop, and the figures of a stretch of it.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::Instant;

use super::traffic::{Arrival, Traffic};
use super::usage::{Meter, Usage};
use crate::console::Bar;
use crate::report::Figure;

/// The start of a stretch.
#[derive(Debug)]
pub(super) struct Load {
    meter: Meter,
    published: u64,
    delivered: u64,
}

/// What a stretch took, and what came of it.
#[derive(Debug)]
pub(super) struct Done {
    usage: Usage,
    publishes: u64,
    deliveries: u64,
}

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
    /// Begins now.
    ///
    /// # Errors
    /// The server has ended.
    pub(super) fn start(pid: u32, traffic: &Traffic) -> Result<Self> {
        Ok(Self {
            published: traffic.published(),
            delivered: traffic.delivered(),
            meter: Meter::start(pid, traffic.spun())?,
        })
    }

    /// Ends now.
    ///
    /// # Errors
    /// The server has ended, or nothing was delivered.
    pub(super) fn stop(&self, traffic: &Traffic) -> Result<Done> {
        let usage = self.meter.stop(traffic.spun())?;
        let deliveries = traffic.delivered() - self.delivered;
        ensure!(deliveries > 0, "no publish fitted into {:?}", usage.wall);
        Ok(Done {
            usage,
            publishes: traffic.published() - self.published,
            deliveries,
        })
    }
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
        counts.into_iter().chain(self.usage.shares()).collect()
    }
}
