//! What the tests of adapters share: one connection, without a socket.

use anyhow::Result;

use super::{Heard, Peer, Seat};

/// A connection to a server that says what it is told.
#[derive(Debug)]
pub(super) struct Conversation<P> {
    peer: P,
    seat: Seat,
    answers: Vec<Vec<u8>>,
}

impl<P: Peer> Conversation<P> {
    pub(super) fn with(peer: P) -> Self {
        Self {
            peer,
            seat: Seat::new(0, "chat:room".to_owned()),
            answers: Vec::new(),
        }
    }

    /// What was heard in a message: payloads as text, and `joined`.
    pub(super) fn read(&mut self, message: &[u8]) -> Result<Vec<String>> {
        let mut heard = Vec::new();
        let mut listener = |what: Heard<'_>| {
            heard.push(match what {
                Heard::Joined { .. } => "joined".to_owned(),
                Heard::Delivery { payload, .. } => String::from_utf8_lossy(payload).into_owned(),
                Heard::Acknowledged { sequence } => format!("acknowledged {sequence}"),
            });
            Ok(())
        };
        let mut answer = |message: &[u8]| self.answers.push(message.to_vec());
        self.peer
            .read(&mut self.seat, message, &mut listener, &mut answer)?;
        Ok(heard)
    }

    #[track_caller]
    pub(super) fn reads(&mut self, message: &[u8], expected: &[&str]) {
        assert_eq!(self.read(message).unwrap(), expected);
    }

    pub(super) fn refuses(&mut self, message: &[u8]) -> bool {
        self.read(message).is_err()
    }

    /// The message of the first publish.
    pub(super) fn publishes(&self, payload: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        self.peer.publish(&self.seat, 1, payload, &mut message);
        message
    }

    /// What has been answered so far.
    pub(super) fn answers(&self) -> &[Vec<u8>] {
        &self.answers
    }
}
