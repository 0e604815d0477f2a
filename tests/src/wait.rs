//! Waiting for something, with a deadline.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// How long a test waits for what should come at once. Long, because a loaded machine is slow; only failures wait it out.
pub const PATIENCE: Duration = Duration::from_secs(20);

const POLL: Duration = Duration::from_millis(10);

/// Asks again and again until the answer is yes.
///
/// # Panics
/// The answer is still no after `deadline`; `what` says of what.
pub async fn until<F: Future<Output = bool>>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> F,
) {
    let end = Instant::now() + deadline;
    while !condition().await {
        assert!(Instant::now() < end, "after {deadline:?} still not: {what}");
        sleep(POLL).await;
    }
}

/// Waits for a future.
///
/// # Panics
/// It takes longer than [`PATIENCE`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let Ok(output) = timeout(PATIENCE, future).await else {
        panic!("nothing within {PATIENCE:?}: {what}")
    };
    output
}
