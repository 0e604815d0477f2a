//! Tokens: which are believed, what they allow, and how a connection outlives one of them or doesn't.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

use jsonwebtoken::Algorithm;
use roomful_protocol::error::{CloseCode, ErrorCode, Retry};
use roomful_protocol::frame::{
    CursorRequest, Direction, Error, History, Join, Presence, PresenceRequest, Publish, Refresh,
    Reply, ServerFrame, Signal, StateRequest, TimerRequest, Watch,
};
use roomful_protocol::id::{RequestId, RoomAlias, UserId};
use roomful_protocol::payload::Payload;
use roomful_protocol::text::Text;
use roomful_tests::keyed::{Replica, key, prefixes, put};
use roomful_tests::process::Process;
use roomful_tests::raw::{assert_error, join, placements};
use roomful_tests::tokens::{self, AUDIENCE, KEY};
use roomful_tests::{Connect, RawClient, Server};
use serde_json::{Value, json};

/// Every token that must not be believed, with its error; each is counted, closes with 4401, and its text tells nothing of the token.
#[tokio::test]
async fn a_token_that_cannot_be_believed_is_refused() {
    let server = Server::with_config(&keyed("")).await;
    let good = tokens::sign(&tokens::claims("ada"));
    let cases = bad_tokens(&good);
    for (what, token, code) in &cases {
        let mut client = Connect::to(&server).open().await.unwrap();
        let error = client.hello_with(token.as_deref(), None).await.unwrap_err();
        assert_error(&error, *code);
        assert_eq!(error.retry, Retry::Refresh, "{what}");
        let told = token
            .as_deref()
            .is_some_and(|token| token.len() > 8 && error.text.contains(token));
        assert!(
            !told && !error.text.contains("mallory"),
            "{what}: {}",
            error.text
        );
        assert_eq!(
            client.closed().await.code,
            Some(CloseCode::NotAuthenticated.code()),
            "{what}"
        );
    }
    let refused = server.metrics().await.value("roomful_auth_failures_total");
    assert_eq!(refused, f64::from(u32::try_from(cases.len()).unwrap()));
    let log = server.log().join("\n");
    assert!(
        cases
            .iter()
            .filter_map(|(_, token, _)| token.as_deref())
            .all(|token| token.len() < 8 || !log.contains(token))
    );
}

/// A good token gives its user and its expiry, and what is published is its user's.
#[tokio::test]
async fn a_good_token_names_the_user() {
    let server = Server::with_config(&keyed("leeway_s = 0\n")).await;
    let claims = tokens::claims("ada");
    let mut client = Connect::to(&server).open().await.unwrap();
    let welcome = client
        .hello_with(Some(&tokens::sign(&claims)), None)
        .await
        .unwrap();
    assert_eq!(welcome.user, UserId::parse("ada").unwrap());
    assert_eq!(
        welcome.expires_ms,
        claims["exp"].as_u64().map(|exp| exp * 1_000)
    );
    let room = client.join("chat:lobby").await.room;
    client.publish(room, Payload::text("hi")).await;
    assert_eq!(client.event().await.entry.user, welcome.user);
}

/// A public key verifies what its private half signed, and an HMAC under the public key's text is not that.
#[tokio::test]
async fn a_public_key_verifies_its_own_algorithm_alone() {
    let public_key =
        std::env::temp_dir().join(format!("roomful-public-{}.pem", std::process::id()));
    std::fs::write(&public_key, tokens::PUBLIC_KEY).unwrap();
    let key = format!(
        "{{ algorithm = \"EdDSA\", public_key_file = {:?} }}",
        public_key.display().to_string()
    );
    let server = Server::with_config(&format!(
        "[auth]\naudience = \"{AUDIENCE}\"\nkeys = [{key}]\n"
    ))
    .await;
    for placement in placements().take(4) {
        let mut client = Connect::to(&server)
            .placement(placement)
            .open()
            .await
            .unwrap();
        let welcome = client
            .hello_with(Some(&tokens::sign_eddsa(&tokens::claims("ada"))), None)
            .await
            .unwrap();
        assert_eq!(welcome.user, UserId::parse("ada").unwrap());
    }
    let forged = tokens::sign_with(
        Algorithm::HS256,
        tokens::PUBLIC_KEY,
        &tokens::claims("mallory"),
    );
    let mut client = Connect::to(&server).open().await.unwrap();
    assert_error(
        &client.hello_with(Some(&forged), None).await.unwrap_err(),
        ErrorCode::InvalidToken,
    );
    std::fs::remove_file(public_key).unwrap();
}

/// What `roomful token` prints is believed by the server of the same configuration, and allows what was asked for.
#[tokio::test]
async fn the_token_command_mints_a_token_that_works() {
    let config = keyed("");
    let server = Server::with_config(&config).await;
    let arguments = [
        "token", "--user", "grace", "--rooms", "chat:*", "--verbs", "join",
    ];
    let minted = Process::run(server.dir(), &arguments, &[]).await;
    assert!(minted.status.success(), "{}", minted.output);
    let token = minted
        .output
        .lines()
        .find(|line| line.starts_with("ey"))
        .unwrap()
        .trim();
    let mut client = Connect::to(&server).open().await.unwrap();
    assert_eq!(
        client.hello_with(Some(token), None).await.unwrap().user,
        UserId::parse("grace").unwrap()
    );
    let room = client.join("chat:lobby").await.room;
    assert_error(
        &client
            .publish_with(room, None, Payload::text("x"))
            .await
            .unwrap_err(),
        ErrorCode::Forbidden,
    );
}

/// Every verb but `join`.
const VERBS: [&str; 7] = [
    "publish", "signal", "presence", "history", "state", "lock", "timer",
];

/// Each verb is asked for where it is used, for the rooms of its pattern alone; a room that one may not enter is refused whether it exists or not.
#[tokio::test]
async fn grants_are_per_room_and_verb() {
    let server = Server::with_config(&keyed("")).await;
    let mut owner = welcomed(&server, &tokens::claims("owner")).await;
    owner.join("chat:private").await;
    for verb in VERBS {
        let mut claims = tokens::claims("ada");
        claims["grants"] = json!([{ "rooms": ["chat:open", "doc:*"], "verbs": ["join", verb] }]);
        let mut client = welcomed(&server, &claims).await;
        let watch = if verb == "presence" {
            Watch::Members
        } else {
            Watch::None
        };
        let room = client
            .join_with(Join {
                watch,
                ..join("chat:open")
            })
            .await
            .unwrap()
            .room;
        for used in VERBS {
            match (used == verb, use_verb(&mut client, room, used).await) {
                (true, Ok(_)) => {}
                (false, Err(error)) => assert_error(&error, ErrorCode::Forbidden),
                (_, outcome) => panic!("granted {verb}, used {used}: {outcome:?}"),
            }
        }
        for name in ["chat:private", "chat:nobody-made-it"] {
            assert_error(
                &client.join_with(join(name)).await.unwrap_err(),
                ErrorCode::Forbidden,
            );
        }
    }
}

/// Who may only be in a room reads and watches its state, locks and timers, and has cursors; what one left to be written when gone falls with the grant.
#[tokio::test]
async fn to_join_is_to_read_and_a_lost_grant_takes_away_what_was_left() {
    let config = keyed("") + "[namespaces.game]\npresence_grace_ms = 0\n";
    let server = Server::with_config(&config).await;
    let claims = |verbs: Value| {
        let mut claims = tokens::claims("ada");
        claims["grants"] = json!([{ "rooms": "game:*", "verbs": verbs }]);
        claims
    };
    let mut reader = welcomed(&server, &claims(json!(["join"]))).await;
    let watching = Join {
        state: prefixes(&[""]),
        locks: true,
        ..join("game:1")
    };
    let joined = reader.join_with(watching).await.unwrap();
    let room = joined.room;
    assert!(joined.state.is_some() && joined.locks.is_some());
    let mut board = Replica::of(&reader.page(room, "", None, 10).await);
    reader.locks(room).await;
    let timers = TimerRequest::Get {
        after: None,
        limit: 10,
    };
    reader.timer(room, timers).await.unwrap();
    reader.cursor(room, CursorRequest::Get).await.unwrap();
    let left = |name| StateRequest::OnDisconnect {
        changes: vec![put(name, "x")],
    };
    let refused = reader.state(room, left("own")).await.unwrap_err();
    assert_error(&refused, ErrorCode::Forbidden);

    for (name, verbs) in [
        ("lost", json!(["join"])),
        ("kept", json!(["join", "state"])),
    ] {
        let mut writer = welcomed(&server, &claims(json!(["join", "state"]))).await;
        let room = writer.join("game:1").await.room;
        writer.state(room, left(name)).await.unwrap();
        refresh(&mut writer, &claims(verbs)).await.unwrap();
        writer.cut();
    }
    let mut writer = welcomed(&server, &claims(json!(["join", "state"]))).await;
    while board.values.is_empty() {
        board.take_in(reader.next().await);
    }
    let last = writer.join("game:1").await;
    let end = writer.change(last.room, put("end", "1")).await;
    let told = board.follow(&mut reader, end.offset).await;
    assert_eq!(told.len(), 1);
    assert_eq!((board.text("lost"), board.text("kept")), (None, Some("x")));
}

/// A namespace that nobody configured is refused by name where there are keys, also to those who may enter any room.
#[tokio::test]
async fn an_unknown_namespace_is_refused_where_there_are_keys() {
    let server = Server::with_config(&keyed("")).await;
    let mut claims = tokens::claims("ada");
    claims["grants"] = json!([{ "rooms": "*", "verbs": "*" }]);
    let mut client = welcomed(&server, &claims).await;
    assert_error(
        &client.join_with(join("nothing:here")).await.unwrap_err(),
        ErrorCode::UnknownNamespace,
    );
}

/// Tenants are separate: the same room name is another room, and nothing of one reaches the other.
#[tokio::test]
async fn tenants_do_not_meet() {
    let server = Server::with_config(&keyed("")).await;
    let mut clients = Vec::new();
    for tenant in ["acme", "globex"] {
        let mut claims = tokens::claims("ada");
        claims["tenant"] = json!(tenant);
        let mut client = welcomed(&server, &claims).await;
        let joined = client.join("chat:lobby").await;
        assert_eq!(joined.occupancy, 1);
        clients.push((client, joined.room));
    }
    let room = clients[0].1;
    clients[0]
        .0
        .publish(room, Payload::text("acme's own"))
        .await;
    assert_eq!(clients[1].0.until_pong().await, []);
}

/// Before its token ends a client is told; with a fresh one it goes on as if nothing had been, without one it is closed with 4410.
#[tokio::test]
async fn a_token_is_refreshed_in_place_or_closes_at_its_end() {
    let server = Server::with_config(&keyed("leeway_s = 0\nexpiry_warning_s = 2\n")).await;
    let mut claims = tokens::claims("ada");
    claims["exp"] = json!(tokens::now() + 4);
    let mut refreshing = welcomed(&server, &claims).await;
    let mut lazy = welcomed(&server, &claims).await;
    let room = refreshing.join("chat:lobby").await.room;
    for client in [&mut refreshing, &mut lazy] {
        let warning = client.next_that(|frame| {
            if let ServerFrame::TokenExpiring(frame) = frame {
                Some(frame)
            } else {
                None
            }
        });
        assert_eq!(
            Some(warning.await.expires_ms),
            claims["exp"].as_u64().map(|exp| exp * 1_000)
        );
    }

    let other = refresh(&mut refreshing, &tokens::claims("grace"))
        .await
        .unwrap_err();
    assert_error(&other, ErrorCode::TokenMismatch);
    let fresh = tokens::claims("ada");
    let reply = refresh(&mut refreshing, &fresh).await.unwrap();
    assert_eq!(
        reply,
        Reply::Refreshed {
            expires_ms: fresh["exp"].as_u64().unwrap() * 1_000
        }
    );

    assert_eq!(
        lazy.closed().await.code,
        Some(CloseCode::TokenExpired.code())
    );
    refreshing.publish(room, Payload::text("still here")).await;
}

/// A resume token is its user's own: another user is refused with it, and a forged one is worth nothing.
#[tokio::test]
async fn a_resume_token_is_good_for_its_user_alone() {
    let server = Server::with_config(&keyed("")).await;
    let ada = tokens::sign(&tokens::claims("ada"));
    let mallory = tokens::sign(&tokens::claims("mallory"));
    let mut client = Connect::to(&server).open().await.unwrap();
    let welcome = client.hello_with(Some(&ada), None).await.unwrap();
    let mut thief = Connect::to(&server).open().await.unwrap();
    let refused = thief
        .hello_with(Some(&mallory), Some(&welcome.resume))
        .await
        .unwrap_err();
    assert_error(&refused, ErrorCode::TokenMismatch);
    assert_eq!(
        thief.closed().await.code,
        Some(CloseCode::NotAuthenticated.code())
    );
    for forged in [flipped(&welcome.resume), "nonsense".to_owned()] {
        let mut forger = Connect::to(&server).open().await.unwrap();
        let theirs = forger
            .hello_with(Some(&mallory), Some(&forged))
            .await
            .unwrap();
        assert!(!theirs.resumed && theirs.session != welcome.session);
        assert_eq!(theirs.user, UserId::parse("mallory").unwrap());
    }
    // The owner's connection was not touched.
    assert_eq!(client.until_pong().await, []);
}

fn keyed(more: &str) -> String {
    format!(
        "[auth]\naudience = \"{AUDIENCE}\"\nkeys = [{{ algorithm = \"HS256\", secret = \"{KEY}\" }}]\n{more}"
    )
}

fn bad_tokens(good: &str) -> Vec<(&'static str, Option<String>, ErrorCode)> {
    let with = |change: fn(&mut Value)| {
        let mut claims = tokens::claims("mallory");
        change(&mut claims);
        Some(tokens::sign(&claims))
    };
    let claims = tokens::claims("mallory");
    let (signed, _) = good.rsplit_once('.').unwrap();
    let (_, body) = signed.split_once('.').unwrap();
    // `{"alg":"none","typ":"JWT"}`
    let unsigned = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{body}.");
    let invalid = ErrorCode::InvalidToken;
    vec![
        ("missing", None, invalid),
        ("empty", Some(String::new()), invalid),
        ("no JWT", Some("let-me-in".to_owned()), invalid),
        ("unsigned", Some(unsigned), invalid),
        ("signature cut off", Some(format!("{signed}.")), invalid),
        ("signature changed", Some(flipped(good)), invalid),
        (
            "another key",
            Some(tokens::sign_with(
                Algorithm::HS256,
                "another-key-of-at-least-32-bytes-length",
                &claims,
            )),
            invalid,
        ),
        (
            "another algorithm",
            Some(tokens::sign_with(Algorithm::HS384, KEY, &claims)),
            invalid,
        ),
        (
            "another algorithm's key",
            Some(tokens::sign_eddsa(&claims)),
            invalid,
        ),
        (
            "expired",
            with(|claims| claims["exp"] = json!(tokens::now() - 3_600)),
            ErrorCode::TokenExpired,
        ),
        (
            "not yet valid",
            with(|claims| claims["nbf"] = json!(tokens::now() + 3_600)),
            invalid,
        ),
        (
            "for ever",
            with(|claims| claims["exp"] = json!(tokens::now() + 1_000_000_000)),
            invalid,
        ),
        (
            "without an end",
            with(|claims| claims["exp"] = Value::Null),
            invalid,
        ),
        (
            "an end in quotes",
            with(|claims| claims["exp"] = json!("4000000000")),
            invalid,
        ),
        (
            "another audience",
            with(|claims| claims["aud"] = json!("somebody-else")),
            invalid,
        ),
        (
            "no audience",
            with(|claims| claims["aud"] = Value::Null),
            invalid,
        ),
        (
            "nobody's",
            with(|claims| claims["sub"] = Value::Null),
            invalid,
        ),
    ]
}

/// The same text with one bit of its last bytes changed: still base64, no longer what was signed.
fn flipped(token: &str) -> String {
    let (head, tail) = token.split_at(token.len() - 8);
    let first = if tail.starts_with('A') { 'B' } else { 'A' };
    format!("{head}{first}{}", &tail[1..])
}

async fn welcomed(server: &Server, claims: &Value) -> RawClient {
    let mut client = Connect::to(server).open().await.unwrap();
    client
        .hello_with(Some(&tokens::sign(claims)), None)
        .await
        .unwrap();
    client
}

async fn refresh(client: &mut RawClient, claims: &Value) -> Result<Reply, Error> {
    let token = Text::new(&tokens::sign(claims)).unwrap();
    client.ask(|request| Refresh { request, token }).await
}

async fn use_verb(client: &mut RawClient, room: RoomAlias, verb: &str) -> Result<Reply, Error> {
    let payload = Payload::text(verb);
    match verb {
        "publish" => {
            client
                .ask(|request| Publish {
                    request,
                    room,
                    op: None,
                    payload,
                })
                .await
        }
        "signal" => {
            client
                .ask(|request: RequestId| Signal {
                    request: Some(request),
                    room,
                    to: None,
                    key: None,
                    payload,
                })
                .await
        }
        "presence" => {
            client
                .ask(|request| Presence {
                    request,
                    room,
                    what: PresenceRequest::Set(Some(payload)),
                })
                .await
        }
        "history" => {
            client
                .ask(|request| History {
                    request,
                    room,
                    from: None,
                    direction: Direction::Backward,
                    limit: 1,
                })
                .await
        }
        "state" => client
            .write(room, None, vec![put("key", verb)])
            .await
            .map(Reply::Published),
        "lock" => client.acquire(room, "lock", false).await.map(Reply::Lock),
        "timer" => {
            let what = TimerRequest::Set {
                name: key("timer"),
                due_ms: 1,
                payload,
            };
            client.timer(room, what).await
        }
        other => panic!("{other}"),
    }
}
