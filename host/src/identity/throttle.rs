//! Limits on attempts to sign in, by address and by client (RFC 6585's 429), in bounded memory.
//!
//! Failures count most: ten in a row for one address, then one each 30 seconds, which leaves guessing hopeless and a
//! person who mistypes in peace. All attempts count too, generously, so that many at once cannot run ahead of the count.

use std::{hash::Hash, net::IpAddr, num::NonZeroU32, time::Duration};

use governor::{
    Quota, RateLimiter, clock::Clock as _, middleware::NoOpMiddleware, nanos::Nanos, state::keyed::DashMapStateStore,
};
use moka::sync::Cache;

use crate::{clock::Clock, domain::email::Email};

/// Keys that are remembered by each limit at the most.
const KEYS: usize = 50_000;

/// Our clock as governor wants it: nanoseconds.
#[derive(Clone)]
struct Ticks(Clock);

impl governor::clock::Clock for Ticks {
    type Instant = Nanos;
    fn now(&self) -> Nanos {
        let nanos = self.0.now().timestamp_nanos_opt().and_then(|n| u64::try_from(n).ok());
        Nanos::new(nanos.unwrap_or_default())
    }
}

type Limiter<K> = RateLimiter<K, DashMapStateStore<K>, Ticks, NoOpMiddleware<Nanos>>;

/// So many at once, then one each `every`.
struct Limit<K: Hash + Eq + Clone>(Limiter<K>, Ticks);

impl<K: Hash + Eq + Clone> Limit<K> {
    fn new(clock: &Clock, burst: u32, every: Duration) -> Self {
        let ticks = Ticks(clock.clone());
        let quota = Quota::with_period(every).unwrap_or(Quota::per_second(NonZeroU32::MIN));
        let quota = quota.allow_burst(NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN));
        Self(RateLimiter::new(quota, DashMapStateStore::default(), ticks.clone()), ticks)
    }

    /// Counts one; refuses with how long to wait.
    fn count(&self, key: &K) -> Result<(), Duration> {
        if self.0.len() > KEYS {
            self.0.retain_recent();
            if self.0.len() > KEYS {
                // So many that are busy at once: nobody new until some are not.
                return Err(Duration::from_secs(60));
            }
        }
        self.0.check_key(key).map_err(|refused| refused.wait_time_from(self.1.now()))
    }
}

/// The limits.
pub struct Throttle {
    clock: Clock,
    attempts: Limit<Email>,
    failures: Limit<Email>,
    client_attempts: Limit<IpAddr>,
    client_failures: Limit<IpAddr>,
    /// Who used up their failures, and until when (nanoseconds).
    blocked: Cache<Key, u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Address(Email),
    Client(IpAddr),
}

/// An IPv6 customer has at least a /64 to choose from: that counts as one client.
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => std::net::Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX)).into(),
    }
}

impl Throttle {
    /// With everyone's slate clean.
    pub fn new(clock: &Clock) -> Self {
        Self {
            clock: clock.clone(),
            attempts: Limit::new(clock, 60, Duration::from_secs(1)),
            failures: Limit::new(clock, 10, Duration::from_secs(30)),
            client_attempts: Limit::new(clock, 600, Duration::from_millis(50)),
            client_failures: Limit::new(clock, 100, Duration::from_secs(1)),
            blocked: Cache::builder().max_capacity(2 * KEYS as u64).time_to_live(Duration::from_secs(120)).build(),
        }
    }

    /// Before an attempt: whether it may be made.
    ///
    /// # Errors
    /// How long to wait.
    pub fn attempt(&self, email: &Email, client: Option<IpAddr>) -> Result<(), Duration> {
        let now = Ticks(self.clock.clone()).now().as_u64();
        let client = client.map(network);
        for key in [Some(Key::Address(email.clone())), client.map(Key::Client)].into_iter().flatten() {
            if let Some(left) = self.blocked.get(&key).and_then(|until| until.checked_sub(now)).filter(|left| *left > 0)
            {
                return Err(Duration::from_nanos(left));
            }
        }
        if let Some(client) = client {
            self.client_attempts.count(&client)?;
        }
        self.attempts.count(email)
    }

    /// Before something that anybody may do without signing in: whether this client may.
    ///
    /// # Errors
    /// How long to wait.
    pub fn visit(&self, client: Option<IpAddr>) -> Result<(), Duration> {
        client.map_or(Ok(()), |client| self.client_attempts.count(&network(client)))
    }

    /// After an attempt that failed.
    pub fn failed(&self, email: &Email, client: Option<IpAddr>) {
        let now = Ticks(self.clock.clone()).now().as_u64();
        let until = |wait: Duration| now.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX));
        if let Err(wait) = self.failures.count(email) {
            self.blocked.insert(Key::Address(email.clone()), until(wait));
        }
        if let Some(client) = client.map(network)
            && let Err(wait) = self.client_failures.count(&client)
        {
            self.blocked.insert(Key::Client(client), until(wait));
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta};

    use super::*;

    #[test]
    fn failures_close_an_address_for_a_while_and_no_other() {
        let clock = Clock::fixed(DateTime::from_timestamp(1_800_000_000, 0).unwrap(), 1);
        let throttle = Throttle::new(&clock);
        let (ada, bob) = (Email::parse("ada@x.com").unwrap(), Email::parse("bob@x.com").unwrap());
        for _ in 0..10 {
            throttle.attempt(&ada, None).unwrap();
            throttle.failed(&ada, None);
        }
        throttle.attempt(&ada, None).unwrap();
        throttle.failed(&ada, None);
        let wait = throttle.attempt(&ada, None).unwrap_err();
        assert!(wait <= Duration::from_secs(30) && wait > Duration::from_secs(20), "{wait:?}");
        throttle.attempt(&bob, None).unwrap();
        clock.advance(TimeDelta::seconds(31));
        throttle.attempt(&ada, None).unwrap();
    }

    #[test]
    fn attempts_without_failures_are_bounded_too() {
        let clock = Clock::fixed(DateTime::from_timestamp(1_800_000_000, 0).unwrap(), 1);
        let throttle = Throttle::new(&clock);
        let ada = Email::parse("ada@x.com").unwrap();
        let good = (0..100).filter(|_| throttle.attempt(&ada, None).is_ok()).count();
        assert_eq!(good, 60);
    }

    #[test]
    fn a_client_is_limited_over_all_addresses() {
        let clock = Clock::fixed(DateTime::from_timestamp(1_800_000_000, 0).unwrap(), 1);
        let throttle = Throttle::new(&clock);
        let email = |i: usize| Email::parse(&format!("user{i}@x.com")).unwrap();
        let client = |i: usize| Some(format!("2001:db8::{i:x}").parse().unwrap());
        for i in 0..=100 {
            throttle.failed(&email(i), client(i));
        }
        assert!(throttle.attempt(&email(1000), client(7777)).is_err(), "the same /64");
        assert!(throttle.attempt(&email(1000), Some("2001:db8:1::1".parse().unwrap())).is_ok());
    }
}
