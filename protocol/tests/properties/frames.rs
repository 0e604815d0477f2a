//! Any frame of a direction.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use roomful_protocol::error::WireErrorCode;
use roomful_protocol::frame::*;
use roomful_protocol::id::*;

use super::fields::*;
use super::keyed::*;

pub(super) fn client_frame() -> BoxedStrategy<ClientFrame> {
    let batch = vec(single_client_frame(), 0..4).prop_map(|frames| {
        ClientBatch {
            frames: Frames(frames),
        }
        .into()
    });
    prop_oneof![9 => single_client_frame(), 1 => batch].boxed()
}

pub(super) fn single_client_frame() -> BoxedStrategy<ClientFrame> {
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

pub(super) fn server_frame() -> BoxedStrategy<ServerFrame> {
    let batch = vec(single_server_frame(), 0..4).prop_map(|frames| {
        ServerBatch {
            frames: Frames(frames),
        }
        .into()
    });
    prop_oneof![9 => single_server_frame(), 1 => batch].boxed()
}

pub(super) fn single_server_frame() -> BoxedStrategy<ServerFrame> {
    prop_oneof![replies(), room_frames(), connection_frames()].boxed()
}

pub(super) fn replies() -> BoxedStrategy<ServerFrame> {
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

pub(super) fn reply() -> BoxedStrategy<Reply> {
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

pub(super) fn room_frames() -> BoxedStrategy<ServerFrame> {
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

pub(super) fn connection_frames() -> BoxedStrategy<ServerFrame> {
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
