//! A value that everybody reads and somebody replaces now and then, such as settings that a reload changes.
//!
//! Any thread may read and replace. A reader gets the whole value of one moment and may keep it; the lock is held for
//! the copy of a pointer. What must not change in the middle of something takes one value and stays with it.

use std::sync::{Arc, PoisonError, RwLock};

/// The value of now; clones share it.
#[derive(Debug)]
pub struct Current<T>(Arc<RwLock<Arc<T>>>);

impl<T> Current<T> {
    /// Begins with a value.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(value))))
    }

    /// The value of now.
    #[must_use]
    pub fn get(&self) -> Arc<T> {
        // A pointer is copied or replaced whole, also where a thread ends in the middle of it.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces it for whoever reads from now on.
    pub fn set(&self, value: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }
}

impl<T> Clone for Current<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who has taken a value keeps it; who asks later gets the new one, by any clone.
    #[test]
    fn a_new_value_is_for_those_who_ask_from_now_on() {
        let current = Current::new(1);
        let (other, taken) = (current.clone(), current.get());
        other.set(2);
        assert_eq!((*taken, *current.get()), (1, 2));
    }
}
