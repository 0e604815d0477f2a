//! What an HTTP connection is spoken over: a socket, or TLS over one.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::rewound::Rewound;

/// A connection's bytes, without TLS where there is any.
#[derive(Debug)]
pub(super) enum Link {
    Plain(Rewound),
    Tls(Box<TlsStream<Rewound>>),
}

impl Link {
    /// The socket, and the state of TLS over it. By then whatever was read before the socket entered the runtime has been
    /// used up: a request was read out of it, and before that the end of a TLS handshake.
    pub(super) fn into_parts(self) -> (TcpStream, Option<ServerConnection>) {
        match self {
            Self::Plain(rewound) => (rewound.stream, None),
            Self::Tls(stream) => {
                let (rewound, connection) = stream.into_inner();
                (rewound.stream, Some(connection))
            }
        }
    }

    fn reader(self: Pin<&mut Self>) -> Pin<&mut (dyn AsyncRead + Unpin)> {
        match self.get_mut() {
            Self::Plain(rewound) => Pin::new(rewound),
            Self::Tls(stream) => Pin::new(stream),
        }
    }

    fn writer(self: Pin<&mut Self>) -> Pin<&mut (dyn AsyncWrite + Unpin)> {
        match self.get_mut() {
            Self::Plain(rewound) => Pin::new(rewound),
            Self::Tls(stream) => Pin::new(stream),
        }
    }
}

impl AsyncRead for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.reader().poll_read(context, target)
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writer().poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer().poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writer().poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
