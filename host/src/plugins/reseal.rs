//! Re-encrypting what connections keep, after the master key was replaced.

use uuid::Uuid;

use crate::{
    clock::Clock,
    secrets::Secrets,
    store::{Store, StoreError, connections},
};

/// Values of one transaction.
const BATCH: i64 = 200;
/// Whoever writes meanwhile may do so with the old key a moment longer; a server that does so for good was not told.
const PASSES: usize = 20;

/// Why not everything is under the new key.
#[derive(Debug, thiserror::Error)]
pub enum ResealError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A value that no key opens.
    #[error(
        "the secrets of {count} connections open with none of the keys, e.g. of {first}: add the key that they were stored with to \
         `master_key_also` (KAIZEN_MASTER_KEY_ALSO) and run this again, or enter them anew; everything else is re-encrypted"
    )]
    Unreadable {
        /// How many.
        count: u64,
        /// One of them.
        first: Uuid,
    },
    /// Somebody goes on with the old key.
    #[error(
        "a running server still encrypts with the old key: give every server the new one, restart it, and run this again"
    )]
    Racing,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resealed {
    /// Values that there are.
    pub values: u64,
    /// Values that were re-encrypted.
    pub resealed: u64,
}

/// Re-encrypts every value that is not under the current key, batch by batch. It may be killed at any moment and run
/// again, and servers that have both keys may run meanwhile.
///
/// # Errors
/// If not everything is under the current key.
pub async fn reseal(store: &Store, keys: &Secrets, clock: &Clock) -> Result<Resealed, ResealError> {
    let mut done = Resealed::default();
    for _ in 0..PASSES {
        let pass = pass(store, keys, clock).await?;
        done.resealed += pass.resealed;
        done.values = pass.values;
        if let Some(first) = pass.unreadable.first() {
            let count = u64::try_from(pass.unreadable.len()).unwrap_or(u64::MAX);
            return Err(ResealError::Unreadable { count, first: *first });
        }
        // Done only when a whole pass met nothing that was still to be done.
        if pass.stale == 0 {
            super::vouch::reseal(store, keys, clock).await?;
            return Ok(done);
        }
    }
    Err(ResealError::Racing)
}

#[derive(Default)]
struct Pass {
    values: u64,
    /// Met under another key.
    stale: u64,
    resealed: u64,
    unreadable: Vec<Uuid>,
}

async fn pass(store: &Store, keys: &Secrets, clock: &Clock) -> Result<Pass, StoreError> {
    let mut pass = Pass::default();
    let mut after = Uuid::nil();
    loop {
        let batch = connections::sealed(&mut store.read().await?, after, BATCH).await?;
        let Some(last) = batch.last() else { return Ok(pass) };
        after = last.id;
        let mut replacements = Vec::new();
        for sealed in &batch {
            pass.values += 1;
            match keys.reseal(clock, &super::place(sealed.organization_id, sealed.id), &sealed.secrets) {
                Ok(None) => {}
                Ok(Some(replacement)) => replacements.push((sealed, replacement)),
                Err(_) => pass.unreadable.push(sealed.id),
            }
        }
        if replacements.is_empty() {
            continue;
        }
        let mut tx = store.begin().await?;
        for (before, replacement) in replacements {
            pass.stale += 1;
            // One that was changed meanwhile is met again by the next pass.
            pass.resealed += u64::from(connections::reseal(&mut tx, before, &replacement).await?);
        }
        tx.commit().await?;
    }
}
