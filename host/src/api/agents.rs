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
    extract::{Caller, IdempotencyKey, IfMatch, Input, Parameters, PathId, etag},
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
        labels::Labels,
        principal::Principal,
    },
    store::{agents, deployments::Of, quota::Counted, workspaces},
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(create_agent, list_agents)).routes(routes!(
        get_agent,
        update_agent,
        delete_agent
    ))
}

/// An agent to be created.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "name": "Support assistant",
    "workspace_id": "019a2c41-5d2e-7b90-a4c3-1f8e6d3b9a22",
    "description": "Answers questions about orders.",
    "labels": { "team": "support" },
    "settings": { "system_prompt": "You help customers of Acme.", "model": "gpt-4o", "temperature": 0.2, "max_tokens": 1024 },
}))]
pub struct NewAgent {
    /// The display name, without control characters; white space around it is taken away. Several agents of a workspace may have
    /// the same.
    #[schema(min_length = 1, max_length = 200, pattern = r"\S")]
    name: String,
    /// The workspace to create the agent in; it stays there.
    workspace_id: WorkspaceId,
    /// What the agent is for; empty if absent.
    #[serde(default)]
    #[schema(max_length = 4000)]
    description: String,
    /// The agent's labels; none if absent.
    #[serde(default)]
    #[schema(value_type = Labels)]
    labels: BTreeMap<String, String>,
    /// How the agent answers; no settings if absent.
    #[serde(default)]
    settings: Settings,
}

/// A change of an agent: what is absent or null stays.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "name": "Support assistant (EU)", "settings": { "temperature": 0.4, "model": null } }))]
pub struct AgentChange {
    /// The new display name.
    #[schema(min_length = 1, max_length = 200, pattern = r"\S")]
    name: Option<String>,
    /// The new description.
    #[schema(max_length = 4000)]
    description: Option<String>,
    /// The new labels, which replace all that there are.
    #[schema(value_type = Option<Labels>)]
    labels: Option<BTreeMap<String, String>>,
    /// Settings to set, each as a whole; null removes one, and those that are absent stay.
    #[schema(value_type = Option<Settings>)]
    settings: Option<Map<String, Value>>,
}

/// What to list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only the agents of this workspace. None are listed if there is no such workspace.
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
///
/// It takes the permission `agent.create` on the workspace. The agent has an empty canvas and no version yet. Refused with 404 if
/// there is no such workspace, and with 409 if the organization has as many agents as it may.
#[utoipa::path(post, path = "/api/v1/agents", tag = "Agents", params(IdempotencyKey), request_body = NewAgent,
    responses((status = CREATED, description = "The new agent.", body = Agent)),
    extensions(("x-problems" = json!(["not_found", "conflict"]))))]
async fn create_agent(State(app): State<App>, Caller(caller): Caller, input: Input<NewAgent>) -> Result<Response> {
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
///
/// Those that the caller may read (`agent.read`), oldest first.
#[utoipa::path(get, path = "/api/v1/agents", tag = "Agents", params(Page, Filter),
    responses((status = OK, description = "A page of agents.", body = Listed<Agent>)),
    extensions(("x-problems" = json!(["-denied"]))))]
async fn list_agents(
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
///
/// It takes the permission `agent.read`. What is drawn on the agent's canvas is read with `GET /api/v1/canvases/{id}`.
#[utoipa::path(get, path = "/api/v1/agents/{id}", tag = "Agents", params(("id" = AgentId, Path, description = "The agent's id.")),
    responses((status = OK, description = "The agent.", body = Agent)))]
async fn get_agent(State(app): State<App>, Caller(caller): Caller, PathId(id): PathId<AgentId>) -> Result<Response> {
    let agent = find(&app, &caller, id, Action::AgentRead).await?;
    Ok(([etag(agent.revision)], Json(agent)).into_response())
}

/// Change an agent
///
/// It takes the permission `agent.update`. Versions and deployments stay as they are: what changed here is part of the next version.
#[utoipa::path(patch, path = "/api/v1/agents/{id}", tag = "Agents",
    params(("id" = AgentId, Path, description = "The agent's id."), IfMatch), request_body = AgentChange,
    responses((status = OK, description = "The agent, as it is from now on.", body = Agent)))]
async fn update_agent(
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
/// It takes the permission `agent.delete`. The agent goes with its canvas, its versions and its deployments; the audit trail still
/// tells of them. Refused with 409 while it is deployed, or on its way: the answer names what has to be stopped or cancelled first.
#[utoipa::path(delete, path = "/api/v1/agents/{id}", tag = "Agents",
    params(("id" = AgentId, Path, description = "The agent's id."), IfMatch),
    responses((status = NO_CONTENT, description = "The agent is deleted.")), extensions(("x-problems" = json!(["conflict"]))))]
async fn delete_agent(
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

#[cfg(test)]
mod tests {
    use utoipa::PartialSchema;

    use super::*;

    #[test]
    fn the_texts_of_an_agent_are_documented_as_they_are_checked() {
        for schema in [NewAgent::schema(), AgentChange::schema()] {
            let schema = serde_json::to_value(schema).unwrap();
            let most = |property: &str| {
                let length = &schema["properties"][property]["maxLength"];
                usize::try_from(length.as_u64().unwrap()).unwrap()
            };
            let faults = |name: usize, description: usize| {
                let mut faults = Vec::new();
                let _spelled = fault::name("/name", "x".repeat(name), &mut faults);
                fault::description("/description", &"x".repeat(description), &mut faults);
                faults.len()
            };
            let (name, description) = (most("name"), most("description"));
            assert_eq!(faults(name, description), 0);
            assert_eq!((faults(name + 1, description), faults(name, description + 1)), (1, 1));
        }
    }
}
