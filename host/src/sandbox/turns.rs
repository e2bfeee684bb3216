//! Calls at once: each has its turn, those that wait are bounded, and the rest is refused at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The turns of a plugin, of a connection, or of all calls together. Cheap to clone.
#[derive(Clone)]
pub struct Turns {
    running: Arc<Semaphore>,
    /// Room for those that run and those that wait.
    present: Arc<Semaphore>,
}

/// A turn; others get on when it is dropped.
pub struct Turn {
    _running: OwnedSemaphorePermit,
    _present: OwnedSemaphorePermit,
}

impl Turns {
    /// So many at once, and so many more that may wait.
    pub fn new(at_once: u32, waiting: u32) -> Self {
        let places = |count: u32| {
            Arc::new(Semaphore::new(
                usize::try_from(count).unwrap_or(Semaphore::MAX_PERMITS).min(Semaphore::MAX_PERMITS),
            ))
        };
        Self { running: places(at_once), present: places(at_once.saturating_add(waiting)) }
    }

    /// Waits for a turn, in order; `None` where too many wait already.
    pub async fn take(&self) -> Option<Turn> {
        let present = self.present.clone().try_acquire_owned().ok()?;
        let running = self.running.clone().acquire_owned().await.ok()?;
        Some(Turn { _running: running, _present: present })
    }
}
