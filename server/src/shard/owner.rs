//! The shard as owner: from a request to the room that it is for, and from what the room wants to the wheel
//! and the mailboxes.
//!
//! A room is opened by the first join and forgotten when its timer says so. Each call runs one room with a
//! [`Context`] of its own, and what it has put there is carried out when it returns: the room never reaches
//! the shard. What a request means is left to the room.

use std::sync::Arc;

use roomful_protocol::error::ErrorCode;
use roomful_protocol::id::{RoomAlias, RoomId, TenantId, UserId};

use super::message::{Answer, Call, Join, Message, Refusal, Request, ShardId};
use super::{Host, Shard, Timer};
use crate::auth::{Grants, Identity};
use crate::clock::Now;
use crate::journal::Completion;
use crate::memory::Level;
use crate::metrics::LimitedBy;
use crate::room::departures::Departure;
use crate::room::{After, Asked, Awaited, Context, Room, RoomSettings, RoomTimer};
use crate::survive::survive;

impl Shard {
    /// Lets somebody into a room, which is opened if it is not.
    pub(super) fn join_room(&mut self, join: Join, now: Now, host: &mut dyn Host) {
        let (to, room) = (join.to, join.room.clone());
        let opener = (!join.anonymous).then(|| join.user.clone());
        let request = Request::Join(Box::new(join));
        // Before a room is opened for it.
        if let Some(refused) = self.unaffordable(RoomAlias(0), &request) {
            return self.send(to.shard, refused, host);
        }
        let alias = self
            .may_open(&room, opener.as_ref(), now)
            .and_then(|()| self.room_for(&room, now, host));
        match alias {
            Ok(alias) => {
                self.renew_room(alias);
                self.request_room(alias, request, now, host);
            }
            Err(refusal) => {
                tracing::debug!(%room, code = %refusal.code, "a join was refused");
                let joined = Message::Joined {
                    to,
                    room: RoomAlias(0),
                    outcome: Err(refusal),
                };
                self.send(to.shard, joined, host);
            }
        }
    }

    /// Whether the room is open, or the user may open it. The server's inventions may: a new one costs nothing.
    fn may_open(&self, room: &RoomId, user: Option<&UserId>, now: Now) -> Result<(), Refusal> {
        let Some(user) = user.filter(|_| !self.rooms_by_id.contains_key(room)) else {
            return Ok(());
        };
        let rate = self.settings.user.rooms;
        self.users
            .take_room(&room.tenant, user, rate, now.monotonic_ms)
            .map_err(|after_ms| self.limited(LimitedBy::UserRooms, after_ms))
    }

    /// Hands the back end's request to its room. Only a publish opens a room: looking at one must not make it.
    pub(super) fn call_room(&mut self, call: Call, now: Now, host: &mut dyn Host) {
        let Call { room, to, request } = call;
        let opens = matches!(request, Request::Publish { .. });
        if !opens && !self.rooms_by_id.contains_key(&room) {
            let message = match self.room_settings(room.name.namespace()) {
                Ok(_) => Message::Answer {
                    to,
                    answer: Answer::Room(None),
                },
                Err(refusal) => Message::Reply {
                    to,
                    outcome: Err(refusal),
                },
            };
            return self.send(to.shard, message, host);
        }
        match self.room_for(&room, now, host) {
            Ok(alias) => self.request_room(alias, request, now, host),
            Err(refusal) => {
                let outcome = Err(refusal);
                self.send(to.shard, Message::Reply { to, outcome }, host);
            }
        }
    }

    /// Hands a request to its room.
    pub(super) fn request_room(
        &mut self,
        alias: RoomAlias,
        request: Request,
        now: Now,
        host: &mut dyn Host,
    ) {
        if let Some(refused) = self.unaffordable(alias, &request) {
            let to = Asked::of(&request).map_or(self.id, |asked| asked.to.shard);
            self.send(to, refused, host);
        } else if self.rooms.contains_key(&alias) {
            self.with_room(alias, now, host, |room, context| {
                room.handle(request, context);
            });
        } else if let Some(Asked { to, awaited }) = Asked::of(&request) {
            let message = match awaited {
                Awaited::Joined => Message::Joined {
                    to,
                    room: alias,
                    outcome: Err(failed(None)),
                },
                Awaited::Published | Awaited::Other => Message::Reply {
                    to,
                    outcome: Err(Refusal::new(
                        ErrorCode::NotJoined,
                        "the room has closed; join again",
                    )),
                },
            };
            self.send(to.shard, message, host);
        }
    }

    /// Hands the end of a journal's work to the room that waits for it.
    pub(super) fn journal_completed(
        &mut self,
        completion: Completion,
        now: Now,
        host: &mut dyn Host,
    ) {
        let Completion { ticket, result } = completion;
        if let Some(alias) = self.tickets.remove(&ticket) {
            self.with_room(alias, now, host, |room, context| {
                room.complete(ticket, result, context);
            });
        }
    }

    pub(super) fn room_timer(
        &mut self,
        alias: RoomAlias,
        timer: RoomTimer,
        now: Now,
        host: &mut dyn Host,
    ) {
        self.renew_room(alias);
        let after = self.with_room(alias, now, host, |room, context| room.timer(timer, context));
        if after == Some(After::Close) {
            self.close_room(alias);
        }
    }

    /// Runs a room with everything it may use, and carries out what it wants. None where there is no such room, or where
    /// its code panicked and there is none any more.
    pub(super) fn with_room<T>(
        &mut self,
        alias: RoomAlias,
        now: Now,
        host: &mut dyn Host,
        act: impl FnOnce(&mut Room, &mut Context<'_>) -> T,
    ) -> Option<T> {
        let room = self.rooms.get_mut(&alias)?;
        let (mut out, mut timers, mut tickets) = (Vec::new(), Vec::new(), Vec::new());
        let id = self.id;
        let (members_before, bytes_before) = (room.occupancy(), room.held_bytes());
        let is_revoked = |tenant: &TenantId, left: &Departure| {
            let identity = Identity {
                tenant: tenant.clone(),
                user: left.user.clone(),
                grants: Grants::everything(),
                expires_ms: None,
                token_id: left.token_id.clone(),
            };
            let revocations = self.sessions.revocations();
            revocations.covers(&identity, Some(left.session), now.unix_ms)
        };
        let mut context = Context {
            journal: self.journals.of(room.durability()),
            now,
            shard: id,
            out: &mut out,
            timers: &mut timers,
            tickets: &mut tickets,
            can_send: &|shard: ShardId| shard == id || host.can_send(shard),
            counters: &self.counters,
            is_short: self.memory.level() > Level::Normal,
            is_revoked: &is_revoked,
        };
        let outcome = survive(|| act(room, &mut context));
        let gauge = &self.counters.members;
        let Some(outcome) = outcome else {
            gauge.sub(members_before);
            self.counters.room_bytes.sub(bytes_before);
            let room = self.rooms.remove(&alias)?;
            self.room_broke(room, out, now, host);
            return None;
        };
        gauge.set(gauge.get() + room.occupancy() - members_before);
        let gauge = &self.counters.room_bytes;
        gauge.set(gauge.get() + room.held_bytes() - bytes_before);
        let logs = self.journals.held_bytes();
        self.counters.log_bytes.set(logs as u64);
        if room.is_dirty() {
            self.dirty_rooms.insert(alias);
        }
        self.tickets
            .extend(tickets.into_iter().map(|ticket| (ticket, alias)));
        for (delay_ms, timer) in timers {
            let timer = Timer::Room(Box::new((alias, timer)));
            self.wheel.set(now.monotonic_ms + delay_ms, timer);
        }
        for (to, message) in out {
            self.send(to, message, host);
        }
        Some(outcome)
    }

    /// Opens a room in which something is due, and lets it look. Where it can't be opened now, later.
    pub(super) fn wake_room(&mut self, id: &RoomId, now: Now, host: &mut dyn Host) {
        match self.room_for(id, now, host) {
            Ok(alias) => {
                self.with_room(alias, now, host, Room::wake);
            }
            Err(Refusal {
                after_ms: Some(after_ms),
                ..
            }) => {
                let timer = Timer::Wake(Box::new(id.clone()));
                self.wheel.set(now.monotonic_ms + after_ms, timer);
            }
            Err(refusal) => {
                tracing::warn!(room = %id, code = %refusal.code, "a room with something due can't be opened");
            }
        }
    }

    fn room_for(
        &mut self,
        id: &RoomId,
        now: Now,
        host: &mut dyn Host,
    ) -> Result<RoomAlias, Refusal> {
        if let Some(alias) = self.rooms_by_id.get(id) {
            return Ok(*alias);
        }
        if let Some(after_ms) = self.closed_for_ms(id, now) {
            return Err(failed(Some(after_ms)));
        }
        let alias = self.begin_room(id)?;
        let anonymous = self.settings.anonymous;
        self.with_room(alias, now, host, |room, context| {
            room.open(anonymous, context);
        });
        Ok(alias)
    }

    /// A room whose log is still to be opened.
    pub(super) fn begin_room(&mut self, id: &RoomId) -> Result<RoomAlias, Refusal> {
        let settings = self.room_settings(id.name.namespace())?;
        let handle = self.directory.open(id, self.id).map_err(|full| {
            Refusal::later(ErrorCode::Overloaded, full.to_string(), FULL_RETRY_MS)
        })?;
        let room = Room::new(id.clone(), handle.alias, settings);
        self.counters.room_bytes.add(room.held_bytes());
        self.rooms.insert(handle.alias, room);
        self.rooms_by_id.insert(id.clone(), handle.alias);
        self.counters.rooms.set(self.rooms.len() as u64);
        Ok(handle.alias)
    }

    /// Gives a room the bounds of the latest configuration, where it has older ones. One of a namespace that is configured
    /// no more goes on as it was.
    fn renew_room(&mut self, alias: RoomAlias) {
        let Some(room) = self.rooms.get(&alias) else {
            return;
        };
        let settings = self.room_settings(room.id().name.namespace());
        if let (Some(room), Ok(settings)) = (self.rooms.get_mut(&alias), settings) {
            let journal = self.journals.of(room.durability());
            room.renew(settings, journal);
        }
    }

    fn room_settings(&self, namespace: &str) -> Result<Arc<RoomSettings>, Refusal> {
        let known = self
            .settings
            .namespaces
            .get(namespace)
            .or(self.settings.other_namespaces.as_ref());
        known.cloned().ok_or_else(|| {
            let names: Vec<_> = self
                .settings
                .namespaces
                .keys()
                .map(String::as_str)
                .collect();
            let text = format!(
                "no namespace {namespace:?} is configured; there are {}",
                names.join(", ")
            );
            Refusal::new(ErrorCode::UnknownNamespace, text)
        })
    }

    fn close_room(&mut self, alias: RoomAlias) {
        if let Some(room) = self.rooms.remove(&alias) {
            self.counters.room_bytes.sub(room.held_bytes());
            self.strike_out(alias, room.id());
        }
    }

    /// Forgets that there was a room.
    pub(super) fn strike_out(&mut self, alias: RoomAlias, id: &RoomId) {
        self.rooms_by_id.remove(id);
        self.directory.close(id);
        self.dirty_rooms.remove(&alias);
        self.counters.rooms.set(self.rooms.len() as u64);
    }
}

/// The answer to a join of a room that has panicked.
fn failed(after_ms: Option<u64>) -> Refusal {
    let text = "the room failed and is opened again later";
    Refusal::later(ErrorCode::Internal, text, after_ms.unwrap_or(FULL_RETRY_MS))
}

/// When to try again at a node that has as many rooms as it may.
const FULL_RETRY_MS: u64 = 5_000;
