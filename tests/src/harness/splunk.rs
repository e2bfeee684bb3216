//! A HTTP Event Collector with indexer acknowledgement: what it takes is stored only when it says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use serde_json::{Map, Value, json};

use super::{Reply, Seen, Stub};

/// The token the collector accepts.
pub const HEC_TOKEN: &str = "hec-token-that-must-not-leak";

#[derive(Default)]
struct State {
    next: u64,
    /// Taken and not stored: by acknowledgement id.
    memory: BTreeMap<u64, Vec<Value>>,
    /// Stored, and not told of yet.
    untold: BTreeSet<u64>,
    stored: Vec<Value>,
    channels: BTreeSet<String>,
    /// Whether what was taken is stored by itself when it is asked for.
    indexing: bool,
}

pub struct Splunk {
    pub stub: Stub,
    state: Arc<Mutex<State>>,
}

impl Splunk {
    pub async fn start() -> Self {
        let state = Arc::new(Mutex::new(State { indexing: true, ..State::default() }));
        let own = state.clone();
        Self { stub: Stub::start(move |seen| answer(&mut own.lock().expect("lock"), seen)).await, state }
    }

    /// Stops or goes on storing what it takes.
    pub fn indexing(&self, on: bool) {
        self.state.lock().expect("lock").indexing = on;
    }

    /// It crashes: what was only in memory is lost. Returns how many events that were.
    pub fn crash(&self) -> usize {
        let mut state = self.state.lock().expect("lock");
        std::mem::take(&mut state.memory).values().map(Vec::len).sum()
    }

    /// The envelopes that are stored, in order.
    pub fn stored(&self) -> Vec<Value> {
        self.state.lock().expect("lock").stored.clone()
    }

    /// The channels that were used.
    pub fn channels(&self) -> BTreeSet<String> {
        self.state.lock().expect("lock").channels.clone()
    }
}

fn refuse(status: u16, code: i64, text: &str) -> Reply {
    Reply::Json(status, json!({ "text": text, "code": code }))
}

fn answer(state: &mut State, seen: &Seen) -> Reply {
    let header = |name: &str| seen.headers.get(name).map(|value| value.to_str().expect("text").to_owned());
    if seen.path == "/services/collector/health" {
        return Reply::Json(200, json!({ "text": "HEC is healthy", "code": 17 }));
    }
    if header("authorization") != Some(format!("Splunk {HEC_TOKEN}")) {
        return refuse(403, 4, "Invalid token");
    }
    let Some(channel) = header("x-splunk-request-channel").filter(|channel| uuid::Uuid::parse_str(channel).is_ok())
    else {
        return refuse(400, 10, "Data channel is missing");
    };
    state.channels.insert(channel);
    match seen.path.as_str() {
        "/services/collector/event" => {
            // One JSON object after the other, as HEC takes them.
            let stream = serde_json::Deserializer::from_slice(&seen.raw).into_iter::<Value>();
            let Ok(events) = stream.collect::<Result<Vec<_>, _>>() else {
                return refuse(400, 6, "Invalid data format");
            };
            if events.is_empty() {
                return refuse(400, 5, "No data");
            }
            let ack = state.next;
            state.next += 1;
            state.memory.insert(ack, events);
            Reply::Json(200, json!({ "text": "Success", "code": 0, "ackId": ack }))
        }
        "/services/collector/ack" => {
            if state.indexing {
                for (ack, mut events) in std::mem::take(&mut state.memory) {
                    state.stored.append(&mut events);
                    state.untold.insert(ack);
                }
            }
            let asked = seen.body["acks"].as_array().cloned().unwrap_or_default();
            let asked = asked.iter().filter_map(Value::as_u64);
            let acks: Map<String, Value> =
                asked.map(|ack| (ack.to_string(), state.untold.remove(&ack).into())).collect();
            Reply::Json(200, json!({ "acks": acks }))
        }
        _ => Reply::Status(404),
    }
}
