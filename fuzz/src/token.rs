//! Tokens.
//!
//! Nothing is believed that the key did not sign, and what is believed has a user, an end in time, and grants that can be asked.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use hmac::{Hmac, KeyInit as _, Mac as _};
use roomful_protocol::id::RoomName;
use roomful_server::auth::{Authenticator, Verb};
use roomful_server::clock::Clock;
use roomful_server::config::{Config, Flag, Sources};
use sha2::Sha256;

/// The bytes are a token, and then the claims of one that is signed, behind a header that they may choose.
pub(crate) fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let outcome = AUTHENTICATOR.verify(&text, NOW_MS);
    assert!(outcome.is_err(), "believed without a signature");
    let (header, claims) = match data.split_first() {
        Some((b'#', rest)) => {
            let end = rest
                .iter()
                .position(|byte| *byte == b'\n')
                .unwrap_or(rest.len());
            (&rest[..end], rest.get(end + 1..).unwrap_or_default())
        }
        _ => (&br#"{"alg":"HS256"}"#[..], data),
    };
    let token = sign(header, claims);
    let Ok(identity) = AUTHENTICATOR.verify(&token, NOW_MS) else {
        return;
    };
    assert!(!identity.user.as_str().is_empty() && !identity.tenant.as_str().is_empty());
    let expires_ms = identity.expires_ms.expect("a token ends");
    assert!(expires_ms > NOW_MS, "believed after its end");
    let room = RoomName::parse(b"chat:lobby").expect("a good name");
    for verb in Verb::ALL {
        let allowed = identity.grants.allows(&room, verb);
        let said = String::from_utf8_lossy(claims);
        assert!(
            !allowed || said.contains("rooms") || said.contains('\\'),
            "{verb:?} without a grant"
        );
    }
    // One byte of the signature is another.
    let (signed, signature) = token.rsplit_once('.').expect("it was made of three parts");
    let mut signature = BASE64URL.decode(signature).expect("it was made here");
    signature[0] ^= 1;
    let forged = format!("{signed}.{}", BASE64URL.encode(signature));
    assert!(
        AUTHENTICATOR.verify(&forged, NOW_MS).is_err(),
        "a forged one"
    );
}

fn sign(header: &[u8], claims: &[u8]) -> String {
    let signed = format!("{}.{}", BASE64URL.encode(header), BASE64URL.encode(claims));
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("a key of any length");
    mac.update(signed.as_bytes());
    format!("{signed}.{}", BASE64URL.encode(mac.finalize().into_bytes()))
}

static AUTHENTICATOR: LazyLock<Authenticator> = LazyLock::new(|| {
    let sources = Sources {
        flags: vec![Flag {
            name: "--set".to_owned(),
            key: "auth.keys".to_owned(),
            value: format!("[{{ algorithm = \"HS256\", secret = \"{SECRET}\" }}]"),
        }],
        ..Sources::default()
    };
    let config = Config::load(&sources).expect("a good configuration");
    Authenticator::new(&config.auth, &Clock::system()).expect("a good key")
});

const SECRET: &str = "a secret of at least thirty-two bytes";

/// 2027, as the tokens of the corpus have it.
const NOW_MS: u64 = 1_800_000_000_000;
