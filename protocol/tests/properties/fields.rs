//! Any value of a field.

use std::fmt::Debug;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use roomful_protocol::error::Retry;
use roomful_protocol::frame::*;
use roomful_protocol::id::*;
use roomful_protocol::limits::Limits;
use roomful_protocol::payload::{Payload, PayloadFormat};
use roomful_protocol::position::Position;
use roomful_protocol::text::Text;

pub(super) fn integer() -> impl Strategy<Value = u64> {
    let bounds = vec![
        0,
        127,
        128,
        255,
        256,
        65_535,
        65_536,
        u64::from(u32::MAX),
        1 << 32,
        INTEGER_MAX,
    ];
    prop_oneof![select(bounds), 0..=INTEGER_MAX]
}

pub(super) fn optional() -> impl Strategy<Value = Option<u64>> {
    option::of(integer())
}

pub(super) fn id<T: Debug>(wrap: fn(u64) -> T) -> impl Strategy<Value = T> {
    integer().prop_map(wrap)
}

pub(super) fn position() -> BoxedStrategy<Position> {
    (integer(), integer())
        .prop_map(|(epoch, offset)| Position::new(Epoch(epoch), Offset(offset)))
        .boxed()
}

pub(super) fn op() -> BoxedStrategy<OpId> {
    (id(ProducerId), id(Sequence))
        .prop_map(|(producer, sequence)| OpId { producer, sequence })
        .boxed()
}

pub(super) fn text<const MAX: usize>() -> impl Strategy<Value = Text<MAX>> {
    ".{0,30}".prop_map(|text| Text::new(&text).unwrap())
}

pub(super) fn user() -> BoxedStrategy<UserId> {
    "[^\\x00-\\x1f\\x7f]{1,30}"
        .prop_map(|text| UserId::parse(&text).unwrap())
        .boxed()
}

pub(super) fn key() -> BoxedStrategy<SignalKey> {
    "[!-~]{1,64}"
        .prop_map(|text| SignalKey::parse(&text).unwrap())
        .boxed()
}

pub(super) fn name() -> BoxedStrategy<Key> {
    "[^\\x00-\\x1f\\x7f]{1,30}"
        .prop_map(|text| Key::parse(&text).unwrap())
        .boxed()
}

pub(super) fn prefix() -> BoxedStrategy<KeyPrefix> {
    "[^\\x00-\\x1f\\x7f]{0,30}"
        .prop_map(|text| KeyPrefix::parse(&text).unwrap())
        .boxed()
}

pub(super) fn watch() -> impl Strategy<Value = Watch> {
    select(vec![Watch::None, Watch::Occupancy, Watch::Members])
}

pub(super) fn retry() -> impl Strategy<Value = Retry> {
    select(vec![Retry::Never, Retry::Now, Retry::After, Retry::Refresh])
}

pub(super) fn limits() -> BoxedStrategy<Limits> {
    (integer(), integer(), integer(), integer())
        .prop_map(
            |(message_bytes_max, payload_bytes_max, rooms_max, requests_max)| Limits {
                message_bytes_max,
                payload_bytes_max,
                rooms_max,
                requests_max,
            },
        )
        .boxed()
}

pub(super) fn entry() -> BoxedStrategy<Entry> {
    let kinds = vec![
        EntryKind::Publish,
        EntryKind::State,
        EntryKind::Lock,
        EntryKind::Timer,
        EntryKind::System,
    ];
    (
        id(Offset),
        integer(),
        select(kinds),
        user(),
        option::of(op()),
        payload(),
    )
        .prop_map(|(offset, time_ms, kind, user, op, payload)| Entry {
            offset,
            time_ms,
            kind,
            user,
            op,
            payload,
        })
        .boxed()
}

pub(super) fn payload() -> BoxedStrategy<Payload> {
    let msgpack = |bytes: Vec<u8>| Payload {
        format: PayloadFormat::MessagePack,
        bytes: bytes.into(),
    };
    prop_oneof![
        vec(any::<u8>(), 0..40).prop_map(Payload::binary),
        vec(any::<u8>(), 0..40).prop_map(msgpack),
        ".{0,40}".prop_map(Payload::text),
        json().prop_map(Payload::json),
    ]
    .boxed()
}

pub(super) fn json() -> BoxedStrategy<String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        ".{0,10}".prop_map(|text| serde_json::to_string(&text).unwrap()),
    ];
    leaf.prop_recursive(4, 16, 4, |inner| {
        vec(inner, 0..4).prop_map(|items| format!("[ {} ]", items.join(",")))
    })
    .boxed()
}
