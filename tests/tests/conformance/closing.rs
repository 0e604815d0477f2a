//! The closing handshake (RFC 6455 §7.1): who drops the connection and when, and that the close frame arrives.

use std::time::Duration;

use roomful_tests::peer::{BINARY, BINARY_BEGINS, Frame, PING, close, frame, header};
use roomful_tests::{Echo, Peer};
use tokio::time::{Instant, sleep};

/// §7.1.1: the server ends the connection by itself, without waiting for the peer to do so.
#[tokio::test]
async fn the_server_ends_the_connection_first() {
    let echo = Echo::start(&["--close-timeout-ms", "600000"]).await;
    let mut peer = echo.peer().await;
    peer.send(&close(1000)).await;
    assert_eq!(peer.close_code().await, Some(1000));
}

/// §7.1.2: a peer that answers neither the close nor the end of the connection is dropped after a while.
#[tokio::test]
async fn a_close_that_is_never_answered_has_a_deadline() {
    let echo = Echo::start(&["--close-timeout-ms", "300"]).await;
    for ending in [frame(0xff, b""), close(1000)] {
        let begun = Instant::now();
        let mut peer = echo.peer().await;
        peer.send(&ending).await;
        assert!(peer.close_code().await.is_some());
        peer.dropped().await;
        assert!(begun.elapsed() >= Duration::from_millis(300));
    }
}

/// §7.1.7: a socket that is closed with input unread is reset, and what was written is lost with it. So the rest of what
/// the peer sends is read and dropped.
#[tokio::test]
async fn the_close_frame_arrives_though_input_is_waiting() {
    let echo = Echo::start(&[]).await;
    let rest = frame(BINARY, &vec![7; 4 << 20]);
    for ending in [frame(0x83, b""), close(1000)] {
        let mut peer = echo.peer().await;
        peer.send(&[&ending[..], &rest].concat()).await;
        assert!(peer.close_code().await.is_some());
    }
}

/// The same where the peer goes on sending for a while, and reads only then.
#[tokio::test]
async fn the_close_frame_arrives_though_the_peer_goes_on() {
    let echo = Echo::start(&["--close-timeout-ms", "20000"]).await;
    let mut peer = echo.peer().await;
    peer.send(&frame(0x83, b"")).await;
    for _ in 0..50 {
        peer.send(&frame(PING, &[7; 125])).await;
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(peer.close_code().await, Some(1002));
}

/// A peer that doesn't read for a while gets what was written before the close frame, and then the close frame.
#[tokio::test]
async fn the_close_frame_arrives_behind_what_was_not_read() {
    let echo = Echo::start(&["--close-timeout-ms", "20000"]).await;
    let mut peer = Peer::open_with(echo.address(), "", Some(4_096)).await;
    // More than both kernels hold.
    let large = vec![7; 8 << 20];
    peer.send(&frame(BINARY, &large)).await;
    peer.send(&frame(0x83, b"")).await;
    sleep(Duration::from_millis(200)).await;
    assert!(
        peer.frame().await == Some(Frame::Binary(large)),
        "another message"
    );
    assert_eq!(peer.close_code().await, Some(1002));
}

/// A connection that ends inside a message is just over.
#[tokio::test]
async fn an_end_inside_a_message_harms_nobody() {
    let echo = Echo::start(&[]).await;
    for bytes in [
        frame(BINARY_BEGINS, b"x"),
        header(BINARY, 60_000),
        vec![0x82],
    ] {
        let mut peer = echo.peer().await;
        peer.send(&bytes).await;
        drop(peer);
    }
    let mut peer = echo.peer().await;
    peer.send(&frame(PING, b"still there")).await;
    let pong = Frame::Pong(b"still there".to_vec());
    assert_eq!(peer.frame().await, Some(pong));
}
