//! What the memory budget looks like from outside.
//!
//! Read when somebody looks, from the last sum; who counts what is told in [`crate::memory`].

use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};

use super::cells::Label as _;
use super::{MemoryKind, desc, family, sample};
use crate::memory::Memory;

/// The budget's metrics.
pub(super) struct Budget {
    memory: Memory,
    descs: Vec<Desc>,
}

impl Budget {
    pub(super) fn new(memory: Memory) -> Self {
        Self {
            memory,
            descs: vec![
                desc(HELD.0, HELD.1, &[MemoryKind::NAME]),
                desc(MARK.0, MARK.1, &["mark"]),
                desc(LEVEL.0, LEVEL.1, &[]),
            ],
        }
    }
}

impl Collector for Budget {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let gauge =
            |label, value: &str, number| sample(MetricType::GAUGE, &[(label, value)], number);
        let held = MemoryKind::all()
            .into_iter()
            .map(|kind| gauge(MemoryKind::NAME, &kind.text(), self.memory.of(kind)));
        let marks = self.memory.marks();
        let marks = [
            ("budget", marks.budget),
            ("soft", marks.soft),
            ("hard", marks.hard),
        ];
        let marks = marks.map(|(mark, bytes)| gauge("mark", mark, bytes));
        let level = sample(MetricType::GAUGE, &[], self.memory.level() as u64);
        vec![
            family(HELD.0, HELD.1, MetricType::GAUGE, held.collect()),
            family(MARK.0, MARK.1, MetricType::GAUGE, marks.into()),
            family(LEVEL.0, LEVEL.1, MetricType::GAUGE, vec![level]),
        ]
    }
}

const HELD: (&str, &str) = (
    "roomful_memory_bytes",
    "Bytes of the memory budget that are accounted for, by what takes them.",
);
const MARK: (&str, &str) = (
    "roomful_memory_mark_bytes",
    "The memory budget and its marks, in bytes.",
);
const LEVEL: (&str, &str) = (
    "roomful_memory_level",
    "0 below the soft mark of the memory budget, 1 above it, 2 above the hard mark.",
);
