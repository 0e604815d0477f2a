//! Disks that are full, that fail, and that give back something else than what was stored.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use roomful_protocol::frame::Direction;
use roomful_protocol::payload::Payload;

use super::crash::{AGE_MAX_MS, BOUNDS, HEADROOM, Process};
use super::disk::BLOCK_BYTES;
use super::meta::{self, LogMeta};
use super::segment::SEGMENT_HEAD_BYTES;
use super::simulated::{End, Machine};
use super::store::{Space, View as _};
use super::tests::TestDirectory;
use super::*;
use crate::journal::CompletionResult;
use crate::journal::conformance::{entry, offsets, room};

/// Appends an entry of a size.
fn append(process: &mut Process, id: &RoomId, offset: u64) -> Result<(), JournalError> {
    let entry = entry(offset, EntryKind::Publish);
    match process.face.append(id, Offset(offset - 1), &entry) {
        Outcome::Done(()) => panic!("it takes its time"),
        Outcome::Failed(error) => Err(error),
        Outcome::Later(ticket) => match process.settle().remove(&ticket) {
            Some(CompletionResult::Appended(outcome)) => outcome,
            other => panic!("the end of an append, not {other:?}"),
        },
    }
}

/// Rooms with some entries, a few to a batch, in one segment or more.
fn filled(machine: &Machine, rooms: &[RoomId], entries: u64) -> Process {
    let mut process = Process::start(machine, 1).unwrap();
    for id in rooms {
        process.open(id).unwrap();
    }
    for offset in 1..=entries {
        for id in rooms {
            append(&mut process, id, offset).unwrap();
        }
    }
    process
}

fn read(process: &mut Process, id: &RoomId) -> Vec<u64> {
    let page = process.read(id, Direction::Forward).unwrap();
    offsets(&page.entries)
}

/// With too little space nothing is taken, what is there is read, and with more space all goes on.
#[test]
fn a_disk_with_too_little_space_refuses_and_recovers() {
    let (machine, id) = (Machine::new(1), room("a"));
    let mut process = filled(&machine, std::slice::from_ref(&id), 3);
    machine.set_free(HEADROOM - 1);
    process.parts.committer.look_at_space();
    assert_eq!(process.face.health(), Health::Full);
    assert_eq!(append(&mut process, &id, 4), Err(JournalError::Full));
    let register = process.face.register(&id, "k".into(), "v".into());
    assert!(matches!(register, Outcome::Failed(JournalError::Full)));
    assert_eq!(read(&mut process, &id), [1, 2, 3]);
    machine.set_free(HEADROOM);
    process.parts.committer.look_at_space();
    assert_eq!(append(&mut process, &id, 4), Ok(()));
    assert_eq!(read(&mut process, &id), [1, 2, 3, 4]);
}

/// A write or a sync that fails ends all appends until the next start; what was stored is read all the same, then and before.
#[test]
fn a_disk_that_fails_takes_nothing_until_the_next_start() {
    for is_write in [true, false] {
        let (machine, id) = (Machine::new(1), room("a"));
        let mut process = filled(&machine, std::slice::from_ref(&id), 3);
        match is_write {
            true => machine.fail_write(),
            false => machine.fail_sync(),
        }
        let failed = append_unasked(&mut process, &id, 4);
        assert_eq!(failed, Err(JournalError::Storage));
        assert_eq!(process.face.health(), Health::Failed);
        process.parts.committer.look_at_space();
        assert_eq!(
            process.face.health(),
            Health::Failed,
            "it is not tried again"
        );
        let refused = append(&mut process, &id, 5);
        assert_eq!(refused, Err(JournalError::Storage));
        assert_eq!(read(&mut process, &id), [1, 2, 3]);

        machine.come_back(End::PowerCut);
        let mut process = Process::start(&machine, 2).unwrap();
        let head = process.open(&id).unwrap().head.0;
        assert!(head == 3 || head == 4);
        append(&mut process, &id, head + 1).unwrap();
    }
}

/// A disk that has no place for another segment in spite of the headroom: nothing that was stored is in doubt, so that is refused
/// alone, with all that was asked with it, and goes on when there is space.
#[test]
fn a_segment_without_a_place_is_refused_and_comes_later() {
    let (machine, id) = (Machine::new(1), room("a"));
    let mut process = filled(&machine, std::slice::from_ref(&id), 3);
    machine.set_free(100);
    let mut stored = 3;
    // The segment that is there has room for some.
    let refused = loop {
        match append_unasked(&mut process, &id, stored + 1) {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, JournalError::Full);
    assert_eq!(process.face.health(), Health::Full);
    assert_eq!(read(&mut process, &id), (1..=stored).collect::<Vec<_>>());
    process.face.wake_at(&id, Some(7));
    process.settle();
    assert_eq!(process.face.health(), Health::Full, "nor is anything else");

    machine.set_free(1 << 30);
    process.parts.committer.look_at_space();
    assert_eq!(process.face.health(), Health::Good);
    let without = append_unasked(&mut process, &id, stored + 2);
    assert_eq!(without, Err(JournalError::Conflict), "there is a gap");
    process.face.close(&id);
    assert_eq!(process.open(&id).unwrap().head.0, stored);
    for offset in stored + 1..=stored + 60 {
        append(&mut process, &id, offset).unwrap();
    }
    machine.come_back(End::PowerCut);
    let mut process = Process::start(&machine, 2).unwrap();
    assert_eq!(process.open(&id).unwrap().head.0, stored + 60);
}

/// A start makes its place itself where the disk has none for a segment: the store takes those that are left.
#[test]
fn a_start_on_a_full_disk_takes_old_segments_first() {
    let (machine, id) = (Machine::new(1), room("a"));
    drop(filled(&machine, std::slice::from_ref(&id), 60));
    machine.come_back(End::Kill);
    machine.set_free(100);
    let mut process = Process::start(&machine, 2).unwrap();
    assert_eq!(process.open(&id).unwrap().head.0, 60);
    let first = process.face.first(&id).0;
    assert_eq!(read(&mut process, &id), (first..=60).collect::<Vec<_>>());

    let machine = Machine::new(1);
    machine.set_free(100);
    let Err(error) = Process::start(&machine, 1) else {
        panic!("it has no place at all");
    };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}

/// Nothing is appended to a full disk, so nothing fills the segment in which it stands what is not kept any more: it is sealed for
/// that.
#[test]
fn what_is_trimmed_on_a_full_disk_reaches_the_store() {
    let (machine, id) = (Machine::new(1), room("a"));
    let mut process = taken(&machine, &id);
    machine.set_free(HEADROOM - 1);
    process.parts.committer.look_at_space();
    assert_eq!(process.face.health(), Health::Full);
    assert!(process.parts.committer.seal_trimmed());
    process.ingest().unwrap();
    assert!(!process.parts.committer.seal_trimmed(), "there is nothing");
    process.face.trim(&id, AGE_MAX_MS * 3);
    process.settle();
    assert!(process.parts.committer.seal_trimmed());
    process.ingest().unwrap();
    let log = process.face.open_room(&id).unwrap().log.id;
    let value = machine.get(Space::Logs, &meta::log_key(log)).unwrap();
    let stored = LogMeta::read(&value.unwrap()).unwrap();
    assert_eq!((stored.first, stored.head), (61, 60));
    assert!(!process.parts.committer.seal_trimmed(), "it is there now");
}

/// A store that takes more of the disk than is left is rewritten where little of it is kept, also by a process that has trimmed
/// nothing itself, and by one to which nobody tells how much that is.
#[test]
fn a_store_that_fills_its_disk_gives_space_back() {
    for is_counted in [true, false] {
        let directory = TestDirectory::new();
        let (machine, id) = (Machine::new(1), room("a"));
        let store: Arc<dyn Store> = Arc::new(Fjall::open(directory.path(), 1 << 20).unwrap());
        let start = |starts| {
            let recovered = recover(&machine, &*store, starts == 1).unwrap();
            Process::over(&machine, &store, recovered, starts).unwrap()
        };
        let mut process = start(1);
        process.parts.ingester.sweep(0).unwrap();
        process.open(&id).unwrap();
        let mut random = StdRng::seed_from_u64(1);
        for offset in 1..=200_u64 {
            let mut long = (*entry(offset, EntryKind::Publish)).clone();
            let content: [u8; 1_000] = std::array::from_fn(|_| random.random());
            long.payload = Payload::binary(content.to_vec());
            let appended = process
                .face
                .append(&id, Offset(offset - 1), &Arc::new(long));
            later(&appended);
            if offset % 50 == 0 {
                process.settle();
                process.ingest().unwrap();
            }
        }
        process.parts.committer.close();
        process.ingest().unwrap();
        drop(process);
        if !is_counted {
            store.write(vec![ingest::without_kept()]).unwrap();
        }

        let process = start(2);
        let Process { parts, .. } = process;
        assert_eq!(parts.ingester.has_counted(), is_counted);
        if !is_counted {
            assert!(!parts.ingester.wants_cleaning(1), "nobody knows");
            parts.ingester.sweep(0).unwrap();
        }
        assert!(parts.ingester.wants_cleaning(1));
        let (stored, entries) = (store.entry_bytes(), store.entry_count());
        machine.set_free(stored / 2);
        parts.ingester.clean(&Arc::default()).unwrap();
        let left = store.entry_count();
        assert!((35..100).contains(&left), "{left} of {entries} entries");
        assert!(!parts.ingester.wants_cleaning(1));
    }
}

/// As if the room had not asked for the health before.
fn append_unasked(process: &mut Process, id: &RoomId, offset: u64) -> Result<(), JournalError> {
    let log = Arc::clone(&process.face.open_room(id).unwrap().log);
    let ticket = Ticket(u64::MAX - offset);
    process.face.commands.push(Command::Append {
        log,
        entry: entry(offset, EntryKind::Publish),
        ticket,
    });
    match process.settle().remove(&ticket) {
        Some(CompletionResult::Appended(outcome)) => {
            let room = process.face.open_room(id).unwrap();
            room.head = Offset(offset);
            outcome
        }
        other => panic!("the end of an append, not {other:?}"),
    }
}

/// Any bit of a segment flips while nobody runs: no room shows what was not stored, a room that shows less says that it is damaged,
/// and while it is known whose it was, the other room is as it was. Only the end of the last batch can't be told from a write
/// that never finished, and that only while nothing says that it was synced.
#[test]
fn a_flipped_bit_is_told_and_served_to_nobody() {
    flip_each_bit(false);
    flip_each_bit(true);
}

fn flip_each_bit(is_confirmed: bool) {
    let rooms = [room("a"), room("b")];
    let machine = || {
        let machine = Machine::new(1);
        let mut process = filled(&machine, &rooms, 3);
        if is_confirmed {
            process.parts.committer.confirm();
        }
        machine
    };
    let length = machine()
        .bytes(1)
        .iter()
        .rposition(|byte| *byte != 0)
        .unwrap()
        + 1;
    let mut counts = [0; 4];
    for bit in 0..length * 8 {
        let machine = machine();
        machine.damage(1, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
        let recovered = match recover(&machine, &machine, false) {
            Ok(recovered) => recovered,
            Err(error) => panic!("bit {bit}: {error}"),
        };
        if recovered.is_damaged() {
            counts[0] += 1;
            assert!(machine.has(1), "nothing is deleted on doubt");
            continue;
        }
        let mut process = Process::on(&machine, recovered, 2).unwrap();
        let found = rooms.clone().map(|id| process.open(&id));
        match found {
            [Ok(first), Ok(second)] => {
                let heads = [first.head.0, second.head.0];
                // The last batch was the second room's.
                counts[if heads == [3, 3] { 1 } else { 2 }] += 1;
                assert!(heads == [3, 3] || heads == [3, 2], "bit {bit}: {heads:?}");
                for (id, head) in rooms.iter().zip(heads) {
                    assert_eq!(read(&mut process, id), (1..=head).collect::<Vec<_>>());
                }
            }
            [Ok(whole), Err(error)] | [Err(error), Ok(whole)] => {
                counts[3] += 1;
                assert_eq!((error, whole.head.0), (JournalError::Damaged, 3));
                // It stays so when the segment has gone into the store.
                process.ingest().unwrap();
                let again = rooms.clone().map(|id| process.open(&id).is_ok());
                assert_eq!(again.iter().filter(|is_open| **is_open).count(), 1);
            }
            [Err(_), Err(_)] => panic!("bit {bit} is not of both rooms"),
        }
    }
    // All of these cases are there, but that nothing is told of a loss.
    let [refused, whole, cut, damaged] = counts;
    assert!(refused > 0 && whole > 0 && damaged > 0, "{counts:?}");
    assert_eq!(cut == 0, is_confirmed, "{counts:?}");
}

/// A segment is missing: nobody knows whose entries were in it, so no room is opened, and the rest stays.
#[test]
fn a_missing_segment_refuses_all_rooms() {
    let rooms = [room("a")];
    for missing in [1, 2, 3] {
        let machine = Machine::new(1);
        drop(filled(&machine, &rooms, 60));
        let last = *machine.segments().unwrap().last().unwrap();
        assert!(last >= 3);
        let lost = if missing == 3 { last } else { missing };
        machine.lose(lost);
        let recovered = recover(&machine, &machine, false).unwrap();
        assert!(recovered.is_damaged(), "segment {lost} of {last}");
        let missing = recovered.flaws.iter().find(|flaw| flaw.segment == lost);
        assert_eq!(missing.unwrap().what, "the segment is missing");
    }
    let machine = Machine::new(1);
    drop(filled(&machine, &rooms, 1));
    machine.lose(1);
    assert!(recover(&machine, &machine, false).unwrap().is_damaged());
}

/// A segment is as long as it was made: one that is shorter has lost what stood there, whatever that was.
#[test]
fn a_segment_that_is_too_short_refuses_all_rooms() {
    let machine = Machine::new(1);
    drop(filled(&machine, &[room("a")], 3));
    let length = machine.bytes(1).len();
    for kept in [length - 1, length / 2, SEGMENT_HEAD_BYTES] {
        machine.damage(1, |bytes| bytes.truncate(kept));
        let recovered = recover(&machine, &machine, false).unwrap();
        let flaws: Vec<_> = recovered.flaws.iter().map(|flaw| flaw.what).collect();
        assert_eq!(flaws, ["its end is missing"], "{kept} of {length}");
    }
}

/// The disk doesn't give a sector back any more: the journal opens all the same, wherever the sector is. All rooms are refused, since
/// what stood there may have been anybody's, nothing is cut off as the end of a write, and what stands elsewhere is found.
#[test]
fn a_sector_that_cannot_be_read_is_damage_and_ends_nothing() {
    let (machine, rooms) = (Machine::new(1), [room("a"), room("b")]);
    let new = recover(&machine, &machine, true).unwrap();
    let store: Arc<dyn Store> = Arc::new(machine.clone());
    let mut process = Process::with_segments(&machine, &store, new, 1, 64 << 10).unwrap();
    rooms.iter().for_each(|id| drop(process.open(id).unwrap()));
    for offset in 1..=30 {
        for id in &rooms {
            let payload = Payload::binary(vec![7; 2_000]);
            let entry = Entry {
                payload,
                ..Entry::clone(&entry(offset, EntryKind::Publish))
            };
            later(
                &process
                    .face
                    .append(id, Offset(offset - 1), &Arc::new(entry)),
            );
            process.settle();
        }
    }
    drop(process);
    let segments = machine.segments().unwrap();
    let before: Vec<_> = segments
        .iter()
        .map(|number| machine.bytes(*number))
        .collect();
    assert!(segments.len() > 1);
    for (segment, bytes) in segments.iter().zip(&before) {
        for at in (100..bytes.len()).step_by(BLOCK_BYTES) {
            let place = format!("{at} in segment {segment}");
            machine.spoil(*segment, at..at + 1);
            let recovered = recover(&machine, &machine, false).unwrap();
            assert!(
                recovered.flaws.contains(&Flaw::unreadable(*segment)),
                "{place}"
            );
            assert!(recovered.is_damaged(), "{place}");
            for (number, before) in segments.iter().zip(&before) {
                assert!(machine.bytes(*number) == *before, "{place}");
            }
            let (disk, store) = (Arc::new(machine.clone()), Arc::new(machine.clone()));
            let reader = Reader::new(disk, store, recovered.index);
            let mut files = Vec::new();
            let found = &mut |finding: Finding| files.push(finding.file);
            let verified = verify::verify(&reader, &recovered.flaws, |_| Ok(()), found);
            assert_eq!(files[0], recovered.flaws[0].file(), "{place}");
            // An entry is a batch of its own here, and takes half a block.
            let is_head = at < BLOCK_BYTES;
            assert!(verified.entries >= 57 || is_head, "{place}: {verified:?}");
        }
    }
}

/// The store has lost everything: that is no new journal.
#[test]
fn a_store_that_knows_nothing_refuses_all_rooms() {
    let machine = Machine::new(1);
    drop(filled(&machine, &[room("a")], 3));
    machine.lose(1);
    machine.lose_store();
    assert!(recover(&machine, &machine, false).unwrap().is_damaged());
    assert!(!recover(&machine, &machine, true).unwrap().is_damaged());
}

/// A room that nobody opens any more loses what is too old all the same, and what no snapshot holds stays.
#[test]
fn a_closed_room_grows_old() {
    let rooms = [room("a"), room("b")];
    let machine = Machine::new(1);
    let mut process = filled(&machine, &rooms, 60);
    let pinned = entry(61, EntryKind::State);
    later(&process.face.append(&rooms[1], Offset(60), &pinned));
    process.settle();
    for offset in 62..=90 {
        append(&mut process, &rooms[1], offset).unwrap();
    }
    for id in &rooms {
        process.face.close(id);
    }
    while process.parts.ingester.oldest().is_some() {
        process.ingest().unwrap();
    }
    // They are bounded by their count so far.
    for sweeps in 0..2 {
        for (id, first) in rooms.iter().zip([21, 51]) {
            process.open(id).unwrap();
            assert_eq!(process.face.first(id), Offset(first), "{sweeps} sweeps");
            process.face.close(id);
        }
        process.parts.ingester.sweep(AGE_MAX_MS).unwrap();
    }
    process.parts.ingester.sweep(AGE_MAX_MS * 3).unwrap();
    process.open(&rooms[1]).unwrap();
    let first = process.face.first(&rooms[1]).0;
    assert!((50..=61).contains(&first), "{first}");
    assert_eq!(
        read(&mut process, &rooms[1]),
        (first..=90).collect::<Vec<_>>()
    );
}

/// Times are those of the entries, however far they are from the first one of their segment.
#[test]
fn a_first_entry_of_a_wrong_clock_makes_no_other_old() {
    let (machine, id) = (Machine::new(1), room("a"));
    let mut process = filled(&machine, std::slice::from_ref(&id), 1);
    let now_ms = 1_700_000_000_000;
    for offset in 2..=20 {
        let mut late = (*entry(offset, EntryKind::Publish)).clone();
        late.time_ms = now_ms + offset;
        later(
            &process
                .face
                .append(&id, Offset(offset - 1), &Arc::new(late)),
        );
        process.settle();
    }
    process.face.close(&id);
    process.open(&id).unwrap();
    process.face.trim(&id, now_ms + 1_000);
    assert_eq!(process.face.first(&id), Offset(2));
}

fn later<T>(outcome: &Outcome<T>) {
    assert!(matches!(outcome, Outcome::Later(_)));
}

/// A process in whose store a room's entries are, all but the newest.
fn taken(machine: &Machine, id: &RoomId) -> Process {
    let process = filled(machine, std::slice::from_ref(id), 60);
    while process.parts.ingester.oldest().is_some() {
        process.ingest().unwrap();
    }
    process
}

/// Closes a room, opens it again and gives the first entry that is kept.
fn first_when_opened_again(process: &mut Process, id: &RoomId) -> u64 {
    process.face.close(id);
    process.open(id).unwrap();
    process.face.first(id).0
}

/// What is too old by the age that was told once stays while the room is open: it has other bounds now, or another clock.
#[test]
fn a_room_that_is_open_is_not_swept() {
    let (machine, id) = (Machine::new(1), room("a"));
    let mut process = taken(&machine, &id);
    let first = process.face.first(&id).0;
    process.parts.ingester.sweep(AGE_MAX_MS * 3).unwrap();
    assert_eq!(first_when_opened_again(&mut process, &id), first);
    assert_eq!(read(&mut process, &id), (first..=60).collect::<Vec<_>>());
    process.face.close(&id);
    process.parts.ingester.sweep(AGE_MAX_MS * 3).unwrap();
    assert!(first_when_opened_again(&mut process, &id) > first);
}

/// A room that is closed is swept by the age that it had last, whether it was another one when it was opened or became another
/// one while it was open, and though nothing was appended under it.
#[test]
fn an_age_that_was_raised_counts_for_the_sweep() {
    let longer = HistoryBounds {
        age_max_ms: AGE_MAX_MS * 9,
        ..BOUNDS
    };
    for is_reloaded in [true, false] {
        let (machine, id) = (Machine::new(1), room("a"));
        let mut process = taken(&machine, &id);
        let first = process.face.first(&id).0;
        if is_reloaded {
            process.face.set_bounds(&id, longer);
        } else {
            process.face.close(&id);
            later(&process.face.open(&id, longer));
            process.settle();
            process.face.trim(&id, 1);
        }
        process.settle();
        process.face.close(&id);
        process.parts.committer.close();
        while process.parts.ingester.oldest().is_some() {
            process.ingest().unwrap();
        }
        process.parts.ingester.sweep(AGE_MAX_MS * 3).unwrap();
        process.open(&id).unwrap();
        assert_eq!(process.face.first(&id).0, first, "{is_reloaded}");
    }
}
