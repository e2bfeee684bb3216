//! `/api/v1/workspaces`.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
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
    domain::{fault, id::WorkspaceId, principal::Principal, tenancy::Workspace},
    store::{agents, quota::Counted, workspaces},
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(create_workspace, list_workspaces)).routes(routes!(
        get_workspace,
        update_workspace,
        delete_workspace
    ))
}

/// A workspace to be created.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "name": "Customer service", "description": "Agents that talk to customers." }))]
pub struct NewWorkspace {
    /// The display name, without control characters; white space around it is taken away. Unique in the organization; case counts.
    #[schema(min_length = 1, max_length = 200, pattern = r"\S")]
    name: String,
    /// What the workspace is for; empty if absent.
    #[serde(default)]
    #[schema(max_length = 4000)]
    description: String,
}

/// A change of a workspace: what is absent or null stays.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "description": "Agents that talk to customers in Europe." }))]
pub struct WorkspaceChange {
    /// The new display name, unique in the organization.
    #[schema(min_length = 1, max_length = 200, pattern = r"\S")]
    name: Option<String>,
    /// The new description.
    #[schema(max_length = 4000)]
    description: Option<String>,
}

impl Item for Workspace {
    fn id(&self) -> uuid::Uuid {
        self.id.0
    }

    fn resource(&self) -> Resource {
        let resource = Resource::new(Kind::Workspace, self.id, self.organization_id, self.name.clone());
        Resource { workspace: Some(self.id), ..resource }
    }
}

async fn find(app: &App, caller: &Principal, id: WorkspaceId, action: Action) -> Result<Workspace> {
    let workspace = workspaces::get(&mut app.store.read().await?, caller.organization_id, id).await?;
    let workspace = workspace.ok_or_else(|| Problem::not_found("workspace"))?;
    app.require(caller, action, &workspace.resource(), &Context::default()).await?;
    Ok(workspace)
}

/// Takes over what is wanted, in its one spelling.
fn put(workspace: &mut Workspace, name: Option<String>, description: Option<String>) -> Result<()> {
    let mut faults = Vec::new();
    if let Some(name) = name {
        workspace.name = fault::name("/name", name, &mut faults);
    }
    if let Some(description) = description {
        fault::description("/description", &description, &mut faults);
        workspace.description = description;
    }
    Problem::check(faults)
}

/// Create a workspace
///
/// It takes the permission `workspace.create`. Refused with 409 if the organization has a workspace of this name, or as many as it
/// may.
#[utoipa::path(post, path = "/api/v1/workspaces", tag = "Workspaces", params(IdempotencyKey), request_body = NewWorkspace,
    responses((status = CREATED, description = "The new workspace.", body = Workspace)),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn create_workspace(
    State(app): State<App>,
    Caller(caller): Caller,
    input: Input<NewWorkspace>,
) -> Result<Response> {
    let within = Resource::organization(caller.organization_id);
    app.require(&caller, Action::WorkspaceCreate, &within, &Context::default()).await?;
    let now = app.clock.now();
    let mut workspace = Workspace {
        id: app.clock.id(),
        organization_id: caller.organization_id,
        name: String::new(),
        description: String::new(),
        created_at: now,
        updated_at: now,
        revision: 1,
    };
    put(&mut workspace, Some(input.body.name), Some(input.body.description))?;
    let mut tx = app.store.begin().await?;
    let once = match Once::claim(&app, &mut tx, &caller, input.idempotency).await? {
        Claimed::Fresh(once) => once,
        Claimed::Answered(response) => return Ok(response),
    };
    quota::room(&app, &mut tx, caller.organization_id, Counted::Workspaces).await?;
    workspaces::insert(&mut tx, &workspace).await?;
    let response = once.created(&mut tx, &workspace, workspace.revision).await?;
    let target = format!("workspace/{}", workspace.id);
    change(&app, tx, &caller, Action::WorkspaceCreate, target, json!({ "name": workspace.name })).await?;
    Ok(response)
}

/// List workspaces
///
/// Those that the caller may read (`workspace.read`), oldest first.
#[utoipa::path(get, path = "/api/v1/workspaces", tag = "Workspaces", params(Page),
    responses((status = OK, description = "A page of workspaces.", body = Listed<Workspace>)),
    extensions(("x-problems" = json!(["-denied"]))))]
async fn list_workspaces(
    State(app): State<App>,
    Caller(caller): Caller,
    Parameters(page): Parameters<Page>,
) -> Result<Json<Listed<Workspace>>> {
    let organization = caller.organization_id;
    let listed = visible(&app, &caller, Action::WorkspaceRead, &page, move |store, after, limit| async move {
        workspaces::list(&mut store.read().await?, organization, after, limit).await
    });
    Ok(Json(listed.await?))
}

/// Read a workspace
///
/// It takes the permission `workspace.read`. The agents in it are listed with `GET /api/v1/agents?workspace_id=`.
#[utoipa::path(get, path = "/api/v1/workspaces/{id}", tag = "Workspaces",
    params(("id" = WorkspaceId, Path, description = "The workspace's id.")),
    responses((status = OK, description = "The workspace.", body = Workspace)))]
async fn get_workspace(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<WorkspaceId>,
) -> Result<Response> {
    let workspace = find(&app, &caller, id, Action::WorkspaceRead).await?;
    Ok(([etag(workspace.revision)], Json(workspace)).into_response())
}

/// Change a workspace
///
/// It takes the permission `workspace.update`. Refused with 409 if the organization has another workspace of the new name.
#[utoipa::path(patch, path = "/api/v1/workspaces/{id}", tag = "Workspaces",
    params(("id" = WorkspaceId, Path, description = "The workspace's id."), IfMatch), request_body = WorkspaceChange,
    responses((status = OK, description = "The workspace, as it is from now on.", body = Workspace)),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn update_workspace(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<WorkspaceId>,
    if_match: IfMatch,
    input: Input<WorkspaceChange>,
) -> Result<Response> {
    let before = find(&app, &caller, id, Action::WorkspaceUpdate).await?;
    if_match.check(before.revision)?;
    let mut after = before.clone();
    after.updated_at = app.clock.now();
    put(&mut after, input.body.name, input.body.description)?;
    let mut tx = app.store.begin().await?;
    let workspace = workspaces::update(&mut tx, &after).await?;
    let details = json!({ "before": before, "after": workspace });
    change(&app, tx, &caller, Action::WorkspaceUpdate, format!("workspace/{id}"), details).await?;
    Ok(([etag(workspace.revision)], Json(workspace)).into_response())
}

/// Delete an empty workspace
///
/// It takes the permission `workspace.delete`. The workspace goes with the roles that users hold in it. Refused with 409 while there
/// are agents in it: they cannot be moved, and have to be deleted first.
#[utoipa::path(delete, path = "/api/v1/workspaces/{id}", tag = "Workspaces",
    params(("id" = WorkspaceId, Path, description = "The workspace's id."), IfMatch),
    responses((status = NO_CONTENT, description = "The workspace is deleted.")),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn delete_workspace(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<WorkspaceId>,
    if_match: IfMatch,
) -> Result<StatusCode> {
    let workspace = find(&app, &caller, id, Action::WorkspaceDelete).await?;
    if_match.check(workspace.revision)?;
    let mut tx = app.store.begin().await?;
    if !agents::list(&mut tx, caller.organization_id, Some(id), uuid::Uuid::nil(), 1).await?.is_empty() {
        return Err(Problem::conflict(format!(
            "There are agents in this workspace: delete them first. GET /api/v1/agents?workspace_id={id} lists those you may \
             read."
        )));
    }
    workspaces::delete(&mut tx, &workspace).await?;
    let details = json!({ "before": workspace });
    change(&app, tx, &caller, Action::WorkspaceDelete, format!("workspace/{id}"), details).await?;
    Ok(StatusCode::NO_CONTENT)
}
