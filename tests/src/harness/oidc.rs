//! `oidc-provider` from npm, and a browser that signs in there.

use std::{collections::BTreeMap, path::Path, process::Stdio};

use reqwest::{Method, Url, header::HeaderMap};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::{free_port, within};

pub const CLIENT_ID: &str = "kaizen";
pub const CLIENT_SECRET: &str = "client-secret-that-must-not-leak";

/// A certified OpenID provider, on loopback.
pub struct Provider {
    _child: Child,
    pub issuer: String,
}

impl Provider {
    /// Starts it for one client; `claims` is what it says of each login name.
    pub async fn start(redirect_uri: &str, claims: Value) -> Self {
        Self::start_at("", redirect_uri, claims).await
    }

    /// The same, its issuer being this path on its host (`""` or `/a/b`).
    pub async fn start_at(path: &str, redirect_uri: &str, claims: Value) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("node/oidc.mjs");
        let port = free_port().to_string();
        let mut child = Command::new("node")
            .arg(script)
            .args([&port, CLIENT_ID, CLIENT_SECRET, redirect_uri])
            .env("CLAIMS", claims.to_string())
            .env("ISSUER_PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("Node.js is needed: run the tests with `tests/run`");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let line = within("the OpenID provider listens", lines.next_line()).await.expect("output");
        let issuer = line.expect("the OpenID provider starts: run `npm ci --prefix tests/node`");
        Self { _child: child, issuer }
    }

    /// Scheme, host and port.
    pub fn origin(&self) -> String {
        Url::parse(&self.issuer).expect("an address").origin().ascii_serialization()
    }

    /// Whom an access token of this provider's is of, by its userinfo endpoint.
    pub async fn whose(&self, authorization: &str) -> Value {
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        let request = http.get(format!("{}/me", self.issuer)).header("authorization", authorization);
        let userinfo: Value = request.send().await.expect("an answer").json().await.expect("JSON");
        userinfo["sub"].clone()
    }

    /// The provider gets a new signing key.
    pub async fn rotate_keys(&self) {
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        let answer = http.post(format!("{}/test/rotate-keys", self.issuer)).send().await.expect("an answer");
        assert_eq!(answer.status(), 204);
    }
}

/// A browser without scripts: keeps cookies, follows redirects, fills in forms.
pub struct Browser {
    http: reqwest::Client,
}

/// Where a browser ended up.
#[derive(Debug)]
pub struct Page {
    pub url: Url,
    pub status: u16,
    pub text: String,
    /// Every address on the way.
    pub way: Vec<Url>,
}

impl Browser {
    pub fn new() -> Self {
        Self::sending(HeaderMap::new())
    }

    /// One that sends these headers with each request.
    pub fn sending(headers: HeaderMap) -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .default_headers(headers)
            .cookie_store(true)
            .redirect(reqwest::redirect::Policy::none())
            .timeout(std::time::Duration::from_secs(30))
            .build()
            .expect("a client");
        Self { http }
    }

    /// The client that holds the cookies.
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// Goes to an address and follows redirects to a page, or up to the first address that `stop` accepts.
    pub async fn visit(
        &self,
        method: Method,
        url: Url,
        form: &[(String, String)],
        stop: impl Fn(&Url) -> bool,
    ) -> Page {
        let (mut method, mut url, mut form) = (method, url, form.to_vec());
        let mut way = vec![url.clone()];
        for _ in 0..20 {
            let mut request = self.http.request(method.clone(), url.clone());
            if method == Method::POST {
                let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form.iter()).finish();
                request = request.header("content-type", "application/x-www-form-urlencoded").body(body);
            }
            let response = request.send().await.unwrap_or_else(|error| panic!("{url}: {error:?}"));
            let status = response.status();
            let Some(location) = status.is_redirection().then(|| response.headers().get("location").cloned()).flatten()
            else {
                return Page { url, status: status.as_u16(), text: response.text().await.expect("text"), way };
            };
            url = url.join(location.to_str().expect("an address")).expect("an address");
            way.push(url.clone());
            if stop(&url) {
                return Page { url, status: status.as_u16(), text: String::new(), way };
            }
            (method, form) = (Method::GET, Vec::new());
        }
        panic!("redirected in circles: {way:?}");
    }

    /// Signs in from the server's login address as this login name at the provider, agreeing to everything; ends at the
    /// first page that has no form, or at the first address that `stop` accepts.
    pub async fn sign_in(&self, start: &str, login: &str, stop: impl Fn(&Url) -> bool) -> Page {
        let mut page = self.visit(Method::GET, Url::parse(start).expect("an address"), &[], &stop).await;
        for _ in 0..4 {
            let Some((action, mut fields)) = form(&page.text) else { break };
            let mut values = BTreeMap::from([("login", login), ("password", "any")]);
            for (name, value) in &mut fields {
                if let Some(typed) = values.remove(name.as_str()) {
                    typed.clone_into(value);
                }
            }
            let url = page.url.join(&action).expect("an address");
            let mut way = std::mem::take(&mut page.way);
            page = self.visit(Method::POST, url, &fields, &stop).await;
            way.append(&mut page.way);
            page.way = way;
        }
        page
    }
}

/// The first form of a page: where it goes, and its fields.
fn form(html: &str) -> Option<(String, Vec<(String, String)>)> {
    let form = html.split_once("<form")?.1.split_once("</form>")?.0;
    let (tag, inner) = form.split_once('>')?;
    let fields = inner
        .split("<input")
        .skip(1)
        .filter_map(|input| Some((attribute(input, "name")?, attribute(input, "value").unwrap_or_default())))
        .collect();
    Some((attribute(tag, "action")?, fields))
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let tag = tag.split_once('>').map_or(tag, |(inside, _)| inside);
    let value = tag.split_once(&format!("{name}=\""))?.1.split_once('"')?.0;
    Some(value.replace("&amp;", "&").replace("&#x2F;", "/"))
}
