//! Sign-in, sessions and tokens.

use crate::{clock::Clock, config::Config, store::Store};

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
