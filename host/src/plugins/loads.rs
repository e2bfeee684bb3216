//! Versions that are being loaded on this host, or failed to load: each by itself, in the background, so that a plugin that
//! takes long or does not load keeps no other from being swapped. A failed load is tried again, later and later.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

use super::{Plugin, registry::Loaded};
use crate::domain::{connection::Kind, job::backoff};

/// Loads at once in the background; each holds a whole component. Fewer than components are compiled at once
/// ([`super::check`]), so that one which somebody waits for finds a place.
const AT_ONCE: usize = 3;

/// Which component of which plugin.
pub(super) type Key = (Kind, String, String);

/// What became of a load.
struct Load {
    running: bool,
    /// Loaded; the next refresh takes it over.
    ready: Option<Arc<Plugin>>,
    /// Why it does not load.
    failure: Option<String>,
    failures: u32,
    again_at: Instant,
}

/// The loads of this host.
pub(super) struct Loads {
    loads: Mutex<BTreeMap<Key, Load>>,
    /// Places in the background.
    pub(super) places: Semaphore,
    /// Told after each refresh, so also when something was loaded or failed to.
    changed: Notify,
    /// Setting `plugin_load_retry_seconds`: the longest pause before a load is tried again.
    longest_pause: Duration,
}

impl Loads {
    pub(super) fn new(longest_pause: Duration) -> Self {
        Self { loads: Mutex::default(), places: Semaphore::new(AT_ONCE), changed: Notify::new(), longest_pause }
    }

    /// How a version is that is needed and not ready in the registry; and whether the caller is to begin loading it.
    pub(super) fn state(&self, key: &Key, now: Instant) -> (Loaded, bool) {
        let mut loads = self.loads.lock();
        let new = || Load { running: false, ready: None, failure: None, failures: 0, again_at: now };
        let load = loads.entry(key.clone()).or_insert_with(new);
        if let Some(plugin) = &load.ready {
            return (Loaded::Ready(plugin.clone()), false);
        }
        let begin = !load.running && load.again_at <= now;
        load.running |= begin;
        (load.failure.clone().map_or(Loaded::Loading, Loaded::Failed), begin)
    }

    /// Writes down how a load ended. Returns for how long it rests after a failure, where it failed for another reason than
    /// before.
    pub(super) fn ended(
        &self,
        key: &Key,
        result: Result<Arc<Plugin>, String>,
        (now, random): (Instant, u64),
    ) -> Option<Duration> {
        let mut loads = self.loads.lock();
        // Forgotten meanwhile: nothing needs it any more.
        let load = loads.get_mut(key)?;
        load.running = false;
        match result {
            Ok(plugin) => {
                load.ready = Some(plugin);
                None
            }
            Err(why) => {
                load.failures = load.failures.saturating_add(1);
                let pause = backoff(load.failures, None, self.longest_pause, random);
                load.again_at = now + pause;
                let new = load.failure.as_ref() != Some(&why);
                load.failure = Some(why);
                new.then_some(pause)
            }
        }
    }

    /// Forgets all but what is still missing.
    pub(super) fn keep(&self, missing: &BTreeSet<Key>) {
        self.loads.lock().retain(|key, _| missing.contains(key));
    }

    /// Whether a refresh has something to do: take over what was loaded, or try again what failed.
    pub(super) fn due(&self, now: Instant) -> bool {
        self.loads.lock().values().any(|load| load.ready.is_some() || (!load.running && load.again_at <= now))
    }

    /// Whether something is being loaded for the first time.
    fn loading(&self) -> bool {
        self.loads.lock().values().any(|load| load.ready.is_some() || (load.running && load.failure.is_none()))
    }

    /// The registry was replaced.
    pub(super) fn refreshed(&self) {
        self.changed.notify_waiters();
    }

    /// Returns once `done` says so, which is looked at after each refresh.
    pub(super) async fn until<T>(&self, mut done: impl FnMut() -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            // Before it is looked: a refresh in between is not missed.
            changed.as_mut().enable();
            if let Some(found) = done() {
                return found;
            }
            changed.await;
        }
    }

    /// Returns once each load has ended at least once, well or not.
    pub(super) async fn tried(&self) {
        self.until(|| (!self.loading()).then_some(())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        (Kind::AuditSink, "n".into(), "aa".into())
    }

    #[test]
    fn a_failed_load_is_tried_again_later_and_later_and_told_once() {
        let (loads, mut now) = (Loads::new(Duration::from_secs(8)), Instant::now());
        assert!(matches!(loads.state(&key(), now), (Loaded::Loading, true)));
        assert!(matches!(loads.state(&key(), now), (Loaded::Loading, false)), "it is under way");
        for (attempt, pause) in [1, 2, 4, 8, 8, 8].map(Duration::from_secs).into_iter().enumerate() {
            let told = loads.ended(&key(), Err("no memory".into()), (now, u64::MAX));
            assert_eq!(told, (attempt == 0).then_some(pause), "the same reason again is not told again");
            assert!(matches!(loads.state(&key(), now), (Loaded::Failed(why), false) if why == "no memory"));
            assert!(!loads.due(now + pause / 2) && loads.due(now + pause));
            now += pause;
            assert!(matches!(loads.state(&key(), now), (Loaded::Failed(_), true)), "the reason shows meanwhile");
            assert!(!loads.due(now + pause), "it is under way");
        }
        assert!(loads.ended(&key(), Err("another".into()), (now, 0)).is_some());
    }

    #[tokio::test]
    async fn what_is_not_needed_any_more_is_forgotten() {
        let (loads, now) = (Loads::new(Duration::from_secs(8)), Instant::now());
        loads.state(&key(), now);
        loads.keep(&BTreeSet::new());
        assert!(loads.ended(&key(), Err("late".into()), (now, 0)).is_none() && !loads.due(now));
        loads.tried().await;
    }
}
