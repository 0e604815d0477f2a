//! A server that does what a test says: it accepts over pipes in memory, and speaks frames.

use std::io;

use futures_util::{SinkExt, StreamExt};
use roomful_client::{
    Connector, Durability, Encoding, Entry, EntryKind, Epoch, MemberId, Offset, Options, Payload,
    Position, Published, Recovery, RoomAlias, SessionId, UserId,
};
use roomful_protocol::frame::{
    ClientFrame, Event, Hello, Join, Joined, Ok as OkFrame, Publish, Reply, ServerFrame, Welcome,
};
use roomful_protocol::id::RequestId;
use roomful_protocol::limits::Limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::{WebSocketStream, accept_hdr_async};

pub(crate) const ALIAS: RoomAlias = RoomAlias(7);

/// Where clients connect to.
pub(crate) struct Server {
    sockets: mpsc::Receiver<DuplexStream>,
}

impl Server {
    /// A server, and the options by which a client reaches it. The pipes hold `pipe_bytes` in each direction.
    pub(crate) fn new(pipe_bytes: usize) -> (Self, Options) {
        let (sender, sockets) = mpsc::channel(8);
        let connector = Connector::new(move |_, _| {
            let sender = sender.clone();
            async move {
                let (ours, theirs) = duplex(pipe_bytes);
                sender
                    .send(theirs)
                    .await
                    .map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
                Ok(ours)
            }
        });
        (
            Self { sockets },
            Options {
                connector: Some(connector),
                ..Options::default()
            },
        )
    }

    /// Answers the next handshake with these bytes instead.
    pub(crate) async fn refuse(&mut self, answer: &str) {
        let mut socket = self.sockets.recv().await.expect("a client connects");
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            socket.read_buf(&mut request).await.unwrap();
        }
        socket.write_all(answer.as_bytes()).await.unwrap();
    }

    /// The next connection, after the handshake.
    #[expect(
        clippy::result_large_err,
        reason = "the engine's callback is declared so"
    )]
    pub(crate) async fn accept(&mut self) -> Peer {
        let socket = self.sockets.recv().await.expect("a client connects");
        let mut encoding = None;
        let stream = accept_hdr_async(socket, |request: &Request, mut response: Response| {
            let name = request.headers()["sec-websocket-protocol"].clone();
            encoding = Encoding::from_subprotocol(name.to_str().unwrap());
            response
                .headers_mut()
                .insert("sec-websocket-protocol", name);
            Ok::<_, ErrorResponse>(response)
        });
        let stream = stream.await.unwrap();
        Peer {
            stream,
            encoding: encoding.unwrap(),
        }
    }
}

/// The server's end of a connection.
pub(crate) struct Peer {
    stream: WebSocketStream<DuplexStream>,
    encoding: Encoding,
}

impl Peer {
    pub(crate) async fn send(&mut self, frame: impl Into<ServerFrame>) {
        let mut bytes = Vec::new();
        self.encoding.encode(&frame.into(), &mut bytes);
        let message = match self.encoding {
            Encoding::MessagePack => Message::binary(bytes),
            Encoding::Json => Message::text(String::from_utf8(bytes).unwrap()),
        };
        self.stream.send(message).await.unwrap();
    }

    /// The next frame; none when the client has closed, with its code.
    pub(crate) async fn receive(&mut self) -> Result<ClientFrame, Option<u16>> {
        match self.stream.next().await {
            Some(Ok(Message::Binary(bytes))) => Ok(self.encoding.decode_client(&bytes).unwrap()),
            Some(Ok(Message::Text(text))) => {
                Ok(self.encoding.decode_client(text.as_bytes()).unwrap())
            }
            Some(Ok(Message::Close(frame))) => Err(frame.map(|frame| frame.code.into())),
            Some(Ok(other)) => panic!("{other:?}"),
            Some(Err(_)) | None => Err(None),
        }
    }

    pub(crate) async fn close(&mut self, code: u16, reason: &str) {
        self.stream
            .close(Some(CloseFrame {
                code: code.into(),
                reason: reason.into(),
            }))
            .await
            .unwrap();
    }

    pub(crate) async fn hello(&mut self) -> Hello {
        match self.receive().await {
            Ok(ClientFrame::Hello(hello)) => hello,
            other => panic!("a hello was expected, not {other:?}"),
        }
    }

    pub(crate) async fn join(&mut self) -> Join {
        match self.receive().await {
            Ok(ClientFrame::Join(join)) => *join,
            other => panic!("a join was expected, not {other:?}"),
        }
    }

    pub(crate) async fn publish(&mut self) -> Publish {
        match self.receive().await {
            Ok(ClientFrame::Publish(publish)) => publish,
            other => panic!("a publish was expected, not {other:?}"),
        }
    }

    /// Takes `hello` and answers it.
    pub(crate) async fn welcome(&mut self) -> Hello {
        let hello = self.hello().await;
        let limits = Limits {
            message_bytes_max: 65_536,
            payload_bytes_max: 32_768,
            rooms_max: 10,
            requests_max: 64,
        };
        let welcome = Welcome {
            request: hello.request,
            session: SessionId(1),
            resumed: hello.resume.is_some(),
            user: UserId::parse("anon-1").unwrap(),
            resume: "resume-1".to_owned(),
            heartbeat_ms: 20_000,
            time_ms: 0,
            expires_ms: None,
            limits,
        };
        self.send(welcome).await;
        hello
    }

    /// Takes `join` and answers it.
    pub(crate) async fn let_in(&mut self, offset: u64, recovery: Recovery) -> Join {
        let join = self.join().await;
        self.send(joined(join.request, offset, recovery)).await;
        join
    }
}

pub(crate) const fn joined(request: RequestId, offset: u64, recovery: Recovery) -> Joined {
    let position = Position::new(Epoch(1), Offset(offset));
    Joined {
        request,
        room: ALIAS,
        member: MemberId(3),
        position,
        head: position,
        recovery,
        durability: Durability::Memory,
        revision: 1,
        occupancy: 1,
        state: None,
        locks: None,
    }
}

pub(crate) fn event(offset: u64, payload: Payload) -> Event {
    let user = UserId::parse("anon-2").unwrap();
    let entry = Entry {
        offset: Offset(offset),
        time_ms: 0,
        kind: EntryKind::Publish,
        user,
        op: None,
        payload,
    };
    Event { room: ALIAS, entry }
}

pub(crate) const fn published(request: RequestId, offset: u64) -> OkFrame {
    let position = Position::new(Epoch(1), Offset(offset));
    OkFrame {
        request,
        reply: Reply::Published(Published {
            position,
            time_ms: 0,
            duplicate: false,
        }),
    }
}
