//! Turns to hash a password. A hash takes a core for tens of milliseconds and 19 MiB: there are few at once, and they go
//! round among those who wait, so that whoever asks for many waits behind whoever asks for one.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    config::limits::ServerLimits,
    domain::{client::Network, id::OrganizationId},
};

/// For whom a password is hashed: each waits in a queue of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hashing {
    /// Somebody who is not known yet.
    Client(Network),
    /// An account, with a browser that signed in to it before.
    Account([u8; 16]),
    /// A signed-in member of an organization.
    Organization(OrganizationId),
    /// The operator.
    Operator,
}

/// Turns, shared by all who wait. Cheap to clone.
#[derive(Clone)]
pub struct Turns(Arc<Shared>);

struct Shared {
    /// In each of the two rings.
    most: usize,
    /// Of one queue.
    each: usize,
    patience: Duration,
    state: Mutex<State>,
}

struct State {
    free: usize,
    /// Those who are not known, and those who are: they take turns, so that neither keeps the other waiting.
    strangers: Ring,
    known: Ring,
    strangers_next: bool,
}

/// Queues that take turns.
#[derive(Default)]
struct Ring {
    order: VecDeque<Hashing>,
    queues: HashMap<Hashing, VecDeque<oneshot::Sender<Turn>>>,
    waiting: usize,
}

/// Leave to hash, passed on when dropped.
pub struct Turn(Option<Arc<Shared>>);

impl Turns {
    /// So many at once.
    pub fn new(at_once: usize, limits: &ServerLimits) -> Self {
        Self(Arc::new(Shared {
            most: limits.password_queue,
            each: limits.password_queue_per_client,
            patience: Duration::from_secs(limits.password_queue_seconds),
            state: Mutex::new(State {
                free: at_once,
                strangers: Ring::default(),
                known: Ring::default(),
                strangers_next: true,
            }),
        }))
    }

    /// A turn; `None` where too many wait, or it takes too long.
    pub async fn take(&self, of: Hashing) -> Option<Turn> {
        let turn = {
            let mut state = self.0.state.lock();
            if state.free > 0 {
                state.free -= 1;
                return Some(Turn(Some(self.0.clone())));
            }
            let ring = if matches!(of, Hashing::Client(_)) { &mut state.strangers } else { &mut state.known };
            ring.join(of, self.0.most, self.0.each)?
        };
        tokio::time::timeout(self.0.patience, turn).await.ok()?.ok()
    }
}

impl Ring {
    fn join(&mut self, of: Hashing, most: usize, each: usize) -> Option<oneshot::Receiver<Turn>> {
        if self.waiting >= most || self.queues.get(&of).is_some_and(|queue| queue.len() >= each) {
            self.forget_who_left();
        }
        if self.waiting >= most {
            self.shorten_longest(self.queues.get(&of).map_or(0, VecDeque::len));
        }
        let queue = self.queues.entry(of).or_default();
        if self.waiting >= most || queue.len() >= each {
            if queue.is_empty() {
                self.queues.remove(&of);
            }
            return None;
        }
        if queue.is_empty() {
            self.order.push_back(of);
        }
        let (sender, receiver) = oneshot::channel();
        queue.push_back(sender);
        self.waiting += 1;
        Some(receiver)
    }

    fn forget_who_left(&mut self) {
        self.queues.retain(|_, queue| {
            queue.retain(|sender| !sender.is_closed());
            !queue.is_empty()
        });
        self.order.retain(|of| self.queues.contains_key(of));
        self.waiting = self.queues.values().map(VecDeque::len).sum();
    }

    /// Sends the last one of the longest queue away, where that is longer than one of `than` would become: so a newcomer
    /// finds a place even if few have taken all.
    fn shorten_longest(&mut self, than: usize) {
        let longest = self.queues.values_mut().max_by_key(|queue| queue.len());
        if let Some(longest) = longest.filter(|queue| queue.len() > than + 1) {
            longest.pop_back();
            self.waiting = self.waiting.saturating_sub(1);
        }
    }

    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        while let Some(of) = self.order.pop_front() {
            let Some(queue) = self.queues.get_mut(&of) else { continue };
            let sender = queue.pop_front();
            if queue.is_empty() {
                self.queues.remove(&of);
            } else {
                self.order.push_back(of);
            }
            if let Some(sender) = sender {
                self.waiting = self.waiting.saturating_sub(1);
                if !sender.is_closed() {
                    return Some(sender);
                }
            }
        }
        None
    }
}

impl State {
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        self.strangers_next = !self.strangers_next;
        if self.strangers_next {
            self.strangers.next().or_else(|| self.known.next())
        } else {
            self.known.next().or_else(|| self.strangers.next())
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(shared) = self.0.take() else { return };
        loop {
            let next = {
                let mut state = shared.state.lock();
                let next = state.next();
                if next.is_none() {
                    state.free += 1;
                }
                next
            };
            let Some(next) = next else { return };
            match next.send(Self(Some(shared.clone()))) {
                Ok(()) => return,
                // They have just left: the next one, then, and not by this turn's own drop.
                Err(mut turn) => turn.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(limits: ServerLimits) -> Turns {
        Turns::new(1, &limits)
    }

    fn client(n: u8) -> Hashing {
        Hashing::Client(Network::of(std::net::Ipv4Addr::new(192, 0, 2, n).into()))
    }

    /// Waits in the background and tells its name once it had its turn.
    fn wait(turns: &Turns, of: Hashing, name: &'static str, done: &tokio::sync::mpsc::UnboundedSender<&'static str>) {
        let (turns, done) = (turns.clone(), done.clone());
        tokio::spawn(async move {
            if turns.take(of).await.is_some() {
                done.send(name).unwrap();
            }
        });
    }

    async fn until(condition: impl Fn() -> bool) {
        while !condition() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn who_asks_for_many_waits_behind_who_asks_for_one() {
        let turns = turns(ServerLimits::default());
        let held = turns.take(client(1)).await.unwrap();
        let (sender, mut done) = tokio::sync::mpsc::unbounded_channel();
        for waiting in 1..=8 {
            wait(&turns, client(1), "many", &sender);
            until(|| turns.0.state.lock().strangers.waiting == waiting).await;
        }
        wait(&turns, client(2), "one", &sender);
        wait(&turns, Hashing::Account([1; 16]), "known", &sender);
        until(|| turns.0.state.lock().strangers.waiting == 9 && turns.0.state.lock().known.waiting == 1).await;
        drop(held);
        let mut order = Vec::new();
        for _ in 0..10 {
            order.push(done.recv().await.unwrap());
        }
        let place = |name| order.iter().position(|done| *done == name).unwrap();
        assert!(place("one") <= 2 && place("known") <= 2, "{order:?}");
        assert_eq!(turns.0.state.lock().free, 1);
    }

    #[tokio::test]
    async fn waiting_is_bounded_and_who_left_does_not_count() {
        let turns = turns(ServerLimits { password_queue: 4, password_queue_per_client: 2, ..ServerLimits::default() });
        let held = turns.take(client(1)).await.unwrap();
        let mut waiting: Vec<_> = [1, 1, 2, 3].map(|n| Box::pin(turns.take(client(n)))).into();
        for one in &mut waiting {
            assert!(futures::poll!(one).is_pending());
        }
        assert!(turns.take(client(1)).await.is_none(), "two of this client wait");
        let mut fourth = Box::pin(turns.take(client(4)));
        assert!(futures::poll!(&mut fourth).is_pending());
        assert!(waiting.remove(1).await.is_none(), "the second of this client made room for the first of another");
        waiting.push(fourth);
        assert!(turns.take(client(5)).await.is_none(), "four in all, of four clients");
        let mut known = Box::pin(turns.take(Hashing::Operator));
        assert!(futures::poll!(&mut known).is_pending(), "those who are known have places of their own");
        drop(waiting.remove(0));
        let mut newcomer = Box::pin(turns.take(client(5)));
        assert!(futures::poll!(&mut newcomer).is_pending());
        drop((waiting, known));
        drop(held);
        assert!(newcomer.await.is_some());
        let state = turns.0.state.lock();
        assert_eq!((state.free, state.strangers.waiting, state.strangers.queues.len()), (1, 0, 0));
    }

    #[tokio::test]
    async fn who_waits_too_long_is_told() {
        let turns = Turns::new(0, &ServerLimits { password_queue_seconds: 0, ..ServerLimits::default() });
        assert!(turns.take(client(1)).await.is_none());
    }
}
