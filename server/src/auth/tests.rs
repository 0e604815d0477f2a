//! Tokens against a fixed clock: what is accepted, and a table of what is not.
//!
//! The keys in `fixtures` were made for these tests with openssl and are used nowhere else.

use std::path::{Path, PathBuf};

use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm as JwtAlgorithm, DecodingKey, EncodingKey, crypto};
use roomful_protocol::error::ErrorCode;
use roomful_protocol::id::RoomName;
use serde_json::{Value, json};

use super::*;
use crate::config::{Algorithm, KeyConfig, KeySource, Place, Secret};

const NOW_S: u64 = 1_800_000_000;
const NOW_MS: u64 = NOW_S * 1_000;
const SECRET: &str = "a shared secret of exactly 32 by";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/auth/fixtures")
        .join(name)
}

fn pem(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap()
}

fn key(id: Option<&str>, algorithm: Algorithm, source: KeySource) -> KeyConfig {
    KeyConfig {
        id: id.map(str::to_owned),
        algorithm,
        source,
        place: Place::Default,
    }
}

fn public(id: &str, algorithm: Algorithm, name: &str) -> KeyConfig {
    key(Some(id), algorithm, KeySource::PublicKeyFile(fixture(name)))
}

fn shared(id: Option<&str>) -> KeyConfig {
    key(id, Algorithm::Hs256, KeySource::Secret(Secret::new(SECRET)))
}

/// One key of each algorithm, and everything pinned that can be.
fn config() -> AuthConfig {
    AuthConfig {
        keys: vec![
            shared(Some("main")),
            public("rsa", Algorithm::Rs256, "rsa.public.pem"),
            public("ec", Algorithm::Es256, "p256.public.pem"),
            public("ed", Algorithm::EdDsa, "ed25519.public.pem"),
        ],
        audience: Some("roomful".to_owned()),
        issuer: Some("https://issuer.example".to_owned()),
        lifetime_max_s: 3_600,
        ..AuthConfig::default()
    }
}

fn claims() -> Value {
    json!({
        "sub": "ann",
        "iat": NOW_S,
        "exp": NOW_S + 600,
        "aud": "roomful",
        "iss": "https://issuer.example",
        "grants": [{ "rooms": ["chat:*", "inbox:{user}"], "verbs": ["join", "publish"] }, { "rooms": "doc:*", "verbs": "*" }],
    })
}

/// The claims with some replaced; null removes one.
fn with(changes: &Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

fn part(value: &Value) -> String {
    BASE64URL.encode(value.to_string())
}

fn sign(header: &Value, claims: &str, key: &EncodingKey, algorithm: JwtAlgorithm) -> String {
    let signed = format!("{}.{claims}", part(header));
    let signature = crypto::sign(signed.as_bytes(), key, algorithm).unwrap();
    format!("{signed}.{signature}")
}

fn sign_secret(header: &Value, claims: &Value, secret: &[u8]) -> String {
    sign(
        header,
        &part(claims),
        &EncodingKey::from_secret(secret),
        JwtAlgorithm::HS256,
    )
}

fn hs256(claims: &Value) -> String {
    sign_secret(
        &json!({ "alg": "HS256", "kid": "main" }),
        claims,
        SECRET.as_bytes(),
    )
}

fn costly_tokens() -> [(&'static str, String); 3] {
    let token = |id: &str, name: &str, key: EncodingKey, algorithm| {
        sign(
            &json!({ "alg": name, "kid": id }),
            &part(&claims()),
            &key,
            algorithm,
        )
    };
    [
        (
            "RS256",
            token(
                "rsa",
                "RS256",
                EncodingKey::from_rsa_pem(&pem("rsa.private.pem")).unwrap(),
                JwtAlgorithm::RS256,
            ),
        ),
        (
            "ES256",
            token(
                "ec",
                "ES256",
                EncodingKey::from_ec_pem(&pem("p256.private.pem")).unwrap(),
                JwtAlgorithm::ES256,
            ),
        ),
        (
            "EdDSA",
            token(
                "ed",
                "EdDSA",
                EncodingKey::from_ed_pem(&pem("ed25519.private.pem")).unwrap(),
                JwtAlgorithm::EdDSA,
            ),
        ),
    ]
}

fn authenticator(config: &AuthConfig) -> Authenticator {
    Authenticator::new(config, &Clock::manual(NOW_MS)).unwrap()
}

fn check(config: &AuthConfig, token: &str) -> Result<Identity, AuthError> {
    authenticator(config).verify(token, NOW_MS)
}

/// A good token of each algorithm is who it says, may do what it says, and ends when it says (and the leeway later).
#[test]
fn good_tokens_become_identities() {
    let mut tokens = vec![("HS256", hs256(&claims()))];
    tokens.extend(costly_tokens());
    for (name, token) in tokens {
        let identity = check(&config(), &token).unwrap_or_else(|error| panic!("{name}: {error}"));
        let allows = |room: &str, verb| {
            identity
                .grants
                .allows(&RoomName::parse(room.as_bytes()).unwrap(), verb)
        };
        assert_eq!(
            (identity.tenant.as_str(), identity.user.as_str()),
            ("default", "ann"),
            "{name}"
        );
        assert_eq!(
            identity.expires_ms,
            Some((NOW_S + 600 + 30) * 1_000),
            "{name}"
        );
        assert!(
            allows("chat:lobby", Verb::Publish) && allows("inbox:ann", Verb::Join),
            "{name}"
        );
        assert!(
            !allows("chat:lobby", Verb::History) && !allows("inbox:bob", Verb::Join),
            "{name}"
        );
        assert!(
            allows("doc:spec", Verb::History) && !allows("game:1", Verb::Join),
            "{name}"
        );
    }
}

/// What costs more than a shard's thread should spend is told by the key, not by what a stranger writes into
/// the header.
#[test]
fn costly_tokens_are_told_by_their_key() {
    let authenticator = authenticator(&config());
    let is_costly = |token: &str| matches!(authenticator.assess(token, NOW_MS), Assessed::Costly);
    assert!(!is_costly(&hs256(&claims())));
    for (name, token) in costly_tokens() {
        assert!(is_costly(&token), "{name}");
    }
    for header in [
        json!({ "alg": "RS256", "kid": "main" }),
        json!({ "alg": "RS256", "kid": "none" }),
        json!({ "alg": "HS256", "kid": "rsa" }),
        json!({ "alg": "PS256" }),
    ] {
        assert!(
            !is_costly(&format!("{}.e30.AA", part(&header))),
            "{header}: is refused without a look at it"
        );
    }
    assert!(!is_costly("no token at all"));
}

/// Every attack in the book, and the mistakes that look like one: each refused for its own reason, whose
/// words and wire code say nothing of the token.
#[test]
fn bad_tokens_are_refused_for_their_reason() {
    let claim = |changes: Value| hs256(&with(&changes));
    let header = |header: Value| sign_secret(&header, &claims(), SECRET.as_bytes());
    let good = hs256(&claims());
    let (body, signature) = good.rsplit_once('.').unwrap();
    let raw = |claims: &str| {
        let header = json!({ "alg": "HS256", "kid": "main" });
        sign(
            &header,
            &BASE64URL.encode(claims),
            &EncodingKey::from_secret(SECRET.as_bytes()),
            JwtAlgorithm::HS256,
        )
    };
    let none = part(&json!({ "alg": "none" }));
    let rsa_pem = pem("rsa.public.pem");
    let many_grants = vec![json!({ "rooms": "a:b", "verbs": "*" }); Grants::MAX + 1];
    let grant = |rooms: Value, verbs: Value| {
        claim(json!({ "grants": [{ "rooms": rooms, "verbs": verbs }] }))
    };
    let table = [
        // Form.
        ("empty", String::new(), AuthError::Malformed),
        ("no dots", "a".repeat(40), AuthError::Malformed),
        ("one dot", "a.b".to_owned(), AuthError::Malformed),
        ("five parts", format!("{good}.a.b"), AuthError::BadSignature),
        ("not base64", "!.!.!".to_owned(), AuthError::Malformed),
        (
            "padded base64",
            format!("{}=.e30.AA", part(&json!({ "alg": "HS256" }))),
            AuthError::Malformed,
        ),
        (
            "header is a list",
            format!("{}.e30.AA", part(&json!(["HS256"]))),
            AuthError::Malformed,
        ),
        (
            "header without alg",
            format!("{}.e30.AA", part(&json!({ "kid": "main" }))),
            AuthError::Malformed,
        ),
        (
            "alg twice",
            format!(
                "{}.e30.AA",
                BASE64URL.encode(r#"{"alg":"HS256","alg":"none"}"#)
            ),
            AuthError::Malformed,
        ),
        (
            "too long",
            format!("{good}{}", "A".repeat(TOKEN_BYTES_MAX)),
            AuthError::TooLong,
        ),
        ("claims are a list", raw("[]"), AuthError::Malformed),
        (
            "claims are cut",
            raw(r#"{"sub":"ann""#),
            AuthError::Malformed,
        ),
        (
            "claim twice",
            raw(r#"{"sub":"ann","sub":"bob","exp":1800000600}"#),
            AuthError::Malformed,
        ),
        (
            "claims too deep",
            raw(&format!(
                r#"{{"grants":{}{}}}"#,
                "[".repeat(2_000),
                "]".repeat(2_000)
            )),
            AuthError::Malformed,
        ),
        (
            "a token for logging out",
            header(json!({ "alg": "HS256", "kid": "main", "typ": "logout+jwt" })),
            AuthError::WrongType,
        ),
        // Keys and algorithms.
        (
            "unsigned",
            format!("{none}.{}.", part(&claims())),
            AuthError::WrongAlgorithm,
        ),
        (
            "alg none with a known key",
            format!(
                "{}.{}.",
                part(&json!({ "alg": "none", "kid": "main" })),
                part(&claims())
            ),
            AuthError::WrongAlgorithm,
        ),
        (
            "alg None",
            header(json!({ "alg": "None", "kid": "main" })),
            AuthError::WrongAlgorithm,
        ),
        (
            "alg in lower case",
            header(json!({ "alg": "hs256", "kid": "main" })),
            AuthError::WrongAlgorithm,
        ),
        (
            "alg of the same family",
            header(json!({ "alg": "HS512", "kid": "main" })),
            AuthError::WrongAlgorithm,
        ),
        (
            "public key as secret, by its id",
            sign_secret(
                &json!({ "alg": "HS256", "kid": "rsa" }),
                &claims(),
                &rsa_pem,
            ),
            AuthError::WrongAlgorithm,
        ),
        (
            "public key as secret, by algorithm",
            sign_secret(&json!({ "alg": "HS256" }), &claims(), &rsa_pem),
            AuthError::BadSignature,
        ),
        (
            "unknown kid",
            header(json!({ "alg": "HS256", "kid": "other" })),
            AuthError::UnknownKey,
        ),
        (
            "kid is a path",
            header(json!({ "alg": "HS256", "kid": "../../dev/null" })),
            AuthError::UnknownKey,
        ),
        (
            "kid is empty",
            header(json!({ "alg": "HS256", "kid": "" })),
            AuthError::UnknownKey,
        ),
        (
            "kid is a number",
            header(json!({ "alg": "HS256", "kid": 1 })),
            AuthError::Malformed,
        ),
        (
            "critical extension",
            header(json!({ "alg": "HS256", "kid": "main", "crit": ["b64"], "b64": false })),
            AuthError::CriticalHeader,
        ),
        // Signatures.
        ("no signature", format!("{body}."), AuthError::BadSignature),
        (
            "signature cut",
            good[..good.len() - 4].to_owned(),
            AuthError::BadSignature,
        ),
        (
            "signature not base64",
            format!("{body}.{}!", &signature[1..]),
            AuthError::BadSignature,
        ),
        (
            "another secret",
            sign_secret(
                &json!({ "alg": "HS256", "kid": "main" }),
                &claims(),
                &[7; 32],
            ),
            AuthError::BadSignature,
        ),
        (
            "claims exchanged",
            format!(
                "{}.{}.{signature}",
                body.split_once('.').unwrap().0,
                part(&with(&json!({ "sub": "bob" })))
            ),
            AuthError::BadSignature,
        ),
        (
            "own key in the header",
            sign_secret(
                &json!({ "alg": "HS256", "kid": "main", "jwk": { "kty": "oct", "k": BASE64URL.encode([7; 32]) }, "jku": "https://evil.example/keys" }),
                &claims(),
                &[7; 32],
            ),
            AuthError::BadSignature,
        ),
        // Time.
        (
            "expired",
            claim(json!({ "exp": NOW_S - 30, "iat": NOW_S - 100 })),
            AuthError::Expired,
        ),
        (
            "no exp",
            claim(json!({ "exp": null })),
            AuthError::MissingClaim("exp"),
        ),
        (
            "exp in quotes",
            claim(json!({ "exp": (NOW_S + 600).to_string() })),
            AuthError::BadClaim("exp"),
        ),
        (
            "exp negative",
            claim(json!({ "exp": -1 })),
            AuthError::BadClaim("exp"),
        ),
        (
            "exp in milliseconds",
            claim(json!({ "exp": NOW_MS })),
            AuthError::BadClaim("exp"),
        ),
        (
            "exp huge",
            claim(json!({ "exp": 1e300 })),
            AuthError::BadClaim("exp"),
        ),
        (
            "exp is a list",
            claim(json!({ "exp": [NOW_S + 600] })),
            AuthError::BadClaim("exp"),
        ),
        (
            "not yet valid",
            claim(json!({ "nbf": NOW_S + 31 })),
            AuthError::NotYetValid,
        ),
        (
            "nbf in quotes",
            claim(json!({ "nbf": "0" })),
            AuthError::BadClaim("nbf"),
        ),
        (
            "issued in the future",
            claim(json!({ "iat": NOW_S + 31 })),
            AuthError::NotYetValid,
        ),
        (
            "lifetime too long",
            claim(json!({ "exp": NOW_S + 3_631 })),
            AuthError::LifetimeTooLong,
        ),
        (
            "lifetime too long, nearly over",
            claim(json!({ "iat": NOW_S - 3_600, "exp": NOW_S + 60 })),
            AuthError::LifetimeTooLong,
        ),
        (
            "lifetime too long, without iat",
            claim(json!({ "iat": null, "exp": NOW_S + 3_631 })),
            AuthError::LifetimeTooLong,
        ),
        // Whom and whose.
        (
            "another audience",
            claim(json!({ "aud": "roomful2" })),
            AuthError::WrongAudience,
        ),
        (
            "no audience",
            claim(json!({ "aud": null })),
            AuthError::MissingClaim("aud"),
        ),
        (
            "audience is a number",
            claim(json!({ "aud": 1 })),
            AuthError::BadClaim("aud"),
        ),
        (
            "other audiences",
            claim(json!({ "aud": ["a", "b"] })),
            AuthError::WrongAudience,
        ),
        (
            "another issuer",
            claim(json!({ "iss": "https://issuer.example/" })),
            AuthError::WrongIssuer,
        ),
        (
            "issuers",
            claim(json!({ "iss": ["https://issuer.example"] })),
            AuthError::BadClaim("iss"),
        ),
        (
            "no issuer",
            claim(json!({ "iss": null })),
            AuthError::MissingClaim("iss"),
        ),
        (
            "no sub",
            claim(json!({ "sub": null })),
            AuthError::MissingClaim("sub"),
        ),
        (
            "sub is a number",
            claim(json!({ "sub": 7 })),
            AuthError::BadClaim("sub"),
        ),
        (
            "sub is empty",
            claim(json!({ "sub": "" })),
            AuthError::BadClaim("sub"),
        ),
        (
            "sub is too long",
            claim(json!({ "sub": "a".repeat(129) })),
            AuthError::BadClaim("sub"),
        ),
        (
            "sub with a line end",
            claim(json!({ "sub": "ann\nadmin" })),
            AuthError::BadClaim("sub"),
        ),
        (
            "tenant with a slash",
            claim(json!({ "tenant": "a/b" })),
            AuthError::BadClaim("tenant"),
        ),
        (
            "tenant is a list",
            claim(json!({ "tenant": ["a"] })),
            AuthError::BadClaim("tenant"),
        ),
        // Grants.
        (
            "grants is a text",
            claim(json!({ "grants": "*" })),
            AuthError::BadClaim("grants"),
        ),
        (
            "a grant without rooms",
            claim(json!({ "grants": [{ "verbs": "*" }] })),
            AuthError::BadClaim("grants"),
        ),
        (
            "a grant without verbs",
            claim(json!({ "grants": [{ "rooms": "*" }] })),
            AuthError::BadClaim("grants"),
        ),
        (
            "unknown verb",
            grant(json!("*"), json!(["join", "admin"])),
            AuthError::BadClaim("grants"),
        ),
        (
            "bad pattern",
            grant(json!("chat lobby"), json!("*")),
            AuthError::BadClaim("grants"),
        ),
        (
            "rooms with a number",
            grant(json!(["chat:*", 1]), json!("*")),
            AuthError::BadClaim("grants"),
        ),
        (
            "too many patterns",
            grant(json!(vec!["a:b"; Grants::PATTERNS_MAX + 1]), json!("*")),
            AuthError::BadClaim("grants"),
        ),
        (
            "too many grants",
            claim(json!({ "grants": many_grants })),
            AuthError::BadClaim("grants"),
        ),
    ];
    for (name, token, expected) in table {
        let error = check(&config(), &token).expect_err(name);
        assert_eq!(error, expected, "{name}");
        let code = if error == AuthError::Expired {
            ErrorCode::TokenExpired
        } else {
            ErrorCode::InvalidToken
        };
        assert_eq!(error.code(), code, "{name}");
        let words = error.to_string();
        assert!(
            !["ann", "evil", "roomful2", "dev/null", "7"]
                .iter()
                .any(|secret| words.contains(secret)),
            "{name}: {words}"
        );
    }
}

/// The edges of what is still right: clocks that differ by the leeway, fractions, the list form of an
/// audience, no grants.
#[test]
fn tokens_at_the_edge_are_accepted() {
    for (name, changes) in [
        (
            "expired within the leeway",
            json!({ "exp": NOW_S - 29, "iat": NOW_S - 100 }),
        ),
        (
            "valid within the leeway",
            json!({ "nbf": NOW_S + 30, "iat": NOW_S + 30 }),
        ),
        ("the longest lifetime", json!({ "exp": NOW_S + 3_600 })),
        ("no iat", json!({ "iat": null })),
        (
            "times with fractions",
            json!({ "exp": 1_800_000_600.5, "iat": 1_799_999_999.25 }),
        ),
        (
            "one audience of several",
            json!({ "aud": ["other", "roomful"] }),
        ),
        ("no grants", json!({ "grants": null })),
        ("a tenant", json!({ "tenant": "acme" })),
        (
            "the most grants and patterns",
            json!({ "grants": [{ "rooms": vec!["a:b"; Grants::PATTERNS_MAX], "verbs": "*" }] }),
        ),
    ] {
        let identity = check(&config(), &hs256(&with(&changes)));
        assert!(identity.is_ok(), "{name}: {identity:?}");
    }
    let nothing = check(&config(), &hs256(&with(&json!({ "grants": null })))).unwrap();
    assert!(
        !nothing
            .grants
            .allows(&RoomName::parse(b"chat:lobby").unwrap(), Verb::Join)
    );
    assert_eq!(
        check(&config(), &hs256(&with(&json!({ "tenant": "acme" }))))
            .unwrap()
            .tenant
            .as_str(),
        "acme"
    );
    let fraction = check(&config(), &hs256(&with(&json!({ "exp": 1_800_000_600.5 })))).unwrap();
    assert_eq!(fraction.expires_ms, Some(1_800_000_630_500));
}

/// Where no audience is configured, a token for somebody is not for us (RFC 7519 §4.1.3), and the issuer
/// isn't looked at.
#[test]
fn an_audience_needs_to_be_configured() {
    let open = AuthConfig {
        audience: None,
        issuer: None,
        ..config()
    };
    assert_eq!(
        check(&open, &hs256(&claims())),
        Err(AuthError::WrongAudience)
    );
    assert!(check(&open, &hs256(&with(&json!({ "aud": null, "iss": null })))).is_ok());
}

/// Without a `kid`: the only key of the algorithm, or those without an id, so that a secret can be changed in
/// two steps.
#[test]
fn a_token_without_kid_fits_keys_without_id() {
    let unnamed = |secret: &[u8]| sign_secret(&json!({ "alg": "HS256" }), &claims(), secret);
    let other = || {
        key(
            None,
            Algorithm::Hs256,
            KeySource::Secret(Secret::new("b".repeat(32))),
        )
    };
    let keys = |keys: Vec<KeyConfig>| AuthConfig { keys, ..config() };
    assert!(check(&config(), &unnamed(SECRET.as_bytes())).is_ok());
    let changing = keys(vec![other(), shared(None)]);
    assert!(check(&changing, &unnamed(SECRET.as_bytes())).is_ok());
    assert!(check(&changing, &unnamed(&[b'b'; 32])).is_ok());
    assert_eq!(
        check(&changing, &unnamed(&[b'c'; 32])),
        Err(AuthError::BadSignature)
    );
    assert_eq!(
        check(&changing, &hs256(&claims())),
        Err(AuthError::UnknownKey)
    );
    let named = keys(vec![
        shared(Some("a")),
        KeyConfig {
            id: Some("b".to_owned()),
            ..other()
        },
    ]);
    assert_eq!(
        check(&named, &unnamed(SECRET.as_bytes())),
        Err(AuthError::UnknownKey)
    );
}

/// A set with keys of every kind: the supported ones verify by their `kid`, the others are skipped.
#[test]
fn a_jwk_set_gives_keys_by_kid() {
    let jwk = |id: &str, key: &DecodingKey, algorithm| {
        let mut jwk = Jwk::from_decoding_key(key, Some(algorithm)).unwrap();
        jwk.common.key_id = Some(id.to_owned());
        jwk
    };
    let rsa = DecodingKey::from_rsa_pem(&pem("rsa.public.pem")).unwrap();
    let ec = DecodingKey::from_ec_pem(&pem("p256.public.pem")).unwrap();
    let ed = DecodingKey::from_ed_pem(&pem("ed25519.public.pem")).unwrap();
    let set = JwkSet {
        keys: vec![
            jwk("rsa", &rsa, JwtAlgorithm::RS256),
            jwk("ec", &ec, JwtAlgorithm::ES256),
            jwk("ed", &ed, JwtAlgorithm::EdDSA),
        ],
    };
    let mut set = serde_json::to_value(set).unwrap();
    let keys = set["keys"].as_array_mut().unwrap();
    let changed = |key: &Value, name: &str, value: &str| {
        let mut key = key.clone();
        key[name] = json!(value);
        key["kid"] = json!(format!("{name} {value}"));
        key
    };
    let skipped = [
        changed(&keys[0], "alg", "PS256"),
        changed(&keys[0], "use", "enc"),
        changed(&keys[1], "crv", "secp256k1"),
    ];
    keys.extend(skipped);
    keys.push(json!({ "kty": "AKP", "kid": "future" }));
    keys.push(json!({ "kty": "oct", "kid": "main", "k": BASE64URL.encode(SECRET) }));
    keys.push(json!({ "kty": "oct", "kid": "weak", "k": BASE64URL.encode("short") }));

    let path = std::env::temp_dir().join(format!("roomful-jwks-{}.json", std::process::id()));
    std::fs::write(&path, set.to_string()).unwrap();
    let config = AuthConfig {
        keys: Vec::new(),
        jwks_file: Some(path.clone()),
        ..config()
    };
    let authenticator = Authenticator::new(&config, &Clock::manual(NOW_MS));
    std::fs::remove_file(&path).unwrap();
    let authenticator = authenticator.unwrap();
    assert!(authenticator.verify(&hs256(&claims()), NOW_MS).is_ok());
    for (name, token) in costly_tokens() {
        assert!(authenticator.verify(&token, NOW_MS).is_ok(), "{name}");
    }
    for kid in ["alg PS256", "use enc", "crv secp256k1", "future", "weak"] {
        let token = sign_secret(
            &json!({ "alg": "HS256", "kid": kid }),
            &claims(),
            SECRET.as_bytes(),
        );
        assert_eq!(
            authenticator.verify(&token, NOW_MS),
            Err(AuthError::UnknownKey),
            "{kid}"
        );
    }
}

/// A key that could not keep anybody out, or could not let anybody in, is refused at the start, all of them
/// together, and its secret is not in the words.
#[test]
fn useless_keys_are_refused_when_loaded() {
    let secret = |secret: &str| {
        key(
            None,
            Algorithm::Hs256,
            KeySource::Secret(Secret::new(secret)),
        )
    };
    let file = |algorithm, name: &str| public("x", algorithm, name);
    for (key, expected) in [
        (secret("hunter2"), "7 bytes"),
        (
            secret(std::str::from_utf8(&pem("rsa.public.pem")).unwrap()),
            "PEM",
        ),
        (file(Algorithm::Rs256, "missing.pem"), "missing.pem"),
        (file(Algorithm::Rs256, "rsa.private.pem"), "private key"),
        (file(Algorithm::Rs256, "rsa-1024.public.pem"), "2048"),
        (file(Algorithm::Rs256, "p256.public.pem"), "RSA public key"),
        (file(Algorithm::Es256, "p384.public.pem"), "P-256"),
        (file(Algorithm::Es256, "rsa.public.pem"), "P-256"),
        (file(Algorithm::EdDsa, "p256.public.pem"), "Ed25519"),
        (
            key(
                None,
                Algorithm::Hs256,
                KeySource::SecretFile(fixture("missing")),
            ),
            "missing",
        ),
    ] {
        let config = AuthConfig {
            keys: vec![key.clone(), key],
            ..AuthConfig::default()
        };
        let problems = Authenticator::new(&config, &Clock::manual(NOW_MS))
            .unwrap_err()
            .to_string();
        assert!(problems.contains(expected), "{expected}: {problems}");
        assert!(
            !problems.contains("hunter2") && !problems.contains("BEGIN PUBLIC KEY-"),
            "{problems}"
        );
    }
    let twice = AuthConfig {
        keys: vec![shared(Some("a")), shared(Some("a"))],
        ..AuthConfig::default()
    };
    assert!(
        Authenticator::new(&twice, &Clock::manual(NOW_MS))
            .unwrap_err()
            .to_string()
            .contains("id of another key")
    );
    for (text, expected) in [
        ("{}", "no JWK Set"),
        ("{\"keys\":[]}", "no key that can be used"),
        ("no", "line 1"),
    ] {
        let path =
            std::env::temp_dir().join(format!("roomful-bad-jwks-{}.json", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let config = AuthConfig {
            jwks_file: Some(path.clone()),
            ..AuthConfig::default()
        };
        let problems = Authenticator::new(&config, &Clock::manual(NOW_MS))
            .unwrap_err()
            .to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(problems.contains(expected), "{text}: {problems}");
    }
}

/// Neither a token's parts nor a key is in anything's `Debug`.
#[test]
fn debug_shows_no_token_and_no_secret() {
    let config = config();
    let good = hs256(&claims());
    let shown = format!(
        "{config:?} {:?} {:?}",
        authenticator(&config),
        Token::split(&good).unwrap()
    );
    assert!(!shown.contains(SECRET), "{shown}");
    assert!(!good.split('.').any(|part| shown.contains(part)), "{shown}");
}

/// A minted token is accepted by the configuration that it was minted for, and by its user and rooms alone.
#[test]
fn minted_tokens_are_accepted() {
    let wanted = Minted {
        user: "ann".to_owned(),
        tenant: "acme".to_owned(),
        rooms: vec!["chat:*".to_owned(), "inbox:{user}".to_owned()],
        verbs: vec!["join".to_owned(), "history".to_owned()],
        lifetime_s: 600,
        secret: None,
    };
    let token = mint(&config(), &wanted, NOW_MS).unwrap();
    let identity = check(&config(), &token).unwrap();
    let allows = |room: &str, verb| {
        identity
            .grants
            .allows(&RoomName::parse(room.as_bytes()).unwrap(), verb)
    };
    assert_eq!(
        (identity.tenant.as_str(), identity.user.as_str()),
        ("acme", "ann")
    );
    assert!(
        allows("inbox:ann", Verb::History)
            && !allows("inbox:ann", Verb::Publish)
            && !allows("doc:a", Verb::Join)
    );

    let anything = Minted {
        rooms: vec!["*".to_owned()],
        verbs: vec!["*".to_owned()],
        ..wanted.clone()
    };
    let with_secret = Minted {
        secret: Some(Secret::new(SECRET)),
        ..anything
    };
    let no_keys = AuthConfig {
        keys: Vec::new(),
        ..config()
    };
    assert!(matches!(
        mint(&no_keys, &wanted, NOW_MS),
        Err(MintError::NoKey)
    ));
    assert!(check(&config(), &mint(&no_keys, &with_secret, NOW_MS).unwrap()).is_ok());

    let changed = |change: fn(&mut Minted)| {
        let mut wanted = wanted.clone();
        change(&mut wanted);
        mint(&config(), &wanted, NOW_MS).unwrap_err().to_string()
    };
    for (error, expected) in [
        (changed(|wanted| wanted.user.clear()), "--user"),
        (
            changed(|wanted| wanted.tenant = "a/b".to_owned()),
            "--tenant",
        ),
        (
            changed(|wanted| wanted.rooms = vec!["{me}".to_owned()]),
            "--rooms",
        ),
        (
            changed(|wanted| wanted.verbs = vec!["joyn".to_owned()]),
            "--verbs",
        ),
        (
            changed(|wanted| wanted.lifetime_s = 3_601),
            "lifetime_max_s",
        ),
        (
            changed(|wanted| wanted.secret = Some(Secret::new("short"))),
            "5 bytes",
        ),
    ] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
}
