//! The numbers as a scrape shows them.

use std::collections::BTreeSet;

use super::*;

/// The shards' numbers are added up, by label where there is one, and gauges go down again.
#[test]
fn a_scrape_adds_the_shards_up() {
    let metrics = Metrics::new(Tasks::new(), 2);
    let [first, second] = metrics.shards() else {
        panic!("two shards")
    };
    first.deliveries.add(3);
    second.deliveries.add(4);
    first.members.add(5);
    second.members.add(2);
    first.members.sub(5);
    second.rooms.set(9);
    first.connections_closed.of(None).add(1);
    second
        .connections_closed
        .of(Some(CloseCode::Restart))
        .add(2);
    second.errors.of(ErrorCode::Internal).add(1);
    first.auth_failures.of(AuthFailure::Mismatch).add(1);
    metrics.handshake_rejected(HandshakeRejection::Draining);

    let text = metrics.render();
    for line in [
        "roomful_deliveries_total 7",
        "roomful_members 2",
        "roomful_rooms 9",
        "roomful_connections_closed_total{code=\"none\"} 1",
        "roomful_connections_closed_total{code=\"1012\"} 2",
        "roomful_errors_total{code=\"internal\"} 1",
        "roomful_auth_failures_total{kind=\"mismatch\"} 1",
        "roomful_handshakes_rejected_total{reason=\"draining\"} 1",
        "roomful_handshakes_rejected_total{reason=\"malformed\"} 0",
        "roomful_accept_errors_total 0",
        "# TYPE roomful_members gauge",
        "# TYPE roomful_deliveries_total counter",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is missing in:\n{text}"
        );
    }
}

/// Counters end in `_total` and gauges do not, every sample has its family's help and type, and no series
/// comes twice.
#[test]
fn the_exposition_follows_the_conventions() {
    let tasks = Tasks::new();
    let text = Metrics::new(tasks, 1).render();
    let mut series = BTreeSet::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            name.clone_into(&mut family);
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert_eq!(name.split('{').next(), Some(family.as_str()), "{line}");
            assert!(series.insert(name.to_owned()), "{line} comes twice");
        }
    }
    assert!(
        series.contains("roomful_build_info{version=\"0.1.0\"}"),
        "{series:?}"
    );
}

/// Every value of a label has a place of its own.
#[test]
fn labels_are_numbered_in_their_order() {
    fn check<L: Label>() {
        for (place, label) in L::all().into_iter().enumerate() {
            assert_eq!(label.index(), place, "{}", label.text());
        }
    }
    check::<LimitedBy>();
    check::<PanicPlace>();
    check::<AuthFailure>();
    check::<HandshakeRejection>();
    check::<KeyFetch>();
    check::<Reloaded>();
    check::<TlsHandshake>();
    check::<TlsReload>();
    check::<ErrorCode>();
    check::<Option<CloseCode>>();
}

/// A process that runs holds memory and at least its three standard files.
#[cfg(target_os = "linux")]
#[test]
fn the_system_tells_memory_and_files() {
    assert!(resident_bytes().unwrap() > 1 << 20);
    assert!(system::open_files().unwrap() >= 3);
}
