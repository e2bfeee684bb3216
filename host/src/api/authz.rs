//! `/api/v1/authz`: what the caller may do, and why.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    extract::{Caller, Input},
    page::Item,
    problem::{Problem, Result},
};
use crate::{
    app::App,
    authz::{Action, Context, Kind, Reason, Resource},
    domain::{connection, fault::Fault, id::OrganizationId, principal::Principal, role::Role},
    store::{Conn, agents, connections, deployments, memberships, policies, users, workspaces},
};

/// Questions in one request at the most.
const QUESTIONS: usize = 100;

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(check))
}

/// One question (`action`, `resource`, `context`), or many (`checks`).
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Questions {
    /// Of the one question.
    action: Option<String>,
    /// Of the one question.
    resource: Option<ResourceRef>,
    /// Of the one question.
    context: Option<QuestionContext>,
    /// In place of these: at most 100, answered with `{"decisions": […]}` in the same order.
    checks: Option<Vec<Question>>,
}

/// May I do this?
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// As in policies: `agent.deploy`.
    action: String,
    /// What it is to be done to; what is created is asked of the thing it is created in.
    resource: ResourceRef,
    #[serde(default)]
    context: QuestionContext,
}

/// A thing by its type and id.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResourceRef {
    /// `organization`, `user`, `membership`, `workspace`, `agent`, `gateway`, `deployment`, `audit_sink`,
    /// `identity_connection` or `policy`.
    #[serde(rename = "type")]
    kind: String,
    id: Uuid,
}

/// What else the decision may turn on.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuestionContext {
    /// For `agent.deploy`: where to.
    gateway_id: Option<Uuid>,
    /// For `agent.deploy`: into which environment; the gateway's own if absent.
    environment: Option<String>,
    /// For `membership.create` and `.update`: the role in question.
    role: Option<Role>,
}

/// Whether it is allowed, and why.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum Decisions {
    /// To one question.
    One(DecisionBody),
    /// To many.
    Many {
        /// In the order of the questions.
        decisions: Vec<DecisionBody>,
    },
}

/// A decision.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct DecisionBody {
    /// Whether it is allowed now.
    allowed: bool,
    /// `allowed`, `forbidden`, `not_permitted`, `error` or `not_found`.
    reason: ReasonBody,
    /// One sentence for people.
    message: String,
    /// The policies that decided: `{id, source, effect, description}`.
    policies: Vec<serde_json::Value>,
}

/// Why.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReasonBody {
    /// A policy permits it and none forbids it.
    Allowed,
    /// A policy forbids it.
    Forbidden,
    /// No policy permits it.
    NotPermitted,
    /// A policy could not be evaluated. Doubt denies.
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

/// What may I do?
///
/// Decides one question or many for the caller, from current data, and says why. Changes nothing and is not recorded.
#[utoipa::path(post, path = "/api/v1/authz/check", tag = "Policies", request_body = Questions,
    responses((status = OK, body = Decisions)))]
async fn check(State(app): State<App>, Caller(caller): Caller, input: Input<Questions>) -> Result<Json<Decisions>> {
    let one = match input.body {
        Questions { action: Some(action), resource: Some(resource), context, checks: None } => {
            Question { action, resource, context: context.unwrap_or_default() }
        }
        Questions { action: None, resource: None, context: None, checks: Some(checks) } => {
            return many(&app, &caller, &checks).await.map(Json);
        }
        _ => {
            let message = "send either `action` and `resource`, or `checks`, a list of them";
            return Err(Problem::invalid(vec![Fault::new("", message)]));
        }
    };
    Ok(Json(Decisions::One(answer(&app, &caller, &one, "").await?)))
}

async fn many(app: &App, caller: &Principal, checks: &[Question]) -> Result<Decisions> {
    if checks.len() > QUESTIONS {
        return Err(Problem::invalid(vec![Fault::new("/checks", format!("at most {QUESTIONS} questions"))]));
    }
    let mut decisions = Vec::with_capacity(checks.len());
    for (place, question) in checks.iter().enumerate() {
        decisions.push(answer(app, caller, question, &format!("/checks/{place}")).await?);
    }
    Ok(Decisions::Many { decisions })
}

async fn answer(app: &App, caller: &Principal, question: &Question, pointer: &str) -> Result<DecisionBody> {
    let fault = |place: &str, message: String| Problem::invalid(vec![Fault::new(format!("{pointer}{place}"), message)]);
    let action = Action::parse(&question.action);
    let action = action.ok_or_else(|| fault("/action", format!("there is no action `{}`", question.action)))?;
    let kind = Kind::ALL.iter().copied().find(|kind| kind.as_str() == question.resource.kind);
    let kind = kind.ok_or_else(|| fault("/resource/type", format!("there is no type `{}`", question.resource.kind)))?;
    if !app.authz.applies(action, kind) {
        let message = format!("`{}` is not asked of a thing of type `{}`", question.action, question.resource.kind);
        return Err(fault("/resource/type", message));
    }
    let Some(resource) = find(app, caller, kind, question.resource.id).await? else {
        return Ok(not_found(kind));
    };
    let gateway = match question.context.gateway_id {
        None => None,
        Some(id) => match find(app, caller, Kind::Gateway, id).await? {
            Some(gateway) => Some(gateway),
            None => return Ok(not_found(Kind::Gateway)),
        },
    };
    let role = match question.context.role {
        Some(role) => Some(role),
        None => role_in_question(app, caller, &resource).await?,
    };
    let context = Context { gateway, environment: question.context.environment.clone(), role };
    let decision = app.authz.check(&app.store, caller, action, &resource, &context).await?;
    Ok(DecisionBody {
        allowed: decision.allowed,
        reason: decision.reason.into(),
        message: decision.sentence(),
        policies: decision.policies.iter().map(crate::authz::Deciding::to_json).collect(),
    })
}

/// What the routes say by themselves: the role of a membership, and whether a user is an owner.
async fn role_in_question(app: &App, caller: &Principal, resource: &Resource) -> Result<Option<Role>> {
    let organization = caller.organization_id;
    let mut conn = app.store.read().await?;
    Ok(match resource.kind {
        Kind::Membership => memberships::get(&mut conn, organization, resource.id.into()).await?.map(|it| it.role),
        Kind::User => {
            let owner = memberships::is_owner(&mut conn, organization, resource.id.into()).await?;
            owner.then_some(Role::Owner)
        }
        _ => None,
    })
}

fn not_found(kind: Kind) -> DecisionBody {
    DecisionBody {
        allowed: false,
        reason: ReasonBody::NotFound,
        message: format!("No such {}.", kind.as_str().replace('_', " ")),
        policies: Vec::new(),
    }
}

/// The thing, if it is the caller's organization's.
async fn find(app: &App, caller: &Principal, kind: Kind, id: Uuid) -> Result<Option<Resource>> {
    let organization = caller.organization_id;
    let mut conn = app.store.read().await?;
    Ok(match kind {
        Kind::Organization => (organization.0 == id).then(|| Resource::organization(organization)),
        Kind::User => users::get(&mut conn, organization, id.into()).await?.map(|it| it.resource()),
        Kind::Membership => memberships::get(&mut conn, organization, id.into()).await?.map(|it| it.resource()),
        Kind::Workspace => workspaces::get(&mut conn, organization, id.into()).await?.map(|it| it.resource()),
        Kind::Agent => agents::get(&mut conn, organization, id.into()).await?.map(|it| it.resource()),
        Kind::PolicySet => policies::get(&mut conn, organization, id.into()).await?.map(|it| it.resource()),
        Kind::Gateway => connection(&mut conn, connection::Kind::DeploymentTarget, organization, id).await?,
        Kind::AuditSink => connection(&mut conn, connection::Kind::AuditSink, organization, id).await?,
        Kind::IdentityConnection => connection(&mut conn, connection::Kind::IdentityProvider, organization, id).await?,
        Kind::Deployment => deployments::get(&mut conn, organization, id.into()).await?.map(|it| it.resource()),
    })
}

async fn connection(
    conn: &mut Conn,
    kind: connection::Kind,
    organization: OrganizationId,
    id: Uuid,
) -> Result<Option<Resource>> {
    Ok(connections::get(conn, organization, kind, id).await?.map(|it| it.resource()))
}
