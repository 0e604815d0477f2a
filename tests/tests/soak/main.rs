//! Connections that come, go and are cut at random: nothing is lost, nothing doubled, and afterwards nothing is left over.
//!
//! The short form runs in a few seconds. `ROOMFUL_SOAK_MINUTES` sets the full one (`cargo xtask soak`), which also judges memory.
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

mod following;
mod lives;
mod sample;
mod verdict;

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use roomful_tests::Server;
use roomful_tests::seed::seeded;
use roomful_tests::server::{UNLIMITED, each_namespace};
use roomful_tests::tokens::{AUDIENCE, KEY, claims, sign};
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};

use following::{Publisher, chaos};
use lives::{LIVES_PER_S, churn};
use sample::{HEAD, PEOPLE, Sample};
use verdict::{allowed, growth};

/// The windows are short, so that they are over soon after each round, and addresses count although they are loopback.
fn config() -> String {
    let namespaces = each_namespace(|name| {
        let more = match name {
            "default" => ", history_entries_max = 2000",
            "game" => ", history_age_max_ms = 1000",
            _ => "",
        };
        format!("presence_grace_ms = 1000{more}")
    });
    format!(
        "{UNLIMITED}[auth]\nkeys = [{{ algorithm = \"HS256\", secret = \"{KEY}\" }}]\naudience = \"{AUDIENCE}\"\n\
         [admission]\nlimit_loopback = true\nconnects_per_address_per_s = 1000\n[session]\nretention_ms = 2000\n{namespaces}"
    )
}

/// A token of a user who may do everything everywhere.
fn token(user: &str) -> String {
    let mut claims = claims(user);
    claims["grants"] = json!([{ "rooms": "*", "verbs": "*" }]);
    sign(&claims)
}

/// 200 members are cut at random while 20 publishers write and are cut as well, and others live short lives, at a fixed rate. Every member has every
/// offset once, in order; every publish took effect once; after each round all counts, open files and threads are exactly what they were. In the full
/// form memory is flat once the warm-up is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn churn_loses_nothing_and_leaves_nothing() {
    let extent = Extent::asked_for();
    let mut random = seeded("churn_loses_nothing_and_leaves_nothing");
    let server = Server::with_config(&config()).await;
    let mut before = Sample::take(&server).await.counts;
    // The room that everybody follows has a history, so it stays.
    before.insert("roomful_rooms".to_owned(), 1.0);
    let mut publishers = Publisher::all(&server);
    let mut series = Series::begin();
    while !extent.is_over(&series) {
        round(
            &server,
            &mut publishers,
            extent.round,
            &mut random,
            &mut series,
        )
        .await;
        series.empty(&all_gone(&server, &before).await);
    }
    assert_eq!(server.metrics().await.value("roomful_panics_total"), 0.0);
    if extent.minutes.is_some() {
        series.judge();
    }
}

/// How long it goes on.
struct Extent {
    /// None for the short form.
    minutes: Option<u32>,
    round: Duration,
}

impl Extent {
    #[expect(clippy::disallowed_methods, reason = "tests have no config")]
    fn asked_for() -> Self {
        let minutes = std::env::var("ROOMFUL_SOAK_MINUTES").ok();
        let minutes = minutes.map(|minutes| minutes.parse().unwrap());
        let round = if minutes.is_some() { 15 } else { 4 };
        Self {
            minutes,
            round: Duration::from_secs(round),
        }
    }

    fn is_over(&self, series: &Series) -> bool {
        match self.minutes {
            Some(minutes) => series.start.elapsed() >= Duration::from_secs(60) * minutes,
            None => series.rounds == SHORT_ROUNDS,
        }
    }
}

const SHORT_ROUNDS: usize = 3;

/// Everybody comes, and at the end of the round goes.
async fn round(
    server: &Server,
    publishers: &mut Vec<Publisher>,
    length: Duration,
    random: &mut StdRng,
    series: &mut Series,
) {
    let (start, seed) = (Instant::now(), random.random());
    let busy = async {
        sleep_until(start + length / 2).await;
        Sample::take(server).await
    };
    let (cuts, lives, busy) = tokio::join!(
        chaos(server, publishers, length, random),
        churn(server, start + length, seed),
        busy,
    );
    series.busy(&busy, cuts, lives, length);
}

/// Waits for the windows to end, and for everything to be what it was.
async fn all_gone(server: &Server, before: &BTreeMap<String, f64>) -> Sample {
    let end = Instant::now() + GONE_WITHIN;
    loop {
        let sample = Sample::take(server).await;
        if sample.counts == *before {
            return sample;
        }
        assert!(
            Instant::now() < end,
            "left over: {:?}; before: {before:?}",
            sample.counts
        );
        sleep(Duration::from_millis(50)).await;
    }
}

/// Retention and grace are over after 2 s.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// What was seen so far.
struct Series {
    start: Instant,
    rounds: usize,
    lives: u64,
    /// Seconds in which lives could begin.
    lived_s: f64,
    /// Of the moments at which everybody had gone: connections since the start, and resident bytes.
    resident: Vec<(f64, f64)>,
    /// What the logs held at the last of them.
    log_bytes: Option<f64>,
    is_warm: bool,
}

#[expect(clippy::print_stderr, reason = "the series is what a soak shows")]
impl Series {
    fn begin() -> Self {
        eprintln!("{HEAD}");
        Self {
            start: Instant::now(),
            rounds: 0,
            lives: 0,
            lived_s: 0.0,
            resident: Vec::new(),
            log_bytes: None,
            is_warm: false,
        }
    }

    fn minutes(&self) -> f64 {
        self.start.elapsed().as_secs_f64() / 60.0
    }

    /// The middle of a round; what comes back to what it was has to have been more.
    fn busy(&mut self, sample: &Sample, cuts: u64, lives: u64, length: Duration) {
        eprintln!(
            "{}  {cuts} cuts, {lives} lives",
            sample.line(self.minutes(), "busy")
        );
        for name in PEOPLE {
            assert!(sample.counts[name] > 1.0, "{name} is no measure of anybody");
        }
        self.rounds += 1;
        self.lives += lives;
        self.lived_s += length.as_secs_f64();
    }

    /// The end of a round: everybody has gone.
    fn empty(&mut self, sample: &Sample) {
        eprintln!("{}", sample.line(self.minutes(), "empty"));
        if self.is_warm {
            self.resident.push((sample.opened, sample.resident));
        } else if self.start.elapsed() >= WINDOWS && self.log_bytes == Some(sample.log_bytes) {
            eprintln!("        warm: every window has passed, and the history is full");
            self.is_warm = true;
        }
        self.log_bytes = Some(sample.log_bytes);
    }

    /// Says whether memory was flat.
    fn judge(&self) {
        let rate = self.lives as f64 / self.lived_s;
        let (bytes, connections) = growth(&self.resident);
        let allowed = allowed(connections);
        eprintln!(
            "{} lives, {rate:.0} a second; over {} moments and {connections} connections memory grew by {:.0} KiB, of {:.0} that may be",
            self.lives,
            self.resident.len(),
            bytes / 1024.0,
            allowed / 1024.0,
        );
        assert!(
            rate >= f64::from(LIVES_PER_S) * 0.9,
            "the machine is too busy for {LIVES_PER_S} lives a second"
        );
        assert!(self.resident.len() >= JUDGED_MIN, "too short for a verdict");
        assert!(bytes <= allowed, "memory grew by {bytes:.0} bytes");
    }
}

/// After that time everything that outlives a connection for a while has been given back once, and the process has held
/// as much of it as it ever will: timers for a minute, sessions, members and the logs of the short rooms for less.
const WINDOWS: Duration = Duration::from_secs(120);

/// Moments without which there is no verdict.
const JUDGED_MIN: usize = 14;
