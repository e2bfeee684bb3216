//! Places by whose they are: what one of them holds, no other waits for.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Owners that are remembered before those without a place are forgotten.
const REMEMBERED: usize = 1024;

/// So many places for each owner.
pub(super) struct Places<K> {
    each: usize,
    of: Mutex<HashMap<K, Arc<Semaphore>>>,
}

impl<K: Eq + Hash> Places<K> {
    pub(super) fn new(each: usize) -> Self {
        Self { each, of: Mutex::default() }
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// Never: the semaphores are not closed.
    pub(super) async fn take(&self, owner: K) -> Result<OwnedSemaphorePermit, AcquireError> {
        let places = {
            let mut of = self.of.lock();
            if of.len() >= REMEMBERED {
                // Those that somebody holds or waits for stay; there are no more of them than of calls.
                of.retain(|_, places| Arc::strong_count(places) > 1);
            }
            of.entry(owner).or_insert_with(|| Arc::new(Semaphore::new(self.each))).clone()
        };
        places.acquire_owned().await
    }
}
