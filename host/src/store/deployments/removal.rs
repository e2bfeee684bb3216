//! What deployments keep from being removed, and forgetting those that do not.

use chrono::{DateTime, Utc};

use super::super::{Connection, StoreError, Tx};
use crate::{
    domain::{
        deployment::DeploymentState,
        id::{AgentId, DeploymentId, GatewayId, JobId, OrganizationId},
    },
    on,
};

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

/// Forgets deployments that were over before a time and were never active, at most `limit`, with their events; the audit trail still
/// tells of them. Nobody rolls back to them, or from them; of what was active once, that may
/// be done at any time. Returns how many.
///
/// # Errors
/// As the database says.
pub async fn prune_never_active(tx: &mut Tx, before: DateTime<Utc>, limit: i64) -> Result<u64, StoreError> {
    // The first line is asked again of one that somebody lets begin again meanwhile.
    let sql = "DELETE FROM deployments WHERE activated_at IS NULL AND finished_at < $1 AND id IN
                   (SELECT d.id FROM deployments AS d
                    WHERE d.activated_at IS NULL AND d.finished_at < $1
                      AND NOT EXISTS (SELECT 1 FROM jobs AS j WHERE j.id = d.job_id AND j.state IN ('queued', 'running'))
                    ORDER BY d.finished_at LIMIT $2)";
    Ok(on!(tx, |c| sqlx::query(sql).bind(before).bind(limit).execute(c).await.map(|done| done.rows_affected()))?)
}
