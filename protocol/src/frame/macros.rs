//! How a frame is declared: its number, its name and its fields in wire order; reading and writing follow from that.
//!
//! A field with `= default` may be left out by the sender, together with everything after it. A field `as` a type of
//! [`super::wire`] is read through that.

/// Declares a frame: a struct, and its place on the wire as `[type, field, …]`.
macro_rules! frame {
    (
        $(#[$meta:meta])*
        $name:ident = $code:literal $text:literal
        { $( $(#[$fmeta:meta])* $field:ident : $ty:ty $(as $wire:ty)? $(= $default:expr)?, )* }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $( $(#[$fmeta])* pub $field: $ty, )* }

        impl $crate::frame::Fields for $name {
            const CODE: u8 = $code;
            const NAME: &'static str = $text;
            const FIELDS: &'static [(&'static str, &'static str)] =
                &[$( (stringify!($field), concat!($( stringify!($default) )?)) ),*];

            fn write<S: serde::ser::SerializeTuple>(&self, tuple: &mut S) -> Result<(), S::Error> {
                $( tuple.serialize_element(&self.$field)?; )*
                Ok(())
            }

            fn read<'de, A: serde::de::SeqAccess<'de>>(seq: &mut A) -> Result<Self, A::Error> {
                $( let $field: $ty = $crate::frame::macros::field!(seq, $field: $ty $(as $wire)? $(= $default)?); )*
                Ok(Self { $( $field, )* })
            }
        }
    };
}

/// Declares a part of a frame: a struct written as `[field, …]`.
macro_rules! record {
    (
        $(#[$meta:meta])*
        $name:ident { $( $(#[$fmeta:meta])* $field:ident : $ty:ty $(as $wire:ty)? $(= $default:expr)?, )* }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $( $(#[$fmeta])* pub $field: $ty, )* }

        #[cfg(test)]
        impl $name {
            /// As [`crate::frame::Fields::FIELDS`].
            pub(crate) const FIELDS: &[(&str, &str)] =
                &[$( (stringify!($field), concat!($( stringify!($default) )?)) ),*];
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeTuple as _;
                let mut tuple = serializer.serialize_tuple([$( stringify!($field) ),*].len())?;
                $( tuple.serialize_element(&self.$field)?; )*
                tuple.end()
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Fields;
                impl<'de> serde::de::Visitor<'de> for Fields {
                    type Value = $name;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str(concat!("an array: ", stringify!($name)))
                    }
                    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<$name, A::Error> {
                        $( let $field: $ty = $crate::frame::macros::field!(&mut seq, $field: $ty $(as $wire)? $(= $default)?); )*
                        $crate::frame::skip_rest(&mut seq)?;
                        Ok($name { $( $field, )* })
                    }
                }
                // Not `deserialize_seq`: that takes a MessagePack `bin` for an array of its bytes.
                deserializer.deserialize_any(Fields)
            }
        }
    };
}

/// Declares what is one of several things: an enum written as `[kind, field, …]`. The kinds get an enum of their own.
macro_rules! variants {
    (
        $(#[$meta:meta])*
        $name:ident by $kind:ident {
            $( $(#[$vmeta:meta])* $variant:ident = $code:literal $text:literal
            $({ $( $(#[$fmeta:meta])* $field:ident : $ty:ty $(as $wire:ty)? $(= $default:expr)?, )* })?, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name { $( $(#[$vmeta])* $variant $({ $( $(#[$fmeta])* $field: $ty, )* })?, )* }

        $crate::frame::wire_enum! {
            #[doc = concat!("The first element of [`", stringify!($name), "`].")]
            $kind { $( $(#[$vmeta])* $variant = $code $text, )* }
        }

        #[cfg(test)]
        impl $name {
            /// Numbers and names, as the specification lists them.
            pub(crate) const LIST: &str = $kind::LIST;

            /// How each is written, as the specification shows it, and its number.
            pub(crate) const FORMS: &[(&str, u8)] =
                &[$( (concat!("[", $text, $($( ", ", stringify!($field), )*)? "]"), $code) ),*];
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeTuple as _;
                match self {
                    $( Self::$variant $({ $( $field, )* })? => {
                        let fields: &[&str] = &[$($( stringify!($field) ),*)?];
                        let mut tuple = serializer.serialize_tuple(fields.len() + 1)?;
                        tuple.serialize_element(&$kind::$variant)?;
                        $($( tuple.serialize_element($field)?; )*)?
                        tuple.end()
                    } )*
                }
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Parts;
                impl<'de> serde::de::Visitor<'de> for Parts {
                    type Value = $name;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("an array: [kind, field, …]")
                    }
                    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<$name, A::Error> {
                        let kind: $kind = $crate::frame::macros::field!(&mut seq, kind: $kind);
                        let found = match kind {
                            $( $kind::$variant => {
                                $($( let $field: $ty = $crate::frame::macros::field!(&mut seq, $field: $ty $(as $wire)? $(= $default)?); )*)?
                                $name::$variant $({ $( $field, )* })?
                            } )*
                        };
                        $crate::frame::skip_rest(&mut seq)?;
                        Ok(found)
                    }
                }
                deserializer.deserialize_any(Parts)
            }
        }
    };
}

/// Reads one field; evaluates to its value.
macro_rules! field {
    ($seq:expr, $field:ident : $ty:ty) => {
        $crate::frame::macros::field!($seq, $field: $ty as $ty)
    };
    ($seq:expr, $field:ident : $ty:ty = $default:expr) => {
        $crate::frame::macros::field!($seq, $field: $ty as $ty = $default)
    };
    ($seq:expr, $field:ident : $ty:ty as $wire:ty) => {
        match $crate::frame::next::<_, $wire>($seq, stringify!($field))? {
            Some(found) => <$ty>::from(found),
            None => return Err(serde::de::Error::custom(concat!("missing field ", stringify!($field)))),
        }
    };
    ($seq:expr, $field:ident : $ty:ty as $wire:ty = $default:expr) => {
        match $crate::frame::next::<_, $wire>($seq, stringify!($field))? {
            Some(found) => <$ty>::from(found),
            None => $default,
        }
    };
}

/// Declares the closed list of a direction's frames. One that is large and rare stands `in Box`, so that the others are moved in few
/// bytes.
macro_rules! frames {
    ($(#[$meta:meta])* $name:ident { $( $(#[$vmeta:meta])* $variant:ident $(in $place:ident)?, )* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name { $( $(#[$vmeta])* $variant($crate::frame::macros::placed!($variant $(in $place)?)), )* }

        impl $name {
            /// Number and name of every frame of this direction.
            pub const TYPES: &[(u8, &str)] =
                &[$( (<$variant as $crate::frame::Fields>::CODE, <$variant as $crate::frame::Fields>::NAME), )*];

            /// The fields of every frame of this direction, in the order of `TYPES`.
            #[cfg(test)]
            pub(crate) const FIELDS: &[&[(&str, &str)]] = &[$( <$variant as $crate::frame::Fields>::FIELDS, )*];

            /// The frame's name.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                match self { $( Self::$variant(_) => <$variant as $crate::frame::Fields>::NAME, )* }
            }
        }

        $( impl From<$variant> for $name {
            fn from(frame: $variant) -> Self {
                Self::$variant(frame.into())
            }
        } )*

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self { $( Self::$variant(frame) => $crate::frame::write_frame::<$variant, _>(frame, serializer), )* }
            }
        }

        impl $name {
            /// Reads a frame; none where its type is not known here.
            pub(crate) fn read<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
                struct Frames { human: bool }
                impl<'de> serde::de::Visitor<'de> for Frames {
                    type Value = Option<$name>;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("a frame: [type, field, …]")
                    }
                    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Option<$name>, A::Error> {
                        let code = $crate::frame::read_type(&mut seq, self.human, $name::TYPES)?;
                        let frame = match code {
                            $( Some(<$variant as $crate::frame::Fields>::CODE) => {
                                Some(<$variant as $crate::frame::Fields>::read(&mut seq)?.into())
                            } )*
                            _ => None,
                        };
                        $crate::frame::skip_rest(&mut seq)?;
                        Ok(frame)
                    }
                }
                let human = deserializer.is_human_readable();
                deserializer.deserialize_any(Frames { human })
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let unknown = || serde::de::Error::custom($crate::frame::UNKNOWN_TYPE);
                Self::read(deserializer)?.ok_or_else(unknown)
            }
        }
    };
}

/// The type of a frame where it stands in the list.
macro_rules! placed {
    ($variant:ident) => { $variant };
    ($variant:ident in $place:ident) => { $place<$variant> };
}

pub(crate) use {field, frame, frames, placed, record, variants};
