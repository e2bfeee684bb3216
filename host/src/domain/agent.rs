//! Agents: what a team draws on a canvas and deploys.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};
use sqlx::types::Json;

use super::{
    fault::Fault,
    id::{AgentId, CanvasId, OrganizationId, UserId, VersionId, WorkspaceId},
    labels::Labels,
};

/// An agent.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[schema(example = json!({
    "id": "019a2c4e-7b3d-7f10-8a5c-2e9d4b6f8c01",
    "organization_id": "019a2c40-11aa-7c3e-9b1f-6d2e8f4a7b10",
    "workspace_id": "019a2c41-5d2e-7b90-a4c3-1f8e6d3b9a22",
    "name": "Support assistant",
    "description": "Answers questions about orders.",
    "labels": { "team": "support" },
    "settings": { "system_prompt": "You help customers of Acme.", "model": "gpt-4o", "temperature": 0.2, "max_tokens": 1024 },
    "canvas_id": "019a2c4e-7b3d-7f10-8a5c-2e9d4b6f8c02",
    "created_by": "019a2c40-3f5b-7d21-8e6a-4b9c2d7f1e33",
    "created_at": "2025-11-03T09:15:00.000000Z",
    "updated_at": "2025-11-03T09:15:00.000000Z",
}))]
pub struct Agent {
    /// The agent's id.
    pub id: AgentId,
    /// The organization that the agent belongs to.
    pub organization_id: OrganizationId,
    /// The workspace that the agent is in.
    pub workspace_id: WorkspaceId,
    /// The display name; several agents of a workspace may have the same.
    #[schema(min_length = 1, max_length = 200)]
    pub name: String,
    /// What the agent is for; may be empty.
    #[schema(max_length = 4000)]
    pub description: String,
    /// The agent's labels; policies see them.
    #[schema(value_type = Labels)]
    pub labels: Json<BTreeMap<String, String>>,
    /// How the agent answers.
    // Never parsed on the way from the database to the client.
    #[schema(value_type = Settings)]
    pub settings: Json<Box<RawValue>>,
    /// The agent's canvas: the `session_id` of `/ws/canvas/{session_id}`.
    pub canvas_id: CanvasId,
    /// The user who created the agent.
    pub created_by: UserId,
    /// When the agent was created.
    #[serde(serialize_with = "crate::clock::micros")]
    pub created_at: DateTime<Utc>,
    /// When the agent was last changed, other than on its canvas.
    #[serde(serialize_with = "crate::clock::micros")]
    pub updated_at: DateTime<Utc>,
    /// Counts changes; the ETag.
    #[serde(skip)]
    pub revision: i64,
}

/// Settings of an agent, at most 64 KiB as JSON: those named here are checked, others are kept as they are for the gateway.
#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = AgentSettings, example = json!({
    "system_prompt": "You help customers of Acme.", "model": "gpt-4o", "temperature": 0.2, "max_tokens": 1024, "top_p": 0.9,
}))]
pub struct Settings {
    /// The instructions that the model gets before the conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// The model's name at the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The sampling temperature, from 0 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f64>,
    /// The most tokens that one answer may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = Int64, minimum = 1, maximum = 4294967295u32)]
    pub max_tokens: Option<u32>,
    /// Any other setting that the gateway understands.
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
#[schema(as = AgentVersion, example = json!({
    "id": "019a2c52-0c4f-7e88-9d13-5a7b3c9e1f40",
    "agent_id": "019a2c4e-7b3d-7f10-8a5c-2e9d4b6f8c01",
    "version": 3,
    "digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "note": "Asks for the order number first.",
    "created_by": "019a2c40-3f5b-7d21-8e6a-4b9c2d7f1e33",
    "created_at": "2025-11-03T10:02:41.120000Z",
}))]
pub struct Version {
    /// The version's id.
    pub id: VersionId,
    /// The agent that this is a version of.
    pub agent_id: AgentId,
    /// The version's number, which counts from 1 for each agent.
    #[serde(rename = "version")]
    #[schema(rename = "version", minimum = 1)]
    pub number: i64,
    /// SHA-256 of the workflow's text, hexadecimal.
    #[schema(min_length = 64, max_length = 64, pattern = "^[0-9a-f]{64}$")]
    pub digest: String,
    /// What changed in this version, as whoever created it says; may be empty.
    #[schema(max_length = 4000)]
    pub note: String,
    /// The user who created the version.
    pub created_by: UserId,
    /// When the version was created.
    #[serde(serialize_with = "crate::clock::micros")]
    pub created_at: DateTime<Utc>,
}

#[cfg(test)]
mod tests {
    use utoipa::PartialSchema;

    use super::*;

    fn faults(settings: Value) -> usize {
        let mut faults = Vec::new();
        match serde_json::from_value::<Settings>(settings) {
            Ok(settings) => settings.check("/settings", &mut faults),
            Err(error) => faults.push(Fault::new("/settings", error.to_string())),
        }
        faults.len()
    }

    #[test]
    fn the_schema_of_settings_is_what_is_checked() {
        let schema = serde_json::to_value(Settings::schema()).unwrap();
        for setting in ["temperature", "max_tokens"] {
            let bound = |name: &str| schema["properties"][setting][name].as_f64().unwrap();
            let (least, most) = (bound("minimum"), bound("maximum"));
            let of = |value: f64| match setting {
                "max_tokens" => serde_json::json!({ setting: value as i64 }),
                _ => serde_json::json!({ setting: value }),
            };
            assert_eq!((faults(of(least)), faults(of(most))), (0, 0), "{setting}");
            assert_eq!((faults(of(least - 1.0)), faults(of(most + 1.0))), (1, 1), "{setting}");
        }
        let about = schema["description"].as_str().unwrap();
        assert!(about.contains(&format!("{} KiB", SETTINGS_BYTES / 1024)), "{about}");
    }
}
