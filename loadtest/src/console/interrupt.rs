//! Ctrl-C: the run ends at its next look at the deadline, so that servers are stopped and their files removed on the way out.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Set by the first signal. Shared, since the handler holds it too.
static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// What a shell expects of a program that SIGINT ended.
const EXIT_CODE: i32 = 130;

/// From now on the first signal is noted, and a second one ends the process at once.
///
/// # Errors
/// The kernel takes no handler.
pub(crate) fn catch_interrupts() -> io::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        // In this order: the handler that ends the process must not see the flag of its own signal.
        flag::register_conditional_shutdown(signal, EXIT_CODE, Arc::clone(&INTERRUPTED))?;
        flag::register(signal, Arc::clone(&INTERRUPTED))?;
    }
    Ok(())
}

/// Whether somebody wants the run to end.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
