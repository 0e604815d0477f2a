//! Attacks by pressure: readers who don't read, and answers that pile up.

use std::time::Duration;

use roomful_protocol::frame::{
    ClientBatch, ClientFrame, Direction, Frames, History, Publish, Reply, ServerFrame,
};
use roomful_protocol::id::RoomAlias;
use roomful_protocol::payload::Payload;
use roomful_tests::raw::fill;
use roomful_tests::wait::{PATIENCE, until};
use roomful_tests::{Connect, Healthy, RawClient, Server};

use crate::attack::Attack;

/// Twenty pages of history asked for in one breath over a line that takes nothing for a second, alone and as one batch: five times what an
/// outbox may hold. All come, one after the other, and the connection is not closed.
#[tokio::test]
async fn pages_wait_for_a_slow_line() {
    let server = Server::with_config(
        "[connection]\noutbox_bytes_max = 262144\nkernel_unsent_bytes_max = 16384\n",
    )
    .await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let _publisher = fill(&server, "game:pages").await;
    for batched in [false, true] {
        let mut slow = Connect::to(&server).receive_buffer(4_096).ready().await;
        let room = slow.join("game:pages").await.room;
        let pages = twenty_pages(&mut slow, room);
        if batched {
            slow.send(
                &ClientBatch {
                    frames: Frames(pages),
                }
                .into(),
            )
            .await;
        } else {
            for page in &pages {
                slow.send(page).await;
            }
        }
        if batched {
            // What can't be handled yet is counted.
            until("frames wait", PATIENCE, async || {
                server.metrics().await.value("roomful_backlog_bytes") > 0.0
            })
            .await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        for _ in 0..20 {
            let entries = slow
                .next_that(|frame| match frame {
                    ServerFrame::Ok(ok) => match ok.reply {
                        Reply::History(page) => Some(page.entries.len()),
                        _ => None,
                    },
                    _ => None,
                })
                .await;
            assert!(entries > 0, "a page of nothing");
        }
        assert_eq!(slow.until_pong().await, [], "it is read again");
    }
    assert_eq!(server.metrics().await.value("roomful_backlog_bytes"), 0.0);
    attack
        .moved(
            ("roomful_connections_closed_total", Some(("code", "4431"))),
            0.0,
        )
        .await;
}

/// Twenty connections, each with a batch that it stops from being handled by not reading: what waits is counted, and goes with its
/// connection.
#[tokio::test]
async fn batches_that_wait_are_counted() {
    let server = Server::with_config(
        "[connection]\noutbox_bytes_max = 262144\nkernel_unsent_bytes_max = 16384\nmessage_bytes_max = 262144\n",
    )
    .await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let _publisher = fill(&server, "game:pages").await;
    let mut stopped = Vec::new();
    for _ in 0..20 {
        let mut client = Connect::to(&server).receive_buffer(4_096).ready().await;
        let room = client.join("game:pages").await.room;
        let mut frames = twenty_pages(&mut client, room);
        for _ in 0..4 {
            frames.push(
                Publish {
                    request: client.new_request(),
                    room,
                    op: None,
                    payload: Payload::binary(vec![7; 50_000]),
                }
                .into(),
            );
        }
        let frames = Frames(frames);
        client.send(&ClientBatch { frames }.into()).await;
        stopped.push(client);
    }
    // The batches wait, and nothing of the messages that brought them does.
    until("all of it waits", PATIENCE, async || {
        let metrics = server.metrics().await;
        metrics.value("roomful_backlog_bytes") > 20.0 * 200_000.0
            && metrics.value("roomful_input_bytes") < 20.0 * 50_000.0
    })
    .await;
    drop(stopped);
    until("it has gone", PATIENCE, async || {
        server.metrics().await.value("roomful_backlog_bytes") == 0.0
    })
    .await;
    attack
        .moved(
            ("roomful_connections_closed_total", Some(("code", "4431"))),
            0.0,
        )
        .await;
}

/// A reader that takes a byte now and then takes next to nothing: it is closed, as one that takes none is, and the room goes on.
#[tokio::test]
async fn a_reader_of_single_bytes_closes_with_4431() {
    let config = "[connection]\nwrite_stall_ms = 1500\nkernel_unsent_bytes_max = 8192\noutbox_bytes_max = 65536\n\
        message_bytes_max = 8192\npayload_bytes_max = 4096\n[namespaces.game]\ncatch_up_bytes_max = 16384\n";
    let server = Server::with_config(config).await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let mut slow = Connect::to(&server).receive_buffer(2_048).ready().await;
    slow.join("game:drip").await;
    let mut publisher = RawClient::connect(&server).await;
    let room = publisher.join("game:drip").await.room;
    for _ in 0..150 {
        publisher
            .publish(room, Payload::binary(vec![7; 4_000]))
            .await;
    }
    until("the dripping reader is closed", PATIENCE, async || {
        tokio::time::sleep(Duration::from_millis(40)).await;
        slow.stream().try_read(&mut [0; 1]).ok();
        let metrics = server.metrics().await;
        metrics.labelled("roomful_connections_closed_total", "code", "4431") > 0.0
    })
    .await;
    attack
        .moved(
            ("roomful_connections_closed_total", Some(("code", "4431"))),
            1.0,
        )
        .await;
}

/// Requests for twenty pages, each as long as may be.
fn twenty_pages(client: &mut RawClient, room: RoomAlias) -> Vec<ClientFrame> {
    let page = |_| History {
        request: client.new_request(),
        room,
        from: None,
        direction: Direction::Backward,
        limit: 1_000,
    };
    (0..20).map(page).map(ClientFrame::from).collect()
}
