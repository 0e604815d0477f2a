//! The command line: what a person reads when something is wrong, and how the server says goodbye.
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::time::Duration;

use roomful_protocol::error::CloseCode;
use roomful_protocol::frame::ServerFrame;
use roomful_tests::process::{Ended, Process};
use roomful_tests::server::{Directory, listening_address};
use roomful_tests::tokens::{self, AUDIENCE, KEY};
use roomful_tests::{Connect, RawClient, Server};
use tokio::time::Instant;

/// A port that another process has is named, with what to do, in one line.
#[tokio::test]
async fn a_port_in_use_is_one_clear_line() {
    let server = Server::start().await;
    let address = server.address().to_string();
    let second = run(
        &["serve"],
        "",
        &[("ROOMFUL_LISTEN__PUBLIC", &address), ADMIN],
    )
    .await;
    complains(&second, &[&address, "in use"]);
    assert_eq!(
        second
            .output
            .lines()
            .filter(|line| line.contains("in use"))
            .count(),
        1,
        "{}",
        second.output
    );
}

/// A flag that there isn't is named, and the exit code is not 0.
#[tokio::test]
async fn a_bad_flag_is_named() {
    complains(&run(&["serve", "--prot", "1"], "", &[]).await, &["--prot"]);
    complains(&run(&["sevre"], "", &[]).await, &["sevre"]);
}

/// Everything that is wrong in file, environment and flags is reported at once, each at its place, and nothing is bound.
#[tokio::test]
async fn all_problems_of_a_configuration_are_reported_together() {
    let file = "shards = 4\nshrads = 4\n\n[listen]\npublic = \"nowhere\"\n\n[connection]\nheartbeat_ms = \"soon\"\nrooms_max = 0\n";
    for command in ["serve", "check-config"] {
        let ended = run(
            &[command],
            file,
            &[("ROOMFUL_SESSION__RETENTION_MS", "long")],
        )
        .await;
        complains(
            &ended,
            &[
                "roomful.toml:2",
                "shrads",
                "roomful.toml:5",
                "listen.public",
                "roomful.toml:8",
                "heartbeat_ms",
                "roomful.toml:9",
                "rooms_max",
                "ROOMFUL_SESSION__RETENTION_MS",
            ],
        );
    }
}

/// A file that is not TOML is named with the line.
#[tokio::test]
async fn a_file_that_is_not_toml_is_named_with_its_line() {
    complains(
        &run(&["check-config"], "shards = 2\n[listen\n", &[]).await,
        &["roomful.toml:2"],
    );
}

/// Without keys the server stays on loopback; whoever wants it open is told the flag.
#[tokio::test]
async fn a_wide_address_without_keys_needs_the_flag() {
    let wide = ("ROOMFUL_LISTEN__PUBLIC", "0.0.0.0:0");
    complains(
        &run(&["serve"], "", &[wide, ADMIN]).await,
        &["0.0.0.0:0", "--allow-anonymous"],
    );
    let dir = Directory::new();
    let mut open = Process::start(&dir.0, &["serve", "--allow-anonymous"], &[wide, ADMIN]);
    open.line("the server listens", listening_address).await;
    open.kill().await;
}

/// What `print-config` prints is a configuration that gives the same again, and every key has its words.
#[tokio::test]
async fn print_config_reads_back() {
    let defaults = run(&["print-config"], "", &[]).await;
    assert!(
        defaults.status.success() && defaults.output.contains("# "),
        "{}",
        defaults.output
    );
    let file = "shards = 3\n[namespaces.chess]\nmembers_max = 2\n";
    let first = run(&["print-config", "--effective"], file, &[]).await;
    assert!(first.status.success(), "{}", first.output);
    assert!(
        first.output.contains("shards = 3") && first.output.contains("members_max = 2"),
        "{}",
        first.output
    );
    for printed in [&defaults, &first] {
        let checked = run(&["check-config"], &printed.output, &[]).await;
        assert!(checked.status.success(), "{}", checked.output);
        let second = run(&["print-config", "--effective"], &printed.output, &[]).await;
        assert_eq!(second.output, printed.output);
    }
}

/// Ctrl-C and SIGTERM alike: who is connected hears `goaway` and 1012, who connects is turned away, and the process ends within its limit.
#[tokio::test]
async fn a_signal_says_goodbye_and_ends_in_time() {
    for signal in ["INT", "TERM"] {
        let mut server = Server::with_config("[shutdown]\nlimit_ms = 5000\n").await;
        let mut client = RawClient::connect(&server).await;
        let welcome = Connect::to(&server).open().await.unwrap().hello().await;
        client.join("chat:goodbye").await;
        let start = Instant::now();
        server.process().signal(signal).await;
        let goaway = client
            .next_that(|frame| {
                if let ServerFrame::Goaway(goaway) = frame {
                    Some(goaway)
                } else {
                    None
                }
            })
            .await;
        assert!(goaway.reconnect_after_ms < 1_000, "{goaway:?}");
        assert!(
            !goaway.resume.is_empty() && goaway.resume != welcome.resume,
            "{goaway:?}"
        );
        assert_eq!(client.closed().await.code, Some(CloseCode::Restart.code()));
        let ended = server.ended().await;
        assert!(ended.status.success(), "{signal}: {:?}", ended.status);
        assert!(
            start.elapsed() < Duration::from_millis(5_500),
            "{signal}: {:?}",
            start.elapsed()
        );
    }
}

/// A client that doesn't answer the close can't hold the process beyond its limit.
#[tokio::test]
async fn a_silent_client_does_not_hold_the_process() {
    let mut server = Server::with_config("[shutdown]\nlimit_ms = 1000\n").await;
    let silent = RawClient::connect(&server).await;
    let start = Instant::now();
    let ended = server.terminate().await;
    assert!(ended.status.success(), "{:?}", ended.status);
    assert!(
        start.elapsed() < Duration::from_millis(1_500),
        "{:?}",
        start.elapsed()
    );
    drop(silent);
}

/// Neither a good nor a bad token, nor a resume token, nor a key, is ever logged, even at the most talkative level.
#[tokio::test]
async fn secrets_never_reach_the_log() {
    let config = format!(
        "[log]\nfilter = \"trace\"\n[auth]\naudience = \"{AUDIENCE}\"\nkeys = [{{ algorithm = \"HS256\", secret = \"{KEY}\" }}]\n"
    );
    let mut server = Server::with_config(&config).await;
    let token = tokens::sign(&tokens::claims("ada"));
    let forged = format!("{}AAAA", &token[..token.len() - 4]);
    let mut client = Connect::to(&server).open().await.unwrap();
    let resume = client.hello_with(Some(&token), None).await.unwrap().resume;
    let mut other = Connect::to(&server).open().await.unwrap();
    other
        .hello_with(Some(&forged), Some(&resume))
        .await
        .unwrap_err();
    let ended = server.terminate().await;
    assert!(ended.output.contains("listening"), "{}", ended.output);
    let (claims, _) = token.rsplit_once('.').unwrap();
    for secret in [claims, &token, &forged, &resume, KEY] {
        assert!(!ended.output.contains(secret), "{}", ended.output);
    }
}

/// The help of every command names its flags; the version is the workspace's.
#[tokio::test]
async fn help_and_version_answer() {
    for arguments in [
        ["--help"].as_slice(),
        &["serve", "--help"],
        &["token", "--help"],
    ] {
        let ended = run(arguments, "", &[]).await;
        assert!(
            ended.status.success() && ended.output.contains("Usage"),
            "{arguments:?}: {}",
            ended.output
        );
    }
    let version = run(&["--version"], "", &[]).await;
    assert!(
        version.output.contains(env!("CARGO_PKG_VERSION")),
        "{}",
        version.output
    );
}

const ADMIN: (&str, &str) = ("ROOMFUL_LISTEN__ADMIN", "127.0.0.1:0");

async fn run(arguments: &[&str], file: &str, environment: &[(&str, &str)]) -> Ended {
    let dir = Directory::new();
    std::fs::write(dir.0.join("roomful.toml"), file).unwrap();
    Process::run(&dir.0, arguments, environment).await
}

fn complains(ended: &Ended, words: &[&str]) {
    assert!(!ended.status.success(), "{}", ended.output);
    assert!(!ended.output.contains("panicked"), "{}", ended.output);
    for word in words {
        assert!(
            ended.output.contains(word),
            "{word:?} is not in:\n{}",
            ended.output
        );
    }
}
