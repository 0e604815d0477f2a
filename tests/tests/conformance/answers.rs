//! What a peer may send, and what an echo answers.

use roomful_tests::Echo;
use roomful_tests::peer::{
    BINARY, BINARY_BEGINS, CLOSE, ENDS, Frame, GOES_ON, PING, PONG, TEXT, TEXT_BEGINS, close, frame,
};

use crate::delivery::Delivery;

/// Bytes of a client, and the frames that come back for them.
struct Case {
    section: &'static str,
    about: &'static str,
    send: Vec<u8>,
    answers: Vec<Frame>,
}

fn case(
    section: &'static str,
    about: &'static str,
    send: impl IntoIterator<Item = Vec<u8>>,
    answers: impl IntoIterator<Item = Frame>,
) -> Case {
    Case {
        section,
        about,
        send: send.into_iter().collect::<Vec<_>>().concat(),
        answers: answers.into_iter().collect(),
    }
}

fn text(text: &str) -> Frame {
    Frame::Text(text.to_owned())
}

fn binary(bytes: &[u8]) -> Frame {
    Frame::Binary(bytes.to_vec())
}

fn pong(bytes: &[u8]) -> Frame {
    Frame::Pong(bytes.to_vec())
}

fn closed(code: u16) -> Frame {
    Frame::Close(Some(code))
}

fn messages() -> Vec<Case> {
    let echoed = |section, about, words: &str| {
        case(
            section,
            about,
            [frame(TEXT, words.as_bytes())],
            [text(words)],
        )
    };
    let echoed_bytes = |section, about, bytes: &[u8]| {
        case(section, about, [frame(BINARY, bytes)], [binary(bytes)])
    };
    vec![
        echoed("5.6", "a text message", "Hello"),
        echoed("5.6", "an empty text message", ""),
        echoed_bytes("5.6", "a binary message", b"\x00\xff\x7f"),
        echoed_bytes("5.6", "an empty binary message", b""),
        case(
            "5.7",
            "the example of a fragmented text message",
            [frame(TEXT_BEGINS, b"Hel"), frame(ENDS, b"lo")],
            [text("Hello")],
        ),
        echoed_bytes("5.7", "the example of 256 bytes", &[7; 256]),
        echoed_bytes("5.7", "the example of 64 KiB", &[7; 65_536]),
        case(
            "6.1",
            "several messages in one go, answered in their order",
            (0..50).map(|number: u8| frame(TEXT, number.to_string().as_bytes())),
            (0..50).map(|number: u8| text(&number.to_string())),
        ),
        echoed("8.1", "text of one to four bytes a character", "aß€😀\0"),
        echoed(
            "8.1",
            "the last code point, and some that mean nothing",
            "\u{10ffff}\u{ffff}\u{fffe}\u{fdd0}",
        ),
    ]
}

/// The shortest and the longest payload of each form of the length (§5.2).
fn lengths() -> Vec<Case> {
    let case_of = |length: usize| {
        let payload = vec![b'*'; length];
        let about = "a length at the end of its form";
        case("5.2", about, [frame(BINARY, &payload)], [binary(&payload)])
    };
    [0, 1, 125, 126, 127, 128, 65_535, 65_536, 65_537]
        .map(case_of)
        .into()
}

fn fragments() -> Vec<Case> {
    vec![
        case(
            "5.4",
            "a binary message in three fragments",
            [
                frame(BINARY_BEGINS, b"a"),
                frame(GOES_ON, b"b"),
                frame(ENDS, b"c"),
            ],
            [binary(b"abc")],
        ),
        case(
            "5.4",
            "fragments that are empty",
            [
                frame(TEXT_BEGINS, b""),
                frame(GOES_ON, b""),
                frame(ENDS, b""),
            ],
            [text("")],
        ),
        case(
            "5.4",
            "control frames between fragments, answered at once",
            [
                frame(TEXT_BEGINS, b"one "),
                frame(PING, b"first"),
                frame(GOES_ON, b"two "),
                frame(PONG, b"unasked"),
                frame(PING, b"second"),
                frame(ENDS, b"three"),
            ],
            [pong(b"first"), pong(b"second"), text("one two three")],
        ),
        case(
            "8.1",
            "characters cut between fragments",
            [
                frame(TEXT_BEGINS, b"\xe2"),
                frame(GOES_ON, b"\x82"),
                frame(GOES_ON, b"\xac\xf0\x9f"),
                frame(ENDS, b"\x98\x80"),
            ],
            [text("€😀")],
        ),
        case(
            "5.5.1",
            "a close between fragments",
            [frame(TEXT_BEGINS, b"never ends"), close(1000)],
            [closed(1000)],
        ),
    ]
}

fn control_frames() -> Vec<Case> {
    let answered = |section, about, payload: &[u8]| {
        case(section, about, [frame(PING, payload)], [pong(payload)])
    };
    vec![
        answered("5.5.2", "a ping", b"are you there"),
        answered("5.5.2", "an empty ping", b""),
        answered("5.5.2", "a ping that is no text", b"\xff\xfe\x00"),
        answered("5.5", "a ping of 125 bytes", &[0xfe; 125]),
        case(
            "5.5.2",
            "ten pings, answered in their order",
            (0..10_u8).map(|number| frame(PING, &[number])),
            (0..10_u8).map(|number| pong(&[number])),
        ),
        case(
            "5.5.3",
            "an unasked pong is no reason to say anything",
            [
                frame(PONG, b""),
                frame(PONG, &[7; 125]),
                frame(TEXT, b"next"),
            ],
            [text("next")],
        ),
    ]
}

/// A close is answered with its own code (§5.5.1), and nothing that follows it counts (§1.4).
fn closes() -> Vec<Case> {
    let longest = [&1001_u16.to_be_bytes()[..], &[b'r'; 123]].concat();
    let codes = [
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000,
        4999,
    ];
    let mut cases: Vec<Case> = codes
        .into_iter()
        .map(|code| {
            case(
                "7.4",
                "a code that may be sent",
                [close(code)],
                [closed(code)],
            )
        })
        .collect();
    cases.extend([
        case(
            "7.1.5",
            "a close without a code",
            [frame(CLOSE, b"")],
            [closed(1000)],
        ),
        case(
            "5.5.1",
            "the longest reason",
            [frame(CLOSE, &longest)],
            [closed(1001)],
        ),
        case(
            "1.4",
            "a message behind a close",
            [close(1000), frame(TEXT, b"too late")],
            [closed(1000)],
        ),
        case(
            "1.4",
            "a ping behind a close",
            [close(1000), frame(PING, b"")],
            [closed(1000)],
        ),
        case(
            "1.4",
            "a close behind a close",
            [close(1000), close(1001)],
            [closed(1000)],
        ),
        case(
            "1.4",
            "a violation behind a close",
            [close(1000), frame(0xff, b"")],
            [closed(1000)],
        ),
    ]);
    cases
}

async fn check(cases: Vec<Case>) {
    let echo = Echo::start(&[]).await;
    for case in cases {
        for delivery in Delivery::ALL {
            let name = format!("§{} {}, {delivery:?}", case.section, case.about);
            let mut peer = echo.peer().await;
            delivery.send(&mut peer, &case.send).await;
            for answer in &case.answers {
                assert_eq!(peer.frame().await.as_ref(), Some(answer), "{name}");
            }
            if !matches!(case.answers.last(), Some(Frame::Close(_))) {
                peer.send(&close(1000)).await;
                assert_eq!(peer.frame().await, Some(closed(1000)), "{name}");
            }
            assert_eq!(peer.frame().await, None, "{name}");
        }
    }
}

#[tokio::test]
async fn messages_of_every_kind_come_back() {
    check(messages()).await;
}

#[tokio::test]
async fn lengths_of_every_form_come_back() {
    check(lengths()).await;
}

#[tokio::test]
async fn fragments_come_back_as_one_message() {
    check(fragments()).await;
}

#[tokio::test]
async fn control_frames_are_answered() {
    check(control_frames()).await;
}

#[tokio::test]
async fn a_close_is_answered_with_its_code() {
    check(closes()).await;
}
