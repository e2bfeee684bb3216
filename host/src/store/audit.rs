//! The audit chain's tables.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use moka::sync::Cache;

use super::{Connection, StoreError, Tx};
use crate::domain::{
    audit::{Event, GENESIS, Outcome},
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

/// The last event of each organization's chain, as far as this host knows: a guess that [`append_after`] tests.
#[derive(Clone)]
pub struct Heads(Cache<OrganizationId, Arc<(i64, String)>>);

/// Organizations whose last event is remembered.
const REMEMBERED: u64 = 10_000;

impl Default for Heads {
    fn default() -> Self {
        Self(Cache::new(REMEMBERED))
    }
}

impl Heads {
    /// The sequence and hash that the chain probably ends with.
    pub fn guess(&self, organization: OrganizationId) -> Option<Arc<(i64, String)>> {
        self.0.get(&organization)
    }

    /// This was appended. Whether it will be committed is not known yet: the next guess may be wrong.
    pub fn appended(&self, event: &Event) {
        self.0.insert(event.organization_id, Arc::new((event.sequence, event.hash.clone())));
    }
}

macro_rules! append_after {
    ($lock:literal) => {
        concat!(
            "INSERT INTO audit_events (organization_id, sequence, id, occurred_at, actor, action, target, outcome, details, hash)
             SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10 FROM audit_heads
             WHERE organization_id = $1 AND sequence = $2 - 1 AND hash = $11",
            $lock
        )
    };
}

/// Appends an event if the chain ends with `previous`, and locks the chain until the transaction ends; tells whether it
/// did. A trigger moves the head along. Who waits for another's lock is told of what the other did.
///
/// # Errors
/// As the database says.
pub async fn append_after(tx: &mut Tx, event: &Event, previous: &str) -> Result<bool, StoreError> {
    let sql = match tx {
        Tx::Sqlite(_) => append_after!(""),
        Tx::Postgres(_) => append_after!(" FOR UPDATE"),
    };
    Ok(crate::on!(tx, |c| sqlx::query(sql)
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
        .bind(previous)
        .execute(c)
        .await?
        .rows_affected())
        == 1)
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

/// The chain's last sequence and hash, without a lock; none if there is no such organization.
///
/// # Errors
/// As the database says.
pub async fn head(
    conn: &mut impl Connection,
    organization: OrganizationId,
) -> Result<Option<(i64, String)>, StoreError> {
    let sql = "SELECT sequence, hash FROM audit_heads WHERE organization_id = $1";
    Ok(crate::on!(conn, |c| sqlx::query_as(sql).bind(organization).fetch_optional(c).await)?)
}

/// Whether there is an organization, or anything in its chain.
///
/// # Errors
/// As the database says.
pub async fn is_expected(conn: &mut impl Connection, organization: OrganizationId) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM organizations WHERE id = $1)
                   OR EXISTS (SELECT 1 FROM audit_events WHERE organization_id = $1)";
    Ok(crate::on!(conn, |c| sqlx::query_scalar(sql).bind(organization).fetch_one(c).await)?)
}

/// Every organization that has a chain, or should have one: a chain that was removed, or only its head, is not to go unnoticed.
///
/// # Errors
/// As the database says.
pub async fn chains(conn: &mut impl Connection) -> Result<Vec<OrganizationId>, StoreError> {
    let sql = "SELECT organization_id FROM audit_heads UNION SELECT organization_id FROM audit_events
               UNION SELECT id AS organization_id FROM organizations ORDER BY organization_id";
    let rows: Vec<(OrganizationId,)> = crate::on!(conn, |c| sqlx::query_as(sql).fetch_all(c).await)?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

/// Which events to show; what is absent does not matter.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Exactly this action, or with a `*` at its end every action that begins so.
    pub action: Option<String>,
    /// Exactly this actor.
    pub actor: Option<String>,
    /// Exactly this target.
    pub target: Option<String>,
    /// This outcome.
    pub outcome: Option<Outcome>,
    /// At this time or later.
    pub since: Option<DateTime<Utc>>,
    /// Before this time.
    pub until: Option<DateTime<Utc>>,
}

/// Events that match, with a sequence after `after` and up to `up_to`, in the chain's order, at most `limit`.
///
/// # Errors
/// As the database says.
pub async fn search(
    conn: &mut impl Connection,
    organization: OrganizationId,
    filter: &Filter,
    after: i64,
    up_to: i64,
    limit: i64,
) -> Result<Vec<Event>, StoreError> {
    let sql = "SELECT id, organization_id, sequence, occurred_at, actor, action, target, outcome, details, hash
               FROM audit_events
               WHERE organization_id = $1 AND sequence > $2 AND sequence <= $3
                 AND ($4 = '' OR action = $4) AND SUBSTR(action, 1, LENGTH($5)) = $5
                 AND ($6 = '' OR actor = $6) AND ($7 = '' OR target = $7) AND ($8 = '' OR outcome = $8)
                 AND ($9 IS NULL OR occurred_at >= $9) AND ($10 IS NULL OR occurred_at < $10)
               ORDER BY sequence LIMIT $11";
    let action = filter.action.as_deref().unwrap_or_default();
    let (action, prefix) = match action.strip_suffix('*') {
        Some(prefix) => ("", prefix),
        None => (action, ""),
    };
    Ok(crate::on!(conn, |c| sqlx::query_as(sql)
        .bind(organization)
        .bind(after)
        .bind(up_to)
        .bind(action)
        .bind(prefix)
        .bind(filter.actor.as_deref().unwrap_or_default())
        .bind(filter.target.as_deref().unwrap_or_default())
        .bind(filter.outcome.map_or("", Outcome::as_str))
        .bind(filter.since)
        .bind(filter.until)
        .bind(limit)
        .fetch_all(c)
        .await)?)
}
