//! The WebSocket handshake on raw bytes.
//!
//! Whatever is accepted is a handshake by RFC 6455 §4.2.1, as a second and naive reader sees it, from an origin that may connect.

use roomful_server::http::OriginRule;
use roomful_server::http::fuzzing::Judge;

pub(crate) fn check(data: &[u8]) {
    let loopback = OriginRule::Loopback { listed: Vec::new() };
    for rule in [loopback, OriginRule::SameHost] {
        let is_loopback = rule != OriginRule::SameHost;
        let Some(judged) = Judge::new(rule, PORT).judge(data) else {
            continue;
        };
        // A value may hold bytes that are not UTF-8 (RFC 9110 §5.5); where it matters, none of them is let through.
        let head = String::from_utf8_lossy(&data[..judged.length]);
        let request = Request::read(&head).expect("what is accepted is a plain request");
        request.check();
        assert_eq!(judged.accept.len(), 28, "twenty bytes in base64");
        let offers = request.all("sec-websocket-protocol").join(",");
        assert!(
            offers
                .split(',')
                .any(|offer| offer.trim() == judged.subprotocol),
            "a subprotocol that was not offered"
        );
        let host = request.all("host").concat().to_ascii_lowercase();
        let own = ["localhost:7400", "127.0.0.1:7400", "[::1]:7400"];
        assert!(!is_loopback || own.contains(&host.as_str()), "host {host}");
        for origin in request.all("origin") {
            let of_page = origin.split_once("://").map_or("", |(_, rest)| rest);
            let default =
                [":80", ":443"].map(|port| host.strip_suffix(port).unwrap_or(&host).to_owned());
            let bare = [":80", ":443"].map(|port| of_page.strip_suffix(port).unwrap_or(of_page));
            assert!(
                of_page == host
                    || bare
                        .iter()
                        .any(|page| default.iter().any(|host| page == host)),
                "origin {origin} at {host}"
            );
        }
    }
}

/// A request as it stands there.
struct Request<'a> {
    line: &'a str,
    headers: Vec<(String, &'a str)>,
}

impl<'a> Request<'a> {
    fn read(head: &'a str) -> Option<Self> {
        let mut lines = head
            .split('\n')
            .map(|line| line.strip_suffix('\r').unwrap_or(line));
        // Empty lines in front of a request are read over (RFC 9112 §2.2).
        let line = lines.find(|line| !line.is_empty())?;
        let mut headers = Vec::new();
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':')?;
            headers.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t'])));
        }
        Some(Self { line, headers })
    }

    fn all(&self, name: &str) -> Vec<&'a str> {
        let wanted = self.headers.iter().filter(|(is, _)| is == name);
        wanted.map(|(_, value)| *value).collect()
    }

    fn lists(&self, name: &str, token: &str) -> bool {
        let lines = self.all(name).join(",");
        lines
            .split(',')
            .any(|word| word.trim().eq_ignore_ascii_case(token))
    }

    fn check(&self) {
        let words: Vec<&str> = self
            .line
            .split(' ')
            .filter(|word| !word.is_empty())
            .collect();
        assert!(matches!(words[..], ["GET", _, "HTTP/1.1"]), "{}", self.line);
        let path = words[1].split('?').next();
        assert_eq!(path, Some("/v1/ws"), "another path");
        assert_eq!(self.all("host").len(), 1, "one host");
        assert!(self.lists("upgrade", "websocket"), "no upgrade");
        assert!(
            self.lists("connection", "upgrade"),
            "no connection: upgrade"
        );
        assert_eq!(self.all("sec-websocket-version"), ["13"], "version");
        let key = self.all("sec-websocket-key");
        assert!(key.len() == 1 && key[0].len() == 24, "key");
        assert!(self.all("transfer-encoding").is_empty(), "a body");
        let lengths = self.all("content-length");
        assert!(lengths.iter().all(|length| *length == "0"), "a body");
        assert!(self.all("origin").len() < 2, "two origins");
    }
}

const PORT: u16 = 7400;
