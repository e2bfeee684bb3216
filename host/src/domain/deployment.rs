//! Deployments: one version of an agent on its way to one gateway, there, or gone from it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::id::{AgentId, DeploymentId, GatewayId, JobId, OrganizationId, UserId, VersionId, WorkspaceId};

/// The state of a deployment.
///
/// - `queued`: waits for a worker.
/// - `running`: a worker is at it, or waits to try again.
/// - `active`: the gateway serves it.
/// - `failed`: it did not work, and is not tried again by itself.
/// - `cancelled`: it was called off before it was active.
/// - `stopping`: a worker is taking it off the gateway.
/// - `stopped`: the gateway no longer serves it.
///
/// ```text
/// queued → running → active → stopping → stopped
///    │        ├────→ failed → queued            (its job is tried again)
///    └────────┴────→ cancelled
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "TEXT", rename_all = "snake_case")]
pub enum DeploymentState {
    /// Waits for a worker.
    Queued,
    /// A worker is at it, or waits to try again.
    Running,
    /// The gateway serves it.
    Active,
    /// It did not work, and is not tried again by itself.
    Failed,
    /// Called off before it was active.
    Cancelled,
    /// A worker is taking it off the gateway.
    Stopping,
    /// The gateway no longer serves it.
    Stopped,
}

impl DeploymentState {
    /// All of them.
    pub const ALL: &[Self] =
        &[Self::Queued, Self::Running, Self::Active, Self::Failed, Self::Cancelled, Self::Stopping, Self::Stopped];

    /// As stored and as shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Active => "active",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }

    /// Whether this state may be followed by that one.
    pub fn may_become(self, next: Self) -> bool {
        use DeploymentState::*;
        matches!(
            (self, next),
            (Queued, Running | Failed | Cancelled)
                | (Running, Active | Failed | Cancelled)
                | (Failed, Queued)
                | (Active, Stopping)
                | (Stopping, Stopped)
        )
    }

    /// Whether it stays so until somebody asks for something else.
    pub fn settled(self) -> bool {
        matches!(self, Self::Active | Self::Failed | Self::Cancelled | Self::Stopped)
    }

    /// Whether it is over: nothing of it is, or will be, at the gateway.
    pub fn over(self) -> bool {
        matches!(self, Self::Failed | Self::Cancelled | Self::Stopped)
    }
}

/// How far a deployment has come, as the gateway's plugin tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[schema(as = DeploymentProgress)]
pub struct Progress {
    /// Percent, from 0 to 100; null where the plugin does not know.
    #[sqlx(rename = "progress_percent")]
    #[schema(required = true, minimum = 0, maximum = 100)]
    pub percent: Option<i64>,
    /// What the plugin is doing, for people; null where it has told nothing yet.
    #[sqlx(rename = "progress_message")]
    #[schema(required = true)]
    pub message: Option<String>,
}

/// A deployment of one version of an agent to one gateway.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[schema(example = json!({
    "id": "019a2c60-4e1b-7a72-b8d5-0c3f6e9a2d51",
    "organization_id": "019a2c40-11aa-7c3e-9b1f-6d2e8f4a7b10",
    "agent_id": "019a2c4e-7b3d-7f10-8a5c-2e9d4b6f8c01",
    "agent_name": "Support assistant",
    "workspace_id": "019a2c41-5d2e-7b90-a4c3-1f8e6d3b9a22",
    "version": 3,
    "gateway_id": "019a2c48-9f6a-7d05-8c21-7b4e1a3d5f60",
    "environment": "production",
    "status": "active",
    "job_id": "019a2c60-4e1b-7a72-b8d5-0c3f6e9a2d52",
    "registration_id": "support-assistant-v3",
    "endpoint": "https://agents.example.com/support-assistant",
    "progress": { "percent": 100, "message": "Active" },
    "error": null,
    "rollback_of": null,
    "created_by": "019a2c40-3f5b-7d21-8e6a-4b9c2d7f1e33",
    "created_at": "2025-11-03T10:05:00.000000Z",
    "updated_at": "2025-11-03T10:05:07.250000Z",
    "activated_at": "2025-11-03T10:05:07.250000Z",
    "finished_at": null,
}))]
pub struct Deployment {
    /// The deployment's id; for the gateway's plugin the idempotency key.
    pub id: DeploymentId,
    /// The organization that the deployment belongs to.
    pub organization_id: OrganizationId,
    /// The agent that is deployed.
    pub agent_id: AgentId,
    /// The agent's name, as it is now.
    #[schema(min_length = 1, max_length = 200)]
    pub agent_name: String,
    /// The workspace that the agent is in.
    pub workspace_id: WorkspaceId,
    /// The number of the agent's version that is deployed.
    #[schema(minimum = 1)]
    pub version: i64,
    /// That version's id.
    #[serde(skip)]
    pub version_id: VersionId,
    /// The gateway that the agent is deployed to.
    pub gateway_id: GatewayId,
    /// The environment that the agent is deployed into; empty where neither the gateway nor whoever deployed named one.
    #[schema(max_length = 63)]
    pub environment: String,
    /// The state that the deployment is in.
    pub status: DeploymentState,
    /// The job that is at work on the deployment, or was last.
    pub job_id: JobId,
    /// What the gateway calls the deployment; null until it is registered there.
    #[schema(required = true, max_length = 2000)]
    pub registration_id: Option<String>,
    /// The http or https address at which the agent is reached; null where the gateway does not say.
    #[schema(required = true, max_length = 2000)]
    pub endpoint: Option<String>,
    /// How far the deployment, or taking it off its gateway, has come.
    #[sqlx(flatten)]
    pub progress: Progress,
    /// Why the deployment failed, or why the last attempt did; null where none has.
    #[schema(required = true)]
    pub error: Option<String>,
    /// The deployment that this one takes back; null where it is no rollback.
    #[schema(required = true)]
    pub rollback_of: Option<DeploymentId>,
    /// The user who asked for the deployment.
    pub created_by: UserId,
    /// When the deployment was asked for.
    #[serde(serialize_with = "crate::clock::micros")]
    pub created_at: DateTime<Utc>,
    /// When the deployment last changed.
    #[serde(serialize_with = "crate::clock::micros")]
    pub updated_at: DateTime<Utc>,
    /// When the deployment became active; null if it never did.
    #[serde(serialize_with = "crate::clock::micros")]
    #[schema(required = true)]
    pub activated_at: Option<DateTime<Utc>>,
    /// When the deployment failed, was cancelled or was stopped; null while it is none of these.
    #[serde(serialize_with = "crate::clock::micros")]
    #[schema(required = true)]
    pub finished_at: Option<DateTime<Utc>>,
}

/// What a deployment's event tells of: `progress` that it came further, `status` that its state changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = DeploymentEventKind)]
#[sqlx(type_name = "TEXT", rename_all = "snake_case")]
pub enum EventKind {
    /// It came further.
    Progress,
    /// It changed its state.
    Status,
}

/// One step of a deployment.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[schema(example = json!({
    "sequence": 3,
    "kind": "progress",
    "occurred_at": "2025-11-03T10:05:04.000000Z",
    "status": "running",
    "percent": 60,
    "message": "Waiting for the agent to be ready",
}))]
pub struct DeploymentEvent {
    /// The event's position among those of its deployment, from 1; the event's `id` in the stream.
    #[schema(minimum = 1)]
    pub sequence: i64,
    /// What the event tells of; the event's name in the stream.
    pub kind: EventKind,
    /// When it happened.
    #[serde(serialize_with = "crate::clock::micros")]
    pub occurred_at: DateTime<Utc>,
    /// The state that the deployment was in from then on.
    pub status: DeploymentState,
    /// Percent, from 0 to 100; null where it is not known.
    #[schema(required = true, minimum = 0, maximum = 100)]
    pub percent: Option<i64>,
    /// What was going on, or why it failed, for people; null where there is nothing to tell.
    #[schema(required = true)]
    pub message: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::DeploymentState::{self, *};

    #[test]
    fn only_the_drawn_transitions_are_allowed() {
        let allowed = [
            (Queued, Running),
            (Queued, Failed),
            (Queued, Cancelled),
            (Running, Active),
            (Running, Failed),
            (Running, Cancelled),
            (Failed, Queued),
            (Active, Stopping),
            (Stopping, Stopped),
        ];
        for from in DeploymentState::ALL {
            for to in DeploymentState::ALL {
                assert_eq!(from.may_become(*to), allowed.contains(&(*from, *to)), "{from:?} → {to:?}");
            }
        }
    }

    #[test]
    fn what_is_over_never_becomes_active_again_by_itself() {
        for state in DeploymentState::ALL.iter().filter(|s| s.over()) {
            assert!(state.settled());
            assert!(!state.may_become(Active) && !state.may_become(Running) && !state.may_become(Stopping));
        }
        assert!(!Cancelled.may_become(Queued) && !Stopped.may_become(Queued));
    }

    #[test]
    fn a_state_is_stored_under_the_name_it_is_shown_by() {
        for state in DeploymentState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}
