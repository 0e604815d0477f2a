//! A client below the level of the client libraries: sockets, messages and frames, right or wrong as a test wants them.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use roomful_protocol::codec::Encoding;
use roomful_protocol::error::{ErrorCode, WireErrorCode};
use roomful_protocol::frame::{
    Advance, ClientFrame, Direction, Error, Event, Hello, History, HistoryPage, Join, JoinProducer,
    Joined, OpId, Ping, Publish, Published, Reply, ServerFrame, Watch, Welcome,
};
use roomful_protocol::id::{PlacementKey, ProducerId, RequestId, RoomAlias, RoomName, Sequence};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;
use roomful_protocol::text::Text;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::server::Server;
use crate::tls::Stream;
use crate::wait::{PATIENCE, within};

/// How to connect.
#[derive(Debug, Clone)]
pub struct Connect {
    /// Where to.
    pub address: SocketAddr,
    /// Which subprotocol to offer.
    pub encoding: Encoding,
    /// The placement key in the URL.
    pub placement: Option<String>,
    /// Another query in the URL instead, with its question mark.
    pub query: Option<String>,
    /// The socket's receive buffer in bytes, for clients that shall fall behind; the system doubles it.
    pub receive_buffer: Option<u32>,
    /// The address to come from; loopback has many.
    pub source: Option<Ipv4Addr>,
    /// More request headers.
    pub headers: Vec<(&'static str, String)>,
    /// TLS, where the server speaks it.
    pub tls: Option<Arc<ClientConfig>>,
}

impl Connect {
    /// To a server, in MessagePack.
    #[must_use]
    pub fn to(server: &Server) -> Self {
        Self {
            address: server.address(),
            encoding: Encoding::MessagePack,
            placement: None,
            query: None,
            receive_buffer: None,
            source: None,
            headers: Vec::new(),
            tls: None,
        }
    }

    /// In another encoding.
    #[must_use]
    pub fn encoding(mut self, encoding: Encoding) -> Self {
        self.encoding = encoding;
        self
    }

    /// With a placement key.
    #[must_use]
    pub fn placement(mut self, key: PlacementKey) -> Self {
        self.placement = Some(key.to_string());
        self
    }

    /// With a small receive buffer.
    #[must_use]
    pub const fn receive_buffer(mut self, bytes: u32) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// From another address of this machine.
    #[must_use]
    pub const fn source(mut self, address: Ipv4Addr) -> Self {
        self.source = Some(address);
        self
    }

    /// Over TLS.
    #[must_use]
    pub fn tls(mut self, config: &Arc<ClientConfig>) -> Self {
        self.tls = Some(Arc::clone(config));
        self
    }

    /// Connects, up to and with the WebSocket handshake.
    ///
    /// # Errors
    /// What the handshake failed with.
    pub async fn open(&self) -> Result<RawClient, tungstenite::Error> {
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(source) = self.source {
            socket.bind((source, 0).into())?;
        }
        let stream = socket.connect(self.address).await?;
        stream.set_nodelay(true)?;
        let stream = match &self.tls {
            None => Stream::Plain(stream),
            Some(config) => {
                let name = ServerName::IpAddress(self.address.ip().into());
                let connector = TlsConnector::from(Arc::clone(config));
                Stream::Tls(Box::new(connector.connect(name, stream).await?))
            }
        };
        let key = self.placement.as_ref().map(|key| format!("?k={key}"));
        let query = self.query.clone().or(key).unwrap_or_default();
        let mut request = format!("ws://{}/v1/ws{query}", self.address).into_client_request()?;
        let subprotocol = self.encoding.subprotocol().parse().unwrap();
        request
            .headers_mut()
            .insert("sec-websocket-protocol", subprotocol);
        for (name, value) in &self.headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        // Hundreds of clients live in one test.
        let config = WebSocketConfig::default()
            .read_buffer_size(8 * 1024)
            .max_message_size(None)
            .max_frame_size(None);
        let handshake = client_async_with_config(request, stream, Some(config));
        let outcome = timeout(PATIENCE, handshake)
            .await
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?;
        let (socket, response) = outcome?;
        let chosen = response
            .headers()
            .get("sec-websocket-protocol")
            .map(|name| name.as_bytes());
        assert_eq!(chosen, Some(self.encoding.subprotocol().as_bytes()));
        Ok(RawClient {
            socket,
            encoding: self.encoding,
            inbox: VecDeque::new(),
            next_request: 1,
        })
    }

    /// Connects, and says hello without a token.
    ///
    /// # Panics
    /// Either fails.
    pub async fn ready(&self) -> RawClient {
        let mut client = self.open().await.unwrap();
        client.hello().await;
        client
    }
}

/// One WebSocket connection.
#[derive(Debug)]
pub struct RawClient {
    socket: WebSocketStream<Stream>,
    encoding: Encoding,
    inbox: VecDeque<ServerFrame>,
    next_request: u64,
}

/// How the server closed a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// The close frame's code; none where the socket just ended.
    pub code: Option<u16>,
    /// Its reason.
    pub reason: String,
}

/// What a connection gives next.
#[derive(Debug)]
pub enum Incoming {
    /// A frame.
    Frame(ServerFrame),
    /// The end.
    Closed(Closed),
}

impl RawClient {
    /// Connects in MessagePack and says hello without a token.
    pub async fn connect(server: &Server) -> Self {
        Connect::to(server).ready().await
    }

    /// Which encoding it speaks.
    #[must_use]
    pub const fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// The socket below.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        self.socket.get_ref().tcp()
    }

    /// Says hello without a token.
    ///
    /// # Panics
    /// It is refused.
    pub async fn hello(&mut self) -> Welcome {
        self.hello_with(None, None).await.unwrap()
    }

    /// Says hello with a token, or with the resume token of an earlier session.
    ///
    /// # Errors
    /// The server's.
    ///
    /// # Panics
    /// Something else than a reply comes.
    pub async fn hello_with(
        &mut self,
        token: Option<&str>,
        resume: Option<&str>,
    ) -> Result<Welcome, Error> {
        let token = token.map(|token| Text::new(token).unwrap());
        let resume = resume.map(|resume| Text::new(resume).unwrap());
        let agent = Some(Text::new("roomful-tests").unwrap());
        match self
            .request(|request| Hello {
                request,
                token,
                resume,
                agent,
            })
            .await?
        {
            ServerFrame::Welcome(welcome) => Ok(*welcome),
            other => panic!("not a welcome: {other:?}"),
        }
    }

    /// Enters a room from now on.
    ///
    /// # Panics
    /// It is refused.
    pub async fn join(&mut self, room: &str) -> Joined {
        self.join_with(join(room)).await.unwrap()
    }

    /// Enters a room as the frame says; the request's number is filled in.
    ///
    /// # Errors
    /// The server's.
    ///
    /// # Panics
    /// Something else than a reply comes.
    pub async fn join_with(&mut self, join: Join) -> Result<Joined, Error> {
        match self.request(|request| Join { request, ..join }).await? {
            ServerFrame::Joined(joined) => Ok(*joined),
            other => panic!("not joined: {other:?}"),
        }
    }

    /// Enters a room to publish in it as a producer, without hearing itself.
    ///
    /// # Panics
    /// It is refused.
    pub async fn join_as(&mut self, room: &str, producer: ProducerId, next: Sequence) -> RoomAlias {
        let producer = Some(JoinProducer { producer, next });
        let join = Join {
            producer,
            echo: false,
            ..join(room)
        };
        self.join_with(join).await.unwrap().room
    }

    /// Reads a page of history.
    ///
    /// # Panics
    /// It is refused.
    pub async fn history(
        &mut self,
        room: RoomAlias,
        from: Option<Position>,
        direction: Direction,
        limit: u64,
    ) -> HistoryPage {
        let page = self.ask(|request| History {
            request,
            room,
            from,
            direction,
            limit,
        });
        match page.await.unwrap() {
            Reply::History(page) => page,
            other => panic!("no page: {other:?}"),
        }
    }

    /// Publishes without an op id.
    ///
    /// # Panics
    /// It is refused.
    pub async fn publish(&mut self, room: RoomAlias, payload: Payload) -> Published {
        self.publish_with(room, None, payload).await.unwrap()
    }

    /// Publishes.
    ///
    /// # Errors
    /// The server's.
    ///
    /// # Panics
    /// Something else than a reply comes.
    pub async fn publish_with(
        &mut self,
        room: RoomAlias,
        op: Option<OpId>,
        payload: Payload,
    ) -> Result<Published, Error> {
        match self
            .ask(|request| Publish {
                request,
                room,
                op,
                payload,
            })
            .await?
        {
            Reply::Published(published) => Ok(published),
            other => panic!("not published: {other:?}"),
        }
    }

    /// Sends a request that `ok` answers, and gives what came of it.
    ///
    /// # Errors
    /// The server's.
    ///
    /// # Panics
    /// Something else than a reply comes.
    pub async fn ask<F: Into<ClientFrame>>(
        &mut self,
        frame: impl FnOnce(RequestId) -> F,
    ) -> Result<Reply, Error> {
        match self.request(frame).await? {
            ServerFrame::Ok(ok) => Ok(ok.reply),
            other => panic!("not ok: {other:?}"),
        }
    }

    /// Sends a request and waits for its one reply. What else arrives is kept for [`Self::next`].
    ///
    /// # Errors
    /// The server's.
    ///
    /// # Panics
    /// The connection closes, or no reply comes in time.
    pub async fn request<F: Into<ClientFrame>>(
        &mut self,
        frame: impl FnOnce(RequestId) -> F,
    ) -> Result<ServerFrame, Error> {
        let request = self.new_request();
        self.send(&frame(request).into()).await;
        let mut others = VecDeque::new();
        let reply = loop {
            let frame = self.next().await;
            if reply_to(&frame) == Some(request) {
                break frame;
            }
            others.push_back(frame);
        };
        others.append(&mut self.inbox);
        self.inbox = others;
        match reply {
            ServerFrame::Error(error) => Err(error),
            frame => Ok(frame),
        }
    }

    /// A request number that was not used before.
    pub fn new_request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request - 1)
    }

    /// Sends a frame.
    ///
    /// # Panics
    /// The connection is gone.
    pub async fn send(&mut self, frame: &ClientFrame) {
        self.try_frame(frame).await.unwrap();
    }

    /// Sends a frame to a server that may be gone.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn try_frame(&mut self, frame: &ClientFrame) -> Result<(), tungstenite::Error> {
        let mut bytes = Vec::new();
        self.encoding.encode(frame, &mut bytes);
        let message = self.message(bytes);
        self.try_send(message).await
    }

    /// Sends a message of these bytes, of the kind that the subprotocol has.
    ///
    /// # Panics
    /// The connection is gone, or a text is not UTF-8.
    pub async fn send_bytes(&mut self, bytes: Vec<u8>) {
        self.send_message(self.message(bytes)).await;
    }

    fn message(&self, bytes: Vec<u8>) -> Message {
        match self.encoding {
            Encoding::MessagePack => Message::binary(bytes),
            Encoding::Json => Message::text(String::from_utf8(bytes).unwrap()),
        }
    }

    /// Sends a WebSocket message.
    ///
    /// # Panics
    /// The connection is gone.
    pub async fn send_message(&mut self, message: Message) {
        self.try_send(message).await.unwrap();
    }

    /// Sends a WebSocket message, to a server that may have closed already.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn try_send(&mut self, message: Message) -> Result<(), tungstenite::Error> {
        within("sending", self.socket.send(message)).await
    }

    /// Sends bytes below the WebSocket, as they are.
    ///
    /// # Panics
    /// They don't fit the socket's buffer, or the connection is gone.
    pub fn send_below(&self, bytes: &[u8]) {
        assert_eq!(self.stream().try_write(bytes).unwrap(), bytes.len());
    }

    /// The next frame.
    ///
    /// # Panics
    /// The connection closes, or none comes in time.
    pub async fn next(&mut self) -> ServerFrame {
        match self.incoming().await {
            Incoming::Frame(frame) => frame,
            Incoming::Closed(closed) => panic!("closed instead of a frame: {closed:?}"),
        }
    }

    /// The next frame that a function makes something of; those before it are dropped.
    pub async fn next_that<T>(&mut self, mut read: impl FnMut(ServerFrame) -> Option<T>) -> T {
        loop {
            if let Some(found) = read(self.next().await) {
                return found;
            }
        }
    }

    /// The next entry of a log, whatever else comes before it.
    pub async fn event(&mut self) -> Event {
        self.next_that(|frame| {
            if let ServerFrame::Event(event) = frame {
                Some(event)
            } else {
                None
            }
        })
        .await
    }

    /// The next `error` frame, whatever else comes before it.
    pub async fn error(&mut self) -> Error {
        self.next_that(|frame| {
            if let ServerFrame::Error(error) = frame {
                Some(error)
            } else {
                None
            }
        })
        .await
    }

    /// Everything that arrives before the answer to a ping sent now.
    pub async fn until_pong(&mut self) -> Vec<ServerFrame> {
        let request = self.new_request();
        self.send(&Ping { request }.into()).await;
        let mut frames = Vec::new();
        loop {
            let frame = self.next().await;
            if reply_to(&frame) == Some(request) {
                return frames;
            }
            frames.push(frame);
        }
    }

    /// Waits for the close frame, whatever else comes before it.
    pub async fn closed(&mut self) -> Closed {
        loop {
            if let Incoming::Closed(closed) = self.incoming().await {
                return closed;
            }
        }
    }

    /// The next frame, or the end.
    ///
    /// # Panics
    /// Neither comes in time.
    pub async fn incoming(&mut self) -> Incoming {
        let Ok(incoming) = timeout(PATIENCE, self.incoming_forever()).await else {
            panic!("nothing came within {PATIENCE:?}")
        };
        incoming
    }

    /// The next frame, or the end, however long that takes. Cancel safe.
    ///
    /// # Panics
    /// A message is of the wrong kind, or not a frame.
    pub async fn incoming_forever(&mut self) -> Incoming {
        loop {
            if let Some(frame) = self.inbox.pop_front() {
                return Incoming::Frame(frame);
            }
            match (self.socket.next().await, self.encoding) {
                (Some(Ok(Message::Binary(bytes))), Encoding::MessagePack) => self.take_in(&bytes),
                (Some(Ok(Message::Text(text))), Encoding::Json) => self.take_in(text.as_bytes()),
                (Some(Ok(Message::Ping(_) | Message::Pong(_))), _) => {}
                (Some(Ok(Message::Close(frame))), _) => return Incoming::Closed(closed(frame)),
                (Some(Err(_)) | None, _) => return Incoming::Closed(closed(None)),
                (Some(Ok(other)), _) => {
                    panic!("a message that the subprotocol doesn't have: {other:?}")
                }
            }
        }
    }

    fn take_in(&mut self, message: &[u8]) {
        let frame = self.encoding.decode_server(message);
        match frame.unwrap_or_else(|error| {
            panic!(
                "not a frame: {error} in {:?}",
                String::from_utf8_lossy(message)
            )
        }) {
            ServerFrame::ServerBatch(batch) => self.inbox.extend(batch.frames.0),
            frame => self.inbox.push_back(frame),
        }
    }

    /// Closes as a client that is done, and waits for the server's echo.
    ///
    /// # Panics
    /// None comes in time.
    pub async fn close(mut self) {
        drop(self.socket.close(None).await);
        self.closed().await;
    }

    /// Cuts the connection as a network does: what is not sent is lost, and the other side sees a reset.
    ///
    /// # Panics
    /// Never for a TCP socket.
    pub fn cut(self) {
        socket2::SockRef::from(self.stream())
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(self);
    }
}

/// Placement keys of which a few dozen are sure to meet every shard.
pub fn placements() -> impl Iterator<Item = PlacementKey> {
    (0..).map(|number| {
        RoomName::parse(format!("chat:{number}").as_bytes())
            .unwrap()
            .placement_key()
    })
}

/// A join from now on, with everything else at its default.
#[must_use]
pub fn join(room: &str) -> Join {
    Join {
        request: RequestId(0),
        room: room.into(),
        since: None,
        producer: None,
        echo: true,
        watch: Watch::None,
        presence: None,
        state: None,
        locks: false,
    }
}

/// Somebody who has published fifteen events of 60,000 bytes in a room: pages of its history are more than an outbox may hold.
pub async fn fill(server: &Server, room: &str) -> RawClient {
    let mut publisher = RawClient::connect(server).await;
    let room = publisher.join(room).await.room;
    for _ in 0..15 {
        publisher
            .publish(room, Payload::binary(vec![7; 60_000]))
            .await;
    }
    publisher
}

/// Which request a frame answers.
#[must_use]
pub fn reply_to(frame: &ServerFrame) -> Option<RequestId> {
    match frame {
        ServerFrame::Welcome(welcome) => Some(welcome.request),
        ServerFrame::Joined(joined) => Some(joined.request),
        ServerFrame::Ok(ok) => Some(ok.request),
        ServerFrame::Pong(pong) => Some(pong.request),
        ServerFrame::Error(error) => error.request,
        ServerFrame::Event(_)
        | ServerFrame::Advance(Advance { .. })
        | ServerFrame::Signalled(_)
        | ServerFrame::PresenceDelta(_)
        | ServerFrame::CaughtUp(_)
        | ServerFrame::Left(_)
        | ServerFrame::TokenExpiring(_)
        | ServerFrame::Goaway(_)
        | ServerFrame::ServerBatch(_)
        | ServerFrame::StateChanged(_)
        | ServerFrame::LockChanged(_)
        | ServerFrame::TimerChanged(_) => None,
    }
}

/// Checks which error it is.
///
/// # Panics
/// It is another one.
pub fn assert_error(error: &Error, code: ErrorCode) {
    assert_eq!(error.code, WireErrorCode::from(code), "{error:?}");
    assert_eq!(error.retry, code.retry(), "{error:?}");
}

fn closed(frame: Option<CloseFrame>) -> Closed {
    let reason = frame
        .as_ref()
        .map(|frame| frame.reason.to_string())
        .unwrap_or_default();
    Closed {
        code: frame.map(|frame| frame.code.into()),
        reason,
    }
}
