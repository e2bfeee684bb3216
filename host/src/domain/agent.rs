//! Agents: what a team draws on a canvas and deploys.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};
use sqlx::types::Json;

use super::{
    fault::Fault,
    id::{AgentId, CanvasId, OrganizationId, UserId, VersionId, WorkspaceId},
};

/// An agent, as stored and as shown.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct Agent {
    /// Its id.
    pub id: AgentId,
    /// Whose it is.
    pub organization_id: OrganizationId,
    /// The workspace it is in.
    pub workspace_id: WorkspaceId,
    /// For people.
    pub name: String,
    /// For people.
    pub description: String,
    /// Key and value; policies see them.
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: Json<BTreeMap<String, String>>,
    /// How it answers; never parsed on the way from the database to the client.
    #[schema(value_type = Settings)]
    pub settings: Json<Box<RawValue>>,
    /// Its canvas: the session of `/ws/canvas/{session_id}`.
    pub canvas_id: CanvasId,
    /// Who made it.
    pub created_by: UserId,
    /// When.
    #[serde(serialize_with = "crate::clock::micros")]
    pub created_at: DateTime<Utc>,
    /// Last change, other than on the canvas.
    #[serde(serialize_with = "crate::clock::micros")]
    pub updated_at: DateTime<Utc>,
    /// Counts changes; the ETag.
    #[serde(skip)]
    pub revision: i64,
}

/// An agent's settings: the known ones are checked, others are kept as they are.
#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Settings {
    /// What the model is told first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// The model's name at the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// 0 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// From 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Whatever else the gateway understands.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Bytes of settings, as JSON, at the most.
const SETTINGS_BYTES: usize = 64 * 1024;

impl Settings {
    /// Checks what is known of settings.
    pub fn check(&self, pointer: &str, faults: &mut Vec<Fault>) {
        if self.temperature.is_some_and(|t| !(0.0..=2.0).contains(&t)) {
            faults.push(Fault::new(format!("{pointer}/temperature"), "a number from 0 to 2"));
        }
        if self.max_tokens == Some(0) {
            faults.push(Fault::new(format!("{pointer}/max_tokens"), "a whole number from 1"));
        }
        if serde_json::to_string(self).map_or(0, |text| text.len()) > SETTINGS_BYTES {
            faults.push(Fault::new(pointer, "at most 64 KiB of JSON"));
        }
    }
}

/// One immutable version of an agent, without its workflow.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct Version {
    /// Its id.
    pub id: VersionId,
    /// Of which agent.
    pub agent_id: AgentId,
    /// Counts from 1 for each agent.
    #[serde(rename = "version")]
    #[schema(rename = "version")]
    pub number: i64,
    /// SHA-256 of the workflow's text, hexadecimal.
    pub digest: String,
    /// What changed, for people.
    pub note: String,
    /// Who cut it.
    pub created_by: UserId,
    /// When.
    #[serde(serialize_with = "crate::clock::micros")]
    pub created_at: DateTime<Utc>,
}
