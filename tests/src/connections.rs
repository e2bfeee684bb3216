//! Connections: slow, silent and too many of them, heads and bodies that never end, and what a host that only works takes.

use std::net::Ipv4Addr;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use reqwest::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::harness::{Backend, Client, Setup, World, eventually, within};

/// A connection to a server, from this address of the machine's own network.
pub async fn connect(url: &str, from: Ipv4Addr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(url.trim_start_matches("http://").parse().expect("an address")).await
}

/// Everything that a server sends over a connection until it closes it.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end too.
    let _ = within("the server closes the connection", stream.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What a server answers to these bytes until it closes the connection.
pub async fn sent(world: &World, from: Ipv4Addr, bytes: &[u8]) -> String {
    let mut stream = connect(&world.server.url, from).await.expect("a connection");
    stream.write_all(bytes).await.expect("sent");
    rest(&mut stream).await
}

/// A request under way: the server has asked for its body, and waits for it.
async fn under_way(world: &World, from: Ipv4Addr) -> TcpStream {
    let mut stream = connect(&world.server.url, from).await.expect("a connection");
    let head = b"POST /api/v1/auth/login HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
                 expect: 100-continue\r\ncontent-length: 99\r\n\r\n";
    stream.write_all(head).await.expect("sent");
    let mut answer = [0; 25];
    within("the server asks for the body", stream.read_exact(&mut answer)).await.expect("an answer");
    assert_eq!(answer, *b"HTTP/1.1 100 Continue\r\n\r\n");
    stream
}

/// As many sockets as the machine lets a test hold, and at the most those of the attack that was seen.
pub fn most_sockets() -> usize {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raised");
    usize::try_from(hard).expect("a number").saturating_sub(500).min(10_129)
}

/// Where the socket of this number comes from: fewer from each address than a client may have.
pub fn one_of_many(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, u8::try_from(1 + number / 900).expect("a byte"))
}

/// Sockets that nobody uses, more than a server takes, from many addresses.
#[tokio::test]
async fn ten_thousand_silent_connections_keep_nobody_out() {
    let many = most_sockets();
    let world = World::start(Backend::Sqlite).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", world.server.pid())).expect("limits");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line").split_whitespace();
    let files: Vec<_> = files.skip(3).take(2).collect();
    assert_eq!(files[0], files[1], "the server has raised its own limit: {limits}");

    let mut silent = Vec::with_capacity(many);
    for number in 0..many {
        let connecting = connect(&world.server.url, one_of_many(number));
        silent.push(within("a silent connection", connecting).await.expect("connected"));
        if number % 1000 == 999 {
            answers(&world, Ipv4Addr::new(127, 0, 0, 9)).await;
        }
    }
    let ops = Client::new(&world.server.ops);
    for _ in 0..5 {
        answers(&world, Ipv4Addr::new(127, 0, 0, 9)).await;
        answers(&world, Ipv4Addr::new(127, 0, 1, 1)).await;
        assert_eq!(ops.get("/readyz").await.status, 200);
    }
    let metrics = ops.get("/metrics").await.text;
    assert!(metrics.contains("kaizen_connections{listener=\"api\"}"), "{metrics}");
    // Nobody has to hang up for them to go.
    for stream in &mut silent {
        rest(stream).await;
    }
}

async fn answers(world: &World, from: Ipv4Addr) {
    let client = Client::coming_from(&world.server.url, from);
    within("a newcomer is answered", client.get("/api/v1/auth/me")).await.problem(401, "unauthenticated");
}

#[tokio::test]
async fn what_never_becomes_a_request_is_closed() {
    let setup = Setup::new(Backend::Sqlite).await.with("KAIZEN_REQUEST_HEAD_SECONDS", "1");
    let world = World::with(setup.with("KAIZEN_KEEP_ALIVE_SECONDS", "1")).await;
    let here = Ipv4Addr::LOCALHOST;
    let settings = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    for bytes in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n", b"GET / HTTP/1.1\r\nhost: x\r\nx-slow: ", &settings] {
        assert!(!sent(&world, here, bytes).await.contains("HTTP/1.1 200"), "{bytes:?}");
    }
    // One byte at a time is no progress.
    let slow = connect(&world.server.url, here).await.expect("a connection");
    eventually("a head without an end is cut off", || async {
        slow.try_write(b"G").err().filter(|error| error.kind() != std::io::ErrorKind::WouldBlock).map(drop)
    })
    .await;
    // After an answer, the connection is kept for a while only.
    let answered = sent(&world, here, b"GET /api/v1/auth/me HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answered.starts_with("HTTP/1.1 401") && !answered.contains("connection: close"), "{answered}");
}

#[tokio::test]
async fn a_request_names_its_host_and_has_an_end() {
    let world = World::with(Setup::new(Backend::Sqlite).await.with("KAIZEN_REQUEST_BODY_SECONDS", "1")).await;
    let here = Ipv4Addr::LOCALHOST;
    for bytes in [
        &b"GET /api/v1/auth/me HTTP/1.1\r\nconnection: close\r\n\r\n"[..],
        b"GET /api/v1/auth/me HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n",
    ] {
        let answer = sent(&world, here, bytes).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("`Host`"), "{answer}");
    }
    assert!(sent(&world, here, b"GET /api/v1/auth/me HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.0 401"));
    let endless =
        b"POST /api/v1/auth/login HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{";
    let answer = sent(&world, here, endless).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("urn:kaizen:problem:request_timeout"), "{answer}");
    let long = format!("GET / HTTP/1.1\r\nhost: a\r\nx-long: {}\r\n\r\n", "x".repeat(100_000));
    assert!(sent(&world, here, long.as_bytes()).await.starts_with("HTTP/1.1 431"));
}

#[tokio::test]
async fn who_has_too_many_connections_is_told_and_nobody_else_is() {
    let setup = Setup::new(Backend::Sqlite).await.with("KAIZEN_CONNECTIONS_PER_CLIENT", "2");
    let world = World::with(setup).await;
    let busy = Ipv4Addr::new(127, 0, 0, 5);
    let held = [under_way(&world, busy).await, under_way(&world, busy).await];
    let refused = Client::coming_from(&world.server.url, busy).get("/api/v1/auth/me").await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds >= 1), "{refused:?}");
    assert_eq!(refused.body["code"], "unavailable", "{refused:?}");
    answers(&world, Ipv4Addr::new(127, 0, 0, 6)).await;
    drop(held);
    eventually("there is room again", || async {
        let answer = Client::coming_from(&world.server.url, busy).get("/api/v1/auth/me").await;
        (answer.status == 401).then_some(())
    })
    .await;
}

#[tokio::test]
async fn requests_at_once_are_bounded_for_each_client() {
    let setup = Setup::new(Backend::Sqlite).await.with("KAIZEN_REQUESTS_PER_CLIENT", "1");
    let world = World::with(setup).await;
    let busy = Ipv4Addr::new(127, 0, 0, 5);
    let _held = under_way(&world, busy).await;
    let refused = Client::coming_from(&world.server.url, busy).get("/api/v1/auth/me").await;
    assert_eq!(refused.header("retry-after"), "1");
    refused.problem(429, "rate_limited");
    answers(&world, Ipv4Addr::new(127, 0, 0, 6)).await;
}

#[tokio::test]
async fn a_host_that_only_works_does_not_take_the_apis_address() {
    let world = World::start(Backend::Sqlite).await;
    let mut worker = world.setup.start_with(&["--role", "worker"]).await;
    assert_eq!(Client::new(&worker.ops).get("/readyz").await.status, 200);
    assert_eq!(worker.stop().await.code(), Some(0));
    world.client().get("/api/v1/auth/me").await.problem(401, "unauthenticated");
}

#[tokio::test]
async fn the_operators_listener_answers_to_the_end() {
    let setup = Setup::new(Backend::Sqlite).await.with("KAIZEN_STOP_SECONDS", "30");
    let mut world = World::with(setup.with("KAIZEN_REQUEST_BODY_SECONDS", "5")).await;
    let mut held = under_way(&world, Ipv4Addr::LOCALHOST).await;
    let ops = Client::new(&world.server.ops);
    world.server.signal(nix::sys::signal::Signal::SIGTERM);
    eventually("the listener is closed", || async {
        TcpStream::connect(world.server.url.trim_start_matches("http://")).await.is_err().then_some(())
    })
    .await;
    let ready = ops.get("/readyz").await;
    assert_eq!((ready.status, ready.text.as_str()), (503, "stopping\n"));
    let answer = rest(&mut held).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("connection: close"), "{answer}");
    assert_eq!(world.server.stop_status().await.code(), Some(0));
}

#[tokio::test]
async fn what_anybody_may_send_is_small() {
    let world = World::start(Backend::Sqlite).await;
    let client = world.client();
    let long = "x".repeat(9 * 1024);
    client.post("/api/v1/auth/login", json!({ "email": "a@b.test", "password": long })).await.problem(413, "too_large");
    client.post("/api/v1/auth/refresh", json!({ "refresh_token": long })).await.problem(413, "too_large");
    let fits = "x".repeat(7 * 1024);
    client.post("/api/v1/auth/refresh", json!({ "refresh_token": fits })).await.problem(401, "invalid_credentials");
    client
        .request(Method::POST, "/api/v1/auth/refresh", None, &[("content-length", "0")])
        .await
        .problem(415, "unsupported_media_type");
}
