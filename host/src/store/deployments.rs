//! Deployments.

mod events;
mod removal;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use self::events::add_event;
pub use self::{
    events::{events, progress, prune_events},
    removal::{Kept, Of, forget, kept, prune},
};
use super::{Connection, StoreError, Tx};
use crate::{
    domain::{
        deployment::{Deployment, DeploymentState, EventKind, Progress},
        id::{AgentId, DeploymentId, GatewayId, JobId, OrganizationId, UserId, WorkspaceId},
    },
    on,
};

macro_rules! select {
    ($after:literal) => {
        concat!(
            "SELECT d.id, d.organization_id, d.agent_id, a.name AS agent_name, a.workspace_id, d.version_id, d.version,
                    d.gateway_id, d.environment, d.status, d.job_id, d.registration_id, d.endpoint, d.progress_percent,
                    d.progress_message, d.error, d.rollback_of, d.created_by, d.created_at, d.updated_at, d.activated_at,
                    d.finished_at
             FROM deployments AS d JOIN agents AS a ON a.organization_id = d.organization_id AND a.id = d.agent_id ",
            $after
        )
    };
}

/// Adds a deployment with the event that it is queued.
///
/// # Errors
/// [`StoreError::Reference`] if agent, version or gateway is not one of the organization's.
pub async fn insert(tx: &mut Tx, deployment: &Deployment) -> Result<(), StoreError> {
    let sql =
        "INSERT INTO deployments (id, organization_id, agent_id, version_id, version, gateway_id, environment, status,
                                        job_id, rollback_of, created_by, created_at, updated_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12)";
    on!(tx, |c| sqlx::query(sql)
        .bind(deployment.id)
        .bind(deployment.organization_id)
        .bind(deployment.agent_id)
        .bind(deployment.version_id)
        .bind(deployment.version)
        .bind(deployment.gateway_id)
        .bind(&deployment.environment)
        .bind(deployment.status)
        .bind(deployment.job_id)
        .bind(deployment.rollback_of)
        .bind(deployment.created_by)
        .bind(deployment.created_at)
        .execute(c)
        .await
        .map(drop))?;
    add_event(tx, deployment, EventKind::Status, &Progress::default(), deployment.created_at).await
}

/// One deployment.
///
/// # Errors
/// As the database says.
pub async fn get(
    c: &mut impl Connection,
    organization: OrganizationId,
    id: DeploymentId,
) -> Result<Option<Deployment>, StoreError> {
    let sql = select!("WHERE d.organization_id = $1 AND d.id = $2");
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(id).fetch_optional(c).await)?)
}

/// One deployment, locked until the transaction ends.
///
/// # Errors
/// As the database says.
pub async fn lock(
    tx: &mut Tx,
    organization: OrganizationId,
    id: DeploymentId,
) -> Result<Option<Deployment>, StoreError> {
    let sql = match tx {
        Tx::Sqlite(_) => select!("WHERE d.organization_id = $1 AND d.id = $2"),
        Tx::Postgres(_) => select!("WHERE d.organization_id = $1 AND d.id = $2 FOR UPDATE OF d"),
    };
    Ok(on!(tx, |c| sqlx::query_as(sql).bind(organization).bind(id).fetch_optional(c).await)?)
}

/// Which deployments to list; what is absent does not matter.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this agent.
    pub agent: Option<AgentId>,
    /// To this gateway.
    pub gateway: Option<GatewayId>,
    /// In this state.
    pub status: Option<DeploymentState>,
}

/// Deployments after `after`, oldest first.
///
/// # Errors
/// As the database says.
pub async fn list(
    c: &mut impl Connection,
    organization: OrganizationId,
    filter: &Filter,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Deployment>, StoreError> {
    let sql = select!(
        "WHERE d.organization_id = $1 AND ($2 IS NULL OR d.agent_id = $2) AND ($3 IS NULL OR d.gateway_id = $3)
           AND ($4 = '' OR d.status = $4) AND d.id > $5
         ORDER BY d.id LIMIT $6"
    );
    Ok(on!(c, |c| sqlx::query_as(sql)
        .bind(organization)
        .bind(filter.agent)
        .bind(filter.gateway)
        .bind(filter.status.map_or("", DeploymentState::as_str))
        .bind(after)
        .bind(limit)
        .fetch_all(c)
        .await)?)
}

/// The deployment of the same agent that was active on the same gateway, in the same environment, before this one, with
/// another version.
///
/// # Errors
/// As the database says.
pub async fn active_before(c: &mut impl Connection, this: &Deployment) -> Result<Option<Deployment>, StoreError> {
    let sql = select!(
        "WHERE d.organization_id = $1 AND d.agent_id = $2 AND d.gateway_id = $3 AND d.id <> $4 AND d.version <> $5
           AND d.environment = $7 AND d.activated_at IS NOT NULL AND d.activated_at < $6
         ORDER BY d.activated_at DESC LIMIT 1"
    );
    Ok(on!(c, |c| sqlx::query_as(sql)
        .bind(this.organization_id)
        .bind(this.agent_id)
        .bind(this.gateway_id)
        .bind(this.id)
        .bind(this.version)
        .bind(this.activated_at.unwrap_or(this.created_at))
        .bind(&this.environment)
        .fetch_optional(c)
        .await)?)
}

/// How many deployments the organization has in each state; states without any are absent.
///
/// # Errors
/// As the database says.
pub async fn counts(
    c: &mut impl Connection,
    organization: OrganizationId,
) -> Result<Vec<(DeploymentState, i64)>, StoreError> {
    let sql = "SELECT status, COUNT(*) FROM deployments WHERE organization_id = $1 GROUP BY status";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).fetch_all(c).await)?)
}

/// Deployments that policies cannot tell apart but by which one each is, counted.
#[derive(Debug, sqlx::FromRow)]
pub struct Group {
    /// Where they stand.
    pub status: DeploymentState,
    /// The agent's workspace.
    pub workspace_id: WorkspaceId,
    /// The agent's name.
    pub agent_name: String,
    /// Into which environment.
    pub environment: String,
    /// Who asked for them.
    pub created_by: UserId,
    /// How many there are.
    pub count: i64,
}

/// The organization's deployments in groups, at most `limit` of these.
///
/// # Errors
/// As the database says.
pub async fn groups(
    c: &mut impl Connection,
    organization: OrganizationId,
    limit: i64,
) -> Result<Vec<Group>, StoreError> {
    let sql = "SELECT d.status, a.workspace_id, a.name AS agent_name, d.environment, d.created_by, COUNT(*) AS count
               FROM deployments AS d JOIN agents AS a ON a.organization_id = d.organization_id AND a.id = d.agent_id
               WHERE d.organization_id = $1
               GROUP BY d.status, a.workspace_id, a.name, d.environment, d.created_by
               ORDER BY d.status, a.workspace_id, a.name, d.environment, d.created_by LIMIT $2";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(limit).fetch_all(c).await)?)
}

/// What changes with a deployment's state; what is absent stays, but for the error.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Why it failed.
    pub error: Option<String>,
    /// What the gateway calls it.
    pub registration_id: Option<String>,
    /// Where it is reached.
    pub endpoint: Option<String>,
    /// The job that is at it from now on.
    pub job: Option<JobId>,
    /// How far it has come.
    pub progress: Option<Progress>,
}

/// Moves a deployment, which the transaction has locked, to another state, with the event that tells so.
///
/// # Errors
/// [`StoreError::Stale`] if the state it is in may not become that one.
pub async fn advance(
    tx: &mut Tx,
    deployment: &mut Deployment,
    next: DeploymentState,
    change: Change,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    if !deployment.status.may_become(next) {
        return Err(StoreError::Stale);
    }
    let before = deployment.status;
    deployment.status = next;
    deployment.updated_at = now;
    let message = change.error.clone().or(change.progress.as_ref().and_then(|p| p.message.clone()));
    deployment.error = change.error;
    deployment.progress = change.progress.unwrap_or(std::mem::take(&mut deployment.progress));
    deployment.registration_id = change.registration_id.or(deployment.registration_id.take());
    deployment.endpoint = change.endpoint.or(deployment.endpoint.take());
    deployment.job_id = change.job.unwrap_or(deployment.job_id);
    deployment.activated_at = if next == DeploymentState::Active { Some(now) } else { deployment.activated_at };
    deployment.finished_at = next.over().then_some(now);
    let sql = "UPDATE deployments SET status = $4, updated_at = $5, error = $6, registration_id = $7, endpoint = $8,
                      job_id = $9, activated_at = $10, finished_at = $11, progress_percent = $12, progress_message = $13
               WHERE organization_id = $1 AND id = $2 AND status = $3";
    let changed = on!(tx, |c| sqlx::query(sql)
        .bind(deployment.organization_id)
        .bind(deployment.id)
        .bind(before)
        .bind(deployment.status)
        .bind(deployment.updated_at)
        .bind(&deployment.error)
        .bind(&deployment.registration_id)
        .bind(&deployment.endpoint)
        .bind(deployment.job_id)
        .bind(deployment.activated_at)
        .bind(deployment.finished_at)
        .bind(deployment.progress.percent)
        .bind(&deployment.progress.message)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    if changed != 1 {
        return Err(StoreError::Stale);
    }
    let told = Progress { percent: deployment.progress.percent, message };
    add_event(tx, deployment, EventKind::Status, &told, now).await
}

/// What the gateway called a deployment that was cancelled meanwhile, and the job that removes it there.
///
/// # Errors
/// As the database says.
pub async fn set_cleanup(
    tx: &mut Tx,
    deployment: &Deployment,
    registration: &str,
    job: JobId,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let sql = "UPDATE deployments SET registration_id = $3, job_id = $4, updated_at = $5
               WHERE organization_id = $1 AND id = $2 AND status = 'cancelled'";
    on!(tx, |c| sqlx::query(sql)
        .bind(deployment.organization_id)
        .bind(deployment.id)
        .bind(registration)
        .bind(job)
        .bind(now)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}
