//! Sign-ins under way at an identity provider, and where one can begin.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Connection, StoreError, Tx};
use crate::{
    domain::{email::Email, id::OrganizationId},
    on,
};

/// A sign-in under way.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Pending {
    /// Into which organization.
    pub organization_id: OrganizationId,
    /// By which identity connection.
    pub connection_id: Uuid,
    /// That connection's revision when the sign-in began.
    pub connection_revision: i64,
    /// Where to go in the end: a whole address.
    pub return_to: String,
    /// When it is too late.
    pub expires_at: DateTime<Utc>,
}

/// Writes down that a browser has begun to sign in.
///
/// # Errors
/// As the database says.
pub async fn begin(tx: &mut Tx, state: &[u8], browser: &[u8], pending: &Pending) -> Result<(), StoreError> {
    let sql = "INSERT INTO sso_states
                   (state_hash, browser_hash, organization_id, connection_id, connection_revision, return_to, expires_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7)";
    on!(tx, |c| sqlx::query(sql)
        .bind(state)
        .bind(browser)
        .bind(pending.organization_id)
        .bind(pending.connection_id)
        .bind(pending.connection_revision)
        .bind(&pending.return_to)
        .bind(pending.expires_at)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// Whether [`take`] may find this sign-in. Asked first: whoever comes with a made-up state takes no write lock.
///
/// # Errors
/// As the database says.
pub async fn exists(
    c: &mut impl Connection,
    state: &[u8],
    browser: &[u8],
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let sql = "SELECT COUNT(*) FROM sso_states WHERE state_hash = $1 AND browser_hash = $2 AND expires_at > $3";
    let count: i64 = on!(c, |c| sqlx::query_scalar(sql).bind(state).bind(browser).bind(now).fetch_one(c).await)?;
    Ok(count > 0)
}

/// Takes a sign-in under way out, once, for the browser that began it.
///
/// # Errors
/// As the database says.
pub async fn take(tx: &mut Tx, state: &[u8], browser: &[u8]) -> Result<Option<Pending>, StoreError> {
    let sql = "DELETE FROM sso_states WHERE state_hash = $1 AND browser_hash = $2
               RETURNING organization_id, connection_id, connection_revision, return_to, expires_at";
    Ok(on!(tx, |c| sqlx::query_as(sql).bind(state).bind(browser).fetch_optional(c).await)?)
}

/// Forgets sign-ins that were not finished in time.
///
/// # Errors
/// As the database says.
pub async fn sweep(tx: &mut Tx, now: DateTime<Utc>) -> Result<(), StoreError> {
    let sql = "DELETE FROM sso_states WHERE expires_at < $1";
    on!(tx, |c| sqlx::query(sql).bind(now).execute(c).await.map(drop))?;
    Ok(())
}

/// An identity connection as somebody sees it who has not signed in yet.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct SignInConnection {
    /// Its id.
    pub id: Uuid,
    /// For people.
    pub name: String,
    /// The plugin's name.
    pub plugin: String,
}

/// The active identity connections of every organization in which an active user has this address; so many at the most. Those come
/// first where somebody was seen to use the address, and of these one of each organization before the next: nobody is pushed out by
/// typing an address in, nor by many connections.
///
/// # Errors
/// As the database says.
pub async fn sign_in_connections(
    c: &mut impl Connection,
    email: &Email,
    most: i64,
) -> Result<Vec<SignInConnection>, StoreError> {
    let sql = "SELECT c.id, c.name, c.plugin
               FROM users u JOIN connections c ON c.organization_id = u.organization_id
               WHERE u.email = $1 AND u.active AND c.kind = 'identity_provider' AND c.active
               ORDER BY u.confirmed_at IS NULL, ROW_NUMBER() OVER (PARTITION BY c.organization_id ORDER BY c.id), c.id
               LIMIT $2";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(email.as_str()).bind(most).fetch_all(c).await)?)
}
