//! What keeps a browser's cookie from being used by a page elsewhere: cookie attributes, the Origin check, and where a
//! sign-in may return to.

use http::{HeaderMap, HeaderValue, Method, header};
use url::{Host, Url};

use crate::config::Config;

/// The session's cookie. The prefix makes browsers accept it only `Secure`, for this host alone, with `Path=/`.
pub const SESSION_COOKIE: &str = "__Host-kaizen";
/// The cookie that binds a sign-in under way to the browser that began it.
pub const SSO_COOKIE: &str = "__Host-kaizen-sso";
/// Bytes of what a sign-in may return to.
pub const RETURN_TO_BYTES: usize = 2048;

/// The value of a cookie.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(';')).find_map(|pair| {
        let (key, value) = pair.trim().split_once('=')?;
        (key == name).then_some(value)
    })
}

/// `Set-Cookie`. `Secure` always: browsers take `http://localhost` and `http://127.0.0.1` as trustworthy. `max_age` in
/// seconds; 0 removes the cookie. `value` must be of base64url's letters.
pub fn set_cookie(name: &str, value: &str, max_age: i64) -> HeaderValue {
    let text = format!("{name}={value}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={max_age}");
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Origins that are ours.
#[derive(Debug, Clone)]
pub struct Origins {
    public: Url,
    public_origin: String,
    listed: Vec<String>,
}

impl Origins {
    /// `public_url` and `cors_origins`.
    pub fn new(config: &Config) -> Self {
        Self {
            public: config.public_url.clone(),
            public_origin: config.public_url.origin().ascii_serialization(),
            listed: config.cors_origins.clone(),
        }
    }

    /// Whether a request that brings the cookie comes from a page of ours. Reading is left to the browser's same-origin
    /// policy; a WebSocket is not under it, so an upgrade counts as a change.
    pub fn admit(&self, method: &Method, headers: &HeaderMap) -> bool {
        let reads = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
        if reads && !headers.contains_key(header::UPGRADE) {
            return true;
        }
        let mut origins = headers.get_all(header::ORIGIN).iter();
        match (origins.next(), origins.next()) {
            (Some(origin), None) => origin.to_str().is_ok_and(|origin| self.ours(origin, headers)),
            (Some(_), Some(_)) => false,
            (None, _) => match headers.get("sec-fetch-site") {
                Some(site) => site == "same-origin",
                None => {
                    let referer = headers.get(header::REFERER).and_then(|referer| referer.to_str().ok());
                    let referer = referer.and_then(|referer| Url::parse(referer).ok()).map(|url| url.origin());
                    referer.is_some_and(|origin| origin.is_tuple() && self.ours(&origin.ascii_serialization(), headers))
                }
            },
        }
    }

    fn ours(&self, origin: &str, headers: &HeaderMap) -> bool {
        origin == self.public_origin
            || self.listed.iter().any(|listed| listed == origin)
            || self.is_host(origin, headers)
    }

    /// Where a sign-in may return to: an address of ours or of a listed frontend, whole, so that no reading of a relative
    /// one can lead elsewhere. Without one: the start page.
    pub fn return_to(&self, wanted: Option<&str>) -> Option<Url> {
        let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else { return self.public.join("/").ok() };
        if wanted.len() > RETURN_TO_BYTES || wanted.chars().any(|c| c.is_control() || c == '\\') {
            return None;
        }
        let url = if wanted.starts_with('/') { self.public.join(wanted).ok()? } else { Url::parse(wanted).ok()? };
        let origin = url.origin();
        let origin = origin.is_tuple().then(|| origin.ascii_serialization())?;
        let known = origin == self.public_origin || self.listed.contains(&origin);
        let plain = url.username().is_empty() && url.password().is_none() && matches!(url.scheme(), "http" | "https");
        (known && plain).then_some(url)
    }

    /// Whether an origin names the host that the request itself was sent to: a server may have more names than `public_url`.
    /// Where that one is https, a page that came without TLS is not ours, whatever its host: anybody on the way can write it.
    /// This machine's own addresses are no way.
    fn is_host(&self, origin: &str, headers: &HeaderMap) -> bool {
        let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
        let Ok(origin) = Url::parse(origin) else { return false };
        let loopback = match origin.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        match origin.scheme() {
            "https" => {}
            "http" if loopback || self.public.scheme() == "http" => {}
            _ => return false,
        }
        // Which scheme the browser used is not known here, behind a proxy: the origin's own, so that default ports agree.
        let Ok(host) = Url::parse(&format!("{}://{host}/", origin.scheme())) else { return false };
        host.host().is_some() && host.origin() == origin.origin() && host.path() == "/" && host.query().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins() -> Origins {
        Origins {
            public: Url::parse("https://studio.example.com/").unwrap(),
            public_origin: "https://studio.example.com".into(),
            listed: vec!["https://app.example.com".into()],
        }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_change_with_the_cookie_must_come_from_a_page_of_ours() {
        let own = "studio.example.com";
        let table: &[(bool, &[(&'static str, &str)])] = &[
            (true, &[("origin", "https://studio.example.com")]),
            (true, &[("origin", "https://app.example.com"), ("sec-fetch-site", "same-site")]),
            (true, &[("origin", "http://127.0.0.1:8080"), ("host", "127.0.0.1:8080")]),
            (true, &[("origin", "https://other.name"), ("host", "other.name")]),
            (true, &[("origin", "https://other.name"), ("host", "other.name:443")]),
            (true, &[("sec-fetch-site", "same-origin"), ("host", own)]),
            (true, &[("referer", "https://studio.example.com/agents?x=1")]),
            (false, &[]),
            (false, &[("host", own)]),
            (false, &[("origin", "null"), ("host", own)]),
            (false, &[("origin", ""), ("host", own)]),
            (false, &[("origin", "https://evil.example"), ("host", own)]),
            (false, &[("origin", "https://studio.example.com.evil.example"), ("host", own)]),
            (false, &[("origin", "https://evil.example/https://studio.example.com"), ("host", own)]),
            (false, &[("origin", "https://studio.example.com"), ("origin", "https://evil.example"), ("host", own)]),
            (false, &[("origin", "http://studio.example.com:8080"), ("host", own)]),
            (false, &[("origin", "http://studio.example.com"), ("host", own)]),
            (false, &[("origin", "http://other.name"), ("host", "other.name")]),
            (true, &[("origin", "http://[::1]:8080"), ("host", "[::1]:8080")]),
            (false, &[("origin", "https://evil.example"), ("referer", "https://studio.example.com/")]),
            (false, &[("sec-fetch-site", "cross-site"), ("referer", "https://studio.example.com/")]),
            (false, &[("sec-fetch-site", "same-site")]),
            (false, &[("sec-fetch-site", "none")]),
            (false, &[("referer", "https://evil.example/?https://studio.example.com/")]),
            (false, &[("origin", "file://"), ("host", "")]),
        ];
        for (good, pairs) in table {
            assert_eq!(origins().admit(&Method::POST, &headers(pairs)), *good, "{pairs:?}");
            assert_eq!(origins().admit(&Method::DELETE, &headers(pairs)), *good, "{pairs:?}");
            assert!(origins().admit(&Method::GET, &headers(pairs)));
            let mut socket = pairs.to_vec();
            socket.push(("upgrade", "websocket"));
            assert_eq!(origins().admit(&Method::GET, &headers(&socket)), *good, "a socket, {pairs:?}");
        }
    }

    #[test]
    fn a_server_without_tls_is_known_by_the_name_it_was_asked_by() {
        let public = Url::parse("http://studio.lan/").unwrap();
        let plain = Origins { public, public_origin: "http://studio.lan".into(), listed: Vec::new() };
        let from = |origin: &str| headers(&[("origin", origin), ("host", "other.lan")]);
        assert!(plain.admit(&Method::POST, &from("http://other.lan")));
        assert!(!plain.admit(&Method::POST, &from("http://third.lan")));
    }

    #[test]
    fn a_sign_in_returns_to_us_or_to_a_listed_frontend_only() {
        let table = [
            ("", Some("https://studio.example.com/")),
            ("/", Some("https://studio.example.com/")),
            ("/agents/1?tab=2#x", Some("https://studio.example.com/agents/1?tab=2#x")),
            ("https://studio.example.com/a", Some("https://studio.example.com/a")),
            ("https://app.example.com/a", Some("https://app.example.com/a")),
            // Stays with us as a whole address, though its path alone would lead away.
            ("/.//evil.example", Some("https://studio.example.com//evil.example")),
            ("//evil.example", None),
            ("///evil.example", None),
            ("/\\evil.example", None),
            ("\\\\evil.example", None),
            ("/\t/evil.example", None),
            ("https://evil.example", None),
            ("https://studio.example.com@evil.example/", None),
            ("https://user:pass@studio.example.com/", None),
            ("https://studio.example.com.evil.example/", None),
            ("http://studio.example.com/", None),
            ("https://app.example.com:8443/", None),
            ("javascript:alert(1)", None),
            ("data:text/html,x", None),
            ("evil.example", None),
            ("blob:https://studio.example.com/1", None),
        ];
        for (wanted, expected) in table {
            let got = origins().return_to(Some(wanted)).map(String::from);
            assert_eq!(got.as_deref(), expected, "{wanted:?}");
        }
        assert_eq!(origins().return_to(None).unwrap().as_str(), "https://studio.example.com/");
        assert!(origins().return_to(Some(&format!("/{}", "a".repeat(3000)))).is_none());
    }

    #[test]
    fn cookies_are_found_by_their_whole_name() {
        let headers = headers(&[("cookie", "a=1; __Host-kaizen-sso=x; __Host-kaizen=y"), ("cookie", "b=2")]);
        assert_eq!(cookie(&headers, SESSION_COOKIE), Some("y"));
        assert_eq!(cookie(&headers, SSO_COOKIE), Some("x"));
        assert_eq!(cookie(&headers, "b"), Some("2"));
        assert_eq!(cookie(&headers, "kaizen"), None);
    }
}
