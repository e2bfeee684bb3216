//! How far each audit sink has got, and who delivers to it.
//!
//! The row of a sink is made by a trigger when the sink is: it begins where the organization's chain ends then.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{Connection, StoreError, Tx, one};
use crate::{
    domain::id::{AuditSinkId, OrganizationId},
    on,
};

/// A sink's place in the chain.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Cursor {
    /// Whose chain.
    pub organization_id: OrganizationId,
    /// The sink.
    pub sink_id: AuditSinkId,
    /// The last event that the far side has stored.
    pub sequence: i64,
    /// Failures in a row.
    pub attempt: i64,
    /// Counts who held it: a write under an older fence is refused.
    pub fence: i64,
}

/// How far an audit sink has got, and how it is doing.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[schema(as = AuditSinkDelivery, example = json!({
    "sink_id": "01932f90-6b2e-7a17-8c5d-4f1e0b9a3d72",
    "delivered_sequence": 40,
    "head_sequence": 42,
    "lag": 2,
    "failures": 1,
    "last_error": "collector.example.com answered 503",
    "next_attempt_at": "2026-11-27T10:40:07.310000Z",
    "delivered_at": "2026-11-27T10:39:58.002417Z"
}))]
pub struct Delivery {
    /// The audit sink.
    pub sink_id: AuditSinkId,
    /// The place in the chain of the last event that the far side has stored. A new sink begins where the chain ends then.
    #[schema(minimum = 0)]
    pub delivered_sequence: i64,
    /// The place of the chain's last event.
    #[schema(minimum = 0)]
    pub head_sequence: i64,
    /// How many events are still to be delivered.
    #[schema(minimum = 0)]
    pub lag: i64,
    /// Failures in a row; 0 while delivery works.
    #[schema(minimum = 0)]
    pub failures: i64,
    /// Why the last delivery failed; null while delivery works.
    #[schema(required = true, max_length = 2000)]
    pub last_error: Option<String>,
    /// When delivery is tried again; null while it works.
    #[serde(serialize_with = "crate::clock::micros")]
    #[schema(required = true)]
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// When events were last delivered; null if none have been.
    #[serde(serialize_with = "crate::clock::micros")]
    #[schema(required = true)]
    pub delivered_at: Option<DateTime<Utc>>,
}

/// How a sink is doing; none if there is no such sink in the organization.
///
/// # Errors
/// As the database says.
pub async fn state(
    c: &mut impl Connection,
    organization: OrganizationId,
    sink: AuditSinkId,
) -> Result<Option<Delivery>, StoreError> {
    let sql = "SELECT d.sink_id, d.sequence AS delivered_sequence, h.sequence AS head_sequence,
                      h.sequence - d.sequence AS lag, d.attempt AS failures, d.last_error,
                      CASE WHEN d.attempt > 0 THEN d.next_at END AS next_attempt_at, d.delivered_at
               FROM audit_deliveries AS d JOIN audit_heads AS h ON h.organization_id = d.organization_id
               WHERE d.organization_id = $1 AND d.sink_id = $2";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(sink).fetch_optional(c).await)?)
}

/// Active sinks that have something to be delivered, whose time has come and which nobody holds; the longest waiting first,
/// and `each` of one organization at the most, with those that are delivered to already: slow sinks of one tenant are not to
/// take the places of all others.
///
/// # Errors
/// As the database says.
pub async fn due(
    c: &mut impl Connection,
    now: DateTime<Utc>,
    limit: i64,
    each: i64,
) -> Result<Vec<(OrganizationId, AuditSinkId)>, StoreError> {
    let sql = "SELECT organization_id, sink_id FROM (
                   SELECT d.organization_id, d.sink_id, d.next_at,
                          ROW_NUMBER() OVER (PARTITION BY d.organization_id ORDER BY d.next_at) AS place,
                          (SELECT COUNT(*) FROM audit_deliveries AS o
                           WHERE o.organization_id = d.organization_id AND o.lease_until > $1) AS held
                   FROM audit_deliveries AS d
                   JOIN audit_heads AS h ON h.organization_id = d.organization_id
                   JOIN connections AS k ON k.organization_id = d.organization_id AND k.id = d.sink_id
                   WHERE k.active AND h.sequence > d.sequence AND d.next_at <= $1
                     AND (d.lease_until IS NULL OR d.lease_until <= $1)
               ) AS waiting
               WHERE place + held <= $3 ORDER BY next_at LIMIT $2";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(now).bind(limit).bind(each).fetch_all(c).await)?)
}

/// Takes a sink, unless somebody else holds it.
///
/// # Errors
/// As the database says.
pub async fn claim(
    tx: &mut Tx,
    organization: OrganizationId,
    sink: AuditSinkId,
    owner: &str,
    now: DateTime<Utc>,
    lease_until: DateTime<Utc>,
) -> Result<Option<Cursor>, StoreError> {
    let sql = "UPDATE audit_deliveries SET lease_owner = $3, lease_until = $4, fence = fence + 1
               WHERE organization_id = $1 AND sink_id = $2 AND next_at <= $5 AND (lease_until IS NULL OR lease_until <= $5)
               RETURNING organization_id, sink_id, sequence, attempt, fence";
    Ok(on!(tx, |c| sqlx::query_as(sql)
        .bind(organization)
        .bind(sink)
        .bind(owner)
        .bind(lease_until)
        .bind(now)
        .fetch_optional(c)
        .await)?)
}

/// Keeps a sink for longer.
///
/// # Errors
/// [`StoreError::Stale`] if it is no longer held under this fence.
pub async fn renew(tx: &mut Tx, cursor: &Cursor, lease_until: DateTime<Utc>) -> Result<(), StoreError> {
    let sql = "UPDATE audit_deliveries SET lease_until = $4 WHERE organization_id = $1 AND sink_id = $2 AND fence = $3";
    one(on!(tx, |c| sqlx::query(sql)
        .bind(cursor.organization_id)
        .bind(cursor.sink_id)
        .bind(cursor.fence)
        .bind(lease_until)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?)
}

/// Moves a held sink on to `sequence`.
///
/// # Errors
/// [`StoreError::Stale`] if it is no longer held under this fence.
pub async fn delivered(
    tx: &mut Tx,
    cursor: &Cursor,
    sequence: i64,
    now: DateTime<Utc>,
    lease_until: DateTime<Utc>,
) -> Result<(), StoreError> {
    let sql =
        "UPDATE audit_deliveries SET sequence = $4, attempt = 0, last_error = NULL, delivered_at = $5, next_at = $5,
                      lease_until = $6
               WHERE organization_id = $1 AND sink_id = $2 AND fence = $3";
    one(on!(tx, |c| sqlx::query(sql)
        .bind(cursor.organization_id)
        .bind(cursor.sink_id)
        .bind(cursor.fence)
        .bind(sequence)
        .bind(now)
        .bind(lease_until)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?)
}

/// Gives a held sink back after a failure, to be tried again from `next_at`.
///
/// # Errors
/// [`StoreError::Stale`] if it is no longer held under this fence.
pub async fn failed(tx: &mut Tx, cursor: &Cursor, error: &str, next_at: DateTime<Utc>) -> Result<(), StoreError> {
    let sql = "UPDATE audit_deliveries SET attempt = attempt + 1, last_error = $4, next_at = $5, lease_owner = NULL,
                      lease_until = NULL
               WHERE organization_id = $1 AND sink_id = $2 AND fence = $3";
    one(on!(tx, |c| sqlx::query(sql)
        .bind(cursor.organization_id)
        .bind(cursor.sink_id)
        .bind(cursor.fence)
        .bind(error)
        .bind(next_at)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?)
}

/// Gives a held sink back without having tried it, to be tried from `next_at`.
///
/// # Errors
/// [`StoreError::Stale`] if it is no longer held under this fence.
pub async fn postponed(tx: &mut Tx, cursor: &Cursor, next_at: DateTime<Utc>) -> Result<(), StoreError> {
    let sql = "UPDATE audit_deliveries SET next_at = $4, lease_owner = NULL, lease_until = NULL
               WHERE organization_id = $1 AND sink_id = $2 AND fence = $3";
    one(on!(tx, |c| sqlx::query(sql)
        .bind(cursor.organization_id)
        .bind(cursor.sink_id)
        .bind(cursor.fence)
        .bind(next_at)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?)
}

/// Gives a held sink back.
///
/// # Errors
/// As the database says.
pub async fn release(tx: &mut Tx, cursor: &Cursor) -> Result<(), StoreError> {
    let sql = "UPDATE audit_deliveries SET lease_owner = NULL, lease_until = NULL, fence = fence + 1
               WHERE organization_id = $1 AND sink_id = $2 AND fence = $3";
    on!(tx, |c| sqlx::query(sql)
        .bind(cursor.organization_id)
        .bind(cursor.sink_id)
        .bind(cursor.fence)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// Gives back everything that a stopping host still holds.
///
/// # Errors
/// As the database says.
pub async fn release_all(tx: &mut Tx, owner: &str) -> Result<(), StoreError> {
    let sql =
        "UPDATE audit_deliveries SET lease_owner = NULL, lease_until = NULL, fence = fence + 1 WHERE lease_owner = $1";
    on!(tx, |c| sqlx::query(sql).bind(owner).execute(c).await.map(drop))?;
    Ok(())
}

/// Events that active sinks still have to get, by plugin: for the metrics.
///
/// # Errors
/// As the database says.
pub async fn lag(c: &mut impl Connection) -> Result<Vec<(String, i64)>, StoreError> {
    let sql = "SELECT k.plugin, CAST(SUM(h.sequence - d.sequence) AS BIGINT)
               FROM audit_deliveries AS d
               JOIN audit_heads AS h ON h.organization_id = d.organization_id
               JOIN connections AS k ON k.organization_id = d.organization_id AND k.id = d.sink_id
               WHERE k.active GROUP BY k.plugin";
    Ok(on!(c, |c| sqlx::query_as(sql).fetch_all(c).await)?)
}

#[cfg(test)]
mod tests;
