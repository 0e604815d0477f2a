//! Who is there, and what they say without it being kept: presence, its grace, and signals.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

use std::time::Duration;

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{
    ChangeKind, Join, Joined, Leave, MembersPage, Presence, PresenceDelta, PresenceRequest,
    Recovery, Reply, ServerFrame, Signal, Signalled, Watch,
};
use roomful_protocol::id::{MemberId, RoomAlias, SignalKey};
use roomful_protocol::payload::Payload;
use roomful_tests::raw::{assert_error, join, placements};
use roomful_tests::{Connect, RawClient, Server};

/// A signal reaches the others in its sender's order, never its sender; a direct one reaches its member alone.
#[tokio::test]
async fn signals_reach_the_others_or_one_of_them() {
    let server = Server::start().await;
    let mut members = Vec::new();
    for placement in placements().take(4) {
        let mut client = Connect::to(&server).placement(placement).ready().await;
        let joined = client.join("chat:signals").await;
        members.push((client, joined));
    }
    let (_, Joined { member: third, .. }) = members[2];
    let (
        sender,
        Joined {
            room,
            member: first,
            ..
        },
    ) = &mut members[0];
    let (room, first) = (*room, *first);
    // All at once: what is for one must not overtake what is for all.
    for (to, text) in [(None, "all 1"), (Some(third), "third"), (None, "all 2")] {
        let (key, payload) = (SignalKey::parse("cursor").ok(), Payload::text(text));
        let signal = Signal {
            request: None,
            room,
            to,
            key,
            payload,
        };
        sender.send(&signal.into()).await;
    }
    let nobody = Some(MemberId(9_999_999));
    let refused = sender
        .ask(|request| Signal {
            request: Some(request),
            room,
            to: nobody,
            key: None,
            payload: Payload::text(""),
        })
        .await;
    assert_error(&refused.unwrap_err(), ErrorCode::NoSuchMember);
    for (index, (client, _)) in members.iter_mut().enumerate().skip(1) {
        let expected: &[&str] = if index == 2 {
            &["all 1", "third", "all 2"]
        } else {
            &["all 1", "all 2"]
        };
        for text in expected {
            let signal = signal(client).await;
            assert_eq!((signal.from, signal.payload), (first, Payload::text(*text)));
            assert_eq!(signal.key, SignalKey::parse("cursor").ok());
        }
        assert_eq!(client.until_pong().await, [], "member {index}");
    }
    assert_eq!(members[0].0.until_pong().await, []);
}

/// Who watches members sees each come, change and go; a page says the same as the changes; who watches occupancy gets the count alone.
#[tokio::test]
async fn presence_shows_who_is_there() {
    let server = Server::with_config(SHORT_GRACE).await;
    let mut watcher = RawClient::connect(&server).await;
    let mut counter = Connect::to(&server)
        .placement(placements().nth(1).unwrap())
        .ready()
        .await;
    let watched = watcher
        .join_with(Join {
            watch: Watch::Members,
            ..join("chat:presence")
        })
        .await
        .unwrap();
    counter
        .join_with(Join {
            watch: Watch::Occupancy,
            ..join("chat:presence")
        })
        .await
        .unwrap();
    let mut comer = Connect::to(&server)
        .placement(placements().nth(2).unwrap())
        .open()
        .await
        .unwrap();
    let user = comer.hello().await.user;
    let value = Some(Payload::json("{\"name\":\"Ada\"}"));
    let joined = comer
        .join_with(Join {
            presence: value.clone(),
            ..join("chat:presence")
        })
        .await
        .unwrap();
    assert_eq!(joined.occupancy, 3);
    change(
        &mut watcher,
        joined.member,
        ChangeKind::Present,
        value.as_ref(),
    )
    .await;

    let page = members(&mut watcher, watched.room).await;
    assert_eq!((page.occupancy, page.next), (3, None));
    let ada = page
        .members
        .iter()
        .find(|info| info.member == joined.member)
        .unwrap();
    assert_eq!((&ada.user, &ada.value), (&user, &value));

    let room = joined.room;
    comer
        .ask(|request| Presence {
            request,
            room,
            what: PresenceRequest::Set(None),
        })
        .await
        .unwrap();
    change(&mut watcher, joined.member, ChangeKind::Present, None).await;
    comer.ask(|request| Leave { request, room }).await.unwrap();
    change(&mut watcher, joined.member, ChangeKind::Gone, None).await;

    let mut last = 0;
    while last != 2 {
        let delta = counter.next_that(presence).await;
        assert_eq!(delta.changes, []);
        last = delta.occupancy;
    }
}

/// A member whose connection is cut and comes back inside the grace has never been away; one that doesn't is gone after it.
#[tokio::test]
async fn presence_survives_a_cut_inside_the_grace_and_ends_after_it() {
    let server = Server::with_config(SHORT_GRACE).await;
    let mut watcher = RawClient::connect(&server).await;
    let room = watcher
        .join_with(Join {
            watch: Watch::Members,
            ..join("chat:grace")
        })
        .await
        .unwrap()
        .room;
    let mut member = Connect::to(&server).open().await.unwrap();
    let welcome = member.hello().await;
    let joined = member.join("chat:grace").await;
    change(&mut watcher, joined.member, ChangeKind::Present, None).await;

    member.cut();
    let mut member = Connect::to(&server).open().await.unwrap();
    let back = member
        .hello_with(None, Some(&welcome.resume))
        .await
        .unwrap();
    assert_eq!(
        (back.resumed, back.session, &back.user),
        (true, welcome.session, &welcome.user)
    );
    let again = member
        .join_with(Join {
            since: Some(joined.position),
            ..join("chat:grace")
        })
        .await
        .unwrap();
    assert_eq!(
        (again.member, again.recovery),
        (joined.member, Recovery::Live)
    );
    // The next change that is seen is one made now: nothing came in between.
    let value = Some(Payload::text("back"));
    let set = value.clone();
    member
        .ask(|request| Presence {
            request,
            room,
            what: PresenceRequest::Set(set),
        })
        .await
        .unwrap();
    change(
        &mut watcher,
        joined.member,
        ChangeKind::Present,
        value.as_ref(),
    )
    .await;

    member.cut();
    change(&mut watcher, joined.member, ChangeKind::Gone, None).await;
}

/// A session has one connection: the one that resumes it takes it over, and the other is told.
#[tokio::test]
async fn a_resumed_session_leaves_its_old_connection() {
    let server = Server::start().await;
    let mut old = Connect::to(&server).open().await.unwrap();
    let welcome = old.hello().await;
    for placement in placements().take(4) {
        let mut new = Connect::to(&server)
            .placement(placement)
            .open()
            .await
            .unwrap();
        assert!(
            new.hello_with(None, Some(&welcome.resume))
                .await
                .unwrap()
                .resumed
        );
        assert_eq!(old.closed().await.code, Some(4409));
        old = new;
    }
}

const SHORT_GRACE: &str = "[namespaces.chat]\npresence_grace_ms = 500\n";

async fn signal(client: &mut RawClient) -> Signalled {
    client
        .next_that(|frame| {
            if let ServerFrame::Signalled(signal) = frame {
                Some(signal)
            } else {
                None
            }
        })
        .await
}

fn presence(frame: ServerFrame) -> Option<PresenceDelta> {
    if let ServerFrame::PresenceDelta(delta) = frame {
        Some(delta)
    } else {
        None
    }
}

/// Takes the next change of a member, which must be this one, and the changes of others before it.
async fn change(
    watcher: &mut RawClient,
    member: MemberId,
    kind: ChangeKind,
    value: Option<&Payload>,
) {
    let found = watcher.next_that(|frame| {
        presence(frame)?
            .changes
            .into_iter()
            .find(|change| change.member == member)
    });
    let found = tokio::time::timeout(Duration::from_secs(20), found)
        .await
        .unwrap();
    assert_eq!((found.kind, found.value.as_ref()), (kind, value));
}

async fn members(client: &mut RawClient, room: RoomAlias) -> MembersPage {
    let what = PresenceRequest::Get {
        after: None,
        limit: 100,
    };
    match client
        .ask(|request| Presence {
            request,
            room,
            what,
        })
        .await
        .unwrap()
    {
        Reply::Members(page) => page,
        other => panic!("{other:?}"),
    }
}
