//! What becomes of a panic: it ends the connection, or the room, in whose code it happened, and nothing else.
//!
//! The step and the flush run what belongs to one connection, one hub or one room behind one of these entrances. What a
//! panic may have left half-changed is given up as a whole, in a way that the client comes back from: a connection is
//! closed and resumes, a membership ends with `room_reopened`, a room is opened again from its journal. A panic in this
//! file itself, or in what a shard does for nobody in particular, ends the thread.

use roomful_protocol::error::{CloseCode, ErrorCode};
use roomful_protocol::frame::Left;
use roomful_protocol::id::{RoomAlias, RoomId};

use super::enter::left_text;
use super::message::{ConnectionId, Message, Refusal, Request, ShardId};
use super::{Host, Shard, Timer};
use crate::clock::Now;
use crate::connection::{Membership, Phase};
use crate::metrics::PanicPlace;
use crate::room::{Asked, Awaited, Remains, Room};
use crate::survive::survive;
use crate::wire;

/// A room whose code has panicked lately.
#[derive(Debug)]
pub(super) struct Suspect {
    /// How often, without a quiet time between.
    panics: u32,
    /// What of it outlives it.
    remains: Remains,
    /// Whether it waits to be opened again.
    closed: bool,
    /// When it is opened again, or trusted again, on the monotonic clock.
    due_ms: u64,
}

impl Shard {
    /// Runs what concerns one connection; whether it came to its end. A panic ends the connection.
    pub(super) fn guard_connection(
        &mut self,
        id: ConnectionId,
        now: Now,
        host: &mut dyn Host,
        act: impl FnOnce(&mut Self, &mut dyn Host),
    ) -> bool {
        let survived = survive(|| act(self, host)).is_some();
        if !survived {
            self.counters.panics.of(PanicPlace::Connection).add(1);
            tracing::error!("handling a connection panicked; it is closed");
            self.abandon(id, now, host);
        }
        survived
    }

    /// Runs what concerns one hub. A panic ends the memberships in it.
    pub(super) fn guard_hub(
        &mut self,
        room: RoomAlias,
        now: Now,
        host: &mut dyn Host,
        act: impl FnOnce(&mut Self, &mut dyn Host),
    ) {
        if survive(|| act(self, host)).is_none() {
            self.counters.panics.of(PanicPlace::Hub).add(1);
            tracing::error!(%room, "handing on what a room sent panicked; its members join again");
            self.abandon_hub(room, now, host);
        }
    }

    /// Ends a connection whose structures can't be trusted. What it is in, the hubs say.
    fn abandon(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        let mut subscriptions: Vec<_> = self
            .hubs
            .iter()
            .flat_map(|(room, hub)| {
                let own = hub.indexed().filter(|(_, member)| member.connection == id);
                own.map(|(index, member)| (*room, index, member.member))
            })
            .collect();
        subscriptions.sort_unstable_by_key(|(room, index, _)| (*room, *index));
        let Some(outlet) = self.outlet_mut(id) else {
            return host.finish(id, Vec::new());
        };
        // What is staged may end in the middle of a frame, and what has been written may too.
        let words = match outlet.outbox {
            None => vec![wire::close(CloseCode::InternalError)],
            Some(_) => Vec::new(),
        };
        if let Phase::Open(open) = &mut outlet.connection.phase {
            let attachment = open.attachment;
            let memberships = subscriptions
                .into_iter()
                .map(|(room, index, member)| Membership {
                    room,
                    member,
                    index,
                    attachment,
                    producer: None,
                });
            open.memberships = memberships.collect();
        }
        self.drop_connection(id, Some(CloseCode::InternalError), now, host);
        host.finish(id, words);
    }

    /// Ends all memberships of a hub that can't be trusted.
    fn abandon_hub(&mut self, room: RoomAlias, now: Now, host: &mut dyn Host) {
        let Some(hub) = self.remove_hub(room) else {
            return;
        };
        self.counters.subscribers.sub(hub.iter().count() as u64);
        let members: Vec<_> = self
            .outlets
            .iter()
            .flatten()
            .filter_map(|outlet| Some((outlet.id, *outlet.connection.open()?.membership(room)?)))
            .collect();
        for (id, membership) in members {
            let detach = Request::Detach {
                member: membership.member,
                attachment: membership.attachment,
                shard: self.id,
            };
            self.send(
                hub.home,
                Message::Request {
                    room,
                    request: detach,
                },
                host,
            );
            if let Some(open) = self
                .connection_mut(id)
                .and_then(|connection| connection.open_mut())
            {
                open.remove(room);
            }
            self.forget_waiting(id, room);
            self.say_left(id, room, ErrorCode::RoomReopened);
            if self
                .outlet(id)
                .is_some_and(|outlet| outlet.outbox.is_some())
            {
                self.watch_for_stall(id, now);
            }
        }
        // Whoever was being served may have got a part of a message.
        for id in hub.in_hand(self.id) {
            self.abandon(id, now, host);
        }
    }

    pub(super) fn say_left(&mut self, id: ConnectionId, room: RoomAlias, code: ErrorCode) {
        self.counters.errors.of(code).add(1);
        let text = left_text(code).to_owned();
        self.stage(
            id,
            &Left {
                room,
                code: code.into(),
                text,
                retry: code.retry(),
                after_ms: None,
            }
            .into(),
        );
    }

    /// A room's code has panicked: the room is taken out, everybody in it is told to come again, and whoever waits for
    /// an answer gets one. What it had put out before stands: each message was true when it was made.
    pub(super) fn room_broke(
        &mut self,
        room: Room,
        out: Vec<(ShardId, Message)>,
        now: Now,
        host: &mut dyn Host,
    ) {
        self.counters.panics.of(PanicPlace::Room).add(1);
        let (alias, id) = (room.alias(), room.id().clone());
        tracing::error!(room = %id, "a room's code panicked; the room is opened again");
        self.strike_out(alias, &id);
        let (asked, remains) = room.remains();
        // Its parts may panic once more when they are dropped.
        survive(|| drop(room));
        let answered: Vec<_> = out
            .iter()
            .filter_map(|(_, message)| message.answers())
            .collect();
        for (to, message) in out {
            self.send(to, message, host);
        }
        for Asked { to, awaited } in asked {
            if !answered.contains(&to) {
                let message = unanswered(Asked { to, awaited }, alias);
                self.send(to.shard, message, host);
            }
        }
        for shard in (0..self.directory.shards()).map(ShardId) {
            let ended = Message::Ended {
                room: alias,
                connection: None,
                code: ErrorCode::RoomReopened,
            };
            self.send(shard, ended, host);
        }
        self.suspect(id, remains, now, host);
    }

    /// Opens a room again that has panicked: at once at first, then later and later.
    fn suspect(&mut self, id: RoomId, remains: Remains, now: Now, host: &mut dyn Host) {
        let before = self.suspects.get(&id).map_or(0, |suspect| suspect.panics);
        let panics = before.saturating_add(1);
        let pause_ms = PAUSES_MS.get(before as usize).copied().unwrap_or(PARKED_MS);
        let suspect = Suspect {
            panics,
            remains,
            closed: true,
            due_ms: now.monotonic_ms + pause_ms,
        };
        self.suspects.insert(id.clone(), suspect);
        if pause_ms == 0 {
            return self.open_again(&id, now, host);
        }
        self.wheel
            .set(now.monotonic_ms + pause_ms, Timer::Suspect(Box::new(id)));
    }

    /// When a room that has panicked may be entered again, if it is closed because of that.
    pub(super) fn closed_for_ms(&self, id: &RoomId, now: Now) -> Option<u64> {
        let suspect = self.suspects.get(id).filter(|suspect| suspect.closed)?;
        Some(suspect.due_ms.saturating_sub(now.monotonic_ms).max(1))
    }

    /// Opens a room that has waited long enough, and trusts one that has kept quiet for long enough.
    pub(super) fn watch_suspect(&mut self, id: &RoomId, now: Now, host: &mut dyn Host) {
        match self.suspects.get(id) {
            // A later timer looks at it.
            Some(suspect) if suspect.due_ms > now.monotonic_ms => {}
            Some(suspect) if suspect.closed => self.open_again(id, now, host),
            Some(_) => {
                self.suspects.remove(id);
            }
            None => {}
        }
    }

    fn open_again(&mut self, id: &RoomId, now: Now, host: &mut dyn Host) {
        let Some(suspect) = self.suspects.get_mut(id) else {
            return;
        };
        let remains = suspect.remains;
        suspect.closed = false;
        suspect.due_ms = now.monotonic_ms + QUIET_MS;
        self.wheel.set(
            now.monotonic_ms + QUIET_MS,
            Timer::Suspect(Box::new(id.clone())),
        );
        let anonymous = self.settings.anonymous;
        if let Ok(alias) = self.begin_room(id) {
            self.with_room(alias, now, host, |room, context| {
                room.open_again(remains, anonymous, context);
            });
        }
    }
}

/// What somebody is told whose request a room will not answer any more.
fn unanswered(Asked { to, awaited }: Asked, room: RoomAlias) -> Message {
    let refusal = |code, text: &str, after_ms| Refusal {
        after_ms,
        ..Refusal::new(code, text)
    };
    match awaited {
        Awaited::Joined => Message::Joined {
            to,
            room,
            outcome: Err(refusal(
                ErrorCode::Internal,
                "the room failed; join again later",
                Some(RETRY_MS),
            )),
        },
        // Repeated at once, what the room failed at would be the next thing it meets.
        Awaited::Published => Message::Reply {
            to,
            outcome: Err(refusal(
                ErrorCode::OutcomeUnknown,
                "the room failed, so the outcome is unknown; send it again with the same op id",
                Some(RETRY_MS),
            )),
        },
        Awaited::Other => Message::Reply {
            to,
            outcome: Err(refusal(
                ErrorCode::RoomReopened,
                "the room was opened again; join and ask again",
                None,
            )),
        },
    }
}

/// How long a room stays closed after its first panic, its second, and so on. One is an accident, and nobody should
/// wait for it; one that comes again at once would otherwise keep the shard busy with nothing else.
const PAUSES_MS: [u64; 4] = [0, 100, 1_000, 10_000];

/// How long it stays closed after each further one: somebody has to look at it.
const PARKED_MS: u64 = 300_000;

/// After so long without a panic, a room is like any other.
const QUIET_MS: u64 = 60_000;

/// When to repeat what a room failed at.
const RETRY_MS: u64 = 1_000;
