//! Attacks with tokens, and of those who have a good one on what isn't theirs.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

use std::time::Duration;

use jsonwebtoken::{Algorithm, Header};
use roomful_protocol::error::{CloseCode, ErrorCode};
use roomful_protocol::frame::{
    ClientFrame, Direction, Error, History, Join, Leave, Lock, LockRequest, Presence,
    PresenceRequest, Publish, Reply, ServerFrame, Signal, State, StateRequest, Timer, TimerRequest,
    Watch,
};
use roomful_protocol::id::{MemberId, RequestId, RoomAlias};
use roomful_protocol::payload::Payload;
use roomful_tests::issuer::{Answer, Issuer};
use roomful_tests::keyed::{key, put};
use roomful_tests::raw::{assert_error, join};
use roomful_tests::tokens::{self, AUDIENCE, KEY, RSA_PUBLIC_KEY, Signer, key_set};
use roomful_tests::wait::{PATIENCE, until};
use roomful_tests::{Connect, Healthy, RawClient, Server, http};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::attack::Attack;

/// A header that names another key, another algorithm, an address or an extension gets nobody in (RFC 8725 §3.1), and nothing that it names is
/// asked: 4401.
#[tokio::test]
async fn a_header_that_lies_closes_with_4401() {
    let trap = Issuer::start(Answer::Keys(key_set(&[&Signer::ed25519("evil", 9)]))).await;
    let rsa = Signer::rsa("rsa");
    let issuer = Issuer::start(Answer::Keys(key_set(&[&rsa, &Signer::p256("ec")]))).await;
    let server = with_keys_of(&issuer, "").await;
    let attack = attack(&server).await;
    let evil = Signer::ed25519("evil", 9);
    let mut claims = tokens::claims("mallory");
    claims["iss"] = json!(trap.url());
    let good = rsa.sign(&tokens::claims("ada"));
    let (_, body) = good.split_once('.').unwrap();
    let (body, signature) = body.split_once('.').unwrap();
    let headed = |header: Value| format!("{}.{body}.{signature}", base64url(&header.to_string()));
    let hmac = |kid: &str, secret: &str| {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some(kid.to_owned());
        tokens::sign_under(&header, secret, &claims)
    };
    let named = |change: fn(&mut Header, &str)| {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some("evil".to_owned());
        change(&mut header, &trap.url());
        evil.sign_under(&header, &claims)
    };
    let long = "k".repeat(5_000);
    let attacks = [
        headed(json!({ "alg": "none" })),
        headed(json!({ "alg": "none", "kid": "rsa" })),
        headed(json!({ "alg": "nOnE", "kid": "rsa" })),
        hmac("rsa", RSA_PUBLIC_KEY),
        hmac("rsa", RSA_PUBLIC_KEY.trim()),
        headed(json!({ "alg": "ES256", "kid": "rsa" })),
        headed(json!({ "alg": "RS256", "kid": "ec" })),
        headed(json!({ "alg": "EdDSA", "kid": "rsa" })),
        headed(json!({ "alg": "PS256", "kid": "rsa" })),
        headed(json!({ "alg": "RS256", "kid": "../../../../etc/passwd" })),
        headed(json!({ "alg": "RS256", "kid": "' OR 1=1 --" })),
        headed(json!({ "alg": "RS256", "kid": "rsa\u{0}" })),
        headed(json!({ "alg": "RS256", "kid": long })),
        headed(json!({ "alg": "RS256", "kid": 7 })),
        headed(json!({ "alg": "RS256", "kid": "rsa", "crit": ["exp"] })),
        headed(json!({ "alg": "RS256", "kid": "rsa", "b64": false, "crit": ["b64"] })),
        headed(json!({ "alg": "RS256", "kid": "rsa", "typ": "logout+jwt" })),
        named(|header, url| header.jku = Some(url.to_owned())),
        named(|header, url| header.x5u = Some(url.to_owned())),
        named(|_, _| {}),
        evil.sign_under(
            &Header {
                jwk: serde_json::from_value(evil.jwk()).ok(),
                ..Header::new(Algorithm::EdDSA)
            },
            &claims,
        ),
    ];
    for token in &attacks {
        refused(&server, token, ErrorCode::InvalidToken).await;
    }
    assert_eq!(trap.connections(), 0);
    assert!(
        issuer.connections() <= 2,
        "at the start, and for the unknown"
    );
    attack
        .moved(("roomful_auth_failures_total", None), count(&attacks))
        .await;
}

/// Claims that are missing, of the wrong type or out of time get nobody in: 4401.
#[tokio::test]
async fn claims_that_are_wrong_close_with_4401() {
    let server = Server::with_config(&keyed("issuer = \"https://id.example\"\n")).await;
    let now = tokens::now();
    let claims = |user: &str| {
        let mut claims = tokens::claims(user);
        claims["iss"] = json!("https://id.example");
        claims
    };
    let token = tokens::sign(&claims("ada"));
    let healthy = Healthy::start_with(&Connect::to(&server), Some(&token)).await;
    let attack = Attack::beside(&server, healthy).await;
    let changes = [
        ("aud", json!("somebody-else")),
        ("aud", Value::Null),
        ("aud", json!(["a", "b"])),
        ("aud", json!({ "roomful-tests": true })),
        ("iss", json!("https://id.example.evil")),
        ("iss", Value::Null),
        ("iss", json!(["https://id.example"])),
        ("exp", Value::Null),
        ("exp", json!((now + 300).to_string())),
        ("exp", json!(true)),
        ("exp", json!(-1)),
        ("exp", json!(1e300)),
        ("exp", json!((now + 300) * 1_000)),
        ("exp", json!(now + 200_000)),
        ("nbf", json!(now + 3_600)),
        ("nbf", json!("yesterday")),
        ("iat", json!(now + 3_600)),
        ("iat", json!(now - 200_000)),
        ("sub", Value::Null),
        ("sub", json!(7)),
        ("sub", json!("")),
        ("sub", json!("x".repeat(1_000))),
        ("tenant", json!("../other")),
        ("grants", json!("everything")),
        ("grants", json!([{ "rooms": "*", "verbs": "administer" }])),
    ];
    for (claim, value) in &changes {
        let mut claims = claims("mallory");
        claims[*claim] = value.clone();
        refused(&server, &tokens::sign(&claims), ErrorCode::InvalidToken).await;
    }
    attack
        .moved(("roomful_auth_failures_total", None), count(&changes))
        .await;
}

/// Unknown keys by the hundred cause one fetch, and while that is slow, waiting for it is bounded and slows nobody else.
#[tokio::test]
async fn a_flood_of_unknown_keys_causes_one_fetch() {
    let signer = Signer::ed25519("k", 1);
    let issuer = Issuer::start(Answer::Keys(key_set(&[&signer]))).await;
    let server = with_keys_of(&issuer, "jwks_waiting_max = 20\n").await;
    let attack = attack_as(&server, &signer.sign(&tokens::claims("ada"))).await;
    issuer.answers(Answer::Late(Duration::from_secs(1), key_set(&[&signer])));
    let mut attackers = JoinSet::new();
    for number in 0..200 {
        let token =
            Signer::ed25519(&format!("unknown-{number}"), 7).sign(&tokens::claims("mallory"));
        let connect = Connect::to(&server);
        attackers.spawn(async move {
            let mut client = connect.open().await.unwrap();
            client.hello_with(Some(&token), None).await.unwrap_err()
        });
    }
    let mut waited = 0;
    while let Some(error) = attackers.join_next().await {
        let code = error.unwrap().code;
        waited += usize::from(code == ErrorCode::InvalidToken.into());
        assert!(code == ErrorCode::InvalidToken.into() || code == ErrorCode::Overloaded.into());
    }
    assert!(waited >= 20, "those who waited got their answer: {waited}");
    assert_eq!(
        issuer.connections(),
        2,
        "one at the start, one for all of them"
    );
    attack
        .moved(("roomful_auth_failures_total", None), 200.0)
        .await;
}

/// A resume token is worth nothing to another user or tenant (4401), and guessing gives a session of one's own.
#[tokio::test]
async fn a_stolen_resume_token_closes_with_4401() {
    let server = Server::with_config(&keyed("")).await;
    let attack = attack(&server).await;
    let mut owner = Connect::to(&server).open().await.unwrap();
    let token = tokens::sign(&tokens::claims("ada"));
    let welcome = owner.hello_with(Some(&token), None).await.unwrap();
    let mut other_tenant = tokens::claims("ada");
    other_tenant["tenant"] = json!("globex");
    for claims in [tokens::claims("mallory"), other_tenant] {
        let mut thief = Connect::to(&server).open().await.unwrap();
        let token = tokens::sign(&claims);
        let hello = thief.hello_with(Some(&token), Some(&welcome.resume)).await;
        assert_error(&hello.unwrap_err(), ErrorCode::TokenMismatch);
        let code = thief.closed().await.code;
        assert_eq!(code, Some(CloseCode::NotAuthenticated.code()));
    }
    for index in 0..welcome.resume.len() {
        let mut guess = welcome.resume.clone().into_bytes();
        guess[index] = if guess[index] == b'A' { b'B' } else { b'A' };
        let guess = String::from_utf8(guess).unwrap();
        let mut thief = Connect::to(&server).open().await.unwrap();
        let token = tokens::sign(&tokens::claims("mallory"));
        // One that is no token any more is a guess like others; one bit of the last character may not count.
        if let Ok(theirs) = thief.hello_with(Some(&token), Some(&guess)).await {
            assert!(
                !theirs.resumed && theirs.session != welcome.session,
                "{index}"
            );
        }
    }
    assert_eq!(owner.until_pong().await, []);
    attack
        .moved(
            ("roomful_auth_failures_total", Some(("kind", "mismatch"))),
            2.0,
        )
        .await;
}

/// However many come back with one resume token at once, one of them holds the session, and each of the others was closed with 4409.
#[tokio::test]
async fn a_resume_token_used_at_once_leaves_one_holder() {
    let server = Server::with_config(&keyed("")).await;
    let attack = attack(&server).await;
    let token = tokens::sign(&tokens::claims("ada"));
    let mut first = Connect::to(&server).open().await.unwrap();
    let welcome = first.hello_with(Some(&token), None).await.unwrap();
    let mut race = JoinSet::new();
    for _ in 0..20 {
        let (connect, token, resume) =
            (Connect::to(&server), token.clone(), welcome.resume.clone());
        race.spawn(async move {
            let mut client = connect.open().await.unwrap();
            let mine = client.hello_with(Some(&token), Some(&resume)).await;
            (mine.is_ok_and(|mine| mine.resumed), client)
        });
    }
    let mut clients = vec![first];
    while let Some(outcome) = race.join_next().await {
        let (resumed, client) = outcome.unwrap();
        assert!(resumed);
        clients.push(client);
    }
    let mut ends = JoinSet::new();
    for mut client in clients {
        ends.spawn(async move { client.closed().await.code });
    }
    for _ in 0..20 {
        let code = ends.join_next().await.unwrap().unwrap();
        assert_eq!(code, Some(CloseCode::Replaced.code()));
    }
    assert_eq!(ends.len(), 1, "one is left");
    attack
        .moved(
            ("roomful_connections_closed_total", Some(("code", "4409"))),
            20.0,
        )
        .await;
}

/// Who may only be there changes nothing and sees nothing beyond: each verb without its grant is `forbidden`, and the room's log is what it was.
#[tokio::test]
async fn a_verb_without_its_grant_is_forbidden() {
    let server = Server::with_config(&keyed("")).await;
    let attack = attack(&server).await;
    let mut owner = welcomed(&server, &tokens::claims("ada")).await;
    let room = owner.join("chat:quiet").await.room;
    owner.publish(room, Payload::text("first")).await;
    let mut claims = tokens::claims("mallory");
    claims["grants"] = json!([{ "rooms": "chat:*", "verbs": "join" }]);
    let mut reader = welcomed(&server, &claims).await;
    let room_of_reader = reader.join("chat:quiet").await.room;
    let attempts = every_request(room_of_reader, MemberId(1));
    let mut refused = 0;
    for (verb, attempt) in &attempts {
        let outcome = ask(&mut reader, attempt).await;
        let free = ["leave", "occupancy"].contains(verb);
        if !free {
            assert_error(&outcome.unwrap_err(), ErrorCode::Forbidden);
            refused += 1;
        }
    }
    let entered = reader
        .join_with(Join {
            watch: Watch::Members,
            ..join("chat:quiet")
        })
        .await;
    assert_error(&entered.unwrap_err(), ErrorCode::Forbidden);
    let Reply::History(page) = ask(&mut owner, &history(room)).await.unwrap() else {
        panic!("history was asked for")
    };
    assert_eq!(page.entries.len(), 1, "{page:?}");
    attack
        .moved(
            ("roomful_errors_total", Some(("code", "forbidden"))),
            f64::from(refused + 1),
        )
        .await;
}

/// Everything that names something of another tenant is answered as if it didn't exist, and nothing of it is ever seen.
#[tokio::test]
async fn a_foreign_tenant_finds_nothing() {
    let server = Server::with_config(&keyed("")).await;
    let attack = attack(&server).await;
    let mut claims = tokens::claims("canary-user");
    claims["tenant"] = json!("canary-tenant");
    let mut owner = Connect::to(&server).open().await.unwrap();
    let welcome = owner
        .hello_with(Some(&tokens::sign(&claims)), None)
        .await
        .unwrap();
    let joined = owner
        .join_with(Join {
            presence: Some(Payload::text("canary-presence")),
            ..join("chat:canary-room")
        })
        .await
        .unwrap();
    let published = owner
        .publish(joined.room, Payload::text("canary-payload"))
        .await;

    let mut mallory_claims = tokens::claims("mallory");
    mallory_claims["grants"] = json!([{ "rooms": "*", "verbs": "*" }]);
    let mut mallory = welcomed(&server, &mallory_claims).await;
    let mut seen = Vec::new();
    let mut told = 0;
    // By alias: theirs, and one that nobody has.
    let nobodys = RoomAlias(joined.room.0 + 7_777);
    let foreign = every_request(joined.room, joined.member);
    let missing = every_request(nobodys, joined.member);
    for ((verb, foreign), (_, missing)) in foreign.iter().zip(&missing) {
        let [foreign, missing] = [
            ask(&mut mallory, foreign).await.unwrap_err(),
            ask(&mut mallory, missing).await.unwrap_err(),
        ];
        let as_missing = foreign
            .text
            .replace(&joined.room.to_string(), &nobodys.to_string());
        assert_eq!(
            (foreign.code, as_missing, foreign.retry),
            (missing.code, missing.text, missing.retry),
            "{verb}"
        );
        told += 2;
    }
    // By name and position: a room of one's own, in which nothing has happened.
    let own = mallory
        .join_with(Join {
            since: Some(published.position),
            watch: Watch::Members,
            ..join("chat:canary-room")
        })
        .await
        .unwrap();
    assert_eq!(own.occupancy, 1);
    assert_ne!(own.room, joined.room);
    seen.push(format!("{own:?}"));
    // By member: the number is somebody else's here, or nobody's.
    let unknown = MemberId(joined.member.0 + 7_777);
    for to in [joined.member, unknown] {
        let attempt = ClientFrame::from(Signal {
            request: Some(RequestId(0)),
            room: own.room,
            to: Some(to),
            key: None,
            payload: Payload::text("psst"),
        });
        seen.push(format!("{:?}", ask(&mut mallory, &attempt).await));
    }
    for (_, request) in every_request(own.room, own.member) {
        seen.push(format!("{:?}", ask(&mut mallory, &request).await));
    }
    seen.push(format!("{:?}", mallory.until_pong().await));
    // By resume token.
    let mut thief = Connect::to(&server).open().await.unwrap();
    let stolen = thief
        .hello_with(Some(&tokens::sign(&mallory_claims)), Some(&welcome.resume))
        .await;
    seen.push(format!("{stolen:?}"));
    // Beside the protocol.
    for path in ["/metrics", "/readyz", "/healthz"] {
        seen.push(http::get(server.address(), path, &[]).await.text());
    }
    let seen = seen.join("\n").replace("chat:canary-room", "");
    assert!(!seen.contains("canary"), "{seen}");
    // And nothing came to the owner but its own event.
    let frames = owner.until_pong().await;
    assert!(
        matches!(&frames[..], [ServerFrame::Event(_)] | []),
        "{frames:?}"
    );
    attack
        .moved(
            ("roomful_errors_total", Some(("code", "not_joined"))),
            f64::from(told),
        )
        .await;
}

/// Who may not enter a room can't tell whether there is one: the same error, word for word.
#[tokio::test]
async fn a_room_that_is_forbidden_looks_like_none() {
    let server = Server::with_config(&keyed("")).await;
    let attack = attack(&server).await;
    let mut owner = welcomed(&server, &tokens::claims("ada")).await;
    let mut claims = tokens::claims("mallory");
    claims["grants"] = json!([{ "rooms": "chat:lobby", "verbs": "*" }]);
    let mut mallory = welcomed(&server, &claims).await;
    for number in 0..20 {
        let (there, missing) = (
            format!("chat:there-{number}"),
            format!("chat:blank-{number}"),
        );
        owner.join(&there).await;
        let [there, missing] = [
            mallory.join_with(join(&there)).await.unwrap_err(),
            mallory.join_with(join(&missing)).await.unwrap_err(),
        ];
        assert_error(&there, ErrorCode::Forbidden);
        let text = there.text.replace("there", "blank");
        assert_eq!(
            (text, there.code, there.retry, there.after_ms),
            (missing.text, missing.code, missing.retry, missing.after_ms)
        );
    }
    attack
        .moved(("roomful_errors_total", Some(("code", "forbidden"))), 40.0)
        .await;
}

/// No token, secret or resume token is in a log line of any level that a release has, a metric or an error, whatever is done
/// with it.
#[tokio::test]
async fn no_token_is_ever_shown() {
    let config = format!("{}[log]\nfilter = \"debug\"\n", keyed(""));
    let server = Server::with_config(&config).await;
    let attack = attack(&server).await;
    let good = tokens::sign(&tokens::claims("ada"));
    let mut expired = tokens::claims("ada");
    expired["exp"] = json!(tokens::now() - 3_600);
    let expired = tokens::sign(&expired);
    let unsigned = format!("{}AAAA", &good[..good.len() - 4]);
    let mut owner = Connect::to(&server).open().await.unwrap();
    let welcome = owner.hello_with(Some(&good), None).await.unwrap();
    let mut told = Vec::new();
    for token in [&expired, &unsigned] {
        told.push(refused_any(&server, token).await.text);
    }
    // In the address, where it doesn't belong, it counts for nothing.
    let path = format!("/v1/ws?token={good}&access_token={good}");
    let answer = http::get(
        server.address(),
        &path,
        &[("cookie", &format!("token={good}"))],
    )
    .await;
    told.push(answer.text());
    told.push(http::get(server.address(), "/metrics", &[]).await.text());
    told.extend(server.log());
    let told = told.join("\n");
    for secret in [&good, &expired, &unsigned, &welcome.resume, &KEY.to_owned()] {
        let tail = &secret[secret.len() - 16..];
        assert!(!told.contains(tail), "{tail} is in\n{told}");
    }
    attack
        .moved(("roomful_auth_failures_total", None), 2.0)
        .await;
}

fn keyed(more: &str) -> String {
    format!(
        "[auth]\naudience = \"{AUDIENCE}\"\nkeys = [{{ algorithm = \"HS256\", secret = \"{KEY}\" }}]\n{more}"
    )
}

/// A server with the keys of an issuer, and one of its own for the healthy.
async fn with_keys_of(issuer: &Issuer, more: &str) -> Server {
    let server =
        Server::with_config(&keyed(&format!("jwks_url = \"{}\"\n{more}", issuer.url()))).await;
    until("the server is ready", PATIENCE, async || {
        http::get(server.address(), "/readyz", &[]).await.status == 200
    })
    .await;
    server
}

async fn attack(server: &Server) -> Attack<'_> {
    attack_as(server, &tokens::sign(&tokens::claims("healthy"))).await
}

async fn attack_as<'a>(server: &'a Server, token: &str) -> Attack<'a> {
    let healthy = Healthy::start_with(&Connect::to(server), Some(token)).await;
    Attack::beside(server, healthy).await
}

async fn refused_any(server: &Server, token: &str) -> Error {
    let mut client = Connect::to(server).open().await.unwrap();
    let error = client.hello_with(Some(token), None).await.unwrap_err();
    assert_eq!(
        client.closed().await.code,
        Some(CloseCode::NotAuthenticated.code()),
        "{error:?}"
    );
    error
}

async fn refused(server: &Server, token: &str, code: ErrorCode) {
    let error = refused_any(server, token).await;
    assert_error(&error, code);
    assert!(!error.text.contains("mallory"), "{error:?}");
}

async fn welcomed(server: &Server, claims: &Value) -> RawClient {
    let mut client = Connect::to(server).open().await.unwrap();
    let token = tokens::sign(claims);
    client.hello_with(Some(&token), None).await.unwrap();
    client
}

/// Everything that a member may ask of a room.
fn every_request(room: RoomAlias, member: MemberId) -> Vec<(&'static str, ClientFrame)> {
    let request = RequestId(0);
    let payload = Payload::text("psst");
    let presence = |what| {
        Presence {
            request,
            room,
            what,
        }
        .into()
    };
    let signal = |to| {
        Signal {
            request: Some(request),
            room,
            to,
            key: None,
            payload: payload.clone(),
        }
        .into()
    };
    let state = |changes| {
        let what = StateRequest::Write { op: None, changes };
        State {
            request,
            room,
            what,
        }
        .into()
    };
    let lock = Lock {
        request,
        room,
        what: LockRequest::Acquire {
            lock: key("lock"),
            ttl_ms: 60_000,
            queue: true,
        },
    };
    let timer = Timer {
        request,
        room,
        what: TimerRequest::Set {
            name: key("timer"),
            due_ms: 1,
            payload: payload.clone(),
        },
    };
    vec![
        (
            "publish",
            Publish {
                request,
                room,
                op: None,
                payload: payload.clone(),
            }
            .into(),
        ),
        ("signal", signal(None)),
        ("signal to one", signal(Some(member))),
        ("history", history(room)),
        (
            "presence",
            presence(PresenceRequest::Set(Some(payload.clone()))),
        ),
        (
            "members",
            presence(PresenceRequest::Get {
                after: None,
                limit: 10,
            }),
        ),
        ("watch", presence(PresenceRequest::Watch(Watch::Members))),
        (
            "occupancy",
            presence(PresenceRequest::Watch(Watch::Occupancy)),
        ),
        ("state", state(vec![put("key", "x")])),
        ("lock", lock.into()),
        ("timer", timer.into()),
        ("leave", Leave { request, room }.into()),
    ]
}

fn history(room: RoomAlias) -> ClientFrame {
    History {
        request: RequestId(0),
        room,
        from: None,
        direction: Direction::Backward,
        limit: 10,
    }
    .into()
}

/// Sends a request with a number of its own.
async fn ask(client: &mut RawClient, frame: &ClientFrame) -> Result<Reply, Error> {
    client
        .ask(|request| {
            let mut frame = frame.clone();
            match &mut frame {
                ClientFrame::Publish(frame) => frame.request = request,
                ClientFrame::Signal(frame) => frame.request = Some(request),
                ClientFrame::History(frame) => frame.request = request,
                ClientFrame::Presence(frame) => frame.request = request,
                ClientFrame::Leave(frame) => frame.request = request,
                ClientFrame::State(frame) => frame.request = request,
                ClientFrame::Lock(frame) => frame.request = request,
                ClientFrame::Timer(frame) => frame.request = request,
                other => panic!("{other:?} is no request of a member"),
            }
            frame
        })
        .await
}

fn base64url(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
}

fn count<T>(attacks: &[T]) -> f64 {
    f64::from(u32::try_from(attacks.len()).unwrap())
}
