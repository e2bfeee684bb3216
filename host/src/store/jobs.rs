//! Background jobs: the queue, and what people see of it and do to it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::{Connection, StoreError, Tx};
use crate::{
    domain::{
        id::{JobId, OrganizationId, UserId, WorkspaceId},
        job::{Job, JobKind, JobState, Payload},
    },
    on,
};

macro_rules! columns {
    ($before:literal, $($after:tt)*) => {
        concat!(
            $before,
            " id, organization_id, kind, payload, state, run_at, attempts, max_attempts, cancel_requested, uncertain,
              lease_owner, lease_until, fence, last_error, created_at, updated_at, finished_at ",
            $($after)*
        )
    };
}

/// The kinds that this binary knows, for a condition in SQL: a newer host's may be in the table too, and are left to it.
macro_rules! known_kinds {
    () => {
        "('deployment.deploy', 'deployment.undeploy')"
    };
}

// Behind the macros, which it uses.
mod lease;

pub use lease::{Claimed, claim, due, finish, hold, later, release, renew, uncount};

/// A job to be done.
pub struct NewJob {
    /// Its id.
    pub id: JobId,
    /// Whose it is.
    pub organization_id: OrganizationId,
    /// What it does.
    pub kind: JobKind,
    /// What it works on.
    pub payload: Payload,
    /// Attempts at the most.
    pub max_attempts: i64,
    /// Not before this time.
    pub run_at: DateTime<Utc>,
    /// Now.
    pub now: DateTime<Utc>,
}

/// Adds a job, in the transaction of the change that causes it.
///
/// # Errors
/// As the database says.
pub async fn insert(tx: &mut Tx, job: &NewJob) -> Result<(), StoreError> {
    let sql = "INSERT INTO jobs (id, organization_id, kind, payload, subject_id, state, run_at, max_attempts, created_at, updated_at)
               VALUES ($1, $2, $3, $4, $8, 'queued', $5, $6, $7, $7)";
    on!(tx, |c| sqlx::query(sql)
        .bind(job.id)
        .bind(job.organization_id)
        .bind(job.kind)
        .bind(sqlx::types::Json(job.payload))
        .bind(job.run_at)
        .bind(job.max_attempts)
        .bind(job.now)
        .bind(job.payload.deployment_id)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// One job.
///
/// # Errors
/// As the database says.
pub async fn get(c: &mut impl Connection, organization: OrganizationId, id: JobId) -> Result<Option<Job>, StoreError> {
    let sql = columns!("SELECT", "FROM jobs WHERE organization_id = $1 AND id = $2 AND kind IN ", known_kinds!());
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(id).fetch_optional(c).await)?)
}

/// One job, locked until the transaction ends.
///
/// # Errors
/// As the database says.
pub async fn lock(tx: &mut Tx, organization: OrganizationId, id: JobId) -> Result<Option<Job>, StoreError> {
    macro_rules! sql {
        ($lock:literal) => {
            columns!("SELECT", "FROM jobs WHERE organization_id = $1 AND id = $2 AND kind IN ", known_kinds!(), $lock)
        };
    }
    let sql = match tx {
        Tx::Sqlite(_) => sql!(""),
        Tx::Postgres(_) => sql!(" FOR UPDATE"),
    };
    Ok(on!(tx, |c| sqlx::query_as(sql).bind(organization).bind(id).fetch_optional(c).await)?)
}

/// A job with what policies see of it: the deployment it works on.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct Shown {
    /// The job: all that is shown.
    #[serde(flatten)]
    #[sqlx(flatten)]
    pub job: Job,
    /// The deployment's agent.
    #[serde(skip)]
    pub agent_name: String,
    /// The agent's workspace.
    #[serde(skip)]
    pub workspace_id: WorkspaceId,
    /// The deployment's environment.
    #[serde(skip)]
    pub environment: String,
    /// Who asked for the deployment.
    #[serde(skip)]
    pub created_by: UserId,
}

macro_rules! shown {
    ($($after:tt)*) => {
        concat!(
            "SELECT j.id, j.organization_id, j.kind, j.payload, j.state, j.run_at, j.attempts, j.max_attempts,
                    j.cancel_requested, j.uncertain, j.lease_owner, j.lease_until, j.fence, j.last_error, j.created_at, j.updated_at,
                    j.finished_at, a.name AS agent_name, a.workspace_id, d.environment, d.created_by
             FROM jobs AS j
             JOIN deployments AS d ON d.organization_id = j.organization_id AND d.id = j.subject_id
             JOIN agents AS a ON a.organization_id = d.organization_id AND a.id = d.agent_id ",
            $($after)*
        )
    };
}

/// One job, to be shown.
///
/// # Errors
/// As the database says.
pub async fn show(
    c: &mut impl Connection,
    organization: OrganizationId,
    id: JobId,
) -> Result<Option<Shown>, StoreError> {
    let sql = shown!("WHERE j.organization_id = $1 AND j.id = $2 AND j.kind IN ", known_kinds!());
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(id).fetch_optional(c).await)?)
}

/// Jobs after `after`, oldest first, of one state or kind or of all, to be shown.
///
/// # Errors
/// As the database says.
pub async fn list(
    c: &mut impl Connection,
    organization: OrganizationId,
    state: Option<JobState>,
    kind: Option<JobKind>,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Shown>, StoreError> {
    let sql = shown!(
        "WHERE j.organization_id = $1 AND ($2 = '' OR j.state = $2) AND ($3 = '' OR j.kind = $3) AND j.id > $4
           AND j.kind IN ",
        known_kinds!(),
        " ORDER BY j.id LIMIT $5"
    );
    let (state, kind) = (state.map_or("", JobState::as_str), kind.map_or("", JobKind::as_str));
    Ok(on!(c, |c| {
        sqlx::query_as(sql).bind(organization).bind(state).bind(kind).bind(after).bind(limit).fetch_all(c).await
    })?)
}

/// Jobs of kinds that this binary does not know, by kind: they wait for a host that does.
///
/// # Errors
/// As the database says.
pub async fn unknown(c: &mut impl Connection) -> Result<Vec<(String, i64)>, StoreError> {
    let sql = concat!(
        "SELECT kind, COUNT(*) FROM jobs WHERE state IN ('queued', 'running') AND kind NOT IN ",
        known_kinds!(),
        " GROUP BY kind ORDER BY kind LIMIT 20"
    );
    Ok(on!(c, |c| sqlx::query_as(sql).fetch_all(c).await)?)
}

/// Calls off a job: at once if it waits; if it runs, the attempt is told to undo what it does.
///
/// # Errors
/// As the database says.
pub async fn cancel(
    tx: &mut Tx,
    organization: OrganizationId,
    id: JobId,
    now: DateTime<Utc>,
) -> Result<Option<Job>, StoreError> {
    // Where an attempt may have left something at the far side, the job runs again, to clean up.
    let sql = columns!(
        "UPDATE jobs SET state = CASE WHEN state = 'queued' AND NOT uncertain THEN 'cancelled' ELSE state END,
                         finished_at = CASE WHEN state = 'queued' AND NOT uncertain THEN $3 ELSE finished_at END,
                         max_attempts = CASE WHEN max_attempts < attempts + 3 THEN attempts + 3 ELSE max_attempts END,
                         run_at = CASE WHEN state = 'queued' THEN $3 ELSE run_at END,
                         cancel_requested = TRUE, updated_at = $3
         WHERE organization_id = $1 AND id = $2 AND state IN ('queued', 'running') RETURNING",
        ""
    );
    Ok(on!(tx, |c| sqlx::query_as(sql).bind(organization).bind(id).bind(now).fetch_optional(c).await)?)
}

/// Lets a failed job begin again, with all its attempts, or a waiting one run at once.
///
/// # Errors
/// As the database says.
pub async fn retry(
    tx: &mut Tx,
    organization: OrganizationId,
    id: JobId,
    now: DateTime<Utc>,
) -> Result<Option<Job>, StoreError> {
    let sql = columns!(
        "UPDATE jobs SET attempts = CASE WHEN state = 'failed' THEN 0 ELSE attempts END, state = 'queued', run_at = $3,
                         updated_at = $3, finished_at = NULL
         WHERE organization_id = $1 AND id = $2 AND state IN ('failed', 'queued') RETURNING",
        ""
    );
    Ok(on!(tx, |c| sqlx::query_as(sql).bind(organization).bind(id).bind(now).fetch_optional(c).await)?)
}

/// Removes jobs that were over before a time, at most `limit`, but for failed ones that somebody may still have to repeat: their
/// deployment is not over. Returns how many.
///
/// # Errors
/// As the database says.
pub async fn prune(tx: &mut Tx, before: DateTime<Utc>, limit: i64) -> Result<u64, StoreError> {
    let sql = "DELETE FROM jobs WHERE id IN
                   (SELECT id FROM jobs WHERE finished_at IS NOT NULL AND finished_at < $1
                       AND NOT (state = 'failed' AND EXISTS (SELECT 1 FROM deployments AS d
                                WHERE d.organization_id = jobs.organization_id AND d.id = jobs.subject_id
                                  AND d.finished_at IS NULL))
                    ORDER BY finished_at LIMIT $2)";
    Ok(on!(tx, |c| sqlx::query(sql).bind(before).bind(limit).execute(c).await.map(|done| done.rows_affected()))?)
}

#[cfg(test)]
mod tests;
