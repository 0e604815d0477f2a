//! Frames of both directions, in both encodings.
//!
//! What is decoded is what was meant: encoded again and decoded again it is the same frame, and its encoding is stable.

use std::fmt::Debug;

use roomful_protocol::codec::{DecodeError, Encoding};

pub(crate) fn msgpack(data: &[u8]) {
    check(Encoding::MessagePack, data);
}

pub(crate) fn json(data: &[u8]) {
    check(Encoding::Json, data);
}

fn check(encoding: Encoding, data: &[u8]) {
    survives(encoding, data, Encoding::decode_client);
    survives(encoding, data, Encoding::decode_server);
}

fn survives<F: PartialEq + Debug + serde::Serialize>(
    encoding: Encoding,
    data: &[u8],
    decode: fn(Encoding, &[u8]) -> Result<F, DecodeError>,
) {
    let frame = match decode(encoding, data) {
        Ok(frame) => frame,
        Err(error) => {
            assert!(
                error.text.len() < 1_000,
                "an error is not as long as what it is about"
            );
            return;
        }
    };
    let mut bytes = Vec::new();
    encoding.encode(&frame, &mut bytes);
    let again = decode(encoding, &bytes);
    assert_eq!(
        again.as_ref(),
        Ok(&frame),
        "another frame after a round trip"
    );
    let mut stable = Vec::new();
    encoding.encode(&frame, &mut stable);
    assert_eq!(bytes, stable, "a frame has one encoding");
}
