//! One client of a case: what it does, and what it is given, sorted into lanes.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use roomful_client::{
    ChangeKind, Client, ConnectionState, Direction, Encoding, Error, Identity, JoinOptions, Key,
    MemberId, OpId, Options, Payload, PresenceChange, Published, Receipt, Room, RoomAlias,
    RoomEvent, RoomEvents, Sequence, Signal, SignalKey, Watch,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use crate::keyed;
use crate::step::{Step, numbered, payload, written};

pub(crate) struct Actor {
    pub(crate) client: Client,
    /// Its number in the room that it joined last.
    pub(crate) member: Option<MemberId>,
    first: Option<Identity>,
    rooms: BTreeMap<String, Inside>,
    /// Of publishes that were not waited for.
    receipts: VecDeque<Receipt>,
    /// Locks that were not waited for.
    locks: keyed::Waiting,
}

/// A room that was joined.
struct Inside {
    room: Room,
    events: RoomEvents,
    log: VecDeque<RoomEvent>,
    signals: VecDeque<RoomEvent>,
    presence: VecDeque<PresenceChange>,
    lost: VecDeque<Key>,
    /// The last count that was heard.
    occupancy: Option<u64>,
}

impl Actor {
    pub(crate) async fn connect(url: &str, mut step: Step) -> Result<Self> {
        let encoding = match step.text("encoding")?.as_deref() {
            None | Some("msgpack") => Encoding::MessagePack,
            Some("json") => Encoding::Json,
            Some(other) => bail!("{other:?} is no encoding"),
        };
        step.finish()?;
        let options = Options {
            encoding,
            reconnect_base: Duration::from_millis(20),
            reconnect_max: Duration::from_millis(200),
            ..Options::default()
        };
        let client = Client::connect(url, options).await?;
        let first = client.identity();
        Ok(Self {
            client,
            member: None,
            first,
            rooms: BTreeMap::new(),
            receipts: VecDeque::new(),
            locks: keyed::Waiting::new(),
        })
    }

    /// Does a step; gives what it saves.
    pub(crate) async fn act(&mut self, what: &str, mut step: Step) -> Result<Option<Value>> {
        match what {
            "join" => return self.join(step).await,
            "publish" => return self.publish(step).await,
            "raw_publish" => return self.raw_publish(step).await,
            "members" => return self.members(step).await,
            "history" => return self.history(step).await,
            "collect" => return self.collect(step).await,
            _ => {}
        }
        match what {
            "leave" => {
                let name = step.needed_text("room")?;
                step.finish()?;
                self.inside(&name)?.room.leave().await?;
            }
            "signal" => {
                let name = step.needed_text("room")?;
                let to = step.number("to")?.map(MemberId);
                let key = step
                    .text("key")?
                    .map(|key| SignalKey::parse(&key))
                    .transpose()?;
                let payload = payload(&step.take("payload").context("payload is missing")?)?;
                step.finish()?;
                self.inside(&name)?
                    .room
                    .signal(Signal { to, key, payload })
                    .await?;
            }
            "set_presence" => {
                let name = step.needed_text("room")?;
                let value = step
                    .payload_or_null("payload")?
                    .context("payload is missing")?;
                step.finish()?;
                self.inside(&name)?.room.set_presence(value).await?;
            }
            "watch" => {
                let name = step.needed_text("room")?;
                let level = watch(&step.needed_text("level")?)?;
                step.finish()?;
                self.inside(&name)?.room.watch(level).await?;
            }
            "cut" | "offline" => {
                step.finish()?;
                self.cut(what == "offline").await?;
            }
            "online" => {
                step.finish()?;
                self.client.resume().await?;
            }
            "close" => {
                step.finish()?;
                self.client.close().await;
            }
            other => {
                let name = step.needed_text("room")?;
                let room = self.inside(&name)?.room.clone();
                return keyed::act(other, &room, &mut self.locks, step).await;
            }
        }
        Ok(None)
    }

    async fn join(&mut self, mut step: Step) -> Result<Option<Value>> {
        let name = step.needed_text("room")?;
        let options = JoinOptions {
            since: step.position("since")?,
            echo: step.flag("echo")?.unwrap_or(true),
            watch: step
                .text("watch")?
                .map_or(Ok(Watch::None), |level| watch(&level))?,
            presence: step.payload_or_null("presence")?.flatten(),
            state: keyed::prefixes(&mut step, "state")?,
            locks: step.flag("locks")?.unwrap_or(false),
        };
        let recovery = step.text("recovery")?;
        let occupancy = step.number("occupancy")?;
        step.finish()?;
        let (room, events) = self.client.join(&name, options).await?;
        let info = room.info();
        check("recovery", recovery.as_deref(), info.recovery.name())?;
        check("occupancy", occupancy, info.occupancy)?;
        self.member = Some(info.member);
        let inside = Inside {
            room,
            events,
            log: VecDeque::new(),
            signals: VecDeque::new(),
            presence: VecDeque::new(),
            lost: VecDeque::new(),
            occupancy: Some(info.occupancy),
        };
        self.rooms.insert(name, inside);
        Ok(Some(json!(info.position.to_string())))
    }

    async fn publish(&mut self, mut step: Step) -> Result<Option<Value>> {
        let name = step.needed_text("room")?;
        let count = step.number("count")?.unwrap_or(1);
        let wait = step.flag("wait")?.unwrap_or(true);
        let template = step.take("payload").context("payload is missing")?;
        step.finish()?;
        let room = self.inside(&name)?.room.clone();
        let mut last = None;
        for i in 1..=count {
            let payload = payload(&numbered(&template, i))?;
            if wait {
                last = Some(room.publish(payload).await?);
            } else {
                self.receipts.push_back(room.enqueue(payload).await?);
            }
        }
        Ok(last.map(|Published { position, .. }| json!(position.to_string())))
    }

    async fn raw_publish(&mut self, mut step: Step) -> Result<Option<Value>> {
        let alias = match (step.text("room")?, step.number("alias")?) {
            (Some(name), None) => self.inside(&name)?.room.alias(),
            (None, Some(alias)) => RoomAlias(alias),
            _ => bail!("either a room or an alias"),
        };
        let sequence = step.number("sequence")?.map(Sequence);
        let op = sequence.map(|sequence| OpId {
            producer: self.client.producer(),
            sequence,
        });
        let payload = payload(&step.take("payload").context("payload is missing")?)?;
        let (duplicate, position) = (step.flag("duplicate")?, step.position("position")?);
        step.finish()?;
        let published = self.client.publish_as_is(alias, op, payload).await?;
        check("duplicate", duplicate, published.duplicate)?;
        check("position", position, published.position)?;
        Ok(Some(json!(published.position.to_string())))
    }

    async fn members(&mut self, mut step: Step) -> Result<Option<Value>> {
        let name = step.needed_text("room")?;
        let after = step.number("after")?.map(MemberId);
        let limit = step.number("limit")?.unwrap_or(100);
        let (occupancy, members, more) = (
            step.number("occupancy")?,
            step.take("members"),
            step.flag("more")?,
        );
        step.finish()?;
        let page = self.inside(&name)?.room.members(after, limit).await?;
        check("occupancy", occupancy, page.occupancy)?;
        check("more", more, page.next.is_some())?;
        let value = |value: &Option<Payload>| value.as_ref().map_or(Value::Null, written);
        let listed = page
            .members
            .iter()
            .map(|member| json!({"user": member.user.as_str(), "value": value(&member.value)}));
        check("members", members, listed.collect::<Value>())?;
        Ok(page.next.map(|next| json!(next.0)))
    }

    async fn history(&mut self, mut step: Step) -> Result<Option<Value>> {
        let name = step.needed_text("room")?;
        let from = step.position("from")?;
        let direction = match step.text("direction")?.as_deref() {
            None | Some("backward") => Direction::Backward,
            Some("forward") => Direction::Forward,
            Some(other) => bail!("{other:?} is no direction"),
        };
        let limit = step.number("limit")?.unwrap_or(100);
        let (entries, more) = (step.take("entries"), step.flag("more")?);
        step.finish()?;
        let page = self
            .inside(&name)?
            .room
            .history(from, direction, limit)
            .await?;
        check("more", more, page.next.is_some())?;
        check(
            "entries",
            entries,
            page.entries
                .iter()
                .map(|entry| written(&entry.payload))
                .collect::<Value>(),
        )?;
        Ok(page.next.map(|next| json!(next.to_string())))
    }

    async fn collect(&mut self, mut step: Step) -> Result<Option<Value>> {
        let name = step.needed_text("room")?;
        let count = step.number("count")?.context("count is missing")?;
        step.finish()?;
        let inside = self.inside(&name)?;
        let mut collected = Vec::new();
        for _ in 0..count {
            let RoomEvent::Event { position, entry } =
                inside.next_of_log(&["joined", "caught_up"]).await?
            else {
                bail!("something else than an event came");
            };
            collected.push(json!([
                position.to_string(),
                entry.user.as_str(),
                written(&entry.payload)
            ]));
        }
        Ok(Some(Value::from(collected)))
    }

    async fn cut(&self, stay_away: bool) -> Result<()> {
        let mut state = self.client.state();
        let was_connected = *state.borrow_and_update() == ConnectionState::Connected;
        if stay_away {
            self.client.suspend().await?;
        } else {
            self.client.drop_connection().await?;
        }
        if was_connected {
            state.changed().await?;
        }
        Ok(())
    }

    /// Waits for what a step expects; gives what it saves. The caller sets the deadline.
    pub(crate) async fn expect(&mut self, what: &str, mut step: Step) -> Result<Option<Value>> {
        match what {
            "published" => return self.expect_published(step).await,
            "connected" => return self.expect_connected(step).await.map(|()| None),
            "granted" => return keyed::expect_granted(&mut self.locks, step).await,
            _ => {}
        }
        let name = step.needed_text("room")?;
        let inside = self.inside(&name)?;
        match what {
            "event" => inside.expect_event(step).await,
            "joined" | "caught_up" | "reset" | "left" => inside.expect_in_log(what, step).await,
            "signal" => inside.expect_signal(step).await.map(|()| None),
            "presence" => inside.expect_presence(step).await.map(|()| None),
            "occupancy" => inside.expect_occupancy(step).await.map(|()| None),
            "position" => inside.expect_position(step).await.map(|()| None),
            "timer" => {
                let event = inside.next_of_log(&["joined", "caught_up"]).await?;
                keyed::check_timer(event, step)
            }
            "lost" => inside.expect_lost(step).await,
            "state" => keyed::expect_state(&inside.room, step).await.map(|()| None),
            "lock" => keyed::expect_lock(&inside.room, step).await.map(|()| None),
            "none" => inside.expect_none(step).await.map(|()| None),
            other => bail!("there is nothing called {other:?} to expect"),
        }
    }

    async fn expect_published(&mut self, mut step: Step) -> Result<Option<Value>> {
        let count = step.number("count")?.unwrap_or(1);
        step.take("room");
        step.finish()?;
        let mut last = None;
        for _ in 0..count {
            let receipt = self
                .receipts
                .pop_front()
                .context("no publish is waiting for its outcome")?;
            last = Some(receipt.await?);
        }
        Ok(last.map(|Published { position, .. }| json!(position.to_string())))
    }

    async fn expect_connected(&self, mut step: Step) -> Result<()> {
        let resumed = step.flag("resumed")?;
        step.finish()?;
        self.client
            .state()
            .wait_for(|state| *state == ConnectionState::Connected)
            .await?;
        let now = self.client.identity();
        let same =
            now.as_ref().map(|now| &now.user) == self.first.as_ref().map(|first| &first.user);
        check(
            "resumed",
            resumed,
            same && now.is_some_and(|now| now.resumed),
        )
    }

    fn inside(&mut self, name: &str) -> Result<&mut Inside> {
        self.rooms
            .get_mut(name)
            .with_context(|| format!("the client is not in {name}"))
    }
}

impl Inside {
    async fn expect_event(&mut self, mut step: Step) -> Result<Option<Value>> {
        let count = step.number("count")?.unwrap_or(1);
        let template = step.take("payload");
        let (user, position) = (step.text("user")?, step.position("position")?);
        step.finish()?;
        let mut last = None;
        for i in 1..=count {
            let RoomEvent::Event {
                position: at,
                entry,
            } = self.next_of_log(&["joined", "caught_up"]).await?
            else {
                bail!("something else than an event came");
            };
            check(
                "payload",
                template.as_ref().map(|template| numbered(template, i)),
                written(&entry.payload),
            )?;
            check("user", user.as_deref(), entry.user.as_str())?;
            check("position", position, at)?;
            last = Some(json!(at.to_string()));
        }
        Ok(last)
    }

    async fn expect_in_log(&mut self, what: &str, mut step: Step) -> Result<Option<Value>> {
        let (recovery, position, error) = (
            step.text("recovery")?,
            step.position("position")?,
            step.number("error")?,
        );
        step.finish()?;
        let others: Vec<&str> = ["joined", "caught_up"]
            .into_iter()
            .filter(|kind| *kind != what)
            .collect();
        let event = self.next_of_log(&others).await?;
        ensure!(kind(&event) == what, "{} came", kind(&event));
        match event {
            RoomEvent::Joined(info) => {
                check("recovery", recovery.as_deref(), info.recovery.name())?;
                Ok(None)
            }
            RoomEvent::CaughtUp(at) | RoomEvent::Reset(at) => {
                check("position", position, at)?;
                Ok(Some(json!(at.to_string())))
            }
            RoomEvent::Left(refusal) => {
                check("error", error, u64::from(refusal.code.0)).map(|()| None)
            }
            _ => Ok(None),
        }
    }

    async fn expect_signal(&mut self, mut step: Step) -> Result<()> {
        let (wanted, from, user) = (
            step.take("payload"),
            step.number("from")?,
            step.text("user")?,
        );
        let wanted_key = step.take("key");
        step.finish()?;
        while self.signals.is_empty() {
            self.receive().await?;
        }
        let Some(RoomEvent::Signal {
            from: sender,
            user: sending,
            key,
            payload,
        }) = self.signals.pop_front()
        else {
            bail!("something else than a signal came");
        };
        check("payload", wanted, written(&payload))?;
        check("from", from, sender.0)?;
        check("user", user.as_deref(), sending.as_str())?;
        check(
            "key",
            wanted_key,
            json!(key.as_ref().map(SignalKey::as_str)),
        )
    }

    async fn expect_presence(&mut self, mut step: Step) -> Result<()> {
        let (wanted_kind, user, value) =
            (step.text("kind")?, step.text("user")?, step.take("value"));
        step.finish()?;
        let change = loop {
            if let Some(change) = self.presence.pop_front() {
                break change;
            }
            self.receive().await?;
        };
        let name = match change.kind {
            ChangeKind::Present => "present",
            ChangeKind::Gone => "gone",
        };
        check("kind", wanted_kind.as_deref(), name)?;
        check("user", user.as_deref(), change.user.as_str())?;
        check(
            "value",
            value,
            change.value.as_ref().map_or(Value::Null, written),
        )
    }

    async fn expect_occupancy(&mut self, mut step: Step) -> Result<()> {
        let occupancy = step.number("occupancy")?.context("occupancy is missing")?;
        step.finish()?;
        while self.occupancy != Some(occupancy) {
            self.receive().await?;
        }
        Ok(())
    }

    async fn expect_lost(&mut self, mut step: Step) -> Result<Option<Value>> {
        let lock = step.needed_text("lock")?;
        step.finish()?;
        let lost = loop {
            if let Some(lost) = self.lost.pop_front() {
                break lost;
            }
            self.receive().await?;
        };
        check("lock", Some(lock.as_str()), lost.as_str()).map(|()| None)
    }

    async fn expect_position(&self, mut step: Step) -> Result<()> {
        let position = step.position("position")?.context("position is missing")?;
        step.finish()?;
        while self.room.position() != position {
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn expect_none(&mut self, mut step: Step) -> Result<()> {
        let of = step.needed_text("of")?;
        let until = Instant::now() + Duration::from_millis(step.number("for_ms")?.unwrap_or(300));
        step.finish()?;
        // A stream that has ended brings nothing more.
        while let Ok(Ok(())) = timeout_at(until, self.receive()).await {}
        match of.as_str() {
            "event" | "reset" | "left" | "timer" => {
                let found = self.log.iter().find(|event| kind(event) == of);
                ensure!(found.is_none(), "{found:?} came");
            }
            "signal" => ensure!(self.signals.is_empty(), "{:?} came", self.signals),
            "presence" => ensure!(self.presence.is_empty(), "{:?} came", self.presence),
            other => bail!("none of {other:?} can't be expected"),
        }
        Ok(())
    }

    /// The next item of the log's lane that is none of these kinds.
    async fn next_of_log(&mut self, stepped_over: &[&str]) -> Result<RoomEvent> {
        loop {
            while let Some(event) = self.log.pop_front() {
                if !stepped_over.contains(&kind(&event)) {
                    return Ok(event);
                }
            }
            self.receive().await?;
        }
    }

    /// Takes one event from the client into its lane.
    async fn receive(&mut self) -> Result<()> {
        let event = self.events.next().await.ok_or(Error::NotJoined)?;
        match event {
            RoomEvent::Signal { .. } => self.signals.push_back(event),
            RoomEvent::Presence {
                occupancy, changes, ..
            } => {
                let own = self.room.info().member;
                self.occupancy = Some(occupancy);
                self.presence
                    .extend(changes.into_iter().filter(|change| change.member != own));
            }
            RoomEvent::Joined(ref info) => {
                self.occupancy = Some(info.occupancy);
                self.log.push_back(event);
            }
            RoomEvent::Event { .. }
            | RoomEvent::Timer { .. }
            | RoomEvent::CaughtUp(_)
            | RoomEvent::Reset(_)
            | RoomEvent::Left(_) => {
                self.log.push_back(event);
            }
            RoomEvent::LockLost { lock, .. } => self.lost.push_back(lock),
            // The copies have taken them in.
            RoomEvent::State { .. }
            | RoomEvent::StateBegins(_)
            | RoomEvent::StatePage { .. }
            | RoomEvent::Lock { .. }
            | RoomEvent::LocksBegin
            | RoomEvent::LocksPage { .. }
            | RoomEvent::LockGranted { .. } => {}
            RoomEvent::CopyFailed(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// What cases call an event.
const fn kind(event: &RoomEvent) -> &'static str {
    match event {
        RoomEvent::Event { .. } => "event",
        RoomEvent::Joined(_) => "joined",
        RoomEvent::CaughtUp(_) => "caught_up",
        RoomEvent::Reset(_) => "reset",
        RoomEvent::Signal { .. } => "signal",
        RoomEvent::Presence { .. } => "presence",
        RoomEvent::Left(_) => "left",
        RoomEvent::Timer { .. } => "timer",
        _ => "something else",
    }
}

fn watch(level: &str) -> Result<Watch> {
    let levels = [Watch::None, Watch::Occupancy, Watch::Members];
    levels
        .into_iter()
        .find(|known| known.name() == level)
        .with_context(|| format!("{level:?} is no level"))
}

/// Compares where something is wanted.
#[expect(
    clippy::needless_pass_by_value,
    reason = "callers have a value that they need no more"
)]
pub(crate) fn check<T: PartialEq + Display>(what: &str, wanted: Option<T>, got: T) -> Result<()> {
    match wanted {
        Some(wanted) if wanted != got => bail!("{what} is {got}, not {wanted}"),
        _ => Ok(()),
    }
}
