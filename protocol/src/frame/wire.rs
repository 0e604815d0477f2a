//! How fields are read that need a bound which their own type doesn't have.
//!
//! The `frame!` and `record!` macros read a field declared `field: Type as Wire` through one of these and keep the plain
//! type in the frame. Nothing here is written: what this crate's users put into a frame is theirs to bound.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};

use crate::id::integer;
use crate::limits::PAGE_MAX;

/// An integer below 2^53.
pub(crate) struct Integer(u64);

/// An integer below 2^53, or nil.
pub(crate) struct OptionalInteger(Option<u64>);

/// At most `MAX` of something. Room is made as they are read: an announced length costs nothing.
pub(crate) struct List<T, const MAX: usize>(Vec<T>);

/// At most `MAX` of something, or nil.
pub(crate) struct OptionalList<T, const MAX: usize>(Option<Vec<T>>);

/// At least one and at most `MAX` of something.
pub(crate) struct NonEmpty<T, const MAX: usize>(Vec<T>);

/// A page.
pub(crate) type Page<T> = List<T, PAGE_MAX>;

/// As many as fit into the message.
pub(crate) type Many<T> = List<T, { usize::MAX }>;

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        integer(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for OptionalInteger {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let integer = Option::<Integer>::deserialize(deserializer)?;
        Ok(Self(integer.map(u64::from)))
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Bounded<T, MAX> {
            type Value = List<T, MAX>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an array of at most {MAX}")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<List<T, MAX>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    if items.len() == MAX {
                        return Err(de::Error::invalid_length(items.len() + 1, &self));
                    }
                    items.push(item);
                }
                Ok(List(items))
            }
        }
        deserializer.deserialize_any(Bounded(PhantomData))
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for OptionalList<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let list = Option::<List<T, MAX>>::deserialize(deserializer)?;
        Ok(Self(list.map(Vec::from)))
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for NonEmpty<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let List(items) = List::<T, MAX>::deserialize(deserializer)?;
        if items.is_empty() {
            return Err(de::Error::invalid_length(0, &"an array of at least 1"));
        }
        Ok(Self(items))
    }
}

impl From<Integer> for u64 {
    fn from(integer: Integer) -> Self {
        integer.0
    }
}

impl From<OptionalInteger> for Option<u64> {
    fn from(integer: OptionalInteger) -> Self {
        integer.0
    }
}

impl<T, const MAX: usize> From<List<T, MAX>> for Vec<T> {
    fn from(list: List<T, MAX>) -> Self {
        list.0
    }
}

impl<T, const MAX: usize> From<OptionalList<T, MAX>> for Option<Vec<T>> {
    fn from(list: OptionalList<T, MAX>) -> Self {
        list.0
    }
}

impl<T, const MAX: usize> From<NonEmpty<T, MAX>> for Vec<T> {
    fn from(list: NonEmpty<T, MAX>) -> Self {
        list.0
    }
}
