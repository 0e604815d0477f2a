//! The server's binary as a process: started with arguments, watched line by line, ended by signals.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::wait::{PATIENCE, until, within};

/// Where the server's binary is: `ROOMFUL_BIN`, or beside the tests in the target directory.
///
/// # Panics
/// It is not there.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "tests have no config")]
pub fn binary() -> PathBuf {
    let given = std::env::var("ROOMFUL_BIN").map(PathBuf::from);
    let path = given.unwrap_or_else(|_| beside_tests().join("roomful"));
    assert!(
        path.is_file(),
        "{} is not there; `cargo build -p roomful-server` makes it",
        path.display()
    );
    path
}

/// Where an example of the server is: beside the tests in the target directory.
///
/// # Panics
/// It is not there.
#[must_use]
pub fn example(name: &str) -> PathBuf {
    let path = beside_tests().join("examples").join(name);
    assert!(
        path.is_file(),
        "{} is not there; `cargo build -p roomful-server --examples` makes it",
        path.display()
    );
    path
}

/// `target/debug`, from `target/debug/deps/a-test` or `target/debug/with-server`.
fn beside_tests() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let dir = own.parent().unwrap();
    if dir.ends_with("deps") {
        dir.parent().unwrap().to_owned()
    } else {
        dir.to_owned()
    }
}

/// A process of the server's binary. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: JoinSet<()>,
}

impl Process {
    /// Starts the binary in a directory, with nothing of the environment but a path and what is given.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start(dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start_program(&binary(), dir, arguments, environment)
    }

    /// The same with another program.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start_program(
        program: &Path,
        dir: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(dir)
            .env_clear()
            .envs(environment.iter().copied());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let mut readers = JoinSet::new();
        readers.spawn(keep_lines(child.stdout.take().unwrap(), Arc::clone(&lines)));
        readers.spawn(keep_lines(child.stderr.take().unwrap(), Arc::clone(&lines)));
        Self {
            child,
            lines,
            readers,
        }
    }

    /// Starts the binary, and waits until it has ended by itself.
    pub async fn run(dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Ended {
        Self::start(dir, arguments, environment).ended().await
    }

    /// Everything printed so far, to either stream.
    ///
    /// # Panics
    /// Never: nobody panics while holding the lock.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// The first line that a function makes something of.
    ///
    /// # Panics
    /// None comes in time, or the process ends before.
    pub async fn line<T>(&mut self, what: &str, mut read: impl FnMut(&str) -> Option<T>) -> T {
        let mut found = None;
        for _ in 0..2 {
            until(what, PATIENCE, || {
                found = self.lines().iter().find_map(|line| read(line));
                let ended = self.child.try_wait().unwrap().is_some();
                async_ready(found.is_some() || ended)
            })
            .await;
            if found.is_some() {
                break;
            }
            // It has ended; its last lines may still be on their way.
            while self.readers.join_next().await.is_some() {}
        }
        found.unwrap_or_else(|| {
            panic!(
                "{what}: the process ended before, with\n{}",
                self.lines().join("\n")
            )
        })
    }

    /// The process id.
    ///
    /// # Panics
    /// It has ended.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Sends a signal, named as `kill` names it.
    ///
    /// # Panics
    /// It can't be sent.
    pub async fn signal(&self, name: &str) {
        let line = format!("kill -{name} {}", self.id());
        assert!(
            Command::new("sh")
                .args(["-c", &line])
                .status()
                .await
                .unwrap()
                .success(),
            "{line}"
        );
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// It doesn't come in time.
    pub async fn ended(mut self) -> Ended {
        let status = within("the end of the process", self.child.wait())
            .await
            .unwrap();
        while self.readers.join_next().await.is_some() {}
        Ended {
            status,
            output: self.lines().join("\n"),
        }
    }

    /// Kills it, without a chance to say anything, and waits until it is gone.
    ///
    /// # Panics
    /// It can't be killed.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines = self.lines();
            let last = lines.len().saturating_sub(40);
            eprintln!("the server's last lines:\n{}", lines[last..].join("\n"));
        }
    }
}

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    /// With which code or signal.
    pub status: ExitStatus,
    /// All that it printed.
    pub output: String,
}

async fn keep_lines(stream: impl AsyncRead + Unpin, lines: Arc<Mutex<Vec<String>>>) {
    let mut stream = BufReader::new(stream).lines();
    while let Ok(Some(line)) = stream.next_line().await {
        lines.lock().unwrap().push(line);
    }
}

fn async_ready<T>(value: T) -> std::future::Ready<T> {
    std::future::ready(value)
}
