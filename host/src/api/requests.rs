//! How many requests may be under way, in all and of one client: beyond, 503 at once is better than everybody's time-out.
//!
//! A request is under way until its answer has been handed over whole: what waits for a client to take it is in memory.

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
use crate::{config::limits::ServerLimits, domain::client::Network};

/// Counts the requests under way.
#[derive(Debug)]
pub struct Requests {
    total: u32,
    each: u32,
    under_way: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: u32,
    clients: HashMap<Network, u32>,
}

/// A request's place, given back when dropped.
#[derive(Debug)]
pub struct Place(Arc<Requests>, Network);

impl Requests {
    /// As many as are set.
    pub fn new(limits: &ServerLimits) -> Arc<Self> {
        Arc::new(Self { total: limits.requests, each: limits.requests_per_client, under_way: Mutex::default() })
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
        let of_client = under_way.clients.entry(client).or_insert(0);
        if *of_client >= self.each {
            drop(under_way);
            return refused(
                ProblemType::RateLimited,
                "Too many of your requests are under way at once; wait for some to be answered, and read their answers.",
            );
        }
        *of_client += 1;
        under_way.all += 1;
        Ok(Place(self.clone(), client))
    }
}

/// Marks an answer that goes on for as long as its reader likes, and has a place of another kind for that.
#[derive(Debug, Clone, Copy)]
pub struct CountedElsewhere;

/// Bytes of an answer that are handed over together with its head over HTTP/1, so that no client can leave them lying here.
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
        if let Some(of_client) = under_way.clients.get_mut(&self.1) {
            *of_client = of_client.saturating_sub(1);
            if *of_client == 0 {
                under_way.clients.remove(&self.1);
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
        assert!(under_way.clients.is_empty() && under_way.all == 0);
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
