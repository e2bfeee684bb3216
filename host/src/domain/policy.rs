//! A tenant's policy sets.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::id::{OrganizationId, PolicySetId, PolicyVersionId, UserId};

/// A named policy set. What it says is in its versions.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct PolicySet {
    /// Its id.
    pub id: PolicySetId,
    /// Whose it is.
    pub organization_id: OrganizationId,
    /// Unique in the organization.
    pub name: String,
    /// For people.
    pub description: String,
    /// The number of the version in force; null unless it is one of this set's.
    pub active_version: Option<i64>,
    /// The highest number; null without any version.
    pub latest_version: Option<i64>,
    /// Who made it.
    pub created_by: UserId,
    /// When.
    #[serde(serialize_with = "crate::clock::micros")]
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    #[serde(serialize_with = "crate::clock::micros")]
    pub updated_at: DateTime<Utc>,
    /// Counts changes; the ETag.
    pub revision: i64,
}

/// One immutable version of a policy set, without its text.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct PolicyVersion {
    /// Its id.
    pub id: PolicyVersionId,
    /// Of which set.
    pub policy_id: PolicySetId,
    /// Counts from 1 for each set.
    #[serde(rename = "version")]
    #[schema(rename = "version")]
    pub number: i64,
    /// SHA-256 of the text, hexadecimal.
    pub digest: String,
    /// What changed, for people.
    pub note: String,
    /// Who wrote it.
    pub created_by: UserId,
    /// When.
    #[serde(serialize_with = "crate::clock::micros")]
    pub created_at: DateTime<Utc>,
}

/// One immutable version with its text.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct PolicyText {
    /// What it is.
    #[serde(flatten)]
    #[sqlx(flatten)]
    pub version: PolicyVersion,
    /// The policies, in Cedar.
    pub text: String,
}
