//! The golden fixtures, read as any other implementation reads them: from the files.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::Path;

use roomful_protocol::codec::{DecodeError, DecodeErrorKind, Encoding};
use roomful_protocol::frame::{ClientFrame, ServerFrame};
use roomful_protocol::id::{PlacementKey, RequestId, RoomName};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

#[path = "../examples/fixtures/vectors.rs"]
mod vectors;

fn file(name: &str) -> String {
    fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fixtures")
            .join(name),
    )
    .unwrap()
}

fn rows<T: for<'de> Deserialize<'de>>(name: &str) -> Vec<T> {
    serde_json::from_str(&file(name)).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex
        .as_bytes()
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).unwrap());
    digits
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

#[test]
fn the_files_are_current() {
    for (name, content) in vectors::files() {
        assert!(
            file(name) == content,
            "{name} is stale: run `cargo xtask fixtures` and read the difference"
        );
    }
}

#[derive(Deserialize)]
struct FrameRow {
    name: String,
    direction: String,
    json: Box<RawValue>,
    msgpack_hex: String,
    reads_as: Option<Box<RawValue>>,
}

/// Goal: both encodings mean the same frame, and are written byte by byte as the fixture says. Method: decode each,
/// compare, encode again, and compare with what was read, or with `reads_as` where the fixture is not the written form.
#[test]
fn every_frame_decodes_and_encodes_to_its_bytes() {
    for row in rows::<FrameRow>("frames.json") {
        match row.direction.as_str() {
            "client" => check_frame(&row, Encoding::decode_client),
            "server" => check_frame(&row, Encoding::decode_server),
            other => panic!("{}: {other} is no direction", row.name),
        }
    }
}

fn check_frame<F: Debug + PartialEq + Serialize>(
    row: &FrameRow,
    decode: fn(Encoding, &[u8]) -> Result<F, DecodeError>,
) {
    let name = &row.name;
    let from_json = decode(Encoding::Json, row.json.get().as_bytes()).unwrap();
    let from_msgpack = decode(Encoding::MessagePack, &bytes(&row.msgpack_hex)).unwrap();
    assert_eq!(from_json, from_msgpack, "{name}");
    let (mut json, mut msgpack) = (Vec::new(), Vec::new());
    Encoding::Json.encode(&from_json, &mut json);
    Encoding::MessagePack.encode(&from_msgpack, &mut msgpack);
    let written = row.reads_as.as_ref().unwrap_or(&row.json);
    assert_eq!(String::from_utf8(json).unwrap(), written.get(), "{name}");
    assert_eq!(
        decode(Encoding::MessagePack, &msgpack),
        Ok(from_msgpack),
        "{name}"
    );
    if row.reads_as.is_none() {
        assert_eq!(msgpack, bytes(&row.msgpack_hex), "{name}");
    }
}

#[test]
fn every_frame_type_has_at_least_two_fixtures() {
    let rows = rows::<FrameRow>("frames.json");
    let types = [
        ("client", ClientFrame::TYPES),
        ("server", ServerFrame::TYPES),
    ];
    for (direction, types) in types {
        for (_, name) in types {
            let start = format!("[\"{name}\"");
            let of_type =
                |row: &&FrameRow| row.direction == direction && row.json.get().starts_with(&start);
            assert!(
                rows.iter().filter(of_type).count() >= 2,
                "{direction} {name}"
            );
        }
    }
    let names: BTreeSet<_> = rows.iter().map(|row| (&row.direction, &row.name)).collect();
    assert_eq!(names.len(), rows.len(), "two fixtures of one name");
}

#[derive(Deserialize)]
struct InvalidRow {
    name: String,
    direction: String,
    msgpack_hex: Option<String>,
    json_text: Option<String>,
    kind: String,
    request: Option<u64>,
}

#[test]
fn every_invalid_message_is_refused_with_its_kind_and_request_id() {
    for row in rows::<InvalidRow>("invalid.json") {
        let (encoding, message) = match (&row.msgpack_hex, &row.json_text) {
            (Some(hex), None) => (Encoding::MessagePack, bytes(hex)),
            (None, Some(text)) => (Encoding::Json, text.as_bytes().to_vec()),
            _ => panic!("{}: one of msgpack_hex and json_text", row.name),
        };
        let error = match row.direction.as_str() {
            "client" => encoding.decode_client(&message).unwrap_err(),
            _ => encoding.decode_server(&message).unwrap_err(),
        };
        let kind = match error.kind {
            DecodeErrorKind::Malformed => "malformed",
            DecodeErrorKind::UnknownType => "unknown_type",
            DecodeErrorKind::TrailingBytes => "trailing_bytes",
        };
        assert_eq!(kind, row.kind, "{}: {error}", row.name);
        assert_eq!(
            error.request,
            row.request.map(RequestId),
            "{}: {error}",
            row.name
        );
    }
}

#[derive(Deserialize)]
struct RoomNameRow {
    hex: String,
    text: Option<String>,
    valid: bool,
    error: Option<String>,
}

#[test]
fn every_room_name_is_judged_as_written() {
    for row in rows::<RoomNameRow>("room_names.json") {
        let name = bytes(&row.hex);
        if let Some(text) = &row.text {
            assert_eq!(text.as_bytes(), name);
        }
        assert_eq!(RoomName::parse(&name).is_ok(), row.valid, "{:?}", row.text);
        assert_eq!(row.error.is_none(), row.valid, "{:?}", row.text);
    }
}

#[derive(Deserialize)]
struct PlacementRow {
    room: String,
    key: String,
}

#[test]
fn every_placement_key_is_the_hash_of_its_room() {
    for row in rows::<PlacementRow>("placement.json") {
        let computed = RoomName::parse(row.room.as_bytes())
            .unwrap()
            .placement_key();
        assert_eq!(computed.to_string(), row.key);
        assert_eq!(PlacementKey::parse(&row.key), Some(computed));
    }
}
