//! Sizes and times (RFC 6455 §10.4): as large and as long as the limits say, and no more.

use std::time::Duration;

use rand::RngExt as _;
use roomful_tests::Echo;
use roomful_tests::peer::{
    BINARY, BINARY_BEGINS, ENDS, Frame, GOES_ON, PING, PONG, frame, header, header_of,
};
use roomful_tests::seed::seeded;
use tokio::time::sleep;

/// 16 MiB in one frame, and in 65,536 fragments of 256 bytes.
#[tokio::test]
async fn the_largest_message_comes_back() {
    let flags = [
        "--message-bytes-max",
        "16777216",
        "--fragments-max",
        "65536",
    ];
    let echo = Echo::start(&flags).await;
    let payload = vec![b'*'; 16 << 20];
    let (first, rest) = payload.split_at(256);
    let (middle, last) = rest.split_at(rest.len() - 256);
    let mut fragments = vec![frame(BINARY_BEGINS, first)];
    fragments.extend(middle.chunks(256).map(|piece| frame(GOES_ON, piece)));
    fragments.push(frame(ENDS, last));
    assert_eq!(fragments.len(), 65_536);
    for bytes in [frame(BINARY, &payload), fragments.concat()] {
        let mut peer = echo.peer().await;
        peer.send(&bytes).await;
        let answer = peer.frame().await;
        assert!(
            answer == Some(Frame::Binary(payload.clone())),
            "another message"
        );
    }
}

/// One below the limit, at it and above it: whole, in fragments, and refused as soon as a header says so.
#[tokio::test]
async fn the_message_limit_counts_all_fragments() {
    let echo = Echo::start(&["--message-bytes-max", "10000"]).await;
    for (length, fits) in [(9_999, true), (10_000, true), (10_001, false)] {
        let payload = vec![7; length];
        let (head, tail) = payload.split_at(4_000);
        let whole = frame(BINARY, &payload);
        let fragments = [frame(BINARY_BEGINS, head), frame(ENDS, tail)].concat();
        for bytes in [whole, fragments] {
            let mut peer = echo.peer().await;
            peer.send(&bytes).await;
            if fits {
                assert_eq!(peer.frame().await, Some(Frame::Binary(payload.clone())));
            } else {
                assert_eq!(peer.close_code().await, Some(1009), "{length}");
            }
        }
    }
    for bytes in [
        header(BINARY, 10_001),
        [frame(BINARY_BEGINS, &[7; 10_000]), header(ENDS, 1)].concat(),
    ] {
        let mut peer = echo.peer().await;
        peer.send(&bytes).await;
        assert_eq!(peer.close_code().await, Some(1009), "by its header");
    }
}

#[tokio::test]
async fn lengths_beyond_everything_are_refused_by_their_header() {
    let echo = Echo::start(&[]).await;
    let rows = [
        (1 << 34, 1009),
        (u64::MAX >> 1, 1009),
        (1 << 63, 1002),
        (u64::MAX, 1002),
    ];
    for (length, code) in rows {
        let mut peer = echo.peer().await;
        let header = header_of(BINARY, 127, &u64::to_be_bytes(length));
        peer.send(&header).await;
        assert_eq!(peer.close_code().await, Some(code), "{length}");
    }
}

#[tokio::test]
async fn the_fragment_limit_counts_empty_ones() {
    let echo = Echo::start(&["--fragments-max", "10"]).await;
    for (middle, fits) in [(8, true), (9, false)] {
        let mut peer = echo.peer().await;
        let message = [
            frame(BINARY_BEGINS, b""),
            frame(GOES_ON, b"").repeat(middle),
            frame(ENDS, b""),
        ];
        peer.send(&message.concat()).await;
        if fits {
            assert_eq!(peer.frame().await, Some(Frame::Binary(vec![])));
        } else {
            assert_eq!(peer.close_code().await, Some(1008));
        }
    }
}

/// Whatever has begun has its time: half a header, half a frame, a message in fragments, half a ping.
#[tokio::test]
async fn a_message_that_never_ends_is_closed() {
    let echo = Echo::start(&["--message-timeout-ms", "300"]).await;
    let mut ping = frame(PING, b"half of it");
    ping.truncate(9);
    for bytes in [
        vec![BINARY],
        header(BINARY, 1_000),
        frame(BINARY_BEGINS, b"x"),
        ping,
    ] {
        let mut peer = echo.peer().await;
        peer.send(&bytes).await;
        assert_eq!(peer.close_code().await, Some(1008), "{bytes:x?}");
    }
}

/// A message has its time from its first byte, however steadily it trickles; a connection that has it all waits for ever.
#[tokio::test]
async fn a_message_that_trickles_is_closed_and_one_that_is_whole_is_not() {
    let echo = Echo::start(&["--message-timeout-ms", "500"]).await;
    let mut quiet = echo.peer().await;
    quiet.send(&frame(BINARY, b"whole")).await;
    assert_eq!(quiet.frame().await, Some(Frame::Binary(b"whole".to_vec())));
    let mut peer = echo.peer().await;
    peer.send(&header(BINARY, 1_000)).await;
    let closed = loop {
        if let Some(frame) = peer.frame_now() {
            break frame;
        }
        sleep(Duration::from_millis(20)).await;
        peer.send(b"x").await;
    };
    assert_eq!(closed, Frame::Close(Some(1008)));
    quiet.send(&frame(PING, b"")).await;
    assert_eq!(quiet.frame().await, Some(Frame::Pong(vec![])));
}

/// Where the network cuts a conversation changes nothing.
#[tokio::test]
async fn any_split_gives_the_same() {
    let echo = Echo::start(&[]).await;
    let mut random = seeded("any_split_gives_the_same");
    for _ in 0..20 {
        let lengths: Vec<usize> = (0..10).map(|_| random.random_range(0..3_000)).collect();
        let mut bytes = Vec::new();
        for length in &lengths {
            let payload = vec![7; *length];
            let (head, tail) = payload.split_at(random.random_range(0..=*length));
            bytes.extend(frame(BINARY_BEGINS, head));
            bytes.extend(frame(PONG, b"in between"));
            bytes.extend(frame(ENDS, tail));
        }
        let mut peer = echo.peer().await;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, others) = rest.split_at(random.random_range(1..=rest.len().min(500)));
            peer.send(piece).await;
            tokio::task::yield_now().await;
            rest = others;
        }
        for length in lengths {
            assert_eq!(peer.frame().await, Some(Frame::Binary(vec![7; length])));
        }
    }
}
