//! `/api/v1/agents`.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    deployments::removal,
    extract::{Caller, IfMatch, Input, Parameters, PathId, etag},
    guard::change,
    idempotency::{Claimed, Once},
    page::{Item, Listed, Page, visible},
    problem::{Problem, Result},
    quota,
};
use crate::{
    app::App,
    authz::{Action, Context, Kind, Resource},
    domain::{
        agent::{Agent, Settings},
        fault,
        id::{AgentId, WorkspaceId},
        principal::Principal,
    },
    store::{agents, deployments::Of, quota::Counted, workspaces},
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(create, list)).routes(routes!(read, update, remove))
}

/// A new agent.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAgent {
    /// For people.
    name: String,
    /// The workspace to put it in.
    workspace_id: WorkspaceId,
    /// For people.
    #[serde(default)]
    description: String,
    /// Key and value; policies see them.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// How it answers.
    #[serde(default)]
    settings: Settings,
}

/// What to change; what is absent stays.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentChange {
    name: Option<String>,
    description: Option<String>,
    /// Replaces all labels.
    labels: Option<BTreeMap<String, String>>,
    /// Merged into the settings (RFC 7396): null removes one.
    #[schema(value_type = Option<Settings>)]
    settings: Option<Map<String, Value>>,
}

/// What to list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only this workspace's.
    workspace_id: Option<WorkspaceId>,
}

impl Item for Agent {
    fn id(&self) -> uuid::Uuid {
        self.id.0
    }

    fn resource(&self) -> Resource {
        Resource {
            workspace: Some(self.workspace_id),
            labels: self.labels.0.clone(),
            owner: Some(self.created_by),
            ..Resource::new(Kind::Agent, self.id, self.organization_id, self.name.clone())
        }
    }
}

/// The agent, if it is the caller's organization's and the caller may do this to it.
///
/// # Errors
/// 404, 403.
pub async fn find(app: &App, caller: &Principal, id: AgentId, action: Action) -> Result<Agent> {
    let agent = agents::get(&mut app.store.read().await?, caller.organization_id, id).await?;
    let agent = agent.ok_or_else(|| Problem::not_found("agent"))?;
    app.require(caller, action, &agent.resource(), &Context::default()).await?;
    Ok(agent)
}

/// Create an agent
#[utoipa::path(post, path = "/api/v1/agents", tag = "Agents", request_body = NewAgent,
    responses((status = CREATED, body = Agent)))]
async fn create(State(app): State<App>, Caller(caller): Caller, input: Input<NewAgent>) -> Result<Response> {
    let mut new = input.body;
    let workspace = workspaces::get(&mut app.store.read().await?, caller.organization_id, new.workspace_id).await?;
    let workspace = workspace.ok_or_else(|| Problem::not_found("workspace"))?;
    app.require(&caller, Action::AgentCreate, &workspace.resource(), &Context::default()).await?;
    let mut faults = Vec::new();
    let name = fault::name("/name", new.name, &mut faults);
    fault::description("/description", &new.description, &mut faults);
    fault::labels("/labels", &mut new.labels, &mut faults);
    new.settings.check("/settings", &mut faults);
    Problem::check(faults)?;
    let now = app.clock.now();
    let agent = Agent {
        id: app.clock.id(),
        organization_id: caller.organization_id,
        workspace_id: new.workspace_id,
        name,
        description: new.description,
        labels: sqlx::types::Json(new.labels),
        settings: raw(&new.settings)?,
        canvas_id: app.clock.id(),
        created_by: caller.user_id,
        created_at: now,
        updated_at: now,
        revision: 1,
    };
    let mut tx = app.store.begin().await?;
    let once = match Once::claim(&app, &mut tx, &caller, input.idempotency).await? {
        Claimed::Fresh(once) => once,
        Claimed::Answered(response) => return Ok(response),
    };
    quota::room(&app, &mut tx, caller.organization_id, Counted::Agents).await?;
    agents::insert(&mut tx, &agent).await?;
    let response = once.created(&mut tx, &agent, agent.revision).await?;
    let details = json!({ "name": agent.name, "workspace_id": agent.workspace_id });
    change(&app, tx, &caller, Action::AgentCreate, format!("agent/{}", agent.id), details).await?;
    Ok(response)
}

/// List agents
#[utoipa::path(get, path = "/api/v1/agents", tag = "Agents", params(Page, Filter),
    responses((status = OK, body = Listed<Agent>)))]
async fn list(
    State(app): State<App>,
    Caller(caller): Caller,
    Parameters(page): Parameters<Page>,
    Parameters(filter): Parameters<Filter>,
) -> Result<Json<Listed<Agent>>> {
    let (organization, workspace) = (caller.organization_id, filter.workspace_id);
    let listed = visible(&app, &caller, Action::AgentRead, &page, move |store, after, limit| async move {
        agents::list(&mut store.read().await?, organization, workspace, after, limit).await
    });
    Ok(Json(listed.await?))
}

/// Read an agent
#[utoipa::path(get, path = "/api/v1/agents/{id}", tag = "Agents", params(("id" = AgentId, Path)),
    responses((status = OK, body = Agent)))]
async fn read(State(app): State<App>, Caller(caller): Caller, PathId(id): PathId<AgentId>) -> Result<Response> {
    let agent = find(&app, &caller, id, Action::AgentRead).await?;
    Ok(([etag(agent.revision)], Json(agent)).into_response())
}

/// Change an agent
#[utoipa::path(patch, path = "/api/v1/agents/{id}", tag = "Agents", params(("id" = AgentId, Path)),
    request_body = AgentChange, responses((status = OK, body = Agent)))]
async fn update(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<AgentId>,
    if_match: IfMatch,
    input: Input<AgentChange>,
) -> Result<Response> {
    let before = find(&app, &caller, id, Action::AgentUpdate).await?;
    if_match.check(before.revision)?;
    let AgentChange { name, description, labels, settings } = input.body;
    let mut after = before.clone();
    after.updated_at = app.clock.now();
    after.description = description.unwrap_or(after.description);
    let mut faults = Vec::new();
    if let Some(name) = name {
        after.name = fault::name("/name", name, &mut faults);
    }
    fault::description("/description", &after.description, &mut faults);
    if let Some(mut labels) = labels {
        fault::labels("/labels", &mut labels, &mut faults);
        after.labels.0 = labels;
    }
    if let Some(patch) = settings {
        let merged = merged(&before, patch)?;
        merged.check("/settings", &mut faults);
        after.settings = raw(&merged)?;
    }
    Problem::check(faults)?;
    let mut tx = app.store.begin().await?;
    let agent = agents::update(&mut tx, &after).await?;
    let details = json!({ "before": before, "after": agent });
    change(&app, tx, &caller, Action::AgentUpdate, format!("agent/{id}"), details).await?;
    Ok(([etag(agent.revision)], Json(agent)).into_response())
}

/// Delete an agent
///
/// With its canvas, its versions and its deployments; the audit trail still tells of them. Refused while it is deployed, or on
/// its way: the answer names what has to be stopped or cancelled first.
#[utoipa::path(delete, path = "/api/v1/agents/{id}", tag = "Agents", params(("id" = AgentId, Path)),
    responses((status = NO_CONTENT)))]
async fn remove(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<AgentId>,
    if_match: IfMatch,
) -> Result<StatusCode> {
    let agent = find(&app, &caller, id, Action::AgentDelete).await?;
    if_match.check(agent.revision)?;
    let mut tx = app.store.begin().await?;
    removal::forget(&mut tx, caller.organization_id, Of::Agent(id)).await?;
    agents::delete(&mut tx, &agent).await?;
    change(&app, tx, &caller, Action::AgentDelete, format!("agent/{id}"), json!({ "before": agent })).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn raw(settings: &Settings) -> Result<sqlx::types::Json<Box<serde_json::value::RawValue>>> {
    serde_json::value::to_raw_value(settings).map(sqlx::types::Json).map_err(Problem::internal)
}

fn merged(before: &Agent, patch: Map<String, Value>) -> Result<Settings> {
    let mut settings: Map<String, Value> = serde_json::from_str(before.settings.0.get()).map_err(Problem::internal)?;
    for (key, value) in patch {
        match value {
            Value::Null => settings.remove(&key),
            value => settings.insert(key, value),
        };
    }
    serde_path_to_error::deserialize(Value::Object(settings)).map_err(|error| {
        let pointer = format!("/settings/{}", error.path().to_string().replace('.', "/"));
        Problem::invalid(vec![fault::Fault::new(pointer, error.into_inner().to_string())])
    })
}
