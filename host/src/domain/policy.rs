//! A tenant's policy sets.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::id::{OrganizationId, PolicySetId, PolicyVersionId, UserId};

/// A named policy set of an organization. Its policies are in its versions, of which at most one is in force.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[schema(example = json!({
    "id": "01932f6e-7c4a-7b21-9d3e-5a1f0c2b4e60",
    "organization_id": "01932f5d-02b1-7e10-8a44-9f6c3d7b1a25",
    "name": "Production needs an admin",
    "description": "Only admins and owners deploy to production.",
    "active_version": 2,
    "latest_version": 3,
    "created_by": "01932f5d-02b1-7e11-b0c9-6d2e8f4a7c13",
    "created_at": "2026-11-27T09:30:00.000000Z",
    "updated_at": "2026-11-27T10:05:12.481516Z",
    "revision": 6
}))]
pub struct PolicySet {
    /// The id of the policy set.
    pub id: PolicySetId,
    /// The organization that the policy set belongs to.
    pub organization_id: OrganizationId,
    /// The display name, unique among the policy sets of the organization.
    #[schema(min_length = 1, max_length = 200)]
    pub name: String,
    /// What the policy set is for; empty if nothing is said.
    #[schema(max_length = 4000)]
    pub description: String,
    /// The number of the version in force; null if no version of this set is.
    #[schema(required = true, minimum = 1)]
    pub active_version: Option<i64>,
    /// The number of the newest version; null if the set has none yet.
    #[schema(required = true, minimum = 1)]
    pub latest_version: Option<i64>,
    /// The user who created the policy set.
    pub created_by: UserId,
    /// When the policy set was created.
    #[serde(serialize_with = "crate::clock::micros")]
    pub created_at: DateTime<Utc>,
    /// When the policy set was last changed. It also changes when a version is added, and when any version of the
    /// organization is put in force or out of it.
    #[serde(serialize_with = "crate::clock::micros")]
    pub updated_at: DateTime<Utc>,
    /// Counts the changes of the policy set, from 1; the `ETag` without its quotes.
    #[schema(minimum = 1)]
    pub revision: i64,
}

/// A version of a policy set without its text. Versions never change.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[schema(example = json!({
    "id": "01932f81-55d0-7a3c-8e17-0b9d6c4f2a71",
    "policy_id": "01932f6e-7c4a-7b21-9d3e-5a1f0c2b4e60",
    "version": 2,
    "digest": "3ce1ab173e65b57bfd6656c3843e16c4be4eec0e6ca1801d2b9126ebf21e411c",
    "note": "Owners deploy to production, too.",
    "created_by": "01932f5d-02b1-7e11-b0c9-6d2e8f4a7c13",
    "created_at": "2026-11-27T09:50:41.120934Z"
}))]
pub struct PolicyVersion {
    /// The id of the version, which the audit trail names.
    pub id: PolicyVersionId,
    /// The policy set that the version belongs to.
    pub policy_id: PolicySetId,
    /// The number of the version, counted from 1 in each policy set.
    #[serde(rename = "version")]
    #[schema(rename = "version", minimum = 1)]
    pub number: i64,
    /// SHA-256 of the text in UTF-8, hexadecimal.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    pub digest: String,
    /// What is new in the version, as its author wrote it; empty if nothing is said.
    #[schema(max_length = 4000)]
    pub note: String,
    /// The user who wrote the version.
    pub created_by: UserId,
    /// When the version was written.
    #[serde(serialize_with = "crate::clock::micros")]
    pub created_at: DateTime<Utc>,
}

/// A version of a policy set with its text. Versions never change.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[schema(as = PolicyVersionWithText, example = json!({
    "id": "01932f81-55d0-7a3c-8e17-0b9d6c4f2a71",
    "policy_id": "01932f6e-7c4a-7b21-9d3e-5a1f0c2b4e60",
    "version": 2,
    "digest": "3ce1ab173e65b57bfd6656c3843e16c4be4eec0e6ca1801d2b9126ebf21e411c",
    "note": "Owners deploy to production, too.",
    "created_by": "01932f5d-02b1-7e11-b0c9-6d2e8f4a7c13",
    "created_at": "2026-11-27T09:50:41.120934Z",
    "text": concat!(
        "forbid (principal, action == Kaizen::Action::\"agent.deploy\", resource)\n",
        "when { context.environment == \"production\" && !(principal in [Kaizen::Role::\"admin\", Kaizen::Role::\"owner\"]) };\n"
    )
}))]
pub struct PolicyText {
    /// The version without its text.
    #[serde(flatten)]
    #[sqlx(flatten)]
    pub version: PolicyVersion,
    /// The policies in Cedar, as they were written; a byte order mark at the beginning was left out.
    pub text: String,
}
