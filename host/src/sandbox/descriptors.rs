//! Sockets and files that guests hold: so many for each call, and so many for all calls together, because they are taken
//! from the same table of the process as the server's own.
//!
//! A request holds one from the connection to the last byte of its answer. A socket or file that the guest opens itself is
//! held until the call ends: streams made of it outlive the guest's own handle, so that closing that proves nothing.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The descriptors that one call may take.
#[derive(Clone)]
pub(super) struct Descriptors {
    call: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// A descriptor that is taken; given back when it is dropped.
pub(super) struct Held {
    _call: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Descriptors {
    /// So many for one call, out of those for all.
    pub(super) fn new(most: usize, all: Arc<Semaphore>) -> Self {
        Self { call: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))), all }
    }

    /// One, at once or not at all.
    pub(super) fn take(&self) -> Option<Held> {
        let call = self.call.clone().try_acquire_owned().ok()?;
        let all = self.all.clone().try_acquire_owned().ok()?;
        Some(Held { _call: call, _all: all })
    }

    /// One, as soon as there is one; nothing where none will ever be.
    pub(super) async fn wait(&self) -> Option<Held> {
        let call = self.call.clone().acquire_owned().await.ok()?;
        let all = self.all.clone().acquire_owned().await.ok()?;
        Some(Held { _call: call, _all: all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_call_leaves_descriptors_to_others() {
        let all = Arc::new(Semaphore::new(3));
        let (greedy, other) = (Descriptors::new(2, all.clone()), Descriptors::new(2, all));
        let held: Vec<_> = (0..5).map_while(|_| greedy.take()).collect();
        assert_eq!(held.len(), 2);
        let last = other.take();
        assert!(last.is_some() && other.take().is_none(), "three for all");
        let mut waiting = std::pin::pin!(other.wait());
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(held);
        assert!(waiting.await.is_some());
    }
}
