//! The opening handshake of the canvas socket (RFC 6455, section 4.2). axum's own keeps the connection to itself, and so its
//! buffers.

use axum::{
    body::Body,
    extract::FromRequestParts,
    http::{HeaderMap, HeaderValue, Request, header, request::Parts},
    response::Response,
};
use hyper::upgrade::{OnUpgrade, Upgraded};
use tokio_tungstenite::tungstenite::handshake::server::create_response;

use super::problem::{Problem, ProblemType};
use crate::canvas::PROTOCOL;

/// A request to become a WebSocket of subprotocol [`PROTOCOL`].
pub struct Upgrade {
    answer: Response<()>,
    connection: OnUpgrade,
}

impl<S: Sync> FromRequestParts<S> for Upgrade {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let refused = |why: String| {
            let detail = format!("This is a WebSocket of subprotocol {PROTOCOL}: {why}.");
            Problem::new(ProblemType::Malformed, detail)
        };
        let mut request = Request::new(());
        request.method_mut().clone_from(&parts.method);
        *request.version_mut() = parts.version;
        request.headers_mut().clone_from(&parts.headers);
        let mut answer = create_response(&request).map_err(|error| refused(error.to_string()))?;
        if offers(&parts.headers, PROTOCOL) {
            answer.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
        }
        let connection = parts.extensions.remove::<OnUpgrade>();
        let connection = connection.ok_or_else(|| refused("this connection cannot become one".to_owned()))?;
        Ok(Self { answer, connection })
    }
}

impl Upgrade {
    /// Accepts, and serves the connection on a task of its own.
    pub fn then<F>(self, serve: impl FnOnce(Upgraded) -> F + Send + 'static) -> Response
    where
        F: Future<Output = ()> + Send,
    {
        let Self { answer, connection } = self;
        tokio::spawn(async move {
            match connection.await {
                Ok(upgraded) => serve(upgraded).await,
                Err(error) => tracing::debug!(%error, "a connection ended before it was a WebSocket"),
            }
        });
        answer.map(|()| Body::empty())
    }
}

fn offers(headers: &HeaderMap, protocol: &str) -> bool {
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    offered.flat_map(|value| value.split(',')).any(|offered| offered.trim() == protocol)
}
