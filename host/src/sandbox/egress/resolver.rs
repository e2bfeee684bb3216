//! The machine's own resolver, on threads of its own.
//!
//! `getaddrinfo` cannot be given up: a name whose server does not answer holds a thread for up to a minute, and a tenant
//! can name as many of them as he likes. So it does not use the pool that hashes passwords and compiles plugins; one
//! organization, and the names of one domain, have few of the threads at once; some are kept for sign-in, of which one
//! organization has no more than half; and what did not resolve is not asked for again for a while.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, ToSocketAddrs as _},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use uuid::Uuid;

use super::{Asking, Resolve};
use crate::sandbox::places::Places;

/// How long a name that does not resolve is not asked for again.
const FAILED: Duration = Duration::from_secs(5);
/// The same for a name whose servers took longer than [`SLOW`] to say anything.
const TARPIT: Duration = Duration::from_secs(60);
const SLOW: Duration = Duration::from_secs(5);
/// Names that are remembered before those that are over are forgotten.
const REMEMBERED: usize = 1024;

/// How many names are looked up at once.
#[derive(Debug, Clone, Copy)]
pub struct LookupBounds {
    /// All together.
    pub at_once: usize,
    /// Of these, the ones that only sign-in may take.
    pub for_sign_in: usize,
    /// For one organization; for its sign-ins, half of those that are kept for sign-in.
    pub per_organization: usize,
    /// Names of one domain, and as many again for sign-in.
    pub per_domain: usize,
}

impl Default for LookupBounds {
    fn default() -> Self {
        Self { at_once: 64, for_sign_in: 8, per_organization: 8, per_domain: 4 }
    }
}

/// The machine's own resolver.
pub struct SystemResolver(Arc<Lookups>);

impl SystemResolver {
    /// Within these bounds.
    pub fn new(bounds: LookupBounds) -> Self {
        Self(Arc::new(Lookups::new(bounds)))
    }
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self::new(LookupBounds::default())
    }
}

#[async_trait]
impl Resolve for SystemResolver {
    async fn resolve(&self, name: &str, asking: Asking) -> io::Result<Vec<IpAddr>> {
        self.0
            .resolve(name, asking, |name| Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect()))
            .await
    }
}

/// Names that are looked up on threads.
pub(in crate::sandbox) struct Lookups {
    all: Arc<Semaphore>,
    /// Those that serve no sign-in.
    ordinary: Arc<Semaphore>,
    organizations: Places<Uuid>,
    domains: Places<String>,
    /// What serves sign-in has places of its own, so that it never waits behind what does not.
    signing_in: (Places<Uuid>, Places<String>),
    /// Names that did not resolve: until when that holds, and why.
    failed: Mutex<HashMap<String, (Instant, String)>>,
}

/// What comes before a country's code where names are registered below both. Going by its length, `x.abc.de` would be a
/// domain for each `x`, and whoever has `abc.de` would have as many lookups as there are.
const SECOND_LEVEL: [&str; 17] =
    ["ac", "co", "com", "edu", "gob", "gov", "go", "gv", "ltd", "mil", "ne", "net", "nom", "or", "org", "plc", "sch"];

/// The domain that somebody registered, as far as the name's shape tells: `example.com` of `a.b.example.com`, and
/// `example.co.uk` of `a.example.co.uk`.
fn domain(name: &str) -> String {
    let labels: Vec<&str> = name.trim_end_matches('.').rsplit('.').collect();
    let public = matches!(labels.as_slice(), [top, second, ..]
        if top.len() == 2 && SECOND_LEVEL.iter().any(|known| second.eq_ignore_ascii_case(known)));
    let mut kept: Vec<&str> = labels.into_iter().take(if public { 3 } else { 2 }).collect();
    kept.reverse();
    kept.join(".").to_ascii_lowercase()
}

impl Lookups {
    /// None under way.
    pub(in crate::sandbox) fn new(bounds: LookupBounds) -> Self {
        let kept = bounds.for_sign_in.min(bounds.at_once.saturating_sub(1));
        Self {
            all: Arc::new(Semaphore::new(bounds.at_once)),
            ordinary: Arc::new(Semaphore::new(bounds.at_once.saturating_sub(kept))),
            organizations: Places::new(bounds.per_organization),
            domains: Places::new(bounds.per_domain),
            signing_in: (Places::new((bounds.for_sign_in / 2).max(1)), Places::new(bounds.per_domain)),
            failed: Mutex::default(),
        }
    }

    /// Looks a name up by `look`, on a thread, when there is one for it.
    pub(in crate::sandbox) async fn resolve(
        self: &Arc<Self>,
        name: &str,
        asking: Asking,
        look: impl FnOnce(&str) -> io::Result<Vec<IpAddr>> + Send + 'static,
    ) -> io::Result<Vec<IpAddr>> {
        if let Some((until, why)) = self.failed.lock().get(name)
            && *until > Instant::now()
        {
            return Err(io::Error::other(why.clone()));
        }
        let (organizations, domains) = if asking.signs_in {
            (&self.signing_in.0, &self.signing_in.1)
        } else {
            (&self.organizations, &self.domains)
        };
        let gone = |_| io::Error::other("no more names are looked up");
        // Its own first: what waits there holds nothing that others could use.
        let of_organization = match asking.organization {
            Some(organization) => Some(organizations.take(organization).await.map_err(gone)?),
            None => None,
        };
        let of_domain = domains.take(domain(name)).await.map_err(gone)?;
        let ordinary =
            if asking.signs_in { None } else { Some(self.ordinary.clone().acquire_owned().await.map_err(gone)?) };
        let of_all = self.all.clone().acquire_owned().await.map_err(gone)?;
        let (tell, told) = oneshot::channel();
        let (lookups, name) = (self.clone(), name.to_owned());
        // Held until it ends, also where nobody waits for it any more.
        thread::Builder::new().name("kaizen-dns".into()).spawn(move || {
            let begun = Instant::now();
            let found = look(&name);
            lookups.remember(name, &found, begun.elapsed());
            drop((of_organization, of_domain, ordinary, of_all));
            drop(tell.send(found));
        })?;
        told.await.map_err(io::Error::other)?
    }

    /// Threads that are free.
    #[cfg(test)]
    pub(in crate::sandbox) fn free(&self) -> usize {
        self.all.available_permits()
    }

    fn remember(&self, name: String, found: &io::Result<Vec<IpAddr>>, took: Duration) {
        let why = match found {
            Ok(found) if !found.is_empty() => return,
            Ok(_) => "it has no address".to_owned(),
            Err(error) => error.to_string(),
        };
        let mut failed = self.failed.lock();
        if failed.len() >= REMEMBERED {
            let now = Instant::now();
            failed.retain(|_, (until, _)| *until > now);
            if failed.len() >= REMEMBERED {
                failed.clear();
            }
        }
        failed.insert(name, (Instant::now() + if took > SLOW { TARPIT } else { FAILED }, why));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn the_domain_is_what_somebody_registered() {
        for (name, expected) in [
            ("a.b.Example.com", "example.com"),
            ("example.com.", "example.com"),
            ("x.example.co.uk", "example.co.uk"),
            ("localhost", "localhost"),
            ("a.io", "a.io"),
            ("x.abc.io", "abc.io"),
        ] {
            assert_eq!(domain(name), expected, "{name}");
        }
    }

    /// What a thread of the resolver's waits for, and a look-up that has begun to wait for it.
    type Slow = (mpsc::Sender<()>, futures::future::BoxFuture<'static, io::Result<Vec<IpAddr>>>);

    /// Looks up a name whose servers do not answer.
    fn slow(lookups: &Arc<Lookups>, name: String, asking: Asking) -> Slow {
        let (end, ended) = mpsc::channel::<()>();
        let lookups = lookups.clone();
        let never = move |_: &str| {
            let _ = ended.recv();
            Err(io::Error::other("no answer"))
        };
        let mut looking: futures::future::BoxFuture<'static, _> =
            Box::pin(async move { lookups.resolve(&name, asking, never).await });
        assert!(futures::FutureExt::now_or_never(&mut looking).is_none());
        (end, looking)
    }

    fn answered(_: &str) -> io::Result<Vec<IpAddr>> {
        Ok(vec![IpAddr::from([192, 0, 2, 1])])
    }

    fn of(organization: u128) -> Asking {
        Asking { organization: Some(Uuid::from_u128(organization)), signs_in: false }
    }

    fn signing_in(organization: u128) -> Asking {
        Asking { signs_in: true, ..of(organization) }
    }

    const FEW: LookupBounds = LookupBounds { at_once: 8, for_sign_in: 2, per_organization: 3, per_domain: 4 };

    #[tokio::test]
    async fn an_organization_that_names_many_domains_leaves_threads_to_others() {
        let lookups = Arc::new(Lookups::new(FEW));
        let looking: Vec<_> = (0..20).map(|n| slow(&lookups, format!("a.evil{n}.example"), of(1))).collect();
        assert_eq!(lookups.free(), 8 - 3);
        assert!(lookups.resolve("good.example.org", of(2), answered).await.is_ok());
        assert!(lookups.resolve("good.example.org", signing_in(1), answered).await.is_ok(), "it can still sign in");
        drop(looking);
    }

    #[tokio::test]
    async fn many_organizations_leave_threads_to_sign_in_and_one_that_signs_in_to_others() {
        let lookups = Arc::new(Lookups::new(FEW));
        // The domain of good providers among them: what waits for it keeps no sign-in.
        let name =
            |n: u128| if n.is_multiple_of(2) { format!("{n}.good.example") } else { format!("a.evil{n}.example") };
        let looking: Vec<_> = (0..40).map(|n| slow(&lookups, name(n), of(n % 10))).collect();
        assert_eq!(lookups.free(), 2, "the rest is kept for sign-in");
        assert!(lookups.resolve("login.good.example", signing_in(50), answered).await.is_ok());
        let flood: Vec<_> = (0..20).map(|n| slow(&lookups, format!("a.idp{n}.example"), signing_in(60))).collect();
        assert_eq!(lookups.free(), 1, "half of what is kept");
        assert!(lookups.resolve("login.good.example", signing_in(50), answered).await.is_ok());
        drop((looking, flood));
    }

    #[tokio::test]
    async fn a_domain_whose_servers_do_not_answer_leaves_threads_to_others() {
        let lookups = Arc::new(Lookups::new(LookupBounds { for_sign_in: 0, ..FEW }));
        let (ends, looking): (Vec<_>, Vec<_>) =
            (0..20).map(|n| slow(&lookups, format!("{n}.evil.example"), Asking::default())).unzip();
        assert_eq!(lookups.free(), 8 - 4);
        let found = lookups.resolve("good.example.org", Asking::default(), answered).await.unwrap();
        assert_eq!(found.len(), 1);
        drop(ends);
        for looking in looking {
            assert!(looking.await.is_err());
        }
        let never = |_: &str| -> io::Result<Vec<IpAddr>> { panic!("it is not asked again") };
        let again = lookups.resolve("0.evil.example", Asking::default(), never).await.unwrap_err();
        assert_eq!(again.to_string(), "no answer");
        let local = SystemResolver::default().resolve("localhost", Asking::default()).await.unwrap();
        assert!(!local.is_empty() && local.iter().all(IpAddr::is_loopback), "{local:?}");
    }
}
