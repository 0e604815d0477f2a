//! A room: the handle by which the application acts, and the stream of what happens.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::Stream;
use roomful_protocol::frame::{Direction, HistoryPage, MembersPage, Published, Watch};
use roomful_protocol::id::{MemberId, RoomAlias};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;
use tokio::sync::{mpsc, oneshot};

use crate::client::Handle;
use crate::driver::{Shared, View};
use crate::error::Error;
use crate::machine::{Answer, Command, JoinInfo, RoomEvent, RoomKey, RoomRequest, Signal};

/// A room that was joined. Cheap to clone. Dropping the future of a call stops the waiting, and not what was asked. It is left by [`Room::leave`], or when the last handle and the stream are dropped.
#[derive(Debug, Clone)]
pub struct Room {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    key: RoomKey,
    name: String,
    handle: Handle,
    /// Written by the driver and read here, never across an await.
    view: Arc<Mutex<View>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.handle.shared.abandon(self.key);
    }
}

impl Room {
    pub(crate) fn new(key: RoomKey, name: &str, handle: Handle) -> (Self, Arc<Mutex<View>>) {
        let view = Arc::<Mutex<View>>::default();
        let inner = Inner {
            key,
            name: name.to_owned(),
            handle,
            view: view.clone(),
        };
        (
            Self {
                inner: Arc::new(inner),
            },
            view,
        )
    }

    /// The first `joined`, which doesn't come through the stream. Events may have overtaken it.
    pub(crate) fn joined(&self, info: JoinInfo) {
        let mut view = self
            .inner
            .view
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        view.position.get_or_insert(info.position);
        view.info.get_or_insert(info);
    }

    /// Publishes, and waits until it is stored at the room's durability class. Offline it waits for the connection; a lost answer is asked for again under the same op id, so that it
    /// takes effect once. Publishes of one room take effect in the order of these calls.
    ///
    /// Dropping the future stops the waiting, not the publish.
    ///
    /// # Errors
    /// [`Error::QueueFull`] and [`Error::PayloadTooLarge`], [`Error::Payload`] (nothing was sent); [`Error::Refused`]; [`Error::OutcomeUnknown`]; [`Error::NotJoined`];
    /// [`Error::Closed`].
    pub async fn publish(&self, payload: Payload) -> Result<Published, Error> {
        self.enqueue(payload).await?.await
    }

    /// Like [`Room::publish`], but returns as soon as the publish has its place in the order; the receipt gives the outcome.
    ///
    /// # Errors
    /// [`Error::Payload`], [`Error::Closed`]; the others come with the receipt.
    pub async fn enqueue(&self, payload: Payload) -> Result<Receipt, Error> {
        payload.check().map_err(Error::Payload)?;
        self.inner
            .handle
            .ask(self.inner.key, RoomRequest::Publish(payload))
            .await
    }

    /// Sends something ephemeral, and waits until the server has it on its way.
    ///
    /// # Errors
    /// [`Error::NotConnected`], [`Error::ConnectionLost`], [`Error::Refused`], [`Error::PayloadTooLarge`], [`Error::Payload`], [`Error::Timeout`], [`Error::NotJoined`],
    /// [`Error::Closed`].
    pub async fn signal(&self, signal: Signal) -> Result<(), Error> {
        signal.payload.check().map_err(Error::Payload)?;
        self.done(RoomRequest::Signal(signal)).await
    }

    /// Sends something ephemeral and asks for no reply, which halves the traffic of cursors and the like. Without a connection, or too large, it is dropped.
    ///
    /// # Errors
    /// [`Error::Payload`], [`Error::Closed`].
    pub async fn signal_unconfirmed(&self, signal: Signal) -> Result<(), Error> {
        signal.payload.check().map_err(Error::Payload)?;
        self.inner
            .handle
            .tell(Command::SignalUnconfirmed {
                key: self.inner.key,
                signal,
            })
            .await
    }

    /// Sets the own presence value, or takes it away. Offline it is remembered and brought by the next join.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::PayloadTooLarge`], [`Error::Payload`], [`Error::Timeout`], [`Error::NotJoined`], [`Error::Closed`].
    pub async fn set_presence(&self, value: Option<Payload>) -> Result<(), Error> {
        value
            .as_ref()
            .map_or(Ok(()), Payload::check)
            .map_err(Error::Payload)?;
        self.done(RoomRequest::SetPresence(value)).await
    }

    /// Changes how much of presence is sent. Offline it is remembered, as with [`Room::set_presence`].
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Timeout`], [`Error::NotJoined`], [`Error::Closed`].
    pub async fn watch(&self, level: Watch) -> Result<(), Error> {
        self.done(RoomRequest::Watch(level)).await
    }

    /// A page of at most `limit` members by ascending number, those after `after`.
    ///
    /// # Errors
    /// [`Error::NotConnected`], [`Error::ConnectionLost`], [`Error::Refused`], [`Error::Timeout`], [`Error::NotJoined`], [`Error::Closed`].
    pub async fn members(&self, after: Option<MemberId>, limit: u64) -> Result<MembersPage, Error> {
        match self.ask(RoomRequest::Members { after, limit }).await? {
            Answer::Members(page) => Ok(page),
            _ => Err(Error::UnexpectedAnswer),
        }
    }

    /// A page of at most `limit` entries of the log, ascending: those before `from` (the newest, if none), or after it (the oldest).
    ///
    /// # Errors
    /// As for [`Room::members`].
    pub async fn history(
        &self,
        from: Option<Position>,
        direction: Direction,
        limit: u64,
    ) -> Result<HistoryPage, Error> {
        match self
            .ask(RoomRequest::History {
                from,
                direction,
                limit,
            })
            .await?
        {
            Answer::History(page) => Ok(page),
            _ => Err(Error::UnexpectedAnswer),
        }
    }

    /// Leaves the room; for the others this member is gone at once. Publishes that were not sent yet fail.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Timeout`], [`Error::NotJoined`], [`Error::Closed`].
    pub async fn leave(&self) -> Result<(), Error> {
        self.done(RoomRequest::Leave).await
    }

    /// The room's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The room as it was found when it was last joined.
    ///
    /// # Panics
    /// Never: a handle is given after the first join.
    #[must_use]
    pub fn info(&self) -> JoinInfo {
        self.look(|view| view.info.clone())
            .expect("a handle is given after the first join")
    }

    /// The newest position that the client has, which events that wait in the stream may not have told yet. It also moves over own events with `echo` off.
    #[must_use]
    pub fn position(&self) -> Position {
        let position = self.look(|view| view.position);
        position.unwrap_or_else(|| self.info().position)
    }

    /// The room's number on the connection that last joined it; see [`crate::Client::publish_as_is`].
    #[must_use]
    pub fn alias(&self) -> RoomAlias {
        self.info().alias
    }

    /// Reads what the driver last wrote.
    pub(crate) fn look<T>(&self, read: impl FnOnce(&View) -> T) -> T {
        let view = self.inner.view.lock();
        read(&view.unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) async fn done(&self, request: RoomRequest) -> Result<(), Error> {
        match self.ask(request).await? {
            Answer::Done => Ok(()),
            _ => Err(Error::UnexpectedAnswer),
        }
    }

    pub(crate) async fn ask(&self, request: RoomRequest) -> Result<Answer, Error> {
        self.inner
            .handle
            .ask(self.inner.key, request)
            .await?
            .wait()
            .await
    }
}

/// What happens in a room, in order. Ends when the room is left or the client closed.
#[derive(Debug)]
pub struct RoomEvents {
    receiver: mpsc::Receiver<RoomEvent>,
    /// The room isn't left while its stream is there.
    _room: Room,
}

impl RoomEvents {
    pub(crate) const fn new(receiver: mpsc::Receiver<RoomEvent>, room: Room) -> Self {
        Self {
            receiver,
            _room: room,
        }
    }

    /// The next event; none after the last. Cancel safe.
    pub async fn next(&mut self) -> Option<RoomEvent> {
        self.receiver.recv().await
    }
}

impl Stream for RoomEvents {
    type Item = RoomEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<RoomEvent>> {
        self.receiver.poll_recv(cx)
    }
}

/// The outcome of a publish, to come. Dropping it doesn't take the publish back.
#[derive(Debug)]
#[must_use = "without it nobody learns whether the publish was stored"]
pub struct Receipt {
    receiver: oneshot::Receiver<Result<Answer, Error>>,
    shared: Arc<Shared>,
}

impl Receipt {
    pub(crate) const fn new(
        receiver: oneshot::Receiver<Result<Answer, Error>>,
        shared: Arc<Shared>,
    ) -> Self {
        Self { receiver, shared }
    }

    pub(crate) async fn wait(self) -> Result<Answer, Error> {
        self.receiver
            .await
            .unwrap_or_else(|_| Err(self.shared.closed()))
    }
}

impl Future for Receipt {
    type Output = Result<Published, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.receiver)
            .poll(cx)
            .map(|outcome| match outcome {
                Ok(Ok(Answer::Published(published))) => Ok(published),
                Ok(Ok(_)) => Err(Error::UnexpectedAnswer),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(self.shared.closed()),
            })
    }
}
