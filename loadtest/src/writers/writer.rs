//! What one writer keeps, and what it makes of the frames that come.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{Error, Joined, LockChanged, LockReply, Reply, ServerFrame};
use roomful_protocol::id::{MemberId, RoomAlias};
use tokio::time::Instant;

use super::{Done, Listener, Room, RoomNumber, Spot, Told};
use crate::peer::frames::fault;

/// One connection.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub(super) is_welcome: bool,
    pub(super) places: Vec<Place>,
    /// The place that an alias names.
    pub(super) aliases: HashMap<u64, usize>,
    /// Requests without a reply.
    pub(super) waiting: HashMap<u64, Waiting>,
    pub(super) last_request: u64,
}

/// A writer's place in a room.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) room: RoomNumber,
    /// What it is there.
    pub(super) member: Option<MemberId>,
    /// None while it isn't in.
    pub(super) alias: Option<RoomAlias>,
    /// The last entry that came.
    pub(super) head: u64,
    /// Publishes so far.
    pub(super) published: u32,
}

/// A request without a reply.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting {
    pub(super) place: usize,
    pub(super) since: Instant,
    pub(super) what: Asked,
}

/// What a reply is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Join,
    Publish,
    Leave,
    Write,
    Lock,
}

impl Place {
    pub(super) fn alias(&self) -> Result<RoomAlias> {
        self.alias.context("a writer that isn't in the room")
    }

    fn enter(&mut self, joined: &Joined, room: &Room) -> Result<()> {
        ensure!(
            joined.durability == room.durability,
            "{} is {:?} where {:?} was to be measured",
            room.name,
            joined.durability,
            room.durability
        );
        self.alias = Some(joined.room);
        self.member = Some(joined.member);
        self.head = joined.position.offset.0;
        Ok(())
    }
}

impl Writer {
    /// The log has no gap and repeats nothing.
    pub(super) fn event(&mut self, alias: u64, offset: u64) -> Result<usize> {
        let number = self.place(alias)?;
        let place = &mut self.places[number];
        let expected = place.head + 1;
        ensure!(
            offset == expected,
            "lost, doubled or out of order: offset {offset} came where {expected} is due"
        );
        place.head = offset;
        Ok(number)
    }

    fn place(&self, alias: u64) -> Result<usize> {
        let place = self.aliases.get(&alias).copied();
        place.context("an event of a room that no writer is in")
    }

    pub(super) fn frame(
        &mut self,
        number: usize,
        frame: &ServerFrame,
        rooms: &mut [Room],
        listener: Listener<'_>,
    ) -> Result<()> {
        let (request, mut done) = match frame {
            ServerFrame::Welcome(_) => {
                self.is_welcome = true;
                return Ok(());
            }
            ServerFrame::TokenExpiring(_) | ServerFrame::PresenceDelta(_) => return Ok(()),
            ServerFrame::StateChanged(changed) => {
                let place = self.event(changed.room.0, changed.offset.0)?;
                return listener(Told::unasked(number, place, Done::StateChanged));
            }
            ServerFrame::LockChanged(changed) => {
                let place = self.event(changed.room.0, changed.offset.0)?;
                return listener(Told::unasked(number, place, lock_changed(changed)));
            }
            ServerFrame::Joined(joined) => (
                joined.request,
                Done::Joined {
                    head: joined.head.offset.0,
                },
            ),
            ServerFrame::Ok(ok) => (ok.request, done(&ok.reply)?),
            ServerFrame::Error(error) => {
                let conflict = conflict(error).ok_or_else(|| fault(frame))?;
                (error.request.context("a conflict of no request")?, conflict)
            }
            unwelcome => return Err(fault(unwelcome)),
        };
        let waiting = self.waiting.remove(&request.0);
        let waiting = waiting.context("a reply to no request")?;
        let place = &mut self.places[waiting.place];
        let room = &mut rooms[place.room.0];
        match (frame, waiting.what, done) {
            (ServerFrame::Joined(joined), Asked::Join, _) => {
                place.enter(joined, room)?;
                self.aliases.insert(joined.room.0, waiting.place);
            }
            (_, Asked::Publish, Done::Wrote(_)) => {
                room.acknowledged += 1;
                done = Done::Published(room.acknowledged);
            }
            (_, Asked::Write, Done::Wrote(_)) => room.acknowledged += 1,
            (_, Asked::Write, Done::Conflict { .. })
            | (_, Asked::Lock, Done::Granted(_) | Done::Queued) => {}
            (_, Asked::Lock, Done::Left) => done = Done::Released,
            (_, Asked::Leave, Done::Left) => {
                let alias = place.alias.take().context("it has left already")?;
                self.aliases.remove(&alias.0);
            }
            _ => bail!("a reply that doesn't answer its request: {frame:?}"),
        }
        listener(Told {
            took: waiting.since.elapsed(),
            ..Told::unasked(number, waiting.place, done)
        })
    }
}

impl Told {
    const fn unasked(writer: usize, place: usize, what: Done) -> Self {
        Self {
            spot: Spot { writer, place },
            took: Duration::ZERO,
            what,
        }
    }
}

/// A position is a publish's or a write's, and nothing at all may be several things: who asked knows which.
fn done(reply: &Reply) -> Result<Done> {
    match reply {
        Reply::Done => Ok(Done::Left),
        Reply::Published(published) if !published.duplicate => Ok(Done::Wrote(published.position)),
        Reply::Lock(LockReply::Granted { fence, .. }) => Ok(Done::Granted(*fence)),
        Reply::Lock(LockReply::Queued { .. }) => Ok(Done::Queued),
        reply => bail!("an unexpected reply: {reply:?}"),
    }
}

fn conflict(error: &Error) -> Option<Done> {
    let item = error.current.first()?;
    let value = item.value.as_ref();
    (error.code.known() == Some(ErrorCode::Conflict)).then(|| Done::Conflict {
        version: item.version,
        value: value.and_then(|value| Some(u64::from_le_bytes(value.bytes[..].try_into().ok()?))),
    })
}

fn lock_changed(changed: &LockChanged) -> Done {
    let held = changed.held.as_ref();
    Done::LockChanged(held.map(|held| (held.member, held.fence)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(head: u64) -> Writer {
        let place = Place {
            room: RoomNumber(0),
            member: Some(MemberId(7)),
            alias: Some(RoomAlias(3)),
            head,
            published: 0,
        };
        Writer {
            places: vec![place],
            aliases: HashMap::from([(3, 0)]),
            ..Writer::default()
        }
    }

    #[test]
    fn a_log_comes_without_a_gap_and_once() {
        let mut writer = writer(5);
        assert_eq!(writer.event(3, 6).unwrap(), 0);
        for offset in [6, 8] {
            let text = writer.event(3, offset).unwrap_err().to_string();
            assert!(text.contains("where 7 is due"), "{text}");
        }
        assert!(writer.event(4, 7).is_err());
        writer.event(3, 7).unwrap();
    }
}
