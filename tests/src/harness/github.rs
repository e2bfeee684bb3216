//! GitHub's side of a sign-in: its OAuth 2 endpoints, and the part of its REST API that tells who somebody is.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use url::Url;

use super::{CLIENT_ID, CLIENT_SECRET, Reply, Seen, Stub};

#[derive(Default)]
struct State {
    /// Who is signed in at GitHub: what the next authorization is about.
    user: Value,
    /// By code, the challenge that its verifier has to meet.
    codes: BTreeMap<String, Option<String>>,
    tokens: Vec<String>,
}

pub struct Github {
    pub stub: Stub,
    state: Arc<Mutex<State>>,
}

impl Github {
    /// `user` is `{id, login, name, emails[], organizations[]}`.
    pub async fn start(user: Value) -> Self {
        let state = Arc::new(Mutex::new(State { user, ..State::default() }));
        let own = state.clone();
        Self { stub: Stub::start(move |seen| answer(&mut own.lock().expect("lock"), seen)).await, state }
    }

    /// Another one is signed in there now, or the same one with other properties.
    pub fn user(&self, user: Value) {
        self.state.lock().expect("lock").user = user;
    }

    /// The access tokens that were given out.
    pub fn tokens(&self) -> Vec<String> {
        self.state.lock().expect("lock").tokens.clone()
    }
}

/// Entries of a page here, so that two organizations are two pages.
const PAGE: usize = 1;

fn answer(state: &mut State, seen: &Seen) -> Reply {
    let host = seen.headers["host"].to_str().expect("text");
    let url = Url::parse(&format!("http://{host}{}", seen.path)).expect("an address");
    let query: BTreeMap<String, String> = url.query_pairs().into_owned().collect();
    match (seen.method.as_str(), url.path()) {
        ("GET", "/login/oauth/authorize") => {
            assert_eq!(query["client_id"], CLIENT_ID);
            let code = super::fresh_id().simple().to_string();
            state.codes.insert(code.clone(), query.get("code_challenge").cloned());
            let mut back = Url::parse(&query["redirect_uri"]).expect("an address");
            back.query_pairs_mut().append_pair("code", &code).append_pair("state", &query["state"]);
            Reply::Redirect(back.into())
        }
        ("POST", "/login/oauth/access_token") => token(state, seen),
        ("GET", path) if path.starts_with("/api/v3/") => api(state, seen, &url, &query),
        _ => Reply::Json(404, json!({ "message": "Not Found" })),
    }
}

/// As GitHub answers: 200 also for errors, and a form unless JSON is asked for.
fn token(state: &mut State, seen: &Seen) -> Reply {
    let form: BTreeMap<String, String> = url::form_urlencoded::parse(&seen.raw).into_owned().collect();
    let field = |name: &str| form.get(name).map(String::as_str);
    let known = field("code").and_then(|code| state.codes.remove(code));
    // Both ways of RFC 6749, section 2.3.1.
    let basic = format!("Basic {}", STANDARD.encode(format!("{CLIENT_ID}:{CLIENT_SECRET}")));
    let client = (field("client_id"), field("client_secret")) == (Some(CLIENT_ID), Some(CLIENT_SECRET))
        || seen.headers.get("authorization").is_some_and(|value| *value == basic);
    let verified = match (&known, field("code_verifier")) {
        (Some(Some(challenge)), Some(verifier)) => URL_SAFE_NO_PAD.encode(Sha256::digest(verifier)) == *challenge,
        (Some(None), _) => true,
        _ => false,
    };
    let answer = if client && verified {
        let token = format!("gho_{}", super::fresh_id().simple());
        state.tokens.push(token.clone());
        json!({ "access_token": token, "token_type": "bearer", "scope": "read:org,read:user,user:email" })
    } else {
        json!({ "error": "bad_verification_code", "error_description": "The code passed is incorrect or expired." })
    };
    if seen.headers.get("accept").is_some_and(|accept| accept.to_str().expect("text").contains("json")) {
        return Reply::Json(200, answer);
    }
    let members = answer.as_object().expect("an object").iter();
    let pairs = members.map(|(name, value)| (name, value.as_str().expect("text")));
    Reply::Form(url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish())
}

fn api(state: &State, seen: &Seen, url: &Url, query: &BTreeMap<String, String>) -> Reply {
    let authorization = seen.headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let token = authorization.strip_prefix("Bearer ").unwrap_or_default();
    if !state.tokens.iter().any(|known| known == token) {
        return Reply::Json(401, json!({ "message": "Bad credentials" }));
    }
    if !seen.headers.contains_key("user-agent") {
        return Reply::Json(403, json!({ "message": "Request forbidden by administrative rules." }));
    }
    let user = &state.user;
    match url.path() {
        "/api/v3/user" => {
            Reply::Json(200, json!({ "id": user["id"], "login": user["login"], "name": user["name"], "email": null }))
        }
        "/api/v3/user/emails" => Reply::Json(200, user["emails"].clone()),
        "/api/v3/user/orgs" => {
            let all = user["organizations"].as_array().cloned().unwrap_or_default();
            let page: usize = query.get("page").map_or(1, |page| page.parse().expect("a number"));
            let logins = all.iter().skip((page - 1) * PAGE).take(PAGE).map(|login| json!({ "login": login }));
            let mut next = url.clone();
            next.query_pairs_mut().clear().append_pair("per_page", "100").append_pair("page", &(page + 1).to_string());
            let last = page * PAGE >= all.len();
            let link = if last { "<x>; rel=\"first\"".to_owned() } else { format!("<{next}>; rel=\"next\"") };
            Reply::Linked(logins.collect(), link)
        }
        _ => Reply::Json(404, json!({ "message": "Not Found" })),
    }
}
