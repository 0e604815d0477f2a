//! How the bytes of a case reach the server.

use roomful_tests::Peer;

/// In which pieces bytes are sent.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Delivery {
    Whole,
    Halves,
    Bytes,
}

impl Delivery {
    pub(crate) const ALL: [Self; 3] = [Self::Whole, Self::Halves, Self::Bytes];

    /// Sends the bytes. The server may close before it has seen all of them.
    pub(crate) async fn send(self, peer: &mut Peer, bytes: &[u8]) {
        let size = match self {
            Self::Whole => bytes.len(),
            Self::Halves => bytes.len().div_ceil(2),
            Self::Bytes if bytes.len() > SINGLE_BYTES_MAX => 1_000,
            Self::Bytes => 1,
        };
        for piece in bytes.chunks(size.max(1)) {
            if peer.try_send(piece).await.is_err() {
                return;
            }
            // So that the server sees the pieces one by one, most of the time.
            tokio::task::yield_now().await;
        }
    }
}

/// What is longer arrives in larger pieces, or the test takes all day.
const SINGLE_BYTES_MAX: usize = 1_000;
