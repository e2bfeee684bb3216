//! What is asked and answered: the bodies of the routes.

use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::{
    api::{
        problem::{Fault, Problem, Result},
        users::Property,
    },
    authz::{Action, DecidingPolicy, Kind, Reason},
    domain::role::Role,
};

/// One question, or several.
#[derive(Debug, utoipa::ToSchema)]
#[serde(untagged)]
#[schema(as = AuthorizationCheck, example = json!({
    "action": "agent.deploy",
    "resource": { "type": "agent", "id": "01932f72-9d10-7c58-a3e4-1b6f0d8c5a27" },
    "context": { "gateway_id": "01932f88-3c5d-7e02-b41f-6a9d0e7c2b83" }
}))]
pub enum Asked {
    /// One question, which is answered with one decision.
    One(Question),
    /// Several questions, which are answered with a list of decisions.
    Many(QuestionList),
}

/// Several questions of what the caller may do.
#[derive(Debug, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AuthorizationQuestionList, example = json!({
    "checks": [
        { "action": "agent.update", "resource": { "type": "agent", "id": "01932f72-9d10-7c58-a3e4-1b6f0d8c5a27" } },
        { "action": "agent.create", "resource": { "type": "workspace", "id": "01932f73-0a43-7d21-94ab-8e0c6f2d7b15" } }
    ]
}))]
pub struct QuestionList {
    /// The questions, at most `authz_check_questions` (100).
    #[schema(max_items = 100)]
    pub(super) checks: Vec<Question>,
}

/// The body as it is read: of one type, so that a fault is told by its place.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Questions {
    #[serde(default, deserialize_with = "given")]
    pub(super) action: Option<String>,
    #[serde(default, deserialize_with = "given")]
    pub(super) resource: Option<ResourceRef>,
    #[serde(default, deserialize_with = "given")]
    pub(super) context: Option<QuestionContext>,
    #[serde(default, deserialize_with = "given")]
    pub(super) checks: Option<Vec<Question>>,
}

/// What may be absent, and is not null where it is given.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(value: D) -> std::result::Result<Option<T>, D::Error> {
    T::deserialize(value).map(Some)
}

impl Questions {
    /// As one of the two.
    ///
    /// # Errors
    /// 422 for what is neither.
    pub(super) fn asked(self) -> Result<Asked> {
        match self {
            Self { action: Some(action), resource: Some(resource), context, checks: None } => {
                Ok(Asked::One(Question { action, resource, context: context.unwrap_or_default() }))
            }
            Self { action: None, resource: None, context: None, checks: Some(checks) } => {
                Ok(Asked::Many(QuestionList { checks }))
            }
            _ => {
                let message = "send either `action` and `resource`, or `checks`, a list of them";
                Err(Problem::invalid(vec![Fault::new("", message)]))
            }
        }
    }
}

/// A question of what the caller may do.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AuthorizationQuestion)]
pub struct Question {
    /// What the caller wants to do. Not every action is asked of every type of thing: `agent.create` is asked of a
    /// workspace, for example.
    #[schema(value_type = Action)]
    pub(super) action: String,
    /// What it is to be done to. What is created is asked of the thing it is created in: the organization, or the
    /// workspace.
    pub(super) resource: ResourceRef,
    /// What else the decision may turn on.
    #[serde(default)]
    pub(super) context: QuestionContext,
}

/// A thing by its type and id.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ResourceReference)]
pub struct ResourceRef {
    /// The type of the thing.
    #[serde(rename = "type")]
    #[schema(value_type = Kind)]
    pub(super) kind: String,
    /// The id of the thing. One that is not there is answered with `not_found`.
    pub(super) id: Uuid,
}

/// What else a decision may turn on.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AuthorizationContext)]
pub struct QuestionContext {
    /// For `agent.deploy`: the gateway to deploy to. Where it is absent, policies that look at the gateway cannot be
    /// evaluated, which denies.
    pub(super) gateway_id: Option<Uuid>,
    /// For `agent.deploy`: the environment to deploy into. The gateway's own if absent; another one than the gateway's is
    /// refused, once it is known which agent and gateway are meant.
    #[schema(pattern = r"^[^\u0000]*$")]
    pub(super) environment: Option<String>,
    /// For `membership.create` and `membership.update`: the role to give.
    pub(super) role: Option<Role>,
    /// For `user.update`: what is to be changed, anything if absent. Everyone may change some of it of themselves.
    pub(super) properties: Option<Vec<Property>>,
}

/// One decision, or several.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
#[schema(as = AuthorizationDecisions, example = json!({
    "allowed": false,
    "reason": "forbidden",
    "message": "Forbidden by tenant policy `production-needs-admin`: Only admins and owners deploy to production.",
    "policies": [{
        "id": "production-needs-admin",
        "source": "tenant",
        "effect": "forbid",
        "description": "Only admins and owners deploy to production."
    }]
}))]
pub enum Decisions {
    /// The answer to one question.
    One(DecisionBody),
    /// The answer to several questions.
    Many(DecisionList),
}

/// Several decisions.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct DecisionList {
    /// The decisions, in the order of the questions.
    pub(super) decisions: Vec<DecisionBody>,
}

/// Whether something may be done, and why.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Decision)]
pub struct DecisionBody {
    /// Whether it may be done now.
    pub(super) allowed: bool,
    /// Why it may be done, or not.
    pub(super) reason: ReasonBody,
    /// Why, as a sentence, with the first policies that decided.
    pub(super) message: String,
    /// The policies that decided, at most the first 10: those that permit, those that forbid, or those that could not be evaluated.
    #[schema(max_items = 10)]
    pub(super) policies: Vec<DecidingPolicy>,
}

/// Why something may be done or not: a policy permits it and none forbids it (`allowed`), a policy forbids it (`forbidden`), no
/// policy permits it (`not_permitted`), a policy could not be evaluated or something that is needed is missing, which denies
/// (`error`), or there is no such thing in the caller's organization (`not_found`).
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = DecisionReason)]
pub enum ReasonBody {
    /// A policy permits it and none forbids it.
    Allowed,
    /// A policy forbids it.
    Forbidden,
    /// No policy permits it.
    NotPermitted,
    /// A policy could not be evaluated, or something that is needed is missing. Doubt denies.
    Error,
    /// There is no such thing, or it is another tenant's.
    NotFound,
}

impl From<Reason> for ReasonBody {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Allowed => Self::Allowed,
            Reason::Forbidden => Self::Forbidden,
            Reason::NotPermitted => Self::NotPermitted,
            Reason::Error => Self::Error,
        }
    }
}

#[cfg(test)]
mod tests {
    use utoipa::PartialSchema as _;

    use super::*;
    use crate::config::limits::ServerLimits;

    #[test]
    fn the_document_has_the_bounds_of_the_code() {
        let questions = serde_json::to_value(QuestionList::schema()).unwrap();
        assert_eq!(questions["properties"]["checks"]["maxItems"], ServerLimits::default().authz_check_questions);
    }
}
