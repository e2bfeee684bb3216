//! The audit chain's tables.

use super::{Connection, StoreError, Tx};
use crate::domain::{
    audit::{Event, GENESIS},
    id::OrganizationId,
};

/// Locks the organization's chain until the transaction ends, and returns its last sequence and hash.
///
/// # Errors
/// As the database says.
pub async fn lock_head(tx: &mut Tx, organization: OrganizationId) -> Result<(i64, String), StoreError> {
    let sql = match tx {
        Tx::Sqlite(_) => "SELECT sequence, hash FROM audit_heads WHERE organization_id = $1",
        Tx::Postgres(_) => "SELECT sequence, hash FROM audit_heads WHERE organization_id = $1 FOR UPDATE",
    };
    Ok(crate::on!(tx, |c| sqlx::query_as(sql).bind(organization).fetch_one(c).await)?)
}

/// Begins a new organization's chain.
///
/// # Errors
/// As the database says.
pub async fn begin_chain(tx: &mut Tx, organization: OrganizationId) -> Result<(), StoreError> {
    let sql = "INSERT INTO audit_heads (organization_id, sequence, hash) VALUES ($1, 0, $2)";
    crate::on!(tx, |c| sqlx::query(sql).bind(organization).bind(GENESIS).execute(c).await.map(drop))?;
    Ok(())
}

/// Appends an event; a trigger moves the head along, and refuses an event that does not follow it.
///
/// # Errors
/// As the database says.
pub async fn append(tx: &mut Tx, event: &Event) -> Result<(), StoreError> {
    let sql = "INSERT INTO audit_events (organization_id, sequence, id, occurred_at, actor, action, target, outcome, details, hash)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    crate::on!(tx, |c| sqlx::query(sql)
        .bind(event.organization_id)
        .bind(event.sequence)
        .bind(event.id)
        .bind(event.occurred_at)
        .bind(&event.actor)
        .bind(&event.action)
        .bind(&event.target)
        .bind(event.outcome)
        .bind(&event.details)
        .bind(&event.hash)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// Events after `after`, in the chain's order, at most `limit`.
///
/// # Errors
/// As the database says.
pub async fn after(
    conn: &mut impl Connection,
    organization: OrganizationId,
    after: i64,
    limit: i64,
) -> Result<Vec<Event>, StoreError> {
    let sql = "SELECT id, organization_id, sequence, occurred_at, actor, action, target, outcome, details, hash
               FROM audit_events WHERE organization_id = $1 AND sequence > $2 ORDER BY sequence LIMIT $3";
    Ok(crate::on!(conn, |c| sqlx::query_as(sql).bind(organization).bind(after).bind(limit).fetch_all(c).await)?)
}
