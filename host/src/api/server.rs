//! The listeners: bounded connections, time limits on slow clients, proxies in front, and a graceful end.

mod activity;
mod body;
mod ceilings;
pub mod descriptors;
mod proxy_protocol;

use std::{convert::Infallible, future::poll_fn, io::ErrorKind, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use anyhow::anyhow;
use axum::{Router, http::Request};
use hyper::{Response, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use self::{
    activity::{Activity, Overdue, TimeLimits, Watched},
    body::{UnderWay, WatchedBody},
    ceilings::{Ceilings, Place},
};
use super::{client::ClientAddresses, problem::ProblemType};
use crate::{
    config::limits::ServerLimits,
    domain::client::{AddressSource, Client},
};

/// Connections that are being turned away at once; more are closed without a word.
const SHEDDING: usize = 64;
/// For one of those to ask something and to read that it is turned away.
const SHED_TIME: Duration = Duration::from_secs(2);
/// For a connection that is asked to close to do so, where nothing is under way.
const LEAVING_TIME: Duration = Duration::from_secs(2);
/// Seconds after which those that were turned away may come again.
const RETRY_AFTER: u64 = 2;

/// Takes the address, or says who should be asked to give it up.
///
/// # Errors
/// One line with the setting to change.
pub async fn bind(setting: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let hint = match error.kind() {
            ErrorKind::AddrInUse => ", or stop what uses that port",
            ErrorKind::AddrNotAvailable => ": no network interface of this machine has that address",
            ErrorKind::PermissionDenied => ": a port below 1024 takes a permission that this user does not have",
            _ => "",
        };
        let variable = setting.to_uppercase();
        anyhow!("cannot listen on {address}: change `{setting}` (KAIZEN_{variable}){hint} ({error})")
    })
}

/// What serves one listener.
pub struct Server {
    /// For the metrics: `api` or `ops`.
    pub name: &'static str,
    /// What it answers.
    pub router: Router,
    /// Connections at the most.
    pub connections: usize,
    /// Connections of one client at the most.
    pub connections_per_client: usize,
    /// Who the client is, behind proxies.
    pub clients: ClientAddresses,
    /// All other bounds.
    pub limits: ServerLimits,
    /// Cancelled when clients are to go elsewhere, while they are still served.
    pub draining: CancellationToken,
    /// Cancelled when the listener is to close.
    pub stopping: CancellationToken,
}

/// What each connection shares.
struct Shared {
    server: Server,
    builder: Builder<TokioExecutor>,
    times: TimeLimits,
    ceilings: Arc<Ceilings>,
    /// Connections that are being turned away.
    shedding: Arc<Semaphore>,
}

/// What the requests over one connection share.
struct Connection {
    shared: Arc<Shared>,
    client: Client,
    activity: Arc<Activity>,
    /// This connection's own child of the server's.
    draining: CancellationToken,
}

impl Server {
    /// Serves until `stopping`, then closes the listener and lets requests under way finish within `stop_seconds`.
    pub async fn serve(self, listener: TcpListener) {
        let builder = builder(&self.limits);
        let times = TimeLimits::new(&self.limits);
        let gauge = metrics::gauge!("kaizen_connections", "listener" => self.name);
        let ceilings = Ceilings::new(self.connections, self.connections_per_client, gauge);
        let stopping = self.stopping.clone();
        let shared =
            Arc::new(Shared { server: self, builder, times, ceilings, shedding: Arc::new(Semaphore::new(SHEDDING)) });
        let connections = TaskTracker::new();
        let mut failing = false;
        while let Some(accepted) = stopping.run_until_cancelled(listener.accept()).await {
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: waiting a little lets some be closed. Told once each time.
                    if !failing {
                        tracing::warn!(%error, "accepting a connection failed");
                    }
                    failing = true;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            failing = false;
            drop(stream.set_nodelay(true));
            let peer = Client::new(peer.ip(), AddressSource::Connection);
            let activity = Arc::new(Activity::new());
            let many = shared.server.clients.is_proxy(peer.address);
            match shared.ceilings.admit(&activity, peer.network(), many) {
                Some(place) => {
                    connections.spawn(shared.clone().connection(stream, peer, activity, place));
                }
                None => {
                    shared.count("turned_away");
                    if let Ok(turn) = shared.shedding.clone().try_acquire_owned() {
                        connections.spawn(async move {
                            turn_away(stream).await;
                            drop(turn);
                        });
                    }
                }
            }
        }
        drop(listener);
        connections.close();
        connections.wait().await;
    }
}

/// HTTP as it is spoken here.
fn builder(limits: &ServerLimits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    let head = limits.request_head_kib * 1024;
    // How long a head may take is watched for both versions of HTTP in `activity`.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(head);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(limits.http2_streams)
        // Otherwise 400 KiB of each answer would be taken before any of it is written, however little the client reads.
        .max_send_buf_size(body::PIECE)
        .max_header_list_size(u32::try_from(head).unwrap_or(u32::MAX));
    builder
}

impl Shared {
    /// Counts a connection that did not end well.
    fn count(&self, why: &'static str) {
        metrics::counter!("kaizen_connections_closed_total", "listener" => self.server.name, "reason" => why)
            .increment(1);
    }

    async fn connection(
        self: Arc<Self>,
        mut stream: TcpStream,
        peer: Client,
        activity: Arc<Activity>,
        mut place: Place,
    ) {
        let client = if self.server.clients.speaks_proxy_protocol(peer.address) {
            match self.named_by_proxy(&mut stream, peer, &activity).await {
                Some(client) => client,
                None => return,
            }
        } else {
            peer
        };
        if client.source == AddressSource::ProxyProtocol && !place.belongs_to(client.network()) {
            self.count("turned_away");
            drop(place);
            // Those that a proxy brings take descriptors as well: no more of them at once than of the others.
            if let Ok(_turn) = self.shedding.try_acquire() {
                turn_away(stream).await;
            }
            return;
        }
        self.serve(stream, client, activity, place).await;
    }

    /// The client that a trusted proxy names before anything else; itself where it speaks for itself.
    async fn named_by_proxy(&self, stream: &mut TcpStream, peer: Client, activity: &Activity) -> Option<Client> {
        let read = proxy_protocol::read(stream);
        let read = tokio::time::timeout(self.times.head, async {
            tokio::select! {
                read = read => Some(read),
                () = activity.wake.notified() => None,
                () = self.server.stopping.cancelled() => None,
            }
        });
        match read.await {
            Ok(Some(Ok(address))) => {
                Some(address.map_or(peer, |address| Client::new(address, AddressSource::ProxyProtocol)))
            }
            Ok(Some(Err(error))) => {
                tracing::debug!(%error, peer = %peer.address, "a trusted proxy sent no PROXY protocol header");
                self.count("proxy_protocol");
                None
            }
            Ok(None) => None,
            Err(_) => {
                self.count("head");
                None
            }
        }
    }

    /// Serves HTTP over a connection until it ends, is overdue, or the server stops.
    async fn serve(self: Arc<Self>, stream: TcpStream, client: Client, activity: Arc<Activity>, place: Place) {
        let io = TokioIo::new(Watched::new(stream, activity.clone(), place));
        // Waiting for a token takes its lock whenever the connection is polled: that of a child is nobody else's.
        let (draining, stopping) = (self.server.draining.child_token(), self.server.stopping.child_token());
        let requests =
            Connection { shared: self.clone(), client, activity: activity.clone(), draining: draining.clone() };
        let requests = Arc::new(requests);
        let service = service_fn(move |request: Request<Incoming>| {
            let requests = requests.clone();
            async move { Ok::<_, Infallible>(requests.answer(request).await) }
        });
        let mut connection = pin!(self.builder.serve_connection_with_upgrades(io, service));
        // The PROXY protocol names one client for all of a connection; the headers name one for each request.
        let shared = client.source == AddressSource::Connection && self.server.clients.is_proxy(client.address);
        let times = TimeLimits { shared, ..self.times };
        let mut sleep = pin!(sleep_until(Instant::now() + times.head));
        let (mut told, mut stop_by, mut leave_by) = (false, None::<Instant>, None::<Instant>);
        loop {
            let leave = async {
                match leave_by {
                    Some(time) => sleep_until(time).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(error, "connection ended");
                    }
                    return;
                }
                () = stopping.cancelled(), if stop_by.is_none() => {
                    let by = Instant::now() + Duration::from_secs(self.server.limits.stop_seconds);
                    stop_by = Some(by);
                    // Half a head is no request that has to be waited for.
                    leave_by = Some(if activity.is_idle() { by.min(Instant::now() + LEAVING_TIME) } else { by });
                    connection.as_mut().graceful_shutdown();
                }
                () = draining.cancelled(), if !told => {
                    told = true;
                    // Over HTTP/1 the next answer says it, in `answer`: closing now could cross a request on its way.
                    if activity.is_http2() {
                        connection.as_mut().graceful_shutdown();
                    }
                }
                () = activity.wake.notified(), if leave_by.is_none() => {
                    self.count("making_room");
                    leave_by = Some(Instant::now() + LEAVING_TIME);
                    connection.as_mut().graceful_shutdown();
                }
                why = poll_fn(|cx| activity.poll_overdue(cx, sleep.as_mut(), &times)), if leave_by.is_none() => {
                    match why {
                        Overdue::Head => return self.count("head"),
                        Overdue::Stalled => return self.count("stalled"),
                        Overdue::Idle => {
                            self.count("idle");
                            leave_by = Some(Instant::now() + LEAVING_TIME);
                            connection.as_mut().graceful_shutdown();
                        }
                    }
                }
                () = leave => {
                    let over = stop_by.is_some_and(|by| by <= Instant::now());
                    if over && !activity.is_idle() {
                        tracing::warn!("a request did not end in time and was cut off");
                    }
                    if over || activity.is_idle() {
                        return;
                    }
                    // Something is still under way: watched as before, and closed by hyper once it is answered.
                    leave_by = stop_by;
                }
            }
        }
    }
}

impl Connection {
    async fn answer(&self, request: Request<Incoming>) -> Response<WatchedBody> {
        let server = &self.shared.server;
        let http2 = request.version() == hyper::Version::HTTP_2;
        let under_way = UnderWay::new(self.activity.clone(), http2);
        let mut request = request.map(axum::body::Body::new);
        let client = server.clients.of(self.client, request.headers());
        request.extensions_mut().insert(client);
        let Ok(mut response) = server.router.clone().oneshot(request).await;
        if !http2 && self.draining.is_cancelled() && response.status() != hyper::StatusCode::SWITCHING_PROTOCOLS {
            // RFC 9112, section 9.6: the client's next request goes over a connection of its own, and so elsewhere.
            response.headers_mut().insert(hyper::header::CONNECTION, hyper::header::HeaderValue::from_static("close"));
        }
        let (parts, body) = response.into_parts();
        let body = under_way.until_sent(parts.status, body);
        Response::from_parts(parts, body)
    }
}

/// Says that there is no room, to a client that has asked something: an answer before that is taken for a defect.
async fn turn_away(mut stream: TcpStream) {
    let (status, code, title) = ProblemType::Unavailable.parts();
    let body = serde_json::json!({
        "type": format!("urn:kaizen:problem:{code}"),
        "title": title,
        "status": status.as_u16(),
        "detail": "Too many connections are open; try again shortly.",
        "code": code,
        "request_id": "",
    })
    .to_string();
    let answer = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\nretry-after: {RETRY_AFTER}\r\n\
         connection: close\r\n\r\n{body}",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default(),
        body.len()
    );
    let exchange = async {
        let mut asked = [0; 1024];
        if stream.read(&mut asked).await? == 0 {
            return Ok(());
        }
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // Closing with unread bytes would reset the connection, and the answer with it.
        for _ in 0..64 {
            if stream.read(&mut asked).await? == 0 {
                break;
            }
        }
        std::io::Result::Ok(())
    };
    drop(tokio::time::timeout(SHED_TIME, exchange).await);
}

#[cfg(test)]
mod tests;
