//! A client of the API, and what must hold of every answer.

use std::time::Duration;

use reqwest::{
    Method,
    header::{CONTENT_TYPE, HeaderMap},
};
use serde_json::{Value, json};

use super::contract;

/// One caller: a base address, and a token once signed in.
#[derive(Clone)]
pub struct Client {
    pub http: reqwest::Client,
    pub base: String,
    pub token: Option<String>,
    /// What each of its requests is called: `X-Request-Id`.
    pub request_id: Option<String>,
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
    pub text: String,
    what: String,
}

/// Headers of a request.
pub type Headers<'a> = &'a [(&'a str, &'a str)];

impl Client {
    /// Nobody, at this address.
    pub fn new(base: &str) -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(60))
            .build()
            .expect("a client");
        Self { http, base: base.to_owned(), token: None, request_id: None }
    }

    /// Nobody, coming from this address of the machine's own network (127.0.0.0/8), over a new connection each time.
    pub fn coming_from(base: &str, address: std::net::Ipv4Addr) -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(60))
            .local_address(std::net::IpAddr::from(address))
            .pool_max_idle_per_host(0)
            .build()
            .expect("a client");
        Self { http, base: base.to_owned(), token: None, request_id: None }
    }

    /// The same caller at another server.
    pub fn at(&self, base: &str) -> Self {
        Self { base: base.to_owned(), ..self.clone() }
    }

    /// The same address, with this token.
    pub fn bearing(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// The same caller, who gives each request this name.
    pub fn calling_requests(&self, name: &str) -> Self {
        Self { request_id: Some(name.to_owned()), ..self.clone() }
    }

    /// Signs in by password; returns the client that is signed in.
    pub async fn login(&self, email: &str, password: &str) -> Self {
        let tokens = self.post("/api/v1/auth/login", json!({ "email": email, "password": password })).await.ok(200);
        self.bearing(tokens["access_token"].as_str().expect("access_token"))
    }

    pub async fn request(&self, method: Method, path: &str, body: Option<Value>, headers: Headers<'_>) -> Answer {
        let what = format!("{method} {path} {}", body.as_ref().map(Value::to_string).unwrap_or_default());
        let (verb, sent) = (method.clone(), body.clone());
        let to = path.split('?').next().unwrap_or_default().to_owned();
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(name) = &self.request_id {
            request = request.header("x-request-id", name);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let answer = Answer::read(what, response).await;
        if let (Some(sent), 200..=299) = (sent, answer.status) {
            contract::taken(verb.as_str(), &to, &sent);
        }
        answer
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path, None, &[]).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.request(Method::POST, path, Some(body), &[]).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Answer {
        self.request(Method::PATCH, path, Some(body), &[]).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.request(Method::DELETE, path, None, &[]).await
    }

    /// Sends parts as `multipart/form-data`, each a name and bytes.
    pub async fn multipart(&self, path: &str, parts: &[(&str, &[u8])], headers: Headers<'_>) -> Answer {
        const BOUNDARY: &str = "----kztest-boundary-7d1f";
        let mut body = Vec::new();
        for (name, bytes) in parts {
            let head = format!(
                "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"{name}\"\r\n\
                 content-type: application/octet-stream\r\n\r\n"
            );
            body.extend_from_slice(head.as_bytes());
            body.extend_from_slice(bytes);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
        let mut request = self.http.post(format!("{}{path}", self.base)).body(body);
        request = request.header(CONTENT_TYPE, format!("multipart/form-data; boundary={BOUNDARY}"));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(name) = &self.request_id {
            request = request.header("x-request-id", name);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let what = format!("POST {path} (multipart)");
        let response = request.send().await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        Answer::read(what, response).await
    }

    /// Creates something and returns it.
    pub async fn create(&self, path: &str, body: Value) -> Value {
        self.post(path, body).await.ok(201)
    }

    /// Reads all pages of a list.
    pub async fn all(&self, path: &str) -> Vec<Value> {
        let (mut items, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let more = if path.contains('?') { '&' } else { '?' };
            let page = match &cursor {
                Some(cursor) => self.get(&format!("{path}{more}cursor={cursor}")).await.ok(200),
                None => self.get(path).await.ok(200),
            };
            items.extend(page["items"].as_array().expect("items").iter().cloned());
            assert!(items.len() < 100_000, "the list has no end");
            cursor = page["next_cursor"].as_str().map(str::to_owned);
            if cursor.is_none() {
                return items;
            }
        }
    }
}

impl Answer {
    /// The answer to a request; `what` begins with its method.
    pub async fn read(what: String, response: reqwest::Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let path = response.url().path().to_owned();
        let text = response.text().await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        times_are_rfc3339(&what, &body);
        contract::answer(what.split(' ').next().unwrap_or_default(), &path, status, &headers, &text, &body);
        Self { status, headers, body, text, what }
    }

    /// The body, if the status is this one.
    #[track_caller]
    pub fn ok(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}\n{}", self.what, self.text);
        self.body
    }

    /// Asserts a complete problem document (RFC 9457) with this status and code, and returns it.
    #[track_caller]
    pub fn problem(self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}\n{}", self.what, self.text);
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.what);
        assert_eq!(self.body["status"], status, "{}", self.text);
        assert_eq!(self.body["code"], code, "{}\n{}", self.what, self.text);
        assert_eq!(self.body["type"], format!("urn:kaizen:problem:{code}"), "{}", self.text);
        for name in ["title", "detail", "request_id"] {
            assert!(
                self.body[name].as_str().is_some_and(|text| !text.is_empty()),
                "`{name}` is missing: {}",
                self.text
            );
        }
        assert_eq!(self.header("x-request-id"), self.body["request_id"], "{}", self.what);
        self.body
    }

    /// A problem with a fault at this pointer; returns the fault's message.
    #[track_caller]
    pub fn fault(self, pointer: &str) -> String {
        let problem = self.problem(422, "invalid");
        let faults = problem["errors"].as_array().expect("errors");
        let fault = faults.iter().find(|fault| fault["pointer"] == pointer);
        let fault = fault.unwrap_or_else(|| panic!("no fault at {pointer}: {problem}"));
        fault["message"].as_str().expect("message").to_owned()
    }

    #[track_caller]
    pub fn header(&self, name: &str) -> String {
        self.headers.get(name).map(|value| value.to_str().expect("text").to_owned()).unwrap_or_default()
    }

    #[track_caller]
    pub fn etag(&self) -> String {
        assert!(self.headers.contains_key("etag"), "no ETag: {} {}", self.what, self.status);
        assert_eq!(self.headers.get_all(CONTENT_TYPE).iter().count(), 1, "{}", self.what);
        self.header("etag")
    }
}

/// Every time in an answer is UTC with microseconds, so that times have the order of their text.
#[track_caller]
fn times_are_rfc3339(what: &str, value: &Value) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| times_are_rfc3339(what, item)),
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::String(time) if name.ends_with("_at") => {
                        let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
                        assert_eq!(shape, "0000-00-00T00:00:00.000000Z", "{what}: {name} is {time}");
                    }
                    _ => times_are_rfc3339(what, member),
                }
            }
        }
        _ => {}
    }
}
