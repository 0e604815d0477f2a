//! Sockets counted by the address that they are from.
//!
//! A network that hands out IPv6 addresses gives each customer at least a /64, so the first 64 bits are who it is;
//! an IPv4 address is one. The map holds addresses with open sockets alone, so it is as bounded as they are.

use std::net::IpAddr;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use super::Limits;

/// Who sockets are counted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IPv4 address.
    V4([u8; 4]),
    /// The first 64 bits of an IPv6 address.
    V6([u8; 8]),
}

/// Open sockets, by address.
#[derive(Debug, Default)]
pub struct Addresses {
    counts: DashMap<Address, Counts>,
}

/// The open sockets of an address.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    connections: u32,
    unauthenticated: u32,
}

/// An address has as many sockets as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crowded {
    /// In all.
    Connections,
    /// Without a session.
    Unauthenticated,
}

impl Address {
    /// Who an address stands for. An IPv4 address within IPv6 (RFC 4291 §2.5.5.2) is that IPv4 address.
    #[must_use]
    pub fn of(client: IpAddr) -> Self {
        match client.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

impl Addresses {
    /// Counts one more socket, without a session.
    ///
    /// # Errors
    /// There are as many as there may be; nothing is counted.
    pub fn enter(&self, address: Address, limits: &Limits) -> Result<(), Crowded> {
        let entry = self.counts.entry(address);
        let counts = match &entry {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(_) => Counts::default(),
        };
        if counts.connections >= limits.connections_per_address_max {
            return Err(Crowded::Connections);
        }
        if counts.unauthenticated >= limits.unauthenticated_per_address_max {
            return Err(Crowded::Unauthenticated);
        }
        entry.insert(Counts {
            connections: counts.connections + 1,
            unauthenticated: counts.unauthenticated + 1,
        });
        Ok(())
    }

    /// One of the sockets has its session.
    pub fn authenticate(&self, address: Address) {
        if let Some(mut counts) = self.counts.get_mut(&address) {
            counts.unauthenticated -= 1;
        }
    }

    /// One of the sockets is closed.
    pub fn leave(&self, address: Address, unauthenticated: bool) {
        if let Entry::Occupied(mut known) = self.counts.entry(address) {
            let counts = known.get_mut();
            counts.connections -= 1;
            counts.unauthenticated -= u32::from(unauthenticated);
            if counts.connections == 0 {
                known.remove();
            }
        }
    }

    /// How many addresses have sockets open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// Whether none has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IPv4 by the address, IPv6 by the /64, and IPv4 in IPv6 clothes is IPv4.
    #[test]
    fn who_is_counted_together() {
        for (one, other, together) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", true),
            ("2001:db8:0:1::1", "2001:db8:0:2::1", false),
        ] {
            let of = |text: &str| Address::of(text.parse().unwrap());
            assert_eq!(of(one) == of(other), together, "{one} {other}");
        }
    }
}
