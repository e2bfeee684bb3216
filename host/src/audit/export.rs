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

/// An event of an organization's audit trail. Its details are JSON, in the exact text that was hashed.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
#[schema(as = AuditEvent, example = json!({
    "id": "01932f73-0a44-7b92-8d17-5c3e9f1b6a08",
    "organization_id": "01932f5d-02b1-7e10-8a44-9f6c3d7b1a25",
    "sequence": 42,
    "occurred_at": "2026-11-27T09:35:20.740118Z",
    "actor": "user/01932f5d-02b1-7e11-b0c9-6d2e8f4a7c13",
    "action": "workspace.create",
    "target": "workspace/01932f73-0a43-7d21-94ab-8e0c6f2d7b15",
    "outcome": "success",
    "details": {
        "changes": { "name": "Support" },
        "request_id": "01932f73-0a40-7f6e-a1b8-3d9c5e7f2a64"
    },
    "hash": "b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c"
}))]
pub struct Shown {
    /// The id of the event; the same on every delivery to a sink.
    pub id: AuditEventId,
    /// The organization whose chain the event is in.
    pub organization_id: OrganizationId,
    /// The place in the organization's chain, from 1, without gaps.
    #[schema(minimum = 1)]
    pub sequence: i64,
    /// When it happened.
    #[serde(serialize_with = "crate::clock::micros")]
    pub occurred_at: DateTime<Utc>,
    /// Who did it: `user/{id}`; `identity_connection/{id}` for what a sign-in through it changed; `system` for the server itself,
    /// its operator, and platform administrators of other organizations; `anonymous` for people who were not signed in; `user/*`
    /// where denials of several people were counted together.
    pub actor: String,
    /// What was done or refused: the Cedar action where there is one, such as `agent.deploy`, otherwise a name like `auth.login`.
    pub action: String,
    /// What it was done to: a type and an id, such as `agent/{id}`. `agent/*` and the like where denials were counted together.
    pub target: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What changed, which policies decided, and the ids of the request, as far as there are any.
    #[schema(value_type = serde_json::Map<String, serde_json::Value>)]
    pub details: Box<RawValue>,
    /// SHA-256 over the event and the hash before it, 64 hexadecimal digits.
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
