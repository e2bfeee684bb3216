//! `/api/v1/jobs`: background work, as far as the caller may see the deployment it works on.

use axum::{Json, extract::State};
use serde::Deserialize;
use serde_json::json;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    deployments::{allow_again, call_off},
    extract::{Caller, Parameters, PathId},
    guard::change,
    page::{Item, Listed, Page, visible},
    problem::{Problem, Result},
};
use crate::{
    app::App,
    authz::{Action, Context, Kind, Resource},
    bus::Hint,
    domain::{
        deployment::{Deployment, DeploymentState},
        id::JobId,
        job::{Job, JobKind, JobState},
        principal::Principal,
    },
    store::{
        deployments,
        jobs::{self, Shown},
    },
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list_jobs))
        .routes(routes!(get_job))
        .routes(routes!(retry_job))
        .routes(routes!(cancel_job))
}

/// What to list; what is absent does not matter.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only jobs in this state.
    state: Option<JobState>,
    /// Only jobs of this kind.
    kind: Option<JobKind>,
}

impl Item for Shown {
    fn id(&self) -> uuid::Uuid {
        self.job.id.0
    }

    fn resource(&self) -> Resource {
        let (id, organization) = (self.job.payload.deployment_id, self.job.organization_id);
        Resource {
            workspace: Some(self.workspace_id),
            environment: Some(self.environment.clone()),
            owner: Some(self.created_by),
            ..Resource::new(Kind::Deployment, id, organization, self.agent_name.clone())
        }
    }
}

async fn find(app: &App, caller: &Principal, id: JobId, action: Action) -> Result<Shown> {
    let found = jobs::show(&mut app.store.read().await?, caller.organization_id, id).await?;
    let shown = found.ok_or_else(|| Problem::not_found("job"))?;
    app.require(caller, action, &shown.resource(), &Context::default()).await?;
    Ok(shown)
}

async fn deployment_of(app: &App, shown: &Shown) -> Result<Deployment> {
    let (organization, id) = (shown.job.organization_id, shown.job.payload.deployment_id);
    let found = deployments::get(&mut app.store.read().await?, organization, id).await?;
    found.ok_or_else(|| Problem::not_found("deployment"))
}

/// List background jobs
///
/// Those of deployments for which the caller has the permission `job.read`, oldest first. A job is removed `job_days` (30) after
/// it was over; a failed one not before its deployment is over.
#[utoipa::path(get, path = "/api/v1/jobs", tag = "Jobs", params(Page, Filter),
    responses((status = OK, description = "A page of jobs.", body = Listed<Job>)),
    extensions(("x-problems" = json!(["-denied"]))))]
async fn list_jobs(
    State(app): State<App>,
    Caller(caller): Caller,
    Parameters(page): Parameters<Page>,
    Parameters(filter): Parameters<Filter>,
) -> Result<Json<Listed<Shown>>> {
    let (organization, Filter { state, kind }) = (caller.organization_id, filter);
    let listed = visible(&app, &caller, Action::JobRead, &page, move |store, after, limit| async move {
        jobs::list(&mut store.read().await?, organization, state, kind, after, limit).await
    });
    Ok(Json(listed.await?))
}

/// Read a background job
///
/// Takes the permission `job.read` for the deployment that the job works on.
#[utoipa::path(get, path = "/api/v1/jobs/{id}", tag = "Jobs", params(("id" = JobId, Path, description = "The job.")),
    responses((status = OK, description = "The job.", body = Job)))]
async fn get_job(State(app): State<App>, Caller(caller): Caller, PathId(id): PathId<JobId>) -> Result<Json<Shown>> {
    Ok(Json(find(&app, &caller, id, Action::JobRead).await?))
}

/// Retry a failed job, or run a waiting one at once
///
/// Takes the permission `job.retry`, and the permission to do what the job does: `agent.deploy`, or `deployment.stop` or
/// `deployment.cancel`. A failed job begins again with all its attempts, and a deployment that failed with it is `queued`
/// again. Answers before the attempt begins. Refused with 409 where the job runs, has succeeded or was cancelled, or where the
/// gateway takes no such deployment any more.
#[utoipa::path(post, path = "/api/v1/jobs/{id}/retry", tag = "Jobs", params(("id" = JobId, Path, description = "The job.")),
    responses((status = OK, description = "The job, which waits for a worker.", body = Job)),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn retry_job(State(app): State<App>, Caller(caller): Caller, PathId(id): PathId<JobId>) -> Result<Json<Shown>> {
    let mut shown = find(&app, &caller, id, Action::JobRetry).await?;
    let deployment = deployment_of(&app, &shown).await?;
    allow_again(&app, &caller, &deployment, shown.job.kind).await?;
    let now = app.clock.now();
    let mut tx = app.store.begin().await?;
    let Some(job) = jobs::retry(&mut tx, caller.organization_id, id, now).await? else {
        return Err(Problem::conflict(format!(
            "The job is {}: only one that failed or waits is retried.",
            shown.job.state.as_str()
        )));
    };
    let found = deployments::lock(&mut tx, caller.organization_id, job.payload.deployment_id).await?;
    if let Some(mut deployment) = found
        && deployment.status == DeploymentState::Failed
        && deployment.job_id == id
    {
        let again = deployments::Change::default();
        deployments::advance(&mut tx, &mut deployment, DeploymentState::Queued, again, now).await?;
    }
    let details = json!({ "kind": job.kind, "deployment_id": job.payload.deployment_id });
    shown.job = job;
    change(&app, tx, &caller, Action::JobRetry, format!("job/{id}"), details).await?;
    app.bus.publish(Hint::Job);
    app.bus.publish(Hint::Deployment { deployment: shown.job.payload.deployment_id });
    Ok(Json(shown))
}

/// Cancel a job and its deployment
///
/// Takes the permissions `job.cancel` and `deployment.cancel`. The deployment is cancelled at once. So is the job where no
/// attempt may have reached the gateway; otherwise it runs until what was registered there is removed again. Refused
/// with 409 where the job is over, or takes something off a gateway.
#[utoipa::path(post, path = "/api/v1/jobs/{id}/cancel", tag = "Jobs", params(("id" = JobId, Path, description = "The job.")),
    responses((status = OK, description = "The job as it is now, which may still be undoing what it did.", body = Job)),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn cancel_job(State(app): State<App>, Caller(caller): Caller, PathId(id): PathId<JobId>) -> Result<Json<Shown>> {
    let shown = find(&app, &caller, id, Action::JobCancel).await?;
    if shown.job.kind == JobKind::Undeploy {
        return Err(Problem::conflict(
            "What has begun to be taken off a gateway is taken off: this job cannot be cancelled.",
        ));
    }
    let organization = caller.organization_id;
    let seen = deployment_of(&app, &shown).await?;
    app.require(&caller, Action::DeploymentCancel, &seen.resource(), &Context::default()).await?;
    if shown.job.state.over() || seen.job_id != id {
        return Err(Problem::conflict(format!("The job is {} already.", shown.job.state.as_str())));
    }
    call_off(&app, &caller, &seen, Action::JobCancel, format!("job/{id}")).await?;
    let now = jobs::show(&mut app.store.read().await?, organization, id).await?;
    Ok(Json(now.ok_or_else(|| Problem::not_found("job"))?))
}
