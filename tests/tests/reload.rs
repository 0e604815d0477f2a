//! SIGHUP: the configuration counts anew, and nobody who is connected notices.
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::net::Ipv4Addr;

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{Error, Welcome};
use roomful_protocol::payload::Payload;
use roomful_tests::http::{connect_from, exchange};
use roomful_tests::issuer::{Answer, Issuer};
use roomful_tests::raw::{assert_error, join};
use roomful_tests::tokens::{self, AUDIENCE, Signer, key_set};
use roomful_tests::wait::{PATIENCE, until};
use roomful_tests::{Connect, Healthy, Server, http};
use serde_json::json;

const OTHER_KEY: &str = "another-key-of-at-least-32-bytes-length";

/// Under load, keys and limits change in both directions many times: each counts from then on, no connection is lost, and no
/// event is missing.
#[tokio::test]
async fn a_reload_under_load_loses_nothing() {
    let server = Server::with_config(&keyed(tokens::KEY, "")).await;
    let token = tokens::sign(&tokens::claims("ada"));
    let healthy = Healthy::start_with(&Connect::to(&server), Some(&token)).await;
    let of_other_key = tokens::sign_with(
        jsonwebtoken::Algorithm::HS256,
        OTHER_KEY,
        &tokens::claims("ada"),
    );
    for round in 1..=10_u32 {
        let (key, good, bad, rooms_max) = if round % 2 == 0 {
            (tokens::KEY, &token, &of_other_key, 40 - round)
        } else {
            (OTHER_KEY, &of_other_key, &token, 10 + round)
        };
        let more = format!(
            "[connection]\noutbox_messages_max = {}\nrooms_max = {rooms_max}\n[namespaces.chat]\nhistory_entries_max = {}\n",
            100 * rooms_max,
            500 * rooms_max
        );
        reload(&server, &keyed(key, &more), "applied").await;
        let welcome = hello(&server, good).await.unwrap();
        assert_eq!(welcome.limits.rooms_max, u64::from(rooms_max));
        assert_error(
            &hello(&server, bad).await.unwrap_err(),
            ErrorCode::InvalidToken,
        );
    }
    healthy.check().await;
}

/// A key that is taken away verifies nothing more, and one that is added does; who is connected stays.
#[tokio::test]
async fn keys_change_without_a_restart() {
    let server = Server::with_config(&keyed(tokens::KEY, "")).await;
    let old = tokens::sign(&tokens::claims("ada"));
    let new = tokens::sign_with(
        jsonwebtoken::Algorithm::HS256,
        OTHER_KEY,
        &tokens::claims("ada"),
    );
    let mut connected = Connect::to(&server).open().await.unwrap();
    connected.hello_with(Some(&old), None).await.unwrap();
    let room = connected.join("chat:lobby").await.room;
    assert_error(
        &hello(&server, &new).await.unwrap_err(),
        ErrorCode::InvalidToken,
    );
    reload(&server, &keyed(OTHER_KEY, ""), "applied").await;
    assert!(hello(&server, &new).await.is_ok());
    assert_error(
        &hello(&server, &old).await.unwrap_err(),
        ErrorCode::InvalidToken,
    );
    connected.publish(room, Payload::text("still here")).await;
}

/// The address of the keys may change too: the keys of the old one go with it, those of the new one are waited for.
#[tokio::test]
async fn the_address_of_the_keys_changes_without_a_restart() {
    let signers = [Signer::ed25519("k", 1), Signer::ed25519("k", 2)];
    let first = Issuer::start(Answer::Keys(key_set(&[&signers[0]]))).await;
    let second = Issuer::start(Answer::Keys(key_set(&[&signers[1]]))).await;
    let config = |issuer: &Issuer| {
        format!(
            "[auth]\naudience = \"{AUDIENCE}\"\njwks_url = \"{}\"\n",
            issuer.url()
        )
    };
    let server = Server::with_config(&config(&first)).await;
    let [old, new] = signers.map(|signer| signer.sign(&tokens::claims("ada")));
    until("the first keys are there", PATIENCE, async || {
        hello(&server, &old).await.is_ok()
    })
    .await;
    reload(&server, &config(&second), "applied").await;
    assert!(hello(&server, &new).await.is_ok());
    assert!(hello(&server, &old).await.is_err());
    let asked = first.connections();
    reload(&server, &config(&second), "applied").await;
    assert!(
        hello(&server, &new).await.is_ok(),
        "the same address keeps its keys"
    );
    assert_eq!(first.connections(), asked);
}

/// A server that waits for its first keys is ready with those of the address that a reload names, or at once where it names none.
#[tokio::test]
async fn a_reload_ends_the_wait_for_the_first_keys() {
    let signer = Signer::ed25519("k", 1);
    let good = Issuer::start(Answer::Keys(key_set(&[&signer]))).await;
    let bad = Issuer::start(Answer::Refusal).await;
    let at = |issuer: &Issuer| {
        let url = issuer.url();
        format!("[auth]\naudience = \"{AUDIENCE}\"\njwks_url = \"{url}\"\n")
    };
    for mended in [at(&good), keyed(tokens::KEY, "")] {
        let server = Server::with_config(&at(&bad)).await;
        let status = async || http::get(server.address(), "/readyz", &[]).await.status;
        assert_eq!(status().await, 503);
        reload(&server, &mended, "applied").await;
        until("the server is ready", PATIENCE, async || {
            status().await == 200
        })
        .await;
    }
}

/// What `welcome` told a connection holds for as long as it lives; who comes later is told the new bounds. Rates hold for all at once.
#[tokio::test]
async fn limits_change_and_promises_stay() {
    let server =
        Server::with_config("[connection]\npayload_bytes_max = 8000\nrooms_max = 2\n").await;
    let mut before = Connect::to(&server).ready().await;
    let room = before.join("chat:one").await.room;
    reload(
        &server,
        "[connection]\npayload_bytes_max = 5000\nrooms_max = 1\njoins_per_s = 1\njoins_burst = 1\n[namespaces.chat]\nmembers_max = 1\n",
        "applied",
    )
    .await;
    let payload = "x".repeat(6_500);
    before.publish(room, Payload::text(&payload)).await;
    before.join("chat:two").await;
    let refused = before.join_with(join("chat:three")).await.unwrap_err();
    assert_error(&refused, ErrorCode::RateLimited);

    let mut after = Connect::to(&server).open().await.unwrap();
    let welcome = after.hello_with(None, None).await.unwrap();
    assert_eq!(
        (welcome.limits.payload_bytes_max, welcome.limits.rooms_max),
        (5_000, 1)
    );
    // The room that was open has its new bound too.
    assert_error(
        &after.join_with(join("chat:one")).await.unwrap_err(),
        ErrorCode::RoomFull,
    );
}

/// Limits per address hold at the admin listener as at the public one, and a reload changes both.
#[tokio::test]
async fn limits_of_admission_change_at_both_listeners() {
    let with = |most: u32| {
        format!(
            "[admission]\nlimit_loopback = true\nconnections_per_address_max = {most}\nunauthenticated_per_address_max = 2\n"
        )
    };
    let server = Server::with_config(&with(8)).await;
    let admin = server.admin_address().await;
    let other = Ipv4Addr::new(127, 0, 0, 2);
    let answers = async || {
        let mut stream = connect_from(other, admin).await;
        let request = format!("GET /healthz HTTP/1.1\r\nHost: {admin}\r\n\r\n");
        let response = exchange(&mut stream, request.as_bytes()).await;
        (response.status, stream)
    };
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(answers().await);
    }
    assert_eq!(answers().await.0, 429);
    reload(&server, &with(9), "applied").await;
    held.push(answers().await);
    let statuses: Vec<u16> = held.iter().map(|(status, _)| *status).collect();
    assert_eq!(statuses, [200; 9]);
    assert_eq!(answers().await.0, 429);
}

/// Origins that browsers may come from are those of the latest configuration.
#[tokio::test]
async fn origins_change_without_a_restart() {
    let with = |origin: &str| format!("[listen]\norigins = [\"{origin}\"]\n");
    let server = Server::with_config(&with("https://one.example")).await;
    let comes = async |origin: &str| {
        let mut connect = Connect::to(&server);
        connect.headers.push(("origin", origin.to_owned()));
        connect.open().await.is_ok()
    };
    assert!(comes("https://one.example").await && !comes("https://two.example").await);
    reload(&server, &with("https://two.example"), "applied").await;
    assert!(comes("https://two.example").await && !comes("https://one.example").await);
}

/// A file with problems changes nothing, and all of them are logged, with their lines.
#[tokio::test]
async fn a_file_with_problems_changes_nothing() {
    let server = Server::with_config(&keyed(tokens::KEY, "")).await;
    let token = tokens::sign(&tokens::claims("ada"));
    let wrong = "[auth]\nkeys = []\nleeway_s = \"soon\"\n[connection]\nrooms_max = 0\nbogus = 1\n";
    reload(&server, wrong, "refused").await;
    assert!(hello(&server, &token).await.is_ok());
    let log = server.log().join("\n");
    for problem in ["auth.leeway_s", "connection.rooms_max", "connection.bogus"] {
        assert!(log.contains(problem), "{problem} is missing in\n{log}");
    }
    std::fs::remove_file(server.dir().join("roomful.toml")).unwrap();
    // Without a file the defaults would count: a server without keys.
    server.reload("applied").await;
    assert!(hello(&server, &token).await.is_ok());
    assert!(server.log().join("\n").contains("needs a restart"));
}

/// What can't change while the server runs is named, and the rest of the same file counts.
#[tokio::test]
async fn what_needs_a_restart_is_named() {
    let server = Server::start().await;
    let config = "shards = 7\n[session]\nretention_ms = 60000\n[log]\nformat = \"pretty\"\n[connection]\nrooms_max = 7\n";
    reload(&server, config, "applied").await;
    let mut client = Connect::to(&server).open().await.unwrap();
    let welcome = client.hello_with(None, None).await.unwrap();
    assert_eq!(welcome.limits.rooms_max, 7);
    until("the keys are named", PATIENCE, async || {
        let log = server.log();
        ["session.retention_ms", "log.format"].iter().all(|key| {
            log.iter()
                .any(|line| line.contains(key) && line.contains("needs a restart"))
        })
    })
    .await;
}

fn keyed(key: &str, more: &str) -> String {
    let key = json!(key);
    format!(
        "[auth]\naudience = \"{AUDIENCE}\"\nkeys = [{{ algorithm = \"HS256\", secret = {key} }}]\n{more}"
    )
}

/// Writes the file and sends SIGHUP, and waits until the outcome is counted.
async fn reload(server: &Server, config: &str, outcome: &str) {
    std::fs::write(server.dir().join("roomful.toml"), config).unwrap();
    server.reload(outcome).await;
}

async fn hello(server: &Server, token: &str) -> Result<Welcome, Error> {
    let mut client = Connect::to(server).open().await.unwrap();
    client.hello_with(Some(token), None).await
}
