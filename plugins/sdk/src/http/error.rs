//! Why there is no usable response.

use std::time::Duration;

/// Why there is no usable response. It converts into a [`crate::Error`]: what may pass by itself is
/// [`Unavailable`](crate::Error::Unavailable), what an operator can change is [`Config`](crate::Error::Config), the
/// rest [`Rejected`](crate::Error::Rejected), or [`Internal`](crate::Error::Internal) where the plugin itself is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No connection, or it broke.
    #[error("{0}")]
    Connect(String),
    /// It took too long.
    #[error("{0}")]
    Timeout(String),
    /// The server doesn't let the plugin go there, or the certificate is not trusted.
    #[error("{0}")]
    Denied(String),
    /// The response is larger than the plugin takes.
    #[error("the answer is larger than {limit} bytes")]
    TooLarge {
        /// Bytes.
        limit: usize,
    },
    /// A redirect that leads nowhere the plugin follows.
    #[error("redirected: {0}")]
    Redirect(String),
    /// What came is not HTTP.
    #[error("{0}")]
    Protocol(String),
    /// The plugin's request can't be sent as it is.
    #[error("{0}")]
    Request(String),
    /// The answer's status is not 2xx.
    #[error("{message}")]
    Status {
        /// The status code.
        status: u16,
        /// What the far side says, in short.
        message: String,
        /// How long to wait, if it says so.
        retry_after: Option<Duration>,
    },
    /// The body is not what it should be.
    #[error("{0}")]
    Body(String),
}

impl Error {
    /// The answer's status, where that is the reason.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }
}

impl From<Error> for crate::Error {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Connect(_) | Error::Timeout(_) | Error::Protocol(_) => Self::unavailable(message),
            Error::Denied(_) | Error::Redirect(_) => Self::Config(message),
            Error::TooLarge { .. } | Error::Body(_) => Self::Rejected(message),
            Error::Request(_) => Self::Internal(message),
            Error::Status { status, retry_after, .. } => match status {
                408 | 425 | 429 | 500..=599 => Self::Unavailable { message, retry_after },
                // A redirect not followed and credentials not accepted: only the operator can change those.
                300..=399 | 401 | 403 | 407 => Self::Config(message),
                _ => Self::Rejected(message),
            },
        }
    }
}
