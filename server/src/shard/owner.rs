//! The shard as owner: from a request to the room that it is for, and from what the room wants to the wheel
//! and the mailboxes.
//!
//! A room is opened by the first join and forgotten when its timer says so. Each call runs one room with a
//! [`Context`] of its own, and what it has put there is carried out when it returns: the room never reaches
//! the shard. What a request means is left to the room.

use std::sync::Arc;

use roomful_protocol::error::ErrorCode;
use roomful_protocol::id::{RoomAlias, RoomId};

use super::message::{Answer, Call, Description, Join, Message, Refusal, Request, ShardId};
use super::{Host, Shard, Timer};
use crate::clock::Now;
use crate::journal::Completion;
use crate::room::kind;
use crate::room::{After, Context, Room, RoomSettings, RoomTimer};

impl Shard {
    /// Lets somebody into a room, which is opened if it is not.
    pub(super) fn join_room(&mut self, join: Join, now: Now, host: &mut dyn Host) {
        let (to, room) = (join.to, join.room.clone());
        match self.room_for(&join.room, now, host) {
            Ok(alias) => {
                let request = Request::Join(Box::new(join));
                self.with_room(alias, now, host, |room, context| {
                    room.handle(request, context);
                });
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

    /// Hands the back end's request to its room. Only a publish opens a room: looking at one must not make it.
    pub(super) fn call_room(&mut self, call: Call, now: Now, host: &mut dyn Host) {
        let Call { room, to, request } = call;
        let opens = matches!(request, Request::Publish { .. });
        if !opens && !self.rooms_by_id.contains_key(&room) {
            let message = match self.describe_closed(room.name.namespace()) {
                Ok(description) => Message::Answer {
                    to,
                    answer: Answer::Room(description),
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

    /// What a room of the namespace would be like.
    fn describe_closed(&self, namespace: &str) -> Result<Description, Refusal> {
        Ok(Description {
            kind: self.room_settings(namespace)?.kind.clone(),
            durability: self.journal.durability(),
            open: None,
        })
    }

    /// Hands a request to its room.
    pub(super) fn request_room(
        &mut self,
        alias: RoomAlias,
        request: Request,
        now: Now,
        host: &mut dyn Host,
    ) {
        if self.rooms.contains_key(&alias) {
            self.with_room(alias, now, host, |room, context| {
                room.handle(request, context);
            });
        } else if let Some(to) = request.reply_to() {
            let refusal = Refusal::new(ErrorCode::NotJoined, "the room has closed; join again");
            self.send(
                to.shard,
                Message::Reply {
                    to,
                    outcome: Err(refusal),
                },
                host,
            );
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
        let mut after = After::Open;
        self.with_room(alias, now, host, |room, context| {
            after = room.timer(timer, context);
        });
        if after == After::Close {
            self.close_room(alias);
        }
    }

    /// Runs a room with everything it may use, and carries out what it wants.
    pub(super) fn with_room(
        &mut self,
        alias: RoomAlias,
        now: Now,
        host: &mut dyn Host,
        act: impl FnOnce(&mut Room, &mut Context<'_>),
    ) {
        let Some(room) = self.rooms.get_mut(&alias) else {
            return;
        };
        let (mut out, mut timers, mut tickets) = (Vec::new(), Vec::new(), Vec::new());
        let id = self.id;
        let members_before = room.occupancy();
        act(
            room,
            &mut Context {
                journal: &mut *self.journal,
                now,
                shard: id,
                out: &mut out,
                timers: &mut timers,
                tickets: &mut tickets,
                can_send: &|shard: ShardId| shard == id || host.can_send(shard),
                counters: &self.counters,
            },
        );
        let gauge = &self.counters.members;
        gauge.set(gauge.get() + room.occupancy() - members_before);
        if room.is_dirty() {
            self.dirty_rooms.insert(alias);
        }
        self.tickets
            .extend(tickets.into_iter().map(|ticket| (ticket, alias)));
        for (delay_ms, timer) in timers {
            self.wheel
                .set(now.monotonic_ms + delay_ms, Timer::Room(alias, timer));
        }
        for (to, message) in out {
            self.send(to, message, host);
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
        let settings = self.room_settings(id.name.namespace())?;
        let kind = kind::create(&settings.kind).ok_or_else(|| {
            Refusal::new(
                ErrorCode::UnknownNamespace,
                "the namespace's kind is not known here",
            )
        })?;
        let handle = self.directory.open(id, self.id).map_err(|full| Refusal {
            code: ErrorCode::Overloaded,
            text: full.to_string(),
            after_ms: Some(FULL_RETRY_MS),
        })?;
        let room = Room::new(id.clone(), handle.alias, settings, kind);
        self.rooms.insert(handle.alias, room);
        self.rooms_by_id.insert(id.clone(), handle.alias);
        self.counters.rooms.set(self.rooms.len() as u64);
        self.with_room(handle.alias, now, host, |room, context| room.open(context));
        Ok(handle.alias)
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
            self.rooms_by_id.remove(room.id());
            self.directory.close(room.id());
            self.dirty_rooms.remove(&alias);
            self.counters.rooms.set(self.rooms.len() as u64);
        }
    }
}

/// When to try again at a node that has as many rooms as it may.
const FULL_RETRY_MS: u64 = 5_000;
