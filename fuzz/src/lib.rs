//! What holds for any bytes that a stranger may send or an operator may write.
//!
//! Each target is a plain function from bytes to nothing that panics where a property does not hold. `cargo xtask fuzz` lets libFuzzer
//! look for such bytes; what it kept is in `corpus/`, which the ordinary tests run through the same functions. A target
//! asserts what its subject promises and not only that it survives.

mod configuration;
mod frames;
mod grammar;
mod handshake;
mod proxy;
mod token;
mod websocket;

/// A property of any bytes.
#[derive(Debug)]
pub struct Target {
    /// Its name, and that of its folder in `corpus/`.
    pub name: &'static str,
    /// Panics where the property does not hold.
    pub check: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "msgpack",
        check: frames::msgpack,
    },
    Target {
        name: "json",
        check: frames::json,
    },
    Target {
        name: "websocket",
        check: websocket::check,
    },
    Target {
        name: "handshake",
        check: handshake::check,
    },
    Target {
        name: "configuration",
        check: configuration::check,
    },
    Target {
        name: "token",
        check: token::check,
    },
    Target {
        name: "grammar",
        check: grammar::check,
    },
    Target {
        name: "proxy",
        check: proxy::check,
    },
];
