//! What came back.

use std::borrow::Cow;
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Error, find, retry_after};

/// How much of what the far side says goes into an error.
const EXCERPT: usize = 200;

/// A whole response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// As they came; compare names without regard to case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// A response made up for a test.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }

    /// The same with another header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The body as text; what is not UTF-8 is replaced.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }

    /// Whether the status is 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether it is a redirect to another address: 301, 302, 303, 307 or 308.
    pub fn is_redirect(&self) -> bool {
        matches!(self.status, 301 | 302 | 303 | 307 | 308)
    }

    /// Itself if the status is 2xx.
    ///
    /// # Errors
    /// [`Error::Status`], which converts into a [`crate::Error`]: 408, 425, 429 and 5xx are worth another attempt,
    /// after `Retry-After` where it is sent; 3xx, 401, 403 and 407 are the operator's; all others are a refusal.
    pub fn success(self) -> Result<Self, Error> {
        if self.is_success() {
            return Ok(self);
        }
        let retry_after =
            self.header("retry-after").and_then(|value| retry_after(value, self.header("date"), SystemTime::now()));
        let mut message = format!("the answer is {}", self.status);
        if let Some(location) = self.header("location").filter(|_| self.is_redirect()) {
            message += &format!(", a redirect to {}", excerpt(location));
        }
        let said = self.said();
        if !said.is_empty() {
            message += &format!(": {said}");
        }
        Err(Error::Status { status: self.status, message, retry_after })
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// [`Error::Body`], which is a refusal: the same answer would come again.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Error::Body(format!(
                "the answer ({} with {} bytes) is not the JSON expected: {error}",
                self.status,
                self.body.len()
            ))
        })
    }

    /// Where the next page is, by the `Link` header with `rel="next"` (RFC 8288).
    pub fn next_link(&self) -> Option<&str> {
        let links = self.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("link")).map(|(_, value)| value);
        for mut rest in links.map(String::as_str) {
            while let Some((_, after)) = rest.split_once('<') {
                let (target, parameters) = after.split_once('>')?;
                // A comma in a quoted parameter ends nothing, and a `<` in one is no address.
                let end = parameters
                    .char_indices()
                    .scan(false, |quoted, (at, c)| {
                        *quoted ^= c == '"';
                        Some((at, c, *quoted))
                    })
                    .find(|&(_, c, quoted)| c == ',' && !quoted)
                    .map_or(parameters.len(), |(at, ..)| at);
                let (own, later) = parameters.split_at(end);
                let is_next = own.split(';').filter_map(|parameter| parameter.split_once('=')).any(|(name, value)| {
                    name.trim().eq_ignore_ascii_case("rel")
                        && value.trim().trim_matches('"').split(' ').any(|rel| rel.eq_ignore_ascii_case("next"))
                });
                if is_next {
                    return Some(target);
                }
                rest = later;
            }
        }
        None
    }

    /// What an error's body says: the usual member of a JSON object, or the start of a text. HTML says nothing.
    fn said(&self) -> String {
        if let Ok(Value::Object(object)) = serde_json::from_slice(&self.body) {
            let said = ["detail", "message", "error_description", "error", "title", "text"].iter().find_map(|&name| {
                match object.get(name)? {
                    Value::String(text) => Some(excerpt(text)),
                    Value::Object(nested) => nested.get("message").and_then(Value::as_str).map(excerpt),
                    _ => None,
                }
            });
            return said.unwrap_or_default();
        }
        let text = self.text();
        if text.trim_start().starts_with('<') { String::new() } else { excerpt(&text) }
    }
}

/// The first line's start, without control characters: it ends up on an operator's screen.
fn excerpt(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    let mut short: String = line.chars().filter(|c| !c.is_control()).take(EXCERPT).collect();
    if short.len() < line.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn failure(response: Response) -> crate::Error {
        response.success().unwrap_err().into()
    }

    #[test]
    fn a_status_decides_who_has_to_act() {
        for status in [408, 425, 429, 500, 502, 503, 504, 599] {
            assert!(
                matches!(failure(Response::new(status, "")), crate::Error::Unavailable { retry_after: None, .. }),
                "{status}"
            );
        }
        for status in [301, 302, 304, 401, 403, 407] {
            assert!(matches!(failure(Response::new(status, "")), crate::Error::Config(_)), "{status}");
        }
        for status in [100, 400, 404, 409, 410, 413, 418, 422] {
            assert!(matches!(failure(Response::new(status, "")), crate::Error::Rejected(_)), "{status}");
        }
        for status in [200, 201, 202, 204] {
            assert!(Response::new(status, "").success().is_ok());
        }
    }

    #[test]
    fn retry_after_is_passed_on() {
        let response = Response::new(429, "").with_header("Retry-After", "7");
        let expected = crate::Error::Unavailable {
            message: "the answer is 429".into(),
            retry_after: Some(Duration::from_secs(7)),
        };
        assert_eq!(failure(response), expected);
        let dated = Response::new(503, "")
            .with_header("date", "Sun, 06 Nov 1994 08:49:37 GMT")
            .with_header("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT");
        assert!(
            matches!(failure(dated), crate::Error::Unavailable { retry_after: Some(wait), .. } if wait.as_secs() == 10)
        );
    }

    #[test]
    fn the_message_is_short_and_printable() {
        for (body, said) in [
            (r#"{"detail":"no such agent"}"#, "the answer is 400: no such agent"),
            (r#"{"error":{"message":"nested","code":1}}"#, "the answer is 400: nested"),
            (r#"{"error":"invalid_grant","error_description":"expired"}"#, "the answer is 400: expired"),
            ("plain\u{1b}[31m text\nmore", "the answer is 400: plain[31m text…"),
            ("<html><body>Bad</body></html>", "the answer is 400"),
            ("", "the answer is 400"),
        ] {
            assert_eq!(Response::new(400, body).success().unwrap_err().to_string(), said, "{body}");
        }
        assert!(Response::new(400, "é".repeat(5000)).success().unwrap_err().to_string().chars().count() < 230);
    }

    #[test]
    fn the_next_page_is_found() {
        let link = |value: &str| Response::new(200, "").with_header("Link", value).next_link().map(str::to_owned);
        let next = Some("https://a/x?page=2".to_owned());
        assert_eq!(link(r#"<https://a/x?page=1>; rel="prev", <https://a/x?page=2>; rel="next""#), next);
        assert_eq!(link(r#"<https://a/x?page=2>; title="<a>, b"; rel="last next""#), next);
        assert_eq!(link("<https://a/x?page=2>;rel=NEXT"), next);
        for none in
            ["", "<https://a>", r#"<https://a>; rel="last""#, "<https://a; rel=next", r#"<x>; title="rel=next""#]
        {
            assert_eq!(link(none), None, "{none}");
        }
    }

    #[test]
    fn a_body_that_is_not_the_json_expected_is_not_shown() {
        let error = Response::new(200, "token=hunter2").json::<Value>().unwrap_err();
        assert!(matches!(&error, Error::Body(message) if !message.contains("hunter2")), "{error}");
    }
}
