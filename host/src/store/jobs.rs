//! Background jobs: the queue, its leases and their fences.
//!
//! What a worker does to a job it holds is refused with [`StoreError::Stale`] once another has claimed the job since:
//! every such statement names the fence of the claim.

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::{Connection, StoreError, Tx, one};
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
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct Shown {
    /// The job.
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

/// Whether there is something to claim: a look that takes no lock.
///
/// # Errors
/// As the database says.
pub async fn due(c: &mut impl Connection, now: DateTime<Utc>) -> Result<bool, StoreError> {
    let sql = concat!(
        "SELECT EXISTS (SELECT 1 FROM jobs WHERE state = 'queued' AND run_at <= $1 AND kind IN ",
        known_kinds!(),
        ") OR EXISTS (SELECT 1 FROM jobs WHERE state = 'running' AND lease_until <= $1 AND kind IN ",
        known_kinds!(),
        ")"
    );
    let (due,) = on!(c, |c| sqlx::query_as::<_, (bool,)>(sql).bind(now).fetch_one(c).await)?;
    Ok(due)
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

/// A job that this worker now holds.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The job, with its new fence.
    pub job: Job,
    /// All attempts were used up, the last one by a worker that did not come back: to be given up, not tried again.
    pub exhausted: bool,
}

/// Takes the job that waited longest, or one whose worker let its lease end. The attempt is counted here, so that a job
/// that kills its worker is not tried forever. Of one organization no more than `each` run at once, so that none keeps the
/// workers from the others.
///
/// # Errors
/// As the database says.
pub async fn claim(
    tx: &mut Tx,
    owner: &str,
    now: DateTime<Utc>,
    lease_until: DateTime<Utc>,
    each: i64,
) -> Result<Option<Claimed>, StoreError> {
    // An abandoned job already counts among its organization's running ones: it is always taken over.
    macro_rules! candidate {
        ($lock:literal) => {
            concat!(
                "SELECT id, attempts, max_attempts FROM jobs AS j
                 WHERE ((state = 'running' AND lease_until <= $1)
                    OR (state = 'queued' AND run_at <= $1
                        AND (SELECT COUNT(*) FROM jobs AS r WHERE r.organization_id = j.organization_id
                                AND r.state = 'running' AND r.lease_until > $1) < $2))
                   AND kind IN ",
                known_kinds!(),
                " ORDER BY run_at LIMIT 1 ",
                $lock
            )
        };
    }
    let candidate = match tx {
        Tx::Sqlite(_) => candidate!(""),
        Tx::Postgres(_) => candidate!("FOR UPDATE SKIP LOCKED"),
    };
    let found: Option<(JobId, i64, i64)> =
        on!(tx, |c| sqlx::query_as(candidate).bind(now).bind(each).fetch_optional(c).await)?;
    let Some((id, attempts, max_attempts)) = found else { return Ok(None) };
    let exhausted = attempts >= max_attempts;
    let sql = columns!(
        "UPDATE jobs SET uncertain = uncertain OR state = 'running', state = 'running', attempts = $2, fence = fence + 1,
                         lease_owner = $3, lease_until = $4, updated_at = $5
         WHERE id = $1 RETURNING",
        ""
    );
    let counted = if exhausted { attempts } else { attempts + 1 };
    let job = on!(tx, |c| {
        sqlx::query_as(sql).bind(id).bind(counted).bind(owner).bind(lease_until).bind(now).fetch_one(c).await
    });
    match job {
        Ok(job) => Ok(Some(Claimed { job, exhausted })),
        Err(error @ (sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_))) => {
            set_aside(tx, id, &error, now).await?;
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// A job that this binary cannot read would be claimed first, again and again, and stop all others: it has failed.
async fn set_aside(tx: &mut Tx, id: JobId, error: &sqlx::Error, now: DateTime<Utc>) -> Result<(), StoreError> {
    tracing::error!(job = %id, %error, "a job cannot be read and is set aside as failed");
    let sql =
        "UPDATE jobs SET state = 'failed', last_error = $2, updated_at = $3, finished_at = $3, lease_owner = NULL,
                               lease_until = NULL
               WHERE id = $1";
    let why = "this version of the server cannot read the job";
    on!(tx, |c| sqlx::query(sql).bind(id).bind(why).bind(now).execute(c).await.map(drop))?;
    Ok(())
}

/// Locks a held job until the transaction ends and returns it as it is now: the first statement of every transaction in
/// which a worker writes.
///
/// # Errors
/// [`StoreError::Stale`] if it is no longer held under this fence.
pub async fn hold(tx: &mut Tx, held: &Job, now: DateTime<Utc>) -> Result<Job, StoreError> {
    let sql = columns!(
        "UPDATE jobs SET updated_at = $4
         WHERE organization_id = $1 AND id = $2 AND fence = $3 AND state = 'running' RETURNING",
        ""
    );
    let job = on!(tx, |c| {
        sqlx::query_as(sql).bind(held.organization_id).bind(held.id).bind(held.fence).bind(now).fetch_optional(c).await
    })?;
    job.ok_or(StoreError::Stale)
}

/// Keeps a held job for longer.
///
/// # Errors
/// [`StoreError::Stale`] if it is no longer held under this fence.
pub async fn renew(tx: &mut Tx, held: &Job, lease_until: DateTime<Utc>) -> Result<(), StoreError> {
    let sql = "UPDATE jobs SET lease_until = $4
               WHERE organization_id = $1 AND id = $2 AND fence = $3 AND state = 'running'";
    one(on!(tx, |c| sqlx::query(sql)
        .bind(held.organization_id)
        .bind(held.id)
        .bind(held.fence)
        .bind(lease_until)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?)
}

/// Ends a held job.
///
/// # Errors
/// [`StoreError::Stale`] if it is no longer held under this fence.
pub async fn finish(
    tx: &mut Tx,
    held: &Job,
    state: JobState,
    error: Option<&str>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let sql = "UPDATE jobs SET state = $4, last_error = $5, updated_at = $6, finished_at = $6, lease_owner = NULL,
                               lease_until = NULL
               WHERE organization_id = $1 AND id = $2 AND fence = $3 AND state = 'running'";
    one(on!(tx, |c| sqlx::query(sql)
        .bind(held.organization_id)
        .bind(held.id)
        .bind(held.fence)
        .bind(state)
        .bind(error)
        .bind(now)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?)
}

/// Puts a held job back, to be tried again from `run_at`; `uncertain` if the attempt may have reached the far side.
///
/// # Errors
/// [`StoreError::Stale`] if it is no longer held under this fence.
pub async fn later(
    tx: &mut Tx,
    held: &Job,
    run_at: DateTime<Utc>,
    error: &str,
    uncertain: bool,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let sql = "UPDATE jobs SET state = 'queued', run_at = $4, last_error = $5, updated_at = $6, lease_owner = NULL,
                               lease_until = NULL, uncertain = uncertain OR $7
               WHERE organization_id = $1 AND id = $2 AND fence = $3 AND state = 'running'";
    one(on!(tx, |c| sqlx::query(sql)
        .bind(held.organization_id)
        .bind(held.id)
        .bind(held.fence)
        .bind(run_at)
        .bind(error)
        .bind(now)
        .bind(uncertain)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?)
}

/// Takes back that an attempt was counted when this held job was claimed: it did not come to one.
///
/// # Errors
/// [`StoreError::Stale`] if it is no longer held under this fence.
pub async fn uncount(tx: &mut Tx, held: &Job) -> Result<(), StoreError> {
    let sql = "UPDATE jobs SET attempts = attempts - 1
               WHERE organization_id = $1 AND id = $2 AND fence = $3 AND state = 'running' AND attempts > 0";
    one(on!(tx, |c| sqlx::query(sql)
        .bind(held.organization_id)
        .bind(held.id)
        .bind(held.fence)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?)
}

/// Gives back everything a stopping worker still holds. The attempts it cut short are not counted, and the fence moves on,
/// so that none of them can still write. Returns how many.
///
/// # Errors
/// As the database says.
pub async fn release(tx: &mut Tx, owner: &str, now: DateTime<Utc>) -> Result<u64, StoreError> {
    let sql = "UPDATE jobs SET state = 'queued', run_at = $2, updated_at = $2, lease_owner = NULL, lease_until = NULL,
                               attempts = attempts - 1, fence = fence + 1, uncertain = TRUE
               WHERE state = 'running' AND lease_owner = $1";
    Ok(on!(tx, |c| sqlx::query(sql).bind(owner).bind(now).execute(c).await.map(|done| done.rows_affected()))?)
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
