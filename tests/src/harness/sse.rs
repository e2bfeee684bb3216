//! A reader of server-sent events (WHATWG HTML, section 9.2).

use futures::{StreamExt, stream::BoxStream};
use serde_json::Value;

use super::{Client, within};

/// An open stream.
pub struct Events {
    bytes: BoxStream<'static, reqwest::Result<axum::body::Bytes>>,
    text: String,
}

/// One event.
#[derive(Debug, Clone, Default)]
pub struct Event {
    pub name: String,
    pub id: Option<String>,
    pub data: Value,
}

impl Events {
    pub async fn open(client: &Client, path: &str, last_id: Option<&str>) -> Self {
        let mut request = client.http.get(format!("{}{path}", client.base)).header("accept", "text/event-stream");
        if let Some(token) = &client.token {
            request = request.bearer_auth(token);
        }
        if let Some(id) = last_id {
            request = request.header("last-event-id", id);
        }
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 200, "{path}");
        let kind = response.headers()["content-type"].to_str().expect("text").to_owned();
        assert!(kind.starts_with("text/event-stream"), "{kind}");
        Self { bytes: response.bytes_stream().boxed(), text: String::new() }
    }

    /// The next event; `None` once the stream has ended. Comments, sent to keep the connection alive, are left out.
    pub async fn next(&mut self) -> Option<Event> {
        within("an event", async {
            loop {
                while let Some(end) = self.text.find("\n\n") {
                    let block: String = self.text.drain(..end + 2).collect();
                    if let Some(event) = parse(&block) {
                        return Some(event);
                    }
                }
                let bytes = self.bytes.next().await?.expect("the stream is not cut");
                self.text.push_str(&String::from_utf8(bytes.to_vec()).expect("UTF-8").replace("\r\n", "\n"));
            }
        })
        .await
    }

    /// All events up to the end of the stream.
    pub async fn rest(mut self) -> Vec<Event> {
        let mut all = Vec::new();
        while let Some(event) = self.next().await {
            all.push(event);
        }
        all
    }
}

fn parse(block: &str) -> Option<Event> {
    let (mut event, mut data) = (Event { name: "message".into(), ..Event::default() }, Vec::new());
    for line in block.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => event.name = value.to_owned(),
            "id" => event.id = Some(value.to_owned()),
            "data" => data.push(value),
            _ => {}
        }
    }
    if data.is_empty() {
        return None;
    }
    let data = data.join("\n");
    event.data = serde_json::from_str(&data).unwrap_or(Value::String(data));
    Some(event)
}
