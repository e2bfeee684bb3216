//! Limits on what anybody may do before they have signed in (RFC 6585's 429), each with a budget of its own and in bounded
//! memory: one who uses theirs up takes nothing from anybody else.
//!
//! Wrong passwords count most. They are counted for each pair of account and client, ten and then two a minute, which leaves
//! guessing hopeless and a person who mistypes in peace; for each client over all accounts; and for each account over all
//! clients, so that many hosts cannot guess together. Once that last budget is used up, only browsers (by their device
//! cookie) and clients that signed in to the account before may try: nobody can lock its owner out. What a signed-in user
//! confirms is counted by their session, which nobody else has.
//!
//! An account is a user, not an e-mail address: anybody may make a user of anybody's address in an organization of their own.

use std::{hash::Hash, num::NonZeroU32, sync::Arc, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::Clock as _,
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{InMemoryState, NotKeyed, StateStore},
};
use moka::{policy::EvictionPolicy, sync::Cache};

use super::device::Device;
use crate::{
    clock::Clock,
    config::limits::ServerLimits,
    domain::{
        client::{CLIENTS_PER_SITE, Client, Network},
        email::Email,
        id::{SessionId, UserId},
    },
};

/// How long a client that signed in to an account is known for it.
const KNOWN: Duration = Duration::from_secs(30 * 24 * 3600);

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

/// governor's states of the keys seen last. A full table forgets whom it has not seen for longest: were newcomers refused
/// instead, whoever fills it would shut everybody out.
struct Recent<K>(Cache<K, Arc<InMemoryState>>);

impl<K: Hash + Eq + Clone + Send + Sync + 'static> StateStore for Recent<K> {
    type Key = K;
    fn measure_and_replace<T, F, E>(&self, key: &K, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.0.get_with_by_ref(key, Arc::default).measure_and_replace(&NotKeyed::NonKey, f)
    }
}

/// So many at once, then so many a minute.
struct Limit<K: Hash + Eq + Clone + Send + Sync + 'static> {
    limiter: RateLimiter<K, Recent<K>, Ticks, NoOpMiddleware<Nanos>>,
    ticks: Ticks,
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Limit<K> {
    fn new(clock: &Clock, burst: u32, per_minute: u32, keys: u64) -> Self {
        let ticks = Ticks(clock.clone());
        let every = Duration::from_secs(60) / per_minute.max(1);
        let quota = Quota::with_period(every).unwrap_or(Quota::per_second(NonZeroU32::MIN));
        let quota = quota.allow_burst(NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN));
        // After this long without a request, everything is allowed again anyway.
        let full = (every * burst).max(Duration::from_secs(60));
        let recent = Cache::builder().max_capacity(keys).time_to_idle(full).eviction_policy(EvictionPolicy::lru());
        Self { limiter: RateLimiter::new(quota, Recent(recent.build()), ticks.clone()), ticks }
    }

    /// Counts one; refuses with how long to wait.
    fn count(&self, key: &K) -> Result<(), Duration> {
        self.limiter.check_key(key).map_err(|refused| refused.wait_time_from(self.ticks.now()))
    }
}

/// A limit for each client, and a wider one for each IPv6 /48.
struct PerClient {
    networks: Limit<Network>,
    sites: Limit<Network>,
}

impl PerClient {
    fn new(clock: &Clock, burst: u32, per_minute: u32, keys: u64) -> Self {
        let wide = |number: u32| number.saturating_mul(CLIENTS_PER_SITE);
        Self {
            networks: Limit::new(clock, burst, per_minute, keys),
            sites: Limit::new(clock, wide(burst), wide(per_minute), keys),
        }
    }

    /// Counts one; refuses with whom it refuses and how long to wait.
    fn count(&self, network: Network) -> Result<(), (Network, Duration)> {
        self.networks.count(&network).map_err(|wait| (network, wait))?;
        network.site().map_or(Ok(()), |site| self.sites.count(&site).map_err(|wait| (site, wait)))
    }
}

/// What anybody may ask, as far as it costs something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anonymous {
    /// Where an address signs in, or to be sent to an identity provider.
    Lookup,
    /// To finish a sign-in at an identity provider.
    SsoCallback,
    /// To open a canvas socket with a ticket.
    CanvasTicket,
}

/// What passwords are tried for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Account {
    /// A user.
    User(UserId),
    /// An address that no user has: limited as users are, so that it does not tell.
    Nobody(Email),
}

/// What wrong passwords for an account are counted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Party {
    /// A client that is not known by anything else.
    Network(Network),
    /// A browser that signed in to this account before.
    Device(Device),
    /// Somebody who is signed in to it.
    Session(SessionId),
}

/// Who used up their failures.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Blocked {
    Client(Network),
    Party(Account, Party),
    /// Everybody who is not known for this account.
    Account(Account),
}

/// The limits.
pub struct Throttle {
    ticks: Ticks,
    lookups: PerClient,
    sso_callbacks: PerClient,
    canvas_tickets: PerClient,
    refreshes: Limit<SessionId>,
    passwords: PerClient,
    /// The same for browsers that signed in before, by what their cookie says of the account.
    device_passwords: Limit<[u8; 16]>,
    client_failures: PerClient,
    party_failures: Limit<(Account, Party)>,
    account_failures: Limit<Account>,
    /// Clients that signed in to an account.
    known: Cache<(UserId, Network), ()>,
    /// Until when (nanoseconds).
    blocked: Cache<Blocked, u64>,
}

impl Throttle {
    /// With everyone's slate clean.
    pub fn new(clock: &Clock, limits: &ServerLimits) -> Self {
        let keys = limits.throttle_keys;
        let per_client = |burst, per_minute| PerClient::new(clock, burst, per_minute, keys);
        let longest = [limits.password_failures_per_minute, limits.account_failures_per_minute];
        let longest = longest.into_iter().chain([limits.account_total_failures_per_minute]).min().unwrap_or(1).max(1);
        Self {
            ticks: Ticks(clock.clone()),
            lookups: per_client(limits.lookup_burst, limits.lookups_per_minute),
            sso_callbacks: per_client(limits.sso_callback_burst, limits.sso_callbacks_per_minute),
            canvas_tickets: per_client(limits.canvas_ticket_burst, limits.canvas_tickets_per_minute),
            refreshes: Limit::new(clock, limits.refresh_burst, limits.refreshes_per_minute, keys),
            passwords: per_client(limits.password_burst, limits.passwords_per_minute),
            device_passwords: Limit::new(clock, limits.password_burst, limits.passwords_per_minute, keys),
            client_failures: per_client(limits.password_failure_burst, limits.password_failures_per_minute),
            party_failures: Limit::new(clock, limits.account_failure_burst, limits.account_failures_per_minute, keys),
            account_failures: Limit::new(
                clock,
                limits.account_total_failure_burst,
                limits.account_total_failures_per_minute,
                keys,
            ),
            known: Cache::builder()
                .max_capacity(keys)
                .time_to_live(KNOWN)
                .eviction_policy(EvictionPolicy::lru())
                .build(),
            blocked: Cache::builder()
                .max_capacity(3 * keys)
                .time_to_live(Duration::from_secs(120) / longest)
                .eviction_policy(EvictionPolicy::lru())
                .build(),
        }
    }

    /// Before something that anybody may ask: whether this client may.
    ///
    /// # Errors
    /// How long to wait.
    pub fn admit(&self, what: Anonymous, client: Client) -> Result<(), Duration> {
        let limit = match what {
            Anonymous::Lookup => &self.lookups,
            Anonymous::SsoCallback => &self.sso_callbacks,
            Anonymous::CanvasTicket => &self.canvas_tickets,
        };
        limit.count(client.network()).map_err(|(_, wait)| wait)
    }

    /// Before anything of an attempt to sign in by password is read but its headers: whether it may be made. A browser that
    /// signed in before has a budget of its own, whatever its neighbours behind the same address do.
    ///
    /// # Errors
    /// How long to wait.
    pub fn admit_password(&self, client: Client, devices: &[Device]) -> Result<(), Duration> {
        match devices.first() {
            Some(device) => self.device_passwords.count(&device.account()),
            None => self.passwords.count(client.network()).map_err(|(_, wait)| wait),
        }
    }

    /// Before a token of a session is exchanged: whether it may be.
    ///
    /// # Errors
    /// How long to wait.
    pub fn refresh(&self, session: SessionId) -> Result<(), Duration> {
        self.refreshes.count(&session)
    }

    /// Before a password is compared: whether it may be.
    ///
    /// # Errors
    /// How long to wait.
    pub fn attempt(&self, account: &Account, party: Party) -> Result<(), Duration> {
        self.unless_blocked(&Blocked::Party(account.clone(), party))?;
        let Party::Network(network) = party else { return Ok(()) };
        self.unless_blocked(&Blocked::Client(network))?;
        network.site().map_or(Ok(()), |site| self.unless_blocked(&Blocked::Client(site)))?;
        if self.knows(account, network) {
            return Ok(());
        }
        self.unless_blocked(&Blocked::Account(account.clone()))
    }

    /// After a password that was wrong for an account.
    pub fn failed(&self, account: &Account, party: Party) {
        if let Err(wait) = self.party_failures.count(&(account.clone(), party)) {
            self.block(Blocked::Party(account.clone(), party), wait);
        }
        let Party::Network(network) = party else { return };
        if !self.knows(account, network)
            && let Err(wait) = self.account_failures.count(account)
        {
            self.block(Blocked::Account(account.clone()), wait);
        }
    }

    /// After an attempt that signed nobody in, from a client that is not known by a browser's cookie.
    pub fn client_failed(&self, client: Client) {
        if let Err((whom, wait)) = self.client_failures.count(client.network()) {
            self.block(Blocked::Client(whom), wait);
        }
    }

    /// After a password that was right.
    pub fn succeeded(&self, user: UserId, client: Client) {
        self.known.insert((user, client.network()), ());
    }

    fn knows(&self, account: &Account, network: Network) -> bool {
        matches!(account, Account::User(user) if self.known.contains_key(&(*user, network)))
    }

    fn unless_blocked(&self, whom: &Blocked) -> Result<(), Duration> {
        let left = self.blocked.get(whom).and_then(|until| until.checked_sub(self.ticks.now().as_u64()));
        left.filter(|left| *left > 0).map_or(Ok(()), |left| Err(Duration::from_nanos(left)))
    }

    fn block(&self, whom: Blocked, wait: Duration) {
        let wait = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        self.blocked.insert(whom, self.ticks.now().as_u64().saturating_add(wait));
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta};

    use super::*;
    use crate::domain::client::AddressSource;

    fn fixed() -> (Clock, Throttle) {
        let clock = Clock::fixed(DateTime::from_timestamp(1_800_000_000, 0).unwrap(), 1);
        let throttle = Throttle::new(&clock, &ServerLimits::default());
        (clock, throttle)
    }

    fn client(address: &str) -> Client {
        Client::new(address.parse().unwrap(), AddressSource::Connection)
    }

    fn network(address: &str) -> Party {
        Party::Network(client(address).network())
    }

    fn nobody(name: &str) -> Account {
        Account::Nobody(Email::parse(&format!("{name}@x.com")).unwrap())
    }

    #[test]
    fn failures_close_an_account_to_that_client_for_a_while_and_to_no_other() {
        let (clock, throttle) = fixed();
        let (ada, bob) = (nobody("ada"), nobody("bob"));
        let here = network("192.0.2.1");
        for _ in 0..11 {
            throttle.attempt(&ada, here).unwrap();
            throttle.failed(&ada, here);
        }
        let wait = throttle.attempt(&ada, here).unwrap_err();
        assert!(wait <= Duration::from_secs(30) && wait > Duration::from_secs(20), "{wait:?}");
        throttle.attempt(&bob, here).unwrap();
        throttle.attempt(&ada, network("192.0.2.2")).unwrap();
        clock.advance(TimeDelta::seconds(31));
        throttle.attempt(&ada, here).unwrap();
    }

    #[test]
    fn nobody_can_lock_the_owner_out() {
        let (clock, throttle) = fixed();
        let user: UserId = clock.id();
        let ada = Account::User(user);
        throttle.succeeded(user, client("198.51.100.1"));
        for host in 0..200_u8 {
            throttle.failed(&ada, network(&format!("192.0.2.{host}")));
        }
        assert!(throttle.attempt(&ada, network("203.0.113.1")).is_err(), "nobody knows them from there");
        throttle.attempt(&ada, network("198.51.100.1")).unwrap();
        let device = Party::Device(Device::test(user, 1));
        throttle.attempt(&ada, device).unwrap();
        throttle.attempt(&ada, Party::Session(clock.id())).unwrap();
        for _ in 0..11 {
            throttle.failed(&ada, device);
        }
        assert!(throttle.attempt(&ada, device).is_err(), "a stolen cookie is no licence to guess");
        throttle.attempt(&ada, Party::Device(Device::test(user, 2))).unwrap();
    }

    #[test]
    fn a_client_is_limited_over_all_accounts() {
        let (_, throttle) = fixed();
        for i in 0..=100 {
            throttle.client_failed(client(&format!("2001:db8::{i:x}")));
        }
        let new = nobody("new");
        assert!(throttle.attempt(&new, network("2001:db8::7777")).is_err(), "the same /64");
        assert!(throttle.attempt(&new, network("2001:db8:1::1")).is_ok());
        assert!(throttle.attempt(&new, network("2001:db8:0:1::1")).is_ok(), "the same /48, which has more");
        for i in 0..=1600 {
            throttle.client_failed(client(&format!("2001:db8:0:{i:x}::1")));
        }
        assert!(throttle.attempt(&new, network("2001:db8:0:ffff::1")).is_err(), "but not without end");
    }

    #[test]
    fn each_thing_that_anybody_may_ask_has_a_budget_of_its_own() {
        let (clock, throttle) = fixed();
        let here = client("192.0.2.1");
        let asked = (0..1000).filter(|_| throttle.admit(Anonymous::Lookup, here).is_ok()).count();
        assert_eq!(asked, 300);
        throttle.admit(Anonymous::SsoCallback, here).unwrap();
        throttle.admit(Anonymous::CanvasTicket, here).unwrap();
        throttle.admit_password(here, &[]).unwrap();
        throttle.admit(Anonymous::Lookup, client("192.0.2.2")).unwrap();
        let tried = (0..1000).filter(|_| throttle.admit_password(here, &[]).is_ok()).count();
        assert_eq!(tried, 599);
        let device = Device::test(clock.id(), 1);
        throttle.admit_password(here, &[device]).unwrap();
    }

    #[test]
    fn token_exchanges_are_counted_by_session() {
        let (clock, throttle) = fixed();
        let (one, two): (SessionId, SessionId) = (clock.id(), clock.id());
        assert_eq!((0..100).filter(|_| throttle.refresh(one).is_ok()).count(), 60);
        throttle.refresh(two).unwrap();
    }

    #[test]
    fn a_full_table_forgets_and_refuses_nobody() {
        let clock = Clock::fixed(DateTime::from_timestamp(1_800_000_000, 0).unwrap(), 1);
        let throttle = Throttle::new(&clock, &ServerLimits { throttle_keys: 1000, ..ServerLimits::default() });
        for i in 0..5000_u32 {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + i).into();
            throttle.admit(Anonymous::Lookup, Client::new(address, AddressSource::Connection)).unwrap();
        }
        throttle.lookups.networks.limiter.check_key(&client("192.0.2.1").network()).unwrap();
    }
}
