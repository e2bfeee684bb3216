//! In debug builds: a task that holds one connection and asks for another is stopped at once, by a panic.
//!
//! Were it allowed, as many such tasks as the pool has connections would hold all of them and wait for one more each: nobody's
//! statement runs until the waiting times out. Release builds do not look.

#[cfg(debug_assertions)]
use std::collections::BTreeSet;

#[cfg(debug_assertions)]
use parking_lot::Mutex;
#[cfg(debug_assertions)]
use tokio::task::Id;

#[cfg(debug_assertions)]
static HOLDING: Mutex<BTreeSet<Id>> = Mutex::new(BTreeSet::new());

/// The note that a task holds a connection; gone when it is dropped.
pub(super) struct Held {
    #[cfg(debug_assertions)]
    task: Option<Id>,
}

impl Held {
    /// To be taken before the pool is asked. A future that runs outside any task, as the body of a test does, is not looked at.
    ///
    /// # Panics
    /// In debug builds, if this task holds a connection already.
    pub(super) fn take() -> Self {
        #[cfg(debug_assertions)]
        {
            let task = tokio::task::try_id();
            if let Some(id) = task {
                let first = HOLDING.lock().insert(id);
                assert!(first, "a pooled connection is asked for while this task holds one: drop that one first");
            }
            Self { task }
        }
        #[cfg(not(debug_assertions))]
        Self {}
    }
}

#[cfg(debug_assertions)]
impl Drop for Held {
    fn drop(&mut self) {
        if let Some(id) = self.task {
            HOLDING.lock().remove(&id);
        }
    }
}
