//! Calls at once: which may run, and who is next when a place becomes free.
//!
//! A call runs when all of these have room at the same moment; until then it holds nothing that others could use:
//!
//! | of | setting |
//! |---|---|
//! | all plugins together | `plugin_calls`, of which `plugin_calls_for_sign_in` serve sign-in only |
//! | one plugin, whatever its version | `plugin_calls_per_plugin` |
//! | one organization | `plugin_calls_per_organization` |
//! | one connection | `plugin_calls_per_connection` |
//!
//! Of the places of one plugin, and of those of all plugins that do not serve sign-in only, `plugin_calls_for_newcomers_percent`
//! go only to organizations that have no call there: however few others have taken all they may, one more gets in at once.
//!
//! Of those that wait and could run, the next is of the organization with the fewest calls running (max-min fairness),
//! then sign-in before others, then the oldest. Anybody may begin to sign in, so one organization's sign-ins take no more
//! than half of the places that are kept for them.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::limits::Bounds;

/// Whom a call is for.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// The plugin, by kind and name: all versions share its places.
    pub plugin: String,
    /// Its connection.
    pub connection: Option<Uuid>,
    /// The organization that the connection belongs to; none where the server itself calls.
    pub organization: Option<Uuid>,
    /// Somebody signs in, or the server itself calls: it may take the places that are kept free.
    pub signs_in: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Plugin(String),
    Connection(Uuid),
    Organization(Uuid),
    PluginOf(String, Uuid),
    SignInOf(Uuid),
}

impl Caller {
    fn plugin_of(&self) -> Option<Key> {
        self.organization.map(|organization| Key::PluginOf(self.plugin.clone(), organization))
    }

    fn keys(&self) -> impl Iterator<Item = Key> {
        let sign_in = self.organization.filter(|_| self.signs_in).map(Key::SignInOf);
        let others =
            [self.connection.map(Key::Connection), self.organization.map(Key::Organization), self.plugin_of(), sign_in];
        std::iter::once(Key::Plugin(self.plugin.clone())).chain(others.into_iter().flatten())
    }
}

/// Calls by whom they are for.
#[derive(Default)]
struct Counts(HashMap<Key, u32>);

impl Counts {
    fn of(&self, key: &Key) -> u32 {
        self.0.get(key).copied().unwrap_or_default()
    }

    fn add(&mut self, caller: &Caller) {
        for key in caller.keys() {
            let count = self.0.entry(key).or_default();
            *count = count.saturating_add(1);
        }
    }

    fn remove(&mut self, caller: &Caller) {
        for key in caller.keys() {
            if let Some(count) = self.0.get_mut(&key) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.0.remove(&key);
                }
            }
        }
    }
}

struct Waiting {
    id: u64,
    caller: Arc<Caller>,
    start: oneshot::Sender<()>,
}

#[derive(Default)]
struct State {
    running: u32,
    /// Of these, the ones that are no sign-in.
    ordinary: u32,
    running_of: Counts,
    waiting: VecDeque<Waiting>,
    waiting_of: Counts,
    next_id: u64,
}

/// The places of all calls. Cheap to clone.
#[derive(Clone)]
pub struct Scheduler {
    bounds: Arc<Bounds>,
    state: Arc<Mutex<State>>,
}

/// A place; the next call starts when it is dropped.
pub struct Place {
    scheduler: Scheduler,
    caller: Arc<Caller>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.scheduler.free(&self.caller);
    }
}

/// A call that waits; it leaves the queue when this is dropped.
struct Ticket<'a> {
    scheduler: &'a Scheduler,
    caller: &'a Arc<Caller>,
    id: u64,
    /// Its place was handed over.
    taken: bool,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let mut state = self.scheduler.state.lock();
        if let Some(at) = state.waiting.iter().position(|waiting| waiting.id == self.id) {
            state.waiting.remove(at);
            state.waiting_of.remove(self.caller);
        } else {
            // It was let in and did not notice any more.
            drop(state);
            self.scheduler.free(self.caller);
        }
    }
}

impl Scheduler {
    /// Within these bounds.
    pub fn new(bounds: Arc<Bounds>) -> Self {
        Self { bounds, state: Arc::default() }
    }

    /// Waits for a place; `None` where too many wait already.
    pub async fn take(&self, caller: Caller) -> Option<Place> {
        let caller = Arc::new(caller);
        let (start, started) = oneshot::channel();
        let id = {
            let mut state = self.state.lock();
            if !self.may_wait(&state, &caller) {
                return None;
            }
            let id = state.next_id;
            state.next_id = id.wrapping_add(1);
            state.waiting_of.add(&caller);
            state.waiting.push_back(Waiting { id, caller: caller.clone(), start });
            self.start(&mut state);
            id
        };
        let mut ticket = Ticket { scheduler: self, caller: &caller, id, taken: false };
        started.await.ok()?;
        ticket.taken = true;
        drop(ticket);
        Some(Place { scheduler: self.clone(), caller })
    }

    /// What could run at once does not wait, so it is let in whatever waits.
    fn may_wait(&self, state: &State, caller: &Caller) -> bool {
        if self.fits(state, caller) {
            return true;
        }
        let bounds = &self.bounds;
        let waiting = |key: Key| state.waiting_of.of(&key);
        let room = |key: Option<Key>, most: u32| key.is_none_or(|key| waiting(key) < most);
        let all = u32::try_from(state.waiting.len()).unwrap_or(u32::MAX);
        (caller.signs_in || all < bounds.waiting)
            && room(caller.organization.map(Key::Organization), bounds.waiting_per_organization)
            && room(caller.connection.map(Key::Connection), bounds.waiting_per_connection)
    }

    /// Whether there is a place for it now.
    fn fits(&self, state: &State, caller: &Caller) -> bool {
        let bounds = &self.bounds;
        let running = |key: Key| state.running_of.of(&key);
        let room = |key: Option<Key>, most: u32| key.is_none_or(|key| running(key) < most);
        let kept = bounds.calls_for_sign_in.min(bounds.calls.saturating_sub(1));
        let in_all = if caller.signs_in {
            let crowded = state.running >= bounds.calls.saturating_sub(kept);
            let share = (kept / 2).max(1);
            state.running < bounds.calls && (!crowded || room(caller.organization.map(Key::SignInOf), share))
        } else {
            let none = || room(caller.organization.map(Key::Organization), 1);
            state.running < bounds.calls && self.leaves(bounds.calls.saturating_sub(kept), state.ordinary, none)
        };
        // The plugin last: its name is copied to look for it, and this is asked for each call that waits.
        in_all
            && room(caller.organization.map(Key::Organization), bounds.calls_per_organization)
            && room(caller.connection.map(Key::Connection), bounds.calls_per_connection)
            && self.leaves(bounds.calls_per_plugin, running(Key::Plugin(caller.plugin.clone())), || {
                room(caller.plugin_of(), 1)
            })
    }

    /// Whether one of these places may be taken: the last ones only by who has none.
    fn leaves(&self, places: u32, taken: u32, has_none: impl FnOnce() -> bool) -> bool {
        let kept = places.saturating_mul(self.bounds.calls_for_newcomers_percent) / 100;
        taken < places.saturating_sub(kept) || (taken < places && has_none())
    }

    /// Starts what waits and fits.
    fn start(&self, state: &mut State) {
        while state.running < self.bounds.calls {
            let next = state.waiting.iter().enumerate().filter(|(_, waiting)| self.fits(state, &waiting.caller));
            let next = next.min_by_key(|(at, waiting)| {
                let organization = waiting.caller.organization.map(Key::Organization);
                (organization.map_or(0, |key| state.running_of.of(&key)), !waiting.caller.signs_in, *at)
            });
            let Some((at, _)) = next else { return };
            let Some(Waiting { caller, start, .. }) = state.waiting.remove(at) else { return };
            state.waiting_of.remove(&caller);
            state.running = state.running.saturating_add(1);
            state.ordinary = state.ordinary.saturating_add(u32::from(!caller.signs_in));
            state.running_of.add(&caller);
            // Where nobody listens any more, its ticket gives the place back.
            let _ = start.send(());
        }
    }

    fn free(&self, caller: &Caller) {
        let mut state = self.state.lock();
        state.running = state.running.saturating_sub(1);
        state.ordinary = state.ordinary.saturating_sub(u32::from(!caller.signs_in));
        state.running_of.remove(caller);
        self.start(&mut state);
    }

    /// Calls that run, and that wait.
    #[cfg(test)]
    pub(super) fn present(&self) -> (u32, usize) {
        let state = self.state.lock();
        (state.running, state.waiting.len())
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, future::BoxFuture};

    use super::*;

    fn scheduler(bounds: Bounds) -> Scheduler {
        Scheduler::new(Arc::new(bounds))
    }

    fn of(organization: u128, connection: u128) -> Caller {
        Caller {
            plugin: format!("p{connection}"),
            connection: Some(Uuid::from_u128(connection)),
            organization: Some(Uuid::from_u128(organization)),
            signs_in: false,
        }
    }

    fn sign_in(organization: u128) -> Caller {
        Caller { plugin: "oidc".into(), signs_in: true, ..of(organization, organization << 32) }
    }

    fn place(scheduler: &Scheduler, caller: Caller) -> Option<Place> {
        scheduler.take(caller).now_or_never().flatten()
    }

    fn wait(scheduler: &Scheduler, caller: Caller) -> BoxFuture<'static, Option<Place>> {
        let scheduler = scheduler.clone();
        let mut waiting = async move { scheduler.take(caller).await }.boxed();
        assert!((&mut waiting).now_or_never().is_none(), "it waits");
        waiting
    }

    #[test]
    fn one_organization_cannot_keep_others_from_signing_in() {
        let scheduler = scheduler(Bounds::default());
        // Many organizations take what they get, with connections of many plugins.
        let taken: Vec<_> = (0..400).filter_map(|n| place(&scheduler, of(n / 20, n))).collect();
        assert_eq!(taken.len(), 56, "the rest is kept for sign-in");
        // An anonymous visitor begins many sign-ins of one organization.
        let flood: Vec<_> = (0..50).filter_map(|_| place(&scheduler, sign_in(100))).collect();
        assert_eq!(flood.len(), 4);
        assert!(place(&scheduler, sign_in(101)).is_some());
        drop((taken, flood));
        assert_eq!(scheduler.present(), (0, 0));
    }

    #[test]
    fn two_organizations_cannot_keep_a_third_from_a_plugin() {
        let scheduler = scheduler(Bounds::default());
        let one = |organization, n| Caller { plugin: "webhook".into(), ..of(organization, organization * 100 + n) };
        let busy: Vec<_> = (0..32).flat_map(|n| [place(&scheduler, one(1, n)), place(&scheduler, one(2, n))]).collect();
        let had = busy.iter().flatten().count();
        assert_eq!(had, 24, "the rest of the plugin's places is for others");
        let mut newcomers: Vec<_> = (3..11).map(|organization| place(&scheduler, one(organization, 0))).collect();
        assert!(newcomers.iter().all(Option::is_some));
        assert!(place(&scheduler, of(3, 999)).is_some(), "another plugin has places of its own");
        newcomers.pop();
        assert!(place(&scheduler, one(3, 1)).is_none(), "who has one is no newcomer any more");
        assert!(place(&scheduler, one(12, 0)).is_some());
    }

    #[test]
    fn a_few_organizations_cannot_keep_another_from_all_plugins() {
        let scheduler = scheduler(Bounds::default());
        let busy: Vec<_> = (0..400).filter_map(|n| place(&scheduler, of(n % 4, n))).collect();
        let newcomers: Vec<_> = (4..30).filter_map(|n| place(&scheduler, of(n, n * 1000))).collect();
        assert_eq!((busy.len(), newcomers.len()), (42, 14), "all but what is kept for sign-in");
    }

    #[test]
    fn the_next_is_of_whom_has_the_fewest_calls() {
        let scheduler = scheduler(Bounds { calls: 4, calls_for_sign_in: 1, ..Bounds::default() });
        let mut taken: Vec<_> = (0..3).filter_map(|n| place(&scheduler, of(1, n))).collect();
        assert_eq!(taken.len(), 3);
        let mut greedy: Vec<_> = (3..9).map(|n| wait(&scheduler, of(1, n))).collect();
        let mut modest = wait(&scheduler, of(2, 20));
        taken.pop();
        let place = (&mut modest).now_or_never().flatten();
        assert!(place.is_some(), "although it came last");
        assert!(greedy.iter_mut().all(|waiting| waiting.now_or_never().is_none()));
        drop(place);
        let first = greedy.remove(0).now_or_never().flatten();
        assert!(first.is_some(), "within one organization, in order");
    }

    #[test]
    fn what_waits_holds_nothing_and_what_gives_up_leaves_nothing_behind() {
        let bounds =
            Bounds { calls_per_connection: 1, calls_per_plugin: 2, waiting_per_connection: 8, ..Bounds::default() };
        let scheduler = scheduler(bounds);
        let one = |connection| Caller { plugin: "webhook".into(), ..of(connection, connection) };
        let running = place(&scheduler, one(1));
        let waiting: Vec<_> = (0..8).map(|_| wait(&scheduler, one(1))).collect();
        assert!(place(&scheduler, one(1)).is_none() && scheduler.present() == (1, 8), "waiting is bounded");
        assert!(place(&scheduler, one(2)).is_some(), "who waits for its connection takes no place of the plugin");
        let (mut last, rest) = waiting.into_iter().map(Some).fold((None, vec![]), |(last, mut rest), next| {
            rest.extend(last);
            (next, rest)
        });
        drop(rest);
        assert_eq!(scheduler.present(), (1, 1));
        // It is let in, and is given up before it notices.
        drop(running);
        assert_eq!(scheduler.present(), (1, 0));
        drop(last.take());
        assert_eq!(scheduler.present(), (0, 0));
    }
}
