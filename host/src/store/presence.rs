//! Who is on a canvas, as hosts tell each other while there is no Redis between them: one short-lived row for each host and
//! canvas. Nothing here is the truth about anything: a row that is lost is written again within seconds.

use chrono::{DateTime, Utc};

use super::{Connection, StoreError, Tx};
use crate::{
    domain::id::{CanvasId, OrganizationId},
    on,
};

/// Hosts that are read of at once.
const HOSTS: i64 = 32;

/// What one host tells of one canvas.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Row {
    /// Names the host's process.
    pub host: String,
    /// Its people's presence: a JSON array as text.
    pub peers: String,
    /// Changes whenever the host tells anew.
    pub updated_at: DateTime<Utc>,
}

/// What hosts other than `host` told of a canvas after `since`.
///
/// # Errors
/// As the database says.
pub async fn elsewhere(
    c: &mut impl Connection,
    organization: OrganizationId,
    canvas: CanvasId,
    host: &str,
    since: DateTime<Utc>,
) -> Result<Vec<Row>, StoreError> {
    let sql = "SELECT host, peers, updated_at FROM canvas_presence
               WHERE organization_id = $1 AND canvas_id = $2 AND host <> $3 AND updated_at > $4 ORDER BY host LIMIT $5";
    Ok(on!(c, |c| sqlx::query_as(sql)
        .bind(organization)
        .bind(canvas)
        .bind(host)
        .bind(since)
        .bind(HOSTS)
        .fetch_all(c)
        .await)?)
}

/// Tells who is on a canvas at `host`, instead of what it told before.
///
/// # Errors
/// [`StoreError::Reference`] if no agent of the organization has this canvas.
pub async fn tell(tx: &mut Tx, organization: OrganizationId, canvas: CanvasId, row: &Row) -> Result<(), StoreError> {
    let sql =
        "INSERT INTO canvas_presence (canvas_id, host, organization_id, peers, updated_at) VALUES ($1, $2, $3, $4, $5)
               ON CONFLICT (canvas_id, host) DO UPDATE SET peers = excluded.peers, updated_at = excluded.updated_at";
    on!(tx, |c| sqlx::query(sql)
        .bind(canvas)
        .bind(&row.host)
        .bind(organization)
        .bind(&row.peers)
        .bind(row.updated_at)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// Forgets what hosts told last before `before`: they ended, or have nobody to tell any more.
///
/// # Errors
/// As the database says.
pub async fn sweep(tx: &mut Tx, before: DateTime<Utc>) -> Result<(), StoreError> {
    let sql = "DELETE FROM canvas_presence WHERE updated_at < $1";
    on!(tx, |c| sqlx::query(sql).bind(before).execute(c).await.map(drop))?;
    Ok(())
}
