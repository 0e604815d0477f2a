//! RFC 6455 §5 to §8 over a raw socket: what a peer may send is answered, and what it must not send is closed with its code.
//!
//! Most cases are tables, with the section at each: `answers` has what an echo sends back, `violations` what every server refuses.
//! Violations are also tried on the real server, behind a session. Against the echo each case is sent in one piece, in two, and byte
//! by byte.

mod answers;
mod closing;
mod delivery;
mod limits;
mod violations;
