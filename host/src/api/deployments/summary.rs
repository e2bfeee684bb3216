//! `GET /api/v1/deployments/summary`: how many deployments the caller may see, by state.

use axum::{Json, extract::State};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    api::{extract::Caller, page::Item, problem::Result},
    app::App,
    authz::{Action, Context, Distinction, Kind, Resource},
    domain::{deployment::DeploymentState, principal::Principal},
    store::deployments::{self, Group},
};

/// How many deployments there are in each state, of those that the caller may read.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
#[schema(as = DeploymentSummary, example = json!({
    "queued": 1, "running": 2, "active": 14, "failed": 3, "cancelled": 0, "stopping": 0, "stopped": 8, "total": 28, "complete": true,
}))]
pub struct Summary {
    /// Deployments that wait for a worker.
    #[schema(minimum = 0)]
    queued: i64,
    /// Deployments that a worker is at, or waits to try again.
    #[schema(minimum = 0)]
    running: i64,
    /// Deployments that their gateway serves.
    #[schema(minimum = 0)]
    active: i64,
    /// Deployments that did not work.
    #[schema(minimum = 0)]
    failed: i64,
    /// Deployments that were called off before they were active.
    #[schema(minimum = 0)]
    cancelled: i64,
    /// Deployments that a worker is taking off their gateway.
    #[schema(minimum = 0)]
    stopping: i64,
    /// Deployments that their gateway no longer serves.
    #[schema(minimum = 0)]
    stopped: i64,
    /// Deployments in all of these states together.
    #[schema(minimum = 0)]
    total: i64,
    /// Whether all deployments were counted. False where there are more than one request may look at (`list_rows`).
    complete: bool,
}

impl Summary {
    fn add(&mut self, state: DeploymentState, count: i64) {
        self.total += count;
        *match state {
            DeploymentState::Queued => &mut self.queued,
            DeploymentState::Running => &mut self.running,
            DeploymentState::Active => &mut self.active,
            DeploymentState::Failed => &mut self.failed,
            DeploymentState::Cancelled => &mut self.cancelled,
            DeploymentState::Stopping => &mut self.stopping,
            DeploymentState::Stopped => &mut self.stopped,
        } += count;
    }
}

/// Count deployments by state
///
/// Only those that the caller may read (`deployment.read`) are counted. It takes the permission `organization.read`.
#[utoipa::path(get, path = "/api/v1/deployments/summary", tag = "Deployments",
    responses((status = OK, description = "The counts.", body = Summary)))]
pub(super) async fn summarize_deployments(State(app): State<App>, Caller(caller): Caller) -> Result<Json<Summary>> {
    let organization = Resource::organization(caller.organization_id);
    app.require(&caller, Action::OrganizationRead, &organization, &Context::default()).await?;
    let action = Action::DeploymentRead;
    let summary = match app.authz.distinction(&app.store, &caller, action, Kind::Deployment).await? {
        Distinction::None => all_alike(&app, &caller).await?,
        Distinction::Attributes => by_group(&app, &caller).await?,
        Distinction::Identity => one_by_one(&app, &caller).await?,
    };
    Ok(Json(summary))
}

/// Where all are decided alike, one decision is enough.
async fn all_alike(app: &App, caller: &Principal) -> Result<Summary> {
    let organization = caller.organization_id;
    let any = [Resource::new(Kind::Deployment, Uuid::nil(), organization, "")];
    let mut summary = Summary { complete: true, ..Summary::default() };
    if app.authz.filter(&app.store, caller, Action::DeploymentRead, &any).await? == [true] {
        for (state, count) in deployments::counts(&mut app.store.read().await?, organization).await? {
            summary.add(state, count);
        }
    }
    Ok(summary)
}

async fn by_group(app: &App, caller: &Principal) -> Result<Summary> {
    let (organization, most) = (caller.organization_id, app.config.limits.list_rows);
    let more = i64::try_from(most).unwrap_or(i64::MAX).saturating_add(1);
    let mut groups = deployments::groups(&mut app.store.read().await?, organization, more).await?;
    let mut summary = Summary { complete: groups.len() <= most, ..Summary::default() };
    groups.truncate(most);
    let seen = |group: &Group| Resource {
        workspace: Some(group.workspace_id),
        environment: Some(group.environment.clone()),
        owner: Some(group.created_by),
        ..Resource::new(Kind::Deployment, Uuid::nil(), organization, group.agent_name.clone())
    };
    let resources: Vec<Resource> = groups.iter().map(seen).collect();
    let allowed = app.authz.filter(&app.store, caller, Action::DeploymentRead, &resources).await?;
    for (group, _) in groups.iter().zip(allowed).filter(|(_, allowed)| *allowed) {
        summary.add(group.status, group.count);
    }
    Ok(summary)
}

async fn one_by_one(app: &App, caller: &Principal) -> Result<Summary> {
    const BATCH: usize = 1000;
    let (organization, filter) = (caller.organization_id, deployments::Filter::default());
    let mut summary = Summary::default();
    let (mut after, mut left) = (Uuid::nil(), app.config.limits.list_rows);
    while left > 0 {
        let batch = left.min(BATCH);
        let limit = i64::try_from(batch).unwrap_or(i64::MAX);
        let rows = deployments::list(&mut app.store.read().await?, organization, &filter, after, limit).await?;
        let resources: Vec<Resource> = rows.iter().map(Item::resource).collect();
        let allowed = app.authz.filter(&app.store, caller, Action::DeploymentRead, &resources).await?;
        for (row, _) in rows.iter().zip(allowed).filter(|(_, allowed)| *allowed) {
            summary.add(row.status, 1);
        }
        if rows.len() < batch {
            summary.complete = true;
            break;
        }
        after = rows.last().map_or(after, Item::id);
        left -= batch;
    }
    Ok(summary)
}
