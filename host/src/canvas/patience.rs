//! Waiting for the database for so long and no longer.
//!
//! A database that hangs is no error, it is silence: PostgreSQL stopped, a network that swallows packets, another host
//! that holds a lock and is frozen. What was not answered in time counts as [`StoreError::Unavailable`], and its result as
//! unknown: a commit may still arrive later.

use std::io;

use tokio::time::{Instant, timeout_at};

use crate::store::StoreError;

/// Awaits an answer of the database until `deadline`.
///
/// # Errors
/// As the database says; [`StoreError::Unavailable`] if it says nothing. What was begun is then given up, its connection
/// put at rest or closed by the store.
pub async fn until<T>(deadline: Instant, answer: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timeout_at(deadline, answer).await.unwrap_or_else(|_| {
        let late = io::Error::new(io::ErrorKind::TimedOut, "no answer of the database in time");
        Err(sqlx::Error::Io(late).into())
    })
}
