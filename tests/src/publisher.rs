//! Publishes with op ids, keeps several in flight, and sends again whatever it has no answer to.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{
    ClientFrame, Join, JoinProducer, OpId, Publish, Published, Reply, ServerFrame,
};
use roomful_protocol::id::{ProducerId, RequestId, RoomAlias, Sequence};
use roomful_protocol::payload::Payload;
use tokio::sync::watch;

use crate::link::enter;
use crate::raw::{Connect, Incoming, RawClient, join};

/// What everybody does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Publishers publish.
    Publish,
    /// They wait for the answers to what they have published.
    Finish,
    /// Watchers read what they lack, and stop.
    Read,
}

/// A publisher in one room.
#[derive(Debug)]
pub struct Publisher {
    connect: Connect,
    room: String,
    producer: ProducerId,
    next: u64,
    /// What has no answer yet, in order.
    open: VecDeque<(Sequence, Option<RequestId>)>,
    record: Record,
    acks: Arc<AtomicU64>,
}

/// What a publisher was told.
#[derive(Debug)]
pub struct Record {
    /// Where it has published.
    pub room: String,
    /// As whom.
    pub producer: ProducerId,
    /// Each operation with its first answer, in the order of their coming.
    pub acked: Vec<Ack>,
    /// How many of them were answers to an attempt that was not the first to take effect.
    pub again: u64,
}

/// An answer.
#[derive(Debug, Clone, Copy)]
pub struct Ack {
    /// To which operation.
    pub sequence: Sequence,
    /// What it says.
    pub published: Published,
    /// When it came.
    pub at: SystemTime,
}

impl Publisher {
    /// One that counts its answers.
    #[must_use]
    pub fn new(connect: Connect, room: String, number: usize, acks: Arc<AtomicU64>) -> Self {
        let producer = ProducerId(1 + number as u64);
        let record = Record {
            room: room.clone(),
            producer,
            acked: Vec::new(),
            again: 0,
        };
        Self {
            connect,
            room,
            producer,
            next: 1,
            open: VecDeque::new(),
            record,
            acks,
        }
    }

    /// Publishes until it is told to finish, and then until everything is answered.
    pub async fn run(mut self, phase: watch::Receiver<Phase>) -> Record {
        loop {
            let (producer, next) = (self.producer, Sequence(self.next));
            let (mut client, joined) = enter(&self.connect, || Join {
                producer: Some(JoinProducer { producer, next }),
                echo: false,
                ..join(&self.room)
            })
            .await;
            for (_, request) in &mut self.open {
                *request = None;
            }
            if self.work(&mut client, joined.room, &phase).await.is_some() {
                return self.record;
            }
        }
    }

    /// Works on one connection; none where it ends before the work does.
    async fn work(
        &mut self,
        client: &mut RawClient,
        room: RoomAlias,
        phase: &watch::Receiver<Phase>,
    ) -> Option<()> {
        loop {
            let publishes = *phase.borrow() == Phase::Publish;
            while publishes && self.open.len() < IN_FLIGHT {
                self.open.push_back((Sequence(self.next), None));
                self.next += 1;
            }
            if self.open.is_empty() {
                return Some(());
            }
            self.send(client, room).await?;
            match client.incoming().await {
                Incoming::Frame(ServerFrame::Ok(ok)) => {
                    let Reply::Published(published) = ok.reply else {
                        panic!("no answer to a publish: {:?}", ok.reply)
                    };
                    self.answered(ok.request, published);
                }
                Incoming::Frame(ServerFrame::Error(error)) => {
                    // The storage says that it can't tell, or the room is being opened again: come back and ask.
                    let code = error.code.known();
                    let is_passing = matches!(
                        code,
                        Some(
                            ErrorCode::OutcomeUnknown
                                | ErrorCode::NotJoined
                                | ErrorCode::Overloaded
                        )
                    );
                    assert!(is_passing, "{error:?}");
                    return None;
                }
                Incoming::Frame(ServerFrame::Left(_)) | Incoming::Closed(_) => return None,
                Incoming::Frame(_) => {}
            }
        }
    }

    /// Sends what was not sent on this connection.
    async fn send(&mut self, client: &mut RawClient, room: RoomAlias) -> Option<()> {
        for (sequence, request) in self
            .open
            .iter_mut()
            .filter(|(_, request)| request.is_none())
        {
            let number = client.new_request();
            let publish = Publish {
                request: number,
                room,
                op: Some(OpId {
                    producer: self.producer,
                    sequence: *sequence,
                }),
                payload: payload(self.producer, *sequence),
            };
            *request = Some(number);
            client.try_frame(&ClientFrame::from(publish)).await.ok()?;
        }
        Some(())
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a recorder's lines have times of the system"
    )]
    fn answered(&mut self, request: RequestId, published: Published) {
        let is_this = |(_, open): &(Sequence, Option<RequestId>)| *open == Some(request);
        let place = self.open.iter().position(is_this);
        let Some((sequence, _)) = place.and_then(|place| self.open.remove(place)) else {
            panic!("an answer to nothing: {request:?}")
        };
        self.record.again += u64::from(published.duplicate);
        self.record.acked.push(Ack {
            sequence,
            published,
            at: SystemTime::now(),
        });
        self.acks.fetch_add(1, Ordering::Relaxed);
    }
}

/// What an operation publishes: the same whenever it is sent, and sometimes long.
#[must_use]
pub fn payload(producer: ProducerId, sequence: Sequence) -> Payload {
    let filler = "x".repeat(((sequence.0 * 37) % 1_500) as usize);
    Payload::text(format!("{} {} {filler}", producer.0, sequence.0))
}

const IN_FLIGHT: usize = 8;
