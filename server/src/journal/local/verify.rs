//! A look at all that is stored: every checksum, every offset, and whether log, index and store agree.
//!
//! It changes nothing, and it may take its time: beside a running journal it reads on the thread of whoever asks, and neither the
//! committer nor a shard waits for it. What is found is told at once, so that nothing is held however much that is.

use std::collections::BTreeMap;
use std::{fmt, io};

use roomful_protocol::frame::Direction;
use roomful_protocol::id::{Offset, RoomId};

use super::disk::Legible;
use super::index::Segment;
use super::meta;
use super::reading::Reader;
use super::record::LogId;
use super::recovery::{Flaw, Read};
use super::store::Space;
use super::survey::{ReadSnapshot, Surveyed};

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where, in `journal/`.
    pub file: String,
    /// Whose it is, as far as that is known.
    pub room: Option<RoomId>,
    /// Which entry; the first of several.
    pub offset: Option<Offset>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file)?;
        if let Some(room) = &self.room {
            write!(f, "{room}: ")?;
        }
        if let Some(offset) = self.offset {
            write!(f, "entry {offset}: ")?;
        }
        f.write_str(&self.what)
    }
}

/// How much was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verified {
    /// Files of the log.
    pub segments: u64,
    /// Rooms.
    pub rooms: u64,
    /// Entries whose checksums hold.
    pub entries: u64,
    /// What their records take.
    pub bytes: u64,
    /// Snapshots that can be read.
    pub snapshots: u64,
    /// Registers that can be read.
    pub registers: u64,
    /// What is wrong.
    pub findings: u64,
}

/// Looks at everything.
pub(super) fn verify(
    reader: &Reader,
    flaws: &[Flaw],
    read_snapshot: ReadSnapshot,
    found: &mut dyn FnMut(Finding),
) -> Verified {
    let mut verifier = Verifier {
        reader,
        verified: Verified::default(),
        of_logs: BTreeMap::new(),
        found,
    };
    for flaw in flaws.iter().filter(|flaw| flaw.of.is_none()) {
        verifier.tell_flaw(flaw, None);
    }
    verifier.segments(flaws);
    if let Err(error) = reader.rooms(&mut |room, log| verifier.room(room, log, read_snapshot)) {
        let what = format!("not all rooms are known any more: {error}");
        verifier.tell(STORE, None, None, what);
    }
    verifier.unnamed();
    verifier.wakes();
    verifier.verified
}

struct Verifier<'a> {
    reader: &'a Reader,
    verified: Verified,
    /// Flaws of segments that wait for the names of their rooms.
    of_logs: BTreeMap<LogId, Vec<Flaw>>,
    found: &'a mut dyn FnMut(Finding),
}

impl Verifier<'_> {
    fn tell(&mut self, file: &str, room: Option<&RoomId>, offset: Option<Offset>, what: String) {
        self.verified.findings += 1;
        (self.found)(Finding {
            file: file.to_owned(),
            room: room.cloned(),
            offset,
            what,
        });
    }

    fn tell_flaw(&mut self, flaw: &Flaw, room: Option<&RoomId>) {
        let offset = flaw.of.and_then(|(_, offset)| offset);
        self.tell(&flaw.file(), room, offset, flaw.what.to_owned());
    }

    fn segments(&mut self, known: &[Flaw]) {
        let segments: Vec<_> = {
            let index = self.reader.index();
            let there = index.segments().filter(|segment| segment.end > 0);
            there.map(|segment| (segment.number, segment.end)).collect()
        };
        for (number, end) in segments {
            let file = segment_file(number);
            let length = usize::try_from(end).expect("a segment fits into memory");
            let read = Legible::read(&*self.reader.disk, number, length);
            let Legible { bytes, is_whole } = match read {
                // The store has it by now.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !self.has(number) => {
                    continue;
                }
                Err(error) => {
                    self.tell(&file, None, None, error.to_string());
                    continue;
                }
                Ok(legible) => legible,
            };
            self.verified.segments += 1;
            let unreadable = Flaw::unreadable(number);
            if !is_whole && !known.contains(&unreadable) {
                self.tell_flaw(&unreadable, None);
            }
            if bytes.len() < length {
                self.tell(&file, None, None, "its end is missing".to_owned());
            }
            match Read::of(number, 0, &bytes, false) {
                Err(error) => self.tell(&file, None, None, error.to_string()),
                Ok(read) => {
                    for flaw in read.flaws {
                        match flaw.of {
                            Some((log, _)) => self.of_logs.entry(log).or_default().push(flaw),
                            None if known.contains(&flaw) => {}
                            None => self.tell_flaw(&flaw, None),
                        }
                    }
                    self.compare(&read.segment);
                }
            }
        }
    }

    fn has(&self, segment: u64) -> bool {
        self.reader.index().segment(segment).is_some()
    }

    /// Whether the index says of a segment what is in it.
    fn compare(&mut self, read: &Segment) {
        for (log, run) in read.runs() {
            let agrees = {
                let index = self.reader.index();
                index.segment(read.number).is_none_or(|segment| {
                    let mut runs = segment.runs();
                    let indexed = runs.find(|(indexed, _)| *indexed == log);
                    indexed.is_some_and(|(_, indexed)| indexed.agrees_with(run))
                })
            };
            if !agrees {
                let what = format!("the index says otherwise of log {}", log.0);
                self.tell(&segment_file(read.number), None, None, what);
            }
        }
    }

    fn room(&mut self, room: &RoomId, log: Result<LogId, String>, read_snapshot: ReadSnapshot) {
        self.verified.rooms += 1;
        let log = match log {
            Ok(log) => log,
            Err(what) => return self.tell(STORE, Some(room), None, what),
        };
        let flaws = self.of_logs.remove(&log).unwrap_or_default();
        for flaw in &flaws {
            self.tell_flaw(flaw, Some(room));
        }
        let reader = self.reader;
        match reader.survey(room, log, read_snapshot, &mut |_, _| {}) {
            Ok(surveyed) => self.surveyed(&surveyed, &flaws),
            Err(what) => self.tell(STORE, Some(room), None, what),
        }
    }

    fn surveyed(&mut self, surveyed: &Surveyed, told: &[Flaw]) {
        let verified = &mut self.verified;
        verified.entries += surveyed.entries;
        verified.bytes += surveyed.bytes;
        verified.snapshots += u64::from(surveyed.snapshot.is_some());
        verified.registers += surveyed.registers.len() as u64;
        let room = Some(&surveyed.room);
        if !told.is_empty() {
            // The rest follows from what was told.
            return;
        }
        for lost in &surveyed.lost {
            let what = match lost.from == lost.to {
                true => lost.what.clone(),
                false => format!("{}, and so on up to {}", lost.what, lost.to),
            };
            self.tell(STORE, room, Some(lost.from), what);
        }
        for wrong in &surveyed.wrong {
            self.tell(STORE, room, None, wrong.clone());
        }
    }

    /// Flaws of logs that no room has.
    fn unnamed(&mut self) {
        for (_, flaws) in std::mem::take(&mut self.of_logs) {
            for flaw in flaws {
                self.tell_flaw(&flaw, None);
            }
        }
    }

    fn wakes(&mut self) {
        let mut unreadable = 0;
        let until = meta::wake_key(u64::MAX, LogId(u64::MAX));
        let look = &mut |key: &[u8], value: bytes::Bytes| {
            let is_readable = meta::read_wake(key).is_some() && meta::read_room(&value).is_some();
            unreadable += u64::from(!is_readable);
            true
        };
        let reader = self.reader;
        let read = reader
            .store
            .range(Space::Wakes, &[], &until, Direction::Forward, look);
        if read.is_err() || unreadable > 0 {
            let what = "when rooms have to be looked at can't be read";
            self.tell(STORE, None, None, what.to_owned());
        }
    }
}

impl Flaw {
    /// Where it is, in `journal/`.
    pub(super) fn file(&self) -> String {
        match self.segment {
            0 => STORE.to_owned(),
            number => segment_file(number),
        }
    }
}

fn segment_file(number: u64) -> String {
    format!("log/{number:010}.log")
}

/// Where the store is, in `journal/`.
pub(super) const STORE: &str = "store";
