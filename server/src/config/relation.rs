//! What two keys say together: rules that no single value can break.

use roomful_protocol::id::RoomName;

use super::problem::{Place, Problem};
use super::{Config, NamespaceConfig, is_loopback};

/// A relation that doesn't hold.
#[derive(Debug)]
pub(super) struct Wrong {
    /// The keys in it; the first that was given is where it is mended.
    pub(super) keys: Vec<String>,
    text: String,
}

impl Wrong {
    /// The problem, at the place of one of its keys.
    pub(super) fn at(&self, place: Place) -> Problem {
        Problem {
            place,
            text: self.text.clone(),
        }
    }
}

/// Every relation that doesn't hold.
pub(super) fn check(config: &Config) -> Vec<Wrong> {
    let mut wrong = listen(config);
    wrong.extend(admin(config));
    wrong.extend(connection(config));
    wrong.extend(admission(config));
    wrong.extend(auth(config));
    wrong.extend(shutdown(config));
    wrong.extend(at_most(
        Side("memory.soft_percent", config.memory.soft_percent),
        Side("memory.hard_percent", config.memory.hard_percent),
    ));
    config
        .namespaces
        .iter()
        .for_each(|(name, namespace)| wrong.extend(self::namespace(config, name, namespace)));
    wrong
}

/// Whether a text can stand before a room name's colon.
pub(super) fn is_namespace(name: &str) -> bool {
    !name.contains(':') && RoomName::parse(format!("{name}:x").as_bytes()).is_ok()
}

fn listen(config: &Config) -> Vec<Wrong> {
    let listen = &config.listen;
    let mut wrong = Vec::new();
    if config.is_anonymous() && !listen.allow_anonymous && !is_loopback(listen.public) {
        wrong.push(Wrong {
            keys: keys(["listen.public"]),
            text: format!(
                "listen.public is {} and no keys are configured, so everybody who reaches it could do everything; \
                 configure auth.keys, listen on 127.0.0.1, or say --allow-anonymous",
                listen.public
            ),
        });
    }
    if listen.proxy_protocol && listen.trusted_proxies.is_empty() {
        wrong.push(Wrong {
            keys: keys(["listen.proxy_protocol"]),
            text: "listen.proxy_protocol is true, but listen.trusted_proxies has no proxy to hear it from"
                .to_owned(),
        });
    }
    if listen.public == listen.admin && listen.public.port() != 0 {
        wrong.push(Wrong {
            keys: keys(["listen.admin", "listen.public"]),
            text: format!("listen.public and listen.admin are both {}", listen.public),
        });
    }
    if listen.tls_certificate_file.is_some() != listen.tls_key_file.is_some() {
        wrong.push(Wrong {
            keys: keys(["listen.tls_certificate_file", "listen.tls_key_file"]),
            text: "listen.tls_certificate_file and listen.tls_key_file are needed together, or neither".to_owned(),
        });
    }
    wrong
}

fn admin(config: &Config) -> Vec<Wrong> {
    let admin = &config.admin;
    let mut wrong = Vec::new();
    if !is_loopback(config.listen.admin) && !admin.allow_plaintext {
        wrong.push(Wrong {
            keys: keys(["listen.admin"]),
            text: format!(
                "listen.admin is {}, where the admin key could be read on the way; listen on 127.0.0.1 and put TLS in front of it, \
                 or say admin.allow_plaintext",
                config.listen.admin
            ),
        });
    }
    if admin.key.is_some() && admin.key_file.is_some() {
        wrong.push(Wrong {
            keys: keys(["admin.key_file", "admin.key"]),
            text: "admin.key and admin.key_file are both set; one of them is enough".to_owned(),
        });
    }
    let short = admin
        .key
        .as_ref()
        .is_some_and(|key| key.expose().len() < ADMIN_KEY_BYTES_MIN);
    if short {
        wrong.push(Wrong {
            keys: keys(["admin.key"]),
            text: format!("admin.key is too short; it needs {ADMIN_KEY_BYTES_MIN} bytes"),
        });
    }
    wrong
}

fn connection(config: &Config) -> Vec<Wrong> {
    let connection = &config.connection;
    let payload = Side("connection.payload_bytes_max", connection.payload_bytes_max);
    let message = Side("connection.message_bytes_max", connection.message_bytes_max);
    let outbox = Side("connection.outbox_bytes_max", connection.outbox_bytes_max);
    let mut wrong = at_most(payload.plus(ENVELOPE_BYTES), message);
    wrong.extend(at_most(message, outbox));
    wrong
}

fn admission(config: &Config) -> Vec<Wrong> {
    let admission = &config.admission;
    let mut wrong = at_most(
        Side("admission.connects_per_s", admission.connects_per_s),
        Side("admission.connects_burst", admission.connects_burst),
    );
    wrong.extend(at_most(
        Side(
            "admission.connects_per_address_per_s",
            admission.connects_per_address_per_s,
        ),
        Side(
            "admission.connects_per_address_burst",
            admission.connects_per_address_burst,
        ),
    ));
    wrong
}

fn auth(config: &Config) -> Vec<Wrong> {
    let auth = &config.auth;
    let mut wrong = at_most(
        Side("auth.expiry_warning_s", auth.expiry_warning_s),
        Side("auth.lifetime_max_s", auth.lifetime_max_s),
    );
    wrong.extend(at_most(
        Side("auth.jwks_refresh_s", auth.jwks_refresh_s),
        Side("auth.jwks_age_max_s", auth.jwks_age_max_s),
    ));
    wrong
}

fn shutdown(config: &Config) -> Vec<Wrong> {
    let shutdown = &config.shutdown;
    let limit = Side("shutdown.limit_ms", shutdown.limit_ms);
    let window = shutdown.drain_accept_ms + shutdown.spread_ms;
    let together = Side("shutdown.drain_accept_ms + shutdown.spread_ms", window);
    let mut wrong = at_most(together, limit);
    for wrong in &mut wrong {
        wrong.keys = keys([
            "shutdown.limit_ms",
            "shutdown.spread_ms",
            "shutdown.drain_accept_ms",
        ]);
    }
    wrong
}

fn namespace(config: &Config, name: &str, namespace: &NamespaceConfig) -> Vec<Wrong> {
    let key = |key: &str| format!("namespaces.{name}.{key}");
    let (value, history, chunk, grace) = (
        key("presence_value_bytes_max"),
        key("history_bytes_max"),
        key("catch_up_bytes_max"),
        key("presence_grace_ms"),
    );
    let payload = Side(
        "connection.payload_bytes_max",
        config.connection.payload_bytes_max,
    );
    let outbox = Side(
        "connection.outbox_bytes_max",
        config.connection.outbox_bytes_max,
    );
    let retention = Side("session.retention_ms", config.session.retention_ms);
    let mut wrong = at_most(Side(&value, namespace.presence_value_bytes_max), payload);
    wrong.extend(at_most(
        payload,
        Side(&history, namespace.history_bytes_max),
    ));
    wrong.extend(at_most(Side(&chunk, namespace.catch_up_bytes_max), outbox));
    wrong.extend(at_most(
        Side(&grace, namespace.presence_grace_ms),
        retention,
    ));
    wrong
}

/// A key and its value, or what the value comes to.
#[derive(Debug, Clone, Copy)]
struct Side<'a, T>(&'a str, T);

impl Side<'_, usize> {
    fn plus(self, more: usize) -> Self {
        Self(self.0, self.1 + more)
    }
}

fn at_most<T: PartialOrd + Copy + std::fmt::Display>(
    less: Side<'_, T>,
    more: Side<'_, T>,
) -> Vec<Wrong> {
    if less.1 <= more.1 {
        return Vec::new();
    }
    let text = format!("{} needs {}, but {} is {}", less.0, less.1, more.0, more.1);
    vec![Wrong {
        keys: keys([less.0, more.0]),
        text,
    }]
}

fn keys<const N: usize>(keys: [&str; N]) -> Vec<String> {
    keys.map(str::to_owned).into()
}

/// An admin key shorter than this may be guessed.
pub(crate) const ADMIN_KEY_BYTES_MIN: usize = 32;

/// Room for everything in a publish or signal but its payload: the tag, five integers of at most nine bytes,
/// a key of 64, and in JSON the names and brackets around them.
const ENVELOPE_BYTES: usize = 1_024;
