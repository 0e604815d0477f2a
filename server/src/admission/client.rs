//! Who the client is, where a proxy stands in between.
//!
//! A proxy is believed if its address is in a configured network, and only then: anybody can write a header. It says
//! who its client is in a PROXY protocol header in front of everything, or in a header line of the request. Of a list
//! of hops the last one that is no such proxy counts, since what stands before it is that hop's own claim.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;

use crate::config::ForwardedHeader;

/// Which proxies are believed, and what they say it in.
#[derive(Debug, Clone)]
pub struct Trust {
    /// Where they are.
    pub networks: Vec<IpNet>,
    /// Whether each of their connections begins with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// The header line in which they name their client. There is one: a proxy passes on what it doesn't write itself,
    /// and then the other would be the client's own claim.
    pub header: ForwardedHeader,
}

impl Trust {
    /// Nobody is believed.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            networks: Vec::new(),
            proxy_protocol: false,
            header: ForwardedHeader::XForwardedFor,
        }
    }

    /// Whether somebody at this address speaks for others.
    #[must_use]
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.networks.iter().any(|network| network.contains(&peer))
    }

    /// Whether somebody at this address has to begin with a PROXY protocol header.
    #[must_use]
    pub fn expects_header(&self, peer: IpAddr) -> bool {
        self.proxy_protocol && self.trusts(peer)
    }

    /// Who sends a request that comes from `peer`. A hop that can't be read, or that hides, ends the list: the proxy
    /// that names it stands for it.
    #[must_use]
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut hop = peer;
        for named in self.hops(headers).iter().rev() {
            if !self.trusts(hop) {
                break;
            }
            let Some(address) = named else {
                break;
            };
            hop = *address;
        }
        hop
    }

    /// The hops that the request names, the nearest last.
    fn hops(&self, headers: &HeaderMap) -> Vec<Option<IpAddr>> {
        let read: fn(&str) -> Option<IpAddr> = match self.header {
            ForwardedHeader::XForwardedFor => node,
            ForwardedHeader::Forwarded => forwarded,
        };
        let name = match self.header {
            ForwardedHeader::XForwardedFor => HeaderName::from_static("x-forwarded-for"),
            ForwardedHeader::Forwarded => header::FORWARDED,
        };
        let lines = headers.get_all(name).iter();
        let lines = lines.map(|line| line.to_str().unwrap_or_default());
        lines
            .flat_map(|line| line.split(','))
            .map(|element| read(element.trim()))
            .collect()
    }
}

/// `for=192.0.2.1;proto=https`. A comma inside of quotes splits an element in two, and neither can be read then.
fn forwarded(element: &str) -> Option<IpAddr> {
    let mut pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    let value = value.trim();
    let quoted = value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    node(quoted.unwrap_or(value))
}

/// An address, with or without a port, IPv6 with or without brackets.
fn node(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    let with_port = || text.parse().map(|address: SocketAddr| address.ip());
    let address = bare.parse().or_else(|_| with_port()).ok()?;
    Some(IpAddr::to_canonical(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trust(header: ForwardedHeader) -> Trust {
        Trust {
            networks: vec![
                "10.0.0.0/8".parse().unwrap(),
                "2001:db8:1::/48".parse().unwrap(),
            ],
            proxy_protocol: false,
            header,
        }
    }

    fn check(header: ForwardedHeader, peer: &str, lines: &[&str], client: &str) {
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(':').unwrap();
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, value.trim().parse().unwrap());
        }
        let found = trust(header).client(peer.parse().unwrap(), &headers);
        assert_eq!(found.to_string(), client, "{peer} {lines:?}");
    }

    /// The last hop that is no proxy of ours counts, over all lines; nobody else's words count at all.
    #[test]
    fn the_last_untrusted_hop_is_the_client() {
        for (peer, lines, client) in [
            ("10.0.0.1", vec![], "10.0.0.1"),
            ("10.0.0.1", vec!["x-forwarded-for: 192.0.2.1"], "192.0.2.1"),
            (
                "::ffff:10.0.0.1",
                vec!["x-forwarded-for: 192.0.2.1"],
                "192.0.2.1",
            ),
            (
                "2001:db8:1::9",
                vec!["x-forwarded-for: 192.0.2.1"],
                "192.0.2.1",
            ),
            // A client's own claim stands before what the proxy has added.
            (
                "10.0.0.1",
                vec!["x-forwarded-for: 198.51.100.9, 192.0.2.1"],
                "192.0.2.1",
            ),
            (
                "10.0.0.1",
                vec![
                    "x-forwarded-for: 198.51.100.9",
                    "x-forwarded-for: 192.0.2.1",
                ],
                "192.0.2.1",
            ),
            // Two proxies.
            (
                "10.0.0.1",
                vec!["x-forwarded-for: 198.51.100.9, 192.0.2.1, 10.0.0.2"],
                "192.0.2.1",
            ),
            (
                "10.0.0.1",
                vec!["x-forwarded-for: 10.0.0.3, 10.0.0.2"],
                "10.0.0.3",
            ),
            // Ports, brackets and IPv4 in IPv6.
            (
                "10.0.0.1",
                vec!["x-forwarded-for: 192.0.2.1:4711"],
                "192.0.2.1",
            ),
            (
                "10.0.0.1",
                vec!["x-forwarded-for: [2001:db8::1]:4711"],
                "2001:db8::1",
            ),
            (
                "10.0.0.1",
                vec!["x-forwarded-for: [2001:db8::1]"],
                "2001:db8::1",
            ),
            (
                "10.0.0.1",
                vec!["x-forwarded-for: ::ffff:192.0.2.1"],
                "192.0.2.1",
            ),
            // What can't be read ends the list.
            (
                "10.0.0.1",
                vec!["x-forwarded-for: 192.0.2.1, unknown"],
                "10.0.0.1",
            ),
            (
                "10.0.0.1",
                vec!["x-forwarded-for: 192.0.2.1, unknown, 10.0.0.2"],
                "10.0.0.2",
            ),
            ("10.0.0.1", vec!["x-forwarded-for: "], "10.0.0.1"),
            // Nobody else is believed, and neither is the other header.
            ("192.0.2.7", vec!["x-forwarded-for: 192.0.2.1"], "192.0.2.7"),
            ("10.0.0.1", vec!["forwarded: for=192.0.2.1"], "10.0.0.1"),
        ] {
            check(ForwardedHeader::XForwardedFor, peer, &lines, client);
        }
    }

    /// The same in RFC 7239's words.
    #[test]
    fn forwarded_is_read_by_its_grammar() {
        for (line, client) in [
            ("forwarded: for=192.0.2.1", "192.0.2.1"),
            (
                "forwarded: proto=https; For=\"192.0.2.1:47\";by=10.0.0.1",
                "192.0.2.1",
            ),
            (
                "forwarded: for=198.51.100.9, for=\"[2001:db8::1]:4711\"",
                "2001:db8::1",
            ),
            ("forwarded: for=192.0.2.1, for=10.0.0.2", "192.0.2.1"),
            ("forwarded: for=192.0.2.1, for=_hidden", "10.0.0.1"),
            ("forwarded: for=192.0.2.1, proto=https", "10.0.0.1"),
            ("x-forwarded-for: 192.0.2.1", "10.0.0.1"),
        ] {
            check(ForwardedHeader::Forwarded, "10.0.0.1", &[line], client);
        }
    }
}
