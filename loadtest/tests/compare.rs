//! The comparison, seen from outside and at a small scale: its lines, and what it says and how it ends when something is missing or fails.
//!
//! The plain server stands where Roomful usually does, so that nothing else has to be built or set up.

#![expect(clippy::unwrap_used, reason = "a test that can't be set up has failed")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{self, Command, Output};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_roomful-loadtest");

/// Other tests run at the same time, so nothing is pinned.
fn compare(arguments: &[&str]) -> Output {
    let common = ["compare", "--subject=plain", "--scale=0.05", "--unpinned"];
    let mut command = Command::new(PROGRAM);
    command.args(common).args(arguments).output().unwrap()
}

/// A directory of this test, which is empty.
fn directory(name: &str) -> PathBuf {
    let name = format!("roomful-loadtest-{}-{name}", process::id());
    let path = std::env::temp_dir().join(name);
    fs::create_dir_all(&path).unwrap();
    path
}

#[test]
fn quick_prints_one_line_for_each_figure() {
    let output = compare(&["--quick", "--peers-dir=/nowhere"]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let (comments, lines): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| line.starts_with('#'));
    let header = "# name value unit ratio_to_floor ratio_to_best_peer";
    assert_eq!(comments.last(), Some(&header));
    let is_missing = |line: &&str| line.contains("bun") && line.contains("cargo xtask peers");
    assert!(comments.iter().any(is_missing), "{text}");
    let expected = [
        ("fanout-1000-w1", "µs"),
        ("fanout-1000-w32", "µs"),
        ("rooms-1000x10", "µs"),
        ("connect", "µs"),
        ("idle", "B"),
    ];
    assert_eq!(lines.len(), expected.len(), "{text}");
    for (line, (name, unit)) in lines.into_iter().zip(expected) {
        let fields: Vec<&str> = line.split(' ').collect();
        let [got, value, got_unit, times_floor, times_best] = fields[..] else {
            panic!("{line:?} has other fields");
        };
        assert_eq!((got, got_unit), (name, unit), "{line}");
        assert!(value.parse::<f64>().unwrap() > 0.0, "{line}");
        // So small a floor may take no memory at all, and then there is nothing to divide by.
        let ratio = times_floor.parse::<f64>();
        assert!(
            ratio.is_ok() || (name, times_floor) == ("idle", "-"),
            "{line}"
        );
        // The only peer here is the subject itself.
        assert_eq!(times_best, "-", "{line}");
    }
}

/// A row, repeated with the order changed; the runs are in the JSON, paired by their repeat.
#[test]
fn a_comparison_holds_every_run() {
    let json = directory("whole").join("result.json");
    let file = format!("--json={}", json.display());
    let rows = "--only=fanout-100-w1";
    let output = compare(&[rows, "--peers=plain", "--pairs=2", &file]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("| fanout-100-w1 "), "{text}");
    let result: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    fs::remove_dir_all(json.parent().unwrap()).unwrap();
    let cells = result["rows"][0]["cells"].as_array().unwrap();
    let peers: Vec<&Value> = cells.iter().map(|cell| &cell["peer"]).collect();
    assert_eq!(peers, ["plain", "floor"]);
    for cell in cells {
        let repeats: Vec<&Value> = cell["runs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|run| &run["repeat"])
            .collect();
        assert_eq!(repeats, [0, 1], "{cell}");
        assert!(
            cell["times_floor"]["median"].as_f64().unwrap() > 0.0,
            "{cell}"
        );
    }
}

/// The floor's own row is whole, and still nobody takes the comparison for one.
#[test]
fn a_peer_that_fails_is_named_in_its_row() {
    let peers = directory("failing");
    fs::create_dir_all(peers.join("bin")).unwrap();
    fs::write(peers.join("nats.conf"), "").unwrap();
    let program = peers.join("bin/nats-server");
    fs::write(&program, "#!/bin/sh\necho this one is broken\nexit 7\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let dir = format!("--peers-dir={}", peers.display());
    let rows = "--only=fanout-100-w1";
    let output = compare(&[rows, "--peers=nats", "--pairs=1", "--peer-pairs=1", &dir]);
    fs::remove_dir_all(peers).unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let first = text.lines().next().unwrap();
    let told = ["INCOMPLETE", "fanout-100-w1", "nats", "this one is broken"];
    for part in told {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(first.starts_with("INCOMPLETE"), "{text}");
    assert!(text.contains("| failed"), "{text}");
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(complaint.contains("incomplete"), "{complaint}");
}

#[test]
fn what_was_asked_for_and_is_not_there_is_an_error() {
    for (arguments, reason) in [
        (
            &["--peers=bun", "--peers-dir=/nowhere"][..],
            "cargo xtask peers",
        ),
        (&["--peers=centrifugo"], "--centrifugo FILE"),
        (&["--only=fanout-7"], "fanout-1000-w1"),
        (
            &["--peers=roomful", "--server=/nowhere/roomful"],
            "no server at",
        ),
    ] {
        let output = compare(arguments);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert!(complaint.contains(reason), "{reason}: {complaint}");
        assert!(output.stdout.is_empty(), "{complaint}");
    }
}
