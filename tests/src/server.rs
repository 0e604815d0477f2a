//! A real server, in a directory and on a port of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::http;
use crate::metrics::Metrics;
use crate::process::{Ended, Process, binary};
use crate::wait::{PATIENCE, until};

/// Limits that a test with a rate of its own must not meet: to be put before any other section.
pub const UNLIMITED: &str = "[connection]\nmessages_per_s = 1000000\nmessages_burst = 1000000\njoins_per_s = 1000000\njoins_burst = 1000000\nbytes_per_s = 1000000000\nbytes_burst = 1000000000\npages_per_s = 1000000\npages_burst = 1000000\n";

/// Settings for each namespace of the shipped configuration, as TOML between two braces: to be put behind any other section.
pub fn each_namespace(settings: impl Fn(&str) -> String) -> String {
    let names = ["chat", "default", "doc", "game", "auction"];
    let lines = names.map(|name| format!("{name} = {{ {} }}\n", settings(name)));
    "[namespaces]\n".to_owned() + &lines.concat()
}

/// A running server. Dropping it kills it and removes its directory.
#[derive(Debug)]
pub struct Server {
    process: Option<Process>,
    address: SocketAddr,
    dir: Directory,
    config: String,
}

impl Server {
    /// Starts one with the default configuration, and two shards.
    pub async fn start() -> Self {
        Self::with_config("").await
    }

    /// Starts one with a configuration file of this text.
    ///
    /// # Panics
    /// It doesn't come to listen.
    pub async fn with_config(config: &str) -> Self {
        Self::with_files(config, &[]).await
    }

    /// Starts one with a configuration file of this text, and other files beside it.
    ///
    /// # Panics
    /// It doesn't come to listen.
    pub async fn with_files(config: &str, files: &[(&str, &str)]) -> Self {
        let dir = Directory::new();
        for (name, text) in files {
            std::fs::write(dir.0.join(name), text).unwrap();
        }
        Self::start_in(dir, &[], config).await
    }

    /// Starts one by another program, which is given the server's command line behind these words. The next start is the
    /// server's own.
    ///
    /// # Panics
    /// It doesn't come to listen.
    pub async fn through(words: &[&str], config: &str) -> Self {
        Self::start_in(Directory::new(), words, config).await
    }

    async fn start_in(dir: Directory, words: &[&str], config: &str) -> Self {
        let anywhere = "127.0.0.1:0".parse().unwrap();
        let (process, address) = listen(&dir.0, words, config, anywhere).await;
        Self {
            process: Some(process),
            address,
            dir,
            config: config.to_owned(),
        }
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the admin listener listens.
    ///
    /// # Panics
    /// It is down, or its admin listener doesn't come to listen.
    pub async fn admin_address(&self) -> SocketAddr {
        let address = || {
            let lines = self.log();
            lines.iter().find_map(|line| address_of("admin", line))
        };
        until("the admin listener listens", PATIENCE, async || {
            address().is_some()
        })
        .await;
        address().unwrap()
    }

    /// The page's address, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The WebSocket's address.
    #[must_use]
    pub fn websocket_url(&self) -> String {
        format!("ws://{}/v1/ws", self.address)
    }

    /// Its working directory, with `roomful.toml`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir.0
    }

    /// What it has logged, line by line.
    ///
    /// # Panics
    /// It is down.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.process().lines()
    }

    /// What its `/metrics` says now.
    ///
    /// # Panics
    /// It doesn't answer.
    pub async fn metrics(&self) -> Metrics {
        let address = if self.config.contains("tls_certificate_file") {
            self.admin_address().await
        } else {
            self.address
        };
        let response = http::get(address, "/metrics", &[]).await;
        assert_eq!(response.status, 200, "{}", response.text());
        Metrics::parse(&response.text())
    }

    /// Asks it to end, as an operator does, and waits until it has.
    ///
    /// # Panics
    /// It is down, or doesn't end in time.
    pub async fn terminate(&mut self) -> Ended {
        self.process().signal("TERM").await;
        self.ended().await
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    /// It is down already, or doesn't end in time.
    pub async fn ended(&mut self) -> Ended {
        self.process.take().unwrap().ended().await
    }

    /// Lets go of the running process, so that another one can be started in its place while it says goodbye.
    ///
    /// # Panics
    /// It is down.
    #[must_use]
    pub fn let_go(&mut self) -> Process {
        self.process.take().unwrap()
    }

    /// Has it read its configuration again, and waits until that outcome is counted.
    ///
    /// # Panics
    /// It is down, or the reload ends in another way.
    pub async fn reload(&self, outcome: &str) {
        let count = async || {
            let metrics = self.metrics().await;
            metrics.labelled("roomful_reloads_total", "outcome", outcome)
        };
        let before = count().await;
        self.process().signal("HUP").await;
        until(&format!("a reload is {outcome}"), PATIENCE, async || {
            count().await > before
        })
        .await;
    }

    /// Kills it as a power failure does.
    ///
    /// # Panics
    /// It is down.
    pub async fn kill(&mut self) {
        self.process.take().unwrap().kill().await;
    }

    /// Starts it again on the same port and directory.
    ///
    /// # Panics
    /// It is still running, or doesn't come to listen.
    pub async fn start_again(&mut self) {
        assert!(self.process.is_none(), "the server is still running");
        let (process, address) = listen(&self.dir.0, &[], &self.config, self.address).await;
        assert_eq!(address, self.address);
        self.process = Some(process);
    }

    /// The running process.
    ///
    /// # Panics
    /// It is down.
    #[must_use]
    pub fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }
}

/// The address in the log line of the public listener: `"address":"127.0.0.1:7400"` beside the message `listening`.
#[must_use]
pub fn listening_address(line: &str) -> Option<SocketAddr> {
    address_of("public", line)
}

fn address_of(listener: &str, line: &str) -> Option<SocketAddr> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = line.get("fields").unwrap_or(&line);
    if fields.get("message")? != "listening" || fields.get("listener")? != listener {
        return None;
    }
    fields.get("address")?.as_str()?.parse().ok()
}

/// Every test runs with two shards, so that crossing one is never the rare path.
async fn listen(
    dir: &Path,
    words: &[&str],
    config: &str,
    address: SocketAddr,
) -> (Process, SocketAddr) {
    std::fs::write(dir.join("roomful.toml"), config).unwrap();
    let address = address.to_string();
    let mut environment = vec![
        ("ROOMFUL_SHARDS", "2"),
        ("ROOMFUL_LISTEN__PUBLIC", &address),
        ("ROOMFUL_LISTEN__ADMIN", "127.0.0.1:0"),
    ];
    // The machine's own disk may be fuller than a server should let it become.
    if !config.contains("headroom_percent") {
        environment.push(("ROOMFUL_STORAGE__HEADROOM_PERCENT", "0"));
    }
    // Only the tests of the drain itself have the time for it.
    if !config.contains("spread_ms") {
        environment.push(("ROOMFUL_SHUTDOWN__DRAIN_ACCEPT_MS", "0"));
        environment.push(("ROOMFUL_SHUTDOWN__SPREAD_MS", "0"));
    }
    let server = binary();
    let line = [words, &[server.to_str().unwrap(), "serve"]].concat();
    let mut process = Process::start_program(Path::new(line[0]), dir, &line[1..], &environment);
    let address = process.line("the server listens", listening_address).await;
    (process, address)
}

/// A directory that goes away with its owner.
#[derive(Debug)]
pub struct Directory(pub PathBuf);

impl Directory {
    /// A new, empty one.
    ///
    /// # Panics
    /// It can't be made.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "a default with a side effect surprises"
    )]
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("roomful-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Directory {
    /// Leaves it where it is.
    pub fn keep(mut self) {
        self.0 = PathBuf::new();
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left behind in the temporary directory harms nobody.
        drop(std::fs::remove_dir_all(&self.0));
    }
}
