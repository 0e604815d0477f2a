//! WebSocket framing (RFC 6455 §5): headers, and a reader that parses in place.
//!
//! The server, the load generator and the simulation share it; the handshake is HTTP and not here. Nothing here owns a
//! socket. The reader holds bytes only while a message is incomplete, and never more than its limit. What an event means
//! for a connection (answering a ping, echoing a close) is left to its user.

mod header;
mod mask;
mod reader;

pub use header::{OpCode, close_payload, frame_into, masked_frame_into};
pub use reader::{ReadLimits, Reader, Role, Violation, WebSocketEvent};
