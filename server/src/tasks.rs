//! Every task of the process starts here.
//!
//! Any thread may start tasks, in the runtime that it has entered. The tracker counts the live ones by name,
//! counts those that panicked, and lets shutdown wait until none is left. It ends no task by itself: tasks listen to [`crate::shutdown::Shutdown`].

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tracing::{Instrument, Span};

/// The task tracker; a cheap handle.
#[derive(Debug, Clone)]
pub struct Tasks {
    shared: Arc<Shared>,
}

/// What the handles share.
#[derive(Debug)]
struct Shared {
    /// Written at each start and end of a task, read by a scrape. The lock is held for one map access.
    counts: Mutex<Counts>,
    /// Rings when the last live task has ended.
    idle: Notify,
}

#[derive(Debug, Default)]
struct Counts {
    /// Live tasks by name. A name stays, with 0, so that its time series does not vanish.
    live: BTreeMap<&'static str, usize>,
    /// Tasks that ended by a panic, since the start.
    panics: u64,
}

impl Tasks {
    /// A tracker with no tasks.
    #[must_use]
    pub fn new() -> Self {
        let counts = Mutex::new(Counts::default());
        Self {
            shared: Arc::new(Shared {
                counts,
                idle: Notify::new(),
            }),
        }
    }

    /// Starts a task on the current runtime. The name is one of a fixed set: it is a metric's label.
    ///
    /// A panic ends this task alone and is counted.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn spawn<F>(&self, name: &'static str, span: Span, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let live = self.enter(name);
        let tracked = async move {
            let _live = live;
            future.await
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the one place that starts tasks"
        )]
        tokio::spawn(tracked.instrument(span))
    }

    /// Waits until no task is live. Cancel safe.
    pub async fn wait(&self) {
        loop {
            // Registered before the count is read, so that the last task's end is not missed between the two.
            let idle = self.shared.idle.notified();
            if self.shared.counts().live.values().all(|live| *live == 0) {
                return;
            }
            idle.await;
        }
    }

    /// Live tasks by name; every name ever used is there.
    #[must_use]
    pub fn live(&self) -> BTreeMap<&'static str, usize> {
        self.shared.counts().live.clone()
    }

    /// How many tasks of a name are live.
    #[must_use]
    pub fn live_as(&self, name: &str) -> usize {
        self.shared.counts().live.get(name).copied().unwrap_or(0)
    }

    /// How many tasks have ended by a panic.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.shared.counts().panics
    }

    fn enter(&self, name: &'static str) -> Live {
        *self.shared.counts().live.entry(name).or_default() += 1;
        Live {
            name,
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Shared {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Counting cannot leave the map half-changed, so a poisoned lock is as good as any.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a task as live until it is dropped, however the task ends.
struct Live {
    name: &'static str,
    shared: Arc<Shared>,
}

impl Drop for Live {
    fn drop(&mut self) {
        let panicked = std::thread::panicking();
        if panicked {
            tracing::error!(task = self.name, "a task panicked");
        }
        let mut counts = self.shared.counts();
        counts.panics += u64::from(panicked);
        if let Some(live) = counts.live.get_mut(self.name) {
            *live -= 1;
        }
        drop(counts);
        self.shared.idle.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    /// A task counts under its name while it runs, and `wait` returns when the last has ended.
    #[tokio::test]
    async fn live_tasks_are_counted_by_name_and_waited_for() {
        let tasks = Tasks::new();
        let (end, ended) = oneshot::channel::<()>();
        let first = tasks.spawn("first", Span::none(), async { 7 });
        tasks.spawn("second", Span::none(), async { ended.await.unwrap() });
        assert_eq!(first.await.unwrap(), 7);
        assert_eq!(tasks.live(), BTreeMap::from([("first", 0), ("second", 1)]));

        let early = tokio::time::timeout(Duration::from_millis(20), tasks.wait()).await;
        assert!(early.is_err(), "a task is still live");
        end.send(()).unwrap();
        tasks.wait().await;
        assert_eq!(tasks.live(), BTreeMap::from([("first", 0), ("second", 0)]));
    }

    /// A panic ends the one task, and is counted.
    #[tokio::test]
    async fn a_panic_is_counted_and_ends_its_task_alone() {
        let tasks = Tasks::new();
        let panicked = tasks
            .spawn("doomed", Span::none(), async { panic!("on purpose") })
            .await;
        assert!(panicked.unwrap_err().is_panic());
        assert_eq!(
            tasks
                .spawn("doomed", Span::none(), async { 1 })
                .await
                .unwrap(),
            1
        );
        tasks.wait().await;
        assert_eq!(tasks.panics(), 1);
    }
}
