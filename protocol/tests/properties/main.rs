//! What holds for every frame and for every message, whoever made it.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its strategies too"
)]

mod fields;
mod frames;
mod keyed;

use std::fmt::Debug;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use roomful_protocol::codec::{DecodeError, DecodeErrorKind, Encoding};
use roomful_protocol::frame::{LockChange, StateChanges, TimerChange};
use roomful_protocol::id::RoomName;
use serde::Serialize;

use fields::position;
use frames::{client_frame, server_frame};
use keyed::{lock_change, state_change, timer_change};

// --- what holds -------------------------------------------------------------------------------------------------------

proptest! {
    #[test]
    fn a_client_frame_survives_both_encodings(frame in client_frame()) {
        for encoding in Encoding::ALL {
            prop_assert_eq!(encoding.decode_client(&encoded(encoding, &frame)), Ok(frame.clone()));
        }
    }

    #[test]
    fn a_server_frame_survives_both_encodings(frame in server_frame()) {
        for encoding in Encoding::ALL {
            prop_assert_eq!(encoding.decode_server(&encoded(encoding, &frame)), Ok(frame.clone()));
        }
    }

    #[test]
    fn a_truncated_frame_is_an_error(client in client_frame(), server in server_frame()) {
        for encoding in Encoding::ALL {
            let message = encoded(encoding, &client);
            for length in 0..message.len() {
                prop_assert!(encoding.decode_client(&message[..length]).is_err());
            }
            let message = encoded(encoding, &server);
            for length in 0..message.len() {
                prop_assert!(encoding.decode_server(&message[..length]).is_err());
            }
        }
    }

    #[test]
    fn what_follows_a_frame_is_refused(frame in client_frame(), tail in vec(any::<u8>(), 1..20)) {
        let message = [encoded(Encoding::MessagePack, &frame), tail].concat();
        let error = Encoding::MessagePack.decode_client(&message).unwrap_err();
        prop_assert_eq!(error.kind, DecodeErrorKind::TrailingBytes);
    }

    #[test]
    fn fields_of_a_newer_sender_are_read_over(frame in client_frame(), extra in extra_value()) {
        let (json, msgpack) = extra;
        let mut message = encoded(Encoding::MessagePack, &frame);
        message[0] += 1;
        message.extend(msgpack);
        prop_assert_eq!(Encoding::MessagePack.decode_client(&message), Ok(frame.clone()));
        let mut message = encoded(Encoding::Json, &frame);
        message.pop();
        message.extend(format!(",{json}]").bytes());
        prop_assert_eq!(Encoding::Json.decode_client(&message), Ok(frame));
    }

    #[test]
    fn a_damaged_frame_never_panics(
        client in client_frame(), server in server_frame(), damage in vec((any::<Index>(), any::<u8>()), 1..4),
    ) {
        for encoding in Encoding::ALL {
            let mut message = encoded(encoding, &client);
            apply(&damage, &mut message);
            stable(encoding, Encoding::decode_client, &message)?;
            let mut message = encoded(encoding, &server);
            apply(&damage, &mut message);
            stable(encoding, Encoding::decode_server, &message)?;
        }
    }

    #[test]
    fn random_bytes_never_panic(message in vec(hostile_byte(), 0..60)) {
        stable(Encoding::MessagePack, Encoding::decode_client, &message)?;
        stable(Encoding::MessagePack, Encoding::decode_server, &message)?;
    }

    #[test]
    fn random_text_never_panics(message in "[\\[\\]{}\",:0-9a-z\\\\ \u{e9}-]{0,60}") {
        stable(Encoding::Json, Encoding::decode_client, message.as_bytes())?;
        stable(Encoding::Json, Encoding::decode_server, message.as_bytes())?;
    }

    #[test]
    fn room_names_are_judged_without_panic(name in vec(any::<u8>(), 0..300)) {
        if let Ok(parsed) = RoomName::parse(&name) {
            prop_assert_eq!(parsed.as_str().as_bytes(), &name[..]);
            prop_assert!(!parsed.namespace().is_empty());
        }
    }

    #[test]
    fn what_the_log_keeps_is_read_as_it_was_written(
        changes in vec(state_change(), 0..4), lock in lock_change(), timer in timer_change(),
    ) {
        let state = StateChanges { changes };
        prop_assert_eq!(StateChanges::from_payload(&state.to_payload()), Ok(state));
        prop_assert_eq!(LockChange::from_payload(&lock.to_payload()), Ok(lock));
        prop_assert_eq!(TimerChange::from_payload(&timer.to_payload()), Ok(timer));
    }

    #[test]
    fn positions_are_read_as_they_are_written(position in position()) {
        prop_assert_eq!(position.to_string().parse(), Ok(position));
    }
}

fn encoded(encoding: Encoding, frame: &impl Serialize) -> Vec<u8> {
    let mut out = Vec::new();
    encoding.encode(frame, &mut out);
    out
}

fn apply(damage: &[(Index, u8)], message: &mut [u8]) {
    for (at, byte) in damage {
        *at.get_mut(message) = *byte;
    }
}

/// Whatever decodes is written and read again as the same.
fn stable<F: Clone + Debug + PartialEq + Serialize>(
    encoding: Encoding,
    decode: fn(Encoding, &[u8]) -> Result<F, DecodeError>,
    message: &[u8],
) -> Result<(), TestCaseError> {
    if let Ok(frame) = decode(encoding, message) {
        prop_assert_eq!(decode(encoding, &encoded(encoding, &frame)), Ok(frame));
    }
    Ok(())
}

// --- messages ---------------------------------------------------------------------------------------------------------

fn extra_value() -> impl Strategy<Value = (&'static str, &'static [u8])> {
    select(vec![
        ("null", &b"\xc0"[..]),
        ("-7", b"\xf9"),
        ("1.5", b"\xcb\x3f\xf8\0\0\0\0\0\0"),
        ("\"x\"", b"\xa1x"),
        ("[[],[1]]", b"\x92\x90\x91\x01"),
        ("{\"a\":{\"b\":true}}", b"\x81\xa1a\x81\xa1b\xc3"),
        ("\"AA==\"", b"\xc4\x01\0"),
        ("0", b"\xd6\xff\0\0\0\0"),
    ])
}

fn hostile_byte() -> impl Strategy<Value = u8> {
    let openers: Vec<u8> = (0x80..=0x9f)
        .chain(0xa0..=0xa3)
        .chain(0xc4..=0xc9)
        .chain(0xd4..=0xdf)
        .chain(0x00..=0x30)
        .collect();
    prop_oneof![any::<u8>(), select(openers)]
}
