//! Which rooms are open on this node, and where: the directory that all shards share.
//!
//! It maps a room's id to a small handle that is cheap to clone. It is touched when a room opens or closes
//! and when somebody enters, never for a message. No guard leaves this file, so none can be held over an
//! await or a second look-up.

use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use roomful_protocol::id::{PlacementKey, RoomAlias, RoomId, RoomName, TenantId};

use crate::shard::message::ShardId;

/// The rooms of this node; clones share it.
#[derive(Debug, Clone)]
pub struct Directory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    rooms: DashMap<RoomId, RoomHandle>,
    /// The number of the next room; numbers are not given twice.
    next_alias: AtomicU64,
    open: AtomicU64,
    rooms_max: u64,
    shards: u16,
}

/// Where a room is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoomHandle {
    /// Its number on this node.
    pub alias: RoomAlias,
    /// The shard that orders it.
    pub home: ShardId,
}

/// The node has as many rooms as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this node has {0} rooms open, as many as it may have")]
pub struct TooManyRooms(pub u64);

impl Directory {
    /// An empty directory of a node with that many shards.
    #[must_use]
    pub fn new(shards: u16, rooms_max: u64) -> Self {
        let inner = Inner {
            rooms: DashMap::with_shard_amount(DIRECTORY_SHARDS),
            next_alias: AtomicU64::new(1),
            open: AtomicU64::new(0),
            rooms_max,
            shards: shards.max(1),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The shard that orders a room, open or not.
    #[must_use]
    pub fn home(&self, room: &RoomId) -> ShardId {
        self.inner.rooms.get(room).map_or_else(
            || self.shard_of(room.name.placement_key()),
            |handle| handle.home,
        )
    }

    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> u16 {
        self.inner.shards
    }

    /// The shard of a placement key.
    ///
    /// # Panics
    /// Never: there are at most 2^16 shards.
    #[must_use]
    pub fn shard_of(&self, key: PlacementKey) -> ShardId {
        let shard = key.0 % u64::from(self.inner.shards);
        ShardId(u16::try_from(shard).expect("less than the count of shards, which has 16 bits"))
    }

    /// Enters a room that its home opens, and gives it a number.
    ///
    /// # Errors
    /// The node is full.
    pub fn open(&self, room: &RoomId, home: ShardId) -> Result<RoomHandle, TooManyRooms> {
        let inner = &self.inner;
        match inner.rooms.entry(room.clone()) {
            Entry::Occupied(entry) => Ok(*entry.get()),
            Entry::Vacant(entry) => {
                if inner.open.fetch_add(1, Ordering::Relaxed) >= inner.rooms_max {
                    inner.open.fetch_sub(1, Ordering::Relaxed);
                    return Err(TooManyRooms(inner.rooms_max));
                }
                let handle = RoomHandle {
                    alias: RoomAlias(inner.next_alias.fetch_add(1, Ordering::Relaxed)),
                    home,
                };
                entry.insert(handle);
                Ok(handle)
            }
        }
    }

    /// A page of a tenant's open rooms whose names begin with `prefix`, sorted: those behind `after`, at most `limit`.
    /// It looks at every room of the node and holds one of the map's locks at a time.
    #[must_use]
    pub fn page(
        &self,
        tenant: &TenantId,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Vec<RoomName> {
        let mut first = BinaryHeap::with_capacity(limit + 1);
        for room in &self.inner.rooms {
            let RoomId { tenant: of, name } = room.key();
            let text = name.as_str();
            let wanted = of == tenant
                && text.starts_with(prefix)
                && after.is_none_or(|after| text > after)
                && (first.len() < limit || first.peek().is_some_and(|last| name < last));
            if wanted {
                first.push(name.clone());
                if first.len() > limit {
                    first.pop();
                }
            }
        }
        first.into_sorted_vec()
    }

    /// Strikes out a room that its home has closed.
    pub fn close(&self, room: &RoomId) {
        if self.inner.rooms.remove(room).is_some() {
            self.inner.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Locks of the map: many more than cores, so that two shards rarely meet.
const DIRECTORY_SHARDS: usize = 64;

#[cfg(test)]
mod tests {
    use roomful_protocol::id::{RoomName, TenantId};

    use super::*;

    fn room(name: &str) -> RoomId {
        RoomId {
            tenant: TenantId::default_tenant(),
            name: RoomName::parse(name.as_bytes()).unwrap(),
        }
    }

    #[test]
    fn a_full_node_refuses_another_room_until_one_closes() {
        let directory = Directory::new(2, 1);
        let first = directory.open(&room("chat:a"), ShardId(0)).unwrap();
        assert_eq!(directory.open(&room("chat:a"), ShardId(0)), Ok(first));
        assert_eq!(
            directory.open(&room("chat:b"), ShardId(0)),
            Err(TooManyRooms(1))
        );
        directory.close(&room("chat:a"));
        assert_ne!(
            directory.open(&room("chat:a"), ShardId(0)).unwrap().alias,
            first.alias
        );
    }

    #[test]
    fn pages_are_sorted_and_of_one_tenant() {
        let directory = Directory::new(2, 100);
        for number in (0..30).rev() {
            directory
                .open(&room(&format!("chat:{number:02}")), ShardId(0))
                .unwrap();
        }
        directory.open(&room("doc:a"), ShardId(0)).unwrap();
        let foreign = RoomId {
            tenant: TenantId::parse("acme").unwrap(),
            name: RoomName::parse(b"chat:foreign").unwrap(),
        };
        directory.open(&foreign, ShardId(0)).unwrap();
        let page = |prefix, after, limit| {
            let names = directory.page(&TenantId::default_tenant(), prefix, after, limit);
            let names: Vec<_> = names.iter().map(|name| name.as_str().to_owned()).collect();
            names.join(" ")
        };
        assert_eq!(page("chat:", None, 3), "chat:00 chat:01 chat:02");
        assert_eq!(page("chat:", Some("chat:27"), 3), "chat:28 chat:29");
        assert_eq!(page("", Some("chat:29"), 3), "doc:a");
        assert_eq!(page("x", None, 3), "");
    }

    #[test]
    fn a_room_has_one_home_and_its_placement_key_leads_there() {
        let directory = Directory::new(7, 10);
        let home = directory.home(&room("chat:lobby"));
        assert_eq!(
            home,
            directory.shard_of(PlacementKey::parse("1bc5c3481e8d9d9c").unwrap())
        );
    }
}
