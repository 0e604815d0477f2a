//! What a back end asks of rooms.

use std::sync::Arc;

use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{Durability, MembersPage, OpId, Published, Reply};
use roomful_protocol::id::{INTEGER_MAX, MemberId, ProducerId, RoomId, RoomName, TenantId, UserId};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::failure::Failure;
use super::{Admin, Namespace, Target, json, query, tenant};
use crate::http::PeerContext;
use crate::room::operations::BACK_END_SEQUENCE;
use crate::shard::message::{
    Answer, Author, Call, Message, Origin, Refusal, Request as RoomRequest,
};
use crate::shard::{check_payload, page_limit};

/// Which tenant; all that some operations ask beside the path.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whose {
    tenant: Option<String>,
}

/// `GET /v1/rooms`: the open rooms, page by page.
pub(super) async fn list(
    State(admin): State<Admin>,
    Extension(peer): Extension<Arc<PeerContext>>,
    uri: Uri,
) -> Response {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Which {
        tenant: Option<String>,
        #[serde(default)]
        prefix: String,
        after: Option<String>,
        limit: Option<u64>,
    }

    #[derive(Serialize)]
    struct Page<'a> {
        rooms: Vec<&'a str>,
        next: Option<&'a str>,
    }

    let work = async |target: &mut Target| {
        let which: Which = query(&uri)?;
        let tenant = tenant(which.tenant.as_deref(), target)?;
        which.prefix.clone_into(&mut target.on);
        let limit = page_limit(which.limit.unwrap_or(PAGE_DEFAULT))?;
        let directory = admin.parts().shards.directory();
        // One more than a page tells whether there is another one.
        let names = directory.page(&tenant, &which.prefix, which.after.as_deref(), limit + 1);
        let rooms: Vec<_> = names.iter().take(limit).map(RoomName::as_str).collect();
        let next = rooms.last().copied().filter(|_| names.len() > limit);
        json(&Page { rooms, next })
    };
    admin.act("rooms", peer.client, work).await
}

/// `GET /v1/rooms/{room}`: what the room is like.
pub(super) async fn describe(
    State(admin): State<Admin>,
    Extension(peer): Extension<Arc<PeerContext>>,
    Path(room): Path<String>,
    uri: Uri,
) -> Response {
    #[derive(Serialize)]
    struct Described<'a> {
        room: &'a str,
        open: bool,
        occupancy: u64,
        position: Option<Position>,
        kind: &'static str,
        durability: Durability,
    }

    let work = async |target: &mut Target| {
        let whose: Whose = query(&uri)?;
        let room = room_id(&room, whose.tenant.as_deref(), target)?;
        let answer = admin.ask(&room, |to| RoomRequest::Describe { to }).await?;
        let Answer::Room(open) = answer else {
            return Err(Failure::no_answer());
        };
        let Namespace { kind, durability } = admin.namespace(&room)?;
        json(&Described {
            room: room.name.as_str(),
            open: open.is_some(),
            occupancy: open.map_or(0, |open| open.occupancy),
            position: open.map(|open| open.head),
            kind,
            durability,
        })
    };
    admin.act("room", peer.client, work).await
}

/// `GET /v1/rooms/{room}/members`: the members, page by page.
pub(super) async fn members(
    State(admin): State<Admin>,
    Extension(peer): Extension<Arc<PeerContext>>,
    Path(room): Path<String>,
    uri: Uri,
) -> Response {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Which {
        tenant: Option<String>,
        after: Option<u64>,
        limit: Option<u64>,
    }

    #[derive(Serialize)]
    struct Page {
        occupancy: u64,
        members: Vec<Member>,
        next: Option<MemberId>,
    }

    #[derive(Serialize)]
    struct Member {
        member: MemberId,
        user: UserId,
        value: Option<Payload>,
    }

    let work = async |target: &mut Target| {
        let which: Which = query(&uri)?;
        let room = room_id(&room, which.tenant.as_deref(), target)?;
        let limit = page_limit(which.limit.unwrap_or(PAGE_DEFAULT))?;
        let after = which.after.map(MemberId);
        let request = |to| RoomRequest::Members { to, after, limit };
        let page = match admin.ask(&room, request).await? {
            Answer::Reply(Reply::Members(page)) => page,
            // A room that is not open has nobody in it.
            Answer::Room(_) => MembersPage {
                revision: 0,
                occupancy: 0,
                members: Vec::new(),
                next: None,
            },
            Answer::Reply(_) | Answer::Swept(_) => return Err(Failure::no_answer()),
        };
        let members = page.members.into_iter().map(|info| Member {
            member: info.member,
            user: info.user,
            value: info.value,
        });
        json(&Page {
            occupancy: page.occupancy,
            members: members.collect(),
            next: page.next,
        })
    };
    admin.act("members", peer.client, work).await
}

/// `POST /v1/rooms/{room}/publish`: into the log, in a user's name.
pub(super) async fn publish(
    State(admin): State<Admin>,
    Extension(peer): Extension<Arc<PeerContext>>,
    Path(room): Path<String>,
    request: Request,
) -> Response {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct What {
        payload: Payload,
        user: Option<String>,
    }

    #[derive(Serialize)]
    struct Done {
        position: Position,
        time_ms: u64,
        duplicate: bool,
        durability: Durability,
    }

    let work = async |target: &mut Target| {
        let whose: Whose = query(request.uri())?;
        let room = room_id(&room, whose.tenant.as_deref(), target)?;
        let op = operation(request.headers())?;
        let What { payload, user } = admin.body(request).await?;
        let author = Author::BackEnd(user_id(user.as_deref().unwrap_or(USER_DEFAULT))?);
        check_payload(&payload, admin.parts().settings.payload_bytes_max)?;
        let request = |to| RoomRequest::Publish {
            author,
            to,
            op,
            payload,
        };
        let answer = admin.ask(&room, request).await?;
        let Answer::Reply(Reply::Published(Published {
            position,
            time_ms,
            duplicate,
        })) = answer
        else {
            return Err(Failure::no_answer());
        };
        json(&Done {
            position,
            time_ms,
            duplicate,
            durability: admin.namespace(&room)?.durability,
        })
    };
    admin.act("publish", peer.client, work).await
}

impl Admin {
    /// Sends a request to the home of a room, and waits for what comes of it.
    async fn ask(
        &self,
        room: &RoomId,
        request: impl FnOnce(Origin) -> RoomRequest,
    ) -> Result<Answer, Failure> {
        let shards = &self.parts().shards;
        let home = shards.directory().home(room);
        let mut call = shards.call(home, |to| {
            Message::Call(Box::new(Call {
                room: room.clone(),
                to,
                request: request(to),
            }))
        });
        self.answer(&mut call).await
    }

    /// What the configuration says of the room's namespace.
    fn namespace(&self, room: &RoomId) -> Result<Namespace, Failure> {
        let name = room.name.namespace();
        let settings = &self.parts().settings;
        let namespace = settings.namespaces.get(name).copied();
        namespace.or(settings.other_namespaces).ok_or_else(|| {
            let text = format!("no namespace {name:?} is configured");
            Refusal::new(ErrorCode::UnknownNamespace, text).into()
        })
    }
}

pub(super) fn room_id(
    name: &str,
    of: Option<&str>,
    target: &mut Target,
) -> Result<RoomId, Failure> {
    name.clone_into(&mut target.on);
    let tenant: TenantId = tenant(of, target)?;
    let name = RoomName::parse(name.as_bytes()).map_err(|error| {
        Refusal::new(ErrorCode::BadRoomName, format!("the room's name {error}"))
    })?;
    Ok(RoomId { tenant, name })
}

pub(super) fn user_id(name: &str) -> Result<UserId, Failure> {
    let user = UserId::parse(name);
    Ok(user.map_err(|error| Refusal::new(ErrorCode::BadValue, format!("the user {error}")))?)
}

/// The op id of an `Idempotency-Key`: each key is a producer of its own, with one operation.
fn operation(headers: &HeaderMap) -> Result<Option<OpId>, Failure> {
    let mut lines = headers.get_all("idempotency-key").iter();
    let Some(key) = lines.next() else {
        return Ok(None);
    };
    if lines.next().is_some() || key.is_empty() || key.len() > OPERATION_BYTES_MAX {
        let text = format!("an Idempotency-Key has 1 to {OPERATION_BYTES_MAX} characters, once");
        return Err(Refusal::new(ErrorCode::BadValue, text).into());
    }
    let digest: [u8; 32] = Sha256::digest(key).into();
    let number = digest
        .first_chunk()
        .map_or(0, |first| u64::from_be_bytes(*first));
    Ok(Some(OpId {
        producer: ProducerId(number & INTEGER_MAX),
        sequence: BACK_END_SEQUENCE,
    }))
}

/// In whose name the back end publishes where it names nobody.
const USER_DEFAULT: &str = "server";

const PAGE_DEFAULT: u64 = 100;

const OPERATION_BYTES_MAX: usize = 255;
