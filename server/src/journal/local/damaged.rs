//! Journals on a real directory that somebody has damaged: what a look at them finds, and what a repair makes of them.

use std::fs;
use std::path::{Path, PathBuf};

use roomful_protocol::payload::Payload;

use super::tests::{Running, TestDirectory, calls, settings};
use super::*;
use crate::journal::conformance::{Calls, LOOSE, entry, room};

/// Rooms `a` and `b` with ten entries each, a snapshot of `a` at 4 and a register in it; killed, or ended in order.
pub(super) fn filled(is_orderly: bool) -> TestDirectory {
    let mut running = Running::new(settings());
    let mut rooms = calls(&mut running);
    for id in [room("a"), room("b")] {
        rooms.open(&id, LOOSE);
    }
    for offset in 1..=10 {
        for id in [room("a"), room("b")] {
            append(&mut rooms, &id, offset);
        }
        if offset == 4 {
            let content = Bytes::from_static(SNAPSHOT);
            let at = Offset(4);
            rooms
                .journal()
                .snapshot(&room("a"), Snapshot { at, content });
            let set = rooms.journal().register(&room("a"), "k".into(), "v".into());
            rooms.stored(set).unwrap();
        }
    }
    match is_orderly {
        true => running.close(),
        false => running.crash(),
    }
}

fn append(rooms: &mut Calls<'_>, id: &RoomId, offset: u64) {
    let entry = Entry {
        payload: Payload::text(format!("entry {offset} of {id}")),
        ..Entry::clone(&entry(offset, EntryKind::Publish))
    };
    rooms.append(id, &Arc::new(entry)).unwrap();
}

pub(super) fn look(directory: &TestDirectory) -> (Verified, Vec<Finding>) {
    let mut findings = Vec::new();
    let found = &mut |finding| findings.push(finding);
    let clock = Clock::system();
    let verified = verify(directory.path(), 0, &clock, read_snapshot, found).unwrap();
    assert_eq!(verified.findings, findings.len() as u64);
    (verified, findings)
}

fn read_snapshot(content: &[u8]) -> Result<(), String> {
    match content == SNAPSHOT {
        true => Ok(()),
        false => Err("another form".to_owned()),
    }
}

const SNAPSHOT: &[u8] = b"what the room is at four";

/// Flips the first bit of some bytes in a file.
pub(super) fn flip(path: &Path, part: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    let mut windows = bytes.windows(part.len());
    let at = windows.position(|window| window == part).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

pub(super) fn log(directory: &TestDirectory) -> PathBuf {
    let log = directory.path().join("journal/log");
    let mut segments = fs::read_dir(log).unwrap();
    segments.next().unwrap().unwrap().path()
}

/// The file of the store in which entries are.
fn table(directory: &TestDirectory) -> PathBuf {
    let mut files = Vec::new();
    let mut waiting = vec![directory.path().join("journal/store/keyspaces")];
    while let Some(path) = waiting.pop() {
        for entry in fs::read_dir(path).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => waiting.push(entry.path()),
                false => files.push(entry.path()),
            }
        }
    }
    let has_entries = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        bytes.windows(ENTRY.len()).any(|window| window == ENTRY)
    };
    files.into_iter().find(has_entries).unwrap()
}

const ENTRY: &[u8] = b"entry 1 of default/chat:a";

/// What is whole is counted, and nothing is found; the same beside a journal that runs, which takes more meanwhile.
#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    for is_orderly in [false, true] {
        let directory = filled(is_orderly);
        let (verified, findings) = look(&directory);
        assert_eq!(findings, []);
        let Verified {
            rooms,
            entries,
            snapshots,
            registers,
            segments,
            ..
        } = verified;
        assert_eq!((rooms, entries, snapshots, registers), (2, 20, 1, 1));
        assert_eq!(segments, u64::from(!is_orderly));
        // It has changed nothing.
        assert_eq!(look(&directory), (verified, findings));

        let mut running = Running::on(directory, settings());
        let mut rooms = calls(&mut running);
        rooms.open(&room("b"), LOOSE);
        append(&mut rooms, &room("b"), 11);
        append(&mut rooms, &room("b"), 12);
        let local = running.local.as_ref().unwrap();
        let mut findings = Vec::new();
        let found = &mut |finding| findings.push(finding);
        let verified = local.verify(read_snapshot, found);
        assert_eq!(findings, []);
        assert_eq!((verified.rooms, verified.entries), (2, 22));
        running.close();
    }
}

/// A record in the log that can't be read is named with its room and offset, and so is what follows from it once it has gone into
/// the store.
#[test]
fn a_damaged_record_is_named() {
    let directory = filled(false);
    let log = log(&directory);
    flip(&log, b"entry 7 of default/chat:a");
    let (_, findings) = look(&directory);
    let expected = Finding {
        file: format!("log/{}", log.file_name().unwrap().to_str().unwrap()),
        room: Some(room("a")),
        offset: Some(Offset(7)),
        what: "a record can't be read".to_owned(),
    };
    assert_eq!(findings, [expected]);
    let directory = Running::on(directory, settings()).close();
    let (_, findings) = look(&directory);
    let expected = Finding {
        file: "store".to_owned(),
        room: Some(room("a")),
        offset: Some(Offset(7)),
        what: "it is missing".to_owned(),
    };
    assert_eq!(findings, [expected]);
}

/// So are a table of the store, a snapshot of another form, and a file that is gone.
#[test]
fn damage_to_the_store_and_to_files_is_named() {
    let directory = filled(true);
    flip(&table(&directory), ENTRY);
    let (verified, findings) = look(&directory);
    assert_eq!(findings[0].file, "store", "{findings:?}");
    assert_eq!(findings[0].room, Some(room("a")), "{findings:?}");
    assert_eq!(findings[0].offset, Some(Offset(1)), "{findings:?}");
    assert!(verified.entries < 20, "{verified:?}");

    let directory = filled(true);
    let clock = Clock::system();
    let other = |_: &[u8]| Err("another form".to_owned());
    let mut findings = Vec::new();
    verify(directory.path(), 0, &clock, other, &mut |finding| {
        findings.push(finding.what);
    })
    .unwrap();
    assert_eq!(findings, ["its snapshot at 4: another form"]);

    let directory = filled(false);
    fs::remove_file(log(&directory)).unwrap();
    let (_, findings) = look(&directory);
    assert_eq!(findings[0].what, "the segment is missing");
    assert_eq!(findings[0].room, None);
}

pub(super) fn plan(directory: &TestDirectory) -> Result<(Repair, Vec<String>), RepairError> {
    let mut said = Vec::new();
    let say = &mut |line: &str| said.push(line.to_owned());
    let clock = Clock::system();
    Repair::plan(directory.path(), 0, &clock, read_snapshot, say).map(|repair| (repair, said))
}

pub(super) const REPAIRED: Epoch = Epoch(8);

/// Repairs a journal; gives what was said of rooms.
fn repaired(directory: &TestDirectory) -> Vec<String> {
    let (repair, said) = plan(directory).unwrap();
    let aside = repair.apply(REPAIRED).unwrap();
    assert!(aside.join("store").is_dir(), "the damaged one is kept");
    assert_eq!(look(directory).1, []);
    assert!(matches!(plan(directory), Err(RepairError::Whole(_))));
    said.into_iter()
        .filter(|line| !line.starts_with("damaged: "))
        .collect()
}

/// The epochs and the entries of both rooms, and whether the first one has its snapshot and its register; they take more.
fn rooms_of(directory: TestDirectory) -> [(Epoch, Vec<u64>); 2] {
    let later = Settings {
        first_epoch: Epoch(9),
        ..settings()
    };
    let mut running = Running::on(directory, later);
    let mut after = calls(&mut running);
    let found = [room("a"), room("b")].map(|id| {
        let opened = after.open(&id, LOOSE);
        let entries = after.all(&id);
        append(&mut after, &id, opened.head.0 + 1);
        (opened.epoch, entries)
    });
    running.close();
    found
}

/// A room is cut before its first entry that can't be read, with a new epoch; behind a snapshot nothing is cut that it holds. Nothing
/// else of anybody is lost, whether the damage is in the log or in the store.
#[test]
fn a_damaged_room_is_cut_and_no_other() {
    for (flipped, stays, words) in [
        (7, 1..=6, "entries 1 to 6 stay; lost: entries 7 to 10"),
        (2, 3..=10, "entries 3 to 10 stay; lost: entries 1 to 2"),
        (10, 1..=9, "entries 1 to 9 stay; lost: entry 10"),
    ] {
        for is_taken in [false, true] {
            let directory = filled(false);
            let text = format!("entry {flipped} of default/chat:a");
            flip(&log(&directory), text.as_bytes());
            let directory = match is_taken {
                true => Running::on(directory, settings()).close(),
                false => directory,
            };
            let said = repaired(&directory);
            let expected = format!("default/chat:a: what it was at 4, and {words}");
            assert!(said[0].starts_with(&expected), "{said:?}");
            assert_eq!(said[1], "1 room is whole and stays as it is");
            let mut running = Running::on(directory, settings());
            let opened = calls(&mut running).open(&room("a"), LOOSE);
            assert_eq!(opened.snapshot.unwrap().content, SNAPSHOT);
            assert_eq!(opened.registers, [("k".into(), "v".into())]);
            let [first, second] = rooms_of(running.close());
            assert_eq!(first, (REPAIRED, stays.clone().collect()));
            assert_eq!(second, (Epoch(5), (1..=10).collect()));
        }
    }
}

/// What can't be read may have been anybody's: every room has a new epoch, and what is there of it.
#[test]
fn damage_that_may_be_anybodys_gives_all_rooms_a_new_epoch() {
    let directory = filled(true);
    let mut running = Running::on(directory, settings());
    let mut rooms = calls(&mut running);
    rooms.open(&room("b"), LOOSE);
    append(&mut rooms, &room("b"), 11);
    let directory = running.crash();
    fs::remove_file(log(&directory)).unwrap();
    let said = repaired(&directory);
    for line in &said[..2] {
        assert!(line.contains("entries 1 to 10 stay"), "{said:?}");
        assert!(line.ends_with("what was stored last, if that was its own"));
    }
    let all = (1..=10).collect::<Vec<_>>();
    assert_eq!(
        rooms_of(directory),
        [(REPAIRED, all.clone()), (REPAIRED, all)]
    );
}

/// A table of the store that can't be read: what stands in it is lost, and the rooms are there.
#[test]
fn a_damaged_store_is_left_behind() {
    let directory = filled(true);
    flip(&table(&directory), ENTRY);
    let said = repaired(&directory);
    assert_eq!(said.last().unwrap(), "no room is whole");
    let found = rooms_of(directory);
    assert!(found.iter().all(|(epoch, _)| *epoch == REPAIRED));
}

/// A journal that is in use, of a later version, whole, or not there at all is left as it is.
#[test]
fn what_cannot_be_repaired_is_said() {
    let directory = filled(true);
    assert!(matches!(plan(&directory), Err(RepairError::Whole(_))));
    let running = Running::on(directory, settings());
    let directory = running.directory.as_ref().unwrap();
    let error = plan(directory).unwrap_err().to_string();
    assert!(error.contains("another process uses"), "{error}");
    let directory = running.close();
    fs::write(directory.path().join("journal/FORMAT"), "roomful journal 7").unwrap();
    let error = plan(&directory).unwrap_err().to_string();
    assert!(error.contains("format 7"), "{error}");
    let error = plan(&TestDirectory::new()).unwrap_err().to_string();
    assert!(error.contains("there is no journal in"), "{error}");
}
