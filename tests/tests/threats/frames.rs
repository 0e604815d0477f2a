//! Attacks with WebSocket frames (RFC 6455).

use std::time::Duration;

use rand::{Rng as _, RngExt as _};
use roomful_protocol::codec::Encoding;
use roomful_protocol::frame::{ClientFrame, Publish};
use roomful_protocol::payload::Payload;
use roomful_tests::peer::{
    BINARY, BINARY_BEGINS, CLOSE, ENDS, Frame, GOES_ON, PING, PONG, TEXT, close, frame, header,
    header_of, masked,
};
use roomful_tests::seed::seeded;
use roomful_tests::{Connect, Healthy, Peer, RawClient, Server};
use tokio::time::sleep;

use crate::attack::{Attack, Series};

/// A client must mask its frames (§5.1), reserved bits and opcodes have no meaning (§5.2).
#[tokio::test]
async fn a_frame_that_means_nothing_closes_with_1002() {
    let attacks = [
        vec![0x82, 0x01, 0x00],
        vec![0x89, 0x00],
        frame(BINARY | 0x40, b"x"),
        frame(BINARY | 0x20, b"x"),
        frame(BINARY | 0x10, b"x"),
        frame(PING | 0x40, b""),
        frame(0x83, b"x"),
        frame(0x87, b"x"),
        frame(0x8b, b""),
        frame(0x8f, b""),
    ];
    check("protocol", 1002, &attacks).await;
}

/// A control frame has at most 125 bytes and one fragment (§5.5); a continuation continues something (§5.4).
#[tokio::test]
async fn a_broken_control_frame_or_fragment_closes_with_1002() {
    let attacks = [
        frame(PING, &[0; 126]),
        frame(PONG, &[0; 60_000]),
        frame(CLOSE, &[3; 126]),
        frame(PING & 0x7f, b""),
        frame(CLOSE & 0x7f, b""),
        frame(ENDS, b"x"),
        frame(GOES_ON, b"x"),
        [frame(BINARY_BEGINS, b"x"), frame(BINARY, b"y")].concat(),
        [frame(BINARY_BEGINS, b"x"), frame(PING, &[0; 126])].concat(),
    ];
    check("protocol", 1002, &attacks).await;
}

/// Text and close reasons are UTF-8 (§8.1). What is not never reaches the room.
#[tokio::test]
async fn text_that_is_not_utf8_closes_with_1007_and_reaches_no_room() {
    let server = Server::start().await;
    let mut witness = RawClient::connect(&server).await;
    let room = witness.join("chat:utf8").await.room;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    for wrong in [0xff, 0xc0, 0x80] {
        let mut client = Connect::to(&server).encoding(Encoding::Json).ready().await;
        let room = client.join("chat:utf8").await.room;
        let publish = Publish {
            request: client.new_request(),
            room,
            op: None,
            payload: Payload::text("~"),
        };
        let mut text = Vec::new();
        Encoding::Json.encode(&ClientFrame::from(publish), &mut text);
        let at = text.iter().position(|byte| *byte == b'~').unwrap();
        text[at] = wrong;
        client.send_below(&frame(TEXT, &text));
        assert_eq!(client.closed().await.code, Some(1007));
    }
    let mut peer = session(&server).await;
    peer.send(&frame(CLOSE, b"\x03\xe8\xff")).await;
    assert_eq!(peer.close_code().await, Some(1007));
    let published = witness.publish(room, Payload::text("after")).await;
    assert_eq!(
        witness.event().await.entry.offset,
        published.position.offset
    );
    attack.moved(violations("utf8"), 4.0).await;
}

/// A close frame has no payload or a code that may be sent (§7.4).
#[tokio::test]
async fn a_close_with_a_bad_code_closes_with_1002() {
    let codes = [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535];
    let mut attacks = codes.map(close).to_vec();
    attacks.push(frame(CLOSE, b"\x03"));
    check("protocol", 1002, &attacks).await;
}

/// A length is written in the fewest bytes and has no highest bit (§5.2); the header alone decides, and nothing is allocated.
#[tokio::test]
async fn a_length_that_breaks_the_rules_closes_with_1002() {
    let of = |seven, more: &[u8]| header_of(BINARY, seven, more);
    let attacks = [
        of(126, &5_u16.to_be_bytes()),
        of(126, &125_u16.to_be_bytes()),
        of(127, &5_u64.to_be_bytes()),
        of(127, &65_535_u64.to_be_bytes()),
        of(127, &(1_u64 << 63).to_be_bytes()),
        of(127, &u64::MAX.to_be_bytes()),
    ];
    check("protocol", 1002, &attacks).await;
}

/// The same for lengths that are well written: no memory follows them.
#[tokio::test]
async fn a_length_beyond_everything_closes_with_1009_and_takes_no_memory() {
    let server = Server::start().await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let before = resident(&server).await;
    for length in [1_u64 << 30, 1 << 34, 1 << 40, u64::MAX >> 1] {
        for first in [BINARY, BINARY_BEGINS] {
            let mut peer = session(&server).await;
            let header = header_of(first, 127, &length.to_be_bytes());
            peer.send(&header).await;
            assert_eq!(peer.close_code().await, Some(1009), "{length}");
        }
    }
    let grown = resident(&server).await - before;
    assert!(grown < 2.0 * MIB, "grew by {grown}");
    attack.moved(violations("too_big"), 8.0).await;
}

/// Many announce the longest message and send ten bytes of it: memory follows what has arrived, and each is closed in time.
#[tokio::test]
async fn announced_messages_that_never_come_take_no_memory_and_end() {
    let config = "[connection]\nmessage_bytes_max = 16777216\noutbox_bytes_max = 33554432\nmessage_timeout_ms = 3000\n";
    let server = Server::with_config(config).await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let mut peers = Vec::new();
    for _ in 0..SOCKETS {
        peers.push(session(&server).await);
    }
    let before = resident(&server).await;
    let mut announced = header(BINARY, 15 << 20);
    announced.extend(masked(&[7; 10]));
    for peer in &mut peers {
        peer.send(&announced).await;
    }
    // All of them have been read by the time that a later one is answered, on either shard.
    for _ in 0..2 {
        session(&server).await.until_pong().await;
    }
    let grown = resident(&server).await - before;
    assert!(grown < 2.0 * MIB, "grew by {grown} for {SOCKETS} sockets");
    for peer in &mut peers {
        assert_eq!(peer.close_code().await, Some(1008));
    }
    attack
        .moved(violations("message_timeout"), f64::from(SOCKETS))
        .await;
}

/// The limit is for the whole message, however it is cut.
#[tokio::test]
async fn a_message_over_the_limit_closes_with_1009_whole_or_in_fragments() {
    let config = "[connection]\nmessage_bytes_max = 8192\npayload_bytes_max = 4096\n";
    let server = Server::with_config(config).await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    for (length, fits) in [(8_191, true), (8_192, true), (8_193, false)] {
        // No frame of the protocol, which costs an error and not the connection.
        let payload = vec![0xc1; length];
        let (head, tail) = payload.split_at(1_000);
        let fragments = [frame(BINARY_BEGINS, head), frame(ENDS, tail)].concat();
        for bytes in [frame(BINARY, &payload), fragments] {
            let mut peer = session(&server).await;
            peer.send(&bytes).await;
            if fits {
                assert!(matches!(peer.frame().await, Some(Frame::Binary(_))));
                peer.until_pong().await;
            } else {
                assert_eq!(peer.close_code().await, Some(1009));
            }
        }
    }
    attack.moved(violations("too_big"), 2.0).await;
}

/// Empty fragments cost no bytes of a message and a look each; one of the message's bytes at a time is not much better.
#[tokio::test]
async fn endless_fragments_close_with_1008() {
    let endless = |payload: &[u8]| {
        let more = frame(GOES_ON, payload).repeat(1_024);
        [frame(BINARY_BEGINS, payload), more].concat()
    };
    check("fragments", 1008, &[endless(b""), endless(b"x")]).await;
}

/// Pings by the million whose answers are never read: the connection is closed early, and what waits for it stays small.
#[tokio::test]
async fn a_ping_flood_that_is_not_read_takes_no_memory() {
    let server = Server::start().await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let mut peer = session(&server).await;
    let pings = frame(PING, &[7; 125]).repeat(1_000);
    let before = resident(&server).await;
    let mut most = before;
    for _ in 0..1_000 {
        // The server reads and drops for a while what comes behind its close; then the socket is gone.
        if peer.try_send(&pings).await.is_err() {
            break;
        }
        most = resident(&server).await.max(most);
    }
    assert!(most - before < MIB, "grew by {}", most - before);
    let series = ("roomful_rate_limited_total", Some(("limit", "control")));
    attack.moved(series, 1.0).await;
}

/// One close is answered, and nothing behind it is looked at (§1.4).
#[tokio::test]
async fn a_close_flood_gets_one_answer() {
    let server = Server::start().await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let behind = [
        close(1000).repeat(10_000),
        frame(BINARY, &[7; 60_000]).repeat(10),
        frame(PING, b"").repeat(10_000),
        frame(0xff, b"").repeat(10_000),
    ];
    for bytes in behind {
        let mut peer = session(&server).await;
        peer.send(&[close(1000), bytes].concat()).await;
        assert_eq!(peer.close_code().await, Some(1000));
    }
    attack
        .moved(
            ("roomful_connections_closed_total", Some(("code", "1000"))),
            4.0,
        )
        .await;
}

/// Who is closed and neither answers nor goes is dropped after a while, read or not.
#[tokio::test]
async fn a_close_that_is_never_answered_drops_the_socket() {
    let server = Server::with_config("[connection]\nclose_timeout_ms = 500\n").await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    for reads in [true, false] {
        let mut peer = session(&server).await;
        peer.send(&frame(0x83, b"")).await;
        if reads {
            assert_eq!(peer.close_code().await, Some(1002));
        }
        peer.dropped().await;
    }
    attack.moved(violations("protocol"), 2.0).await;
}

/// A close frame arrives though the peer has stopped reading for a while and sends on: the rest of its input is read and dropped,
/// since a socket that is closed with input unread is reset.
#[tokio::test]
async fn the_close_frame_arrives_at_a_peer_that_reads_late_and_sends_on() {
    let server = Server::start().await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    for _ in 0..5 {
        let mut peer = session(&server).await;
        let more = frame(BINARY, &[7; 60_000]).repeat(20);
        peer.send(&[frame(0x83, b""), more].concat()).await;
        sleep(Duration::from_millis(100)).await;
        assert_eq!(peer.close_code().await, Some(1002));
    }
    attack.moved(violations("protocol"), 5.0).await;
}

/// One byte a segment: everything works, and nothing is held against it.
#[tokio::test]
async fn one_byte_a_segment_is_no_violation() {
    let server = Server::start().await;
    let mut witness = RawClient::connect(&server).await;
    let room = witness.join("chat:bytes").await.room;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let mut client = RawClient::connect(&server).await;
    client.join("chat:bytes").await;
    let publish = Publish {
        request: client.new_request(),
        room,
        op: None,
        payload: Payload::text("slow ".repeat(40)),
    };
    let mut message = Vec::new();
    Encoding::MessagePack.encode(&ClientFrame::from(publish), &mut message);
    let (head, tail) = message.split_at(20);
    let fragments = [
        frame(BINARY_BEGINS, head),
        frame(PING, b"between"),
        frame(ENDS, tail),
    ];
    for byte in fragments.concat() {
        client.send_below(&[byte]);
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(
        witness.event().await.entry.payload,
        Payload::text("slow ".repeat(40))
    );
    attack.moved(("roomful_violations_total", None), 0.0).await;
}

/// No offer of compression is accepted, good or malformed, so there is nothing to inflate: no bomb, and no size that tells of a
/// secret. A frame that says it is compressed breaks the standard.
#[tokio::test]
async fn compression_is_declined_and_a_compressed_frame_closes_with_1002() {
    let server = Server::start().await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let offers = [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; server_max_window_bits=0",
        "permessage-deflate; client_max_window_bits=7",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; client_max_window_bits=x",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate, permessage-deflate, x-webkit-deflate-frame",
    ];
    for offer in offers {
        let lines = format!(
            "Sec-WebSocket-Protocol: roomful.v1.msgpack\r\nSec-WebSocket-Extensions: {offer}\r\n"
        );
        let mut peer = Peer::open_with(server.address(), &lines, None).await;
        let head = peer.head.to_ascii_lowercase();
        assert!(!head.contains("sec-websocket-extensions"), "{head}");
        peer.hello().await;
        // A megabyte of zeros, a thousand times smaller.
        peer.send(&frame(BINARY | 0x40, &[0xec, 0xc1, 0x01, 0x01, 0x00]))
            .await;
        assert_eq!(peer.close_code().await, Some(1002), "{offer}");
    }
    attack.moved(violations("protocol"), 8.0).await;
}

/// Noise instead of frames ends the connection and nothing else.
#[tokio::test]
async fn random_bytes_end_the_connection_alone() {
    let config = "[connection]\nhello_timeout_ms = 2000\nmessage_timeout_ms = 500\n";
    let server = Server::with_config(config).await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let mut random = seeded("random_bytes_end_the_connection_alone");
    let mut peers = Vec::new();
    for _ in 0..200 {
        let mut noise = vec![0; random.random_range(1..2_000)];
        random.fill_bytes(&mut noise);
        let mut peer = Peer::open(server.address(), Some("roomful.v1.msgpack")).await;
        peer.send(&noise).await;
        peers.push(peer);
    }
    let mut broken = 0;
    for peer in &mut peers {
        let code = peer.close_code().await.expect("a code");
        broken += u32::from(matches!(code, 1002 | 1007 | 1008 | 1009));
    }
    attack
        .moved(("roomful_violations_total", None), f64::from(broken))
        .await;
}

/// Each of the attacks comes from a session of its own, is closed with the code, and is counted once under the reason.
async fn check(reason: &str, code: u16, attacks: &[Vec<u8>]) {
    let server = Server::start().await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    for bytes in attacks {
        let mut peer = session(&server).await;
        peer.send(bytes).await;
        let name = &bytes[..bytes.len().min(20)];
        assert_eq!(peer.close_code().await, Some(code), "{name:x?}");
    }
    attack.moved(violations(reason), attacks.len() as f64).await;
}

async fn session(server: &Server) -> Peer {
    let mut peer = Peer::open(server.address(), Some("roomful.v1.msgpack")).await;
    peer.hello().await;
    peer
}

fn violations(reason: &str) -> Series<'_> {
    ("roomful_violations_total", Some(("reason", reason)))
}

async fn resident(server: &Server) -> f64 {
    let metrics = server.metrics().await;
    metrics.value("process_resident_memory_bytes")
}

/// Sockets that announce more than they send.
const SOCKETS: u32 = 500;

const MIB: f64 = 1024.0 * 1024.0;
