//! Tokens for the connections of a run, signed as an application's backend would sign them.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use roomful_protocol::text::Text;
use serde_json::json;

/// The secret that this program and the server it starts share. It guards nothing else.
const SECRET: &str = "a secret that is shared by the load test alone";

/// Longer than any run.
const LIFETIME: Duration = Duration::from_secs(3600);

/// The variable that gives the server the key.
pub(super) fn server_key() -> (&'static str, String) {
    let keys = format!("[{{ algorithm = \"HS256\", secret = \"{SECRET}\" }}]");
    ("ROOMFUL_AUTH__KEYS", keys)
}

/// A token for one connection, each with a user of its own, so that none is known from another.
///
/// # Errors
/// It can't be signed.
pub(super) fn mint<const MAX: usize>(connection: usize) -> Result<Text<MAX>> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a token ends at a time of the calendar, which the server looks at too"
    )]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let claims = json!({
        "sub": format!("user-{connection}"),
        "iat": now.as_secs(),
        "exp": (now + LIFETIME).as_secs(),
        "grants": [{ "rooms": ["chat:*"], "verbs": ["join", "publish"] }],
    });
    let header = Header::new(Algorithm::HS256);
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let token = jsonwebtoken::encode(&header, &claims, &key).context("signing a token")?;
    Text::new(&token).ok().context("a token that is too long")
}
