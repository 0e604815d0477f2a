//! Journals on a real directory that somebody has damaged: what a look at them finds, and what a repair makes of them.

use std::fs;
use std::path::{Path, PathBuf};

use roomful_protocol::payload::Payload;

use super::tests::{Running, TestDirectory, calls, settings};
use super::*;
use crate::journal::conformance::{Calls, LOOSE, entry, room};

/// Rooms `a` and `b` with ten entries each, a snapshot of `a` at 4 and a register in it; killed, or ended in order.
fn filled(is_orderly: bool) -> TestDirectory {
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

fn look(directory: &TestDirectory) -> (Verified, Vec<Finding>) {
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
fn flip(path: &Path, part: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    let mut windows = bytes.windows(part.len());
    let at = windows.position(|window| window == part).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn log(directory: &TestDirectory) -> PathBuf {
    let log = directory.path().join("journal/log");
    let mut segments = fs::read_dir(log).unwrap();
    segments.next().unwrap().unwrap().path()
}

/// The largest file of the store: that of entries.
fn table(directory: &TestDirectory) -> PathBuf {
    let mut files = Vec::new();
    let mut waiting = vec![directory.path().join("journal/store/keyspaces")];
    while let Some(path) = waiting.pop() {
        for entry in fs::read_dir(path).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => waiting.push(entry.path()),
                false => files.push((entry.metadata().unwrap().len(), entry.path())),
            }
        }
    }
    files.retain(|(_, path)| path.parent().unwrap().ends_with("tables"));
    files.sort();
    files.pop().unwrap().1
}

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
        let verified = local.verify(read_snapshot, found).unwrap();
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
    let [finding] = &findings[..] else {
        panic!("{findings:?}");
    };
    assert_eq!(finding.room, Some(room("a")));
    assert_eq!(finding.offset, Some(Offset(7)));
    assert_eq!(finding.what, "it is missing, and so on up to 10");
}

/// So are a table of the store, a snapshot of another form, and a file that is gone.
#[test]
fn damage_to_the_store_and_to_files_is_named() {
    let directory = filled(true);
    let table = table(&directory);
    let mut bytes = fs::read(&table).unwrap();
    bytes[100] ^= 1;
    fs::write(&table, bytes).unwrap();
    let (verified, findings) = look(&directory);
    assert_eq!(findings[0].file, "store");
    assert!(findings.iter().all(|finding| finding.room.is_some()));
    assert!(verified.entries < 20, "{verified:?}");

    let directory = filled(true);
    let clock = Clock::system();
    let other = |_: &[u8]| Err("another form".to_owned());
    let mut findings = Vec::new();
    verify(directory.path(), 0, &clock, other, &mut |finding| {
        findings.push(finding.what)
    })
    .unwrap();
    assert_eq!(findings, ["its snapshot at 4: another form"]);

    let directory = filled(false);
    fs::remove_file(log(&directory)).unwrap();
    let (_, findings) = look(&directory);
    assert_eq!(findings[0].what, "the segment is missing");
    assert_eq!(findings[0].room, None);
}
