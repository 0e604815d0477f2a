//! Which server a scenario runs against, and how it is started.

use std::fs;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result, bail, ensure};

use super::load::Counting;
use crate::console;
use crate::peer::{LaunchArgs, Peer, PeerName};
use crate::pool::Waiting;
use crate::process::{Cores, Launch, Server, files_allowed};
use crate::report::{self, Measurement};

/// Which server, for the scenarios' commands.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TargetArgs {
    /// Which protocol to speak, and which server to start
    #[arg(long, value_parser = PeerName::parser(), default_value_t = PeerName::ROOMFUL)]
    peer: PeerName,
    /// A server that is running already, for example ws://127.0.0.1:7400, instead of starting one; needs --pid
    #[arg(long, requires = "pid", value_name = "URL")]
    url: Option<String>,
    /// Process id of the server at --url, on this machine: its processor time and memory are what is measured
    #[arg(long, requires = "url")]
    pid: Option<u32>,
    #[command(flatten)]
    launch: LaunchArgs,
    /// Run the server on the first core and this program on the second, with taskset; the server then gets one shard or
    /// thread. A server at --url stays where it is
    #[arg(long)]
    pin: bool,
    /// Where to write the result as JSON, besides printing it
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where to write it as a page, which needs nothing but itself
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// A server that can be had as often as needed.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// Start one for each measurement.
    Start { peer: PeerName, launch: Launch },
    /// Use the one that is running.
    Running {
        peer: PeerName,
        address: SocketAddr,
        pid: u32,
        waiting: Waiting,
    },
}

/// A server that is running, and how it is spoken to.
#[derive(Debug)]
pub(crate) struct Subject {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// The root of its process tree.
    pub(crate) pid: u32,
    /// Its protocol.
    pub(crate) peer: Box<dyn Peer>,
    /// For another adapter of that protocol.
    pub(crate) name: PeerName,
    /// How this program waits for it.
    pub(crate) waiting: Waiting,
    /// What is counted besides; nothing unless the scenario changes it.
    pub(crate) counting: Counting,
}

/// A server that was started, and ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Restartable<'a> {
    target: &'a Target,
    peer: PeerName,
    launch: &'a Launch,
    server: Server,
}

impl Restartable<'_> {
    /// How it is spoken to, as long as it isn't started again.
    pub(crate) fn subject(&self) -> Subject {
        self.target.subject(self.peer, &self.server)
    }

    /// Stops it and starts another one with what it has kept.
    ///
    /// # Errors
    /// Either doesn't work.
    pub(crate) fn restart(mut self) -> Result<Self> {
        self.server = self.server.restart(self.launch)?;
        Ok(self)
    }

    /// The error of a failed run, or the better one behind it: that the server died.
    pub(crate) fn explain(&mut self, error: Error) -> Error {
        self.server.explain(error)
    }
}

impl TargetArgs {
    /// The server these arguments name. Pins this process if asked to.
    ///
    /// # Errors
    /// No such server, or it can't be pinned.
    pub(crate) fn target(&self) -> Result<Target> {
        let cores = self
            .pin
            .then(Cores::pin_tester)
            .transpose()
            .context("can't pin")?;
        let (Some(url), Some(pid)) = (&self.url, self.pid) else {
            return Target::start(self.peer, &self.launch, cores);
        };
        Ok(Target::Running {
            peer: self.peer,
            address: address(url)?,
            pid,
            waiting: waiting(cores),
        })
    }

    /// Servers of several peers, each started when it is measured. Pins this process if asked to.
    ///
    /// # Errors
    /// One server is named, or it can't be started or pinned.
    pub(crate) fn several<const N: usize>(&self, peers: [PeerName; N]) -> Result<Vec<Target>> {
        ensure!(
            self.url.is_none() && self.peer == PeerName::ROOMFUL,
            "this scenario starts the servers that it compares, so it takes neither --url nor --peer"
        );
        let cores = self.pin.then(Cores::pin_tester).transpose();
        let cores = cores.context("can't pin")?;
        let start = |peer| Target::start(peer, &self.launch, cores);
        peers.into_iter().map(start).collect()
    }
}

impl TargetArgs {
    /// Measures the server that they name, once, and reports what was found.
    ///
    /// # Errors
    /// No such server; what the scenario returned; or the result can't be written.
    pub(crate) fn run(&self, scenario: impl FnOnce(Subject) -> Result<Measurement>) -> Result<()> {
        let target = self.target()?;
        let measurement = target.measure(scenario)?;
        self.report(&target, &measurement)
    }

    /// Whether a scenario that speaks Roomful's own frames can be measured.
    ///
    /// # Errors
    /// Another peer is named.
    pub(crate) fn need_roomful(&self, scenario: &str) -> Result<()> {
        if self.peer != PeerName::ROOMFUL {
            bail!(
                "{scenario} speaks of sessions and presence in Roomful's own frames, which {} doesn't know",
                self.peer.adapter().name()
            );
        }
        Ok(())
    }

    /// Which peer they name.
    pub(crate) const fn peer(&self) -> PeerName {
        self.peer
    }

    /// Prints a result, with the server it is of, and writes the files that were asked for.
    ///
    /// # Errors
    /// A file can't be written.
    pub(crate) fn report(&self, target: &Target, measurement: &Measurement) -> Result<()> {
        let mut server = vec![format!("server: {}", target.description())];
        server.extend(
            target
                .settings()?
                .iter()
                .map(|setting| format!("  {setting}")),
        );
        let lines = measurement.lines();
        let all = server.iter().chain(&lines);
        all.for_each(|line| console::result(line));
        if let Some(file) = &self.json {
            report::write_json(file, measurement)?;
        }
        if let Some(file) = &self.html {
            report::html::page_of(measurement, server).write(file)?;
        }
        Ok(())
    }
}

impl Target {
    /// A server that is started for each measurement.
    ///
    /// # Errors
    /// Something that starting it needs is not there.
    pub(crate) fn start(peer: PeerName, args: &LaunchArgs, cores: Option<Cores>) -> Result<Self> {
        let workers = args.workers(cores.is_some());
        let mut launch = peer.adapter().launch(args, workers)?;
        launch.cores = cores;
        Ok(Self::Start { peer, launch })
    }

    /// Starts the server, to be started again with what it keeps.
    ///
    /// # Errors
    /// It can't be started, or runs already.
    pub(crate) fn run(&self) -> Result<Restartable<'_>> {
        let Self::Start { peer, launch } = self else {
            bail!("a server at --url is not started again");
        };
        let server = Server::start(launch)?;
        Ok(Restartable {
            target: self,
            peer: *peer,
            launch,
            server,
        })
    }

    /// Measures the server: starts it if it has to be, and ends it afterwards.
    ///
    /// # Errors
    /// It can't be started, isn't running, or died meanwhile; or what the scenario returned.
    pub(crate) fn measure<T>(&self, scenario: impl FnOnce(Subject) -> Result<T>) -> Result<T> {
        let (peer, mut server) = match self {
            Self::Start { peer, launch } => (*peer, Server::start(launch)?),
            Self::Running {
                peer, address, pid, ..
            } => (*peer, Server::attach(*address, *pid)?),
        };
        scenario(self.subject(peer, &server)).map_err(|error| server.explain(error))
    }

    fn subject(&self, peer: PeerName, server: &Server) -> Subject {
        Subject {
            address: server.address(),
            pid: server.pid(),
            peer: peer.adapter(),
            name: peer,
            waiting: self.waiting(),
            counting: Counting::Nothing,
        }
    }

    /// The lines of its configuration without comments: what the limiters were set to belongs to a figure.
    ///
    /// # Errors
    /// It can't be read any more.
    pub(crate) fn settings(&self) -> Result<Vec<String>> {
        let config = match self {
            Self::Start { launch, .. } => launch.config.as_deref(),
            Self::Running { .. } => None,
        };
        let Some(config) = config else {
            return Ok(Vec::new());
        };
        let text = fs::read_to_string(config)
            .with_context(|| format!("the server's configuration {}", config.display()))?;
        let bare = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        Ok(bare.map(str::to_owned).collect())
    }

    fn waiting(&self) -> Waiting {
        match self {
            Self::Start { launch, .. } => waiting(launch.cores),
            Self::Running { waiting, .. } => *waiting,
        }
    }

    /// How the server is run, for the report.
    pub(crate) fn description(&self) -> String {
        match self {
            Self::Start { launch, .. } => {
                let placed = launch
                    .cores
                    .map_or_else(String::new, |cores| format!(", on core {}", cores.server));
                // Where files lie is one machine's matter.
                let bare = |path: &str| {
                    let name = Path::new(path).file_name().unwrap_or_default();
                    name.to_string_lossy().into_owned()
                };
                let words = launch.arguments.iter().map(|word| {
                    if word.starts_with('/') {
                        bare(word)
                    } else {
                        word.clone()
                    }
                });
                let name = bare(&launch.program.to_string_lossy());
                let words: Vec<String> = [name].into_iter().chain(words).collect();
                format!("{}{placed}", words.join(" "))
            }
            Self::Running { address, pid, .. } => format!("process {pid} at {address}"),
        }
    }
}

/// Says so before connections fail half-way: this process and the server need a file for each.
pub(crate) fn check_files(connections: usize) -> Result<()> {
    const OWN: u64 = 100;
    let needed = connections as u64 + OWN;
    match files_allowed() {
        Some(allowed) if allowed < needed => bail!(
            "{connections} connections need {needed} open files and {allowed} are allowed: \
             raise it with ulimit -n {needed}, or ask for fewer with --connections"
        ),
        Some(_) => Ok(()),
        None => {
            console::progress(
                "the limit of open files can't be read here; it must allow one for each connection",
            );
            Ok(())
        }
    }
}

/// Spinning takes a core, so only where this program was given one.
const fn waiting(cores: Option<Cores>) -> Waiting {
    if cores.is_some() {
        Waiting::SPIN
    } else {
        Waiting::Sleep
    }
}

fn address(url: &str) -> Result<SocketAddr> {
    let Some(rest) = url.strip_prefix("ws://") else {
        bail!("{url} is no ws:// URL; other schemes are not measured")
    };
    let authority = rest.split(['/', '?']).next().unwrap_or(rest);
    let authority = if authority.contains(':') {
        authority.to_owned()
    } else {
        format!("{authority}:80")
    };
    let found = authority
        .to_socket_addrs()
        .with_context(|| format!("{authority} is no address"))?
        .next();
    found.with_context(|| format!("{authority} has no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_gives_the_address_to_connect_to() {
        assert_eq!(
            address("ws://127.0.0.1:7400/v1/ws").unwrap(),
            SocketAddr::from(([127, 0, 0, 1], 7400))
        );
        assert_eq!(address("ws://127.0.0.1").unwrap().port(), 80);
        assert!(address("wss://127.0.0.1:7400").is_err());
        assert!(address("ws://127.0.0.1:port").is_err());
    }

    #[test]
    fn too_many_connections_are_refused_before_they_are_tried() {
        assert!(check_files(1).is_ok());
        let text = check_files(usize::MAX >> 1).unwrap_err().to_string();
        assert!(text.contains("ulimit -n"), "{text}");
    }
}
