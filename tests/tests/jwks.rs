//! Keys from an address: fetched at the start, kept while it fails, and fetched anew when a token names one that isn't known.
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::time::Duration;

use roomful_protocol::error::{CloseCode, ErrorCode};
use roomful_protocol::frame::{Error, Welcome};
use roomful_protocol::id::UserId;
use roomful_tests::issuer::{Answer, Issuer};
use roomful_tests::raw::assert_error;
use roomful_tests::tls::Authority;
use roomful_tests::tokens::{self, AUDIENCE, Signer, key_set};
use roomful_tests::wait::{PATIENCE, until};
use roomful_tests::{Connect, Healthy, Server, http};
use serde_json::json;
use tokio::task::JoinSet;

/// Tokens of every asymmetric algorithm are believed by the key that they name; a shared secret at the address is passed over.
#[tokio::test]
async fn keys_come_from_the_configured_address() {
    let signers = [
        Signer::ed25519("ed", 1),
        Signer::rsa("rsa"),
        Signer::p256("ec"),
    ];
    let mut set: serde_json::Value = serde_json::from_str(&key_set(&signers.each_ref())).unwrap();
    let secret = json!({ "kty": "oct", "kid": "secret", "k": "YS10ZXN0LWtleS1vZi1hdC1sZWFzdC10aGlydHktdHdvLWJ5dGVzIQ" });
    set["keys"].as_array_mut().unwrap().push(secret);
    let issuer = Issuer::start(Answer::Keys(set.to_string())).await;
    let server = ready(&issuer, "").await;
    for signer in &signers {
        let welcome = hello(&server, &signer.sign(&tokens::claims("ada"))).await;
        assert_eq!(welcome.unwrap().user, UserId::parse("ada").unwrap());
    }
    let metrics = server.metrics().await;
    assert_eq!(metrics.value("roomful_jwks_keys"), 3.0);
    assert_eq!(
        metrics.labelled("roomful_jwks_fetches_total", "outcome", "ok"),
        1.0
    );
    assert!(metrics.value("roomful_jwks_fetched_timestamp_seconds") > 1_700_000_000.0);
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
    header.kid = Some("secret".to_owned());
    let forged = tokens::sign_under(&header, tokens::KEY, &tokens::claims("mallory"));
    assert_error(
        &hello(&server, &forged).await.unwrap_err(),
        ErrorCode::InvalidToken,
    );
    assert_eq!(issuer.connections(), 1);

    // Where the configuration says so, the same secret counts.
    let trusting = ready(&issuer, "jwks_secrets = true\n").await;
    assert!(hello(&trusting, &forged).await.is_ok());
}

/// Until the first answer the server says why it isn't ready, tells clients to come again, and asks again by itself.
#[tokio::test]
async fn a_server_starts_without_an_answer_and_is_ready_with_the_first() {
    let signer = Signer::ed25519("k", 1);
    let issuer = Issuer::start(Answer::Refusal).await;
    let server = start(&issuer, "").await;
    until("the first fetch has failed", PATIENCE, async || {
        server
            .metrics()
            .await
            .labelled("roomful_jwks_fetches_total", "outcome", "connection")
            >= 1.0
    })
    .await;
    let readyz = http::get(server.address(), "/readyz", &[]).await;
    assert_eq!(
        (readyz.status, readyz.text().as_str()),
        (503, "starting: auth.jwks_url has given no keys yet\n")
    );
    let token = signer.sign(&tokens::claims("ada"));
    let mut client = Connect::to(&server).open().await.unwrap();
    let error = client.hello_with(Some(&token), None).await.unwrap_err();
    assert_error(&error, ErrorCode::Overloaded);
    assert_eq!(client.closed().await.code, Some(CloseCode::TryLater.code()));
    issuer.answers(Answer::Keys(key_set(&[&signer])));
    until_ready(&server).await;
    assert!(hello(&server, &token).await.is_ok());
}

/// A key that appears is found by the first token that names it: everybody who comes with it waits for the one fetch, and nobody is refused,
/// although hundreds come while the answer is on its way and the old key goes on working.
#[tokio::test]
async fn a_rotation_under_load_refuses_no_good_token() {
    let (old, new) = (Signer::ed25519("2025", 1), Signer::ed25519("2026", 2));
    let issuer = Issuer::start(Answer::Keys(key_set(&[&old]))).await;
    let server = ready(&issuer, "").await;
    let old_token = old.sign(&tokens::claims("ada"));
    let healthy = Healthy::start_with(&Connect::to(&server), Some(&old_token)).await;
    issuer.answers(Answer::Late(
        Duration::from_millis(500),
        key_set(&[&old, &new]),
    ));
    let new_token = new.sign(&tokens::claims("grace"));
    let mut clients = JoinSet::new();
    for index in 0..200 {
        let token = if index % 2 == 0 {
            new_token.clone()
        } else {
            old_token.clone()
        };
        let connect = Connect::to(&server);
        clients.spawn(async move {
            let mut client = connect.open().await.unwrap();
            client.hello_with(Some(&token), None).await
        });
    }
    while let Some(outcome) = clients.join_next().await {
        outcome.unwrap().unwrap();
    }
    assert_eq!(
        issuer.connections(),
        2,
        "one at the start, one for all who came"
    );
    healthy.check().await;
}

/// What isn't a good answer changes nothing: the last good keys stay, each attempt is counted by what was wrong with it, and no other address is asked.
#[tokio::test]
async fn the_last_good_keys_stay_while_the_address_fails() {
    let signer = Signer::ed25519("k", 1);
    let trap = Issuer::start(Answer::Keys(key_set(&[&Signer::ed25519("evil", 9)]))).await;
    let issuer = Issuer::start(Answer::Keys(key_set(&[&signer]))).await;
    let server = ready(
        &issuer,
        "jwks_refresh_s = 1\njwks_timeout_ms = 300\njwks_bytes_max = 65536\n",
    )
    .await;
    let many: Vec<Signer> = (0..65)
        .map(|seed| Signer::ed25519(&format!("k{seed}"), seed))
        .collect();
    let many = key_set(&many.iter().collect::<Vec<_>>());
    let twice = key_set(&[&signer, &Signer::ed25519("k", 2)]);
    for (answer, outcome) in [
        (Answer::Status(500, String::new()), "status"),
        (Answer::Status(204, String::new()), "status"),
        (
            Answer::Status(302, format!("location: {}\r\n", trap.url())),
            "status",
        ),
        (
            Answer::Status(307, format!("location: {}\r\n", trap.url())),
            "status",
        ),
        (Answer::Silence, "timeout"),
        (Answer::Trickle, "timeout"),
        (Answer::Announced(1 << 20), "too_large"),
        (Answer::Endless, "too_large"),
        (Answer::Keys(many), "malformed"),
        (Answer::Keys(String::new()), "malformed"),
        (Answer::Keys("<html>".to_owned()), "malformed"),
        (Answer::Keys("{\"keys\":[]}".to_owned()), "malformed"),
        (Answer::Keys(twice), "malformed"),
        (Answer::Broken, "connection"),
        (Answer::Refusal, "connection"),
    ] {
        let name = "roomful_jwks_fetches_total";
        let before = server.metrics().await.labelled(name, "outcome", outcome);
        issuer.answers(answer.clone());
        until(&format!("{answer:?} is {outcome}"), PATIENCE, async || {
            server.metrics().await.labelled(name, "outcome", outcome) > before
        })
        .await;
        assert!(
            hello(&server, &signer.sign(&tokens::claims("ada")))
                .await
                .is_ok(),
            "{answer:?}"
        );
    }
    assert_eq!(server.metrics().await.value("roomful_jwks_keys"), 1.0);
    assert_eq!(trap.connections(), 0);
}

/// Over TLS the address has to show a certificate of a configured root, for its own name. One that does not is asked nothing: the
/// log says what is wrong with it, the attempt is counted, and the keys that there are go on working until it shows the right one again.
#[tokio::test]
async fn keys_come_over_tls_from_whom_the_configured_root_vouches_for() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let signer = Signer::ed25519("k", 1);
    let own = authority.issue();
    let issuer = Issuer::start_secure(Answer::Keys(key_set(&[&signer])), &own).await;
    let root = "root.pem";
    let config = format!("jwks_ca_file = {root:?}\njwks_refresh_s = 1\n");
    let root_text = authority.root();
    let server = Server::with_files(&keyed(&issuer, &config), &[(root, &root_text)]).await;
    until_ready(&server).await;
    let token = signer.sign(&tokens::claims("ada"));
    assert!(hello(&server, &token).await.is_ok());
    let fetches = async |outcome| {
        let metrics = server.metrics().await;
        metrics.labelled("roomful_jwks_fetches_total", "outcome", outcome)
    };
    for (certificate, fault) in [
        // Both issuers bear the same name; the signature tells them apart.
        (stranger.issue(), "BadSignature"),
        (
            authority.issue_for("elsewhere.example"),
            "not valid for name",
        ),
        (authority.issue_expired(), "expired"),
    ] {
        let before = fetches("connection").await;
        issuer.shows(&certificate);
        let logged = |line: &String| {
            line.contains("no keys could be fetched; the last good ones stay")
                && line.contains(fault)
        };
        until(fault, PATIENCE, async || server.log().iter().any(logged)).await;
        assert!(fetches("connection").await > before, "{fault}");
        // What it publishes from here on must reach nobody.
        issuer.answers(Answer::Keys(key_set(&[&Signer::ed25519("evil", 9)])));
        assert!(hello(&server, &token).await.is_ok(), "{fault}");
    }
    assert_eq!(server.metrics().await.value("roomful_jwks_keys"), 1.0);
    issuer.answers(Answer::Keys(key_set(&[&signer, &Signer::ed25519("l", 2)])));
    issuer.shows(&own);
    until("the right one is back", PATIENCE, async || {
        server.metrics().await.value("roomful_jwks_keys") == 2.0
    })
    .await;
}

/// Keys that could not be renewed for too long are used no more, and the reason is not the token's.
#[tokio::test]
async fn keys_that_are_too_old_are_used_no_more() {
    let signer = Signer::ed25519("k", 1);
    let issuer = Issuer::start(Answer::Keys(key_set(&[&signer]))).await;
    let server = ready(&issuer, "jwks_refresh_s = 1\njwks_age_max_s = 2\n").await;
    issuer.answers(Answer::Refusal);
    let token = signer.sign(&tokens::claims("ada"));
    until("the keys are too old", PATIENCE, async || {
        match hello(&server, &token).await {
            Ok(_) => false,
            Err(error) => {
                assert_error(&error, ErrorCode::Overloaded);
                true
            }
        }
    })
    .await;
    issuer.answers(Answer::Keys(key_set(&[&signer])));
    until("the keys are back", PATIENCE, async || {
        hello(&server, &token).await.is_ok()
    })
    .await;
}

/// Two sources may use one id: neither's key stands in for the other's, whichever came first.
#[tokio::test]
async fn the_same_id_in_two_sources_is_two_keys() {
    let fetched = Signer::ed25519("k", 1);
    let issuer = Issuer::start(Answer::Keys(key_set(&[&fetched]))).await;
    let public_key = "public.pem";
    let config = format!(
        "jwks_refresh_s = 1\nkeys = [{{ id = \"k\", algorithm = \"EdDSA\", public_key_file = {public_key:?} }}]\n"
    );
    let server = Server::with_files(
        &keyed(&issuer, &config),
        &[(public_key, tokens::PUBLIC_KEY)],
    )
    .await;
    until_ready(&server).await;
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::EdDSA);
    header.kid = Some("k".to_owned());
    let configured = tokens::sign_eddsa_under(&header, &tokens::claims("ada"));
    let of_address = fetched.sign(&tokens::claims("ada"));
    let foreign = Signer::ed25519("k", 3).sign(&tokens::claims("ada"));
    assert!(hello(&server, &configured).await.is_ok());
    assert!(hello(&server, &of_address).await.is_ok());
    assert_error(
        &hello(&server, &foreign).await.unwrap_err(),
        ErrorCode::InvalidToken,
    );
    // The address takes its key back; the configured one is no substitute for it, and stays.
    issuer.answers(Answer::Keys(key_set(&[&Signer::ed25519("other", 4)])));
    until("the key is gone", PATIENCE, async || {
        hello(&server, &of_address).await.is_err()
    })
    .await;
    assert!(hello(&server, &configured).await.is_ok());
}

fn keyed(issuer: &Issuer, more: &str) -> String {
    format!(
        "[auth]\naudience = \"{AUDIENCE}\"\njwks_url = \"{}\"\n{more}",
        issuer.url()
    )
}

async fn start(issuer: &Issuer, more: &str) -> Server {
    Server::with_config(&keyed(issuer, more)).await
}

async fn ready(issuer: &Issuer, more: &str) -> Server {
    let server = start(issuer, more).await;
    until_ready(&server).await;
    server
}

async fn until_ready(server: &Server) {
    until("the server is ready", PATIENCE, async || {
        http::get(server.address(), "/readyz", &[]).await.status == 200
    })
    .await;
}

async fn hello(server: &Server, token: &str) -> Result<Welcome, Error> {
    let mut client = Connect::to(server).open().await.unwrap();
    client.hello_with(Some(token), None).await
}
