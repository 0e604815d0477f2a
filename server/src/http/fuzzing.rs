//! What decides handshakes, for those who feed it bytes without a socket. No part of the server's interface.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use super::origin::{OriginRule, Own};
use super::upgrade::{Door, Speech, Upgraded, Upgrades};
use super::welcome;
use crate::admission::budget::Rate;
use crate::admission::client::Trust;
use crate::admission::{Admission, Counted, Limits, Reason, Refusal};
use crate::current::Current;
use crate::metrics::Metrics;
use crate::tasks::Tasks;

/// A listener's rules without the listener.
pub struct Judge(Door);

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Judge").field(&self.0).finish()
    }
}

/// A handshake that would be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// How many bytes it is long.
    pub length: usize,
    /// The answer to its key.
    pub accept: String,
    /// The subprotocol that was chosen.
    pub subprotocol: &'static str,
}

impl Judge {
    /// The rules of a listener at a port.
    #[must_use]
    pub fn new(origins: OriginRule, port: u16) -> Self {
        let limits = Limits {
            connections_per_address_max: 1,
            unauthenticated_per_address_max: 1,
            limit_loopback: false,
            http_connections_max: 1,
            unauthenticated_max: 1,
            connects: Rate { per_s: 1, burst: 1 },
            descriptors_reserved: 0,
        };
        Self(Door {
            upgrades: Arc::new(Nobody),
            admission: Admission::new(limits, Trust::none()),
            origins: Current::new(origins),
            speech: Speech::Roomful,
            metrics: Metrics::new(Tasks::new(), 1),
            own: Own {
                scheme: "http",
                port,
            },
        })
    }

    /// The good handshake that these bytes begin with.
    #[must_use]
    pub fn judge(&self, bytes: &[u8]) -> Option<Judged> {
        let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let (length, checked) = welcome::handshake(&self.0, bytes, client)?;
        Some(Judged {
            length,
            accept: checked.accept,
            subprotocol: checked.subprotocol?,
        })
    }
}

/// Takes nobody.
struct Nobody;

impl Upgrades for Nobody {
    fn admit(&self) -> Result<Counted, Refusal> {
        Err(Refusal {
            reason: Reason::Full,
            retry_after: Duration::ZERO,
        })
    }

    fn hand_over(&self, _upgraded: Vec<Upgraded>) {}
}
