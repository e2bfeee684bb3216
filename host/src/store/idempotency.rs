//! One answer for each Idempotency-Key, written in the transaction of the change it answers.

use chrono::{DateTime, Utc};

use super::{StoreError, Tx};
use crate::domain::id::{OrganizationId, UserId};

/// What was answered before.
#[derive(sqlx::FromRow)]
pub struct Answer {
    /// Digest of the request that was answered.
    pub request: String,
    /// HTTP status.
    pub status: i64,
    /// JSON text.
    pub body: String,
    /// The revision that its ETag named, if it had one.
    pub revision: Option<i64>,
}

/// Claims the key for this transaction. A concurrent request with the same key waits here until this one ends.
///
/// # Errors
/// As the database says.
pub async fn claim(
    tx: &mut Tx,
    organization: OrganizationId,
    user: UserId,
    key: &str,
    request: &str,
    now: DateTime<Utc>,
) -> Result<Option<Answer>, StoreError> {
    let insert = "INSERT INTO idempotency_keys (organization_id, user_id, key, request, status, body, created_at)
                  VALUES ($1, $2, $3, $4, 0, '', $5) ON CONFLICT DO NOTHING";
    let fresh = crate::on!(tx, |c| {
        let insert = sqlx::query(insert).bind(organization).bind(user).bind(key).bind(request).bind(now);
        insert.execute(c).await?.rows_affected() == 1
    });
    if fresh {
        return Ok(None);
    }
    let select = "SELECT request, status, body, revision FROM idempotency_keys WHERE organization_id = $1 AND user_id = $2 AND key = $3";
    let found =
        crate::on!(tx, |c| { sqlx::query_as(select).bind(organization).bind(user).bind(key).fetch_one(c).await })?;
    Ok(Some(found))
}

/// Stores the answer.
///
/// # Errors
/// As the database says.
pub async fn answer(
    tx: &mut Tx,
    organization: OrganizationId,
    user: UserId,
    key: &str,
    (status, revision): (u16, Option<i64>),
    body: &str,
) -> Result<(), StoreError> {
    let update = "UPDATE idempotency_keys SET status = $4, body = $5, revision = $6 WHERE organization_id = $1 AND user_id = $2 AND key = $3";
    crate::on!(tx, |c| {
        let update = sqlx::query(update)
            .bind(organization)
            .bind(user)
            .bind(key)
            .bind(i64::from(status))
            .bind(body)
            .bind(revision);
        update.execute(c).await.map(drop)
    })?;
    Ok(())
}

/// Forgets answers given before `before`; at most `limit`. Returns how many.
///
/// # Errors
/// As the database says.
pub async fn forget(tx: &mut Tx, before: DateTime<Utc>, limit: i64) -> Result<u64, StoreError> {
    let delete = "DELETE FROM idempotency_keys WHERE (organization_id, user_id, key) IN
                  (SELECT organization_id, user_id, key FROM idempotency_keys WHERE created_at < $1 LIMIT $2)";
    Ok(crate::on!(tx, |c| sqlx::query(delete).bind(before).bind(limit).execute(c).await?.rows_affected()))
}
