//! An OAuth 2 provider on loopback that is as strict as a good one and speaks like GitHub: an authorization endpoint that
//! signs in whom the test says, a token endpoint, and the API that tells who it was.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
    routing::{get, post},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::{CLIENT_ID, CLIENT_SECRET, fresh_id};

/// How the token endpoint behaves.
#[derive(Debug, Clone, Copy)]
pub enum Exchange {
    /// As RFC 6749 and 7636 say.
    Strict,
    /// The same, but answers are form-encoded, as GitHub's are for whoever does not ask for JSON.
    Form,
    /// 401 `invalid_client`, with our own secret in its words.
    Unknown,
    /// GitHub's way: an error with status 200.
    Error200,
    /// 500 with a page.
    Broken,
    /// No answer, ever.
    Silent,
    /// An answer of 64 MB.
    Endless,
}

struct Code {
    challenge: String,
    redirect_uri: String,
    grant: Grant,
}

/// Whose token it is, and what it covers.
#[derive(Clone)]
struct Grant {
    person: Value,
    /// As they were asked for, by spaces.
    scopes: String,
}

struct Inner {
    exchange: Mutex<Exchange>,
    /// Who signs in next: what the API says of them.
    person: Mutex<Value>,
    /// `iss` of the next callbacks.
    iss: Mutex<Option<String>>,
    codes: Mutex<HashMap<String, Code>>,
    tokens: Mutex<HashMap<String, Grant>>,
    /// Every code, token and verifier there was: none of them may be in a log.
    secrets: Mutex<Vec<String>>,
    /// Forms that came to the token endpoint.
    asked: Mutex<Vec<BTreeMap<String, String>>>,
    never: Semaphore,
}

/// The provider; gone when dropped.
pub struct OAuth2 {
    pub url: String,
    inner: Arc<Inner>,
    serving: tokio::task::JoinHandle<()>,
}

type Form = BTreeMap<String, String>;

/// Entries of a page here, so that two organizations are two pages.
const PAGE: usize = 1;

impl OAuth2 {
    /// For the client [`CLIENT_ID`]. `person` is `{id, login, name, emails: […], orgs: […]}` as GitHub's API has them.
    pub async fn start(person: Value) -> Self {
        let inner = Arc::new(Inner {
            exchange: Mutex::new(Exchange::Strict),
            person: Mutex::new(person),
            iss: Mutex::default(),
            codes: Mutex::default(),
            tokens: Mutex::default(),
            secrets: Mutex::default(),
            asked: Mutex::default(),
            never: Semaphore::new(0),
        });
        let told = |what: fn(&Value) -> Value| {
            get(move |inner: State<Arc<Inner>>, query: Query<Form>, headers: HeaderMap| {
                about(inner, query, headers, what)
            })
        };
        let app = Router::new()
            .route("/login/oauth/authorize", get(authorize))
            .route("/login/oauth/access_token", post(token))
            .route("/api/v3/user", told(Value::clone))
            .route("/api/v3/user/emails", told(|person| person["emails"].clone()))
            .route("/api/v3/user/orgs", told(|person| person["orgs"].clone()))
            .with_state(inner.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.expect("serves") });
        Self { url, inner, serving }
    }

    /// From now on the token endpoint behaves so.
    pub fn exchange(&self, exchange: Exchange) {
        *self.inner.exchange.lock().expect("lock") = exchange;
    }

    /// From now on this person signs in.
    pub fn person(&self, person: Value) {
        *self.inner.person.lock().expect("lock") = person;
    }

    /// From now on callbacks name this issuer (RFC 9207).
    pub fn iss(&self, iss: Option<String>) {
        *self.inner.iss.lock().expect("lock") = iss;
    }

    /// What the token endpoint was sent so far.
    pub fn asked(&self) -> Vec<BTreeMap<String, String>> {
        self.inner.asked.lock().expect("lock").clone()
    }

    /// Everything that must stay between the server and this provider.
    pub fn secrets(&self) -> Vec<String> {
        self.inner.secrets.lock().expect("lock").clone()
    }
}

impl Drop for OAuth2 {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Inner {
    fn secret(&self, what: &str) -> String {
        let secret = format!("{what}_{}", fresh_id().simple());
        self.secrets.lock().expect("lock").push(secret.clone());
        secret
    }
}

async fn authorize(State(inner): State<Arc<Inner>>, Query(query): Query<Form>) -> Response {
    let of = |name: &str| query.get(name).cloned().unwrap_or_default();
    let good = of("response_type") == "code"
        && of("client_id") == CLIENT_ID
        && of("code_challenge_method") == "S256"
        && of("code_challenge").len() == 43
        && of("state").len() >= 16
        && !query.contains_key("nonce");
    if !good {
        return (StatusCode::BAD_REQUEST, format!("not a request of RFC 6749 and 7636: {query:?}")).into_response();
    }
    let code = inner.secret("code");
    let person = inner.person.lock().expect("lock").clone();
    let grant = Grant { person, scopes: of("scope") };
    let made = Code { challenge: of("code_challenge"), redirect_uri: of("redirect_uri"), grant };
    inner.codes.lock().expect("lock").insert(code.clone(), made);
    let mut back = reqwest::Url::parse(&of("redirect_uri")).expect("an address");
    back.query_pairs_mut().append_pair("code", &code).append_pair("state", &of("state"));
    if let Some(iss) = inner.iss.lock().expect("lock").as_deref() {
        back.query_pairs_mut().append_pair("iss", iss);
    }
    Redirect::to(back.as_str()).into_response()
}

async fn token(State(inner): State<Arc<Inner>>, headers: HeaderMap, body: String) -> Response {
    let form: Form = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    inner.asked.lock().expect("lock").push(form.clone());
    let of = |name: &str| form.get(name).cloned().unwrap_or_default();
    inner.secrets.lock().expect("lock").push(of("code_verifier"));
    let fail = |status: u16, error: &str| {
        let status = StatusCode::from_u16(status).expect("a status");
        (status, Json(json!({ "error": error, "error_description": CLIENT_SECRET }))).into_response()
    };
    let exchange = *inner.exchange.lock().expect("lock");
    match exchange {
        Exchange::Strict | Exchange::Form => {}
        Exchange::Unknown => return fail(401, &format!("invalid_client {CLIENT_SECRET}")),
        Exchange::Error200 => return fail(200, "bad_verification_code"),
        Exchange::Broken => return (StatusCode::INTERNAL_SERVER_ERROR, "<h1>Oh no</h1>").into_response(),
        Exchange::Silent => {
            inner.never.acquire().await.expect("never closed").forget();
        }
        Exchange::Endless => return "x".repeat(64 << 20).into_response(),
    }
    let basic = format!("Basic {}", STANDARD.encode(format!("{CLIENT_ID}:{CLIENT_SECRET}")));
    let known = headers.get(header::AUTHORIZATION).is_some_and(|value| value.as_bytes() == basic.as_bytes())
        || (of("client_id") == CLIENT_ID && of("client_secret") == CLIENT_SECRET);
    if !known {
        return fail(401, "invalid_client");
    }
    // Whatever is wrong with it, a code is taken once.
    let code = inner.codes.lock().expect("lock").remove(&of("code"));
    let verified = |code: &Code| {
        URL_SAFE_NO_PAD.encode(Sha256::digest(of("code_verifier"))) == code.challenge
            && of("redirect_uri") == code.redirect_uri
            && of("grant_type") == "authorization_code"
    };
    let Some(code) = code.filter(verified) else { return fail(400, "invalid_grant") };
    let token = inner.secret("gho");
    inner.tokens.lock().expect("lock").insert(token.clone(), code.grant.clone());
    let json = headers.get(header::ACCEPT).is_some_and(|accept| accept == "application/json");
    if json && !matches!(exchange, Exchange::Form) {
        let scope = code.grant.scopes.replace(' ', ",");
        return Json(json!({ "access_token": token, "token_type": "bearer", "scope": scope })).into_response();
    }
    let body = format!("access_token={token}&scope=read%3Auser&token_type=bearer");
    ([(header::CONTENT_TYPE, "application/x-www-form-urlencoded; charset=utf-8")], body).into_response()
}

/// The API. A list comes in pages, with `Link` (RFC 8288); what a token covers is in `X-OAuth-Scopes`, by commas.
async fn about(
    State(inner): State<Arc<Inner>>,
    Query(query): Query<Form>,
    headers: HeaderMap,
    what: fn(&Value) -> Value,
) -> Response {
    let fail = |status, message: &str| (status, Json(json!({ "message": message }))).into_response();
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let token = token.strip_prefix("Bearer ").unwrap_or_default();
    let Some(grant) = inner.tokens.lock().expect("lock").get(token).cloned() else {
        return fail(StatusCode::UNAUTHORIZED, "Bad credentials");
    };
    if !headers.contains_key(header::USER_AGENT) {
        return fail(StatusCode::FORBIDDEN, "Request forbidden by administrative rules.");
    }
    let scopes = [("x-oauth-scopes", grant.scopes.replace(' ', ", "))];
    let told = what(&grant.person);
    let Some(all) = told.as_array() else { return (scopes, Json(told)).into_response() };
    let page: usize = query.get("page").map_or(1, |page| page.parse().expect("a number"));
    let entries: Vec<Value> = all.iter().skip((page - 1) * PAGE).take(PAGE).cloned().collect();
    // Relative to the page itself.
    let link = format!("<?per_page=100&page={}>; rel=\"next\"", page + 1);
    let link = if page * PAGE < all.len() { link } else { "<?page=1>; rel=\"first\"".to_owned() };
    (scopes, [(header::LINK, link)], Json(entries)).into_response()
}
