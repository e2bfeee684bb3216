//! Who is asking, for many requests at once.
//!
//! Each request's caller is read from the database after the request arrived. While that is being done for some, others
//! arrive: they are looked up together, next, with one statement. A request that comes alone waits for nobody; the busier
//! the server, the less each look-up costs it and the database.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::{Mutex, mpsc, oneshot};

use super::session::live_at;
use crate::{
    clock::Clock,
    store::{
        Store, StoreError,
        sessions::{self, Named, Seen, TOGETHER},
    },
};

/// Statements at once.
const LOADERS: usize = 2;
/// Requests that wait to be looked up; more wait to be let in.
const QUEUE: usize = 1024;

type Answer = Result<Option<Seen>, Arc<StoreError>>;

/// One request's question.
struct Asked {
    session: Named,
    answer: oneshot::Sender<Answer>,
}

/// Looks callers up. What it starts ends when it is dropped.
pub(super) struct Callers {
    queue: mpsc::Sender<Asked>,
}

impl Callers {
    /// Starts looking up, on this runtime.
    pub(super) fn new(store: &Store, clock: &Clock) -> Self {
        let (queue, asked) = mpsc::channel(QUEUE);
        let asked = Arc::new(Mutex::new(asked));
        for _ in 0..LOADERS {
            let (store, clock) = (store.clone(), clock.clone());
            let look_up = move |sessions: Vec<Named>| {
                let (store, clock) = (store.clone(), clock.clone());
                async move { sessions::by_ids(&mut store.read().await?, &sessions, live_at(clock.now())).await }
            };
            tokio::spawn(supervise(asked.clone(), look_up));
        }
        Self { queue }
    }

    /// Whose session this is now, if it is live and its user may sign in.
    ///
    /// # Errors
    /// As the database says.
    pub(super) async fn find(&self, session: Named) -> Result<Option<Seen>, StoreError> {
        let gone = || StoreError::Unavailable(sqlx::Error::PoolClosed);
        let (answer, found) = oneshot::channel();
        self.queue.send(Asked { session, answer }).await.map_err(|_| gone())?;
        found.await.map_err(|_| gone())?.map_err(StoreError::shared)
    }
}

type Queue = Arc<Mutex<mpsc::Receiver<Asked>>>;

/// Looks callers up until nobody can ask any more. A defect costs those who were being looked up their request, and nobody
/// else: without a loader every request would be refused.
async fn supervise<L, F>(asked: Queue, look_up: L)
where
    L: Fn(Vec<Named>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<HashMap<Named, Seen>, StoreError>> + Send + 'static,
{
    while let Err(ended) = tokio::spawn(load(asked.clone(), look_up.clone())).await {
        if !ended.is_panic() {
            return;
        }
        metrics::counter!("kaizen_caller_loader_panics_total").increment(1);
        tracing::error!(error = %ended, "looking callers up panicked: it goes on anew");
    }
}

async fn load<L, F>(asked: Queue, look_up: L)
where
    L: Fn(Vec<Named>) -> F + Send + 'static,
    F: Future<Output = Result<HashMap<Named, Seen>, StoreError>> + Send + 'static,
{
    let mut next = Vec::with_capacity(TOGETHER);
    loop {
        // Whoever holds the lock takes what there is; the others look up what they took.
        if asked.lock().await.recv_many(&mut next, TOGETHER).await == 0 {
            return;
        }
        let mut waiting: HashMap<Named, Vec<oneshot::Sender<Answer>>> = HashMap::with_capacity(next.len());
        for Asked { session, answer } in next.drain(..) {
            waiting.entry(session).or_default().push(answer);
        }
        let sessions: Vec<Named> = waiting.keys().copied().collect();
        let mut found = look_up(sessions).await.map_err(Arc::new);
        for (session, answers) in waiting {
            let answer = match &mut found {
                Ok(found) => Ok(found.remove(&session)),
                Err(error) => Err(error.clone()),
            };
            let mut answers = answers.into_iter();
            // Nearly always the only one. Whoever gave up does not mind.
            let first = answers.next();
            for waits in answers {
                drop(waits.send(answer.clone()));
            }
            drop(first.map(|waits| waits.send(answer)));
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::id::{OrganizationId, SessionId, UserId};

    #[tokio::test]
    async fn a_panic_costs_one_request_and_not_all_that_follow() {
        let (queue, asked) = mpsc::channel(QUEUE);
        let bad = Named {
            organization: OrganizationId(Uuid::nil()),
            user: UserId(Uuid::nil()),
            session: SessionId(Uuid::from_u128(1)),
        };
        let good = Named { session: SessionId(Uuid::from_u128(2)), ..bad };
        let look_up = move |sessions: Vec<Named>| async move {
            assert!(!sessions.contains(&bad), "a defect");
            Ok(HashMap::new())
        };
        let supervised = tokio::spawn(supervise(Arc::new(Mutex::new(asked)), look_up));
        let callers = Callers { queue };
        for _ in 0..3 {
            assert!(callers.find(bad).await.is_err());
            assert!(callers.find(good).await.unwrap().is_none());
        }
        drop(callers);
        supervised.await.unwrap();
    }
}
