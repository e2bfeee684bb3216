//! The chain as JSON lines: one event a line, with everything that verifying it again needs.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    domain::{
        audit::{Event, Outcome},
        id::{AuditEventId, OrganizationId},
    },
    store::{self, Store, StoreError},
};

/// Events of one batch.
const BATCH: i64 = 200;

/// An event as it is shown: its details are JSON, in the exact text that was hashed.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Shown {
    /// The same on every delivery.
    pub id: AuditEventId,
    /// Whose chain.
    pub organization_id: OrganizationId,
    /// Position in the chain, from 1, without gaps.
    pub sequence: i64,
    /// When.
    #[serde(serialize_with = "crate::clock::micros")]
    pub occurred_at: DateTime<Utc>,
    /// `user/{id}`, `system` or `anonymous`.
    pub actor: String,
    /// The Cedar action where there is one, e.g. `agent.deploy`.
    pub action: String,
    /// `agent/{id}` and the like.
    pub target: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Request id, changes, deciding policies.
    #[schema(value_type = Object)]
    pub details: Box<RawValue>,
    /// SHA-256 over this event and the hash before it, hexadecimal.
    pub hash: String,
}

impl From<Event> for Shown {
    fn from(event: Event) -> Self {
        // What was tampered with may not be JSON any more; it is shown all the same, as a string.
        let details = RawValue::from_string(event.details)
            .or_else(|_| RawValue::from_string("\"(not JSON)\"".to_owned()))
            .unwrap_or_else(|_| RawValue::NULL.to_owned());
        Self {
            id: event.id,
            organization_id: event.organization_id,
            sequence: event.sequence,
            occurred_at: event.occurred_at,
            actor: event.actor,
            action: event.action,
            target: event.target,
            outcome: event.outcome,
            details,
            hash: event.hash,
        }
    }
}

/// The next lines after an event, with the sequence to go on from; none at the chain's end.
///
/// # Errors
/// As the database says.
pub async fn lines(
    store: &Store,
    organization: OrganizationId,
    after: i64,
) -> Result<Option<(i64, Vec<u8>)>, StoreError> {
    let batch = store::audit::after(&mut store.read().await?, organization, after, BATCH).await?;
    let Some(last) = batch.last().map(|event| event.sequence) else { return Ok(None) };
    let mut lines = Vec::with_capacity(batch.len() * 512);
    for event in batch {
        // Writing JSON of plain types into memory does not fail.
        drop(serde_json::to_writer(&mut lines, &Shown::from(event)));
        lines.push(b'\n');
    }
    Ok(Some((last, lines)))
}
