//! A small blocking HTTP client over `wasi:http`.
//!
//! ```no_run
//! # use kaizen_plugin::{Secret, Url, http::Request};
//! # fn example(base: &Url) -> kaizen_plugin::Result<String> {
//! #[derive(serde::Deserialize)]
//! struct Answer {
//!     id: String,
//! }
//! let answer: Answer = Request::post(&base.join(&["things"])?)
//!     .header("authorization", Secret::named("api-key").bearer())
//!     .json(&serde_json::json!({"name": "x"}))?
//!     .send()? // away, timed out or not granted: the error knows
//!     .success()? // any status but 2xx: the error knows
//!     .json()?;
//! # Ok(answer.id)
//! # }
//! ```
//! Redirects are not followed unless asked for, the whole exchange takes [`DEFAULT_TIMEOUT`] at most and a response
//! [`DEFAULT_MAX_RESPONSE`] bytes.

mod error;
mod response;
mod retry_after;
#[cfg(target_os = "wasi")]
mod wasi;

use std::time::Duration;

use serde::Serialize;

pub use error::Error;
pub use response::Response;
pub use retry_after::retry_after;

use crate::Url;

/// How long a request may take, from the name's resolution to the body's last byte.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long connecting may take.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How many bytes a response's body may have.
pub const DEFAULT_MAX_RESPONSE: usize = 1024 * 1024;

/// A request method (RFC 9110, section 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "they are what they are called")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
}

/// A request as it leaves the plugin: secrets are still placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// The method.
    pub method: Method,
    /// Where it goes.
    pub url: Url,
    /// Names are lower case.
    pub headers: Vec<(String, String)>,
    /// Empty where there is none.
    pub body: Vec<u8>,
    pub(crate) timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) max_response: usize,
}

impl Sent {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// A request being made.
#[derive(Debug, Clone)]
#[must_use = "it goes nowhere until `send`"]
pub struct Request {
    sent: Sent,
    redirects: u8,
}

impl Request {
    /// A request without headers or body.
    pub fn new(method: Method, url: &Url) -> Self {
        Self {
            sent: Sent {
                method,
                url: url.clone(),
                headers: Vec::new(),
                body: Vec::new(),
                timeout: DEFAULT_TIMEOUT,
                connect_timeout: DEFAULT_CONNECT_TIMEOUT,
                max_response: DEFAULT_MAX_RESPONSE,
            },
            redirects: 0,
        }
    }

    /// A GET request.
    pub fn get(url: &Url) -> Self {
        Self::new(Method::Get, url)
    }

    /// A POST request.
    pub fn post(url: &Url) -> Self {
        Self::new(Method::Post, url)
    }

    /// A PUT request.
    pub fn put(url: &Url) -> Self {
        Self::new(Method::Put, url)
    }

    /// A DELETE request.
    pub fn delete(url: &Url) -> Self {
        Self::new(Method::Delete, url)
    }

    /// Adds a header. `host`, `content-length` and those of the connection are not the plugin's to set.
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.sent.headers.push((name.to_ascii_lowercase(), value.into()));
        self
    }

    /// The body as it is.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.sent.body = body.into();
        self
    }

    /// The body as JSON, with its `content-type`.
    ///
    /// # Errors
    /// If the value can't be written as JSON.
    pub fn json(self, value: &impl Serialize) -> Result<Self, serde_json::Error> {
        let body = serde_json::to_vec(value)?;
        Ok(self.header("content-type", "application/json").body(body))
    }

    /// How long the whole exchange may take; [`DEFAULT_TIMEOUT`] otherwise. The server ends the call at a limit of its
    /// own.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.sent.timeout = timeout;
        self.sent.connect_timeout = self.sent.connect_timeout.min(timeout);
        self
    }

    /// How long connecting may take; [`DEFAULT_CONNECT_TIMEOUT`] otherwise.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.sent.connect_timeout = timeout;
        self
    }

    /// How many bytes of body to take; [`DEFAULT_MAX_RESPONSE`] otherwise. More is [`Error::TooLarge`].
    pub fn max_response(mut self, bytes: usize) -> Self {
        self.sent.max_response = bytes;
        self
    }

    /// Follows up to this many redirects of a GET or HEAD. Headers with secrets or credentials stay behind when one
    /// leads to another origin, and the server checks each target like any other request.
    pub fn follow_redirects(mut self, most: u8) -> Self {
        self.redirects = most;
        self
    }

    /// Sends the request and waits for the whole response, whatever its status.
    ///
    /// # Errors
    /// If there is no response; it converts into the fitting [`crate::Error`].
    pub fn send(self) -> Result<Response, Error> {
        let Self { mut sent, redirects } = self;
        check_headers(&sent.headers)?;
        for _ in 0..redirects {
            let response = transport(&sent)?;
            let followed = matches!(sent.method, Method::Get | Method::Head) && response.is_redirect();
            let Some(location) = response.header("location").filter(|_| followed) else { return Ok(response) };
            let next = sent.url.resolve(location).map_err(|error| Error::Redirect(error.to_string()))?;
            if sent.url.is_https() && !next.is_https() {
                return Err(Error::Redirect(format!("from https to {}", next.origin())));
            }
            if next.origin() != sent.url.origin() {
                sent.headers.retain(|(name, value)| {
                    !matches!(name.as_str(), "authorization" | "cookie" | "proxy-authorization")
                        && !value.contains("{{secret:")
                });
            }
            sent.url = next;
        }
        let response = transport(&sent)?;
        if redirects > 0 && response.is_redirect() && matches!(sent.method, Method::Get | Method::Head) {
            return Err(Error::Redirect(format!("more than {redirects} in a row")));
        }
        Ok(response)
    }
}

/// RFC 9110, section 5: the host refuses others too, with an error that says less.
fn check_headers(headers: &[(String, String)]) -> Result<(), Error> {
    for (name, value) in headers {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(token) {
            return Err(Error::Request(format!("`{}` is no header name", name.escape_debug())));
        }
        if value.bytes().any(|byte| byte != b'\t' && (byte < b' ' || byte == 0x7f)) {
            return Err(Error::Request(format!("the value of header `{name}` has control characters")));
        }
    }
    Ok(())
}

#[cfg(target_os = "wasi")]
fn transport(request: &Sent) -> Result<Response, Error> {
    wasi::send(request)
}

#[cfg(not(target_os = "wasi"))]
fn transport(request: &Sent) -> Result<Response, Error> {
    let response = crate::testing::send(request)?;
    if response.body.len() > request.max_response {
        return Err(Error::TooLarge { limit: request.max_response });
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Secret, testing};

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn redirects_are_not_followed_unless_asked() {
        let far_side = testing::answer(|_| Ok(Response::new(302, "").with_header("location", "https://b/")));
        assert_eq!(Request::get(&url("https://a/")).send().unwrap().status, 302);
        assert_eq!(Request::post(&url("https://a/")).follow_redirects(3).send().unwrap().status, 302);
        assert_eq!(far_side.requests().len(), 2);
        assert!(matches!(Request::get(&url("https://a/")).follow_redirects(3).send(), Err(Error::Redirect(_))));
        assert_eq!(far_side.requests().len(), 6);
    }

    #[test]
    fn secrets_stay_behind_when_a_redirect_leaves_the_origin() {
        let far_side = testing::answer(|sent| {
            Ok(match sent.url.to_string().as_str() {
                "https://a/1" => Response::new(307, "").with_header("Location", "/2"),
                "https://a/2" => Response::new(301, "").with_header("location", "https://b:8443/3"),
                _ => Response::new(200, "there"),
            })
        });
        let response = Request::get(&url("https://a/1"))
            .header("Authorization", Secret::named("key").bearer())
            .header("X-Key", Secret::named("key").placeholder())
            .header("accept", "text/plain")
            .follow_redirects(5)
            .send()
            .unwrap();
        assert_eq!(response.text(), "there");
        let requests = far_side.requests();
        assert_eq!(requests[1].header("authorization"), Some("Bearer {{secret:key}}"));
        assert_eq!(requests[2].headers, [("accept".to_owned(), "text/plain".to_owned())]);
    }

    #[test]
    fn a_redirect_never_leads_from_https_to_http() {
        let _far_side = testing::answer(|_| Ok(Response::new(302, "").with_header("location", "http://a/")));
        assert!(matches!(Request::get(&url("https://a/")).follow_redirects(3).send(), Err(Error::Redirect(_))));
    }

    #[test]
    fn a_header_can_not_smuggle_another() {
        let far_side = testing::answer(|_| Ok(Response::new(200, "")));
        for (name, value) in [("x", "a\r\nb: c"), ("x", "a\0"), ("x y", "a"), ("", "a"), ("x:", "a"), ("x\n", "a")] {
            let error = Request::get(&url("https://a/")).header(name, value).send().unwrap_err();
            assert!(matches!(error, Error::Request(_)), "{name:?} {value:?}");
        }
        assert!(far_side.requests().is_empty());
    }

    #[test]
    fn a_large_response_is_an_error_and_not_cut() {
        let _far_side = testing::answer(|_| Ok(Response::new(200, vec![b'x'; 101])));
        let error = Request::get(&url("https://a/")).max_response(100).send().unwrap_err();
        assert_eq!(error, Error::TooLarge { limit: 100 });
        assert!(matches!(crate::Error::from(error), crate::Error::Rejected(_)));
    }
}
