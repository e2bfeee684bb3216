//! The machine's own resolver, on threads of its own.
//!
//! `getaddrinfo` cannot be given up: a name whose server does not answer holds a thread for up to a minute, and a tenant
//! can name as many of them as he likes. So it does not use the pool that hashes passwords and compiles plugins; the
//! names of one domain have few of the threads at once; and what did not resolve is not asked for again for a while.

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

use super::Resolve;

/// How long a name that does not resolve is not asked for again.
const FAILED: Duration = Duration::from_secs(5);
/// The same for a name whose servers took longer than [`SLOW`] to say anything.
const TARPIT: Duration = Duration::from_secs(60);
const SLOW: Duration = Duration::from_secs(5);
/// Names and domains that are remembered before those that are over are forgotten.
const REMEMBERED: usize = 1024;

/// The machine's own resolver.
pub struct SystemResolver(Arc<Lookups>);

impl SystemResolver {
    /// Looks up so many names at once, and so many of one domain among them.
    pub fn new(lookups: usize, per_domain: usize) -> Self {
        Self(Arc::new(Lookups::new(lookups, per_domain)))
    }
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self::new(64, 4)
    }
}

#[async_trait]
impl Resolve for SystemResolver {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        self.0.resolve(name, |name| Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect())).await
    }
}

/// Names that are looked up on threads.
pub(in crate::sandbox) struct Lookups {
    all: Arc<Semaphore>,
    per_domain: usize,
    domains: Mutex<HashMap<String, Arc<Semaphore>>>,
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
    /// None under way; at most so many at once, and so many of one domain.
    pub(in crate::sandbox) fn new(lookups: usize, per_domain: usize) -> Self {
        let all = Arc::new(Semaphore::new(lookups));
        Self { all, per_domain, domains: Mutex::default(), failed: Mutex::default() }
    }

    /// Looks a name up by `look`, on a thread, when there is one for it.
    pub(in crate::sandbox) async fn resolve(
        self: &Arc<Self>,
        name: &str,
        look: impl FnOnce(&str) -> io::Result<Vec<IpAddr>> + Send + 'static,
    ) -> io::Result<Vec<IpAddr>> {
        if let Some((until, why)) = self.failed.lock().get(name)
            && *until > Instant::now()
        {
            return Err(io::Error::other(why.clone()));
        }
        let gone = |_| io::Error::other("no more names are looked up");
        let of_domain = self.of_domain(name).acquire_owned().await.map_err(gone)?;
        let of_all = self.all.clone().acquire_owned().await.map_err(gone)?;
        let (tell, told) = oneshot::channel();
        let (lookups, name) = (self.clone(), name.to_owned());
        // Held until it ends, also where nobody waits for it any more.
        thread::Builder::new().name("kaizen-dns".into()).spawn(move || {
            let begun = Instant::now();
            let found = look(&name);
            lookups.remember(name, &found, begun.elapsed());
            drop((of_domain, of_all));
            drop(tell.send(found));
        })?;
        told.await.map_err(io::Error::other)?
    }

    /// Threads that are free.
    #[cfg(test)]
    pub(in crate::sandbox) fn free(&self) -> usize {
        self.all.available_permits()
    }

    fn of_domain(&self, name: &str) -> Arc<Semaphore> {
        let mut domains = self.domains.lock();
        if domains.len() >= REMEMBERED {
            // Those that somebody holds or waits for stay; there are no more of them than of calls.
            domains.retain(|_, lookups| Arc::strong_count(lookups) > 1);
        }
        domains.entry(domain(name)).or_insert_with(|| Arc::new(Semaphore::new(self.per_domain))).clone()
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

    #[tokio::test]
    async fn a_domain_whose_servers_do_not_answer_leaves_threads_to_others() {
        let lookups = Arc::new(Lookups::new(8, 4));
        let (mut ends, mut slow) = (Vec::new(), Vec::new());
        for number in 0..20 {
            let (end, ended) = mpsc::channel::<()>();
            ends.push(end);
            let lookups = lookups.clone();
            let mut looking = Box::pin(async move {
                let never = move |_: &str| {
                    let _ = ended.recv();
                    Err(io::Error::other("no answer"))
                };
                lookups.resolve(&format!("{number}.evil.example"), never).await
            });
            assert!(futures::poll!(&mut looking).is_pending());
            slow.push(looking);
        }
        assert_eq!(lookups.free(), 8 - 4);
        let found = lookups.resolve("good.example.org", |_| Ok(vec![IpAddr::from([192, 0, 2, 1])])).await.unwrap();
        assert_eq!(found.len(), 1);
        drop(ends);
        for looking in slow {
            assert!(looking.await.is_err());
        }
        let again = lookups.resolve("0.evil.example", |_| panic!("it is not asked again")).await.unwrap_err();
        assert_eq!(again.to_string(), "no answer");
        let local = SystemResolver::default().resolve("localhost").await.unwrap();
        assert!(!local.is_empty() && local.iter().all(IpAddr::is_loopback), "{local:?}");
    }
}
