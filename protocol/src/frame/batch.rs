//! `batch`: several frames in one message.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::macros::frame;
use super::{ClientFrame, ServerFrame, UNKNOWN_TYPE};
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

/// A frame inside a batch.
trait Nested: Sized {
    /// Whether a type that isn't known here is passed over: a newer server may send such frames, a client never does.
    const SKIPS_UNKNOWN: bool;

    fn is_batch(&self) -> bool;

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error>;
}

impl Nested for ClientFrame {
    const SKIPS_UNKNOWN: bool = false;

    fn is_batch(&self) -> bool {
        matches!(self, Self::ClientBatch(_))
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
        Self::read(deserializer)
    }
}

impl Nested for ServerFrame {
    const SKIPS_UNKNOWN: bool = true;

    fn is_batch(&self) -> bool {
        matches!(self, Self::ServerBatch(_))
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
        Self::read(deserializer)
    }
}

/// One place of a batch: a frame, or one to pass over.
struct Slot<F>(Option<F>);

impl<'de, F: Nested> Deserialize<'de> for Slot<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match F::read(deserializer)? {
            None if !F::SKIPS_UNKNOWN => Err(de::Error::custom(UNKNOWN_TYPE)),
            Some(frame) if frame.is_batch() => Err(de::Error::custom("a batch inside a batch")),
            found => Ok(Self(found)),
        }
    }
}

impl<'de, F: Nested> Deserialize<'de> for Frames<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded<F>(PhantomData<F>);
        impl<'de, F: Nested> Visitor<'de> for Bounded<F> {
            type Value = Frames<F>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {BATCH_FRAMES_MAX} frames")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Frames<F>, A::Error> {
                let mut frames = Vec::new();
                let mut slots = 0;
                while let Some(Slot(frame)) = seq.next_element()? {
                    slots += 1;
                    if slots > BATCH_FRAMES_MAX {
                        return Err(de::Error::invalid_length(slots, &self));
                    }
                    frames.extend(frame);
                }
                Ok(Frames(frames))
            }
        }
        deserializer.deserialize_any(Bounded(PhantomData))
    }
}
