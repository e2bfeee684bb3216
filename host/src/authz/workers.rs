//! Threads of their own for reading, validating and compiling policies: with a stack that is deep enough, not among those
//! that answer requests, and a few at a time.
//!
//! A validation has a place of its organization's before it waits for one of the host's, so that whoever writes many versions
//! waits behind themselves. Its place is given back when the thread ends, not when nobody waits for it any more: what a
//! request left behind counts.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::text::STACK;
use crate::{
    config::limits::ServerLimits,
    domain::id::OrganizationId,
    queues::{Full, Queues},
};

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Undone {
    /// The machine has no thread or no memory for it now.
    #[error("no thread for policies: {0}")]
    Machine(io::Error),
    /// It panicked.
    #[error("reading policies panicked")]
    Panicked,
    /// As many of the organization wait as may.
    #[error("too many validations of one organization at once")]
    Busy,
}

impl From<Full> for Undone {
    fn from(Full: Full) -> Self {
        Undone::Busy
    }
}

/// The threads of a host.
pub(super) struct Workers {
    loads: Arc<Semaphore>,
    validations: Arc<Semaphore>,
    queues: Queues,
    stack: AtomicUsize,
}

/// Tells the thread when nobody waits for it any more.
struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Workers {
    pub(super) fn new(limits: &ServerLimits) -> Self {
        Self {
            loads: Arc::new(Semaphore::new(limits.policy_loads)),
            validations: Arc::new(Semaphore::new(limits.policy_validations)),
            queues: Queues::new(limits.policy_validations_waiting),
            stack: AtomicUsize::new(STACK),
        }
    }

    /// Compiles a set in force.
    ///
    /// # Errors
    /// [`Undone::Machine`] and [`Undone::Panicked`].
    pub(super) async fn load<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Undone> {
        let permit = turn(&self.loads).await?;
        self.run(permit, move |_| work()).await
    }

    /// Validates for an organization. The work is told whether anybody still waits for it.
    ///
    /// # Errors
    /// Every [`Undone`].
    pub(super) async fn validate<T: Send + 'static>(
        &self,
        organization: OrganizationId,
        work: impl FnOnce(&dyn Fn() -> bool) -> T + Send + 'static,
    ) -> Result<T, Undone> {
        let own = self.queues.turn(organization).await?;
        let of_host = turn(&self.validations).await?;
        self.run((of_host, own), move |left| work(&|| left.load(Ordering::Relaxed))).await
    }

    /// On a thread of its own, which keeps `place` until it ends.
    async fn run<T: Send + 'static>(
        &self,
        place: impl Send + 'static,
        work: impl FnOnce(&AtomicBool) -> T + Send + 'static,
    ) -> Result<T, Undone> {
        let left = Arc::new(AtomicBool::new(false));
        let waiting = Waiting(left.clone());
        let (answer, answered) = oneshot::channel();
        let thread = move || {
            let place = place;
            let done = work(&left);
            drop(place);
            drop(answer.send(done));
        };
        let builder = std::thread::Builder::new().name("policies".into());
        builder.stack_size(self.stack.load(Ordering::Relaxed)).spawn(thread).map_err(Undone::Machine)?;
        let done = answered.await.map_err(|_| Undone::Panicked);
        drop(waiting);
        done
    }

    /// For the tests: stacks that no machine has, or the usual ones again.
    #[cfg(test)]
    pub(super) fn exhaust(&self, exhausted: bool) {
        self.stack.store(if exhausted { 1 << 48 } else { STACK }, Ordering::Relaxed);
    }
}

async fn turn(semaphore: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Undone> {
    semaphore.clone().acquire_owned().await.map_err(|closed| Undone::Machine(io::Error::other(closed)))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn organization(n: u128) -> OrganizationId {
        OrganizationId(uuid::Uuid::from_u128(n))
    }

    #[tokio::test]
    async fn one_organization_validates_one_at_a_time_and_another_beside_it() {
        let limits = ServerLimits { policy_validations: 2, policy_validations_waiting: 1, ..ServerLimits::default() };
        let workers = Arc::new(Workers::new(&limits));
        let (release, released) = mpsc::channel::<()>();
        let (began, begun) = oneshot::channel();
        let held = workers.clone();
        let first = tokio::spawn(async move {
            let work = move |_: &dyn Fn() -> bool| {
                began.send(()).unwrap();
                released.recv().unwrap();
            };
            held.validate(organization(1), work).await
        });
        begun.await.unwrap();
        let mut second = Box::pin(workers.validate(organization(1), |_| 2));
        assert!(futures::poll!(&mut second).is_pending(), "it waits for the first");
        assert!(matches!(workers.validate(organization(1), |_| 3).await, Err(Undone::Busy)));
        assert_eq!(workers.validate(organization(2), |_| 4).await.unwrap(), 4, "another organization does not wait");
        release.send(()).unwrap();
        assert!(first.await.unwrap().is_ok());
        assert_eq!(second.await.unwrap(), 2);
        assert!(workers.queues.is_empty(), "nothing is kept of who validates no more");
    }

    #[tokio::test]
    async fn what_nobody_waits_for_stops_and_counts_until_it_has() {
        let workers = Workers::new(&ServerLimits { policy_validations: 1, ..ServerLimits::default() });
        let (began, mut begun) = oneshot::channel();
        let work = move |left: &dyn Fn() -> bool| {
            began.send(()).unwrap();
            while !left() {
                std::thread::yield_now();
            }
        };
        let mut validation = Box::pin(workers.validate(organization(1), work));
        while begun.try_recv().is_err() {
            assert!(futures::poll!(&mut validation).is_pending());
            tokio::task::yield_now().await;
        }
        let mut next = Box::pin(workers.validate(organization(2), |_| ()));
        assert!(futures::poll!(&mut next).is_pending(), "the host has one place");
        drop(validation);
        next.await.unwrap();
    }

    #[tokio::test]
    async fn a_machine_without_threads_is_told_apart_from_a_panic() {
        let workers = Workers::new(&ServerLimits::default());
        workers.exhaust(true);
        assert!(matches!(workers.load(|| ()).await, Err(Undone::Machine(_))));
        assert!(matches!(workers.validate(organization(1), |_| ()).await, Err(Undone::Machine(_))));
        workers.exhaust(false);
        assert!(matches!(workers.load(|| panic!("on purpose")).await, Err(Undone::Panicked)));
        assert!(workers.load(|| ()).await.is_ok());
    }
}
