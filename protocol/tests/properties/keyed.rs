//! Any of what is said and kept about state, locks, timers and cursors.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use roomful_protocol::frame::*;
use roomful_protocol::id::*;

use super::fields::*;

pub(super) fn state_request() -> BoxedStrategy<StateRequest> {
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

pub(super) fn lock_request() -> BoxedStrategy<LockRequest> {
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

pub(super) fn timer_request() -> BoxedStrategy<TimerRequest> {
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

pub(super) fn cursor_request() -> BoxedStrategy<CursorRequest> {
    prop_oneof![
        (option::of(position()), option::of(position()))
            .prop_map(|(read, delivered)| CursorRequest::Set { read, delivered }),
        Just(CursorRequest::Get),
    ]
    .boxed()
}

pub(super) fn state_page() -> BoxedStrategy<StatePage> {
    (position(), vec(item(), 0..4), option::of(name()))
        .prop_map(|(position, items, next)| StatePage {
            position,
            items,
            next,
        })
        .boxed()
}

pub(super) fn item() -> BoxedStrategy<StateItem> {
    (name(), position(), option::of(payload()))
        .prop_map(|(key, version, value)| StateItem {
            key,
            version,
            value,
        })
        .boxed()
}

pub(super) fn locks_page() -> BoxedStrategy<LocksPage> {
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

pub(super) fn holder() -> BoxedStrategy<Holder> {
    (id(Offset), id(MemberId), user(), integer())
        .prop_map(|(fence, member, user, until_ms)| Holder {
            fence,
            member,
            user,
            until_ms,
        })
        .boxed()
}

pub(super) fn waiter() -> BoxedStrategy<Waiter> {
    (id(MemberId), user())
        .prop_map(|(member, user)| Waiter { member, user })
        .boxed()
}

pub(super) fn timers_page() -> BoxedStrategy<TimersPage> {
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

pub(super) fn lock_why() -> impl Strategy<Value = LockWhy> {
    select(vec![
        LockWhy::Granted,
        LockWhy::Queued,
        LockWhy::Released,
        LockWhy::Expired,
        LockWhy::Left,
    ])
}

pub(super) fn state_change() -> BoxedStrategy<StateChange> {
    (name(), option::of(payload()))
        .prop_map(|(key, value)| StateChange { key, value })
        .boxed()
}

pub(super) fn timer_change() -> BoxedStrategy<TimerChange> {
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

pub(super) fn lock_change() -> BoxedStrategy<LockChange> {
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
