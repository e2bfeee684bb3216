//! Who is who at an identity provider: a user is linked to a subject of one issuer, through one identity connection.
//!
//! A link of an earlier version has no issuer yet; it counts as one of the issuer that its connection has now, and the links of
//! a connection whose issuer changes are removed ([`remove_other_issuers`]).

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Connection, StoreError, Tx};
use crate::{
    domain::{
        id::{IdentityId, OrganizationId, UserId},
        user::Identity,
    },
    on,
};

/// A provider, as links are keyed by it.
#[derive(Debug, Clone, Copy)]
pub struct Provider<'a> {
    /// Whose connection.
    pub organization: OrganizationId,
    /// The identity connection.
    pub connection: Uuid,
    /// OpenID Connect's issuer, or an OAuth 2 provider's token endpoint.
    pub issuer: &'a str,
}

/// The link of a provider's subject, and whose it is.
///
/// # Errors
/// As the database says.
pub async fn find(
    c: &mut impl Connection,
    provider: Provider<'_>,
    subject: &str,
) -> Result<Option<(IdentityId, UserId)>, StoreError> {
    // The one without an issuer is the last choice.
    let sql = "SELECT id, user_id FROM identities
               WHERE organization_id = $1 AND connection_id = $2 AND issuer IN ($3, '') AND subject = $4
               ORDER BY issuer DESC LIMIT 1";
    Ok(on!(c, |c| {
        sqlx::query_as(sql)
            .bind(provider.organization)
            .bind(provider.connection)
            .bind(provider.issuer)
            .bind(subject)
            .fetch_optional(c)
            .await?
    }))
}

/// Subjects of one provider that a user is linked to; at most ten.
///
/// # Errors
/// As the database says.
pub async fn subjects(
    c: &mut impl Connection,
    provider: Provider<'_>,
    user: UserId,
) -> Result<Vec<String>, StoreError> {
    let sql = "SELECT subject FROM identities
               WHERE organization_id = $1 AND connection_id = $2 AND issuer IN ($3, '') AND user_id = $4
               ORDER BY subject LIMIT 10";
    Ok(on!(c, |c| {
        sqlx::query_scalar(sql)
            .bind(provider.organization)
            .bind(provider.connection)
            .bind(provider.issuer)
            .bind(user)
            .fetch_all(c)
            .await?
    }))
}

/// Links a user to a provider's subject.
///
/// # Errors
/// [`StoreError::Duplicate`] if somebody is linked to it.
pub async fn insert(tx: &mut Tx, identity: &Identity) -> Result<(), StoreError> {
    let sql = "INSERT INTO identities (id, organization_id, connection_id, issuer, subject, user_id, created_at, last_sign_in_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    on!(tx, |c| sqlx::query(sql)
        .bind(identity.id)
        .bind(identity.organization_id)
        .bind(identity.connection_id)
        .bind(&identity.issuer)
        .bind(&identity.subject)
        .bind(identity.user_id)
        .bind(identity.created_at)
        .bind(identity.last_sign_in_at)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// Writes down that a linked subject signed in, at this issuer. The link is kept until the transaction ends: whoever removes it
/// waits, and then finds the session that is begun here.
///
/// # Errors
/// [`StoreError::Stale`] if the link was removed meanwhile.
pub async fn signed_in(
    tx: &mut Tx,
    provider: Provider<'_>,
    id: IdentityId,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let sql = "UPDATE identities SET last_sign_in_at = $4, issuer = $3 WHERE organization_id = $1 AND id = $2";
    let changed = on!(tx, |c| {
        sqlx::query(sql)
            .bind(provider.organization)
            .bind(id)
            .bind(provider.issuer)
            .bind(now)
            .execute(c)
            .await?
            .rows_affected()
    });
    super::one(changed)
}

/// What a user is linked to, after `after`, in the order of the ids.
///
/// # Errors
/// As the database says.
pub async fn list(
    c: &mut impl Connection,
    organization: OrganizationId,
    user: UserId,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Identity>, StoreError> {
    let sql = "SELECT id, organization_id, connection_id, issuer, subject, user_id, created_at, last_sign_in_at
               FROM identities WHERE organization_id = $1 AND user_id = $2 AND id > $3 ORDER BY id LIMIT $4";
    Ok(on!(c, |c| { sqlx::query_as(sql).bind(organization).bind(user).bind(after).bind(limit).fetch_all(c).await? }))
}

/// Whether a user is linked to any provider.
///
/// # Errors
/// As the database says.
pub async fn any(c: &mut impl Connection, organization: OrganizationId, user: UserId) -> Result<bool, StoreError> {
    Ok(!list(c, organization, user, Uuid::nil(), 1).await?.is_empty())
}

/// Removes a link of a user's, and returns it as it was.
///
/// # Errors
/// As the database says.
pub async fn remove(
    tx: &mut Tx,
    organization: OrganizationId,
    user: UserId,
    id: IdentityId,
) -> Result<Option<Identity>, StoreError> {
    let sql = "DELETE FROM identities WHERE organization_id = $1 AND user_id = $2 AND id = $3
               RETURNING id, organization_id, connection_id, issuer, subject, user_id, created_at, last_sign_in_at";
    Ok(on!(tx, |c| sqlx::query_as(sql).bind(organization).bind(user).bind(id).fetch_optional(c).await)?)
}

/// Removes the links of a connection that are not of its issuer, which has just changed. Tells how many there were.
///
/// # Errors
/// As the database says.
pub async fn remove_other_issuers(tx: &mut Tx, provider: Provider<'_>) -> Result<u64, StoreError> {
    let sql = "DELETE FROM identities WHERE organization_id = $1 AND connection_id = $2 AND issuer <> $3";
    Ok(on!(tx, |c| {
        sqlx::query(sql)
            .bind(provider.organization)
            .bind(provider.connection)
            .bind(provider.issuer)
            .execute(c)
            .await?
            .rows_affected()
    }))
}

#[cfg(test)]
mod tests;
