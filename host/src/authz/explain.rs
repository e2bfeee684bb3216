//! Decisions, and why: told forbidden apart from not permitted, and in a sentence.

use std::{fmt::Write as _, sync::Arc};

use serde::Serialize;
use serde_json::{Value, json};

use super::{Action, Kind, Origin, Resource, index::About, kind::Roles};
use crate::domain::principal::Principal;

/// Policies that an answer names at the most. One action may be forbidden by each of a set's policies, and a check asks for 100.
const TOLD: usize = 10;
/// Characters of a policy's description in an answer at the most.
const DESCRIPTION: usize = 500;

/// Why it was decided so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A policy permits it and none forbids it.
    Allowed,
    /// A policy forbids it, whatever others permit.
    Forbidden,
    /// No policy permits it.
    NotPermitted,
    /// A policy could not be evaluated, or something that is needed is missing. Doubt denies.
    Error,
}

/// A policy that made the decision.
#[derive(Debug, Clone, PartialEq)]
pub struct Deciding {
    /// Which.
    pub policy: Arc<About>,
    /// For [`Reason::Error`]: what went wrong in it.
    pub error: Option<String>,
}

/// A policy that made a decision, as answers and the audit trail tell of it.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct DecidingPolicy {
    /// The policy's `@id`, or its place in the text, such as `policy 2`.
    id: String,
    /// Whose policy it is.
    source: Origin,
    /// What the policy does where it matches.
    effect: PolicyEffect,
    /// The first 500 characters of the policy's `@description`; null if it has none.
    #[schema(required = true, max_length = 500)]
    description: Option<String>,
    /// What went wrong in the policy; absent unless it could not be evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<String>,
}

/// What a policy does where it matches: it permits, unless another one forbids, or it forbids, whatever others permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PolicyEffect {
    /// It permits, unless another policy forbids.
    Permit,
    /// It forbids, whatever others permit.
    Forbid,
}

/// A decision and what made it.
#[derive(Debug, Clone)]
pub struct Decision {
    /// Whether it may be done.
    pub allowed: bool,
    /// Why.
    pub reason: Reason,
    /// The policies that decided: those that permit, forbid, or erred.
    pub policies: Vec<Deciding>,
    /// For [`Reason::Error`] without a policy: what is missing.
    fault: Option<String>,
    /// For [`Reason::Forbidden`]: the policies that erred besides.
    errors: Vec<Deciding>,
    action: Action,
    /// For denials: what was acted on, and the roles held, in words.
    told: Option<(String, String)>,
}

impl Decision {
    pub(super) fn allow(action: Action, policies: Vec<Deciding>) -> Self {
        Self { allowed: true, reason: Reason::Allowed, policies, fault: None, errors: Vec::new(), action, told: None }
    }

    pub(super) fn deny(
        reason: Reason,
        principal: &Principal,
        action: Action,
        resource: &Resource,
        policies: Vec<Deciding>,
        fault: Option<String>,
    ) -> Self {
        let told = Some((thing(resource), roles(principal, resource)));
        Self { allowed: false, reason, policies, fault, errors: Vec::new(), action, told }
    }

    pub(super) fn with_errors(self, errors: Vec<Deciding>) -> Self {
        Self { errors, ..self }
    }

    /// The policies that could not be evaluated, whether they decided or not.
    pub(super) fn errors(&self) -> impl Iterator<Item = &Deciding> {
        self.policies.iter().filter(|deciding| deciding.error.is_some()).chain(&self.errors)
    }

    /// One sentence for people.
    pub fn sentence(&self) -> String {
        let action = self.action.as_str();
        let (thing, roles) = self.told.as_ref().map_or(("", ""), |(thing, roles)| (thing.as_str(), roles.as_str()));
        let first = self.policies.first();
        match (self.reason, first) {
            (Reason::Allowed, Some(deciding)) => format!("Permitted by {}.", name(&deciding.policy)),
            (Reason::Allowed, None) => "Permitted.".to_owned(),
            (Reason::Forbidden, Some(_)) => {
                let mut text = String::from("Forbidden by ");
                for (place, deciding) in self.policies.iter().take(TOLD).enumerate() {
                    let separator = if place == 0 { "" } else { "; and by " };
                    let _ = write!(text, "{separator}{}", name(&deciding.policy));
                    if let Some(description) = deciding.description() {
                        let _ = write!(text, ": {}", description.trim_end_matches('.'));
                    }
                }
                let more = self.policies.len().saturating_sub(TOLD);
                if more > 0 {
                    let _ = write!(text, "; and by {more} more");
                }
                text.push('.');
                text
            }
            (Reason::Forbidden, None) => format!("Forbidden: {action} on {thing}."),
            (Reason::NotPermitted, _) => format!("No policy permits {action} on {thing}; roles held: {roles}."),
            (Reason::Error, Some(deciding)) => format!(
                "Denied because {} could not be evaluated: {}. Doubt denies; guard what may be absent with `has`.",
                name(&deciding.policy),
                deciding.error.as_deref().unwrap_or("unknown error").trim_end_matches('.'),
            ),
            (Reason::Error, None) => {
                format!(
                    "Denied because {}. Doubt denies.",
                    self.fault.as_deref().unwrap_or("the request could not be evaluated")
                )
            }
        }
    }

    /// The first 10 of the policies that decided; the sentence of what is forbidden says how many more there are.
    pub fn named(&self) -> Vec<DecidingPolicy> {
        self.policies.iter().take(TOLD).map(Deciding::named).collect()
    }

    /// For a problem's `denial` and the audit trail: `{allowed, reason, message, policies}`, with the policies of
    /// [`Decision::named`].
    pub fn to_json(&self) -> Value {
        json!({
            "allowed": self.allowed,
            "reason": self.reason,
            "message": self.sentence(),
            "policies": self.named(),
        })
    }
}

impl Deciding {
    fn named(&self) -> DecidingPolicy {
        DecidingPolicy {
            id: self.policy.id.clone(),
            source: self.policy.origin,
            effect: if self.policy.permits { PolicyEffect::Permit } else { PolicyEffect::Forbid },
            description: self.description().map(str::to_owned),
            error: self.error.clone(),
        }
    }

    /// The beginning of the policy's description.
    fn description(&self) -> Option<&str> {
        let whole = self.policy.description.as_deref()?;
        let end = whole.char_indices().nth(DESCRIPTION).map_or(whole.len(), |(at, _)| at);
        whole.get(..end)
    }
}

fn name(policy: &About) -> String {
    match policy.origin {
        Origin::Platform => format!("platform policy `{}`", policy.id),
        Origin::Tenant => format!("tenant policy `{}`", policy.id),
    }
}

/// By its id, which the caller knows: who may not read a thing is not told its name.
fn thing(resource: &Resource) -> String {
    let kind = resource.kind.as_str().replace('_', " ");
    if resource.kind == Kind::Organization { format!("the {kind}") } else { format!("{kind} {}", resource.id) }
}

fn roles(principal: &Principal, resource: &Resource) -> String {
    let here = Roles::effective(principal, resource);
    let mut words: Vec<_> = here.iter().map(|role| role.as_str().to_owned()).collect();
    let elsewhere = Roles::somewhere(principal).iter().filter(|role| !here.contains(*role));
    words.extend(elsewhere.map(|role| format!("{} in another workspace", role.as_str())));
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use utoipa::PartialSchema as _;

    use super::*;
    use crate::api::authz::DecisionBody;

    #[test]
    fn the_document_says_how_much_of_policies_is_told() {
        let (policy, decision) = (DecidingPolicy::schema(), DecisionBody::schema());
        let policy = serde_json::to_value(policy).unwrap();
        let decision = serde_json::to_value(decision).unwrap();
        assert_eq!(policy["properties"]["description"]["maxLength"], json!(DESCRIPTION));
        assert_eq!(decision["properties"]["policies"]["maxItems"], json!(TOLD));
    }
}
