//! An OpenID provider on loopback that says whatever a test wants: of whom, how it fails, and how long it takes. For what a
//! good one never does; `oidc-provider` is the one that does.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
    routing::{get, post},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};

use super::{CLIENT_ID, fresh_id, within};

const KEY: &str = include_str!("../../keys/provider.pem");
/// The modulus of [`KEY`].
const MODULUS: &str = "u8d5IL4c0P8tjWPO979D66_XgPy7nCusE3BCNuBt0pYAu-SpRiZgC-1BAI966ncI9GgnpOe_rc78Z6KjgPkoUhiiJsPdUCVoNh1mRt8qyDgmUsjvUZATBKMhLMleChEyFRCR1ryX2e6NaxlYYZw4DT_Zjn8WYOjq9tOppKawMM9r2l7yJQz6l6mqDQSW2p51XdehHpAhVx1RJvMDkGlkkpYEQWgDKg4EQvTDozkiaqLMO60QUmNHAIuCYA5wVw3ik6J9dgQdorwHNoGnvbEEu8BupY4egbzcOlCPq-1CYsYGOagwKcwQ73ilBVHWUmTIjOlC0aVfn4J84BmO2Cjxsw";

type Form = BTreeMap<String, String>;

/// What is answered in place of tokens or of a code.
#[derive(Debug, Clone)]
pub enum Trouble {
    /// The authorization endpoint sends the browser back with these parameters and no code.
    Callback(Vec<(&'static str, String)>),
    /// The token endpoint answers this.
    Token(u16, Value),
    /// The token endpoint answers after [`Issuer::release`].
    Hold,
}

struct Inner {
    url: String,
    /// Claims of the ID tokens of the next sign-ins.
    claims: Mutex<Value>,
    trouble: Mutex<Option<Trouble>>,
    /// Nonce and claims by code.
    codes: Mutex<HashMap<String, (String, Value)>>,
    token_requests: AtomicUsize,
    held: watch::Sender<usize>,
    gate: Semaphore,
}

/// The provider; gone when dropped.
pub struct Issuer {
    pub url: String,
    inner: Arc<Inner>,
    serving: tokio::task::JoinHandle<()>,
}

impl Issuer {
    /// For the client [`CLIENT_ID`]. Signs everybody in at once, as whom [`Issuer::says`] says.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let inner = Arc::new(Inner {
            url: url.clone(),
            claims: Mutex::new(json!({})),
            trouble: Mutex::default(),
            codes: Mutex::default(),
            token_requests: AtomicUsize::new(0),
            held: watch::Sender::new(0),
            gate: Semaphore::new(0),
        });
        let app = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/keys", get(keys))
            .route("/authorize", get(authorize))
            .route("/token", post(token))
            .with_state(inner.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.expect("serves") });
        Self { url, inner, serving }
    }

    /// From now on ID tokens have these claims: `null` takes a usual one away.
    pub fn says(&self, claims: Value) {
        *self.inner.claims.lock().expect("lock") = claims;
    }

    /// The same, in tokens issued so many seconds from now.
    pub fn says_dated(&self, mut claims: Value, seconds: i64) {
        claims["iat"] = (now() + seconds).into();
        self.says(claims);
    }

    /// The same of a person with a verified address.
    pub fn vouches(&self, subject: &str, email: &str) {
        self.says(json!({ "sub": subject, "email": email, "email_verified": true }));
    }

    /// From now on this goes wrong; with nothing, all is well.
    pub fn trouble(&self, trouble: Option<Trouble>) {
        *self.inner.trouble.lock().expect("lock") = trouble;
    }

    /// How often the token endpoint was asked.
    pub fn token_requests(&self) -> usize {
        self.inner.token_requests.load(Ordering::Relaxed)
    }

    /// Waits until the token endpoint holds the next request, does this, and lets the request go on.
    pub async fn meanwhile(&self, act: impl Future<Output = ()>) {
        let mut held = self.inner.held.subscribe();
        let before = *held.borrow_and_update();
        within("the token endpoint is asked", held.wait_for(|n| *n > before)).await.expect("alive");
        act.await;
        self.inner.gate.add_permits(1);
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Inner {
    fn trouble(&self) -> Option<Trouble> {
        self.trouble.lock().expect("lock").clone()
    }
}

async fn discovery(State(inner): State<Arc<Inner>>) -> Response {
    let at = |path: &str| format!("{}{path}", inner.url);
    Json(json!({
        "issuer": inner.url,
        "authorization_endpoint": at("/authorize"),
        "token_endpoint": at("/token"),
        "jwks_uri": at("/keys"),
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
    }))
    .into_response()
}

async fn keys() -> Json<Value> {
    Json(json!({ "keys": [{ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": "1", "n": MODULUS, "e": "AQAB" }] }))
}

async fn authorize(State(inner): State<Arc<Inner>>, Query(query): Query<Form>) -> Redirect {
    let of = |name: &str| query.get(name).cloned().unwrap_or_default();
    let mut back = reqwest::Url::parse(&of("redirect_uri")).expect("an address");
    back.query_pairs_mut().append_pair("state", &of("state"));
    if let Some(Trouble::Callback(parameters)) = inner.trouble() {
        back.query_pairs_mut().extend_pairs(parameters);
        return Redirect::to(back.as_str());
    }
    let code = fresh_id().to_string();
    let claims = inner.claims.lock().expect("lock").clone();
    inner.codes.lock().expect("lock").insert(code.clone(), (of("nonce"), claims));
    back.query_pairs_mut().append_pair("code", &code);
    Redirect::to(back.as_str())
}

async fn token(State(inner): State<Arc<Inner>>, body: String) -> Response {
    inner.token_requests.fetch_add(1, Ordering::Relaxed);
    match inner.trouble() {
        Some(Trouble::Token(status, body)) => {
            return (StatusCode::from_u16(status).expect("a status"), Json(body)).into_response();
        }
        Some(Trouble::Hold) => {
            inner.held.send_modify(|n| *n += 1);
            inner.gate.acquire().await.expect("never closed").forget();
        }
        _ => {}
    }
    let form: Form = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    let code = form.get("code").cloned().unwrap_or_default();
    let Some((nonce, said)) = inner.codes.lock().expect("lock").remove(&code) else {
        return (StatusCode::BAD_REQUEST, Json(json!({ "error": "invalid_grant" }))).into_response();
    };
    let now = now();
    let mut claims =
        json!({ "iss": inner.url, "aud": CLIENT_ID, "nonce": nonce, "iat": now, "exp": now + 300, "sub": "1" });
    for (name, value) in said.as_object().expect("claims") {
        claims[name] = value.clone();
    }
    claims.as_object_mut().expect("claims").retain(|_, value| !value.is_null());
    let key = EncodingKey::from_rsa_pem(KEY.as_bytes()).expect("a key");
    let header = Header { kid: Some("1".into()), ..Header::new(Algorithm::RS256) };
    let id_token = jsonwebtoken::encode(&header, &claims, &key).expect("a token");
    Json(json!({ "access_token": "at", "token_type": "Bearer", "id_token": id_token })).into_response()
}

#[expect(clippy::disallowed_methods, reason = "the tests have no `Clock`")]
fn now() -> i64 {
    chrono::Utc::now().timestamp()
}
