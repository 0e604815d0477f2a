//! The copies of state and locks that the readers of rooms keep: which pages are still to be read, one at a time.
//!
//! The membership owns one [`Pages`]. Pages and changes go to the reader as they come; what counts where they overlap is decided by `replica`.
//! What is missing is asked for again after every loss, until the copy is whole. What is watched is said by the join; where it has changed since
//! the join left, by a request of its own as soon as the room is joined.

use std::collections::VecDeque;
use std::time::Duration;

use roomful_protocol::frame::{
    ClientFrame, Lock, LockRequest, LocksPage, Reply, State, StatePage, StateRequest,
};
use roomful_protocol::id::{Key, KeyPrefix, RequestId, RoomAlias};

use super::requests::{Request, again_after};
use super::step::{Answer, CallId, Output, RoomEvent, RoomKey};
use super::{Machine, Turn};
use crate::error::Error;

/// What is still to be read.
#[derive(Debug, Default)]
pub(super) struct Pages {
    waiting: VecDeque<Page>,
    /// On its way.
    asked: Option<(RequestId, Page)>,
    /// Nothing is asked before: the server refused the last one.
    held_until: Option<Duration>,
    /// Whether the reader has the beginning of a copy.
    state_begun: bool,
    locks_begun: bool,
    /// What the server knows of what is watched.
    state: Told<Option<Vec<KeyPrefix>>>,
    locks: Told<bool>,
    /// Whether locks are to be sent no longer as soon as nobody waits for one.
    unwatching: bool,
    /// When to say again what it refused, and somebody relies on.
    watch_at: Option<Duration>,
}

/// What is watched, as far as the server knows.
#[derive(Debug, Default)]
struct Told<T> {
    /// What the join said, and what was agreed to since.
    agreed: T,
    /// The newest request for something else, without an answer so far.
    asked: Option<RequestId>,
}

impl<T> Told<T> {
    /// Whether this answers the newest request: what was said before it counts no more.
    fn is_answered_by(&mut self, request: RequestId) -> bool {
        self.asked.take_if(|asked| *asked == request).is_some()
    }
}

/// A page, and the key it starts after.
#[derive(Debug, Clone)]
enum Page {
    State(KeyPrefix, Option<Key>),
    Locks(Option<Key>),
}

impl Pages {
    /// When something has to be done.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.held_until.into_iter().chain(self.watch_at).min()
    }

    /// What a join says is watched.
    pub(super) fn told(&mut self, state: &Option<Vec<KeyPrefix>>, locks: bool) {
        self.watch_at = None;
        self.state = Told {
            agreed: state.clone(),
            asked: None,
        };
        self.locks = Told {
            agreed: locks,
            asked: None,
        };
    }

    /// The answer to what was asked is not to be expected any more.
    pub(super) fn recall(&mut self) {
        if let Some((_, page)) = self.asked.take() {
            self.waiting.push_front(page);
        }
    }

    /// What there is of state is void; these pages make it anew.
    fn begin_state(&mut self, prefixes: &[KeyPrefix], after: Option<&Key>) {
        self.recall();
        self.state_begun = true;
        self.waiting.retain(|page| !matches!(page, Page::State(..)));
        let pages = prefixes
            .iter()
            .map(|prefix| Page::State(prefix.clone(), after.cloned()));
        self.waiting.extend(pages);
    }

    fn begin_locks(&mut self, next: Option<Page>) {
        self.recall();
        self.locks_begun = true;
        self.waiting.retain(|page| !matches!(page, Page::Locks(_)));
        self.waiting.extend(next);
    }

    fn say_again(&mut self, at: Duration) {
        self.watch_at = Some(self.watch_at.map_or(at, |other| other.min(at)));
    }

    fn waits_for_state(&self) -> bool {
        let is_state = |page: &Page| matches!(page, Page::State(..));
        self.waiting.iter().any(is_state)
    }
}

impl Machine {
    /// A room was joined: its first pages, or the rest of what was being read.
    pub(super) fn copies_joined(
        &mut self,
        key: RoomKey,
        state: Option<StatePage>,
        locks: Option<LocksPage>,
        turn: &mut Turn<'_>,
    ) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        let pages = &mut room.pages;
        pages.recall();
        pages.held_until = None;
        // Changed while the join was on its way, whose pages are of what it said.
        let state_is_late = pages.state.agreed != room.options.state;
        let locks_are_late = pages.locks.agreed != room.options.locks;
        let mut event = |event| turn.out.push(Output::Event(key, event));
        if let Some(prefixes) = room.options.state.as_ref().filter(|_| !state_is_late) {
            if let Some(page) = state {
                let rest: &[_] = if page.next.is_some() { prefixes } else { &[] };
                pages.begin_state(rest, page.next.as_ref());
                event(RoomEvent::StateBegins(prefixes.clone()));
                event(RoomEvent::StatePage {
                    complete: page.next.is_none(),
                    page,
                });
            } else if !pages.state_begun {
                pages.begin_state(prefixes, None);
                event(RoomEvent::StateBegins(prefixes.clone()));
            }
        }
        if room.options.locks && !locks_are_late {
            if let Some(page) = locks {
                let next = page.next.clone();
                pages.begin_locks(next.map(|next| Page::Locks(Some(next))));
                event(RoomEvent::LocksBegin);
                event(RoomEvent::LocksPage {
                    complete: page.next.is_none(),
                    page,
                });
            } else if !pages.locks_begun {
                pages.begin_locks(Some(Page::Locks(None)));
                event(RoomEvent::LocksBegin);
            }
        }
        if state_is_late {
            self.say_state(None, key, turn);
        }
        if locks_are_late {
            self.say_locks(None, key, turn);
        }
        self.ask_page(key, turn);
    }

    /// Changes what of the state is sent: now, or with the next join.
    pub(super) fn watch_state(
        &mut self,
        call: CallId,
        key: RoomKey,
        prefixes: Option<Vec<KeyPrefix>>,
        turn: &mut Turn<'_>,
    ) {
        if let Some(room) = self.rooms.get_mut(&key) {
            room.options.state = prefixes;
            self.say_state(Some(call), key, turn);
        }
    }

    fn say_state(&mut self, call: Option<CallId>, key: RoomKey, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        let Some(alias) = room.alias() else {
            room.pages.state_begun = false;
            return turn.reply_all(call, &Ok(Answer::Done));
        };
        let prefixes = room.options.state.clone();
        let what = StateRequest::Watch { prefixes };
        let asked = self.request(Request::WatchState { call, key }, turn, |request| {
            State {
                request,
                room: alias,
                what,
            }
            .into()
        });
        if let Some(room) = self.rooms.get_mut(&key) {
            room.pages.state.asked = Some(asked);
        }
        self.copy_state(key, turn);
    }

    pub(super) fn state_watched(&mut self, key: RoomKey, request: RequestId) {
        if let Some(room) = self.rooms.get_mut(&key)
            && room.pages.state.is_answered_by(request)
        {
            room.pages.state.agreed.clone_from(&room.options.state);
        }
    }

    /// The server goes on as before, and so does the copy; unless the application relies on the change.
    pub(super) fn state_not_watched(
        &mut self,
        call: Option<CallId>,
        key: RoomKey,
        request: RequestId,
        error: &Error,
        turn: &mut Turn<'_>,
    ) {
        turn.reply_all(call, &Err(error.clone()));
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        if !room.pages.state.is_answered_by(request) {
            return;
        }
        if call.is_none() {
            if let Some(after) = again_after(error) {
                return room.pages.say_again(turn.at.now + after);
            }
            let failed = RoomEvent::CopyFailed(error.clone());
            turn.out.push(Output::Event(key, failed));
        }
        room.options.state.clone_from(&room.pages.state.agreed);
        self.copy_state(key, turn);
    }

    /// Begins the copy of what is watched.
    fn copy_state(&mut self, key: RoomKey, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        let watched = room.options.state.clone().unwrap_or_default();
        room.pages.begin_state(&watched, None);
        turn.out
            .push(Output::Event(key, RoomEvent::StateBegins(watched)));
        self.ask_page(key, turn);
    }

    /// Changes whether locks are sent: now, or with the next join. As long as somebody waits for one, they are.
    pub(super) fn watch_locks(
        &mut self,
        call: CallId,
        key: RoomKey,
        locks: bool,
        turn: &mut Turn<'_>,
    ) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        room.pages.unwatching = !locks && room.claims.waits();
        if room.pages.unwatching {
            return turn.reply(call, Ok(Answer::Done));
        }
        room.options.locks = locks;
        self.say_locks(Some(call), key, turn);
    }

    /// Whoever waits for a lock has to hear of its grant.
    pub(super) fn rely_on_locks(&mut self, key: RoomKey, turn: &mut Turn<'_>) {
        if let Some(room) = self.rooms.get_mut(&key) {
            room.options.locks = true;
            self.say_locks(None, key, turn);
        }
    }

    /// Somebody waits no longer: perhaps the last one for whom locks were sent.
    pub(super) fn rely_less_on_locks(&mut self, key: RoomKey, turn: &mut Turn<'_>) {
        if let Some(room) = self.rooms.get_mut(&key)
            && room.pages.unwatching
            && !room.claims.waits()
        {
            room.pages.unwatching = false;
            room.options.locks = false;
            self.say_locks(None, key, turn);
        }
    }

    fn say_locks(&mut self, call: Option<CallId>, key: RoomKey, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        let Some(alias) = room.alias() else {
            room.pages.locks_begun = false;
            return turn.reply_all(call, &Ok(Answer::Done));
        };
        let locks = room.options.locks;
        let asked = self.request(Request::WatchLocks { call, key }, turn, |request| {
            Lock {
                request,
                room: alias,
                what: LockRequest::Watch { locks },
            }
            .into()
        });
        if let Some(room) = self.rooms.get_mut(&key) {
            room.pages.locks.asked = Some(asked);
        }
        self.copy_locks(key, turn);
    }

    pub(super) fn locks_watched(&mut self, key: RoomKey, request: RequestId) {
        if let Some(room) = self.rooms.get_mut(&key)
            && room.pages.locks.is_answered_by(request)
        {
            room.pages.locks.agreed = room.options.locks;
        }
    }

    /// The server goes on as before, and so does the copy; unless somebody relies on the change.
    pub(super) fn locks_not_watched(
        &mut self,
        call: Option<CallId>,
        key: RoomKey,
        request: RequestId,
        error: &Error,
        turn: &mut Turn<'_>,
    ) {
        turn.reply_all(call, &Err(error.clone()));
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        if !room.pages.locks.is_answered_by(request) {
            return;
        }
        let waits = room.options.locks && room.claims.waits();
        if call.is_none() || waits {
            if let Some(after) = again_after(error) {
                return room.pages.say_again(turn.at.now + after);
            }
            let failed = RoomEvent::CopyFailed(error.clone());
            turn.out.push(Output::Event(key, failed));
        }
        room.options.locks = room.pages.locks.agreed;
        self.copy_locks(key, turn);
        if waits {
            self.waiting_failed(key, error, turn);
        }
    }

    /// Says again what is watched, where the server refused it for a while.
    pub(super) fn tick_watches(&mut self, key: RoomKey, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        let due = room.pages.watch_at.take_if(|at| *at <= turn.at.now);
        if due.is_none() || room.alias().is_none() {
            return;
        }
        let pages = &room.pages;
        let state = pages.state.asked.is_none() && pages.state.agreed != room.options.state;
        let locks = pages.locks.asked.is_none() && pages.locks.agreed != room.options.locks;
        if state {
            self.say_state(None, key, turn);
        }
        if locks {
            self.say_locks(None, key, turn);
            self.ask_waiting(key, turn);
        }
    }

    fn copy_locks(&mut self, key: RoomKey, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        let first = room.options.locks.then_some(Page::Locks(None));
        room.pages.begin_locks(first);
        turn.out.push(Output::Event(key, RoomEvent::LocksBegin));
        self.ask_page(key, turn);
    }

    /// Asks for the next page, if there is one and none is on its way.
    pub(super) fn ask_page(&mut self, key: RoomKey, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        let pages = &mut room.pages;
        pages.held_until = pages.held_until.filter(|until| *until > turn.at.now);
        if pages.asked.is_some() || pages.held_until.is_some() {
            return;
        }
        let Some(alias) = room.alias() else {
            return;
        };
        let Some(page) = room.pages.waiting.pop_front() else {
            return;
        };
        let asked = page.clone();
        let request = self.request(Request::Page(key), turn, |request| {
            asked.frame(request, alias)
        });
        if let Some(room) = self.rooms.get_mut(&key) {
            room.pages.asked = Some((request, page));
        }
    }

    pub(super) fn page_arrived(
        &mut self,
        key: RoomKey,
        request: RequestId,
        reply: Reply,
        turn: &mut Turn<'_>,
    ) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        let pages = &mut room.pages;
        let Some((_, asked)) = pages.asked.take_if(|(asked, _)| *asked == request) else {
            return;
        };
        let event = match (asked, reply) {
            (Page::State(prefix, _), Reply::State(page)) => {
                let next = page.next.clone();
                let next = next.map(|next| Page::State(prefix, Some(next)));
                next.into_iter()
                    .for_each(|next| pages.waiting.push_front(next));
                RoomEvent::StatePage {
                    complete: !pages.waits_for_state(),
                    page,
                }
            }
            (Page::Locks(_), Reply::Locks(page)) => {
                let next = page.next.clone();
                let complete = next.is_none();
                pages
                    .waiting
                    .extend(next.map(|next| Page::Locks(Some(next))));
                RoomEvent::LocksPage { complete, page }
            }
            // A server that answers with something else has no such pages.
            _ => return,
        };
        turn.out.push(Output::Event(key, event));
        self.ask_page(key, turn);
    }

    /// A page was refused, or no answer came: asked again after a while, unless the server will never give it.
    pub(super) fn page_failed(
        &mut self,
        key: RoomKey,
        request: RequestId,
        error: Error,
        turn: &mut Turn<'_>,
    ) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        if room.pages.asked.as_ref().map(|(asked, _)| *asked) != Some(request) {
            return;
        }
        room.pages.recall();
        if let Some(after) = again_after(&error) {
            room.pages.held_until = Some(turn.at.now + after);
            return;
        }
        // Also where the membership has just ended: the next one begins with what is missing.
        if room.alias().is_some() {
            room.pages.waiting.pop_front();
            turn.out
                .push(Output::Event(key, RoomEvent::CopyFailed(error)));
        }
        self.ask_page(key, turn);
    }
}

impl Page {
    fn frame(self, request: RequestId, room: RoomAlias) -> ClientFrame {
        match self {
            Self::State(prefix, after) => State {
                request,
                room,
                what: StateRequest::Get {
                    prefix,
                    after,
                    limit: PAGE_ITEMS,
                },
            }
            .into(),
            Self::Locks(after) => Lock {
                request,
                room,
                what: LockRequest::Get {
                    after,
                    limit: PAGE_ITEMS,
                },
            }
            .into(),
        }
    }
}

/// Items asked for at a time.
const PAGE_ITEMS: u64 = 1_000;

#[cfg(test)]
mod tests {
    use roomful_protocol::error::ErrorCode;
    use roomful_protocol::frame::{
        Change, ClientFrame, Joined, Ok as OkFrame, Recovery, StateItem, StatePage,
    };
    use roomful_protocol::payload::Payload;

    use super::*;
    use crate::machine::tests::{ALIAS, Bench, ROOM, joined, position, refused};
    use crate::machine::{Command, JoinOptions, RoomRequest};

    fn key(name: &str) -> Key {
        Key::parse(name).unwrap()
    }

    fn prefix(text: &str) -> KeyPrefix {
        KeyPrefix::parse(text).unwrap()
    }

    fn page(of: u64, names: &[&str], next: Option<&str>) -> StatePage {
        let items = names.iter().map(|name| StateItem {
            key: key(name),
            version: position(1, 1),
            value: Some(Payload::text("v")),
        });
        StatePage {
            position: position(1, of),
            items: items.collect(),
            next: next.map(key),
        }
    }

    fn watching() -> Bench {
        let mut bench = Bench::new();
        bench.connect();
        let options = JoinOptions {
            state: Some(vec![prefix("a/"), prefix("b/")]),
            ..JoinOptions::default()
        };
        let call = bench.call();
        bench.command(Command::Join {
            call,
            key: ROOM,
            name: "chat:lobby".to_owned(),
            options,
        });
        bench
    }

    fn answer(bench: &mut Bench, offset: u64, recovery: Recovery, state: Option<StatePage>) {
        let request = bench.last_join().request;
        bench.outputs.clear();
        bench.frame(Joined {
            state,
            ..joined(request, position(1, offset), recovery)
        });
    }

    /// The pages asked for since the outputs were last cleared.
    fn asked(bench: &Bench) -> Vec<(RequestId, String, Option<String>)> {
        let frames = bench.sent().into_iter().filter_map(|frame| match frame {
            ClientFrame::State(State {
                request,
                what: StateRequest::Get { prefix, after, .. },
                ..
            }) => Some((
                request,
                prefix.to_string(),
                after.map(|after| after.to_string()),
            )),
            _ => None,
        });
        frames.collect()
    }

    fn completes(bench: &Bench) -> Vec<bool> {
        let events = bench.room_events().into_iter();
        let pages = events.filter_map(|event| match event {
            RoomEvent::StatePage { complete, .. } => Some(complete),
            _ => None,
        });
        pages.collect()
    }

    /// Goal: every watched prefix is read to its end, one page at a time, over a lost connection. Method: the first page comes with the join and is
    /// not the last; the answer to the next is lost; the client goes on with the same one after a recovery.
    #[test]
    fn pages_go_on_where_they_stopped() {
        let mut bench = watching();
        assert_eq!(
            bench.last_join().state,
            Some(vec![prefix("a/"), prefix("b/")])
        );
        answer(
            &mut bench,
            5,
            Recovery::Live,
            Some(page(5, &["a/1"], Some("a/1"))),
        );
        assert_eq!(
            bench.room_events()[0],
            RoomEvent::StateBegins(vec![prefix("a/"), prefix("b/")])
        );
        assert_eq!(completes(&bench), [false]);
        let first = ("a/".to_owned(), Some("a/1".to_owned()));
        let asked_for = |bench: &Bench| {
            let mut pages = asked(bench).into_iter();
            let (request, prefix, after) = pages.next().expect("a page is asked for");
            assert_eq!(pages.next(), None, "one at a time");
            (request, (prefix, after))
        };
        assert_eq!(asked_for(&bench).1, first);
        bench.cut_and_reopen();
        answer(&mut bench, 5, Recovery::Recovering, None);
        let (request, again) = asked_for(&bench);
        assert_eq!(again, first);
        assert_eq!(completes(&bench), [] as [bool; 0]);
        bench.outputs.clear();
        bench.frame(OkFrame {
            request,
            reply: Reply::State(page(6, &[], None)),
        });
        assert_eq!(completes(&bench), [false]);
        let (request, second) = asked_for(&bench);
        assert_eq!(second, ("b/".to_owned(), Some("a/1".to_owned())));
        bench.outputs.clear();
        bench.frame(OkFrame {
            request,
            reply: Reply::State(page(6, &["b/1"], None)),
        });
        assert_eq!(completes(&bench), [true]);
        assert_eq!(asked(&bench), []);
    }

    #[test]
    fn a_reset_begins_anew() {
        let mut bench = watching();
        answer(&mut bench, 5, Recovery::Live, Some(page(5, &["a/1"], None)));
        bench.cut_and_reopen();
        answer(
            &mut bench,
            9,
            Recovery::Reset,
            Some(page(9, &["a/2"], None)),
        );
        let events = bench.room_events();
        assert!(matches!(events[1], RoomEvent::Reset(at) if at == position(1, 9)));
        assert!(matches!(events[2], RoomEvent::StateBegins(_)));
        assert_eq!(completes(&bench), [true]);
    }

    /// A first join that recovers from the application's own position brings no page, and the client has none either.
    #[test]
    fn what_no_join_brought_is_read_from_the_start() {
        let mut bench = watching();
        answer(&mut bench, 5, Recovery::Recovering, None);
        let pages = asked(&bench);
        assert_eq!((pages[0].1.as_str(), &pages[0].2), ("a/", &None));
    }

    #[test]
    fn a_page_refused_for_a_while_is_asked_again_and_one_refused_for_good_is_told() {
        let mut bench = watching();
        answer(&mut bench, 5, Recovery::Recovering, None);
        let request = asked(&bench)[0].0;
        bench.outputs.clear();
        bench.frame(refused(request, ErrorCode::RateLimited, Some(2_000)));
        assert_eq!(asked(&bench), []);
        assert_eq!(bench.wait(), Duration::from_secs(2));
        let request = asked(&bench)[0].0;
        bench.outputs.clear();
        bench.frame(refused(request, ErrorCode::Forbidden, None));
        assert!(matches!(
            bench.room_events()[..],
            [RoomEvent::CopyFailed(_)]
        ));
        assert_eq!(asked(&bench)[0].1, "b/");
    }

    #[test]
    fn other_prefixes_are_watched_at_once_and_by_every_later_join() {
        let mut bench = watching();
        answer(&mut bench, 5, Recovery::Live, Some(page(5, &[], None)));
        bench.outputs.clear();
        let prefixes = Some(vec![prefix("c/")]);
        let what = StateRequest::Watch {
            prefixes: prefixes.clone(),
        };
        bench.request(RoomRequest::State(what.clone()));
        let sent = bench.sent();
        assert!(
            matches!(&sent[0], ClientFrame::State(State { room: ALIAS, what: sent, .. }) if *sent == what)
        );
        assert_eq!(asked(&bench)[0].1, "c/");
        bench.cut_and_reopen();
        assert_eq!(bench.last_join().state, prefixes);
    }

    /// Goal: what is watched is said, whenever it changes. Method: it changes between `join` and `joined`, whose page is of other keys; the request
    /// that follows is refused for a while.
    #[test]
    fn what_changes_while_a_join_is_on_its_way_is_said_after_it() {
        let mut bench = watching();
        let prefixes = Some(vec![prefix("c/")]);
        let what = StateRequest::Watch { prefixes };
        bench.request(RoomRequest::State(what.clone()));
        answer(&mut bench, 5, Recovery::Live, Some(page(5, &["a/1"], None)));
        let watch = |bench: &Bench| match bench.sent().swap_remove(0) {
            ClientFrame::State(State {
                request,
                what: sent,
                ..
            }) => {
                assert_eq!(sent, what);
                request
            }
            other => panic!("{other:?}"),
        };
        let request = watch(&bench);
        assert_eq!(
            bench.room_events(),
            [RoomEvent::StateBegins(vec![prefix("c/")])]
        );
        assert_eq!(asked(&bench)[0].1, "c/");
        bench.outputs.clear();
        bench.frame(refused(request, ErrorCode::RateLimited, Some(2_000)));
        assert_eq!(bench.wait(), Duration::from_secs(2));
        let request = watch(&bench);
        bench.frame(OkFrame {
            request,
            reply: Reply::Done,
        });
        bench.cut_and_reopen();
        assert_eq!(bench.last_join().state, Some(vec![prefix("c/")]));
    }

    /// Goal: what is taken back stays so. Method: a write is left, and taken back while the room is away.
    #[test]
    fn a_write_taken_back_while_away_is_taken_back_by_the_next_membership() {
        let mut bench = Bench::joined();
        let change = Change::delete(key("a/1"));
        let left = |changes: Vec<Change>| StateRequest::OnDisconnect { changes };
        bench.request(RoomRequest::State(left(vec![change])));
        bench.command(Command::Suspend);
        bench.request(RoomRequest::State(left(Vec::new())));
        bench.command(Command::Resume);
        bench.open();
        bench
            .outputs
            .retain(|output| !matches!(output, Output::Send(ClientFrame::State(_))));
        bench.answer_join(position(1, 0), Recovery::Live);
        let sent = bench.sent().into_iter();
        let sent: Vec<_> = sent
            .filter_map(|frame| match frame {
                ClientFrame::State(State { what, .. }) => Some(what),
                _ => None,
            })
            .collect();
        assert_eq!(sent, [left(Vec::new())]);
    }

    /// Else the next join would ask for what the server never gives, and be refused for it.
    #[test]
    fn what_may_not_be_watched_is_not_asked_for_by_the_next_join() {
        let mut bench = Bench::joined();
        let prefixes = Some(vec![prefix("c/")]);
        let call = bench.request(RoomRequest::State(StateRequest::Watch { prefixes }));
        let locks = bench.request(RoomRequest::Lock(LockRequest::Watch { locks: true }));
        for frame in bench.sent() {
            if let ClientFrame::State(State { request, .. })
            | ClientFrame::Lock(Lock { request, .. }) = frame
            {
                bench.frame(refused(request, ErrorCode::Forbidden, None));
            }
        }
        for call in [call, locks] {
            assert!(matches!(bench.reply(call), Some(Err(Error::Refused(_)))));
        }
        bench.cut_and_reopen();
        let join = bench.last_join();
        assert_eq!((join.state, join.locks), (None, false));
    }
}
