//! Where a request goes, and patterns over it: scheme, host and port, never a path.
//!
//! | pattern | covers |
//! |---|---|
//! | `https://api.example.com` | that host on port 443, over TLS |
//! | `http://gateway:8000` | that host, that port |
//! | `https://*.okta.com` | every name below `okta.com`, not `okta.com` itself, not `evilokta.com` |
//! | `https://*`, `https://*:*` | every host on port 443; on every port |
//! | `tcp://logs.example.com:6514` | written without `tcp://` in a manifest's `tcp` capability |
//! | `*` | everything; for the operator's own list |

use std::{fmt, str::FromStr};

use url::{Host, Url};

/// What is spoken to a far side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// HTTP without TLS.
    Http,
    /// HTTP over TLS.
    Https,
    /// Plain TCP, through `wasi:sockets`.
    Tcp,
}

impl Scheme {
    fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Tcp => "tcp",
        }
    }

    fn default_port(self) -> Option<u16> {
        match self {
            Scheme::Http => Some(80),
            Scheme::Https => Some(443),
            Scheme::Tcp => None,
        }
    }
}

/// Why a target or a pattern does not parse; says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PatternError(String);

impl PatternError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

fn fault<T>(message: impl Into<String>) -> Result<T, PatternError> {
    Err(PatternError(message.into()))
}

/// One place to connect to, parsed once and in canonical form.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// What is spoken there.
    pub scheme: Scheme,
    /// Name (lower-case, punycode) or address.
    pub host: Host,
    /// The port, also where it is the scheme's own.
    pub port: u16,
}

impl Target {
    /// Of an absolute `http` or `https` address.
    ///
    /// # Errors
    /// For another scheme, a missing host, or user information before the host: that is how one host is made to look like another.
    pub fn of_url(url: &Url) -> Result<Self, PatternError> {
        let scheme = match url.scheme() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            other => return fault(format!("`{other}:` is not http or https")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return fault("an address must not carry user information before the host");
        }
        match (url.host(), url.port_or_known_default()) {
            (Some(host), Some(port)) if port != 0 => Ok(Self { scheme, host: host.to_owned(), port }),
            _ => fault("an address needs a host"),
        }
    }

    /// Of a request's URI.
    ///
    /// # Errors
    /// As [`Target::of_url`].
    pub fn of_uri(uri: &http::Uri) -> Result<Self, PatternError> {
        match Url::parse(&uri.to_string()) {
            Ok(url) => Self::of_url(&url),
            Err(error) => fault(format!("not an absolute address: {error}")),
        }
    }

    /// As in a `Host` header: without the port where it is the scheme's own.
    pub fn authority(&self) -> String {
        if self.scheme.default_port() == Some(self.port) {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum HostPattern {
    Any,
    /// Names below this one, which begins with a dot.
    Below(String),
    Exactly(Host),
}

/// A pattern over targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    scheme: Option<Scheme>,
    host: HostPattern,
    port: Option<u16>,
}

impl Pattern {
    /// Exactly one target.
    pub fn exactly(target: Target) -> Self {
        Self { scheme: Some(target.scheme), host: HostPattern::Exactly(target.host), port: Some(target.port) }
    }

    /// `*`.
    pub fn everything() -> Self {
        Self { scheme: None, host: HostPattern::Any, port: None }
    }

    /// Whether the target is covered.
    pub fn covers(&self, target: &Target) -> bool {
        self.scheme.is_none_or(|scheme| scheme == target.scheme)
            && self.port.is_none_or(|port| port == target.port)
            && match &self.host {
                HostPattern::Any => true,
                HostPattern::Exactly(host) => *host == target.host,
                HostPattern::Below(suffix) => {
                    matches!(&target.host, Host::Domain(name) if name.len() > suffix.len() && name.ends_with(suffix.as_str()))
                }
            }
    }

    /// The one host that the pattern names, where it names one.
    pub fn host(&self) -> Option<&Host> {
        match &self.host {
            HostPattern::Exactly(host) => Some(host),
            _ => None,
        }
    }

    /// The one port that the pattern names.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The one place that the pattern covers, where it covers one.
    pub fn target(&self) -> Option<Target> {
        Some(Target { scheme: self.scheme?, host: self.host()?.clone(), port: self.port? })
    }

    /// A pattern from its parts; `port` absent stands for the scheme's own.
    pub(super) fn from_parts(scheme: Scheme, host: &str, port: Option<&str>) -> Result<Self, PatternError> {
        let host = match host {
            "*" => HostPattern::Any,
            text => match text.strip_prefix("*.") {
                Some(suffix) => match parse_host(suffix)? {
                    Host::Domain(name) => HostPattern::Below(format!(".{name}")),
                    _ => return fault(format!("`{text}`: a wildcard goes before a name, not before an address")),
                },
                None => HostPattern::Exactly(parse_host(text)?),
            },
        };
        let port = match port {
            Some("*") => None,
            Some(digits) => Some(parse_port(digits)?),
            None => match scheme.default_port() {
                Some(port) => Some(port),
                None => return fault("a tcp pattern needs a port, e.g. logs.example.com:6514"),
            },
        };
        Ok(Self { scheme: Some(scheme), host, port })
    }
}

/// A port other than 0.
pub(super) fn parse_port(digits: &str) -> Result<u16, PatternError> {
    match digits.parse::<u16>() {
        Ok(port) if port != 0 && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        _ => fault(format!("`{digits}` is not a port")),
    }
}

/// A name or an address and nothing else: no scheme, port, path, user information or wildcard.
pub(super) fn parse_host(text: &str) -> Result<Host, PatternError> {
    let plain = !text.is_empty() && !text.bytes().any(|b| b.is_ascii_whitespace() || b"/\\@?#*%{}".contains(&b));
    match Host::parse(text) {
        Ok(host) if plain => Ok(host),
        _ => fault(format!("`{text}` is not a host name or address")),
    }
}

/// Splits `host:port`, where the host may be a bracketed IPv6 address.
pub(super) fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') && (!host.contains(':') || host.ends_with(']')) => (host, Some(port)),
        _ => (authority, None),
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text == "*" {
            return Ok(Self::everything());
        }
        let (scheme, authority) = match text.split_once("://") {
            Some(("http", rest)) => (Scheme::Http, rest),
            Some(("https", rest)) => (Scheme::Https, rest),
            Some(("tcp", rest)) => (Scheme::Tcp, rest),
            _ => {
                return fault(format!(
                    "`{text}` is not a pattern, e.g. https://api.example.com, https://*.example.com:8443 or *"
                ));
            }
        };
        let (host, port) = split_port(authority.strip_suffix('/').unwrap_or(authority));
        Self::from_parts(scheme, host, port)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(scheme) = self.scheme else { return f.write_str("*") };
        write!(f, "{}://", scheme.as_str())?;
        match &self.host {
            HostPattern::Any => f.write_str("*")?,
            HostPattern::Below(suffix) => write!(f, "*{suffix}")?,
            HostPattern::Exactly(host) => write!(f, "{host}")?,
        }
        match self.port {
            None => f.write_str(":*"),
            Some(port) if scheme.default_port() == Some(port) => Ok(()),
            Some(port) => write!(f, ":{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        Target::of_url(&Url::parse(text).unwrap()).unwrap()
    }

    #[test]
    fn the_table_holds() {
        for (pattern, covered, not) in [
            (
                "https://api.example.com",
                vec!["https://api.example.com/x", "https://API.example.com:443/"],
                vec![
                    "http://api.example.com/",
                    "https://api.example.com:8443/",
                    "https://example.com/",
                    "https://api.example.com.evil.org/",
                ],
            ),
            ("http://gateway:8000", vec!["http://gateway:8000/a"], vec!["http://gateway/", "https://gateway:8000/"]),
            (
                "https://*.okta.com",
                vec!["https://dev.okta.com/", "https://a.b.okta.com/"],
                vec![
                    "https://okta.com/",
                    "https://evilokta.com/",
                    "https://dev.okta.com:8443/",
                    "https://dev.okta.com.evil.org/",
                    "http://dev.okta.com/",
                ],
            ),
            ("https://*", vec!["https://a/", "https://1.2.3.4/"], vec!["http://a/", "https://a:8443/"]),
            ("https://*:*", vec!["https://a:8443/"], vec!["http://a/"]),
            (
                "http://127.0.0.1:99",
                vec!["http://127.0.0.1:99/", "http://0x7f000001:99/"],
                vec!["http://localhost:99/"],
            ),
            ("http://[::1]:99", vec!["http://[::1]:99/"], vec!["http://[::2]:99/"]),
            ("*", vec!["https://a:1/", "http://b/"], vec![]),
        ] {
            let parsed: Pattern = pattern.parse().unwrap();
            assert_eq!(parsed.to_string(), pattern);
            for text in covered {
                assert!(parsed.covers(&target(text)), "{pattern} covers {text}");
            }
            for text in not {
                assert!(!parsed.covers(&target(text)), "{pattern} does not cover {text}");
            }
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in [
            "",
            "example.com",
            "ftp://a",
            "https://",
            "https://a/b",
            "https://u@a",
            "https://*.1.2.3.4",
            "https://a*b",
            "https://*.*.com",
            "https://a:0",
            "https://a:+1",
            "https://a:99999",
            "tcp://a",
            "https://a b",
            "https://{config.x}",
            "https://%61",
        ] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_target_cannot_pretend() {
        assert!(Target::of_uri(&"https://good.example@evil.example/".parse().unwrap()).is_err());
        assert!(Target::of_url(&Url::parse("ftp://a/").unwrap()).is_err());
        assert!(Target::of_uri(&"/relative".parse().unwrap()).is_err());
        assert_eq!(target("https://EXAMPLE.com.:443/").authority(), "example.com.");
        assert_eq!(target("http://a:8080/").to_string(), "http://a:8080");
    }
}
