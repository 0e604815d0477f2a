//! Copies of rooms on disk: what they are, some of them, or all as they are at one moment.
//!
//! The journal shows its rooms as they are when the request comes; a thread of its own reads them and hands them to the answer piece
//! by piece, as the client takes them. No shard and no thread of the journal waits for it, and what waits is a few pieces. Few may
//! be made at a time, and one that nobody takes for long ends. Beyond its first piece an answer can't say any more that something went
//! wrong: it breaks off, and the file has no end.

use std::io::{self, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::{Body as HttpBody, Frame};
use roomful_protocol::error::ErrorCode;
use roomful_protocol::id::RoomId;
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::block_in_place;
use tokio::time::timeout;

use super::failure::Failure;
use super::rooms::room_id;
use super::{Admin, COPIES_MAX, Line, Target};
use crate::archive::listing::{Depth, list, list_findings, list_some};
use crate::archive::{self, Content, Header};
use crate::http::{LongAnswer, PeerContext};
use crate::journal::JournalError;
use crate::journal::local::freezing::{FindError, Frozen};
use crate::session::revocation_file;
use crate::shard::message::Refusal;

/// Which rooms are meant.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    tenant: Option<String>,
    #[serde(default)]
    rooms: Vec<String>,
    /// Whether everything that is stored of them is read; for an inspection alone.
    #[serde(default)]
    verify: bool,
}

impl Which {
    fn ids(&self, target: &mut Target) -> Result<Vec<RoomId>, Failure> {
        let rooms = self.rooms.iter();
        rooms
            .map(|room| room_id(room, self.tenant.as_deref(), target))
            .collect()
    }
}

/// `POST /v1/storage/inspect`: what rooms are, of all where none is named.
pub(super) async fn inspect(
    State(admin): State<Admin>,
    Extension(peer): Extension<Arc<PeerContext>>,
    request: Request,
) -> Response {
    let local = admin.parts().local.clone();
    let work = async |target: &mut Target| {
        let which: Which = admin.body(request).await?;
        let rooms = which.ids(target)?;
        let depth = match which.verify {
            true => Depth::Read,
            false => Depth::Known,
        };
        Ok(move |frozen: &Frozen| -> Result<Work, FindError> {
            let some = frozen.find(&rooms)?;
            Ok(Box::new(move |frozen, out| {
                if !rooms.is_empty() {
                    return list_some(frozen, some, depth, out);
                }
                if let Some(local) = local.filter(|_| depth == Depth::Read) {
                    list_findings(&local, &mut *out)?;
                }
                list(frozen, depth, out)
            }))
        })
    };
    admin.copy("inspect", peer, work).await
}

/// `POST /v1/storage/export`: a file with some rooms.
pub(super) async fn export(
    State(admin): State<Admin>,
    Extension(peer): Extension<Arc<PeerContext>>,
    request: Request,
) -> Response {
    let header = admin.header(Content::Rooms);
    let work = async |target: &mut Target| {
        let which: Which = admin.body(request).await?;
        let rooms = which.ids(target)?;
        if rooms.is_empty() || which.verify {
            let text = "an export names rooms, and nothing else but their tenant";
            return Err(Refusal::new(ErrorCode::BadValue, text).into());
        }
        Ok(move |frozen: &Frozen| -> Result<Work, FindError> {
            let rooms = frozen.find(&rooms)?;
            Ok(Box::new(move |frozen, out| {
                archive::export(frozen, rooms, &header, out).map(drop)
            }))
        })
    };
    admin.copy("export", peer, work).await
}

/// `GET /v1/storage/backup`: a file with everything.
pub(super) async fn backup(
    State(admin): State<Admin>,
    Extension(peer): Extension<Arc<PeerContext>>,
) -> Response {
    let header = admin.header(Content::Backup);
    let revocations = admin.parts().revocations.clone();
    let work = async |_: &mut Target| {
        Ok(move |_: &Frozen| -> Result<Work, FindError> {
            let revocations = revocation_file::Line::all(&revocations);
            Ok(Box::new(move |frozen, out| {
                archive::backup(frozen, revocations, &header, out).map(drop)
            }))
        })
    };
    admin.copy("backup", peer, work).await
}

/// Writes an answer.
type Work = Box<dyn FnOnce(&Frozen, &mut Pieces) -> io::Result<()> + Send>;

impl Admin {
    fn header(&self, content: Content) -> Header {
        let parts = self.parts();
        Header::new(content, parts.clock.unix_ms(), parts.last_epoch)
    }

    /// Begins an answer, and logs how it ends.
    async fn copy<F>(
        &self,
        act: &'static str,
        peer: Arc<PeerContext>,
        read: impl AsyncFnOnce(&mut Target) -> Result<F, Failure>,
    ) -> Response
    where
        F: FnOnce(&Frozen) -> Result<Work, FindError>,
    {
        let mut line = Line::new(act, peer.client);
        match self.begin(&mut line.target, read).await {
            Ok(Begun { frozen, work, copy }) => {
                let (tx, rx) = channel(PIECES_MAX);
                let runtime = Handle::current();
                let started = thread::Builder::new()
                    .name("storage-copy".to_owned())
                    .spawn(move || {
                        let _copy = copy;
                        run(&frozen, work, Pieces::new(tx, runtime), line);
                    });
                match started {
                    Ok(_) => {
                        let long = LongAnswer::begin(peer);
                        let body = Body::new(Stream {
                            rx,
                            has_ended: false,
                            _long: long,
                        });
                        ([(header::CONTENT_TYPE, LINES)], body).into_response()
                    }
                    Err(_) => Failure::no_thread().into_response(),
                }
            }
            Err(failure) => {
                line.failed(failure.name(), failure.text());
                failure.into_response()
            }
        }
    }

    async fn begin<F>(
        &self,
        target: &mut Target,
        read: impl AsyncFnOnce(&mut Target) -> Result<F, Failure>,
    ) -> Result<Begun, Failure>
    where
        F: FnOnce(&Frozen) -> Result<Work, FindError>,
    {
        let prepare = read(target).await?;
        let copies = Arc::clone(&self.inner.copies);
        let copy = copies
            .try_acquire_owned()
            .map_err(|_| Failure::too_many_copies(COPIES_MAX))?;
        let Some(local) = &self.parts().local else {
            let text = "this server has no rooms on disk";
            return Err(Refusal::new(ErrorCode::BadState, text).into());
        };
        let frozen = block_in_place(|| local.freeze()).map_err(|error| {
            let code = match error {
                JournalError::Damaged => ErrorCode::StorageDamaged,
                _ => ErrorCode::StorageFailed,
            };
            Refusal::new(code, error.to_string())
        })?;
        let work = block_in_place(|| prepare(&frozen)).map_err(|error| match error {
            FindError::NoRoom(_) => {
                let refusal = Refusal::new(ErrorCode::BadValue, error.to_string());
                Failure::new(StatusCode::NOT_FOUND, refusal)
            }
            FindError::Io(_) => Refusal::new(ErrorCode::StorageFailed, error.to_string()).into(),
        })?;
        Ok(Begun { frozen, work, copy })
    }
}

struct Begun {
    frozen: Frozen,
    work: Work,
    copy: tokio::sync::OwnedSemaphorePermit,
}

fn run(frozen: &Frozen, work: Work, mut pieces: Pieces, line: Line) {
    let written = work(frozen, &mut pieces).and_then(|()| pieces.end());
    match written {
        Ok(()) => line.done(),
        Err(error) if pieces.is_left => line.failed("caller left", &error.to_string()),
        Err(error) => {
            line.failed("broken off", &error.to_string());
            pieces.break_off(error);
        }
    }
}

/// What is written goes to the answer, a piece at a time, and none at the end.
struct Pieces {
    tx: Sender<io::Result<Option<Bytes>>>,
    runtime: Handle,
    piece: Vec<u8>,
    /// Nobody takes any more of it.
    is_left: bool,
}

impl Pieces {
    fn new(tx: Sender<io::Result<Option<Bytes>>>, runtime: Handle) -> Self {
        Self {
            tx,
            runtime,
            piece: Vec::with_capacity(PIECE_BYTES),
            is_left: false,
        }
    }

    fn send(&mut self, piece: io::Result<Option<Bytes>>) -> io::Result<()> {
        let sent = async { timeout(STALL_MAX, self.tx.send(piece)).await };
        match self.runtime.block_on(sent) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                self.is_left = true;
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
    }

    /// All of it is written.
    fn end(&mut self) -> io::Result<()> {
        self.flush()?;
        self.send(Ok(None))
    }

    /// The answer ends without an end.
    fn break_off(mut self, error: io::Error) {
        // Where nobody takes it, it has broken off already.
        drop(self.send(Err(error)));
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES));
        self.send(Ok(Some(piece.into())))
    }
}

/// The body of an answer.
struct Stream {
    rx: Receiver<io::Result<Option<Bytes>>>,
    has_ended: bool,
    _long: LongAnswer,
}

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let Poll::Ready(piece) = self.rx.poll_recv(context) else {
            return Poll::Pending;
        };
        // Whoever writes may have gone without a word.
        let piece = piece.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()));
        self.has_ended = !matches!(piece, Ok(Some(_)));
        Poll::Ready(piece.transpose().map(|piece| piece.map(Frame::data)))
    }
}

/// One JSON object a line.
const LINES: &str = "application/x-ndjson";

/// A piece is about as long as what a socket takes at once.
const PIECE_BYTES: usize = 64 << 10;

/// Pieces that wait for the socket.
const PIECES_MAX: usize = 4;

/// A client that takes nothing for so long has gone.
const STALL_MAX: Duration = Duration::from_mins(1);
