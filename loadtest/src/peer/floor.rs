//! The floor servers' protocol: the plain server's, with the room in the path of the URL.

/// A floor server; see [`crate::floor_server`].
#[derive(Debug)]
pub(crate) struct Floor {
    /// Whether it sends the frames of a turn together.
    pub(crate) coalesce: bool,
}

impl Floor {
    pub(super) const fn name(&self) -> &'static str {
        if self.coalesce {
            "floor, coalescing"
        } else {
            "floor, one send"
        }
    }
}
