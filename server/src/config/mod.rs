//! What an operator can set: read once at the start, typed ever after.
//!
//! `main` loads a [`Config`] and hands each component its part; nothing else reads the environment, and
//! nothing reads a configuration file twice. Loading promises that unknown keys and bad values are reported
//! all at once, each with its place, before anything is bound or written. What a value means is left to the
//! component that gets it.
//!
//! `sections` is the table of all keys; the rest is the machinery around it.

mod choice;
mod key;
mod keys_url;
mod print;
mod problem;
mod relation;
mod secret;
mod section;
mod sections;
mod setting;
mod source;
mod value;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;

use roomful_protocol::frame::Durability;

pub use choice::{Algorithm, ForwardedHeader, LogFilter, LogFormat, RoomKind, WebOrigin};
pub use key::{KeyConfig, KeySource};
pub use keys_url::KeysUrl;
pub use problem::{Place, Problem, Problems};
pub use secret::{Secret, SecretKey};
pub use sections::{
    AdminConfig, AdmissionConfig, AuthConfig, ConnectionConfig, HttpConfig, ListenConfig,
    LogConfig, MemoryConfig, NamespaceConfig, NodeConfig, PlacementConfig, SessionConfig,
    ShardConfig, ShutdownConfig, StorageConfig, UserConfig,
};
pub use source::{Flag, Sources};

pub(crate) use relation::ADMIN_KEY_BYTES_MIN;

use problem::Report;
use section::{Section, report_unknown, set_field, set_fields};
use value::{Entry, Node, Value};

/// Everything that an operator can set. `Default` is what an empty file gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Keys without a section: `data_dir`, `shards`.
    pub node: NodeConfig,
    /// `[listen]`
    pub listen: ListenConfig,
    /// `[auth]`
    pub auth: AuthConfig,
    /// `[admin]`
    pub admin: AdminConfig,
    /// `[connection]`
    pub connection: ConnectionConfig,
    /// `[admission]`
    pub admission: AdmissionConfig,
    /// `[http]`
    pub http: HttpConfig,
    /// `[session]`
    pub session: SessionConfig,
    /// `[user]`
    pub user: UserConfig,
    /// `[placement]`
    pub placement: PlacementConfig,
    /// `[shard]`
    pub shard: ShardConfig,
    /// `[memory]`
    pub memory: MemoryConfig,
    /// `[storage]`
    pub storage: StorageConfig,
    /// `[shutdown]`
    pub shutdown: ShutdownConfig,
    /// `[log]`
    pub log: LogConfig,
    /// `[namespaces.<name>]`, by name. Has [`DEFAULT_NAMESPACE`] and the shipped ones; a file may add more.
    pub namespaces: BTreeMap<String, NamespaceConfig>,
}

impl Config {
    /// Reads a configuration: defaults < file < environment < flags.
    ///
    /// # Errors
    /// Everything that is wrong in any of the sources, relations between keys and unreadable keys included.
    pub fn load(sources: &Sources) -> Result<Self, Problems> {
        let mut report = Report::default();
        let mut config = Self::default();
        for entry in sources.read(&mut report) {
            config.set(&entry, &mut report);
        }
        // A wrong value leaves its default, which may clash with a right one: relations are judged only over
        // right values.
        if report.problems.is_empty() {
            let relations = relation::check(&config);
            let placed = relations
                .iter()
                .map(|wrong| wrong.at(report.place(&wrong.keys)));
            report.problems = placed.collect();
        }
        report.problems.extend(key_problems(&config.auth, &report));
        Problems::check(report.problems)?;
        Ok(config)
    }

    /// Checks the relations between keys, for a configuration that a program has built.
    ///
    /// # Errors
    /// Everything that doesn't fit together, such as an anonymous server on a public address.
    pub fn validate(&self) -> Result<(), Problems> {
        Problems::check(
            relation::check(self)
                .iter()
                .map(|wrong| wrong.at(Place::Default))
                .collect(),
        )
    }

    /// Whether everybody may connect, because there is no key to verify a token with.
    #[must_use]
    pub const fn is_anonymous(&self) -> bool {
        self.auth.keys.is_empty() && self.auth.jwks_file.is_none() && self.auth.jwks_url.is_none()
    }

    /// What a reload makes of this configuration: what it can change while the server runs is the newer one's, and the
    /// keys whose change needs a restart are named and stay as they were.
    ///
    /// # Errors
    /// What is new doesn't fit what stays.
    pub fn renewed(&self, newer: &Self) -> Result<(Self, Vec<String>), Problems> {
        let (mut config, mut kept) = (self.clone(), Vec::new());
        config.node.renew(&newer.node, "", &mut kept);
        config.listen.renew(&newer.listen, "listen.", &mut kept);
        config.auth.renew(&newer.auth, "auth.", &mut kept);
        config.admin.renew(&newer.admin, "admin.", &mut kept);
        config
            .connection
            .renew(&newer.connection, "connection.", &mut kept);
        config
            .admission
            .renew(&newer.admission, "admission.", &mut kept);
        config.http.renew(&newer.http, "http.", &mut kept);
        config.session.renew(&newer.session, "session.", &mut kept);
        config
            .placement
            .renew(&newer.placement, "placement.", &mut kept);
        config.user.renew(&newer.user, "user.", &mut kept);
        config.shard.renew(&newer.shard, "shard.", &mut kept);
        config.memory.renew(&newer.memory, "memory.", &mut kept);
        config.storage.renew(&newer.storage, "storage.", &mut kept);
        config
            .shutdown
            .renew(&newer.shutdown, "shutdown.", &mut kept);
        config.log.renew(&newer.log, "log.", &mut kept);
        config.renew_namespaces(self, newer, &mut kept);
        if config.is_anonymous() != self.is_anonymous() {
            // Whoever is connected was let in under the other rule, and who may come would change in one moment.
            config.auth = self.auth.clone();
            let (old, new) = (&self.auth, &newer.auth);
            let changed = [
                ("auth.keys", old.keys != new.keys),
                ("auth.jwks_file", old.jwks_file != new.jwks_file),
                ("auth.jwks_url", old.jwks_url != new.jwks_url),
            ];
            let changed = changed.iter().filter(|(_, changed)| *changed);
            kept.extend(changed.map(|(key, _)| {
                format!("{key} (a server without keys can't get one, nor lose its last)")
            }));
        }
        config.validate()?;
        Ok((config, kept))
    }

    /// Rooms keep what they are stored as, those of a namespace too that had no section before.
    fn renew_namespaces(&mut self, before: &Self, newer: &Self, kept: &mut Vec<String>) {
        let is_on_disk = |namespace: &NamespaceConfig| namespace.durability != Durability::Memory;
        let has_disk = before.namespaces.values().any(is_on_disk);
        let others = before.namespaces.get(DEFAULT_NAMESPACE);
        let others = others.filter(|_| before.is_anonymous());
        let others = others.map(|namespace| namespace.durability);
        self.namespaces
            .retain(|name, _| newer.namespaces.contains_key(name));
        for (name, newer) in &newer.namespaces {
            match self.namespaces.get_mut(name) {
                Some(namespace) => namespace.renew(newer, &format!("namespaces.{name}."), kept),
                None => {
                    let mut namespace = newer.clone();
                    namespace.durability = match others {
                        Some(durability) => durability,
                        None if has_disk => newer.durability,
                        None => Durability::Memory,
                    };
                    if namespace.durability != newer.durability {
                        kept.push(format!("namespaces.{name}.durability"));
                    }
                    self.namespaces.insert(name.clone(), namespace);
                }
            }
        }
    }

    /// What an operator should know at the start, although nothing is wrong.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let public = self.listen.public;
        match (self.is_anonymous(), self.listen.allow_anonymous) {
            (true, _) if is_loopback(public) => vec![
                "no keys are configured: everybody on this machine may do everything (see auth.keys)".to_owned(),
            ],
            (true, _) => vec![format!(
                "no keys are configured: everybody who reaches {public} may do everything (see auth.keys)"
            )],
            (false, true) => {
                vec!["listen.allow_anonymous has no effect, since keys are configured: every client needs a token".to_owned()]
            }
            (false, false) => Vec::new(),
        }
    }

    /// How many shards there are: `shards`, or one per core for 0.
    #[must_use]
    pub fn shard_count(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.node.shards).unwrap_or_else(|| {
            let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
            cores.min(SHARDS_MAX)
        })
    }

    /// The rooms of a namespace. An unknown one is served as `default` where the server is anonymous, and not
    /// at all where it isn't: a token's owner should not be able to invent namespaces.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<&NamespaceConfig> {
        let fallback = || {
            self.namespaces
                .get(DEFAULT_NAMESPACE)
                .filter(|_| self.is_anonymous())
        };
        self.namespaces.get(name).or_else(fallback)
    }

    /// The configuration as TOML: every key with its documentation, default and value, which [`Config::load`]
    /// reads back. Secrets are redacted.
    #[must_use]
    pub fn to_toml(&self) -> String {
        print::to_toml(self)
    }

    /// Every section but the namespaces, by name; the one without a name first, as TOML wants it.
    fn sections(&mut self) -> Vec<(&'static str, &mut dyn Section)> {
        vec![
            ("", &mut self.node),
            ("listen", &mut self.listen),
            ("auth", &mut self.auth),
            ("admin", &mut self.admin),
            ("connection", &mut self.connection),
            ("admission", &mut self.admission),
            ("http", &mut self.http),
            ("session", &mut self.session),
            ("user", &mut self.user),
            ("placement", &mut self.placement),
            ("shard", &mut self.shard),
            ("memory", &mut self.memory),
            ("storage", &mut self.storage),
            ("shutdown", &mut self.shutdown),
            ("log", &mut self.log),
        ]
    }

    /// Takes one entry of the top level: a key without a section, or a section.
    fn set(&mut self, entry: &Entry, report: &mut Report) {
        let Entry { key, node } = entry;
        if key == "namespaces" {
            return self.set_namespaces(node, report);
        }
        if let Some(field) = self
            .node
            .fields()
            .iter_mut()
            .find(|field| field.name == key)
        {
            return set_field(field, key, node, report);
        }
        let section = self.sections().into_iter().find(|(name, _)| name == key);
        match (section, &node.value) {
            (Some((name, section)), Value::Table(entries)) => {
                set_fields(section, &format!("{name}."), entries, report);
            }
            (Some((name, _)), _) => {
                report.add(&node.place, format!("{name} has to be a table, [{name}]"));
            }
            (None, value) => {
                let known = self.keys();
                paths(key, value).for_each(|path| {
                    report_unknown(&path, &node.place, known.iter().cloned(), report);
                });
            }
        }
    }

    fn set_namespaces(&mut self, node: &Node, report: &mut Report) {
        let Value::Table(entries) = &node.value else {
            return report.add(
                &node.place,
                "namespaces holds tables: [namespaces.<name>]".to_owned(),
            );
        };
        for Entry { key: name, node } in entries {
            let Value::Table(entries) = &node.value else {
                report.add(
                    &node.place,
                    format!("namespaces.{name} has to be a table, [namespaces.{name}]"),
                );
                continue;
            };
            if !relation::is_namespace(name) {
                let text = format!(
                    "{name:?} is no namespace; allowed are 1 to 32 of a-z 0-9 - with a letter first"
                );
                report.add(&node.place, text);
                continue;
            }
            let namespace = self.namespaces.entry(name.clone()).or_default();
            set_fields(namespace, &format!("namespaces.{name}."), entries, report);
        }
    }

    /// Every key, for hints.
    fn keys(&mut self) -> Vec<String> {
        let sections = self.sections().into_iter().flat_map(|(name, section)| {
            let prefix = if name.is_empty() {
                String::new()
            } else {
                format!("{name}.")
            };
            section
                .fields()
                .iter()
                .map(|field| format!("{prefix}{}", field.name))
                .collect::<Vec<_>>()
        });
        sections.collect()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: NodeConfig::default(),
            listen: ListenConfig::default(),
            auth: AuthConfig::default(),
            admin: AdminConfig::default(),
            connection: ConnectionConfig::default(),
            admission: AdmissionConfig::default(),
            http: HttpConfig::default(),
            session: SessionConfig::default(),
            user: UserConfig::default(),
            placement: PlacementConfig::default(),
            shard: ShardConfig::default(),
            memory: MemoryConfig::default(),
            storage: StorageConfig::default(),
            shutdown: ShutdownConfig::default(),
            log: LogConfig::default(),
            namespaces: NAMESPACES
                .map(|(name, durability)| (name.to_owned(), NamespaceConfig::shipped(durability)))
                .into(),
        }
    }
}

impl NamespaceConfig {
    /// What a shipped namespace is. What is on disk is there to be read again, so more of it is kept than memory would hold.
    fn shipped(durability: Durability) -> Self {
        match durability {
            Durability::Memory => Self::default(),
            Durability::Local | Durability::Replicated => Self {
                durability,
                history_entries_max: 100_000,
                history_bytes_max: 67_108_864,
                history_age_max_ms: 30 * 86_400_000,
                ..Self::default()
            },
        }
    }
}

/// Whether an address is reached from this machine alone.
#[must_use]
pub fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// What is wrong with the keys that the configuration names, so that a missing key file is reported with
/// everything else.
fn key_problems(auth: &AuthConfig, report: &Report) -> Vec<Problem> {
    let named = |key: &str, problem: &Problem| problem.text.starts_with(key);
    let placed = crate::auth::Authenticator::problems(auth)
        .into_iter()
        .map(|problem| {
            let keys = ["auth.jwks_file", "auth.jwks_ca_file", "auth.jwks_url"];
            match keys.into_iter().find(|key| named(key, &problem)) {
                Some(key) => Problem {
                    place: report.place(&[key.to_owned()]),
                    ..problem
                },
                None => problem,
            }
        });
    placed.collect()
}

/// The keys that an unknown entry of the top level holds.
fn paths<'a>(key: &'a str, value: &'a Value) -> Box<dyn Iterator<Item = String> + 'a> {
    match value {
        Value::Table(entries) => Box::new(
            entries
                .iter()
                .map(move |entry| format!("{key}.{}", entry.key)),
        ),
        _ => Box::new(std::iter::once(key.to_owned())),
    }
}

/// The namespace that serves unknown names on an anonymous server.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The namespaces that need no configuration: what is a record for somebody is on disk.
const NAMESPACES: [(&str, Durability); 5] = [
    ("auction", Durability::Local),
    ("chat", Durability::Local),
    (DEFAULT_NAMESPACE, Durability::Memory),
    ("doc", Durability::Local),
    ("game", Durability::Memory),
];

/// Shards beyond this cost more in messages between them than another core gives.
const SHARDS_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not 0");

#[cfg(test)]
pub(crate) use tests::changed_keys;

#[cfg(test)]
mod tests;
