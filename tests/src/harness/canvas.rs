//! A client of the canvas socket: keeps the graph as a frontend does, from the snapshot and the operations alone.

use std::collections::BTreeMap;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest, protocol::CloseFrame},
};

use super::{Client, within};

/// The subprotocol.
pub const PROTOCOL: &str = "kaizen.canvas.v1";

/// An open socket and what it has been told.
pub struct Canvas {
    socket: WebSocketStream<TcpStream>,
    pub seq: i64,
    pub nodes: BTreeMap<String, Value>,
    pub edges: BTreeMap<String, Value>,
    pub access: String,
    /// Sent and not yet answered, by `ref`: applied at the acknowledgement, so that everyone has the server's order.
    pending: BTreeMap<String, Value>,
    /// Frames that were passed over on the way to another one.
    pub passed: Vec<Value>,
}

/// Where a client's server listens.
fn address(client: &Client) -> &str {
    client.base.trim_start_matches("http://")
}

/// A node as React Flow has it.
pub fn node(id: &str, x: i64) -> Value {
    json!({ "id": id, "type": "task", "position": { "x": x, "y": 0 }, "data": { "label": id } })
}

impl Canvas {
    /// Opens the socket with the caller's token and reads the snapshot.
    pub async fn join(client: &Client, canvas: &str) -> Self {
        let mut joined = Self::open(client, canvas, "").await.expect("the socket opens");
        joined.snapshot().await;
        joined
    }

    /// Opens the socket, without reading from it. `query` is e.g. `?since=4`.
    pub async fn open(client: &Client, canvas: &str, query: &str) -> Result<Self, Box<Error>> {
        let stream = TcpStream::connect(address(client)).await.map_err(|error| Box::new(Error::from(error)))?;
        Self::over(stream, client, canvas, query).await
    }

    /// The same for a client far away behind a thin line: hardly anything is on its way that it has not read.
    pub async fn open_narrow(client: &Client, canvas: &str) -> Result<Self, Box<Error>> {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(16 << 10).expect("a small buffer");
        let to = address(client).parse().expect("an address of loopback");
        let stream = socket.connect(to).await.map_err(|error| Box::new(Error::from(error)))?;
        Self::over(stream, client, canvas, "").await
    }

    async fn over(stream: TcpStream, client: &Client, canvas: &str, query: &str) -> Result<Self, Box<Error>> {
        let url = format!("{}/ws/canvas/{canvas}{query}", client.base.replacen("http", "ws", 1));
        let mut request = url.into_client_request().expect("an address");
        request.headers_mut().insert("sec-websocket-protocol", PROTOCOL.parse().expect("header"));
        if let Some(token) = &client.token {
            request.headers_mut().insert("authorization", format!("Bearer {token}").parse().expect("header"));
        }
        let opened = within("the socket opens", client_async(request, stream)).await;
        let (socket, response) = opened.map_err(Box::new)?;
        let chosen = response.headers().get("sec-websocket-protocol").and_then(|v| v.to_str().ok());
        assert_eq!(chosen, Some(PROTOCOL), "the subprotocol");
        Ok(Self {
            socket,
            seq: 0,
            nodes: BTreeMap::new(),
            edges: BTreeMap::new(),
            access: String::new(),
            pending: BTreeMap::new(),
            passed: Vec::new(),
        })
    }

    /// Reads up to the snapshot.
    pub async fn snapshot(&mut self) -> Value {
        self.until("the snapshot", |frame| frame["type"] == "snapshot").await
    }

    /// The next frame, already applied; the close code if the server closed. Waits as long as it takes.
    pub async fn next(&mut self) -> Result<Value, u16> {
        let frame = self.next_frame().await?;
        self.apply(&frame);
        Ok(frame)
    }

    /// The next frame, not applied, for a test that keeps its own account.
    pub async fn next_frame(&mut self) -> Result<Value, u16> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).expect("JSON")),
                Some(Ok(Message::Close(frame))) => return Err(frame.map_or(1005, |frame| frame.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(1006),
            }
        }
    }

    /// Reads up to the first frame that satisfies a condition; the others go to `passed`.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let reading = async {
            loop {
                match self.next().await {
                    Ok(frame) if wanted(&frame) => return frame,
                    Ok(frame) => self.passed.push(frame),
                    Err(code) => panic!("closed with {code} while waiting for {what}"),
                }
            }
        };
        within(what, reading).await
    }

    /// Reads up to the close, and returns its code.
    pub async fn closed(&mut self) -> u16 {
        let reading = async {
            loop {
                if let Err(code) = self.next().await {
                    return code;
                }
            }
        };
        within("the close", reading).await
    }

    /// Sends a frame.
    pub async fn send(&mut self, frame: Value) {
        self.socket.send(Message::text(frame.to_string())).await.expect("the socket is open");
    }

    /// Sends text that may be no frame at all; it may find the socket closed.
    pub async fn send_text(&mut self, text: String) {
        self.socket.send(Message::text(text)).await.ok();
    }

    /// Sends operations, without waiting.
    pub async fn ops(&mut self, reference: &str, ops: Value) {
        self.pending.insert(reference.to_owned(), ops.clone());
        self.send(json!({ "type": "ops", "ref": reference, "ops": ops })).await;
    }

    /// Sends operations and waits until they are on disk; returns their sequence.
    pub async fn commit(&mut self, reference: &str, ops: Value) -> i64 {
        self.ops(reference, ops).await;
        let ack = self.until("the acknowledgement", |f| f["ref"] == reference).await;
        assert_eq!(ack["type"], "ack", "{ack}");
        ack["seq"].as_i64().expect("seq")
    }

    /// Sends operations that the server must refuse; returns the refusal.
    pub async fn refused(&mut self, reference: &str, ops: Value) -> Value {
        self.ops(reference, ops).await;
        let reject = self.until("the refusal", |f| f["ref"] == reference).await;
        assert_eq!(reject["type"], "reject", "{reject}");
        assert!(reject["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{reject}");
        reject
    }

    /// Reads until the sequence is reached.
    pub async fn reach(&mut self, seq: i64) {
        let reading = async {
            while self.seq < seq {
                match self.next().await {
                    Ok(frame) => assert_ne!(frame["type"], "reject", "{frame}"),
                    Err(code) => panic!("closed with {code} at {} on the way to {seq}", self.seq),
                }
            }
        };
        within(&format!("change {seq}"), reading).await;
    }

    /// Leaves, properly.
    pub async fn leave(mut self) {
        self.socket.close(None::<CloseFrame>).await.ok();
    }

    fn apply(&mut self, frame: &Value) {
        match frame["type"].as_str() {
            Some("snapshot") => {
                let by_id = |items: &Value| {
                    let items = items.as_array().expect("a list").iter();
                    items.map(|item| (item["id"].as_str().expect("id").to_owned(), item.clone())).collect()
                };
                self.nodes = by_id(&frame["nodes"]);
                self.edges = by_id(&frame["edges"]);
                self.seq = frame["seq"].as_i64().expect("seq");
                self.access = frame["access"].as_str().expect("access").to_owned();
            }
            Some("ops") => {
                self.apply_ops(&frame["ops"]);
                self.advance(frame);
            }
            Some("ack") => {
                let sent =
                    self.pending.remove(frame["ref"].as_str().expect("ref")).expect("an answer to what was sent");
                // Where more was stored than was sent, the answer says what.
                self.apply_ops(frame.get("ops").unwrap_or(&sent));
                self.advance(frame);
            }
            Some("reject") => drop(frame["ref"].as_str().map(|reference| self.pending.remove(reference))),
            _ => {}
        }
    }

    /// Every socket gets the sequence in order and without gaps.
    fn advance(&mut self, frame: &Value) {
        let seq = frame["seq"].as_i64().expect("seq");
        assert_eq!(seq, self.seq + 1, "out of order: {frame}");
        self.seq = seq;
    }

    fn apply_ops(&mut self, ops: &Value) {
        for op in ops.as_array().expect("ops") {
            let (kind, verb) = op["op"].as_str().and_then(|op| op.split_once('.')).expect("an op");
            let items = if kind == "node" { &mut self.nodes } else { &mut self.edges };
            let id = op["id"].as_str().or_else(|| op[kind]["id"].as_str()).expect("an id").to_owned();
            match verb {
                "put" => drop(items.insert(id, op[kind].clone())),
                "remove" => {
                    items.remove(&id);
                    if kind == "node" {
                        self.edges.retain(|_, edge| edge["source"] != id.as_str() && edge["target"] != id.as_str());
                    }
                }
                "patch" => {
                    let Some(item) = items.get_mut(&id).and_then(Value::as_object_mut) else { continue };
                    for (name, value) in op["set"].as_object().expect("set") {
                        if value.is_null() {
                            item.remove(name);
                        } else {
                            item.insert(name.clone(), value.clone());
                        }
                    }
                }
                other => panic!("unknown op {other}"),
            }
        }
    }
}
