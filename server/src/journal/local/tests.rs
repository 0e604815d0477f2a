//! The whole journal on a real directory.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, MutexGuard};
use std::time::Duration;

use roomful_protocol::id::RoomId;

use super::freezing::Part;
use super::*;
use crate::journal::conformance::{self, Calls, LOOSE, Subject, room};
use crate::journal::{Completion, CompletionResult};

/// A directory that goes with the test.
pub(super) struct TestDirectory(PathBuf);

impl TestDirectory {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("roomful-journal-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TestDirectory {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// What the journal has told.
#[derive(Debug, Default)]
struct Heard {
    told: Mutex<Told>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Told {
    completions: HashMap<(ShardId, Ticket), CompletionResult>,
    woken: Vec<RoomId>,
}

impl Heard {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap()
    }

    fn wait<T>(&self, mut look: impl FnMut(&mut Told) -> Option<T>) -> T {
        let mut told = self.told();
        loop {
            if let Some(value) = look(&mut told) {
                return value;
            }
            let (next, waited) = self.more.wait_timeout(told, DEADLINE).unwrap();
            assert!(!waited.timed_out(), "the journal says nothing");
            told = next;
        }
    }
}

impl Notify for Heard {
    fn completed(&self, shard: ShardId, completions: Vec<Completion>) {
        let mut told = self.told();
        for Completion { ticket, result } in completions {
            let before = told.completions.insert((shard, ticket), result);
            assert!(before.is_none(), "told twice");
        }
        self.more.notify_all();
    }

    fn wake(&self, room: RoomId) {
        self.told().woken.push(room);
        self.more.notify_all();
    }
}

const DEADLINE: Duration = Duration::from_secs(30);

const SHARD: ShardId = ShardId(0);

pub(super) fn settings() -> Settings {
    Settings {
        segment_bytes: 1 << 20,
        headroom: Headroom {
            percent: 0,
            bytes_min: 0,
        },
        lock_wait_ms: 0,
        ..Settings::new(Epoch(5), Clock::system())
    }
}

/// A journal that runs, and the rooms of its one shard.
pub(super) struct Running {
    pub(super) local: Option<Local>,
    journal: LocalJournal,
    heard: Arc<Heard>,
    // Last: it goes when nothing uses it any more.
    pub(super) directory: Option<TestDirectory>,
}

impl Running {
    pub(super) fn new(settings: Settings) -> Self {
        Self::on(TestDirectory::new(), settings)
    }

    pub(super) fn on(directory: TestDirectory, settings: Settings) -> Self {
        let heard = Arc::new(Heard::default());
        let local = Local::open(directory.path(), settings).unwrap();
        let notify = Arc::clone(&heard) as Arc<dyn Notify>;
        local.start(&notify).unwrap();
        Self {
            journal: local.of_shard(SHARD),
            local: Some(local),
            heard,
            directory: Some(directory),
        }
    }

    /// Ends it as a kill does: nothing is taken into the store, and nothing says that it is over.
    pub(super) fn crash(mut self) -> TestDirectory {
        self.local.take().unwrap().crash();
        self.directory.take().unwrap()
    }

    /// Ends it in order.
    pub(super) fn close(mut self) -> TestDirectory {
        self.local.take().unwrap().close().unwrap();
        self.directory.take().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(local) = self.local.take() {
            local.close().unwrap();
        }
    }
}

impl Subject for Running {
    fn journal(&mut self) -> &mut dyn Journal {
        &mut self.journal
    }

    fn wait(&mut self, ticket: Ticket) -> CompletionResult {
        self.journal.flush();
        self.heard
            .wait(|told| told.completions.remove(&(SHARD, ticket)))
    }
}

mod as_every_journal {
    use super::*;

    conformance::suite!(Running::new(settings()));
}

/// The same with segments so small that most is in the store when it is asked for.
mod as_every_journal_with_small_segments {
    use super::*;

    conformance::suite!(Running::new(Settings {
        segment_bytes: 2_000,
        ..settings()
    }));
}

/// A running journal as calls that end before they return.
pub(super) fn calls(running: &mut Running) -> Calls<'_> {
    Calls(running)
}

/// A process ends and another begins, in order or not: rooms are as they were, and new ones have a later epoch.
#[test]
fn rooms_are_the_same_after_a_restart() {
    for is_orderly in [true, false] {
        let id = room("a");
        let mut running = Running::new(settings());
        let mut before = calls(&mut running);
        let epoch = before.open(&id, LOOSE).epoch;
        before.open(&room("empty"), LOOSE);
        before.fill(&id, 1..=10);
        let content = Bytes::from_static(b"seven");
        let snapshot = Snapshot {
            at: Offset(7),
            content,
        };
        before.journal().snapshot(&id, snapshot.clone());
        for (key, value) in [("k", "v"), ("gone", "v"), ("gone", "")] {
            let set = before.journal().register(&id, key.into(), value.into());
            before.stored(set).unwrap();
        }
        let directory = match is_orderly {
            true => running.close(),
            false => running.crash(),
        };
        assert_eq!(
            fs::read_dir(directory.path().join("journal/log"))
                .unwrap()
                .count(),
            usize::from(!is_orderly),
            "what ended in order is all in the store"
        );

        let later = Settings {
            first_epoch: Epoch(9),
            ..settings()
        };
        let mut running = Running::on(directory, later);
        let mut after = calls(&mut running);
        let opened = after.open(&id, LOOSE);
        assert_eq!((opened.epoch, opened.head), (epoch, Offset(10)));
        assert_eq!(opened.snapshot, Some(snapshot));
        assert_eq!(opened.recent.len(), 10);
        assert_eq!(opened.registers, [("k".into(), "v".into())]);
        assert_eq!(after.open(&room("empty"), LOOSE).epoch, Epoch(5));
        assert_eq!(after.open(&room("new"), LOOSE).epoch, Epoch(9));
        after.fill(&id, 11..=12);
        assert_eq!(after.all(&id), (1..=12).collect::<Vec<_>>());
    }
}

/// Rooms are woken once when they are due, also after a restart; those of time 0 in the next process.
#[test]
fn rooms_are_woken_when_they_are_due() {
    let clock = Clock::manual(1_000_000);
    let with_clock = || Settings {
        clock: clock.clone(),
        ..settings()
    };
    let mut running = Running::new(with_clock());
    let mut before = calls(&mut running);
    for (name, at_ms) in [
        ("never", None),
        ("soon", Some(1_000_500)),
        ("past", Some(999_000)),
        ("later", Some(2_000_000)),
        ("next", Some(0)),
        ("changed", Some(1_000_500)),
    ] {
        before.open(&room(name), LOOSE);
        before.journal().wake_at(&room(name), at_ms);
    }
    before.journal().wake_at(&room("changed"), Some(2_000_000));
    before.open(&room("never"), LOOSE);
    running
        .heard
        .wait(|told| (told.woken == [room("past")]).then_some(()));
    clock.advance(500);
    running
        .heard
        .wait(|told| (told.woken == [room("past"), room("soon")]).then_some(()));
    let directory = running.close();

    clock.advance(1_000_000);
    let running = Running::on(directory, with_clock());
    let mut woken = std::mem::take(&mut running.heard.told().woken);
    woken.sort();
    let due = ["changed", "later", "next", "past", "soon"];
    assert_eq!(woken, due.map(room));
}

/// A clock that was set forth and back again wakes nothing before its time, and forgets nothing that was set meanwhile.
#[test]
fn rooms_are_woken_on_time_when_the_clock_is_set_back() {
    let clock = Clock::manual(1_000_000);
    let with_clock = Settings {
        clock: clock.clone(),
        ..settings()
    };
    let mut running = Running::new(with_clock);
    let mut before = calls(&mut running);
    for name in ["first", "ahead", "behind"] {
        before.open(&room(name), LOOSE);
    }
    clock.set_unix_ms(9_000_000);
    before.journal().wake_at(&room("first"), Some(8_000_000));
    before.open(&room("first"), LOOSE);
    let woken = |names: &'static [&str]| {
        let woken: Vec<_> = names.iter().map(|name| room(name)).collect();
        move |told: &mut Told| (told.woken == woken).then_some(())
    };
    running.heard.wait(woken(&["first"]));
    clock.set_unix_ms(1_000_000);
    let mut after = calls(&mut running);
    after.journal().wake_at(&room("first"), None);
    after.journal().wake_at(&room("ahead"), Some(1_000_800));
    after.journal().wake_at(&room("behind"), Some(1_000_000));
    after.open(&room("behind"), LOOSE);
    running.heard.wait(woken(&["first", "behind"]));
    clock.advance(800);
    running.heard.wait(woken(&["first", "behind", "ahead"]));
}

/// What is not kept any more is given back to the disk.
#[test]
fn space_comes_back() {
    let small = || Settings {
        segment_bytes: 50_000,
        clean_bytes_min: 100_000,
        ..settings()
    };
    let id = room("a");
    let mut running = Running::new(small());
    let mut before = calls(&mut running);
    before.open(&id, LOOSE);
    before.fill(&id, 1..=9_000);
    let directory = running.close();
    let full = disk_bytes(directory.path());

    let mut running = Running::on(directory, small());
    let mut after = calls(&mut running);
    let bounds = HistoryBounds {
        entries_max: 100,
        ..LOOSE
    };
    after.open(&id, bounds);
    after.journal().trim(&id, 0);
    // What says so comes into the store when its segment is full.
    for start in (9_001..10_000).step_by(100) {
        after.fill(&id, start..=start + 99);
    }
    let counters = running.local.as_ref().unwrap().counters();
    let started = Clock::system();
    while counters.cleanings.get() == 0 {
        assert!(started.monotonic_ms() < 30_000, "nothing is cleaned");
        std::thread::yield_now();
    }
    let directory = running.close();
    let left = disk_bytes(directory.path());
    assert!(left < full / 2, "{left} of {full} bytes are left");

    let mut running = Running::on(directory, small());
    let mut again = calls(&mut running);
    again.open(&id, bounds);
    let kept = again.all(&id);
    assert!((90..=100).contains(&kept.len()), "{}", kept.len());
    assert_eq!(kept.last(), Some(&10_000));
}

/// Bytes that files take, beside what is set aside for the store's own journal.
/// What is trimmed, dropped and written after it doesn't change what a frozen journal shows.
#[test]
fn what_is_frozen_stays_as_it_was() {
    let mut running = Running::new(Settings {
        segment_bytes: 2_000,
        ..settings()
    });
    let bounds = HistoryBounds {
        entries_max: 20,
        ..LOOSE
    };
    let id = room("a");
    let mut before = calls(&mut running);
    let epoch = before.open(&id, bounds).epoch;
    before.fill(&id, 1..=20);
    let set = before.journal().register(&id, "k".into(), "v".into());
    before.stored(set).unwrap();
    let frozen = running.local.as_ref().unwrap().freeze().unwrap();
    let mut after = calls(&mut running);
    after.fill(&id, 21..=200);
    after.open(&room("b"), LOOSE);
    let local = running.local.as_ref().unwrap();
    let later = local.freeze().unwrap();
    local.reader.store.clean(&Arc::default()).unwrap();

    let read = |frozen: &Frozen| {
        let found = frozen.room(&id).unwrap().unwrap();
        assert_eq!((found.epoch, found.damage), (epoch, None));
        let (mut offsets, mut registers) = (Vec::new(), 0);
        let mut take = |part| {
            match part {
                Part::Entry(entry) => offsets.push(entry.offset.0),
                Part::Register { .. } => registers += 1,
                Part::Snapshot(_) => {}
            }
            Ok(())
        };
        frozen.read(&found, &mut take).unwrap();
        assert_eq!((found.entries(), registers), (offsets.len() as u64, 1));
        offsets
    };
    assert_eq!(read(&frozen), (1..=20).collect::<Vec<_>>());
    let kept = read(&later);
    assert_eq!(kept, (kept[0]..=200).collect::<Vec<_>>());
    assert!(kept.len() <= 20);
    let names = |frozen: &Frozen| {
        let mut names = Vec::new();
        let mut look = |room: freezing::StoredRoom| {
            names.push(room.room.name.to_string());
            Ok(())
        };
        frozen.rooms(&mut look).unwrap();
        names
    };
    assert_eq!((names(&frozen).len(), names(&later).len()), (1, 2));
    drop((frozen, later));
}

fn disk_bytes(path: &Path) -> u64 {
    let mut sum = 0;
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let found = entry.metadata().unwrap();
        let is_reserved = entry.path().extension().is_some_and(|name| name == "jnl");
        sum += match found.is_dir() {
            true => disk_bytes(&entry.path()),
            false if is_reserved => 0,
            false => found.len(),
        };
    }
    sum
}

mod directories {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn refused(directory: &TestDirectory) -> String {
        match Local::open(directory.path(), settings()) {
            Ok(_) => panic!("it was opened"),
            Err(error) => error.to_string(),
        }
    }

    fn opened_and_closed() -> TestDirectory {
        Running::new(settings()).close()
    }

    #[test]
    fn only_the_owner_may_look_into_it() {
        let directory = TestDirectory::new();
        let path = directory.path().join("journal");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let running = Running::on(directory, settings());
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(path.clone()), 0o700);
        assert_eq!(mode(path.join("log")), 0o700);
        for name in ["lock", "FORMAT", "log/0000000001.log"] {
            assert_eq!(mode(path.join(name)), 0o600, "{name}");
        }
        running.close();
    }

    #[test]
    fn a_directory_that_is_used_is_named() {
        let running = Running::new(settings());
        let directory = running.directory.as_ref().unwrap();
        let error = refused(directory);
        assert!(error.contains("another process uses"), "{error}");
        assert!(error.contains("journal"), "{error}");
    }

    /// A restart in place waits for the process before it.
    #[test]
    fn a_directory_that_becomes_free_is_taken() {
        let mut running = Running::new(settings());
        let path = running.directory.as_ref().unwrap().path().to_owned();
        let patient = Settings {
            lock_wait_ms: 30_000,
            ..settings()
        };
        let waiting = std::thread::spawn(move || Local::open(&path, patient).map(drop));
        let local = running.local.take().unwrap();
        local.close().unwrap();
        drop(local);
        waiting.join().unwrap().unwrap();
    }

    #[test]
    fn a_later_format_is_refused_with_both_versions() {
        let directory = opened_and_closed();
        let format = directory.path().join("journal/FORMAT");
        fs::write(&format, "roomful journal 7\n").unwrap();
        let error = refused(&directory);
        assert!(
            error.contains("format 7") && error.contains("up to 1"),
            "{error}"
        );
        assert_eq!(fs::read(&format).unwrap(), b"roomful journal 7\n");
    }

    #[test]
    fn what_is_no_journal_is_left_as_it_is() {
        for (name, content) in [
            ("journal/FORMAT", "something else"),
            ("journal/photo.jpg", "x"),
            ("journal", "a file"),
        ] {
            let directory = TestDirectory::new();
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            let error = refused(&directory);
            assert!(error.contains("nothing was changed"), "{name}: {error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert!(!directory.path().join("journal/store").exists());
        }
    }

    #[test]
    fn a_journal_without_its_format_is_refused() {
        let directory = opened_and_closed();
        fs::remove_file(directory.path().join("journal/FORMAT")).unwrap();
        let error = refused(&directory);
        assert!(error.contains("nothing was changed"), "{error}");
    }

    /// A first start that was cut off leaves a store that can't be opened: nobody was told that anything is in it.
    #[test]
    fn what_a_first_start_leaves_is_begun_anew() {
        for is_marked in [true, false] {
            let directory = opened_and_closed();
            let path = directory.path().join("journal");
            assert!(!path.join("NEW").exists());
            let names = fs::read_dir(path.join("store")).unwrap();
            for entry in names.map(|entry| entry.unwrap().path()) {
                if entry.is_file() {
                    fs::write(&entry, "half of it").unwrap();
                }
            }
            if is_marked {
                fs::write(path.join("NEW"), "").unwrap();
                let local = Local::open(directory.path(), settings()).unwrap();
                assert!(!local.is_damaged() && !path.join("NEW").exists());
            } else {
                refused(&directory);
            }
        }
    }

    #[test]
    fn no_link_is_followed() {
        for name in ["journal", "journal/log", "journal/lock", "journal/store"] {
            let (directory, elsewhere) = (opened_and_closed(), TestDirectory::new());
            let path = directory.path().join(name);
            let target = elsewhere.path().join("target");
            fs::rename(&path, &target).unwrap();
            symlink(&target, &path).unwrap();
            let error = refused(&directory);
            assert!(error.contains("is a link"), "{name}: {error}");
        }
    }

    /// The newest segments are gone, and the server ended without saying so: no room is opened.
    #[test]
    fn missing_segments_are_noticed() {
        let mut running = Running::new(settings());
        let mut before = calls(&mut running);
        before.open(&room("a"), LOOSE);
        before.fill(&room("a"), 1..=3);
        let directory = running.crash();
        for entry in fs::read_dir(directory.path().join("journal/log")).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let local = Local::open(directory.path(), settings()).unwrap();
        assert!(local.is_damaged());
        let refused = local.of_shard(SHARD).open(&room("a"), LOOSE);
        assert!(matches!(refused, Outcome::Failed(JournalError::Damaged)));
        local.close().unwrap();
    }
}
