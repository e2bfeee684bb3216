//! Addresses, as strict as a plugin needs them: `http` and `https` (RFC 3986, RFC 9110 section 4.2).

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Longer ones are refused.
const LONGEST: usize = 8192;

/// An absolute `http` or `https` address without user, password or fragment. International host names must be in
/// their ASCII form (`xn--…`). In a configuration it is a string.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Url {
    https: bool,
    /// Lower case, IPv6 in brackets.
    host: String,
    port: Option<u16>,
    /// Starts with `/`.
    path: String,
    query: Option<String>,
}

/// Why a text is not an address a plugin can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{url}` {why}")]
pub struct UrlError {
    url: String,
    why: &'static str,
}

impl Url {
    /// Reads an address. A fragment is dropped: it is never sent.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        // The text is named in messages, so a password in it must not be.
        let fail =
            |why| UrlError { url: text.split('@').next_back().unwrap_or_default().chars().take(120).collect(), why };
        if text.len() > LONGEST {
            return Err(fail("is longer than 8192 characters"));
        }
        if !text.bytes().all(|byte| {
            byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}')
        }) {
            return Err(fail("has characters that must be percent-encoded"));
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(|| fail("has no `https://` at the start"))?;
        let https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(fail("is neither `https` nor `http`")),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        if authority.contains('@') {
            return Err(fail("has a user name or password; supply it as a secret"));
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                let number =
                    port.parse().ok().filter(|&number| number != 0 && port.bytes().all(|b| b.is_ascii_digit()));
                (host, Some(number.ok_or_else(|| fail("has a port that is not a number from 1 to 65535"))?))
            }
            _ => (authority, None),
        };
        if !valid_host(host) {
            return Err(fail("has no valid host name"));
        }
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (rest, None),
        };
        let path = if path.is_empty() { "/" } else { path };
        Ok(Self { https, host: host.to_ascii_lowercase(), port, path: path.to_owned(), query })
    }

    /// Whether it is `https`.
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// The host name or address, lower case, IPv6 in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, also where it is not written.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(if self.https { 443 } else { 80 })
    }

    /// Whether the host is this machine: `localhost`, 127.0.0.0/8 or `[::1]`.
    pub fn is_loopback(&self) -> bool {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        self.host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// Host and, where it is not the scheme's own, port.
    pub fn authority(&self) -> String {
        if self.port() == if self.https { 443 } else { 80 } {
            self.host.clone()
        } else {
            format!("{}:{}", self.host, self.port())
        }
    }

    /// Scheme, host and port: what decides where secrets may go.
    pub fn origin(&self) -> String {
        format!("{}://{}", if self.https { "https" } else { "http" }, self.authority())
    }

    /// The path, which starts with `/`, and the query.
    pub fn path_and_query(&self) -> String {
        self.query.as_ref().map_or_else(|| self.path.clone(), |query| format!("{}?{query}", self.path))
    }

    /// The address with segments added to its path, each percent-encoded; a query is dropped.
    /// `https://host/base` joined with `["agents", "a/b"]` is `https://host/base/agents/a%2Fb`.
    ///
    /// # Errors
    /// A segment that is empty, `.` or `..` would lead elsewhere than it says.
    pub fn join(&self, segments: &[&str]) -> Result<Self, UrlError> {
        let mut path = self.path.trim_end_matches('/').to_owned();
        for segment in segments {
            if matches!(*segment, "" | "." | "..") {
                return Err(UrlError { url: (*segment).to_owned(), why: "can't be a part of an address" });
            }
            path.push('/');
            encode(segment, &mut path);
        }
        Ok(Self { path, query: None, ..self.clone() })
    }

    /// The address with a query parameter added, percent-encoded.
    #[must_use]
    pub fn query(mut self, name: &str, value: &str) -> Self {
        let mut query = self.query.take().map_or_else(String::new, |query| query + "&");
        encode(name, &mut query);
        query.push('=');
        encode(value, &mut query);
        self.query = Some(query);
        self
    }

    /// What a `Location` header means here (RFC 3986, section 5.2).
    ///
    /// # Errors
    /// If it is no address.
    pub fn resolve(&self, reference: &str) -> Result<Self, UrlError> {
        let scheme = if self.https { "https" } else { "http" };
        let reference = reference.split('#').next().unwrap_or_default();
        // RFC 3986, section 3.1: before the first `:` of anything else comes one of `/?#`.
        let scheme_only =
            |scheme: &str| scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
        if reference.split_once("://").is_some_and(|(scheme, _)| scheme_only(scheme)) {
            return Self::parse(reference);
        }
        if let Some(rest) = reference.strip_prefix("//") {
            return Self::parse(&format!("{scheme}://{rest}"));
        }
        let target = if reference.is_empty() {
            self.path_and_query()
        } else if reference.starts_with('/') {
            reference.to_owned()
        } else if reference.starts_with('?') {
            format!("{}{reference}", self.path)
        } else {
            let folder = self.path.rfind('/').and_then(|end| self.path.get(..=end)).unwrap_or("/");
            format!("{folder}{reference}")
        };
        let mut url = Self::parse(&format!("{}{target}", self.origin()))?;
        url.path = without_dots(&url.path);
        Ok(url)
    }
}

fn valid_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[') {
        return address.strip_suffix(']').is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
    }
    !host.is_empty()
        && host.len() <= 253
        && !host.starts_with(['.', '-'])
        && !host.contains("..")
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

/// Everything but unreserved characters (RFC 3986, section 2.3) is percent-encoded.
fn encode(text: &str, into: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            into.push(char::from(byte));
        } else {
            let _ = write!(into, "%{byte:02X}");
        }
    }
}

/// RFC 3986, section 5.2.4.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/').skip(1) {
        match segment {
            "." => {}
            ".." => drop(kept.pop()),
            other => kept.push(other),
        }
    }
    if path.ends_with("/.") || path.ends_with("/..") {
        kept.push("");
    }
    format!("/{}", kept.join("/"))
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin(), self.path_and_query())
    }
}

impl TryFrom<String> for Url {
    type Error = UrlError;

    fn try_from(text: String) -> Result<Self, UrlError> {
        Self::parse(&text)
    }
}

impl From<Url> for String {
    fn from(url: Url) -> Self {
        url.to_string()
    }
}

impl JsonSchema for Url {
    fn schema_name() -> Cow<'static, str> {
        "Url".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "uri",
            "maxLength": LONGEST,
            "pattern": r"^[Hh][Tt][Tt][Pp][Ss]?://([A-Za-z0-9_][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?([/?][!-~]*)?$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_apart() {
        for (text, origin, rest) in [
            ("https://gw.example.com", "https://gw.example.com", "/"),
            ("HTTPS://GW.example.com:443/a/b?c=d#e", "https://gw.example.com", "/a/b?c=d"),
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080", "/"),
            ("http://[::1]:9/x", "http://[::1]:9", "/x"),
            ("http://[2001:db8::1]", "http://[2001:db8::1]", "/"),
            ("https://h?q", "https://h", "/?q"),
            ("https://a_b.internal/%20/@", "https://a_b.internal", "/%20/@"),
        ] {
            let url = Url::parse(text).unwrap();
            assert_eq!((url.origin().as_str(), url.path_and_query().as_str()), (origin, rest), "{text}");
            assert_eq!(
                Url::parse(&url.to_string()).unwrap(),
                Url { port: url.port.filter(|p| *p != 443), ..url },
                "{text}"
            );
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for text in [
            "",
            "gw.example.com",
            "ftp://h/",
            "https://",
            "https:///path",
            "https://:80/",
            "https://user:pw@h/",
            "https://u@h/",
            "https://h:0/",
            "https://h:65536/",
            "https://h:+80/",
            "https://h:/",
            "https://h:8o/",
            "https://ho st/",
            "https://h/a b",
            "https://h/\r\nX: y",
            "https://h\\@evil/",
            "https://bücher.example/",
            "https://[::1/",
            "https://[1.2.3.4]/",
            "https://h..x/",
            "https://-h/",
            "https://%68/",
            "javascript://h/%0a",
            " https://h/",
            "https://h/{{secret:x}}",
            "file:///etc/passwd",
        ] {
            assert!(Url::parse(text).is_err(), "{text:?}");
        }
        assert!(Url::parse(&format!("https://h/{}", "a".repeat(9000))).is_err());
        let error = Url::parse("https://user:hunter2@h/").unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn the_schema_tells_addresses_from_other_texts_as_the_parser_does() {
        let schema = Url::json_schema(&mut SchemaGenerator::default());
        let pattern = regex::Regex::new(schema.get("pattern").and_then(|pattern| pattern.as_str()).unwrap()).unwrap();
        for good in
            ["https://gw.example.com", "HTTPS://GW:443/a?c=d#e", "http://[::1]:9/x", "https://h?q", "https://a_b/%20/@"]
        {
            assert!(Url::parse(good).is_ok() && pattern.is_match(good), "{good}");
        }
        for bad in [
            "",
            "gw.example.com",
            "ftp://h/",
            "https://",
            "https:///p",
            "https://u:p@h/",
            "https://h:8o/",
            "https://h/a b",
        ] {
            assert!(Url::parse(bad).is_err() && !pattern.is_match(bad), "{bad}");
        }
    }

    #[test]
    fn segments_stay_segments() {
        let base = Url::parse("https://gw.example.com/base/?x=1").unwrap();
        assert_eq!(
            base.join(&["v1", "a/b?c#d é"]).unwrap().to_string(),
            "https://gw.example.com/base/v1/a%2Fb%3Fc%23d%20%C3%A9"
        );
        assert!(base.join(&["v1", ".."]).is_err());
        assert!(base.join(&[""]).is_err());
        assert_eq!(base.query("q", "a&b").to_string(), "https://gw.example.com/base/?x=1&q=a%26b");
    }

    #[test]
    fn references_resolve_as_in_rfc_3986() {
        let base = Url::parse("http://a/b/c/d;p?q").unwrap();
        for (reference, expected) in [
            ("g", "http://a/b/c/g"),
            ("./g", "http://a/b/c/g"),
            ("g/", "http://a/b/c/g/"),
            ("/g", "http://a/g"),
            ("//g", "http://g/"),
            ("?y", "http://a/b/c/d;p?y"),
            ("g?y", "http://a/b/c/g?y"),
            ("", "http://a/b/c/d;p?q"),
            (".", "http://a/b/c/"),
            ("..", "http://a/b/"),
            ("../g", "http://a/b/g"),
            ("../../../g", "http://a/g"),
            ("https://x/y", "https://x/y"),
            ("/login?next=https://x/", "http://a/login?next=https://x/"),
            ("login?next=https://x/", "http://a/b/c/login?next=https://x/"),
        ] {
            assert_eq!(base.resolve(reference).unwrap().to_string(), expected, "{reference}");
        }
        assert!(base.resolve("javascript://x").is_err());
    }

    #[test]
    fn loopback_is_recognized() {
        for (text, loopback) in [
            ("http://localhost:1/", true),
            ("http://127.8.9.1/", true),
            ("http://[::1]/", true),
            ("http://10.0.0.1/", false),
            ("http://localhost.evil/", false),
        ] {
            assert_eq!(Url::parse(text).unwrap().is_loopback(), loopback, "{text}");
        }
    }
}
