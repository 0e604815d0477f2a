//! `batch`: several frames in one message.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::macros::frame;
use super::{ClientFrame, ServerFrame};
use crate::limits::BATCH_FRAMES_MAX;

frame! {
    /// Frames that are handled one after the other, as if each had come alone. If one of them can't be read, none is handled.
    ClientBatch = 10 "batch" {
        /// At most 256, none of them a batch.
        frames: Frames<ClientFrame>,
    }
}

frame! {
    /// Frames in the order in which they would have come alone.
    ServerBatch = 45 "batch" {
        /// At most 256, none of them a batch.
        frames: Frames<ServerFrame>,
    }
}

/// The frames of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frames<F>(pub Vec<F>);

impl<F: Serialize> Serialize for Frames<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

/// Whether a frame may stand inside a batch.
trait Nested {
    fn is_batch(&self) -> bool;
}

impl Nested for ClientFrame {
    fn is_batch(&self) -> bool {
        matches!(self, Self::ClientBatch(_))
    }
}

impl Nested for ServerFrame {
    fn is_batch(&self) -> bool {
        matches!(self, Self::ServerBatch(_))
    }
}

#[expect(
    private_bounds,
    reason = "the bound is a rule of this file, not something to implement elsewhere"
)]
impl<'de, F: Deserialize<'de> + Nested> Deserialize<'de> for Frames<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded<F>(PhantomData<F>);
        impl<'de, F: Deserialize<'de> + Nested> Visitor<'de> for Bounded<F> {
            type Value = Frames<F>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {BATCH_FRAMES_MAX} frames")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Frames<F>, A::Error> {
                let mut frames = Vec::new();
                while let Some(frame) = seq.next_element::<F>()? {
                    if frame.is_batch() {
                        return Err(de::Error::custom("a batch inside a batch"));
                    }
                    if frames.len() == BATCH_FRAMES_MAX {
                        return Err(de::Error::invalid_length(frames.len() + 1, &self));
                    }
                    frames.push(frame);
                }
                Ok(Frames(frames))
            }
        }
        deserializer.deserialize_seq(Bounded(PhantomData))
    }
}
