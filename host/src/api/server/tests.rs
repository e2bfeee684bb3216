//! Listeners and what clients do to them, over real sockets.

use axum::{body::Bytes, routing::get};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;

use super::*;
use crate::config::proxies::Proxies;

/// How long a test waits before it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A listener with answers of 100 kB, of ten bytes and of none; its address, and what stops it and tells that it has ended.
async fn serve(limits: ServerLimits) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stopping = CancellationToken::new();
    let server = Server {
        name: "test",
        router: Router::new()
            .route("/", get(|| async { vec![b'x'; 100_000] }))
            .route("/small", get(|| async { "ten bytes." }))
            .route("/empty", get(|| async {})),
        connections: 100,
        connections_per_client: 100,
        clients: ClientAddresses::new(Proxies::default()),
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
    let stream = TcpStream::connect(address).await.unwrap();
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
