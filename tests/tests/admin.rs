//! What a back end asks of the admin listener, and what members see of it.
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use roomful_protocol::id::UserId;
use roomful_protocol::payload::{Payload, PayloadFormat};
use roomful_tests::back_end::read;
use roomful_tests::raw::join;
use roomful_tests::tokens::{self, AUDIENCE, KEY};
use roomful_tests::wait::{PATIENCE, until};
use roomful_tests::{BackEnd, Connect, RawClient, Server, http};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// What the back end publishes is an event like any other: every format, in a user's name or the server's own, at the
/// position that the answer told.
#[tokio::test]
async fn the_back_end_publishes_and_members_see_it() {
    let server = Server::start().await;
    let back_end = BackEnd::of(&server).await;
    let mut ada = RawClient::connect(&server).await;
    ada.join("chat:lobby").await;
    for (payload, user, format, bytes) in [
        (json!(["text", "hi"]), None, PayloadFormat::Text, "hi"),
        (
            json!(["json", { "a": 1.0 }]),
            Some("bob"),
            PayloadFormat::Json,
            r#"{"a":1.0}"#,
        ),
        (
            json!(["binary", "AAE="]),
            None,
            PayloadFormat::Binary,
            "\0\u{1}",
        ),
        (
            json!(["msgpack", "oWE="]),
            Some("Zoë"),
            PayloadFormat::MessagePack,
            "\u{fffd}a",
        ),
    ] {
        let mut body = json!({ "payload": payload });
        if let Some(user) = user {
            body["user"] = user.into();
        }
        let done = back_end
            .ok("POST /v1/rooms/chat:lobby/publish", Some(&body))
            .await;
        let entry = ada.event().await.entry;
        assert_eq!(done["position"][1], entry.offset.0);
        assert_eq!(done["time_ms"], entry.time_ms);
        assert_eq!(done["duplicate"], false);
        assert_eq!(done["durability"], "local");
        assert_eq!(entry.user, UserId::parse(user.unwrap_or("server")).unwrap());
        assert_eq!(entry.payload.format, format);
        assert_eq!(String::from_utf8_lossy(&entry.payload.bytes), bytes);
    }
}

/// Eight callers and a client publish at once: each gets positions of its own, and a member sees one order in which
/// nothing is missing or there twice.
#[tokio::test]
async fn publishes_of_back_end_and_clients_are_in_one_order() {
    const CALLERS: usize = 8;
    const EACH: usize = 25;
    let server = Server::start().await;
    let back_end = BackEnd::of(&server).await;
    let mut reader = RawClient::connect(&server).await;
    reader.join("chat:lobby").await;
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..CALLERS {
        let back_end = back_end.clone();
        callers.spawn(async move {
            let mut last = 0;
            for number in 0..EACH {
                let body = json!({ "payload": ["text", format!("{caller}/{number}")] });
                let done = back_end
                    .ok("POST /v1/rooms/chat:lobby/publish", Some(&body))
                    .await;
                let offset = done["position"][1].as_u64().unwrap();
                assert!(offset > last, "a caller's publishes are in its order");
                last = offset;
            }
        });
    }
    let mut client = RawClient::connect(&server).await;
    let room = client.join("chat:lobby").await.room;
    for number in 0..EACH {
        client
            .publish(room, Payload::text(format!("client/{number}")))
            .await;
    }
    callers.join_all().await;
    let mut seen = BTreeSet::new();
    let mut next = None;
    while seen.len() < (CALLERS + 1) * EACH {
        let entry = reader.event().await.entry;
        assert!(next.is_none_or(|next| entry.offset == next));
        next = Some(entry.offset.next());
        assert!(
            seen.insert(entry.payload.bytes.to_vec()),
            "an event came twice"
        );
    }
    let metrics = server.metrics().await;
    assert_eq!(metrics.value("roomful_publishes_total"), seen.len() as f64);
}

/// With the same `Idempotency-Key` a publish takes effect once and gives its first position; another payload under it is
/// refused, and no client can take a key by choosing its producer.
#[tokio::test]
async fn a_repeated_publish_takes_effect_once() {
    let server = Server::start().await;
    let back_end = BackEnd::of(&server).await;
    let publish = async |key: &str, text: &str| {
        let body = json!({ "payload": ["text", text], "user": "ada" });
        let line = "POST /v1/rooms/chat:orders/publish";
        let response = back_end
            .call(line, &[("idempotency-key", key)], Some(&body))
            .await;
        (response.status, read(&response))
    };
    let (status, first) = publish("order-7", "paid").await;
    assert_eq!((status, &first["duplicate"]), (200, &json!(false)));
    let (status, again) = publish("order-7", "paid").await;
    assert_eq!((status, &again["duplicate"]), (200, &json!(true)));
    assert_eq!(again["position"], first["position"]);
    let (status, conflict) = publish("order-7", "refunded").await;
    assert_eq!(
        (status, &conflict["error"]["name"]),
        (409, &json!("op_id_conflict"))
    );
    let (_, other) = publish("order-8", "paid").await;
    assert_eq!(other["duplicate"], false);
    let metrics = server.metrics().await;
    assert_eq!(metrics.value("roomful_publishes_total"), 2.0);
    assert_eq!(metrics.value("roomful_publish_duplicates_total"), 1.0);
}

/// A room that is not open is told as such and stays so; a publish opens it.
#[tokio::test]
async fn looking_at_a_room_does_not_open_it() {
    let server = Server::start().await;
    let back_end = BackEnd::of(&server).await;
    let closed = json!({
        "room": "chat:quiet", "open": false, "occupancy": 0, "position": null,
        "kind": "relay", "durability": "local",
    });
    assert_eq!(back_end.ok("GET /v1/rooms/chat:quiet", None).await, closed);
    let nobody = json!({ "occupancy": 0, "members": [], "next": null });
    assert_eq!(
        back_end.ok("GET /v1/rooms/chat:quiet/members", None).await,
        nobody
    );
    assert_eq!(server.metrics().await.value("roomful_rooms"), 0.0);
    let body = json!({ "payload": ["text", "hello"] });
    let done = back_end
        .ok("POST /v1/rooms/chat:quiet/publish", Some(&body))
        .await;
    let open = back_end.ok("GET /v1/rooms/chat:quiet", None).await;
    assert_eq!(
        (&open["open"], &open["occupancy"]),
        (&json!(true), &json!(0))
    );
    assert_eq!(open["position"], done["position"]);
    assert_eq!(server.metrics().await.value("roomful_rooms"), 1.0);
}

/// Members and rooms come in pages, sorted, each once, with where the next page starts.
#[tokio::test]
async fn members_and_rooms_come_in_pages() {
    let server = Server::start().await;
    let back_end = BackEnd::of(&server).await;
    let mut clients = Vec::new();
    for number in 0..7 {
        let mut client = RawClient::connect(&server).await;
        let value = Some(Payload::json(format!("{{\"n\":{number}}}")));
        let mut join = join("chat:lobby");
        join.presence = value;
        client.join_with(join).await.unwrap();
        client.join(&format!("chat:room-{number}")).await;
        clients.push(client);
    }
    let members = pages(&back_end, "/v1/rooms/chat:lobby/members?limit=3", "members").await;
    assert_eq!(members.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 1]);
    let values: Vec<_> = members
        .concat()
        .iter()
        .map(|member| member["value"].clone())
        .collect();
    let expected: Vec<_> = (0..7)
        .map(|number| json!(["json", { "n": number }]))
        .collect();
    assert_eq!(values, expected);
    let rooms = pages(&back_end, "/v1/rooms?prefix=chat:room-&limit=4", "rooms").await;
    assert_eq!(rooms.iter().map(Vec::len).collect::<Vec<_>>(), [4, 3]);
    let names: Vec<_> = (0..7)
        .map(|number| json!(format!("chat:room-{number}")))
        .collect();
    assert_eq!(rooms.concat(), names);
    assert_eq!(
        back_end.ok("GET /v1/rooms", None).await["rooms"]
            .as_array()
            .unwrap()
            .len(),
        8
    );
    let room = back_end.ok("GET /v1/rooms/chat:lobby", None).await;
    assert_eq!(room["occupancy"], 7);
}

/// What is wrong is told with the protocol's errors and a status that fits.
#[tokio::test]
async fn what_is_wrong_is_told() {
    let server = Server::with_config(&keyed("[admin]\nbody_bytes_max = 100000\n")).await;
    let back_end = BackEnd::of(&server).await;
    let publish = |body: Value| ("POST /v1/rooms/chat:a/publish", Some(body));
    let text = json!(["text", "hi"]);
    for ((line, body), status, name) in [
        (("GET /v1/rooms/nocolon", None), 400, "bad_room_name"),
        (("GET /v1/rooms/nope:a", None), 404, "unknown_namespace"),
        (
            ("GET /v1/rooms/nope:a/members", None),
            404,
            "unknown_namespace",
        ),
        (("GET /v1/rooms?limit=0", None), 400, "bad_value"),
        (("GET /v1/rooms?limit=-1", None), 400, "bad_value"),
        (("GET /v1/rooms?limt=1", None), 400, "bad_value"),
        (("GET /v1/rooms?tenant=a%20b", None), 400, "bad_value"),
        (
            ("GET /v1/rooms/chat:a/members?limit=0", None),
            400,
            "bad_value",
        ),
        (("GET /v1/rooms/chat:a?x=1", None), 400, "bad_value"),
        (("GET /v1/nothing", None), 404, "unknown_type"),
        (("DELETE /v1/rooms", None), 405, "unknown_type"),
        (("GET /v1/rooms/chat:a/publish", None), 405, "unknown_type"),
        (publish(json!({})), 400, "bad_frame"),
        (
            publish(json!({ "payload": text, "usr": "a" })),
            400,
            "bad_frame",
        ),
        (
            publish(json!({ "payload": ["yaml", "a"] })),
            400,
            "bad_frame",
        ),
        (
            publish(json!({ "payload": ["binary", "%"] })),
            400,
            "bad_frame",
        ),
        (
            publish(json!({ "payload": text, "user": "" })),
            400,
            "bad_value",
        ),
        (
            publish(json!({ "payload": ["text", "x".repeat(61_441)] })),
            413,
            "payload_too_large",
        ),
        (
            (
                "POST /v1/rooms/nope:a/publish",
                Some(json!({ "payload": text })),
            ),
            404,
            "unknown_namespace",
        ),
        (
            (
                "POST /v1/rooms/chat:a/publish?tenant=",
                Some(json!({ "payload": text })),
            ),
            400,
            "bad_value",
        ),
    ] {
        let (got, error) = back_end.refused(line, body.as_ref()).await;
        assert_eq!(
            (got, &error["name"]),
            (status, &json!(name)),
            "{line}: {error}"
        );
        assert!(error["text"].as_str().unwrap().len() > 5, "{error}");
        assert!(
            error["code"].is_u64() && error["retry"].is_string(),
            "{error}"
        );
    }
    assert_eq!(server.metrics().await.value("roomful_rooms"), 0.0);
}

/// Rooms of the same name in two tenants have nothing to do with each other.
#[tokio::test]
async fn a_tenant_has_its_own_rooms() {
    let server = Server::with_config(&keyed("")).await;
    let back_end = BackEnd::of(&server).await;
    let mut claims = tokens::claims("ada");
    claims["tenant"] = "acme".into();
    let mut ada = Connect::to(&server).open().await.unwrap();
    ada.hello_with(Some(&tokens::sign(&claims)), None)
        .await
        .unwrap();
    ada.join("chat:lobby").await;
    let body = |text: &str| json!({ "payload": ["text", text] });
    back_end
        .ok("POST /v1/rooms/chat:lobby/publish", Some(&body("default")))
        .await;
    back_end
        .ok(
            "POST /v1/rooms/chat:lobby/publish?tenant=acme",
            Some(&body("acme")),
        )
        .await;
    assert_eq!(ada.event().await.entry.payload.bytes, "acme");
    let occupancy = async |line: &str| back_end.ok(line, None).await["occupancy"].clone();
    assert_eq!(occupancy("GET /v1/rooms/chat:lobby?tenant=acme").await, 1);
    assert_eq!(occupancy("GET /v1/rooms/chat:lobby").await, 0);
    assert_eq!(
        back_end.ok("GET /v1/rooms?tenant=other", None).await["rooms"],
        json!([])
    );
}

/// Each act is a line in the log, with who, what, on what and how it ended; the key is in none.
#[tokio::test]
async fn acts_are_logged_and_the_key_is_not() {
    let server = Server::start().await;
    let back_end = BackEnd::of(&server).await;
    let body = json!({ "payload": ["text", "a secret text"] });
    back_end
        .ok("POST /v1/rooms/chat:lobby/publish", Some(&body))
        .await;
    back_end.refused("GET /v1/rooms/chat%0alobby", None).await;
    let act = async |name: &str| {
        let is_act = |line: &String| {
            line.contains("roomful_server::admin") && line.contains(&format!("\"act\":\"{name}\""))
        };
        until("the act is logged", PATIENCE, async || {
            server.log().iter().any(is_act)
        })
        .await;
        let line = server.log().into_iter().find(is_act).unwrap();
        let line: Value = serde_json::from_str(&line).unwrap();
        line.get("fields").unwrap_or(&line).clone()
    };
    let publish = act("publish").await;
    assert_eq!(publish["outcome"], "done");
    assert_eq!(publish["tenant"], "default");
    assert_eq!(publish["on"], "\"chat:lobby\"");
    assert_eq!(publish["client"], "127.0.0.1");
    let refused = act("room").await;
    assert_eq!(refused["outcome"], "bad_room_name");
    assert_eq!(refused["on"], "\"chat\\nlobby\"");
    let all = server.log().join("\n");
    assert!(!all.contains(&back_end.key) && !all.contains("a secret text"));
    assert!(all.contains("admin.key"), "where the key is kept is told");
}

/// All pages of a list.
/// An act is done also where the caller has gone before the answer, and its line says so.
#[tokio::test]
async fn an_act_whose_caller_has_gone_is_logged() {
    let server = Server::start().await;
    let back_end = BackEnd::of(&server).await;
    for number in 0..100 {
        let body = json!({ "user": format!("user-{number}") }).to_string();
        let request = format!(
            "POST /v1/revocations HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            back_end.key,
            body.len()
        );
        let mut stream = TcpStream::connect(back_end.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        // From an answer that is there already to one that will never be.
        tokio::time::sleep(Duration::from_micros(20 * number)).await;
    }
    let lines = || {
        let is_act = |line: &&String| line.contains("\"act\":\"revoke\"");
        server.log().iter().filter(is_act).count()
    };
    let in_force = async || {
        let metrics = server.metrics().await;
        metrics.value("roomful_revocations")
    };
    until("every act has its line", PATIENCE, async || {
        #[expect(clippy::cast_precision_loss, reason = "a hundred at most")]
        let lines = lines() as f64;
        lines >= in_force().await && in_force().await > 0.0
    })
    .await;
}

async fn pages(back_end: &BackEnd, target: &str, list: &str) -> Vec<Vec<Value>> {
    let mut pages = Vec::new();
    let mut line = format!("GET {target}");
    loop {
        let page = back_end.ok(&line, None).await;
        pages.push(page[list].as_array().unwrap().clone());
        line = match &page["next"] {
            Value::Null => return pages,
            Value::String(after) => format!("GET {target}&after={after}"),
            after => format!("GET {target}&after={after}"),
        };
    }
}

fn keyed(more: &str) -> String {
    format!(
        "[auth]\nkeys = [{{ algorithm = \"HS256\", secret = \"{KEY}\" }}]\naudience = \"{AUDIENCE}\"\n{more}"
    )
}

/// Every line of `docs/admin.md` does what it says, in the order of the page.
#[tokio::test]
async fn the_examples_of_the_page_work() {
    let server = Server::with_config(&keyed("")).await;
    let back_end = BackEnd::of(&server).await;
    let page = include_str!("../../docs/admin.md");
    let lines: Vec<_> = page
        .lines()
        .filter(|line| line.starts_with("curl "))
        .collect();
    assert_eq!(lines.len(), 13);
    for line in lines {
        let words = words(&line.replace("$KEY", &back_end.key));
        let (mut method, mut headers, mut body, mut url) = ("GET", Vec::new(), "", "");
        let mut rest = words.iter().map(String::as_str).skip(1);
        while let Some(word) = rest.next() {
            match word {
                "-sS" => {}
                "-H" => headers.push(rest.next().unwrap().split_once(": ").unwrap()),
                "-d" => (method, body) = ("POST", rest.next().unwrap()),
                "-X" => method = rest.next().unwrap(),
                _ => url = word,
            }
        }
        let target = url.strip_prefix("http://127.0.0.1:7401").unwrap();
        let line = format!("{method} {target}");
        let response = http::send(back_end.address, &line, &headers, body).await;
        assert_eq!(response.status, 200, "{line}: {}", response.text());
        if method == "DELETE" {
            assert_eq!(read(&response), json!({ "lifted": true }));
        }
    }
    let log = back_end.ok("GET /v1/rooms", None).await;
    assert_eq!(log["rooms"], json!(["chat:lobby", "chat:orders"]));
}

/// A disconnect ends connections and sessions, and lets everybody come back; a revocation ends by itself; and what is
/// wrong with either is told.
#[tokio::test]
async fn disconnects_and_revocations_end() {
    let server = Server::with_config(&keyed("[admin]\nrevocations_max = 2\n")).await;
    let back_end = BackEnd::of(&server).await;
    let token = tokens::sign(&tokens::claims("ada"));
    let mut ada = Connect::to(&server).open().await.unwrap();
    let first = ada.hello_with(Some(&token), None).await.unwrap();
    let done = back_end
        .ok("POST /v1/disconnect", Some(&json!({ "user": "ada" })))
        .await;
    assert_eq!(done, json!({ "connections": 1 }));
    assert_eq!(ada.closed().await.code, Some(4403));
    let mut ada = Connect::to(&server).open().await.unwrap();
    ada.hello_with(Some(&token), Some(&first.resume))
        .await
        .unwrap();

    let soon = tokens::now() * 1_000 + 1_500;
    let body = json!({ "user": "bob", "until_ms": soon });
    back_end.ok("POST /v1/revocations", Some(&body)).await;
    back_end
        .ok("POST /v1/revocations", Some(&json!({ "token_id": "t" })))
        .await;
    let listed = back_end.ok("GET /v1/revocations", None).await;
    assert_eq!(listed["revocations"][0], body);
    assert_eq!(listed["revocations"][1]["token_id"], "t");
    let (status, error) = back_end
        .refused("POST /v1/revocations", Some(&json!({ "user": "eve" })))
        .await;
    assert_eq!((status, &error["name"]), (503, &json!("overloaded")));
    until("the revocation ends", PATIENCE, async || {
        server.metrics().await.value("roomful_revocations") == 1.0
    })
    .await;
    back_end
        .ok("POST /v1/revocations", Some(&json!({ "user": "eve" })))
        .await;
    for (line, body) in [
        (
            "POST /v1/revocations",
            json!({ "user": "a", "session": "b" }),
        ),
        ("POST /v1/revocations", json!({})),
        ("POST /v1/revocations", json!({ "session": "abc" })),
        (
            "POST /v1/revocations",
            json!({ "user": "a", "until_ms": 1 }),
        ),
        (
            "POST /v1/disconnect",
            json!({ "user": "a", "until_ms": soon }),
        ),
        (
            "POST /v1/disconnect",
            json!({ "user": "a", "tenant": "b c" }),
        ),
    ] {
        let (status, error) = back_end.refused(line, Some(&body)).await;
        assert_eq!(
            (status, &error["name"]),
            (400, &json!("bad_value")),
            "{body}"
        );
    }
}

/// The words of a shell's line, with quotes and without anything else.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quote) = (String::new(), None);
    for character in line.chars().chain([' ']) {
        match (character, quote) {
            ('"' | '\'', None) => quote = Some(character),
            (_, Some(open)) if character == open => quote = None,
            (' ', None) => words.push(std::mem::take(&mut word)),
            _ => word.push(character),
        }
    }
    words
}

/// Whoever was revoked stays out over a kill, and whoever was let in again comes in.
#[tokio::test]
async fn revocations_outlive_the_process() {
    let mut server = Server::with_config(&keyed("")).await;
    let back_end = BackEnd::of(&server).await;
    for user in ["ada", "bob"] {
        let body = json!({ "user": user });
        back_end.ok("POST /v1/revocations", Some(&body)).await;
    }
    let lifted = back_end.ok("DELETE /v1/revocations?user=bob", None).await;
    assert_eq!(lifted, json!({ "lifted": true }));
    server.kill().await;
    server.start_again().await;
    let metrics = server.metrics().await;
    assert_eq!(metrics.value("roomful_revocations"), 1.0);
    for (user, comes_in) in [("ada", false), ("bob", true)] {
        let token = tokens::sign(&tokens::claims(user));
        let mut client = Connect::to(&server).open().await.unwrap();
        let welcome = client.hello_with(Some(&token), None).await;
        assert_eq!(welcome.is_ok(), comes_in, "{user}");
    }
}
