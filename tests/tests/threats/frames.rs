//! Attacks with WebSocket frames.

use roomful_tests::{Healthy, RawClient, Server};

use crate::attack::Attack;

/// A client must mask its frames (RFC 6455 §5.1): 1002, seen by the peer.
#[tokio::test]
async fn an_unmasked_frame_closes_with_1002() {
    let server = Server::start().await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    for _ in 0..10 {
        let mut client = RawClient::connect(&server).await;
        client.send_below(&[0x82, 0x01, 0x00]);
        assert_eq!(client.closed().await.code, Some(1002));
    }
    attack
        .moved(
            ("roomful_connections_closed_total", Some(("code", "1002"))),
            10.0,
        )
        .await;
}
