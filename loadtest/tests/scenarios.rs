//! Every scenario against the server that was built beside this program, at a scale of seconds: each ends with its figures.
//!
//! `cargo build -p roomful-server` makes the server.

#![expect(clippy::unwrap_used, reason = "a test that can't be set up has failed")]

use std::path::PathBuf;
use std::process::{self, Command};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_roomful-loadtest");

/// Runs a scenario and gives its result, which must hold these figures.
#[track_caller]
fn result(scenario: &str, arguments: &[&str], figures: &[&str]) -> Value {
    let name = format!("roomful-loadtest-{}-{scenario}.json", process::id());
    let json = std::env::temp_dir().join(name);
    let output = Command::new(PROGRAM)
        .arg(scenario)
        .args(arguments)
        .arg("--config")
        .arg(config())
        .arg("--json")
        .arg(&json)
        // The system's own directory may be in memory.
        .env("TMPDIR", env!("CARGO_TARGET_TMPDIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let result: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    std::fs::remove_file(json).unwrap();
    assert_eq!(result["scenario"], scenario);
    for name in figures {
        let value = figure(&result, name);
        assert!(value.is_finite() && value >= 0.0, "{name}: {value}");
    }
    result
}

#[track_caller]
fn figure(result: &Value, name: &str) -> f64 {
    let figures = result["figures"].as_array().unwrap();
    let found = figures.iter().find(|figure| figure["name"] == name);
    let value = found.and_then(|figure| figure["value"].as_f64());
    value
        .ok_or_else(|| format!("no figure {name:?} in {result}"))
        .unwrap()
}

fn config() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../bench.toml")
}

#[test]
fn fanout_and_rooms_have_a_cost() {
    let cost = "server CPU per delivery";
    let short = "--duration-s=0.5";
    result("fanout", &["--members=50", short], &[cost]);
    result(
        "rooms",
        &["--rooms=20", "--members=5", "--in-flight=8", short],
        &[cost],
    );
}

#[test]
fn echo_has_a_round_trip_and_its_curve() {
    let arguments = ["--rooms=10", "--rate=200", "--duration-s=0.5"];
    let result = result(
        "echo",
        &arguments,
        &["round trip, p50", "round trip, p99.9"],
    );
    let points = result["curves"][0]["points"].as_array().unwrap();
    assert!(points.len() > 5, "{result}");
}

#[test]
fn slow_compares_pairs_and_the_stalled_catch_up() {
    let arguments = [
        "--members=40",
        "--stalled=10",
        "--stall-s=1",
        "--pairs=1",
        "--warmup-s=0.3",
        "--duration-s=1.2",
    ];
    let result = result("slow", &arguments, &["p99 with stalled readers / without"]);
    assert!(figure(&result, "p99 with stalled readers / without") > 0.0);
}

#[test]
fn a_siege_is_withstood_and_visitors_come_in() {
    let arguments = [
        "--members=40",
        "--stopped=5",
        "--slow=50",
        "--pairs=1",
        "--warmup-s=0.3",
        "--duration-s=1.2",
    ];
    let figures = [
        "room's p99, under attack / in quiet",
        "connect and join under attack, p99",
    ];
    let result = result("siege", &arguments, &figures);
    assert!(figure(&result, "flooded") > 0.0, "{result}");
}

#[test]
fn presence_tells_everybody_who_is_there() {
    let arguments = ["--members=60", "--rate=20", "--duration-s=1.5"];
    let frames = "delta frames per member and second";
    let result = result("presence", &arguments, &["server CPU per delta frame"]);
    // Changes are gathered for 100 ms, so there are at most ten frames a second, and one in which the counting begins.
    let per_second = figure(&result, frames);
    assert!(per_second > 1.0 && per_second < 11.0, "{result}");
    assert!(figure(&result, "joins") >= 20.0, "{result}");
}

#[test]
fn a_storm_passes_and_everybody_has_caught_up() {
    let arguments = [
        "--connections=120",
        "--room-members=50",
        "--behind=40",
        "--calm-s=0.5",
    ];
    let figures = [
        "until all have caught up",
        "healthy room's p99, in the storm / before",
        "healthy room in the storm, p99.9",
    ];
    let result = result("storm", &arguments, &figures);
    assert!((figure(&result, "events caught up") - 4800.0).abs() < 0.5);
}

#[test]
fn recovery_from_far_behind_brings_every_event() {
    let arguments = ["--connections=5", "--behind=3000"];
    let result = result("recover", &arguments, &["server CPU per recovered event"]);
    assert!((figure(&result, "events") - 15_000.0).abs() < 0.5);
    assert!(figure(&result, "messages") < 15_000.0);
}

#[test]
fn shapes_are_mixed_and_timed_apart() {
    let arguments = ["--scale=0.05", "--warmup-s=0.2", "--duration-s=1"];
    let figures = [
        "server CPU per delivery",
        "chat, p99",
        "editor, p99",
        "game, p99",
        "auction, p99",
    ];
    let result = result("mixed", &arguments, &figures);
    assert_eq!(result["curves"].as_array().unwrap().len(), 4);
    assert!(figure(&result, "signals delivered") > 0.0);
}

#[test]
fn durable_rooms_stand_beside_the_disk_and_the_memory() {
    let arguments = [
        "--repeats=1",
        "--warmup-s=0.1",
        "--duration-s=0.3",
        "--many-rooms=1500",
        "--shelf-rooms=1500",
        "--long-events=1000",
    ];
    let figures = [
        "1 publishers: acks / bare store's records",
        "64 publishers: ack p50 over memory's",
        "512 publishers: acks / bare file's records",
        "on disk: many rooms / one",
        "shelf: first join to a long room",
    ];
    let result = result("durable", &arguments, &figures);
    // A publisher with one publish in flight has it in a batch of its own.
    let batch = figure(&result, "1 publishers: records of a batch");
    assert!((1.0..2.0).contains(&batch), "{result}");
    assert!(
        figure(&result, "512 publishers: records of a batch") > 2.0,
        "{result}"
    );
}

#[test]
fn contended_keys_end_where_they_must_and_everybody_sees_them_change() {
    let arguments = [
        "--repeats=1",
        "--writers=4",
        "--watchers=10",
        "--duration-s=0.4",
    ];
    let figures = [
        "in memory, counter: writes per second",
        "on disk, counter: conflicts per second",
        "on disk, watched: server CPU per change delivered",
    ];
    let result = result("state", &arguments, &figures);
    assert!(
        figure(&result, "on disk, watched: writes per second") > 0.0,
        "{result}"
    );
}

#[test]
fn a_lock_goes_from_hand_to_hand() {
    let arguments = ["--repeats=1", "--members=3", "--duration-s=0.4"];
    let figures = ["in memory: hand-over, p50", "on disk: hand-over, p99"];
    let result = result("lock", &arguments, &figures);
    assert!(
        figure(&result, "on disk: grants per second") > 0.0,
        "{result}"
    );
}
