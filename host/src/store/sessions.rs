//! Sessions; and the one query that every request asks: who is this, as of now?

mod refresh;

use std::collections::{HashMap, hash_map::Entry};

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::types::Json;
use uuid::Uuid;

pub use self::refresh::{
    RefreshToken, by_family, forget_used, insert_refresh, lock_refresh, note_family, of_refresh, use_refresh,
};
use super::{Connection, StoreError, Tx};
use crate::{
    domain::{
        id::{OrganizationId, PolicyVersionId, SessionId, UserId, WorkspaceId},
        principal::Principal,
        role::{Grant, Role},
    },
    on,
};

/// One row for each role; the rest repeats.
#[derive(sqlx::FromRow)]
struct Row {
    session_id: Option<SessionId>,
    last_seen_at: DateTime<Utc>,
    organization_id: OrganizationId,
    user_id: UserId,
    email: String,
    name: String,
    /// In the first row of a session only: they may have kilobytes, and a session a row for each role.
    attributes: Option<Json<Box<RawValue>>>,
    platform_administrator: bool,
    policy_version_id: Option<PolicyVersionId>,
    role: Option<Role>,
    workspace_id: Option<WorkspaceId>,
}

impl Row {
    fn grant(&self) -> Option<Grant> {
        self.role.map(|role| Grant { role, workspace: self.workspace_id })
    }

    /// Adds what one more row of the same session tells.
    fn add_to(self, seen: &mut Seen) -> Result<(), StoreError> {
        seen.principal.grants.extend(self.grant());
        if let Some(attributes) = self.attributes {
            seen.principal.attributes = parsed(&attributes.0)?;
        }
        Ok(())
    }

    fn seen(self) -> Result<Seen, StoreError> {
        let attributes =
            self.attributes.as_ref().map(|attributes| parsed(&attributes.0)).transpose()?.unwrap_or_default();
        let principal = Principal {
            user_id: self.user_id,
            organization_id: self.organization_id,
            grants: self.grant().into_iter().collect(),
            email: self.email,
            name: self.name,
            attributes,
            platform_administrator: self.platform_administrator,
            session_id: self.session_id,
            policy_version: self.policy_version_id,
        };
        Ok(Seen { principal, last_seen_at: self.last_seen_at })
    }
}

/// A principal, and when their session was last written down as seen.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Who.
    pub principal: Principal,
    /// To within minutes.
    pub last_seen_at: DateTime<Utc>,
}

fn parsed(attributes: &RawValue) -> Result<serde_json::Map<String, serde_json::Value>, StoreError> {
    serde_json::from_str(attributes.get()).map_err(|error| StoreError::Database(sqlx::Error::Decode(error.into())))
}

/// All rows are one session's.
fn seen(rows: Vec<Row>) -> Result<Option<Seen>, StoreError> {
    let mut rows = rows.into_iter();
    let Some(row) = rows.next() else { return Ok(None) };
    let mut seen = row.seen()?;
    for row in rows {
        row.add_to(&mut seen)?;
    }
    Ok(Some(seen))
}

macro_rules! principal_by {
    ($asked:literal, $condition:literal) => {
        concat!(
            "SELECT s.id AS session_id, s.last_seen_at, u.organization_id, u.id AS user_id, u.email, u.name,
                    CASE WHEN ROW_NUMBER() OVER (PARTITION BY s.id) = 1 THEN u.attributes END AS attributes,
                    u.platform_administrator, o.policy_version_id, m.role, m.workspace_id
             FROM ",
            $asked,
            "sessions s
             JOIN users u ON u.organization_id = s.organization_id AND u.id = s.user_id
             JOIN organizations o ON o.id = s.organization_id
             LEFT JOIN memberships m ON m.user_id = u.id AND m.organization_id = u.organization_id
             WHERE s.revoked_at IS NULL AND s.expires_at > $1 AND s.last_seen_at > $2 AND u.active AND ",
            $condition
        )
    };
}

/// A session as a token names it: all three have to fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Named {
    /// Of which organization.
    pub organization: OrganizationId,
    /// Whose.
    pub user: UserId,
    /// Which.
    pub session: SessionId,
}

/// Sessions that [`by_ids`] looks for with one statement.
pub const TOGETHER: usize = 16;

/// Those of the sessions that are live at `now` and were seen after `idle`, and whose users may sign in.
///
/// # Errors
/// As the database says.
pub async fn by_ids(
    c: &mut impl Connection,
    asked: &[Named],
    (now, idle): (DateTime<Utc>, DateTime<Utc>),
) -> Result<HashMap<Named, Seen>, StoreError> {
    // Of two lengths only, filled up with what names nothing: each text is a prepared statement.
    let one = principal_by!("", "s.id = $3 AND s.organization_id = $4 AND s.user_id = $5");
    // Both databases call the columns of such a list so.
    let many = principal_by!(
        "(VALUES ($3, $4, $5), ($6, $7, $8), ($9, $10, $11), ($12, $13, $14), ($15, $16, $17), ($18, $19, $20),
                 ($21, $22, $23), ($24, $25, $26), ($27, $28, $29), ($30, $31, $32), ($33, $34, $35), ($36, $37, $38),
                 ($39, $40, $41), ($42, $43, $44), ($45, $46, $47), ($48, $49, $50)) AS asked
             CROSS JOIN ",
        "s.id = asked.column1 AND s.organization_id = asked.column2 AND s.user_id = asked.column3"
    );
    let nobody =
        Named { organization: OrganizationId(Uuid::nil()), user: UserId(Uuid::nil()), session: SessionId(Uuid::nil()) };
    let mut found: HashMap<Named, Seen> = HashMap::with_capacity(asked.len());
    for asked in asked.chunks(TOGETHER) {
        let (sql, length) = if asked.len() == 1 { (one, 1) } else { (many, TOGETHER) };
        let named = asked.iter().chain(std::iter::repeat(&nobody)).take(length);
        let rows: Vec<Row> = on!(c, |c| {
            let query = named.fold(sqlx::query_as(sql).bind(now).bind(idle), |query, named| {
                query.bind(named.session).bind(named.organization).bind(named.user)
            });
            query.fetch_all(c).await?
        });
        for row in rows {
            let Some(session) = row.session_id else { continue };
            let named = Named { organization: row.organization_id, user: row.user_id, session };
            match found.entry(named) {
                Entry::Occupied(mut known) => row.add_to(known.get_mut())?,
                Entry::Vacant(new) => drop(new.insert(row.seen()?)),
            }
        }
    }
    Ok(found)
}

/// Whose session this is, by the SHA-256 of the cookie's secret; as [`by_ids`].
///
/// # Errors
/// As the database says.
pub async fn by_cookie(
    c: &mut impl Connection,
    hash: &[u8],
    (now, idle): (DateTime<Utc>, DateTime<Utc>),
) -> Result<Option<Seen>, StoreError> {
    let sql = principal_by!("", "s.cookie_hash = $3");
    seen(on!(c, |c| sqlx::query_as(sql).bind(now).bind(idle).bind(hash).fetch_all(c).await?))
}

/// An active user as a principal, without a session.
///
/// # Errors
/// As the database says.
pub async fn principal(
    c: &mut impl Connection,
    organization: OrganizationId,
    user: UserId,
) -> Result<Option<Principal>, StoreError> {
    // The two columns of a session that is not there.
    let sql =
        "SELECT NULL AS session_id, u.updated_at AS last_seen_at, u.organization_id, u.id AS user_id, u.email, u.name,
                      u.attributes, u.platform_administrator, o.policy_version_id, m.role, m.workspace_id
               FROM users u
               JOIN organizations o ON o.id = u.organization_id
               LEFT JOIN memberships m ON m.user_id = u.id AND m.organization_id = u.organization_id
               WHERE u.organization_id = $1 AND u.id = $2 AND u.active";
    let rows = on!(c, |c| sqlx::query_as(sql).bind(organization).bind(user).fetch_all(c).await?);
    Ok(seen(rows)?.map(|seen| seen.principal))
}

/// A new session.
pub struct NewSession<'a> {
    /// Its id.
    pub id: SessionId,
    /// Whose.
    pub organization_id: OrganizationId,
    /// Whose.
    pub user_id: UserId,
    /// `password` or `sso`.
    pub method: &'a str,
    /// SHA-256 of the cookie's secret.
    pub cookie_hash: &'a [u8],
    /// Of the first refresh token, and so of all that follow it.
    pub refresh_family: &'a [u8],
    /// As the browser names itself, for people.
    pub user_agent: &'a str,
    /// Now.
    pub created_at: DateTime<Utc>,
    /// When it ends, however busy.
    pub expires_at: DateTime<Utc>,
}

/// Begins a session.
///
/// # Errors
/// As the database says.
pub async fn insert(tx: &mut Tx, session: &NewSession<'_>) -> Result<(), StoreError> {
    let sql = "INSERT INTO sessions (id, organization_id, user_id, method, cookie_hash, user_agent, created_at, last_seen_at, expires_at,
                                     refresh_family)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $7, $8, $9)";
    on!(tx, |c| sqlx::query(sql)
        .bind(session.id)
        .bind(session.organization_id)
        .bind(session.user_id)
        .bind(session.method)
        .bind(session.cookie_hash)
        .bind(session.user_agent)
        .bind(session.created_at)
        .bind(session.expires_at)
        .bind(session.refresh_family)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// Sessions of one user that [`end_beyond`] ends, and forgets, at once: more only after the bound was lowered.
const AT_ONCE: i64 = 20;

/// Ends a user's sessions beyond the `most` that were used last, and forgets some of those that ended before `ended_before`. Returns
/// which were ended.
///
/// # Errors
/// As the database says.
pub async fn end_beyond(
    tx: &mut Tx,
    (organization, user): (OrganizationId, UserId),
    most: i64,
    now: DateTime<Utc>,
    ended_before: DateTime<Utc>,
) -> Result<Vec<SessionId>, StoreError> {
    // Locked rows are another sign-in's, or are in use: the next sign-in sees to them.
    macro_rules! statements {
        ($lock:literal) => {
            (
                concat!(
                    "UPDATE sessions SET revoked_at = $3 WHERE id IN
                         (SELECT id FROM sessions
                          WHERE organization_id = $1 AND user_id = $2 AND revoked_at IS NULL AND expires_at > $3
                          ORDER BY last_seen_at DESC, id DESC LIMIT $4 OFFSET $5 ",
                    $lock,
                    ") RETURNING id"
                ),
                concat!(
                    "DELETE FROM sessions WHERE id IN
                         (SELECT id FROM sessions
                          WHERE organization_id = $1 AND user_id = $2 AND (revoked_at < $3 OR expires_at < $3) LIMIT $4 ",
                    $lock,
                    ")"
                ),
            )
        };
    }
    let (end, forget) = match tx {
        Tx::Sqlite(_) => statements!(""),
        Tx::Postgres(_) => statements!("FOR UPDATE SKIP LOCKED"),
    };
    on!(tx, |c| sqlx::query(forget)
        .bind(organization)
        .bind(user)
        .bind(ended_before)
        .bind(AT_ONCE)
        .execute(c)
        .await
        .map(drop))?;
    Ok(on!(tx, |c| sqlx::query_scalar(end)
        .bind(organization)
        .bind(user)
        .bind(now)
        .bind(AT_ONCE)
        .bind(most)
        .fetch_all(c)
        .await)?)
}

/// Writes down that a session was in use.
///
/// # Errors
/// As the database says.
pub async fn touch(
    tx: &mut Tx,
    organization: OrganizationId,
    id: SessionId,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let sql = "UPDATE sessions SET last_seen_at = $3 WHERE organization_id = $1 AND id = $2 AND last_seen_at < $3";
    on!(tx, |c| sqlx::query(sql).bind(organization).bind(id).bind(now).execute(c).await.map(drop))?;
    Ok(())
}

/// Ends a session. Tells whether it was live.
///
/// # Errors
/// As the database says.
pub async fn revoke(
    tx: &mut Tx,
    organization: OrganizationId,
    id: SessionId,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let sql = "UPDATE sessions SET revoked_at = $3 WHERE organization_id = $1 AND id = $2 AND revoked_at IS NULL";
    Ok(on!(tx, |c| sqlx::query(sql).bind(organization).bind(id).bind(now).execute(c).await?.rows_affected()) == 1)
}

/// Ends a live session by the SHA-256 of its cookie's secret. Tells which it was.
///
/// # Errors
/// As the database says.
pub async fn revoke_by_cookie(tx: &mut Tx, hash: &[u8], now: DateTime<Utc>) -> Result<Option<Named>, StoreError> {
    let sql = "UPDATE sessions SET revoked_at = $2 WHERE cookie_hash = $1 AND revoked_at IS NULL AND expires_at > $2
               RETURNING organization_id, user_id, id";
    let ended: Option<(OrganizationId, UserId, SessionId)> =
        on!(tx, |c| sqlx::query_as(sql).bind(hash).bind(now).fetch_optional(c).await?);
    Ok(ended.map(|(organization, user, session)| Named { organization, user, session }))
}

/// Ends a user's sessions, but for one to be kept. Tells how many.
///
/// # Errors
/// As the database says.
pub async fn revoke_user(
    tx: &mut Tx,
    organization: OrganizationId,
    user: UserId,
    keep: Option<SessionId>,
    now: DateTime<Utc>,
) -> Result<u64, StoreError> {
    let sql = "UPDATE sessions SET revoked_at = $3
               WHERE organization_id = $1 AND user_id = $2 AND revoked_at IS NULL AND id <> $4";
    let keep = keep.unwrap_or(SessionId(Uuid::nil()));
    Ok(on!(tx, |c| {
        sqlx::query(sql).bind(organization).bind(user).bind(now).bind(keep).execute(c).await?.rows_affected()
    }))
}

/// Whose session this is, whatever its state.
///
/// # Errors
/// As the database says.
pub async fn user_of(
    c: &mut impl Connection,
    organization: OrganizationId,
    id: SessionId,
) -> Result<Option<UserId>, StoreError> {
    let sql = "SELECT user_id FROM sessions WHERE organization_id = $1 AND id = $2";
    Ok(on!(c, |c| sqlx::query_scalar(sql).bind(organization).bind(id).fetch_optional(c).await)?)
}

/// Forgets what ended before `before`: exchanged refresh tokens, sessions with their tokens, signing keys; at most `limit` with each
/// statement. Returns the most that one of them removed: where that is `limit`, there may be more.
///
/// # Errors
/// As the database says.
pub async fn sweep(tx: &mut Tx, before: DateTime<Utc>, limit: i64) -> Result<u64, StoreError> {
    let statements = [
        // One that was not exchanged stays with its session: forgotten, it would be taken for one that was.
        "DELETE FROM refresh_tokens WHERE hash IN
             (SELECT hash FROM refresh_tokens WHERE expires_at < $1 AND used_at IS NOT NULL LIMIT $2)",
        "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE expires_at < $1 LIMIT $2)",
        "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE revoked_at < $1 LIMIT $2)",
        "DELETE FROM signing_keys WHERE kid IN (SELECT kid FROM signing_keys WHERE expires_at < $1 LIMIT $2)",
    ];
    let mut most = 0;
    for sql in statements {
        let removed = on!(tx, |c| sqlx::query(sql).bind(before).bind(limit).execute(c).await?.rows_affected());
        most = most.max(removed);
    }
    Ok(most)
}

#[cfg(test)]
mod tests;
