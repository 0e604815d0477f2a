//! The server under test: started here, or running already.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, bail};
use tokio::time::Instant;

use super::cores::Cores;
use super::temporary::TemporaryPath;
use super::tree;

/// How a server is started. It must listen on a port of its own choice and log where.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    /// The binary.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
    /// Variables that are set for it.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// The flag that gives it a directory of its own, which is removed when it has ended; `None` if it keeps nothing.
    pub(crate) data_dir_flag: Option<&'static str>,
    /// Files that are put into that directory.
    pub(crate) files: Vec<GivenFile>,
    /// Its configuration, which belongs to a report; `None` if it has no file of it.
    pub(crate) config: Option<PathBuf>,
    /// Finds the address in the line that says where it listens, and none in any other.
    pub(crate) listening: fn(&str) -> Option<SocketAddr>,
    /// Where it runs; `None`: wherever the kernel likes.
    pub(crate) cores: Option<Cores>,
}

/// A file that a server finds by a setting.
#[derive(Debug, Clone)]
pub(crate) struct GivenFile {
    /// The setting that takes its path.
    pub(crate) setting: &'static str,
    /// What is in it.
    pub(crate) text: String,
}

/// A server process. One that was started here ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    process: Process,
    /// Where it keeps what outlives it, if it does.
    data_dir: Option<DataDir>,
}

/// A directory that a server makes and this process removes.
#[derive(Debug)]
struct DataDir {
    flag: &'static str,
    path: TemporaryPath,
}

#[derive(Debug)]
enum Process {
    /// Started here.
    Child { child: Child, log: Log },
    /// Somebody else's.
    Foreign { pid: u32 },
}

/// A server that hasn't said where it listens by then is given up. A start takes milliseconds.
const START_MAX: Duration = Duration::from_secs(20);

/// A server that was asked to stop and hasn't by then is given up. It may have much to write.
const STOP_MAX: Duration = Duration::from_secs(60);

impl Launch {
    /// A program that keeps nothing, has no file of settings, and logs `listening address=…`.
    pub(crate) fn new(program: impl Into<PathBuf>, arguments: &[&str]) -> Self {
        Self {
            program: program.into(),
            arguments: arguments
                .iter()
                .map(|argument| (*argument).to_owned())
                .collect(),
            environment: Vec::new(),
            data_dir_flag: None,
            files: Vec::new(),
            config: None,
            listening: listening_address,
            cores: None,
        }
    }
}

impl Server {
    /// Starts a server and waits until it listens.
    ///
    /// # Errors
    /// It can't be run, ends, or doesn't say where it listens in time.
    pub(crate) fn start(launch: &Launch) -> Result<Self> {
        Self::run(launch, launch.data_dir_flag.map(DataDir::new))
    }

    /// Asks it to stop, waits until it has, and starts another one in its place that finds what it has kept.
    ///
    /// # Errors
    /// It isn't ours, doesn't stop in time or not well; or the errors of [`Server::start`].
    pub(crate) fn restart(mut self, launch: &Launch) -> Result<Self> {
        self.stop()?;
        let data_dir = self.data_dir.take();
        Self::run(launch, data_dir)
    }

    fn run(launch: &Launch, data_dir: Option<DataDir>) -> Result<Self> {
        let mut command = match launch.cores {
            Some(cores) => cores.server_command(&launch.program),
            None => Command::new(&launch.program),
        };
        let settings = data_dir.iter().map(|dir| dir.put(&launch.files));
        let settings = settings.collect::<Result<Vec<_>>>();
        let settings = settings.context("can't write the server's files")?;
        // What is measured is what the report says, not what this program's surroundings happen to configure.
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("ROOMFUL_") {
                command.env_remove(name);
            }
        }
        command
            .args(&launch.arguments)
            .envs(launch.environment.iter().map(|(name, value)| (name, value)))
            .args(data_dir.iter().flat_map(DataDir::arguments))
            .args(settings.into_iter().flatten())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("can't start {}", launch.program.display()))?;
        let (log, listening) = Log::of(&mut child, launch.listening);
        let process = Process::Child { child, log };
        // Whatever goes wrong from here on, dropping it ends the child.
        let mut server = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            process,
            data_dir,
        };
        server.address = server
            .await_address(&listening)
            .with_context(|| launch.program.display().to_string())?;
        Ok(server)
    }

    /// A server that is running already.
    ///
    /// # Errors
    /// There is no such process.
    pub(crate) fn attach(address: SocketAddr, pid: u32) -> Result<Self> {
        if !tree::is_running(pid) {
            bail!("there is no process {pid} here");
        }
        Ok(Self {
            address,
            process: Process::Foreign { pid },
            data_dir: None,
        })
    }

    /// Where it listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        match &self.process {
            Process::Child { child, .. } => child.id(),
            Process::Foreign { pid } => *pid,
        }
    }

    /// The error of a failed run, or the better one behind it: that the server died.
    pub(crate) fn explain(&mut self, error: Error) -> Error {
        // A process that crashes closes its sockets a moment before it is gone.
        for _ in 0..20 {
            if let Some(death) = self.death() {
                return error.context(death);
            }
            thread::park_timeout(Duration::from_millis(10));
        }
        error
    }

    /// How it ended; `None` while it runs.
    fn death(&mut self) -> Option<String> {
        match &mut self.process {
            Process::Child { child, log } => {
                let status = child.try_wait().ok().flatten()?;
                Some(format!("the server died ({status}){}", log.tail()))
            }
            Process::Foreign { pid } if tree::is_running(*pid) => None,
            Process::Foreign { pid } => Some(format!("the server died (process {pid} is gone)")),
        }
    }

    fn stop(&mut self) -> Result<()> {
        let Process::Child { child, log } = &mut self.process else {
            bail!("a server that is somebody else's is not stopped");
        };
        let asked = Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status();
        let asked = asked.context("kill can't be run")?;
        let deadline = Instant::now() + STOP_MAX;
        while asked.success() && Instant::now() < deadline {
            match child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("the server stopped with {status}{}", log.tail()),
                None => thread::park_timeout(Duration::from_millis(10)),
            }
        }
        bail!("the server has not stopped within {STOP_MAX:?}")
    }

    fn await_address(&mut self, listening: &Receiver<SocketAddr>) -> Result<SocketAddr> {
        match listening.recv_timeout(START_MAX) {
            Ok(address) => Ok(address),
            Err(RecvTimeoutError::Timeout) => {
                bail!("it has not said where it listens within {START_MAX:?}")
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(self.explain(Error::msg("it closed its output")))
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Process::Child { child, .. } = &mut self.process {
            // Either fails only if it has ended already.
            child.kill().ok();
            child.wait().ok();
        }
        // Only now does nobody write into it any more.
        drop(self.data_dir.take());
    }
}

impl DataDir {
    fn new(flag: &'static str) -> Self {
        Self {
            flag,
            path: TemporaryPath::new(),
        }
    }

    fn arguments(&self) -> [OsString; 2] {
        [self.flag.into(), self.path.as_ref().into()]
    }

    /// Writes files, and the arguments by which the server finds them.
    fn put(&self, files: &[GivenFile]) -> Result<Vec<String>> {
        let mut arguments = Vec::new();
        for GivenFile { setting, text } in files {
            fs::create_dir_all(self.path.as_ref())?;
            let path = self.path.as_ref().join(setting);
            fs::write(&path, text)?;
            let setting = format!("{setting}={}", path.display());
            arguments.extend(["--set".to_owned(), setting]);
        }
        Ok(arguments)
    }
}

/// The last lines that a child printed, for the error if it dies. Reading them also keeps its pipes from filling up.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<VecDeque<String>>>);

impl Log {
    const LINES_MAX: usize = 10;

    /// Follows a child's output; the receiver gets the address it listens on.
    fn of(
        child: &mut Child,
        address: fn(&str) -> Option<SocketAddr>,
    ) -> (Self, Receiver<SocketAddr>) {
        let log = Self::default();
        let (found, listening) = channel();
        let outputs: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|output| Box::new(output) as _),
            child.stderr.take().map(|output| Box::new(output) as _),
        ];
        for output in outputs.into_iter().flatten() {
            let (log, found) = (log.clone(), found.clone());
            thread::spawn(move || log.follow(output, address, &found));
        }
        (log, listening)
    }

    fn follow(
        &self,
        output: impl Read,
        address: fn(&str) -> Option<SocketAddr>,
        found: &Sender<SocketAddr>,
    ) {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Some(address) = address(&line) {
                // Nobody waits any more once the first address was taken.
                found.send(address).ok();
            }
            self.push(line);
        }
    }

    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == Self::LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    fn tail(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines
            .iter()
            .fold(String::new(), |text, line| text + "\n  | " + line)
    }
}

/// The address in a log line with `listening` and `address`, whether the line is JSON or for people. An admin listener says the
/// same, and is not where clients go.
fn listening_address(line: &str) -> Option<SocketAddr> {
    if !line.contains("listening") || line.contains("admin") {
        return None;
    }
    let (_, behind) = line.split_once("address")?;
    let start = behind.find(|character: char| character.is_ascii_digit() || character == '[')?;
    let rest = behind.get(start..)?;
    let of_address = |character: char| character.is_ascii_hexdigit() || ".:[]".contains(character);
    let end = rest
        .find(|character| !of_address(character))
        .unwrap_or(rest.len());
    rest.get(..end)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_in_json_and_in_plain_lines() {
        let expected = Some(SocketAddr::from(([127, 0, 0, 1], 43211)));
        for line in [
            r#"{"level":"INFO","fields":{"message":"listening","address":"127.0.0.1:43211"},"target":"roomful"}"#,
            "2025-01-01T00:00:00Z  INFO roomful: listening address=127.0.0.1:43211 shards=2",
            "listening address=127.0.0.1:43211",
        ] {
            assert_eq!(listening_address(line), expected, "{line}");
        }
        let admin = r#"{"message":"listening","listener":"admin","address":"127.0.0.1:7401"}"#;
        assert_eq!(listening_address(admin), None);
        assert_eq!(listening_address("address 127.0.0.1:1"), None);
        assert_eq!(listening_address("listening soon"), None);
        assert!(listening_address("listening address=[::1]:80").is_some());
    }

    #[test]
    fn a_server_that_ends_at_once_is_named_with_its_last_line() {
        let launch = Launch::new("sh", &["-c", "echo no such option >&2; exit 3"]);
        let text = format!("{:#}", Server::start(&launch).unwrap_err());
        assert!(
            text.contains("died")
                && text.contains("exit status: 3")
                && text.contains("no such option"),
            "{text}"
        );
    }

    /// The shell takes the flag as its `$0` and the path as `$1`.
    #[test]
    fn a_servers_directory_goes_with_it() {
        let script = "mkdir \"$1\"; echo listening address=127.0.0.1:9; exec sleep 60";
        let launch = Launch {
            data_dir_flag: Some("--data-dir"),
            ..Launch::new("sh", &["-c", script])
        };
        let server = Server::start(&launch).unwrap();
        let path = server.data_dir.as_ref().unwrap().path.as_ref().to_owned();
        assert!(path.is_dir());
        drop(server);
        assert!(!path.exists());
    }

    #[test]
    fn a_server_that_dies_later_explains_the_error() {
        let launch = Launch::new(
            "sh",
            &[
                "-c",
                "echo listening address=127.0.0.1:9; sleep 0.1; exit 5",
            ],
        );
        let mut server = Server::start(&launch).unwrap();
        assert_eq!(server.address().port(), 9);
        let text = format!("{:#}", server.explain(Error::msg("a connection was reset")));
        assert!(
            text.starts_with("the server died (exit status: 5)"),
            "{text}"
        );
        assert!(text.ends_with("a connection was reset"), "{text}");
    }
}
