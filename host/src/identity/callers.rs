//! Who is asking, for many requests at once.
//!
//! Each request's caller is read from the database after the request arrived. While that is being done for some, others
//! arrive: they are looked up together, next, with one statement. A request that comes alone waits for nobody; the busier
//! the server, the less each look-up costs it and the database. The organizations take turns, so that however many requests of
//! one wait, those of another wait for a look-up or two; and a look-up has a time within which it ends, whatever the database does.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    io,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};

use super::session::live_at;
use crate::{
    clock::Clock,
    config::limits::ServerLimits,
    domain::id::OrganizationId,
    store::{
        Store, StoreError,
        sessions::{self, Named, Seen, TOGETHER},
    },
};

/// Statements at once.
const LOADERS: usize = 2;

type Answer = Result<Option<Seen>, Arc<StoreError>>;

/// One request's question.
struct Asked {
    session: Named,
    answer: oneshot::Sender<Answer>,
}

/// What is asked and not yet being looked up.
#[derive(Default)]
struct Waiting {
    /// Of each organization, in the order in which they came; none is empty.
    questions: HashMap<OrganizationId, VecDeque<Asked>>,
    /// Whose turn it is, each organization that waits once.
    turns: VecDeque<OrganizationId>,
    /// Nobody can ask any more.
    closed: bool,
}

/// The questions of all, and who waits for them.
struct Queue {
    waiting: Mutex<Waiting>,
    came: Notify,
    /// Questions of one organization that wait at once, at the most.
    each: usize,
    /// How long a look-up may take.
    patience: Duration,
}

impl Queue {
    fn new(limits: &ServerLimits) -> Arc<Self> {
        Arc::new(Self {
            waiting: Mutex::default(),
            came: Notify::new(),
            each: limits.caller_lookups_per_organization,
            patience: Duration::from_secs(limits.caller_lookup_seconds),
        })
    }

    /// Refuses where as many of the organization wait as may.
    fn push(&self, asked: Asked) -> Result<(), Asked> {
        let organization = asked.session.organization;
        let mut guard = self.waiting.lock();
        let waiting = &mut *guard;
        match waiting.questions.entry(organization) {
            Entry::Occupied(mut of_it) if of_it.get().len() < self.each => of_it.get_mut().push_back(asked),
            Entry::Occupied(_) => return Err(asked),
            Entry::Vacant(none) => {
                none.insert(VecDeque::from([asked]));
                waiting.turns.push_back(organization);
            }
        }
        drop(guard);
        self.came.notify_one();
        Ok(())
    }

    /// The next questions, at most as many as are looked up together, one of each organization in turn; none once nobody can ask.
    async fn next(&self) -> Option<Vec<Asked>> {
        loop {
            let came = self.came.notified();
            let (next, more) = self.waiting.lock().take();
            if more {
                self.came.notify_one();
            }
            match next {
                None => return None,
                Some(next) if !next.is_empty() => return Some(next),
                Some(_) => came.await,
            }
        }
    }
}

impl Waiting {
    /// And whether there is more.
    fn take(&mut self) -> (Option<Vec<Asked>>, bool) {
        if self.closed {
            return (None, false);
        }
        let mut next = Vec::new();
        while next.len() < TOGETHER {
            let Some(organization) = self.turns.pop_front() else { break };
            let Entry::Occupied(mut of_it) = self.questions.entry(organization) else { continue };
            // Who has given up need not be answered.
            next.extend(of_it.get_mut().pop_front().filter(|asked| !asked.answer.is_closed()));
            if of_it.get().is_empty() {
                of_it.remove();
            } else {
                self.turns.push_back(organization);
            }
        }
        (Some(next), !self.turns.is_empty())
    }
}

/// Looks callers up. What it starts ends when it is dropped.
pub(super) struct Callers {
    queue: Arc<Queue>,
}

impl Drop for Callers {
    fn drop(&mut self) {
        self.queue.waiting.lock().closed = true;
        self.queue.came.notify_waiters();
    }
}

impl Callers {
    /// Starts looking up, on this runtime.
    pub(super) fn new(store: &Store, clock: &Clock, limits: &ServerLimits) -> Self {
        let queue = Queue::new(limits);
        for _ in 0..LOADERS {
            let (store, clock) = (store.clone(), clock.clone());
            let look_up = move |sessions: Vec<Named>| {
                let (store, clock) = (store.clone(), clock.clone());
                async move { sessions::by_ids(&mut store.read().await?, &sessions, live_at(clock.now())).await }
            };
            tokio::spawn(supervise(queue.clone(), look_up));
        }
        Self { queue }
    }

    /// Whose session this is now, if it is live and its user may sign in.
    ///
    /// # Errors
    /// As the database says; [`StoreError::Overloaded`] if too many of the organization wait, [`StoreError::Unavailable`] also if the
    /// database is too slow.
    pub(super) async fn find(&self, session: Named) -> Result<Option<Seen>, StoreError> {
        let (answer, found) = oneshot::channel();
        self.queue.push(Asked { session, answer }).map_err(|_| StoreError::Overloaded)?;
        let gone = |_| StoreError::Unavailable(sqlx::Error::PoolClosed);
        found.await.map_err(gone)?.map_err(StoreError::shared)
    }
}

/// Looks callers up until nobody can ask any more. A defect costs those who were being looked up their request, and nobody
/// else: without a loader every request would be refused.
async fn supervise<L, F>(queue: Arc<Queue>, look_up: L)
where
    L: Fn(Vec<Named>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<HashMap<Named, Seen>, StoreError>> + Send + 'static,
{
    while let Err(ended) = tokio::spawn(load(queue.clone(), look_up.clone())).await {
        if !ended.is_panic() {
            return;
        }
        metrics::counter!("kaizen_caller_loader_panics_total").increment(1);
        tracing::error!(error = %ended, "looking callers up panicked: it goes on anew");
    }
}

async fn load<L, F>(queue: Arc<Queue>, look_up: L)
where
    L: Fn(Vec<Named>) -> F + Send + 'static,
    F: Future<Output = Result<HashMap<Named, Seen>, StoreError>> + Send + 'static,
{
    while let Some(next) = queue.next().await {
        let mut waiting: HashMap<Named, Vec<oneshot::Sender<Answer>>> = HashMap::with_capacity(next.len());
        for Asked { session, answer } in next {
            waiting.entry(session).or_default().push(answer);
        }
        let sessions: Vec<Named> = waiting.keys().copied().collect();
        let found = timeout(queue.patience, look_up(sessions)).await;
        let late = |_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into()).into());
        let mut found = found.unwrap_or_else(late).map_err(Arc::new);
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
    use crate::domain::id::{SessionId, UserId};

    fn named(organization: u128, session: u128) -> Named {
        Named {
            organization: OrganizationId(Uuid::from_u128(organization)),
            user: UserId(Uuid::nil()),
            session: SessionId(Uuid::from_u128(session)),
        }
    }

    fn ask(queue: &Queue, session: Named) -> Result<oneshot::Receiver<Answer>, Asked> {
        let (answer, found) = oneshot::channel();
        queue.push(Asked { session, answer }).map(|()| found)
    }

    #[tokio::test]
    async fn a_panic_costs_one_request_and_not_all_that_follow() {
        let (bad, good) = (named(0, 1), named(0, 2));
        let look_up = move |sessions: Vec<Named>| async move {
            assert!(!sessions.contains(&bad), "a defect");
            Ok(HashMap::new())
        };
        let callers = Callers { queue: Queue::new(&ServerLimits::default()) };
        let supervised = tokio::spawn(supervise(callers.queue.clone(), look_up));
        for _ in 0..3 {
            assert!(callers.find(bad).await.is_err());
            assert!(callers.find(good).await.unwrap().is_none());
        }
        drop(callers);
        supervised.await.unwrap();
    }

    #[tokio::test]
    async fn one_organization_does_not_keep_another_waiting_and_has_a_bound() {
        let limits = ServerLimits { caller_lookups_per_organization: 100, ..Default::default() };
        let queue = Queue::new(&limits);
        let mut waiting: Vec<_> = (0..100).map(|n| ask(&queue, named(1, n)).ok().unwrap()).collect();
        assert!(ask(&queue, named(1, 100)).is_err(), "a bound of its own");
        let refused = Callers { queue: queue.clone() }.find(named(1, 100)).await;
        assert!(matches!(refused, Err(StoreError::Overloaded)), "{refused:?}");
        queue.waiting.lock().closed = false;
        waiting.push(ask(&queue, named(2, 0)).ok().unwrap());
        let next = queue.next().await.unwrap();
        assert_eq!(next.len(), TOGETHER);
        let others = next.iter().filter(|asked| asked.session.organization == named(2, 0).organization).count();
        assert_eq!(others, 1, "the one that came last is among the first");
        let first: Vec<_> = next.iter().map(|asked| asked.session.session).take(1).collect();
        assert_eq!(first, [named(1, 0).session], "in order");
        // Who gives up takes no place.
        waiting.clear();
        let found = ask(&queue, named(3, 0)).ok().unwrap();
        let next = queue.next().await.unwrap();
        assert_eq!(next.iter().map(|asked| asked.session).collect::<Vec<_>>(), [named(3, 0)]);
        drop(found);
    }

    #[tokio::test]
    async fn a_database_that_says_nothing_keeps_nobody_longer_than_the_bound() {
        let patience = Duration::from_millis(1);
        let queue = Queue { waiting: Mutex::default(), came: Notify::new(), each: 10, patience };
        let callers = Callers { queue: Arc::new(queue) };
        let look_up = |_| std::future::pending::<Result<HashMap<Named, Seen>, StoreError>>();
        let supervised = tokio::spawn(supervise(callers.queue.clone(), look_up));
        for _ in 0..2 {
            let found = callers.find(named(1, 1)).await;
            assert!(matches!(found, Err(StoreError::Unavailable(_))), "{found:?}");
        }
        drop(callers);
        supervised.await.unwrap();
    }
}
