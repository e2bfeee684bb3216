//! One call from the server.

use crate::bindings::shared::kaizen::plugin::types as raw;
use crate::{Error, Plugin, Result};

/// One call from the server. The instance lives for this call only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call<C> {
    /// Opaque and stable: the same connection always has the same value.
    pub connection_id: String,
    /// The connection's configuration, already valid against its schema. Secrets are absent from it.
    pub config: C,
    /// The same for every attempt at the same piece of work. Send it to the far side where it can drop repeats.
    pub idempotency_key: String,
    /// 1 for the first attempt.
    pub attempt: u32,
}

/// Runs one exported function of plugin `P`.
pub(crate) fn run<P: Plugin, T>(
    call: raw::Call,
    work: impl FnOnce(&Call<P::Config>) -> Result<T>,
) -> Result<T, raw::Error> {
    crate::logging::start();
    let config = serde_json::from_str(&call.config)
        .map_err(|error| Error::Config(format!("the configuration can't be read: {error}")))?;
    let call = Call {
        connection_id: call.connection_id,
        config,
        idempotency_key: call.idempotency_key,
        attempt: call.attempt,
    };
    Ok(work(&call)?)
}
