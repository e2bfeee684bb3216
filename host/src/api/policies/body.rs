//! What policy sets and their versions look like from outside: the bodies of their routes.

use serde::{Deserialize, Serialize};

use crate::{
    authz::PolicyFault,
    domain::policy::{PolicySet, PolicyText},
};

/// A policy set to create.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "name": "Production needs an admin",
    "description": "Only admins and owners deploy to production."
}))]
pub struct NewPolicySet {
    /// The display name, unique among the policy sets of the organization. White space around it is left out.
    #[schema(min_length = 1, max_length = 200, pattern = r"\S")]
    pub(super) name: String,
    /// What the policy set is for.
    #[serde(default)]
    #[schema(default = "", max_length = 4000, pattern = r"^[^\u0000]*$")]
    pub(super) description: String,
}

/// What to change of a policy set. What is absent or null stays as it is.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "description": "Only admins and owners deploy to production, and nobody on a Friday." }))]
pub struct PolicySetChange {
    /// The new display name, unique among the policy sets of the organization. White space around it is left out.
    #[schema(min_length = 1, max_length = 200, pattern = r"\S")]
    pub(super) name: Option<String>,
    /// What the policy set is for from now on; empty removes the description.
    #[schema(max_length = 4000, pattern = r"^[^\u0000]*$")]
    pub(super) description: Option<String>,
}

/// A version to add to a policy set.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "text": concat!(
        "forbid (principal, action == Kaizen::Action::\"agent.deploy\", resource)\n",
        "when { context.environment == \"production\" && !(principal in [Kaizen::Role::\"admin\", Kaizen::Role::\"owner\"]) };\n"
    ),
    "note": "Owners deploy to production, too."
}))]
pub struct NewPolicyVersion {
    /// The policies in Cedar: at most `policy_text_kib` (256) KiB of UTF-8, and `policies_per_set` (2,000) policies. A byte
    /// order mark at the beginning is left out. A text without policies is valid: in force, it leaves every decision to the
    /// platform's policies.
    #[schema(max_length = 262_144, pattern = r"^[^\u0000]*$")]
    pub(super) text: String,
    /// What is new in the version, for those who read its history.
    #[serde(default)]
    #[schema(default = "", max_length = 4000, pattern = r"^[^\u0000]*$")]
    pub(super) note: String,
}

/// Which version of a policy set to put in force.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PolicyActivation, example = json!({ "version": 2 }))]
pub struct Activation {
    /// The number of a version of this policy set; an older one than is in force rolls back.
    #[schema(minimum = 1)]
    pub(super) version: i64,
}

/// A version that was just written, with its text and what may surprise in it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = CreatedPolicyVersion, example = json!({
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
    ),
    "warnings": []
}))]
pub struct WrittenPolicyVersion {
    /// The version with its text.
    #[serde(flatten)]
    pub(super) written: PolicyText,
    /// What may surprise in the version, in the order of the text, `policy_faults` (100) at the most. It was accepted all
    /// the same.
    pub(super) warnings: Vec<PolicyWarning>,
}

/// A policy set of which a version is in force now, and what may surprise in that version.
#[derive(Debug, Serialize, utoipa::ToSchema)]
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
    "revision": 6,
    "warnings": []
}))]
pub struct ActivatedPolicySet {
    /// The policy set as it is now.
    #[serde(flatten)]
    pub(super) set: PolicySet,
    /// What may surprise in the version, as it was told when the version was written; anew where the server validates by
    /// other rules since.
    pub(super) warnings: Vec<PolicyWarning>,
}

/// Something in a policy text that is accepted and may surprise, and where it is.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PolicyWarning {
    /// The line in the text, from 1.
    #[schema(value_type = i64, minimum = 1)]
    pub(super) line: usize,
    /// The column in the line, in characters, from 1.
    #[schema(value_type = i64, minimum = 1)]
    pub(super) column: usize,
    /// What may surprise, and what to write instead.
    pub(super) message: String,
}

impl From<PolicyFault> for PolicyWarning {
    fn from(PolicyFault { line, column, message }: PolicyFault) -> Self {
        Self { line, column, message }
    }
}

/// The policies of the version in force that could not be evaluated.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(example = json!({
    "version": 2,
    "items": [{
        "policy": "clearance",
        "line": 3,
        "column": 1,
        "message": "`User` does not have the attribute `clearance`",
        "count": 12,
        "last_at": "2026-11-27T11:20:05.002741Z"
    }]
}))]
pub struct PolicyErrors {
    /// The number of the version in force; null if no version of this set is.
    #[schema(required = true, minimum = 1)]
    pub(super) version: Option<i64>,
    /// The policies, the one that failed last first, at most 100.
    #[schema(max_items = 100)]
    pub(super) items: Vec<PolicyError>,
}

/// A policy that could not be evaluated, and how often.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PolicyError {
    /// The policy's `@id`, or its place in the text, such as `policy 2`.
    pub(super) policy: String,
    /// The line of the version's text at which the policy begins, from 1.
    #[schema(minimum = 1)]
    pub(super) line: i64,
    /// The column at which the policy begins, in characters, from 1.
    #[schema(minimum = 1)]
    pub(super) column: i64,
    /// What went wrong the last time.
    pub(super) message: String,
    /// Decisions for which the policy could not be evaluated since the version was put in force. Things of a list that no
    /// policy tells apart are decided once.
    #[schema(minimum = 1)]
    pub(super) count: i64,
    /// When the policy last failed.
    #[serde(serialize_with = "crate::clock::micros")]
    pub(super) last_at: chrono::DateTime<chrono::Utc>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        api::policies::ERRORS,
        config::limits::ServerLimits,
        domain::{fault, name::Name},
    };

    fn properties<T: utoipa::PartialSchema>() -> Value {
        serde_json::to_value(T::schema()).unwrap()["properties"].clone()
    }

    #[test]
    fn the_document_has_the_bounds_of_the_code() {
        let (set, change, version) =
            (properties::<NewPolicySet>(), properties::<PolicySetChange>(), properties::<NewPolicyVersion>());
        let most = |property: &Value| usize::try_from(property["maxLength"].as_u64().unwrap()).unwrap();
        for name in [&set["name"], &change["name"], &properties::<PolicySet>()["name"]] {
            assert_eq!(name["minLength"], json!(1));
            assert!(Name::parse(&"x".repeat(most(name))).is_ok() && Name::parse(&"x".repeat(most(name) + 1)).is_err());
        }
        for text in [&set["description"], &change["description"], &version["note"]] {
            let faults = |length: usize| {
                let mut faults = Vec::new();
                fault::description("/text", &"x".repeat(length), &mut faults);
                faults.len()
            };
            assert_eq!((faults(most(text)), faults(most(text) + 1)), (0, 1));
        }
        assert_eq!(most(&version["text"]), ServerLimits::default().policy_text_kib * 1024);
        assert_eq!(properties::<PolicyErrors>()["items"]["maxItems"], json!(ERRORS));
    }
}
