//! The WebSocket of a client: opening it, and moving messages without ever blocking the driver.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::{Sink, Stream};
use roomful_protocol::codec::Encoding;
use roomful_protocol::frame::{ClientFrame, ServerFrame};
use tokio_tungstenite::tungstenite::http::Uri;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, ClientRequestBuilder, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::error::Error;
use crate::options::{BoxedSocket, Connector, Options};

/// Where a client connects to.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    uri: Uri,
    host: String,
    port: u16,
}

impl Address {
    /// Reads an address; an empty path becomes the default one, and the placement key joins the query.
    pub(crate) fn parse(url: &str, options: &Options) -> Result<Self, Error> {
        let bad = |why: &dyn fmt::Display| Error::Address(format!("{url}: {why}"));
        let uri: Uri = url.parse().map_err(|error| bad(&error))?;
        let port = match uri.scheme_str() {
            Some("ws" | "http") => 80,
            Some("wss" | "https") if options.connector.is_some() => 443,
            Some("wss" | "https") => return Err(bad(&"TLS needs a connector in the options")),
            _ => return Err(bad(&"the scheme is missing or unknown")),
        };
        let authority = uri.authority().ok_or_else(|| bad(&"the host is missing"))?;
        let path = if uri.path() == "/" {
            DEFAULT_PATH
        } else {
            uri.path()
        };
        let key = options
            .placement
            .as_ref()
            .map(|room| format!("k={}", room.placement_key()));
        let query: Vec<&str> = uri.query().into_iter().chain(key.as_deref()).collect();
        let query = if query.is_empty() {
            String::new()
        } else {
            format!("?{}", query.join("&"))
        };
        let scheme = if port == 80 { "ws" } else { "wss" };
        Ok(Self {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(port),
            uri: format!("{scheme}://{authority}{path}{query}")
                .parse()
                .map_err(|error| bad(&error))?,
        })
    }
}

/// An open WebSocket, and what is to be written to it.
pub(crate) struct Socket {
    stream: WebSocketStream<BoxedSocket>,
    encoding: Encoding,
    /// Not yet taken by the stream.
    outgoing: VecDeque<Message>,
    /// Whether the stream holds bytes that the network doesn't have.
    dirty: bool,
}

/// Why a socket could not be opened.
#[derive(Debug)]
pub(crate) struct NotOpened {
    pub(crate) text: String,
    /// The server's `Retry-After`, which comes with status 503.
    pub(crate) after: Option<Duration>,
}

impl From<io::Error> for NotOpened {
    fn from(error: io::Error) -> Self {
        Self {
            text: error.to_string(),
            after: None,
        }
    }
}

impl From<tungstenite::Error> for NotOpened {
    fn from(error: tungstenite::Error) -> Self {
        let after = match &error {
            tungstenite::Error::Http(response) => response.headers().get("retry-after"),
            _ => None,
        };
        let seconds = after.and_then(|value| value.to_str().ok()?.trim().parse::<u32>().ok());
        Self {
            text: error.to_string(),
            after: seconds.map(|seconds| Duration::from_secs(seconds.into())),
        }
    }
}

/// What comes out of a socket.
#[derive(Debug)]
pub(crate) enum Arrival {
    Frame(ServerFrame),
    /// A message that is no frame.
    Unreadable(String),
    /// A ping or pong.
    SignOfLife,
    /// The end, with code and reason if there was a close frame.
    Ended(Option<(u16, String)>),
}

impl Socket {
    /// Opens the socket and does the handshake.
    pub(crate) async fn open(address: Address, options: Options) -> Result<Self, NotOpened> {
        let connector = options.connector.unwrap_or_else(Connector::tcp);
        let stream = connector.open(&address.host, address.port).await?;
        let request = ClientRequestBuilder::new(address.uri)
            .with_sub_protocol(options.encoding.subprotocol());
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(BUFFER_BYTES)
            .max_message_size(Some(options.message_bytes_max))
            .max_frame_size(Some(options.message_bytes_max));
        let handshake = client_async_with_config(request, stream, Some(config));
        let (stream, _) = handshake.await?;
        Ok(Self {
            stream,
            encoding: options.encoding,
            outgoing: VecDeque::new(),
            dirty: false,
        })
    }

    pub(crate) fn push(&mut self, frame: &ClientFrame) {
        let mut bytes = Vec::new();
        self.encoding.encode(frame, &mut bytes);
        let message = match self.encoding {
            Encoding::MessagePack => Message::binary(bytes),
            Encoding::Json => Message::text(String::from_utf8(bytes).expect("JSON is UTF-8")),
        };
        self.outgoing.push_back(message);
    }

    /// Queues the goodbye.
    pub(crate) fn push_close(&mut self) {
        self.outgoing.push_back(Message::Close(Some(CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        })));
    }

    /// Messages that the stream hasn't taken.
    pub(crate) fn backlog(&self) -> usize {
        self.outgoing.len()
    }

    /// Writes what it can; reads one message if `reading`.
    pub(crate) fn poll(&mut self, reading: bool, cx: &mut Context<'_>) -> Poll<Arrival> {
        if let Poll::Ready(Err(())) = self.poll_write(cx) {
            return Poll::Ready(Arrival::Ended(None));
        }
        if !reading {
            return Poll::Pending;
        }
        let message = ready!(Pin::new(&mut self.stream).poll_next(cx));
        Poll::Ready(match message {
            Some(Ok(Message::Binary(bytes))) => self.decode(Encoding::MessagePack, &bytes),
            Some(Ok(Message::Text(text))) => self.decode(Encoding::Json, text.as_bytes()),
            Some(Ok(Message::Close(frame))) => {
                self.dirty = true;
                #[expect(
                    clippy::let_underscore_must_use,
                    reason = "the echo is a courtesy; writing it or not changes nothing"
                )]
                let _ = self.poll_write(cx);
                Arrival::Ended(frame.map(|frame| (frame.code.into(), frame.reason.to_string())))
            }
            Some(Ok(_)) => {
                self.dirty = true;
                Arrival::SignOfLife
            }
            Some(Err(_)) | None => Arrival::Ended(None),
        })
    }

    /// Writes everything; `Ready` when the network has it all.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        while !self.outgoing.is_empty() {
            ready!(Pin::new(&mut self.stream).poll_ready(cx)).map_err(drop)?;
            if let Some(message) = self.outgoing.pop_front() {
                self.dirty = true;
                Pin::new(&mut self.stream)
                    .start_send(message)
                    .map_err(drop)?;
            }
        }
        if self.dirty {
            ready!(Pin::new(&mut self.stream).poll_flush(cx)).map_err(drop)?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    fn decode(&self, encoding: Encoding, message: &[u8]) -> Arrival {
        if encoding != self.encoding {
            return Arrival::Unreadable("the server mixes text and binary messages".to_owned());
        }
        match self.encoding.decode_server(message) {
            Ok(frame) => Arrival::Frame(frame),
            // A newer server may say more than this client understands.
            Err(error) if error.kind == roomful_protocol::codec::DecodeErrorKind::UnknownType => {
                Arrival::SignOfLife
            }
            Err(error) => Arrival::Unreadable(format!("the server sent no frame: {error}")),
        }
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("encoding", &self.encoding)
            .field("backlog", &self.backlog())
            .finish()
    }
}

/// What the server serves the protocol under.
const DEFAULT_PATH: &str = "/v1/ws";

/// The engine allocates this much for reading at once and clears it before each read, so small is cheap in both memory and time.
const BUFFER_BYTES: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use roomful_protocol::id::RoomName;

    #[test]
    fn an_address_gets_the_default_path_and_the_placement_key() {
        let placement = RoomName::parse(b"chat:lobby").unwrap();
        let key = placement.placement_key();
        let near = Options {
            placement: Some(placement),
            ..Options::default()
        };
        let uri =
            |url: &str, options: &Options| Address::parse(url, options).unwrap().uri.to_string();
        let plain = Options::default();
        assert_eq!(
            uri("ws://127.0.0.1:7400", &plain),
            "ws://127.0.0.1:7400/v1/ws"
        );
        assert_eq!(
            uri("http://localhost/other?x=1", &plain),
            "ws://localhost/other?x=1"
        );
        assert_eq!(
            uri("ws://localhost", &near),
            format!("ws://localhost/v1/ws?k={key}")
        );
        assert_eq!(
            uri("ws://localhost/?x=1", &near),
            format!("ws://localhost/v1/ws?x=1&k={key}")
        );
        let address = Address::parse("ws://[::1]:7400", &plain).unwrap();
        assert_eq!((address.host.as_str(), address.port), ("::1", 7400));
    }

    #[test]
    fn an_address_without_a_scheme_or_with_tls_and_no_connector_is_refused() {
        for bad in [
            "",
            "localhost",
            "ftp://localhost",
            "wss://localhost",
            "ws://",
        ] {
            assert!(
                matches!(
                    Address::parse(bad, &Options::default()),
                    Err(Error::Address(_))
                ),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_full_servers_retry_after_is_read() {
        let refused = |header: Option<&str>| {
            let mut response = tungstenite::http::Response::builder().status(503);
            if let Some(seconds) = header {
                response = response.header("retry-after", seconds);
            }
            NotOpened::from(tungstenite::Error::Http(Box::new(
                response.body(None).unwrap(),
            )))
            .after
        };
        assert_eq!(refused(Some("7")), Some(Duration::from_secs(7)));
        assert_eq!(refused(Some("soon")), None);
        assert_eq!(refused(Some("18446744073709551615")), None);
        assert_eq!(refused(None), None);
    }
}
