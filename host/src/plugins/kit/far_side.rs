//! The far side, whatever host a plugin talks to: it answers in this process, in one situation, and nothing leaves the
//! machine.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;

use super::{
    answers::{Answer, Answers},
    situation::{ASKED_WAIT, DATED_WAIT, Situation},
};
use crate::{
    clock::Clock,
    sandbox::{
        egress::{Asking, Connect, EgressError, Resolve, Stream},
        pattern::Target,
    },
};

/// What every name resolves to: a public address, so that the checks let it through, and never connected to.
const ANYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 114, 1));
/// Where clouds keep their machines' credentials.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// More of a request's body is not looked at.
const REQUEST: usize = 64 << 20;
/// The size of the body that nobody expects.
const HUGE: u64 = 50_000_000;
const PIECE: usize = 64 << 10;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The far side of one call.
pub struct FarSide {
    situation: Situation,
    answers: Arc<Answers>,
    clock: Clock,
    contacts: AtomicUsize,
    breached: AtomicBool,
}

impl FarSide {
    /// A far side in a situation, which otherwise answers as `answers` say.
    pub fn new(situation: Situation, answers: Arc<Answers>, clock: Clock) -> Arc<Self> {
        Arc::new(Self { situation, answers, clock, contacts: AtomicUsize::new(0), breached: AtomicBool::new(false) })
    }

    /// Requests and connections so far.
    pub fn contacts(&self) -> usize {
        self.contacts.load(Ordering::Relaxed)
    }

    /// Whether a connection was about to go to the metadata service: then the sandbox itself failed.
    pub fn breached(&self) -> bool {
        self.breached.load(Ordering::Relaxed)
    }

    /// One more, which came another way.
    pub fn contacted(&self) {
        self.contacts.fetch_add(1, Ordering::Relaxed);
    }

    async fn answer(&self, target: &Target, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = Limited::new(body, REQUEST).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        self.contacted();
        let mut good = self.answers.find(target, &parts, &body);
        if good.status == StatusCode::NO_CONTENT && self.situation != Situation::Good {
            // These need a body to go wrong in.
            good.status = StatusCode::OK;
        }
        let plain = |status: u16, text: &str| Answer::new(status, Bytes::from(text.to_owned()));
        match self.situation {
            Situation::Unauthorized => self.whole(
                plain(401, r#"{"error":"unauthorized","message":"the token has expired"}"#)
                    .with(header::WWW_AUTHENTICATE, "Bearer error=\"invalid_token\""),
            ),
            Situation::NotFound => {
                let usual = r#"{"error":"not_found","message":"there is no such thing"}"#;
                self.whole(plain(404, &self.answers.not_found.as_ref().map_or(usual.to_owned(), ToString::to_string)))
            }
            Situation::TooMany => self.whole(
                plain(429, r#"{"message":"slow down"}"#).with(header::RETRY_AFTER, &ASKED_WAIT.as_secs().to_string()),
            ),
            Situation::ClockOff => {
                let until = self.clock.now() + DATED_WAIT;
                self.whole(plain(429, r#"{"message":"slow down"}"#).with(header::RETRY_AFTER, &http_date(until)))
            }
            Situation::ServerError => self.whole(plain(500, "<html><body>Internal Server Error</body></html>")),
            Situation::Malformed => {
                self.whole(Answer::new(good.status.as_u16(), Bytes::from_static(b"{\"id\": \"a1\", \"st")))
            }
            Situation::PrivateRedirect => {
                self.whole(plain(302, "").with(header::LOCATION, "http://169.254.169.254/latest/meta-data/iam/"))
            }
            Situation::Huge => {
                let pieces = HUGE.div_ceil(PIECE as u64);
                let body =
                    futures::stream::iter(0..pieces).map(|_| Ok(Frame::data(Bytes::from_static(&[b' '; PIECE]))));
                self.head(&good, Some(pieces * PIECE as u64), StreamBody::new(body).boxed_unsync())
            }
            Situation::Cut => {
                let length = good.body.len().max(2) as u64 * 2;
                let half = good.body.slice(..good.body.len() / 2);
                let broken = io::Error::from(io::ErrorKind::ConnectionReset);
                let body = futures::stream::iter([Ok(Frame::data(half)), Err(broken)]);
                self.head(&good, Some(length), StreamBody::new(body).boxed_unsync())
            }
            Situation::Drip => {
                let body = futures::stream::unfold((), |()| async {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    Some((Ok::<_, io::Error>(Frame::data(Bytes::from_static(b" "))), ()))
                });
                self.head(&good, None, StreamBody::new(body).boxed_unsync())
            }
            _ => self.whole(good),
        }
    }

    fn whole(&self, answer: Answer) -> Response<Body> {
        let body = http_body_util::Full::new(answer.body.clone()).map_err(|never: Infallible| match never {});
        self.head(&answer, Some(answer.body.len() as u64), body.boxed_unsync())
    }

    fn head(&self, answer: &Answer, length: Option<u64>, body: Body) -> Response<Body> {
        let mut response = Response::new(body);
        *response.status_mut() = answer.status;
        let headers = response.headers_mut();
        headers.clone_from(&answer.headers);
        let mut set = |name, value: &str| {
            if let Ok(value) = value.parse() {
                headers.entry(name).or_insert(value);
            }
        };
        set(header::CONTENT_TYPE, "application/json");
        set(header::DATE, &http_date(self.clock.now()));
        if let Some(length) = length.filter(|_| answer.status != StatusCode::NO_CONTENT) {
            set(header::CONTENT_LENGTH, &length.to_string());
        }
        response
    }
}

/// As in the header `Date` (RFC 9110, section 5.6.7).
fn http_date(at: chrono::DateTime<chrono::Utc>) -> String {
    at.format("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// The way to a far side: names lead to it, and connections are to it.
#[derive(Clone)]
pub struct Way {
    /// Where it leads.
    pub far_side: Arc<FarSide>,
    /// Where names of `tcp` capabilities lead: a real listener on loopback, as `wasi:sockets` makes real connections.
    pub tcp: IpAddr,
    /// Those names.
    pub tcp_hosts: Arc<Vec<String>>,
}

#[async_trait]
impl Resolve for Way {
    async fn resolve(&self, name: &str, _asking: Asking) -> io::Result<Vec<IpAddr>> {
        Ok(vec![if self.tcp_hosts.iter().any(|host| host == name) { self.tcp } else { ANYWHERE }])
    }
}

#[async_trait]
impl Connect for Way {
    async fn connect(&self, target: &Target, _addresses: &[IpAddr]) -> Result<Box<dyn Stream>, EgressError> {
        if self.far_side.situation == Situation::NoConnection {
            self.far_side.contacted();
            return Err(EgressError::Connect(target.to_string(), io::ErrorKind::ConnectionRefused.into()));
        }
        if matches!(target.host, url::Host::Ipv4(METADATA)) {
            self.far_side.breached.store(true, Ordering::Relaxed);
        }
        let (near, far) = tokio::io::duplex(256 << 10);
        let (far_side, target) = (self.far_side.clone(), target.clone());
        // It ends with the other end.
        tokio::spawn(async move {
            let service = hyper::service::service_fn(|request| {
                let (far_side, target) = (far_side.clone(), target.clone());
                async move { Ok::<_, Infallible>(far_side.answer(&target, request).await) }
            });
            // An answer that was cut ends the connection with an error: that is the point.
            drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service).await);
        });
        Ok(Box::new(near))
    }
}
