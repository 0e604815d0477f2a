//! Who a connection is: from `hello` to a session, and the token for as long as it lives.
//!
//! `edge` calls it with the first frame and with each `refresh`, the step with tokens that have been checked.
//! Nothing else is asked on a connection before it has a session, and one whose token has ended is closed.
//! Checking a token is the host's business, what it grants that of `auth`, and who else holds the session
//! that of `Sessions`.

use std::sync::Arc;

use roomful_protocol::error::{CloseCode, ErrorCode};
use roomful_protocol::frame::{self, Hello, Refresh, Reply, TokenExpiring, Welcome};
use roomful_protocol::id::{RequestId, SessionId, UserId};
use roomful_protocol::limits::Limits;

use super::edge::Outcome;
use super::message::{Attachment, ConnectionId, Message, Refusal};
use super::{ConnectionTimer, Host, Shard, Timer};
use crate::auth::{AuthError, Identity};
use crate::clock::Now;
use crate::connection::{Connection, Open, Phase, Said, held_bytes};
use crate::metrics::LimitedBy;
use crate::session::index::Attached;
use crate::session::token::ResumeClaims;
use crate::session::users::{Held, TooManyConnections};

impl Shard {
    /// The first frame. An anonymous server chooses the user itself; any other has the token checked first.
    pub(super) fn hello(
        &mut self,
        id: ConnectionId,
        bytes: usize,
        hello: Hello,
        now: Now,
        host: &mut dyn Host,
    ) {
        if self.settings.anonymous {
            let user = self.anonymous_user(&hello, host);
            return self.open_session(id, &hello, Identity::anonymous(user), now, host);
        }
        let token = hello.token.clone();
        if let Some(connection) = self.connection_mut(id) {
            let said = Box::new(Said {
                bytes,
                hello,
                waiting: Vec::new(),
            });
            connection.phase = Phase::Authenticating { said };
        }
        match token {
            Some(token) => host.verify(id, &token),
            None => self.verified(id, Err(AuthError::Missing), now, host),
        }
    }

    /// The user that a resume token remembers, or a new one.
    pub(super) fn anonymous_user(&self, hello: &Hello, host: &mut dyn Host) -> UserId {
        let remembered = hello
            .resume
            .as_ref()
            .and_then(|token| self.settings.resume_key.verify(token));
        remembered.map_or_else(
            || {
                let name = format!("anon-{:08x}", host.random() >> 96);
                UserId::parse(&name).expect("letters, digits and a dash")
            },
            |claims| claims.user,
        )
    }

    /// A token has been checked: that of the `hello`, or a newer one.
    pub(super) fn verified(
        &mut self,
        id: ConnectionId,
        outcome: Result<Identity, AuthError>,
        now: Now,
        host: &mut dyn Host,
    ) {
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        match (&mut connection.phase, outcome) {
            (Phase::Authenticating { said }, Ok(identity)) => {
                let (hello, waiting) = (said.hello.clone(), std::mem::take(&mut said.waiting));
                let bytes: usize = waiting.iter().map(held_bytes).sum();
                self.counters.backlog_bytes.sub(bytes as u64);
                self.open_session(id, &hello, identity, now, host);
                self.hold_back(id, waiting.into());
                self.go_on(id, now, host);
            }
            (Phase::Authenticating { said }, Err(error)) => {
                let request = said.hello.request;
                self.counters.auth_failures.of(error.into()).add(1);
                self.refuse(
                    id,
                    Some(request),
                    Refusal::new(error.code(), error.to_string()),
                );
                // In the first two cases nobody has said that the token is bad.
                let code = match error.code() {
                    ErrorCode::Overloaded => CloseCode::TryLater,
                    ErrorCode::Internal => CloseCode::InternalError,
                    _ => CloseCode::NotAuthenticated,
                };
                self.close(id, code, now, host);
            }
            (Phase::Open(open), outcome) => {
                if let Some(request) = open.refreshing.take() {
                    self.refreshed(id, request, outcome, now, host);
                }
            }
            (Phase::Hello { .. }, _) => {}
        }
    }

    /// Makes the connection an open one, with the session that its resume token names or a new one.
    pub(super) fn open_session(
        &mut self,
        id: ConnectionId,
        hello: &Hello,
        identity: Identity,
        now: Now,
        host: &mut dyn Host,
    ) {
        let claims = hello
            .resume
            .as_ref()
            .and_then(|token| self.settings.resume_key.verify(token));
        let is_own = |claims: &ResumeClaims| {
            claims.user == identity.user && claims.tenant == identity.tenant
        };
        if claims.as_ref().is_some_and(|claims| !is_own(claims)) {
            self.counters
                .auth_failures
                .of(crate::metrics::AuthFailure::Mismatch)
                .add(1);
            let text = "the resume token is of another user; connect without it";
            self.refuse(
                id,
                Some(hello.request),
                Refusal::new(ErrorCode::TokenMismatch, text),
            );
            return self.close(id, CloseCode::NotAuthenticated, now, host);
        }
        let session = claims.as_ref().map(|claims| claims.session);
        if self.is_revoked(&identity, session, now) {
            self.refuse(id, Some(hello.request), revoked());
            return self.close(id, CloseCode::Revoked, now, host);
        }
        host.authenticated(id);
        let held = match self.hold(&identity, now) {
            Ok(held) => held,
            Err(refusal) => {
                self.refuse(id, Some(hello.request), refusal);
                return self.close(id, CloseCode::RateLimited, now, host);
            }
        };
        let (session, attached) = self.attach(id, claims.map(|claims| claims.session), now, host);
        let open = Open {
            anonymous: self.settings.anonymous,
            terms: Arc::clone(&self.terms),
            identity,
            held: held.map(Box::new),
            session,
            attachment: attached.attachment,
            memberships: Vec::new(),
            joining: Vec::new(),
            refreshing: None,
            token_due_ms: None,
            token_warned: false,
        };
        let welcome = self.welcome(hello.request, &open, attached.resumed, now);
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        connection.phase = Phase::Open(Box::new(open));
        self.stage(id, &welcome.into());
        self.watch_token(id, now, host);
    }

    /// The connection's part in the share of its user.
    fn hold(&self, identity: &Identity, now: Now) -> Result<Option<Held>, Refusal> {
        if self.settings.anonymous {
            return Ok(None);
        }
        let (tenant, user) = (&identity.tenant, &identity.user);
        let held = self
            .users
            .enter(tenant, user, &self.settings.user, now.monotonic_ms);
        held.map(Some)
            .map_err(|TooManyConnections| self.limited(LimitedBy::UserConnections, FULL_RETRY_MS))
    }

    /// Takes the session back, from another connection if that still holds it; else begins a new one.
    pub(super) fn attach(
        &mut self,
        id: ConnectionId,
        resumed: Option<SessionId>,
        now: Now,
        host: &mut dyn Host,
    ) -> (SessionId, Attached) {
        let holder = (self.id, id);
        let resumed = resumed.and_then(|session| {
            Some((session, self.sessions.resume(session, holder, now.unix_ms)?))
        });
        let (session, attached) = resumed.unwrap_or_else(|| {
            let session = SessionId(host.random());
            (session, self.sessions.create(session, holder, now.unix_ms))
        });
        self.counters.sessions.add(1);
        if attached.resumed {
            self.counters.sessions_resumed.add(1);
        }
        if let Some((shard, former)) = attached.evicted {
            self.send(shard, Message::Evict(former), host);
        }
        (session, attached)
    }

    pub(super) fn welcome(
        &self,
        request: RequestId,
        open: &Open,
        resumed: bool,
        now: Now,
    ) -> Welcome {
        let terms = &open.terms;
        Welcome {
            request,
            session: open.session,
            resumed,
            user: open.identity.user.clone(),
            resume: self.resume_token(open, now),
            heartbeat_ms: terms.heartbeat_ms,
            time_ms: now.unix_ms,
            expires_ms: open.identity.expires_ms,
            limits: Limits {
                message_bytes_max: terms.message_bytes_max as u64,
                payload_bytes_max: terms.payload_bytes_max as u64,
                rooms_max: terms.rooms_max as u64,
                requests_max: terms.requests_max.into(),
            },
        }
    }

    /// Signs what the client shows when it comes back.
    pub(super) fn resume_token(&self, open: &Open, now: Now) -> String {
        let (tenant, user) = (open.identity.tenant.clone(), open.identity.user.clone());
        self.settings.resume_key.sign(&ResumeClaims {
            session: open.session,
            tenant,
            user,
            issued_ms: now.unix_ms,
        })
    }

    /// Closes a connection that has not said who it is in time.
    pub(super) fn hello_timed_out(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        if self
            .connection(id)
            .is_some_and(|connection| connection.open().is_none())
        {
            self.close(id, CloseCode::HelloTimeout, now, host);
        }
    }

    /// A new token, which is checked while the old one goes on.
    pub(super) fn ask_refresh(
        &mut self,
        id: ConnectionId,
        refresh: &Refresh,
        host: &mut dyn Host,
    ) -> Outcome {
        if self.settings.anonymous {
            return Err(Refusal::new(
                ErrorCode::BadState,
                "this server needs no token",
            ));
        }
        let Some(open) = self.connection_mut(id).and_then(Connection::open_mut) else {
            return Ok(());
        };
        if open.refreshing.is_some() {
            return Err(Refusal::new(ErrorCode::BadState, "a refresh is on its way"));
        }
        open.refreshing = Some(refresh.request);
        host.verify(id, &refresh.token);
        Ok(())
    }

    /// The end of a refresh: the new grants hold from here on, and end what they do not allow.
    pub(super) fn refreshed(
        &mut self,
        id: ConnectionId,
        request: RequestId,
        outcome: Result<Identity, AuthError>,
        now: Now,
        host: &mut dyn Host,
    ) {
        let identity = match outcome {
            Ok(identity) => identity,
            Err(error) => {
                self.counters.auth_failures.of(error.into()).add(1);
                return self.refuse(
                    id,
                    Some(request),
                    Refusal::new(error.code(), error.to_string()),
                );
            }
        };
        let Some(open) = self.connection_mut(id).and_then(Connection::open_mut) else {
            return;
        };
        if open.identity.user != identity.user || open.identity.tenant != identity.tenant {
            self.counters
                .auth_failures
                .of(crate::metrics::AuthFailure::Mismatch)
                .add(1);
            let text = "the token is of another user than this connection's";
            return self.refuse(
                id,
                Some(request),
                Refusal::new(ErrorCode::TokenMismatch, text),
            );
        }
        let session = open.session;
        if self.is_revoked(&identity, Some(session), now) {
            return self.refuse(id, Some(request), revoked());
        }
        let Some(open) = self.connection_mut(id).and_then(Connection::open_mut) else {
            return;
        };
        let expires_ms = identity.expires_ms;
        let before = std::mem::replace(&mut open.identity, identity);
        open.token_warned = false;
        self.watch_token(id, now, host);
        let reply = Reply::Refreshed {
            expires_ms: expires_ms.unwrap_or(0),
        };
        self.stage(id, &frame::Ok { request, reply }.into());
        self.end_forbidden(id, host);
        self.tell_grants(id, &before, host);
    }

    /// Whether somebody is not to be let in, which is then counted.
    fn is_revoked(&self, identity: &Identity, session: Option<SessionId>, now: Now) -> bool {
        let revoked = self
            .sessions
            .revocations()
            .covers(identity, session, now.unix_ms);
        if revoked {
            self.counters
                .auth_failures
                .of(crate::metrics::AuthFailure::Revoked)
                .add(1);
        }
        revoked
    }

    /// Looks at the token now and whenever something about it is due; one timer a connection, whatever the clocks do.
    pub(super) fn watch_token(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        let warning_ms = self.settings.expiry_warning_ms;
        let Some(open) = self.connection_mut(id).and_then(Connection::open_mut) else {
            return;
        };
        let Some(expires_ms) = open.identity.expires_ms else {
            return;
        };
        let left_ms = expires_ms.saturating_sub(now.unix_ms);
        if left_ms == 0 {
            return self.close(id, CloseCode::TokenExpired, now, host);
        }
        let warns = left_ms <= warning_ms && !open.token_warned;
        open.token_warned |= warns;
        let next_ms = if left_ms > warning_ms {
            left_ms - warning_ms
        } else {
            left_ms
        };
        // A timer outlives its connection, and tokens live for a day: nobody may leave a day's worth of timers behind.
        let due_ms = now.monotonic_ms + next_ms.min(TOKEN_LOOK_MS);
        if open
            .token_due_ms
            .is_none_or(|armed_ms| armed_ms <= now.monotonic_ms || due_ms < armed_ms)
        {
            open.token_due_ms = Some(due_ms);
            self.wheel
                .set(due_ms, Timer::Connection(ConnectionTimer::Token, id));
        }
        if warns {
            self.stage(id, &TokenExpiring { expires_ms }.into());
        }
    }

    /// The session's retention is over; it stays where somebody has resumed it.
    pub(super) fn session_over(&self, session: SessionId, attachment: Attachment) {
        // Whoever resumed it is counted where it is now.
        self.sessions.forget(session, attachment);
        self.counters.sessions.sub(1);
    }
}

fn revoked() -> Refusal {
    let text = "this user, session or token was revoked";
    Refusal::new(ErrorCode::Revoked, text)
}

/// How long a connection's token is left alone at most: about as long as its heartbeat.
const TOKEN_LOOK_MS: u64 = 60_000;

/// When a user with as many connections as it may have should try again.
const FULL_RETRY_MS: u64 = 5_000;
