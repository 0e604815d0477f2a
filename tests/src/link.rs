//! A connection to a server that may go at any moment.

use std::time::Duration;

use roomful_protocol::frame::{Hello, Join, Joined, ServerFrame};
use roomful_protocol::id::UserId;
use roomful_protocol::text::Text;
use tokio::time::sleep;

use crate::raw::{Connect, Incoming, RawClient};

/// What a client needs to come back as who it was.
#[derive(Debug, Clone)]
pub struct Session {
    /// Whose it is.
    pub user: UserId,
    /// What it is resumed with.
    pub resume: String,
}

/// Connects and joins, as often as it takes. An error that says "later" is one more reason to try again.
pub async fn enter(connect: &Connect, join: impl Fn() -> Join) -> (RawClient, Joined) {
    let (client, _, joined) = enter_again(connect, None, join).await;
    (client, joined)
}

/// The same, with a session that goes on, if the server still has it.
pub async fn enter_again(
    connect: &Connect,
    session: Option<Session>,
    join: impl Fn() -> Join,
) -> (RawClient, Session, Joined) {
    loop {
        if let Some(entered) = try_enter(connect, session.as_ref(), join()).await {
            return entered;
        }
        sleep(RETRY).await;
    }
}

async fn try_enter(
    connect: &Connect,
    session: Option<&Session>,
    join: Join,
) -> Option<(RawClient, Session, Joined)> {
    let mut client = connect.open().await.ok()?;
    let hello = Hello {
        request: client.new_request(),
        token: None,
        resume: session.and_then(|session| Text::new(&session.resume).ok()),
        agent: None,
    };
    client.try_frame(&hello.into()).await.ok()?;
    let join = Join {
        request: client.new_request(),
        ..join
    };
    client.try_frame(&join.into()).await.ok()?;
    let mut session = None;
    loop {
        match client.incoming().await {
            Incoming::Frame(ServerFrame::Joined(joined)) => {
                return Some((client, session?, *joined));
            }
            Incoming::Frame(ServerFrame::Welcome(welcome)) => {
                session = Some(Session {
                    user: welcome.user,
                    resume: welcome.resume,
                });
            }
            Incoming::Frame(_) | Incoming::Closed(_) => return None,
        }
    }
}

const RETRY: Duration = Duration::from_millis(20);
