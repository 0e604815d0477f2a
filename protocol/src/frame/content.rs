//! What stands in an entry's payload where the server wrote it: a record, in MessagePack.

use super::{LockChange, StateChanges, TimerChange};
use crate::codec::{self, DecodeError};
use crate::payload::Payload;

macro_rules! content {
    ($($record:ident)*) => {
        $( impl $record {
            /// The record as an entry carries it.
            #[must_use]
            pub fn to_payload(&self) -> Payload {
                codec::write_content(self)
            }

            /// Reads an entry's payload.
            ///
            /// # Errors
            /// It is not this record in MessagePack.
            pub fn from_payload(payload: &Payload) -> Result<Self, DecodeError> {
                codec::read_content(payload)
            }
        } )*
    };
}

content! { StateChanges LockChange TimerChange }
