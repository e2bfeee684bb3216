//! What workers do to jobs: claims, their leases and their fences.
//!
//! What a worker does to a job it holds is refused with [`StoreError::Stale`] once another has claimed the job since:
//! every such statement names the fence of the claim.

use chrono::{DateTime, Utc};

use super::super::{Connection, StoreError, Tx, one};
use crate::{
    domain::{
        id::JobId,
        job::{Job, JobState},
    },
    on,
};

// Each statement goes along one of the indexes of what is queued or running. One for both would look at every job, and on SQLite while
// nobody else can write.

/// Jobs whose worker let its lease end; `$1` is now.
macro_rules! abandoned {
    ($columns:literal, $($after:tt)*) => {
        concat!(
            "SELECT ", $columns, " FROM jobs WHERE state = 'running' AND lease_until <= $1 AND kind IN ",
            known_kinds!(),
            $($after)*
        )
    };
}

/// Jobs whose time has come, of organizations with fewer than `$2` that run; `$1` is now.
macro_rules! waiting {
    ($columns:literal, $($after:tt)*) => {
        concat!(
            "SELECT ", $columns, " FROM jobs WHERE state = 'queued' AND run_at <= $1 AND kind IN ",
            known_kinds!(),
            " AND organization_id NOT IN
                 (SELECT r.organization_id FROM jobs AS r WHERE r.state = 'running' AND r.lease_until > $1
                  GROUP BY r.organization_id HAVING COUNT(*) >= $2)",
            $($after)*
        )
    };
}

pub(super) const DUE: &str = concat!("SELECT EXISTS (", abandoned!("1",), ") OR EXISTS (", waiting!("1",), ")");

/// Whether there is something that [`claim`] would take: a look that takes no lock.
///
/// # Errors
/// As the database says.
pub async fn due(c: &mut impl Connection, now: DateTime<Utc>, each: i64) -> Result<bool, StoreError> {
    Ok(on!(c, |c| sqlx::query_scalar(DUE).bind(now).bind(each).fetch_one(c).await)?)
}

/// A job that this worker now holds.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The job, with its new fence.
    pub job: Job,
    /// All attempts were used up, the last one by a worker that did not come back: to be given up, not tried again. This one was not
    /// counted.
    pub exhausted: bool,
}

/// What a claim knows of a job before it takes it: its id, its attempts, and how many it may have.
type Candidate = (JobId, i64, i64);

async fn candidate(tx: &mut Tx, now: DateTime<Utc>, each: i64) -> Result<Option<Candidate>, StoreError> {
    let (abandoned, waiting) = match tx {
        Tx::Sqlite(_) => CANDIDATES,
        Tx::Postgres(_) => LOCKED_CANDIDATES,
    };
    // It already counts among its organization's running ones: it is always taken over.
    let found: Option<Candidate> = on!(tx, |c| sqlx::query_as(abandoned).bind(now).fetch_optional(c).await)?;
    if found.is_some() {
        return Ok(found);
    }
    Ok(on!(tx, |c| sqlx::query_as(waiting).bind(now).bind(each).fetch_optional(c).await)?)
}

macro_rules! candidates {
    ($lock:literal) => {
        (
            abandoned!("id, attempts, max_attempts", " ORDER BY lease_until LIMIT 1", $lock),
            waiting!("id, attempts, max_attempts", " ORDER BY run_at LIMIT 1", $lock),
        )
    };
}

pub(super) const CANDIDATES: (&str, &str) = candidates!("");
const LOCKED_CANDIDATES: (&str, &str) = candidates!(" FOR UPDATE SKIP LOCKED");

/// Takes a job whose worker let its lease end, or the one that waited longest. The attempt is counted here, so that a job
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
    let found = candidate(tx, now, each).await?;
    let Some((id, attempts, max_attempts)) = found else { return Ok(None) };
    let exhausted = attempts >= max_attempts;
    let sql = columns!(
        "UPDATE jobs SET uncertain = uncertain OR state = 'running', state = 'running', attempts = $2, fence = fence + 1,
                         lease_owner = $3, lease_until = $4, updated_at = $5, exhausted = $6
         WHERE id = $1 RETURNING",
        ""
    );
    let counted = if exhausted { attempts } else { attempts + 1 };
    let job = on!(tx, |c| {
        let query = sqlx::query_as(sql).bind(id).bind(counted).bind(owner).bind(lease_until);
        query.bind(now).bind(exhausted).fetch_one(c).await
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

/// Gives back everything a stopping worker still holds. The attempts it cut short are not counted, unless all were used up before and it
/// was about to give the job up; and the fence moves on, so that none of them can still write. Returns how many.
///
/// # Errors
/// As the database says.
pub async fn release(tx: &mut Tx, owner: &str, now: DateTime<Utc>) -> Result<u64, StoreError> {
    let sql = "UPDATE jobs SET state = 'queued', run_at = $2, updated_at = $2, lease_owner = NULL, lease_until = NULL,
                               attempts = CASE WHEN exhausted THEN attempts ELSE attempts - 1 END, fence = fence + 1,
                               uncertain = TRUE
               WHERE state = 'running' AND lease_owner = $1";
    Ok(on!(tx, |c| sqlx::query(sql).bind(owner).bind(now).execute(c).await.map(|done| done.rows_affected()))?)
}
