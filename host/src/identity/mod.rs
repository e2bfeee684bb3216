//! Sign-in, sessions and tokens.

use http::{HeaderMap, Method};

use crate::{
    clock::Clock,
    config::Config,
    domain::principal::Principal,
    store::{Store, StoreError},
};

/// Sign-in, sessions and tokens.
#[derive(Clone)]
pub struct Identity {}

impl Identity {
    /// Loads or makes this host's signing key.
    ///
    /// # Errors
    /// If the key cannot be read, made or published.
    pub async fn new(_config: &Config, _clock: &Clock, _store: &Store) -> anyhow::Result<Self> {
        Ok(Self {})
    }
}

/// Why nobody is signed in.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// No credentials, or none that hold.
    #[error("not signed in")]
    Unauthenticated,
    /// A cookie from another origin.
    #[error("cross-origin")]
    Origin,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Identity {
    /// Who is asking, as of now.
    ///
    /// # Errors
    /// As [`AuthError`].
    pub async fn authenticate(
        &self,
        _store: &Store,
        _clock: &Clock,
        _method: &Method,
        _headers: &HeaderMap,
    ) -> Result<Principal, AuthError> {
        Err(AuthError::Unauthenticated)
    }
}
