//! How many connections may be open, in all, of one client and of the IPv6 /48 around it. Where a ceiling is reached,
//! connections that are idle make room, the longest idle first; only where there are none is a newcomer turned away.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
};

use parking_lot::Mutex;

use super::activity::Activity;
use crate::domain::client::{CLIENTS_PER_SITE, Network};

/// The ceilings of one listener.
pub struct Ceilings {
    total: usize,
    /// Of one client.
    each: usize,
    /// Of one site.
    each_site: usize,
    /// Tells how many there are.
    gauge: metrics::Gauge,
    open: Mutex<Open>,
}

/// Whom a connection is counted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Holder {
    Client(Network),
    /// A trusted proxy, which brings the requests of many clients.
    Proxy(Network),
}

#[derive(Default)]
struct Open {
    /// In the order of networks, so that those of one site lie side by side.
    holders: BTreeMap<Holder, HashMap<u64, Arc<Activity>>>,
    /// Connections of the clients of each site.
    sites: HashMap<Network, usize>,
    count: usize,
    /// Of these, asked to close to make room.
    leaving: usize,
    next: u64,
}

/// A connection's place, given back when dropped.
pub struct Place {
    ceilings: Arc<Ceilings>,
    activity: Arc<Activity>,
    holder: Holder,
    id: u64,
}

/// Of the idle connections, this part makes room at once, so that they are not all looked at for each newcomer.
const PART: usize = 16;

impl Ceilings {
    /// So many in all, and of one client.
    pub fn new(total: usize, each: usize, gauge: metrics::Gauge) -> Arc<Self> {
        let each_site = each.saturating_mul(CLIENTS_PER_SITE as usize).min(total / 4).max(each);
        Arc::new(Self { total, each, each_site, gauge, open: Mutex::default() })
    }

    /// A place for a connection of this client; of a trusted proxy (`many`), which brings the requests of many clients, any
    /// number. `None`: there is none, and no other connection is idle.
    pub fn admit(self: &Arc<Self>, activity: &Arc<Activity>, network: Network, many: bool) -> Option<Place> {
        let mut open = self.open.lock();
        if !many {
            self.room_for_client(&mut open, network)?;
        }
        let full = open.count >= self.total + self.total / 8;
        let everything = || open.holders.values().flat_map(HashMap::values);
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
        let holder = if many { Holder::Proxy(network) } else { Holder::Client(network) };
        open.insert(holder, id, activity.clone());
        Some(Place { ceilings: self.clone(), activity: activity.clone(), holder, id })
    }

    /// Room for one more connection of this client, and of its site.
    fn room_for_client(&self, open: &mut Open, network: Network) -> Option<()> {
        if let Some(of_client) = open.holders.get(&Holder::Client(network)).filter(|held| held.len() >= self.each) {
            open.leaving += room_below(self.each, of_client.len(), || of_client.values())?;
        }
        let Some(site) = network.site() else { return Some(()) };
        let count = open.sites.get(&site).copied().unwrap_or_default();
        if count >= self.each_site {
            open.leaving += room_below(self.each_site, count, || open.of_site(site))?;
        }
        Some(())
    }
}

/// Sees to it that of so many connections, no more than so many stay; how many were asked to close for that. `None`: there is no
/// room for another one.
fn room_below<'a, I: Iterator<Item = &'a Arc<Activity>>>(
    most: usize,
    count: usize,
    connections: impl Fn() -> I,
) -> Option<usize> {
    let staying = connections().filter(|activity| !activity.is_leaving()).count();
    if staying >= most {
        Some(make_room(connections())).filter(|left| *left > 0)
    } else {
        (count <= most + most / 8).then_some(0)
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
        open.remove(self.holder, self.id);
        self.holder = Holder::Client(network);
        open.insert(self.holder, self.id, self.activity.clone());
        true
    }
}

impl Holder {
    fn site(self) -> Option<Network> {
        match self {
            Self::Client(network) => network.site(),
            Self::Proxy(_) => None,
        }
    }
}

impl Open {
    fn insert(&mut self, holder: Holder, id: u64, activity: Arc<Activity>) {
        self.holders.entry(holder).or_default().insert(id, activity);
        if let Some(site) = holder.site() {
            *self.sites.entry(site).or_default() += 1;
        }
    }

    fn remove(&mut self, holder: Holder, id: u64) {
        if let Some(held) = self.holders.get_mut(&holder) {
            held.remove(&id);
            if held.is_empty() {
                self.holders.remove(&holder);
            }
        }
        let Some(site) = holder.site() else { return };
        if let Some(count) = self.sites.get_mut(&site) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.sites.remove(&site);
            }
        }
    }

    fn of_site(&self, site: Network) -> impl Iterator<Item = &Arc<Activity>> {
        // A site comes before all networks in it.
        let within = self.holders.range(Holder::Client(site)..);
        within.take_while(move |(holder, _)| holder.site() == Some(site)).flat_map(|(_, held)| held.values())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.ceilings.open.lock();
        open.remove(self.holder, self.id);
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
        assert_eq!((open.count, open.leaving, open.holders.len()), (0, 0, 0));
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
    fn one_who_changes_from_network_to_network_within_a_48_has_a_quarter_at_the_most() {
        let ceilings = ceilings(400, 10);
        let v6 = |site: u16, n: u16| Network::of(std::net::Ipv6Addr::new(0x2001, 0xdb8, site, n, 0, 0, 0, 1).into());
        let before = ceilings.admit(&idle(), v6(0, 9), false).unwrap();
        let held: Vec<_> = (0..200).filter_map(|n| ceilings.admit(&busy(), v6(1, n), false)).collect();
        assert_eq!(held.len(), 100);
        let neighbours = [v6(0, 0), v6(2, 0), network(1)];
        assert!(neighbours.map(|neighbour| ceilings.admit(&idle(), neighbour, false)).iter().all(Option::is_some));
        assert!(ceilings.admit(&idle(), v6(1, 300), true).is_some(), "a trusted proxy in the same /48");
        drop(held);
        let idle: Vec<_> = (0..200).filter_map(|n| ceilings.admit(&idle(), v6(1, n), false)).collect();
        assert_eq!(idle.len(), 100 + 13, "the idle ones make room, and an eighth more may be open until they have");
        drop((before, idle));
        let open = ceilings.open.lock();
        assert_eq!((open.count, open.leaving, open.holders.len(), open.sites.len()), (0, 0, 0, 0));
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
