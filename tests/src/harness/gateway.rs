//! A gateway that speaks the Nexus fleet's API: registers agents, serves their addresses, removes them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

use super::{Reply, Seen, Stub};

/// The key the gateway accepts.
pub const KEY: &str = "gateway-key-that-must-not-leak";

/// What is registered, by registration id.
type Agents = Arc<Mutex<BTreeMap<String, Value>>>;

pub struct Gateway {
    pub stub: Stub,
    agents: Agents,
}

impl Gateway {
    pub async fn start() -> Self {
        let agents = Agents::default();
        let registered = agents.clone();
        Self { stub: Stub::start(move |seen| answer(&registered, seen)).await, agents }
    }

    /// The body that creates this gateway through the API.
    pub fn body(&self, name: &str) -> Value {
        json!({
            "name": name,
            "plugin": "nexus",
            "config": { "api_url": self.stub.url },
            "secrets": { "api-key": KEY },
            "environment": "staging",
            "labels": { "region": "eu" },
        })
    }

    /// What is deployed here now.
    pub fn agents(&self) -> BTreeMap<String, Value> {
        self.agents.lock().expect("lock").clone()
    }

    /// The registrations asked for, in order.
    pub fn registrations(&self) -> Vec<Seen> {
        self.stub.seen().into_iter().filter(|seen| seen.path.ends_with("/agents/register")).collect()
    }
}

/// One deployment is one registration, however often it is asked for.
fn key(seen: &Seen) -> String {
    match seen.headers.get("idempotency-key") {
        Some(key) => key.to_str().expect("text").to_owned(),
        None => seen.body.to_string(),
    }
}

fn answer(agents: &Agents, seen: &Seen) -> Reply {
    let mut agents = agents.lock().expect("lock");
    if seen.path == "/health" {
        return Reply::Json(200, json!({ "status": "healthy" }));
    }
    let authorization = seen.headers.get("authorization").and_then(|v| v.to_str().ok());
    if authorization != Some(&format!("Bearer {KEY}")) {
        return Reply::Json(401, json!({ "detail": "unknown key" }));
    }
    match (seen.method.as_str(), seen.path.strip_prefix("/api/v1/agents/")) {
        ("POST", Some("register")) => {
            let missing: Vec<_> = ["name", "description", "agent_type", "config"]
                .into_iter()
                .filter(|name| seen.body.get(name).is_none())
                .collect();
            if !missing.is_empty() {
                return Reply::Json(422, json!({ "detail": format!("missing: {missing:?}") }));
            }
            let id = format!("reg-{}", uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, key(seen).as_bytes()).simple());
            agents.insert(id.clone(), seen.body.clone());
            Reply::Json(201, json!({ "id": id }))
        }
        ("GET", Some(id)) => match agents.get(id) {
            Some(body) => Reply::Json(200, json!({ "id": id, "name": body["name"], "status": "active" })),
            None => Reply::Json(404, json!({ "detail": "no such agent" })),
        },
        ("DELETE", Some(id)) => match agents.remove(id) {
            Some(_) => Reply::Status(204),
            None => Reply::Json(404, json!({ "detail": "no such agent" })),
        },
        _ => Reply::Json(404, json!({ "detail": "no such route" })),
    }
}
