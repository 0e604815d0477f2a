//! A connection to a server that may go at any moment.

use std::time::Duration;

use roomful_protocol::frame::{Hello, Join, Joined, ServerFrame};
use tokio::time::sleep;

use crate::raw::{Connect, Incoming, RawClient};

/// Connects and joins, as often as it takes. An error that says "later" is one more reason to try again.
pub async fn enter(connect: &Connect, join: impl Fn() -> Join) -> (RawClient, Joined) {
    loop {
        if let Some(entered) = try_enter(connect, join()).await {
            return entered;
        }
        sleep(RETRY).await;
    }
}

async fn try_enter(connect: &Connect, join: Join) -> Option<(RawClient, Joined)> {
    let mut client = connect.open().await.ok()?;
    let hello = Hello {
        request: client.new_request(),
        token: None,
        resume: None,
        agent: None,
    };
    client.try_frame(&hello.into()).await.ok()?;
    let join = Join {
        request: client.new_request(),
        ..join
    };
    client.try_frame(&join.into()).await.ok()?;
    loop {
        match client.incoming().await {
            Incoming::Frame(ServerFrame::Joined(joined)) => return Some((client, *joined)),
            Incoming::Frame(ServerFrame::Welcome(_)) => {}
            Incoming::Frame(_) | Incoming::Closed(_) => return None,
        }
    }
}

const RETRY: Duration = Duration::from_millis(20);
