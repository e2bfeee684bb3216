//! The only way out: HTTP/1.1 to far sides, for plugins and for the server itself where a tenant says where to.
//!
//! A request goes through these checks, in this order, each time; a redirect is not followed but handed back, so that it
//! comes as a new request:
//!
//! 1. the address is parsed once, into a [`Target`]; nothing is parsed again later;
//! 2. the operator's `egress_allow` covers it (empty denies), and `egress_deny` does not;
//! 3. the name is resolved, and addresses are dropped that are in `egress_deny`, or that are not globally reachable, unless
//!    the operator lists them in `egress_allow_private` (see [`super::address`] and [`rules`]);
//! 4. the connection is made to a checked address itself, never by name again: a second answer of the name server
//!    (DNS rebinding) has no effect;
//! 5. with TLS, the certificate is checked against the name that was asked for.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use url::Host;
use uuid::Uuid;

mod connect;
mod resolver;
mod rules;

pub use connect::{Connect, Network, Stream};
#[cfg(test)]
pub(in crate::sandbox) use resolver::Lookups;
pub use resolver::{LookupBounds, SystemResolver};
pub use rules::{DenyRule, PrivateRule};

use super::{
    address,
    body::{Budget, EgressBody},
    pattern::{Pattern, PatternError, Target},
    scheduler::Caller,
};

/// For whom a request is sent, where there are few places for what it needs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asking {
    /// The organization whose configuration says where to; none where the server itself asks.
    pub organization: Option<Uuid>,
    /// Somebody signs in: it may take the places that are kept for that.
    pub signs_in: bool,
}

impl From<&Caller> for Asking {
    fn from(caller: &Caller) -> Self {
        Self { organization: caller.organization, signs_in: caller.signs_in }
    }
}

/// Finds the addresses of a name. The one place where names are looked up; tests put their own in its place.
#[async_trait]
pub trait Resolve: Send + Sync {
    /// The addresses of `name`, in the order to be tried.
    ///
    /// # Errors
    /// If there are none.
    async fn resolve(&self, name: &str, asking: Asking) -> io::Result<Vec<IpAddr>>;
}

/// Why a request did not go out, or its answer did not come in.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// Not an address that requests may go to at all.
    #[error("{0}")]
    Target(#[from] PatternError),
    /// Refused by a rule; says which setting or configuration would allow it.
    #[error("{0}")]
    Denied(String),
    /// The name has no address.
    #[error("{0} cannot be resolved: {1}")]
    Resolve(String, io::Error),
    /// No connection.
    #[error("cannot connect to {0}: {1}")]
    Connect(String, io::Error),
    /// No TLS: what came is not what the protocol allows, or the far side refuses ours.
    #[error("TLS with {0}: {1}")]
    Tls(String, io::Error),
    /// The far side ended the handshake with an alert.
    #[error("TLS with {0}: {1}")]
    TlsAlert(String, io::Error),
    /// A certificate that does not hold, or none to hold it against.
    #[error("the certificate of {0} is not trusted: {1}")]
    Certificate(String, io::Error),
    /// The connection broke before an answer could come.
    #[error("{0} broke the connection off: {1}")]
    Broken(String, io::Error),
    /// It took too long; says what did.
    #[error("{what} took longer than {} s", .limit.as_secs_f32())]
    Timeout {
        /// What took too long.
        what: &'static str,
        /// How long it was given.
        limit: Duration,
    },
    /// The far side does not speak HTTP/1.1, or hung up.
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// The plugin broke off in its request's body.
    #[error("the plugin did not finish the request")]
    Unfinished,
    /// More bytes than the limit.
    #[error("the {0} is larger than allowed")]
    TooLarge(&'static str),
    /// The answer is encoded in a way in which it can't be searched for secrets.
    #[error("the answer comes as `{0}` although no encoding was asked for")]
    Encoding(String),
}

impl EgressError {
    /// Whether a rule or the certificate's check refused it: the same request would be refused again.
    pub fn denied(&self) -> bool {
        matches!(self, EgressError::Target(_) | EgressError::Denied(_) | EgressError::Certificate(..))
    }
}

/// What takes too long where all of it together does.
pub(super) const EXCHANGE: &str = "the request with its whole answer";
/// What takes too long where the answer does not begin.
pub(super) const FIRST_BYTE: &str = "the far side";
/// What takes too long where the answer stops.
pub(super) const BETWEEN: &str = "the rest of the answer";

/// How long the parts of one request may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For the connection, TLS included.
    pub connect: Duration,
    /// For the answer's head, once the request is sent.
    pub first_byte: Duration,
    /// For each further part of the answer.
    pub between_bytes: Duration,
    /// For everything, from looking up the name to the last byte.
    pub whole: Duration,
}

impl Timeouts {
    /// This for everything, and nothing more particular.
    pub fn of(whole: Duration) -> Self {
        Self { connect: whole, first_byte: whole, between_bytes: whole, whole }
    }
}

/// What one request may take.
#[derive(Debug, Clone, Copy)]
pub struct FetchLimits {
    /// For everything, from looking up the name to the last byte.
    pub timeout: Duration,
    /// Of the answer's body.
    pub response_bytes: u64,
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(10), response_bytes: 1 << 20 }
    }
}

/// What the operator allows.
#[derive(Default)]
pub struct Policy {
    /// Setting `egress_allow`; empty denies everything.
    pub allow: Vec<Pattern>,
    /// Setting `egress_allow_private`.
    pub allow_private: Vec<PrivateRule>,
    /// Setting `egress_deny`: refused whatever the other two allow.
    pub deny: Vec<DenyRule>,
}

/// Sends requests. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    /// For whom: a plugin, by its name, or the server itself.
    plugin: Option<Arc<str>>,
    asking: Asking,
}

struct Inner {
    policy: Policy,
    resolver: Arc<dyn Resolve>,
    connector: Arc<dyn Connect>,
}

const RESOLVE: Duration = Duration::from_secs(5);
/// Addresses of one name that are tried.
const ADDRESSES: usize = 4;
const HEADER_BYTES: usize = 64 << 10;

impl Client {
    /// A client under the operator's policy, to the real network.
    pub fn new(policy: Policy, resolver: Arc<dyn Resolve>) -> Self {
        Self::through(policy, resolver, Arc::new(Network::default()))
    }

    /// A client whose connections another connector opens: everything is checked the same, and where the connector leads
    /// nowhere, a check that fails still sends nothing off the machine.
    pub fn through(policy: Policy, resolver: Arc<dyn Resolve>, connector: Arc<dyn Connect>) -> Self {
        Self { inner: Arc::new(Inner { policy, resolver, connector }), plugin: None, asking: Asking::default() }
    }

    /// The same for a plugin: `egress_allow_private` may have rules of its own for it.
    #[must_use]
    pub fn of_plugin(&self, name: &str) -> Self {
        Self { plugin: Some(name.into()), ..self.clone() }
    }

    /// The same for somebody: he has his share of the names that are looked up at once.
    #[must_use]
    pub fn asked_by(&self, asking: Asking) -> Self {
        Self { asking, ..self.clone() }
    }

    /// Sends one request of the server's own and reads the whole answer. Redirects are not followed.
    ///
    /// # Errors
    /// Where a rule refuses the address, nothing answers in time, or the answer is too large.
    pub async fn fetch(&self, request: Request<Bytes>, limits: FetchLimits) -> Result<Response<Bytes>, EgressError> {
        let budget = Arc::new(Budget::new(limits.response_bytes));
        let response = self.send(request.map(Full::new), budget, Timeouts::of(limits.timeout)).await?;
        let (parts, body) = response.into_parts();
        Ok(Response::from_parts(parts, body.collect().await?.to_bytes()))
    }

    /// Whether the operator's policy covers the target.
    ///
    /// # Errors
    /// [`EgressError::Denied`], naming the setting.
    pub fn permits(&self, target: &Target) -> Result<(), EgressError> {
        if self.inner.policy.deny.iter().any(|rule| rule.covers(target)) {
            return Err(denied_by_rule(&target.to_string()));
        }
        if self.inner.policy.allow.iter().any(|pattern| pattern.covers(target)) {
            return Ok(());
        }
        Err(EgressError::Denied(format!(
            "{target} is not covered by this server's setting `egress_allow`: an operator would have to add {target} to it"
        )))
    }

    /// Sends one request; the answer's body comes as it arrives, and counts against `budget`. From looking up the name to
    /// the answer's last byte it takes as long as `timeouts` say.
    ///
    /// # Errors
    /// As [`Client::fetch`].
    pub async fn send(
        &self,
        request: Request<Full<Bytes>>,
        budget: Arc<Budget>,
        timeouts: Timeouts,
    ) -> Result<Response<EgressBody>, EgressError> {
        let whole = timeouts.whole;
        let until = Instant::now() + whole;
        let over = || EgressError::Timeout { what: EXCHANGE, limit: whole };
        if whole.is_zero() {
            return Err(over());
        }
        let asking = Box::pin(self.ask(request, timeouts));
        let (response, connection) = timeout_at(until, asking).await.map_err(|_| over())??;
        Ok(response.map(|body| EgressBody::new(body, budget, (until, whole), timeouts.between_bytes, connection)))
    }

    /// Connects and sends; ends with the answer's head.
    async fn ask(
        &self,
        mut request: Request<Full<Bytes>>,
        timeouts: Timeouts,
    ) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), EgressError> {
        let target = Target::of_uri(request.uri())?;
        self.permits(&target)?;
        let addresses = self.addresses(&target).await?;
        let connecting = timeout(timeouts.connect, self.inner.connector.connect(&target, &addresses)).await;
        let stream = connecting.map_err(|_| EgressError::Timeout { what: "connecting", limit: timeouts.connect })??;

        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        *request.uri_mut() = path.parse::<Uri>().map_err(|error| EgressError::Denied(error.to_string()))?;
        let host = target.authority().parse().map_err(|_| EgressError::Denied(format!("{target} is no host name")))?;
        let headers = request.headers_mut();
        // Where a request ends is not the guest's to say: two who read it differently would see two different requests.
        for framing in [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::TE, header::TRAILER, header::UPGRADE]
        {
            headers.remove(framing);
        }
        headers.insert(header::HOST, host);
        headers.insert(header::CONNECTION, header::HeaderValue::from_static("close"));

        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(HEADER_BYTES)
            .handshake::<_, Full<Bytes>>(TokioIo::new(stream))
            .await?;
        // Gone with the answer's body, or with this future where the caller gives up.
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "outgoing connection");
            }
        }));
        let response = timeout(timeouts.first_byte, sender.send_request(request))
            .await
            .map_err(|_| EgressError::Timeout { what: FIRST_BYTE, limit: timeouts.first_byte })??;
        Ok((response, connection))
    }

    /// The checked addresses of a target's host, for a connection to its port.
    ///
    /// # Errors
    /// [`EgressError::Denied`] where there are addresses and none of them may be reached.
    pub async fn addresses(&self, target: &Target) -> Result<Vec<IpAddr>, EgressError> {
        let (host, port) = (&target.host, target.port);
        let found = match host {
            Host::Ipv4(address) => vec![IpAddr::V4(*address)],
            Host::Ipv6(address) => vec![IpAddr::V6(*address)],
            Host::Domain(name) => match timeout(RESOLVE, self.inner.resolver.resolve(name, self.asking)).await {
                Ok(Ok(found)) if !found.is_empty() => found,
                Ok(Ok(_)) => return Err(EgressError::Resolve(name.clone(), io::ErrorKind::NotFound.into())),
                Ok(Err(error)) => return Err(EgressError::Resolve(name.clone(), error)),
                Err(_) => return Err(EgressError::Timeout { what: "looking up the host's name", limit: RESOLVE }),
            },
        };
        let (policy, asking) = (&self.inner.policy, self.plugin.as_deref());
        let (mut allowed, mut denied) = (Vec::new(), false);
        for address in &found {
            let address = address::canonical(*address);
            // The address itself is for the operator: what names resolve to inside is none of a tenant's business.
            if policy.deny.iter().any(|rule| rule.covers_address(address, port)) {
                denied = true;
                tracing::warn!(%host, %address, port, plugin = asking, "egress refused by `egress_deny`");
            } else if address::may_connect(address, |address| {
                policy.allow_private.iter().any(|rule| rule.covers(asking, address, port))
            }) {
                allowed.push(address);
            } else {
                tracing::warn!(%host, %address, port, plugin = asking, "egress refused: not a public address; `egress_allow_private` would allow it");
            }
        }
        allowed.truncate(ADDRESSES);
        if !allowed.is_empty() {
            return Ok(allowed);
        }
        if denied {
            return Err(denied_by_rule(&format!("the address of {host}")));
        }
        Err(EgressError::Denied(format!(
            "{host} is a private, loopback, link-local or otherwise special address: an operator would have to add its \
             network, for port {port}, to the setting `egress_allow_private` (KAIZEN_EGRESS_ALLOW_PRIVATE)"
        )))
    }
}

fn denied_by_rule(what: &str) -> EgressError {
    EgressError::Denied(format!(
        "{what} is refused by this server's setting `egress_deny` (KAIZEN_EGRESS_DENY): an operator would have to take it out"
    ))
}

#[cfg(test)]
mod tests;
