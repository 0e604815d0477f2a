//! Who has to go: the connections of a user, a session or a token end, and a revoked one does not come back.

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::http::Uri;
use axum::response::Response;
use roomful_protocol::error::ErrorCode;
use roomful_protocol::id::{INTEGER_MAX, SessionId, TenantId};
use roomful_protocol::limits::PAGE_MAX;
use serde::{Deserialize, Serialize};
use tokio::task::block_in_place;

use super::failure::Failure;
use super::rooms::user_id;
use super::{Admin, Target, json, query, tenant};
use crate::auth::TokenId;
use crate::http::PeerContext;
use crate::session::revocations::Subject;
use crate::shard::message::{Answer, Message, Refusal, Revoke};

/// Who is meant: exactly one of the three.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whom {
    user: Option<String>,
    session: Option<String>,
    token_id: Option<String>,
    tenant: Option<String>,
    /// Until when, in milliseconds since 1970; for a revocation alone.
    until_ms: Option<u64>,
}

#[derive(Serialize)]
struct Ended {
    connections: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    until_ms: Option<u64>,
}

/// `POST /v1/disconnect`: ends connections now; they may come back.
pub(super) async fn disconnect(
    State(admin): State<Admin>,
    Extension(peer): Extension<Arc<PeerContext>>,
    request: Request,
) -> Response {
    let work = async |target: &mut Target| {
        let whom: Whom = admin.body(request).await?;
        let (tenant, subject) = whom.read(target)?;
        if whom.until_ms.is_some() {
            let text = "a disconnect has no until_ms; POST /v1/revocations has";
            return Err(Refusal::new(ErrorCode::BadValue, text).into());
        }
        let connections = admin.end(tenant, subject).await?;
        json(&Ended {
            connections,
            until_ms: None,
        })
    };
    admin.act("disconnect", peer.client, work).await
}

/// `POST /v1/revocations`: ends connections now, and lets nobody of them in until then.
pub(super) async fn revoke(
    State(admin): State<Admin>,
    Extension(peer): Extension<Arc<PeerContext>>,
    request: Request,
) -> Response {
    let work = async |target: &mut Target| {
        let whom: Whom = admin.body(request).await?;
        let (tenant, subject) = whom.read(target)?;
        let until_ms = admin.note(&tenant, &subject, whom.until_ms)?;
        let kept = admin.keep(&(tenant.clone(), subject.clone()));
        // Noted first: whoever says hello meanwhile is refused, or is there to be found. They go also where the disk fails.
        let connections = admin.end(tenant, subject).await?;
        kept?;
        json(&Ended {
            connections,
            until_ms: Some(until_ms),
        })
    };
    admin.act("revoke", peer.client, work).await
}

/// `DELETE /v1/revocations`: lets them in again.
pub(super) async fn lift(
    State(admin): State<Admin>,
    Extension(peer): Extension<Arc<PeerContext>>,
    uri: Uri,
) -> Response {
    #[derive(Serialize)]
    struct Lifted {
        lifted: bool,
    }

    let work = async |target: &mut Target| {
        let whom: Whom = query(&uri)?;
        let (tenant, subject) = whom.read(target)?;
        let revocations = &admin.parts().revocations;
        let lifted = revocations.lift(&tenant, &subject);
        admin.parts().metrics.revoked(revocations.count());
        admin.keep(&(tenant, subject))?;
        json(&Lifted { lifted })
    };
    admin.act("lift", peer.client, work).await
}

/// `GET /v1/revocations`: who is revoked, page by page.
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
        skip: usize,
    }

    #[derive(Serialize)]
    struct Page {
        revocations: Vec<Revoked>,
        next: Option<usize>,
    }

    #[derive(Serialize, Default)]
    struct Revoked {
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        session: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        token_id: Option<String>,
        until_ms: u64,
    }

    let revoked = |(subject, until_ms): (Subject, u64)| {
        let nobody = Revoked {
            until_ms,
            ..Revoked::default()
        };
        match subject {
            Subject::User(user) => Revoked {
                user: Some(user.to_string()),
                ..nobody
            },
            Subject::Session(session) => Revoked {
                session: Some(session.to_string()),
                ..nobody
            },
            Subject::TokenId(id) => Revoked {
                token_id: Some(id.as_str().to_owned()),
                ..nobody
            },
        }
    };
    let work = async |target: &mut Target| {
        let Which { tenant: of, skip } = query(&uri)?;
        let tenant = tenant(of.as_deref(), target)?;
        let parts = admin.parts();
        parts.revocations.expire(parts.clock.unix_ms());
        // One more than a page tells whether there is another one.
        let mut page = parts.revocations.page(&tenant, skip, PAGE_MAX + 1);
        let next = (page.len() > PAGE_MAX).then(|| skip.saturating_add(PAGE_MAX));
        page.truncate(PAGE_MAX);
        let revocations = page.into_iter().map(revoked).collect();
        json(&Page { revocations, next })
    };
    admin.act("revocations", peer.client, work).await
}

impl Whom {
    fn read(&self, target: &mut Target) -> Result<(TenantId, Subject), Failure> {
        let tenant = tenant(self.tenant.as_deref(), target)?;
        let refuse = |text: &str| Failure::from(Refusal::new(ErrorCode::BadValue, text));
        let (kind, name, subject) = match (&self.user, &self.session, &self.token_id) {
            (Some(user), None, None) => ("user", user, Subject::User(user_id(user)?)),
            (None, Some(session), None) => {
                let id = SessionId::parse(session)
                    .ok_or_else(|| refuse("a session has 32 lower-case hexadecimal digits"))?;
                ("session", session, Subject::Session(id))
            }
            (None, None, Some(token_id)) => {
                let id = TokenId::parse(token_id)
                    .ok_or_else(|| refuse("a token_id has 1 to 256 bytes"))?;
                ("token_id", token_id, Subject::TokenId(id))
            }
            _ => return Err(refuse("name one of user, session and token_id")),
        };
        target.on = format!("{kind} {name}");
        Ok((tenant, subject))
    }
}

impl Admin {
    /// Puts somebody on the list; until when.
    fn note(
        &self,
        tenant: &TenantId,
        subject: &Subject,
        until_ms: Option<u64>,
    ) -> Result<u64, Failure> {
        let parts = self.parts();
        let now_ms = parts.clock.unix_ms();
        let until_ms = until_ms.unwrap_or(now_ms + parts.settings.token_lifetime_ms);
        if until_ms <= now_ms || until_ms > INTEGER_MAX {
            let text = "until_ms is a time to come, in milliseconds since 1970";
            return Err(Refusal::new(ErrorCode::BadValue, text).into());
        }
        let whom = (tenant.clone(), subject.clone());
        let noted =
            parts
                .revocations
                .revoke(whom, until_ms, now_ms, parts.settings.revocations_max);
        noted.map_err(|full| Refusal::new(ErrorCode::Overloaded, full.to_string()))?;
        parts.metrics.revoked(parts.revocations.count());
        Ok(until_ms)
    }

    /// Writes down whether somebody is revoked, so that it holds after a restart too.
    fn keep(&self, whom: &(TenantId, Subject)) -> Result<(), Failure> {
        let parts = self.parts();
        let kept = block_in_place(|| parts.revocation_file.keep(whom, &parts.revocations));
        kept.map_err(|error| {
            tracing::error!(%error, "a revocation could not be written down");
            let text =
                "it holds until the process ends, but could not be written down: the log says why";
            Refusal::new(ErrorCode::Internal, text).into()
        })
    }

    /// Ends the connections on every shard; how many there were.
    async fn end(&self, tenant: TenantId, subject: Subject) -> Result<u64, Failure> {
        let (mut call, shards) = self.parts().shards.call_all(|to| {
            Message::Revoke(Box::new(Revoke {
                to,
                tenant: tenant.clone(),
                subject: subject.clone(),
            }))
        });
        let mut connections = 0;
        for _ in 0..shards {
            match self.answer(&mut call).await? {
                Answer::Swept(closed) => connections += closed,
                Answer::Reply(_) | Answer::Room(_) => return Err(Failure::no_answer()),
            }
        }
        Ok(connections)
    }
}
