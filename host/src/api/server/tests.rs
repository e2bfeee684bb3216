//! Listeners and what clients do to them, over real sockets.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::{body::Bytes, response::Response as Answer, routing::get};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;
use tokio::net::TcpSocket;

use super::*;
use crate::{
    api::requests::Requests,
    config::proxies::{ForwardedBy, Proxies},
    domain::client::Network,
};

/// How long a test waits before it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// More than the system's buffers of a connection hold.
const LARGE: usize = 32 * 1024 * 1024;
/// The address of what [`serve`] takes for a proxy.
const PROXY: &str = "127.0.0.2";

/// A listener with answers of 100 kB, of ten bytes and of none; its address, and what stops it and tells that it has ended.
async fn serve(limits: ServerLimits) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let requests = Requests::new(&limits);
    serve_with(limits, requests).await
}

/// The same, with an answer of [`LARGE`] whose request has its place among these.
async fn serve_with(
    limits: ServerLimits,
    requests: Arc<Requests>,
) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let large = move || {
        let place = requests.admit(Network::of(PROXY.parse().unwrap())).unwrap();
        async { place.until_sent(hyper::Version::HTTP_11, Answer::new(vec![b'x'; LARGE].into())) }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stopping = CancellationToken::new();
    let server = Server {
        name: "test",
        router: Router::new()
            .route("/", get(|| async { vec![b'x'; 100_000] }))
            .route("/small", get(|| async { "ten bytes." }))
            .route("/empty", get(|| async {}))
            .route("/large", get(large)),
        connections: 100,
        connections_per_client: 100,
        clients: ClientAddresses::new(Proxies {
            trusted: vec![PROXY.parse::<std::net::IpAddr>().unwrap().into()],
            header: ForwardedBy::XForwardedFor,
        }),
        limits,
        draining: CancellationToken::new(),
        stopping: stopping.clone(),
    };
    (address, stopping, tokio::spawn(server.serve(listener)))
}

/// The connection of an HTTP/2 client whose streams have a window of so many bytes: its end, and the way to ask something.
async fn http2_client(
    address: SocketAddr,
    window: u32,
) -> (tokio::task::JoinHandle<hyper::Result<()>>, http2::SendRequest<Empty<Bytes>>) {
    http2_over(TcpStream::connect(address).await.unwrap(), window).await
}

async fn http2_over(
    stream: TcpStream,
    window: u32,
) -> (tokio::task::JoinHandle<hyper::Result<()>>, http2::SendRequest<Empty<Bytes>>) {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(window);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    (tokio::spawn(connection), sender)
}

fn request(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://test{path}")).body(Empty::new()).unwrap()
}

#[tokio::test]
async fn a_window_of_nothing_does_not_keep_a_connection() {
    // Nor does one of a byte: hyper would keep the rest of the answer.
    for (window, path) in [(0, "/"), (0, "/small"), (1, "/"), (1, "/small")] {
        let limits = ServerLimits { write_stall_seconds: 1, ..ServerLimits::default() };
        let (address, ..) = serve(limits).await;
        let (ended, mut sender) = http2_client(address, window).await;
        let answer = sender.send_request(request(path)).await.unwrap();
        assert_eq!(answer.status(), 200);
        // The server ends it, while the answer still waits for its window.
        let ended = tokio::time::timeout(PATIENCE, ended).await.expect("the connection ends");
        drop((ended, answer, sender));
    }
}

#[tokio::test]
async fn what_else_goes_on_does_not_keep_an_answer_that_is_not_taken() {
    let limits = ServerLimits { write_stall_seconds: 1, ..ServerLimits::default() };
    let (address, ..) = serve(limits).await;
    let (ended, mut sender) = http2_client(address, 0).await;
    let untaken = sender.send_request(request("/")).await.unwrap();
    let lively = async {
        let mut others = 0;
        while sender.ready().await.is_ok() && sender.send_request(request("/empty")).await.is_ok() {
            // One that is reset in time.
            drop(sender.send_request(request("/small")).await);
            others += 1;
        }
        others
    };
    let others = tokio::time::timeout(PATIENCE, lively).await.expect("the connection ends");
    assert!(others > 1, "{others} others were answered");
    drop((ended.await, untaken));
}

#[tokio::test]
async fn an_answer_over_http2_arrives_whole() {
    let (address, ..) = serve(ServerLimits::default()).await;
    let (_ended, mut sender) = http2_client(address, 1_000).await;
    let answer = sender.send_request(request("/")).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), 100_000);
}

#[tokio::test]
async fn half_a_head_does_not_hold_a_stop() {
    let limits = ServerLimits { stop_seconds: 600, request_head_seconds: 600, ..ServerLimits::default() };
    let (address, stopping, ended) = serve(limits).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\nGET / HTTP/1.1\r\n").await.unwrap();
    // Once the first request is answered, the half one has arrived too.
    let mut answer = vec![0; 1];
    client.read_exact(&mut answer).await.unwrap();
    stopping.cancel();
    let reading = tokio::spawn(async move { client.read_to_end(&mut answer).await });
    tokio::time::timeout(PATIENCE, ended).await.expect("the listener ends").unwrap();
    drop(reading.await.unwrap());
}

#[tokio::test]
async fn what_one_client_of_a_proxy_leaves_untaken_does_not_end_the_requests_of_the_others() {
    let limits = ServerLimits { write_stall_seconds: 1, ..ServerLimits::default() };
    let (address, ..) = serve(limits).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(PROXY.parse().unwrap(), 0)).unwrap();
    let (proxy, mut sender) = http2_over(socket.connect(address).await.unwrap(), 0).await;
    let forwarded = |path, client| {
        let mut request = request(path);
        request.headers_mut().insert("x-forwarded-for", hyper::header::HeaderValue::from_static(client));
        request
    };
    let untaken = sender.send_request(forwarded("/", "192.0.2.1")).await.unwrap();
    // Two who speak for themselves lose their connections meanwhile, one after the other, though they began later.
    for _ in 0..2 {
        let (ended, mut sender) = http2_client(address, 0).await;
        let answer = sender.send_request(request("/")).await.unwrap();
        let ended = tokio::time::timeout(PATIENCE, ended).await.expect("the connection ends");
        drop((ended, answer, sender));
    }
    let answer = sender.send_request(forwarded("/empty", "192.0.2.2")).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(!proxy.is_finished());
    drop(untaken);
}

#[tokio::test]
async fn a_slow_reader_over_http1_keeps_its_place_and_its_time_until_it_has_read_the_answer() {
    let limits = ServerLimits { requests_per_client: 1, stop_seconds: 600, ..ServerLimits::default() };
    let requests = Requests::new(&limits);
    let (address, stopping, ended) = serve_with(limits, requests.clone()).await;
    let network = Network::of(PROXY.parse().unwrap());
    let mut half_a_head = TcpStream::connect(address).await.unwrap();
    half_a_head.write_all(b"GET /empty HTTP/1.1\r\nHost: test\r\n\r\nGET / HTTP/1.1\r\n").await.unwrap();
    half_a_head.read_exact(&mut [0; 1]).await.unwrap();
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n").await.unwrap();
    let mut read = vec![0; 1];
    client.read_exact(&mut read).await.unwrap();
    assert!(requests.admit(network).is_err(), "the answer lies in memory");
    stopping.cancel();
    // By the time at which a connection is cut over which nothing is under way, it goes on.
    let mut rest = Vec::new();
    drop(tokio::time::timeout(PATIENCE, half_a_head.read_to_end(&mut rest)).await.expect("it is cut"));
    assert!(requests.admit(network).is_err(), "the client has read next to nothing");
    tokio::time::timeout(PATIENCE, client.read_to_end(&mut read)).await.expect("the answer ends").unwrap();
    let head = read.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(read.len() - head, LARGE);
    assert!(requests.admit(network).is_ok());
    tokio::time::timeout(PATIENCE, ended).await.expect("the listener ends").unwrap();
}

#[tokio::test]
async fn what_a_large_window_allows_and_nobody_reads_is_under_way() {
    let activity = Arc::new(Activity::new());
    let answered = Arc::new(AtomicUsize::new(0));
    let (client, client_end) = tokio::io::duplex(64 * 1024);
    let (server_end, server) = tokio::io::duplex(1024);
    let service = {
        let (activity, answered) = (activity.clone(), answered.clone());
        service_fn(move |_: Request<Incoming>| {
            answered.fetch_add(1, Ordering::Relaxed);
            let under_way = UnderWay::new(activity.clone(), true);
            let body = under_way.until_sent(hyper::StatusCode::OK, vec![b'x'; 300_000].into());
            async move { Ok::<_, Infallible>(Response::new(body)) }
        })
    };
    tokio::spawn(async move {
        let connection = builder(&ServerLimits::default());
        drop(connection.serve_connection(TokioIo::new(server), service).await);
    });
    // What the server sends is read once `reads` says so.
    let reads = Arc::new(tokio::sync::Notify::new());
    let (mut from_client, mut to_client) = tokio::io::split(client_end);
    let (mut from_server, mut to_server) = tokio::io::split(server_end);
    tokio::spawn(async move { drop(tokio::io::copy(&mut from_client, &mut to_server).await) });
    let reading = reads.clone();
    tokio::spawn(async move {
        reading.notified().await;
        drop(tokio::io::copy(&mut from_server, &mut to_client).await);
    });
    let mut http2 = http2::Builder::new(TokioExecutor::new());
    let largest = (1_u32 << 31) - 1;
    http2.initial_stream_window_size(largest).initial_connection_window_size(largest);
    let (mut sender, connection) = http2.handshake(TokioIo::new(client)).await.unwrap();
    tokio::spawn(connection);
    let answers: Vec<_> = (0..3).map(|_| tokio::spawn(sender.send_request(request("/")))).collect();
    let all_answered = async {
        while answered.load(Ordering::Relaxed) < 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, all_answered).await.expect("all are answered");
    // All that can go on without a reader has gone on.
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(activity.under_way(), 3);
    reads.notify_one();
    for answer in answers {
        let body = answer.await.unwrap().unwrap().into_body().collect().await.unwrap();
        assert_eq!(body.to_bytes().len(), 300_000);
    }
    let idle = async {
        while !activity.is_idle() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, idle).await.expect("nothing is under way any more");
}
