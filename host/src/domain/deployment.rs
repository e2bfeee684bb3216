//! Deployments: one version of an agent on its way to one gateway, there, or gone from it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::id::{AgentId, DeploymentId, GatewayId, JobId, OrganizationId, UserId, VersionId, WorkspaceId};

/// Where a deployment stands.
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
pub struct Progress {
    /// 0 to 100, where the plugin knows.
    #[sqlx(rename = "progress_percent")]
    pub percent: Option<i64>,
    /// For people.
    #[sqlx(rename = "progress_message")]
    pub message: Option<String>,
}

/// A deployment, as stored and as shown.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct Deployment {
    /// Its id; for the gateway's plugin the idempotency key.
    pub id: DeploymentId,
    /// Whose it is.
    pub organization_id: OrganizationId,
    /// What is deployed.
    pub agent_id: AgentId,
    /// The agent's name.
    pub agent_name: String,
    /// The workspace the agent is in.
    pub workspace_id: WorkspaceId,
    /// Which version of the agent.
    pub version: i64,
    /// That version's id.
    #[serde(skip)]
    pub version_id: VersionId,
    /// Where to.
    pub gateway_id: GatewayId,
    /// Into which environment.
    pub environment: String,
    /// Where it stands.
    pub status: DeploymentState,
    /// The job that is at it, or was last.
    pub job_id: JobId,
    /// What the gateway calls it.
    pub registration_id: Option<String>,
    /// Where it is reached, if the gateway says.
    pub endpoint: Option<String>,
    /// How far it has come.
    #[sqlx(flatten)]
    pub progress: Progress,
    /// Why it failed, or why the last attempt did.
    pub error: Option<String>,
    /// The deployment that this one takes back.
    pub rollback_of: Option<DeploymentId>,
    /// Who asked for it.
    pub created_by: UserId,
    /// When.
    #[serde(serialize_with = "crate::clock::micros")]
    pub created_at: DateTime<Utc>,
    /// Last change.
    #[serde(serialize_with = "crate::clock::micros")]
    pub updated_at: DateTime<Utc>,
    /// When it became active.
    #[serde(serialize_with = "crate::clock::micros")]
    pub activated_at: Option<DateTime<Utc>>,
    /// When it was over.
    #[serde(serialize_with = "crate::clock::micros")]
    pub finished_at: Option<DateTime<Utc>>,
}

/// What a deployment's event tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "TEXT", rename_all = "snake_case")]
pub enum EventKind {
    /// It came further.
    Progress,
    /// It changed its state.
    Status,
}

/// One step of a deployment.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct DeploymentEvent {
    /// Position among the deployment's events, from 1.
    pub sequence: i64,
    /// What it tells of.
    pub kind: EventKind,
    /// When.
    #[serde(serialize_with = "crate::clock::micros")]
    pub occurred_at: DateTime<Utc>,
    /// The state it is in.
    pub status: DeploymentState,
    /// 0 to 100, where known.
    pub percent: Option<i64>,
    /// For people.
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
