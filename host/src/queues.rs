//! One thing at a time for each organization: whoever asks for much waits behind themselves.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::domain::id::OrganizationId;

/// The queues of the organizations that wait for something now.
#[derive(Clone)]
pub struct Queues {
    waiting: usize,
    by_organization: Arc<Mutex<HashMap<OrganizationId, Queue>>>,
}

/// As many of the organization wait as may.
#[derive(Debug)]
pub struct Full;

struct Queue {
    turn: Arc<Semaphore>,
    length: usize,
}

/// The turn of one of an organization, until it is dropped.
pub struct Turn {
    _turn: OwnedSemaphorePermit,
    _place: Place,
}

struct Place {
    queues: Queues,
    organization: OrganizationId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queues = self.queues.by_organization.lock();
        if let Some(queue) = queues.get_mut(&self.organization) {
            queue.length = queue.length.saturating_sub(1);
            if queue.length == 0 {
                queues.remove(&self.organization);
            }
        }
    }
}

impl Queues {
    /// So many of an organization may wait beside the one whose turn it is.
    pub fn new(waiting: usize) -> Self {
        Self { waiting, by_organization: Arc::default() }
    }

    /// Waits for the others of the organization, in the order in which they came.
    ///
    /// # Errors
    /// [`Full`], at once.
    pub async fn turn(&self, organization: OrganizationId) -> Result<Turn, Full> {
        let (place, own) = {
            let mut queues = self.by_organization.lock();
            let queue =
                queues.entry(organization).or_insert_with(|| Queue { turn: Arc::new(Semaphore::new(1)), length: 0 });
            if queue.length > self.waiting {
                return Err(Full);
            }
            queue.length += 1;
            (Place { queues: self.clone(), organization }, queue.turn.clone())
        };
        let turn = own.acquire_owned().await.map_err(|_| Full)?;
        Ok(Turn { _turn: turn, _place: place })
    }

    /// For the tests: whether nobody waits, and nothing is kept of whoever did.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.by_organization.lock().is_empty()
    }
}
