//! `mixed`: what a chat, an editor, a game and an auction do to one server at the same time.
//!
//! Each shape has rooms of its own, and publishes and signals at fixed rates; see [`SHAPES`]. The figures are, for each shape, the time from
//! the moment a message was due to each of its deliveries, and the server's processor time per delivery over all of them. Every event
//! must arrive once and in order, the same for all members; signals may be dropped, so those that arrived are counted.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use roomful_protocol::frame::Watch;
use tokio::time::Instant;

use super::pace::{Schedule, wait_for};
use super::usage::Meter;
use super::{Deadline, Subject, TargetArgs, check_files};
use crate::console::Bar;
use crate::crowd::{Crowd, Told};
use crate::latency::{Latency, Names, quantiles};
use crate::report::{Figure, Measurement};

/// The command.
#[derive(Debug, clap::Args)]
#[command(after_help = SHAPES_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    target: TargetArgs,
}

/// What is measured.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Shape {
    /// How much of each shape: 1 is what stands below, 3,300 connections in all; it multiplies the rooms, and of the auction the members
    #[arg(long, default_value_t = 1.0)]
    pub(crate) scale: f64,
    /// Seconds of traffic before measuring begins
    #[arg(long, default_value_t = 1.0)]
    pub(crate) warmup_s: f64,
    /// Seconds of traffic that are measured
    #[arg(long, default_value_t = 10.0)]
    pub(crate) duration_s: f64,
    /// Seconds after which the scenario fails, connecting included
    #[arg(long, default_value_t = 120.0)]
    pub(crate) timeout_s: f64,
}

const SHAPES_HELP: &str = "The shapes, at scale 1:
  chat     20 rooms of 50: each room gets a message of 200 bytes a second
  editor   50 documents of 4: each gets 5 edits of 48 bytes and 5 cursors (signals) of 24 bytes a second
  game     10 matches of 10: each player sends its position (a signal) of 32 bytes 20 times a second, each match
           records a result of 64 bytes a second
  auction  2 lots with 1,000 bidders: each gets 5 bids of 96 bytes a second";

/// Traffic of one kind.
#[derive(Debug)]
struct Kind {
    name: &'static str,
    names: Names,
    namespace: &'static str,
    rooms: f64,
    members: f64,
    /// Whether the scale multiplies the members instead of the rooms.
    grows_wide: bool,
    published: Stream,
    signalled: Option<Stream>,
}

/// Messages of one sort.
#[derive(Debug, Clone, Copy)]
struct Stream {
    /// In each room, from its members in turn.
    per_room_s: f64,
    bytes: usize,
}

/// What [`SHAPES_HELP`] says.
const SHAPES: [Kind; 4] = [
    Kind {
        name: "chat",
        names: quantiles!("chat"),
        namespace: "chat",
        rooms: 20.0,
        members: 50.0,
        grows_wide: false,
        published: stream(1.0, 200),
        signalled: None,
    },
    Kind {
        name: "editor",
        names: quantiles!("editor"),
        namespace: "doc",
        rooms: 50.0,
        members: 4.0,
        grows_wide: false,
        published: stream(5.0, 48),
        signalled: Some(stream(5.0, 24)),
    },
    Kind {
        name: "game",
        names: quantiles!("game"),
        namespace: "game",
        rooms: 10.0,
        members: 10.0,
        grows_wide: false,
        published: stream(1.0, 64),
        signalled: Some(stream(200.0, 32)),
    },
    Kind {
        name: "auction",
        names: quantiles!("auction"),
        namespace: "auction",
        rooms: 2.0,
        members: 1000.0,
        grows_wide: true,
        published: stream(5.0, 96),
        signalled: None,
    },
];

const fn stream(per_room_s: f64, bytes: usize) -> Stream {
    Stream { per_room_s, bytes }
}

/// Name of the figure.
pub(crate) const PER_DELIVERY: &str = "server CPU per delivery";

/// A signal replaces its sender's last one if that still waits.
const SIGNAL_KEY: &str = "at";

/// After the last event, for what shouldn't come any more and for the last signals.
const SETTLE: Duration = Duration::from_millis(300);

/// Everything under way.
#[derive(Debug)]
struct Run {
    crowd: Crowd,
    parts: Vec<Part>,
    started: Instant,
    deadline: Deadline,
    filling: Vec<u8>,
}

/// One kind's rooms, and what has happened there.
#[derive(Debug)]
struct Part {
    kind: &'static Kind,
    clients: Range<usize>,
    members: usize,
    rooms: Vec<Room>,
    latency: Latency,
    events: u64,
    signals: u64,
    signals_due: u64,
}

/// What was published into a room, and what stands in its log. A message is known by the moment at which it was due, in nanoseconds
/// since the start.
#[derive(Debug, Clone, Default)]
struct Room {
    published: u64,
    /// Sum over what was published, and over what arrived first at its offset.
    sums: [u64; 2],
    log: Vec<u64>,
}

/// One kind's messages of one sort: when the next is due.
#[derive(Debug)]
struct Source {
    part: usize,
    stream: Stream,
    is_signal: bool,
    schedule: Schedule,
}

/// Runs the command.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn run(args: &Args) -> Result<()> {
    args.target.need_roomful("mixed")?;
    args.target.run(|subject| measure(&subject, args.shape))
}

/// Measures a server.
///
/// # Errors
/// Anything that leaves the measurement without a result.
pub(crate) fn measure(subject: &Subject, shape: Shape) -> Result<Measurement> {
    let mut run = Run::open(subject, shape)?;
    run.stretch(shape.warmup_s)?;
    run.forget();
    let meter = Meter::start(subject.pid, run.crowd.spun())?;
    run.stretch(shape.duration_s)?;
    let usage = meter.stop(run.crowd.spun())?;

    let settings = [
        ("connections", run.connections().to_string()),
        ("seconds", shape.duration_s.to_string()),
    ];
    let mut measurement = Measurement::new("mixed", subject.peer.name(), settings.to_vec());
    let sum = |of: fn(&Part) -> u64| run.parts.iter().map(of).sum::<u64>();
    let (events, signals) = (sum(|part| part.events), sum(|part| part.signals));
    let deliveries = events + signals;
    measurement.add(Figure::new(
        PER_DELIVERY,
        "µs",
        usage.server_us_per(deliveries),
    ));
    let per_second = deliveries as f64 / usage.wall.as_secs_f64();
    measurement.add(Figure::new("deliveries per second", "", per_second));
    for part in &run.parts {
        measurement.add_latency(&part.latency, part.kind.name, part.kind.names)?;
    }
    measurement.add(Figure::new("events delivered", "", events as f64));
    measurement.add(Figure::new("signals delivered", "", signals as f64));
    let dropped = sum(|part| part.signals_due) - signals;
    measurement.add(Figure::new("signals dropped", "", dropped as f64));
    usage
        .shares()
        .into_iter()
        .for_each(|share| measurement.add(share));
    Ok(measurement)
}

impl Run {
    fn open(subject: &Subject, shape: Shape) -> Result<Self> {
        ensure!(shape.scale > 0.0, "--scale must be more than 0");
        let deadline = Deadline::after(Duration::try_from_secs_f64(shape.timeout_s)?);
        let mut crowd = Crowd::new(subject, subject.waiting.eager())?;
        let mut parts = Vec::new();
        for kind in &SHAPES {
            parts.push(Part::new(kind, shape.scale, &mut crowd)?);
        }
        let mut run = Self {
            crowd,
            parts,
            started: Instant::now(),
            deadline,
            filling: (0..=u8::MAX).collect(),
        };
        let everybody = 0..run.connections();
        check_files(everybody.len())?;
        run.crowd
            .enter(everybody, 64, &deadline, &mut |_, _| Ok(()))?;
        Ok(run)
    }

    fn connections(&self) -> usize {
        self.parts.last().map_or(0, |part| part.clients.end)
    }

    /// All shapes' traffic for so long; then everything must be there.
    fn stretch(&mut self, seconds: f64) -> Result<()> {
        let duration = Duration::try_from_secs_f64(seconds)?;
        let _bar = Bar::timing("traffic", duration);
        let end = Deadline::after(duration);
        let mut sources = self.sources();
        while let Some(rest) = end.left() {
            let next = sources
                .iter_mut()
                .min_by_key(|source| source.schedule.next_due())
                .context("there are always chats")?;
            let left = next.schedule.left();
            if left.is_none() {
                self.send(next)?;
            }
            let wait = left.map_or(Duration::ZERO, |left| wait_for(left.min(rest)));
            self.turn(wait)?;
        }
        while self.parts.iter().any(|part| !part.is_complete(&self.crowd)) {
            self.turn(SETTLE)?;
        }
        let settled = Deadline::after(SETTLE);
        while let Some(left) = settled.left() {
            self.turn(left)?;
        }
        self.parts.iter().try_for_each(Part::finish)
    }

    fn sources(&self) -> Vec<Source> {
        let of_part = |(index, part): (usize, &Part)| {
            let streams = [
                (Some(part.kind.published), false),
                (part.kind.signalled, true),
            ];
            let rooms = part.rooms.len() as f64;
            streams.into_iter().filter_map(move |(stream, is_signal)| {
                Some(Source {
                    part: index,
                    stream: stream?,
                    is_signal,
                    schedule: Schedule::new(stream?.per_room_s * rooms),
                })
            })
        };
        self.parts.iter().enumerate().flat_map(of_part).collect()
    }

    /// Rooms take turns, and in each room its members.
    fn send(&mut self, source: &mut Source) -> Result<()> {
        let (count, due) = source.schedule.take();
        let count = usize::try_from(count)?;
        let part = &mut self.parts[source.part];
        let room = count % part.rooms.len();
        let member = count / part.rooms.len() % part.members;
        let client = part.clients.start + room * part.members + member;
        let due = u64::try_from(due.duration_since(self.started).as_nanos())?;
        let mut payload = due.to_le_bytes().to_vec();
        payload.extend_from_slice(&self.filling[..source.stream.bytes - payload.len()]);
        if source.is_signal {
            part.signals_due += part.members as u64 - 1;
            return self.crowd.signal(client, SIGNAL_KEY, &payload);
        }
        part.rooms[room].publish(due);
        self.crowd.publish(client, &payload)
    }

    fn turn(&mut self, wait: Duration) -> Result<()> {
        let Self {
            crowd,
            parts,
            started,
            filling,
            ..
        } = self;
        crowd.turn(wait, &mut |client, told| {
            let part = parts.iter_mut().find(|part| part.clients.contains(&client));
            let part = part.context("a client of no shape")?;
            let (offset, payload) = match told {
                Told::Event { offset, payload } => (Some(offset), payload),
                Told::Signal(payload) => (None, payload),
                Told::Joined(_)
                | Told::Left
                | Told::CaughtUp
                | Told::Published
                | Told::Presence(_) => return Ok(()),
            };
            let due = due_of(payload, filling)?;
            let elapsed = started.elapsed();
            part.latency
                .record(elapsed.saturating_sub(Duration::from_nanos(due)));
            part.hear(client, offset, due)
        })?;
        self.deadline
            .check(|| "the shapes are under way".to_owned())
    }

    /// What was counted until now was the warm-up.
    fn forget(&mut self) {
        for part in &mut self.parts {
            part.latency = Latency::new();
            (part.events, part.signals, part.signals_due) = (0, 0, 0);
        }
    }
}

impl Part {
    fn new(kind: &'static Kind, scale: f64, crowd: &mut Crowd) -> Result<Self> {
        let (rooms, members) = if kind.grows_wide {
            (whole(kind.rooms), whole(kind.members * scale))
        } else {
            (whole(kind.rooms * scale), whole(kind.members))
        };
        let mut clients: Option<Range<usize>> = None;
        for room in 0..rooms {
            let added = crowd.add(members, kind.namespace, room, Watch::None)?;
            let start = clients.map_or(added.start, |clients| clients.start);
            clients = Some(start..added.end);
        }
        Ok(Self {
            kind,
            clients: clients.context("a shape without rooms")?,
            members,
            rooms: vec![Room::default(); rooms],
            latency: Latency::new(),
            events: 0,
            signals: 0,
            signals_due: 0,
        })
    }

    fn hear(&mut self, client: usize, offset: Option<u64>, due: u64) -> Result<()> {
        let Some(offset) = offset else {
            self.signals += 1;
            return Ok(());
        };
        self.events += 1;
        let room = (client - self.clients.start) / self.members;
        self.rooms[room]
            .arrive(offset, due)
            .with_context(|| format!("{} room {room}", self.kind.name))
    }

    /// Whether all members have all events.
    fn is_complete(&self, crowd: &Crowd) -> bool {
        let of = |client: usize| &self.rooms[(client - self.clients.start) / self.members];
        let has_all = |client: usize| crowd.offset(client) >= of(client).published;
        self.clients.clone().all(has_all)
    }

    fn finish(&self) -> Result<()> {
        self.rooms.iter().try_for_each(Room::finish)
    }
}

impl Room {
    fn publish(&mut self, due: u64) {
        self.published += 1;
        self.sums[0] = self.sums[0].wrapping_add(due);
    }

    /// The first to see an offset says what stands there; everybody else must see the same. That a member's offsets have no gap was
    /// checked before.
    fn arrive(&mut self, offset: u64, due: u64) -> Result<()> {
        let index = usize::try_from(offset)? - 1;
        match self.log.get(index) {
            Some(seen) => ensure!(
                *seen == due,
                "out of order: two members saw different events at offset {offset}"
            ),
            None => {
                self.log.push(due);
                self.sums[1] = self.sums[1].wrapping_add(due);
            }
        }
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        ensure!(
            self.log.len() as u64 == self.published && self.sums[0] == self.sums[1],
            "lost or doubled: the log holds other events than were published"
        );
        Ok(())
    }
}

/// When a message was due; and it must be one of ours.
fn due_of(payload: &[u8], filling: &[u8]) -> Result<u64> {
    let (due, rest) = payload
        .split_first_chunk()
        .context("damaged: a payload without its moment")?;
    ensure!(
        filling.starts_with(rest),
        "damaged: a payload that nobody sent"
    );
    Ok(u64::from_le_bytes(*due))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of rooms and members, which are small and positive"
)]
fn whole(count: f64) -> usize {
    (count.round() as usize).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_must_see_one_log_with_what_was_published() {
        let mut room = Room::default();
        room.publish(70);
        room.publish(90);
        room.arrive(1, 90).unwrap();
        room.arrive(1, 90).unwrap();
        assert!(room.finish().is_err());
        room.arrive(2, 70).unwrap();
        room.finish().unwrap();
        assert!(room.arrive(2, 90).is_err());
    }

    #[test]
    fn a_log_that_holds_one_publish_twice_is_noticed() {
        let mut room = Room::default();
        room.publish(70);
        room.publish(90);
        room.arrive(1, 70).unwrap();
        room.arrive(2, 70).unwrap();
        assert!(room.finish().unwrap_err().to_string().contains("doubled"));
    }

    #[test]
    fn a_payload_gives_its_moment_back_and_shows_damage() {
        let filling: Vec<u8> = (0..=u8::MAX).collect();
        let mut payload = 7_u64.to_le_bytes().to_vec();
        payload.extend_from_slice(&filling[..24]);
        assert_eq!(due_of(&payload, &filling).unwrap(), 7);
        payload[20] ^= 1;
        assert!(due_of(&payload, &filling).is_err());
        assert!(due_of(&[1], &filling).is_err());
    }
}
