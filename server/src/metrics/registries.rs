//! How many are counted apart because each has limits of its own: users and addresses.
//!
//! Read when somebody looks, from the registries that hold the limits, so the numbers are the registries' own: one
//! that does not come back to what it was is an entry that stayed.

use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};

use super::{desc, family, sample};
use crate::admission::Admission;
use crate::session::users::Users;

/// The sizes of the registries.
pub(super) struct Registries {
    users: Users,
    admission: Admission,
    descs: Vec<Desc>,
}

impl Registries {
    pub(super) fn new(users: Users, admission: Admission) -> Self {
        Self {
            users,
            admission,
            descs: vec![
                desc(USERS.0, USERS.1, &[]),
                desc(ADDRESSES.0, ADDRESSES.1, &[]),
            ],
        }
    }
}

impl Collector for Registries {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let gauge = |(name, help): (&str, &str), count: usize| {
            let sample = sample(MetricType::GAUGE, &[], count as u64);
            family(name, help, MetricType::GAUGE, vec![sample])
        };
        vec![
            gauge(USERS, self.users.connected()),
            gauge(ADDRESSES, self.admission.addresses()),
        ]
    }
}

const USERS: (&str, &str) = (
    "roomful_users",
    "Users with connections, whom limits per user count. Nobody on an anonymous server.",
);
const ADDRESSES: (&str, &str) = (
    "roomful_addresses",
    "Addresses with sockets on the public listener, where limits per address count.",
);
