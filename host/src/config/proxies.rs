//! Which proxies stand in front of the server, and how they say who the client is.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;

use super::{ConfigError, Layers, fault, list};

/// The proxies in front of the server.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    /// Only what comes from these networks may say who the client is.
    pub trusted: Vec<IpNet>,
    /// How they say it. One way only: a client could send the others itself.
    pub header: ForwardedBy,
}

/// How a trusted proxy names the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForwardedBy {
    /// `X-Forwarded-For`: what nearly all proxies send.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
    /// The PROXY protocol, version 2, before anything else on each connection.
    ProxyProtocol,
}

impl Proxies {
    /// Whether an address is one of a trusted proxy.
    pub fn trust(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted.iter().any(|network| network.contains(&address))
    }

    pub(super) fn parse(layers: &Layers) -> Result<Self, ConfigError> {
        let trusted = layers.parse("trusted_proxies", Vec::new(), networks)?;
        let header = layers.parse("client_address", ForwardedBy::default(), |text| match text {
            "x-forwarded-for" => Ok(ForwardedBy::XForwardedFor),
            "forwarded" => Ok(ForwardedBy::Forwarded),
            "proxy-protocol" => Ok(ForwardedBy::ProxyProtocol),
            _ => Err("expected x-forwarded-for, forwarded or proxy-protocol".to_owned()),
        })?;
        if trusted.is_empty() && layers.given().contains("client_address") {
            let why = "`client_address` says how trusted proxies name the client: name them in `trusted_proxies`";
            return Err(fault(layers.source("client_address"), why));
        }
        Ok(Self { trusted, header })
    }
}

/// Networks, or single addresses, separated by commas.
pub(super) fn networks(text: &str) -> Result<Vec<IpNet>, String> {
    let network = |item: &str| {
        item.parse::<IpNet>()
            .or_else(|_| item.parse::<IpAddr>().map(IpNet::from))
            .map_err(|_| format!("`{item}` is not a network, e.g. 10.0.0.0/8 or 127.0.0.1/32"))
    };
    list(text).map(network).collect()
}

/// How long the server goes on serving after it was asked to stop, while `/readyz` already says no. Nobody but this machine
/// reaches a server on loopback, so there is no load balancer to wait for.
pub(super) fn drain(layers: &Layers, listen: IpAddr) -> Result<Duration, ConfigError> {
    let default = if listen.is_loopback() { 0 } else { 10 };
    let seconds = layers.parse("drain_seconds", default, |text| match text.parse::<u64>() {
        Ok(seconds) if seconds <= 600 => Ok(seconds),
        _ => Err("expected a whole number from 0 to 600".to_owned()),
    })?;
    Ok(Duration::from_secs(seconds))
}
