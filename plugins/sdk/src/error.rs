//! How a call fails, which decides what the server does next.

use std::time::Duration;

use crate::bindings::shared::kaizen::plugin::types as raw;

/// A call's outcome.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed. Messages are shown to operators: say what to change, and put no secret into them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The configuration or a secret cannot work; an operator must change it. Never tried again.
    #[error("{0}")]
    Config(String),
    /// The far side refused this piece of work. Never tried again.
    #[error("{0}")]
    Rejected(String),
    /// Worth another attempt.
    #[error("{message}")]
    Unavailable {
        /// What was away.
        message: String,
        /// How long to wait, where the far side said so.
        retry_after: Option<Duration>,
    },
    /// A defect of the plugin itself. Never tried again.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// [`Error::Unavailable`] without a word on how long to wait.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::Unavailable { message: message.into(), retry_after: None }
    }

    /// The same error, its message preceded by what was being done.
    #[must_use]
    pub fn context(self, doing: &str) -> Self {
        let add = |message: String| format!("{doing}: {message}");
        match self {
            Self::Config(message) => Self::Config(add(message)),
            Self::Rejected(message) => Self::Rejected(add(message)),
            Self::Unavailable { message, retry_after } => Self::Unavailable { message: add(message), retry_after },
            Self::Internal(message) => Self::Internal(add(message)),
        }
    }
}

impl From<Error> for raw::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Config(message) => Self::Config(message),
            Error::Rejected(message) => Self::Rejected(message),
            Error::Unavailable { message, retry_after } => Self::Unavailable(raw::Unavailable {
                message,
                retry_after: retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
            }),
            Error::Internal(message) => Self::Internal(message),
        }
    }
}

impl From<crate::UrlError> for Error {
    fn from(error: crate::UrlError) -> Self {
        Self::Config(error.to_string())
    }
}

/// Serializing what the plugin itself made can't fail but for a defect. For what the far side sent, see
/// [`Response::json`](crate::http::Response::json).
impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Internal(format!("JSON: {error}"))
    }
}
