//! Deployments and their events.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Connection, StoreError, Tx};
use crate::{
    domain::{
        deployment::{Deployment, DeploymentEvent, DeploymentState, EventKind, Progress},
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

/// Records how far a deployment has come; with an event unless it has too many already. Does nothing once it is settled.
///
/// # Errors
/// As the database says.
pub async fn progress(
    tx: &mut Tx,
    deployment: &Deployment,
    progress: &Progress,
    error: Option<&str>,
    event: bool,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let sql = "UPDATE deployments SET progress_percent = $3, progress_message = $4, error = COALESCE($5, error), updated_at = $6
               WHERE organization_id = $1 AND id = $2 AND status IN ('running', 'stopping')";
    let changed = on!(tx, |c| sqlx::query(sql)
        .bind(deployment.organization_id)
        .bind(deployment.id)
        .bind(progress.percent)
        .bind(&progress.message)
        .bind(error)
        .bind(now)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    if changed == 1 && event {
        add_event(tx, deployment, EventKind::Progress, progress, now).await?;
    }
    Ok(())
}

async fn add_event(
    tx: &mut Tx,
    deployment: &Deployment,
    kind: EventKind,
    progress: &Progress,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let next =
        "UPDATE deployments SET events = events + 1 WHERE organization_id = $1 AND id = $2 RETURNING events, status";
    let (sequence, status): (i64, DeploymentState) =
        on!(tx, |c| { sqlx::query_as(next).bind(deployment.organization_id).bind(deployment.id).fetch_one(c).await })?;
    let sql = "INSERT INTO deployment_events (organization_id, deployment_id, sequence, kind, occurred_at, status, percent, message)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    on!(tx, |c| sqlx::query(sql)
        .bind(deployment.organization_id)
        .bind(deployment.id)
        .bind(sequence)
        .bind(kind)
        .bind(now)
        .bind(status)
        .bind(progress.percent)
        .bind(&progress.message)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// A deployment's events after `after`, in order.
///
/// # Errors
/// As the database says.
pub async fn events(
    c: &mut impl Connection,
    organization: OrganizationId,
    id: DeploymentId,
    after: i64,
    limit: i64,
) -> Result<Vec<DeploymentEvent>, StoreError> {
    let sql = "SELECT sequence, kind, occurred_at, status, percent, message FROM deployment_events
               WHERE organization_id = $1 AND deployment_id = $2 AND sequence > $3 ORDER BY sequence LIMIT $4";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(id).bind(after).bind(limit).fetch_all(c).await)?)
}

/// What is to be removed, and deployments may refer to.
#[derive(Debug, Clone, Copy)]
pub enum Of {
    /// An agent.
    Agent(AgentId),
    /// A gateway.
    Gateway(GatewayId),
    /// The organization.
    Organization,
}

/// A deployment that is not over, or that a job still has to clean up after.
#[derive(Debug, sqlx::FromRow)]
pub struct Kept {
    /// Its id.
    pub id: DeploymentId,
    /// Where it stands.
    pub status: DeploymentState,
    /// The job that is at it, or was last.
    pub job_id: JobId,
}

macro_rules! kept {
    ($of:literal) => {
        concat!(
            "SELECT id, status, job_id FROM deployments WHERE organization_id = $1 AND ",
            $of,
            " AND (status NOT IN ('failed', 'cancelled', 'stopped')
                   OR EXISTS (SELECT 1 FROM jobs AS j WHERE j.id = job_id AND j.state IN ('queued', 'running')))
             ORDER BY id LIMIT $3"
        )
    };
}

/// The deployments that keep something from being removed, oldest first.
///
/// # Errors
/// As the database says.
pub async fn kept(
    c: &mut impl Connection,
    organization: OrganizationId,
    of: Of,
    limit: i64,
) -> Result<Vec<Kept>, StoreError> {
    let (sql, id) = match of {
        Of::Agent(id) => (kept!("agent_id = $2"), id.0),
        Of::Gateway(id) => (kept!("gateway_id = $2"), id.0),
        Of::Organization => (kept!("organization_id = $2"), organization.0),
    };
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(id).bind(limit).fetch_all(c).await)?)
}

macro_rules! forget {
    ($of:literal) => {
        concat!(
            "DELETE FROM deployments WHERE organization_id = $1 AND ",
            $of,
            " AND status IN ('failed', 'cancelled', 'stopped')
              AND NOT EXISTS (SELECT 1 FROM jobs AS j WHERE j.id = job_id AND j.state IN ('queued', 'running'))"
        )
    };
}

/// Forgets deployments that are over, before what they refer to is removed; the audit trail still tells of them. Those that
/// are [`kept`] stay, and keep it ([`StoreError::Reference`] from the removal).
///
/// # Errors
/// As the database says.
pub async fn forget(tx: &mut Tx, organization: OrganizationId, of: Of) -> Result<(), StoreError> {
    let (sql, id) = match of {
        Of::Agent(id) => (forget!("agent_id = $2"), id.0),
        Of::Gateway(id) => (forget!("gateway_id = $2"), id.0),
        Of::Organization => (forget!("organization_id = $2"), organization.0),
    };
    on!(tx, |c| sqlx::query(sql).bind(organization).bind(id).execute(c).await.map(drop))?;
    Ok(())
}

/// Removes events of deployments that were over before a time, at most `limit`, but for the last one of each. Returns how many.
///
/// # Errors
/// As the database says.
pub async fn prune_events(tx: &mut Tx, before: DateTime<Utc>, limit: i64) -> Result<u64, StoreError> {
    let sql = "DELETE FROM deployment_events WHERE (deployment_id, sequence) IN
                   (SELECT e.deployment_id, e.sequence FROM deployments AS d
                    JOIN deployment_events AS e ON e.organization_id = d.organization_id AND e.deployment_id = d.id
                    WHERE d.finished_at < $1 AND e.sequence < d.events LIMIT $2)";
    Ok(on!(tx, |c| sqlx::query(sql).bind(before).bind(limit).execute(c).await.map(|done| done.rows_affected()))?)
}
