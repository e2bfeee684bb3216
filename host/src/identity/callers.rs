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
            tokio::spawn(load(asked.clone(), store.clone(), clock.clone()));
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

async fn load(asked: Arc<Mutex<mpsc::Receiver<Asked>>>, store: Store, clock: Clock) {
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
        let found = async { sessions::by_ids(&mut store.read().await?, &sessions, live_at(clock.now())).await }.await;
        let mut found = found.map_err(Arc::new);
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
