//! A far side on loopback: records what it is asked, answers as the test says, and misbehaves when told to.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use serde_json::Value;
use tokio::sync::{Semaphore, watch};

use super::{eventually, within};

/// One request, as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Value,
    /// The body's bytes, for signatures over them.
    pub raw: Bytes,
}

/// What is answered.
#[derive(Debug, Clone)]
pub enum Reply {
    Json(u16, Value),
    /// 429 with `Retry-After`, in seconds.
    TooMany(u64),
    /// A status and nothing else.
    Status(u16),
    /// 302 to this address.
    Redirect(String),
    /// The connection breaks in the middle of the answer.
    Cut,
    /// Nothing until [`Stub::release`], then the usual answer.
    Hold,
}

type Answer = dyn Fn(&Seen) -> Reply + Send + Sync;

struct Inner {
    answer: Box<Answer>,
    /// Taken first, one for each request that changes something.
    faults: Mutex<VecDeque<Reply>>,
    seen: Mutex<Vec<Seen>>,
    held: watch::Sender<usize>,
    gate: Semaphore,
}

/// A listener on a free port of loopback; gone when dropped.
pub struct Stub {
    pub url: String,
    inner: Arc<Inner>,
    serving: tokio::task::JoinHandle<()>,
}

impl Stub {
    pub async fn start(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let inner = Arc::new(Inner {
            answer: Box::new(answer),
            faults: Mutex::default(),
            seen: Mutex::default(),
            held: watch::Sender::new(0),
            gate: Semaphore::new(0),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let app = Router::new().fallback(handle).with_state(inner.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.expect("serves") });
        Self { url, inner, serving }
    }

    /// The next requests that change something are answered so, one each, in order.
    pub fn next(&self, faults: impl IntoIterator<Item = Reply>) {
        self.inner.faults.lock().expect("lock").extend(faults);
    }

    /// Lets one held request go on.
    pub fn release(&self) {
        self.inner.gate.add_permits(1);
    }

    /// Waits until this many requests were held, over all.
    pub async fn held(&self, count: usize) {
        let mut held = self.inner.held.subscribe();
        within("a request reaches the far side", held.wait_for(|n| *n >= count)).await.expect("alive");
    }

    /// All requests so far, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.inner.seen.lock().expect("lock").clone()
    }

    /// Requests with this method, in order.
    pub fn seen_with(&self, method: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.method == method).collect()
    }

    /// Waits until the requests satisfy a condition.
    pub async fn until<T>(&self, what: &str, look: impl Fn(&[Seen]) -> Option<T>) -> T {
        eventually(what, || async { look(&self.seen()) }).await
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn handle(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let bytes = to_bytes(body, 16 << 20).await.unwrap_or_default();
    let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
    let body = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap_or_else(|_| text()) };
    let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let seen = Seen { method: parts.method.to_string(), path, headers: parts.headers, body, raw: bytes.clone() };
    inner.seen.lock().expect("lock").push(seen.clone());
    let fault = if parts.method.is_safe() { None } else { inner.faults.lock().expect("lock").pop_front() };
    let reply = match fault {
        Some(Reply::Hold) => {
            inner.held.send_modify(|n| *n += 1);
            inner.gate.acquire().await.expect("open").forget();
            (inner.answer)(&seen)
        }
        Some(fault) => fault,
        None => (inner.answer)(&seen),
    };
    let response = Response::builder();
    match reply {
        Reply::Json(status, value) => {
            response.status(status).header(header::CONTENT_TYPE, "application/json").body(Body::from(value.to_string()))
        }
        Reply::TooMany(seconds) => response
            .status(StatusCode::TOO_MANY_REQUESTS)
            .header(header::RETRY_AFTER, seconds)
            .body(Body::from("slow down")),
        Reply::Redirect(location) => response.status(302).header(header::LOCATION, location).body(Body::empty()),
        Reply::Status(status) => response.status(status).body(Body::empty()),
        Reply::Cut | Reply::Hold => response.status(200).header(header::CONTENT_LENGTH, 1000).body(cut()),
    }
    .expect("a response")
}

/// A body that breaks off.
fn cut() -> Body {
    let parts: [Result<Bytes, std::io::Error>; 2] =
        [Ok(Bytes::from_static(b"{\"id\":")), Err(std::io::Error::other("cut by the test"))];
    Body::from_stream(futures::stream::iter(parts))
}
