//! Ordering a deployment: what it takes, whether the caller may, and placing it.

use axum::{http::StatusCode, response::Response};
use serde_json::{Value, json};

use super::Accepted;
use crate::{
    api::{
        extract::IdempotencyKey,
        guard::change,
        idempotency::{Claimed, Once},
        page::Item,
        problem::{Fault, Problem, Result},
    },
    app::App,
    authz::{Action, Context, Kind, Resource},
    bus::Hint,
    domain::{
        agent::{Agent, Version},
        connection::Kind as ConnectionKind,
        deployment::{Deployment, DeploymentState, Progress},
        id::{AgentId, DeploymentId, GatewayId, OrganizationId},
        job::{JobKind, Payload},
        principal::Principal,
    },
    jobs,
    store::{
        connections::{self, Connection},
        deployments,
    },
};

pub(super) fn no_version(agent: AgentId, asked: Option<i64>) -> Problem {
    match asked {
        Some(number) => Problem::not_found(&format!("version: this agent has no version {number}")),
        None => Problem::conflict(format!(
            "This agent has no version yet: cut one first with POST /api/v1/agents/{agent}/versions."
        )),
    }
}

pub(super) async fn find_gateway(
    conn: &mut crate::store::Conn,
    organization: OrganizationId,
    id: GatewayId,
) -> Result<Connection> {
    let found = connections::get(conn, organization, ConnectionKind::DeploymentTarget, id.0).await?;
    let gateway = found.ok_or_else(|| Problem::not_found("gateway"))?;
    if gateway.active {
        Ok(gateway)
    } else {
        Err(Problem::conflict("This gateway is switched off: set `active` to true first."))
    }
}

/// The gateway's environment. It cannot be called another one: policies decide by it.
pub(super) fn environment_of(gateway: &Connection, asked: Option<String>) -> Result<String> {
    let fixed = gateway.environment.clone().unwrap_or_default();
    match asked {
        Some(asked) if !fixed.is_empty() && asked != fixed => Err(Problem::invalid(vec![Fault::new(
            "/environment",
            format!("this gateway is for `{fixed}`: leave it out, or choose a gateway for `{asked}`"),
        )])),
        Some(asked) if asked.len() > 63 || asked.chars().any(char::is_control) => {
            Err(Problem::invalid(vec![Fault::new("/environment", "at most 63 characters, without control characters")]))
        }
        Some(asked) => Ok(asked),
        None => Ok(fixed),
    }
}

pub(super) async fn may_deploy(
    app: &App,
    caller: &Principal,
    agent: &Agent,
    gateway: &Connection,
    environment: &str,
) -> Result<()> {
    let seen = Resource {
        environment: gateway.environment.clone(),
        labels: gateway.labels.0.clone(),
        ..Resource::new(Kind::Gateway, gateway.id, gateway.organization_id, gateway.name.clone())
    };
    let context = Context { gateway: Some(seen), environment: Some(environment.to_owned()), ..Context::default() };
    app.require(caller, Action::AgentDeploy, &agent.resource(), &context).await
}

/// A deployment to be made.
pub(super) struct Order {
    pub(super) agent: Agent,
    pub(super) version: Version,
    pub(super) gateway: Connection,
    pub(super) environment: String,
    pub(super) rollback_of: Option<DeploymentId>,
}

impl Order {
    /// Deployment, job, answer and audit event in one transaction.
    pub(super) async fn place(
        self,
        app: &App,
        caller: &Principal,
        key: Option<IdempotencyKey>,
        action: Action,
        target: String,
    ) -> Result<Response> {
        let now = app.clock.now();
        let mut tx = app.store.begin().await?;
        let once = match Once::claim(app, &mut tx, caller, key).await? {
            Claimed::Fresh(once) => once,
            Claimed::Answered(response) => return Ok(response),
        };
        let id: DeploymentId = app.clock.id();
        let payload = Payload { deployment_id: id };
        let job_id = jobs::enqueue(&mut tx, &app.clock, caller.organization_id, JobKind::Deploy, payload).await?;
        let deployment = Deployment {
            id,
            organization_id: caller.organization_id,
            agent_id: self.agent.id,
            agent_name: self.agent.name,
            workspace_id: self.agent.workspace_id,
            version: self.version.number,
            version_id: self.version.id,
            gateway_id: GatewayId(self.gateway.id),
            environment: self.environment,
            status: DeploymentState::Queued,
            job_id,
            registration_id: None,
            endpoint: None,
            progress: Progress::default(),
            error: None,
            rollback_of: self.rollback_of,
            created_by: caller.user_id,
            created_at: now,
            updated_at: now,
            activated_at: None,
            finished_at: None,
        };
        deployments::insert(&mut tx, &deployment).await?;
        let accepted = Accepted { job_id, deployment_id: id, status: deployment.status };
        let response = once.answer(&mut tx, StatusCode::ACCEPTED, &accepted).await?;
        change(app, tx, caller, action, target, details(&deployment)).await?;
        app.bus.publish(Hint::Job);
        Ok(response)
    }
}

pub(super) fn details(deployment: &Deployment) -> Value {
    json!({
        "deployment_id": deployment.id,
        "job_id": deployment.job_id,
        "agent_id": deployment.agent_id,
        "version": deployment.version,
        "gateway_id": deployment.gateway_id,
        "environment": deployment.environment,
        "rollback_of": deployment.rollback_of,
    })
}
