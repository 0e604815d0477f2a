//! What somebody may do: room patterns × verbs.
//!
//! A pattern is a room name in which `*` stands for any run of characters and `{user}` for the token's user.
//! Matching looks at a name once per pattern and never backtracks: literals are found from the left, so a
//! pattern costs what its length and the name's do, and their number is bounded when the token is read.

use std::sync::Arc;

use roomful_protocol::id::{RoomName, UserId};

/// What a member does in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Verb {
    /// Be in it and receive.
    Join = 1,
    /// Publish to its log.
    Publish = 1 << 1,
    /// Signal to its members.
    Signal = 1 << 2,
    /// Show a presence of one's own, and see the others'.
    Presence = 1 << 3,
    /// Read its history.
    History = 1 << 4,
    /// Change its keyed state, now or when gone.
    State = 1 << 5,
    /// Take its locks.
    Lock = 1 << 6,
    /// Set and cancel its timers.
    Timer = 1 << 7,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Self; 8] = [
        Self::Join,
        Self::Publish,
        Self::Signal,
        Self::Presence,
        Self::History,
        Self::State,
        Self::Lock,
        Self::Timer,
    ];

    /// The word in a token.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Publish => "publish",
            Self::Signal => "signal",
            Self::Presence => "presence",
            Self::History => "history",
            Self::State => "state",
            Self::Lock => "lock",
            Self::Timer => "timer",
        }
    }

    /// The verb of a word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.name() == word)
    }
}

/// Some verbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Verbs(u8);

impl Verbs {
    /// Every verb.
    pub const ALL: Self = Self(
        Verb::Join as u8
            | Verb::Publish as u8
            | Verb::Signal as u8
            | Verb::Presence as u8
            | Verb::History as u8
            | Verb::State as u8
            | Verb::Lock as u8
            | Verb::Timer as u8,
    );

    /// Whether a verb is among them.
    #[must_use]
    pub const fn contains(self, verb: Verb) -> bool {
        self.0 & verb as u8 != 0
    }

    /// These and another.
    #[must_use]
    pub const fn with(self, verb: Verb) -> Self {
        Self(self.0 | verb as u8)
    }
}

/// Everything that somebody may do. Clones share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grants(Allowed);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Allowed {
    Everything,
    These(Arc<[Grant]>),
}

/// Some rooms, and what may be done there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The rooms.
    pub rooms: Vec<RoomPattern>,
    /// What may be done.
    pub verbs: Verbs,
}

impl Grants {
    /// Most grants in a token.
    pub const MAX: usize = 64;
    /// Most patterns in a grant.
    pub const PATTERNS_MAX: usize = 16;

    /// Everything in every room of the tenant.
    #[must_use]
    pub const fn everything() -> Self {
        Self(Allowed::Everything)
    }

    /// What any of these allows; nothing, if there is none.
    #[must_use]
    pub fn new(grants: Vec<Grant>) -> Self {
        Self(Allowed::These(grants.into()))
    }

    /// Whether something may be done in a room.
    #[must_use]
    pub fn allows(&self, room: &RoomName, verb: Verb) -> bool {
        let Allowed::These(grants) = &self.0 else {
            return true;
        };
        let room = room.as_str();
        let mut grants = grants.iter().filter(|grant| grant.verbs.contains(verb));
        grants.any(|grant| grant.rooms.iter().any(|pattern| pattern.matches(room)))
    }
}

/// Which rooms: literal room-name characters, `*` for any run of characters (none included, colons included),
/// and `{user}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomPattern(Vec<Box<str>>);

impl RoomPattern {
    /// Longest pattern, in bytes, before and after `{user}` is put in.
    pub const BYTES_MAX: usize = RoomName::BYTES_MAX;

    /// Reads a pattern for a user; `None` if it breaks the grammar.
    ///
    /// A user whose name has a character that no room's has (a space, or the `*` that would widen the
    /// pattern) is nowhere a room, so a pattern with `{user}` then matches nothing.
    #[must_use]
    pub fn parse(pattern: &str, user: &UserId) -> Option<Self> {
        let literal = pattern.replace(USER, "");
        let well_formed = literal
            .bytes()
            .all(|byte| byte == b'*' || is_room_character(byte));
        if pattern.is_empty() || pattern.len() > Self::BYTES_MAX || !well_formed {
            return None;
        }
        let user = user.as_str();
        if pattern.contains(USER) && !user.bytes().all(is_room_character) {
            return Some(Self(Vec::new()));
        }
        Some(Self(
            pattern
                .replace(USER, user)
                .split('*')
                .map(Box::from)
                .collect(),
        ))
    }

    fn matches(&self, room: &str) -> bool {
        let Some((first, rest)) = self.0.split_first() else {
            return false;
        };
        let Some((last, middle)) = rest.split_last() else {
            return room == &**first;
        };
        let Some(mut room) = room.strip_prefix(&**first) else {
            return false;
        };
        // The leftmost place of each literal leaves the most for the ones after it, so no other needs to be tried.
        for literal in middle {
            let Some((_, after)) = room.split_once(&**literal) else {
                return false;
            };
            room = after;
        }
        room.ends_with(&**last)
    }
}

fn is_room_character(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._~@+=,:/-".contains(&byte)
}

/// Where the user's name goes in a pattern.
const USER: &str = "{user}";

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(pattern: &str, user: &str) -> Option<RoomPattern> {
        RoomPattern::parse(pattern, &UserId::parse(user).unwrap())
    }

    /// The pattern language as a table: pattern, user, room, and whether it matches.
    #[test]
    fn patterns_match_by_their_grammar() {
        for (text, user, room, expected) in [
            ("chat:lobby", "ann", "chat:lobby", true),
            ("chat:lobby", "ann", "chat:lobby2", false),
            ("chat:lobby", "ann", "chat:lobb", false),
            ("chat:*", "ann", "chat:a:b/c", true),
            ("chat:*", "ann", "chats:a", false),
            ("*", "ann", "doc:x", true),
            ("*:lobby", "ann", "chat:lobby", true),
            ("*:lobby", "ann", "chat:lobby2", false),
            ("doc:*-v*", "ann", "doc:spec-v2", true),
            ("doc:*-v*", "ann", "doc:spec2", false),
            ("doc:a*a", "ann", "doc:a", false),
            ("doc:a*a", "ann", "doc:aa", true),
            ("doc:*ab*ab", "ann", "doc:ab", false),
            ("doc:*ab*ab", "ann", "doc:abab", true),
            ("doc:*ab*b", "ann", "doc:xabab", true),
            ("doc:**", "ann", "doc:x", true),
            ("inbox:{user}", "ann", "inbox:ann", true),
            ("inbox:{user}", "ann", "inbox:bob", false),
            ("inbox:{user}:*", "ann", "inbox:ann:1", true),
            ("inbox:{user}", "a*", "inbox:ann", false),
            ("inbox:{user}", "*", "inbox:*", false),
            ("inbox:{user}", "ann smith", "inbox:ann smith", false),
            ("inbox:{user}", "{user}", "inbox:ann", false),
            ("{user}", "chat:lobby", "chat:lobby", true),
        ] {
            let found = pattern(text, user).unwrap().matches(room);
            assert_eq!(found, expected, "{text} for {user} on {room}");
        }
    }

    /// What could never match, or means something else than its author thinks, is refused when the token is read.
    #[test]
    fn patterns_outside_the_grammar_are_refused() {
        for text in [
            "",
            "chat: lobby",
            "chat:{tenant}",
            "chat:{user",
            "chat:[ab]",
            "chat:?",
            "chat:lö",
            "chat:\\*",
            "chat:>",
        ] {
            assert_eq!(pattern(text, "ann"), None, "{text}");
        }
        assert!(pattern(&format!("chat:{}", "a".repeat(250)), "ann").is_some());
        assert_eq!(pattern(&format!("chat:{}", "a".repeat(251)), "ann"), None);
    }

    /// A verb is allowed where one grant has both it and the room; grants don't lend each other theirs.
    #[test]
    fn grants_are_rooms_times_verbs() {
        let grant = |rooms: &str, verbs| Grant {
            rooms: vec![pattern(rooms, "ann").unwrap()],
            verbs,
        };
        let grants = Grants::new(vec![
            grant(
                "chat:*",
                Verbs::default().with(Verb::Join).with(Verb::Publish),
            ),
            grant("doc:*", Verbs::default().with(Verb::Join)),
        ]);
        let room = |name: &str| RoomName::parse(name.as_bytes()).unwrap();
        for (name, verb, expected) in [
            ("chat:a", Verb::Join, true),
            ("chat:a", Verb::Publish, true),
            ("chat:a", Verb::History, false),
            ("doc:a", Verb::Join, true),
            ("doc:a", Verb::Publish, false),
            ("game:a", Verb::Join, false),
        ] {
            assert_eq!(
                grants.allows(&room(name), verb),
                expected,
                "{name} {verb:?}"
            );
        }
        for verb in Verb::ALL {
            assert!(Grants::everything().allows(&room("chat:a"), verb));
            assert!(!Grants::new(Vec::new()).allows(&room("chat:a"), verb));
            assert!(Verbs::ALL.contains(verb));
            assert_eq!(Verb::parse(verb.name()), Some(verb));
        }
    }

    /// The worst pattern that fits against the longest name ends at once: many literals that nearly match.
    #[test]
    fn the_worst_pattern_is_cheap() {
        let hostile = pattern(&format!("a:{}b", "*a".repeat(126)), "ann").unwrap();
        let name = format!("a:{}", "a".repeat(253));
        assert!((0..10_000).all(|_| !hostile.matches(&name)));
    }
}
