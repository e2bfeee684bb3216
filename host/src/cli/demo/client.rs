//! What the demo's two people hold in their hands: an HTTP client with a token, and a canvas socket.

use anyhow::{Context, bail, ensure};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest},
};

/// A person, signed in.
pub struct Person {
    /// For the story.
    pub name: &'static str,
    base: String,
    token: String,
    http: reqwest::Client,
}

/// An answer with its status, whatever it is.
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// JSON, or null where there is none.
    pub body: Value,
}

impl Answer {
    /// The body, if the request worked.
    ///
    /// # Errors
    /// The problem's detail.
    pub fn ok(self) -> anyhow::Result<Value> {
        if (200..300).contains(&self.status) {
            return Ok(self.body);
        }
        bail!("{}: {}", self.status, self.body.get("detail").and_then(Value::as_str).unwrap_or("no detail"))
    }
}

impl Person {
    /// Signs in by password.
    ///
    /// # Errors
    /// If the server does not let them in.
    pub async fn sign_in(base: &str, name: &'static str, email: &str, password: &str) -> anyhow::Result<Self> {
        // No proxy: everything the demo talks to is on this machine.
        let http = reqwest::Client::builder().no_proxy().build()?;
        let mut person = Self { name, base: base.to_owned(), token: String::new(), http };
        let signed_in =
            person.post("/api/v1/auth/login", &json!({ "email": email, "password": password })).await?.ok()?;
        person.token = text(&signed_in, "/access_token")?.to_owned();
        Ok(person)
    }

    /// GET.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.send(self.http.get(self.at(path))).await
    }

    /// POST of JSON.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        self.send(self.http.post(self.at(path)).json(body)).await
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    async fn send(&self, mut request: reqwest::RequestBuilder) -> anyhow::Result<Answer> {
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let bytes = response.bytes().await?;
        let body = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes)? };
        Ok(Answer { status, body })
    }

    /// Opens a stream of server-sent events.
    ///
    /// # Errors
    /// If the server does not open it.
    pub async fn events(&self, path: &str) -> anyhow::Result<reqwest::Response> {
        Ok(self.http.get(self.at(path)).bearer_auth(&self.token).send().await?.error_for_status()?)
    }

    /// Joins a canvas.
    ///
    /// # Errors
    /// If the server does not let them in.
    pub async fn join(&self, canvas: &str) -> anyhow::Result<Canvas> {
        let address = self.at(&format!("/ws/canvas/{canvas}")).replacen("http", "ws", 1);
        let mut request = address.into_client_request()?;
        request.headers_mut().insert("authorization", format!("Bearer {}", self.token).parse()?);
        request.headers_mut().insert("sec-websocket-protocol", "kaizen.canvas.v1".parse()?);
        let (socket, _) = tokio_tungstenite::connect_async(request).await?;
        let mut canvas = Canvas { socket, seq: 0, nodes: 0, acks: 0 };
        while canvas.next().await?.pointer("/type") != Some(&json!("snapshot")) {}
        Ok(canvas)
    }
}

/// A canvas socket.
pub struct Canvas {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// The last sequence seen, in an acknowledgement or from others.
    pub seq: i64,
    /// Nodes put by others, as seen here.
    pub nodes: usize,
    /// Own messages acknowledged.
    pub acks: usize,
}

impl Canvas {
    /// Sends operations.
    ///
    /// # Errors
    /// If the socket is gone.
    pub async fn send(&mut self, reference: &str, ops: Value) -> anyhow::Result<()> {
        let frame = json!({ "type": "ops", "ref": reference, "ops": ops });
        Ok(self.socket.send(Message::text(frame.to_string())).await?)
    }

    /// The next frame of the server's.
    ///
    /// # Errors
    /// If the socket is closed or the server rejects what was sent.
    pub async fn next(&mut self) -> anyhow::Result<Value> {
        loop {
            let message = self.socket.next().await.context("the canvas socket ended")??;
            let Message::Text(frame) = message else {
                ensure!(!message.is_close(), "the server closed the canvas socket: {message:?}");
                continue;
            };
            let frame: Value = serde_json::from_str(&frame)?;
            self.seq = frame.get("seq").and_then(Value::as_i64).unwrap_or(self.seq).max(self.seq);
            match frame.get("type").and_then(Value::as_str) {
                Some("ack") => self.acks += 1,
                Some("ops") => {
                    let ops = frame.get("ops").and_then(Value::as_array);
                    self.nodes += ops.map_or(0, |ops| ops.iter().filter(|op| op.get("node").is_some()).count());
                }
                Some("reject") => bail!("the canvas rejected an edit: {frame}"),
                _ => {}
            }
            return Ok(frame);
        }
    }

    /// Leaves.
    pub async fn leave(mut self) {
        drop(self.socket.close(None).await);
    }
}

/// A string in an answer.
///
/// # Errors
/// If it is not there.
pub fn text<'a>(value: &'a Value, pointer: &str) -> anyhow::Result<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).with_context(|| format!("the answer has no {pointer}: {value}"))
}
