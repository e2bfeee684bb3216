//! Canvases: the journal and its snapshots.
//!
//! A canvas's row in `canvases` is the lock that orders its messages: [`advance`] moves its sequence on from the one that
//! the writer has seen, and fails if another host was quicker.

mod graph;
mod tickets;

use std::sync::LazyLock;

use chrono::{DateTime, Utc};

pub use self::{
    graph::{Loaded, Rows, graph, load, replay, rows},
    tickets::{Ticket, issue_ticket, redeem_ticket, ticket_exists},
};
use super::{Connection, StoreError, Tx};
use crate::{
    domain::id::{CanvasId, OrganizationId},
    on,
};

/// One stored message.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Entry {
    /// Its place in the canvas's order, from 1, without gaps.
    pub sequence: i64,
    /// `user/{id}`.
    pub actor: String,
    /// Whose `reference` it is.
    pub client: String,
    /// What the client calls the message.
    #[sqlx(rename = "ref")]
    pub reference: Option<String>,
    /// The operations: a JSON array as text.
    pub ops: String,
    /// Of the operations as they were sent, to tell a repeat from another message under the same `reference`; absent in
    /// rows of earlier versions.
    pub digest: Option<Vec<u8>>,
    /// When it was stored.
    pub created_at: DateTime<Utc>,
}

/// What an open room asks about once a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct Watch {
    /// The canvas's last sequence; 0 before the first message.
    pub sequence: i64,
    /// The revision of its agent: what policies see of it may have changed.
    pub agent_revision: i64,
    /// The organization's last audit event: whatever was changed, it was told there.
    pub audit_sequence: i64,
    /// Other hosts that lately told in the database who is on the canvas.
    pub elsewhere: i64,
}

/// Where the canvas, its agent and the organization's audit trail stand, as `host` asks; absent if there is no such canvas.
/// Presence of hosts that told of it before `presence_since` is not counted.
///
/// # Errors
/// As the database says.
pub async fn watch(
    c: &mut impl Connection,
    organization: OrganizationId,
    canvas: CanvasId,
    host: &str,
    presence_since: DateTime<Utc>,
) -> Result<Option<Watch>, StoreError> {
    let sql = "SELECT COALESCE(c.sequence, 0) AS sequence, a.revision AS agent_revision, COALESCE(h.sequence, 0) AS audit_sequence,
                      (SELECT COUNT(*) FROM canvas_presence p
                       WHERE p.organization_id = $1 AND p.canvas_id = $2 AND p.host <> $3 AND p.updated_at > $4) AS elsewhere
               FROM agents a
               LEFT JOIN canvases c ON c.organization_id = a.organization_id AND c.id = a.canvas_id
               LEFT JOIN audit_heads h ON h.organization_id = a.organization_id
               WHERE a.organization_id = $1 AND a.canvas_id = $2";
    Ok(on!(c, |c| sqlx::query_as(sql)
        .bind(organization)
        .bind(canvas)
        .bind(host)
        .bind(presence_since)
        .fetch_optional(c)
        .await)?)
}

/// The last sequence; absent before the first message.
///
/// # Errors
/// As the database says.
pub async fn sequence(
    c: &mut impl Connection,
    organization: OrganizationId,
    canvas: CanvasId,
) -> Result<Option<i64>, StoreError> {
    let sql = "SELECT sequence FROM canvases WHERE organization_id = $1 AND id = $2";
    Ok(on!(c, |c| sqlx::query_scalar(sql).bind(organization).bind(canvas).fetch_optional(c).await)?)
}

/// The last sequence, with the canvas locked against other writers until the transaction ends; absent before the first
/// message.
///
/// # Errors
/// As the database says.
pub async fn lock(tx: &mut Tx, organization: OrganizationId, canvas: CanvasId) -> Result<Option<i64>, StoreError> {
    let sql = match tx {
        Tx::Sqlite(_) => "SELECT sequence FROM canvases WHERE organization_id = $1 AND id = $2",
        Tx::Postgres(_) => "SELECT sequence FROM canvases WHERE organization_id = $1 AND id = $2 FOR UPDATE",
    };
    Ok(on!(tx, |c| sqlx::query_scalar(sql).bind(organization).bind(canvas).fetch_optional(c).await)?)
}

/// Moves the sequence from `from` to `to`, for messages of so many bytes, and keeps the canvas locked until the transaction ends.
/// `false` if the sequence is not `from`, or there is no row yet.
///
/// # Errors
/// As the database says.
pub async fn advance(
    tx: &mut Tx,
    organization: OrganizationId,
    canvas: CanvasId,
    (from, to, bytes): (i64, i64, i64),
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let sql = "UPDATE canvases SET sequence = $4, updated_at = $5, bytes = bytes + $6 WHERE organization_id = $1 AND id = $2 AND sequence = $3";
    Ok(on!(tx, |c| {
        let query = sqlx::query(sql).bind(organization).bind(canvas).bind(from).bind(to).bind(now).bind(bytes);
        query.execute(c).await?.rows_affected()
    }) == 1)
}

/// Makes the canvas's row if it is not there.
///
/// # Errors
/// [`StoreError::Reference`] if no agent of the organization has this canvas.
pub async fn create(
    tx: &mut Tx,
    organization: OrganizationId,
    canvas: CanvasId,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    // No conflict target: with `(id)` PostgreSQL lets two hosts at once trip over the other unique index.
    let sql = "INSERT INTO canvases (id, organization_id, sequence, created_at, updated_at) VALUES ($1, $2, 0, $3, $3)
               ON CONFLICT DO NOTHING";
    on!(tx, |c| sqlx::query(sql).bind(canvas).bind(organization).bind(now).execute(c).await.map(drop))?;
    Ok(())
}

/// How many rows one statement adds, largest first: few texts to prepare, few round trips.
const CHUNKS: [usize; 3] = [64, 8, 1];
const COLUMNS: usize = 9;

static APPEND: LazyLock<[String; 3]> = LazyLock::new(|| {
    CHUNKS.map(|rows| {
        let row = |row: usize| {
            let places: Vec<String> = (1..=COLUMNS).map(|column| format!("${}", row * COLUMNS + column)).collect();
            format!("({})", places.join(", "))
        };
        let rows: Vec<String> = (0..rows).map(row).collect();
        let into = "INSERT INTO canvas_ops (canvas_id, organization_id, sequence, actor, client, ref, ops, digest, created_at) VALUES ";
        format!("{into}{}", rows.join(", "))
    })
});

/// Appends messages to the journal. Their sequences must be those that [`advance`] went over.
///
/// # Errors
/// As the database says.
pub async fn append(
    tx: &mut Tx,
    organization: OrganizationId,
    canvas: CanvasId,
    mut entries: &[Entry],
) -> Result<(), StoreError> {
    for (size, sql) in CHUNKS.into_iter().zip(APPEND.iter()) {
        while let Some((chunk, rest)) = entries.split_at_checked(size) {
            on!(tx, |c| {
                let mut query = sqlx::query(sql.as_str());
                for entry in chunk {
                    query = query
                        .bind(canvas)
                        .bind(organization)
                        .bind(entry.sequence)
                        .bind(&entry.actor)
                        .bind(&entry.client)
                        .bind(&entry.reference)
                        .bind(&entry.ops)
                        .bind(&entry.digest)
                        .bind(entry.created_at);
                }
                query.execute(c).await.map(drop)
            })?;
            entries = rest;
        }
    }
    Ok(())
}

/// Messages after `after`, in their order, at most `limit`.
///
/// # Errors
/// As the database says.
pub async fn tail(
    c: &mut impl Connection,
    organization: OrganizationId,
    canvas: CanvasId,
    after: i64,
    limit: i64,
) -> Result<Vec<Entry>, StoreError> {
    let sql = "SELECT sequence, actor, client, ref, ops, digest, created_at FROM canvas_ops
               WHERE organization_id = $1 AND canvas_id = $2 AND sequence > $3 ORDER BY sequence LIMIT $4";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(canvas).bind(after).bind(limit).fetch_all(c).await)?)
}

/// How many messages after `after` are still in the journal, and how many bytes their operations have.
///
/// # Errors
/// As the database says.
pub async fn tail_size(
    c: &mut impl Connection,
    organization: OrganizationId,
    canvas: CanvasId,
    after: i64,
) -> Result<(i64, i64), StoreError> {
    let sql = "SELECT COUNT(*), CAST(COALESCE(SUM(OCTET_LENGTH(ops)), 0) AS BIGINT) FROM canvas_ops
               WHERE organization_id = $1 AND canvas_id = $2 AND sequence > $3";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(canvas).bind(after).fetch_one(c).await)?)
}

/// A stored message's reference.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Referred {
    /// Its place in the canvas's order.
    pub sequence: i64,
    /// `user/{id}`.
    pub actor: String,
    /// Whose `reference` it is.
    pub client: String,
    /// What the client calls the message.
    #[sqlx(rename = "ref")]
    pub reference: String,
    /// As [`Entry::digest`].
    pub digest: Option<Vec<u8>>,
}

/// The messages after `after` that have a reference.
///
/// # Errors
/// As the database says.
pub async fn references(
    c: &mut impl Connection,
    organization: OrganizationId,
    canvas: CanvasId,
    after: i64,
) -> Result<Vec<Referred>, StoreError> {
    let sql = "SELECT sequence, actor, client, ref, digest FROM canvas_ops
               WHERE organization_id = $1 AND canvas_id = $2 AND sequence > $3 AND ref IS NOT NULL ORDER BY sequence";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(canvas).bind(after).fetch_all(c).await)?)
}

/// The latest snapshot: up to which sequence, and the graph as JSON.
///
/// # Errors
/// As the database says.
pub async fn snapshot(
    c: &mut impl Connection,
    organization: OrganizationId,
    canvas: CanvasId,
) -> Result<Option<(i64, String)>, StoreError> {
    let sql = "SELECT sequence, graph FROM canvas_snapshots WHERE organization_id = $1 AND canvas_id = $2";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(canvas).fetch_optional(c).await)?)
}

/// Keeps the graph as it is at `sequence`, unless a later one is kept, forgets the messages up to `forget` and those before the last
/// `keep` bytes, and notes how much is left.
///
/// # Errors
/// As the database says.
pub async fn compact(
    tx: &mut Tx,
    organization: OrganizationId,
    canvas: CanvasId,
    (sequence, graph): (i64, &str),
    (forget, keep): (i64, i64),
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    // As a commit does, and a removal of the agent: first the canvas, then what belongs to it.
    lock(tx, organization, canvas).await?;
    let latest = "INSERT INTO canvas_snapshots (canvas_id, organization_id, sequence, graph, created_at) VALUES ($1, $2, $3, $4, $5)
                ON CONFLICT (canvas_id) DO UPDATE
                SET sequence = excluded.sequence, graph = excluded.graph, created_at = excluded.created_at
                WHERE canvas_snapshots.sequence < excluded.sequence";
    on!(tx, |c| {
        sqlx::query(latest)
            .bind(canvas)
            .bind(organization)
            .bind(sequence)
            .bind(graph)
            .bind(now)
            .execute(c)
            .await
            .map(drop)
    })?;
    let beyond = "SELECT COALESCE(MAX(sequence), 0) FROM
                      (SELECT sequence, SUM(OCTET_LENGTH(ops)) OVER (ORDER BY sequence DESC) AS bytes
                       FROM canvas_ops WHERE organization_id = $1 AND canvas_id = $2) AS kept
                  WHERE bytes > $3";
    let beyond: i64 =
        on!(tx, |c| sqlx::query_scalar(beyond).bind(organization).bind(canvas).bind(keep).fetch_one(c).await)?;
    let sql = "DELETE FROM canvas_ops WHERE organization_id = $1 AND canvas_id = $2 AND sequence <= $3";
    on!(tx, |c| sqlx::query(sql)
        .bind(organization)
        .bind(canvas)
        .bind(forget.max(beyond).min(sequence))
        .execute(c)
        .await
        .map(drop))?;
    let left = "UPDATE canvases SET bytes =
                    (SELECT COALESCE(SUM(OCTET_LENGTH(ops)), 0) FROM canvas_ops WHERE organization_id = $1 AND canvas_id = $2)
                    + (SELECT COALESCE(MAX(OCTET_LENGTH(graph)), 0) FROM canvas_snapshots
                       WHERE organization_id = $1 AND canvas_id = $2)
                WHERE organization_id = $1 AND id = $2";
    on!(tx, |c| sqlx::query(left).bind(organization).bind(canvas).execute(c).await.map(drop))?;
    Ok(())
}

/// Bytes of an organization's canvases: their journals and snapshots.
///
/// # Errors
/// As the database says.
pub async fn bytes(c: &mut impl Connection, organization: OrganizationId) -> Result<i64, StoreError> {
    let sql = "SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) FROM canvases WHERE organization_id = $1";
    Ok(on!(c, |c| sqlx::query_scalar(sql).bind(organization).fetch_one(c).await)?)
}
