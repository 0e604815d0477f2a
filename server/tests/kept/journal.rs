//! A journal of one room that answers when it is told to, fails when it is told to, and outlives the room.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use roomful_protocol::frame::{Direction, Durability, Entry};
use roomful_protocol::id::{Epoch, Offset, RoomId};
use roomful_server::journal::{
    Completion, CompletionResult, Health, HistoryBounds, Journal, JournalError, Opened, Outcome,
    ReadPage, ReadQuery, Snapshot, Ticket,
};

/// The room's journal; the test keeps another handle.
#[derive(Debug, Clone)]
pub struct TestJournal(Rc<RefCell<Disk>>);

#[derive(Debug)]
pub struct Disk {
    /// What was appended, reported or not.
    pub entries: Vec<Arc<Entry>>,
    /// What was reported stored, and so is there for ever.
    pub reported: usize,
    pub snapshot: Option<Snapshot>,
    pub registers: BTreeMap<Bytes, Bytes>,
    pub wake: Option<u64>,
    pub health: Health,
    /// Whether calls are answered later.
    pub late: bool,
    /// Whether the next append fails at once.
    pub fails: bool,
    /// When the oldest entry is too old, and how often somebody came to look.
    pub too_old_ms: Option<u64>,
    pub trims: u32,
    in_flight: Vec<(Ticket, Call)>,
    next_ticket: u64,
    /// An append has failed: nothing is taken before the next open.
    broken: bool,
}

#[derive(Debug)]
enum Call {
    Append(Offset),
    Register(Bytes, Bytes),
    Read(ReadQuery),
}

impl TestJournal {
    pub fn new(late: bool) -> Self {
        Self(Rc::new(RefCell::new(Disk {
            entries: Vec::new(),
            reported: 0,
            snapshot: None,
            registers: BTreeMap::new(),
            wake: None,
            health: Health::Good,
            late,
            fails: false,
            too_old_ms: None,
            trims: 0,
            in_flight: Vec::new(),
            next_ticket: 1,
            broken: false,
        })))
    }

    pub fn with<T>(&self, act: impl FnOnce(&mut Disk) -> T) -> T {
        act(&mut self.0.borrow_mut())
    }

    /// Ends the oldest call in flight; with `fails`, badly.
    pub fn complete(&self, fails: bool) -> Option<Completion> {
        let mut disk = self.0.borrow_mut();
        if disk.in_flight.is_empty() {
            return None;
        }
        let (ticket, call) = disk.in_flight.remove(0);
        let result = match call {
            Call::Read(query) => CompletionResult::Read(Ok(disk.read(query))),
            Call::Register(..) if fails => CompletionResult::Appended(Err(JournalError::Storage)),
            Call::Register(key, value) => {
                disk.set(key, value);
                CompletionResult::Appended(Ok(()))
            }
            Call::Append(_) if fails || disk.broken => {
                disk.broken = true;
                CompletionResult::Appended(Err(JournalError::Storage))
            }
            Call::Append(offset) => {
                disk.reported = usize::try_from(offset.0).unwrap();
                CompletionResult::Appended(Ok(()))
            }
        };
        Some(Completion { ticket, result })
    }

    /// The process is gone; of what was in flight, this many entries have reached the disk.
    pub fn crash(&self, unreported: usize) {
        let mut disk = self.0.borrow_mut();
        let kept = (disk.reported + unreported).min(disk.entries.len());
        disk.entries.truncate(kept);
        disk.in_flight.clear();
    }
}

impl Disk {
    fn set(&mut self, key: Bytes, value: Bytes) {
        if value.is_empty() {
            self.registers.remove(&key);
        } else {
            self.registers.insert(key, value);
        }
    }

    fn later(&mut self, call: Call) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.in_flight.push((ticket, call));
        ticket
    }

    fn read(&self, query: ReadQuery) -> ReadPage {
        let behind = self
            .entries
            .iter()
            .filter(|entry| entry.offset > query.from && entry.offset <= query.until);
        assert_eq!(query.direction, Direction::Forward);
        ReadPage {
            entries: behind.take(query.entries_max).cloned().collect(),
            first: Offset(1),
        }
    }
}

impl Journal for TestJournal {
    fn durability(&self) -> Durability {
        Durability::Local
    }

    fn open(&mut self, _: &RoomId, _: HistoryBounds) -> Outcome<Opened> {
        let mut disk = self.0.borrow_mut();
        disk.broken = false;
        disk.in_flight
            .retain(|(_, call)| !matches!(call, Call::Append(_)));
        disk.reported = disk.entries.len();
        Outcome::Done(Opened {
            epoch: Epoch(5),
            head: Offset(disk.entries.len() as u64),
            snapshot: disk.snapshot.clone(),
            recent: disk.entries.clone(),
            registers: disk.registers.clone().into_iter().collect(),
        })
    }

    fn set_bounds(&mut self, _: &RoomId, _: HistoryBounds) {}

    fn health(&self) -> Health {
        self.0.borrow().health
    }

    fn append(&mut self, _: &RoomId, expected: Offset, entry: &Arc<Entry>) -> Outcome<()> {
        let mut disk = self.0.borrow_mut();
        assert_eq!(
            disk.health,
            Health::Good,
            "nothing is appended that is not taken"
        );
        if disk.broken || std::mem::take(&mut disk.fails) {
            disk.broken = true;
            return Outcome::Failed(JournalError::Storage);
        }
        assert_eq!(expected.0, disk.entries.len() as u64);
        assert_eq!(entry.offset, expected.next());
        disk.entries.push(Arc::clone(entry));
        if disk.late {
            return Outcome::Later(disk.later(Call::Append(entry.offset)));
        }
        disk.reported = disk.entries.len();
        Outcome::Done(())
    }

    fn snapshot(&mut self, _: &RoomId, snapshot: Snapshot) {
        let mut disk = self.0.borrow_mut();
        assert!(
            snapshot.at.0 <= disk.reported as u64,
            "only what is stored is in it"
        );
        disk.snapshot = Some(snapshot);
    }

    fn register(&mut self, _: &RoomId, key: Bytes, value: Bytes) -> Outcome<()> {
        let mut disk = self.0.borrow_mut();
        if disk.late {
            return Outcome::Later(disk.later(Call::Register(key, value)));
        }
        disk.set(key, value);
        Outcome::Done(())
    }

    fn wake_at(&mut self, _: &RoomId, at_ms: Option<u64>) {
        self.0.borrow_mut().wake = at_ms;
    }

    fn read(&mut self, _: &RoomId, query: ReadQuery) -> Outcome<ReadPage> {
        let mut disk = self.0.borrow_mut();
        if disk.late {
            return Outcome::Later(disk.later(Call::Read(query)));
        }
        Outcome::Done(disk.read(query))
    }

    fn first(&self, _: &RoomId) -> Offset {
        Offset(1)
    }

    fn trim(&mut self, _: &RoomId, now_ms: u64) -> Option<u64> {
        let mut disk = self.0.borrow_mut();
        disk.trims += 1;
        disk.too_old_ms = disk.too_old_ms.filter(|at_ms| *at_ms > now_ms);
        disk.too_old_ms
    }

    fn close(&mut self, _: &RoomId) {}
}
