//! A HTTP Event Collector with indexer acknowledgement: what it takes is stored only when it says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use serde_json::{Map, Value, json};

use super::{Reply, Seen, Stub};

/// The token the collector accepts.
pub const HEC_TOKEN: &str = "hec-token-that-must-not-leak";

/// One request: its channel, and its number there.
type Ack = (String, u64);

#[derive(Default)]
struct State {
    /// The next acknowledgement's number, by channel.
    next: BTreeMap<String, u64>,
    /// Taken and not stored, in order.
    memory: Vec<(Ack, Vec<Value>)>,
    /// Stored, and not told of yet.
    untold: BTreeSet<Ack>,
    stored: Vec<Value>,
    /// Whether what was taken is stored by itself when it is asked for.
    indexing: bool,
    /// The action of events that it does not take.
    refused: Option<String>,
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

    /// It stores what it has, of which it has told nobody.
    pub fn index(&self) {
        index(&mut self.state.lock().expect("lock"));
    }

    /// Refuses events of this action from now on, or none any more. Those before one in a request it stores.
    pub fn refuse(&self, action: Option<&str>) {
        self.state.lock().expect("lock").refused = action.map(str::to_owned);
    }

    /// It crashes: what was only in memory is lost, and so are its channels. Returns how many events that were.
    pub fn crash(&self) -> usize {
        let mut state = self.state.lock().expect("lock");
        state.next.clear();
        std::mem::take(&mut state.memory).iter().map(|(_, events)| events.len()).sum()
    }

    /// The envelopes that are stored, in order.
    pub fn stored(&self) -> Vec<Value> {
        self.state.lock().expect("lock").stored.clone()
    }
}

fn refuse(status: u16, code: i64, text: &str) -> Reply {
    Reply::Json(status, json!({ "text": text, "code": code }))
}

fn index(state: &mut State) {
    for (ack, mut events) in std::mem::take(&mut state.memory) {
        state.stored.append(&mut events);
        state.untold.insert(ack);
    }
}

fn answer(state: &mut State, seen: &Seen) -> Reply {
    let header = |name: &str| seen.headers.get(name).map(|value| value.to_str().expect("text").to_owned());
    if seen.path == "/services/collector/health" {
        return Reply::Json(200, json!({ "text": "HEC is healthy", "code": 17 }));
    }
    let known = format!("Splunk {HEC_TOKEN}");
    match header("authorization") {
        None => return refuse(401, 2, "Token is required"),
        Some(given) if !given.starts_with("Splunk ") => return refuse(401, 3, "Invalid authorization"),
        Some(given) if given != known => return refuse(403, 4, "Invalid token"),
        Some(_) => {}
    }
    let Some(channel) = header("x-splunk-request-channel") else {
        return refuse(400, 10, "Data channel is missing");
    };
    if uuid::Uuid::parse_str(&channel).is_err() {
        return refuse(400, 11, "Invalid data channel");
    }
    match (seen.method.as_str(), seen.path.as_str()) {
        ("POST", "/services/collector/event") => {
            // One JSON object after the other, as HEC takes them.
            let stream = serde_json::Deserializer::from_slice(&seen.raw).into_iter::<Value>();
            let Ok(mut events) = stream.collect::<Result<Vec<_>, _>>() else {
                return refuse(400, 6, "Invalid data format");
            };
            if events.is_empty() {
                return refuse(400, 5, "No data");
            }
            if events.iter().any(|envelope| envelope.get("event").is_none_or(Value::is_null)) {
                return refuse(400, 12, "Event field is required");
            }
            let refused = |envelope: &Value| envelope["event"]["action"].as_str() == state.refused.as_deref();
            if let Some(number) = events.iter().position(refused) {
                events.truncate(number);
                state.stored.append(&mut events);
                let answer = json!({ "text": "Invalid data format", "code": 6, "invalid-event-number": number });
                return Reply::Json(400, answer);
            }
            let next = state.next.entry(channel.clone()).or_default();
            let ack = *next;
            *next += 1;
            state.memory.push(((channel, ack), events));
            Reply::Json(200, json!({ "text": "Success", "code": 0, "ackId": ack }))
        }
        ("POST", "/services/collector/ack") => {
            if state.indexing {
                index(state);
            }
            let Some(asked) = seen.body["acks"].as_array() else { return refuse(400, 6, "Invalid data format") };
            let asked = asked.iter().filter_map(Value::as_u64);
            let acks: Map<String, Value> =
                asked.map(|ack| (ack.to_string(), state.untold.remove(&(channel.clone(), ack)).into())).collect();
            Reply::Json(200, json!({ "acks": acks }))
        }
        _ => Reply::Status(404),
    }
}
