//! The operator's rules on addresses, as settings have them.
//!
//! | `egress_allow_private` | opens |
//! |---|---|
//! | `10.0.0.0/8`, `fd00::/8`, `127.0.0.1` | a network, every port, for every plugin and for sign-in |
//! | `10.1.2.3:8443`, `10.0.0.0/8:443`, `[fd00::/8]:443` | one port of it |
//! | `webhook@10.0.0.0/8:443`, `webhook@10.1.2.3` | the same for plugins of one name only |
//!
//! | `egress_deny` | refuses, whatever else allows it |
//! |---|---|
//! | `203.0.113.0/24`, `2001:db8::1` | a network |
//! | `203.0.113.7:22`, `[2001:db8::/32]:443` | one port of it |
//! | `https://*.corp.example`, `*.corp.example` | names, as in `egress_allow`; without a scheme every scheme and port |

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;

use crate::sandbox::pattern::{Pattern, Target};

/// A network, or one port of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    network: IpNet,
    port: Option<u16>,
}

impl Place {
    fn covers(&self, address: IpAddr, port: u16) -> bool {
        self.network.contains(&address) && self.port.is_none_or(|own| own == port)
    }
}

fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // First: an IPv6 network has colons of its own.
        if let Some(network) = network(text) {
            return Ok(Self { network, port: None });
        }
        let (address, port) = text.rsplit_once(':').ok_or(())?;
        let address = match address.strip_prefix('[') {
            Some(address) => address.strip_suffix(']').ok_or(())?,
            None if address.contains(':') => return Err(()),
            None => address,
        };
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(())?;
        Ok(Self { network: network(address).ok_or(())?, port: Some(port) })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.network, self.port) {
            (network, None) => network.fmt(f),
            (IpNet::V4(network), Some(port)) => write!(f, "{network}:{port}"),
            (IpNet::V6(network), Some(port)) => write!(f, "[{network}]:{port}"),
        }
    }
}

/// One entry of `egress_allow_private`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivateRule {
    /// The plugin's name; without one, it holds for every plugin and for the server's own requests.
    plugin: Option<String>,
    place: Place,
}

impl PrivateRule {
    /// Whether it opens an address for who asks: a plugin by its name, or the server itself.
    pub fn covers(&self, asking: Option<&str>, address: IpAddr, port: u16) -> bool {
        self.plugin.as_deref().is_none_or(|own| asking == Some(own)) && self.place.covers(address, port)
    }
}

impl From<IpNet> for PrivateRule {
    fn from(network: IpNet) -> Self {
        Self { plugin: None, place: Place { network, port: None } }
    }
}

impl FromStr for PrivateRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fault = || {
            format!(
                "`{text}` is not a network, e.g. 10.0.0.0/8 or 127.0.0.1/32, with a port if only that is meant, e.g. 10.0.0.0/8:443 \
                 or [fd00::/8]:443, and a plugin's name before it if only that may, e.g. webhook@10.0.0.0/8:443"
            )
        };
        let (plugin, place) = match text.split_once('@') {
            Some((plugin, place)) => (Some(plugin), place),
            None => (None, text),
        };
        let name = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if !plugin.is_none_or(name) {
            return Err(fault());
        }
        Ok(Self { plugin: plugin.map(str::to_owned), place: place.parse().map_err(|()| fault())? })
    }
}

impl fmt::Display for PrivateRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.plugin {
            Some(plugin) => write!(f, "{plugin}@{}", self.place),
            None => self.place.fmt(f),
        }
    }
}

/// One entry of `egress_deny`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DenyRule {
    /// Addresses, looked at after a name is resolved.
    Address(Place),
    /// Names and addresses as requests have them: any of these patterns.
    Names(Vec<Pattern>),
}

impl DenyRule {
    /// Whether it refuses an address.
    pub fn covers_address(&self, address: IpAddr, port: u16) -> bool {
        matches!(self, DenyRule::Address(place) if place.covers(address, port))
    }

    /// Whether it refuses a target as a request has it.
    pub fn covers(&self, target: &Target) -> bool {
        matches!(self, DenyRule::Names(patterns) if patterns.iter().any(|pattern| pattern.covers(target)))
    }
}

impl FromStr for DenyRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(place) = text.parse() {
            return Ok(DenyRule::Address(place));
        }
        // Taken for names, they would be compared with what requests say and with no address that a name resolves to.
        if text.starts_with('[') || text.split([':', '/']).next().is_some_and(|host| host.parse::<IpAddr>().is_ok()) {
            return Err(format!(
                "`{text}` is not a network, e.g. 203.0.113.0/24 or 2001:db8::1, with a port if only that is meant, e.g. \
                 203.0.113.7:22 or [2001:db8::/32]:443"
            ));
        }
        let parse = |text: &str| text.parse::<Pattern>().map_err(|error| error.to_string());
        if text.contains("://") || text == "*" {
            return Ok(DenyRule::Names(vec![parse(text)?]));
        }
        let port = if text.contains(':') { "" } else { ":*" };
        let all = ["http", "https", "tcp"].map(|scheme| parse(&format!("{scheme}://{text}{port}")));
        Ok(DenyRule::Names(all.into_iter().collect::<Result<_, _>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_private_rule_opens_its_network_its_port_and_for_its_plugin() {
        let covers = |rule: &str, asking: Option<&str>, address: &str, port: u16| {
            let parsed: PrivateRule = rule.parse().unwrap();
            assert_eq!(parsed.to_string().parse::<PrivateRule>().unwrap(), parsed);
            parsed.covers(asking, ip(address), port)
        };
        for asking in [None, Some("webhook")] {
            assert!(covers("10.0.0.0/8", asking, "10.1.2.3", 22));
            assert!(covers("fd00::/8", asking, "fd12::1", 22));
            assert!(covers("127.0.0.1", asking, "127.0.0.1", 80) && !covers("127.0.0.1", asking, "127.0.0.2", 80));
            assert!(covers("10.0.0.0/8:443", asking, "10.1.2.3", 443));
            assert!(!covers("10.0.0.0/8:443", asking, "10.1.2.3", 22));
            assert!(
                covers("[fd00::/8]:443", asking, "fd12::1", 443) && !covers("[fd00::/8]:443", asking, "fd12::1", 22)
            );
        }
        assert!(covers("webhook@10.0.0.0/8:443", Some("webhook"), "10.1.2.3", 443));
        for asking in [None, Some("nexus"), Some("webhook2")] {
            assert!(!covers("webhook@10.0.0.0/8:443", asking, "10.1.2.3", 443));
            assert!(!covers("webhook@::1", asking, "::1", 443));
        }
        for nonsense in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/8:0",
            "10.0.0.0/8:x",
            "fd00::/8:443:1",
            "[fd00::/8]",
            "@10.0.0.0/8",
            "A@::1",
            "a@b@::1",
        ] {
            let fault = nonsense.parse::<PrivateRule>().unwrap_err();
            assert!(fault.contains("webhook@10.0.0.0/8:443"), "{fault}");
        }
    }

    #[test]
    fn a_deny_rule_is_a_network_or_names() {
        let target = |url: &str| Target::of_url(&url.parse().unwrap()).unwrap();
        let rule = |text: &str| text.parse::<DenyRule>().unwrap();
        assert!(rule("203.0.113.0/24").covers_address(ip("203.0.113.9"), 22));
        assert!(rule("203.0.113.9:22").covers_address(ip("203.0.113.9"), 22));
        assert!(!rule("203.0.113.9:22").covers_address(ip("203.0.113.9"), 443));
        for url in ["https://a.corp.example", "http://a.corp.example:8080", "https://a.b.corp.example"] {
            assert!(rule("*.corp.example").covers(&target(url)), "{url}");
        }
        assert!(!rule("*.corp.example").covers(&target("https://corp.example.evil.example")));
        assert!(rule("https://corp.example").covers(&target("https://corp.example")));
        assert!(!rule("https://corp.example").covers(&target("http://corp.example")));
        assert!(rule("corp.example:8443").covers(&target("https://corp.example:8443")));
        for network in ["[2001:db8::1]", "[2001:db8::1]:*", "203.0.113.7:*", "203.0.113.0/33", "203.0.113.7:0"] {
            assert!(network.parse::<DenyRule>().is_err(), "{network}");
        }
        assert!("https://a b".parse::<DenyRule>().is_err() && "https://x/path".parse::<DenyRule>().is_err());
    }
}
