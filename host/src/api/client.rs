//! Who a request comes from: the far end of the connection, unless that is a trusted proxy which says otherwise.

use std::{
    convert::Infallible,
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, header::FORWARDED, request::Parts},
};

use crate::{
    config::proxies::{ForwardedBy, Proxies},
    domain::client::{AddressSource, Client},
};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Reads the hops of one line, from the nearest on; nothing for one that cannot be read.
type ParseHops = fn(&str) -> Vec<Option<IpAddr>>;

/// Hops that are looked at, from the nearest on.
const HOPS: usize = 64;

impl<S: Sync> FromRequestParts<S> for Client {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().copied().unwrap_or(Self::UNKNOWN))
    }
}

/// Finds out who a request comes from.
#[derive(Debug)]
pub struct ClientAddresses {
    proxies: Proxies,
    /// Whether the operator was told that a proxy seems to be in front.
    told: AtomicBool,
}

impl ClientAddresses {
    /// By these settings.
    pub fn new(proxies: Proxies) -> Self {
        Self { proxies, told: AtomicBool::new(false) }
    }

    /// Whether a connection from here carries the requests of many clients.
    pub fn is_proxy(&self, peer: IpAddr) -> bool {
        self.proxies.trust(peer)
    }

    /// Whether a connection from here begins with the PROXY protocol.
    pub fn speaks_proxy_protocol(&self, peer: IpAddr) -> bool {
        self.proxies.header == ForwardedBy::ProxyProtocol && self.proxies.trust(peer)
    }

    /// The client of a request. `connection` is the client of its connection.
    ///
    /// The hops are read from the nearest to the farthest, each believed as long as a trusted proxy says it: the first one
    /// that is no trusted proxy is the client (RFC 7239, section 8.1, says why the others are not to be believed). Where a
    /// hop cannot be read, the client is the proxy that said it: no client can choose to be somebody else that way.
    pub fn of(&self, connection: Client, headers: &HeaderMap) -> Client {
        if connection.source != AddressSource::Connection {
            return connection;
        }
        if !self.proxies.trust(connection.address) {
            self.tell(connection.address, headers);
            return connection;
        }
        let (name, source, parse): (_, _, ParseHops) = match self.proxies.header {
            ForwardedBy::XForwardedFor => (X_FORWARDED_FOR, AddressSource::XForwardedFor, x_forwarded_for),
            ForwardedBy::Forwarded => (FORWARDED, AddressSource::Forwarded, forwarded),
            ForwardedBy::ProxyProtocol => return connection,
        };
        let mut client = connection;
        let lines: Vec<_> = headers.get_all(name).iter().collect();
        let hops = lines.iter().rev().flat_map(|line| line.to_str().map_or_else(|_| vec![None], parse));
        for hop in hops.take(HOPS) {
            let Some(address) = hop else { break };
            client = Client::new(address, source);
            if !self.proxies.trust(client.address) {
                break;
            }
        }
        client
    }

    /// One warning where a proxy seems to be in front and is not trusted: then all its clients count as one.
    fn tell(&self, peer: IpAddr, headers: &HeaderMap) {
        if !self.proxies.trusted.is_empty() || !is_private(peer) || self.told.load(Ordering::Relaxed) {
            return;
        }
        let named = [X_FORWARDED_FOR, FORWARDED].into_iter().find(|name| headers.contains_key(name));
        if let Some(header) = named
            && !self.told.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                %peer,
                %header,
                "a proxy seems to be in front of this server: set `trusted_proxies` (KAIZEN_TRUSTED_PROXIES) to its network, \
                 otherwise all its clients count as one, and one of them can use up what all may do"
            );
        }
    }
}

fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// `X-Forwarded-For: client, proxy`, from the nearest on.
fn x_forwarded_for(line: &str) -> Vec<Option<IpAddr>> {
    line.rsplit(',').take(HOPS).map(node).collect()
}

/// `Forwarded: for=client;proto=https, for=proxy` (RFC 7239, section 4), from the nearest on. One that has no `for` says
/// nothing about its client.
fn forwarded(line: &str) -> Vec<Option<IpAddr>> {
    let Some(elements) = split(line, ',') else { return vec![None] };
    let hop = |element: &str| {
        let pairs = split(element, ';')?;
        let mut named = pairs.iter().filter_map(|pair| pair.split_once('='));
        let (_, value) = named.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
        let value = value.trim();
        node(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
    };
    elements.iter().rev().take(HOPS).map(|element| hop(element)).collect()
}

/// What lies between separators that are not within quotes; nothing if a quote is left open.
fn split(text: &str, separator: char) -> Option<Vec<&str>> {
    let (mut parts, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            c if c == separator && !quoted => {
                parts.push(text.get(start..at)?);
                start = at + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(text.get(start..)?);
    (!quoted).then_some(parts)
}

/// An address, with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
/// `unknown` and obfuscated names (RFC 7239, section 6) are none.
fn node(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address);
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let port_is_one = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
        return if port_is_one { address.parse::<std::net::Ipv6Addr>().ok().map(IpAddr::V6) } else { None };
    }
    let (address, port) = text.split_once(':')?;
    port.parse::<u16>().ok()?;
    address.parse::<std::net::Ipv4Addr>().ok().map(IpAddr::V4)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn addresses(header: ForwardedBy) -> ClientAddresses {
        let trusted = ["10.0.0.0/8", "2001:db8:ffff::/48"].map(|network| network.parse().unwrap());
        ClientAddresses::new(Proxies { trusted: trusted.to_vec(), header })
    }

    fn of(header: ForwardedBy, peer: &str, lines: &[(&'static str, &str)]) -> String {
        let mut headers = HeaderMap::new();
        for (name, line) in lines {
            headers.append(*name, HeaderValue::from_str(line).unwrap());
        }
        let connection = Client::new(peer.parse().unwrap(), AddressSource::Connection);
        addresses(header).of(connection, &headers).address.to_string()
    }

    #[test]
    fn the_client_is_the_nearest_hop_that_is_no_trusted_proxy() {
        let x = |peer, lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
            of(ForwardedBy::XForwardedFor, peer, &lines)
        };
        assert_eq!(x("10.0.0.1", &["192.0.2.7"]), "192.0.2.7");
        assert_eq!(x("::ffff:10.0.0.1", &["192.0.2.7"]), "192.0.2.7", "a listener on [::]");
        assert_eq!(x("10.0.0.1", &["1.1.1.1, 192.0.2.7"]), "192.0.2.7", "what the client itself sent is not believed");
        assert_eq!(x("10.0.0.1", &["1.1.1.1", "192.0.2.7, 10.0.0.2"]), "192.0.2.7", "several lines are one list");
        assert_eq!(x("10.0.0.1", &["10.9.9.9, 10.0.0.2"]), "10.9.9.9", "all of them are proxies: the farthest");
        assert_eq!(x("10.0.0.1", &["192.0.2.7:4711"]), "192.0.2.7");
        assert_eq!(x("10.0.0.1", &["[2001:db8::7]:4711"]), "2001:db8::7");
        assert_eq!(x("10.0.0.1", &["2001:db8::7"]), "2001:db8::7");
        assert_eq!(x("10.0.0.1", &["::ffff:192.0.2.7"]), "192.0.2.7");
        assert_eq!(x("10.0.0.1", &[]), "10.0.0.1", "the proxy's own request");
        for unreadable in
            ["", "unknown", "192.0.2.7:x", "192.0.2.256", "[2001:db8::7", "192.0.2.7 192.0.2.8", "_hidden"]
        {
            assert_eq!(x("10.0.0.1", &[&format!("1.1.1.1, {unreadable}")]), "10.0.0.1", "{unreadable:?}");
            assert_eq!(x("10.0.0.1", &[&format!("{unreadable}, 10.0.0.2")]), "10.0.0.2", "{unreadable:?}");
        }
        assert_eq!(x("192.0.2.1", &["1.1.1.1"]), "192.0.2.1", "nobody else may say who the client is");
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_writes_it() {
        let f = |line: &str| of(ForwardedBy::Forwarded, "10.0.0.1", &[("forwarded", line)]);
        assert_eq!(f("for=192.0.2.7"), "192.0.2.7");
        assert_eq!(f("proto=https; For=\"[2001:db8:cafe::17]:4711\";by=10.0.0.1"), "2001:db8:cafe::17");
        assert_eq!(f("for=1.1.1.1, for=192.0.2.7;proto=http"), "192.0.2.7");
        assert_eq!(f("for=192.0.2.7, for=10.0.0.9"), "192.0.2.7");
        assert_eq!(f("for=\"1.1.1.1, for=192.0.2.9\", for=192.0.2.7"), "192.0.2.7", "a comma within quotes");
        for unreadable in ["for=unknown", "for=_secret", "proto=https", "for", "for=\"192.0.2.7", "for=192.0.2.7:http"]
        {
            assert_eq!(f(unreadable), "10.0.0.1", "{unreadable}");
        }
    }

    #[test]
    fn hops_beyond_the_bound_are_not_looked_at() {
        let proxy = |n: usize| format!("10.1.{}.{}", n / 250, n % 250);
        for (header, name, key) in
            [(ForwardedBy::XForwardedFor, "x-forwarded-for", ""), (ForwardedBy::Forwarded, "forwarded", "for=")]
        {
            // The client, then this many trusted proxies up to the nearest one.
            let hops = |proxies: usize| {
                let proxies = (0..proxies).rev().map(|n| format!("{key}{}", proxy(n)));
                std::iter::once(format!("{key}192.0.2.7")).chain(proxies).collect::<Vec<_>>()
            };
            let as_one_line = |proxies| of(header, "10.0.0.1", &[(name, &hops(proxies).join(", "))]);
            let as_many_lines = |proxies| {
                let hops = hops(proxies);
                of(header, "10.0.0.1", &hops.iter().map(|hop| (name, hop.as_str())).collect::<Vec<_>>())
            };
            assert_eq!((as_one_line(HOPS - 1), as_many_lines(HOPS - 1)), ("192.0.2.7".into(), "192.0.2.7".into()));
            // Whoever makes the list longer than that is taken for a proxy of ours: one client, and nobody of their choice.
            for more in [HOPS, HOPS + 1, 10 * HOPS] {
                assert_eq!((as_one_line(more), as_many_lines(more)), (proxy(HOPS - 1), proxy(HOPS - 1)), "{more}");
            }
        }
    }

    #[test]
    fn one_way_to_name_the_client_and_no_other() {
        let lines = [("x-forwarded-for", "192.0.2.1"), ("forwarded", "for=192.0.2.2")];
        assert_eq!(of(ForwardedBy::XForwardedFor, "10.0.0.1", &lines), "192.0.2.1");
        assert_eq!(of(ForwardedBy::Forwarded, "10.0.0.1", &lines), "192.0.2.2");
        assert_eq!(of(ForwardedBy::ProxyProtocol, "10.0.0.1", &lines), "10.0.0.1");
    }

    proptest! {
        #[test]
        fn whatever_a_client_sends_the_proxys_word_is_believed(sent in "[ -~]{0,80}") {
            // An unclosed quote of the client's would swallow what the proxy adds; on a line of its own it cannot.
            let x = of(ForwardedBy::XForwardedFor, "10.0.0.1", &[("x-forwarded-for", &format!("{sent}, 192.0.2.7"))]);
            prop_assert_eq!(x, "192.0.2.7");
            let lines = [("forwarded", sent.as_str()), ("forwarded", "for=192.0.2.7")];
            prop_assert_eq!(of(ForwardedBy::Forwarded, "10.0.0.1", &lines), "192.0.2.7");
            let one = of(ForwardedBy::Forwarded, "10.0.0.1", &[("forwarded", &format!("{sent}, for=192.0.2.7"))]);
            prop_assert!(one == "192.0.2.7" || one == "10.0.0.1", "{}", one);
        }
    }
}
