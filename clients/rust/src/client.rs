//! The client: one connection to a server, kept up for as long as the client lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use roomful_protocol::frame::{OpId, Published};
use roomful_protocol::id::{INTEGER_MAX, ProducerId, RoomAlias, UserId};
use roomful_protocol::payload::Payload;
use tokio::sync::{mpsc, oneshot, watch};

use crate::driver::{Address, Driver, Envelope, Reader, Shared};
use crate::error::Error;
use crate::machine::{
    Answer, CallId, Command, Config, ConnectionState, Identity, JoinOptions, Machine, RoomKey,
    RoomRequest,
};
use crate::options::Options;
use crate::room::{Receipt, Room, RoomEvents};

/// A connection to a server that comes back by itself. Cheap to clone; the last handle that goes, of the client and its rooms, closes it.
#[derive(Debug, Clone)]
pub struct Client {
    handle: Handle,
}

impl Client {
    /// Connects, and waits until the server has said welcome. `url` is `ws://HOST:PORT`; an empty path means `/v1/ws`.
    ///
    /// # Errors
    /// [`Error::Address`]; [`Error::CannotConnect`] when the first attempt fails; [`Error::Closed`] when the server will not have this client.
    pub async fn connect(url: &str, options: Options) -> Result<Self, Error> {
        let client = Self::start(url, options)?;
        let mut state = client.state();
        let decided = |state: &ConnectionState| {
            !matches!(
                state,
                ConnectionState::Connecting | ConnectionState::Suspended
            )
        };
        let state = state
            .wait_for(decided)
            .await
            .map_err(|_| client.handle.shared.closed())?
            .clone();
        match state {
            ConnectionState::Waiting { cause, .. } => Err(Error::CannotConnect(cause)),
            ConnectionState::Closed(reason) => Err(Error::Closed(reason)),
            ConnectionState::Connecting
            | ConnectionState::Connected
            | ConnectionState::Suspended => Ok(client),
        }
    }

    /// Begins to connect and returns at once; joins and publishes wait until it has worked, however often it has to be tried. Must be called inside a
    /// tokio runtime.
    ///
    /// # Errors
    /// [`Error::Address`].
    pub fn start(url: &str, options: Options) -> Result<Self, Error> {
        let address = Address::parse(url, &options)?;
        let producer = ProducerId(rand::random::<u64>() & INTEGER_MAX);
        let machine = Machine::new(Config {
            encoding: options.encoding,
            agent: Some(options.agent.clone()),
            has_token_source: options.token_source.is_some(),
            producer,
            reconnect_base: options.reconnect_base,
            reconnect_max: options.reconnect_max,
            connect_timeout: options.connect_timeout,
            request_timeout: options.request_timeout,
            publishes_max: options.publishes_max,
            publish_bytes_max: options.publish_bytes_max,
        });
        let shared = Arc::new(Shared::new());
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let events_max = options.events_max.max(1);
        let driver = Driver::new(machine, options, address, receiver, shared.clone());
        spawn(driver.run());
        Ok(Self {
            handle: Handle {
                commands,
                shared,
                numbers: Arc::default(),
                producer,
                events_max,
            },
        })
    }

    /// Enters a room. The handle publishes and asks; the stream gives everything that happens, in order, until both are dropped or the room is left.
    /// Waits for a connection if there is none. Read the stream while awaiting calls, from another task for example: it is bounded, and while it is full the client reads nothing
    /// from the server, answers included.
    ///
    /// Dropping the future leaves the room again.
    ///
    /// # Errors
    /// [`Error::Refused`] as the server says, [`Error::AlreadyJoined`], [`Error::PayloadTooLarge`] for the presence value, [`Error::Timeout`], [`Error::Closed`].
    pub async fn join(
        &self,
        room: &str,
        options: JoinOptions,
    ) -> Result<(Room, RoomEvents), Error> {
        if let Some(value) = &options.presence {
            value.check().map_err(Error::Payload)?;
        }
        let key = RoomKey(self.handle.number());
        let (events, receiver) = mpsc::channel(self.handle.events_max);
        let (room_handle, view) = Room::new(key, room, self.handle.clone());
        let call = CallId(self.handle.number());
        let command = Command::Join {
            call,
            key,
            name: room.to_owned(),
            options,
        };
        let reader = Reader { events, view };
        let Answer::Joined(info) = self
            .handle
            .send(call, command, Some((key, reader)))
            .await?
            .wait()
            .await?
        else {
            return Err(Error::UnexpectedAnswer);
        };
        room_handle.joined(info);
        let events = RoomEvents::new(receiver, room_handle.clone());
        Ok((room_handle, events))
    }

    /// How the connection is, and every change of it.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ConnectionState> {
        self.handle.shared.state.subscribe()
    }

    /// Who the server says this client is; none before the first connection.
    #[must_use]
    pub fn identity(&self) -> Option<Identity> {
        self.handle.shared.identity.borrow().clone()
    }

    /// The user of [`Client::identity`].
    #[must_use]
    pub fn user(&self) -> Option<UserId> {
        self.identity().map(|identity| identity.user)
    }

    /// The first half of the op ids of everything that this client publishes: by it an own event is recognised.
    #[must_use]
    pub const fn producer(&self) -> ProducerId {
        self.handle.producer
    }

    /// Measures how long a message takes to the server and back.
    ///
    /// # Errors
    /// [`Error::NotConnected`], [`Error::ConnectionLost`], [`Error::Timeout`], [`Error::Closed`].
    pub async fn round_trip(&self) -> Result<Duration, Error> {
        let call = CallId(self.handle.number());
        match self
            .handle
            .send(call, Command::RoundTrip(call), None)
            .await?
            .wait()
            .await?
        {
            Answer::RoundTrip(duration) => Ok(duration),
            _ => Err(Error::UnexpectedAnswer),
        }
    }

    /// Drops the connection and stays away until [`Client::resume`]: for a device that knows its network is gone.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn suspend(&self) -> Result<(), Error> {
        self.handle.tell(Command::Suspend).await
    }

    /// Connects now: after [`Client::suspend`], or instead of waiting for the next attempt.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn resume(&self) -> Result<(), Error> {
        self.handle.tell(Command::Resume).await
    }

    /// Leaves every room, says goodbye, and waits until that is done. Publishes that are not acknowledged fail; await their receipts before.
    pub async fn close(&self) {
        if self.handle.tell(Command::Close).await.is_ok() {
            self.handle.commands.closed().await;
        }
    }

    /// Drops the socket without a goodbye, as a failing network would; the client comes back by itself. For tests and demonstrations.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn drop_connection(&self) -> Result<(), Error> {
        self.handle.tell(Command::Cut).await
    }

    /// How often the server left a hole in the order of events, which the client then filled by connecting again. Always zero with a sound server.
    #[must_use]
    pub fn gaps(&self) -> u64 {
        *self.handle.shared.gaps.borrow()
    }

    /// Sends one `publish` frame as it is, once, past the queue and its promises. For tests: it shows how the server answers op ids that come again, and
    /// room numbers that are none.
    ///
    /// # Errors
    /// [`Error::Payload`], [`Error::Refused`], [`Error::NotConnected`], [`Error::ConnectionLost`], [`Error::Timeout`], [`Error::Closed`].
    pub async fn publish_as_is(
        &self,
        alias: RoomAlias,
        op: Option<OpId>,
        payload: Payload,
    ) -> Result<Published, Error> {
        payload.check().map_err(Error::Payload)?;
        let call = CallId(self.handle.number());
        self.handle
            .send(
                call,
                Command::RawPublish {
                    call,
                    alias,
                    op,
                    payload,
                },
                None,
            )
            .await?
            .await
    }
}

/// What every handle holds.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Envelope>,
    pub(crate) shared: Arc<Shared>,
    /// The last number given to a call or a room.
    numbers: Arc<AtomicU64>,
    producer: ProducerId,
    events_max: usize,
}

impl Handle {
    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends a request about a room; the receipt gives its answer.
    pub(crate) async fn ask(&self, key: RoomKey, request: RoomRequest) -> Result<Receipt, Error> {
        let call = CallId(self.number());
        self.send(call, Command::Room { call, key, request }, None)
            .await
    }

    async fn send(
        &self,
        call: CallId,
        command: Command,
        reader: Option<(RoomKey, Reader)>,
    ) -> Result<Receipt, Error> {
        let (reply, receiver) = oneshot::channel();
        let envelope = Envelope {
            command,
            reply: Some((call, reply)),
            reader,
        };
        self.commands
            .send(envelope)
            .await
            .map_err(|_| self.shared.closed())?;
        Ok(Receipt::new(receiver, self.shared.clone()))
    }

    /// Sends a command that has no answer.
    pub(crate) async fn tell(&self, command: Command) -> Result<(), Error> {
        let envelope = Envelope {
            command,
            reply: None,
            reader: None,
        };
        self.commands
            .send(envelope)
            .await
            .map_err(|_| self.shared.closed())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the task ends with its handles, and an application has no tracker of ours"
)]
fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    drop(tokio::spawn(future));
}

/// Commands on their way to the driver, before callers wait.
const COMMANDS_MAX: usize = 64;
