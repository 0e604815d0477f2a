//! What no peer may send, and the code with which it is closed.

use roomful_tests::peer::{
    BINARY, BINARY_BEGINS, CLOSE, ENDS, GOES_ON, PING, PONG, TEXT, TEXT_BEGINS, close, frame,
    header, header_of, masked,
};
use roomful_tests::{Echo, Peer, Server};

use crate::delivery::Delivery;

/// Bytes that break a rule, and the code that they are closed with.
struct Violation {
    section: &'static str,
    about: &'static str,
    send: Vec<u8>,
    code: u16,
}

fn protocol(section: &'static str, about: &'static str, send: impl Into<Vec<u8>>) -> Violation {
    let send = send.into();
    Violation {
        section,
        about,
        send,
        code: 1002,
    }
}

fn utf8(section: &'static str, about: &'static str, send: impl Into<Vec<u8>>) -> Violation {
    Violation {
        code: 1007,
        ..protocol(section, about, send)
    }
}

fn framing() -> Vec<Violation> {
    let mut violations = Vec::new();
    for bits in [0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70] {
        let late = [frame(BINARY_BEGINS, b"x"), frame(ENDS | bits, b"x")].concat();
        violations.extend([
            protocol(
                "5.2",
                "a reserved bit in a message",
                frame(BINARY | bits, b"x"),
            ),
            protocol("5.2", "a reserved bit in a ping", frame(PING | bits, b"")),
            protocol("5.2", "a reserved bit in a close", frame(CLOSE | bits, b"")),
            protocol("5.2", "a reserved bit in a later fragment", late),
        ]);
    }
    for code in (0x3..=0x7).chain(0xb..=0xf) {
        violations.push(protocol(
            "5.2",
            "a reserved opcode",
            frame(0x80 | code, b"x"),
        ));
        violations.push(protocol(
            "5.2",
            "a reserved opcode that goes on",
            frame(code, b"x"),
        ));
    }
    let length = |seven, more: &[u8]| header_of(BINARY, seven, more);
    violations.extend([
        protocol("5.1", "a message without a mask", b"\x82\x01x"),
        protocol("5.1", "a ping without a mask", b"\x89\x00"),
        protocol("5.1", "a close without a mask", b"\x88\x02\x03\xe8"),
        protocol(
            "5.2",
            "125 in two bytes",
            length(126, &125_u16.to_be_bytes()),
        ),
        protocol(
            "5.2",
            "65,535 in eight bytes",
            length(127, &65_535_u64.to_be_bytes()),
        ),
        protocol(
            "5.2",
            "a length of 2^63",
            length(127, &(1_u64 << 63).to_be_bytes()),
        ),
        protocol("5.4", "a continuation of nothing", frame(ENDS, b"x")),
        protocol(
            "5.4",
            "a continuation of nothing that goes on",
            frame(GOES_ON, b"x"),
        ),
        protocol(
            "5.4",
            "a message inside a message",
            [frame(BINARY_BEGINS, b"x"), frame(BINARY, b"y")].concat(),
        ),
        protocol(
            "5.4",
            "a fragmented message inside a message",
            [frame(TEXT_BEGINS, b"x"), frame(BINARY_BEGINS, b"y")].concat(),
        ),
    ]);
    violations
}

fn control_frames() -> Vec<Violation> {
    let inside = [frame(BINARY_BEGINS, b"x"), frame(PING, &[0; 126])].concat();
    let close = frame(CLOSE & 0x7f, &1000_u16.to_be_bytes());
    vec![
        protocol("5.5", "a ping of 126 bytes", frame(PING, &[0; 126])),
        protocol("5.5", "a pong of 126 bytes", frame(PONG, &[0; 126])),
        protocol("5.5", "a close of 126 bytes", frame(CLOSE, &[3; 126])),
        protocol(
            "5.5",
            "a ping of 64 KiB, by its header",
            header(PING, 65_536),
        ),
        protocol("5.5", "a fragmented ping", frame(PING & 0x7f, b"")),
        protocol("5.5", "a fragmented pong", frame(PONG & 0x7f, b"")),
        protocol("5.5", "a fragmented close", close),
        protocol("5.5", "a long ping inside a message", inside),
    ]
}

fn closes() -> Vec<Violation> {
    let codes = [
        0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535,
    ];
    let reason = |reason: &[u8]| frame(CLOSE, &[&1000_u16.to_be_bytes(), reason].concat());
    let mut violations: Vec<Violation> = codes
        .into_iter()
        .map(|code| protocol("7.4", "a code that may not be sent", close(code)))
        .collect();
    violations.extend([
        protocol("5.5.1", "half a code", frame(CLOSE, b"\x03")),
        utf8(
            "5.5.1",
            "a reason that is not UTF-8",
            reason(b"why \xed\xa0\x80"),
        ),
        utf8(
            "5.5.1",
            "a reason that ends inside a character",
            reason(b"\xe2\x82"),
        ),
    ]);
    violations
}

fn texts() -> Vec<Violation> {
    let rows: [(_, &[u8]); 10] = [
        ("a byte that is in no character", b"\xff"),
        ("the second byte of a character alone", b"\x80"),
        ("a character that doesn't go on", b"\xe2\x28\xa1"),
        ("an overlong slash", b"\xc0\xaf"),
        ("an overlong zero in three bytes", b"\xe0\x80\x80"),
        ("a surrogate", b"\xed\xa0\x80"),
        ("a pair of surrogates", b"\xed\xa0\x80\xed\xb0\x80"),
        ("beyond the last code point", b"\xf4\x90\x80\x80"),
        ("five bytes a character", b"\xf8\x88\x80\x80\x80"),
        ("an end inside a character", b"\xf0\x9f\x98"),
    ];
    let mut violations: Vec<Violation> = rows
        .into_iter()
        .map(|(about, text)| utf8("8.1", about, frame(TEXT, text)))
        .collect();
    let mut begun = header(TEXT_BEGINS, 60_000);
    begun.extend(masked(b"good so far \xff"));
    let fragments = |first: &[u8], second: Vec<u8>| [frame(TEXT_BEGINS, first), second].concat();
    violations.extend([
        utf8("8.1", "a wrong byte, though the frame goes on", begun),
        utf8(
            "8.1",
            "a character that the next fragment spoils, though the message goes on",
            fragments(b"\xe2\x82", frame(GOES_ON, b"\x28")),
        ),
        utf8(
            "8.1",
            "a last fragment that ends inside a character",
            fragments(b"x", frame(ENDS, b"\xe2\x82")),
        ),
        utf8(
            "8.1",
            "a wrong fragment before a ping",
            fragments(b"\xc1", frame(PING, b"")),
        ),
    ]);
    violations
}

async fn check_echo(violations: Vec<Violation>) {
    let echo = Echo::start(&[]).await;
    for violation in &violations {
        for delivery in Delivery::ALL {
            refused(&mut echo.peer().await, violation, delivery).await;
        }
    }
}

/// The same behind a session, which sees nothing of it. One counter moves for each.
async fn check_server(violations: Vec<Violation>) {
    let server = Server::start().await;
    let before = server.metrics().await;
    for violation in &violations {
        let mut peer = Peer::open(server.address(), Some("roomful.v1.msgpack")).await;
        peer.hello().await;
        refused(&mut peer, violation, Delivery::Whole).await;
    }
    let after = server.metrics().await;
    for (reason, code) in [("protocol", 1002), ("utf8", 1007)] {
        let of_this = violations.iter().filter(|violation| violation.code == code);
        let moved = |name, label, value: &str| {
            after.labelled(name, label, value) - before.labelled(name, label, value)
        };
        let counted = [
            moved("roomful_violations_total", "reason", reason),
            moved(
                "roomful_connections_closed_total",
                "code",
                &code.to_string(),
            ),
        ];
        assert_eq!(counted, [of_this.count() as f64; 2], "{reason}");
    }
}

async fn refused(peer: &mut Peer, violation: &Violation, delivery: Delivery) {
    delivery.send(peer, &violation.send).await;
    let Violation { section, about, .. } = violation;
    let code = peer.close_code().await;
    assert_eq!(
        code,
        Some(violation.code),
        "§{section} {about}, {delivery:?}"
    );
}

#[tokio::test]
async fn broken_frames_close_with_1002() {
    check_echo(framing()).await;
}

#[tokio::test]
async fn broken_control_frames_close_with_1002() {
    check_echo(control_frames()).await;
}

#[tokio::test]
async fn broken_closes_are_answered() {
    check_echo(closes()).await;
}

#[tokio::test]
async fn text_that_is_not_utf8_closes_with_1007() {
    check_echo(texts()).await;
}

#[tokio::test]
async fn a_session_is_closed_like_an_echo() {
    let all = [framing(), control_frames(), closes(), texts()];
    check_server(all.into_iter().flatten().collect()).await;
}
