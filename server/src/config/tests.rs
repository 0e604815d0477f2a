//! Loading from files, variables and flags, and printing.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::section::Field;
use super::*;

/// Sources with one file of this text, which disappears with them.
struct Written {
    sources: Sources,
    path: PathBuf,
}

impl Written {
    fn file(text: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "roomful-config-{}-{}.toml",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        Self {
            sources: Sources {
                file: Some(path.clone()),
                ..Sources::default()
            },
            path,
        }
    }

    fn variables(mut self, variables: &[(&str, &str)]) -> Self {
        self.sources.variables = variables
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        self
    }

    fn flags(mut self, flags: &[(&str, &str)]) -> Self {
        let flag = |(key, value): &(&str, &str)| Flag {
            name: format!("--set {key}"),
            key: (*key).to_owned(),
            value: (*value).to_owned(),
        };
        self.sources.flags = flags.iter().map(flag).collect();
        self
    }

    fn load(&self) -> Result<Config, Problems> {
        Config::load(&self.sources)
    }

    /// The problems, each with the file's name cut from its place.
    fn problems(&self) -> Vec<String> {
        let problems = self.load().expect_err("there is something wrong");
        let directory = format!("{}:", self.path.display());
        problems
            .as_slice()
            .iter()
            .map(|problem| problem.to_string().replace(&directory, "line "))
            .collect()
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).unwrap();
    }
}

fn check_problem(written: &Written, expected: &str) {
    let problems = written.problems();
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(
        problems[0].contains(expected),
        "{expected:?} is not in {:?}",
        problems[0]
    );
}

/// What `print-config` prints is a file that says nothing new.
#[test]
fn the_printed_defaults_read_back_as_the_defaults() {
    assert_eq!(
        Written::file(&Config::default().to_toml()).load().unwrap(),
        Config::default()
    );
    assert_eq!(Written::file("").load().unwrap(), Config::default());
}

/// Every key of every section is printed, set or (without a default) commented, with its documentation and
/// default before it.
#[test]
fn every_key_is_printed_with_its_documentation() {
    let printed = Config::default().to_toml();
    let mut config = Config::default();
    let mut expected = config.keys();
    let namespaces: Vec<String> = config.namespaces.keys().cloned().collect();
    for namespace in namespaces {
        let fields = config.namespaces.get_mut(&namespace).unwrap();
        expected.extend(
            fields
                .fields()
                .iter()
                .map(|field| format!("namespaces.{namespace}.{}", field.name)),
        );
    }
    let mut section = "";
    let mut before = Vec::new();
    let mut found = Vec::new();
    for line in printed.lines() {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']');
        } else if let Some((key, _)) = line
            .trim_start_matches("# ")
            .split_once(" =")
            .filter(|(key, _)| is_key(key))
        {
            let path = if section.is_empty() {
                key.to_owned()
            } else {
                format!("{section}.{key}")
            };
            let documented =
                before.len() >= 2 && before.iter().any(|line: &&str| line.contains("Default: "));
            let repeated = section.starts_with("namespaces.") && section != "namespaces.default";
            assert!(documented || repeated, "{path} has no documentation");
            found.push(path);
        }
        match line.starts_with('#') {
            true => before.push(line),
            false => before.clear(),
        }
    }
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

fn is_key(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// Each default is inside its own range: each would be accepted if somebody wrote it.
#[test]
fn the_defaults_are_valid() {
    assert_eq!(Config::default().validate(), Ok(()));
    assert!(Config::default().is_anonymous());
}

/// Defaults < file < environment < flags, key by key.
#[test]
fn later_sources_win() {
    let written = Written::file(
        "shards = 1\n[connection]\nrooms_max = 10\nrequests_max = 10\nheartbeat_ms = 1000\n",
    )
    .variables(&[
        ("ROOMFUL_CONNECTION__ROOMS_MAX", "20"),
        ("ROOMFUL_CONNECTION__REQUESTS_MAX", "20"),
        ("PATH", "/bin"),
    ])
    .flags(&[
        ("connection.rooms_max", "30"),
        ("shards", "2"),
        ("shards", "3"),
    ]);
    let config = written.load().unwrap();
    let connection = &config.connection;
    assert_eq!(config.node.shards, 3);
    assert_eq!(
        (
            connection.rooms_max,
            connection.requests_max,
            connection.heartbeat_ms
        ),
        (30, 20, 1_000)
    );
    assert_eq!(
        connection.errors_per_minute_max,
        ConnectionConfig::default().errors_per_minute_max
    );
}

/// Each type as a variable or flag has it, without the quotes that a shell makes hard.
#[test]
fn variables_hold_every_type() {
    let config = Written::file("")
        .variables(&[
            ("ROOMFUL_LISTEN__PUBLIC", "[::1]:80"),
            ("ROOMFUL_LISTEN__ALLOW_ANONYMOUS", "true"),
            (
                "ROOMFUL_LISTEN__ORIGINS",
                "https://a.example, http://localhost:5173",
            ),
            ("ROOMFUL_DATA_DIR", "/var/lib/roomful"),
            ("ROOMFUL_CONNECTION__MESSAGES_PER_S", "1_000"),
            ("ROOMFUL_LOG__FORMAT", "json"),
            ("ROOMFUL_NAMESPACES__WHITEBOARD__MEMBERS_MAX", "5"),
            (
                "ROOMFUL_AUTH__KEYS",
                r#"[{ algorithm = "HS256", secret = "0123456789abcdef0123456789abcdef" }]"#,
            ),
            ("ROOMFUL_AUTH__RESUME_KEY", &"0f".repeat(32)),
        ])
        .flags(&[
            ("log.filter", "info,roomful_server=debug"),
            ("listen.origins", r#"["https://b.example"]"#),
        ])
        .load()
        .unwrap();
    assert_eq!(config.listen.public, "[::1]:80".parse().unwrap());
    assert!(config.listen.allow_anonymous && !config.is_anonymous());
    assert_eq!(
        config.listen.origins,
        [WebOrigin::parse("https://b.example").unwrap()]
    );
    assert_eq!(config.node.data_dir, PathBuf::from("/var/lib/roomful"));
    assert_eq!(config.connection.messages_per_s, 1_000);
    assert_eq!(
        (config.log.format, config.log.filter.as_str()),
        (LogFormat::Json, "info,roomful_server=debug")
    );
    assert_eq!(
        config.namespaces["whiteboard"],
        NamespaceConfig {
            members_max: 5,
            ..NamespaceConfig::default()
        }
    );
    assert_eq!(config.auth.keys.len(), 1);
    assert_eq!(config.auth.resume_key, Some(SecretKey::new([0x0f; 32])));
}

/// Everything that is wrong in all three sources comes at once, in the order of the sources, each with its place.
#[test]
fn all_problems_come_together() {
    let written = Written::file("shards = 65\n\n[listen]\npubic = 1\nadmin = \"localhost\"\n[namespaces.chat]\nmembers_max = 0\n[nope]\nx = 1\n")
        .variables(&[("ROOMFUL_CONNECTION_ROOMS_MAX", "1"), ("ROOMFUL_LOG__FORMAT", "xml"), ("ROOMFUL_PORT", "tcp://10.0.0.1:7400")])
        .flags(&[("shard.turn_budget_us", "fast")]);
    let problems = written.problems();
    let expected = [
        "line 1: shards is 65; allowed is a whole number from 0 to 64",
        "line 4: listen.pubic is no key; did you mean listen.public?",
        "line 5: listen.admin is \"localhost\"; allowed is an IP address",
        "line 7: namespaces.chat.members_max is 0; allowed is a whole number from 1",
        "line 8: nope.x is no key",
        "ROOMFUL_CONNECTION_ROOMS_MAX: connection_rooms_max is no key; did you mean ROOMFUL_CONNECTION__ROOMS_MAX?",
        "ROOMFUL_LOG__FORMAT: log.format is \"xml\"; allowed is \"auto\", \"pretty\", \"json\"",
        "--set shard.turn_budget_us: shard.turn_budget_us is \"fast\"",
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(
            problem.starts_with(expected),
            "{problem:?} does not start with {expected:?}"
        );
    }
}

/// A text that isn't TOML is reported by line, and half of it is not believed.
#[test]
fn a_file_that_is_not_toml_is_reported_by_line() {
    check_problem(
        &Written::file("shards = 1\nlisten = \n[log]\nnope = 1\n"),
        "line 2: this is not TOML",
    );
    check_problem(
        &Written::file("shards = 1\nshards = 2\n"),
        "line 2: this is not TOML",
    );
}

/// A file that was named has to be there; the one in the working directory need not.
#[test]
fn a_named_file_has_to_exist() {
    let problems = Config::load(&Sources {
        file: Some(PathBuf::from("/nonexistent/x.toml")),
        ..Sources::default()
    });
    assert!(
        problems
            .unwrap_err()
            .to_string()
            .starts_with("--config /nonexistent/x.toml: the file can't be read")
    );
}

/// Wrong forms of every kind, each with the one problem that it is.
#[test]
fn wrong_forms_are_one_problem_each() {
    for (text, expected) in [
        ("listen = 5", "line 1: listen has to be a table"),
        ("namespaces = 5", "line 1: namespaces holds tables"),
        (
            "[namespaces]\nchat = 5",
            "line 2: namespaces.chat has to be a table",
        ),
        ("[namespaces.Chat]", "line 1: \"Chat\" is no namespace"),
        ("[namespaces.\"a:b\"]", "line 1: \"a:b\" is no namespace"),
        (
            "[namespaces.chat]\ndurability = \"replicated\"",
            "line 2: namespaces.chat.durability is \"replicated\"; allowed is \"memory\", \"local\"; \"replicated\" needs",
        ),
        (
            "[connection]\nrooms_max = -1",
            "line 2: connection.rooms_max is a number out of range",
        ),
        (
            "[connection]\nrooms_max = 1.5",
            "line 2: connection.rooms_max is a float",
        ),
        (
            "[connection]\nrooms_max = \"5\"",
            "line 2: connection.rooms_max is \"5\"",
        ),
        (
            "[connection]\nmessages_per_s = 0",
            "line 2: connection.messages_per_s is 0; allowed is a whole number from 1",
        ),
        (
            "[listen]\nallow_anonymous = \"yes\"",
            "line 2: listen.allow_anonymous is \"yes\"; allowed is true or false",
        ),
        (
            "[listen]\norigins = [\n\"https://a.example\",\n\"https://a.example/\"]",
            "line 4: listen.origins is \"https://a.example/\"",
        ),
        ("[log]\nfilter = \"info,[\"", "line 2: log.filter is"),
        (
            "[auth]\naudience = \"\"",
            "line 2: auth.audience is \"\"; allowed is a text that is not empty",
        ),
        (
            "[auth]\njwks_file = \"/nonexistent/jwks.json\"",
            "line 2: auth.jwks_file: /nonexistent/jwks.json can't be read",
        ),
        (
            "[auth]\nresume_key = \"abc\"",
            "line 2: auth.resume_key is something else; allowed is 64 hexadecimal digits",
        ),
    ] {
        check_problem(&Written::file(text), expected);
    }
}

/// A key says what it is for and where it is, exactly once; a secret is in no problem.
#[test]
fn keys_have_one_algorithm_and_one_source() {
    for (key, expected) in [
        ("secret = \"hunter2\"", "has no algorithm"),
        (
            "algorithm = \"none\"\nsecret = \"hunter2\"",
            "auth.keys[0].algorithm is \"none\"; allowed is \"HS256\"",
        ),
        (
            "algorithm = \"HS256\"",
            "needs either secret or secret_file",
        ),
        (
            "algorithm = \"HS256\"\nsecret = \"hunter2\"\nsecret_file = \"x\"",
            "needs either secret or secret_file",
        ),
        (
            "algorithm = \"HS256\"\npublic_key_file = \"x\"",
            "needs either secret or secret_file",
        ),
        (
            "algorithm = \"RS256\"\nsecret = \"hunter2\"",
            "needs public_key_file",
        ),
        (
            "algorithm = \"HS256\"\nsecrets = \"hunter2\"",
            "did you mean auth.keys[0].secret?",
        ),
        ("algorithm = \"HS256\"\nsecret = \"hunter2\"", "7 bytes"),
        (
            "algorithm = \"HS256\"\nsecret = [\"hunter2\"]",
            "auth.keys[0].secret is something else",
        ),
    ] {
        let written = Written::file(&format!("\n[[auth.keys]]\n{key}\n"));
        check_problem(&written, expected);
        assert!(!written.problems()[0].contains("hunter2"));
    }
    check_problem(
        &Written::file("[auth]\nkeys = \"hunter2\""),
        "line 2: auth.keys is something else",
    );
    let too_many = "{ algorithm = \"HS256\", secret = \"x\" },".repeat(17);
    check_problem(
        &Written::file(&format!("auth.keys = [{too_many}]")),
        "auth.keys has 17 keys; allowed are 16",
    );
}

/// Relations between keys, reported where one of the two was written.
#[test]
fn relations_between_keys_are_checked() {
    for (text, expected) in [
        (
            "[connection]\npayload_bytes_max = 65000",
            "line 2: connection.payload_bytes_max needs 66024, but connection.message_bytes_max is 65536",
        ),
        (
            "[connection]\n\nmessage_bytes_max = 4096",
            "line 3: connection.payload_bytes_max needs 62464, but connection.message_bytes_max is 4096",
        ),
        (
            "[connection]\nmessage_bytes_max = 2000000",
            "line 2: connection.message_bytes_max needs 2000000, but connection.outbox_bytes_max is 1048576",
        ),
        (
            "[namespaces.x]\npresence_value_bytes_max = 70000",
            "line 2: namespaces.x.presence_value_bytes_max needs 70000",
        ),
        (
            "[namespaces.x]\nhistory_bytes_max = 1024",
            "line 2: connection.payload_bytes_max needs 61440, but namespaces.x.history_bytes_max is 1024",
        ),
        (
            "[namespaces.x]\ncatch_up_bytes_max = 2000000",
            "line 2: namespaces.x.catch_up_bytes_max needs 2000000",
        ),
        (
            "[namespaces.x]\npresence_grace_ms = 120001",
            "line 2: namespaces.x.presence_grace_ms needs 120001, but session.retention_ms is 120000",
        ),
        (
            "[auth]\nlifetime_max_s = 59",
            "line 2: auth.expiry_warning_s needs 60, but auth.lifetime_max_s is 59",
        ),
        (
            "[listen]\nadmin = \"127.0.0.1:7400\"",
            "line 2: listen.public and listen.admin are both 127.0.0.1:7400",
        ),
        (
            "[listen]\nadmin = \"0.0.0.0:7401\"",
            "line 2: listen.admin is 0.0.0.0:7401, where the admin key could be read on the way",
        ),
        (
            "[admin]\nkey = \"0123456789012345678901234567890\"",
            "line 2: admin.key is too short; it needs 32 bytes",
        ),
        (
            "[admin]\nkey = \"01234567890123456789012345678901\"\nkey_file = \"key\"",
            "line 3: admin.key and admin.key_file are both set",
        ),
        (
            "[shutdown]\nspread_ms = 20001",
            "line 2: shutdown.drain_accept_ms + shutdown.spread_ms needs 25001, but shutdown.limit_ms is 25000",
        ),
    ] {
        check_problem(&Written::file(text), expected);
    }
    assert!(
        Written::file("[listen]\nadmin = \"0.0.0.0:7401\"\n[admin]\nallow_plaintext = true")
            .load()
            .is_ok()
    );
    assert!(
        Written::file("[listen]\npublic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"")
            .load()
            .is_ok()
    );
}

/// Without keys: loopback with a warning, anything wider only when it is said aloud. With keys: anything,
/// without a warning.
#[test]
fn an_anonymous_server_stays_on_this_machine() {
    let load = |text: &str| Written::file(text).load();
    for loopback in [
        "127.0.0.1:1",
        "127.8.9.1:1",
        "[::1]:1",
        "[::ffff:127.0.0.1]:1",
    ] {
        let config = load(&format!("listen.public = \"{loopback}\"")).unwrap();
        assert!(config.is_anonymous());
        assert_eq!(config.warnings().len(), 1, "{loopback}");
    }
    for wide in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[2001:db8::1]:1"] {
        let problem = load(&format!("listen.public = \"{wide}\""))
            .unwrap_err()
            .to_string();
        assert!(
            problem.contains("--allow-anonymous") && problem.contains(wide),
            "{problem}"
        );
        assert_eq!(problem.lines().count(), 1, "{problem}");
        let allowed = load(&format!(
            "listen.public = \"{wide}\"\nlisten.allow_anonymous = true"
        ))
        .unwrap();
        assert!(allowed.warnings()[0].contains(wide), "{wide}");
    }
    let keys =
        "[[auth.keys]]\nalgorithm = \"HS256\"\nsecret = \"0123456789abcdef0123456789abcdef\"";
    let config = load(&format!("listen.public = \"0.0.0.0:1\"\n{keys}")).unwrap();
    assert!(!config.is_anonymous() && config.warnings().is_empty());
    assert_eq!(
        load(&format!("listen.allow_anonymous = true\n{keys}"))
            .unwrap()
            .warnings()
            .len(),
        1
    );
}

/// An unknown namespace is the default one's on an anonymous server, and nobody's on one with keys.
#[test]
fn unknown_namespaces_are_served_to_anonymous_users_alone() {
    let anonymous = Written::file("[namespaces.default]\nmembers_max = 7")
        .load()
        .unwrap();
    assert_eq!(anonymous.namespace("unknown").unwrap().members_max, 7);
    assert_eq!(
        anonymous.namespace("game").unwrap(),
        &NamespaceConfig::default()
    );
    let chat = anonymous.namespace("chat").unwrap();
    assert_eq!(chat.durability, Durability::Local);
    let keys =
        "[[auth.keys]]\nalgorithm = \"HS256\"\nsecret = \"0123456789abcdef0123456789abcdef\"";
    let authenticated = Written::file(keys).load().unwrap();
    assert_eq!(authenticated.namespace("unknown"), None);
    assert!(authenticated.namespace("game").is_some());
}

/// The effective configuration reads back as itself where it has no secret, and shows none where it has some.
#[test]
fn the_printed_configuration_hides_secrets() {
    let config = Written::file("shards = 3\n[listen]\norigins = [\"https://a.example\"]\n[auth]\nissuer = \"a \\\"b\\\"\\n\"\n[namespaces.x]\n")
        .load()
        .unwrap();
    assert_eq!(Written::file(&config.to_toml()).load().unwrap(), config);
    let secret = "0123456789abcdef0123456789abcdef";
    let text = format!(
        "[auth]\nresume_key = \"{secret}{secret}\"\nkeys = [{{ id = \"a\", algorithm = \"HS256\", secret = \"{secret}\" }}]"
    );
    let config = Written::file(&text).load().unwrap();
    for shown in [
        config.to_toml(),
        format!("{config:?}"),
        format!("{config:#?}"),
    ] {
        assert!(!shown.contains(secret), "{shown}");
        assert!(shown.contains("(redacted)"));
    }
}

/// The measurement's configuration at the root of the repository is one, and leaves no limiter at its default.
#[test]
fn the_bench_configuration_is_valid() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../bench.toml");
    let bench = Config::load(&Sources {
        file: Some(file),
        ..Sources::default()
    })
    .unwrap()
    .connection;
    let default = ConnectionConfig::default();
    assert!(
        bench.messages_per_s > default.messages_per_s
            && bench.messages_burst > default.messages_burst
    );
    assert!(bench.joins_per_s > default.joins_per_s && bench.joins_burst > default.joins_burst);
}

/// 0 shards is one per core, between 1 and 64.
#[test]
fn shards_default_to_the_cores() {
    let config = Config::default();
    assert!((1..=64).contains(&config.shard_count().get()));
    let three = Config {
        node: NodeConfig {
            shards: 3,
            ..NodeConfig::default()
        },
        ..config
    };
    assert_eq!(three.shard_count().get(), 3);
}

/// For each key, its name and this configuration with another value for it alone. A key that has one value only is left out.
pub(crate) fn changed_keys(base: &Config) -> Vec<(String, Config)> {
    let count = |config: &mut Config| {
        let sections = config.sections().into_iter();
        let counts = sections.map(|(name, section)| (name, section.fields().len()));
        counts.collect::<Vec<_>>()
    };
    let mut changed = Vec::new();
    for (index, (name, fields)) in count(&mut base.clone()).into_iter().enumerate() {
        for field in 0..fields {
            let mut config = base.clone();
            let (_, section) = config.sections().swap_remove(index);
            let key = change(&mut section.fields()[field]);
            let prefix = if name.is_empty() {
                String::new()
            } else {
                format!("{name}.")
            };
            changed.extend(key.map(|key| (format!("{prefix}{key}"), config)));
        }
    }
    for field in 0..NamespaceConfig::default().fields().len() {
        let mut config = base.clone();
        let namespace = config.namespaces.get_mut("chat").unwrap();
        let key = change(&mut namespace.fields()[field]);
        changed.extend(key.map(|key| (format!("namespaces.chat.{key}"), config)));
    }
    changed
}

/// Sets a key to another value than it has, if there is one; gives its name.
fn change(field: &mut Field<'_>) -> Option<&'static str> {
    let before = field.setting.to_toml();
    let numbers = [field.range.min.to_string(), field.range.max.to_string()];
    let texts = [
        "true",
        "false",
        "127.0.0.1:1",
        "https://other.example",
        "10.0.0.0/8",
        "Forwarded",
        "debug",
        "json",
        "other",
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "[{ algorithm = \"HS256\", secret = \"another secret of more than 32 bytes, for a test\", id = \"k\" }]",
    ];
    for text in numbers.iter().map(String::as_str).chain(texts) {
        let node = Node {
            value: Value::Bare(text.to_owned()),
            place: Place::Default,
        };
        let mut report = Report::default();
        field
            .setting
            .set(field.name, field.range, &node, &mut report);
        if report.problems.is_empty() && field.setting.to_toml() != before {
            return Some(field.name);
        }
    }
    // There is no other value, so it doesn't matter what a change would do.
    None
}
