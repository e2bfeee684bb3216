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

/// How many deployments there are in each state.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
pub struct Summary {
    queued: i64,
    running: i64,
    active: i64,
    failed: i64,
    cancelled: i64,
    stopping: i64,
    stopped: i64,
    /// All of them.
    total: i64,
    /// False where there are more than one request may look at (`list_rows`): then these are some of them.
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
/// Only those that the caller may read.
#[utoipa::path(get, path = "/api/v1/deployments/summary", tag = "Deployments", responses((status = OK, body = Summary)))]
pub(super) async fn summary(State(app): State<App>, Caller(caller): Caller) -> Result<Json<Summary>> {
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
