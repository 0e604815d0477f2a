//! HTTP/1.1 by hand: requests exactly as a test writes them.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::wait::within;

/// A response.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header names in lower case, with their values, in order.
    pub headers: Vec<(String, String)>,
    /// The body; what it is after the transfer coding is removed.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of a name (in lower case).
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// `GET path` with the right `Host`, and more header lines.
pub async fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Response {
    let mut request = format!("GET {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("host"))
    {
        request += &format!("host: {address}\r\n");
    }
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    raw(address, &(request + "\r\n")).await
}

/// A request with a body: method and target, as in `POST /v1/disconnect`, and headers beside the right `Host` and length.
pub async fn send(
    address: SocketAddr,
    line: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Response {
    let length = body.len();
    let mut request = format!("{line} HTTP/1.1\r\nconnection: close\r\nhost: {address}\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += &format!("content-length: {length}\r\n\r\n{body}");
    raw(address, &request).await
}

/// The headers of a WebSocket upgrade, with a subprotocol.
#[must_use]
pub fn upgrade_headers(subprotocol: &str) -> Vec<(&str, &str)> {
    vec![
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", subprotocol),
    ]
}

/// Sends a request as written and reads one response.
pub async fn raw(address: SocketAddr, request: &str) -> Response {
    within(&format!("response to {request:?}"), async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        read_response(&mut stream).await
    })
    .await
}

/// Connects from another address of this machine.
///
/// # Panics
/// It can't.
pub async fn connect_from(source: Ipv4Addr, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    within("a connection", socket.connect(address))
        .await
        .unwrap()
}

/// Sends bytes as they are and reads one response.
///
/// # Panics
/// None comes.
pub async fn exchange(stream: &mut TcpStream, bytes: &[u8]) -> Response {
    stream.write_all(bytes).await.unwrap();
    within("a response", read_response(stream)).await
}

/// The request of a good handshake, for whatever is to be put before, behind or in place of a part of it.
#[must_use]
pub fn handshake(address: SocketAddr) -> String {
    format!(
        "GET /v1/ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: roomful.v1.json\r\n\r\n"
    )
}

async fn read_response(stream: &mut TcpStream) -> Response {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(index) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break index;
        }
        let read = stream.read_buf(&mut bytes).await.unwrap();
        assert!(
            read > 0,
            "the connection ended inside the head: {:?}",
            String::from_utf8_lossy(&bytes)
        );
    };
    let body = bytes.split_off(head_end + 4);
    let head = String::from_utf8(bytes).unwrap();
    let mut lines = head.trim_end().lines();
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|code| code.parse().ok())
        .unwrap();
    let headers = lines.map(|line| line.split_once(':').unwrap());
    let headers = headers
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut response = Response {
        status,
        headers,
        body,
    };
    read_body(stream, &mut response).await;
    response
}

/// The rest of the body: by its length, by chunks, or up to the end. An upgrade has none.
async fn read_body(stream: &mut TcpStream, response: &mut Response) {
    if response.status == 101 {
        return;
    }
    let length = response
        .header("content-length")
        .map(|length| length.parse::<usize>().unwrap());
    let length = length.unwrap_or(usize::MAX);
    while response.body.len() < length && stream.read_buf(&mut response.body).await.unwrap() > 0 {}
    if response.header("transfer-encoding") == Some("chunked") {
        response.body = unchunk(&response.body);
    }
}

fn unchunk(mut coded: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = coded
            .windows(2)
            .position(|window| window == b"\r\n")
            .unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&coded[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&coded[end + 2..end + 2 + size]);
        coded = &coded[end + 2 + size + 2..];
    }
}
