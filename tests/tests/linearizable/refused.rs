//! Histories that the checker has to refuse, each beside one that it has to take.

use roomful_protocol::error::{ErrorCode, Retry};
use roomful_protocol::frame::{
    Change, Entry, EntryKind, Error, LockChange, LockReply, LockRequest, LockWhy, LoggedHolder,
    LoggedWaiter, OpId, Published, Reply, StateChange, StateChanges, StateItem, StatePage,
    StateRequest,
};
use roomful_protocol::id::{Epoch, MemberId, Offset, ProducerId, Sequence, SessionId, UserId};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;
use roomful_tests::keyed::{fenced, key, put};

use super::checker::check;
use super::folded::Folded;
use super::history::{Answer, Asked, Operation};
use super::worker::everything;

const EPOCH: Epoch = Epoch(3);

/// Two writers who saw the same version: only one of them can have been taken.
#[test]
fn a_lost_update_is_refused() {
    let first = write(1, (0, 1), put("a", "1"), 1);
    let second = |seen| write(2, (2, 3), on(seen, put("a", "2")), 2);
    let third = |seen| write(3, (4, 5), on(seen, put("a", "3")), 3);
    let log = [
        wrote(1, 1, "a", "1"),
        wrote(2, 2, "a", "2"),
        wrote(3, 3, "a", "3"),
    ];
    taken(&log, &[first.clone(), second(1), third(2)]);
    refused(&log, &[first, second(1), third(1)], "a lost update");
}

/// A write that was acknowledged and is not in the log, is there twice, or elsewhere.
#[test]
fn a_lost_doubled_or_moved_write_is_refused() {
    let operations = [write(1, (0, 1), put("a", "1"), 1)];
    let wrote = |offset| wrote(offset, 1, "a", "1");
    taken(&[wrote(1)], &operations);
    refused(&[], &operations, "is lost");
    refused(&[wrote(1), wrote(2)], &operations, "twice");
    let other = write(2, (2, 3), put("b", "2"), 2);
    let log = [self::wrote(1, 2, "b", "2"), wrote(2)];
    refused(&log, &[operations[0].clone(), other], "elsewhere");
}

/// What nobody knows the outcome of may be there or not, but not before what was known when it was sent.
#[test]
fn an_unknown_write_may_be_anywhere_behind_its_beginning() {
    let unknown = |invoked| Operation {
        answer: None,
        ..write(1, (invoked, 0), put("a", "1"), 0)
    };
    let other = write(2, (2, 4), put("b", "2"), 1);
    let log = [wrote(1, 2, "b", "2")];
    taken(&log, &[unknown(0), other.clone()]);
    let log = [wrote(1, 2, "b", "2"), wrote(2, 1, "a", "1")];
    taken(&log, &[unknown(0), other.clone()]);
    taken(&log, &[unknown(6), other]);
    let other = write(2, (2, 4), put("b", "2"), 2);
    let log = [wrote(1, 1, "a", "1"), wrote(2, 2, "b", "2")];
    taken(&log, &[unknown(3), other.clone()]);
    refused(&log, &[unknown(5), other], "stands before what was known");
}

/// A page of a position before what was acknowledged when it was asked for, and one that is not what its position says.
#[test]
fn a_stale_read_is_refused() {
    let writes = [
        write(1, (0, 1), put("a", "1"), 1),
        write(2, (2, 6), on(1, put("a", "2")), 2),
    ];
    let log = [wrote(1, 1, "a", "1"), wrote(2, 2, "a", "2")];
    let with = |page| [&writes[..], &[page]].concat();
    taken(&log, &with(read((3, 4), 1, 1, "1")));
    taken(&log, &with(read((3, 4), 2, 2, "2")));
    taken(&log, &with(read((7, 8), 2, 2, "2")));
    refused(&log, &with(read((7, 8), 1, 1, "1")), "a stale page");
    refused(
        &log,
        &with(read((3, 4), 2, 1, "1")),
        "not the state of its position",
    );
    refused(
        &log,
        &with(read((3, 4), 2, 2, "1")),
        "not the state of its position",
    );
    // The second reader began when the first knew more already.
    let both = [read((3, 4), 2, 2, "2"), read((5, 7), 1, 1, "1")];
    refused(&log, &[&writes[..], &both].concat(), "a stale page");
}

/// A refusal has to tell of what there was at some moment while it was asked for.
#[test]
fn a_refusal_that_no_state_explains_is_refused() {
    let writes = [
        write(1, (0, 1), put("a", "1"), 1),
        write(2, (2, 5), on(1, put("a", "2")), 2),
    ];
    let log = [wrote(1, 1, "a", "1"), wrote(2, 2, "a", "2")];
    let conflict = |times, wanted, there: Option<(u64, &str)>| {
        let current = there.map(|(version, text)| item(version, text));
        let error = error(ErrorCode::Conflict, current.into_iter().collect());
        let refused = answered(
            writing(3, vec![on(wanted, put("a", "3"))]),
            times,
            Err(error),
        );
        [&writes[..], &[refused]].concat()
    };
    taken(&log, &conflict((3, 4), 9, Some((1, "1"))));
    taken(&log, &conflict((3, 4), 1, Some((2, "2"))));
    taken(&log, &conflict((6, 7), 1, Some((2, "2"))));
    let no_state = "no state explains";
    refused(&log, &conflict((6, 7), 9, Some((1, "1"))), no_state);
    refused(&log, &conflict((6, 7), 2, Some((2, "2"))), no_state);
    refused(&log, &conflict((6, 7), 1, None), no_state);
    let there = [&log[..], &[wrote(3, 3, "a", "3")]].concat();
    let sent_once = conflict((3, 4), 2, Some((1, "1")));
    refused(&there, &sent_once, "a refused write has taken effect");
}

/// A lock is granted while somebody holds it, or out of turn.
#[test]
fn two_holders_are_refused() {
    use LockWhy::{Expired, Granted, Queued, Released};
    let ann = |fence| Some(holder("ann", fence));
    let bob = |fence| Some(holder("bob", fence));
    let queue = || vec![waiter("bob")];
    let waits = |offset| lock(offset, Queued, ann(1), queue());
    let granted = lock(1, Granted, ann(1), vec![]);
    taken(
        &[
            granted.clone(),
            waits(2),
            lock(3, Released, None, queue()),
            lock(4, Granted, bob(4), vec![]),
            lock(5, Expired, None, vec![]),
        ],
        &[],
    );
    let follow = "can't follow";
    refused(
        &[granted.clone(), lock(2, Granted, bob(2), vec![])],
        &[],
        follow,
    );
    refused(
        &[granted.clone(), waits(2), lock(3, Granted, bob(3), vec![])],
        &[],
        follow,
    );
    let out_of_turn = lock(4, Granted, Some(holder("cat", 4)), queue());
    let log = [
        granted.clone(),
        waits(2),
        lock(3, Expired, None, queue()),
        out_of_turn,
    ];
    refused(&log, &[], follow);
    refused(
        &[granted.clone(), lock(2, Queued, bob(1), queue())],
        &[],
        follow,
    );
    refused(&[lock(1, Granted, ann(7), vec![])], &[], follow);
    // Somebody is told that it holds the lock, and never did.
    let log = [granted];
    taken(&log, &[acquired("ann", 1, 0)]);
    refused(&log, &[acquired("bob", 1, 0)], "never held it");
}

/// A lease ends before the time that its holder was told.
#[test]
fn a_short_lease_is_refused() {
    let log = |time_ms| {
        let expired = lock(2, LockWhy::Expired, None, vec![]);
        [
            lock(1, LockWhy::Granted, Some(holder("ann", 1)), vec![]),
            Entry { time_ms, ..expired },
        ]
    };
    let operations = [acquired("ann", 1, 50)];
    taken(&log(50), &operations);
    refused(&log(49), &operations, "was to last until 50");
}

/// A write under a grant that was not the lock's newest where it was taken.
#[test]
fn a_stale_fence_is_refused() {
    let locks = [
        lock(1, LockWhy::Granted, Some(holder("ann", 1)), vec![]),
        lock(2, LockWhy::Expired, None, vec![]),
        lock(3, LockWhy::Granted, Some(holder("bob", 3)), vec![]),
    ];
    let write = |fence, place| write(1, (0, 9), fenced(put("a", "1"), "m", at(fence)), place);
    let behind = [&locks[..], &[wrote(4, 1, "a", "1")]].concat();
    taken(&behind, &[write(3, 4)]);
    refused(&behind, &[write(1, 4)], "a stale fence");
    refused(&behind, &[write(4, 4)], "a stale fence");
    let between = [&locks[..2], &[wrote(3, 1, "a", "1")]].concat();
    taken(&between, &[write(1, 3)]);
    // Refused for a fence that was good all the time.
    let error = error(ErrorCode::StaleFence, Vec::new());
    let change = fenced(put("a", "1"), "m", at(3));
    let good = answered(writing(1, vec![change]), (0, 9), Err(error));
    taken(&locks, std::slice::from_ref(&good));
    let known = acquired("bob", 3, 0);
    let later = Operation { invoked: 2, ..good };
    refused(&locks, &[known, later], "no state explains");
}

fn taken(log: &[Entry], operations: &[Operation]) {
    let checked = Folded::of(EPOCH, log).and_then(|folded| check(&folded, operations));
    assert!(checked.is_ok(), "{checked:?}");
}

fn refused(log: &[Entry], operations: &[Operation], why: &str) {
    let checked = Folded::of(EPOCH, log).and_then(|folded| check(&folded, operations));
    let wrong = checked.expect_err("it has to be refused");
    assert!(wrong.contains(why), "{wrong}");
}

/// An acknowledged write of one key.
fn write(number: u64, times: (u64, u64), change: Change, place: u64) -> Operation {
    let published = Published {
        position: at(place),
        time_ms: 0,
        duplicate: false,
    };
    answered(
        writing(number, vec![change]),
        times,
        Ok(Reply::Published(published)),
    )
}

fn read(times: (u64, u64), place: u64, version: u64, text: &str) -> Operation {
    let page = StatePage {
        position: at(place),
        items: vec![item(version, text)],
        next: None,
    };
    answered(Asked::State(everything()), times, Ok(Reply::State(page)))
}

fn writing(number: u64, changes: Vec<Change>) -> Asked {
    Asked::State(StateRequest::Write {
        op: Some(op(number)),
        changes,
    })
}

/// Somebody who is told that it has the lock.
fn acquired(who: &str, fence: u64, until_ms: u64) -> Operation {
    let asked = Asked::Lock(LockRequest::Acquire {
        lock: key("m"),
        ttl_ms: 50,
        queue: true,
    });
    let fence = at(fence);
    let reply = Reply::Lock(LockReply::Granted { fence, until_ms });
    Operation {
        user: user(who),
        ..answered(asked, (0, 1), Ok(reply))
    }
}

fn answered(asked: Asked, times: (u64, u64), reply: Result<Reply, Error>) -> Operation {
    let (invoked, at) = times;
    Operation {
        user: user("ann"),
        invoked,
        attempts: 1,
        asked,
        answer: Some(Answer { at, reply }),
    }
}

fn error(code: ErrorCode, current: Vec<StateItem>) -> Error {
    Error {
        request: None,
        code: code.into(),
        text: String::new(),
        retry: Retry::Never,
        after_ms: None,
        current,
    }
}

fn item(version: u64, text: &str) -> StateItem {
    StateItem {
        key: key("a"),
        version: at(version),
        value: Some(Payload::text(text)),
    }
}

fn on(version: u64, change: Change) -> Change {
    change.if_version(at(version))
}

fn wrote(offset: u64, number: u64, name: &str, text: &str) -> Entry {
    let changes = StateChanges {
        changes: vec![StateChange {
            key: key(name),
            value: Some(Payload::text(text)),
        }],
    };
    Entry {
        op: Some(op(number)),
        ..entry(offset, EntryKind::State, changes.to_payload())
    }
}

fn lock(offset: u64, why: LockWhy, held: Option<LoggedHolder>, queue: Vec<LoggedWaiter>) -> Entry {
    let change = LockChange {
        lock: key("m"),
        why,
        held,
        queue,
    };
    entry(offset, EntryKind::Lock, change.to_payload())
}

fn entry(offset: u64, kind: EntryKind, payload: Payload) -> Entry {
    Entry {
        offset: Offset(offset),
        time_ms: 0,
        kind,
        user: user("ann"),
        op: None,
        payload,
    }
}

fn holder(who: &str, fence: u64) -> LoggedHolder {
    LoggedHolder {
        fence: Offset(fence),
        member: MemberId(1),
        user: user(who),
        until_ms: 0,
        session: SessionId(0),
        ttl_ms: 50,
    }
}

fn waiter(who: &str) -> LoggedWaiter {
    LoggedWaiter {
        member: MemberId(1),
        user: user(who),
        session: SessionId(0),
        ttl_ms: 50,
    }
}

fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

fn op(number: u64) -> OpId {
    OpId {
        producer: ProducerId(1),
        sequence: Sequence(number),
    }
}

fn at(offset: u64) -> Position {
    Position::new(EPOCH, Offset(offset))
}
