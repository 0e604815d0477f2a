//! Calls of the control side: what the back end asks of shards, and the way back for what they answer.
//!
//! A call is a message like that of any shard; its answers are addressed to [`ShardId::CONTROL`] and come here
//! on the thread of the shard that gives them, which never waits: a call that nobody waits for any more is not
//! found, and one that is has room for as many answers as it was told. How long somebody waits is left to
//! them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use roomful_protocol::id::RequestId;
use tokio::sync::mpsc;

use crate::shard::message::{Answer, Message, Origin, Refusal};

/// The calls that wait for answers; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Calls {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next: AtomicU64,
    /// Held for one look-up.
    waiting: Mutex<HashMap<RequestId, mpsc::Sender<Answered>>>,
}

/// How a shard has answered a call.
pub type Answered = Result<Answer, Refusal>;

/// A call that waits for its answers. Dropping it gives them up.
#[derive(Debug)]
pub struct PendingCall {
    id: RequestId,
    answers: mpsc::Receiver<Answered>,
    calls: Calls,
}

impl Calls {
    /// Begins a call that gets at most so many answers.
    pub(super) fn begin(&self, answers_max: usize) -> PendingCall {
        let id = RequestId(self.inner.next.fetch_add(1, Ordering::Relaxed));
        let (tx, answers) = mpsc::channel(answers_max.max(1));
        self.waiting().insert(id, tx);
        PendingCall {
            id,
            answers,
            calls: self.clone(),
        }
    }

    /// Takes what a shard has sent to the control side.
    pub(super) fn answer(&self, message: Message) {
        let (to, answered) = match message {
            Message::Reply { to, outcome } => (to, outcome.map(Answer::Reply)),
            Message::Answer { to, answer } => (to, Ok(answer)),
            _ => return,
        };
        let Some(id) = to.request else { return };
        if let Some(tx) = self.waiting().get(&id)
            && tx.try_send(answered).is_err()
        {
            tracing::warn!("a shard has answered a call more often than it was asked");
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<RequestId, mpsc::Sender<Answered>>> {
        // An insert or a removal leaves the map whole even where a thread ends in the middle of it.
        self.inner
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl PendingCall {
    /// Where its answers have to go.
    pub(super) fn origin(&self) -> Origin {
        Origin::control(self.id)
    }

    /// The next answer. Cancel-safe.
    pub async fn answer(&mut self) -> Option<Answered> {
        self.answers.recv().await
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        self.calls.waiting().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use roomful_protocol::error::ErrorCode;
    use roomful_protocol::frame::Reply;

    use super::*;

    /// Answers find their call, also a refusal; one whose call is over is dropped, and nothing is left behind.
    #[tokio::test]
    async fn answers_find_their_call() {
        let calls = Calls::default();
        let (mut first, mut second) = (calls.begin(1), calls.begin(1));
        let reply = |call: &PendingCall, outcome| Message::Reply {
            to: call.origin(),
            outcome,
        };
        let refusal = Refusal::new(ErrorCode::Overloaded, "full");
        calls.answer(reply(&second, Err(refusal.clone())));
        calls.answer(reply(&first, Ok(Reply::Done)));
        assert!(matches!(
            first.answer().await,
            Some(Ok(Answer::Reply(Reply::Done)))
        ));
        assert_eq!(second.answer().await.unwrap().unwrap_err(), refusal);
        let late = reply(&first, Ok(Reply::Done));
        drop((first, second));
        calls.answer(late);
        assert!(calls.waiting().is_empty());
    }
}
