//! How many connections may be open, in all and of one client. Where a ceiling is reached, connections that are idle make
//! room, the longest idle first; only where there are none is a newcomer turned away.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use parking_lot::Mutex;

use super::activity::Activity;
use crate::domain::client::Network;

/// The ceilings of one listener.
pub struct Ceilings {
    total: usize,
    /// Of one client.
    each: usize,
    /// Tells how many there are.
    gauge: metrics::Gauge,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    clients: HashMap<Network, HashMap<u64, Arc<Activity>>>,
    count: usize,
    /// Of these, asked to close to make room.
    leaving: usize,
    next: u64,
}

/// A connection's place, given back when dropped.
pub struct Place {
    ceilings: Arc<Ceilings>,
    activity: Arc<Activity>,
    network: Network,
    id: u64,
}

/// Of the idle connections, this part makes room at once, so that they are not all looked at for each newcomer.
const PART: usize = 16;

impl Ceilings {
    /// So many in all, and of one client.
    pub fn new(total: usize, each: usize, gauge: metrics::Gauge) -> Arc<Self> {
        Arc::new(Self { total, each, gauge, open: Mutex::default() })
    }

    /// A place for a connection of this client; of a trusted proxy (`many`), which brings the requests of many clients, any
    /// number. `None`: there is none, and no other connection is idle.
    pub fn admit(self: &Arc<Self>, activity: &Arc<Activity>, network: Network, many: bool) -> Option<Place> {
        let mut open = self.open.lock();
        if !many {
            self.room_for_client(&mut open, network)?;
        }
        let full = open.count >= self.total + self.total / 8;
        let everything = || open.clients.values().flat_map(HashMap::values);
        // Of those that were asked to leave, some may have something under way again and stay. At the hard limit others make room
        // then, but only once no more are about to go: a flood must not close everybody's.
        let more =
            if full { !everything().any(is_going) } else { open.count.saturating_sub(open.leaving) >= self.total };
        if more {
            let left = make_room(everything());
            if left == 0 {
                return None;
            }
            open.leaving += left;
        }
        if full {
            return None;
        }
        open.count += 1;
        self.gauge.increment(1);
        let id = open.next;
        open.next += 1;
        open.clients.entry(network).or_default().insert(id, activity.clone());
        Some(Place { ceilings: self.clone(), activity: activity.clone(), network, id })
    }

    fn room_for_client(&self, open: &mut Open, network: Network) -> Option<()> {
        let Some(of_client) = open.clients.get(&network) else { return Some(()) };
        if of_client.len() < self.each {
            return Some(());
        }
        let staying = of_client.values().filter(|activity| !activity.is_leaving()).count();
        if staying >= self.each {
            let left = make_room(of_client.values());
            if left == 0 {
                return None;
            }
            open.leaving += left;
        } else if of_client.len() > self.each + self.each / 8 {
            return None;
        }
        Some(())
    }
}

impl Place {
    /// Counts the connection for the client that a proxy named; not if that one has as many as it may.
    #[must_use]
    pub fn belongs_to(&mut self, network: Network) -> bool {
        let mut open = self.ceilings.open.lock();
        if self.ceilings.room_for_client(&mut open, network).is_none() {
            return false;
        }
        open.remove(self.network, self.id);
        open.clients.entry(network).or_default().insert(self.id, self.activity.clone());
        self.network = network;
        true
    }
}

impl Open {
    fn remove(&mut self, network: Network, id: u64) {
        if let Some(of_client) = self.clients.get_mut(&network) {
            of_client.remove(&id);
            if of_client.is_empty() {
                self.clients.remove(&network);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.ceilings.open.lock();
        open.remove(self.network, self.id);
        open.count = open.count.saturating_sub(1);
        self.ceilings.gauge.decrement(1);
        if self.activity.is_leaving() {
            open.leaving = open.leaving.saturating_sub(1);
        }
    }
}

/// Whether it was asked to close, and nothing keeps it.
fn is_going(activity: &Arc<Activity>) -> bool {
    activity.is_leaving() && activity.is_idle()
}

/// Asks the longest idle of these connections to close; how many.
fn make_room<'a>(connections: impl Iterator<Item = &'a Arc<Activity>>) -> usize {
    let mut idle: Vec<_> = connections.filter_map(|activity| Some((activity.idle_since()?, activity))).collect();
    let part = (idle.len() / PART).max(1).min(idle.len());
    if part < idle.len() {
        idle.select_nth_unstable_by_key(part, |(since, _)| *since);
    }
    let mut left = 0;
    for (_, activity) in idle.iter().take(part) {
        activity.leaving.store(true, Ordering::Release);
        activity.wake.notify_one();
        left += 1;
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(n: u8) -> Network {
        Network::of(std::net::Ipv4Addr::new(192, 0, 2, n).into())
    }

    fn ceilings(total: usize, each: usize) -> Arc<Ceilings> {
        Ceilings::new(total, each, metrics::Gauge::noop())
    }

    fn count(ceilings: &Ceilings) -> usize {
        ceilings.open.lock().count
    }

    fn idle() -> Arc<Activity> {
        Arc::new(Activity::new())
    }

    fn busy() -> Arc<Activity> {
        let activity = idle();
        activity.begin(false);
        activity
    }

    #[test]
    fn who_is_busy_stays_and_a_newcomer_is_turned_away() {
        let ceilings = ceilings(4, 2);
        let places: Vec<_> =
            [1, 1, 2, 2].iter().map(|n| ceilings.admit(&busy(), network(*n), false).unwrap()).collect();
        assert!(ceilings.admit(&idle(), network(1), false).is_none(), "two of this client");
        assert!(ceilings.admit(&idle(), network(3), false).is_none(), "four in all");
        drop(places);
        assert_eq!(count(&ceilings), 0);
        assert!(ceilings.admit(&idle(), network(3), false).is_some());
    }

    #[test]
    fn the_longest_idle_makes_room() {
        let ceilings = ceilings(100, 2);
        let (first, second, third) = (idle(), idle(), idle());
        let held = [&first, &second].map(|activity| ceilings.admit(activity, network(1), false).unwrap());
        let place = ceilings.admit(&third, network(1), false);
        assert!(place.is_some() && first.is_leaving() && !second.is_leaving() && !third.is_leaving());
        assert!(ceilings.admit(&idle(), network(1), false).is_some(), "another makes room");
        assert!(second.is_leaving());
        drop(held);
        assert_eq!(count(&ceilings), 1);
    }

    #[test]
    fn a_flood_does_not_outgrow_the_ceiling_while_others_are_still_closing() {
        let ceilings = ceilings(64, 1000);
        let places: Vec<_> = (0..1000).filter_map(|_| ceilings.admit(&idle(), network(1), false)).collect();
        assert_eq!(places.len(), 64 + 8);
        drop(places);
        let open = ceilings.open.lock();
        assert_eq!((open.count, open.leaving, open.clients.len()), (0, 0, 0));
    }

    #[test]
    fn idle_connections_make_room_also_where_those_that_were_asked_to_leave_stay() {
        let ceilings = ceilings(16, 1000);
        let first: Vec<_> = (0..16).map(|_| idle()).collect();
        let mut places: Vec<_> =
            first.iter().map(|activity| ceilings.admit(activity, network(1), false).unwrap()).collect();
        places.extend((0..2).map(|_| ceilings.admit(&idle(), network(1), false).unwrap()));
        let leaving = || first.iter().filter(|activity| activity.is_leaving()).count();
        assert_eq!(leaving(), 2);
        assert!(ceilings.admit(&idle(), network(2), false).is_none(), "the hard limit");
        assert_eq!(leaving(), 2, "two are about to go");
        first.iter().filter(|activity| activity.is_leaving()).for_each(|activity| activity.begin(true));
        assert!(ceilings.admit(&idle(), network(2), false).is_none());
        assert_eq!(leaving(), 3, "they stay: another one goes");
        drop(places);
    }

    #[test]
    fn a_trusted_proxy_brings_any_number_and_its_clients_are_counted_apart() {
        let ceilings = ceilings(100, 2);
        let mut places: Vec<_> = (0..10).map(|_| ceilings.admit(&busy(), network(9), true).unwrap()).collect();
        let moved: Vec<_> = places.iter_mut().map(|place| place.belongs_to(network(1))).collect();
        assert_eq!(moved.iter().filter(|moved| **moved).count(), 2);
        assert_eq!(count(&ceilings), 10);
    }
}
