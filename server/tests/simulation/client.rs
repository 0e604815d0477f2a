//! A client by the specification, as small as it can be, that checks everything it is sent.

use std::collections::{BTreeMap, VecDeque};

use roomful_protocol::codec::Encoding;
use roomful_protocol::frame::{
    ChangeKind, ClientFrame, Entry, Hello, Join, JoinProducer, Joined, OpId, Presence,
    PresenceRequest, Publish, Recovery, Refresh, Reply, ServerFrame, Signal, Signalled,
    StateChange, Watch, Welcome,
};
use roomful_protocol::id::{
    Epoch, MemberId, Offset, ProducerId, RequestId, RoomAlias, Sequence, SignalKey,
};
use roomful_protocol::limits::TOKEN_BYTES_MAX;
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;
use roomful_protocol::text::Text;

use crate::keyed::{AskedKeyed, Keyed};
use crate::options::{GRACE_MS, RETENTION_MS, START_UNIX_MS};

/// What a client does and knows.
#[derive(Debug)]
pub struct Client {
    pub index: usize,
    pub encoding: Encoding,
    pub room: String,
    pub echo: bool,
    pub watch: Watch,
    /// How long its tokens are good; none: it needs none.
    pub token_ms: Option<u64>,
    /// Whether it asks for a new token before the old one ends.
    pub refreshes: bool,
    pub stage: Stage,
    pub resume: Option<String>,
    pub position: Option<Position>,
    /// Everything it got, by position.
    pub seen: BTreeMap<(Epoch, Offset), OpId>,
    /// Sent and not answered, with the epoch in which it was sent first.
    pub unacked: VecDeque<(Sequence, Option<Epoch>)>,
    pub acked: BTreeMap<Sequence, Position>,
    /// Answered with "may or may not have taken effect".
    pub in_doubt: Vec<Sequence>,
    pub next_sequence: u64,
    pub alias: Option<RoomAlias>,
    pub member: Option<MemberId>,
    /// How often it has changed its presence value.
    pub value: u64,
    /// Who is in the room and with which value, as far as this watcher knows, and since which revision.
    pub view: BTreeMap<MemberId, (u64, Option<Payload>)>,
    pub view_revision: u64,
    /// The newest revision of presence that it was told of.
    pub told_revision: u64,
    /// The newest value of each member that it was told of.
    values_seen: BTreeMap<MemberId, u64>,
    /// When it had last read everything there was: until then it was in the room for sure.
    pub fresh_ms: u64,
    /// Since when it has not been in the room for sure.
    pub away_since_ms: Option<u64>,
    /// The longest time that its member has been away without having left.
    pub longest_away_ms: u64,
    /// Whether its member left, or may have.
    pub has_left: bool,
    /// When it had last heard of its session.
    attached_ms: u64,
    /// Whether the session goes on from the last connection.
    resumed: bool,
    /// Whether this connection was told to come back later.
    pub told_to_go: bool,
    pub welcomed: bool,
    pub resets: u64,
    /// How often it was refused because a disk was full or had failed.
    pub storage_refusals: u64,
    pub caught_up_owed: bool,
    /// What it does with state and locks; none: nobody of the room does.
    pub keyed: Option<Keyed>,
    /// Where it was moved on without being told why: from behind the first to the second.
    pub advanced: Vec<(Epoch, Offset, Offset)>,
    /// What was refused for its rate and is to be asked again.
    again: VecDeque<Asked>,
    signals_sent: u64,
    /// The newest signal of each sender, of those to everybody and of those to this client.
    signals_seen: BTreeMap<(MemberId, String), u64>,
    next_request: u64,
    requests: BTreeMap<RequestId, Asked>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Offline,
    Connected,
    Joining,
    In,
}

#[derive(Debug, Clone, Copy)]
pub enum Asked {
    Hello,
    Join,
    Publish(Sequence),
    Members,
    Set,
    Leave,
    Refresh,
    Keyed(AskedKeyed),
}

/// What the world must know of what a client was sent.
#[derive(Debug)]
pub enum Noted {
    Entry(Position, Entry),
    Gone(MemberId),
    Acked(Sequence, Position),
    Changed(Position, Vec<StateChange>),
    Written(Position),
}

impl Client {
    pub fn new(index: usize, encoding: Encoding, room: String, echo: bool, watch: Watch) -> Self {
        Self {
            index,
            encoding,
            room,
            echo,
            watch,
            token_ms: None,
            refreshes: false,
            stage: Stage::Offline,
            resume: None,
            position: None,
            seen: BTreeMap::new(),
            unacked: VecDeque::new(),
            acked: BTreeMap::new(),
            in_doubt: Vec::new(),
            next_sequence: 1,
            alias: None,
            member: None,
            value: 0,
            view: BTreeMap::new(),
            view_revision: 0,
            told_revision: 0,
            values_seen: BTreeMap::new(),
            fresh_ms: 0,
            away_since_ms: None,
            longest_away_ms: 0,
            has_left: false,
            attached_ms: 0,
            resumed: false,
            told_to_go: false,
            welcomed: false,
            resets: 0,
            storage_refusals: 0,
            caught_up_owed: false,
            keyed: None,
            advanced: Vec::new(),
            again: VecDeque::new(),
            signals_sent: 0,
            signals_seen: BTreeMap::new(),
            next_request: 1,
            requests: BTreeMap::new(),
        }
    }

    pub fn producer(&self) -> ProducerId {
        ProducerId(1000 + self.index as u64)
    }

    /// What it sends first on a new connection.
    pub fn connect(&mut self, now_ms: u64) -> Vec<ClientFrame> {
        self.requests.clear();
        self.again.clear();
        self.stage = Stage::Connected;
        (self.welcomed, self.told_to_go) = (false, false);
        let request = self.ask(Asked::Hello);
        let resume = self.resume.as_ref().map(|token| Text::new(token).unwrap());
        let hello = Hello {
            request,
            token: self.token(now_ms),
            resume,
            agent: None,
        };
        vec![hello.into(), self.join()]
    }

    /// A token that says who it is, and until when: what the world's checker of tokens reads.
    fn token(&self, now_ms: u64) -> Option<Text<TOKEN_BYTES_MAX>> {
        let until_ms = START_UNIX_MS + now_ms + self.token_ms?;
        Some(Text::new(&format!("user-{} {until_ms}", self.index)).unwrap())
    }

    pub fn join(&mut self) -> ClientFrame {
        let request = self.ask(Asked::Join);
        self.stage = Stage::Joining;
        // The lowest sequence that was never sent: what waits for an answer was.
        let next = Sequence(self.next_sequence);
        Join {
            request,
            room: self.room.as_str().into(),
            since: self.position,
            producer: Some(JoinProducer {
                producer: self.producer(),
                next,
            }),
            echo: self.echo,
            watch: self.watch,
            presence: Some(self.presence_value()),
            state: self.keyed.as_ref().and_then(Keyed::prefixes),
            locks: self.keyed.as_ref().is_some_and(|keyed| keyed.locks),
        }
        .into()
    }

    /// Its value as it was last set.
    pub fn presence_value(&self) -> Payload {
        Payload::text(format!("client {} {}", self.index, self.value))
    }

    pub fn set_presence(&mut self) -> ClientFrame {
        self.value += 1;
        self.ask_set()
    }

    fn ask_set(&mut self) -> ClientFrame {
        let request = self.ask(Asked::Set);
        let what = PresenceRequest::Set(Some(self.presence_value()));
        self.presence_request(request, what)
    }

    fn ask_members(&mut self) -> ClientFrame {
        let request = self.ask(Asked::Members);
        let what = PresenceRequest::Get {
            after: None,
            limit: 100,
        };
        self.presence_request(request, what)
    }

    fn presence_request(&self, request: RequestId, what: PresenceRequest) -> ClientFrame {
        let room = self.alias.expect("a client asks while it is in the room");
        Presence {
            request,
            room,
            what,
        }
        .into()
    }

    /// Asks again for one thing that was refused for its rate.
    pub fn ask_again(&mut self, now_ms: u64) -> Option<ClientFrame> {
        let asked = self.again.pop_front()?;
        match asked {
            Asked::Join => Some(self.join()),
            Asked::Refresh => self.refresh(now_ms),
            _ if self.stage != Stage::In => None,
            Asked::Publish(sequence) => {
                let waits = self.unacked.iter().any(|(waiting, _)| *waiting == sequence);
                waits.then(|| self.send_publish(sequence))
            }
            Asked::Members => Some(self.ask_members()),
            Asked::Set => Some(self.ask_set()),
            Asked::Keyed(AskedKeyed::Page(_)) => self.ask_page(),
            Asked::Keyed(AskedKeyed::Watch(_)) => {
                let watched = self.keyed.as_ref()?.watched;
                self.watch_state(watched)
            }
            Asked::Keyed(_) => None,
            Asked::Hello | Asked::Leave => None,
        }
    }

    fn refresh(&mut self, now_ms: u64) -> Option<ClientFrame> {
        let token = self.token(now_ms)?;
        let request = self.ask(Asked::Refresh);
        Some(Refresh { request, token }.into())
    }

    pub fn publish(&mut self) -> ClientFrame {
        let sequence = Sequence(self.next_sequence);
        self.next_sequence += 1;
        let epoch = self.position.map(|position| position.epoch);
        self.unacked.push_back((sequence, epoch));
        self.send_publish(sequence)
    }

    pub fn signal(&mut self, key: Option<&str>, to: Option<MemberId>) -> Option<ClientFrame> {
        let key = key.map(|key| SignalKey::parse(key).unwrap());
        self.signals_sent += 1;
        let scope = if to.is_some() { "one" } else { "all" };
        Some(
            Signal {
                request: None,
                room: self.alias?,
                to,
                key,
                payload: Payload::text(format!("{} {}", scope, self.signals_sent)),
            }
            .into(),
        )
    }

    pub fn leave(&mut self) -> Option<ClientFrame> {
        let request = self.ask(Asked::Leave);
        let room = self.alias?;
        self.has_left = true;
        self.stage = Stage::Connected;
        Some(roomful_protocol::frame::Leave { request, room }.into())
    }

    /// The socket is gone.
    pub fn cut(&mut self) {
        self.stage = Stage::Offline;
        self.alias = None;
        if self.welcomed {
            self.attached_ms = self.fresh_ms;
        }
        self.away_since_ms.get_or_insert(self.fresh_ms);
    }

    /// Takes a frame, and gives what to send because of it.
    pub fn receive(
        &mut self,
        frame: ServerFrame,
        now_ms: u64,
        noted: &mut Vec<Noted>,
    ) -> Vec<ClientFrame> {
        match frame {
            ServerFrame::Welcome(welcome) => {
                self.welcome(*welcome, now_ms);
                Vec::new()
            }
            ServerFrame::Joined(joined) => self.joined(&joined, now_ms),
            ServerFrame::Event(event) => {
                assert_eq!(
                    Some(event.room),
                    self.alias,
                    "an event of a room that the client is not in"
                );
                let position = self.advance(event.entry.offset, true);
                let op = event.entry.op.expect("every publish has an op id");
                assert!(
                    self.echo || op.producer != self.producer(),
                    "its own event came back"
                );
                assert!(
                    self.seen
                        .insert((position.epoch, position.offset), op)
                        .is_none(),
                    "the same event twice"
                );
                noted.push(Noted::Entry(position, event.entry));
                Vec::new()
            }
            ServerFrame::Advance(advance) => {
                let wants_all = self.echo && self.keyed.is_none();
                assert!(!wants_all, "an advance for a client that wants everything");
                let from = self.position.map_or(Offset(0), |position| position.offset);
                let to = self.advance(advance.offset, false);
                self.advanced.push((to.epoch, from, to.offset));
                Vec::new()
            }
            ServerFrame::CaughtUp(caught_up) => {
                assert!(self.caught_up_owed, "caught_up without a recovery");
                self.caught_up_owed = false;
                assert_eq!(
                    self.position.map(|position| position.offset),
                    Some(caught_up.offset)
                );
                Vec::new()
            }
            ServerFrame::Left(left) => {
                assert_eq!(
                    self.alias.take(),
                    Some(left.room),
                    "left a room that the client is not in"
                );
                self.away_since_ms.get_or_insert(self.fresh_ms);
                self.again.clear();
                vec![self.join()]
            }
            ServerFrame::PresenceDelta(delta) => {
                self.presence(&delta.changes, delta.revision, noted);
                Vec::new()
            }
            ServerFrame::Ok(ok) => {
                let asked = self.answered(ok.request);
                self.succeeded(asked, ok.reply, noted)
            }
            ServerFrame::Error(error) => {
                let Some(request) = error.request else {
                    // A signal that met the end of its membership or of its receiver's, or came too fast.
                    assert!([302, 306, 500].contains(&error.code.0), "{}", error.text);
                    return Vec::new();
                };
                let asked = self.answered(request);
                self.failed(asked, error.code.0)
            }
            ServerFrame::ServerBatch(batch) => batch
                .frames
                .0
                .into_iter()
                .flat_map(|frame| self.receive(frame, now_ms, noted))
                .collect(),
            ServerFrame::Signalled(signal) => {
                self.signalled(&signal);
                Vec::new()
            }
            ServerFrame::TokenExpiring(_) if self.refreshes => {
                self.refresh(now_ms).into_iter().collect()
            }
            ServerFrame::Goaway(goaway) => {
                assert!(self.welcomed && !self.told_to_go, "one goaway a session");
                self.told_to_go = true;
                self.resume = Some(goaway.resume);
                Vec::new()
            }
            ServerFrame::TokenExpiring(_) | ServerFrame::Pong(_) => Vec::new(),
            ServerFrame::StateChanged(state) => {
                let position = self.advance(state.offset, true);
                let keyed = self.keyed.as_mut().expect("nobody writes state");
                keyed.changed(&state);
                noted.push(Noted::Changed(position, state.changes));
                Vec::new()
            }
            ServerFrame::LockChanged(lock) => {
                let position = self.advance(lock.offset, true);
                let keyed = self.keyed.as_mut().expect("nobody takes locks");
                let member = self.member.expect("locks come after joined");
                keyed.lock_changed(&lock, member, position.epoch);
                Vec::new()
            }
            ServerFrame::TimerChanged(_) => panic!("{frame:?}, where nobody sets timers"),
        }
    }

    fn welcome(&mut self, welcome: Welcome, now_ms: u64) {
        self.answered(welcome.request);
        if self.resume.is_some() && !welcome.resumed {
            assert!(
                now_ms - self.attached_ms >= RETENTION_MS,
                "client {}: a session ended before its time",
                self.index
            );
        }
        self.resumed = welcome.resumed;
        self.resume = Some(welcome.resume);
        self.welcomed = true;
    }

    /// Signals of one sender to everybody stay in order, and so do those to one member; some may be missing.
    fn signalled(&mut self, signal: &Signalled) {
        assert_ne!(Some(signal.from), self.member, "its own signal came back");
        let text = std::str::from_utf8(&signal.payload.bytes).unwrap();
        let (scope, number) = text.split_once(' ').unwrap();
        let number: u64 = number.parse().unwrap();
        let newest = self
            .signals_seen
            .entry((signal.from, scope.to_owned()))
            .or_default();
        assert!(
            *newest < number,
            "a signal came after a newer one: {scope} {number} after {newest} of {}",
            signal.from
        );
        *newest = number;
    }

    /// Whether it has everything it asked for and is live.
    pub fn is_settled(&self) -> bool {
        self.stage == Stage::In
            && self.unacked.is_empty()
            && !self.caught_up_owed
            && self.again.is_empty()
            && self.requests.is_empty()
    }

    fn joined(&mut self, joined: &Joined, now_ms: u64) -> Vec<ClientFrame> {
        self.answered(joined.request);
        let since = self.position;
        match joined.recovery {
            Recovery::Live => assert!(
                since.is_none_or(|since| since == joined.position),
                "live from elsewhere"
            ),
            Recovery::Recovering => {
                assert_eq!(Some(joined.position), since, "recovery from elsewhere");
            }
            Recovery::Reset => {
                assert!(since.is_some(), "a reset without a position");
                self.resets += 1;
            }
        }
        if let Some(since) = since {
            assert!(joined.position.epoch >= since.epoch, "an epoch came again");
        }
        let away_ms = self.away_since_ms.take().map_or(0, |ms| now_ms - ms);
        if self.member == Some(joined.member)
            && since.map(|since| since.epoch) == Some(joined.position.epoch)
        {
            self.longest_away_ms = self.longest_away_ms.max(away_ms);
        } else {
            let same_room = since.is_some_and(|since| since.epoch == joined.position.epoch);
            let may_be_new = !same_room || !self.resumed || self.has_left;
            assert!(
                may_be_new || self.longest_away_ms.max(away_ms) >= GRACE_MS,
                "client {}: another member inside the grace",
                self.index
            );
            (self.longest_away_ms, self.has_left) = (0, false);
        }
        self.signals_seen.clear();
        self.values_seen.clear();
        self.told_revision = 0;
        self.caught_up_owed = joined.recovery == Recovery::Recovering;
        self.position = Some(joined.position);
        self.alias = Some(joined.room);
        self.member = Some(joined.member);
        self.stage = Stage::In;
        let mut frames = self.resend(joined.position.epoch);
        if let Some(keyed) = &mut self.keyed {
            keyed.entered(joined, since);
            if keyed.lacks {
                frames.extend(self.ask_page());
            }
        }
        if self.watch == Watch::Members {
            self.view.clear();
            self.view_revision = 0;
            frames.push(self.ask_members());
        }
        frames
    }

    /// Sends again what was not answered, in order.
    fn resend(&mut self, epoch: Epoch) -> Vec<ClientFrame> {
        for (_, sent_in) in &mut self.unacked {
            *sent_in = Some(epoch);
        }
        let sequences: Vec<_> = self.unacked.iter().map(|(sequence, _)| *sequence).collect();
        sequences
            .into_iter()
            .map(|sequence| self.send_publish(sequence))
            .collect()
    }

    fn send_publish(&mut self, sequence: Sequence) -> ClientFrame {
        let request = self.ask(Asked::Publish(sequence));
        let room = self
            .alias
            .expect("a client publishes while it is in the room");
        let op = Some(OpId {
            producer: self.producer(),
            sequence,
        });
        Publish {
            request,
            room,
            op,
            payload: content(self.index, sequence),
        }
        .into()
    }

    fn advance(&mut self, offset: Offset, is_event: bool) -> Position {
        let position = self.position.as_mut().expect("events come after joined");
        if is_event {
            assert_eq!(
                offset,
                position.offset.next(),
                "client {}: a gap or a repetition",
                self.index
            );
        } else {
            assert!(offset > position.offset, "an advance that goes nowhere");
        }
        position.offset = offset;
        *position
    }

    fn succeeded(
        &mut self,
        asked: Asked,
        reply: Reply,
        noted: &mut Vec<Noted>,
    ) -> Vec<ClientFrame> {
        match (asked, reply) {
            (Asked::Publish(sequence), Reply::Published(published)) => {
                self.unacked.retain(|(waiting, _)| *waiting != sequence);
                let former = self.acked.insert(sequence, published.position);
                assert!(
                    former.is_none_or(|former| former == published.position),
                    "two results for one operation"
                );
                noted.push(Noted::Acked(sequence, published.position));
            }
            (Asked::Members, Reply::Members(page)) => {
                self.view_revision = page.revision;
                self.told_revision = self.told_revision.max(page.revision);
                self.view = page
                    .members
                    .iter()
                    .map(|member| (member.member, (page.revision, member.value.clone())))
                    .collect();
            }
            (Asked::Leave, Reply::Done) => {
                self.alias = None;
                return vec![self.join()];
            }
            (Asked::Set, Reply::Done) | (Asked::Refresh, Reply::Refreshed { .. }) => {}
            (Asked::Keyed(asked), reply) => return self.keyed_succeeded(asked, reply, noted),
            (asked, reply) => panic!("{asked:?} was answered with {reply:?}"),
        }
        Vec::new()
    }

    fn failed(&mut self, asked: Asked, code: u16) -> Vec<ClientFrame> {
        self.storage_refusals += u64::from(matches!(code, 503 | 504));
        match (asked, code) {
            (Asked::Keyed(AskedKeyed::Page(_) | AskedKeyed::Watch(_)), 500 | 501 | 503 | 504) => {
                self.again.push_back(asked);
                Vec::new()
            }
            (Asked::Keyed(asked), code) => {
                let keyed = self.keyed.as_mut().expect("it has asked");
                keyed.refused(asked, code);
                Vec::new()
            }
            // Unknown, or the membership ended in between: it is sent again after the next join.
            (Asked::Publish(_), 302 | 402) | (Asked::Members | Asked::Leave | Asked::Set, 302) => {
                Vec::new()
            }
            // Nothing was done, and the client stays in the room.
            (Asked::Leave, 500 | 503 | 504) => {
                if self.stage == Stage::Connected {
                    self.stage = Stage::In;
                }
                Vec::new()
            }
            // Too fast, the memory is short, or the disk is full or has failed.
            (asked, 500)
            | (asked @ (Asked::Publish(_) | Asked::Members | Asked::Set), 501 | 503 | 504) => {
                self.again.push_back(asked);
                Vec::new()
            }
            // The token ended before it was looked at: the connection goes, or lives on with the old one.
            (Asked::Hello | Asked::Refresh, 201) => Vec::new(),
            (Asked::Publish(sequence), 400) => {
                self.unacked.retain(|(waiting, _)| *waiting != sequence);
                self.in_doubt.push(sequence);
                Vec::new()
            }
            (Asked::Join, 309 | 501 | 503 | 504) => vec![self.join()],
            (asked, code) => panic!("client {}: {asked:?} failed with {code}", self.index),
        }
    }

    fn presence(
        &mut self,
        changes: &[roomful_protocol::frame::PresenceChange],
        revision: u64,
        noted: &mut Vec<Noted>,
    ) {
        assert_ne!(
            self.watch,
            Watch::None,
            "presence for a client that does not watch"
        );
        if self.watch == Watch::Occupancy {
            assert!(
                changes.is_empty(),
                "names for a client that asked for the count"
            );
        }
        self.told_revision = self.told_revision.max(revision);
        for change in changes {
            let older = self
                .view
                .get(&change.member)
                .is_some_and(|(known, _)| revision <= *known);
            if older || revision <= self.view_revision {
                continue;
            }
            match change.kind {
                ChangeKind::Present => {
                    let value = change.value.clone();
                    // Who is there again with its locks after a restart has no value before it comes back.
                    let number = value.as_ref().map_or(0, number_of);
                    let newest = self.values_seen.entry(change.member).or_default();
                    assert!(
                        *newest <= number,
                        "member {} has an old value again: {number} after {newest}",
                        change.member
                    );
                    *newest = number;
                    self.view.insert(change.member, (revision, value));
                }
                ChangeKind::Gone => {
                    self.view.remove(&change.member);
                    noted.push(Noted::Gone(change.member));
                }
            }
        }
    }

    pub fn ask(&mut self, asked: Asked) -> RequestId {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.requests.insert(request, asked);
        request
    }

    fn answered(&mut self, request: RequestId) -> Asked {
        self.requests
            .remove(&request)
            .expect("one reply for each request")
    }
}

/// How often the client had changed its value when it said this one.
fn number_of(value: &Payload) -> u64 {
    let text = std::str::from_utf8(&value.bytes).unwrap();
    text.rsplit(' ').next().unwrap().parse().unwrap()
}

/// What a client publishes under a sequence.
pub fn content(client: usize, sequence: Sequence) -> Payload {
    let padding = "x".repeat(usize::try_from(sequence.0 * 37 % 300).unwrap());
    Payload::text(format!("{client}/{sequence}/{padding}"))
}
