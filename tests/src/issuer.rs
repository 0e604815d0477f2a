//! Somebody who publishes keys at an address, well or badly; and, since it counts who comes, a trap.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::tls::Issued;

/// A server on loopback that answers every request alike. Dropping it ends it.
#[derive(Debug)]
pub struct Issuer {
    address: SocketAddr,
    shared: Arc<Shared>,
    _task: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    answer: Mutex<Answer>,
    /// What it shows where it speaks TLS.
    certificate: Mutex<Option<Arc<ServerConfig>>>,
    /// Connections so far; most bring one request.
    connections: Mutex<usize>,
    /// The heads of all requests.
    requests: Mutex<Vec<String>>,
}

/// What an issuer answers.
#[derive(Debug, Clone)]
pub enum Answer {
    /// 200 with this body.
    Keys(String),
    /// The same, after a while.
    Late(Duration, String),
    /// Another status, with a header line or none.
    Status(u16, String),
    /// 200 with this many bytes of blanks, announced in advance.
    Announced(usize),
    /// 200 with blanks for ever, unannounced.
    Endless,
    /// A byte now and then, for ever.
    Trickle,
    /// Nothing.
    Silence,
    /// Half an answer, and then the end.
    Broken,
    /// The end at once.
    Refusal,
}

impl Issuer {
    /// Begins to answer.
    ///
    /// # Panics
    /// There is no port.
    pub async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            answer: Mutex::new(answer),
            certificate: Mutex::new(None),
            connections: Mutex::new(0),
            requests: Mutex::new(Vec::new()),
        });
        let mut task = JoinSet::new();
        task.spawn(serve(listener, Arc::clone(&shared)));
        Self {
            address,
            shared,
            _task: task,
        }
    }

    /// Begins to answer over TLS.
    ///
    /// # Panics
    /// There is no port.
    pub async fn start_secure(answer: Answer, certificate: &Issued) -> Self {
        let issuer = Self::start(answer).await;
        issuer.shows(certificate);
        issuer
    }

    /// Shows another certificate from now on.
    ///
    /// # Panics
    /// Never: nobody panics while holding the lock.
    pub fn shows(&self, certificate: &Issued) {
        *self.shared.certificate.lock().unwrap() = Some(certificate.server());
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of its keys.
    ///
    /// # Panics
    /// Never: nobody panics while holding the lock.
    #[must_use]
    pub fn url(&self) -> String {
        let is_secure = self.shared.certificate.lock().unwrap().is_some();
        let scheme = if is_secure { "https" } else { "http" };
        format!("{scheme}://{}/keys", self.address)
    }

    /// Answers otherwise from now on.
    ///
    /// # Panics
    /// Never: nobody panics while holding the lock.
    pub fn answers(&self, answer: Answer) {
        *self.shared.answer.lock().unwrap() = answer;
    }

    /// How many connections there were.
    ///
    /// # Panics
    /// Never: nobody panics while holding the lock.
    #[must_use]
    pub fn connections(&self) -> usize {
        *self.shared.connections.lock().unwrap()
    }

    /// The heads of the requests so far.
    ///
    /// # Panics
    /// Never: nobody panics while holding the lock.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().unwrap().clone()
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        *shared.connections.lock().unwrap() += 1;
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let certificate = shared.certificate.lock().unwrap().clone();
            match certificate {
                None => answer_one(stream, &shared).await,
                Some(certificate) => {
                    // Whoever doesn't trust it has said so.
                    if let Ok(stream) = TlsAcceptor::from(certificate).accept(stream).await {
                        answer_one(stream, &shared).await;
                    }
                }
            }
        });
    }
}

async fn answer_one(mut stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Shared) {
    if let Some(head) = read_head(&mut stream).await {
        shared.requests.lock().unwrap().push(head);
        let answer = shared.answer.lock().unwrap().clone();
        // The peer may leave at any time; that is its answer.
        drop(write_answer(&mut stream, answer).await);
        // TLS has its own end, and without it nothing counts as whole.
        stream.shutdown().await.ok();
    }
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    String::from_utf8(head).ok()
}

async fn write_answer(
    stream: &mut (impl AsyncWrite + Unpin),
    answer: Answer,
) -> std::io::Result<()> {
    let whole = |body: &str| {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    match answer {
        Answer::Keys(body) => stream.write_all(whole(&body).as_bytes()).await,
        Answer::Late(pause, body) => {
            sleep(pause).await;
            stream.write_all(whole(&body).as_bytes()).await
        }
        Answer::Status(status, line) => {
            let head = format!("HTTP/1.1 {status} Status\r\n{line}\r\ncontent-length: 0\r\n\r\n");
            let head = head.replace("\r\n\r\ncontent", "\r\ncontent");
            stream.write_all(head.as_bytes()).await
        }
        Answer::Announced(bytes) => {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&vec![b' '; bytes]).await
        }
        Answer::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            loop {
                stream.write_all(&[b' '; 16 * 1024]).await?;
            }
        }
        Answer::Trickle => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            loop {
                stream.write_all(b" ").await?;
                sleep(Duration::from_millis(50)).await;
            }
        }
        Answer::Silence => std::future::pending().await,
        Answer::Broken => {
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"keys\":[";
            stream.write_all(head.as_bytes()).await
        }
        Answer::Refusal => Ok(()),
    }
}
