//! Opening a connection: the one place where bytes leave the machine.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::OnceCell,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use url::Host;

use super::EgressError;
use crate::sandbox::pattern::{Scheme, Target};

const CONNECT: Duration = Duration::from_secs(10);

/// A connection, encrypted where the scheme asks for it.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Opens connections. [`Network`] is the real one; `kaizen plugin test` and the hostile tests answer by themselves.
#[async_trait]
pub trait Connect: Send + Sync {
    /// A connection to `target`, by one of its addresses: they have passed all checks, and no other may be used. With TLS
    /// where the target's scheme is `https`.
    ///
    /// # Errors
    /// Where none of the addresses answers, or TLS does not hold.
    async fn connect(&self, target: &Target, addresses: &[IpAddr]) -> Result<Box<dyn Stream>, EgressError>;
}

/// The machine's own network: TCP, and TLS with the machine's own roots.
#[derive(Default)]
pub struct Network {
    tls: OnceCell<TlsConnector>,
}

#[async_trait]
impl Connect for Network {
    async fn connect(&self, target: &Target, addresses: &[IpAddr]) -> Result<Box<dyn Stream>, EgressError> {
        let stream = tcp(target, addresses).await?;
        match target.scheme {
            Scheme::Https => Ok(Box::new(self.encrypt(target, stream).await?)),
            _ => Ok(Box::new(stream)),
        }
    }
}

impl Network {
    async fn encrypt(&self, target: &Target, stream: TcpStream) -> Result<impl Stream + use<>, EgressError> {
        use rustls::pki_types::ServerName;
        let name = match &target.host {
            Host::Domain(name) => ServerName::try_from(name.clone())
                .map_err(|_| EgressError::Denied(format!("`{name}` is no name that a certificate can be for")))?,
            Host::Ipv4(address) => ServerName::from(IpAddr::V4(*address)),
            Host::Ipv6(address) => ServerName::from(IpAddr::V6(*address)),
        };
        let connector = self.tls.get_or_try_init(roots).await;
        let connector = connector.map_err(|error| EgressError::Certificate(target.to_string(), error))?;
        match timeout(CONNECT, connector.connect(name, stream)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(handshake(target.to_string(), error)),
            Err(_) => Err(EgressError::Timeout { what: "the TLS handshake", limit: CONNECT }),
        }
    }
}

/// Why a handshake did not come to its end. Only a certificate that does not hold stays so: a far side that hangs up in the
/// middle, as one does that is being restarted, is away for the moment.
fn handshake(target: String, error: io::Error) -> EgressError {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            EgressError::Certificate(target, error)
        }
        Some(rustls::Error::AlertReceived(_)) => EgressError::TlsAlert(target, error),
        Some(_) => EgressError::Tls(target, error),
        None => EgressError::Broken(target, error),
    }
}

/// TLS with the machine's own roots (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured).
async fn roots() -> io::Result<TlsConnector> {
    let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await?;
    for error in &found.errors {
        tracing::warn!(%error, "a root certificate of this machine cannot be read");
    }
    let mut roots = rustls::RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err(io::Error::other(
            "this machine has no root certificates: install `ca-certificates` or set SSL_CERT_FILE",
        ));
    }
    let mut config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn tcp(target: &Target, addresses: &[IpAddr]) -> Result<TcpStream, EgressError> {
    let connecting = async {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in addresses {
            match TcpStream::connect(SocketAddr::new(*address, target.port)).await {
                Ok(stream) => {
                    stream.set_nodelay(true).ok();
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(EgressError::Connect(target.to_string(), last))
    };
    match timeout(CONNECT, connecting).await {
        Ok(result) => result,
        Err(_) => Err(EgressError::Timeout { what: "connecting", limit: CONNECT }),
    }
}
