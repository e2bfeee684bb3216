//! A gateway as the demo needs one: a process of its own that speaks the Nexus fleet API on loopback and keeps what is
//! registered in memory. `POST /api/v1/agents/register`, `GET` and `DELETE /api/v1/agents/{id}`, `GET /health`.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::Context;
use axum::{
    Json, Router,
    extract::{Path, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use clap::Args;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// Variable with the key that callers must present; not an argument, since others can read those.
pub const KEY: &str = "DEMO_GATEWAY_KEY";
/// Registrations kept at the most.
const CAPACITY: usize = 1000;

/// Run the demo's gateway
#[derive(Debug, Args)]
pub struct DemoGateway {
    /// Where to listen; port 0 picks one. The address is printed.
    #[arg(long, default_value = "127.0.0.1:0")]
    gateway_listen: std::net::SocketAddr,
}

#[derive(Clone)]
struct Fleet {
    key: Arc<str>,
    agents: Arc<Mutex<BTreeMap<String, Value>>>,
}

impl DemoGateway {
    /// Serves until its parent is gone or asks it to stop.
    ///
    /// # Errors
    /// If the address is taken or the key is missing.
    pub async fn run(self) -> anyhow::Result<()> {
        let key = std::env::var(KEY).with_context(|| format!("{KEY} is not set"))?;
        let fleet = Fleet { key: key.into(), agents: Arc::default() };
        let guarded = Router::new()
            .route("/api/v1/agents/register", post(register))
            .route("/api/v1/agents/{id}", get(read).delete(remove))
            .layer(middleware::from_fn_with_state(fleet.clone(), authorize));
        let router = Router::new().merge(guarded).route("/health", get(health)).with_state(fleet);
        let listener = TcpListener::bind(self.gateway_listen).await?;
        crate::cli::print(&listener.local_addr()?.to_string())?;
        axum::serve(listener, router)
            .with_graceful_shutdown(async {
                // The demo holds the other end of standard input: it ends when the demo does, however that ends.
                let (mut input, mut nowhere) = (tokio::io::stdin(), tokio::io::sink());
                tokio::select! {
                    _ = tokio::io::copy(&mut input, &mut nowhere) => {}
                    _ = crate::cli::serve::stop_asked() => {}
                }
            })
            .await?;
        Ok(())
    }
}

async fn authorize(State(fleet): State<Fleet>, request: Request, next: Next) -> Response {
    use subtle::ConstantTimeEq;
    let given = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
    let expected = format!("Bearer {}", fleet.key);
    if bool::from(given.ct_eq(expected.as_bytes())) {
        next.run(request).await
    } else {
        (StatusCode::UNAUTHORIZED, Json(json!({ "error": "unknown key" }))).into_response()
    }
}

async fn health(State(fleet): State<Fleet>) -> Json<Value> {
    Json(json!({ "status": "ok", "agents": fleet.agents.lock().len() }))
}

/// The same deployment registered again is the same registration.
async fn register(State(fleet): State<Fleet>, request: Request) -> Response {
    let key = request.headers().get("idempotency-key").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let Ok(body) = axum::body::to_bytes(request.into_body(), 4 * 1024 * 1024).await else {
        return (StatusCode::PAYLOAD_TOO_LARGE, Json(json!({ "error": "too large" }))).into_response();
    };
    let (Some(key), Ok(body)) = (key, serde_json::from_slice::<Value>(&body)) else {
        return (StatusCode::BAD_REQUEST, Json(json!({ "error": "expected JSON and an Idempotency-Key" })))
            .into_response();
    };
    let id = format!("reg-{key}");
    let mut agents = fleet.agents.lock();
    if agents.len() >= CAPACITY && !agents.contains_key(&id) {
        return (StatusCode::INSUFFICIENT_STORAGE, Json(json!({ "error": "the fleet is full" }))).into_response();
    }
    let mut agent = body;
    if let Some(members) = agent.as_object_mut() {
        members.insert("id".to_owned(), json!(id));
        members.insert("status".to_owned(), json!("active"));
    }
    let answer = (StatusCode::CREATED, Json(json!({ "id": id, "status": "active" }))).into_response();
    agents.insert(id, agent);
    answer
}

async fn read(State(fleet): State<Fleet>, Path(id): Path<String>) -> Response {
    match fleet.agents.lock().get(&id) {
        Some(agent) => Json(agent.clone()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn remove(State(fleet): State<Fleet>, Path(id): Path<String>) -> StatusCode {
    match fleet.agents.lock().remove(&id) {
        Some(_) => StatusCode::NO_CONTENT,
        None => StatusCode::NOT_FOUND,
    }
}
