//! What holds for every frame and for every message, whoever made it.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its strategies too"
)]

use std::fmt::Debug;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use roomful_protocol::codec::{DecodeError, DecodeErrorKind, Encoding};
use roomful_protocol::error::{Retry, WireErrorCode};
use roomful_protocol::frame::*;
use roomful_protocol::id::*;
use roomful_protocol::limits::Limits;
use roomful_protocol::payload::{Payload, PayloadFormat};
use roomful_protocol::position::Position;
use roomful_protocol::text::Text;
use serde::Serialize;

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

// --- frames -----------------------------------------------------------------------------------------------------------

fn client_frame() -> BoxedStrategy<ClientFrame> {
    let batch = vec(single_client_frame(), 0..4).prop_map(|frames| {
        ClientBatch {
            frames: Frames(frames),
        }
        .into()
    });
    prop_oneof![9 => single_client_frame(), 1 => batch].boxed()
}

fn single_client_frame() -> BoxedStrategy<ClientFrame> {
    let page = (option::of(id(MemberId)), integer());
    let what = prop_oneof![
        page.prop_map(|(after, limit)| PresenceRequest::Get { after, limit }),
        option::of(payload()).prop_map(PresenceRequest::Set),
        watch().prop_map(PresenceRequest::Watch),
    ];
    let (request, room) = (|| id(RequestId), || id(RoomAlias));
    let producer =
        (id(ProducerId), id(Sequence)).prop_map(|(producer, next)| JoinProducer { producer, next });
    let direction = select(vec![Direction::Forward, Direction::Backward]);
    prop_oneof![
        (
            request(),
            option::of(text()),
            option::of(text()),
            option::of(text())
        )
            .prop_map(|(request, token, resume, agent)| Hello {
                request,
                token,
                resume,
                agent
            }
            .into()),
        (
            request(),
            ".{0,20}",
            option::of(position()),
            option::of(producer),
            any::<bool>(),
            (watch(), option::of(payload())),
            option::of(vec(prefix(), 0..4)),
            any::<bool>()
        )
            .prop_map(
                |(request, room, since, producer, echo, (watch, presence), state, locks)| {
                    Join {
                        request,
                        room: RoomText::from(&*room),
                        since,
                        producer,
                        echo,
                        watch,
                        presence,
                        state,
                        locks,
                    }
                    .into()
                }
            ),
        (request(), room()).prop_map(|(request, room)| Leave { request, room }.into()),
        (request(), room(), option::of(op()), payload()).prop_map(
            |(request, room, op, payload)| Publish {
                request,
                room,
                op,
                payload
            }
            .into()
        ),
        (
            option::of(request()),
            room(),
            option::of(id(MemberId)),
            option::of(key()),
            payload()
        )
            .prop_map(|(request, room, to, key, payload)| Signal {
                request,
                room,
                to,
                key,
                payload
            }
            .into()),
        (request(), room(), what).prop_map(|(request, room, what)| Presence {
            request,
            room,
            what
        }
        .into()),
        (
            request(),
            room(),
            option::of(position()),
            direction,
            integer()
        )
            .prop_map(|(request, room, from, direction, limit)| History {
                request,
                room,
                from,
                direction,
                limit
            }
            .into()),
        (request(), text()).prop_map(|(request, token)| Refresh { request, token }.into()),
        request().prop_map(|request| Ping { request }.into()),
        (request(), room(), state_request()).prop_map(|(request, room, what)| State {
            request,
            room,
            what
        }
        .into()),
        (request(), room(), lock_request()).prop_map(|(request, room, what)| Lock {
            request,
            room,
            what
        }
        .into()),
        (request(), room(), timer_request()).prop_map(|(request, room, what)| Timer {
            request,
            room,
            what
        }
        .into()),
        (request(), room(), cursor_request()).prop_map(|(request, room, what)| Cursor {
            request,
            room,
            what
        }
        .into()),
    ]
    .boxed()
}

fn state_request() -> BoxedStrategy<StateRequest> {
    let action = select(vec![Action::Put, Action::Patch, Action::Delete]);
    let fence = (name(), position()).prop_map(|(lock, fence)| HeldFence { lock, fence });
    let change = (
        name(),
        action,
        option::of(payload()),
        option::of(position()),
        any::<bool>(),
        option::of(fence),
    );
    let change = change.prop_map(
        |(key, action, value, if_version, if_absent, if_fence)| Change {
            key,
            action,
            value,
            if_version,
            if_absent,
            if_fence,
        },
    );
    prop_oneof![
        (option::of(op()), vec(change.clone(), 1..4))
            .prop_map(|(op, changes)| StateRequest::Write { op, changes }),
        vec(change, 0..4).prop_map(|changes| StateRequest::OnDisconnect { changes }),
        (prefix(), option::of(name()), integer()).prop_map(|(prefix, after, limit)| {
            StateRequest::Get {
                prefix,
                after,
                limit,
            }
        }),
        option::of(vec(prefix(), 0..4)).prop_map(|prefixes| StateRequest::Watch { prefixes }),
    ]
    .boxed()
}

fn lock_request() -> BoxedStrategy<LockRequest> {
    prop_oneof![
        (name(), integer(), any::<bool>()).prop_map(|(lock, ttl_ms, queue)| LockRequest::Acquire {
            lock,
            ttl_ms,
            queue
        }),
        (name(), position(), integer()).prop_map(|(lock, fence, ttl_ms)| LockRequest::Renew {
            lock,
            fence,
            ttl_ms
        }),
        name().prop_map(|lock| LockRequest::Release { lock }),
        (option::of(name()), integer())
            .prop_map(|(after, limit)| LockRequest::Get { after, limit }),
        any::<bool>().prop_map(|locks| LockRequest::Watch { locks }),
    ]
    .boxed()
}

fn timer_request() -> BoxedStrategy<TimerRequest> {
    prop_oneof![
        (name(), integer(), payload()).prop_map(|(name, due_ms, payload)| TimerRequest::Set {
            name,
            due_ms,
            payload
        }),
        name().prop_map(|name| TimerRequest::Cancel { name }),
        (option::of(name()), integer())
            .prop_map(|(after, limit)| TimerRequest::Get { after, limit }),
    ]
    .boxed()
}

fn cursor_request() -> BoxedStrategy<CursorRequest> {
    prop_oneof![
        (option::of(position()), option::of(position()))
            .prop_map(|(read, delivered)| CursorRequest::Set { read, delivered }),
        Just(CursorRequest::Get),
    ]
    .boxed()
}

fn server_frame() -> BoxedStrategy<ServerFrame> {
    let batch = vec(single_server_frame(), 0..4).prop_map(|frames| {
        ServerBatch {
            frames: Frames(frames),
        }
        .into()
    });
    prop_oneof![9 => single_server_frame(), 1 => batch].boxed()
}

fn single_server_frame() -> BoxedStrategy<ServerFrame> {
    prop_oneof![replies(), room_frames(), connection_frames()].boxed()
}

fn replies() -> BoxedStrategy<ServerFrame> {
    let request = || id(RequestId);
    let welcome = (
        request(),
        any::<u128>(),
        any::<bool>(),
        user(),
        ".{0,20}",
        integer(),
        integer(),
        optional(),
        limits(),
    );
    let recovery = select(vec![Recovery::Live, Recovery::Recovering, Recovery::Reset]);
    let durability = select(vec![
        Durability::Memory,
        Durability::Local,
        Durability::Replicated,
    ]);
    let joined = (
        request(),
        id(RoomAlias),
        id(MemberId),
        position(),
        position(),
        recovery,
        durability,
        (integer(), integer()),
        (option::of(state_page()), option::of(locks_page())),
    );
    prop_oneof![
        welcome.prop_map(
            |(
                request,
                session,
                resumed,
                user,
                resume,
                heartbeat_ms,
                time_ms,
                expires_ms,
                limits,
            )| {
                let session = SessionId(session);
                Welcome {
                    request,
                    session,
                    resumed,
                    user,
                    resume,
                    heartbeat_ms,
                    time_ms,
                    expires_ms,
                    limits,
                }
                .into()
            }
        ),
        joined.prop_map(
            |(request, room, member, position, head, recovery, durability, presence, pages)| {
                let ((revision, occupancy), (state, locks)) = (presence, pages);
                Joined {
                    request,
                    room,
                    member,
                    position,
                    head,
                    recovery,
                    durability,
                    revision,
                    occupancy,
                    state,
                    locks,
                }
                .into()
            }
        ),
        (request(), reply()).prop_map(|(request, reply)| Ok { request, reply }.into()),
        (
            option::of(request()),
            any::<u16>(),
            ".{0,20}",
            retry(),
            optional(),
            vec(item(), 0..4)
        )
            .prop_map(|(request, code, text, retry, after_ms, current)| {
                let code = WireErrorCode(code);
                Error {
                    request,
                    code,
                    text,
                    retry,
                    after_ms,
                    current,
                }
                .into()
            }),
        (request(), integer()).prop_map(|(request, time_ms)| Pong { request, time_ms }.into()),
    ]
    .boxed()
}

fn reply() -> BoxedStrategy<Reply> {
    let member = (id(MemberId), user(), option::of(payload()));
    let member = member.prop_map(|(member, user, value)| MemberInfo {
        member,
        user,
        value,
    });
    let members = (
        integer(),
        integer(),
        vec(member, 0..4),
        option::of(id(MemberId)),
    );
    prop_oneof![
        Just(Reply::Done),
        (position(), integer(), any::<bool>()).prop_map(|(position, time_ms, duplicate)| {
            Reply::Published(Published {
                position,
                time_ms,
                duplicate,
            })
        }),
        members.prop_map(|(revision, occupancy, members, next)| {
            Reply::Members(MembersPage {
                revision,
                occupancy,
                members,
                next,
            })
        }),
        (vec(entry(), 0..4), option::of(position()))
            .prop_map(|(entries, next)| Reply::History(HistoryPage { entries, next })),
        integer().prop_map(|expires_ms| Reply::Refreshed { expires_ms }),
        state_page().prop_map(Reply::State),
        (position(), integer())
            .prop_map(|(fence, until_ms)| Reply::Lock(LockReply::Granted { fence, until_ms })),
        integer().prop_map(|place| Reply::Lock(LockReply::Queued { place })),
        locks_page().prop_map(Reply::Locks),
        timers_page().prop_map(Reply::Timers),
        (option::of(position()), option::of(position()), integer()).prop_map(
            |(read, delivered, unread)| {
                Reply::Cursors(Cursors {
                    read,
                    delivered,
                    unread,
                })
            }
        ),
    ]
    .boxed()
}

fn state_page() -> BoxedStrategy<StatePage> {
    (position(), vec(item(), 0..4), option::of(name()))
        .prop_map(|(position, items, next)| StatePage {
            position,
            items,
            next,
        })
        .boxed()
}

fn item() -> BoxedStrategy<StateItem> {
    (name(), position(), option::of(payload()))
        .prop_map(|(key, version, value)| StateItem {
            key,
            version,
            value,
        })
        .boxed()
}

fn locks_page() -> BoxedStrategy<LocksPage> {
    let lock = (name(), option::of(holder()), vec(waiter(), 0..4));
    let lock = lock.prop_map(|(lock, held, queue)| LockInfo { lock, held, queue });
    (position(), vec(lock, 0..4), option::of(name()))
        .prop_map(|(position, locks, next)| LocksPage {
            position,
            locks,
            next,
        })
        .boxed()
}

fn holder() -> BoxedStrategy<Holder> {
    (id(Offset), id(MemberId), user(), integer())
        .prop_map(|(fence, member, user, until_ms)| Holder {
            fence,
            member,
            user,
            until_ms,
        })
        .boxed()
}

fn waiter() -> BoxedStrategy<Waiter> {
    (id(MemberId), user())
        .prop_map(|(member, user)| Waiter { member, user })
        .boxed()
}

fn timers_page() -> BoxedStrategy<TimersPage> {
    let timer = (name(), integer(), user(), payload());
    let timer = timer.prop_map(|(name, due_ms, user, payload)| TimerInfo {
        name,
        due_ms,
        user,
        payload,
    });
    (position(), vec(timer, 0..4), option::of(name()))
        .prop_map(|(position, timers, next)| TimersPage {
            position,
            timers,
            next,
        })
        .boxed()
}

fn room_frames() -> BoxedStrategy<ServerFrame> {
    let room = || id(RoomAlias);
    let kind = select(vec![ChangeKind::Present, ChangeKind::Gone]);
    let change = (id(MemberId), kind, user(), option::of(payload())).prop_map(
        |(member, kind, user, value)| PresenceChange {
            member,
            kind,
            user,
            value,
        },
    );
    prop_oneof![
        (room(), entry()).prop_map(|(room, entry)| Event { room, entry }.into()),
        (room(), id(Offset)).prop_map(|(room, offset)| Advance { room, offset }.into()),
        (room(), id(Offset)).prop_map(|(room, offset)| CaughtUp { room, offset }.into()),
        (room(), id(MemberId), user(), option::of(key()), payload()).prop_map(
            |(room, from, user, key, payload)| Signalled {
                room,
                from,
                user,
                key,
                payload
            }
            .into()
        ),
        (room(), integer(), integer(), vec(change, 0..4)).prop_map(
            |(room, revision, occupancy, changes)| {
                PresenceDelta {
                    room,
                    revision,
                    occupancy,
                    changes,
                }
                .into()
            }
        ),
        (room(), any::<u16>(), ".{0,20}", retry(), optional()).prop_map(
            |(room, code, text, retry, after_ms)| {
                let code = WireErrorCode(code);
                Left {
                    room,
                    code,
                    text,
                    retry,
                    after_ms,
                }
                .into()
            }
        ),
        (
            room(),
            (id(Offset), integer(), user()),
            option::of(op()),
            vec(state_change(), 0..4)
        )
            .prop_map(
                |(room, (offset, time_ms, user), op, changes)| StateChanged {
                    room,
                    offset,
                    time_ms,
                    user,
                    op,
                    changes
                }
                .into()
            ),
        (
            room(),
            (id(Offset), integer(), name()),
            lock_why(),
            option::of(holder()),
            vec(waiter(), 0..4)
        )
            .prop_map(
                |(room, (offset, time_ms, lock), why, held, queue)| LockChanged {
                    room,
                    offset,
                    time_ms,
                    lock,
                    why,
                    held,
                    queue
                }
                .into()
            ),
        (room(), (id(Offset), integer(), user()), timer_change()).prop_map(
            |(room, (offset, time_ms, user), change)| TimerChanged {
                room,
                offset,
                time_ms,
                user,
                name: change.name,
                what: change.what,
                due_ms: change.due_ms,
                payload: change.payload
            }
            .into()
        ),
    ]
    .boxed()
}

fn lock_why() -> impl Strategy<Value = LockWhy> {
    select(vec![
        LockWhy::Granted,
        LockWhy::Queued,
        LockWhy::Released,
        LockWhy::Expired,
        LockWhy::Left,
    ])
}

fn state_change() -> BoxedStrategy<StateChange> {
    (name(), option::of(payload()))
        .prop_map(|(key, value)| StateChange { key, value })
        .boxed()
}

fn timer_change() -> BoxedStrategy<TimerChange> {
    let what = select(vec![TimerWhat::Set, TimerWhat::Cancelled, TimerWhat::Fired]);
    (name(), what, integer(), option::of(payload()))
        .prop_map(|(name, what, due_ms, payload)| TimerChange {
            name,
            what,
            due_ms,
            payload,
        })
        .boxed()
}

fn lock_change() -> BoxedStrategy<LockChange> {
    let session = || any::<u128>().prop_map(SessionId);
    let held = (holder(), session(), integer());
    let held = held.prop_map(|(holder, session, ttl_ms)| LoggedHolder {
        fence: holder.fence,
        member: holder.member,
        user: holder.user,
        until_ms: holder.until_ms,
        session,
        ttl_ms,
    });
    let waiter = (waiter(), session(), integer());
    let waiter = waiter.prop_map(|(waiter, session, ttl_ms)| LoggedWaiter {
        member: waiter.member,
        user: waiter.user,
        session,
        ttl_ms,
    });
    (name(), lock_why(), option::of(held), vec(waiter, 0..4))
        .prop_map(|(lock, why, held, queue)| LockChange {
            lock,
            why,
            held,
            queue,
        })
        .boxed()
}

fn connection_frames() -> BoxedStrategy<ServerFrame> {
    prop_oneof![
        integer().prop_map(|expires_ms| TokenExpiring { expires_ms }.into()),
        (integer(), ".{0,20}").prop_map(|(reconnect_after_ms, resume)| Goaway {
            reconnect_after_ms,
            resume
        }
        .into()),
    ]
    .boxed()
}

// --- fields -----------------------------------------------------------------------------------------------------------

/// Small, large and the bounds of every width that MessagePack has.
fn integer() -> impl Strategy<Value = u64> {
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

fn optional() -> impl Strategy<Value = Option<u64>> {
    option::of(integer())
}

fn id<T: Debug>(wrap: fn(u64) -> T) -> impl Strategy<Value = T> {
    integer().prop_map(wrap)
}

fn position() -> BoxedStrategy<Position> {
    (integer(), integer())
        .prop_map(|(epoch, offset)| Position::new(Epoch(epoch), Offset(offset)))
        .boxed()
}

fn op() -> BoxedStrategy<OpId> {
    (id(ProducerId), id(Sequence))
        .prop_map(|(producer, sequence)| OpId { producer, sequence })
        .boxed()
}

fn text<const MAX: usize>() -> impl Strategy<Value = Text<MAX>> {
    ".{0,30}".prop_map(|text| Text::new(&text).unwrap())
}

fn user() -> BoxedStrategy<UserId> {
    "[^\\x00-\\x1f\\x7f]{1,30}"
        .prop_map(|text| UserId::parse(&text).unwrap())
        .boxed()
}

fn key() -> BoxedStrategy<SignalKey> {
    "[!-~]{1,64}"
        .prop_map(|text| SignalKey::parse(&text).unwrap())
        .boxed()
}

fn name() -> BoxedStrategy<Key> {
    "[^\\x00-\\x1f\\x7f]{1,30}"
        .prop_map(|text| Key::parse(&text).unwrap())
        .boxed()
}

fn prefix() -> BoxedStrategy<KeyPrefix> {
    "[^\\x00-\\x1f\\x7f]{0,30}"
        .prop_map(|text| KeyPrefix::parse(&text).unwrap())
        .boxed()
}

fn watch() -> impl Strategy<Value = Watch> {
    select(vec![Watch::None, Watch::Occupancy, Watch::Members])
}

fn retry() -> impl Strategy<Value = Retry> {
    select(vec![Retry::Never, Retry::Now, Retry::After, Retry::Refresh])
}

fn limits() -> BoxedStrategy<Limits> {
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

fn entry() -> BoxedStrategy<Entry> {
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

/// Payloads that pass their check.
fn payload() -> BoxedStrategy<Payload> {
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

fn json() -> BoxedStrategy<String> {
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

/// A field of a newer version, in both encodings.
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

/// Random bytes, with those that open something more often than chance would have them.
fn hostile_byte() -> impl Strategy<Value = u8> {
    let openers: Vec<u8> = (0x80..=0x9f)
        .chain(0xa0..=0xa3)
        .chain(0xc4..=0xc9)
        .chain(0xd4..=0xdf)
        .chain(0x00..=0x30)
        .collect();
    prop_oneof![any::<u8>(), select(openers)]
}
