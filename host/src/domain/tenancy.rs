//! Tenants and their folders.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::id::{OrganizationId, PolicyVersionId, WorkspaceId};

/// A tenant, as stored and as shown.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct Organization {
    /// Its id.
    pub id: OrganizationId,
    /// For people.
    pub name: String,
    /// The version of its policy set that is in force; null: the platform's policies only.
    pub policy_version_id: Option<PolicyVersionId>,
    /// When it was made.
    #[serde(serialize_with = "crate::clock::micros")]
    pub created_at: DateTime<Utc>,
    /// Last change.
    #[serde(serialize_with = "crate::clock::micros")]
    pub updated_at: DateTime<Utc>,
    /// Counts changes; the ETag.
    #[serde(skip)]
    pub revision: i64,
}

/// A folder of agents, as stored and as shown.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct Workspace {
    /// Its id.
    pub id: WorkspaceId,
    /// Whose it is.
    pub organization_id: OrganizationId,
    /// For people; unique in the organization.
    pub name: String,
    /// For people.
    pub description: String,
    /// When it was made.
    #[serde(serialize_with = "crate::clock::micros")]
    pub created_at: DateTime<Utc>,
    /// Last change.
    #[serde(serialize_with = "crate::clock::micros")]
    pub updated_at: DateTime<Utc>,
    /// Counts changes; the ETag.
    #[serde(skip)]
    pub revision: i64,
}
