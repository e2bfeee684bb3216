//! The audit chain: each event's hash covers the event and the hash before it, so that an edited, dropped or
//! reordered event is found (Schneier & Kelsey, "Secure Audit Logs to Support Computer Forensics", 1999).

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::id::{AuditEventId, OrganizationId};
use crate::clock::rfc3339;

/// The hash before an organization's first event.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// How what was asked for ended: it was done (`success`), policies or a rule of the server refused it (`denied`), or it was
/// allowed and did not work (`failure`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema)]
#[schema(as = AuditOutcome)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "TEXT", rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Success,
    /// A policy, or the lack of one, refused it.
    Denied,
    /// It was allowed and did not work.
    Failure,
}

impl Outcome {
    /// As stored, as hashed and as shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Success => "success",
            Outcome::Denied => "denied",
            Outcome::Failure => "failure",
        }
    }
}

/// One event of an organization's chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Event {
    /// The same on every delivery.
    pub id: AuditEventId,
    /// Whose chain.
    pub organization_id: OrganizationId,
    /// Position in the chain, from 1, without gaps.
    pub sequence: i64,
    /// When, in whole microseconds.
    #[serde(serialize_with = "crate::clock::micros")]
    pub occurred_at: DateTime<Utc>,
    /// `user/{id}`, `identity_connection/{id}`, `system` or `anonymous`; `user/*` for denials of several people.
    pub actor: String,
    /// The Cedar action where there is one, e.g. `agent.deploy`.
    pub action: String,
    /// `agent/{id}` and the like.
    pub target: String,
    /// How it ended.
    pub outcome: Outcome,
    /// JSON text, exactly as hashed: request id, changes, deciding policies.
    pub details: String,
    /// [`chain_hash`], hexadecimal.
    pub hash: String,
}

/// SHA-256 over the previous hash and every field of the event, each preceded by its length, hexadecimal.
pub fn chain_hash(previous: &str, event: &Event) -> String {
    let occurred_at = rfc3339(event.occurred_at);
    let mut sha = Sha256::new();
    let fields = [
        previous.as_bytes(),
        event.id.0.as_bytes(),
        event.organization_id.0.as_bytes(),
        &event.sequence.to_be_bytes(),
        occurred_at.as_bytes(),
        event.actor.as_bytes(),
        event.action.as_bytes(),
        event.target.as_bytes(),
        event.outcome.as_str().as_bytes(),
        event.details.as_bytes(),
    ];
    for field in fields {
        sha.update((field.len() as u64).to_be_bytes());
        sha.update(field);
    }
    hex::encode(sha.finalize())
}
