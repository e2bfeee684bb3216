//! A far side for `tcp` capabilities: listeners on loopback, since `wasi:sockets` makes real connections. Names lead there;
//! what a configuration names by address, or at a port that is not free here, is moved there.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpSocket, TcpStream},
};
use tokio_util::task::AbortOnDropHandle;
use url::Host;

use super::{KitError, far_side::FarSide, situation::Situation};
use crate::sandbox::{grants::Capability, pattern::Target};

/// Where it listens.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Ports of this machine that are the kit's for the whole run: nobody else gets them between two situations, and while
/// nothing listens the system refuses connections.
#[derive(Default)]
pub struct Ports(BTreeMap<u16, TcpSocket>);

impl Ports {
    /// Takes a port; 0 takes a free one.
    ///
    /// # Errors
    /// If it is taken, or not for this user.
    pub fn reserve(&mut self, port: u16) -> io::Result<u16> {
        if port != 0 && self.0.contains_key(&port) {
            return Ok(port);
        }
        let socket = bound(port)?;
        let port = socket.local_addr()?.port();
        self.0.insert(port, socket);
        Ok(port)
    }

    /// Gives up those that no target is at.
    pub fn keep(&mut self, targets: &[Target]) {
        self.0.retain(|port, _| targets.iter().any(|target| target.port == *port));
    }

    /// Whether the far side of a target is played here.
    pub fn plays(&self, target: &Target) -> bool {
        here(&target.host) && self.0.contains_key(&target.port)
    }

    /// Listens on all, in a situation, until the handles are dropped; on none where nothing is to listen.
    ///
    /// # Errors
    /// If the system does not let it.
    pub fn listen(&self, situation: Situation, far_side: &Arc<FarSide>) -> io::Result<Vec<AbortOnDropHandle<()>>> {
        if situation == Situation::NoConnection {
            return Ok(Vec::new());
        }
        self.0.keys().map(|port| listen(situation, *port, far_side.clone())).collect()
    }
}

/// The properties of the configuration that `tcp` capabilities name.
pub fn named(capabilities: &[Capability]) -> Vec<&str> {
    capabilities
        .iter()
        .filter_map(|capability| match capability {
            Capability::Tcp(template) => Some(template),
            _ => None,
        })
        .flat_map(|template| template.properties())
        .collect()
}

/// Moves what cannot be played where it is to this machine: an address, a port that is taken or not for this user.
/// `named` are the properties that may name it. Says what it moved.
///
/// # Errors
/// If no property is just the address, or just the port, that would have to be moved.
pub fn stand_in(
    config: &mut Value,
    named: &[&str],
    targets: &[Target],
    ports: &mut Ports,
) -> Result<Option<String>, KitError> {
    let mut moved = Vec::new();
    for target in targets {
        let reserved = ports.reserve(target.port);
        if here(&target.host) && reserved.is_ok() {
            continue;
        }
        let fixed = |why: String| KitError::Tcp { target: target.to_string(), why };
        let (mut host, mut port) = (target.host.to_string(), target.port);
        if !here(&target.host) {
            host = ADDRESS.to_string();
            let it = |value: &Value| value.as_str().and_then(address).is_some_and(|address| address == target.host);
            if !replace(config, named, it, &json!(host)) {
                return Err(fixed("it is an address that no property of the configuration is: name a host".into()));
            }
        }
        if let Err(error) = reserved {
            port = ports.reserve(0)?;
            let (number, text) = (json!(target.port), json!(target.port.to_string()));
            let numeric = replace(config, named, |value| *value == number, &json!(port));
            if !numeric && !replace(config, named, |value| *value == text, &json!(port.to_string())) {
                return Err(fixed(format!(
                    "port {}: {error}; no property of the configuration is that port",
                    target.port
                )));
            }
        }
        moved.push(format!("{target} by {host}:{port}"));
    }
    Ok((!moved.is_empty()).then(|| format!("Played on this machine, and so configured: {}.", moved.join(", "))))
}

/// Replaces those of the named properties that are so; whether there was any.
fn replace(config: &mut Value, named: &[&str], is: impl Fn(&Value) -> bool, by: &Value) -> bool {
    let mut found = false;
    for name in named {
        if let Some(value) = config.get_mut(*name).filter(|value| is(value)) {
            *value = by.clone();
            found = true;
        }
    }
    found
}

/// Whether a host leads to this machine in the kit: each name does.
fn here(host: &Host) -> bool {
    match host {
        Host::Domain(_) => true,
        Host::Ipv4(address) => *address == ADDRESS,
        Host::Ipv6(_) => false,
    }
}

fn address(text: &str) -> Option<Host> {
    match text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok()? {
        IpAddr::V4(address) => Some(Host::Ipv4(address)),
        IpAddr::V6(address) => Some(Host::Ipv6(address)),
    }
}

/// A socket with a port, on which nothing listens yet. Several may have the same one as long as none of them listens.
fn bound(port: u16) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(IpAddr::V4(ADDRESS), port))?;
    Ok(socket)
}

fn listen(situation: Situation, port: u16, far_side: Arc<FarSide>) -> io::Result<AbortOnDropHandle<()>> {
    let socket = bound(port)?;
    if situation == Situation::Drip {
        // Or the system takes it all in before anybody reads.
        socket.set_recv_buffer_size(2 << 10)?;
    }
    let listener = socket.listen(16)?;
    Ok(AbortOnDropHandle::new(tokio::spawn(async move {
        let mut held = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            far_side.contacted();
            held.spawn(take(situation, stream));
        }
    })))
}

async fn take(situation: Situation, mut stream: TcpStream) {
    let mut buffer = vec![0; if situation == Situation::Drip { 1 } else { 64 << 10 }];
    while let Ok(1..) = stream.read(&mut buffer).await {
        match situation {
            Situation::Cut => {
                // At once and without a farewell, as a crashed machine's successor would.
                drop(stream.set_zero_linger());
                return;
            }
            Situation::Drip => tokio::time::sleep(Duration::from_millis(100)).await,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::pattern::Scheme;

    fn target(host: Host, port: u16) -> Target {
        Target { scheme: Scheme::Tcp, host, port }
    }

    #[tokio::test]
    async fn an_address_and_a_taken_port_are_moved_here() {
        let taken = tokio::net::TcpListener::bind((ADDRESS, 0)).await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut config = json!({ "host": "10.1.2.3", "port": port, "facility": port });
        let mut ports = Ports::default();
        let targets = [target(Host::Ipv4([10, 1, 2, 3].into()), port)];
        let said = stand_in(&mut config, &["host", "port"], &targets, &mut ports).unwrap();
        assert_eq!(config["host"], "127.0.0.1");
        assert_ne!(config["port"], port);
        assert_eq!(config["facility"], port, "what the capability does not name stays");
        assert!(said.unwrap().contains("tcp://10.1.2.3"));
        let moved = u16::try_from(config["port"].as_u64().unwrap()).unwrap();
        assert!(ports.plays(&target(Host::Ipv4(ADDRESS), moved)));
    }

    #[tokio::test]
    async fn what_cannot_be_moved_is_said_and_never_reached() {
        let mut ports = Ports::default();
        let targets = [target(Host::Ipv4([192, 0, 2, 1].into()), 6514)];
        let why = stand_in(&mut json!({ "url": "192.0.2.1:6514" }), &["url"], &targets, &mut ports).unwrap_err();
        assert!(why.to_string().contains("tcp://192.0.2.1:6514"), "{why}");
        assert!(!ports.plays(&targets[0]));
    }

    #[tokio::test]
    async fn a_port_stays_the_kits_and_refuses_while_nothing_listens() {
        let mut ports = Ports::default();
        let port = ports.reserve(0).unwrap();
        assert_eq!(ports.reserve(port).unwrap(), port, "two targets may share it");
        let refused = || async { TcpStream::connect((ADDRESS, port)).await.is_err() };
        assert!(refused().await);
        let far_side = FarSide::new(Situation::Good, Arc::default(), crate::clock::Clock::system());
        for _ in 0..2 {
            let listeners = ports.listen(Situation::Good, &far_side).unwrap();
            assert_eq!((listeners.len(), refused().await), (1, false));
            for listener in listeners {
                listener.abort();
                drop(listener.await);
            }
            assert!(refused().await);
        }
        assert!(ports.listen(Situation::NoConnection, &far_side).unwrap().is_empty());
        ports.keep(&[]);
        assert!(ports.listen(Situation::Good, &far_side).unwrap().is_empty());
    }
}
