//! Holds `SPEC.md` against the code: what stands in a table there is what the tables here say.

use crate::codec::Encoding;
use crate::error::{CloseCode, ErrorCode, Retry};
use crate::frame::{
    Action, Change, ChangeKind, ClientFrame, CursorRequest, Cursors, Direction, Durability, Entry,
    EntryKind, HeldFence, HistoryPage, Holder, JoinProducer, LockChange, LockInfo, LockReply,
    LockRequest, LockWhy, LocksPage, LoggedHolder, LoggedWaiter, MemberInfo, MembersPage, OpId,
    PresenceChange, Published, Recovery, ServerFrame, StateChange, StateChanges, StateItem,
    StatePage, StateRequest, TimerChange, TimerInfo, TimerRequest, TimerWhat, TimersPage, Waiter,
    Watch,
};
use crate::id::{Key, RoomName, SignalKey, UserId};
use crate::limits::{
    BATCH_FRAMES_MAX, CHANGES_MAX, DEPTH_MAX, Limits, PAGE_MAX, PAYLOAD_DEPTH_MAX, PREFIXES_MAX,
    TOKEN_BYTES_MAX,
};
use crate::payload::PayloadFormat;
use crate::position::Position;
use crate::websocket::ReadLimits;

const SPECIFICATION: &str = include_str!("../SPEC.md");

/// The text under a heading, up to the next heading of any level.
fn section(heading: &str) -> &'static str {
    let (_, rest) = SPECIFICATION
        .split_once(&format!("\n{heading}\n"))
        .expect(heading);
    rest.split("\n#").next().unwrap_or(rest)
}

/// The cells of the first table, without its head.
fn table(text: &str) -> Vec<Vec<&str>> {
    let lines = text.lines().skip_while(|line| !line.starts_with('|'));
    let rows = lines.take_while(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

fn check_fields(heading: &str, expected: &[(&str, &str)]) {
    let rows = table(section(heading));
    let names: Vec<_> = rows.iter().map(|row| row[0].trim_matches('`')).collect();
    let expected_names: Vec<_> = expected.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, expected_names, "{heading}");
    for (row, (name, default)) in rows.iter().zip(expected) {
        let stated = row[2].trim_matches('`');
        let meant = match *default {
            "None" => "nil".to_owned(),
            "Vec::new()" => "[]".to_owned(),
            other => other.rsplit(':').next().unwrap_or(other).to_lowercase(),
        };
        assert_eq!(stated, meant, "{heading}: {name} if left out");
        assert!(
            !row[1].is_empty() && !row[3].is_empty(),
            "{heading}: {name}"
        );
    }
}

#[test]
fn every_frame_has_its_section_with_its_fields() {
    let client = ClientFrame::TYPES.iter().zip(ClientFrame::FIELDS);
    let server = ServerFrame::TYPES.iter().zip(ServerFrame::FIELDS);
    for ((code, name), fields) in client.chain(server) {
        check_fields(&format!("### {code} `{name}`"), fields);
    }
    let sections = SPECIFICATION.lines().filter(|line| {
        line.strip_prefix("### ").is_some_and(|rest| {
            rest.split(' ')
                .nth(1)
                .is_some_and(|name| name.starts_with('`'))
        })
    });
    assert_eq!(
        sections.count(),
        ClientFrame::TYPES.len() + ServerFrame::TYPES.len()
    );
}

#[test]
fn every_record_has_its_section_with_its_fields() {
    check_fields("### position", Position::FIELDS);
    check_fields("### op id", OpId::FIELDS);
    check_fields("### join producer", JoinProducer::FIELDS);
    check_fields("### limits", Limits::FIELDS);
    check_fields("### entry", Entry::FIELDS);
    check_fields("### published", Published::FIELDS);
    check_fields("### members page", MembersPage::FIELDS);
    check_fields("### member", MemberInfo::FIELDS);
    check_fields("### history page", HistoryPage::FIELDS);
    check_fields("### presence change", PresenceChange::FIELDS);
    check_fields("### change", Change::FIELDS);
    check_fields("### held fence", HeldFence::FIELDS);
    check_fields("### state page", StatePage::FIELDS);
    check_fields("### state item", StateItem::FIELDS);
    check_fields("### state change", StateChange::FIELDS);
    check_fields("### holder", Holder::FIELDS);
    check_fields("### waiter", Waiter::FIELDS);
    check_fields("### locks page", LocksPage::FIELDS);
    check_fields("### lock", LockInfo::FIELDS);
    check_fields("### timers page", TimersPage::FIELDS);
    check_fields("### timer", TimerInfo::FIELDS);
    check_fields("### cursors", Cursors::FIELDS);
    check_fields("### state changes", StateChanges::FIELDS);
    check_fields("### lock change", LockChange::FIELDS);
    check_fields("### logged holder", LoggedHolder::FIELDS);
    check_fields("### logged waiter", LoggedWaiter::FIELDS);
    check_fields("### timer change", TimerChange::FIELDS);
}

/// What is one of several things stands in a table of its own, in the section of its frame.
fn check_forms(heading: &str, head: &str, expected: &[(&str, u8)]) {
    let section = section(heading);
    let rows = table(&section[section.find(head).expect(head)..]);
    let stated: Vec<_> = rows
        .iter()
        .map(|row| (row[0].trim_matches('`'), row[1].parse::<u8>().unwrap()))
        .collect();
    assert_eq!(stated, expected, "{heading}");
}

#[test]
fn every_request_has_its_forms() {
    check_forms("### 11 `state`", "| `what` | number", StateRequest::FORMS);
    check_forms("### 12 `lock`", "| `what` | number", LockRequest::FORMS);
    check_forms("### 13 `timer`", "| `what` | number", TimerRequest::FORMS);
    check_forms("### 14 `cursor`", "| `what` | number", CursorRequest::FORMS);
    check_forms("### 38 `ok`", "| outcome | number", LockReply::FORMS);
}

#[test]
fn every_choice_has_its_values() {
    let rows = table(section("## 11. Parts of frames"));
    let values: Vec<_> = rows.iter().map(|row| (row[0], row[1])).collect();
    let expected = [
        ("watch", Watch::LIST),
        ("direction", Direction::LIST),
        ("recovery", Recovery::LIST),
        ("durability", Durability::LIST),
        ("entry kind", EntryKind::LIST),
        ("change kind", ChangeKind::LIST),
        ("retry", Retry::LIST),
        ("what (presence)", crate::frame::ACTIONS),
        ("what (state)", StateRequest::LIST),
        ("action", Action::LIST),
        ("what (lock)", LockRequest::LIST),
        ("lock why", LockWhy::LIST),
        ("outcome (lock)", LockReply::LIST),
        ("what (timer)", TimerRequest::LIST),
        ("timer what", TimerWhat::LIST),
        ("what (cursor)", CursorRequest::LIST),
        ("reply", crate::frame::REPLIES),
    ];
    assert_eq!(
        values,
        expected.map(|(name, list)| (name, list.trim_end_matches(" · ")))
    );
}

#[test]
fn payload_formats_are_those_of_the_table() {
    let rows = table(
        SPECIFICATION
            .split_once("**Payloads**")
            .expect("the paragraph")
            .1,
    );
    let stated: Vec<_> = rows
        .iter()
        .map(|row| (row[0].trim_matches('`'), row[1]))
        .collect();
    let numbers = PayloadFormat::ALL.map(|format| (format as u8).to_string());
    let formats = PayloadFormat::ALL.iter().zip(&numbers);
    let expected: Vec<_> = formats
        .map(|(format, number)| (format.name(), number.as_str()))
        .collect();
    assert_eq!(stated, expected);
}

fn check_catalogue(heading: &str, expected: Vec<(u16, &str, Retry)>) {
    let rows = table(section(heading));
    let stated: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                row[0].parse::<u16>().unwrap(),
                row[1].trim_matches('`'),
                row[2].trim_matches('`'),
            )
        })
        .collect();
    let expected: Vec<_> = expected
        .into_iter()
        .map(|(code, name, retry)| (code, name, retry.name()))
        .collect();
    assert_eq!(stated, expected, "{heading}");
    assert!(rows.iter().all(|row| !row[3].is_empty()), "{heading}");
}

#[test]
fn errors_and_close_codes_are_those_of_the_catalogues() {
    let errors = ErrorCode::ALL
        .iter()
        .map(|row| (row.code(), row.name(), row.retry()));
    check_catalogue("### 12.1 Errors", errors.collect());
    let closes = CloseCode::ALL
        .iter()
        .map(|row| (row.code(), row.name(), row.retry()));
    check_catalogue("### 12.2 Close codes", closes.collect());
}

#[test]
fn limits_are_those_of_the_code() {
    let rows = table(section("### 12.3 Limits"));
    let stated: Vec<_> = rows
        .iter()
        .skip(1)
        .map(|row| row[1].split(' ').next().unwrap().parse::<usize>().unwrap())
        .collect();
    let fragments = usize::try_from(ReadLimits::default().fragments_max).unwrap();
    let expected = [
        DEPTH_MAX,
        PAYLOAD_DEPTH_MAX,
        BATCH_FRAMES_MAX,
        PAGE_MAX,
        TOKEN_BYTES_MAX,
        RoomName::BYTES_MAX,
        SignalKey::BYTES_MAX,
        UserId::BYTES_MAX,
        Key::BYTES_MAX,
        CHANGES_MAX,
        PREFIXES_MAX,
        fragments,
    ];
    assert_eq!(stated, expected);
}

#[test]
fn placement_keys_are_those_of_the_code() {
    let rows = table(section("### 7.2 Placement key"));
    assert!(!rows.is_empty());
    for row in rows {
        let room = RoomName::parse(row[0].trim_matches('`').as_bytes()).unwrap();
        assert_eq!(room.placement_key().to_string(), row[1].trim_matches('`'));
    }
}

#[test]
fn the_bytes_of_the_examples_are_the_frames_beside_them() {
    let rows = table(section("### 14.1 Bytes"));
    assert!(!rows.is_empty());
    for row in rows {
        let (json, hex) = (row[0].trim_matches('`'), row[1].trim_matches('`'));
        let bytes: Vec<u8> = hex
            .split(' ')
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect();
        let client = Encoding::Json.decode_client(json.as_bytes());
        match client {
            Ok(frame) => assert_eq!(
                Encoding::MessagePack.decode_client(&bytes),
                Ok(frame.clone()),
                "{json}"
            ),
            Err(_) => assert_eq!(
                Encoding::MessagePack.decode_server(&bytes),
                Encoding::Json.decode_server(json.as_bytes()),
                "{json}"
            ),
        }
    }
}

/// Every line of the session is a frame of its direction, written as this crate writes it.
#[test]
fn the_example_sessions_are_made_of_frames() {
    let sessions = ["### 14.2 A session in JSON", "### 14.3 A board"];
    let lines = sessions.iter().flat_map(|heading| section(heading).lines());
    let mut frames = 0;
    for line in lines.filter(|line| line.starts_with("C [") || line.starts_with("S [")) {
        let (direction, json) = line.split_at(2);
        let mut written = Vec::new();
        match direction {
            "C " => Encoding::Json.encode(
                &Encoding::Json.decode_client(json.as_bytes()).unwrap(),
                &mut written,
            ),
            _ => Encoding::Json.encode(
                &Encoding::Json.decode_server(json.as_bytes()).unwrap(),
                &mut written,
            ),
        }
        assert_eq!(String::from_utf8(written).unwrap(), json);
        frames += 1;
    }
    assert!(frames > 50);
}
