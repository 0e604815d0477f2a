//! Kinds of rooms, by what an acknowledgement promises.

use anyhow::Result;
use roomful_protocol::frame::Durability;

use crate::writers::{RoomNumber, Writers};

/// A kind of rooms: the namespace in `bench.toml`, and what its acknowledgements promise.
#[derive(Debug, Clone, Copy)]
pub(super) struct Class {
    pub(super) namespace: &'static str,
    pub(super) durability: Durability,
}

pub(super) const LOCAL: Class = Class {
    namespace: "durable",
    durability: Durability::Local,
};

pub(super) const MEMORY: Class = Class {
    namespace: "volatile",
    durability: Durability::Memory,
};

impl Class {
    /// So many rooms of the class, with nothing in them.
    ///
    /// # Errors
    /// No room may be called that.
    pub(super) fn rooms(self, writers: &mut Writers, count: usize) -> Result<Vec<RoomNumber>> {
        let room = |number| writers.room(self.namespace, number, self.durability, 0);
        (0..count).map(room).collect()
    }
}
