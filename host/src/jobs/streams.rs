//! How many event streams are open: bounded for the host, for each organization and for each person.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use parking_lot::Mutex;

use crate::{
    config::limits::ServerLimits,
    domain::id::{OrganizationId, UserId},
};

/// Counts open streams. Cheap to clone.
#[derive(Clone)]
pub struct Streams {
    most: Most,
    open: Arc<Mutex<Open>>,
}

#[derive(Clone, Copy)]
struct Most {
    all: usize,
    of_organization: usize,
    of_person: usize,
}

#[derive(Default)]
struct Open {
    all: usize,
    of_organization: HashMap<OrganizationId, usize>,
    of_person: HashMap<UserId, usize>,
}

/// One open stream; dropping it makes room for another.
pub struct Stream {
    streams: Streams,
    organization: OrganizationId,
    user: UserId,
}

fn of<K: Eq + Hash>(counts: &HashMap<K, usize>, key: &K) -> usize {
    counts.get(key).copied().unwrap_or_default()
}

fn less<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    match counts.get_mut(key) {
        Some(count) if *count > 1 => *count -= 1,
        _ => drop(counts.remove(key)),
    }
}

impl Streams {
    /// None open, and as many allowed as is set.
    pub fn new(limits: &ServerLimits) -> Self {
        let most = Most {
            all: limits.event_streams,
            of_organization: limits.event_streams_per_organization,
            of_person: limits.event_streams_per_person,
        };
        Self { most, open: Arc::default() }
    }

    /// Room for one more, if there is.
    pub fn open(&self, organization: OrganizationId, user: UserId) -> Option<Stream> {
        let mut open = self.open.lock();
        if open.all >= self.most.all
            || of(&open.of_organization, &organization) >= self.most.of_organization
            || of(&open.of_person, &user) >= self.most.of_person
        {
            return None;
        }
        open.all += 1;
        *open.of_organization.entry(organization).or_default() += 1;
        *open.of_person.entry(user).or_default() += 1;
        Some(Stream { streams: self.clone(), organization, user })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut open = self.streams.open.lock();
        open.all = open.all.saturating_sub(1);
        less(&mut open.of_organization, &self.organization);
        less(&mut open.of_person, &self.user);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn streams() -> Streams {
        Streams::new(&ServerLimits {
            event_streams: 6,
            event_streams_per_organization: 4,
            event_streams_per_person: 3,
            ..ServerLimits::default()
        })
    }

    /// One more of this person of this organization.
    fn open(streams: &Streams, organization: u128, user: u128) -> Option<Stream> {
        streams.open(OrganizationId(Uuid::from_u128(organization)), UserId(Uuid::from_u128(user)))
    }

    /// As many as there is room for.
    fn all(streams: &Streams, organization: u128, user: u128) -> Vec<Stream> {
        std::iter::from_fn(|| open(streams, organization, user)).collect()
    }

    #[test]
    fn one_person_cannot_take_all_streams_and_closing_makes_room() {
        let streams = streams();
        let mut held = all(&streams, 1, 1);
        assert_eq!(held.len(), 3);
        assert!(open(&streams, 1, 2).is_some());
        held.pop();
        assert!(open(&streams, 1, 1).is_some());
        drop(held);
        let open = streams.open.lock();
        assert!(open.all == 0 && open.of_organization.is_empty() && open.of_person.is_empty());
    }

    #[test]
    fn the_people_of_one_organization_cannot_take_all_streams() {
        let streams = streams();
        let held = [1, 2, 3].map(|user| all(&streams, 1, user));
        assert_eq!(held.each_ref().map(Vec::len), [3, 1, 0]);
        assert!(open(&streams, 2, 4).is_some());
    }

    #[test]
    fn the_host_holds_a_bounded_number() {
        let streams = streams();
        let held = [1, 2, 3].map(|each| all(&streams, each, each));
        assert_eq!(held.each_ref().map(Vec::len), [3, 3, 0]);
        drop(held);
        assert!(open(&streams, 9, 9).is_some());
    }
}
