//! How many requests may be under way, in all, of one client and of the IPv6 /48 around it: beyond, 503 at once is better than
//! everybody's time-out. Once fewer than half of the places are free, no client takes more than a part of what is left: a few
//! who ask for as much as they can get leave some for the next one.
//!
//! A request is under way until its answer has been handed over whole, piece by piece as its client takes it: what waits is in
//! memory. The last of it, which the connection's buffers have room for, is not waited for.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes, HttpBody as _},
    http::{HeaderValue, Version, header},
    response::Response,
};
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;

use super::problem::{Problem, ProblemType, Result};
use crate::{
    config::limits::ServerLimits,
    domain::client::{CLIENTS_PER_SITE, Network},
};

/// Counts the requests under way.
#[derive(Debug)]
pub struct Requests {
    total: u32,
    each: u32,
    each_site: u32,
    under_way: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: u32,
    /// Of clients, and of sites.
    networks: HashMap<Network, u32>,
}

/// Of what is free, a client's part where little is.
const PART: u32 = 8;
/// A site's.
const PART_OF_SITE: u32 = 4;

/// A request's place, given back when dropped.
#[derive(Debug)]
pub struct Place(Arc<Requests>, Network);

impl Requests {
    /// As many as are set.
    pub fn new(limits: &ServerLimits) -> Arc<Self> {
        let (total, each) = (limits.requests, limits.requests_per_client);
        let each_site = each.saturating_mul(CLIENTS_PER_SITE).min(total / 4).max(each);
        Arc::new(Self { total, each, each_site, under_way: Mutex::default() })
    }

    /// A place for a request of this client.
    ///
    /// # Errors
    /// 503 where the server, 429 where this client has too many under way; each with `Retry-After`.
    pub fn admit(self: &Arc<Self>, client: Network) -> Result<Place> {
        let refused = |kind, detail: &str| {
            metrics::counter!("kaizen_requests_turned_away_total").increment(1);
            Err(Problem::new(kind, detail).with_header(header::RETRY_AFTER, HeaderValue::from_static("1")))
        };
        let mut under_way = self.under_way.lock();
        if under_way.all >= self.total {
            drop(under_way);
            return refused(ProblemType::Unavailable, "Too many requests are under way; try again shortly.");
        }
        let site = client.site();
        let free = self.total - under_way.all;
        let room = |network: &Network, each: u32, part: u32| {
            let most = if free < self.total / 2 { each.min(free / part).max(1) } else { each };
            under_way.networks.get(network).is_none_or(|taken| *taken < most)
        };
        if !(room(&client, self.each, PART) && site.is_none_or(|site| room(&site, self.each_site, PART_OF_SITE))) {
            drop(under_way);
            return refused(
                ProblemType::RateLimited,
                "Too many of your requests are under way at once; wait for some to be answered, and read their answers.",
            );
        }
        for network in [client].into_iter().chain(site) {
            *under_way.networks.entry(network).or_insert(0) += 1;
        }
        under_way.all += 1;
        Ok(Place(self.clone(), client))
    }
}

/// Marks an answer that goes on for as long as its reader likes, and has a place of another kind for that.
#[derive(Debug, Clone, Copy)]
pub struct CountedElsewhere;

/// Bytes of an answer over HTTP/1 that hyper takes together with its head. Where the client does not take them they wait in the
/// connection's buffer, which holds `request_head_kib` and a piece at the most: nothing else is begun over it until then.
const AT_ONCE: u64 = 16 * 1024;

impl Place {
    /// Keeps the place until the answer has been handed over, or dropped.
    pub fn until_sent(self, version: Version, answer: Response) -> Response {
        let body = answer.body();
        let at_once = version < Version::HTTP_2 && body.size_hint().exact().is_some_and(|size| size <= AT_ONCE);
        if at_once || body.is_end_stream() || answer.extensions().get::<CountedElsewhere>().is_some() {
            return answer;
        }
        answer.map(|body| Body::new(Held { body, _place: self }))
    }
}

/// The body of an answer whose request has its place still.
struct Held {
    body: Body,
    _place: Place,
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut under_way = self.0.under_way.lock();
        under_way.all = under_way.all.saturating_sub(1);
        for network in [self.1].into_iter().chain(self.1.site()) {
            if let Some(taken) = under_way.networks.get_mut(&network) {
                *taken = taken.saturating_sub(1);
                if *taken == 0 {
                    under_way.networks.remove(&network);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_cannot_take_all_places_and_places_come_back() {
        let requests = Requests::new(&ServerLimits { requests: 3, requests_per_client: 2, ..ServerLimits::default() });
        let network = |n: u8| Network::of(std::net::Ipv4Addr::new(192, 0, 2, n).into());
        let held = [requests.admit(network(1)).unwrap(), requests.admit(network(1)).unwrap()];
        assert_eq!(requests.admit(network(1)).unwrap_err().kind, ProblemType::RateLimited);
        let other = requests.admit(network(2)).unwrap();
        let refused = requests.admit(network(3)).unwrap_err();
        assert_eq!(refused.kind, ProblemType::Unavailable);
        assert_eq!(refused.headers[header::RETRY_AFTER], "1");
        drop((held, other));
        assert!(requests.admit(network(3)).is_ok());
        let under_way = requests.under_way.lock();
        assert!(under_way.networks.is_empty() && under_way.all == 0);
    }

    #[test]
    fn few_clients_do_not_take_all_places() {
        let requests = Requests::new(&ServerLimits::default());
        let mut held = Vec::new();
        let mut take_all = |network| {
            let places: Vec<_> = std::iter::from_fn(|| requests.admit(network).ok()).collect();
            let taken = places.len();
            held.extend(places);
            taken
        };
        let v4 = |n: u8| Network::of(std::net::Ipv4Addr::new(192, 0, 2, n).into());
        let v6 = |n: u16| Network::of(std::net::Ipv6Addr::new(0x2001, 0xdb8, 1, n, 0, 0, 0, 1).into());
        assert_eq!(take_all(v4(1)), 512, "as long as there are plenty, as many as are set");
        let site: usize = (0..100).map(|n| take_all(v6(n))).sum();
        assert_eq!(site, 1_024, "a quarter, however many networks the customer has");
        let others: usize = (2..8).map(|n| take_all(v4(n))).sum();
        assert!(others < 1_500, "{others}");
        assert_eq!(requests.admit(v4(2)).unwrap_err().kind, ProblemType::RateLimited);
        assert!(take_all(v4(200)) > 50, "the next one has places");
        drop(held);
        let under_way = requests.under_way.lock();
        assert!(under_way.networks.is_empty() && under_way.all == 0);
    }

    #[test]
    fn a_place_is_kept_until_the_answer_is_taken() {
        let requests = Requests::new(&ServerLimits::default());
        let network = Network::of(std::net::Ipv4Addr::LOCALHOST.into());
        let under_way = || requests.under_way.lock().all;
        let answer = |size: usize| Response::new(Body::from(vec![b'x'; size]));
        for (version, size, kept) in [
            (Version::HTTP_11, 16 * 1024, 0),
            (Version::HTTP_11, 16 * 1024 + 1, 1),
            (Version::HTTP_2, 1, 1),
            (Version::HTTP_2, 0, 0),
        ] {
            let answer = requests.admit(network).unwrap().until_sent(version, answer(size));
            assert_eq!(under_way(), kept, "{version:?}, {size} bytes");
            assert_eq!(answer.body().size_hint().exact(), Some(size as u64));
            drop(answer);
            assert_eq!(under_way(), 0);
        }
        let mut events = answer(1);
        events.extensions_mut().insert(CountedElsewhere);
        let _events = requests.admit(network).unwrap().until_sent(Version::HTTP_2, events);
        assert_eq!(under_way(), 0);
    }
}
