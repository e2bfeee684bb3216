//! Platform roles and how a user holds them.

use serde::{Deserialize, Serialize};

use super::id::WorkspaceId;

/// What its holder may do before any policy of the organization's own:
///
/// - `owner`: everything, and can never be locked out of policy management.
/// - `admin`: everything but removing the organization or its owners, or choosing identity providers.
/// - `developer`: builds and deploys agents.
/// - `viewer`: reads agents and deployments.
/// - `auditor`: reads everything that is configured, and the audit trail.
// Decided in `policies/platform/`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "TEXT", rename_all = "snake_case")]
pub enum Role {
    /// Everything, and can never be locked out of policy management.
    Owner,
    /// Everything but removing the organization or its owners, or choosing identity providers.
    Admin,
    /// Builds and deploys agents.
    Developer,
    /// Reads agents and deployments.
    Viewer,
    /// Reads everything that is configured, and the audit trail.
    Auditor,
}

impl Role {
    /// As stored, as written in policies (`Kaizen::Role::"developer"`) and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Owner => "owner",
            Role::Admin => "admin",
            Role::Developer => "developer",
            Role::Viewer => "viewer",
            Role::Auditor => "auditor",
        }
    }
}

/// A role held in the whole organization (`workspace` absent) or in one workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Grant {
    /// The role.
    #[serde(rename = "r")]
    pub role: Role,
    /// Where it is held; everywhere in the organization if absent.
    #[serde(rename = "w")]
    pub workspace: Option<WorkspaceId>,
}
