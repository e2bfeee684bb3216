//! `/api/v1/deployments`, and deploying an agent.

mod order;
pub mod removal;
mod summary;

use axum::{Json, extract::State, http::StatusCode, response::Response};
use serde::{Deserialize, Serialize};
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) use self::order::{Destination, NoEnvironment, environment_asked};
use self::order::{Order, details};
use super::{
    extract::{Bodyless, Caller, IdempotencyKey, Input, Parameters, PathId},
    guard::change,
    idempotency::{Claimed, Once},
    page::{Item, Listed, Page, visible},
    problem::{Problem, Result},
};
use crate::{
    app::App,
    authz::{Action, Context, Kind, Resource},
    bus::Hint,
    domain::{
        deployment::{Deployment, DeploymentState, Progress},
        id::{AgentId, DeploymentId, GatewayId, JobId},
        job::{JobKind, Payload},
        principal::Principal,
    },
    jobs,
    store::deployments::{self, Change},
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(deploy_agent))
        .routes(routes!(list_deployments))
        .routes(routes!(summary::summarize_deployments))
        .routes(routes!(get_deployment))
        .routes(routes!(cancel_deployment))
        .routes(routes!(stop_deployment))
        .routes(routes!(rollback_deployment))
}

/// A deployment to be made of an agent.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "gateway_id": "019a2c48-9f6a-7d05-8c21-7b4e1a3d5f60", "version": 3 }))]
pub struct NewDeployment {
    /// The gateway to deploy to, which has to be switched on.
    gateway_id: GatewayId,
    /// The number of the agent's version to deploy; the newest if absent or null.
    #[schema(minimum = 1)]
    version: Option<i64>,
    /// The environment to deploy into; the gateway's own if absent, null or blank. Another one is taken only by a gateway that has
    /// none. Case and white space around it do not matter.
    #[schema(max_length = 63, pattern = r"^(?:[\sA-Za-z0-9_./:+@&,()#-]|[^\x00-\x7F])*$")]
    environment: Option<String>,
}

/// A deployment, or taking one off its gateway, that has been ordered; the deployment tells how it goes.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = DeploymentAccepted, example = json!({
    "job_id": "019a2c60-4e1b-7a72-b8d5-0c3f6e9a2d52",
    "deployment_id": "019a2c60-4e1b-7a72-b8d5-0c3f6e9a2d51",
    "status": "queued",
}))]
pub struct Accepted {
    /// The job that does it.
    job_id: JobId,
    /// The deployment to follow.
    deployment_id: DeploymentId,
    /// The state that the deployment is in: `queued` where it is new, `stopping` where it is being stopped.
    status: DeploymentState,
}

/// What to list; what is absent does not matter.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only the deployments of this agent.
    agent_id: Option<AgentId>,
    /// Only the deployments to this gateway.
    gateway_id: Option<GatewayId>,
    /// Only the deployments that are in this state.
    status: Option<DeploymentState>,
}

impl Item for Deployment {
    fn id(&self) -> uuid::Uuid {
        self.id.0
    }

    fn resource(&self) -> Resource {
        Resource {
            workspace: Some(self.workspace_id),
            environment: Some(self.environment.clone()),
            owner: Some(self.created_by),
            ..Resource::new(Kind::Deployment, self.id, self.organization_id, self.agent_name.clone())
        }
    }
}

/// The deployment, if it is the caller's organization's and the caller may do this to it.
///
/// # Errors
/// 404, 403.
pub(super) async fn find(app: &App, caller: &Principal, id: DeploymentId, action: Action) -> Result<Deployment> {
    let found = deployments::get(&mut app.store.read().await?, caller.organization_id, id).await?;
    let deployment = found.ok_or_else(|| Problem::not_found("deployment"))?;
    app.require(caller, action, &deployment.resource(), &Context::default()).await?;
    Ok(deployment)
}

/// Deploy a version of an agent to a gateway
///
/// It takes the permission `agent.deploy`, for this gateway and environment. A job does it in the background: follow the deployment
/// with `GET /api/v1/deployments/{id}/events`. Refused with 409 if the agent has no version yet, the gateway is switched off, or the
/// organization has as many jobs waiting as it may.
#[utoipa::path(post, path = "/api/v1/agents/{id}/deploy", tag = "Deployments",
    params(("id" = AgentId, Path, description = "The agent's id."), IdempotencyKey), request_body = NewDeployment,
    responses((status = ACCEPTED, description = "The deployment is queued.", body = Accepted)),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn deploy_agent(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<AgentId>,
    input: Input<NewDeployment>,
) -> Result<Response> {
    let NewDeployment { gateway_id, version, environment } = input.body;
    let to = Destination::find(&app, caller.organization_id, id, gateway_id, environment.as_deref()).await?;
    to.allow(&app, &caller).await?;
    let version = to.version(&app, version).await?;
    let order = Order { to, version, rollback_of: None };
    order.place(&app, &caller, input.idempotency, Action::AgentDeploy, format!("agent/{id}")).await
}

/// List deployments
///
/// Those that the caller may read (`deployment.read`) and that fit every filter, oldest first.
#[utoipa::path(get, path = "/api/v1/deployments", tag = "Deployments", params(Page, Filter),
    responses((status = OK, description = "A page of deployments.", body = Listed<Deployment>)),
    extensions(("x-problems" = json!(["-denied"]))))]
async fn list_deployments(
    State(app): State<App>,
    Caller(caller): Caller,
    Parameters(page): Parameters<Page>,
    Parameters(filter): Parameters<Filter>,
) -> Result<Json<Listed<Deployment>>> {
    let filter = deployments::Filter { agent: filter.agent_id, gateway: filter.gateway_id, status: filter.status };
    let organization = caller.organization_id;
    let listed = visible(&app, &caller, Action::DeploymentRead, &page, move |store, after, limit| {
        let filter = filter.clone();
        async move { deployments::list(&mut store.read().await?, organization, &filter, after, limit).await }
    });
    Ok(Json(listed.await?))
}

/// Read a deployment
///
/// It takes the permission `deployment.read`.
#[utoipa::path(get, path = "/api/v1/deployments/{id}", tag = "Deployments",
    params(("id" = DeploymentId, Path, description = "The deployment's id.")),
    responses((status = OK, description = "The deployment.", body = Deployment)))]
async fn get_deployment(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<DeploymentId>,
) -> Result<Json<Deployment>> {
    Ok(Json(find(&app, &caller, id, Action::DeploymentRead).await?))
}

/// Refuses unless the caller may do what this job of the deployment does: what was asked when it was ordered is asked again
/// of whoever has it done again.
///
/// # Errors
/// 403, 409.
pub(super) async fn allow_again(app: &App, caller: &Principal, this: &Deployment, kind: JobKind) -> Result<()> {
    match kind {
        JobKind::Deploy => Destination::of(app, this).await?.allow(app, caller).await,
        // Stopped, or cancelled too late.
        JobKind::Undeploy => app.require(caller, removal(this), &this.resource(), &Context::default()).await,
    }
}

/// By what a deployment is taken off its gateway.
pub(super) fn removal(this: &Deployment) -> Action {
    if this.status == DeploymentState::Cancelled { Action::DeploymentCancel } else { Action::DeploymentStop }
}

/// Cancel a deployment that is not active yet
///
/// It takes the permission `deployment.cancel`. The deployment is cancelled at once; what the gateway may have registered meanwhile is
/// removed again in the background. Refused with 409 unless the deployment is `queued` or `running`, and so if it was cancelled
/// already.
#[utoipa::path(post, path = "/api/v1/deployments/{id}/cancel", tag = "Deployments",
    params(("id" = DeploymentId, Path, description = "The deployment's id.")),
    responses((status = OK, description = "The deployment, which is cancelled.", body = Deployment)),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn cancel_deployment(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<DeploymentId>,
) -> Result<Json<Deployment>> {
    let seen = find(&app, &caller, id, Action::DeploymentCancel).await?;
    Ok(Json(call_off(&app, &caller, &seen, Action::DeploymentCancel, format!("deployment/{id}")).await?))
}

/// Cancels a deployment and its job, as one change.
pub(super) async fn call_off(
    app: &App,
    caller: &Principal,
    seen: &Deployment,
    action: Action,
    target: String,
) -> Result<Deployment> {
    let now = app.clock.now();
    let mut tx = app.store.begin().await?;
    // The job first, as its worker does: then neither waits for the other.
    crate::store::jobs::cancel(&mut tx, caller.organization_id, seen.job_id, now).await?;
    let found = deployments::lock(&mut tx, caller.organization_id, seen.id).await?;
    let mut deployment = found.ok_or_else(|| Problem::not_found("deployment"))?;
    if !deployment.status.may_become(DeploymentState::Cancelled) {
        let hint = if deployment.status == DeploymentState::Active { "; stop it instead" } else { "" };
        return Err(Problem::conflict(format!("The deployment is {} already{hint}.", deployment.status.as_str())));
    }
    deployments::advance(&mut tx, &mut deployment, DeploymentState::Cancelled, Change::default(), now).await?;
    change(app, tx, caller, action, target, details(&deployment)).await?;
    app.bus.publish(Hint::Deployment { deployment: deployment.id });
    app.bus.publish(Hint::Job);
    Ok(deployment)
}

/// Stop an active deployment
///
/// It takes the permission `deployment.stop`. A job takes the deployment off its gateway in the background; until then the gateway
/// may go on serving it. Refused with 409 unless the deployment is `active`. A body is not needed, and ignored.
#[utoipa::path(post, path = "/api/v1/deployments/{id}/stop", tag = "Deployments",
    params(("id" = DeploymentId, Path, description = "The deployment's id."), IdempotencyKey),
    responses((status = ACCEPTED, description = "The deployment is stopping.", body = Accepted)),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn stop_deployment(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<DeploymentId>,
    input: Bodyless,
) -> Result<Response> {
    find(&app, &caller, id, Action::DeploymentStop).await?;
    let now = app.clock.now();
    let mut tx = app.store.begin().await?;
    let once = match Once::claim(&app, &mut tx, &caller, input.idempotency).await? {
        Claimed::Fresh(once) => once,
        Claimed::Answered(response) => return Ok(response),
    };
    let found = deployments::lock(&mut tx, caller.organization_id, id).await?;
    let mut deployment = found.ok_or_else(|| Problem::not_found("deployment"))?;
    if !deployment.status.may_become(DeploymentState::Stopping) {
        let hint = match deployment.status {
            DeploymentState::Queued | DeploymentState::Running => "; cancel it instead".to_owned(),
            DeploymentState::Stopping => format!("; if job {} has failed, retry that", deployment.job_id),
            _ => String::new(),
        };
        return Err(Problem::conflict(format!("The deployment is {}{hint}.", deployment.status.as_str())));
    }
    let payload = Payload { deployment_id: id };
    let job_id = jobs::enqueue(&mut tx, &app.clock, caller.organization_id, JobKind::Undeploy, payload).await?;
    let order = Change { job: Some(job_id), progress: Some(Progress::default()), ..Change::default() };
    deployments::advance(&mut tx, &mut deployment, DeploymentState::Stopping, order, now).await?;
    let accepted = Accepted { job_id, deployment_id: id, status: deployment.status };
    let response = once.answer(&mut tx, StatusCode::ACCEPTED, &accepted).await?;
    change(&app, tx, &caller, Action::DeploymentStop, format!("deployment/{id}"), details(&deployment)).await?;
    app.bus.publish(Hint::Deployment { deployment: id });
    app.bus.publish(Hint::Job);
    Ok(response)
}

/// Roll back a deployment
///
/// Deploys the version of the agent that was active on the same gateway, in the same environment, before this deployment. That is a
/// new deployment, whose `rollback_of` names this one. It takes the permissions `deployment.rollback` and `agent.deploy`. Refused with
/// 409 if there was no other version, if the gateway is switched off, or if this deployment was never active: one that failed or was
/// cancelled replaced nothing. A body is not needed, and ignored.
#[utoipa::path(post, path = "/api/v1/deployments/{id}/rollback", tag = "Deployments",
    params(("id" = DeploymentId, Path, description = "The id of the deployment to take back."), IdempotencyKey),
    responses((status = ACCEPTED, description = "The new deployment is queued.", body = Accepted)),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn rollback_deployment(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<DeploymentId>,
    input: Bodyless,
) -> Result<Response> {
    let this = find(&app, &caller, id, Action::DeploymentRollback).await?;
    let to = Destination::of(&app, &this).await?;
    to.allow(&app, &caller).await?;
    let instead = match this.status {
        DeploymentState::Queued | DeploymentState::Running => Some("cancel it instead".to_owned()),
        DeploymentState::Failed => Some(format!(
            "it replaced nothing, so there is nothing to take back. Retry its job {} once the cause is mended, or deploy \
             another version",
            this.job_id
        )),
        DeploymentState::Cancelled => {
            Some("it replaced nothing, so there is nothing to take back. Deploy the version you want".to_owned())
        }
        DeploymentState::Active | DeploymentState::Stopping | DeploymentState::Stopped => None,
    };
    if let Some(instead) = instead {
        return Err(Problem::conflict(format!("The deployment is {}: {instead}.", this.status.as_str())));
    }
    let before = deployments::active_before(&mut app.store.read().await?, &this).await?;
    let before = before.ok_or_else(|| {
        Problem::conflict(
            "No other version of this agent was active on this gateway, in this environment, before: there is nothing to \
             go back to. Deploy the version you want.",
        )
    })?;
    let version = to.version(&app, Some(before.version)).await?;
    let order = Order { to, version, rollback_of: Some(id) };
    order.place(&app, &caller, input.idempotency, Action::DeploymentRollback, format!("deployment/{id}")).await
}

#[cfg(test)]
mod tests {
    use utoipa::PartialSchema;

    use super::*;

    #[test]
    fn the_environment_of_a_deployment_is_documented_as_it_is_checked() {
        let schema = serde_json::to_value(NewDeployment::schema()).unwrap();
        let most = schema["properties"]["environment"]["maxLength"].as_u64().unwrap();
        let taken = |length: u64| environment_asked(&"e".repeat(usize::try_from(length).unwrap())).is_ok();
        assert!(taken(0) && taken(most) && !taken(most + 1));
    }
}
