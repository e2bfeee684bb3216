//! Who sends a request, as far as the network tells.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The client of a connection or a request: an address, and how it is known. Everything that is counted, limited or
/// logged by client uses this, never the connection's far end, which behind a proxy is the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// Never an IPv4-mapped IPv6 address.
    pub address: IpAddr,
    /// How the address is known.
    pub source: AddressSource,
}

/// How a client's address is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressSource {
    /// The far end of the connection.
    Connection,
    /// A trusted proxy said so in the PROXY protocol.
    ProxyProtocol,
    /// A trusted proxy said so in `Forwarded` (RFC 7239).
    Forwarded,
    /// A trusted proxy said so in `X-Forwarded-For`.
    XForwardedFor,
}

impl Client {
    /// Where no connection was seen: all such requests are one client.
    pub const UNKNOWN: Self = Self { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), source: AddressSource::Connection };

    /// A client whose address is known this way.
    pub fn new(address: IpAddr, source: AddressSource) -> Self {
        Self { address: address.to_canonical(), source }
    }

    /// What counts as one client.
    pub fn network(&self) -> Network {
        Network::of(self.address)
    }
}

/// A site may take as much as so many clients: one who owns an IPv6 /48 has 65,536 of them.
pub const CLIENTS_PER_SITE: u32 = 16;

/// What counts as one client: an IPv4 address, or an IPv6 /64, since that is the least a customer has to choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    first: IpAddr,
    /// Of the prefix.
    bits: u8,
}

impl Network {
    /// The network of an address.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self { first: v4.into(), bits: 32 },
            IpAddr::V6(v6) => Self::cut(v6, 64),
        }
    }

    /// The IPv6 /48 it lies in, the most that one customer usually has: one who changes from /64 to /64 stays within it.
    pub fn site(self) -> Option<Self> {
        match self.first {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(Self::cut(v6, 48)),
        }
    }

    fn cut(address: Ipv6Addr, bits: u8) -> Self {
        let first = u128::from(address) & !(u128::MAX >> bits);
        Self { first: Ipv6Addr::from(first).into(), bits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        Network::of(text.parse().unwrap())
    }

    #[test]
    fn one_ipv6_customer_is_one_client() {
        assert_eq!(network("2001:db8:1:2::1"), network("2001:db8:1:2:ffff::9"));
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:1:3::1"));
        assert_eq!(network("2001:db8:1:2::1").site(), network("2001:db8:1:3::1").site());
        assert_ne!(network("2001:db8:1:2::1").site(), network("2001:db8:2:2::1").site());
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
        assert_ne!(network("2001:db8::1").site(), Some(network("2001:db8::1")), "though they begin alike");
        assert_eq!(network("192.0.2.1").site(), None);
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"), "a listener on [::] sees IPv4 like this");
    }
}
