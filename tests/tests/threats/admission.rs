//! Attacks with connections: too many, too fast, too slow, and with another's name.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use roomful_tests::http::{self, Response, connect_from, exchange, handshake};
use roomful_tests::raw::Connect;
use roomful_tests::wait::{PATIENCE, until, within};
use roomful_tests::{Healthy, Metrics, Server};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::attack::{Attack, Series};

const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 4);

/// The counter of one reason.
const fn rejected(reason: &'static str) -> Series<'static> {
    (
        "roomful_handshakes_rejected_total",
        Some(("reason", reason)),
    )
}

/// The answer to a good handshake from an address.
async fn attempt(server: &Server, source: Ipv4Addr) -> Response {
    let mut stream = connect_from(source, server.address()).await;
    exchange(&mut stream, handshake(server.address()).as_bytes()).await
}

fn from(server: &Server, source: Ipv4Addr) -> Connect {
    Connect::to(server).source(source)
}

/// The whole seconds after which to come again.
fn wait_of(response: &Response) -> u64 {
    let wait = response.header("retry-after").expect("a wait is told");
    wait.parse().unwrap()
}

/// What the admin listener shows, which is there while the public one is under attack.
async fn metrics(admin: SocketAddr) -> Metrics {
    let response = http::get(admin, "/metrics", &[]).await;
    assert_eq!(response.status, 200);
    Metrics::parse(&response.text())
}

/// As many connections as an address may have are let in, one more is not; its neighbour is, and so is the next one after an end.
#[tokio::test]
async fn an_address_has_its_connections_and_no_more() {
    let config = "[admission]\nlimit_loopback = true\nconnections_per_address_max = 12\n";
    let server = Server::with_config(config).await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let from = |source| from(&server, source);
    let mut held = Vec::new();
    for _ in 0..12 {
        held.push(from(ATTACKER).ready().await);
    }
    for _ in 0..20 {
        let refused = attempt(&server, ATTACKER).await;
        assert_eq!(refused.status, 429, "{}", refused.text());
        assert!((5..=10).contains(&wait_of(&refused)));
    }
    from(NEIGHBOUR).ready().await;
    attack.moved(rejected("address_connections"), 20.0).await;
    drop(held);
    until("there is room again", PATIENCE, async || {
        attempt(&server, ATTACKER).await.status == 101
    })
    .await;
}

/// Sockets that say nothing and WebSockets without a `hello` are one count per address; one with a session is none of them.
#[tokio::test]
async fn an_address_has_its_sockets_without_a_session_and_no_more() {
    let config = "[admission]\nlimit_loopback = true\nunauthenticated_per_address_max = 8\n";
    let server = Server::with_config(config).await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let from = |source| from(&server, source);
    let _sessions = [from(ATTACKER).ready().await, from(ATTACKER).ready().await];
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(connect_from(ATTACKER, server.address()).await);
    }
    let mut upgraded = Vec::new();
    for _ in 0..4 {
        upgraded.push(from(ATTACKER).open().await.unwrap());
    }
    for _ in 0..20 {
        let refused = attempt(&server, ATTACKER).await;
        assert_eq!(refused.status, 429, "{}", refused.text());
    }
    from(NEIGHBOUR).ready().await;
    attack
        .moved(rejected("address_unauthenticated"), 20.0)
        .await;
    upgraded[0].hello().await;
    assert_eq!(attempt(&server, ATTACKER).await.status, 101);
}

/// A socket that has had its last answer and doesn't close counts at its address until the server has closed it.
#[tokio::test]
async fn sockets_that_linger_count_at_their_address() {
    let config = "[admission]\nlimit_loopback = true\nunauthenticated_per_address_max = 8\n";
    let server = Server::with_config(config).await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let request = format!(
        "GET /nope HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        server.address()
    );
    let mut lingering = Vec::new();
    let started = Instant::now();
    // A place is free again when the server has waited long enough: on a slow machine it takes a few more.
    loop {
        let mut stream = connect_from(ATTACKER, server.address()).await;
        let answer = exchange(&mut stream, request.as_bytes()).await;
        lingering.push(stream);
        if answer.status == 429 {
            break;
        }
        assert_eq!(answer.status, 404, "{}", answer.text());
        assert!(started.elapsed() < PATIENCE, "nobody is refused");
    }
    assert!(lingering.len() > 8, "{}", lingering.len());
    from(&server, NEIGHBOUR).ready().await;
    attack.moved(rejected("address_unauthenticated"), 1.0).await;
}

/// Slow requests take the places that there are for them, and no more: each newcomer finds one, that of the oldest.
#[tokio::test]
async fn slow_requests_are_bounded_and_hold_nobody_up() {
    let config = "[admission]\nhttp_connections_max = 200\n[http]\nheader_timeout_ms = 60000\n";
    let server = Server::with_config(config).await;
    let admin = server.admin_address().await;
    let before = metrics(admin).await;
    let healthy = Healthy::start(&server).await;
    let mut slow = Vec::new();
    for _ in 0..250 {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(b"G").await.unwrap();
        slow.push(stream);
    }
    let started = Instant::now();
    for _ in 0..20 {
        Connect::to(&server).ready().await;
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    for mut stream in slow.drain(..50) {
        let refused = exchange(&mut stream, b"").await;
        assert_eq!(refused.status, 503, "{}", refused.text());
        assert!((5..=10).contains(&wait_of(&refused)));
    }
    healthy.check().await;
    // A healthy one whose handshake was a moment late has taken a place too.
    let more = slow
        .iter()
        .filter(|stream| stream.try_read(&mut [0]).is_ok());
    let refused = 50.0 + more.count() as f64;
    assert!(refused <= 70.0, "{refused}");
    let after = metrics(admin).await;
    let count = |metrics: &Metrics| {
        metrics.labelled(
            "roomful_handshakes_rejected_total",
            "reason",
            "http_connections",
        )
    };
    assert_eq!(count(&after) - count(&before), refused);
    assert_eq!(after.value("roomful_panics_total"), 0.0);
}

/// WebSockets that never say hello take the places that there are for them, and no more.
#[tokio::test]
async fn websockets_without_a_session_are_bounded() {
    let server = Server::with_config("[admission]\nunauthenticated_max = 50\n").await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(Connect::to(&server).open().await.unwrap());
    }
    for _ in 0..20 {
        let refused = attempt(&server, ATTACKER).await;
        assert_eq!(refused.status, 503, "{}", refused.text());
        assert!((5..=10).contains(&wait_of(&refused)));
    }
    silent[0].hello().await;
    assert_eq!(attempt(&server, NEIGHBOUR).await.status, 101);
    attack.moved(rejected("unauthenticated"), 20.0).await;
}

/// Everybody comes at once, and comes again when told to: all are in within the time that the budget needs for them.
#[tokio::test]
async fn a_storm_is_let_in_at_the_budgets_pace() {
    const CLIENTS: u32 = 400;
    let server =
        Server::with_config("[admission]\nconnects_per_s = 50\nconnects_burst = 50\n").await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    // The healthy ones have taken from the burst; a second later it is whole again.
    sleep(Duration::from_secs(1)).await;
    let started = Instant::now();
    let mut storm = JoinSet::new();
    for _ in 0..CLIENTS {
        let address = server.address();
        storm.spawn(async move {
            let mut refusals = 0;
            loop {
                let mut stream = TcpStream::connect(address).await.unwrap();
                let response = exchange(&mut stream, handshake(address).as_bytes()).await;
                match response.status {
                    101 => return (refusals, stream),
                    503 => refusals += 1,
                    other => panic!("{other}: {}", response.text()),
                }
                sleep(Duration::from_secs(wait_of(&response))).await;
            }
        });
    }
    let mut refusals = Vec::new();
    while let Some(outcome) = within("the next one is in", storm.join_next()).await {
        refusals.push(outcome.unwrap().0);
    }
    let took = started.elapsed();
    // A burst at once, the rest at the rate; a second of jitter, and one since waits are whole seconds.
    let budget = Duration::from_secs(u64::from(CLIENTS / 50 - 1));
    assert!(
        (budget - Duration::from_millis(500)..budget + Duration::from_secs(5)).contains(&took),
        "{took:?} for a budget of {budget:?}"
    );
    assert!(refusals.iter().all(|count| *count <= 3), "{refusals:?}");
    let total: u32 = refusals.iter().sum();
    attack.moved(rejected("connects"), f64::from(total)).await;
}

/// One address knocks as fast as it can: it gets its part of the budget and is told its turn, and everybody else comes in at once.
#[tokio::test]
async fn one_address_does_not_spend_the_budget_of_all() {
    const NEWCOMERS: u8 = 20;
    let config = "[admission]\nlimit_loopback = true\nconnects_per_s = 100\nconnects_burst = 100\nconnects_per_address_per_s = 5\nconnects_per_address_burst = 10\n";
    let server = Server::with_config(config).await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let knocks = AtomicU32::new(0);
    let knock = async || {
        let answer = attempt(&server, ATTACKER).await;
        match answer.status {
            101 => {}
            429 => {
                assert!((1..=61).contains(&wait_of(&answer)));
                knocks.fetch_add(1, Ordering::Relaxed);
            }
            other => panic!("{other}: {}", answer.text()),
        }
    };
    // More than there is for all.
    for _ in 0..400 {
        knock().await;
    }
    for number in 0..NEWCOMERS {
        let newcomer = Ipv4Addr::new(127, 0, 1, number);
        let ((), ready) = tokio::join!(
            async {
                for _ in 0..10 {
                    knock().await;
                }
            },
            attempt(&server, newcomer)
        );
        assert_eq!(ready.status, 101, "{}", ready.text());
    }
    let refused = knocks.into_inner();
    assert!(refused > 300, "{refused}");
    attack
        .moved(rejected("address_connects"), f64::from(refused))
        .await;
}

/// Who is no configured proxy can't pass for somebody else, whatever it writes.
#[tokio::test]
async fn a_forged_address_dodges_no_limit() {
    let config = format!(
        "[listen]\ntrusted_proxies = [\"{PROXY}\"]\n[admission]\nlimit_loopback = true\nconnections_per_address_max = 8\n"
    );
    let server = Server::with_config(&config).await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let claim = |source, forwarded: String| {
        let address = server.address();
        async move {
            let header =
                format!("\r\nX-Forwarded-For: {forwarded}\r\nForwarded: for=192.0.2.77\r\n\r\n");
            let request = handshake(address).replace("\r\n\r\n", &header);
            let mut stream = connect_from(source, address).await;
            (
                exchange(&mut stream, request.as_bytes()).await.status,
                stream,
            )
        }
    };
    // A stranger's headers count for nothing.
    let mut held = Vec::new();
    for number in 0..18 {
        let (status, stream) = claim(ATTACKER, format!("192.0.2.{number}")).await;
        assert_eq!(status, if number < 8 { 101 } else { 429 });
        held.push(stream);
    }
    // Behind a proxy, what the client has written itself stands before what the proxy adds.
    for number in 0..18 {
        let (status, stream) = claim(PROXY, format!("192.0.2.{number}, 198.51.100.1")).await;
        assert_eq!(status, if number < 8 { 101 } else { 429 });
        held.push(stream);
    }
    let (status, _stream) = claim(PROXY, "198.51.100.2".to_owned()).await;
    assert_eq!(status, 101);
    attack.moved(rejected("address_connections"), 20.0).await;
}

/// A proxy's header says who its client is, in both versions, whole or byte by byte; that one's limit holds, and not the proxy's.
#[tokio::test]
async fn clients_behind_a_proxy_have_their_own_limits() {
    let config = format!(
        "[listen]\ntrusted_proxies = [\"{PROXY}\"]\nproxy_protocol = true\n[admission]\nconnections_per_address_max = 4\n"
    );
    let server = Server::with_config(&config).await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let text = b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 443\r\n".to_vec();
    let mut binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    binary.extend([192, 0, 2, 1, 198, 51, 100, 1, 0x12, 0x67, 1, 0xbb]);
    let mut held = Vec::new();
    for number in 0..12 {
        let header = if number % 2 == 0 { &text } else { &binary };
        let request = [&header[..], handshake(server.address()).as_bytes()].concat();
        let mut stream = connect_from(PROXY, server.address()).await;
        if number % 4 < 2 {
            // In pieces, the last of which has the request in it.
            stream.set_nodelay(true).unwrap();
            for byte in &request[..20] {
                stream.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            sleep(Duration::from_millis(20)).await;
        } else {
            stream.write_all(&request[..20]).await.unwrap();
        }
        let response = exchange(&mut stream, &request[20..]).await;
        let expected = if number < 4 { 101 } else { 429 };
        assert_eq!(response.status, expected, "{}", response.text());
        held.push(stream);
    }
    // A proxy that looks after the server speaks for itself, and for nobody.
    for header in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        let mut stream = connect_from(PROXY, server.address()).await;
        let request = format!(
            "GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n",
            server.address()
        );
        let response = exchange(&mut stream, &[header, request.as_bytes()].concat()).await;
        assert_eq!(response.status, 200);
    }
    attack.moved(rejected("address_connections"), 8.0).await;
}

/// A proxy that has to send a header and sends something else, or nothing in time, is refused.
#[tokio::test]
async fn a_proxy_without_its_header_is_refused() {
    let config = format!(
        "[listen]\ntrusted_proxies = [\"{PROXY}\"]\nproxy_protocol = true\n[http]\nheader_timeout_ms = 300\n"
    );
    let server = Server::with_config(&config).await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let announced = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".to_vec();
    for bytes in [
        handshake(server.address()).into_bytes(),
        b"PROXY TCP4 192.0.2.1\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.1".to_vec(),
        announced,
        Vec::new(),
    ] {
        let mut stream = connect_from(PROXY, server.address()).await;
        let response = exchange(&mut stream, &bytes).await;
        assert_eq!(response.status, 400, "{bytes:?}: {}", response.text());
    }
    attack.moved(rejected("proxy_header"), 5.0).await;
}

/// Whoever is no configured proxy can't say that it is another: its header is no HTTP.
#[tokio::test]
async fn a_proxy_header_of_a_stranger_is_refused() {
    let config = format!("[listen]\ntrusted_proxies = [\"{PROXY}\"]\nproxy_protocol = true\n");
    let server = Server::with_config(&config).await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    for header in [
        &b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 443\r\n"[..],
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    ] {
        for _ in 0..5 {
            let request = [header, handshake(server.address()).as_bytes()].concat();
            let mut stream = connect_from(ATTACKER, server.address()).await;
            assert_eq!(exchange(&mut stream, &request).await.status, 400);
        }
    }
    attack.moved(rejected("malformed"), 10.0).await;
}

/// With the last descriptors in sight newcomers are refused, and operators are served; the server doesn't spin, and goes on later.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_last_descriptors_are_for_operators() {
    let server = Server::start().await;
    let admin = server.admin_address().await;
    let before = metrics(admin).await;
    let healthy = Healthy::start(&server).await;
    let process = i32::try_from(server.process().id()).unwrap();
    rlimit::prlimit(process, rlimit::Resource::NOFILE, Some((256, 256)), None).unwrap();
    let mut crowd = Vec::new();
    let mut refused = 0.0;
    while refused < 200.0 {
        assert!(crowd.len() < 1_000, "nobody was refused");
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let response = exchange(&mut stream, handshake(server.address()).as_bytes()).await;
        match response.status {
            101 => crowd.push(stream),
            503 => refused += 1.0,
            other => panic!("{other}: {}", response.text()),
        }
    }
    assert!(
        (100..=192).contains(&crowd.len()),
        "{} were let in",
        crowd.len()
    );
    for path in ["/healthz", "/readyz"] {
        assert_eq!(http::get(admin, path, &[]).await.status, 200);
    }
    let after = metrics(admin).await;
    healthy.check().await;
    let count = |metrics: &Metrics| {
        metrics.labelled("roomful_handshakes_rejected_total", "reason", "descriptors")
    };
    assert_eq!(count(&after) - count(&before), refused);
    assert_eq!(after.value("roomful_accept_errors_total"), 0.0);
    assert_eq!(after.value("roomful_panics_total"), 0.0);
    drop(crowd);
    until("there is room again", PATIENCE, async || {
        attempt(&server, NEIGHBOUR).await.status == 101
    })
    .await;
}
