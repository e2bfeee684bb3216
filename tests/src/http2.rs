//! HTTP/2, frame by frame: clients that take nothing of their answers, and connections over which nothing is asked.

use std::{net::Ipv4Addr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    connections::connect,
    harness::{Backend, Client, Setup, World, eventually, within},
};

/// Types of frames (RFC 9113, section 6).
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;

const ROUTE: &str = "/.well-known/jwks.json";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// What a client begins with, whose streams have a window of so many bytes.
fn preface(window: u32) -> Vec<u8> {
    let initial_window_size = [&[0, 4][..], &window.to_be_bytes()].concat();
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(SETTINGS, 0, 0, &initial_window_size)].concat()
}

/// Asks for [`ROUTE`]: END_HEADERS and END_STREAM, and names of HPACK's static table (RFC 7541, appendix A).
fn get(stream: u32) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    // `:method: GET`, `:scheme: http`, `:path`, `:authority`.
    frame(HEADERS, 0x5, stream, &[&[0x82, 0x86, 0x04][..], &text(ROUTE), &[0x01], &text("a")].concat())
}

/// Reads until an answer to each of these streams has begun.
async fn answered(stream: &mut TcpStream, mut streams: Vec<u32>) {
    while !streams.is_empty() {
        let mut head = [0; 9];
        within("a frame", stream.read_exact(&mut head)).await.expect("a head");
        let of = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if head[3] == HEADERS {
            streams.retain(|stream| *stream != of);
        }
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        within("its payload", stream.read_exact(&mut payload)).await.expect("a payload");
    }
}

#[tokio::test]
async fn an_answer_that_is_not_taken_keeps_its_requests_place() {
    let world = World::with(Setup::new(Backend::Sqlite).await.with("KAIZEN_REQUESTS_PER_CLIENT", "2")).await;
    let (greedy, other) = (Ipv4Addr::new(127, 0, 0, 7), Ipv4Addr::new(127, 0, 0, 8));
    let mut stream = connect(&world.server.url, greedy).await.expect("a connection");
    stream.write_all(&[preface(0), get(1), get(3)].concat()).await.expect("sent");
    answered(&mut stream, vec![1, 3]).await;
    Client::coming_from(&world.server.url, greedy).get(ROUTE).await.problem(429, "rate_limited");
    Client::coming_from(&world.server.url, other).get(ROUTE).await.ok(200);
    // CANCEL.
    stream.write_all(&frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])).await.expect("sent");
    eventually("there is a place again", || async {
        (Client::coming_from(&world.server.url, greedy).get(ROUTE).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_only_pings_is_idle() {
    let world = World::with(Setup::new(Backend::Sqlite).await.with("KAIZEN_KEEP_ALIVE_SECONDS", "1")).await;
    let mut stream = connect(&world.server.url, Ipv4Addr::LOCALHOST).await.expect("a connection");
    stream.write_all(&[preface(65_535), get(1)].concat()).await.expect("sent");
    answered(&mut stream, vec![1]).await;
    let (mut from, mut to) = stream.into_split();
    let pings = async {
        while to.write_all(&frame(PING, 0, 0, &[0; 8])).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let mut rest = Vec::new();
    // A reset is an end too.
    let ends = async { drop(from.read_to_end(&mut rest).await) };
    within("the server closes the connection", async { tokio::join!(pings, ends) }).await;
}
