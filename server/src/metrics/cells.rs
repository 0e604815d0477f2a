//! Numbers that one thread writes and others read, and how they are shown.
//!
//! A shard owns such numbers and counts without a lock; a scrape adds up what several shards have. What is counted is
//! the table's affair in the module above.

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus::proto::{self, MetricType};
use roomful_protocol::error::{CloseCode, ErrorCode};

use super::sample;

/// A number that only grows, with one writer.
#[derive(Debug, Default)]
pub struct Counter(Cell);

/// A number that goes up and down, with one writer. A scrape adds up the shards' numbers.
#[derive(Debug, Default)]
pub struct Gauge(Cell);

/// The largest number so far, with one writer. A scrape tells the largest of the shards' numbers.
#[derive(Debug, Default)]
pub struct Longest(Cell);

/// A counter for each value of a label, with one writer.
pub struct By<L> {
    cells: Box<[Counter]>,
    label: PhantomData<fn(L)>,
}

/// A label with a fixed set of values.
pub trait Label: Copy + 'static {
    /// The label's name.
    const NAME: &'static str;

    /// Every value.
    fn all() -> Vec<Self>;

    /// The value's place in [`Self::all`].
    fn index(self) -> usize;

    /// The value as text.
    fn text(self) -> String;
}

impl Counter {
    /// Adds.
    pub fn add(&self, n: u64) {
        self.0.set(self.0.get().wrapping_add(n));
    }

    /// The count.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

impl Longest {
    /// Takes a number in.
    pub fn note(&self, value: u64) {
        if value > self.0.get() {
            self.0.set(value);
        }
    }

    /// The largest so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

impl Gauge {
    /// Adds.
    pub fn add(&self, n: u64) {
        self.0.set(self.0.get().saturating_add(n));
    }

    /// Takes away. What was not added cannot be taken away: the number stops at 0.
    pub fn sub(&self, n: u64) {
        let value = self.0.get();
        debug_assert!(value >= n, "a gauge of {value} cannot lose {n}");
        self.0.set(value.saturating_sub(n));
    }

    /// Sets.
    pub fn set(&self, value: u64) {
        self.0.set(value);
    }

    /// The number.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

impl<L: Label> By<L> {
    /// The counter of one value.
    #[must_use]
    pub fn of(&self, label: L) -> &Counter {
        &self.cells[label.index()]
    }
}

impl<L: Label> Default for By<L> {
    fn default() -> Self {
        Self {
            cells: L::all().iter().map(|_label| Counter::default()).collect(),
            label: PhantomData,
        }
    }
}

impl<L: Label> fmt::Debug for By<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = L::all()
            .into_iter()
            .zip(&self.cells)
            .map(|(label, cell)| (label.text(), cell.get()));
        f.debug_map().entries(counts).finish()
    }
}

/// By its number, as peers and their logs know it; `none` where no close frame was sent.
impl Label for Option<CloseCode> {
    const NAME: &'static str = "code";

    fn all() -> Vec<Self> {
        std::iter::once(None)
            .chain(CloseCode::ALL.iter().copied().map(Some))
            .collect()
    }

    fn index(self) -> usize {
        self.map_or(0, |code| 1 + position(CloseCode::ALL, &code))
    }

    fn text(self) -> String {
        self.map_or_else(|| "none".to_owned(), |code| code.code().to_string())
    }
}

/// By its name.
impl Label for ErrorCode {
    const NAME: &'static str = "code";

    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }

    fn index(self) -> usize {
        position(Self::ALL, &self)
    }

    fn text(self) -> String {
        self.name().to_owned()
    }
}

/// A kind of metric that a shard can count.
pub(super) trait Row {
    /// What a scraper is told.
    const KIND: MetricType;
    /// Names of its labels.
    const LABELS: &'static [&'static str];

    /// The samples: sums over the shards.
    fn fold<'a>(shards: impl Iterator<Item = &'a Self>) -> Vec<proto::Metric>
    where
        Self: 'a;
}

impl Row for Counter {
    const KIND: MetricType = MetricType::COUNTER;
    const LABELS: &'static [&'static str] = &[];

    fn fold<'a>(shards: impl Iterator<Item = &'a Self>) -> Vec<proto::Metric> {
        vec![sample(Self::KIND, &[], shards.map(Self::get).sum())]
    }
}

impl Row for Gauge {
    const KIND: MetricType = MetricType::GAUGE;
    const LABELS: &'static [&'static str] = &[];

    fn fold<'a>(shards: impl Iterator<Item = &'a Self>) -> Vec<proto::Metric> {
        vec![sample(Self::KIND, &[], shards.map(Self::get).sum())]
    }
}

impl Row for Longest {
    const KIND: MetricType = MetricType::GAUGE;
    const LABELS: &'static [&'static str] = &[];

    fn fold<'a>(shards: impl Iterator<Item = &'a Self>) -> Vec<proto::Metric> {
        let longest = shards.map(Self::get).max().unwrap_or(0);
        vec![sample(Self::KIND, &[], longest)]
    }
}

impl<L: Label> Row for By<L> {
    const KIND: MetricType = MetricType::COUNTER;
    const LABELS: &'static [&'static str] = &[L::NAME];

    fn fold<'a>(shards: impl Iterator<Item = &'a Self>) -> Vec<proto::Metric> {
        let labels = L::all();
        let mut sums = vec![0; labels.len()];
        for shard in shards {
            sums.iter_mut()
                .zip(&shard.cells)
                .for_each(|(sum, cell)| *sum += cell.get());
        }
        let samples = labels.into_iter().zip(sums);
        samples
            .map(|(label, sum)| sample(Self::KIND, &[(L::NAME, &label.text())], sum))
            .collect()
    }
}

/// A number with one writer: its load and store need no bus lock, and a reader sees one of the values it had.
#[derive(Debug, Default)]
struct Cell(AtomicU64);

impl Cell {
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

fn position<T: PartialEq>(all: &[T], value: &T) -> usize {
    all.iter()
        .position(|row| row == value)
        .expect("a catalogue lists all its rows")
}
