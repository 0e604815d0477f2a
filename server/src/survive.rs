//! Going on after a panic.
//!
//! What a panic may have left half-changed is the caller's to give up; whoever calls this counts the panic and says what it
//! has ended.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs something that may panic; none if it did.
pub(crate) fn survive<T>(act: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(act)).ok()
}
