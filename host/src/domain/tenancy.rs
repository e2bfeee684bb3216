//! Tenants and their folders.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::id::{OrganizationId, PolicyVersionId, WorkspaceId};

/// A tenant: everything else belongs to one.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[schema(example = json!({
    "id": "019d0e2f-6f39-7a10-9c3d-2b4f6a8c0e1d",
    "name": "Aurora Labs",
    "policy_version_id": null,
    "created_at": "2026-11-27T09:30:00.000000Z",
    "updated_at": "2026-11-27T09:30:00.000000Z",
}))]
pub struct Organization {
    /// The id of the organization.
    pub id: OrganizationId,
    /// The organization's display name.
    pub name: String,
    /// The version of the organization's policy set that is in force; null: the platform's policies only.
    #[schema(required = true)]
    pub policy_version_id: Option<PolicyVersionId>,
    /// When the organization was created.
    #[serde(serialize_with = "crate::clock::micros")]
    pub created_at: DateTime<Utc>,
    /// When the organization was last changed.
    #[serde(serialize_with = "crate::clock::micros")]
    pub updated_at: DateTime<Utc>,
    /// Counts changes; the ETag.
    #[serde(skip)]
    pub revision: i64,
}

/// A workspace: a folder of agents within an organization.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[schema(example = json!({
    "id": "019a2c41-5d2e-7b90-a4c3-1f8e6d3b9a22",
    "organization_id": "019a2c40-11aa-7c3e-9b1f-6d2e8f4a7b10",
    "name": "Customer service",
    "description": "Agents that talk to customers.",
    "created_at": "2025-11-03T09:10:00.000000Z",
    "updated_at": "2025-11-03T09:10:00.000000Z",
}))]
pub struct Workspace {
    /// The workspace's id.
    pub id: WorkspaceId,
    /// The organization that the workspace belongs to.
    pub organization_id: OrganizationId,
    /// The display name, unique in the organization; case counts.
    #[schema(min_length = 1, max_length = 200)]
    pub name: String,
    /// What the workspace is for; may be empty.
    #[schema(max_length = 4000)]
    pub description: String,
    /// When the workspace was created.
    #[serde(serialize_with = "crate::clock::micros")]
    pub created_at: DateTime<Utc>,
    /// When the workspace was last changed.
    #[serde(serialize_with = "crate::clock::micros")]
    pub updated_at: DateTime<Utc>,
    /// Counts changes; the ETag.
    #[serde(skip)]
    pub revision: i64,
}
