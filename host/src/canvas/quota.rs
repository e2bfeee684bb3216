//! What one person, organization or canvas may take of this host: sockets, and messages in a second.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::outbox::Close;
use crate::{
    config::limits::ServerLimits,
    domain::{
        id::{CanvasId, OrganizationId, UserId},
        principal::Principal,
    },
};

/// Bytes that count as one message; a larger one counts once for each.
const UNIT: usize = 16 * 1024;

/// How fast a [`Bucket`] fills, and how much it holds.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Tokens that come in a second.
    pub per_second: u32,
    /// Tokens it holds at the most.
    pub burst: u32,
}

/// A token bucket.
#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, tokens: rate.burst.into(), at: now }
    }

    /// Takes so many tokens; more than the bucket holds are taken for all it holds.
    ///
    /// # Errors
    /// After how long there will be that many; nothing was taken.
    pub fn take(&mut self, tokens: u32, now: Instant) -> Result<(), Duration> {
        self.fill(now);
        let wanted = f64::from(tokens.min(self.rate.burst));
        if self.tokens < wanted {
            return Err(Duration::from_secs_f64((wanted - self.tokens) / f64::from(self.rate.per_second)));
        }
        self.tokens -= wanted;
        Ok(())
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = f64::from(self.rate.burst).min(self.tokens + passed * f64::from(self.rate.per_second));
        self.at = now;
    }

    fn full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.tokens >= f64::from(self.rate.burst)
    }
}

/// How many tokens a message of so many bytes takes.
pub fn cost(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT).max(1)).unwrap_or(u32::MAX)
}

/// The shares of this host. Cheap to clone.
#[derive(Clone)]
pub struct Quota {
    limits: Arc<ServerLimits>,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    sockets: usize,
    organizations: HashMap<OrganizationId, usize>,
    people: HashMap<UserId, Person>,
    /// How many people are remembered when those are forgotten who left long enough ago.
    sweep_at: usize,
}

struct Person {
    canvases: HashMap<CanvasId, usize>,
    /// Kept after the last socket until it is full: reconnecting must not fill it.
    messages: Arc<Mutex<Bucket>>,
}

impl Person {
    fn sockets(&self) -> usize {
        self.canvases.values().sum()
    }
}

/// One socket's place; given back when dropped.
pub struct Seat {
    taken: Arc<Mutex<Taken>>,
    organization: OrganizationId,
    user: UserId,
    canvas: CanvasId,
    /// The person's messages, of all their sockets on this host.
    pub messages: Arc<Mutex<Bucket>>,
}

impl Quota {
    /// Nothing taken.
    pub fn new(limits: ServerLimits) -> Self {
        Self { limits: Arc::new(limits), taken: Arc::default() }
    }

    /// A place for one more socket.
    ///
    /// # Errors
    /// What to close it with: the host is full, or the organization's or the person's share is used up.
    pub fn seat(&self, principal: &Principal, canvas: CanvasId, now: Instant) -> Result<Seat, Close> {
        let (organization, user) = (principal.organization_id, principal.user_id);
        let limits = &self.limits;
        let mut taken = self.taken.lock();
        if taken.sockets >= limits.canvas_sockets {
            return Err(Close::LATER);
        }
        let of_organization = taken.organizations.get(&organization).copied().unwrap_or_default();
        if of_organization >= limits.canvas_sockets_per_organization {
            return Err(Close::CROWDED);
        }
        if let Some(person) = taken.people.get(&user) {
            let here = person.canvases.get(&canvas).copied().unwrap_or_default();
            if person.sockets() >= limits.canvas_sockets_per_person
                || here >= limits.canvas_sockets_per_person_and_canvas
            {
                return Err(Close::CROWDED);
            }
        }
        taken.forget(now);
        taken.sockets += 1;
        *taken.organizations.entry(organization).or_default() += 1;
        let rate = Rate { per_second: limits.canvas_messages_per_second, burst: limits.canvas_messages_burst };
        let person = taken.people.entry(user).or_insert_with(|| Person {
            canvases: HashMap::new(),
            messages: Arc::new(Mutex::new(Bucket::new(rate, now))),
        });
        *person.canvases.entry(canvas).or_default() += 1;
        let messages = person.messages.clone();
        metrics::gauge!("kaizen_canvas_sockets").increment(1.0);
        Ok(Seat { taken: self.taken.clone(), organization, user, canvas, messages })
    }
}

impl Taken {
    /// Forgets people without a socket whose bucket is full again, each time there are twice as many as were kept.
    fn forget(&mut self, now: Instant) {
        if self.people.len() < self.sweep_at.max(64) {
            return;
        }
        self.people.retain(|_, person| !person.canvases.is_empty() || !person.messages.lock().full(now));
        self.sweep_at = self.people.len() * 2;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        metrics::gauge!("kaizen_canvas_sockets").decrement(1.0);
        let mut taken = self.taken.lock();
        taken.sockets -= 1;
        if less(&mut taken.organizations, &self.organization) {
            taken.organizations.remove(&self.organization);
        }
        if let Some(person) = taken.people.get_mut(&self.user)
            && less(&mut person.canvases, &self.canvas)
        {
            person.canvases.remove(&self.canvas);
        }
    }
}

/// Counts one less; whether nothing is left.
fn less<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) -> bool {
    counts.get_mut(key).is_some_and(|count| {
        *count = count.saturating_sub(1);
        *count == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn person(clock: &Clock, organization: OrganizationId) -> Principal {
        Principal {
            user_id: clock.id(),
            organization_id: organization,
            email: String::new(),
            name: String::new(),
            grants: Vec::new(),
            attributes: serde_json::Map::new(),
            platform_administrator: false,
            session_id: None,
            policy_version: None,
        }
    }

    #[test]
    fn each_share_is_refused_when_it_is_used_up_and_comes_back() {
        let clock = Clock::system();
        let limits = ServerLimits {
            canvas_sockets: 6,
            canvas_sockets_per_organization: 5,
            canvas_sockets_per_person: 3,
            canvas_sockets_per_person_and_canvas: 2,
            ..ServerLimits::default()
        };
        let quota = Quota::new(limits);
        let (acme, rival): (OrganizationId, OrganizationId) = (clock.id(), clock.id());
        let (ada, ben, eve, ivo) =
            (person(&clock, acme), person(&clock, acme), person(&clock, rival), person(&clock, rival));
        let (one, two): (CanvasId, CanvasId) = (clock.id(), clock.id());
        let now = Instant::now();
        let seat = |who, canvas| quota.seat(who, canvas, now);
        let mut seats = vec![seat(&ada, one).unwrap(), seat(&ada, one).unwrap()];
        assert_eq!(seat(&ada, one).err(), Some(Close::CROWDED), "on one canvas");
        seats.push(seat(&ada, two).unwrap());
        assert_eq!(seat(&ada, two).err(), Some(Close::CROWDED), "on all canvases");
        seats.push(seat(&ben, one).unwrap());
        seats.push(seat(&ben, one).unwrap());
        assert_eq!(seat(&ben, two).err(), Some(Close::CROWDED), "the organization's");
        let last = seat(&eve, one).unwrap();
        assert_eq!(seat(&ivo, one).err(), Some(Close::LATER), "the host's");
        drop(last);
        drop(seats);
        assert_eq!(seat(&ada, one).err(), None);
        let taken = quota.taken.lock();
        assert_eq!((taken.sockets, taken.organizations.len()), (0, 0));
    }

    #[test]
    fn a_bucket_says_how_long_to_wait_and_reconnecting_does_not_fill_it() {
        let clock = Clock::system();
        let limits =
            ServerLimits { canvas_messages_per_second: 10, canvas_messages_burst: 20, ..ServerLimits::default() };
        let quota = Quota::new(limits);
        let (ada, canvas) = (person(&clock, clock.id()), clock.id());
        let now = Instant::now();
        let take = |tokens, now| quota.seat(&ada, canvas, now).unwrap().messages.lock().take(tokens, now);
        assert_eq!(take(1_000, now), Ok(()), "one message that is larger than the bucket");
        assert_eq!(take(5, now), Err(Duration::from_millis(500)));
        let later = now + Duration::from_millis(500);
        assert_eq!(take(5, later), Ok(()));
        assert!(take(1, later).is_err());
        assert_eq!((cost(0), cost(UNIT), cost(UNIT + 1), cost(256 * 1024)), (1, 1, 2, 16));
    }

    #[test]
    fn people_who_left_are_forgotten_once_their_bucket_is_full() {
        let clock = Clock::system();
        let quota = Quota::new(ServerLimits::default());
        let (acme, canvas): (OrganizationId, CanvasId) = (clock.id(), clock.id());
        let mut now = Instant::now();
        for _ in 0..500 {
            let seat = quota.seat(&person(&clock, acme), canvas, now).unwrap();
            assert_eq!(seat.messages.lock().take(1, now), Ok(()));
            now += Duration::from_secs(1);
        }
        let remembered = quota.taken.lock().people.len();
        assert!(remembered <= 130, "{remembered}");
    }
}
