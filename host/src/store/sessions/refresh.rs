//! Refresh tokens of sessions.

use chrono::{DateTime, Utc};

use super::super::{Connection, StoreError, Tx};
use crate::{
    domain::id::{OrganizationId, SessionId},
    on,
};

/// A refresh token as stored, with whose session it belongs to.
#[derive(Debug, sqlx::FromRow)]
pub struct RefreshToken {
    /// Whose.
    pub organization_id: OrganizationId,
    /// Which session's.
    pub session_id: SessionId,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
    /// When it was exchanged first.
    pub used_at: Option<DateTime<Utc>>,
    /// Makes its successor.
    pub salt: Option<Vec<u8>>,
}

/// Adds a refresh token of the session's family to it.
///
/// # Errors
/// As the database says.
pub async fn insert_refresh(
    tx: &mut Tx,
    hash: &[u8],
    (organization, session): (OrganizationId, SessionId),
    now: DateTime<Utc>,
    expires_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO refresh_tokens (hash, organization_id, session_id, created_at, expires_at, in_family)
               VALUES ($1, $2, $3, $4, $5, TRUE)";
    on!(tx, |c| sqlx::query(sql)
        .bind(hash)
        .bind(organization)
        .bind(session)
        .bind(now)
        .bind(expires_at)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// A refresh token by the SHA-256 of its secret, locked until the transaction ends.
///
/// # Errors
/// As the database says.
pub async fn lock_refresh(tx: &mut Tx, hash: &[u8]) -> Result<Option<RefreshToken>, StoreError> {
    let sql = match tx {
        Tx::Sqlite(_) => {
            "SELECT organization_id, session_id, expires_at, used_at, salt FROM refresh_tokens WHERE hash = $1"
        }
        Tx::Postgres(_) => {
            "SELECT organization_id, session_id, expires_at, used_at, salt FROM refresh_tokens WHERE hash = $1 FOR UPDATE"
        }
    };
    Ok(on!(tx, |c| sqlx::query_as(sql).bind(hash).fetch_optional(c).await)?)
}

/// The session of a refresh token by the SHA-256 of its secret, or of one that is forgotten by that of its family.
///
/// # Errors
/// As the database says.
pub async fn of_refresh(c: &mut impl Connection, hash: &[u8], family: &[u8]) -> Result<Option<SessionId>, StoreError> {
    let sql = "SELECT session_id FROM refresh_tokens WHERE hash = $1
               UNION ALL SELECT id FROM sessions WHERE refresh_family = $2 LIMIT 1";
    Ok(on!(c, |c| sqlx::query_scalar(sql).bind(hash).bind(family).fetch_optional(c).await)?)
}

/// The session whose refresh tokens are of this family.
///
/// # Errors
/// As the database says.
pub async fn by_family(
    c: &mut impl Connection,
    family: &[u8],
) -> Result<Option<(OrganizationId, SessionId)>, StoreError> {
    let sql = "SELECT organization_id, id FROM sessions WHERE refresh_family = $1";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(family).fetch_optional(c).await)?)
}

/// Notes of which family a session's refresh tokens are: a host of an earlier version may have begun it, or exchanged one.
///
/// # Errors
/// As the database says.
pub async fn note_family(
    tx: &mut Tx,
    (organization, session): (OrganizationId, SessionId),
    family: &[u8],
) -> Result<(), StoreError> {
    let sql = "UPDATE sessions SET refresh_family = $3
               WHERE organization_id = $1 AND id = $2 AND (refresh_family IS NULL OR refresh_family <> $3)";
    on!(tx, |c| sqlx::query(sql).bind(organization).bind(session).bind(family).execute(c).await.map(drop))?;
    Ok(())
}

/// Forgets refresh tokens of a session that were exchanged before a time, at most `limit`: their family tells of them. Not those of
/// earlier versions, which have none.
///
/// # Errors
/// As the database says.
pub async fn forget_used(
    tx: &mut Tx,
    (organization, session): (OrganizationId, SessionId),
    before: DateTime<Utc>,
    limit: i64,
) -> Result<(), StoreError> {
    macro_rules! forget {
        ($lock:literal) => {
            concat!(
                "DELETE FROM refresh_tokens WHERE hash IN
                     (SELECT hash FROM refresh_tokens
                      WHERE organization_id = $1 AND session_id = $2 AND in_family AND used_at < $3 LIMIT $4 ",
                $lock,
                ")"
            )
        };
    }
    let sql = match tx {
        Tx::Sqlite(_) => forget!(""),
        Tx::Postgres(_) => forget!("FOR UPDATE SKIP LOCKED"),
    };
    on!(tx, |c| sqlx::query(sql).bind(organization).bind(session).bind(before).bind(limit).execute(c).await.map(drop))?;
    Ok(())
}

/// Marks a refresh token as exchanged.
///
/// # Errors
/// As the database says.
pub async fn use_refresh(tx: &mut Tx, hash: &[u8], salt: &[u8], now: DateTime<Utc>) -> Result<(), StoreError> {
    let sql = "UPDATE refresh_tokens SET used_at = $3, salt = $2 WHERE hash = $1";
    on!(tx, |c| sqlx::query(sql).bind(hash).bind(salt).bind(now).execute(c).await.map(drop))?;
    Ok(())
}
