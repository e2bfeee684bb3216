//! What policy sets and their versions look like from outside: the bodies of their routes.

use serde::{Deserialize, Serialize};

use crate::{
    authz::PolicyFault,
    domain::policy::{PolicySet, PolicyText},
};

/// A new policy set.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPolicySet {
    /// Unique in the organization.
    pub(super) name: String,
    #[serde(default)]
    pub(super) description: String,
}

/// What to change; what is absent stays.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicySetChange {
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
}

/// A new version.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPolicyVersion {
    /// The policies, in Cedar; at most `policy_text_kib` (256) KiB and `policies_per_set` (2,000). Validated strictly. A byte
    /// order mark at its beginning is left out.
    pub(super) text: String,
    /// What changed, for people.
    #[serde(default)]
    pub(super) note: String,
}

/// Which version to put in force.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Activation {
    /// Its number; an older one rolls back.
    pub(super) version: i64,
}

/// A version that was just written, and what may surprise in it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct WrittenPolicyVersion {
    #[serde(flatten)]
    pub(super) written: PolicyText,
    /// Accepted all the same.
    pub(super) warnings: Vec<PolicyWarning>,
}

/// A policy set of which a version was put in force, and what may surprise in that version.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ActivatedPolicySet {
    #[serde(flatten)]
    pub(super) set: PolicySet,
    /// As when it was written.
    pub(super) warnings: Vec<PolicyWarning>,
}

/// What may surprise, and where.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PolicyWarning {
    /// From 1.
    pub(super) line: usize,
    /// From 1, in characters.
    pub(super) column: usize,
    /// What to know.
    pub(super) message: String,
}

impl From<PolicyFault> for PolicyWarning {
    fn from(PolicyFault { line, column, message }: PolicyFault) -> Self {
        Self { line, column, message }
    }
}

/// The policies of a version that could not be evaluated.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PolicyErrors {
    /// The number of the version in force; null if none of this set is.
    pub(super) version: Option<i64>,
    /// The latest first, at most 100.
    pub(super) items: Vec<PolicyError>,
}

/// A policy that could not be evaluated.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PolicyError {
    /// Its `@id`, or its place in the text.
    pub(super) policy: String,
    /// Where it begins in the text of the version, from 1.
    pub(super) line: i64,
    /// From 1, in characters.
    pub(super) column: i64,
    /// What went wrong the last time.
    pub(super) message: String,
    /// Decisions that it could not be evaluated for since the version was put in force. Things of a list that no policy tells
    /// apart are decided once.
    pub(super) count: i64,
    /// When last.
    #[serde(serialize_with = "crate::clock::micros")]
    pub(super) last_at: chrono::DateTime<chrono::Utc>,
}
