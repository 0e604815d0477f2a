//! Short lives: others come, join rooms of their own, publish, stop to read, leave, close or are cut.
//!
//! They begin at a fixed rate, whatever the machine would allow: what a server holds follows from how many come, and
//! a rate that rises would look like a leak.

use std::net::Ipv4Addr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use roomful_protocol::frame::Leave;
use roomful_protocol::payload::Payload;
use roomful_tests::raw::placements;
use roomful_tests::{Connect, Server};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::token;

/// Lives that begin in a second: about half of what two busy cores can do.
pub(crate) const LIVES_PER_S: u32 = 120;

/// Lives at a time, at most. Each lasts a quarter of a second on average.
const CHURNERS: u32 = 120;

const USERS: u32 = 300;

/// Lives one after the other, on many connections at once, until the end. Gives their number.
pub(crate) async fn churn(server: &Server, end: Instant, seed: u64) -> u64 {
    let mut random = StdRng::seed_from_u64(seed);
    let (start, mut lives) = (Instant::now(), JoinSet::new());
    for (number, placement) in (0..CHURNERS).zip(placements()) {
        let churner = Churner {
            connect: Connect::to(server)
                .placement(placement)
                .receive_buffer(4_096),
            session: None,
            random: StdRng::seed_from_u64(random.random()),
        };
        lives.spawn(churner.run(start + number * EACH, end));
    }
    lives.join_all().await.iter().sum()
}

/// Between two lives, whoever lives them.
const EACH: Duration = Duration::from_nanos(1_000_000_000 / LIVES_PER_S as u64);

struct Churner {
    connect: Connect,
    /// Whose session it had, and how to have it again.
    session: Option<(String, String)>,
    random: StdRng,
}

impl Churner {
    /// A life whenever one is due. One that is late begins at once, so that the rate holds on average.
    async fn run(mut self, mut next: Instant, end: Instant) -> u64 {
        let mut count = 0;
        while next < end && Instant::now() < end {
            sleep_until(next).await;
            self.live().await;
            count += 1;
            next += EACH * CHURNERS;
        }
        count
    }

    async fn live(&mut self) {
        let random = &mut self.random;
        let [third, fourth] = [random.random_range(1..5), random.random_range(1..200)];
        let connect = self
            .connect
            .clone()
            .source(Ipv4Addr::new(127, 0, third, fourth));
        let mut client = connect.open().await.unwrap();
        // Half of them come back as who they were.
        let again = self.session.take().filter(|_| random.random());
        let (user, resume) = match again {
            Some((user, resume)) => (user, Some(resume)),
            None => (format!("guest-{}", random.random_range(0..USERS)), None),
        };
        let welcome = client
            .hello_with(Some(&token(&user)), resume.as_deref())
            .await
            .unwrap();
        self.session = Some((user, welcome.resume));
        let room = format!("game:{}", random.random_range(0..50));
        let room = client.join(&room).await.room;
        for _ in 0..random.random_range(0..5) {
            let text = "x".repeat(random.random_range(1..2_000));
            client.publish(room, Payload::text(text)).await;
        }
        if random.random_range(0..4) == 0 {
            // It stops to read while the others of its room go on.
            sleep(Duration::from_millis(random.random_range(100..1_500))).await;
        }
        match random.random_range(0..3) {
            0 => client.cut(),
            1 => client.close().await,
            _ => {
                let request = client.new_request();
                client.send(&Leave { request, room }.into()).await;
                client.close().await;
            }
        }
    }
}
