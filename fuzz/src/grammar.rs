//! Names, patterns and positions as people and tokens write them.
//!
//! What is read is written back the same; a grant allows what a naive reading of its pattern allows, and nothing else.

use roomful_protocol::id::{PlacementKey, RoomName, SessionId, TenantId, UserId};
use roomful_protocol::position::Position;
use roomful_server::auth::{Grant, Grants, RoomPattern, Verb, Verbs};
use roomful_server::http::Origin;

/// The lines are a pattern, a room and a user; each is also tried as everything else.
pub(crate) fn check(data: &[u8]) {
    for line in data.split(|byte| *byte == b'\n') {
        if let Ok(name) = RoomName::parse(line) {
            assert_eq!(name.as_str().as_bytes(), line);
            assert!(!name.namespace().is_empty() && line.len() <= RoomName::BYTES_MAX);
            let key = name.placement_key();
            assert_eq!(PlacementKey::parse(&key.to_string()), Some(key));
        }
        if let Ok(line) = std::str::from_utf8(line) {
            check_text(line);
        }
    }
    let mut lines = data
        .splitn(3, |byte| *byte == b'\n')
        .map(std::str::from_utf8);
    if let (Some(Ok(pattern)), Some(Ok(room)), Some(Ok(user))) =
        (lines.next(), lines.next(), lines.next())
    {
        check_grant(pattern, room, user);
    }
}

fn check_text(text: &str) {
    if let Ok(origin) = Origin::parse(text) {
        assert_eq!(Origin::parse(&origin.to_string()), Ok(origin));
    }
    if let Ok(position) = text.parse::<Position>() {
        assert_eq!(position.to_string().parse(), Ok(position));
    }
    if let Some(session) = SessionId::parse(text) {
        assert_eq!(SessionId::parse(&session.to_string()), Some(session));
    }
    if let Ok(user) = UserId::parse(text) {
        assert_eq!(user.as_str(), text);
    }
    if let Ok(tenant) = TenantId::parse(text) {
        assert_eq!(tenant.as_str(), text);
    }
}

fn check_grant(pattern: &str, room: &str, user: &str) {
    let (Ok(room), Ok(user)) = (RoomName::parse(room.as_bytes()), UserId::parse(user)) else {
        return;
    };
    let Some(parsed) = RoomPattern::parse(pattern, &user) else {
        return;
    };
    let grants = Grants::new(vec![Grant {
        rooms: vec![parsed],
        verbs: Verbs::default().with(Verb::Join),
    }]);
    assert!(
        !grants.allows(&room, Verb::Publish),
        "a verb that was not granted"
    );
    let is_room_like = user
        .as_str()
        .bytes()
        .all(|byte| RoomName::parse(&[b"a:", &[byte][..]].concat()).is_ok());
    let expected = if pattern.contains("{user}") {
        is_room_like
            && matches(
                pattern.replace("{user}", user.as_str()).as_bytes(),
                room.as_str().as_bytes(),
            )
    } else {
        matches(pattern.as_bytes(), room.as_str().as_bytes())
    };
    assert_eq!(
        grants.allows(&room, Verb::Join),
        expected,
        "{pattern} and {room}"
    );
}

/// `*` stands for any run of characters: which places each byte of the room can stand at, one after the other.
fn matches(pattern: &[u8], room: &[u8]) -> bool {
    let mut at = vec![false; pattern.len() + 1];
    at[0] = true;
    spread(pattern, &mut at);
    for byte in room {
        let mut next = vec![false; pattern.len() + 1];
        for (index, expected) in pattern.iter().enumerate().filter(|(index, _)| at[*index]) {
            if *expected == b'*' {
                next[index] = true;
            } else if expected == byte {
                next[index + 1] = true;
            }
        }
        spread(pattern, &mut next);
        at = next;
    }
    at[pattern.len()]
}

/// A `*` may stand for nothing.
fn spread(pattern: &[u8], at: &mut [bool]) {
    for (index, byte) in pattern.iter().enumerate() {
        if at[index] && *byte == b'*' {
            at[index + 1] = true;
        }
    }
}
