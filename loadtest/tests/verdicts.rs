//! The command's verdicts, seen from outside: a result with exit code 0 when everything arrived, and otherwise none, with exit code 1 and
//! what went wrong.
//!
//! Runs against the plain server, and against a small one in this file that misbehaves as told.

#![expect(clippy::unwrap_used, reason = "a test that can't be set up has failed")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{self, Child, ChildStderr, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

const PROGRAM: &str = env!("CARGO_BIN_EXE_roomful-loadtest");

/// How many members the rooms of these tests have.
const MEMBERS: usize = 8;

/// What a misbehaving server does with the third publish.
#[derive(Debug, Clone, Copy)]
enum Misdeed {
    /// One member doesn't get it.
    Lose,
    /// One member gets it twice.
    Double,
    /// One member gets it after the fourth, which comes from the same publisher.
    Delay,
    /// One member gets other bytes.
    Damage,
    /// Everybody is disconnected.
    Close,
}

#[test]
fn each_scenario_has_a_result_when_everything_arrives() {
    let json = std::env::temp_dir().join(format!("roomful-loadtest-{}.json", process::id()));
    for (scenario, arguments, figure) in [
        (
            "fanout",
            &[
                "--peer=plain",
                "--members=20",
                "--in-flight=4",
                "--duration-s=0.3",
            ][..],
            "server CPU per delivery",
        ),
        (
            "fanout",
            &[
                "--peer=plain",
                "--members=20",
                "--rate=200",
                "--duration-s=0.3",
            ],
            "publish to own delivery, p99",
        ),
        (
            "rooms",
            &[
                "--peer=floor",
                "--rooms=20",
                "--members=4",
                "--in-flight=8",
                "--duration-s=0.3",
            ],
            "server CPU per delivery",
        ),
        (
            "echo",
            &["--peer=floor", "--rooms=10", "--duration-s=0.3"],
            "round trip, p99",
        ),
        (
            "slow",
            &[
                "--peer=floor",
                "--members=20",
                "--pairs=1",
                "--warmup-s=0.1",
                "--duration-s=0.3",
            ],
            "p99 with stalled readers / without",
        ),
        (
            "idle",
            &["--peer=plain", "--connections=50", "--settle-s=0.1"],
            "server resident bytes per connection",
        ),
        (
            "idle",
            &[
                "--peer=floor",
                "--connections=60",
                "--processes=2",
                "--settle-s=0.1",
            ],
            "server resident bytes per connection",
        ),
        (
            "connect",
            &["--peer=plain", "--connections=50"],
            "server CPU per connect and join",
        ),
    ] {
        let mut command = Command::new(PROGRAM);
        command
            .arg(scenario)
            .args(arguments)
            .arg("--json")
            .arg(&json);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains(figure),
            "{output:?}"
        );
        let written: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        assert_eq!(written["scenario"], scenario);
        assert!(written["figures"].to_string().contains(figure), "{written}");
    }
    std::fs::remove_file(json).unwrap();
}

#[test]
fn a_misdeed_of_the_server_ends_the_run_by_its_name() {
    for (misdeed, name) in [
        (Misdeed::Lose, "lost"),
        (Misdeed::Double, "doubled"),
        (Misdeed::Delay, "out of order"),
        (Misdeed::Damage, "damaged"),
        (Misdeed::Close, "closed the connection"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        let server = thread::spawn(move || misbehave(&listener, misdeed));
        let output = fanout(&url, process::id(), 1)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert_failed(&output, name);
        server.join().unwrap();
    }
}

/// The server is killed while a run is under way: one that takes a minute if nobody stops it.
#[test]
fn a_server_that_dies_ends_the_run_by_its_name() {
    let (mut server, address, log) = plain_server();
    let before = open_files(server.id());
    let mut command = fanout(&format!("ws://{address}"), server.id(), 60);
    let tester = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_files(server.id(), before + MEMBERS);
    server.kill().unwrap();
    server.wait().unwrap();
    drop(log);
    assert_failed(&tester.wait_with_output().unwrap(), "the server died");
}

#[test]
fn what_cannot_be_run_is_one_clear_line() {
    for (arguments, reason) in [
        (
            &["fanout", "--server=/nowhere/roomful"][..],
            "there is no server at /nowhere/roomful",
        ),
        (
            &["mixed", "--server=/bin/false", "--config=../bench.toml"],
            "the server died (exit status: 1)",
        ),
        (
            &["echo", "--url=ws://127.0.0.1:9", "--pid=1"],
            "can't connect to 127.0.0.1:9",
        ),
        (
            &["storm", "--url=ws://127.0.0.1:9", "--pid=999999999"],
            "there is no process 999999999 here",
        ),
        (
            &["fanout", "--peer=plain", "--members=4", "--in-flight=5"],
            "in flight may be 1 to 4",
        ),
        (
            &["fanout", "--peer=plain", "--payload-bytes=4"],
            "a payload may have 8 to",
        ),
        (
            &["idle", "--peer=plain", "--connections=100000000"],
            "ulimit -n",
        ),
        (&["connect", "--peer=plain", "--connections=0"], "may be 0"),
        (
            &["rooms", "--peer=floor", "--rooms=4", "--in-flight=5"],
            "in flight may be 1 to 4",
        ),
        (
            &["rooms", "--peer=plain", "--rooms=4", "--in-flight=5"],
            "in flight may be 1 to 4, the number of rooms",
        ),
    ] {
        let output = Command::new(PROGRAM).args(arguments).output().unwrap();
        assert_failed(&output, reason);
        assert_eq!(
            String::from_utf8_lossy(&output.stderr).lines().count(),
            1,
            "{output:?}"
        );
    }
}

/// Somebody else's server stands where ours should.
#[test]
fn a_port_that_belongs_to_something_else_ends_the_run_by_its_name() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let stranger = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 404 Not Found\r\n\r\n").unwrap();
        // Until the tester hangs up.
        stream.read_to_end(&mut Vec::new()).ok();
    });
    let mut command = Command::new(PROGRAM);
    command.args(["recover", &format!("--url={url}")]);
    command.arg(format!("--pid={}", process::id()));
    assert_failed(&command.output().unwrap(), "404 Not Found");
    stranger.join().unwrap();
}

/// Every option of every scenario says what it is in, and what it is if nobody says so.
#[test]
fn help_gives_units_and_defaults() {
    let scenarios = [
        "fanout", "rooms", "echo", "slow", "presence", "storm", "recover", "mixed", "idle",
        "connect",
    ];
    for scenario in scenarios {
        let mut command = Command::new(PROGRAM);
        let output = command.args([scenario, "--help"]).output().unwrap();
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && help.contains("--json"), "{help}");
        let (_, options) = help.split_once("Options:").unwrap();
        // One that takes a number; files and addresses have no default.
        for option in options
            .split("\n\n")
            .flat_map(|part| part.split("\n      --"))
        {
            let numeric = option.contains("_S>") || option.contains("_MAX>");
            assert!(
                !numeric || option.contains("[default"),
                "{scenario}: {option}"
            );
            assert!(
                !option.contains("_S>") || option.contains("econds"),
                "{scenario}: {option}"
            );
        }
    }
}

/// A failed run has a name for what went wrong, and nothing that could be taken for a result.
#[track_caller]
fn assert_failed(output: &Output, name: &str) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains(name),
        "{name}: {output:?}"
    );
    assert!(output.stdout.is_empty(), "{output:?}");
}

/// A paced run: what is lost shows with the next publish, not only when nothing comes any more.
fn fanout(url: &str, pid: u32, seconds: u32) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["fanout", "--peer=plain", "--rate=100", "--warmup-s=0"]);
    command.args([
        format!("--members={MEMBERS}"),
        format!("--url={url}"),
        format!("--pid={pid}"),
        format!("--duration-s={seconds}"),
    ]);
    command
}

fn plain_server() -> (Child, String, BufReader<ChildStderr>) {
    let mut server = Command::new(PROGRAM)
        .args(["plain-server", "--threads=1"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(server.stderr.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    let address = line.trim().rsplit('=').next().unwrap().to_owned();
    (server, address, log)
}

/// Until a process has so many files open: a server with a connection for each member, which is when publishing begins.
fn wait_for_files(pid: u32, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while open_files(pid) < count {
        assert!(Instant::now() < deadline, "nobody has connected");
        thread::yield_now();
    }
}

fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

/// Speaks the plain server's protocol until the tester hangs up or it has closed itself.
fn misbehave(listener: &TcpListener, misdeed: Misdeed) {
    let mut members: Vec<TcpStream> = (0..MEMBERS).map(|_| welcome(listener)).collect();
    let mut held = None;
    for number in 1.. {
        // Publishers take turns; in a room smaller than their usual number everybody is one.
        let Some(payload) = publish(&mut members[(number - 1) % MEMBERS]) else {
            return;
        };
        let frame = [&[0x82, 64], payload.as_slice()].concat();
        let (last, others) = members.split_last_mut().unwrap();
        // The tester hangs up as soon as it has seen enough, which may be in the middle of the next publish.
        if others
            .iter_mut()
            .any(|member| member.write_all(&frame).is_err())
        {
            return;
        }
        // The third publish, and the next of the same publisher.
        let outcome = match (misdeed, number) {
            (Misdeed::Lose, 3) => Ok(()),
            (Misdeed::Double, 3) => last.write_all(&[frame.clone(), frame].concat()),
            (Misdeed::Delay, 3) => {
                held = Some(frame);
                Ok(())
            }
            (Misdeed::Delay, 11) => last.write_all(&[frame, held.take().unwrap()].concat()),
            (Misdeed::Damage, 3) => last.write_all(&[&frame[..60], &[0; 6]].concat()),
            (Misdeed::Close, 3) => return,
            _ => last.write_all(&frame),
        };
        if outcome.is_err() {
            return;
        }
    }
}

/// Upgrades a connection. Every key that the tester sends is the one of RFC 6455 §1.3.
fn welcome(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        request.extend(byte);
    }
    let response = "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    stream
        .write_all(&[response.as_bytes(), &[0x82, 0]].concat())
        .unwrap();
    stream
}

/// Reads a masked frame of 64 bytes; none if the tester has hung up.
fn publish(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut frame = [0; 70];
    stream.read_exact(&mut frame).ok()?;
    let (header, payload) = frame.split_at(6);
    Some(
        payload
            .iter()
            .zip(header[2..].iter().cycle())
            .map(|(byte, mask)| byte ^ mask)
            .collect(),
    )
}
