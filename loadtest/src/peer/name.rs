//! The names by which peers are chosen.

use std::fmt;

use clap::builder::{PossibleValuesParser, TypedValueParser, ValueParser};
use serde::Serialize;

use super::{PEERS, Peer};

/// One of the registered peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct PeerName(&'static str);

impl PeerName {
    /// The server that this is all about.
    pub(crate) const ROOMFUL: Self = Self("roomful");
    /// The same, with a token that it has to check.
    pub(crate) const ROOMFUL_TOKEN: Self = Self("roomful-token");
    /// The same over TLS 1.3, each connection with a handshake of its own.
    pub(crate) const ROOMFUL_TLS: Self = Self("roomful-tls");
    /// Each connection with a ticket of an earlier one.
    pub(crate) const ROOMFUL_TLS_RESUMED: Self = Self("roomful-tls-resumed");
    /// Over TLS 1.2.
    pub(crate) const ROOMFUL_TLS12: Self = Self("roomful-tls12");
    /// The floor with one send a delivery.
    pub(crate) const FLOOR: Self = Self("floor");
    /// The floor with one send for the frames of a turn.
    pub(crate) const FLOOR_COALESCING: Self = Self("floor-coalescing");
    /// The broadcast server as it is usually written.
    pub(crate) const PLAIN: Self = Self("plain");
    /// Bun's built-in WebSocket.
    pub(crate) const BUN: Self = Self("bun");

    /// Those that the goals are about: they run most often.
    pub(crate) const PAIRED: [Self; 4] = [
        Self::ROOMFUL,
        Self::ROOMFUL_TOKEN,
        Self::FLOOR,
        Self::FLOOR_COALESCING,
    ];

    /// Those over TLS; they have a scenario of their own.
    pub(crate) const ENCRYPTED: [Self; 3] = [
        Self::ROOMFUL_TLS,
        Self::ROOMFUL_TLS_RESUMED,
        Self::ROOMFUL_TLS12,
    ];

    /// Every peer, in the order of the register.
    pub(crate) fn all() -> impl Iterator<Item = Self> + Clone {
        PEERS.iter().map(|(name, _)| Self(name))
    }

    /// Reads a name from the command line.
    pub(crate) fn parser() -> ValueParser {
        let names = Self::all().map(|name| name.0);
        let named = |text: String| Self::all().find(|name| name.0 == text);
        ValueParser::new(
            PossibleValuesParser::new(names)
                .map(move |text| named(text).expect("only registered names are possible values")),
        )
    }

    /// A new adapter, for one run.
    pub(crate) fn adapter(self) -> Box<dyn Peer> {
        let (_, adapter) = PEERS
            .iter()
            .find(|(name, _)| *name == self.0)
            .expect("every name is a registered one");
        adapter()
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_an_adapter_and_the_known_ones_are_registered() {
        let titles: Vec<&str> = PeerName::all().map(|name| name.adapter().name()).collect();
        let known = [PeerName::PLAIN, PeerName::BUN];
        let known = known.into_iter().chain(PeerName::ENCRYPTED);
        for name in PeerName::PAIRED.into_iter().chain(known) {
            assert!(titles.contains(&name.adapter().name()), "{name}");
        }
    }
}
