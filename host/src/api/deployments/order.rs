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
        quota,
    },
    app::App,
    authz::{Action, Context, Resource},
    bus::Hint,
    domain::{
        agent::{Agent, Version},
        connection::Kind as ConnectionKind,
        deployment::{Deployment, DeploymentState, Progress},
        environment::Environment,
        id::{AgentId, DeploymentId, GatewayId, OrganizationId},
        job::{JobKind, Payload},
        principal::Principal,
        text::TextFault,
    },
    jobs,
    store::{
        agents,
        connections::{self, Connection},
        deployments,
        quota::Counted,
        versions,
    },
};

fn no_version(agent: AgentId, asked: Option<i64>) -> Problem {
    match asked {
        Some(number) => Problem::not_found(&format!("version: this agent has no version {number}")),
        None => Problem::conflict(format!(
            "This agent has no version yet: cut one first with POST /api/v1/agents/{agent}/versions."
        )),
    }
}

async fn find_gateway(
    conn: &mut crate::store::Conn,
    organization: OrganizationId,
    id: GatewayId,
) -> Result<Connection> {
    let found = connections::get(conn, organization, ConnectionKind::DeploymentTarget, id.0).await?;
    found.ok_or_else(|| Problem::not_found("gateway"))
}

/// Why a deployment has no environment that policies could compare.
#[derive(Debug, PartialEq)]
pub(in crate::api) enum NoEnvironment {
    /// What was asked for is at fault.
    Asked(String),
    /// What is stored is, by a server that did not look so closely yet: it has to be written anew.
    Stored(String),
}

/// The environment of a deployment to this gateway: the gateway's own, which cannot be called another one, since policies
/// decide by it; otherwise the one asked for. Empty where there is neither.
fn environment_of(gateway: &Connection, asked: Option<&str>) -> std::result::Result<String, NoEnvironment> {
    let stored = gateway.environment.as_deref().unwrap_or_default();
    let fixed = spelled(stored).map_err(|fault| {
        NoEnvironment::Stored(format!(
            "The environment of this gateway, `{stored}`, has to be written anew: {fault}. Send PATCH \
             /api/v1/gateways/{} with `environment`.",
            gateway.id
        ))
    })?;
    let asked = environment_asked(asked.unwrap_or_default())?;
    match (fixed.as_str(), asked.as_str()) {
        ("", _) => Ok(asked),
        (fixed, asked) if !asked.is_empty() && asked != fixed => Err(NoEnvironment::Asked(format!(
            "this gateway is for `{fixed}`: leave it out, or choose a gateway for `{asked}`"
        ))),
        _ => Ok(fixed),
    }
}

/// An environment that is asked for, in its one spelling; blank is none.
pub(in crate::api) fn environment_asked(asked: &str) -> std::result::Result<String, NoEnvironment> {
    spelled(asked).map_err(|fault| NoEnvironment::Asked(fault.to_string()))
}

fn spelled(text: &str) -> std::result::Result<String, TextFault> {
    if text.trim().is_empty() { Ok(String::new()) } else { Environment::parse(text).map(String::from) }
}

impl NoEnvironment {
    /// The answer, with the place in the body where the environment was asked for.
    pub(in crate::api) fn at(self, pointer: &str) -> Problem {
        match self {
            Self::Asked(message) => Problem::invalid(vec![Fault::new(pointer, message)]),
            Self::Stored(detail) => Problem::conflict(detail),
        }
    }
}

/// An agent on its way to a gateway.
pub(in crate::api) struct Destination {
    agent: Agent,
    gateway: Connection,
    environment: String,
}

impl Destination {
    /// This agent to this gateway, into the environment asked for or the gateway's own.
    ///
    /// # Errors
    /// 404 if either is none of the organization's; 422 for an environment that is not the gateway's.
    pub(super) async fn find(
        app: &App,
        organization: OrganizationId,
        agent: AgentId,
        gateway: GatewayId,
        environment: Option<&str>,
    ) -> Result<Self> {
        let mut conn = app.store.read().await?;
        let agent = agents::get(&mut conn, organization, agent).await?.ok_or_else(|| Problem::not_found("agent"))?;
        let gateway = find_gateway(&mut conn, organization, gateway).await?;
        Self::new(agent, gateway, environment).map_err(|fault| fault.at("/environment"))
    }

    /// The same of an agent and a gateway of one organization that are at hand.
    ///
    /// # Errors
    /// Without an environment that policies could compare.
    pub(in crate::api) fn new(
        agent: Agent,
        gateway: Connection,
        environment: Option<&str>,
    ) -> std::result::Result<Self, NoEnvironment> {
        let environment = environment_of(&gateway, environment)?;
        Ok(Self { agent, gateway, environment })
    }

    /// Where a deployment went, as its agent and gateway are now: what is brought there again is asked about as if it were
    /// deployed now.
    ///
    /// # Errors
    /// 409 if the gateway is for another environment meanwhile.
    pub(in crate::api) async fn of(app: &App, this: &Deployment) -> Result<Self> {
        let mut conn = app.store.read().await?;
        let agent = agents::get(&mut conn, this.organization_id, this.agent_id).await?;
        let agent = agent.ok_or_else(|| Problem::not_found("agent"))?;
        let gateway = find_gateway(&mut conn, this.organization_id, this.gateway_id).await?;
        Self::again(agent, gateway, this).map_err(Problem::conflict)
    }

    /// The same of the deployment's agent and gateway where they are at hand.
    ///
    /// # Errors
    /// Why it cannot go there any more.
    pub(in crate::api) fn again(
        agent: Agent,
        gateway: Connection,
        this: &Deployment,
    ) -> std::result::Result<Self, String> {
        Self::new(agent, gateway, Some(&this.environment)).map_err(|fault| match fault {
            NoEnvironment::Stored(detail) => detail,
            NoEnvironment::Asked(why) => {
                format!("The deployment was for the environment `{}`: {why}. Deploy the agent anew.", this.environment)
            }
        })
    }

    /// What is asked of policies before anything is deployed there.
    pub(in crate::api) fn question(&self) -> (Action, Resource, Context) {
        let mut gateway = self.gateway.resource();
        // In the one spelling, if it has one: it is the deployment's.
        if gateway.environment.as_ref().is_some_and(|stored| !stored.trim().is_empty()) {
            gateway.environment = Some(self.environment.clone());
        }
        let context =
            Context { gateway: Some(gateway), environment: Some(self.environment.clone()), ..Context::default() };
        (Action::AgentDeploy, self.agent.resource(), context)
    }

    /// Refuses unless the caller may deploy there, and the gateway takes deployments.
    ///
    /// # Errors
    /// 403, 409.
    pub(in crate::api) async fn allow(&self, app: &App, caller: &Principal) -> Result<()> {
        let (action, resource, context) = self.question();
        app.require(caller, action, &resource, &context).await?;
        if self.gateway.active {
            Ok(())
        } else {
            Err(Problem::conflict("This gateway is switched off: set `active` to true first."))
        }
    }

    /// One version of the agent; the newest if no number is given.
    ///
    /// # Errors
    /// 404, or 409 if it has none yet.
    pub(super) async fn version(&self, app: &App, number: Option<i64>) -> Result<Version> {
        let (organization, agent) = (self.agent.organization_id, self.agent.id);
        let found = versions::get(&mut app.store.read().await?, organization, agent, number).await?;
        found.map(|(version, _)| version).ok_or_else(|| no_version(agent, number))
    }
}

/// A deployment to be made.
pub(super) struct Order {
    pub(super) to: Destination,
    pub(super) version: Version,
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
        quota::room(app, &mut tx, caller.organization_id, Counted::WaitingJobs).await?;
        let id: DeploymentId = app.clock.id();
        let payload = Payload { deployment_id: id };
        let job_id = jobs::enqueue(&mut tx, &app.clock, caller.organization_id, JobKind::Deploy, payload).await?;
        let deployment = Deployment {
            id,
            organization_id: caller.organization_id,
            agent_id: self.to.agent.id,
            agent_name: self.to.agent.name,
            workspace_id: self.to.agent.workspace_id,
            version: self.version.number,
            version_id: self.version.id,
            gateway_id: GatewayId(self.to.gateway.id),
            environment: self.to.environment,
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
